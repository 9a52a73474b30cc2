//! What the health monitor keeps: repairs, events, and whether resurrection is on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stolos_api::director::TaskState;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_store::{AnyRow, AssertSqlSafe, Db, Tx, query, sequence};

use super::{get, parse};
use crate::error::Result;

/// Events of the director's own that are kept, as in BOSH.
const EVENTS_KEPT: i64 = 10_000;
/// Events that machines caused, of all and of each: they go beside the director's own, so that no machine washes those out, nor another machine's.
const MACHINES_EVENTS_KEPT: i64 = 5_000;
const MACHINE_EVENTS_KEPT: i64 = 200;
/// What is kept of all is looked at once in so many events.
const TRIMMED_EVERY: i64 = 50;
/// What the monitor is called in tasks and events, as in BOSH.
pub(crate) const USER: &str = "health_monitor";
/// The name of the number sequence of events.
const SEQUENCE: &str = "events";

/// A machine that should be alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) agent: AgentId,
    pub(crate) deployment: String,
}

/// A repair that was begun.
#[derive(Clone, Debug)]
pub(crate) struct RepairRow {
    pub(crate) task: i64,
    pub(crate) deployment: String,
    pub(crate) instance: InstanceId,
    pub(crate) why: String,
    pub(crate) created_at: i64,
    pub(crate) state: TaskState,
}

/// Something that happened, in BOSH's shape (`GET /events`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRow {
    pub(crate) id: i64,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: i64,
    pub(crate) user: String,
    pub(crate) action: String,
    pub(crate) object_type: String,
    pub(crate) object_name: String,
    pub(crate) task: Option<i64>,
    pub(crate) deployment: Option<String>,
    pub(crate) instance: Option<String>,
    /// 1 alert, 2 critical, 3 error, 4 warning (bosh.md section 2.8); 0 where it is no alert.
    pub(crate) severity: i64,
    pub(crate) message: String,
    /// The machine (`GROUP/ID`) that caused it by what it said; `None` for what the director saw or did itself.
    pub(crate) source: Option<String>,
}

impl EventRow {
    /// An alert of a kind.
    pub(crate) fn alert(kind: &str) -> Self {
        Self {
            user: USER.to_owned(),
            action: "create".to_owned(),
            object_type: "alert".to_owned(),
            object_name: kind.to_owned(),
            ..Self::default()
        }
    }
}

/// Machines whose agents have answered once, of instances that should run.
pub(crate) async fn watched(db: &Db, agents: Option<&[AgentId]>) -> Result<Vec<Watched>> {
    let base = "SELECT v.agent, i.deployment FROM vms v JOIN instances i ON i.id = v.instance
         WHERE v.ready = 1 AND v.cid IS NOT NULL AND i.wanted_state = 'started' AND i.ignored = 0";
    let rows = match agents {
        None => query(base).fetch_all(db.read()).await?,
        Some(agents) => {
            let places: Vec<String> = (1..=agents.len()).map(|i| format!("${i}")).collect();
            let sql = format!("{base} AND v.agent IN ({})", places.join(", "));
            let mut of_agents = query(AssertSqlSafe(sql));
            for agent in agents {
                of_agents = of_agents.bind(agent.to_string());
            }
            of_agents.fetch_all(db.read()).await?
        }
    };
    rows.iter()
        .map(|row| {
            Ok(Watched {
                agent: parse("agent", "id", &get::<String>(row, "agent")?)?,
                deployment: get(row, "deployment")?,
            })
        })
        .collect()
}

/// The agent of a machine by the CPI's id.
pub(crate) async fn agent_of(db: &Db, cid: &str) -> Result<Option<AgentId>> {
    let row = query("SELECT agent FROM vms WHERE cid = $1")
        .bind(cid)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| parse("agent", "id", &get::<String>(&row, "agent")?))
        .transpose()
}

/// Notes a repair beside its task.
pub(crate) async fn insert_repair(
    tx: &mut Tx,
    task: i64,
    deployment: &str,
    instances: &BTreeMap<InstanceId, String>,
) -> Result<()> {
    let now = tx.now_millis();
    for (instance, why) in instances {
        query(
            "INSERT INTO repairs (task, deployment, instance, why, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(task)
        .bind(deployment)
        .bind(instance.to_string())
        .bind(why)
        .bind(now)
        .execute(tx.conn())
        .await?;
    }
    Ok(())
}

/// Repairs that began after a time, in milliseconds since the Unix epoch, oldest first.
pub(crate) async fn repairs_since(db: &Db, since: i64) -> Result<Vec<RepairRow>> {
    query(
        "SELECT r.task, r.deployment, r.instance, r.why, r.created_at, t.state
         FROM repairs r JOIN tasks t ON t.id = r.task WHERE r.created_at > $1 ORDER BY r.task, r.instance",
    )
    .bind(since)
    .fetch_all(db.read())
    .await?
    .iter()
    .map(|row| {
        Ok(RepairRow {
            task: get(row, "task")?,
            deployment: get(row, "deployment")?,
            instance: parse("instance", "id", &get::<String>(row, "instance")?)?,
            why: get(row, "why")?,
            created_at: get(row, "created_at")?,
            state: super::tasks::state_of(&get::<String>(row, "state")?)?,
        })
    })
    .collect()
}

/// Forgets repairs that began before a time.
pub(crate) async fn forget_repairs(tx: &mut Tx, before: i64) -> Result<()> {
    query("DELETE FROM repairs WHERE created_at < $1")
        .bind(before)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Writes an event; the oldest ones go.
pub(crate) async fn insert_event(tx: &mut Tx, event: &EventRow) -> Result<i64> {
    let id = sequence::next(tx, SEQUENCE).await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO events (id, at, username, action, object_type, object_name, task, deployment, instance, severity, message, source)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(id)
    .bind(now)
    .bind(&event.user)
    .bind(&event.action)
    .bind(&event.object_type)
    .bind(&event.object_name)
    .bind(event.task)
    .bind(event.deployment.as_deref())
    .bind(event.instance.as_deref())
    .bind(event.severity)
    .bind(&event.message)
    .bind(event.source.as_deref())
    .execute(tx.conn())
    .await?;
    if let Some(source) = &event.source {
        query(
            "DELETE FROM events WHERE source = $1 AND id <=
             (SELECT id FROM events WHERE source = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
        )
        .bind(source)
        .bind(MACHINE_EVENTS_KEPT)
        .execute(tx.conn())
        .await?;
    }
    if id % TRIMMED_EVERY == 0 {
        trim(tx).await?;
    }
    Ok(id)
}

/// Forgets the oldest events of each kind of source.
async fn trim(tx: &mut Tx) -> Result<()> {
    for (sql, kept) in [
        (
            "DELETE FROM events WHERE source IS NULL AND id <=
             (SELECT id FROM events WHERE source IS NULL ORDER BY id DESC LIMIT 1 OFFSET $1)",
            EVENTS_KEPT,
        ),
        (
            "DELETE FROM events WHERE source IS NOT NULL AND id <=
             (SELECT id FROM events WHERE source IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET $1)",
            MACHINES_EVENTS_KEPT,
        ),
    ] {
        query(sql).bind(kept).execute(tx.conn()).await?;
    }
    Ok(())
}

/// What `GET /events` filters by.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFilter {
    /// Only older ones than this id.
    pub(crate) before_id: Option<i64>,
    /// Only newer ones than this id, oldest first.
    pub(crate) after_id: Option<i64>,
    pub(crate) deployment: Option<String>,
    pub(crate) instance: Option<String>,
    pub(crate) object_type: Option<String>,
    pub(crate) object_name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) task: Option<i64>,
    /// Only before, and only after a time, in milliseconds since the Unix epoch.
    pub(crate) before: Option<i64>,
    pub(crate) after: Option<i64>,
    pub(crate) limit: i64,
}

/// Events, newest first unless those after an id are asked for.
pub(crate) async fn events(db: &Db, filter: &EventFilter) -> Result<Vec<EventRow>> {
    let order = if filter.after_id.is_some() { "ASC" } else { "DESC" };
    let sql = format!(
        "SELECT id, at, username, action, object_type, object_name, task, deployment, instance, severity, message, source FROM events
         WHERE id < $1 AND id > $2 AND ($3 = '' OR deployment = $3) AND ($4 = '' OR instance = $4)
           AND ($5 = '' OR object_type = $5) AND ($6 = '' OR object_name = $6) AND ($7 = '' OR username = $7)
           AND ($8 = '' OR action = $8) AND ($9 = -1 OR task = $9) AND at < $10 AND at > $11 ORDER BY id {order} LIMIT $12"
    );
    let text = |wanted: &Option<String>| wanted.clone().unwrap_or_default();
    query(AssertSqlSafe(sql))
        .bind(filter.before_id.unwrap_or(i64::MAX))
        .bind(filter.after_id.unwrap_or(0))
        .bind(text(&filter.deployment))
        .bind(text(&filter.instance))
        .bind(text(&filter.object_type))
        .bind(text(&filter.object_name))
        .bind(text(&filter.user))
        .bind(text(&filter.action))
        .bind(filter.task.unwrap_or(-1))
        .bind(filter.before.unwrap_or(i64::MAX))
        .bind(filter.after.unwrap_or(-1))
        .bind(filter.limit)
        .fetch_all(db.read())
        .await?
        .iter()
        .map(event)
        .collect()
}

fn event(row: &AnyRow) -> Result<EventRow> {
    Ok(EventRow {
        id: get(row, "id")?,
        at: get(row, "at")?,
        user: get(row, "username")?,
        action: get(row, "action")?,
        object_type: get(row, "object_type")?,
        object_name: get(row, "object_name")?,
        task: get(row, "task")?,
        deployment: get(row, "deployment")?,
        instance: get(row, "instance")?,
        severity: get(row, "severity")?,
        message: get(row, "message")?,
        source: get(row, "source")?,
    })
}

/// A machine that answers and is not well, as people know it.
#[derive(Clone, Debug)]
pub(crate) struct Unwell {
    pub(crate) agent: AgentId,
    pub(crate) deployment: String,
    pub(crate) group: String,
    pub(crate) index: i64,
    pub(crate) instance: String,
    pub(crate) cid: Option<String>,
}

/// The instances of agents, of those that should run.
pub(crate) async fn instances_of(db: &Db, agents: &[AgentId]) -> Result<Vec<Unwell>> {
    let mut found = Vec::new();
    for some in agents.chunks(500) {
        let places: Vec<String> = (1..=some.len()).map(|i| format!("${i}")).collect();
        let sql = format!(
            "SELECT v.agent, v.cid, i.deployment, i.grp, i.idx, i.id FROM vms v JOIN instances i ON i.id = v.instance
             WHERE i.wanted_state = 'started' AND v.agent IN ({}) ORDER BY i.deployment, i.grp, i.idx",
            places.join(", ")
        );
        let mut asked = query(AssertSqlSafe(sql));
        for agent in some {
            asked = asked.bind(agent.to_string());
        }
        for row in asked.fetch_all(db.read()).await? {
            found.push(Unwell {
                agent: parse("agent", "id", &get::<String>(&row, "agent")?)?,
                deployment: get(&row, "deployment")?,
                group: get(&row, "grp")?,
                index: get(&row, "idx")?,
                instance: get(&row, "id")?,
                cid: get(&row, "cid")?,
            });
        }
    }
    Ok(found)
}

/// A deployment of which something is wanted that is not there, while no task works on it.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished {
    pub(crate) deployment: String,
    /// The last task that changed it or tried to: its number, its state, when it ended, what it says.
    pub(crate) task: Option<(i64, TaskState, i64, String)>,
}

/// Deployments whose last change did not come to its end. At most so many.
pub(crate) async fn unfinished(db: &Db, limit: i64) -> Result<Vec<Unfinished>> {
    let rows = query(
        "SELECT d.name, t.id, t.state, t.ended_at, t.result FROM deployments d
         LEFT JOIN tasks t ON t.id = (SELECT MAX(l.id) FROM tasks l WHERE l.deployment = d.name
             AND l.kind IN ('update_deployment', 'delete_deployment', 'cck_scan_and_fix'))
         WHERE d.wanted_manifest IS NOT NULL
           AND (d.manifest IS NULL OR d.manifest <> d.wanted_manifest
             OR EXISTS (SELECT 1 FROM instances i WHERE i.deployment = d.name AND i.update_completed = 0 AND i.ignored = 0))
           AND NOT EXISTS (SELECT 1 FROM tasks w WHERE w.deployment = d.name AND w.state IN ('queued', 'processing')
             AND w.kind IN ('update_deployment', 'delete_deployment', 'cck_scan_and_fix'))
         ORDER BY d.name LIMIT $1",
    )
    .bind(limit)
    .fetch_all(db.read())
    .await?;
    rows.iter()
        .map(|row| {
            let id: Option<i64> = get(row, "id")?;
            let task = match id {
                None => None,
                Some(id) => Some((
                    id,
                    super::tasks::state_of(&get::<String>(row, "state")?)?,
                    get::<Option<i64>>(row, "ended_at")?.unwrap_or(0),
                    get::<Option<String>>(row, "result")?.unwrap_or_default(),
                )),
            };
            Ok(Unfinished {
                deployment: get(row, "name")?,
                task,
            })
        })
        .collect()
}

/// A setting that is kept, by name.
pub(crate) async fn setting(db: &Db, name: &str) -> Result<Option<String>> {
    let row = query("SELECT value FROM settings WHERE name = $1")
        .bind(name)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| get(&row, "value")).transpose()
}

/// Keeps a setting.
pub(crate) async fn set_setting(tx: &mut Tx, name: &str, value: &str) -> Result<()> {
    query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
        .bind(name)
        .bind(value)
        .execute(tx.conn())
        .await?;
    Ok(())
}
