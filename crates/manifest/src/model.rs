//! The typed deployment manifest (BOSH manifest schema v2; bosh.md section 5.1).

use std::net::IpAddr;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::ip::Range;
use stolos_document::{Located, Node, Place};

/// A deployment manifest, checked for itself but not yet against a cloud config.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Name of the deployment.
    pub name: String,
    /// Releases that jobs are taken from.
    pub releases: Vec<Release>,
    /// Stemcells by alias.
    pub stemcells: Vec<Stemcell>,
    /// How to update; groups may override parts.
    pub update: UpdateOverride,
    /// Switches.
    pub features: Features,
    /// Tags that every machine and disk gets.
    pub tags: IndexMap<String, String>,
    /// Variables to generate.
    pub variables: Vec<Variable>,
    /// Jobs that are added to several groups.
    pub addons: Vec<Addon>,
    /// The groups, in the order in which they are updated.
    pub instance_groups: Vec<InstanceGroup>,
    /// The document, for comparison and interpolation.
    pub document: Node,
}

/// A release that the manifest uses.
#[derive(Clone, Debug)]
pub struct Release {
    /// Name.
    pub name: Located<String>,
    /// Which version.
    pub version: VersionWish,
    /// Where to fetch it from when it is not there.
    pub url: Option<String>,
    /// Digest of what lies at `url`.
    pub sha1: Option<String>,
}

/// A stemcell that the manifest uses.
#[derive(Clone, Debug)]
pub struct Stemcell {
    /// What groups call it.
    pub alias: Located<String>,
    /// Operating system; either this or `name` is there.
    pub os: Option<String>,
    /// Name of the stemcell.
    pub name: Option<String>,
    /// Which version.
    pub version: VersionWish,
}

/// Which version somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionWish {
    /// This one.
    Exact(String),
    /// The newest there is.
    Latest,
    /// The newest that begins with this prefix: `1.latest` has the prefix `1.`.
    LatestOf(String),
}

/// A number of instances or a share of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Count {
    /// So many.
    Absolute(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Count {
    /// The number for a group of `size`: percentages are rounded down, and at least `minimum`.
    #[must_use]
    pub fn of(self, size: usize, minimum: u32) -> u32 {
        match self {
            Self::Absolute(count) => count,
            Self::Percent(percent) => {
                let share = u64::try_from(size)
                    .unwrap_or(u64::MAX)
                    .saturating_mul(u64::from(percent))
                    / 100;
                u32::try_from(share).unwrap_or(u32::MAX)
            }
        }
        .max(minimum)
    }
}

/// How long to wait for an instance to run: from the earliest to the latest moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchTime {
    /// Milliseconds before the first look.
    pub min_ms: u64,
    /// Milliseconds after which it has failed.
    pub max_ms: u64,
}

/// The `update` block of a manifest or of a group; what is absent is inherited.
#[derive(Clone, Debug, Default)]
pub struct UpdateOverride {
    /// How many instances go first.
    pub canaries: Option<Count>,
    /// How many instances are changed at once.
    pub max_in_flight: Option<Count>,
    /// How long to wait for a canary.
    pub canary_watch_time: Option<WatchTime>,
    /// How long to wait for any other instance.
    pub update_watch_time: Option<WatchTime>,
    /// Whether the group waits for the one before it and makes the next one wait.
    pub serial: Option<bool>,
    /// Whether a group's first deploy takes all availability zones at once.
    pub initial_deploy_az_parallel: Option<bool>,
}

/// Switches of a deployment. Those that would change addresses to DNS names are refused while there is no DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether variables whose options changed are made anew.
    pub converge_variables: bool,
}

/// A variable that the director generates.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Name; relative to the deployment unless it begins with `/`.
    pub name: Located<String>,
    /// `password`, `certificate`, `rsa`, `ssh`, `user`, `json` …
    pub kind: String,
    /// What the generator is asked for.
    pub options: Node,
    /// `no-overwrite`, `overwrite` or `converge`.
    pub update_mode: Option<String>,
}

/// A group of instances that run the same jobs.
#[derive(Clone, Debug)]
pub struct InstanceGroup {
    /// Name.
    pub name: String,
    /// How many.
    pub instances: u32,
    /// Availability zones in order; empty: none.
    pub azs: Vec<Located<String>>,
    /// Whether the jobs run always or on demand.
    pub lifecycle: Lifecycle,
    /// Type of machine.
    pub vm_type: Located<String>,
    /// Additions to the type of machine.
    pub vm_extensions: Vec<Located<String>>,
    /// Alias of a stemcell.
    pub stemcell: Located<String>,
    /// Size of the persistent disk in MiB; excludes `persistent_disk_type`.
    pub persistent_disk_mib: Option<u64>,
    /// Type of the persistent disk.
    pub persistent_disk_type: Option<Located<String>>,
    /// Networks.
    pub networks: Vec<GroupNetwork>,
    /// Jobs in the order of the document.
    pub jobs: Vec<Job>,
    /// Changes to how the deployment updates.
    pub update: UpdateOverride,
    /// Groups that were given this name since.
    pub migrated_from: Vec<MigratedFrom>,
    /// Environment of the machine; may hold variables.
    pub env: Node,
    /// Properties of jobs that have none of their own.
    pub properties: Option<Node>,
    /// Tags in addition to those of the deployment.
    pub tags: IndexMap<String, String>,
    /// Where the group begins.
    pub place: Place,
}

/// Whether the jobs of a group run always or on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Always.
    #[default]
    Service,
    /// On demand; there is no machine in between.
    Errand,
}

/// A network of a group.
#[derive(Clone, Debug)]
pub struct GroupNetwork {
    /// Name of a network of the cloud config.
    pub name: Located<String>,
    /// Fixed addresses, one per instance; empty: assigned by the planner.
    pub static_ips: Vec<Located<Range>>,
    /// What this network is the default for.
    pub default: Vec<DefaultFor>,
}

/// What a network can be the default for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultFor {
    /// The address that links show.
    Addressable,
    /// Name servers.
    Dns,
    /// The default route.
    Gateway,
}

/// A job of a group.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name in its release.
    pub name: Located<String>,
    /// Release.
    pub release: Located<String>,
    /// Properties; they replace those of the group. May hold variables.
    pub properties: Option<Node>,
    /// What links to consume, by name.
    pub consumes: IndexMap<String, Consume>,
    /// What links to provide, by name.
    pub provides: IndexMap<String, Provide>,
    /// Links that the job's own specification does not know.
    pub custom_providers: Vec<ProviderDefinition>,
    /// Where the job begins.
    pub place: Place,
}

/// How one link of a job is consumed.
#[derive(Clone, Debug)]
pub enum Consume {
    /// `nil`: not at all.
    Blocked,
    /// From a provider, in the same deployment.
    Link(Link),
    /// From what the manifest says.
    Manual {
        /// Instances as written.
        instances: Vec<ManualInstance>,
        /// Properties.
        properties: Node,
        /// An address for all of them.
        address: Option<String>,
    },
}

/// A link taken from a provider.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Alias of the provider; absent: the only one of the type.
    pub from: Option<Located<String>>,
    /// Take the instances' addresses on this network.
    pub network: Option<Located<String>>,
}

/// An instance of a manual link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManualInstance {
    /// Address as written.
    pub address: String,
}

/// How one link of a job is provided.
#[derive(Clone, Debug)]
pub enum Provide {
    /// `nil`: not at all.
    Blocked,
    /// As this.
    As {
        /// Alias; absent: the link's own name.
        alias: Option<String>,
        /// Whether other deployments may use it.
        shared: bool,
    },
}

/// A link that a manifest adds to a job.
#[derive(Clone, Debug)]
pub struct ProviderDefinition {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: String,
    /// Dotted names of properties that it shows.
    pub properties: Vec<String>,
}

/// A former name of a group.
#[derive(Clone, Debug)]
pub struct MigratedFrom {
    /// Former name.
    pub name: String,
    /// Zone of its instances when they had none.
    pub az: Option<Located<String>>,
}

/// Jobs that are added to several groups.
#[derive(Clone, Debug)]
pub struct Addon {
    /// Name.
    pub name: String,
    /// Jobs.
    pub jobs: Vec<Job>,
    /// Only these groups; empty: all.
    pub include_groups: Vec<String>,
    /// Not these groups.
    pub exclude_groups: Vec<String>,
}

impl GroupNetwork {
    /// How many static addresses are named; stops at `u64::MAX`.
    #[must_use]
    pub fn n_static(&self) -> u64 {
        self.static_ips
            .iter()
            .fold(0, |sum, range| sum.saturating_add(range.len()))
    }

    /// The static addresses in the order in which they are named.
    pub fn static_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.static_ips.iter().flat_map(|range| range.iter())
    }
}
