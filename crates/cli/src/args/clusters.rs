//! Verbs about clusters.

use camino::Utf8PathBuf;
use clap::Args;

use super::{Person, Sso, Trusted};

/// How a request that takes a while is made.
#[derive(Debug, Default, Args)]
pub(crate) struct Going {
    /// Follow the operation to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

/// What a cluster is given when it is made or changed.
#[derive(Debug, Default, Args)]
pub(crate) struct Given {
    /// Network profile, see `network-profiles`.
    #[arg(long, value_name = "NAME")]
    pub(crate) network_profile: Option<String>,
    /// Compute profile, see `compute-profiles`.
    #[arg(long, value_name = "NAME")]
    pub(crate) compute_profile: Option<String>,
    /// Kubernetes profile, see `kubernetes-profiles`.
    #[arg(long, value_name = "NAME", alias = "k8s-profile")]
    pub(crate) kubernetes_profile: Option<String>,
    /// Workers of pools of the compute profile, `POOL:N,POOL:N`.
    #[arg(long, value_name = "NUMBERS")]
    pub(crate) node_pool_instances: Option<String>,
    /// JSON or YAML file with proxies, the cluster's own CA, and extensions of machines.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<Utf8PathBuf>,
    /// JSON or YAML file with registries of the cluster's nodes.
    #[arg(long, value_name = "FILE")]
    pub(crate) private_registries: Option<Utf8PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Address or name under which its API will be called.
    #[arg(short = 'e', long)]
    pub(crate) external_hostname: String,
    /// Plan, see `plans`.
    #[arg(short = 'p', long)]
    pub(crate) plan: String,
    /// Number of workers; the plan's own when absent.
    #[arg(short = 'n', long)]
    pub(crate) num_nodes: Option<i64>,
    /// Tags of its machines, `NAME:VALUE,NAME:VALUE`.
    #[arg(long, value_name = "TAGS", default_value = "", hide_default_value = true)]
    pub(crate) tags: String,
    #[command(flatten)]
    pub(crate) given: Given,
    /// Begin with the contents of a backup, `CLUSTER` for the newest of a cluster or `CLUSTER/ID`; the name or id of one that is gone will do.
    #[arg(long, value_name = "CLUSTER[/ID]")]
    pub(crate) from_backup: Option<String>,
    /// Show what would be made and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show again whenever something may have changed, until Ctrl-C.
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Name.
    pub(crate) name: String,
    /// Also show how its nodes are drained.
    #[arg(long)]
    pub(crate) details: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show again whenever something may have changed, until Ctrl-C.
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Number of workers.
    #[arg(short = 'n', long)]
    pub(crate) num_nodes: Option<i64>,
    /// Number of masters: 1, 3 or 5. One after the other comes or goes, with its member of etcd.
    #[arg(long, value_name = "N")]
    pub(crate) num_masters: Option<i64>,
    /// All tags that the cluster's machines are to have, `NAME:VALUE,NAME:VALUE`; an empty text removes all.
    #[arg(long, value_name = "TAGS")]
    pub(crate) tags: Option<String>,
    #[command(flatten)]
    pub(crate) given: Given,
    /// Let the compute profile replace pools and move machines between zones.
    #[arg(long)]
    pub(crate) enforce_compute_profile_update: bool,
    /// Minutes that draining a node may take; 0 for no limit.
    #[arg(long, value_name = "MINUTES")]
    pub(crate) kubelet_drain_timeout: Option<String>,
    /// Seconds that a pod gets to end; -1 for the pod's own.
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) kubelet_drain_grace_period: Option<String>,
    /// Whether pods that no controller makes anew are evicted too.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_force: Option<String>,
    /// Whether pods of daemon sets are left where they are; otherwise they stop the drain.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_ignore_daemonsets: Option<String>,
    /// Whether pods with data in emptyDir volumes are evicted too.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_delete_local_data: Option<String>,
    /// Whether pods that are left when the time is over are deleted.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_force_node: Option<String>,
    /// Lose the data of volumes in use on the disks of workers that go, without a question.
    #[arg(long)]
    pub(crate) delete_volumes: bool,
    /// Show what would change and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Number of workers.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub(crate) num_nodes: i64,
    /// Workers of pools of its compute profile, `POOL:N,POOL:N`.
    #[arg(long, value_name = "NUMBERS", conflicts_with = "num_nodes")]
    pub(crate) node_pool_instances: Option<String>,
    /// All tags that the cluster's machines are to have, `NAME:VALUE,NAME:VALUE`.
    #[arg(long, value_name = "TAGS")]
    pub(crate) tags: Option<String>,
    /// Lose the data of volumes in use on the disks of workers that go, without a question.
    #[arg(long)]
    pub(crate) delete_volumes: bool,
    /// Follow the operation to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long, requires = "wait")]
    pub(crate) json: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TransferCluster {
    /// Name of the cluster.
    pub(crate) name: String,
    /// The user who gets it.
    #[arg(long, value_name = "USER")]
    pub(crate) to: String,
    /// Print the cluster as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Name.
    pub(crate) name: String,
    /// Do nothing where there is none of that name.
    #[arg(long)]
    pub(crate) if_exists: bool,
    /// Follow the deletion to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpgradeOne {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Look at certificates, processes and disks first; what is not well stops the upgrade.
    #[arg(long)]
    pub(crate) pre_check: bool,
    /// Workers that are upgraded at the same time, 1 or 2; the plan's number when absent.
    #[arg(long, value_name = "N")]
    pub(crate) nodes_parallel: Option<u32>,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct UpgradeMany {
    /// Clusters, separated by commas.
    #[arg(
        short = 'c',
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) clusters: Vec<String>,
    /// Clusters that go first, one after the other; when one of them fails, no other is touched.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) canaries: Vec<String>,
    /// Clusters that are upgraded at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) max_in_flight: u32,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct Certificates {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Only those that end within so many days.
    #[arg(short = 'd', long, default_value_t = 180)]
    pub(crate) days: i64,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["all", "only_nsx"])]
pub(crate) struct RotateCertificates {
    /// Name of the cluster.
    pub(crate) name: String,
    /// All of the cluster's own.
    #[arg(long)]
    pub(crate) all: bool,
    /// Those of NSX-T only; there are none here.
    #[arg(long)]
    pub(crate) only_nsx: bool,
    /// Leave out those of NSX-T; there are none here.
    #[arg(long, requires = "all")]
    pub(crate) skip_nsx: bool,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct Power {
    /// Name of the cluster.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) going: Going,
}

#[derive(Debug, Args)]
pub(crate) struct Credentials {
    /// Name of the cluster.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) sso: Sso,
    /// Print the kubeconfig instead of merging it.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GetKubeconfig {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Host of the API; that of the session unless given.
    #[arg(short = 'a', long)]
    pub(crate) api: Option<String>,
    #[command(flatten)]
    pub(crate) person: Person,
    #[command(flatten)]
    pub(crate) trusted: Trusted,
    /// Print the kubeconfig instead of merging it.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoadImage {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Archive of one or more images, as `docker save`, `podman save` or OCI tools write it; may be compressed by gzip.
    pub(crate) file: Utf8PathBuf,
    /// Only these nodes; all of them when absent.
    #[arg(long = "node", value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Seconds that a node may take.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Metering {
    /// Beginning, such as 2026-11-01T00:00:00Z; 30 days before the end unless given.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// End; now unless given.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Operations {
    /// Id of one operation.
    pub(crate) id: Option<String>,
    /// Only those of this cluster.
    #[arg(short = 'c', long)]
    pub(crate) cluster: Option<String>,
    /// Follow to the end: the named operation, else the newest.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Cancel the named operation.
    #[arg(long, requires = "id")]
    pub(crate) cancel: bool,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Task {
    /// Id of the task.
    pub(crate) id: String,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tasks {
    /// How many of the newest.
    #[arg(short = 'l', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) limit: u32,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}
