//! What can go wrong with flows themselves; a step's failure is a [`crate::Failure`].

use stolos_base::ids::FlowId;
use stolos_base::{Class, Classify};

use crate::kind::FlowState;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A flow could not be submitted, read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] stolos_store::Error),
    /// There is no such flow.
    #[error("there is no flow `{0}`")]
    NotFound(FlowId),
    /// What is asked for does not fit the flow's state.
    #[error("failed to {action} flow `{flow}`: it is {state}")]
    State {
        /// What was asked for.
        action: &'static str,
        /// The flow.
        flow: FlowId,
        /// Its state.
        state: FlowState,
    },
    /// The program has no such kind of flow; a bug, or a flow of a newer program.
    #[error("this program knows no flow of kind `{0}`")]
    UnknownKind(String),
    /// The input or an output cannot be written as JSON or read from it.
    #[error("failed to convert {what} of flow `{flow}`")]
    Json {
        /// Input, output, failure.
        what: &'static str,
        /// The flow.
        flow: FlowId,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A column holds what this program does not know.
    #[error("flow `{flow}` has the unknown {what} `{value}`")]
    Corrupt {
        /// Which column.
        what: &'static str,
        /// The flow as stored.
        flow: String,
        /// The value.
        value: String,
    },
    /// The executor has been stopped.
    #[error("flows are no longer run by this process")]
    Stopped,
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::NotFound(_) => Class::NotFound,
            Self::State { .. } => Class::Conflict,
            Self::Stopped => Class::Unavailable,
            Self::UnknownKind(_) | Self::Json { .. } | Self::Corrupt { .. } => Class::Internal,
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            other => other.class() == Class::Unavailable,
        }
    }
}

impl From<stolos_store::sqlx::Error> for Error {
    fn from(error: stolos_store::sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
