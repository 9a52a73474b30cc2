//! Takings of backups of clusters as they are kept: what was asked for, what became of it, which cluster is due.
//!
//! Never says which backups there are: that is in their place, for a restored manager too. Takings are a flow each and block nothing else that is
//! done to the cluster.

use std::time::Duration;

use jiff::Timestamp;
use stolos_api::pks::{ClusterBackups, OperationState};
use stolos_base::ids::{BackupRunId, ClusterId};
use stolos_store::{AnyRow, Db, Migration, Tx, query};

use crate::db::{self, Whose};
use crate::deps::Backup;
use crate::error::{Error, Result};
use crate::who::Who;

/// The takings.
pub(crate) const TABLE: Migration = Migration {
    number: 8,
    name: "cluster_backups",
    statements: &[
        "CREATE TABLE cluster_backups (
            id         TEXT   PRIMARY KEY,
            -- intent
            cluster_id TEXT   NOT NULL,
            cluster    TEXT   NOT NULL,
            owner      TEXT   NOT NULL,
            actor      TEXT   NOT NULL,
            created_at BIGINT NOT NULL,
            -- state
            state      TEXT   NOT NULL,
            ended_at   BIGINT,
            backup     TEXT,
            error      TEXT
        )",
        // One at a time for each cluster, whoever asks.
        "CREATE UNIQUE INDEX cluster_backups_in_flight ON cluster_backups (cluster_id) WHERE ended_at IS NULL",
        "CREATE INDEX cluster_backups_by_cluster ON cluster_backups (cluster_id, created_at)",
    ],
};

/// Takings of a cluster that are remembered beside the last good one.
const REMEMBERED: i64 = 50;

/// A taking.
#[derive(Clone, Debug)]
pub(crate) struct RunRow {
    /// Id; also the id of its flow.
    pub(crate) id: BackupRunId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) cluster: String,
    pub(crate) owner: Who,
    pub(crate) actor: Who,
    pub(crate) canceled_by: Option<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) state: OperationState,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) backup: Option<String>,
    pub(crate) error: Option<String>,
}

/// Writes a new taking.
///
/// # Errors
/// [`Error::BackingUp`] when one of the cluster is in flight, and those of the database.
pub(crate) async fn insert(tx: &mut Tx, run: &RunRow) -> Result<()> {
    query(
        "INSERT INTO cluster_backups (id, cluster_id, cluster, owner, actor, created_at, state, owner_key, actor_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(run.id.to_string())
    .bind(run.cluster_id.to_string())
    .bind(&run.cluster)
    .bind(&run.owner.name)
    .bind(&run.actor.name)
    .bind(run.created_at.as_millisecond())
    .bind(db::word(&run.state)?)
    .bind(run.owner.key.as_str())
    .bind(run.actor.key.as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| match stolos_store::Error::from(e) {
        stolos_store::Error::Unique { .. } => Error::BackingUp {
            cluster: run.cluster.clone(),
        },
        other => Error::database("write the taking of a backup")(other),
    })?;
    Ok(())
}

/// Writes how a taking stands. What is older than [`REMEMBERED`] of the cluster goes with its end.
///
/// # Errors
/// Those of the database.
pub(crate) async fn set_state(
    tx: &mut Tx,
    id: BackupRunId,
    state: OperationState,
    error: Option<&str>,
) -> Result<()> {
    let ended = state.is_final().then(|| tx.now_millis());
    let failed = |e: stolos_store::sqlx::Error| Error::database("write the state of a backup")(e.into());
    query("UPDATE cluster_backups SET state = $2, ended_at = $3, error = $4 WHERE id = $1")
        .bind(id.to_string())
        .bind(db::word(&state)?)
        .bind(ended)
        .bind(error)
        .execute(tx.conn())
        .await
        .map_err(failed)?;
    if ended.is_none() {
        return Ok(());
    }
    // The last good one stays: it is what `cluster-backups` shows, however often it failed since then.
    query(
        "DELETE FROM cluster_backups WHERE ended_at IS NOT NULL \
         AND cluster_id = (SELECT cluster_id FROM cluster_backups WHERE id = $1) \
         AND created_at < COALESCE((SELECT created_at FROM cluster_backups AS c WHERE c.cluster_id = \
           (SELECT cluster_id FROM cluster_backups WHERE id = $1) ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET $2), 0) \
         AND id <> COALESCE((SELECT id FROM cluster_backups AS g WHERE g.state = $3 AND g.cluster_id = \
           (SELECT cluster_id FROM cluster_backups WHERE id = $1) ORDER BY created_at DESC, id DESC LIMIT 1), '')",
    )
    .bind(id.to_string())
    .bind(REMEMBERED)
    .bind(db::word(&OperationState::Succeeded)?)
    .execute(tx.conn())
    .await
    .map_err(failed)?;
    Ok(())
}

/// Notes who wants a taking cancelled. Who asked first is remembered.
///
/// # Errors
/// Those of the database.
pub(crate) async fn request_cancel(tx: &mut Tx, id: BackupRunId, by: &Who) -> Result<()> {
    query("UPDATE cluster_backups SET canceled_by = COALESCE(canceled_by, $2) WHERE id = $1 AND ended_at IS NULL")
        .bind(id.to_string())
        .bind(&by.name)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("note the cancellation of a backup")(e.into()))?;
    Ok(())
}

/// Notes which backup a taking made.
///
/// # Errors
/// Those of the database.
pub(crate) async fn set_backup(tx: &mut Tx, id: BackupRunId, backup: &Backup) -> Result<()> {
    query("UPDATE cluster_backups SET backup = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(&backup.id)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("note a backup")(e.into()))?;
    Ok(())
}

const RUN: &str = "SELECT id, cluster_id, cluster, owner, owner_key, actor, actor_key, canceled_by, created_at, state, ended_at, backup, error FROM cluster_backups";

/// One taking, if the caller may see it.
///
/// # Errors
/// [`Error::NoBackup`] and those of the database.
pub(crate) async fn one(db: &Db, id: &str, whose: Whose<'_>) -> Result<RunRow> {
    let sql = format!("{RUN} WHERE id = $1 AND ($2 = '' OR owner_key = $2)");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(id)
        .bind(whose.owner())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the taking of a backup")(e.into()))?;
    match row {
        Some(row) => to_run(&row),
        None => Err(Error::NoBackup(id.chars().take(80).collect())),
    }
}

/// The cluster that a person means: by the name of one that is there, by its id, or by the name of one that is gone and has backups.
///
/// # Errors
/// [`Error::NoCluster`] and those of the database.
pub(crate) async fn cluster_of(db: &Db, named: &str, whose: Whose<'_>) -> Result<ClusterId> {
    match db::cluster(db, named, whose).await {
        Ok(cluster) => return Ok(cluster.id),
        Err(Error::NoCluster(_)) => {}
        Err(error) => return Err(error),
    }
    // One that this database knows nothing of may have backups: it is younger than the backup that the manager was restored from.
    if let (Whose::All, Ok(id)) = (whose, named.parse()) {
        return Ok(id);
    }
    let sql = "SELECT id, created_at FROM clusters WHERE id = $1 AND ($2 = '' OR owner_key = $2) UNION ALL \
               SELECT cluster_id AS id, created_at FROM cluster_backups WHERE (cluster = $1 OR cluster_id = $1) AND ($2 = '' OR owner_key = $2) \
               ORDER BY 2 DESC LIMIT 1";
    let row = query(sql)
        .bind(named)
        .bind(whose.owner())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("look for a cluster's backups")(e.into()))?;
    match row {
        Some(row) => db::parse(&db::get::<String>(&row, "id")?),
        None => Err(Error::NoCluster(named.chars().take(80).collect())),
    }
}

/// How the backups of all clusters stand that the caller may see, by name; those that are there first.
///
/// # Errors
/// Those of the database.
pub(crate) async fn of_all(db: &Db, whose: Whose<'_>) -> Result<Vec<ClusterBackups>> {
    let sql = format!("{RUN} WHERE ($1 = '' OR owner_key = $1) ORDER BY created_at, id");
    let runs: Vec<RunRow> = query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list the takings of backups")(e.into()))?
        .iter()
        .map(to_run)
        .collect::<Result<_>>()?;
    let there = db::clusters(db, whose).await?;
    let mut all: indexmap::IndexMap<ClusterId, ClusterBackups> = there
        .iter()
        .map(|cluster| (cluster.id, empty(cluster.name.as_str(), cluster.id, false)))
        .collect();
    for run in runs {
        let entry = all
            .entry(run.cluster_id)
            .or_insert_with(|| empty(&run.cluster, run.cluster_id, true));
        match run.state {
            OperationState::Succeeded => {
                entry.last_success = Some(seconds(run.created_at));
                entry.last_backup = run.backup;
                (entry.failed_at, entry.error) = (None, None);
            }
            state if state.is_final() => {
                entry.failed_at = Some(seconds(run.ended_at.unwrap_or(run.created_at)));
                entry.error = Some(run.error.unwrap_or_else(|| "it was cancelled".to_owned()));
            }
            _ => entry.running = true,
        }
    }
    Ok(all.into_values().collect())
}

fn empty(name: &str, id: ClusterId, deleted: bool) -> ClusterBackups {
    ClusterBackups {
        cluster: name.to_owned(),
        cluster_uuid: id.to_string(),
        deleted,
        last_success: None,
        last_backup: None,
        failed_at: None,
        error: None,
        running: false,
    }
}

/// RFC 3339, in whole seconds.
pub(crate) fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// When the last takings of a cluster were, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    /// The beginning of the last good one.
    pub(crate) good: Option<i64>,
    /// The beginning of the last one of all.
    pub(crate) tried: Option<i64>,
    /// Whether one is in flight.
    pub(crate) open: bool,
}

/// The last takings by cluster.
///
/// # Errors
/// Those of the database.
pub(crate) async fn last(db: &Db) -> Result<Vec<(ClusterId, Last)>> {
    let sql = "SELECT cluster_id, MAX(CASE WHEN state = $1 THEN created_at ELSE NULL END) AS good, MAX(created_at) AS tried, \
               CAST(SUM(CASE WHEN ended_at IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS open FROM cluster_backups GROUP BY cluster_id";
    query(sql)
        .bind(db::word(&OperationState::Succeeded)?)
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("look for the last backups")(e.into()))?
        .iter()
        .map(|row| {
            let last = Last {
                good: db::get(row, "good")?,
                tried: db::get(row, "tried")?,
                open: db::get::<i64>(row, "open")? > 0,
            };
            Ok((db::parse(&db::get::<String>(row, "cluster_id")?)?, last))
        })
        .collect()
}

/// When a cluster's next backup is due, in milliseconds since the Unix epoch; the past for one that never had any. Those of many clusters that were taken
/// together drift apart: each comes up to a tenth of the interval early, by its id. After a failure it is tried again after `retry`, or after the interval when that
/// is shorter.
pub(crate) fn due(cluster: ClusterId, last: Last, every: Duration, retry: Duration) -> i64 {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let every = millis(every);
    let early = i64::from(cluster.as_uuid().as_bytes()[15]) * (every / 10) / 255;
    let regular = last
        .good
        .map_or(0, |good| good.saturating_add(every).saturating_sub(early));
    let failed = last
        .tried
        .filter(|tried| last.good.is_none_or(|good| good < *tried));
    failed.map_or(regular, |tried| {
        regular.max(tried.saturating_add(millis(retry).min(every)))
    })
}

fn to_run(row: &AnyRow) -> Result<RunRow> {
    let time = |millis: i64| Timestamp::from_millisecond(millis).map_err(db::stored);
    Ok(RunRow {
        id: db::parse(&db::get::<String>(row, "id")?)?,
        cluster_id: db::parse(&db::get::<String>(row, "cluster_id")?)?,
        cluster: db::get(row, "cluster")?,
        owner: db::who(row, "owner", "owner_key")?,
        actor: db::who(row, "actor", "actor_key")?,
        canceled_by: db::get(row, "canceled_by")?,
        created_at: time(db::get(row, "created_at")?)?,
        state: db::from_word(db::get(row, "state")?)?,
        ended_at: db::get::<Option<i64>>(row, "ended_at")?.map(time).transpose()?,
        backup: db::get(row, "backup")?,
        error: db::get(row, "error")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::who::Key;

    #[tokio::test]
    async fn takings_are_one_at_a_time_and_the_last_good_one_is_remembered() {
        stolos_store::testing::each(async |place| {
            let db = place.open(&crate::SCHEMA).await;
            let ids = stolos_base::IdSource::counted();
            let cluster = ClusterId::new(&ids);
            let run = |n: i64| RunRow {
                id: BackupRunId::new(&ids),
                cluster_id: cluster,
                cluster: "demo".to_owned(),
                owner: Who {
                    name: "alana".to_owned(),
                    key: Key::person("1"),
                },
                actor: Who::ourselves("schedule"),
                canceled_by: None,
                created_at: Timestamp::from_millisecond(n * 1000).expect("a time"),
                state: OperationState::Queued,
                ended_at: None,
                backup: None,
                error: None,
            };
            let add = async |run: &RunRow| {
                let mut tx = db.begin("test").await.expect("begun");
                insert(&mut tx, run).await?;
                tx.commit().await.map_err(Error::database("test"))
            };
            let end = async |run: &RunRow, state: OperationState, error: Option<&str>| {
                let mut tx = db.begin("test").await.expect("begun");
                set_state(&mut tx, run.id, state, error).await.expect("written");
                tx.commit().await.expect("committed");
            };
            let good = run(1);
            add(&good).await.expect("added");
            let busy = add(&run(2)).await.expect_err("one at a time");
            assert!(matches!(busy, Error::BackingUp { .. }), "{busy}");
            assert!(last(&db).await.expect("read")[0].1.open);
            end(&good, OperationState::Succeeded, None).await;
            for n in 2..REMEMBERED + 10 {
                let bad = run(n);
                add(&bad).await.expect("added");
                end(&bad, OperationState::Failed, Some("no leader")).await;
            }
            let read = last(&db).await.expect("read");
            let expected = Last {
                good: Some(1000),
                tried: Some((REMEMBERED + 9) * 1000),
                open: false,
            };
            assert_eq!(read, [(cluster, expected)]);
            let count = query("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM cluster_backups")
                .fetch_one(db.read())
                .await
                .expect("counted");
            let count: i64 = db::get(&count, "n").expect("a number");
            assert_eq!(count, REMEMBERED + 2, "the last good one is not forgotten");
            // The cluster is gone: its name, and its id, still lead to its backups, for those who had it.
            let (alana, eve) = (Key::person("1"), Key::person("2"));
            for text in ["demo", &cluster.to_string()] {
                let found = cluster_of(&db, text, Whose::Of(&alana)).await;
                assert_eq!(found.expect("found"), cluster);
                let other = cluster_of(&db, text, Whose::Of(&eve)).await;
                assert!(matches!(other, Err(Error::NoCluster(_))), "{other:?}");
            }
            let all = of_all(&db, Whose::All).await.expect("a list");
            assert!(all.len() == 1 && all[0].deleted && !all[0].running, "{all:?}");
            assert_eq!(all[0].last_success.as_deref(), Some("1970-01-01T00:00:01Z"));
            assert_eq!(all[0].error.as_deref(), Some("no leader"));
            assert!(of_all(&db, Whose::Of(&eve)).await.expect("a list").is_empty());
            let seen = one(&db, &good.id.to_string(), Whose::Of(&alana))
                .await
                .expect("it is there");
            assert_eq!(seen.state, OperationState::Succeeded);
            assert!(one(&db, &good.id.to_string(), Whose::Of(&eve)).await.is_err());
        })
        .await;
    }

    #[test]
    fn a_backup_is_due_after_the_interval_and_sooner_after_a_failure() {
        let (every, retry) = (Duration::from_secs(1000), Duration::from_secs(10));
        let id = |last: &str| -> ClusterId {
            format!("00000000-0000-7000-8000-0000000000{last}")
                .parse()
                .expect("an id")
        };
        let at = |good, tried| Last {
            good,
            tried,
            open: false,
        };
        let due = |last: Last| due(id("00"), last, every, retry);
        assert_eq!(due(at(None, None)), 0);
        assert_eq!(due(at(Some(5), Some(5))), 1_000_005);
        assert_eq!(due(at(None, Some(7))), 10_007, "it never worked");
        assert_eq!(
            due(at(Some(5), Some(7))),
            1_000_005,
            "asked for by hand; the regular one comes"
        );
        assert_eq!(due(at(Some(5), Some(2_000_000))), 2_010_000);
        let early = super::due(id("ff"), at(Some(0), Some(0)), every, retry);
        assert_eq!(early, 900_000, "a tenth early at most");
    }
}
