//! BOSH releases and stemcells: formats, digests, compile order, job specs and template rendering.
//!
//! Owns: reading and writing release tarballs ([`ReleaseArchive`], [`ReleaseWriter`]) and stemcell tarballs
//! ([`StemcellArchive`], [`write_stemcell`]), the safe reading and the deterministic writing of tar archives
//! ([`tarball`]), multi-digests ([`digest`]), BOSH's semi-semantic versions ([`version`]), fingerprints, the order of
//! compilation ([`graph`]), job specs ([`job`]) and the rendering of job templates ([`render`]).
//!
//! Never does: async, network, choosing which release an instance gets, storing blobs. [`render`] does no I/O and reads
//! no clock.
//!
//! Invariants: nothing is handed out of an archive before its digest was checked; nothing is ever written outside of
//! the directory that was named; the same input packs to the same bytes; rendered content, which holds secrets, has
//! no `Debug` form.

pub mod digest;
pub mod error;
pub mod fingerprint;
pub mod graph;
pub mod job;
pub mod manifest;
pub mod render;
pub mod stemcell;
pub mod tarball;
pub mod version;

mod archive;
mod write;

pub use archive::{BlobEntry, BlobKind, ExtractedBlob, ExtractedJob, ExtractedRelease, ReleaseArchive};
pub use digest::MultiDigest;
pub use error::{Error, Result};
pub use graph::CompileGraph;
pub use job::{JobArchive, JobSpec};
pub use manifest::ReleaseManifest;
pub use render::{
    InstanceContext, JobInput, Link, LinkInstance, RenderErrors, RenderedFile, RenderedInstance, RenderedJob,
    render_instance,
};
pub use stemcell::{StemcellArchive, StemcellManifest, write_stemcell};
pub use version::{Version, Wanted};
pub use write::ReleaseWriter;
