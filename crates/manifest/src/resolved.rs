//! A deployment in which no name is left to look up: the types.

use std::collections::BTreeMap;
use std::net::IpAddr;

use indexmap::IndexMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ip::IpSet;
use crate::model::{Count, DefaultFor, Lifecycle, WatchTime};

/// What has been uploaded; needed to resolve `latest` and operating systems.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Name of a release → its versions.
    pub releases: BTreeMap<String, Vec<String>>,
    /// Stemcells.
    pub stemcells: Vec<StemcellOffer>,
}

/// A stemcell that has been uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StemcellOffer {
    /// Name.
    pub name: String,
    /// Operating system.
    pub os: String,
    /// Version.
    pub version: String,
}

/// A deployment in which no name is left to look up. Values may hold `((variables))` by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedDeployment {
    /// Name.
    pub name: String,
    /// Releases.
    pub releases: Vec<ResolvedRelease>,
    /// Stemcells.
    pub stemcells: Vec<ResolvedStemcell>,
    /// All zones of the cloud config, in its order.
    pub azs: IndexMap<String, ResolvedAz>,
    /// The networks of the groups, in the order of the cloud config.
    pub networks: IndexMap<String, ResolvedNetwork>,
    /// Variables to generate, each after those that its options name (a certificate after its authority).
    pub variables: Vec<ResolvedVariable>,
    /// The groups, in the order of the manifest.
    pub groups: Vec<ResolvedGroup>,
    /// How packages are compiled, when the cloud config says so.
    pub compilation: Option<ResolvedCompilation>,
    /// Tags of every machine.
    pub tags: IndexMap<String, String>,
    /// Whether variables whose options changed are made anew.
    pub converge_variables: bool,
}

/// A release at one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ResolvedRelease {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

/// A stemcell at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedStemcell {
    /// What groups call it.
    pub alias: String,
    /// Name.
    pub name: String,
    /// Operating system.
    pub os: String,
    /// Version.
    pub version: String,
}

/// An availability zone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedAz {
    /// Which CPI.
    pub cpi: Option<String>,
    /// For the CPI.
    pub cloud_properties: serde_json::Value,
}

/// A manual network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedNetwork {
    /// Subnets, in the order of the cloud config.
    pub subnets: Vec<ResolvedSubnet>,
}

/// A subnet of a manual network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedSubnet {
    /// All its addresses.
    pub range: IpNet,
    /// Default gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Never handed out, the network's own addresses and the gateway included.
    pub reserved: IpSet,
    /// Handed out by name only.
    pub statics: IpSet,
    /// Zones; empty: all.
    pub azs: Vec<String>,
    /// For the CPI.
    pub cloud_properties: serde_json::Value,
}

/// A variable to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedVariable {
    /// Name as written; relative to the deployment unless it begins with `/`.
    pub name: String,
    /// Type.
    pub kind: String,
    /// What the generator is asked for.
    pub options: serde_json::Value,
    /// `no-overwrite`, `overwrite` or `converge`.
    pub mode: String,
}

/// A group of instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedGroup {
    /// Name.
    pub name: String,
    /// How many.
    pub instances: u32,
    /// Zones in the order of the group; empty: none.
    pub azs: Vec<String>,
    /// Whether the jobs run always or on demand.
    pub lifecycle: Lifecycle,
    /// Name of the type of machine.
    pub vm_type: String,
    /// For the CPI, by zone (key "" when the group has no zones): zone ⊕ type ⊕ extensions, the later wins.
    pub cloud_properties: BTreeMap<String, serde_json::Value>,
    /// Stemcell.
    pub stemcell: ResolvedStemcell,
    /// Persistent disk of every instance.
    pub persistent_disk: Option<PersistentDisk>,
    /// Networks in the order of the manifest; one of them is the default for each of gateway, dns and addressable.
    pub networks: Vec<ResolvedGroupNetwork>,
    /// Jobs, those of add-ons last.
    pub jobs: Vec<ResolvedJob>,
    /// How to update.
    pub update: Update,
    /// Former names → zone that their instances had.
    pub migrated_from: IndexMap<String, Option<String>>,
    /// Environment of the machines; an object.
    pub env: serde_json::Value,
    /// Tags of the group's machines, those of the deployment included.
    pub tags: IndexMap<String, String>,
}

/// A persistent disk as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PersistentDisk {
    /// Size in MiB, more than 0.
    pub size_mib: u64,
    /// Name of the type, when it has one.
    pub kind: Option<String>,
    /// For the CPI.
    pub cloud_properties: serde_json::Value,
}

/// A network of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedGroupNetwork {
    /// Name.
    pub name: String,
    /// Fixed addresses in the order of the manifest: as many as instances, or none.
    pub static_ips: Vec<IpAddr>,
    /// What this network is the default for, sorted.
    pub default: Vec<DefaultFor>,
}

/// A job of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedJob {
    /// Name in its release.
    pub name: String,
    /// Release.
    pub release: ResolvedRelease,
    /// Properties as the manifest gives them: the job's own, else the group's; an object.
    pub properties: serde_json::Value,
    /// What links to consume, by name.
    pub consumes: IndexMap<String, ResolvedConsume>,
    /// What links to provide, by name.
    pub provides: IndexMap<String, ResolvedProvide>,
    /// Links that the job's own specification does not know.
    pub custom_providers: Vec<ResolvedProvider>,
}

/// How one link of a job is consumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ResolvedConsume {
    /// Not at all.
    Blocked,
    /// From a provider of the deployment.
    Link {
        /// Alias of the provider; absent: the only one of the type.
        from: Option<String>,
        /// Take the instances' addresses on this network.
        network: Option<String>,
    },
    /// From what the manifest says.
    Manual {
        /// Addresses of the instances.
        addresses: Vec<String>,
        /// Properties.
        properties: serde_json::Value,
        /// An address for all of them.
        address: Option<String>,
    },
}

/// How one link of a job is provided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ResolvedProvide {
    /// Not at all.
    Blocked,
    /// Under this name.
    As {
        /// Alias; absent: the link's own name.
        alias: Option<String>,
        /// Whether other deployments may use it.
        shared: bool,
    },
}

/// A link that the manifest adds to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedProvider {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: String,
    /// Dotted names of properties that it shows.
    pub properties: Vec<String>,
}

/// How to update a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// How many instances go first.
    pub canaries: Count,
    /// How many instances are changed at once.
    pub max_in_flight: Count,
    /// How long to wait for a canary.
    pub canary_watch_time: WatchTime,
    /// How long to wait for any other instance.
    pub update_watch_time: WatchTime,
    /// Whether the group waits for the one before it and makes the next one wait.
    pub serial: bool,
    /// Whether a group's first deploy takes all availability zones at once.
    pub initial_deploy_az_parallel: bool,
}

/// How packages are compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedCompilation {
    /// At most so many machines at once.
    pub workers: u32,
    /// Zone.
    pub az: Option<String>,
    /// For the CPI: zone ⊕ type.
    pub cloud_properties: serde_json::Value,
    /// Network.
    pub network: String,
    /// Whether one machine compiles several packages.
    pub reuse_compilation_vms: bool,
    /// Environment of the machines.
    pub env: serde_json::Value,
}
