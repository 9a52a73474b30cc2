//! `local-volumes`: makes and removes the local volumes of one node, as long as the node is there.
//!
//! Everything is told by watches; in between nothing runs. Each step can be cut off anywhere and is done again by the next process: what there is to do
//! is only what the API server and the directories say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use stolos_base::{Clock, chain};
use stolos_kubernetes::volumes::{self, Data, Ending, Notice, NoticeKind, Place};
use stolos_kubernetes::watch::Change;
use stolos_kubernetes::{Cluster, Error};

use crate::queue::{End, Queue};
use crate::{directories, note};

/// How often directories and volumes are compared. What a process that died left behind is found when the next one starts; this is for nodes that were
/// removed from the cluster, and for disks that were lost, about which an event is forgotten after an hour.
const COMPARE: Duration = Duration::from_secs(3600);

#[derive(Args)]
pub(crate) struct LocalVolumes {
    /// Connection and identity
    #[arg(long)]
    kubeconfig: Utf8PathBuf,
    /// Name of the node
    #[arg(long)]
    node: String,
    /// Where volumes lie: new ones in the first that is named, older ones in any of them
    #[arg(long = "directory", required = true)]
    directories: Vec<Utf8PathBuf>,
    /// Let go of the volumes of nodes that are no longer in the cluster, too
    #[arg(long)]
    of_gone_nodes: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Compare directories and volumes.
    Compare,
    /// Make the volume of the claim with this uid.
    Claim(String),
    /// See how the volume of this name ends.
    Volume(String),
}

/// What the API server has said so far, and what is to be done about it.
struct State {
    /// The claims that wait for this node, by uid.
    claims: BTreeMap<String, PersistentVolumeClaim>,
    queue: Queue<Key>,
}

impl LocalVolumes {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let worker = Worker {
            cluster: Cluster::from_kubeconfig(&self.kubeconfig).await?,
            place: Place {
                node: self.node,
                directories: self.directories,
            },
            of_gone_nodes: self.of_gone_nodes,
            clock: Clock::system(),
        };
        let first = worker.first_directory()?;
        directories::prepare(first).with_context(|| format!("failed to make `{first}`"))?;
        let mut claims = worker.cluster.follow("the volume claims")?;
        let mut volumes = worker.cluster.follow("the volumes")?;
        let mut state = State {
            claims: BTreeMap::new(),
            queue: Queue::new(),
        };
        state.queue.add(Key::Compare, Instant::now());
        let mut running = FuturesUnordered::new();
        loop {
            for key in state.queue.take(Instant::now()) {
                let claim = match &key {
                    Key::Claim(uid) => state.claims.get(uid).cloned(),
                    Key::Compare | Key::Volume(_) => None,
                };
                let worker = &worker;
                running.push(async move {
                    let result = worker.work(&key, claim).await;
                    (key, result)
                });
            }
            let next = state.queue.next();
            let pause = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(change) = claims.next() => match change {
                    Ok(change) => state.on_claim(change, &worker.place),
                    Err(error) => complain(&error),
                },
                Some(change) = volumes.next() => match change {
                    Ok(change) => state.on_volume(change, &worker),
                    Err(error) => complain(&error),
                },
                Some((key, result)) = running.next(), if !running.is_empty() => state.on_end(key, result),
                () = pause => {}
            }
        }
    }
}

fn complain(error: &Error) {
    note(&format!("stolos-job: {}", chain(error)));
}

impl State {
    fn on_claim(&mut self, change: Change<PersistentVolumeClaim>, place: &Place) {
        match change {
            Change::All(claims) => {
                self.claims.clear();
                let uids: Vec<Option<String>> =
                    claims.iter().map(|claim| claim.metadata.uid.clone()).collect();
                self.queue.keep(|key| match key {
                    Key::Claim(uid) => uids.iter().flatten().any(|known| known == uid),
                    Key::Compare | Key::Volume(_) => true,
                });
                for claim in claims {
                    self.on_claim(Change::Changed(claim), place);
                }
            }
            Change::Changed(claim) => {
                let uid = claim.metadata.uid.clone().unwrap_or_default();
                if volumes::waits(&claim, &place.node) {
                    self.claims.insert(uid.clone(), claim);
                    self.queue.add(Key::Claim(uid), Instant::now());
                } else {
                    self.claims.remove(&uid);
                    self.queue.forget(&Key::Claim(uid));
                }
            }
            Change::Gone(claim) => {
                let uid = claim.metadata.uid.unwrap_or_default();
                self.claims.remove(&uid);
                self.queue.forget(&Key::Claim(uid));
            }
        }
    }

    fn on_volume(&mut self, change: Change<PersistentVolume>, worker: &Worker) {
        match change {
            Change::All(volumes) => {
                for volume in volumes {
                    self.on_volume(Change::Changed(volume), worker);
                }
            }
            Change::Changed(volume) => {
                if worker.minds(&volume) {
                    let name = volume.metadata.name.unwrap_or_default();
                    self.queue.add(Key::Volume(name), Instant::now());
                }
            }
            Change::Gone(volume) => {
                let name = volume.metadata.name.unwrap_or_default();
                self.queue.forget(&Key::Volume(name));
            }
        }
    }

    fn on_end(&mut self, key: Key, result: anyhow::Result<Outcome>) {
        let now = Instant::now();
        let end = match result {
            Ok(Outcome::Done) => End::Done,
            Ok(Outcome::Compared(names)) => {
                for name in names {
                    self.queue.add(Key::Volume(name), now);
                }
                End::Again(COMPARE)
            }
            Err(error) => {
                note(&format!("stolos-job: {error:#}"));
                End::Failed
            }
        };
        self.queue.ended(key, end, now);
    }
}

enum Outcome {
    Done,
    /// These volumes may be at their end.
    Compared(Vec<String>),
}

struct Worker {
    cluster: Cluster,
    place: Place,
    of_gone_nodes: bool,
    clock: Clock,
}

impl Worker {
    fn first_directory(&self) -> anyhow::Result<&Utf8Path> {
        let first = self.place.directories.first().context("no directory is named")?;
        Ok(first)
    }

    /// Whether the volume is at its end and that is for this process to see to.
    fn minds(&self, volume: &PersistentVolume) -> bool {
        volumes::ending(volume) != Ending::Nothing
            && volumes::node_of(volume).is_some_and(|node| self.of_gone_nodes || node == self.place.node)
    }

    async fn work(&self, key: &Key, claim: Option<PersistentVolumeClaim>) -> anyhow::Result<Outcome> {
        match (key, claim) {
            (Key::Compare, _) => self.compare().await,
            (Key::Claim(_), Some(claim)) => self.provide(&claim).await,
            (Key::Claim(_), None) => Ok(Outcome::Done),
            (Key::Volume(name), _) => self.end(name).await,
        }
    }

    /// Makes the volume of a claim that waits for it.
    async fn provide(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<Outcome> {
        let about = volumes::about_claim(claim);
        let class = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.as_deref());
        let class = class.unwrap_or_default();
        let Some(class) = self.cluster.storage_class(class).await? else {
            let problem = format!("there is no storage class `{class}`");
            self.warn(about, "ProvisioningFailed", problem.clone()).await;
            anyhow::bail!("claim `{}`: {problem}", claim_name(claim));
        };
        let order = match volumes::order(claim, &class, &self.place) {
            Ok(order) => order,
            Err(problem) => {
                note(&format!("claim `{}` is refused: {problem}", claim_name(claim)));
                self.warn(about, "ProvisioningFailed", problem).await;
                return Ok(Outcome::Done);
            }
        };
        let first = self.first_directory()?;
        let free = directories::free(first).with_context(|| format!("failed to look at `{first}`"))?;
        if free < order.bytes {
            let problem = format!(
                "node {} has {} MiB free of the {} MiB asked for; another node may have more",
                self.place.node,
                free >> 20,
                order.bytes.div_ceil(1 << 20),
            );
            note(&format!("claim `{}` is given back: {problem}", claim_name(claim)));
            self.warn(about, "ProvisioningFailed", problem).await;
            return match self.cluster.select_node_again(claim).await {
                // It has changed meanwhile, which the watch tells.
                Err(error) if error.status() != Some(409) => Err(error.into()),
                // The scheduler pauses itself before it sends a pod to the same node again.
                _ => Ok(Outcome::Done),
            };
        }
        if let Err(error) = directories::make(&order.directory) {
            let problem = format!("failed to make `{}`: {error}", order.directory);
            self.warn(about, "ProvisioningFailed", problem.clone()).await;
            anyhow::bail!(problem);
        }
        self.cluster.make_volume(&order.volume).await?;
        let message = format!("made volume {}", order.volume.metadata.name.unwrap_or_default());
        note(&format!("claim `{}`: {message}", claim_name(claim)));
        self.tell(about, NoticeKind::Normal, "ProvisioningSucceeded", message)
            .await;
        Ok(Outcome::Done)
    }

    /// Does what comes next for a volume that is not needed any more.
    async fn end(&self, name: &str) -> anyhow::Result<Outcome> {
        // What cannot be undone is decided on what the API server says now.
        let Some(volume) = self.cluster.volume(name).await? else {
            return Ok(Outcome::Done);
        };
        if !self.minds(&volume) {
            return Ok(Outcome::Done);
        }
        let node = volumes::node_of(&volume).unwrap_or_default();
        let is_here = node == self.place.node;
        if !is_here && self.cluster.has_node(node).await? {
            return Ok(Outcome::Done);
        }
        match volumes::ending(&volume) {
            Ending::Nothing => {}
            Ending::Delete => match self.cluster.delete_volume(&volume).await {
                // It has changed meanwhile, which the watch tells.
                Err(error) if error.status() != Some(409) => return Err(error.into()),
                _ => {}
            },
            Ending::LetGo { data } => {
                if is_here && data == Data::Remove {
                    self.remove(&volume).await?;
                }
                self.cluster.let_volume_go(&volume).await?;
                let what = match (is_here, data) {
                    (true, Data::Remove) => "it and its data are gone".to_owned(),
                    (true, Data::Keep) => "it is gone, its data are kept".to_owned(),
                    (false, _) => format!("it is gone, as its node {node} is"),
                };
                note(&format!("volume `{name}`: {what}"));
            }
        }
        Ok(Outcome::Done)
    }

    async fn remove(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let removed = match volumes::directory_of(volume, &self.place) {
            Some(path) => {
                let removed = tokio::task::spawn_blocking(move || {
                    directories::remove_tree(&path).with_context(|| format!("failed to remove `{path}`"))
                });
                removed.await.context("the removal was cut off")?
            }
            None => Err(anyhow::anyhow!(
                "its path is none that this node makes volumes in"
            )),
        };
        if let Err(error) = &removed {
            let problem = format!("{error:#}");
            self.warn(volumes::about_volume(volume), "VolumeFailedDelete", problem)
                .await;
        }
        removed.with_context(|| format!("volume `{name}`"))
    }

    /// Removes directories that nothing belongs to, tells of volumes whose directories are gone, and looks for volumes at their end.
    async fn compare(&self) -> anyhow::Result<Outcome> {
        // First the directories: one that is made while the API server is asked is not among them.
        let found =
            directories::list(&self.place.directories).context("failed to list the volumes' directories")?;
        let (all, claims) = self.cluster.volumes_and_claims().await?;
        for path in volumes::leftovers(&found, &all, &claims) {
            // One that a process left behind which died before it made the volume was never used.
            match directories::remove_empty(&path) {
                Ok(true) => note(&format!("removed `{path}`, which no volume belongs to")),
                Ok(false) => note(&format!(
                    "no volume belongs to `{path}`; it is not empty, so it is left for a person"
                )),
                Err(error) => note(&format!(
                    "failed to remove `{path}`, which no volume belongs to: {error}"
                )),
            }
        }
        for volume in volumes::lost(&found, &all, &self.place) {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let problem = format!(
                "the directory of volume {name} is no longer on node {}: its data went with a disk or machine that was replaced; \
                 delete the claim and its pod to begin anew",
                self.place.node
            );
            note(&problem);
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
            self.warn(
                claim.unwrap_or_else(|| volumes::about_volume(volume)),
                "VolumeLost",
                problem,
            )
            .await;
        }
        let ending = all.into_iter().filter(|volume| self.minds(volume));
        Ok(Outcome::Compared(
            ending.filter_map(|volume| volume.metadata.name).collect(),
        ))
    }

    async fn warn(&self, about: ObjectReference, reason: &'static str, message: String) {
        self.tell(about, NoticeKind::Warning, reason, message).await;
    }

    /// Tells people; that nobody can be told is no reason not to go on.
    async fn tell(&self, about: ObjectReference, kind: NoticeKind, reason: &'static str, message: String) {
        let notice = Notice {
            about,
            kind,
            reason,
            message,
        };
        if let Err(error) = self.cluster.tell(&notice, &self.place, &self.clock).await {
            complain(&error);
        }
    }
}

fn claim_name(claim: &PersistentVolumeClaim) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "{}/{}",
        text(&claim.metadata.namespace),
        text(&claim.metadata.name)
    )
}
