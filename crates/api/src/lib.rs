//! Wire types and clients of our own services, and what is common to them. No SQL, no server.

pub mod director;
pub mod pks;
