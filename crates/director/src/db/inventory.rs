//! Instances, their machines, disks and addresses.
//!
//! A row comes before what it stands for: a machine or disk without a `cid` was about to be made and may exist. Rows go
//! only after what they stand for is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::PersistentDisk;
use stolos_store::{AnyRow, AssertSqlSafe, Db, Fence, Tx, query};

use super::{begin_fenced, from_json, get, parse, to_json};
use crate::error::{Error, Result};
use crate::plan::{Applied, Existing, ExistingDisk, ExistingMachine, Inventory, MachineSpec, Plan, State};

/// An instance with everything that belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct InstanceRow {
    pub(crate) id: InstanceId,
    pub(crate) group: String,
    pub(crate) index: u32,
    pub(crate) az: Option<String>,
    pub(crate) bootstrap: bool,
    pub(crate) state: State,
    pub(crate) ignored: bool,
    pub(crate) applied: Option<Applied>,
    pub(crate) update_completed: bool,
    /// Network → address, as planned.
    pub(crate) addresses: BTreeMap<String, IpAddr>,
    /// Oldest first; one at most, unless a deploy was interrupted.
    pub(crate) vms: Vec<VmRow>,
    /// Oldest first.
    pub(crate) disks: Vec<DiskRow>,
}

/// A machine as kept.
#[derive(Clone, Debug)]
pub(crate) struct VmRow {
    pub(crate) agent: AgentId,
    pub(crate) made_as: MachineSpec,
    /// The CPI call that made it or was about to.
    pub(crate) call_id: String,
    pub(crate) created_at: i64,
    pub(crate) cid: Option<String>,
    /// Whether its agent has answered once.
    pub(crate) ready: bool,
}

/// A disk as kept.
#[derive(Clone, Debug)]
pub(crate) struct DiskRow {
    pub(crate) call_id: String,
    pub(crate) deployment: String,
    pub(crate) instance_name: String,
    pub(crate) made_as: PersistentDisk,
    pub(crate) cid: Option<String>,
    pub(crate) active: bool,
    pub(crate) orphaned_at: Option<i64>,
}

impl InstanceRow {
    /// `etcd/8c1f…`, as agents' errors name it.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.group, self.id)
    }

    /// The machine that exists.
    pub(crate) fn machine(&self) -> Option<(&VmRow, &str)> {
        self.vms
            .iter()
            .rev()
            .find_map(|vm| Some((vm, vm.cid.as_deref()?)))
    }

    pub(crate) fn existing(self) -> Existing {
        let machine = self.machine().map(|(vm, cid)| ExistingMachine {
            cid: cid.to_owned(),
            agent_id: vm.agent,
            made_as: vm.made_as.clone(),
        });
        Existing {
            id: self.id,
            group: self.group,
            index: self.index,
            az: self.az,
            bootstrap: self.bootstrap,
            ignored: self.ignored,
            state: self.state,
            addresses: self.addresses,
            machine,
            disks: self
                .disks
                .into_iter()
                .filter_map(|disk| {
                    Some(ExistingDisk {
                        cid: disk.cid?,
                        active: disk.active,
                        disk: disk.made_as,
                    })
                })
                .collect(),
            applied: self.applied,
            update_completed: self.update_completed,
        }
    }
}

/// All instances of a deployment, by group and index.
pub(crate) async fn instances(db: &Db, deployment: &str) -> Result<Vec<InstanceRow>> {
    let rows = query(
        "SELECT id, grp, idx, az, bootstrap, wanted_state, ignored, applied, update_completed
         FROM instances WHERE deployment = $1 ORDER BY grp, idx, id",
    )
    .bind(deployment)
    .fetch_all(db.read())
    .await?;
    let mut instances: Vec<InstanceRow> = rows.iter().map(instance).collect::<Result<_>>()?;
    let places: BTreeMap<InstanceId, usize> =
        instances.iter().enumerate().map(|(i, one)| (one.id, i)).collect();
    let place = |row: &AnyRow| -> Result<Option<usize>> {
        let id: InstanceId = parse("instance", "id", &get::<String>(row, "instance")?)?;
        Ok(places.get(&id).copied())
    };
    for row in query(
        "SELECT a.instance, a.network, a.address FROM ip_addresses a JOIN instances i ON i.id = a.instance
         WHERE i.deployment = $1 AND a.wanted = 1",
    )
    .bind(deployment)
    .fetch_all(db.read())
    .await?
    {
        if let Some(i) = place(&row)? {
            let address = parse("address", "address", &get::<String>(&row, "address")?)?;
            instances[i].addresses.insert(get(&row, "network")?, address);
        }
    }
    for row in query(
        "SELECT v.agent, v.instance, v.made_as, v.call_id, v.created_at, v.cid, v.ready
         FROM vms v JOIN instances i ON i.id = v.instance WHERE i.deployment = $1 ORDER BY v.created_at, v.agent",
    )
    .bind(deployment)
    .fetch_all(db.read())
    .await?
    {
        if let Some(i) = place(&row)? {
            instances[i].vms.push(VmRow {
                agent: parse("agent", "id", &get::<String>(&row, "agent")?)?,
                made_as: from_json("made_as", &get::<String>(&row, "made_as")?)?,
                call_id: get(&row, "call_id")?,
                created_at: get(&row, "created_at")?,
                cid: get(&row, "cid")?,
                ready: get::<i64>(&row, "ready")? != 0,
            });
        }
    }
    for row in query(
        "SELECT instance, call_id, deployment, instance_name, made_as, cid, active, orphaned_at FROM disks
         WHERE deployment = $1 AND instance IS NOT NULL ORDER BY created_at, call_id",
    )
    .bind(deployment)
    .fetch_all(db.read())
    .await?
    {
        if let Some(i) = place(&row)? {
            instances[i].disks.push(disk(&row)?);
        }
    }
    Ok(instances)
}

/// Deployment and name (`GROUP/ID`) of the instance whose machine has this agent.
pub(crate) async fn of_agent(db: &Db, agent: AgentId) -> Result<Option<(String, String)>> {
    let row = query("SELECT i.deployment, i.grp, i.id FROM vms v JOIN instances i ON i.id = v.instance WHERE v.agent = $1")
        .bind(agent.to_string())
        .fetch_optional(db.read())
        .await?;
    row.map(|row| {
        let (group, id): (String, String) = (get(&row, "grp")?, get(&row, "id")?);
        Ok((get(&row, "deployment")?, format!("{group}/{id}")))
    })
    .transpose()
}

/// The CPI's id of an agent's machine.
pub(crate) async fn cid_of(db: &Db, agent: AgentId) -> Result<Option<String>> {
    let row = query("SELECT cid FROM vms WHERE agent = $1 AND cid IS NOT NULL")
        .bind(agent.to_string())
        .fetch_optional(db.read())
        .await?;
    row.map(|row| get(&row, "cid")).transpose()
}

/// What the planner wants to know. `networks` are those that the deployment uses, with their subnets' ranges: an address belongs to one instance only, so what
/// instances on other networks have of these ranges is taken too.
pub(crate) async fn load(
    db: &Db,
    deployment: &str,
    networks: &[&str],
    ranges: &BTreeSet<String>,
) -> Result<Inventory> {
    let instances = instances(db, deployment).await?;
    let mut inventory = Inventory {
        instances: instances.into_iter().map(InstanceRow::existing).collect(),
        foreign: BTreeMap::new(),
    };
    if networks.is_empty() {
        return Ok(inventory);
    }
    let places: Vec<String> = (0..networks.len()).map(|i| format!("${}", i + 2)).collect();
    let first = networks.len() + 2;
    let likes: Vec<String> = (0..ranges.len())
        .map(|i| format!(" OR a.address LIKE ${}", first + i))
        .collect();
    let sql = format!(
        "SELECT a.address, i.deployment, i.grp, i.idx FROM ip_addresses a JOIN instances i ON i.id = a.instance
         WHERE (i.deployment <> $1 OR a.wanted = 0) AND (a.network IN ({}){})",
        places.join(", "),
        likes.concat()
    );
    let mut others = query(AssertSqlSafe(sql)).bind(deployment);
    for network in networks {
        others = others.bind(*network);
    }
    for range in ranges {
        others = others.bind(range.as_str());
    }
    for row in others.fetch_all(db.read()).await? {
        let address = parse("address", "address", &get::<String>(&row, "address")?)?;
        let (deployment, group): (String, String) = (get(&row, "deployment")?, get(&row, "grp")?);
        let index: i64 = get(&row, "idx")?;
        inventory.foreign.insert(
            address,
            format!("instance '{group}/{index}' of deployment '{deployment}'"),
        );
    }
    Ok(inventory)
}

/// A pattern that all addresses of a range have in common as texts, and some others too.
pub(crate) fn pattern(range: IpNet) -> String {
    match range {
        IpNet::V4(range) => {
            let whole = usize::from(range.prefix_len() / 8).min(3);
            let octets: Vec<String> = range.network().octets()[..whole]
                .iter()
                .map(|octet| format!("{octet}."))
                .collect();
            format!("{}%", octets.concat())
        }
        // The same address has several forms.
        IpNet::V6(_) => "%:%".to_owned(),
    }
}

/// Writes what a plan wants: instances and their addresses. Nothing has been made yet.
pub(crate) async fn want(tx: &mut Tx, plan: &Plan) -> Result<()> {
    for instance in &plan.instances {
        let placed = &instance.placed;
        query(
            "INSERT INTO instances (id, deployment, grp, idx, az, bootstrap, wanted_state, ignored, update_completed)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)
             ON CONFLICT (id) DO UPDATE SET grp = excluded.grp, idx = excluded.idx, az = excluded.az,
                 bootstrap = excluded.bootstrap, wanted_state = excluded.wanted_state",
        )
        .bind(placed.id.to_string())
        .bind(&plan.deployment)
        .bind(&placed.group)
        .bind(i64::from(placed.index))
        .bind(placed.az.as_deref())
        .bind(i64::from(placed.bootstrap))
        .bind(state_word(placed.state))
        .bind(i64::from(placed.ignored))
        .execute(tx.conn())
        .await?;
        query("UPDATE ip_addresses SET wanted = 0 WHERE instance = $1")
            .bind(placed.id.to_string())
            .execute(tx.conn())
            .await?;
    }
    for instance in &plan.instances {
        for (network, settings) in &instance.placed.networks {
            take_address(tx, &plan.deployment, instance.placed.id, network, settings.ip).await?;
        }
    }
    Ok(())
}

/// An address may come from another instance of the same deployment: the plan has that one's machine deleted first.
async fn take_address(
    tx: &mut Tx,
    deployment: &str,
    instance: InstanceId,
    network: &str,
    address: IpAddr,
) -> Result<()> {
    let changed = query(
        "INSERT INTO ip_addresses (address, network, instance, wanted) VALUES ($1, $2, $3, 1)
         ON CONFLICT (address) DO UPDATE SET network = excluded.network, instance = excluded.instance, wanted = 1
         WHERE ip_addresses.instance IN (SELECT id FROM instances WHERE deployment = $4)",
    )
    .bind(address.to_string())
    .bind(network)
    .bind(instance.to_string())
    .bind(deployment)
    .execute(tx.conn())
    .await?
    .rows_affected();
    if changed == 1 {
        return Ok(());
    }
    Err(Error::AddressTaken { address })
}

/// Notes that a machine is about to be made. Again for the same agent: nothing changes.
pub(crate) async fn intend_vm(
    db: &Db,
    fence: &Fence,
    agent: AgentId,
    instance: InstanceId,
    made_as: &MachineSpec,
    call_id: &str,
) -> Result<()> {
    let mut tx = begin_fenced(db, "intend a machine", fence).await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO vms (agent, instance, made_as, call_id, created_at, ready) VALUES ($1, $2, $3, $4, $5, 0)
         ON CONFLICT (agent) DO NOTHING",
    )
    .bind(agent.to_string())
    .bind(instance.to_string())
    .bind(to_json(made_as)?)
    .bind(call_id)
    .bind(now)
    .execute(tx.conn())
    .await?;
    mark_dirty_in(&mut tx, instance).await?;
    tx.commit().await?;
    Ok(())
}

/// Notes a machine's CID.
pub(crate) async fn vm_made(db: &Db, fence: &Fence, agent: AgentId, cid: &str) -> Result<()> {
    let mut tx = begin_fenced(db, "note a machine", fence).await?;
    query("UPDATE vms SET cid = $2 WHERE agent = $1")
        .bind(agent.to_string())
        .bind(cid)
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Notes that a machine's agent has answered.
pub(crate) async fn vm_ready(db: &Db, fence: &Fence, agent: AgentId) -> Result<()> {
    let mut tx = begin_fenced(db, "note an agent", fence).await?;
    query("UPDATE vms SET ready = 1 WHERE agent = $1")
        .bind(agent.to_string())
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Forgets a machine that is gone.
pub(crate) async fn vm_gone(db: &Db, fence: &Fence, agent: AgentId) -> Result<()> {
    let mut tx = begin_fenced(db, "forget a machine", fence).await?;
    query("DELETE FROM vms WHERE agent = $1")
        .bind(agent.to_string())
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// A disk that is about to be made.
pub(crate) struct NewDisk<'a> {
    pub(crate) call_id: &'a str,
    pub(crate) deployment: &'a str,
    pub(crate) instance: InstanceId,
    pub(crate) instance_name: &'a str,
    pub(crate) made_as: &'a PersistentDisk,
}

/// Notes that a disk is about to be made. Again for the same call: nothing changes.
pub(crate) async fn intend_disk(db: &Db, fence: &Fence, new: &NewDisk<'_>) -> Result<()> {
    let mut tx = begin_fenced(db, "intend a disk", fence).await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO disks (call_id, deployment, instance, instance_name, made_as, created_at, active)
         VALUES ($1, $2, $3, $4, $5, $6, 0) ON CONFLICT (call_id) DO NOTHING",
    )
    .bind(new.call_id)
    .bind(new.deployment)
    .bind(new.instance.to_string())
    .bind(new.instance_name)
    .bind(to_json(new.made_as)?)
    .bind(now)
    .execute(tx.conn())
    .await?;
    mark_dirty_in(&mut tx, new.instance).await?;
    tx.commit().await?;
    Ok(())
}

/// Notes a disk's CID. It becomes the instance's disk at once unless the instance has one, whose content has to be
/// brought over first.
pub(crate) async fn disk_made(db: &Db, fence: &Fence, call_id: &str, cid: &str, active: bool) -> Result<()> {
    let mut tx = begin_fenced(db, "note a disk", fence).await?;
    query("UPDATE disks SET cid = $2, active = $3 WHERE call_id = $1")
        .bind(call_id)
        .bind(cid)
        .bind(i64::from(active))
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Makes a disk the instance's only active one.
pub(crate) async fn activate_disk(db: &Db, fence: &Fence, instance: InstanceId, cid: &str) -> Result<()> {
    let mut tx = begin_fenced(db, "switch disks", fence).await?;
    query("UPDATE disks SET active = CASE WHEN cid = $2 THEN 1 ELSE 0 END WHERE instance = $1")
        .bind(instance.to_string())
        .bind(cid)
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Takes a disk from its instance without deleting it.
pub(crate) async fn orphan_disk(db: &Db, fence: &Fence, cid: &str) -> Result<()> {
    let mut tx = begin_fenced(db, "orphan a disk", fence).await?;
    let now = tx.now_millis();
    query("UPDATE disks SET instance = NULL, active = 0, orphaned_at = COALESCE(orphaned_at, $2) WHERE cid = $1")
        .bind(cid)
        .bind(now)
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Forgets a disk that is gone or was never made.
pub(crate) async fn disk_gone(db: &Db, fence: &Fence, call_id: &str) -> Result<()> {
    let mut tx = begin_fenced(db, "forget a disk", fence).await?;
    query("DELETE FROM disks WHERE call_id = $1")
        .bind(call_id)
        .execute(tx.conn())
        .await?;
    Ok(tx.commit().await?)
}

/// Disks without an instance: of one deployment, or all.
pub(crate) async fn orphans(db: &Db, deployment: Option<&str>) -> Result<Vec<DiskRow>> {
    query(
        "SELECT call_id, deployment, instance_name, made_as, cid, active, orphaned_at FROM disks
         WHERE instance IS NULL AND ($1 = '' OR deployment = $1) ORDER BY created_at, call_id",
    )
    .bind(deployment.unwrap_or_default())
    .fetch_all(db.read())
    .await?
    .iter()
    .map(disk)
    .collect()
}

/// The disk without an instance that has this CID.
pub(crate) async fn orphan(db: &Db, cid: &str) -> Result<Option<DiskRow>> {
    let row = query(
        "SELECT call_id, deployment, instance_name, made_as, cid, active, orphaned_at FROM disks
         WHERE instance IS NULL AND cid = $1",
    )
    .bind(cid)
    .fetch_optional(db.read())
    .await?;
    row.map(|row| disk(&row)).transpose()
}

/// CIDs of disks that are without an instance since before a time, in milliseconds since the Unix epoch, and of which no unfinished task of the kind is
/// about.
pub(crate) async fn old_orphans(tx: &mut Tx, before: i64, kind: &str, limit: i64) -> Result<Vec<String>> {
    query(
        "SELECT cid FROM disks WHERE instance IS NULL AND cid IS NOT NULL AND orphaned_at < $1
         AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.kind = $2 AND t.state IN ('queued', 'processing')
             AND t.description LIKE '%' || disks.cid)
         ORDER BY orphaned_at LIMIT $3",
    )
    .bind(before)
    .bind(kind)
    .bind(limit)
    .fetch_all(tx.conn())
    .await?
    .iter()
    .map(|row| get(row, "cid"))
    .collect()
}

/// Notes that an instance is being changed.
pub(crate) async fn mark_dirty(db: &Db, fence: &Fence, instance: InstanceId) -> Result<()> {
    let mut tx = begin_fenced(db, "begin to change an instance", fence).await?;
    mark_dirty_in(&mut tx, instance).await?;
    Ok(tx.commit().await?)
}

async fn mark_dirty_in(tx: &mut Tx, instance: InstanceId) -> Result<()> {
    query("UPDATE instances SET update_completed = 0 WHERE id = $1")
        .bind(instance.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes that an instance is what the plan wants. Addresses that only its former machine had are free now.
pub(crate) async fn complete(db: &Db, fence: &Fence, instance: InstanceId, applied: &Applied) -> Result<()> {
    let applied = to_json(applied)?;
    let mut tx = begin_fenced(db, "finish an instance", fence).await?;
    query("UPDATE instances SET applied = $2, update_completed = 1 WHERE id = $1")
        .bind(instance.to_string())
        .bind(&applied)
        .execute(tx.conn())
        .await?;
    free_old_addresses(&mut tx, instance).await?;
    Ok(tx.commit().await?)
}

async fn free_old_addresses(tx: &mut Tx, instance: InstanceId) -> Result<()> {
    query("DELETE FROM ip_addresses WHERE instance = $1 AND wanted = 0")
        .bind(instance.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Forgets an instance and frees its addresses; its machines and disks have to be gone or orphaned.
pub(crate) async fn delete_instance(db: &Db, fence: &Fence, instance: InstanceId) -> Result<()> {
    let mut tx = begin_fenced(db, "forget an instance", fence).await?;
    for sql in [
        "DELETE FROM ip_addresses WHERE instance = $1",
        "DELETE FROM instances WHERE id = $1",
    ] {
        query(sql).bind(instance.to_string()).execute(tx.conn()).await?;
    }
    Ok(tx.commit().await?)
}

fn instance(row: &AnyRow) -> Result<InstanceRow> {
    let applied: Option<String> = get(row, "applied")?;
    Ok(InstanceRow {
        id: parse("id", "id", &get::<String>(row, "id")?)?,
        group: get(row, "grp")?,
        index: u32::try_from(get::<i64>(row, "idx")?).unwrap_or(u32::MAX),
        az: get(row, "az")?,
        bootstrap: get::<i64>(row, "bootstrap")? != 0,
        state: state_of(&get::<String>(row, "wanted_state")?)?,
        ignored: get::<i64>(row, "ignored")? != 0,
        applied: applied.map(|text| from_json("applied", &text)).transpose()?,
        update_completed: get::<i64>(row, "update_completed")? != 0,
        addresses: BTreeMap::new(),
        vms: Vec::new(),
        disks: Vec::new(),
    })
}

fn disk(row: &AnyRow) -> Result<DiskRow> {
    Ok(DiskRow {
        call_id: get(row, "call_id")?,
        deployment: get(row, "deployment")?,
        instance_name: get(row, "instance_name")?,
        made_as: from_json("made_as", &get::<String>(row, "made_as")?)?,
        cid: get(row, "cid")?,
        active: get::<i64>(row, "active")? != 0,
        orphaned_at: get(row, "orphaned_at")?,
    })
}

/// The word for a state, as people and the wire have it.
pub(crate) fn state_word(state: State) -> &'static str {
    match state {
        State::Started => "started",
        State::Stopped => "stopped",
        State::Detached => "detached",
    }
}

fn state_of(word: &str) -> Result<State> {
    [State::Started, State::Stopped, State::Detached]
        .into_iter()
        .find(|state| state_word(*state) == word)
        .ok_or(Error::Store(stolos_store::Error::Corrupt {
            column: "wanted_state",
            expected: "state",
        }))
}
