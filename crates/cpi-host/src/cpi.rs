//! The CPI's methods, each on a thread where it may block.

use std::sync::Arc;

use camino::Utf8Path;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use stolos_cpi::{
    CloudProperties, Cpi, CreateVm, DiskCid, Error, Info, Kind, Metadata, Networks, Result, Size,
    SnapshotCid, StemcellCid, VmCid, VmResources,
};

use crate::host::Host;
use crate::stemcells::FORMAT;

/// The CPI for this host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HostCpi {
    host: Host,
    call: Option<Arc<str>>,
}

impl HostCpi {
    /// The CPI of an instance.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self { host, call: None }
    }

    /// The same CPI for the call with this id: what it makes is named after the id, so that it is made once.
    #[must_use]
    pub fn call(&self, id: &str) -> Self {
        Self {
            host: self.host.clone(),
            call: Some(id.into()),
        }
    }

    fn run<T: Send + 'static>(
        &self,
        kind: Kind,
        act: impl FnOnce(&Host) -> crate::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let host = self.host.clone();
        Box::pin(async move {
            let result = tokio::task::spawn_blocking(move || act(&host)).await;
            match result {
                Ok(result) => result.map_err(|error| error.into_cpi(kind)),
                Err(error) => Err(Error::new(Kind::CpiError, error.to_string())),
            }
        })
    }
}

impl Cpi for HostCpi {
    fn info(&self) -> BoxFuture<'_, Result<Info>> {
        Box::pin(async {
            Ok(Info {
                stemcell_formats: vec![FORMAT.to_owned()],
                api_version: 2,
            })
        })
    }

    fn create_stemcell<'a>(
        &'a self,
        image: &'a str,
        _: &'a CloudProperties,
    ) -> BoxFuture<'a, Result<StemcellCid>> {
        let image = Utf8Path::new(image).to_owned();
        self.run(Kind::CloudError, move |host| host.create_stemcell(&image))
    }

    fn delete_stemcell<'a>(&'a self, stemcell: &'a StemcellCid) -> BoxFuture<'a, Result<()>> {
        let stemcell = stemcell.clone();
        self.run(Kind::CloudError, move |host| host.delete_stemcell(&stemcell))
    }

    fn create_vm<'a>(&'a self, request: &'a CreateVm) -> BoxFuture<'a, Result<(VmCid, Networks)>> {
        let request = request.clone();
        self.run(Kind::VmCreationFailed, move |host| host.create_vm(&request))
    }

    fn delete_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        let vm = vm.clone();
        self.run(Kind::CloudError, move |host| host.delete_vm(&vm))
    }

    fn has_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<bool>> {
        let vm = vm.clone();
        self.run(Kind::CloudError, move |host| host.has_vm(&vm))
    }

    fn reboot_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        let vm = vm.clone();
        self.run(Kind::CloudError, move |host| host.reboot_vm(&vm))
    }

    fn set_vm_metadata<'a>(&'a self, vm: &'a VmCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        let (vm, metadata) = (vm.clone(), metadata.clone());
        self.run(Kind::CloudError, move |host| host.set_vm_metadata(&vm, &metadata))
    }

    fn calculate_vm_cloud_properties<'a>(
        &'a self,
        asked: &'a VmResources,
    ) -> BoxFuture<'a, Result<CloudProperties>> {
        let value =
            json!({"cpu": asked.cpu, "ram": asked.ram, "ephemeral_disk_size": asked.ephemeral_disk_size});
        Box::pin(async move { Ok(value.as_object().cloned().unwrap_or_default()) })
    }

    fn create_disk<'a>(
        &'a self,
        size: Size,
        properties: &'a CloudProperties,
        _: Option<&'a VmCid>,
    ) -> BoxFuture<'a, Result<DiskCid>> {
        let (properties, call) = (properties.clone(), self.call.clone());
        self.run(Kind::CloudError, move |host| {
            host.create_disk(size, &properties, call.as_deref())
        })
    }

    fn delete_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        let disk = disk.clone();
        self.run(Kind::CloudError, move |host| host.delete_disk(&disk))
    }

    fn has_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<bool>> {
        let disk = disk.clone();
        self.run(Kind::CloudError, move |host| Ok(host.has_disk(&disk)))
    }

    fn attach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<Value>> {
        let (vm, disk) = (vm.clone(), disk.clone());
        self.run(Kind::CloudError, move |host| host.attach_disk(&vm, &disk))
    }

    fn detach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        let (vm, disk) = (vm.clone(), disk.clone());
        self.run(Kind::CloudError, move |host| host.detach_disk(&vm, &disk))
    }

    fn get_disks<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<Vec<DiskCid>>> {
        let vm = vm.clone();
        self.run(Kind::CloudError, move |host| host.get_disks(&vm))
    }

    fn set_disk_metadata<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<()>> {
        let (disk, metadata) = (disk.clone(), metadata.clone());
        self.run(Kind::CloudError, move |host| {
            host.set_disk_metadata(&disk, &metadata)
        })
    }

    fn resize_disk<'a>(&'a self, disk: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>> {
        let disk = disk.clone();
        self.run(Kind::CloudError, move |host| host.resize_disk(&disk, size))
    }

    fn snapshot_disk<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<SnapshotCid>> {
        let (disk, metadata, call) = (disk.clone(), metadata.clone(), self.call.clone());
        self.run(Kind::CloudError, move |host| {
            host.snapshot_disk(&disk, &metadata, call.as_deref())
        })
    }

    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>> {
        let snapshot = snapshot.clone();
        self.run(Kind::CloudError, move |host| host.delete_snapshot(&snapshot))
    }
}
