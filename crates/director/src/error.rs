//! What can go wrong in the director, with BOSH's codes.

use stolos_api::director::code;
use stolos_base::{Class, Classify};
use stolos_flow::StepError;

use crate::plan;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed cause from a dependency whose type the director does not know.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The director could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] stolos_store::Error),
    /// A stored text is not what it was when it was written.
    #[error("failed to convert column `{column}`")]
    Stored {
        /// Which column.
        column: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Flows.
    #[error(transparent)]
    Flow(stolos_flow::Error),
    /// A request is not understood.
    #[error("{0}")]
    Request(String),
    /// Nobody, or nobody known, asks.
    #[error("not authorized")]
    Unauthenticated(#[source] stolos_api::token::Error),
    /// Tokens cannot be verified at the moment.
    #[error("failed to verify the token")]
    Verify(#[source] stolos_api::token::Error),
    /// Somebody known asks for what is not theirs.
    #[error("one of these scopes is needed: {}", .needed.join(", "))]
    Denied {
        /// One of these would do.
        needed: Vec<String>,
    },
    /// There is no such task.
    #[error("Task {0} not found")]
    NoTask(String),
    /// The task is not in a state in which that can be done.
    #[error("Cannot cancel task {id}: invalid state ({state})")]
    TaskState {
        /// The task.
        id: i64,
        /// Its state.
        state: &'static str,
    },
    /// There is no such deployment.
    #[error("Deployment '{0}' doesn't exist")]
    NoDeployment(String),
    /// There is no such instance, or no such group.
    #[error("instance '{0}' of deployment '{1}' doesn't exist")]
    NoInstance(String, String),
    /// There is no such config.
    #[error("Config {0} not found")]
    NoConfig(String),
    /// There is no such disk without an instance.
    #[error("Orphan disk {0} not found")]
    NoDisk(String),
    /// There is no such event.
    #[error("Event {0} not found")]
    NoEvent(String),
    /// There is no such release.
    #[error("Release '{0}' doesn't exist")]
    NoRelease(String),
    /// There is no such stemcell.
    #[error("Stemcell '{0}' doesn't exist")]
    NoStemcell(String),
    /// Something is used by deployments and cannot be deleted.
    #[error("{what} is still in use by: {users}")]
    InUse {
        /// `Release 'n/v'`, `Stemcell 'n/v'`.
        what: String,
        /// Deployments.
        users: String,
        /// BOSH's code.
        code: u32,
    },
    /// A config was changed by somebody else in between.
    #[error("Latest Id: '{latest}' does not match expected latest id")]
    ConfigChanged {
        /// The newest one's id.
        latest: String,
        /// What was expected.
        expected: String,
    },
    /// A document is not right.
    #[error(transparent)]
    Document(#[from] stolos_manifest::Problems),
    /// A deployment cannot be planned.
    #[error(transparent)]
    Plan(#[from] plan::Errors),
    /// Somebody else took an address in between; planning again finds another.
    #[error("address {address} was taken by another deployment")]
    AddressTaken {
        /// Which.
        address: std::net::IpAddr,
    },
    /// A release or stemcell archive is not right.
    #[error(transparent)]
    Archive(#[from] stolos_release::Error),
    /// A release archive collides with what is there.
    #[error("{text}")]
    Mismatch {
        /// For people.
        text: String,
        /// BOSH's code.
        code: u32,
    },
    /// Packages of a release are not compiled for the stemcell of a deployment.
    #[error("{0}")]
    NotCompiled(String),
    /// Templates could not be filled in; the text is BOSH's nested list.
    #[error("{0}")]
    Templates(String),
    /// A machine cannot be made anew without a person.
    #[error("{0}")]
    Irreparable(String),
    /// A deployment that may name its own credentials only names others.
    #[error(
        "deployment '{deployment}' may name credentials of its own only, and names {}", .names.join(", ")
    )]
    NotItsOwn {
        /// The deployment.
        deployment: String,
        /// The names as written.
        names: Vec<String>,
    },
    /// A variable could not be generated or read.
    #[error("failed to {action} variable `{name}`")]
    Variable {
        /// `generate`, `read`, `delete`.
        action: &'static str,
        /// Its full name.
        name: String,
        /// Who has to act.
        class: Class,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A machine's certificate could not be issued.
    #[error("failed to issue the certificate of agent `{agent}`")]
    Trust {
        /// The agent.
        agent: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A blob could not be written or read.
    #[error("failed to {action} a blob")]
    Blob {
        /// `write`, `read`, `sign`.
        action: &'static str,
        /// Who has to act.
        class: Class,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A call to the CPI failed.
    #[error("CPI error in '{method}'")]
    Cpi {
        /// The method.
        method: &'static str,
        /// Who has to act.
        class: Class,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// A call to an agent failed.
    #[error(transparent)]
    Agent(Box<stolos_mbus::client::Error>),
    /// An instance did not come to run.
    #[error("'{instance}' is not running after update. Review logs for failed jobs: {jobs}")]
    NotRunning {
        /// `group/id (index)`.
        instance: String,
        /// Names, joined.
        jobs: String,
    },
    /// It began before the installation was restored from a backup.
    #[error("{0}")]
    OldLife(String),
    /// A person wanted the task to end.
    #[error("cancelled")]
    Canceled,
    /// A file or directory of the director's own could not be used.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was done.
        action: &'static str,
        /// Where.
        path: camino::Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A bug.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// BOSH's code.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Request(_) => code::INVALID_FIELD,
            Self::Unauthenticated(_) | Self::Denied { .. } => code::UNAUTHORIZED,
            Self::NoTask(_) => code::TASK_NOT_FOUND,
            Self::TaskState { .. } => code::TASK_STATE,
            Self::NoDeployment(_) => code::DEPLOYMENT_NOT_FOUND,
            Self::NoInstance(..) => code::INSTANCE_NOT_FOUND,
            Self::NoConfig(_) => code::CONFIG_NOT_FOUND,
            Self::NoRelease(_) => code::RELEASE_NOT_FOUND,
            Self::NoStemcell(_) => code::STEMCELL_NOT_FOUND,
            Self::InUse { code, .. } | Self::Mismatch { code, .. } => *code,
            Self::Document(problems) => problems.code(),
            Self::Plan(errors) => errors.code(),
            Self::Archive(_) => code::RELEASE_INVALID,
            Self::Templates(_) => code::TEMPLATE,
            Self::NotItsOwn { .. } => code::BAD_MANIFEST,
            Self::Agent(error) => match **error {
                stolos_mbus::client::Error::Exception { .. } => code::AGENT_EXCEPTION,
                stolos_mbus::client::Error::Timeout { .. } => code::AGENT_TIMEOUT,
                stolos_mbus::client::Error::Cancelled { .. } => code::TASK_CANCELLED,
                _ => code::GENERIC,
            },
            Self::NotRunning { .. } => code::NOT_RUNNING,
            Self::Canceled => code::TASK_CANCELLED,
            Self::Bug(_) | Self::Stored { .. } => code::SYSTEM,
            _ => code::GENERIC,
        }
    }

    /// A boxed CPI error.
    pub(crate) fn cpi(method: &'static str, error: impl Classify + Send + Sync + 'static) -> Self {
        Self::Cpi {
            method,
            class: error.class(),
            source: Box::new(error),
        }
    }

    /// A boxed error of the blob store.
    pub(crate) fn blob(action: &'static str, error: impl Classify + Send + Sync + 'static) -> Self {
        Self::Blob {
            action,
            class: error.class(),
            source: Box::new(error),
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::Flow(error) => error.class(),
            Self::Agent(error) => error.class(),
            Self::Document(problems) => problems.class(),
            Self::Archive(error) => error.class(),
            Self::Variable { class, .. } | Self::Blob { class, .. } | Self::Cpi { class, .. } => *class,
            Self::Request(_) | Self::Plan(_) | Self::NotCompiled(_) | Self::Templates(_) => Class::User,
            Self::Unauthenticated(_) => Class::Unauthenticated,
            Self::Denied { .. } | Self::NotItsOwn { .. } => Class::Denied,
            Self::Verify(_) | Self::AddressTaken { .. } => Class::Unavailable,
            Self::NoTask(_)
            | Self::NoDeployment(_)
            | Self::NoInstance(..)
            | Self::NoConfig(_)
            | Self::NoDisk(_)
            | Self::NoEvent(_)
            | Self::NoRelease(_)
            | Self::NoStemcell(_) => Class::NotFound,
            Self::TaskState { .. } | Self::InUse { .. } | Self::Mismatch { .. } | Self::Irreparable(_) => {
                Class::User
            }
            Self::ConfigChanged { .. } | Self::Canceled | Self::OldLife(_) => Class::Conflict,
            Self::NotRunning { .. }
            | Self::Trust { .. }
            | Self::File { .. }
            | Self::Stored { .. }
            | Self::Bug(_) => Class::Internal,
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::Flow(error) => error.retryable(),
            // The client has repeated the request itself for as long as BOSH waits; what comes then is an answer.
            Self::Agent(error) => {
                !matches!(**error, stolos_mbus::client::Error::Timeout { .. }) && error.retryable()
            }
            other => other.class() == Class::Unavailable,
        }
    }
}

impl From<stolos_mbus::client::Error> for Error {
    fn from(error: stolos_mbus::client::Error) -> Self {
        Self::Agent(Box::new(error))
    }
}

impl From<stolos_flow::Error> for Error {
    fn from(error: stolos_flow::Error) -> Self {
        match error {
            stolos_flow::Error::Store(error) => Self::Store(error),
            other => Self::Flow(other),
        }
    }
}

impl From<stolos_store::sqlx::Error> for Error {
    fn from(error: stolos_store::sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The code of an error that only its class is known of: after a restart, for instance.
#[must_use]
pub(crate) fn code_of_class(class: Class) -> u32 {
    match class {
        Class::Internal => code::SYSTEM,
        _ => code::GENERIC,
    }
}

/// Only used where a step has no guard at hand.
pub(crate) fn step_error(error: &Error) -> StepError {
    StepError {
        message: stolos_base::chain(error),
        class: error.class(),
        retryable: error.retryable(),
        hints: error.hints(),
    }
}
