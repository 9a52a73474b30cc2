//! What can be wrong with a release, a stemcell or an archive.

use std::io;

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a release, a stemcell or an archive. Rendering has its own: [`crate::RenderErrors`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file of an archive could not be opened or read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or archive could not be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are no gzip-compressed tar archive, or a damaged one.
    #[error("failed to read the archive `{archive}`")]
    Archive {
        /// Which archive, as a person would name it.
        archive: String,
        /// Why.
        source: io::Error,
    },
    /// An entry of an archive that is refused: it would leave the directory, or is a device, for instance.
    #[error("archive entry `{entry}` is refused: {reason}")]
    Entry {
        /// The entry's path as the archive has it.
        entry: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// An archive has more or larger content than allowed.
    #[error("the archive is too large: more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// `bytes` or `entries`.
        unit: &'static str,
    },
    /// A file that must be in an archive is not there.
    #[error("`{file}` is missing in `{archive}`")]
    Missing {
        /// The file.
        file: String,
        /// Which archive.
        archive: String,
    },
    /// A YAML document is not what it should be. The source names line and column.
    #[error("`{document}` is not valid")]
    Yaml {
        /// For instance `release.MF` or ``job.MF of job `etcd` ``.
        document: String,
        /// What is wrong and where.
        source: Box<stolos_document::Error>,
    },
    /// A document is valid YAML but contradicts itself or a rule of the format.
    #[error("`{document}` is not valid: {reason}")]
    Invalid {
        /// For instance `release.MF` or ``job.MF of job `etcd` ``.
        document: String,
        /// What is wrong.
        reason: String,
    },
    /// A template needs Ruby.
    #[error("template `{template}` of job `{job}` is an ERB template, which this version cannot render")]
    Erb {
        /// The job.
        job: String,
        /// The template's source path.
        template: String,
    },
    /// A template is no valid Jinja.
    #[error("template `{template}` of job `{job}` is not valid (line {line}: {reason})")]
    Template {
        /// The job.
        job: String,
        /// The template's source path.
        template: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The text is no digest.
    #[error("`{0}` is not a digest")]
    NoDigest(String),
    /// Content does not have the digest that it should have.
    #[error("`{what}` has the digest {found} instead of {expected}")]
    DigestMismatch {
        /// What was read.
        what: String,
        /// The digest that was promised.
        expected: String,
        /// The digest of what was read.
        found: String,
    },
    /// The text is no version.
    #[error("`{0}` is not a version")]
    NoVersion(String),
    /// Packages depend on each other in a circle.
    #[error("packages depend on each other in a circle: {}", .0.join(" -> "))]
    Cycle(Vec<String>),
    /// A manifest gives a property a value that its place cannot hold.
    #[error("property `{property}` expects a hash at `{at}`, but received {found}")]
    PropertyShape {
        /// The declared property.
        property: String,
        /// Where in it.
        at: String,
        /// What is there, for instance `a string`. Never the value.
        found: &'static str,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Class::NotFound,
            Self::Read { .. } | Self::Write { .. } => Class::Internal,
            _ => Class::User,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Erb { .. } => vec![
                "Jobs are rendered from Jinja templates (`.j2`) here; convert the template, or take a release that has \
                 none in ERB."
                    .to_owned(),
            ],
            Self::DigestMismatch { .. } => {
                vec!["The file was damaged or changed after it was made; get it again.".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Parses YAML, naming the document in the error.
pub(crate) fn yaml<T: serde::de::DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T> {
    stolos_document::from_yaml_bytes(bytes).map_err(|source| Error::Yaml {
        document: document.to_owned(),
        source: Box::new(source),
    })
}

pub(crate) fn invalid(document: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Invalid {
        document: document.into(),
        reason: reason.into(),
    }
}

/// A name that becomes a file name or a part of a path: not empty, no `/`, no leading dot, printable ASCII.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b'\\')
}
