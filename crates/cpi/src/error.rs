//! What a CPI can fail with, by BOSH's names.

use stolos_base::{Class, Classify};

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error types that a director knows (reference: bosh.md 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anything of the CPI itself.
    CpiError,
    /// The infrastructure did not do as asked.
    CloudError,
    /// The CPI cannot do this at all.
    NotSupported,
    /// The CPI does not know the method.
    NotImplemented,
    /// There is no such machine.
    VmNotFound,
    /// There is no such disk.
    DiskNotFound,
    /// The disk is not attached to that machine.
    DiskNotAttached,
    /// No space is left for a disk.
    NoDiskSpace,
    /// The machine could not be made.
    VmCreationFailed,
}

impl Kind {
    const ALL: [(Self, &'static str); 9] = [
        (Self::CpiError, "Bosh::Clouds::CpiError"),
        (Self::CloudError, "Bosh::Clouds::CloudError"),
        (Self::NotSupported, "Bosh::Clouds::NotSupported"),
        (Self::NotImplemented, "Bosh::Clouds::NotImplemented"),
        (Self::VmNotFound, "Bosh::Clouds::VMNotFound"),
        (Self::DiskNotFound, "Bosh::Clouds::DiskNotFound"),
        (Self::DiskNotAttached, "Bosh::Clouds::DiskNotAttached"),
        (Self::NoDiskSpace, "Bosh::Clouds::NoDiskSpace"),
        (Self::VmCreationFailed, "Bosh::Clouds::VMCreationFailed"),
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("Bosh::Clouds::CpiError", |(_, name)| name)
    }

    /// The kind of a name; unknown ones are the CPI's own errors.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text)
            .map_or(Self::CpiError, |(kind, _)| *kind)
    }
}

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CPI said no.
    #[error("{message}")]
    Cloud {
        /// What kind.
        kind: Kind,
        /// In the CPI's words.
        message: String,
        /// Whether asking again may help.
        ok_to_retry: bool,
    },
    /// The executable could not be called, or did not answer as it should.
    #[error("failed to call CPI method `{method}`")]
    Call {
        /// The method.
        method: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The answer is no answer.
    #[error("CPI method `{method}` gave an invalid response: {problem}")]
    InvalidResponse {
        /// The method.
        method: String,
        /// What is wrong.
        problem: String,
    },
    /// It took too long and was ended.
    #[error("CPI method `{method}` did not end within {limit_s} s and was killed")]
    TimedOut {
        /// The method.
        method: String,
        /// The limit in seconds.
        limit_s: u64,
    },
    /// Somebody cancelled it.
    #[error("CPI method `{method}` was cancelled")]
    Cancelled {
        /// The method.
        method: String,
    },
}

impl Error {
    /// An error of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::Cloud {
            kind,
            message: message.into(),
            ok_to_retry: false,
        }
    }

    /// The same, worth another try.
    pub fn retryable(kind: Kind, message: impl Into<String>) -> Self {
        Self::Cloud {
            kind,
            message: message.into(),
            ok_to_retry: true,
        }
    }

    /// The kind, if the CPI said no.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Cloud { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Cloud {
                kind: Kind::VmNotFound | Kind::DiskNotFound,
                ..
            } => Class::NotFound,
            Self::Cloud {
                kind: Kind::NotSupported | Kind::NotImplemented,
                ..
            } => Class::User,
            Self::Cloud {
                kind: Kind::NoDiskSpace,
                ..
            }
            | Self::Cancelled { .. } => Class::Conflict,
            Self::Cloud {
                ok_to_retry: true, ..
            }
            | Self::TimedOut { .. }
            | Self::Call { .. } => Class::Unavailable,
            Self::Cloud { .. } | Self::InvalidResponse { .. } => Class::Internal,
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Cloud { ok_to_retry, .. } => *ok_to_retry,
            Self::TimedOut { .. } | Self::Call { .. } | Self::InvalidResponse { .. } => true,
            Self::Cancelled { .. } => false,
        }
    }
}
