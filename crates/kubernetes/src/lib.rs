//! Everything that speaks to a cluster's API server.
//!
//! Owns: the connection to a cluster ([`Cluster`]), server-side apply of YAML documents, waiting for and draining of nodes, giving a
//! person access, giving nodes images, volumes on nodes' disks, the smoke test. `stolos-job`, the helper that job scripts in the machines
//! call, is a thin shell around it.
//! Never does: machines, manifests, the director's work; it knows no cluster but the one it is connected to.
//!
//! Invariants: every call can be repeated; every wait has a limit and says what it waited for; credentials never reach a log
//! or an error text.

pub mod access;
pub mod apply;
pub mod client;
pub mod conditions;
pub mod error;
pub mod etcd;
pub mod etcd_room;
pub mod images;
pub mod inherited;
pub mod losses;
pub mod marks;
pub mod nodes;
mod pods;
pub mod raft_snapshot;
pub mod running;
pub mod settings;
pub mod smoke;
pub mod snapshot;
pub mod volumes;
pub mod watch;

pub use apply::Document;
pub use client::{Cluster, Credentials, Endpoint};
pub use error::{Cause, Error};
