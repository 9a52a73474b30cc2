//! BOSH deployment manifests (v2) and cloud configs: reading, checking, resolving, comparing.
//!
//! Owns: the document tree with its positions ([`Node`]), the typed [`Manifest`] and [`CloudConfig`], `((variables))`,
//! ops files, [`resolve()`] and the redacted [`diff`]. Never does: I/O, async, clocks, randomness, SQL; it does not know
//! what a release holds or which instances exist (that is `director::plan`).
//!
//! Invariants:
//! - every problem says document, line, column and path (`instance_groups[0].jobs[1].name`), and all problems of a
//!   document are reported at once;
//! - a [`ResolvedDeployment`] holds no dangling name and no "latest": whoever gets one does not look anything up again;
//! - values of variables never enter a [`Manifest`] or a [`ResolvedDeployment`], only their names do.
//!
//! The way through: [`Manifest::parse`] + [`CloudConfig::parse`] → [`resolve()`] → `director::plan`.

pub mod build;
mod cloud;
pub mod diff;
mod fields;
pub mod ip;
mod model;
pub mod ops;

pub mod problem;
mod read;
mod read_cloud;
mod read_group;
mod resolve;
mod resolved;
pub mod variables;
mod version;
pub mod yaml;

pub use cloud::{Az, CloudConfig, Compilation, DiskType, Network, Subnet, VmType};
pub use ip::{IpSet, Range};
pub use model::{
    Addon, Consume, Count, DefaultFor, Features, GroupNetwork, InstanceGroup, Job, Lifecycle, Link, Manifest,
    ManualInstance, MigratedFrom, Provide, ProviderDefinition, Release, Stemcell, UpdateOverride, Variable,
    VersionWish, WatchTime,
};
pub use problem::{Problem, Problems};
pub use read_cloud::CloudDocument;
pub use resolve::{canonical_name, resolve};
pub use resolved::{
    Known, PersistentDisk, ResolvedAz, ResolvedCompilation, ResolvedConsume, ResolvedDeployment,
    ResolvedGroup, ResolvedGroupNetwork, ResolvedJob, ResolvedNetwork, ResolvedProvide, ResolvedProvider,
    ResolvedRelease, ResolvedStemcell, ResolvedSubnet, ResolvedVariable, StemcellOffer, Update,
};
pub use stolos_document::{At, Entry, Located, Map, Node, Place, Value};
pub use version::compare as compare_versions;
