//! Backups of clusters in the place of the manager's own: taken from their etcd, kept encrypted, handed to machines that restore them.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
#[cfg(test)]
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use camino::Utf8PathBuf;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use stolos_backup::{About, BackupId, BackupKey, ClusterBackup, ClusterManifest, ClusterSource};
use stolos_base::ids::ClusterId;
use stolos_base::input::Query;
use stolos_base::pki::Identity;
use stolos_base::{Classify as _, Clock, Secret, chain, task};
use stolos_blobs::Signer;
use stolos_blobs::objects::Objects;
use stolos_blobs::signed::{Shown, USUAL_VALIDITY, Verb};
use stolos_clusters::deps::{AdminCredential, BackedUp, Backup, Backups, ListedBackup, Offer};
use stolos_clusters::{Error, Result};
use stolos_kubernetes::snapshot::{EtcdMember, MemberStatus};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

/// The pipe between what decrypts and whoever reads.
const PIPE: usize = 256 * 1024;
/// Backups of each cluster that are kept unless the operator says otherwise: a week of one a day.
const KEPT: usize = 7;
/// Clusters that the schedule backs up at the same time.
const AT_ONCE: usize = 2;
/// Paths below this are snapshots.
const PATH: &str = "/cluster-backups";

/// `cluster_backups` of `config.yml`. Where they go, and with which key, says `backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterBackupSettings {
    /// How often each cluster's etcd is backed up: `24h`, `6h`. Only by hand unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// How many backups of each cluster are kept; the newest whole one always is.
    pub keep: usize,
    /// How many clusters are backed up at the same time.
    pub at_once: usize,
}

impl Default for ClusterBackupSettings {
    fn default() -> Self {
        Self {
            every: None,
            keep: KEPT,
            at_once: AT_ONCE,
        }
    }
}

impl ClusterBackupSettings {
    /// What the service of clusters does by it.
    ///
    /// # Errors
    /// When `every` is no time of at least a minute, or nothing would be kept or taken.
    pub fn to_service(&self) -> anyhow::Result<stolos_clusters::BackupSettings> {
        if self.keep == 0 || self.at_once == 0 {
            anyhow::bail!("`keep` and `at_once` of `cluster_backups` are at least 1");
        }
        let every = match &self.every {
            Some(text) => Some(crate::backup::interval("cluster_backups", text)?),
            None => None,
        };
        Ok(stolos_clusters::BackupSettings {
            every,
            keep: self.keep,
            at_once: self.at_once,
        })
    }
}

/// How a member is, and its database as it comes.
pub type Begun = (MemberStatus, Box<dyn AsyncRead + Send + Unpin>);

/// Where snapshots come from: real members of etcd, or simulated ones.
pub trait Etcd: Send + Sync + 'static {
    /// How a member is, and its database as it comes. Begun only when the member has all that a majority has.
    fn snapshot<'a>(&'a self, master: Ipv4Addr, client: &'a AdminCredential) -> BoxFuture<'a, Result<Begun>>;
}

/// The members in clusters' masters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Members;

impl Etcd for Members {
    fn snapshot<'a>(&'a self, master: Ipv4Addr, client: &'a AdminCredential) -> BoxFuture<'a, Result<Begun>> {
        Box::pin(async move {
            let failed = |error| Error::service("back the cluster's etcd up", error);
            let identity = Identity {
                certificate: client.certificate.clone(),
                key: client.private_key.clone(),
            };
            let member = EtcdMember::new(&master.to_string(), &client.ca, &identity).map_err(failed)?;
            let status = member.status().await.map_err(failed)?;
            let snapshot = member.snapshot().await.map_err(failed)?;
            Ok((status, Box::new(snapshot) as Box<dyn AsyncRead + Send + Unpin>))
        })
    }
}

/// Where an installation keeps backups of its clusters.
pub struct Kept {
    /// Where the manager's own go.
    pub settings: crate::backup::Settings,
    /// The file of the key; made when it is missing.
    pub key_file: Utf8PathBuf,
    /// How they are taken.
    pub clusters: ClusterBackupSettings,
    /// Where from.
    pub etcd: Arc<dyn Etcd>,
}

/// Backups of clusters in their place. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Placed(Arc<Inner>);

struct Inner {
    kept: Kept,
    /// Opened when it is used first: a place that cannot be reached stops nothing but backups.
    opened: OnceLock<(Objects, BackupKey)>,
    installation: String,
    signer: Signer,
    /// Where machines reach the manager's blobs, and with them these.
    url: String,
    ca: String,
    clock: Clock,
}

impl Inner {
    fn opened(&self) -> Result<(&Objects, &BackupKey)> {
        if self.opened.get().is_none() {
            let objects = self.kept.settings.objects();
            let objects = objects.map_err(|error| Error::service("open the place of backups", error))?;
            let (key, made) = BackupKey::load_or_create(&self.kept.key_file)
                .map_err(|error| Error::service("read the key of backups", error))?;
            if made == stolos_backup::Made::Now {
                tracing::warn!(file = %self.kept.key_file, "made the key that encrypts backups; keep a copy elsewhere, without it they are lost");
            }
            // Whoever was first has opened the same.
            let _ = self.opened.set((objects, key));
        }
        let opened = self.opened.get();
        opened
            .map(|(objects, key)| (objects, key))
            .ok_or_else(|| Error::Request("the place of backups is not open".to_owned()))
    }
}

impl Placed {
    pub(crate) fn new(
        kept: Kept,
        installation: String,
        signer: Signer,
        url: String,
        ca: String,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            kept,
            opened: OnceLock::new(),
            installation,
            signer,
            url,
            ca,
            clock,
        }))
    }

    /// Snapshots for machines, which have a signed address of one each.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route(&format!("{PATH}/{{prefix}}/{{name}}"), get(snapshot_view))
            .with_state(self.clone())
    }

    async fn manifest(&self, which: &ClusterBackup) -> Result<ClusterManifest> {
        let (objects, key) = self.0.opened()?;
        ClusterManifest::read(objects, key, which)
            .await
            .map_err(|error| failed("look at the backup", error))
    }
}

/// One of ours, or the person's: what is not there and what cannot be read is said in its own words.
fn failed(what: &str, error: stolos_backup::Error) -> Error {
    match error {
        stolos_backup::Error::NoClusterBackup { what, .. } => Error::NoBackup(what),
        bad @ (stolos_backup::Error::Damaged { .. } | stolos_backup::Error::OtherKey { .. }) => {
            Error::BadBackup(bad.to_string())
        }
        other => Error::service(what, other),
    }
}

fn which(cluster: ClusterId, id: &str) -> Result<ClusterBackup> {
    let id: BackupId = id
        .parse()
        .map_err(|_| Error::NoBackup(id.chars().take(80).collect()))?;
    Ok(ClusterBackup { cluster, id })
}

fn shown(manifest: ClusterManifest) -> Result<Backup> {
    let network = |text: &str| {
        text.parse()
            .map_err(|_| Error::Request(format!("backup {} names no network: `{text}`", manifest.id)))
    };
    let about = &manifest.about;
    Ok(Backup {
        cluster: manifest.cluster,
        id: manifest.id.to_string(),
        of: BackedUp {
            name: about.name.clone(),
            owner: about.owner.clone(),
            kubernetes_version: about.kubernetes_version.clone(),
            networks: stolos_clusters::render::Networks {
                pods: network(&about.pods)?,
                services: network(&about.services)?,
            },
            encrypted_by: about.encrypted_by.clone(),
            before_restore: about.before_restore,
        },
        taken_at: manifest.taken_at,
        revision: about.revision,
        size: manifest.size,
        stored: manifest.stored,
        sha256: manifest.sha256.clone(),
    })
}

impl Backups for Placed {
    fn take<'a>(
        &'a self,
        cluster: ClusterId,
        of: &'a BackedUp,
        masters: &'a [Ipv4Addr],
        client: &'a AdminCredential,
        progress: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<Backup>> {
        Box::pin(async move {
            let inner = &self.0;
            let (objects, key) = inner.opened()?;
            let mut last = Error::Request(format!("cluster `{}` has no masters", of.name));
            for master in masters {
                progress(format!("asking {master}"));
                let (status, snapshot) = match inner.kept.etcd.snapshot(*master, client).await {
                    Ok(begun) => begun,
                    Err(error) => {
                        progress(chain(&error));
                        last = error;
                        continue;
                    }
                };
                progress(format!(
                    "revision {}, {} from {master}",
                    status.revision,
                    stolos_backup::size_text(status.size)
                ));
                let source = ClusterSource {
                    installation: &inner.installation,
                    version: env!("CARGO_PKG_VERSION"),
                    cluster,
                    about: About {
                        name: of.name.clone(),
                        owner: of.owner.clone(),
                        kubernetes_version: of.kubernetes_version.clone(),
                        etcd_version: status.version,
                        revision: status.revision,
                        members: status.voters,
                        pods: of.networks.pods.to_string(),
                        services: of.networks.services.to_string(),
                        encrypted_by: of.encrypted_by.clone(),
                        before_restore: of.before_restore,
                    },
                    clock: inner.clock.clone(),
                };
                let taken = stolos_backup::take_cluster(&source, snapshot, objects, key).await;
                match taken {
                    Ok(manifest) => return shown(manifest),
                    Err(error) => last = failed("take a backup", error),
                }
            }
            Err(last)
        })
    }

    fn list(&self, cluster: ClusterId) -> BoxFuture<'_, Result<Vec<ListedBackup>>> {
        Box::pin(async move {
            let (objects, key) = self.0.opened()?;
            let listed = stolos_backup::list_clusters(objects, key, Some(cluster))
                .await
                .map_err(|error| failed("list the backups", error))?;
            listed
                .into_iter()
                .map(|one| {
                    Ok(ListedBackup {
                        cluster: one.which.cluster,
                        id: one.which.id.to_string(),
                        stored: one.stored,
                        backup: one.manifest.map(shown).transpose()?,
                        problem: one.problem,
                    })
                })
                .collect()
        })
    }

    fn find<'a>(&'a self, cluster: ClusterId, id: Option<&'a str>) -> BoxFuture<'a, Result<Backup>> {
        Box::pin(async move {
            let (objects, key) = self.0.opened()?;
            match id {
                Some(id) => shown(self.manifest(&which(cluster, id)?).await?),
                None => stolos_backup::newest_cluster(objects, key, cluster)
                    .await
                    .map_err(|error| failed("look for the newest backup", error))
                    .and_then(shown),
            }
        })
    }

    fn verify<'a>(&'a self, cluster: ClusterId, id: &'a str) -> BoxFuture<'a, Result<Backup>> {
        Box::pin(async move {
            let (objects, key) = self.0.opened()?;
            stolos_backup::verify_cluster(objects, key, &which(cluster, id)?)
                .await
                .map_err(|error| failed("verify the backup", error))
                .and_then(shown)
        })
    }

    fn retain(&self, cluster: ClusterId, keep: usize) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async move {
            let (objects, key) = self.0.opened()?;
            stolos_backup::retain_cluster(objects, key, cluster, keep, &self.0.clock)
                .await
                .map(|removed| removed.iter().map(ToString::to_string).collect())
                .map_err(|error| failed("remove old backups", error))
        })
    }

    fn offer(&self, backup: &Backup) -> Result<Offer> {
        let inner = &self.0;
        let name = format!("{}.{}", backup.cluster, backup.id);
        let path = inner
            .signer
            .sign(Verb::Get, &name, inner.clock.now().as_second(), USUAL_VALIDITY);
        // Signed as blobs are, and no blob is named so: one address is no use for the other.
        let path = path.strip_prefix("/signed").unwrap_or(&path);
        Ok(Offer {
            url: Secret::from(format!("{}{PATH}{path}", inner.url)),
            ca: inner.ca.clone(),
        })
    }
}

async fn snapshot_view(
    State(placed): State<Placed>,
    Path((prefix, name)): Path<(String, String)>,
    Query(shown): Query<Shown>,
    extensions: axum::http::Extensions,
) -> Response {
    let inner = placed.0.clone();
    let now = inner.clock.now().as_second();
    if let Err(refused) = inner.signer.check(Verb::Get, &prefix, &name, &shown, now) {
        return (StatusCode::FORBIDDEN, format!("{refused}\n")).into_response();
    }
    stolos_base::http::signed_in(&extensions);
    let found = name
        .split_once('.')
        .and_then(|(cluster, id)| which(cluster.parse().ok()?, id).ok());
    let Some(found) = found else {
        return (StatusCode::NOT_FOUND, "there is no such backup\n").into_response();
    };
    let manifest = match placed.manifest(&found).await {
        Ok(manifest) => manifest,
        Err(error) => {
            tracing::warn!(backup = %found, error = %chain(&error), "failed to give a machine its backup");
            let status = StatusCode::from_u16(error.class().status());
            return status
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
                .into_response();
        }
    };
    let (near, far) = tokio::io::duplex(PIPE);
    let size = manifest.size;
    task::spawn(
        task::Kind::Service,
        format!("backup {found} for a machine"),
        async move {
            let given = match inner.opened() {
                Ok((objects, key)) => stolos_backup::give_cluster(objects, key, &manifest, near)
                    .await
                    .map_err(|error| failed("read the backup", error)),
                Err(error) => Err(error),
            };
            if let Err(error) = given {
                // The machine sees an answer that is too short, and asks again.
                tracing::warn!(backup = %found, error = %chain(&error), "failed to read a backup for a machine");
            }
            Ok::<(), std::convert::Infallible>(())
        },
    );
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, Body::from_stream(ReaderStream::with_capacity(far, PIPE))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let read = |text: &str| stolos_document::from_yaml::<ClusterBackupSettings>(text);
        let settings = read("{every: 24h}").expect("valid");
        assert_eq!((settings.keep, settings.at_once), (KEPT, AT_ONCE));
        let service = settings.to_service().expect("valid");
        assert_eq!(service.every, Some(Duration::from_secs(24 * 3600)));
        assert!(read("{evry: 1h}").is_err());
        for (text, words) in [
            (
                "{every: 5s}",
                "`every: 5s` of `cluster_backups` is less than a minute",
            ),
            ("{every: often}", "is no time"),
            ("{keep: 0}", "at least 1"),
        ] {
            let error = read(text).expect("read").to_service().expect_err(words);
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
    }

    /// Bytes that pass for etcd's.
    fn snapshot() -> Vec<u8> {
        use aws_lc_rs::digest;
        let mut bytes = vec![5; 700_000];
        bytes[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
        let trailer = digest::digest(&digest::SHA256, &bytes);
        bytes.extend_from_slice(trailer.as_ref());
        bytes
    }

    /// The first master is dead, the second one answers.
    struct Second;

    impl Etcd for Second {
        fn snapshot<'a>(&'a self, master: Ipv4Addr, _: &'a AdminCredential) -> BoxFuture<'a, Result<Begun>> {
            Box::pin(async move {
                if master.octets()[3] != 3 {
                    return Err(Error::Request(format!("{master} does not answer")));
                }
                let status = MemberStatus {
                    revision: 7,
                    version: "3.6.16".to_owned(),
                    voters: 3,
                    size: 700_032,
                };
                let reader: Box<dyn AsyncRead + Send + Unpin> = Box::new(std::io::Cursor::new(snapshot()));
                Ok((status, reader))
            })
        }
    }

    /// As `stolos-job` asks.
    async fn get(address: std::net::SocketAddr, path: &str) -> (String, Vec<u8>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answered");
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        (status, answer.split_off(end + 4))
    }

    #[tokio::test]
    async fn a_machine_gets_the_backup_that_it_was_offered_and_no_other() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let clock = Clock::manual(Clock::system().now());
        let kept = Kept {
            settings: crate::backup::Settings::to(directory.path().join("place").as_str()),
            key_file: directory.path().join("backup.key"),
            clusters: ClusterBackupSettings::default(),
            etcd: Arc::new(Second),
        };
        let signer = Signer::new(&Secret::new(vec![9; 40]));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = format!("https://{address}");
        let placed = Placed::new(
            kept,
            "here".into(),
            signer,
            url.clone(),
            "ca".into(),
            clock.clone(),
        );
        let router = placed.router();
        task::spawn(task::Kind::Service, "a test's port", async move {
            axum::serve(listener, router).await
        });
        let client = AdminCredential {
            ca: "ca".into(),
            certificate: "c".into(),
            private_key: "k".into(),
        };
        let of = BackedUp {
            name: "demo".into(),
            owner: "alana".into(),
            kubernetes_version: "1.37.1".into(),
            networks: stolos_clusters::render::Networks::default(),
            encrypted_by: Some(("id".into(), "secret-profile".into())),
            before_restore: false,
        };
        let cluster = ClusterId::new(&stolos_base::IdSource::random());
        let masters = [[10, 0, 0, 2].into(), [10, 0, 0, 3].into()];
        let backup = placed
            .take(cluster, &of, &masters, &client, &|_| {})
            .await
            .expect("taken");
        assert_eq!((backup.revision, &backup.of), (7, &of));
        assert_eq!(placed.find(cluster, None).await.expect("found"), backup);
        let error = placed.take(cluster, &of, &masters[..1], &client, &|_| {}).await;
        assert!(error.is_err_and(|error| error.to_string().contains("does not answer")));

        let offer = placed.offer(&backup).expect("an offer");
        let path = offer.url.expose().strip_prefix(&url).expect("ours").to_owned();
        let (status, body) = get(address, &path).await;
        assert!(
            status == "200" && body == snapshot(),
            "{status}, {} bytes",
            body.len()
        );
        // Another one, and the same one too late.
        let (status, _) = get(address, &path.replace(&backup.id, "20200101T000000Z-0000")).await;
        assert_eq!(status, "403");
        clock.advance(USUAL_VALIDITY + Duration::from_secs(1));
        assert_eq!(get(address, &path).await.0, "403");
        // One that was cut off.
        let stored = directory
            .path()
            .join(format!("place/clusters/{cluster}/{}/snapshot", backup.id));
        let bytes = fs_err::read(&stored).expect("it is there");
        fs_err::write(&stored, &bytes[..bytes.len() - 1]).expect("cut off");
        let error = placed.verify(cluster, &backup.id).await.expect_err("cut off");
        assert!(
            matches!(&error, Error::BadBackup(why) if why.contains("does not open")),
            "{error}"
        );
        let listed = placed.list(cluster).await.expect("a list");
        assert!(listed[0].problem.is_some() && listed[0].backup.is_some());
        assert!(
            placed.find(cluster, None).await.is_err(),
            "it is not the newest whole one"
        );
        // One that is gone.
        let offer = placed.offer(&backup).expect("an offer");
        let path = offer.url.expose().strip_prefix(&url).expect("ours").to_owned();
        stolos_base::files::remove_tree_if_there(&directory.path().join("place/clusters")).expect("removed");
        assert_eq!(get(address, &path).await.0, "404");
        let error = placed.verify(cluster, &backup.id).await.expect_err("gone");
        assert!(matches!(error, Error::NoBackup(_)), "{error}");
    }
}
