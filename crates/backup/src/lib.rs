//! Backups of an installation's manager: taken while it runs, kept encrypted in a place of objects, verified, restored.
//!
//! Owns: the backup key, the form of a backup, what belongs together in one, the order in which it is written and read,
//! which ones are kept. Never does: deciding when (`server` has a schedule), or knowing what a table means.
//!
//! In the place (`stolos_blobs::objects`):
//! - `place.json`: whose backups these are, in clear.
//! - `backups/ID/NAME`: the databases' dumps, the files, and last the `manifest`. Without a manifest there is no backup.
//! - `clusters/CLUSTER/ID/NAME`: snapshots of clusters' etcd, each with its `manifest`, which comes last (module `cluster`).
//! - `blobs/KEY/xx/NAME`: blobs of the director, each once for all backups, under names that only the key gives.
//!
//! Invariants:
//! - Everything but `place.json` is encrypted and authenticated, and bound to its backup and its name: what was exchanged,
//!   cut off or taken from another backup does not open.
//! - A backup with a manifest was whole when the manifest was written; retention removes the manifest first.
//! - One process at a time writes the manager's backups to a place (the caller holds a lease). Clusters' backups share nothing with them.

mod cluster;
mod error;
mod key;
mod manifest;
mod place;
mod restore;
mod retain;
mod seal;
mod snapshot;
mod take;
mod verify;

pub use crate::cluster::{
    About, ClusterBackup, ClusterManifest, ClusterSource, InvalidClusterBackup, ListedCluster, give_cluster,
    list_clusters, newest_cluster, retain_cluster, take_cluster, verify_cluster,
};
pub use crate::error::{Error, Result};
pub use crate::key::{BackupKey, KeyId, Made};
pub use crate::manifest::{BackupId, Blob, Database, FileEntry, Files, Manifest};
pub use crate::place::{Listed, list};
pub use crate::restore::{Restore, Restored, restore};
pub use crate::retain::{Removed, retain};
pub use crate::take::{Blobs, Entry, Source, take};
pub use crate::verify::{Verified, verify};

/// Told what is being done, for people.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Bytes as people read them.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{size:.1} {unit}"),
            };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}
