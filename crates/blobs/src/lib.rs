//! Content-addressed blobs in a directory, and signed URLs for them.
//!
//! Owns: a directory of files named by the SHA-256 of their bytes, uploads under names that others choose, sealing of
//! blobs that hold secrets, garbage collection, the HTTP router of signed URLs (BOSH's shape), and the seam to places
//! for named objects ([`objects`]: a directory, or an S3-compatible store). Never does: knowing what a blob is for or who
//! may read it (whoever signs decides).
//!
//! Invariants:
//! - A file under its final name is whole and on disk; one that was interrupted exists only under `tmp/`.
//! - The name is the digest of the file's bytes; readers verify it unless they ask not to.
//! - One process owns the directory.
//!
//! On disk: `xx/yy/<id>` (`xxyy` are the first four digits), `xx/yy/<id>.sealed`, `uploads/<name>` (a small file with an
//! id in it) and `tmp/`. All files have mode 0600.

mod error;
pub mod id;
pub mod objects;
mod read;
mod seal;
pub mod signed;
mod store;
mod write;

pub use crate::error::{Error, Result};
pub use crate::id::{BlobId, UploadName};
pub use crate::read::Reader;
pub use crate::seal::SealKey;
pub use crate::signed::{Signer, Verb};
pub use crate::store::{Blobs, Options, Stored, Swept};
pub use crate::write::Writer;
