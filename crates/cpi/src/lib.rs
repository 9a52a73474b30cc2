//! The seam to an infrastructure: BOSH's CPI, version 2.
//!
//! Owns: the trait [`Cpi`], the JSON that a CPI executable reads and writes ([`wire`]), [`Runner`], which calls an
//! executable and keeps a journal of the calls, the conformance suite that every CPI passes ([`conformance`]) and a CPI
//! without machines for tests ([`null`]). Never does: anything to a host.
//!
//! Invariants: every method can be repeated; `create_vm` with the same agent id gives the same machine; deleting what is
//! not there succeeds.

pub mod conformance;
mod error;
mod journal;
pub mod null;
mod runner;
mod types;
pub mod wire;

use futures::future::BoxFuture;
use serde_json::Value;

pub use error::{Error, Kind, Result};
pub use runner::{Runner, RunnerConfig};
pub use types::{
    CloudProperties, CreateVm, DiskCid, Info, Metadata, Network, Networks, Size, SnapshotCid, StemcellCid,
    VmCid, VmResources,
};

/// The methods of the CPI API, version 2 (reference: docs-bosh, cpi-api-v2).
pub trait Cpi: Send + Sync {
    /// What the CPI can do.
    fn info(&self) -> BoxFuture<'_, Result<Info>>;
    /// Imports a stemcell image from a file on this host. The same image gives the same CID.
    fn create_stemcell<'a>(
        &'a self,
        image: &'a str,
        properties: &'a CloudProperties,
    ) -> BoxFuture<'a, Result<StemcellCid>>;
    /// Deletes a stemcell; fine when there is none.
    fn delete_stemcell<'a>(&'a self, stemcell: &'a StemcellCid) -> BoxFuture<'a, Result<()>>;
    /// Makes a machine and starts it. The networks come back as the machine has them.
    fn create_vm<'a>(&'a self, request: &'a CreateVm) -> BoxFuture<'a, Result<(VmCid, Networks)>>;
    /// Deletes a machine; its persistent disks stay. Fine when there is none.
    fn delete_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>>;
    /// Whether there is such a machine.
    fn has_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<bool>>;
    /// Restarts a machine with its disks and addresses.
    fn reboot_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>>;
    /// Notes what a machine is for.
    fn set_vm_metadata<'a>(&'a self, vm: &'a VmCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<()>>;
    /// Cloud properties of a machine of that size.
    fn calculate_vm_cloud_properties<'a>(
        &'a self,
        resources: &'a VmResources,
    ) -> BoxFuture<'a, Result<CloudProperties>>;
    /// Makes an empty disk. `vm` is a hint where it will be used.
    fn create_disk<'a>(
        &'a self,
        size: Size,
        properties: &'a CloudProperties,
        vm: Option<&'a VmCid>,
    ) -> BoxFuture<'a, Result<DiskCid>>;
    /// Deletes a disk; fine when there is none.
    fn delete_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>>;
    /// Whether there is such a disk.
    fn has_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<bool>>;
    /// Attaches a disk to a running machine and gives the hint by which its agent finds it.
    fn attach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<Value>>;
    /// Detaches a disk; fine when it is not attached or the machine is gone.
    fn detach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>>;
    /// The disks attached to a machine.
    fn get_disks<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<Vec<DiskCid>>>;
    /// Notes what a disk is for.
    fn set_disk_metadata<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<()>>;
    /// Makes a detached disk larger.
    fn resize_disk<'a>(&'a self, disk: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>>;
    /// Copies a disk's present content.
    fn snapshot_disk<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<SnapshotCid>>;
    /// Deletes a snapshot; fine when there is none.
    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>>;
}
