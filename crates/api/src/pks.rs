//! The PKS API, version 1, and the few resources of our own beside it.
//!
//! Owns the wire types and the client. Field names and states are those of the swagger of PKS 1.7 and of what the
//! `pks` CLI printed; nothing here decides anything. Our own resources live under `/stolos/v1`, so that no path of the
//! foreign API is bent.

mod backups;
mod client;
mod config_file;
mod endpoints;
#[cfg(test)]
mod openapi;
mod profiles;
mod tasks;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use backups::{BackupRun, ClusterBackup, ClusterBackups, LATEST, RestoreRequest};
pub use client::{Begun, Client, ProfileKind};
pub use config_file::{
    ConfigFile, CustomCa, InstanceGroup, PrivateRegistries, Proxy, RegistryHost, RegistryServer,
};
pub use endpoints::{ENDPOINTS, Endpoint};
pub use profiles::{Customization, KubernetesProfile, KubernetesProfileRequest, Profile, ProfileRequest};
pub use tasks::{AvailableUpgrade, TaskCluster, TaskInfo, TaskStatus, UpgradeClusters};

/// The port of the PKS API.
pub const PORT: u16 = 9021;

/// What a cluster was last asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum LastAction {
    /// Being made, or made.
    Create,
    /// Being changed, or changed.
    Update,
    /// Being deleted.
    Delete,
    /// Moving to newer Kubernetes or newer machines.
    Upgrade,
}

impl LastAction {
    /// The word that tables and JSON show.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Upgrade => "UPGRADE",
        }
    }
}

/// How the last action stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum LastActionState {
    /// Accepted, not begun.
    #[serde(rename = "queued")]
    Queued,
    /// Running.
    #[serde(rename = "in progress")]
    InProgress,
    /// Ended well.
    #[serde(rename = "succeeded")]
    Succeeded,
    /// Ended badly; the description says why.
    #[serde(rename = "failed")]
    Failed,
}

impl LastActionState {
    /// The words that tables and JSON show.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in progress",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing more will happen by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// `ClusterParameters` of a request or of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterParameters {
    /// Host name or address under which the cluster's API is called; at most 64 bytes, unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_master_host: Option<String>,
    /// Port of the cluster's API; 8443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_master_port: Option<u16>,
    /// Number of workers; the plan's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_worker_instances: Option<i64>,
    /// Workers of each pool of its compute profile; those of the profile when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_pool_instances: Option<Vec<PoolInstances>>,
    /// Tags of its machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_tags: Option<Vec<ClusterTag>>,
    /// Registries of its nodes' container runtime. The answer shows them without certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_registries: Option<PrivateRegistries>,
    /// What `--config-file` says. Never in an answer: it holds keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<ConfigFile>,
    /// `CLUSTER[/ID]`: the backup whose contents a new cluster begins with; CLUSTER is a name or an id, and the newest backup is taken unless ID names
    /// another. In requests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_backup: Option<String>,
    /// Authorities that its nodes trust for registries; PKS's older way for [`ClusterParameters::private_registries`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_ca_certs: Option<Vec<CustomCaCert>>,
    /// The plan's drain settings; in answers of `clusterdetails` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_setting_plan_details: Option<KubernetesSettings>,
    /// The cluster's own drain settings; in answers of `clusterdetails` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_setting_cluster_details: Option<KubernetesSettings>,
    /// What this version does not know; kept to be refused by name rather than ignored.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// Body of `POST /v1/clusters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterRequest {
    /// Name, at most 63 bytes, unique.
    pub name: String,
    /// Name or id of a plan.
    pub plan_name: String,
    /// Where and how large.
    pub parameters: ClusterParameters,
    /// Name of a network profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_profile_name: Option<String>,
    /// Name of a compute profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_profile_name: Option<String>,
    /// Name of a Kubernetes profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_profile_name: Option<String>,
    /// What this version does not know; kept to be refused by name rather than ignored.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// Workers of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PoolInstances {
    /// Name of the pool.
    pub name: String,
    /// How many workers it has.
    pub instances: i64,
}

/// An authority for a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CustomCaCert {
    /// Host of the registry, with its port where that is not 443.
    pub domain_name: String,
    /// The certificate (PEM).
    pub ca_cert: String,
}

/// A tag of a cluster's machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterTag {
    /// Name, at least one character.
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
    /// PKS's client sends it; it has no meaning here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

/// `UpdateClusterParameters`, the body of `PATCH /v1/clusters/{name}`; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UpdateParameters {
    /// Number of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_worker_instances: Option<i64>,
    /// Ours: masters, 1, 3 or 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_master_instances: Option<i64>,
    /// Workers of pools of its compute profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_pool_instances: Option<Vec<PoolInstances>>,
    /// Name of a network profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_profile_name: Option<String>,
    /// Name of a compute profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_profile_name: Option<String>,
    /// Whether a compute profile may replace pools and move machines between zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce_compute_profile_update: Option<bool>,
    /// Name of a Kubernetes profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_profile_name: Option<String>,
    /// All registries that the nodes' container runtime is to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_registries: Option<PrivateRegistries>,
    /// See [`ClusterParameters::config_file`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<ConfigFile>,
    /// See [`ClusterParameters::custom_ca_certs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_ca_certs: Option<Vec<CustomCaCert>>,
    /// Hosts of registries that are not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_registries: Option<Vec<String>>,
    /// Drain settings.
    #[serde(flatten)]
    pub drain: KubernetesSettings,
    /// All tags that the cluster is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_tags: Option<Vec<ClusterTag>>,
    /// Whether the cluster is to have no tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_all_tags: Option<bool>,
    /// Ours: `refuse` to refuse a change with which machines go that have the data of bound volumes; `delete`, or nothing as PKS's clients say, to lose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_volumes: Option<LocalVolumes>,
    /// What this version does not know; kept to be refused by name rather than ignored.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// What becomes of data on the disks of machines that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LocalVolumes {
    /// The change is refused.
    Refuse,
    /// It is lost.
    Delete,
}

/// `KubernetesSettings`: all texts, as in PKS's swagger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubernetesSettings {
    /// Minutes that a drain may take; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_timeout: Option<String>,
    /// Seconds that a pod gets to end; -1 for the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_grace_period: Option<String>,
    /// Whether pods that no controller makes anew are evicted too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_force: Option<String>,
    /// Whether pods of daemon sets are left where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_ignore_daemonsets: Option<String>,
    /// Whether pods with data in `emptyDir` volumes are evicted too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_delete_local_data: Option<String>,
    /// Whether pods that are left when the time is over are deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_drain_force_node: Option<String>,
}

impl KubernetesSettings {
    /// The settings that are there, by the names that the command line shows.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, &str)> {
        [
            ("kubelet-drain-timeout", &self.kubelet_drain_timeout),
            ("kubelet-drain-grace-period", &self.kubelet_drain_grace_period),
            ("kubelet-drain-force", &self.kubelet_drain_force),
            ("kubelet-drain-force-node", &self.kubelet_drain_force_node),
            (
                "kubelet-drain-ignore-daemonsets",
                &self.kubelet_drain_ignore_daemonsets,
            ),
            (
                "kubelet-drain-delete-local-data",
                &self.kubelet_drain_delete_local_data,
            ),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
        .collect()
    }
}

/// A cluster as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cluster {
    /// Name.
    pub name: String,
    /// Name of its plan.
    pub plan_name: String,
    /// What it was last asked to do.
    pub last_action: LastAction,
    /// How that stands.
    pub last_action_state: LastActionState,
    /// The same in words.
    pub last_action_description: String,
    /// Id; the deployment is `service-instance_` + this.
    pub uuid: String,
    /// Address under which the API answers; `In Progress` until it is known.
    pub kubernetes_master_ips: Vec<String>,
    /// Kubernetes version, without `v`.
    pub k8s_version: String,
    /// Version of Stolos that made it or last changed it.
    pub pks_version: String,
    /// Parameters.
    pub parameters: ClusterParameters,
    /// Its network profile; null when it has none, as PKS shows it.
    pub network_profile_name: Option<String>,
    /// Its compute profile.
    pub compute_profile_name: Option<String>,
    /// Its Kubernetes profile.
    pub kubernetes_profile_name: Option<String>,
    /// What it can be upgraded to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub available_upgrades: Vec<AvailableUpgrade>,
    /// Ours: whether nothing is to run on its machines; absent when it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Ours: name of whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Ours: id of that person, which nobody else ever gets; absent for a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    /// Ours: whether that person is gone, so that an administrator has to give the cluster to somebody; absent otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owner_gone: bool,
}

/// Body of `POST /stolos/v1/clusters/{name}/transfer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Name of the user who gets the cluster.
    pub owner: String,
}

/// One page of a list of ours. PKS's own lists are plain arrays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(rename = "{T}Page"))]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// To be given as `after` for the next page; absent on the last one. It means nothing to anybody but the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many there are on all pages; absent where the list only grows and nobody counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// Which page of a list. The default is the first one, of the size that the server likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOf<'a> {
    /// The most that are to be on it.
    pub limit: Option<u32>,
    /// [`Page::next`] of the one before.
    pub after: Option<&'a str>,
}

impl PageOf<'_> {
    fn query(self) -> Vec<(&'static str, String)> {
        let limit = self.limit.map(|limit| ("limit", limit.to_string()));
        let after = self.after.map(|after| ("after", after.to_owned()));
        limit.into_iter().chain(after).collect()
    }
}

/// What an owner may have, and what an owner has: allotted sizes of machines, not what pods use of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Amounts {
    /// Processors.
    #[serde(default)]
    pub cpu: i64,
    /// Memory in GB (1024 MiB).
    #[serde(default)]
    pub memory: f64,
    /// Clusters.
    #[serde(default)]
    pub cluster: i64,
}

/// A quota.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// User or client.
    pub owner: String,
    /// The most that the owner may have; 0 processors or memory means nothing at all.
    pub limit: Limits,
}

/// The limits of a quota, all of which have to be named.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processors.
    pub cpu: i64,
    /// Memory in GB (1024 MiB).
    pub memory: f64,
    /// Clusters, at least 1.
    pub cluster: i64,
}

/// What `PATCH /v1/quotas/{owner}` takes; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LimitsChange {
    /// See [`Limits::cpu`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// See [`Limits::memory`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<f64>,
    /// See [`Limits::cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<i64>,
}

/// Body of `PATCH /v1/quotas/{owner}`. PKS's client sends the owner too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QuotaChange {
    /// Has to be the owner in the path, where it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// New limits.
    pub limit: LimitsChange,
}

/// What an owner has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Usage {
    /// User or client.
    pub owner: String,
    /// All clusters together.
    pub totals: Amounts,
    /// Each cluster.
    pub clusters: Vec<ClusterUsage>,
}

/// What one cluster takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterUsage {
    /// Its name.
    pub name: String,
    /// Processors.
    pub cpu: i64,
    /// Memory in GB (1024 MiB).
    pub memory: f64,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plan {
    /// Id; the first four are fixed by PKS.
    pub id: String,
    /// Name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Workers unless the request says otherwise.
    pub worker_instances: u32,
    /// Masters.
    pub master_instances: u32,
    /// Whether pods may be privileged.
    #[serde(rename = "allow-privileged-containers")]
    pub allow_privileged_containers: bool,
    /// Ours: memory that the machines of a cluster are allotted that is made as the plan says, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

/// What there is room for: the answer of `GET /stolos/v1/room`. What others have is nobody's business.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Room {
    /// Memory that machines of new clusters may be allotted, in MiB; absent where there is no end to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory_mib: Option<u64>,
    /// The most processors that a machine can have; absent where there is no end to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_cpus: Option<u32>,
}

/// How large a cluster was for how long: allotted sizes times seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metered {
    /// Who made it.
    pub owner: String,
    /// Its name; another cluster may have had the same one before.
    pub cluster: String,
    /// Its id.
    pub uuid: String,
    /// Machines, masters included.
    pub machine_seconds: i64,
    /// Processors.
    pub cpu_seconds: i64,
    /// Memory in MiB.
    pub memory_mib_seconds: i64,
    /// Pods, without those of the cluster itself.
    #[serde(default)]
    pub pod_seconds: i64,
}

/// A certificate of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Certificate {
    /// Its name among the credentials.
    pub name: String,
    /// `Root` or `Leaf`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whole days until it ends; negative when it has ended.
    pub days_left: i64,
    /// When it ends, RFC 3339.
    pub valid_until: String,
}

/// What `GET /stolos/v1/clusters/{name}/pre-check` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PreCheck {
    /// What was looked at.
    pub checks: Vec<CheckResult>,
    /// Certificates that end within 180 days; they stop nothing.
    pub ends_soon: Vec<Certificate>,
}

/// What came out of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckResult {
    /// What was looked at.
    #[serde(rename = "check")]
    pub kind: CheckKind,
    /// Whether nothing stands against an upgrade.
    pub passed: bool,
    /// What does.
    pub problems: Vec<String>,
}

/// What is looked at before an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// None has ended.
    Certificates,
    /// All that should run on the machines does.
    Processes,
    /// No disk is full.
    Storage,
}

/// [`ErrorBody::error_code`] of an upgrade of what is up to date.
pub const UP_TO_DATE: &str = "up_to_date";
/// [`ErrorBody::error_code`] of a change that would lose data of volumes, see [`UpdateParameters::local_volumes`].
pub const LOSES_VOLUMES: &str = "loses_local_volumes";

/// Error body: PKS's `body`, and ours beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// The text, under the name that PKS's clients read.
    pub body: String,
    /// The same text, under the name of our own APIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The next step, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// A word that programs tell the error by: [`UP_TO_DATE`], [`LOSES_VOLUMES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Id of the request, to be found in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Accepted, not begun.
    Queued,
    /// Running.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly; can be resumed by asking again.
    Failed,
    /// Ended because somebody asked for it, or because another operation took over.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word that tables and JSON show.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a person asked of a cluster, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Operation {
    /// Id.
    pub id: String,
    /// Name of the cluster.
    pub cluster: String,
    /// What was asked.
    pub action: LastAction,
    /// How it stands.
    pub state: OperationState,
    /// Who asked.
    pub user: String,
    /// Who asked that it stops; absent while nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    /// When, RFC 3339.
    pub created_at: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// What it does now, since when and what it waits for; empty once it has ended.
    pub steps: Vec<OperationStep>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One named step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OperationStep {
    /// Name, as people read it.
    pub name: String,
    /// `waiting`, `running`, `done`, `skipped`, `failed`, `cancelled`.
    pub state: String,
    /// What it does at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Milliseconds that it has run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<i64>,
    /// Names of the steps that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
}

/// What a request would do: the answer to `?dry_run=true`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Preview {
    /// The cluster.
    pub cluster: String,
    /// `CREATE` or `UPDATE`.
    pub action: LastAction,
    /// Its Kubernetes version afterwards.
    pub k8s_version: String,
    /// Its groups of machines, before and after.
    pub groups: Vec<PreviewGroup>,
    /// What differs, in words; empty for a new cluster.
    pub changes: Vec<String>,
    /// In which order machines are made and changed, in words.
    pub machines: String,
    /// What of the request has no effect on this installation's infrastructure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied: Vec<String>,
}

/// A group of machines in a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PreviewGroup {
    /// Name of the instance group.
    pub name: String,
    /// Machines now.
    pub before: u32,
    /// Machines afterwards.
    pub after: u32,
    /// Processors of each.
    pub cpu: u32,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// Their zones.
    pub zones: Vec<String>,
}

/// What the server says about itself to anybody: `GET /stolos/v1/info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Info {
    /// Version of Stolos.
    pub version: String,
    /// Base address of the token service.
    pub identity: String,
    /// Base address of the director.
    pub director: String,
    /// Kubernetes versions on offer, newest first.
    pub kubernetes_versions: Vec<String>,
}
