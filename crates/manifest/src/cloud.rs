//! The typed cloud config (bosh.md section 5.2).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ip::IpSet;
use stolos_document::{Located, Node, Place};

/// What machines can be made of: zones, types, networks.
#[derive(Clone, Debug)]
pub struct CloudConfig {
    /// Availability zones.
    pub azs: Vec<Az>,
    /// Types of machines.
    pub vm_types: Vec<VmType>,
    /// Additions to types of machines.
    pub vm_extensions: Vec<VmType>,
    /// Types of persistent disks.
    pub disk_types: Vec<DiskType>,
    /// Networks; manual ones only.
    pub networks: Vec<Network>,
    /// How packages are compiled; absent: only compiled releases can be used.
    pub compilation: Option<Compilation>,
}

/// An availability zone.
#[derive(Clone, Debug)]
pub struct Az {
    /// Name.
    pub name: String,
    /// Which CPI; absent: the only one.
    pub cpi: Option<String>,
    /// For the CPI.
    pub cloud_properties: Node,
}

/// A type of machine, or an addition to one.
#[derive(Clone, Debug)]
pub struct VmType {
    /// Name.
    pub name: String,
    /// For the CPI.
    pub cloud_properties: Node,
}

/// A type of persistent disk.
#[derive(Clone, Debug)]
pub struct DiskType {
    /// Name.
    pub name: String,
    /// Size in MiB.
    pub size_mib: u64,
    /// For the CPI.
    pub cloud_properties: Node,
}

/// A manual network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Name.
    pub name: String,
    /// Its subnets; they do not overlap.
    pub subnets: Vec<Subnet>,
    /// Where it begins.
    pub place: Place,
}

/// A subnet of a manual network.
#[derive(Clone, Debug)]
pub struct Subnet {
    /// All its addresses.
    pub range: IpNet,
    /// Default gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Never handed out: the reserved ones, network, broadcast and gateway addresses.
    pub reserved: IpSet,
    /// Handed out by name only.
    pub statics: IpSet,
    /// Zones; empty: all.
    pub azs: Vec<Located<String>>,
    /// For the CPI.
    pub cloud_properties: Node,
}

/// How packages are compiled.
#[derive(Clone, Debug)]
pub struct Compilation {
    /// At most so many machines at once.
    pub workers: u32,
    /// Zone.
    pub az: Option<Located<String>>,
    /// Type of machine; excludes `cloud_properties`.
    pub vm_type: Option<Located<String>>,
    /// For the CPI, when there is no type.
    pub cloud_properties: Node,
    /// Network.
    pub network: Located<String>,
    /// Whether one machine compiles several packages.
    pub reuse_compilation_vms: bool,
    /// Environment of the machines.
    pub env: Node,
}
