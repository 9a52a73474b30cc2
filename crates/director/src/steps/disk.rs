//! Persistent disks: made, attached, mounted, brought over, given up.

use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::PersistentDisk;
use stolos_mbus::AgentClient;

use super::Attempt;
use crate::db::inventory::{self, NewDisk};
use crate::error::Result;

/// Where a disk is to be.
pub(crate) struct Place<'a> {
    pub(crate) agent: AgentId,
    pub(crate) vm: &'a str,
    /// `group/id`.
    pub(crate) instance: &'a str,
}

/// Makes a disk; gives its CID. Repeated, it gives the same one.
pub(crate) async fn create<T>(
    attempt: &Attempt<T>,
    deployment: &str,
    instance: InstanceId,
    instance_name: &str,
    disk: &PersistentDisk,
    active: bool,
) -> Result<String> {
    let app = &attempt.app;
    let fence = attempt.ctx.fence();
    let call_id = attempt.call_id("create_disk");
    let new = NewDisk {
        call_id: &call_id,
        deployment,
        instance,
        instance_name,
        made_as: disk,
    };
    inventory::intend_disk(&app.db, fence, &new).await?;
    attempt.status("creating the disk");
    let cid = attempt.machines().create_disk(&call_id, disk).await?;
    inventory::disk_made(&app.db, fence, &call_id, &cid, active).await?;
    Ok(cid)
}

/// Attaches a disk, tells the agent where it is, and has it mounted.
pub(crate) async fn attach<T>(attempt: &Attempt<T>, place: &Place<'_>, cid: &str) -> Result<()> {
    attempt.status("attaching the disk");
    let call = attempt.call_id(&format!("attach_disk {cid} {}", place.vm));
    let hint = attempt.machines().attach_disk(&call, place.vm, cid).await?;
    let agent = attempt.agent(place.agent, place.instance);
    agent.add_persistent_disk(cid, hint).await?;
    agent.mount_disk(cid).await?;
    Ok(())
}

/// Unmounts a disk, has the agent forget it, and detaches it. One that is none of these is as good as done.
pub(crate) async fn detach<T>(attempt: &Attempt<T>, place: &Place<'_>, cid: &str) -> Result<()> {
    attempt.status("detaching the disk");
    let agent = attempt.agent(place.agent, place.instance);
    unmount(&agent, cid).await?;
    let call = attempt.call_id(&format!("detach_disk {cid} {}", place.vm));
    attempt.machines().detach_disk(&call, place.vm, cid).await
}

/// Unmounts a disk if it is mounted and has the agent forget it.
pub(crate) async fn unmount(agent: &AgentClient, cid: &str) -> Result<()> {
    if agent.list_disk().await?.iter().any(|mounted| mounted == cid) {
        agent.unmount_disk(cid).await?;
    }
    agent.remove_persistent_disk(cid).await?;
    Ok(())
}

/// Brings the content of the instance's disk over to a new one and switches to it; gives the old one up.
///
/// Guarantees: at every moment the active disk in the records is whole; the old one is kept as an orphan.
pub(crate) async fn migrate<T>(
    attempt: &Attempt<T>,
    place: &Place<'_>,
    instance: InstanceId,
    from: &str,
    to: &str,
) -> Result<()> {
    let agent = attempt.agent(place.agent, place.instance);
    let is_mounted =
        async |cid: &str| Ok::<_, crate::error::Error>(agent.list_disk().await?.iter().any(|one| one == cid));
    // A second life of this step finds the new one mounted, and the old one too unless the content is over already.
    if !is_mounted(to).await? {
        attach(attempt, place, to).await?;
    }
    if is_mounted(from).await? {
        attempt.status("bringing the disk's content over");
        agent.migrate_disk().await?;
    }
    inventory::activate_disk(&attempt.app.db, attempt.ctx.fence(), instance, to).await?;
    detach(attempt, place, from).await?;
    inventory::orphan_disk(&attempt.app.db, attempt.ctx.fence(), from).await
}
