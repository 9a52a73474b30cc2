//! PID 1 of our machines: what is said on its control socket, and a client for it.
//!
//! The program owns every job process: it starts them, restarts them with back-off, reaps orphans and powers the machine
//! off. It lives as long as the machine, so job processes outlive the agent that asked for them. It is no async program
//! and has few dependencies, because nothing restarts it.

pub mod client;
pub mod wire;

pub use client::Client;

/// Where the control socket is in a machine.
pub const SOCKET: &str = "/run/stolos-init.sock";
