//! What goes into and comes out of a CPI.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stolos_base::ids::AgentId;

/// Declares the name of a thing that a CPI made. Opaque to everybody else.
macro_rules! cids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    )*};
}
cids! {
    /// A stemcell.
    StemcellCid,
    /// A machine.
    VmCid,
    /// A persistent disk.
    DiskCid,
    /// A snapshot of a disk.
    SnapshotCid
}

/// Properties that only the CPI understands.
pub type CloudProperties = Map<String, Value>;
/// Notes about a machine or disk.
pub type Metadata = Map<String, Value>;
/// Networks of a machine by name.
pub type Networks = IndexMap<String, Network>;
/// A size in MiB.
pub type Size = u64;

/// One network of a machine. What we do not read is kept, because it has to come back as it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// `manual`, `dynamic` or `vip`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Netmask, dotted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netmask: Option<String>,
    /// Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<String>>,
    /// For what this network is the machine's default: `dns`, `gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Vec<String>>,
    /// Properties of the network.
    #[serde(default)]
    pub cloud_properties: CloudProperties,
    /// The rest.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What `info` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Formats of stemcells that it takes.
    pub stemcell_formats: Vec<String>,
    /// The newest version of the API that it speaks.
    pub api_version: u32,
}

/// A machine in the manifest's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResources {
    /// MiB.
    pub ram: u64,
    /// Processors.
    pub cpu: u64,
    /// MiB.
    pub ephemeral_disk_size: u64,
}

/// What `create_vm` is asked for.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateVm {
    /// Key of the machine: asked twice with the same, it is made once.
    pub agent_id: AgentId,
    /// What it boots from.
    pub stemcell: StemcellCid,
    /// Its size and the like.
    pub cloud_properties: CloudProperties,
    /// Its networks.
    pub networks: Networks,
    /// Disks that will be attached, as a hint where to make it.
    pub disks: Vec<DiskCid>,
    /// `env` of the agent's settings. It holds secrets (the bus's client key): never log it, and it is not serialized.
    #[serde(skip)]
    pub env: Value,
}

impl std::fmt::Debug for CreateVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateVm")
            .field("agent_id", &self.agent_id)
            .field("stemcell", &self.stemcell)
            .field("cloud_properties", &self.cloud_properties)
            .field("networks", &self.networks)
            .field("disks", &self.disks)
            .field("env", &"<redacted>")
            .finish()
    }
}
