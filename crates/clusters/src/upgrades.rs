//! Upgrades of several clusters as they are kept; PKS calls each a task.

use stolos_api::pks::{LastAction, LastActionState, TaskCluster, TaskInfo, TaskStatus};
use stolos_base::ids::{ClusterId, UpgradeId};
use stolos_store::{AnyRow, Db, Migration, Tx, query};

use crate::db::{self, Whose};
use crate::error::{Error, Result};
use crate::who::Who;

/// Tasks and their clusters.
pub(crate) const TABLES: Migration = Migration {
    number: 5,
    name: "upgrade_tasks",
    statements: &[
        "CREATE TABLE upgrade_tasks (
            id         TEXT   PRIMARY KEY,
            -- intent
            owner      TEXT   NOT NULL,
            created_at BIGINT NOT NULL,
            -- state
            status     TEXT   NOT NULL,
            started_at BIGINT,
            ended_at   BIGINT
        )",
        "CREATE INDEX upgrade_tasks_by_time ON upgrade_tasks (created_at, id)",
        "CREATE TABLE upgrade_task_clusters (
            task       TEXT   NOT NULL,
            position   BIGINT NOT NULL,
            -- intent
            cluster_id TEXT   NOT NULL,
            cluster    TEXT   NOT NULL,
            is_canary  BIGINT NOT NULL,
            -- state
            state      TEXT   NOT NULL,
            started_at BIGINT,
            ended_at   BIGINT,
            error      TEXT,
            PRIMARY KEY (task, position)
        )",
    ],
};

/// A cluster of a new task.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) cluster: ClusterId,
    pub(crate) name: String,
    pub(crate) is_canary: bool,
}

/// Writes a new task; `turns` are in the order of their turns.
///
/// # Errors
/// Those of the database.
pub(crate) async fn insert(tx: &mut Tx, id: UpgradeId, owner: &Who, turns: &[Turn]) -> Result<()> {
    let now = tx.now_millis();
    let failed = |e: stolos_store::sqlx::Error| Error::database("write the task")(e.into());
    query("INSERT INTO upgrade_tasks (id, owner, created_at, status, owner_key) VALUES ($1, $2, $3, $4, $5)")
        .bind(id.to_string())
        .bind(&owner.name)
        .bind(now)
        .bind(TaskStatus::NotStarted.as_str())
        .bind(owner.key.as_str())
        .execute(tx.conn())
        .await
        .map_err(failed)?;
    for (position, turn) in turns.iter().enumerate() {
        query(
            "INSERT INTO upgrade_task_clusters (task, position, cluster_id, cluster, is_canary, state) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id.to_string())
        .bind(i64::try_from(position).unwrap_or(i64::MAX))
        .bind(turn.cluster.to_string())
        .bind(&turn.name)
        .bind(i64::from(turn.is_canary))
        .bind(LastActionState::Queued.as_str())
        .execute(tx.conn())
        .await
        .map_err(failed)?;
    }
    Ok(())
}

/// Writes how a task stands.
///
/// # Errors
/// Those of the database.
pub(crate) async fn set_status(tx: &mut Tx, id: UpgradeId, status: TaskStatus) -> Result<()> {
    let now = tx.now_millis();
    let started = (status == TaskStatus::InProgress).then_some(now);
    let ended = status.is_final().then_some(now);
    query(
        "UPDATE upgrade_tasks SET status = $2, started_at = COALESCE(started_at, $3), ended_at = $4 WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(status.as_str())
    .bind(started)
    .bind(ended)
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("write the state of the task")(e.into()))?;
    Ok(())
}

/// Notes who wants a task cancelled. Who asked first is remembered.
///
/// # Errors
/// Those of the database.
pub(crate) async fn request_cancel(tx: &mut Tx, id: UpgradeId, by: &Who) -> Result<()> {
    query(
        "UPDATE upgrade_tasks SET canceled_by = COALESCE(canceled_by, $2) WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(id.to_string())
    .bind(&by.name)
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("note the cancellation of a task")(e.into()))?;
    Ok(())
}

/// Writes how the upgrade of one of its clusters stands.
///
/// # Errors
/// Those of the database.
pub(crate) async fn set_turn(
    tx: &mut Tx,
    id: UpgradeId,
    cluster: ClusterId,
    state: LastActionState,
    error: Option<&str>,
) -> Result<()> {
    let now = tx.now_millis();
    query(
        "UPDATE upgrade_task_clusters SET state = $3, started_at = COALESCE(started_at, $4), ended_at = $5, error = $6 \
         WHERE task = $1 AND cluster_id = $2",
    )
    .bind(id.to_string())
    .bind(cluster.to_string())
    .bind(state.as_str())
    .bind(now)
    .bind(state.is_final().then_some(now))
    .bind(error)
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("write the state of a cluster's upgrade")(e.into()))?;
    Ok(())
}

const TASK: &str = "SELECT id, owner, canceled_by, status, started_at, ended_at FROM upgrade_tasks";

/// The newest tasks that the caller may see, newest first.
///
/// # Errors
/// Those of the database.
pub(crate) async fn newest(db: &Db, whose: Whose<'_>, limit: u32) -> Result<Vec<TaskInfo>> {
    let sql = format!("{TASK} WHERE ($1 = '' OR owner_key = $1) ORDER BY created_at DESC, id DESC LIMIT $2");
    let rows = query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .bind(i64::from(limit))
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list tasks")(e.into()))?;
    let mut tasks = Vec::with_capacity(rows.len());
    for row in &rows {
        tasks.push(to_task(db, row).await?);
    }
    Ok(tasks)
}

/// One task, if the caller may see it.
///
/// # Errors
/// [`Error::NoTask`] and those of the database.
pub(crate) async fn one(db: &Db, id: &str, whose: Whose<'_>) -> Result<TaskInfo> {
    let sql = format!("{TASK} WHERE id = $1 AND ($2 = '' OR owner_key = $2)");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(id)
        .bind(whose.owner())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the task")(e.into()))?;
    match row {
        Some(row) => to_task(db, &row).await,
        None => Err(Error::NoTask(id.chars().take(80).collect())),
    }
}

async fn to_task(db: &Db, row: &AnyRow) -> Result<TaskInfo> {
    let id: String = db::get(row, "id")?;
    let clusters = query(
        "SELECT cluster, is_canary, state, started_at, ended_at, error FROM upgrade_task_clusters \
         WHERE task = $1 ORDER BY position",
    )
    .bind(&id)
    .fetch_all(db.read())
    .await
    .map_err(|e| Error::database("read the clusters of a task")(e.into()))?
    .iter()
    .map(to_turn)
    .collect::<Result<_>>()?;
    Ok(TaskInfo {
        uuid: id,
        kind: LastAction::Upgrade,
        user: db::get(row, "owner")?,
        cancelled_by: db::get(row, "canceled_by")?,
        status: db::from_word(db::get(row, "status")?)?,
        start_time: time(row, "started_at")?,
        end_time: time(row, "ended_at")?,
        clusters,
    })
}

fn to_turn(row: &AnyRow) -> Result<TaskCluster> {
    Ok(TaskCluster {
        cluster_name: db::get(row, "cluster")?,
        last_action: LastAction::Upgrade,
        last_action_state: db::from_word(db::get(row, "state")?)?,
        start_time: time(row, "started_at")?,
        end_time: time(row, "ended_at")?,
        is_canary: db::get::<i64>(row, "is_canary")? != 0,
        error: db::get(row, "error")?,
    })
}

/// RFC 3339, in whole seconds.
fn time(row: &AnyRow, column: &str) -> Result<Option<String>> {
    let millis: Option<i64> = db::get(row, column)?;
    let time = |millis: i64| jiff::Timestamp::from_second(millis / 1000).map_err(db::stored);
    Ok(millis.map(time).transpose()?.map(|time| time.to_string()))
}
