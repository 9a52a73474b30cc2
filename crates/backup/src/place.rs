//! What is in a place.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_blobs::objects::{self, ObjectInfo, ObjectName, Objects};
use tokio::io::AsyncReadExt as _;

use crate::error::{Error, Result};
use crate::key::BackupKey;
use crate::manifest::{BackupId, Manifest};
use crate::seal;

/// Small JSON.
const MARK_LIMIT: u64 = 64 * 1024;

/// Whose backups a place holds.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: u32,
    installation: String,
}

fn mark() -> ObjectName {
    "place.json".parse().expect("a name")
}

/// Refuses a place of another installation; makes a new one ours.
pub(crate) async fn claim(objects: &Objects, installation: &str) -> Result<()> {
    match objects.get(&mark(), MARK_LIMIT).await {
        Ok(bytes) => {
            let read: Mark = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
                object: mark(),
                problem: error.to_string(),
            })?;
            if read.installation != installation {
                return Err(Error::OtherInstallation {
                    place: objects.to_string(),
                    theirs: read.installation,
                    ours: installation.to_owned(),
                });
            }
            Ok(())
        }
        Err(objects::Error::NotFound { .. }) => {
            let new = Mark {
                format: 1,
                installation: installation.to_owned(),
            };
            let bytes = serde_json::to_vec(&new).map_err(|error| Error::Bug(error.to_string()))?;
            Ok(objects.put(&mark(), bytes).await?)
        }
        Err(other) => Err(other.into()),
    }
}

/// What is below `backups/`.
pub(crate) struct Found {
    /// Backup → its objects.
    pub(crate) backups: BTreeMap<BackupId, Vec<ObjectInfo>>,
}

impl Found {
    pub(crate) async fn look(objects: &Objects) -> Result<Self> {
        let root: ObjectName = "backups".parse().expect("a name");
        let mut backups: BTreeMap<BackupId, Vec<ObjectInfo>> = BTreeMap::new();
        for object in objects.list(Some(&root)).await? {
            let id = object.name.as_str().split('/').nth(1);
            match id.and_then(|id| id.parse().ok()) {
                Some(id) => backups.entry(id).or_default().push(object),
                None => tracing::warn!(object = %object.name, "an object among the backups belongs to none"),
            }
        }
        Ok(Self { backups })
    }

    pub(crate) fn has_manifest(&self, id: &BackupId) -> bool {
        let name = id.manifest();
        self.backups
            .get(id)
            .is_some_and(|objects| objects.iter().any(|object| object.name == name))
    }

    /// Whether all objects of the backup are there with their sizes.
    pub(crate) fn is_whole(&self, manifest: &Manifest) -> bool {
        let Some(there) = self.backups.get(&manifest.id) else {
            return false;
        };
        manifest.objects().iter().all(|(name, size)| {
            there
                .iter()
                .any(|object| object.name == *name && object.size == *size)
        })
    }
}

/// A backup in a list.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub id: BackupId,
    /// The key that opens it, when its manifest has a head.
    pub key: Option<String>,
    /// When it was taken; known with the key.
    pub taken_at: Option<Timestamp>,
    /// Bytes in the place that are its own.
    pub stored: u64,
    /// Blobs, when it has some; known with the key.
    pub blobs: Option<u64>,
    /// Their bytes, shared with other backups.
    pub blob_bytes: Option<u64>,
    /// What is wrong with it, as far as one sees without reading it.
    pub problem: Option<String>,
}

/// The backups in a place, oldest first. Only those with a manifest; what it says is read when there is a key.
///
/// # Errors
/// Those of the place.
pub async fn list(objects: &Objects, key: Option<&BackupKey>) -> Result<Vec<Listed>> {
    let found = Found::look(objects).await?;
    let mut all = Vec::new();
    for (id, there) in &found.backups {
        if !found.has_manifest(id) {
            continue;
        }
        let mut listed = Listed {
            id: id.clone(),
            key: key_of(objects, id).await?,
            taken_at: None,
            stored: there.iter().map(|object| object.size).sum(),
            blobs: None,
            blob_bytes: None,
            problem: None,
        };
        if let Some(key) = key {
            match Manifest::read(objects, key, id).await {
                Ok(manifest) => {
                    listed.taken_at = Some(manifest.taken_at);
                    listed.blobs = manifest.blobs.as_ref().map(|blobs| blobs.len() as u64);
                    listed.blob_bytes = manifest.blobs.as_ref().map(|_| manifest.blob_bytes());
                    if !found.is_whole(&manifest) {
                        listed.problem = Some("an object is missing or has another size".to_owned());
                    }
                }
                Err(error @ (Error::OtherKey { .. } | Error::Damaged { .. })) => {
                    listed.problem = Some(error.to_string());
                }
                // Removed meanwhile.
                Err(Error::NoBackup { .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        all.push(listed);
    }
    Ok(all)
}

/// The key id in the head of a manifest.
pub(crate) async fn key_of(objects: &Objects, id: &BackupId) -> Result<Option<String>> {
    let name = id.manifest();
    let mut head = Vec::new();
    match objects.reader(&name).await {
        Ok(reader) => {
            let mut reader = reader.take(128);
            reader
                .read_to_end(&mut head)
                .await
                .map_err(|error| objects.read_error(&name, error))?;
        }
        Err(objects::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    Ok(seal::key_of(&head).map(str::to_owned))
}

/// The newest backup that has a manifest and all its objects.
pub(crate) async fn newest(objects: &Objects, key: &BackupKey) -> Result<Manifest> {
    let found = Found::look(objects).await?;
    let mut problem = None;
    for id in found.backups.keys().rev().filter(|id| found.has_manifest(id)) {
        match Manifest::read(objects, key, id).await {
            Ok(manifest) if found.is_whole(&manifest) => return Ok(manifest),
            Ok(_) => {
                tracing::warn!(backup = %id, "an object of the backup is missing; looking for an older one")
            }
            Err(error @ (Error::OtherKey { .. } | Error::Damaged { .. })) => {
                problem.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(problem.unwrap_or_else(|| Error::NoBackup {
        id: None,
        place: objects.to_string(),
    }))
}
