//! Calls to the infrastructure, with a limit on how many run at once.
//!
//! Calls that change something have an id that follows from flow and step: the journal of the runner below gives the
//! reply of a call that was made in an earlier life instead of making it again.

use std::sync::Arc;

use serde_json::{Map, Value};
use stolos_base::ids::AgentId;
use stolos_cpi::{Cpi, CreateVm, DiskCid, StemcellCid, VmCid};
use stolos_manifest::PersistentDisk;
use stolos_mbus::settings::DiskHint;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::deps::Infrastructure;
use crate::error::{Error, Result};

/// The infrastructure as steps use it.
pub(crate) struct Machines {
    below: Arc<dyn Infrastructure>,
    at_once: Semaphore,
}

/// A machine to be made.
pub(crate) struct NewMachine<'a> {
    pub(crate) agent: AgentId,
    /// The CPI's id of the stemcell.
    pub(crate) stemcell: &'a str,
    pub(crate) cloud_properties: Value,
    pub(crate) networks: Value,
    pub(crate) disks: &'a [String],
    /// Holds secrets.
    pub(crate) env: Value,
}

impl Machines {
    pub(crate) fn new(below: Arc<dyn Infrastructure>, at_once: usize) -> Self {
        Self {
            below,
            at_once: Semaphore::new(at_once.max(1)),
        }
    }

    /// Makes a machine; the same agent gives the same machine.
    pub(crate) async fn create_vm(&self, call: &str, new: &NewMachine<'_>) -> Result<String> {
        self.ask_for_vm(call, new)
            .await?
            .map_err(|error| Error::cpi("create_vm", error))
    }

    /// Asks for a machine in order to delete it. `None` when the CPI says that it cannot be made, because the host is full for instance: such an
    /// answer is given after what an earlier attempt left was taken down, so there is nothing to delete.
    pub(crate) async fn find_vm(&self, call: &str, new: &NewMachine<'_>) -> Result<Option<String>> {
        found(self.ask_for_vm(call, new).await?, "create_vm")
    }

    async fn ask_for_vm(
        &self,
        call: &str,
        new: &NewMachine<'_>,
    ) -> Result<std::result::Result<String, stolos_cpi::Error>> {
        let request = CreateVm {
            agent_id: new.agent,
            stemcell: StemcellCid::from(new.stemcell),
            cloud_properties: object(new.cloud_properties.clone()),
            networks: serde_json::from_value(new.networks.clone())
                .map_err(|error| Error::Bug(error.to_string()))?,
            disks: new.disks.iter().map(|cid| DiskCid::from(cid.as_str())).collect(),
            env: new.env.clone(),
        };
        let (cpi, _place) = self.journalled(call).await?;
        Ok(cpi.create_vm(&request).await.map(|(cid, _)| cid.0))
    }

    /// Deletes a machine; fine when there is none.
    pub(crate) async fn delete_vm(&self, call: &str, vm: &str) -> Result<()> {
        let (cpi, _place) = self.journalled(call).await?;
        gone(cpi.delete_vm(&VmCid::from(vm)).await, "delete_vm")
    }

    /// Whether the infrastructure has the machine now.
    pub(crate) async fn has_vm(&self, vm: &str) -> Result<bool> {
        let (cpi, _place) = self.plain().await?;
        cpi.has_vm(&VmCid::from(vm))
            .await
            .map_err(|error| Error::cpi("has_vm", error))
    }

    /// Notes what a machine is for. A CPI without notes does without.
    pub(crate) async fn set_vm_metadata(&self, vm: &str, metadata: Map<String, Value>) -> Result<()> {
        let (cpi, _place) = self.plain().await?;
        optional(
            cpi.set_vm_metadata(&VmCid::from(vm), &metadata).await,
            "set_vm_metadata",
        )
    }

    /// Makes a disk; the same call gives the same disk.
    pub(crate) async fn create_disk(&self, call: &str, disk: &PersistentDisk) -> Result<String> {
        self.ask_for_disk(call, disk)
            .await?
            .map_err(|error| Error::cpi("create_disk", error))
    }

    /// Asks for a disk in order to delete it, as [`Self::find_vm`].
    pub(crate) async fn find_disk(&self, call: &str, disk: &PersistentDisk) -> Result<Option<String>> {
        found(self.ask_for_disk(call, disk).await?, "create_disk")
    }

    async fn ask_for_disk(
        &self,
        call: &str,
        disk: &PersistentDisk,
    ) -> Result<std::result::Result<String, stolos_cpi::Error>> {
        let (cpi, _place) = self.journalled(call).await?;
        let properties = object(disk.cloud_properties.clone());
        let made = cpi.create_disk(disk.size_mib, &properties, None).await;
        Ok(made.map(|cid| cid.0))
    }

    /// Deletes a disk; fine when there is none.
    pub(crate) async fn delete_disk(&self, call: &str, disk: &str) -> Result<()> {
        let (cpi, _place) = self.journalled(call).await?;
        gone(cpi.delete_disk(&DiskCid::from(disk)).await, "delete_disk")
    }

    /// Attaches a disk and gives the hint by which the agent finds it.
    pub(crate) async fn attach_disk(&self, call: &str, vm: &str, disk: &str) -> Result<DiskHint> {
        let (cpi, _place) = self.journalled(call).await?;
        let hint = cpi
            .attach_disk(&VmCid::from(vm), &DiskCid::from(disk))
            .await
            .map_err(|error| Error::cpi("attach_disk", error))?;
        serde_json::from_value(hint).map_err(|source| Error::Stored {
            column: "disk hint",
            source,
        })
    }

    /// Detaches a disk; fine when it is not attached or the machine is gone.
    pub(crate) async fn detach_disk(&self, call: &str, vm: &str, disk: &str) -> Result<()> {
        let (cpi, _place) = self.journalled(call).await?;
        gone(
            cpi.detach_disk(&VmCid::from(vm), &DiskCid::from(disk)).await,
            "detach_disk",
        )
    }

    /// Imports a stemcell image. The same image gives the same id.
    pub(crate) async fn create_stemcell(
        &self,
        call: &str,
        image: &str,
        properties: &Map<String, Value>,
    ) -> Result<String> {
        let (cpi, _place) = self.journalled(call).await?;
        let made = cpi.create_stemcell(image, properties).await;
        made.map(|cid| cid.0)
            .map_err(|error| Error::cpi("create_stemcell", error))
    }

    /// Deletes a stemcell; fine when there is none.
    pub(crate) async fn delete_stemcell(&self, call: &str, stemcell: &str) -> Result<()> {
        let (cpi, _place) = self.journalled(call).await?;
        gone(
            cpi.delete_stemcell(&StemcellCid::from(stemcell)).await,
            "delete_stemcell",
        )
    }

    /// Formats of stemcells that the CPI takes.
    pub(crate) async fn stemcell_formats(&self) -> Result<Vec<String>> {
        let (cpi, _place) = self.plain().await?;
        let info = cpi.info().await.map_err(|error| Error::cpi("info", error))?;
        Ok(info.stemcell_formats)
    }

    async fn journalled(&self, call: &str) -> Result<(Arc<dyn Cpi>, SemaphorePermit<'_>)> {
        Ok((self.below.journalled(call), self.place().await?))
    }

    async fn plain(&self) -> Result<(Arc<dyn Cpi>, SemaphorePermit<'_>)> {
        Ok((self.below.plain(), self.place().await?))
    }

    async fn place(&self) -> Result<SemaphorePermit<'_>> {
        self.at_once
            .acquire()
            .await
            .map_err(|_| Error::Bug("the limit of CPI calls was closed".to_owned()))
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What cannot be made is not there either.
fn found(result: stolos_cpi::Result<String>, method: &'static str) -> Result<Option<String>> {
    use stolos_cpi::Kind::{NoDiskSpace, VmCreationFailed};
    match result {
        Err(error) if matches!(error.kind(), Some(VmCreationFailed | NoDiskSpace)) => Ok(None),
        other => other.map(Some).map_err(|error| Error::cpi(method, error)),
    }
}

/// What is not there is as good as gone.
fn gone(result: stolos_cpi::Result<()>, method: &'static str) -> Result<()> {
    use stolos_cpi::Kind::{DiskNotAttached, DiskNotFound, VmNotFound};
    match result {
        Err(error) if matches!(error.kind(), Some(VmNotFound | DiskNotFound | DiskNotAttached)) => Ok(()),
        other => other.map_err(|error| Error::cpi(method, error)),
    }
}

fn optional(result: stolos_cpi::Result<()>, method: &'static str) -> Result<()> {
    use stolos_cpi::Kind::{NotImplemented, NotSupported};
    match result {
        Err(error) if matches!(error.kind(), Some(NotImplemented | NotSupported)) => Ok(()),
        other => other.map_err(|error| Error::cpi(method, error)),
    }
}
