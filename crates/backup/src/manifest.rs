//! What a backup consists of.

use std::fmt;
use std::str::FromStr;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_base::Clock;
use stolos_blobs::BlobId;
use stolos_blobs::objects::{ObjectName, Objects};
use stolos_store::dump::Contents;

use crate::error::{Error, Result};
use crate::key::{BackupKey, KeyId};
use crate::seal;

/// The format's number.
const FORMAT: u32 = 1;
/// A manifest names every blob; a hundred thousand of them fit.
const LARGEST: usize = 64 * 1024 * 1024;

/// The name of a backup: when it was begun (UTC) and four random digits, `20261121T235959Z-1f2e`. Sorted by name they are
/// sorted by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

/// The text is no backup id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no backup id; one looks like 20261121T235959Z-1f2e")]
pub struct InvalidBackupId(String);

impl BackupId {
    pub(crate) fn new(clock: &Clock) -> Self {
        let stamp = clock.now().strftime("%Y%m%dT%H%M%SZ");
        Self(format!("{stamp}-{}", stolos_base::ids::random_hex(2)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When it was begun, to the second.
    #[must_use]
    pub fn begun(&self) -> Option<Timestamp> {
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", self.0.get(..15)?).ok()?;
        time.to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    }

    /// Its object of this name.
    pub(crate) fn object(&self, name: &str) -> ObjectName {
        format!("backups/{}/{name}", self.0)
            .parse()
            .expect("ids and our names are made of letters, digits, dots and dashes")
    }

    pub(crate) fn manifest(&self) -> ObjectName {
        self.object("manifest")
    }
}

impl FromStr for BackupId {
    type Err = InvalidBackupId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = |(at, b): (usize, u8)| match at {
            8 => b == b'T',
            15 => b == b'Z',
            16 => b == b'-',
            17.. => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            _ => b.is_ascii_digit(),
        };
        if text.len() == 21 && text.bytes().enumerate().all(shape) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidBackupId(text.to_owned()))
        }
    }
}

impl TryFrom<String> for BackupId {
    type Error = InvalidBackupId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's number.
    pub format: u32,
    /// Its name.
    pub id: BackupId,
    /// The key that opens it.
    pub key: KeyId,
    /// The id of the installation (of its director).
    pub installation: String,
    /// The version of the program that took it.
    pub version: String,
    /// When it was begun.
    pub taken_at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The databases, in the order in which they were read.
    pub databases: Vec<Database>,
    /// Everything that is a file.
    pub files: Files,
    /// Blobs of the director; absent when it was taken without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<Vec<Blob>>,
}

/// The dump of one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its object's size in bytes.
    pub stored: u64,
    /// What it holds.
    pub contents: Contents,
}

/// The files, in one archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Its object's size in bytes.
    pub stored: u64,
    /// Each file.
    pub entries: Vec<FileEntry>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the installation's root.
    pub path: Utf8PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// A blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its id.
    pub id: BlobId,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    pub(crate) fn format() -> u32 {
        FORMAT
    }

    /// Bytes in the place that belong to this backup alone.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.files.stored + self.databases.iter().map(|one| one.stored).sum::<u64>()
    }

    /// Bytes of all its blobs, which it shares with other backups.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.blobs.iter().flatten().map(|blob| blob.size).sum()
    }

    /// Its objects but the manifest, with their sizes, without blobs.
    pub(crate) fn objects(&self) -> Vec<(ObjectName, u64)> {
        let mut all: Vec<(ObjectName, u64)> = self
            .databases
            .iter()
            .map(|one| (database(&self.id, &one.contents.schema), one.stored))
            .collect();
        all.push((self.id.object(FILES), self.files.stored));
        all
    }

    pub(crate) async fn write(&self, objects: &Objects, key: &BackupKey) -> Result<u64> {
        seal::write_json(objects, &self.id.manifest(), key, self).await
    }

    /// Reads a backup's manifest.
    ///
    /// # Errors
    /// [`Error::NoBackup`], [`Error::OtherKey`], [`Error::Damaged`], those of the place.
    pub async fn read(objects: &Objects, key: &BackupKey, id: &BackupId) -> Result<Self> {
        let name = id.manifest();
        let damaged = |problem: String| Error::Damaged {
            object: name.clone(),
            problem,
        };
        let manifest: Self = match seal::read_json(objects, &name, key, LARGEST).await {
            Err(Error::Objects(stolos_blobs::objects::Error::NotFound { .. })) => {
                return Err(Error::NoBackup {
                    id: Some(id.clone()),
                    place: objects.to_string(),
                });
            }
            other => other?,
        };
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(damaged(format!(
                "it has format {format}; this program reads {FORMAT}"
            )));
        }
        if manifest.id != *id {
            return Err(damaged(format!("it is that of backup {}", manifest.id)));
        }
        Ok(manifest)
    }
}

/// The name of the files' object.
pub(crate) const FILES: &str = "files";

/// The object of a database's dump.
pub(crate) fn database(id: &BackupId, schema: &str) -> ObjectName {
    id.object(&format!("db.{schema}"))
}

/// The object of a blob, and what it is bound to.
pub(crate) fn blob(key: &BackupKey, id: &BlobId) -> (ObjectName, String) {
    let name = key.name(id.as_str());
    let object = format!("blobs/{}/{}/{name}", key.id(), &name[..2])
        .parse()
        .expect("hex digits are names");
    (object, format!("blob {id}"))
}
