//! Tasks and their output.

use jiff::Timestamp;
use stolos_api::director::{self as wire, OutputKind, TaskState};
use stolos_base::ids::FlowId;
use stolos_store::{AnyRow, AssertSqlSafe, Db, Row as _, Tx, query, sequence};

use super::{get, parse};
use crate::error::{Error, Result};

/// Finished tasks that are kept, as in BOSH; older ones go with their output.
const KEPT: i64 = 2000;
/// `result` on the wire is cut after so many characters. BOSH cuts after 128, which takes the reason from whoever reads only this field.
const RESULT_LENGTH: usize = 1000;

/// A task as kept.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) id: i64,
    pub(crate) flow: FlowId,
    pub(crate) description: String,
    pub(crate) deployment: Option<String>,
    pub(crate) username: String,
    pub(crate) context_id: String,
    pub(crate) created_at: i64,
    pub(crate) cancel_requested: bool,
    pub(crate) cancelled_by: Option<String>,
    pub(crate) state: TaskState,
    pub(crate) started_at: Option<i64>,
    pub(crate) ended_at: Option<i64>,
    pub(crate) result: Option<String>,
}

/// A task to be written.
pub(crate) struct NewTask<'a> {
    pub(crate) flow: FlowId,
    pub(crate) kind: &'static str,
    pub(crate) description: &'a str,
    pub(crate) deployment: Option<&'a str>,
    pub(crate) username: &'a str,
    pub(crate) context_id: &'a str,
}

/// Which tasks to list.
#[derive(Debug, Default)]
pub(crate) struct Filter<'a> {
    pub(crate) states: Vec<TaskState>,
    pub(crate) deployment: Option<&'a str>,
    pub(crate) context_id: Option<&'a str>,
    /// Only these kinds; empty: all.
    pub(crate) kinds: &'a [&'a str],
    pub(crate) limit: u32,
}

const COLUMNS: &str = "id, flow, description, deployment, username, context_id, created_at, cancel_requested_at, \
                       cancelled_by, state, started_at, ended_at, result";

impl TaskRow {
    /// The state that people see.
    pub(crate) fn shown_state(&self) -> TaskState {
        match self.state {
            TaskState::Queued | TaskState::Processing if self.cancel_requested => TaskState::Cancelling,
            state => state,
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Task {
        let seconds = |millis: i64| millis.div_euclid(1000);
        wire::Task {
            id: self.id,
            state: self.shown_state(),
            description: self.description.clone(),
            timestamp: self.ended_at.map(seconds),
            started_at: self.started_at.map(seconds),
            result: self
                .result
                .as_ref()
                .map(|text| text.chars().take(RESULT_LENGTH).collect()),
            user: self.username.clone(),
            deployment: self.deployment.clone(),
            context_id: self.context_id.clone(),
            cancelled_by: self.cancelled_by.clone(),
        }
    }
}

/// Writes a new task and gives its number. Old finished tasks are forgotten on the way.
pub(crate) async fn insert(tx: &mut Tx, new: &NewTask<'_>) -> Result<i64> {
    let id = sequence::next(tx, "tasks").await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO tasks (id, flow, kind, description, deployment, username, context_id, created_at, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'queued')",
    )
    .bind(id)
    .bind(new.flow.to_string())
    .bind(new.kind)
    .bind(new.description)
    .bind(new.deployment)
    .bind(new.username)
    .bind(new.context_id)
    .bind(now)
    .execute(tx.conn())
    .await?;
    query("DELETE FROM tasks WHERE id < $1 AND ended_at IS NOT NULL")
        .bind(id - KEPT)
        .execute(tx.conn())
        .await?;
    Ok(id)
}

pub(crate) async fn find(db: &Db, id: i64) -> Result<Option<TaskRow>> {
    let sql = format!("SELECT {COLUMNS} FROM tasks WHERE id = $1");
    let row = query(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| task(&row)).transpose()
}

pub(crate) async fn by_flow(db: &Db, flow: FlowId) -> Result<Option<TaskRow>> {
    let sql = format!("SELECT {COLUMNS} FROM tasks WHERE flow = $1");
    let row = query(AssertSqlSafe(sql))
        .bind(flow.to_string())
        .fetch_optional(db.read())
        .await?;
    row.map(|row| task(&row)).transpose()
}

/// Newest first. A cancelling task is in the table as what it was before.
pub(crate) async fn list(db: &Db, filter: &Filter<'_>) -> Result<Vec<TaskRow>> {
    // Put together from constants only; values are bound. `$n = $n` keeps each number in use on every engine.
    let mut sql = format!(
        "SELECT {COLUMNS} FROM tasks WHERE ($1 = '' OR deployment = $1) AND ($2 = '' OR context_id = $2)"
    );
    if !filter.states.is_empty() {
        let conditions: Vec<&str> = filter
            .states
            .iter()
            .map(|state| match state {
                TaskState::Queued => "(state = 'queued' AND cancel_requested_at IS NULL)",
                TaskState::Processing => "(state = 'processing' AND cancel_requested_at IS NULL)",
                TaskState::Cancelling => "(ended_at IS NULL AND cancel_requested_at IS NOT NULL)",
                TaskState::Cancelled => "state = 'cancelled'",
                TaskState::Done => "state = 'done'",
                TaskState::Error => "state = 'error'",
                TaskState::Timeout => "state = 'timeout'",
            })
            .collect();
        sql.push_str(&format!(" AND ({})", conditions.join(" OR ")));
    }
    if !filter.kinds.is_empty() {
        let places: Vec<String> = (0..filter.kinds.len()).map(|i| format!("${}", i + 4)).collect();
        sql.push_str(&format!(" AND kind IN ({})", places.join(", ")));
    }
    sql.push_str(" ORDER BY id DESC LIMIT $3");
    let mut list = query(AssertSqlSafe(sql))
        .bind(filter.deployment.unwrap_or_default())
        .bind(filter.context_id.unwrap_or_default())
        .bind(i64::from(filter.limit));
    for kind in filter.kinds {
        list = list.bind(*kind);
    }
    list.fetch_all(db.read()).await?.iter().map(task).collect()
}

/// Whether a task that changes the deployment's machines waits or runs.
pub(crate) async fn works_on(db: &Db, deployment: &str) -> Result<bool> {
    let row = query(WORKS_ON).bind(deployment).fetch_optional(db.read()).await?;
    Ok(row.is_some())
}

/// The same as part of a transaction.
pub(crate) async fn works_on_in(tx: &mut Tx, deployment: &str) -> Result<bool> {
    let row = query(WORKS_ON).bind(deployment).fetch_optional(tx.conn()).await?;
    Ok(row.is_some())
}

/// The kinds are those of `crate::flows`.
const WORKS_ON: &str = "SELECT id FROM tasks WHERE deployment = $1 AND state IN ('queued', 'processing')
    AND kind IN ('update_deployment', 'delete_deployment', 'cck_scan_and_fix') LIMIT 1";

/// A task's state from its word.
pub(crate) fn state_of(word: &str) -> Result<TaskState> {
    parse("state", "task state", word)
}

/// Notes that somebody wants the task to end early. Whoever wanted it first is remembered. False when somebody did before, or it has ended.
pub(crate) async fn request_cancel(tx: &mut Tx, id: i64, who: &str) -> Result<bool> {
    let now = tx.now_millis();
    let noted = query("UPDATE tasks SET cancel_requested_at = $2, cancelled_by = $3 WHERE id = $1 AND ended_at IS NULL AND cancel_requested_at IS NULL")
        .bind(id)
        .bind(now)
        .bind(who)
        .execute(tx.conn())
        .await?
        .rows_affected();
    Ok(noted == 1)
}

/// Writes how a task stands; part of the transaction in which its flow changes. Gives its number, if there is such a task.
pub(crate) async fn set_state(
    tx: &mut Tx,
    flow: FlowId,
    state: TaskState,
    result: Option<&str>,
) -> Result<Option<i64>, stolos_store::Error> {
    let now = tx.now_millis();
    let ended = state.is_final().then_some(now);
    let started = (state == TaskState::Processing).then_some(now);
    let row = query(
        "UPDATE tasks SET state = $2, ended_at = $3, started_at = COALESCE(started_at, $4), result = COALESCE($5, result)
         WHERE flow = $1 RETURNING id",
    )
    .bind(flow.to_string())
    .bind(state.as_str())
    .bind(ended)
    .bind(started)
    .bind(result)
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| row.try_get("id")).transpose()?)
}

/// Appends a piece of output at its offset; a piece that is there already is left alone.
pub(crate) async fn append(
    tx: &mut Tx,
    task: i64,
    kind: OutputKind,
    first: u64,
    body: &str,
) -> Result<(), stolos_store::Error> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    query(
        "INSERT INTO task_output (task, kind, first, length, body) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (task, kind, first) DO NOTHING",
    )
    .bind(task)
    .bind(kind.as_str())
    .bind(number(first))
    .bind(number(body.len() as u64))
    .bind(body)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The end of a kind of output, in bytes.
pub(crate) async fn length(db: &Db, task: i64, kind: OutputKind) -> Result<u64> {
    let row = query("SELECT first + length AS past FROM task_output WHERE task = $1 AND kind = $2 ORDER BY first DESC LIMIT 1")
        .bind(task)
        .bind(kind.as_str())
        .fetch_optional(db.read())
        .await?;
    let past: i64 = row.map(|row| get(&row, "past")).transpose()?.unwrap_or(0);
    Ok(u64::try_from(past).unwrap_or(0))
}

/// The same inside a transaction, where it cannot change.
pub(crate) async fn length_in(tx: &mut Tx, task: i64, kind: OutputKind) -> Result<u64, stolos_store::Error> {
    let row = query("SELECT first + length AS past FROM task_output WHERE task = $1 AND kind = $2 ORDER BY first DESC LIMIT 1")
        .bind(task)
        .bind(kind.as_str())
        .fetch_optional(tx.conn())
        .await?;
    let past: i64 = row.map(|row| row.try_get("past")).transpose()?.unwrap_or(0);
    Ok(u64::try_from(past).unwrap_or(0))
}

/// Output from a byte on to the end, at most `limit` bytes more than one piece.
pub(crate) async fn output(db: &Db, task: i64, kind: OutputKind, from: u64, limit: usize) -> Result<Vec<u8>> {
    let from_column = i64::try_from(from).unwrap_or(i64::MAX);
    let mut text: Vec<u8> = Vec::new();
    let mut after = from_column;
    loop {
        let rows = query(
            "SELECT first, length, body FROM task_output WHERE task = $1 AND kind = $2 AND first + length > $3
             ORDER BY first LIMIT 200",
        )
        .bind(task)
        .bind(kind.as_str())
        .bind(after)
        .fetch_all(db.read())
        .await?;
        if rows.is_empty() {
            return Ok(text);
        }
        for row in &rows {
            let first: i64 = get(row, "first")?;
            let length: i64 = get(row, "length")?;
            let body: String = get(row, "body")?;
            let skip = usize::try_from(from_column.saturating_sub(first).max(0)).unwrap_or(usize::MAX);
            text.extend_from_slice(body.as_bytes().get(skip..).unwrap_or_default());
            after = first + length;
            if text.len() >= limit {
                return Ok(text);
            }
        }
    }
}

fn task(row: &AnyRow) -> Result<TaskRow> {
    Ok(TaskRow {
        id: get(row, "id")?,
        flow: parse("flow", "id", &get::<String>(row, "flow")?)?,
        description: get(row, "description")?,
        deployment: get(row, "deployment")?,
        username: get(row, "username")?,
        context_id: get(row, "context_id")?,
        created_at: get(row, "created_at")?,
        cancelled_by: get(row, "cancelled_by")?,
        cancel_requested: get::<Option<i64>>(row, "cancel_requested_at")?.is_some(),
        state: parse("state", "task state", &get::<String>(row, "state")?)?,
        started_at: get(row, "started_at")?,
        ended_at: get(row, "ended_at")?,
        result: get(row, "result")?,
    })
}

/// Milliseconds since the Unix epoch as BOSH writes them for people, or in RFC 3339.
pub(crate) fn time_text(millis: i64, format: &str) -> String {
    Timestamp::from_millisecond(millis)
        .map(|time| time.strftime(format).to_string())
        .unwrap_or_default()
}

/// Whether the error says that the task is not there.
pub(crate) fn found(task: Option<TaskRow>, id: impl ToString) -> Result<TaskRow> {
    task.ok_or_else(|| Error::NoTask(id.to_string()))
}
