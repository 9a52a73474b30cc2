//! What can go wrong with backups.

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};
use stolos_blobs::objects::{self, ObjectName};

use crate::key::KeyId;
use crate::manifest::BackupId;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A backup could not be taken, read or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place of the backups.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A database.
    #[error("failed to {action} database `{database}`")]
    Database {
        /// What was being done.
        action: &'static str,
        /// The service's schema name.
        database: String,
        /// The cause.
        #[source]
        source: Box<stolos_store::Error>,
    },
    /// The key file.
    #[error("the backup key `{path}` cannot be used: {problem}")]
    Key {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        problem: String,
    },
    /// The object was encrypted with another key.
    #[error("object `{object}` was encrypted with backup key {theirs}, and this is key {ours}")]
    OtherKey {
        /// The object.
        object: ObjectName,
        /// The key that is needed.
        theirs: String,
        /// The key at hand.
        ours: KeyId,
    },
    /// The bytes are not those that were written under this name for this backup.
    #[error("object `{object}` is damaged, cut off, or not what was written there: {problem}")]
    Damaged {
        /// The object.
        object: ObjectName,
        /// In which way.
        problem: String,
    },
    /// There is no such backup.
    #[error("there is no backup {} in {place}", .id.as_ref().map(|id| format!("`{id}`")).unwrap_or_default())]
    NoBackup {
        /// The one that was asked for; none when there is none at all.
        id: Option<BackupId>,
        /// Where.
        place: String,
    },
    /// There is no such backup of a cluster.
    #[error("there is no cluster backup {what} in {place}")]
    NoClusterBackup {
        /// Its id, or whose.
        what: String,
        /// Where.
        place: String,
    },
    /// What etcd gave is no whole snapshot.
    #[error("etcd of cluster `{cluster}` gave no whole snapshot: {problem}")]
    Snapshot {
        /// The cluster's name.
        cluster: String,
        /// Why.
        problem: String,
    },
    /// The snapshot broke off.
    #[error("failed to read a snapshot from etcd of cluster `{cluster}`")]
    SnapshotRead {
        /// The cluster's name.
        cluster: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The place holds backups of another installation.
    #[error("{place} holds backups of installation `{theirs}`; this is `{ours}`")]
    OtherInstallation {
        /// The place.
        place: String,
        /// Whose it is.
        theirs: String,
        /// Who we are.
        ours: String,
    },
    /// A restore needs an empty installation.
    #[error("`{path}` is there already: a backup is restored into an empty installation only")]
    NotEmpty {
        /// What is in the way.
        path: String,
    },
    /// A file of the installation.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A blob of the installation is not what its name says; what it was is in no backup.
    #[error("blob `{0}` of the installation is damaged")]
    Blob(String),
    /// The program that took the backup had more services.
    #[error("the backup has a database `{0}` that this program does not know: it is newer than the program")]
    Newer(String),
    /// A bug of ours.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    pub(crate) fn database(
        action: &'static str,
        database: impl Into<String>,
    ) -> impl FnOnce(stolos_store::Error) -> Self {
        let database = database.into();
        move |source| Self::Database {
            action,
            database,
            source: Box::new(source),
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<Utf8PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Objects(error) => error.class(),
            Self::Database { source, .. } => source.class(),
            Self::NoBackup { .. } | Self::NoClusterBackup { .. } => Class::NotFound,
            // Another member, or the same one a moment later, may give a whole one.
            Self::Snapshot { .. } | Self::SnapshotRead { .. } => Class::Unavailable,
            Self::Key { .. } | Self::OtherKey { .. } | Self::Newer(_) => Class::User,
            Self::OtherInstallation { .. } | Self::NotEmpty { .. } => Class::Conflict,
            Self::Damaged { .. } | Self::File { .. } | Self::Blob(_) | Self::Bug(_) => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Objects(error) => error.hints(),
            Self::Database { source, .. } => source.hints(),
            Self::OtherKey { theirs, .. } => {
                vec![format!(
                    "Name the file that holds key {theirs} with `--key-file`; without it the backup cannot be read."
                )]
            }
            Self::OtherInstallation { .. } => {
                vec!["Give each installation a directory or a prefix of its own.".to_owned()]
            }
            Self::Damaged { .. } => vec![
                "`stolosd verify-backup` says which backups are whole; `stolosd restore --backup ID` takes another one."
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}
