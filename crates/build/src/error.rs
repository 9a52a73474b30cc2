//! What can go wrong while something is built.

use std::io;

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while something is built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file failed.
    #[error("failed to {operation} `{path}`")]
    File {
        /// A verb: `read`, `write`, `lock`.
        operation: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that is needed is not installed.
    #[error("the program `{program}` is missing")]
    MissingProgram {
        /// The program.
        program: String,
        /// How to get it, as a whole sentence.
        hint: &'static str,
    },
    /// A program could not be started.
    #[error("failed to start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program ended with an error. Its last words are part of the message.
    #[error("`{command}` failed ({status}):\n{output}")]
    Program {
        /// The command line, shortened.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines that it wrote.
        output: String,
    },
    /// A file that describes what to build is wrong.
    #[error("`{path}` is not valid: {reason}")]
    Definition {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no such upstream component.
    #[error("there is no upstream component `{name}`; there are {known}")]
    UnknownComponent {
        /// What was asked for.
        name: String,
        /// Those that there are, joined by commas.
        known: String,
    },
    /// The release is not packed for this Kubernetes version.
    #[error("Kubernetes {version} is not pinned; there are {known}")]
    UnknownVersion {
        /// What was asked for.
        version: String,
        /// Those that there are, newest first, joined by commas.
        known: String,
    },
    /// No component builds the program that a package names.
    #[error("no upstream component builds `{program}`, which package `{package}` holds")]
    UnknownProgram {
        /// The program.
        program: String,
        /// The package.
        package: String,
    },
    /// The cache has no place: neither `STOLOS_CACHE` nor `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("no directory for the cache: neither STOLOS_CACHE nor XDG_CACHE_HOME nor HOME is set")]
    NoCacheDirectory,
    /// The directory is not our repository.
    #[error("`{0}` is not the Stolos repository: it has no `upstream` and `releases`")]
    NoRepository(Utf8PathBuf),
    /// Something needs root.
    #[error("making {0} needs root")]
    NotRoot(&'static str),
    /// containerd did not become ready.
    #[error("containerd did not get ready to unpack images:\n{output}")]
    ContainerdNotReady {
        /// The last lines of its log.
        output: String,
    },
    /// A release, stemcell or archive is wrong.
    #[error(transparent)]
    Release(#[from] stolos_release::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::UnknownComponent { .. }
            | Self::UnknownVersion { .. }
            | Self::Definition { .. }
            | Self::UnknownProgram { .. }
            | Self::NoRepository(_)
            | Self::NoCacheDirectory
            | Self::NotRoot(_)
            | Self::MissingProgram { .. } => Class::User,
            Self::Release(error) => error.class(),
            _ => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::MissingProgram { hint, .. } => vec![(*hint).to_owned()],
            Self::NotRoot(_) => vec!["Run it as root, for instance with `sudo`.".to_owned()],
            Self::NoRepository(_) => {
                vec!["Run it in the repository, or name it with `--repository`.".to_owned()]
            }
            Self::Release(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// Names the file and the operation in an error of the file system.
pub(crate) fn file(operation: &'static str, path: impl Into<Utf8PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File {
        operation,
        path,
        source,
    }
}
