//! Named objects in a place that others keep: a directory (another disk, a network file system), or an S3-compatible
//! store. What backups are written to.
//!
//! Guarantees, the same for both: an object is whole or not there, and a second write under the same name replaces it; what
//! [`Writer::finish`] has answered survives a crash; nothing is held in memory but a part of one object. Transient
//! errors of a store are tried again within [`s3::RETRIED`]; what comes out after that says what was done to which object.
//!
//! Assumes of the place: nobody else writes below it.

mod directory;
mod name;
pub mod s3;
pub mod testing;

use std::fmt;

use bytes::Bytes;
use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub use self::name::{InvalidObjectName, ObjectName};
pub use self::s3::S3;

use self::directory::Directory;

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The bytes of an object. It fails with `UnexpectedEof` rather than end too early.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// A place for objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Objects(Place);

#[derive(Clone, Debug)]
enum Place {
    Directory(Directory),
    S3(S3),
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: ObjectName,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the place's clock, in milliseconds since the Unix epoch.
    pub written_at: i64,
}

/// A place could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object.
    #[error("there is no object `{name}` in {place}")]
    NotFound {
        /// The object.
        name: ObjectName,
        /// Where it was looked for.
        place: String,
    },
    /// The store knows no such bucket.
    #[error("there is no bucket `{bucket}` at {endpoint}")]
    NoBucket {
        /// The bucket.
        bucket: String,
        /// The store.
        endpoint: String,
    },
    /// The store does not take the access key, or the key may not do this.
    #[error("{place} refuses to {action}: {code}{}", .message.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The place.
        place: String,
        /// What was to be done.
        action: String,
        /// The store's own word.
        code: String,
        /// What it says for people.
        message: Option<String>,
    },
    /// No space is left.
    #[error("no space is left in {place} to {action}")]
    Full {
        /// The place.
        place: String,
        /// What was to be done.
        action: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The store did not answer, or answered with an error of its own, for as long as it was tried.
    #[error("failed to {action} in {place}")]
    Store {
        /// The place.
        place: String,
        /// What was to be done.
        action: String,
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The file system.
    #[error("failed to {action} at `{path}`")]
    Io {
        /// What was to be done.
        action: String,
        /// To which file or directory.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An object is larger than it may be.
    #[error("object `{name}` in {place} has more than {limit} bytes")]
    TooLarge {
        /// The object.
        name: ObjectName,
        /// The place.
        place: String,
        /// The most that is read.
        limit: u64,
    },
    /// The settings name no place, or no usable credentials.
    #[error("{0}")]
    Settings(String),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } | Self::NoBucket { .. } => Class::NotFound,
            Self::Refused { .. } => Class::Denied,
            Self::Settings(_) => Class::User,
            Self::Full { .. } | Self::Store { .. } => Class::Unavailable,
            Self::Io { .. } | Self::TooLarge { .. } => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { code, .. } => vec![match code.as_str() {
                // The second is versitygw's.
                "InvalidAccessKeyId" | "XAdminUserNotFound" => "The store does not know the access key id: look at the credentials file.",
                "SignatureDoesNotMatch" => "The secret access key is not that of the access key id.",
                _ => "The access key needs the rights to list the bucket, and to get, put and delete objects below the prefix.",
            }
            .to_owned()],
            Self::NoBucket { .. } => vec!["Make the bucket first, or correct its name.".to_owned()],
            Self::Full { .. } => vec!["Free some space there, or keep fewer backups.".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Directory(directory) => fmt::Display::fmt(directory, f),
            Place::S3(s3) => fmt::Display::fmt(s3, f),
        }
    }
}

impl Objects {
    /// A directory. It is made (mode 0700) with the first object; only where `parent` of it exists already, so that a
    /// disk that is not mounted is not taken for an empty one.
    #[must_use]
    pub fn directory(path: impl Into<Utf8PathBuf>) -> Self {
        Self(Place::Directory(Directory::new(path.into())))
    }

    /// An S3-compatible store.
    #[must_use]
    pub fn s3(s3: S3) -> Self {
        Self(Place::S3(s3))
    }

    /// Begins an object. It is there after [`Writer::finish`].
    ///
    /// # Errors
    /// Those of the place.
    pub async fn writer(&self, name: &ObjectName) -> Result<Writer> {
        Ok(Writer(match &self.0 {
            Place::Directory(directory) => Writing::Directory(directory.writer(name).await?),
            Place::S3(s3) => Writing::S3(s3.writer(name)),
        }))
    }

    /// Writes an object from memory.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn put(&self, name: &ObjectName, bytes: impl Into<Bytes> + Send) -> Result<()> {
        let mut writer = self.writer(name).await?;
        writer.write(bytes.into()).await?;
        writer.finish().await.map(drop)
    }

    /// Opens an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of the place.
    pub async fn reader(&self, name: &ObjectName) -> Result<Reader> {
        match &self.0 {
            Place::Directory(directory) => directory.reader(name).await,
            Place::S3(s3) => s3.reader(name).await,
        }
    }

    /// Reads an object of at most `limit` bytes into memory.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`], and those of the place.
    pub async fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.reader(name).await?.take(limit + 1);
        reader
            .read_to_end(&mut bytes)
            .await
            .map_err(|source| self.read_error(name, source))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge {
                name: name.clone(),
                place: self.to_string(),
                limit,
            });
        }
        Ok(bytes)
    }

    /// The error for a [`Reader`] of ours that failed.
    #[must_use]
    pub fn read_error(&self, name: &ObjectName, source: std::io::Error) -> Error {
        Error::Io {
            action: format!("read object `{name}`"),
            path: self.to_string().into(),
            source,
        }
    }

    /// All objects whose names begin with `prefix` and a slash (`None` for all), by name.
    ///
    /// # Errors
    /// Those of the place. A directory that is not there holds nothing.
    pub async fn list(&self, prefix: Option<&ObjectName>) -> Result<Vec<ObjectInfo>> {
        let mut all = match &self.0 {
            Place::Directory(directory) => directory.list(prefix).await?,
            Place::S3(s3) => s3.list(prefix).await?,
        };
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Removes an object; fine when there is none.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn delete(&self, name: &ObjectName) -> Result<()> {
        match &self.0 {
            Place::Directory(directory) => directory.delete(name).await,
            Place::S3(s3) => s3.delete(name).await,
        }
    }

    /// Removes what writers that were killed have left, when it is older than `age`. An S3 store hides such parts; there a
    /// rule of the bucket (`AbortIncompleteMultipartUpload`) removes them.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn tidy(&self, age: std::time::Duration) -> Result<()> {
        match &self.0 {
            Place::Directory(directory) => directory.tidy(age).await,
            Place::S3(_) => Ok(()),
        }
    }
}

/// An object that is being written. Dropped before [`Writer::finish`], it is not there.
#[derive(Debug)]
pub struct Writer(Writing);

#[derive(Debug)]
enum Writing {
    Directory(directory::Writer),
    S3(s3::Writer),
}

impl Writer {
    /// Adds bytes.
    ///
    /// # Errors
    /// Those of the place; the object cannot be finished then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match &mut self.0 {
            Writing::Directory(writer) => writer.write(&bytes).await,
            Writing::S3(writer) => writer.write(bytes).await,
        }
    }

    /// Makes the object durable and visible; gives its size in bytes.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn finish(self) -> Result<u64> {
        match self.0 {
            Writing::Directory(writer) => writer.finish().await,
            Writing::S3(writer) => writer.finish().await,
        }
    }

    /// Gives up: what was written so far is removed where the place keeps it.
    pub async fn abort(self) {
        match self.0 {
            // Dropping it removes the file.
            Writing::Directory(_) => {}
            Writing::S3(writer) => writer.abort().await,
        }
    }
}
