//! Statements by which a machine that is newer than the database takes the place of the one that is recorded.

use std::net::IpAddr;

use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::PersistentDisk;
use stolos_store::{Db, query};

use super::health::{EventRow, insert_event};
use super::{get, parse, to_json};
use crate::error::Result;
use crate::plan::MachineSpec;

/// A warning, as BOSH counts: somebody should look, nothing is broken.
const SEVERITY: i64 = 4;

/// What is recorded of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) instance: InstanceId,
    pub(crate) cid: Option<String>,
}

/// What is recorded of an agent, if it is known.
pub(crate) async fn recorded(db: &Db, agent: AgentId) -> Result<Option<Recorded>> {
    let row = query("SELECT instance, cid FROM vms WHERE agent = $1")
        .bind(agent.to_string())
        .fetch_optional(db.read())
        .await?;
    row.map(|row| {
        Ok(Recorded {
            instance: parse("instance", "id", &get::<String>(&row, "instance")?)?,
            cid: get(&row, "cid")?,
        })
    })
    .transpose()
}

/// Whether a task works on the deployment, or waits to.
pub(crate) async fn is_busy(db: &Db, deployment: &str) -> Result<bool> {
    let row = query("SELECT 1 AS there FROM tasks WHERE deployment = $1 AND ended_at IS NULL LIMIT 1")
        .bind(deployment)
        .fetch_optional(db.read())
        .await?;
    Ok(row.is_some())
}

/// A machine that takes its place among the rows.
pub(crate) struct Adopted<'a> {
    pub(crate) deployment: &'a str,
    pub(crate) agent: AgentId,
    pub(crate) cid: &'a str,
    pub(crate) instance: InstanceId,
    /// The instance, when it is not known either.
    pub(crate) new_instance: Option<NewInstance<'a>>,
    pub(crate) made_as: &'a MachineSpec,
    /// Rows that it replaces: agent and CID of machines that are gone.
    pub(crate) gone: &'a [(AgentId, String)],
    pub(crate) disk: Option<AdoptedDisk<'a>>,
    /// What its agent has applied.
    pub(crate) generation: Option<u64>,
}

/// An instance that was made after the backup.
pub(crate) struct NewInstance<'a> {
    pub(crate) group: &'a str,
    pub(crate) index: u32,
    pub(crate) az: Option<&'a str>,
    pub(crate) bootstrap: bool,
    pub(crate) addresses: &'a [(String, IpAddr)],
}

/// The disk of an adopted machine, when it is another than the recorded one.
pub(crate) struct AdoptedDisk<'a> {
    pub(crate) cid: &'a str,
    pub(crate) instance_name: &'a str,
    pub(crate) made_as: &'a PersistentDisk,
    /// The recorded disk that it takes the place of.
    pub(crate) instead_of: Option<&'a str>,
    /// Whether that one is gone; else it becomes an orphan.
    pub(crate) is_gone: bool,
    /// The row that was written before the disk was made, when it is this one.
    pub(crate) call_id: Option<&'a str>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The rows say so now.
    Done,
    /// A task works on the deployment, or what was read is no longer so: to be looked at again.
    Later,
    /// An address of it belongs to another instance.
    AddressTaken(IpAddr),
}

/// Writes everything or nothing. `busy_is_fine` for a task that works on the deployment itself and has not decided anything yet.
pub(crate) async fn adopt(db: &Db, new: &Adopted<'_>, busy_is_fine: bool) -> Result<Outcome> {
    let mut tx = db.begin_background("adopt a machine").await?;
    if !busy_is_fine {
        let busy = query("SELECT 1 AS there FROM tasks WHERE deployment = $1 AND ended_at IS NULL LIMIT 1")
            .bind(new.deployment)
            .fetch_optional(tx.conn())
            .await?;
        if busy.is_some() {
            return Ok(Outcome::Later);
        }
    }
    let (instance, now) = (new.instance.to_string(), tx.now_millis());
    if let Some(made) = &new.new_instance {
        query(
            "INSERT INTO instances (id, deployment, grp, idx, az, bootstrap, wanted_state, ignored, update_completed)
             VALUES ($1, $2, $3, $4, $5, $6, 'started', 0, 0) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&instance)
        .bind(new.deployment)
        .bind(made.group)
        .bind(i64::from(made.index))
        .bind(made.az)
        .bind(i64::from(made.bootstrap))
        .execute(tx.conn())
        .await?;
        for (network, address) in made.addresses {
            let taken = query(
                "INSERT INTO ip_addresses (address, network, instance, wanted) VALUES ($1, $2, $3, 1)
                 ON CONFLICT (address) DO NOTHING",
            )
            .bind(address.to_string())
            .bind(network)
            .bind(&instance)
            .execute(tx.conn())
            .await?
            .rows_affected();
            if taken == 0 {
                return Ok(Outcome::AddressTaken(*address));
            }
        }
    }
    for (agent, cid) in new.gone {
        let removed = query("DELETE FROM vms WHERE agent = $1 AND cid = $2 AND instance = $3")
            .bind(agent.to_string())
            .bind(cid)
            .bind(&instance)
            .execute(tx.conn())
            .await?
            .rows_affected();
        if removed == 0 {
            return Ok(Outcome::Later);
        }
    }
    query(
        "INSERT INTO vms (agent, instance, made_as, call_id, created_at, cid, ready) VALUES ($1, $2, $3, $4, $5, $6, 1)
         ON CONFLICT (agent) DO UPDATE SET cid = excluded.cid, ready = 1",
    )
    .bind(new.agent.to_string())
    .bind(&instance)
    .bind(to_json(new.made_as)?)
    .bind(format!("adopted {}", new.agent))
    .bind(now)
    .bind(new.cid)
    .execute(tx.conn())
    .await?;
    if let Some(disk) = &new.disk {
        if let Some(old) = disk.instead_of {
            let sql = if disk.is_gone {
                "DELETE FROM disks WHERE cid = $1 AND instance = $2"
            } else {
                "UPDATE disks SET instance = NULL, active = 0, orphaned_at = COALESCE(orphaned_at, $3)
                 WHERE cid = $1 AND instance = $2 AND $3 = $3"
            };
            let statement = query(sql).bind(old).bind(&instance);
            let statement = if disk.is_gone {
                statement
            } else {
                statement.bind(now)
            };
            if statement.execute(tx.conn()).await?.rows_affected() == 0 {
                return Ok(Outcome::Later);
            }
        }
        let call_id = match disk.call_id {
            Some(call_id) => call_id.to_owned(),
            None => format!("adopted {}", disk.cid),
        };
        query(
            "INSERT INTO disks (call_id, deployment, instance, instance_name, made_as, created_at, cid, active)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 1)
             ON CONFLICT (call_id) DO UPDATE SET cid = excluded.cid, active = 1, instance = excluded.instance",
        )
        .bind(call_id)
        .bind(new.deployment)
        .bind(&instance)
        .bind(disk.instance_name)
        .bind(to_json(disk.made_as)?)
        .bind(now)
        .bind(disk.cid)
        .execute(tx.conn())
        .await?;
    }
    // The next deploy tells the machine everything again.
    query("UPDATE instances SET update_completed = 0 WHERE id = $1")
        .bind(&instance)
        .execute(tx.conn())
        .await?;
    raise_in(&mut tx, new.deployment, new.generation).await?;
    let gone: Vec<&str> = new.gone.iter().map(|(_, cid)| cid.as_str()).collect();
    let event = EventRow {
        instance: Some(instance),
        ..event(
            "adopt",
            new.cid,
            new.deployment,
            match gone[..] {
                [] => "a machine that is newer than the database was adopted".to_owned(),
                _ => format!(
                    "a machine that is newer than the database was adopted in the place of {}",
                    gone.join(", ")
                ),
            },
        )
    };
    insert_event(&mut tx, &event).await?;
    tx.commit().await?;
    Ok(Outcome::Done)
}

/// Notes that a machine was heard of that nobody knows.
pub(crate) async fn note_unknown(db: &Db, cid: &str, deployment: &str, reason: &str) -> Result<()> {
    let mut tx = db.begin_background("note an unknown machine").await?;
    let text = format!("a machine that the database does not know is left alone: {reason}");
    insert_event(&mut tx, &event("unknown", cid, deployment, text)).await?;
    Ok(tx.commit().await?)
}

fn event(action: &str, cid: &str, deployment: &str, message: String) -> EventRow {
    EventRow {
        user: "director".to_owned(),
        action: action.to_owned(),
        object_type: "vm".to_owned(),
        object_name: cid.to_owned(),
        deployment: Some(deployment.to_owned()),
        severity: SEVERITY,
        message,
        ..EventRow::default()
    }
}

/// Has the deployment's next plan get a number above what its agents have applied.
pub(crate) async fn raise(db: &Db, deployment: &str, generation: u64) -> Result<()> {
    let mut tx = db.begin_background("raise a generation").await?;
    raise_in(&mut tx, deployment, Some(generation)).await?;
    Ok(tx.commit().await?)
}

async fn raise_in(tx: &mut stolos_store::Tx, deployment: &str, generation: Option<u64>) -> Result<()> {
    let Some(generation) = generation.and_then(|generation| i64::try_from(generation).ok()) else {
        return Ok(());
    };
    query("UPDATE deployments SET generation = $2 WHERE name = $1 AND generation < $2")
        .bind(deployment)
        .bind(generation)
        .execute(tx.conn())
        .await?;
    Ok(())
}
