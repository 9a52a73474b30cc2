//! Makes what Stolos runs from what others publish: upstream programs, the Kubernetes release, the stemcell, the
//! system's container images.
//!
//! Owns: the cache of artefacts ([`Cache`]), the list of upstream components and how they are built ([`source`]), the packing
//! of releases, stemcells and images. Never does: talk to a director, change anything of the host outside of its cache.
//!
//! Invariants: an artefact is named by a digest of everything that decides its content; it is complete or not there; two
//! builders of the same artefact wait for each other; a damaged one is noticed and made again; versions of upstream
//! programs stand in `upstream/*/go.mod` and nowhere else.
//!
//! Everything here blocks the thread, for minutes where Kubernetes is compiled for the first time: call it from
//! `spawn_blocking`.

mod builder;
mod cache;
mod definition;
mod error;
mod images;
mod oci;
mod programs;
mod progress;
mod run;
mod seed;
pub mod source;
mod stemcell;

pub use builder::{Builder, Release, Seed, Stemcell, Upstream};
pub use cache::{Artefact, Cache, Inputs, Listed};
pub use definition::find_repository;
pub use error::{Error, Result};
pub use images::ImageArchive;
pub use progress::{Event, NoProgress, Progress};
