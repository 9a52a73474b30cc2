//! The addresses of clusters.
//!
//! Owns: the instance's range and what follows from it ([`model`], pure), and the leases of one segment and one virtual
//! API address per cluster ([`Leases`], SQL). Never does: assigning addresses to machines inside a segment (the director
//! does), making bridges (the CPI does), balancing virtual addresses (`stolos-hostd` does).
//!
//! Invariant: no two clusters have the same lease at the same time, and a cluster has at most one.

pub mod hostd_client;
mod lease;
pub mod model;

pub use crate::lease::{Error, Leases, SCHEMA};
pub use crate::model::{Base, Lease};
