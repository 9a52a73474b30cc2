//! What can go wrong with a credential.

use camino::Utf8PathBuf;
use stolos_base::error::{Class, Classify};

use crate::value::Kind;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A credential could not be had or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no name.
    #[error("credential name `{name}` is not valid: {rule}")]
    Name {
        /// The text.
        name: String,
        /// The broken rule.
        rule: &'static str,
    },
    /// There is none of that name.
    #[error("credential `{0}` does not exist")]
    NotFound(String),
    /// A name keeps its type.
    #[error("credential `{name}` is of type {is} and cannot become one of type {wanted}")]
    KindChange {
        /// The name.
        name: String,
        /// The type that it has.
        is: Kind,
        /// The type that was asked for.
        wanted: Kind,
    },
    /// There is no such type, or it cannot be generated.
    #[error("a credential of type `{0}` cannot be generated")]
    NotGenerated(String),
    /// An option does not fit its type.
    #[error("options of a {kind} are not valid")]
    Options {
        /// The type.
        kind: Kind,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// An option has a value that is not allowed.
    #[error("option `{option}` of a {kind} is not valid: {rule}")]
    Option {
        /// The type.
        kind: Kind,
        /// Which.
        option: &'static str,
        /// The broken rule.
        rule: String,
    },
    /// There is no such mode.
    #[error("`{0}` is no mode: there are no-overwrite, overwrite and converge")]
    Mode(String),
    /// The CA that is to sign is not there.
    #[error("certificate authority `{ca}` of `{name}` does not exist")]
    NoAuthority {
        /// What is to be signed.
        name: String,
        /// The missing CA.
        ca: String,
    },
    /// What is to sign is no CA.
    #[error("credential `{ca}`, which is to sign `{name}`, is no certificate authority")]
    NotAnAuthority {
        /// What is to be signed.
        name: String,
        /// The other.
        ca: String,
    },
    /// Only what was generated can be generated again.
    #[error("credential `{0}` was set, not generated, so it cannot be regenerated")]
    Static(String),
    /// Key material could not be made.
    #[error("failed to make credential `{name}`")]
    Make {
        /// Which.
        name: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The root key file cannot be read or made.
    #[error("failed to use root key `{path}`")]
    RootKeyFile {
        /// Which file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The root key file holds something else.
    #[error("root key `{path}` is not valid: {rule}")]
    RootKeyFormat {
        /// Which file.
        path: Utf8PathBuf,
        /// What is wrong.
        rule: &'static str,
    },
    /// The root key is not the one that this database was encrypted with.
    #[error(
        "the root key does not open this installation's credentials: they were encrypted with another one"
    )]
    WrongRootKey,
    /// A stored secret does not decrypt: the row was changed or moved.
    #[error("credential `{0}` does not decrypt: its row was changed by somebody else")]
    Corrupt(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] stolos_store::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Name { .. }
            | Self::NotGenerated(_)
            | Self::Options { .. }
            | Self::Option { .. }
            | Self::Mode(_)
            | Self::NoAuthority { .. }
            | Self::NotAnAuthority { .. }
            | Self::Static(_)
            | Self::RootKeyFile { .. }
            | Self::RootKeyFormat { .. }
            | Self::WrongRootKey => Class::User,
            Self::NotFound(_) => Class::NotFound,
            Self::KindChange { .. } => Class::Conflict,
            Self::Make { .. } | Self::Corrupt(_) => Class::Internal,
            Self::Store(error) => error.class(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::WrongRootKey => vec![
                "Put the root key file back that was in use when the installation was made; without it no secret \
                 can be read."
                    .to_owned(),
            ],
            Self::RootKeyFormat { path, .. } => {
                vec![format!("Put `{path}` back from a backup and make sure that it has mode 0600.")]
            }
            Self::Store(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}
