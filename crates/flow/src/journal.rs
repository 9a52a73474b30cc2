//! The tables of flows, and every statement on them.
//!
//! Each function is one short transaction or part of one. Those that a running flow uses verify its fence first and are
//! written so that doing them twice is the same as once, because a commit whose answer was lost is repeated.

use std::time::Duration;

use stolos_base::ids::FlowId;
use stolos_store::lease::{self, Acquired};
use stolos_store::sqlx::any::AnyRow;
use stolos_store::{Db, Fence, Migration, Part, Row as _, Tx, query};

use crate::error::{Error, Result};
use crate::kind::{Failure, FlowInfo, FlowState};
use crate::view::StepState;

/// The tables of flows, to be named in the schema of a service that runs some.
pub static TABLES: Part = Part {
    name: "flow",
    migrations: &[
        Migration {
            number: 1,
            name: "flows",
            statements: &[
                "CREATE TABLE flow_flows (
                    id TEXT PRIMARY KEY,
                    -- the order in which flows are taken up; a new one when a flow is told to go on
                    seq BIGINT NOT NULL UNIQUE,
                    kind TEXT NOT NULL,
                    subject TEXT NOT NULL,
                    -- of all unfinished flows with the same key, only the first is run
                    lock_key TEXT,
                    input TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    -- intent: written by whoever asks
                    cancel_requested_at BIGINT,
                    -- state: written by the executor (and set back to pending by a request to go on)
                    state TEXT NOT NULL,
                    started_at BIGINT,
                    ended_at BIGINT,
                    failure TEXT
                )",
                "CREATE INDEX flow_flows_state ON flow_flows (state, seq)",
                "CREATE INDEX flow_flows_subject ON flow_flows (subject, seq)",
                "CREATE INDEX flow_flows_lock ON flow_flows (lock_key, seq)",
                "CREATE TABLE flow_steps (
                    flow TEXT NOT NULL REFERENCES flow_flows (id) ON DELETE CASCADE,
                    name TEXT NOT NULL,
                    position BIGINT NOT NULL,
                    stage TEXT,
                    state TEXT NOT NULL,
                    attempts BIGINT NOT NULL,
                    began_at BIGINT,
                    ended_at BIGINT,
                    -- JSON, in clear
                    output TEXT,
                    -- why it failed or was skipped
                    note TEXT,
                    PRIMARY KEY (flow, name)
                )",
            ],
        },
        // new migrations go above this line, with the next number
    ],
};

/// The name of the lease of a flow.
pub(crate) fn lease_name(flow: FlowId) -> String {
    format!("flow/{flow}")
}

/// What other processes hear when something was written about a flow.
pub(crate) fn word(flow: FlowId) -> String {
    format!("flow {flow}")
}

/// What the executor needs of a flow it has taken.
pub(crate) struct Taken {
    pub(crate) info: FlowInfo,
    pub(crate) input: String,
    pub(crate) state: FlowState,
    pub(crate) cancel_requested: bool,
    pub(crate) fence: Fence,
}

/// What the journal knows of a step.
pub(crate) struct StepRow {
    pub(crate) name: String,
    pub(crate) state: StepState,
    pub(crate) output: Option<String>,
}

/// One line of the journal.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Begin {
        step: String,
    },
    Done {
        step: String,
        attempts: u32,
        output: String,
    },
    Skipped {
        step: String,
        reason: String,
    },
    Failed {
        step: String,
        attempts: u32,
        error: String,
    },
    /// Interrupted by a cancel; runs again when the flow is told to go on.
    Canceled {
        step: String,
        attempts: u32,
    },
}

/// A new flow, as stored.
pub(crate) struct NewRow<'a> {
    pub(crate) id: FlowId,
    pub(crate) kind: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) lock: Option<&'a str>,
    pub(crate) input: &'a str,
}

pub(crate) async fn insert(tx: &mut Tx, new: NewRow<'_>) -> Result<()> {
    let seq = stolos_store::sequence::next(tx, "flows").await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO flow_flows (id, seq, kind, subject, lock_key, input, created_at, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending')",
    )
    .bind(new.id.to_string())
    .bind(seq)
    .bind(new.kind)
    .bind(new.subject)
    .bind(new.lock)
    .bind(new.input)
    .bind(now)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Unfinished flows with their kinds, oldest first, without those that wait for an earlier one with the same lock or
/// belong to another living process (to any other process, unless `others`), and without the kinds of these names.
pub(crate) async fn candidates(
    db: &Db,
    holder: &str,
    names: &[&str],
    others: bool,
    limit: i64,
) -> Result<Vec<(FlowId, String)>> {
    let but = match names {
        [] => String::new(),
        names => format!("AND f.kind NOT IN ({})", placeholders(4, names.len())),
    };
    // The text is put together from constants and numbers only.
    let sql = format!(
        "SELECT f.id, f.kind FROM flow_flows f
         LEFT JOIN store_leases l ON l.name = 'flow/' || f.id
         WHERE f.state IN ('pending', 'running') {but}
           AND (l.name IS NULL OR l.holder = '' OR l.holder = $1 OR l.expires_at <= $2)
           AND NOT EXISTS (
             SELECT 1 FROM flow_flows o
             WHERE o.lock_key = f.lock_key AND o.seq < f.seq AND o.state IN ('pending', 'running'))
         ORDER BY f.seq LIMIT $3"
    );
    let mut list = query(stolos_store::AssertSqlSafe(sql))
        .bind(holder)
        .bind(if others { db.clock().now_millis() } else { i64::MIN })
        .bind(limit);
    for kind in names {
        list = list.bind(*kind);
    }
    list.fetch_all(db.read())
        .await?
        .iter()
        .map(|row| Ok((flow_id(row, "id")?, row.try_get("kind")?)))
        .collect()
}

/// `$first, …`: so many of them.
pub(crate) fn placeholders(first: usize, many: usize) -> String {
    let all: Vec<String> = (first..first + many).map(|number| format!("${number}")).collect();
    all.join(", ")
}

/// The unfinished flow that an unfinished one waits for, with its kind.
pub(crate) async fn blocker(db: &Db, id: FlowId) -> Result<Option<(FlowId, String)>> {
    query(
        "SELECT o.id, o.kind FROM flow_flows f JOIN flow_flows o
           ON o.lock_key = f.lock_key AND o.seq < f.seq AND o.state IN ('pending', 'running')
         WHERE f.id = $1 AND f.state = 'pending' ORDER BY o.seq LIMIT 1",
    )
    .bind(id.to_string())
    .fetch_optional(db.read())
    .await?
    .map(|row| Ok((flow_id(&row, "id")?, row.try_get("kind")?)))
    .transpose()
}

/// Takes the flow's lease, unless somebody else holds it or it is no longer to be run.
pub(crate) async fn take(db: &Db, id: FlowId, holder: &str, ttl: Duration) -> Result<Option<Taken>> {
    let mut tx = db.begin_background("take a flow").await?;
    // Asked again inside the transaction: an earlier flow with the same lock may have been told to go on meanwhile, or
    // another process may have ended this one.
    let row = query(
        "SELECT id, kind, subject, input, created_at, state, cancel_requested_at FROM flow_flows f
         WHERE f.id = $1 AND f.state IN ('pending', 'running')
           AND NOT EXISTS (
             SELECT 1 FROM flow_flows o
             WHERE o.lock_key = f.lock_key AND o.seq < f.seq AND o.state IN ('pending', 'running'))",
    )
    .bind(id.to_string())
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let Acquired::Yes(lease) = lease::acquire(&mut tx, &lease_name(id), holder, ttl).await? else {
        return Ok(None);
    };
    let taken = Taken {
        info: info(&row)?,
        input: row.try_get("input")?,
        state: state(&row)?,
        cancel_requested: row.try_get::<Option<i64>, _>("cancel_requested_at")?.is_some(),
        fence: lease.fence,
    };
    tx.commit().await?;
    Ok(Some(taken))
}

/// Marks the flow as running and records the steps that are not recorded yet. What was begun and not ended, failed or
/// canceled is to be run again. Gives what the journal knows.
pub(crate) async fn begin(
    tx: &mut Tx,
    fence: &Fence,
    id: FlowId,
    steps: &[(&str, Option<&str>)],
) -> Result<Vec<StepRow>> {
    lease::verify(tx, fence).await?;
    tx.signal(&word(id)).await?;
    let id = id.to_string();
    let now = tx.now_millis();
    query("UPDATE flow_flows SET state = 'running', started_at = COALESCE(started_at, $1), ended_at = NULL, failure = NULL WHERE id = $2")
        .bind(now)
        .bind(&id)
        .execute(tx.conn())
        .await?;
    for (position, (name, stage)) in (0_i64..).zip(steps) {
        query(
            "INSERT INTO flow_steps (flow, name, position, stage, state, attempts) VALUES ($1, $2, $3, $4, 'waiting', 0)
             ON CONFLICT (flow, name) DO UPDATE SET position = excluded.position, stage = excluded.stage",
        )
        .bind(&id)
        .bind(*name)
        .bind(position)
        .bind(*stage)
        .execute(tx.conn())
        .await?;
    }
    query(
        "UPDATE flow_steps SET state = 'waiting', ended_at = NULL, note = NULL
         WHERE flow = $1 AND state IN ('running', 'failed', 'canceled')",
    )
    .bind(&id)
    .execute(tx.conn())
    .await?;
    query("SELECT name, state, output FROM flow_steps WHERE flow = $1 ORDER BY position")
        .bind(&id)
        .fetch_all(tx.conn())
        .await?
        .iter()
        .map(|row| {
            Ok(StepRow {
                name: row.try_get("name")?,
                state: step_state(row, &id)?,
                output: row.try_get("output")?,
            })
        })
        .collect()
}

/// Writes the lines.
pub(crate) async fn write(tx: &mut Tx, fence: &Fence, id: FlowId, entries: &[Entry]) -> Result<()> {
    lease::verify(tx, fence).await?;
    tx.signal(&word(id)).await?;
    let id = id.to_string();
    let now = tx.now_millis();
    for entry in entries {
        let (step, state, attempts, output, note) = match entry {
            Entry::Begin { step } => {
                query(
                    "UPDATE flow_steps SET state = 'running', began_at = $1, ended_at = NULL, note = NULL
                     WHERE flow = $2 AND name = $3",
                )
                .bind(now)
                .bind(&id)
                .bind(step)
                .execute(tx.conn())
                .await?;
                continue;
            }
            Entry::Done {
                step,
                attempts,
                output,
            } => (step, StepState::Done, *attempts, Some(output), None),
            Entry::Skipped { step, reason } => (step, StepState::Skipped, 0, None, Some(reason)),
            Entry::Failed {
                step,
                attempts,
                error,
            } => (step, StepState::Failed, *attempts, None, Some(error)),
            Entry::Canceled { step, attempts } => (step, StepState::Canceled, *attempts, None, None),
        };
        query(
            "UPDATE flow_steps SET state = $1, attempts = $2, ended_at = $3, output = $4, note = $5
             WHERE flow = $6 AND name = $7",
        )
        .bind(state.as_str())
        .bind(i64::from(attempts))
        .bind(now)
        .bind(output)
        .bind(note)
        .bind(&id)
        .bind(step)
        .execute(tx.conn())
        .await?;
    }
    Ok(())
}

/// Marks the flow as ended and gives its lease back. Comes last in its transaction. What was left at "running" by an
/// earlier life and is no longer in the graph is closed too, so that nothing looks alive.
pub(crate) async fn end(
    tx: &mut Tx,
    fence: &Fence,
    id: FlowId,
    state: FlowState,
    failure: Option<&Failure>,
) -> Result<()> {
    lease::verify(tx, fence).await?;
    tx.signal(&word(id)).await?;
    let failure = failure
        .map(serde_json::to_string)
        .transpose()
        .map_err(|source| Error::Json {
            what: "failure",
            flow: id,
            source,
        })?;
    let now = tx.now_millis();
    query("UPDATE flow_flows SET state = $1, ended_at = $2, failure = $3 WHERE id = $4")
        .bind(state.as_str())
        .bind(now)
        .bind(failure)
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    query("UPDATE flow_steps SET state = 'canceled', ended_at = $1 WHERE flow = $2 AND state = 'running'")
        .bind(now)
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    Ok(lease::release(tx, fence).await?)
}

/// Whether and how the flow has ended; for a repeated [`end`] whose commit may have happened.
pub(crate) async fn ended(db: &Db, id: FlowId) -> Result<Option<FlowState>> {
    let row = query("SELECT state FROM flow_flows WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(db.read())
        .await?;
    match row {
        None => Ok(None),
        Some(row) => {
            Ok(Some(state_of(&row.try_get::<String, _>("state")?, &id.to_string())?).filter(|s| s.is_end()))
        }
    }
}

/// Of these flows, those that are to be canceled.
pub(crate) async fn cancel_requests(db: &Db) -> Result<Vec<FlowId>> {
    // Pending ones too: somebody may have taken one whose graph cannot be made yet.
    query(
        "SELECT id FROM flow_flows WHERE state IN ('pending', 'running') AND cancel_requested_at IS NOT NULL",
    )
    .fetch_all(db.read())
    .await?
    .iter()
    .map(|row| flow_id(row, "id"))
    .collect()
}

/// Records the wish to cancel and gives the flow's state.
pub(crate) async fn request_cancel(tx: &mut Tx, id: FlowId) -> Result<FlowState> {
    let now = tx.now_millis();
    let current = current(tx, id).await?;
    if !current.1.is_end() {
        query("UPDATE flow_flows SET cancel_requested_at = COALESCE(cancel_requested_at, $1) WHERE id = $2")
            .bind(now)
            .bind(id.to_string())
            .execute(tx.conn())
            .await?;
    }
    Ok(current.1)
}

/// Makes an ended flow pending again, behind all others.
pub(crate) async fn revive(tx: &mut Tx, id: FlowId) -> Result<()> {
    let seq = stolos_store::sequence::next(tx, "flows").await?;
    query(
        "UPDATE flow_flows SET state = 'pending', seq = $1, cancel_requested_at = NULL, ended_at = NULL, failure = NULL
         WHERE id = $2",
    )
    .bind(seq)
    .bind(id.to_string())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Which flow it is and how it stands.
pub(crate) async fn current(tx: &mut Tx, id: FlowId) -> Result<(FlowInfo, FlowState)> {
    let row = query("SELECT id, kind, subject, created_at, state FROM flow_flows WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?
        .ok_or(Error::NotFound(id))?;
    Ok((info(&row)?, state(&row)?))
}

/// Deletes flows that ended before the time (milliseconds since the Unix epoch), at most `limit`, and says how many.
/// `kind` is the name of one kind, or empty for all.
pub(crate) async fn delete_ended(tx: &mut Tx, kind: &str, before: i64, limit: i64) -> Result<u64> {
    let rows = query(
        "SELECT id FROM flow_flows
         WHERE state IN ('succeeded', 'failed', 'canceled') AND ended_at < $1 AND ($3 = '' OR kind = $3)
         ORDER BY seq LIMIT $2",
    )
    .bind(before)
    .bind(limit)
    .bind(kind)
    .fetch_all(tx.conn())
    .await?;
    for row in &rows {
        let id = flow_id(row, "id")?;
        // The steps go with it, by the foreign key.
        query("DELETE FROM flow_flows WHERE id = $1")
            .bind(id.to_string())
            .execute(tx.conn())
            .await?;
        lease::forget(tx, &lease_name(id)).await?;
    }
    Ok(rows.len() as u64)
}

pub(crate) fn flow_id(row: &AnyRow, column: &str) -> Result<FlowId> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| Error::Corrupt {
        what: "id",
        flow: text.clone(),
        value: text,
    })
}

pub(crate) fn info(row: &AnyRow) -> Result<FlowInfo> {
    Ok(FlowInfo {
        id: flow_id(row, "id")?,
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        created_at: row.try_get("created_at")?,
    })
}

pub(crate) fn state(row: &AnyRow) -> Result<FlowState> {
    state_of(
        &row.try_get::<String, _>("state")?,
        &row.try_get::<String, _>("id")?,
    )
}

fn state_of(text: &str, flow: &str) -> Result<FlowState> {
    FlowState::parse(text).ok_or_else(|| Error::Corrupt {
        what: "state",
        flow: flow.to_owned(),
        value: text.to_owned(),
    })
}

pub(crate) fn step_state(row: &AnyRow, flow: &str) -> Result<StepState> {
    let text: String = row.try_get("state")?;
    StepState::parse(&text).ok_or_else(|| Error::Corrupt {
        what: "step state",
        flow: flow.to_owned(),
        value: text,
    })
}
