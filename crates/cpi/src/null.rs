//! A CPI without machines: it keeps books. For tests of everything above the seam.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::IdSource;
use stolos_base::ids::AgentId;

use crate::Cpi;
use crate::error::{Error, Kind, Result};
use crate::types::{
    CloudProperties, CreateVm, DiskCid, Info, Metadata, Networks, Size, SnapshotCid, StemcellCid, VmCid,
    VmResources,
};

/// What a [`NullCpi`] holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Books {
    /// Stemcells.
    pub stemcells: BTreeSet<StemcellCid>,
    /// Machines with what they were asked for.
    pub vms: BTreeMap<VmCid, CreateVm>,
    /// Disks: size, and the machine that they are attached to.
    pub disks: BTreeMap<DiskCid, (Size, Option<VmCid>)>,
    /// Snapshots.
    pub snapshots: BTreeSet<SnapshotCid>,
    /// Names of the methods called, in order.
    pub calls: Vec<String>,
}

/// The CPI. Clones share the books.
#[derive(Clone, Debug, Default)]
pub struct NullCpi {
    books: Arc<Mutex<Books>>,
    ids: IdSource,
}

impl NullCpi {
    /// With empty books.
    #[must_use]
    pub fn new(ids: IdSource) -> Self {
        Self {
            books: Arc::default(),
            ids,
        }
    }

    /// With the books of another one.
    #[must_use]
    pub fn with_books(ids: IdSource, books: Books) -> Self {
        Self {
            books: Arc::new(Mutex::new(books)),
            ids,
        }
    }

    /// A copy of the books.
    #[must_use]
    pub fn books(&self) -> Books {
        self.lock().clone()
    }

    /// The machine of an agent.
    #[must_use]
    pub fn vm_of(&self, agent: AgentId) -> VmCid {
        VmCid(format!("vm-{agent}"))
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T: Send + 'static>(
        &self,
        method: &str,
        act: impl FnOnce(&mut Books) -> Result<T>,
    ) -> BoxFuture<'_, Result<T>> {
        let mut books = self.lock();
        books.calls.push(method.to_owned());
        Box::pin(ready(act(&mut books)))
    }
}

fn need_vm(books: &Books, vm: &VmCid) -> Result<()> {
    if books.vms.contains_key(vm) {
        Ok(())
    } else {
        Err(Error::new(Kind::VmNotFound, format!("VM `{vm}` not found")))
    }
}

fn disk<'a>(books: &'a mut Books, disk: &DiskCid) -> Result<&'a mut (Size, Option<VmCid>)> {
    books
        .disks
        .get_mut(disk)
        .ok_or_else(|| Error::new(Kind::DiskNotFound, format!("disk `{disk}` not found")))
}

impl Cpi for NullCpi {
    fn info(&self) -> BoxFuture<'_, Result<Info>> {
        Box::pin(ready(Ok(Info {
            stemcell_formats: vec!["stolos-rootfs".to_owned(), "null".to_owned()],
            api_version: 2,
        })))
    }

    fn create_stemcell<'a>(
        &'a self,
        image: &'a str,
        _: &'a CloudProperties,
    ) -> BoxFuture<'a, Result<StemcellCid>> {
        self.with("create_stemcell", |books| {
            let digest = short_name(image.as_bytes());
            let cid = StemcellCid(format!("sc-{digest}"));
            books.stemcells.insert(cid.clone());
            Ok(cid)
        })
    }

    fn delete_stemcell<'a>(&'a self, stemcell: &'a StemcellCid) -> BoxFuture<'a, Result<()>> {
        self.with("delete_stemcell", |books| {
            books.stemcells.remove(stemcell);
            Ok(())
        })
    }

    fn create_vm<'a>(&'a self, request: &'a CreateVm) -> BoxFuture<'a, Result<(VmCid, Networks)>> {
        let vm = self.vm_of(request.agent_id);
        self.with("create_vm", |books| {
            if !books.stemcells.contains(&request.stemcell) {
                return Err(Error::new(
                    Kind::CloudError,
                    format!("stemcell `{}` not found", request.stemcell),
                ));
            }
            books.vms.insert(vm.clone(), request.clone());
            Ok((vm, request.networks.clone()))
        })
    }

    fn delete_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        self.with("delete_vm", |books| {
            books.vms.remove(vm);
            for (_, attached) in books.disks.values_mut() {
                attached.take_if(|there| there == vm);
            }
            Ok(())
        })
    }

    fn has_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<bool>> {
        self.with("has_vm", |books| Ok(books.vms.contains_key(vm)))
    }

    fn reboot_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        self.with("reboot_vm", |books| need_vm(books, vm))
    }

    fn set_vm_metadata<'a>(&'a self, vm: &'a VmCid, _: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        self.with("set_vm_metadata", |books| need_vm(books, vm))
    }

    fn calculate_vm_cloud_properties<'a>(
        &'a self,
        r: &'a VmResources,
    ) -> BoxFuture<'a, Result<CloudProperties>> {
        let value = json!({"cpu": r.cpu, "ram": r.ram, "ephemeral_disk_size": r.ephemeral_disk_size});
        self.with("calculate_vm_cloud_properties", |_| {
            Ok(value.as_object().cloned().unwrap_or_default())
        })
    }

    fn create_disk<'a>(
        &'a self,
        size: Size,
        _: &'a CloudProperties,
        _: Option<&'a VmCid>,
    ) -> BoxFuture<'a, Result<DiskCid>> {
        let cid = DiskCid(format!("disk-{}", self.ids.next()));
        self.with("create_disk", |books| {
            books.disks.insert(cid.clone(), (size, None));
            Ok(cid)
        })
    }

    fn delete_disk<'a>(&'a self, cid: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        self.with("delete_disk", |books| match books.disks.get(cid) {
            Some((_, Some(vm))) => Err(Error::new(
                Kind::CloudError,
                format!("disk `{cid}` is attached to `{vm}`"),
            )),
            _ => {
                books.disks.remove(cid);
                Ok(())
            }
        })
    }

    fn has_disk<'a>(&'a self, cid: &'a DiskCid) -> BoxFuture<'a, Result<bool>> {
        self.with("has_disk", |books| Ok(books.disks.contains_key(cid)))
    }

    fn attach_disk<'a>(&'a self, vm: &'a VmCid, cid: &'a DiskCid) -> BoxFuture<'a, Result<Value>> {
        self.with("attach_disk", |books| {
            need_vm(books, vm)?;
            let (_, attached) = disk(books, cid)?;
            match attached {
                Some(other) if other != vm => Err(Error::new(
                    Kind::CloudError,
                    format!("disk `{cid}` is attached to `{other}`"),
                )),
                _ => {
                    *attached = Some(vm.clone());
                    Ok(json!({"path": format!("/dev/stolos/{cid}")}))
                }
            }
        })
    }

    fn detach_disk<'a>(&'a self, vm: &'a VmCid, cid: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        self.with("detach_disk", |books| {
            if let Some((_, attached)) = books.disks.get_mut(cid) {
                attached.take_if(|there| there == vm);
            }
            Ok(())
        })
    }

    fn get_disks<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<Vec<DiskCid>>> {
        self.with("get_disks", |books| {
            need_vm(books, vm)?;
            let attached = books
                .disks
                .iter()
                .filter(|(_, (_, there))| there.as_ref() == Some(vm));
            Ok(attached.map(|(cid, _)| cid.clone()).collect())
        })
    }

    fn set_disk_metadata<'a>(&'a self, cid: &'a DiskCid, _: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        self.with("set_disk_metadata", |books| disk(books, cid).map(drop))
    }

    fn resize_disk<'a>(&'a self, cid: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>> {
        self.with("resize_disk", |books| {
            let (old, attached) = disk(books, cid)?;
            if attached.is_some() || size < *old {
                return Err(Error::new(
                    Kind::CloudError,
                    format!("disk `{cid}` can only grow, and only detached"),
                ));
            }
            *old = size;
            Ok(())
        })
    }

    fn snapshot_disk<'a>(&'a self, cid: &'a DiskCid, _: &'a Metadata) -> BoxFuture<'a, Result<SnapshotCid>> {
        let snapshot = SnapshotCid(format!("snap-{}", self.ids.next()));
        self.with("snapshot_disk", |books| {
            disk(books, cid)?;
            books.snapshots.insert(snapshot.clone());
            Ok(snapshot)
        })
    }

    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>> {
        self.with("delete_snapshot", |books| {
            books.snapshots.remove(snapshot);
            Ok(())
        })
    }
}

/// A short name for an image path: stable, not a digest of content.
fn short_name(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}
