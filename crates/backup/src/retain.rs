//! Which backups are kept.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use stolos_blobs::objects::{ObjectName, Objects};

use crate::Progress;
use crate::error::{Error, Result};
use crate::key::BackupKey;
use crate::manifest::{BackupId, Manifest, blob};
use crate::place::Found;

/// Files that nobody has written to for so long are of a writer that is dead: a place has one at a time.
const DEAD: Duration = Duration::from_secs(3600);

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Backups that were too many.
    pub backups: Vec<BackupId>,
    /// What killed backups had left.
    pub leftovers: Vec<BackupId>,
    /// Blobs that no backup names any more.
    pub blobs: u64,
}

/// Keeps the newest `keep` whole backups (at least one), removes older ones, what killed ones have left, and blobs that
/// none of the remaining ones names. Nobody else may be writing to the place.
///
/// Guarantees: the newest whole backup stays, whatever `keep` says; one that is not whole counts for nothing, and goes only
/// when it is older than all that are kept. Backups of other keys are left alone, with their blobs. Where a manifest
/// cannot be read, no blob is removed.
///
/// # Errors
/// Those of the place; what was removed before stays removed.
pub async fn retain(
    objects: &Objects,
    key: &BackupKey,
    keep: usize,
    progress: Progress<'_>,
) -> Result<Removed> {
    let found = Found::look(objects).await?;
    let mut removed = Removed::default();
    let mut kept: Vec<Manifest> = Vec::new();
    let mut unreadable = false;
    // Newest first.
    for id in found.backups.keys().rev() {
        if !found.has_manifest(id) {
            remove(&found, objects, id).await?;
            progress(&format!("removed what was left of backup {id}"));
            removed.leftovers.push(id.clone());
            continue;
        }
        let manifest = match Manifest::read(objects, key, id).await {
            Ok(manifest) => manifest,
            Err(Error::OtherKey { .. }) => continue,
            Err(Error::Damaged { .. }) => {
                // It may name blobs of ours. Whoever looks at the list sees it; a person decides.
                tracing::warn!(backup = %id, "the manifest of a backup is damaged; no blob is removed");
                unreadable = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        let whole = kept.iter().filter(|manifest| found.is_whole(manifest)).count();
        if whole >= keep.max(1) {
            remove(&found, objects, id).await?;
            progress(&format!("removed backup {id}"));
            removed.backups.push(id.clone());
        } else {
            kept.push(manifest);
        }
    }
    objects.tidy(DEAD).await?;
    if !unreadable {
        removed.blobs = remove_blobs(objects, key, &kept).await?;
    }
    Ok(removed)
}

/// The manifest first: without it there is no backup.
async fn remove(found: &Found, objects: &Objects, id: &BackupId) -> Result<()> {
    objects.delete(&id.manifest()).await?;
    for object in found.backups.get(id).into_iter().flatten() {
        objects.delete(&object.name).await?;
    }
    Ok(())
}

async fn remove_blobs(objects: &Objects, key: &BackupKey, kept: &[Manifest]) -> Result<u64> {
    let named: HashSet<ObjectName> = kept
        .iter()
        .flat_map(|manifest| manifest.blobs.iter().flatten())
        .map(|one| blob(key, &one.id).0)
        .collect();
    let below: ObjectName = format!("blobs/{}", key.id())
        .parse()
        .map_err(|_| Error::Bug("a key id is no name".to_owned()))?;
    let mut n = 0;
    for object in objects.list(Some(&below)).await? {
        if !named.contains(&object.name) {
            objects.delete(&object.name).await?;
            n += 1;
        }
    }
    Ok(n)
}
