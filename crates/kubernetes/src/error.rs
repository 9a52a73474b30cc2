//! What can go wrong towards an API server.

use stolos_base::poll::TimedOut;
use stolos_base::{Class, Classify};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The API server answered with an error.
    #[error("the API server answered {code}: {message}")]
    Answer {
        /// HTTP status.
        code: u16,
        /// Kubernetes' own word for it, such as `NotFound`.
        reason: String,
        /// For people.
        message: String,
    },
    /// There was no usable answer.
    #[error("no usable answer from the API server")]
    Transport(#[source] kube::Error),
    /// There was no answer in time.
    #[error("no answer from the API server within {} s", .0.as_secs())]
    Silence(std::time::Duration),
}

impl From<kube::Error> for Cause {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Answer {
                code: status.code,
                reason: status.reason.clone(),
                message: if status.message.is_empty() {
                    status.reason.clone()
                } else {
                    status.message.clone()
                },
            },
            other => Self::Transport(other),
        }
    }
}

/// An operation on a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint cannot be used.
    #[error("failed to set up the connection to `{server}`: {problem}")]
    Endpoint {
        /// URL of the API.
        server: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS part of the endpoint cannot be used.
    #[error("failed to set up the connection to `{server}`")]
    Client {
        /// URL of the API.
        server: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// A kubeconfig file cannot be used.
    #[error("failed to read the kubeconfig `{path}`")]
    Kubeconfig {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A YAML document is no Kubernetes object.
    #[error("document {position} is no Kubernetes object: {problem}")]
    Document {
        /// Counted from 1.
        position: usize,
        /// What is wrong.
        problem: String,
    },
    /// The YAML text as a whole cannot be read.
    #[error("failed to read the YAML documents")]
    Yaml(#[source] stolos_document::Error),
    /// The cluster does not know this kind of object.
    #[error("the cluster has no `{kind}` in `{api_version}`")]
    UnknownKind {
        /// The kind.
        kind: String,
        /// Group and version.
        api_version: String,
    },
    /// A request failed.
    #[error("failed to {what}")]
    Request {
        /// What was tried: `get node "worker-0"`.
        what: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A condition did not come true in time.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// Draining would lose something that the caller did not agree to lose.
    #[error("node `{node}` cannot be drained: {problem}")]
    CannotDrain {
        /// The node.
        node: String,
        /// What stands in the way.
        problem: String,
    },
    /// A file is no archive of images.
    #[error("`{path}` cannot be loaded: {problem}")]
    Archive {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A node did not take images.
    #[error("node `{node}` did not take the images: {problem}")]
    Load {
        /// The node.
        node: String,
        /// What it said.
        problem: String,
    },
    /// The test pod ran and failed.
    #[error("the test pod `{pod}` failed: {problem}")]
    Smoke {
        /// The pod.
        pod: String,
        /// What it said.
        problem: String,
    },
}

impl Error {
    pub(crate) fn request(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |error| Self::Request {
            what,
            source: error.into(),
        }
    }

    /// The HTTP status of the answer, where there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Request {
                source: Cause::Answer { code, .. },
                ..
            } => Some(*code),
            _ => None,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Endpoint { .. } | Self::Client { .. } | Self::Kubeconfig { .. } => Class::Internal,
            Self::Document { .. } | Self::Yaml(_) | Self::UnknownKind { .. } | Self::Archive { .. } => {
                Class::User
            }
            Self::Request {
                source: Cause::Answer { code, .. },
                ..
            } => match code {
                400 | 422 => Class::User,
                401 => Class::Unauthenticated,
                403 => Class::Denied,
                404 => Class::NotFound,
                409 => Class::Conflict,
                429 | 500..=599 => Class::Unavailable,
                _ => Class::Internal,
            },
            Self::Request {
                source: Cause::Transport(_) | Cause::Silence(_),
                ..
            }
            | Self::TimedOut(_) => Class::Unavailable,
            Self::CannotDrain { .. } => Class::Conflict,
            Self::Load { .. } | Self::Smoke { .. } => Class::Internal,
        }
    }
}
