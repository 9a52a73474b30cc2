//! What is known of a machine: `machine.json` in its directory, and `init.json`, its first process.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use stolos_base::ids::AgentId;
use stolos_base::process::Process;
use stolos_cpi::{CloudProperties, DiskCid, Metadata, Networks, StemcellCid, VmCid};

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being made; a repeated call starts over.
    Creating,
    /// Whole.
    Ready,
    /// Being removed.
    Deleting,
}

/// Whether a machine should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It is started when it is found not running.
    On,
    /// It is left alone.
    Off,
}

/// The size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Cores; fractions are fine.
    pub cpu: f64,
    /// Memory in MiB.
    pub ram: u64,
    /// Ephemeral disk in MiB.
    #[serde(default)]
    pub ephemeral_disk_size: u64,
    /// The most processes and threads.
    #[serde(default = "Size::default_pids")]
    pub pids: u64,
}

impl Size {
    /// Enough for a node with 110 pods, too few for a fork bomb to matter.
    pub(crate) fn default_pids() -> u64 {
        16_384
    }
}

/// A machine's link into a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The network's name in the manifest.
    pub network: String,
    /// The segment.
    pub segment: String,
    /// The name of the host's end; empty until it is chosen.
    pub host_end: String,
    /// The name inside the machine.
    pub inner: String,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The length of the segment's prefix.
    pub prefix: u8,
    /// The host's address in the segment.
    pub gateway: Ipv4Addr,
    /// Whether the machine's default route goes there.
    pub is_default: bool,
    /// Name servers.
    pub dns: Vec<String>,
}

impl Link {
    /// The Ethernet address of an IP address: the same machine address always has the same one, so that no neighbour's cache
    /// is stale when a machine is replaced.
    #[must_use]
    pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
        let [a, b, c, d] = address.octets();
        [0x02, 0x73, a, b, c, d]
    }

    /// The segment's range, `A.B.C.D/N`.
    #[must_use]
    pub fn range(&self) -> String {
        ipnet::Ipv4Net::new(self.gateway, self.prefix)
            .map_or_else(|_| format!("{}/32", self.gateway), |net| net.trunc().to_string())
    }
}

/// `machine.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub cid: VmCid,
    /// Its key.
    pub agent_id: AgentId,
    /// How far it is.
    pub state: State,
    /// Whether it should run.
    pub power: Power,
    /// What it is made from.
    pub stemcell: StemcellCid,
    /// As asked for.
    pub cloud_properties: CloudProperties,
    /// As asked for.
    pub networks: Networks,
    /// Its size.
    pub size: Size,
    /// Its links.
    pub links: Vec<Link>,
    /// Its disks.
    #[serde(default)]
    pub disks: BTreeSet<DiskCid>,
    /// What the director recorded.
    #[serde(default)]
    pub metadata: Metadata,
}

/// `init.json`: the machine's first process as the host sees it. The boot id makes it unique for ever.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Init {
    #[serde(flatten)]
    pub(crate) process: Process,
    pub(crate) boot_id: String,
}

/// `disks/CID.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) cloud_properties: CloudProperties,
    #[serde(default)]
    pub(crate) metadata: Metadata,
}
