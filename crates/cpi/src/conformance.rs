//! What every CPI has to do, checked by doing it.

use serde_json::json;
use stolos_base::IdSource;
use stolos_base::ids::AgentId;

use crate::Cpi;
use crate::error::{Kind, Result};
use crate::types::{
    CloudProperties, CreateVm, DiskCid, Networks, Size, SnapshotCid, StemcellCid, VmCid, VmResources,
};

/// What the suite needs to know about the infrastructure.
#[derive(Clone, Debug)]
pub struct Env {
    /// A stemcell image that boots.
    pub image: String,
    /// Networks for two machines that run at once.
    pub networks: [Networks; 2],
    /// Size of the machines.
    pub resources: VmResources,
    /// Size of a small disk.
    pub disk: Size,
    /// Where agent ids come from.
    pub ids: IdSource,
}

/// Runs the suite.
///
/// # Errors
/// The first call that failed and should not have.
///
/// # Panics
/// When an answer is not what it should be: this is for tests.
pub async fn run(cpi: &dyn Cpi, env: &Env) -> Result<()> {
    let info = cpi.info().await?;
    assert!(info.api_version >= 2, "version 2 of the API is spoken");
    let stemcell = stemcells(cpi, env).await?;
    let first = machines(cpi, env, &stemcell).await?;
    disks(cpi, env, &stemcell, &first).await?;
    cpi.delete_vm(&first).await?;
    cpi.delete_vm(&first).await?;
    assert!(!cpi.has_vm(&first).await?, "a deleted machine is gone");
    cpi.delete_stemcell(&stemcell).await?;
    cpi.delete_stemcell(&stemcell).await?;
    Ok(())
}

async fn stemcells(cpi: &dyn Cpi, env: &Env) -> Result<StemcellCid> {
    let none = CloudProperties::new();
    let stemcell = cpi.create_stemcell(&env.image, &none).await?;
    assert_eq!(
        cpi.create_stemcell(&env.image, &none).await?,
        stemcell,
        "the same image gives the same stemcell"
    );
    Ok(stemcell)
}

async fn machines(cpi: &dyn Cpi, env: &Env, stemcell: &StemcellCid) -> Result<VmCid> {
    let create = request(cpi, env, stemcell, 0).await?;
    let (vm, networks) = cpi.create_vm(&create).await?;
    assert_eq!(networks.len(), create.networks.len(), "the networks come back");
    let (again, _) = cpi.create_vm(&create).await?;
    assert_eq!(again, vm, "the same agent id gives the same machine");
    assert!(cpi.has_vm(&vm).await?);
    let note = json!({"director": "conformance", "job": "test", "index": "0"});
    cpi.set_vm_metadata(&vm, note.as_object().expect("an object"))
        .await?;
    cpi.reboot_vm(&vm).await?;
    assert!(cpi.has_vm(&vm).await?, "a rebooted machine is still there");
    assert!(cpi.get_disks(&vm).await?.is_empty());

    let unknown = VmCid::from("vm-00000000-0000-0000-0000-000000000000");
    assert!(!cpi.has_vm(&unknown).await?);
    cpi.delete_vm(&unknown).await?;
    let error = cpi
        .reboot_vm(&unknown)
        .await
        .expect_err("an unknown machine cannot be rebooted");
    assert_eq!(error.kind(), Some(Kind::VmNotFound), "{error}");
    let bad = CreateVm {
        stemcell: StemcellCid::from("sc-unknown"),
        ..request(cpi, env, stemcell, 1).await?
    };
    let error = cpi.create_vm(&bad).await.expect_err("an unknown stemcell");
    assert!(error.kind().is_some(), "{error}");
    Ok(vm)
}

async fn disks(cpi: &dyn Cpi, env: &Env, stemcell: &StemcellCid, vm: &VmCid) -> Result<()> {
    let none = CloudProperties::new();
    let disk = cpi.create_disk(env.disk, &none, Some(vm)).await?;
    assert!(cpi.has_disk(&disk).await?);
    let hint = cpi.attach_disk(vm, &disk).await?;
    assert!(!hint.is_null(), "an attached disk has a hint");
    assert_eq!(
        cpi.attach_disk(vm, &disk).await?,
        hint,
        "attaching again is as good"
    );
    assert_eq!(cpi.get_disks(vm).await?, std::slice::from_ref(&disk));
    cpi.set_disk_metadata(
        &disk,
        json!({"deployment": "test"}).as_object().expect("an object"),
    )
    .await?;
    let error = cpi
        .delete_disk(&disk)
        .await
        .expect_err("an attached disk is not deleted");
    assert!(error.kind().is_some(), "{error}");

    let snapshot = cpi.snapshot_disk(&disk, &none).await?;
    cpi.delete_snapshot(&snapshot).await?;
    cpi.delete_snapshot(&snapshot).await?;
    cpi.delete_snapshot(&SnapshotCid::from("snap-unknown")).await?;

    cpi.detach_disk(vm, &disk).await?;
    cpi.detach_disk(vm, &disk).await?;
    assert!(cpi.get_disks(vm).await?.is_empty());
    cpi.resize_disk(&disk, env.disk + 16).await?;

    // A machine that is deleted lets go of its disks, and another one gets them.
    cpi.attach_disk(vm, &disk).await?;
    let (other, _) = cpi.create_vm(&request(cpi, env, stemcell, 1).await?).await?;
    let error = cpi
        .attach_disk(&other, &disk)
        .await
        .expect_err("a disk is attached once");
    assert!(error.kind().is_some(), "{error}");
    cpi.detach_disk(vm, &disk).await?;
    cpi.attach_disk(&other, &disk).await?;
    cpi.delete_vm(&other).await?;
    assert!(cpi.has_disk(&disk).await?, "disks outlive machines");
    cpi.detach_disk(&other, &disk).await?;
    cpi.delete_disk(&disk).await?;
    cpi.delete_disk(&disk).await?;
    assert!(!cpi.has_disk(&disk).await?);

    let unknown = DiskCid::from("disk-unknown");
    assert!(!cpi.has_disk(&unknown).await?);
    cpi.delete_disk(&unknown).await?;
    let error = cpi.attach_disk(vm, &unknown).await.expect_err("an unknown disk");
    assert_eq!(error.kind(), Some(Kind::DiskNotFound), "{error}");
    Ok(())
}

async fn request(cpi: &dyn Cpi, env: &Env, stemcell: &StemcellCid, which: usize) -> Result<CreateVm> {
    Ok(CreateVm {
        agent_id: AgentId::new(&env.ids),
        stemcell: stemcell.clone(),
        cloud_properties: cpi.calculate_vm_cloud_properties(&env.resources).await?,
        networks: env.networks[which].clone(),
        disks: vec![],
        env: json!({"bosh": {}}),
    })
}
