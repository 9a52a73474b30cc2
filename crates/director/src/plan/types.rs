//! What the planner's two steps return.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::{Lifecycle, PersistentDisk, ResolvedRelease, ResolvedVariable, Update, WatchTime};

use super::inventory::{Applied, MachineSpec, NetworkSettings, PackageRef, State, StemcellRef};

/// Who is where: the first step's answer. Enough to render templates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Name of the deployment.
    pub deployment: String,
    /// Instances that the deployment should have: groups in the order of the manifest, then by index.
    pub instances: Vec<Placed>,
    /// Instances that it should no longer have, with why; by group and index.
    pub obsolete: Vec<(InstanceId, Reason)>,
    /// What each group runs: groups and jobs in the order of the manifest.
    pub groups: IndexMap<String, GroupPlacement>,
    /// Variables to generate before anything is rendered, each after those that it needs.
    pub variables: Vec<ResolvedVariable>,
    /// Whether variables whose options changed are made anew.
    pub converge_variables: bool,
}

/// What all instances of a group have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupPlacement {
    /// Whether the jobs run always or on demand.
    pub lifecycle: Lifecycle,
    /// Zones in order; empty: none.
    pub azs: Vec<String>,
    /// How to update.
    pub update: Update,
    /// Stemcell.
    pub stemcell: StemcellRef,
    /// Persistent disk.
    pub persistent_disk: Option<PersistentDisk>,
    /// Tags of the machines.
    pub tags: IndexMap<String, String>,
    /// Jobs in the order of the manifest.
    pub jobs: Vec<JobPlacement>,
    /// Name → package, of all jobs.
    pub packages: BTreeMap<String, PackageRef>,
}

/// A job of a group, ready to be rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPlacement {
    /// Name.
    pub name: String,
    /// Release.
    pub release: ResolvedRelease,
    /// Fingerprint.
    pub fingerprint: String,
    /// Names of its packages.
    pub packages: Vec<String>,
    /// Properties that the job declares: what the manifest says, else the default. May hold `((variables))`.
    pub properties: Value,
    /// Links by the job's own names for them; an optional link that nobody provides is not there.
    pub links: IndexMap<String, Link>,
}

/// What a consumer sees of a link (bosh.md section 5.6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Deployment of the provider.
    pub deployment_name: String,
    /// Group of the provider; empty for a manual link.
    pub instance_group: String,
    /// Network whose addresses are shown; empty for a manual link.
    pub default_network: String,
    /// Names of the provider's networks.
    pub networks: Vec<String>,
    /// Properties that the provider shows. May hold `((variables))`.
    pub properties: Value,
    /// The provider's instances by index.
    pub instances: Vec<LinkInstance>,
    /// An address for all of them; manual links only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
}

/// An instance of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInstance {
    /// Group.
    pub name: String,
    /// Id; empty for a manual link.
    pub id: String,
    /// Index.
    pub index: u32,
    /// Whether it is the bootstrap instance.
    pub bootstrap: bool,
    /// Zone; empty when it has none.
    pub az: String,
    /// Address.
    pub address: String,
}

/// An instance in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// Id.
    pub id: InstanceId,
    /// Group.
    pub group: String,
    /// Index in the group.
    pub index: u32,
    /// Zone.
    pub az: Option<String>,
    /// Whether it is the bootstrap instance of its group.
    pub bootstrap: bool,
    /// Whether it existed before.
    pub existing: bool,
    /// Whether people asked to leave it alone.
    pub ignored: bool,
    /// What it should be doing.
    pub state: State,
    /// The address that links show.
    pub address: IpAddr,
    /// Network → settings, in the order of the manifest.
    pub networks: IndexMap<String, NetworkSettings>,
    /// What its machine has to be.
    pub machine: MachineSpec,
}

impl Placed {
    /// `etcd/8c1f… (0)`, as BOSH writes it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{} ({})", self.group, self.id, self.index)
    }
}

impl Placement {
    /// The jobs of a group.
    #[must_use]
    pub fn jobs(&self, group: &str) -> &[JobPlacement] {
        self.groups.get(group).map_or(&[], |group| &group.jobs)
    }
}

/// Digests of what the caller rendered with a [`Placement`].
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// Instance → job → digest of its rendered templates. `decide` wants every placed instance.
    pub template_hashes: BTreeMap<InstanceId, BTreeMap<String, String>>,
    /// Instance → digest over all of its rendered templates.
    pub configuration_hashes: BTreeMap<InstanceId, String>,
}

/// What the caller of a deploy asked for, and what the planner cannot know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Number of this plan; the agents refuse older ones. The caller takes the last one plus 1.
    pub generation: u64,
    /// Make every machine anew.
    pub recreate: bool,
    /// Make machines anew whose instances are in this list, whatever else is true.
    pub recreate_instances: Vec<InstanceId>,
    /// Overrides `canaries`.
    pub canaries: Option<stolos_manifest::Count>,
    /// Overrides `max_in_flight`.
    pub max_in_flight: Option<stolos_manifest::Count>,
    /// Whether groups are stopped or started as a whole.
    pub together: bool,
    /// Digest of the director's own settings, see [`Settings::director`](super::Settings).
    pub director_settings: String,
}

/// Everything that has to be done; executing it makes no choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the deployment.
    pub deployment: String,
    /// Number of the plan; executors and agents refuse older ones.
    pub generation: u64,
    /// Variables to generate, each after those that it needs.
    pub variables: Vec<ResolvedVariable>,
    /// Instances that go away, first of all.
    pub deletions: Vec<Deletion>,
    /// Instances whose machines are deleted together with `deletions` and made anew together with the missing ones,
    /// because their addresses are given to others. Their action is `Recreate`; in their wave the jobs are started.
    pub vacate_first: Vec<InstanceId>,
    /// All instances that stay or come, the unchanged ones included: groups in the order of the manifest, then by index.
    pub instances: Vec<InstancePlan>,
    /// The update: stages one after another.
    pub stages: Vec<Stage>,
}

/// What happens to one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstancePlan {
    /// Where it is.
    pub placed: Placed,
    /// What is done.
    pub action: Action,
    /// The machine that it has now.
    pub current_machine: Option<MachineRef>,
    /// Whether its jobs were stopped before: then no script is asked to let go of what they do.
    #[serde(default)]
    pub was_stopped: bool,
    /// Agent of the new machine; there when and only when the action makes one.
    pub new_agent_id: Option<AgentId>,
    /// What happens to its persistent disk.
    pub disk: DiskPlan,
    /// Disks that are left over from before; orphaned after the update.
    pub leftover_disks: Vec<String>,
    /// What it runs when this is done.
    pub desired: Applied,
    /// Jobs whose rendered templates change, for `drain` and for people.
    pub changed_jobs: Vec<String>,
    /// Packages that change, for `drain` and for people.
    pub changed_packages: Vec<String>,
}

/// A machine that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRef {
    /// The CPI's id.
    pub cid: String,
    /// Its agent.
    pub agent_id: AgentId,
}

/// What is done to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Action {
    /// Make a machine and start the jobs on it.
    Create {
        /// Why.
        why: Reason,
    },
    /// Stop the jobs, delete the machine, make a new one, start the jobs on it. Disks stay.
    Recreate {
        /// Why; never empty.
        why: Vec<Recreate>,
        /// What changes besides.
        changed: Vec<Change>,
    },
    /// Stop the jobs, change them, start them, on the same machine.
    Update {
        /// What; never empty.
        changed: Vec<Change>,
    },
    /// Send settings and tags; nothing stops.
    UpdateSettings {
        /// What; never empty.
        changed: Vec<Change>,
    },
    /// Delete the machine; the instance, its addresses and its disks stay.
    Detach,
    /// Nothing.
    Nothing,
}

/// Why an instance comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The manifest asks for more instances than there are.
    NewInstance,
    /// The instance is there, its machine is not.
    MissingMachine,
    /// The manifest has no such group any more.
    GroupRemoved,
    /// The group has fewer instances now.
    ScaledDown,
    /// The group has left the instance's zone.
    ZoneRemoved,
    /// Its zone has more instances than the others; it has no persistent disk.
    Rebalanced,
    /// The group's static addresses have no room for it.
    StaticAddressRemoved,
}

/// Why a machine is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recreate {
    /// Somebody asked for it.
    Asked,
    /// It is dead.
    Dead,
    /// Another stemcell.
    Stemcell,
    /// Another zone.
    Az,
    /// Other cloud properties.
    CloudProperties,
    /// Another environment.
    Env,
    /// Other networks or addresses.
    Network,
}

/// What changes on a machine that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The last update did not come to its end.
    Dirty,
    /// Rendered templates.
    Configuration,
    /// Packages.
    Packages,
    /// Which jobs, or their release.
    Job,
    /// Size or type of the persistent disk.
    PersistentDisk,
    /// Started or stopped.
    State,
    /// Tags of the machine.
    Tags,
    /// The director's settings.
    Settings,
}

/// What happens to an instance's persistent disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum DiskPlan {
    /// It has none and gets none.
    None,
    /// It keeps this one; a new machine gets it attached.
    Keep {
        /// The CPI's id.
        cid: String,
    },
    /// Create one, attach it, mount it.
    Create {
        /// What it should be.
        disk: PersistentDisk,
    },
    /// Create one, attach it, migrate the content, orphan the old one.
    Migrate {
        /// The old one.
        from: String,
        /// What the new one should be.
        disk: PersistentDisk,
    },
    /// Unmount it, detach it, orphan it.
    Orphan {
        /// The CPI's id.
        cid: String,
    },
}

/// An instance that goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Id.
    pub id: InstanceId,
    /// Group.
    pub group: String,
    /// Index.
    pub index: u32,
    /// Its machine, when it has one.
    pub machine: Option<MachineRef>,
    /// Its disks; they are orphaned.
    pub disks: Vec<String>,
    /// Its addresses; they are free when the machine is gone.
    pub addresses: BTreeMap<String, IpAddr>,
    /// Why.
    pub why: Reason,
}

/// Groups that are updated side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The groups.
    pub groups: Vec<GroupOrder>,
}

/// How a group is updated: waves one after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOrder {
    /// Group.
    pub group: String,
    /// The waves; none is empty.
    pub waves: Vec<Wave>,
}

/// Instances that are changed with at most `max_in_flight` at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// Zone; `None` when the group has no zones or takes them all at once.
    pub az: Option<String>,
    /// Whether these go first to see whether the change works.
    pub canary: bool,
    /// At most so many at once, at least 1.
    pub max_in_flight: u32,
    /// How long to wait for each to run.
    pub watch_time: WatchTime,
    /// The instances, the bootstrap instance first, then by index.
    pub instances: Vec<InstanceId>,
}

impl Action {
    /// Whether it makes a machine.
    #[must_use]
    pub fn makes_machine(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Recreate { .. })
    }
}

impl Plan {
    /// Whether there is nothing to do. Variables may still have to be generated: the planner does not know which exist.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deletions.is_empty()
            && self
                .instances
                .iter()
                .all(|instance| instance.action == Action::Nothing && instance.leftover_disks.is_empty())
    }

    /// The plan of one instance.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| instance.placed.id == id)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewInstance => "new instance",
            Self::MissingMachine => "its machine is missing",
            Self::GroupRemoved => "the group is no longer in the manifest",
            Self::ScaledDown => "the group has fewer instances",
            Self::ZoneRemoved => "the group has left its zone",
            Self::Rebalanced => "instances are spread evenly over the zones",
            Self::StaticAddressRemoved => "the group's static addresses have no room for it",
        })
    }
}

impl fmt::Display for Recreate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked for",
            Self::Dead => "dead",
            Self::Stemcell => "stemcell",
            Self::Az => "zone",
            Self::CloudProperties => "cloud properties",
            Self::Env => "environment",
            Self::Network => "network",
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dirty => "last update not completed",
            Self::Configuration => "configuration",
            Self::Packages => "packages",
            Self::Job => "jobs",
            Self::PersistentDisk => "persistent disk",
            Self::State => "state",
            Self::Tags => "tags",
            Self::Settings => "director settings",
        })
    }
}
