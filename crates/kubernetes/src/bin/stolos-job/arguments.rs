//! The commands and their arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand};
use stolos_kubernetes::nodes::{DrainOptions, Drained, Loss};
use stolos_kubernetes::smoke::SmokeTest;
use stolos_kubernetes::{Cluster, Document};

use crate::{images, keeper, member, note, problems, ready, restore, volumes};

/// Helper of the Kubernetes release's job scripts.
#[derive(Parser)]
#[command(name = "stolos-job", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Waits until everything named answers; then becomes the program after `--`, if there is one
    Await(ready::Await),
    /// Decides which part a member of etcd takes, then becomes etcd
    EtcdMember(member::Start),
    /// Gives a member its vote once it has caught up
    EtcdPromote(member::Promote),
    /// Takes a member out of its cluster for good
    EtcdLeave(member::Leave),
    /// Removes members that no instance stands for any more and that do not answer
    EtcdTidy(member::Tidy),
    /// Waits until a member of etcd takes part in its cluster, whether or not its database is full
    EtcdReady(keeper::Ready),
    /// Sees to room in etcd's database and says what is not well with it, for ever
    EtcdKeeper(keeper::Keep),
    /// Does a member's part when its cluster is restored from a backup
    EtcdRestore(restore::Restore),
    /// Applies the YAML documents of a file (server-side apply)
    Apply(Apply),
    /// Waits until a node is Ready
    WaitNodeReady(WaitNodeReady),
    /// Puts labels on a node
    LabelNode(LabelNode),
    /// Marks a node so that no pod is scheduled on it
    Cordon(OnNode),
    /// Takes the mark of `cordon` away
    Uncordon(OnNode),
    /// Cordons a node and evicts its pods
    Drain(Drain),
    /// Runs a pod that asks DNS, and prints the times as JSON
    SmokeTest(Smoke),
    /// Gives a fresh node the images of a seed
    PlaceImages(images::PlaceImages),
    /// Makes and removes the local volumes of a node, for ever
    LocalVolumes(volumes::LocalVolumes),
    /// Says on the node object what is wrong with its machine, for ever
    NodeProblems(problems::NodeProblems),
}

#[derive(Args)]
struct OnNode {
    /// Connection and identity
    #[arg(long)]
    kubeconfig: Utf8PathBuf,
    /// Name of the node
    #[arg(long)]
    node: String,
    /// Seconds it may take
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

#[derive(Args)]
struct Apply {
    /// Connection and identity
    #[arg(long)]
    kubeconfig: Utf8PathBuf,
    /// YAML documents
    #[arg(long)]
    file: Utf8PathBuf,
    /// Seconds that each document may take
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

#[derive(Args)]
struct WaitNodeReady {
    #[command(flatten)]
    on: OnNode,
    /// Let pods be scheduled on it once it is Ready
    #[arg(long)]
    uncordon: bool,
}

#[derive(Args)]
struct LabelNode {
    #[command(flatten)]
    on: OnNode,
    /// KEY=VALUE
    #[arg(required = true, value_parser = label)]
    labels: Vec<(String, String)>,
}

#[derive(Args)]
struct Drain {
    #[command(flatten)]
    on: OnNode,
    /// Seconds that a pod gets to end; -1 for the pod's own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// Evict pods that no controller makes anew, too
    #[arg(long)]
    force: bool,
    /// Evict pods whose emptyDir data is lost, too
    #[arg(long)]
    delete_local_data: bool,
}

#[derive(Args)]
struct Smoke {
    /// Connection and identity
    #[arg(long)]
    kubeconfig: Utf8PathBuf,
    /// Name of the pod
    #[arg(long, default_value = "stolos-smoke-test")]
    pod: String,
    /// Image of the pod, where it is not our busybox
    #[arg(long)]
    image: Option<String>,
    /// Seconds it may take
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Await(await_) => await_.run(),
            Command::PlaceImages(place) => place.run(),
            Command::EtcdMember(start) => start.run(),
            Command::EtcdPromote(promote) => promote.run(),
            Command::EtcdLeave(leave) => leave.run(),
            Command::EtcdTidy(tidy) => tidy.run(),
            Command::EtcdReady(ready) => ready.run(),
            Command::EtcdKeeper(keep) => keep.run(),
            Command::EtcdRestore(restore) => restore.run(),
            other => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(other.run())
            }
        }
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Await(_)
            | Self::PlaceImages(_)
            | Self::EtcdMember(_)
            | Self::EtcdPromote(_)
            | Self::EtcdLeave(_)
            | Self::EtcdTidy(_)
            | Self::EtcdReady(_)
            | Self::EtcdKeeper(_)
            | Self::EtcdRestore(_) => Ok(()),
            Self::Apply(apply) => apply.run().await,
            Self::WaitNodeReady(wait) => wait.run().await,
            Self::LabelNode(label) => {
                let labels: BTreeMap<_, _> = label.labels.into_iter().collect();
                let (cluster, limit) = label.on.connect().await?;
                Ok(cluster.label_node(&label.on.node, &labels, limit).await?)
            }
            Self::Cordon(on) => {
                let (cluster, limit) = on.connect().await?;
                Ok(cluster.set_schedulable(&on.node, false, limit).await?)
            }
            Self::Uncordon(on) => {
                let (cluster, limit) = on.connect().await?;
                Ok(cluster.set_schedulable(&on.node, true, limit).await?)
            }
            Self::Drain(drain) => drain.run().await,
            Self::SmokeTest(smoke) => smoke.run().await,
            Self::LocalVolumes(volumes) => volumes.run().await,
            Self::NodeProblems(problems) => problems.run().await,
        }
    }
}

impl OnNode {
    async fn connect(&self) -> anyhow::Result<(Cluster, Duration)> {
        Ok((
            Cluster::from_kubeconfig(&self.kubeconfig).await?,
            Duration::from_secs(self.timeout),
        ))
    }
}

impl Apply {
    async fn run(self) -> anyhow::Result<()> {
        let text = fs_err::read_to_string(&self.file)?;
        let documents = Document::parse(&text).with_context(|| format!("`{}`", self.file))?;
        let cluster = Cluster::from_kubeconfig(&self.kubeconfig).await?;
        cluster
            .apply(&documents, Duration::from_secs(self.timeout), |document| {
                note(&format!("applied {}", document.title()));
            })
            .await?;
        Ok(())
    }
}

impl WaitNodeReady {
    async fn run(self) -> anyhow::Result<()> {
        let (cluster, limit) = self.on.connect().await?;
        cluster.wait_node_ready(&self.on.node, limit).await?;
        note(&format!("node {} is Ready", self.on.node));
        if self.uncordon {
            cluster.set_schedulable(&self.on.node, true, limit).await?;
        }
        Ok(())
    }
}

impl Drain {
    async fn run(self) -> anyhow::Result<()> {
        let options = DrainOptions {
            limit: (self.on.timeout > 0).then(|| Duration::from_secs(self.on.timeout)),
            grace_period: u32::try_from(self.grace_period).ok(),
            unmanaged: self.force.into(),
            local_data: self.delete_local_data.into(),
            daemon_sets: Loss::Accept,
            force_node: false,
        };
        let (cluster, _) = self.on.connect().await?;
        // The cluster's own settings are newer than the job's. Where they cannot be read, the API server may be gone, which the drain sees itself.
        let options = match cluster.drain_settings().await {
            Ok(Some(settings)) => settings.into(),
            Ok(None) => options,
            Err(error) => {
                note(&format!(
                    "the cluster's drain settings cannot be read ({}); taking the job's",
                    stolos_base::chain(&error)
                ));
                options
            }
        };
        let node = &self.on.node;
        match cluster.drain(node, options, note).await? {
            Drained::Evicted(pods) => note(&format!("node {node} is drained, {pods} pods evicted")),
            Drained::Unreachable => {
                note(
                    "the API server does not answer: there is nowhere to move pods to, so they end with the machine",
                );
            }
            Drained::NoSuchNode => note(&format!(
                "the cluster does not know node {node}: nothing to drain"
            )),
        }
        Ok(())
    }
}

impl Smoke {
    async fn run(self) -> anyhow::Result<()> {
        let cluster = Cluster::from_kubeconfig(&self.kubeconfig).await?;
        let mut test = SmokeTest::new(self.pod, Duration::from_secs(self.timeout));
        if let Some(image) = self.image {
            test.image = image;
        }
        let times = cluster.smoke_test(&test).await?;
        let line = serde_json::json!({
            "created_ms": u64::try_from(times.created.as_millis())?,
            "running_ms": u64::try_from(times.running.as_millis())?,
            "answered_ms": u64::try_from(times.answered.as_millis())?,
        });
        use std::io::Write as _;
        writeln!(std::io::stdout(), "{line}")?;
        Ok(())
    }
}
