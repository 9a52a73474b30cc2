//! PID 1 of our machines.
//!
//! Owns: the first mounts and directories of a machine, the agent (started and started again), all job processes (with
//! back-off, log files, limits and control groups of their own), zombies, and the orderly end of the machine.
//!
//! Never does: read a job's files, speak to the network, decide what should run. That is the agent's, which tells it over
//! the control socket ([`wire`], [`client`]). What it was told lives as long as the machine runs: an agent that dies and
//! comes back finds everything as it was; after a boot the agent tells it again.
//!
//! Invariants: the main thread never blocks on anything but `poll` (log files are written by a thread of their own); a
//! process that should run is either running or about to be started again; nobody but us starts, signals or reaps a
//! process of ours.

pub mod client;
pub mod config;
pub mod wire;

mod boot;
mod cgroup;
mod control;
mod logs;
mod power;
mod run;
mod spawn;
mod supervisor;
mod system;
mod users;

pub use client::Client;
pub use config::Config;
pub use run::{POWERED_OFF, REBOOT, Start, run};
pub use wire::{Event, Exit, ProcessSpec, ProcessStatus, State};
