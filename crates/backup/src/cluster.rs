//! Backups of clusters: a snapshot of a cluster's etcd, beside the manager's own backups and encrypted as they are.
//!
//! In the place: `clusters/CLUSTER/ID/snapshot`, and last `clusters/CLUSTER/ID/manifest`. Each is bound to its name, so to its cluster
//! and its backup: what was exchanged, cut off or taken from another one does not open. Without a manifest there is no backup.
//!
//! Several may be taken at once, of different clusters and by different processes: nothing is shared between two of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_base::Clock;
use stolos_base::ids::ClusterId;
use stolos_blobs::objects::{self, ObjectInfo, ObjectName, Objects};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use crate::error::{Error, Result};
use crate::key::{BackupKey, KeyId};
use crate::manifest::BackupId;
use crate::place;
use crate::seal::{self, Opener, Sealer, Zipper};
use crate::snapshot::Check;

/// The format's number.
const FORMAT: u32 = 1;
/// A manifest is a kilobyte.
const LARGEST: usize = 64 * 1024;
/// Pieces in which a snapshot passes.
const PIECE: usize = 256 * 1024;
/// What has no manifest for so long was given up by whoever took it.
const DEAD: Duration = Duration::from_secs(24 * 3600);

/// Which backup of which cluster, `CLUSTER/ID`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterBackup {
    /// The cluster.
    pub cluster: ClusterId,
    /// The backup.
    pub id: BackupId,
}

impl ClusterBackup {
    fn object(&self, name: &str) -> ObjectName {
        format!("clusters/{}/{}/{name}", self.cluster, self.id)
            .parse()
            .expect("ids and our names are made of letters, digits, dots and dashes")
    }

    fn manifest(&self) -> ObjectName {
        self.object("manifest")
    }

    fn snapshot(&self) -> ObjectName {
        self.object("snapshot")
    }
}

impl fmt::Display for ClusterBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.id)
    }
}

/// The text is not `CLUSTER/ID`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no backup of a cluster; one looks like CLUSTER-UUID/20261121T235959Z-1f2e")]
pub struct InvalidClusterBackup(String);

impl FromStr for ClusterBackup {
    type Err = InvalidClusterBackup;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('/')
            .and_then(|(cluster, id)| Some((cluster.parse().ok()?, id.parse().ok()?)));
        let (cluster, id) = parsed.ok_or_else(|| InvalidClusterBackup(text.chars().take(80).collect()))?;
        Ok(Self { cluster, id })
    }
}

/// What a cluster was when its backup was taken: what has to be known before it is restored anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its owner: who may see the backup when the cluster is gone.
    pub owner: String,
    /// Version of Kubernetes, without `v`.
    pub kubernetes_version: String,
    /// Version of etcd.
    pub etcd_version: String,
    /// Revision of etcd that the snapshot has at least.
    pub revision: i64,
    /// Members of etcd.
    pub members: u32,
    /// Addresses of pods.
    pub pods: String,
    /// Addresses of services.
    pub services: String,
    /// Id and name of the Kubernetes profile with which what lies in etcd is encrypted; without it nobody can read that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted_by: Option<(String, String)>,
    /// Whether it holds what a restore was about to replace: whoever wants the newest does not mean that.
    #[serde(default)]
    pub before_restore: bool,
}

/// A backup of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterManifest {
    /// The format's number.
    pub format: u32,
    /// Its name.
    pub id: BackupId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The key that opens it.
    pub key: KeyId,
    /// The id of the installation.
    pub installation: String,
    /// The version of the program that took it.
    pub version: String,
    /// When it was begun.
    pub taken_at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What the cluster was.
    pub about: About,
    /// Bytes of the snapshot in the place.
    pub stored: u64,
    /// Bytes of the snapshot as etcd gave it, its digest included.
    pub size: u64,
    /// SHA-256 of these in hex.
    pub sha256: String,
}

impl ClusterManifest {
    /// Which one it is.
    #[must_use]
    pub fn which(&self) -> ClusterBackup {
        ClusterBackup {
            cluster: self.cluster,
            id: self.id.clone(),
        }
    }

    /// Reads a backup's manifest.
    ///
    /// # Errors
    /// [`Error::NoClusterBackup`], [`Error::OtherKey`], [`Error::Damaged`], those of the place.
    pub async fn read(objects: &Objects, key: &BackupKey, which: &ClusterBackup) -> Result<Self> {
        let name = which.manifest();
        let damaged = |problem: String| Error::Damaged {
            object: name.clone(),
            problem,
        };
        let manifest: Self = match seal::read_json(objects, &name, key, LARGEST).await {
            Err(Error::Objects(objects::Error::NotFound { .. })) => {
                return Err(Error::NoClusterBackup {
                    what: which.id.to_string(),
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
        if manifest.which() != *which {
            return Err(damaged(format!("it is that of backup {}", manifest.which())));
        }
        Ok(manifest)
    }

    async fn write(&self, objects: &Objects, key: &BackupKey) -> Result<()> {
        seal::write_json(objects, &self.which().manifest(), key, self)
            .await
            .map(drop)
    }
}

/// Whose backup is taken.
#[derive(Clone, Debug)]
pub struct ClusterSource<'a> {
    /// The id of the installation.
    pub installation: &'a str,
    /// The version of this program.
    pub version: &'a str,
    /// The cluster.
    pub cluster: ClusterId,
    /// What it is.
    pub about: About,
    /// Time.
    pub clock: Clock,
}

/// Takes a backup from a snapshot that comes in.
///
/// Guarantees: nothing of the snapshot is kept beyond a few pieces. What was written is read back and checked before the manifest is
/// written. After an error or a crash there is no new backup; what is left of it goes with a later [`retain_cluster`].
///
/// # Errors
/// [`Error::Snapshot`] when what comes in is no whole snapshot; those of the place; [`Error::OtherInstallation`].
pub async fn take_cluster(
    source: &ClusterSource<'_>,
    snapshot: impl AsyncRead + Unpin,
    objects: &Objects,
    key: &BackupKey,
) -> Result<ClusterManifest> {
    let began = Instant::now();
    place::claim(objects, source.installation).await?;
    let which = ClusterBackup {
        cluster: source.cluster,
        id: BackupId::new(&source.clock),
    };
    let taken_at = source.clock.now();
    let name = which.snapshot();
    let mut zipper = Zipper::new(Sealer::begin(objects, &name, key, name.as_str()).await?);
    let checked = match pass(snapshot, &mut zipper).await {
        Ok(check) => check.finish().map_err(|problem| Error::Snapshot {
            cluster: source.about.name.clone(),
            problem,
        }),
        Err(Passing::Read(error)) => Err(Error::SnapshotRead {
            cluster: source.about.name.clone(),
            source: error,
        }),
        Err(Passing::Write(error)) => Err(error),
    };
    let checked = match checked {
        Ok(checked) => checked,
        Err(error) => {
            zipper.sealer.abort().await;
            return Err(error);
        }
    };
    let stored = zipper.finish().await?;
    let manifest = ClusterManifest {
        format: FORMAT,
        id: which.id.clone(),
        cluster: which.cluster,
        key: key.id().clone(),
        installation: source.installation.to_owned(),
        version: source.version.to_owned(),
        taken_at,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        about: source.about.clone(),
        stored,
        size: checked.size,
        sha256: checked.sha256,
    };
    read_back(&manifest, objects, key).await?;
    manifest.write(objects, key).await?;
    Ok(manifest)
}

/// Which end of a passage failed.
enum Passing {
    Read(std::io::Error),
    Write(Error),
}

async fn pass(
    mut snapshot: impl AsyncRead + Unpin,
    zipper: &mut Zipper,
) -> std::result::Result<Check, Passing> {
    let mut check = Check::new();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = snapshot.read(&mut buffer).await.map_err(Passing::Read)?;
        if n == 0 {
            return Ok(check);
        }
        check.update(&buffer[..n]);
        zipper.write(&buffer[..n]).await.map_err(Passing::Write)?;
    }
}

/// Reads a backup as a restore would: it opens, and it is the snapshot that the manifest names.
///
/// # Errors
/// [`Error::NoClusterBackup`], [`Error::OtherKey`], [`Error::Damaged`], those of the place.
pub async fn verify_cluster(
    objects: &Objects,
    key: &BackupKey,
    which: &ClusterBackup,
) -> Result<ClusterManifest> {
    let manifest = ClusterManifest::read(objects, key, which).await?;
    read_back(&manifest, objects, key).await?;
    Ok(manifest)
}

async fn read_back(manifest: &ClusterManifest, objects: &Objects, key: &BackupKey) -> Result<()> {
    let (near, mut far) = tokio::io::duplex(PIECE);
    let checking = async {
        let mut check = Check::new();
        let mut buffer = vec![0; PIECE];
        loop {
            // A pipe in memory does not fail; its other end says why it ended early.
            let n = far.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                return check.finish();
            }
            check.update(&buffer[..n]);
        }
    };
    let (given, checked) = tokio::join!(give_cluster(objects, key, manifest, near), checking);
    given?;
    let damaged = |problem: String| Error::Damaged {
        object: manifest.which().snapshot(),
        problem,
    };
    let checked = checked.map_err(damaged)?;
    if (checked.size, &checked.sha256) != (manifest.size, &manifest.sha256) {
        return Err(damaged(
            "it is another snapshot than its manifest names".to_owned(),
        ));
    }
    Ok(())
}

/// Hands a backup's snapshot to `out` as etcd gave it. Each piece was authenticated before it is handed on; whether the whole
/// has the manifest's digest is for the receiver to check.
///
/// # Errors
/// [`Error::OtherKey`], [`Error::Damaged`], those of the place.
pub async fn give_cluster(
    objects: &Objects,
    key: &BackupKey,
    manifest: &ClusterManifest,
    out: impl AsyncWrite + Unpin + Send,
) -> Result<()> {
    let name = manifest.which().snapshot();
    let opener = Opener::begin(objects, &name, key, name.as_str()).await?;
    opener.pump(true, out).await
}

/// A backup of a cluster in a list.
#[derive(Clone, Debug)]
pub struct ListedCluster {
    /// Which one.
    pub which: ClusterBackup,
    /// Bytes in the place.
    pub stored: u64,
    /// What its manifest says, when it can be read.
    pub manifest: Option<ClusterManifest>,
    /// What is wrong with it, as far as one sees without reading it.
    pub problem: Option<String>,
}

/// The backups of one cluster, or of all, by cluster and oldest first. Only those with a manifest.
///
/// # Errors
/// Those of the place.
pub async fn list_clusters(
    objects: &Objects,
    key: &BackupKey,
    cluster: Option<ClusterId>,
) -> Result<Vec<ListedCluster>> {
    let mut all = Vec::new();
    for (which, there) in found(objects, cluster).await? {
        if !has(&there, &which.manifest()) {
            continue;
        }
        let mut listed = ListedCluster {
            stored: there.iter().map(|object| object.size).sum(),
            manifest: None,
            problem: None,
            which,
        };
        match ClusterManifest::read(objects, key, &listed.which).await {
            Ok(manifest) => {
                if !is_whole(&there, &manifest) {
                    listed.problem = Some("its snapshot is missing or has another size".to_owned());
                }
                listed.manifest = Some(manifest);
            }
            Err(error @ (Error::OtherKey { .. } | Error::Damaged { .. })) => {
                listed.problem = Some(error.to_string());
            }
            // Removed meanwhile.
            Err(Error::NoClusterBackup { .. }) => continue,
            Err(error) => return Err(error),
        }
        all.push(listed);
    }
    // By the time that they say: ids of one second have no order. Those that say nothing stay where their ids put them.
    all.sort_by_key(|one: &ListedCluster| {
        let said = one.manifest.as_ref().map(|manifest| manifest.taken_at);
        (one.which.cluster, said.or_else(|| one.which.id.begun()))
    });
    Ok(all)
}

/// The newest whole backup of a cluster, but for those that were taken for a restore.
///
/// # Errors
/// [`Error::NoClusterBackup`], and those of the place.
pub async fn newest_cluster(
    objects: &Objects,
    key: &BackupKey,
    cluster: ClusterId,
) -> Result<ClusterManifest> {
    let all = list_clusters(objects, key, Some(cluster)).await?;
    let whole = all.into_iter().rev().filter(|one| one.problem.is_none());
    whole
        .filter_map(|one| one.manifest)
        .find(|manifest| !manifest.about.before_restore)
        .ok_or_else(|| Error::NoClusterBackup {
            what: format!("of cluster {cluster}"),
            place: objects.to_string(),
        })
}

/// Removes all but the newest `keep` whole backups of a cluster, at least one of which always stays, and what was begun and given up. Backups
/// of other keys, and damaged ones, are left alone. Gives those that were removed.
///
/// # Errors
/// Those of the place; what was removed before stays removed.
pub async fn retain_cluster(
    objects: &Objects,
    key: &BackupKey,
    cluster: ClusterId,
    keep: usize,
    clock: &Clock,
) -> Result<Vec<BackupId>> {
    let mut manifests = Vec::new();
    for (which, there) in found(objects, Some(cluster)).await? {
        if !has(&there, &which.manifest()) {
            if age(&which.id, clock) > DEAD {
                remove(objects, &which, &there).await?;
            }
            continue;
        }
        match ClusterManifest::read(objects, key, &which).await {
            Ok(manifest) => manifests.push((manifest, there)),
            Err(Error::OtherKey { .. } | Error::NoClusterBackup { .. }) => {}
            Err(Error::Damaged { object, problem }) => {
                tracing::warn!(%object, problem, "the manifest of a cluster's backup is damaged; it is left alone");
            }
            Err(error) => return Err(error),
        }
    }
    // By the time that they say: ids of one second have no order.
    manifests.sort_by_key(|(manifest, _)| manifest.taken_at);
    let mut removed = Vec::new();
    let mut kept = 0;
    for (manifest, there) in manifests.into_iter().rev() {
        if kept < keep.max(1) {
            kept += usize::from(is_whole(&there, &manifest));
        } else {
            remove(objects, &manifest.which(), &there).await?;
            removed.push(manifest.id);
        }
    }
    Ok(removed)
}

/// How long ago an id was given; nothing for one from the future.
fn age(id: &BackupId, clock: &Clock) -> Duration {
    let begun = id.begun().map_or(0, Timestamp::as_millisecond);
    Duration::from_millis(u64::try_from(clock.now_millis() - begun).unwrap_or(0))
}

async fn found(
    objects: &Objects,
    cluster: Option<ClusterId>,
) -> Result<BTreeMap<ClusterBackup, Vec<ObjectInfo>>> {
    let below: ObjectName = match cluster {
        Some(cluster) => format!("clusters/{cluster}"),
        None => "clusters".to_owned(),
    }
    .parse()
    .map_err(|_| Error::Bug("a cluster's id is no name".to_owned()))?;
    let mut all: BTreeMap<ClusterBackup, Vec<ObjectInfo>> = BTreeMap::new();
    for object in objects.list(Some(&below)).await? {
        let mut parts = object.name.as_str().splitn(4, '/').skip(1);
        let which = match (parts.next(), parts.next()) {
            (Some(cluster), Some(id)) => format!("{cluster}/{id}").parse().ok(),
            _ => None,
        };
        match which {
            Some(which) => all.entry(which).or_default().push(object),
            None => {
                tracing::warn!(object = %object.name, "an object among the clusters' backups belongs to none");
            }
        }
    }
    Ok(all)
}

fn has(there: &[ObjectInfo], name: &ObjectName) -> bool {
    there.iter().any(|object| object.name == *name)
}

fn is_whole(there: &[ObjectInfo], manifest: &ClusterManifest) -> bool {
    let name = manifest.which().snapshot();
    there
        .iter()
        .any(|object| object.name == name && object.size == manifest.stored)
}

/// The manifest first: without it there is no backup.
async fn remove(objects: &Objects, which: &ClusterBackup, there: &[ObjectInfo]) -> Result<()> {
    objects.delete(&which.manifest()).await?;
    for object in there {
        objects.delete(&object.name).await?;
    }
    Ok(())
}
