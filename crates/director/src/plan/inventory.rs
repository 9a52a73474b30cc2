//! What exists now, as the director's store knows it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use indexmap::IndexMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::{DefaultFor, PersistentDisk, ResolvedRelease};

/// What exists now of a deployment, and which addresses belong to others.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Instances of this deployment, in any order.
    pub instances: Vec<Existing>,
    /// Addresses of other deployments and of machines that are being deleted → who has them, for error messages.
    pub foreign: BTreeMap<IpAddr, String>,
}

/// An instance that exists.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Id; it outlives machines.
    pub id: InstanceId,
    /// Group.
    pub group: String,
    /// Index in the group.
    pub index: u32,
    /// Zone.
    pub az: Option<String>,
    /// Whether it is the bootstrap instance of its group.
    pub bootstrap: bool,
    /// Whether people asked to leave it alone.
    pub ignored: bool,
    /// What it should be doing.
    pub state: State,
    /// Network → address.
    pub addresses: BTreeMap<String, IpAddr>,
    /// Its machine, when it has one.
    pub machine: Option<ExistingMachine>,
    /// Its disks.
    pub disks: Vec<ExistingDisk>,
    /// What was last applied with success.
    pub applied: Option<Applied>,
    /// Whether its last update came to its end.
    pub update_completed: bool,
}

/// What an instance should be doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its jobs run.
    #[default]
    Started,
    /// Its machine is there, its jobs do not run.
    Stopped,
    /// It has no machine.
    Detached,
}

/// A machine that exists.
#[derive(Clone, Debug)]
pub struct ExistingMachine {
    /// The CPI's id.
    pub cid: String,
    /// Its agent.
    pub agent_id: AgentId,
    /// What it was made as.
    pub made_as: MachineSpec,
}

/// Everything that `create_vm` is given, except the agent id; a difference means a new machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Stemcell.
    pub stemcell: StemcellRef,
    /// Zone.
    pub az: Option<String>,
    /// For the CPI.
    pub cloud_properties: Value,
    /// Environment; variables by name.
    pub env: Value,
    /// Network → settings.
    pub networks: IndexMap<String, NetworkSettings>,
}

/// A stemcell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StemcellRef {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

/// The settings of one network of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkSettings {
    /// Address.
    pub ip: IpAddr,
    /// The subnet's range.
    pub range: IpNet,
    /// Default gateway of the subnet.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// What this network is the default for, sorted.
    pub default: Vec<DefaultFor>,
    /// For the CPI.
    pub cloud_properties: Value,
}

impl NetworkSettings {
    /// The settings in the shape that the CPI and the apply spec have (bosh.md section 3.5): `prefix` is a string,
    /// `default` names dns and gateway only.
    #[must_use]
    pub fn to_wire(&self) -> Value {
        let mut wire = json!({
            "type": "manual",
            "ip": self.ip,
            "prefix": self.range.prefix_len().to_string(),
            "netmask": self.range.netmask(),
            "cloud_properties": self.cloud_properties,
        });
        let default: Vec<_> = self
            .default
            .iter()
            .filter(|what| **what != DefaultFor::Addressable)
            .collect();
        if !default.is_empty() {
            wire["default"] = json!(default);
        }
        if !self.dns.is_empty() {
            wire["dns"] = json!(self.dns);
        }
        if let Some(gateway) = self.gateway {
            wire["gateway"] = json!(gateway);
        }
        wire
    }
}

/// A disk that exists.
#[derive(Clone, Debug)]
pub struct ExistingDisk {
    /// The CPI's id.
    pub cid: String,
    /// Whether it is the instance's disk; others are left from a migration that did not end.
    pub active: bool,
    /// What it was made as.
    pub disk: PersistentDisk,
}

/// What an agent was told to run, and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// What the instance should be doing.
    pub state: State,
    /// Jobs in the order of the manifest.
    pub jobs: Vec<AppliedJob>,
    /// Name → package.
    pub packages: BTreeMap<String, PackageRef>,
    /// Digest over all rendered templates.
    pub configuration_hash: String,
    /// Job → digest of its rendered templates.
    pub template_hashes: BTreeMap<String, String>,
    /// What can be changed without stopping anything.
    pub settings: Settings,
}

/// A job that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedJob {
    /// Name.
    pub name: String,
    /// Release.
    pub release: ResolvedRelease,
    /// Fingerprint.
    pub fingerprint: String,
}

/// A package that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageRef {
    /// The release that it is from.
    pub release: ResolvedRelease,
    /// Version.
    pub version: String,
    /// Digest.
    pub digest: String,
}

/// What can be changed without stopping anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Tags of the machine.
    pub tags: IndexMap<String, String>,
    /// Digest of what `update_settings` sends (trusted certificates, blob stores …); the caller's own.
    pub director: String,
}
