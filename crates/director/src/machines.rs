//! Calls to the infrastructure, with a limit on how many run at once.
//!
//! Calls that change something have an id that follows from flow and step: the journal of the runner below gives the
//! reply of a call that was made in an earlier life instead of making it again.
//!
//! The limit is there for the host, which makes one machine as fast as eight but not eighty; it is no queue in which one deployment stands in
//! the way of others (`docs/design/0010-one-bad-cluster.md`): a flow has at most half of the places, and a call that takes long, which waits
//! for something rather than works, gives its place to the next one while it goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Map, Value};
use stolos_base::ids::{AgentId, FlowId};
use stolos_cpi::{Cpi, CreateVm, DiskCid, StemcellCid, VmCid};
use stolos_manifest::PersistentDisk;
use stolos_mbus::settings::DiskHint;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::deps::Infrastructure;
use crate::error::{Error, Result};

/// A call that has run for so long keeps no place any more. Making a machine takes a second; this is several times the slowest seen on a busy
/// host, so that the limit holds for calls that work.
const LONG_CALL: Duration = Duration::from_secs(5);

/// The infrastructure.
pub(crate) struct Machines {
    below: Arc<dyn Infrastructure>,
    at_once: Arc<Semaphore>,
    /// The places that one flow may have.
    share: usize,
    /// The shares of flows that have calls now.
    shares: Mutex<HashMap<FlowId, Weak<Semaphore>>>,
}

/// The infrastructure as the steps of one flow use it.
pub(crate) struct Calls<'a> {
    machines: &'a Machines,
    share: Arc<Semaphore>,
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
            at_once: Arc::new(Semaphore::new(at_once.max(1))),
            share: at_once.div_ceil(2).max(1),
            shares: Mutex::default(),
        }
    }

    /// Calls of a flow.
    pub(crate) fn of(&self, flow: FlowId) -> Calls<'_> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.get(&flow).and_then(Weak::upgrade).unwrap_or_else(|| {
            shares.retain(|_, share| share.strong_count() > 0);
            let share = Arc::new(Semaphore::new(self.share));
            shares.insert(flow, Arc::downgrade(&share));
            share
        });
        Calls {
            machines: self,
            share,
        }
    }
}

impl Calls<'_> {
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
        let cpi = self.journalled(call);
        let made = self.run(cpi.create_vm(&request)).await?;
        Ok(made.map(|(cid, _)| cid.0))
    }

    /// Deletes a machine; fine when there is none.
    pub(crate) async fn delete_vm(&self, call: &str, vm: &str) -> Result<()> {
        let (cpi, vm) = (self.journalled(call), VmCid::from(vm));
        gone(self.run(cpi.delete_vm(&vm)).await?, "delete_vm")
    }

    /// Whether the infrastructure has the machine now.
    pub(crate) async fn has_vm(&self, vm: &str) -> Result<bool> {
        let (cpi, vm) = (self.plain(), VmCid::from(vm));
        self.run(cpi.has_vm(&vm))
            .await?
            .map_err(|error| Error::cpi("has_vm", error))
    }

    /// Whether the infrastructure has the disk now; `None` where it cannot say.
    pub(crate) async fn has_disk(&self, disk: &str) -> Result<Option<bool>> {
        use stolos_cpi::Kind::{NotImplemented, NotSupported};
        let (cpi, disk) = (self.plain(), DiskCid::from(disk));
        match self.run(cpi.has_disk(&disk)).await? {
            Err(error) if matches!(error.kind(), Some(NotImplemented | NotSupported)) => Ok(None),
            other => other.map(Some).map_err(|error| Error::cpi("has_disk", error)),
        }
    }

    /// The disks that are attached to a machine; `None` from a CPI that cannot tell.
    pub(crate) async fn disks_of(&self, vm: &str) -> Result<Option<Vec<String>>> {
        use stolos_cpi::Kind::{NotImplemented, NotSupported};
        let (cpi, vm) = (self.plain(), VmCid::from(vm));
        match self.run(cpi.get_disks(&vm)).await? {
            Ok(disks) => Ok(Some(disks.into_iter().map(|cid| cid.0).collect())),
            Err(error) if matches!(error.kind(), Some(NotImplemented | NotSupported)) => Ok(None),
            Err(error) => Err(Error::cpi("get_disks", error)),
        }
    }

    /// Notes what a machine is for. A CPI without notes does without.
    pub(crate) async fn set_vm_metadata(&self, vm: &str, metadata: Map<String, Value>) -> Result<()> {
        let (cpi, vm) = (self.plain(), VmCid::from(vm));
        optional(
            self.run(cpi.set_vm_metadata(&vm, &metadata)).await?,
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
        let (cpi, properties) = (self.journalled(call), object(disk.cloud_properties.clone()));
        let made = self
            .run(cpi.create_disk(disk.size_mib, &properties, None))
            .await?;
        Ok(made.map(|cid| cid.0))
    }

    /// Deletes a disk; fine when there is none.
    pub(crate) async fn delete_disk(&self, call: &str, disk: &str) -> Result<()> {
        let (cpi, disk) = (self.journalled(call), DiskCid::from(disk));
        gone(self.run(cpi.delete_disk(&disk)).await?, "delete_disk")
    }

    /// Attaches a disk and gives the hint by which the agent finds it.
    pub(crate) async fn attach_disk(&self, call: &str, vm: &str, disk: &str) -> Result<DiskHint> {
        let (cpi, vm, disk) = (self.journalled(call), VmCid::from(vm), DiskCid::from(disk));
        let hint = self
            .run(cpi.attach_disk(&vm, &disk))
            .await?
            .map_err(|error| Error::cpi("attach_disk", error))?;
        serde_json::from_value(hint).map_err(|source| Error::Stored {
            column: "disk hint",
            source,
        })
    }

    /// Detaches a disk; fine when it is not attached or the machine is gone.
    pub(crate) async fn detach_disk(&self, call: &str, vm: &str, disk: &str) -> Result<()> {
        let (cpi, vm, disk) = (self.journalled(call), VmCid::from(vm), DiskCid::from(disk));
        gone(self.run(cpi.detach_disk(&vm, &disk)).await?, "detach_disk")
    }

    /// Imports a stemcell image. The same image gives the same id.
    pub(crate) async fn create_stemcell(
        &self,
        call: &str,
        image: &str,
        properties: &Map<String, Value>,
    ) -> Result<String> {
        let cpi = self.journalled(call);
        let made = self.run(cpi.create_stemcell(image, properties)).await?;
        made.map(|cid| cid.0)
            .map_err(|error| Error::cpi("create_stemcell", error))
    }

    /// Deletes a stemcell; fine when there is none.
    pub(crate) async fn delete_stemcell(&self, call: &str, stemcell: &str) -> Result<()> {
        let (cpi, stemcell) = (self.journalled(call), StemcellCid::from(stemcell));
        gone(self.run(cpi.delete_stemcell(&stemcell)).await?, "delete_stemcell")
    }

    /// Formats of stemcells that the CPI takes.
    pub(crate) async fn stemcell_formats(&self) -> Result<Vec<String>> {
        let cpi = self.plain();
        let info = self
            .run(cpi.info())
            .await?
            .map_err(|error| Error::cpi("info", error))?;
        Ok(info.stemcell_formats)
    }

    fn journalled(&self, call: &str) -> Arc<dyn Cpi> {
        self.machines.below.journalled(call)
    }

    fn plain(&self) -> Arc<dyn Cpi> {
        self.machines.below.plain()
    }

    /// Runs a call when there is a place for it.
    async fn run<T>(&self, call: impl Future<Output = T>) -> Result<T> {
        let _own = place(&self.share).await?;
        let place = place(&self.machines.at_once).await?;
        let mut call = std::pin::pin!(call);
        match tokio::time::timeout(LONG_CALL, &mut call).await {
            Ok(done) => Ok(done),
            Err(_) => {
                drop(place);
                Ok(call.await)
            }
        }
    }
}

async fn place(limit: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let closed = |_| Error::Bug("the limit of CPI calls was closed".to_owned());
    limit.clone().acquire_owned().await.map_err(closed)
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
