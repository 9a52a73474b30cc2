//! The director as a service: in this process, over HTTPS on port 0, with a CPI that keeps books and simulated agents on
//! the in-memory bus.

mod api;
mod deploy;
mod disks;
mod health;
mod machines;
mod reach;
mod resume;
mod words;
mod world;
