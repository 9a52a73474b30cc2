//! Metering: how large each cluster was for how long.
//!
//! An interval begins and ends in the transaction that writes what a cluster is to be, or that forgets it, so that restarts lose nothing and
//! nothing counts twice. Metered is what is allotted, from the acceptance of a request to the end of the deletion: what a host or a cloud bill knows.

use stolos_api::pks::Metered;
use stolos_base::ids::ClusterId;
use stolos_store::{Db, Migration, Tx, query};

use crate::db::{self, ClusterRow, Whose};
use crate::error::{Error, Result};
use crate::pods;

/// The intervals. Clusters of before this table are metered from their next change on.
pub(crate) const TABLE: Migration = Migration {
    number: 6,
    name: "metering",
    statements: &[
        "CREATE TABLE metering (
            cluster_id TEXT   NOT NULL,
            since      BIGINT NOT NULL,
            until      BIGINT,
            cluster    TEXT   NOT NULL,
            owner      TEXT   NOT NULL,
            machines   BIGINT NOT NULL,
            cpu        BIGINT NOT NULL,
            memory_mib BIGINT NOT NULL
        )",
        "CREATE INDEX metering_by_cluster ON metering (cluster_id, since)",
        // One open interval for each cluster.
        "CREATE UNIQUE INDEX metering_open ON metering (cluster_id) WHERE until IS NULL",
    ],
};

/// Begins to meter a cluster as it is now; an interval with another size ends. Nothing happens when the size is the same.
///
/// # Errors
/// Those of the database.
pub(crate) async fn note(tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
    let shape = cluster.shape();
    let amount = shape.amount();
    let machines: u64 = shape.groups().map(|group| u64::from(group.instances)).sum();
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let size = [signed(machines), signed(amount.cpu), signed(amount.memory_mib)];
    let open =
        query("SELECT machines, cpu, memory_mib FROM metering WHERE cluster_id = $1 AND until IS NULL")
            .bind(cluster.id.to_string())
            .fetch_optional(tx.conn())
            .await
            .map_err(|e| Error::database("read the meter")(e.into()))?;
    if let Some(row) = &open
        && [
            db::get::<i64>(row, "machines")?,
            db::get(row, "cpu")?,
            db::get(row, "memory_mib")?,
        ] == size
    {
        return Ok(());
    }
    // One time for both, so that no millisecond is lost between them.
    let now = tx.now_millis();
    end_at(tx, cluster.id, now).await?;
    query(
        "INSERT INTO metering (cluster_id, since, cluster, owner, machines, cpu, memory_mib, owner_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(cluster.id.to_string())
    .bind(now)
    .bind(cluster.name.as_str())
    .bind(&cluster.owner.name)
    .bind(size[0])
    .bind(size[1])
    .bind(size[2])
    .bind(cluster.owner.key.as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("write the meter")(e.into()))?;
    Ok(())
}

/// Begins to meter a cluster for the owner that it has from now on; what was before stays the former one's.
///
/// # Errors
/// Those of the database.
pub(crate) async fn hand_over(tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
    end(tx, cluster.id).await?;
    note(tx, cluster).await
}

/// Ends the metering of a cluster; fine when it is not metered.
///
/// # Errors
/// Those of the database.
pub(crate) async fn end(tx: &mut Tx, cluster: ClusterId) -> Result<()> {
    let now = tx.now_millis();
    end_at(tx, cluster, now).await
}

async fn end_at(tx: &mut Tx, cluster: ClusterId, now: i64) -> Result<()> {
    // A clock that was set back does not make an interval end before it began.
    query("UPDATE metering SET until = CASE WHEN since > $2 THEN since ELSE $2 END WHERE cluster_id = $1 AND until IS NULL")
        .bind(cluster.to_string())
        .bind(now)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("end the meter")(e.into()))?;
    Ok(())
}

/// What the caller's clusters, gone ones included, had between two times (milliseconds since 1970; the first inclusive, the last exclusive).
///
/// # Errors
/// Those of the database.
pub(crate) async fn report(db: &Db, whose: Whose<'_>, from: i64, to: i64) -> Result<Vec<Metered>> {
    let rows = query(
        "SELECT cluster_id, cluster, owner, since, until, machines, cpu, memory_mib, CAST(CASE WHEN owner_key = \
         (SELECT l.owner_key FROM metering AS l WHERE l.cluster_id = metering.cluster_id ORDER BY l.since DESC LIMIT 1) \
         THEN 1 ELSE 0 END AS BIGINT) AS is_last FROM metering \
         WHERE ($1 = '' OR owner_key = $1) AND since < $3 AND (until IS NULL OR until > $2) ORDER BY owner, cluster, cluster_id, since",
    )
    .bind(whose.owner())
    .bind(from)
    .bind(to)
    .fetch_all(db.read())
    .await
    .map_err(|e| Error::database("read the meter")(e.into()))?;
    let mut sums: Vec<(Metered, Millis)> = Vec::new();
    // Pods are not kept by owner: those of a cluster are shown with the one who has it, or had it last.
    let mut pods = pods::report(db, from, to).await?;
    for row in &rows {
        let uuid: String = db::get(row, "cluster_id")?;
        let since: i64 = db::get(row, "since")?;
        let until: Option<i64> = db::get(row, "until")?;
        let ms = i128::from(until.unwrap_or(to).min(to) - since.max(from));
        let times = |column: &str| -> Result<i128> { Ok(ms * i128::from(db::get::<i64>(row, column)?)) };
        let part = Millis {
            machines: times("machines")?,
            cpu: times("cpu")?,
            memory_mib: times("memory_mib")?,
        };
        let owner: String = db::get(row, "owner")?;
        match sums
            .last_mut()
            .filter(|(metered, _)| metered.uuid == uuid && metered.owner == owner)
        {
            Some((_, sum)) => sum.add(&part),
            None => {
                let is_last = db::get::<i64>(row, "is_last")? != 0;
                let pod_millis = is_last.then(|| pods.remove(&uuid)).flatten().unwrap_or(0);
                let metered = Metered {
                    uuid,
                    cluster: db::get(row, "cluster")?,
                    owner,
                    pod_seconds: pod_millis / 1000,
                    ..Metered::default()
                };
                sums.push((metered, part));
            }
        }
    }
    Ok(sums
        .into_iter()
        .map(|(metered, sum)| sum.shown(metered))
        .collect())
}

/// Sums in milliseconds, so that no interval loses its fraction of a second.
#[derive(Default)]
struct Millis {
    machines: i128,
    cpu: i128,
    memory_mib: i128,
}

impl Millis {
    fn add(&mut self, other: &Self) {
        self.machines += other.machines;
        self.cpu += other.cpu;
        self.memory_mib += other.memory_mib;
    }

    fn shown(&self, metered: Metered) -> Metered {
        let seconds = |ms: i128| i64::try_from(ms / 1000).unwrap_or(i64::MAX);
        Metered {
            machine_seconds: seconds(self.machines),
            cpu_seconds: seconds(self.cpu),
            memory_mib_seconds: seconds(self.memory_mib),
            ..metered
        }
    }
}
