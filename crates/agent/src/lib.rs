//! The agent in a machine: BOSH's protocol on one side, `stolos-init` and the machine's files on the other.
//!
//! Owns: applying specs, job scripts, which processes there are, persistent disks, heartbeats. Never does: supervising
//! processes (init does), knowing Kubernetes (job scripts do). It may die at any instant: processes go on, and a new one
//! finds everything in files.
//!
//! The way through: [`Agent`] listens on the bus → [`Core`] handles a call → `apply`, `scripts`, `processes`, `disks` →
//! [`platform::Platform`].

mod apply;
mod blobs;
mod core;
mod disks;
mod error;
mod logs;
pub mod paths;
pub mod platform;
mod problems;
mod processes;
mod scripts;
mod service;
mod settings;
mod tasks;

pub use crate::core::Core;
pub use error::{Error, Result};
pub use paths::Paths;
pub use service::{Agent, Config};
pub use settings::read as read_settings;
