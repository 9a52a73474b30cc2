//! What can go wrong with blobs.

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};

use crate::id::BlobId;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such blob.
    #[error("there is no blob `{0}`")]
    NotFound(BlobId),
    /// Nothing was uploaded under this name.
    #[error("there is no upload `{0}`")]
    NoUpload(String),
    /// No space would be, or is, left.
    #[error("no space is left for blobs at `{path}`: {needed} bytes are needed, {available} may be used")]
    Full {
        /// The store.
        path: Utf8PathBuf,
        /// What the blob needs, as far as known.
        needed: u64,
        /// What may be used, without the reserve.
        available: u64,
    },
    /// More bytes came than were allowed.
    #[error("a blob of more than {limit} bytes is refused")]
    TooLarge {
        /// The most that is allowed.
        limit: u64,
    },
    /// The bytes are not those that were announced.
    #[error("the bytes have digest {actual}, not {expected}")]
    Mismatch {
        /// What was announced.
        expected: BlobId,
        /// What came.
        actual: BlobId,
    },
    /// The stored bytes are no longer those that were stored.
    #[error("blob `{id}` is damaged: its bytes have digest {actual}")]
    Damaged {
        /// The blob.
        id: BlobId,
        /// What its bytes are now.
        actual: BlobId,
    },
    /// A sealed blob does not open with this key.
    #[error("blob `{0}` cannot be unsealed with this key")]
    Unseal(BlobId),
    /// A sealed blob was read as a plain one, or the other way round.
    #[error("blob `{id}` is {actual}")]
    Form {
        /// The blob.
        id: BlobId,
        /// What it is: "sealed" or "not sealed".
        actual: &'static str,
    },
    /// The sender of the bytes failed.
    #[error("failed to receive the bytes of a blob")]
    Receive(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file system.
    #[error("failed to {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotFound(_) | Self::NoUpload(_) => Class::NotFound,
            Self::TooLarge { .. } | Self::Mismatch { .. } | Self::Receive(_) => Class::User,
            Self::Full { .. } => Class::Unavailable,
            Self::Damaged { .. } | Self::Unseal(_) | Self::Form { .. } | Self::Io { .. } => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Full { path, .. } => vec![format!("Free some space on the file system of `{path}`.")],
            _ => Vec::new(),
        }
    }
}

/// Turns an error of the file system into ours, with a full disk told apart.
pub(crate) fn io(action: &'static str, path: impl Into<Utf8PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::Full {
            path,
            needed: 0,
            available: 0,
        },
        _ => Error::Io { action, path, source },
    }
}
