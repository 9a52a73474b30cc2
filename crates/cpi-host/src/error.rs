//! What can go wrong on the host.

use std::io;

use stolos_base::{Class, Classify, chain};
use stolos_cpi::Kind;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A refusal, in the terms of the CPI.
    #[error(transparent)]
    Cpi(#[from] stolos_cpi::Error),
    /// A system call or file operation.
    #[error("failed to {what}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program that was called.
    #[error("failed to {what}: {detail}")]
    Program {
        /// The operation and its object.
        what: String,
        /// The program's words.
        detail: String,
    },
    /// The kernel refused a change of the network.
    #[error("failed to {what}")]
    Net {
        /// The operation and its object.
        what: String,
        /// The cause.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// Things stayed that should have gone.
    #[error("something of the instance is left: {}", .0.join(", "))]
    Left(Vec<String>),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    pub(crate) fn refuse(kind: Kind, text: impl Into<String>) -> Self {
        Self::Cpi(stolos_cpi::Error::new(kind, text))
    }

    /// The error as the CPI reports it: what was not a refusal may pass.
    #[must_use]
    pub fn into_cpi(self, kind: Kind) -> stolos_cpi::Error {
        match self {
            Self::Cpi(error) => error,
            Self::Io { ref source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                stolos_cpi::Error::new(Kind::NoDiskSpace, chain(&self))
            }
            other => stolos_cpi::Error::retryable(kind, chain(&other)),
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Cpi(error) => error.class(),
            Self::Io { .. } | Self::Program { .. } | Self::Net { .. } => Class::Unavailable,
            Self::Left(_) => Class::Internal,
        }
    }
}

/// Adds words to errors of the operating system.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}
