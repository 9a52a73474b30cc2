//! Metering of pods: how many ran for how long in each cluster.
//!
//! Looked at once a minute, as PKS did (pks.md, section 3.1: billing polling). A pod's beginning, and its end where it ended by itself, are Kubernetes'
//! own times, so that restarts of ours lose nothing. A pod that was deleted ends with the last look that saw it: what nobody saw is not
//! metered, up to a minute for each pod. Pods of the cluster itself (`kube-system`) do not count.
//!
//! One process at a time looks ([`stolos_store::duty`]): an older look that is noted after a newer one would end pods that run.
//!
//! When no pod comes or goes, a look writes one row for each cluster: until when it was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use stolos_base::chain;
use stolos_base::ids::ClusterId;
use stolos_kubernetes::running::PodRun;
use stolos_store::{Db, Fence, Migration, Tx, duty, lease, query};
use tokio_util::sync::CancellationToken;

use crate::db::{self, ClusterRow, Whose};
use crate::deps::{Kubernetes, Vault};
use crate::error::{Error, Result};
use crate::render::deployment_name;

/// How often clusters are looked at.
const EVERY: Duration = Duration::from_secs(60);
/// Clusters that are looked at at the same time.
const AT_ONCE: usize = 4;
/// The namespace of the cluster's own pods.
const OWN: &str = "kube-system";

/// The pods, and until when each cluster was looked at.
pub(crate) const TABLE: Migration = Migration {
    number: 7,
    name: "metering of pods",
    statements: &[
        "CREATE TABLE metered_pods (
            cluster_id TEXT   NOT NULL,
            uid        TEXT   NOT NULL,
            namespace  TEXT   NOT NULL,
            since      BIGINT NOT NULL,
            until      BIGINT,
            PRIMARY KEY (cluster_id, uid)
        )",
        "CREATE INDEX metered_pods_open ON metered_pods (cluster_id) WHERE until IS NULL",
        "CREATE TABLE metered_pods_looks (
            cluster_id TEXT   PRIMARY KEY,
            at         BIGINT NOT NULL
        )",
    ],
};

/// The name of the duty.
const DUTY: &str = "metering of pods";

/// What looking needs.
#[derive(Clone)]
pub(crate) struct Meter {
    pub(crate) db: Db,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) kubernetes: Arc<dyn Kubernetes>,
}

/// Looks again and again while it is this process's duty, until `stop` fires.
pub(crate) async fn run(meter: Meter, holder: String, stop: CancellationToken) -> Result<(), Infallible> {
    let db = meter.db.clone();
    duty::hold(db, DUTY, holder, stop, |fence| {
        look_for_ever(meter.clone(), fence)
    })
    .await;
    Ok(())
}

async fn look_for_ever(meter: Meter, fence: Fence) {
    loop {
        tokio::time::sleep(EVERY).await;
        let clusters = match db::clusters(&meter.db, Whose::All).await {
            Ok(clusters) => clusters,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "failed to list the clusters whose pods are metered");
                continue;
            }
        };
        let running = clusters.into_iter().filter(|cluster| !cluster.settings.stopped);
        futures::stream::iter(running)
            .for_each_concurrent(AT_ONCE, |cluster| {
                let (meter, fence) = (&meter, &fence);
                async move {
                    if let Err(error) = look(meter, fence, &cluster).await {
                        // A cluster that is not well says so elsewhere.
                        tracing::debug!(cluster = %cluster.name, error = %chain(&error), "failed to look at the pods of a cluster");
                    }
                }
            })
            .await;
    }
}

async fn look(meter: &Meter, fence: &Fence, cluster: &ClusterRow) -> Result<()> {
    let address: Option<Ipv4Addr> = cluster.address.as_ref().and_then(|text| text.parse().ok());
    // One without an address has never run.
    let Some(address) = address else { return Ok(()) };
    let admin = meter.vault.admin(&deployment_name(cluster.id)).await?;
    let runs = meter.kubernetes.pod_runs(address, &admin).await?;
    let mut tx = meter
        .db
        .begin("meter pods")
        .await
        .map_err(Error::database("begin metering pods"))?;
    lease::verify(&mut tx, fence)
        .await
        .map_err(Error::database("show the right to meter pods"))?;
    // It may have been deleted meanwhile, and what was closed then stays closed.
    let is_there = query("SELECT id FROM clusters WHERE id = $1")
        .bind(cluster.id.to_string())
        .fetch_optional(tx.conn())
        .await
        .map_err(|e| Error::database("look for the cluster")(e.into()))?
        .is_some();
    if is_there {
        note(&mut tx, cluster.id, &runs).await?;
    }
    tx.commit().await.map_err(Error::database("meter pods"))
}

/// Takes what one look saw.
pub(crate) async fn note(tx: &mut Tx, cluster: ClusterId, runs: &[PodRun]) -> Result<()> {
    let now = tx.now_millis();
    let id = cluster.to_string();
    let failed = |e: stolos_store::sqlx::Error| Error::database("meter pods")(e.into());
    let last: i64 = match query("SELECT at FROM metered_pods_looks WHERE cluster_id = $1")
        .bind(&id)
        .fetch_optional(tx.conn())
        .await
        .map_err(failed)?
    {
        Some(row) => db::get(&row, "at")?,
        None => now,
    };
    let open: BTreeSet<String> =
        query("SELECT uid FROM metered_pods WHERE cluster_id = $1 AND until IS NULL")
            .bind(&id)
            .fetch_all(tx.conn())
            .await
            .map_err(failed)?
            .iter()
            .map(|row| db::get(row, "uid"))
            .collect::<Result<_>>()?;
    let seen: BTreeMap<&str, &PodRun> = runs
        .iter()
        .filter(|run| run.namespace != OWN)
        .map(|run| (run.uid.as_str(), run))
        .collect();
    for uid in &open {
        let until = match seen.get(uid.as_str()) {
            Some(run) => run.until,
            None => Some(last),
        };
        if let Some(until) = until {
            query("UPDATE metered_pods SET until = CASE WHEN since > $3 THEN since ELSE $3 END WHERE cluster_id = $1 AND uid = $2")
                .bind(&id)
                .bind(uid)
                .bind(until)
                .execute(tx.conn())
                .await
                .map_err(failed)?;
        }
    }
    for (uid, run) in seen {
        if open.contains(uid) {
            continue;
        }
        // One that is over may have been taken already.
        query(
            "INSERT INTO metered_pods (cluster_id, uid, namespace, since, until) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (cluster_id, uid) DO NOTHING",
        )
        .bind(&id)
        .bind(uid)
        .bind(&run.namespace)
        .bind(run.since.min(now))
        .bind(run.until)
        .execute(tx.conn())
        .await
        .map_err(failed)?;
    }
    query(
        "INSERT INTO metered_pods_looks (cluster_id, at) VALUES ($1, $2)
         ON CONFLICT (cluster_id) DO UPDATE SET at = excluded.at",
    )
    .bind(&id)
    .bind(now)
    .execute(tx.conn())
    .await
    .map_err(failed)?;
    Ok(())
}

/// Ends the metering of a cluster's pods, with the last look at it.
pub(crate) async fn end(tx: &mut Tx, cluster: ClusterId) -> Result<()> {
    let id = cluster.to_string();
    let failed = |e: stolos_store::sqlx::Error| Error::database("end the metering of pods")(e.into());
    query(
        "UPDATE metered_pods SET until =
            (SELECT CASE WHEN at > metered_pods.since THEN at ELSE metered_pods.since END FROM metered_pods_looks
             WHERE metered_pods_looks.cluster_id = $1)
         WHERE cluster_id = $1 AND until IS NULL",
    )
    .bind(&id)
    .execute(tx.conn())
    .await
    .map_err(failed)?;
    query("DELETE FROM metered_pods_looks WHERE cluster_id = $1")
        .bind(&id)
        .execute(tx.conn())
        .await
        .map_err(failed)?;
    Ok(())
}

/// Milliseconds that pods ran between two times, by cluster. Those that run count up to the last look.
pub(crate) async fn report(db: &Db, from: i64, to: i64) -> Result<BTreeMap<String, i64>> {
    let rows = query(
        "SELECT cluster_id, CAST(SUM(ends - begins) AS BIGINT) AS ms FROM (
            SELECT p.cluster_id,
                CASE WHEN p.since > $1 THEN p.since ELSE $1 END AS begins,
                CASE WHEN COALESCE(p.until, l.at) < $2 THEN COALESCE(p.until, l.at) ELSE $2 END AS ends
            FROM metered_pods p LEFT JOIN metered_pods_looks l ON l.cluster_id = p.cluster_id
            WHERE p.since < $2 AND COALESCE(p.until, l.at) > $1
         ) AS parts WHERE ends > begins GROUP BY cluster_id",
    )
    .bind(from)
    .bind(to)
    .fetch_all(db.read())
    .await
    .map_err(|e| Error::database("read the metering of pods")(e.into()))?;
    rows.iter()
        .map(|row| Ok((db::get(row, "cluster_id")?, db::get(row, "ms")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use stolos_base::{Clock, IdSource};
    use stolos_store::testing::each;

    use super::*;

    fn pod(uid: &str, namespace: &str, since: i64, until: Option<i64>) -> PodRun {
        PodRun {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            since,
            until,
        }
    }

    #[tokio::test]
    async fn pods_count_from_their_start_to_their_end_or_the_last_look() {
        each(async |place| {
            let clock = Clock::manual("2026-11-01T00:00:00Z".parse().expect("a time"));
            let start = clock.now_millis();
            let mut db = place.open_at(&crate::SCHEMA, clock.clone()).await;
            let cluster = ClusterId::new(&IdSource::counted());
            let id = cluster.to_string();
            let see = async |db: &Db, runs: &[PodRun]| {
                let mut tx = db.begin("see").await.expect("a transaction");
                note(&mut tx, cluster, runs).await.expect("noted");
                tx.commit().await.expect("committed");
            };
            let sum = async |db: &Db, from: i64, to: i64| {
                let found = report(db, from, to).await.expect("a report");
                found.get(&id).copied().unwrap_or(0)
            };
            let minute = Duration::from_secs(60);
            clock.advance(minute);
            let long = pod("long", "web", start, None);
            let own = pod("dns", "kube-system", start, None);
            see(&db, &[long.clone(), own.clone()]).await;
            assert_eq!(
                sum(&db, start, start + 600_000).await,
                60_000,
                "up to the last look"
            );
            clock.advance(minute);
            let ended = pod("job", "web", start + 61_000, Some(start + 71_000));
            see(&db, &[long.clone(), own, ended.clone()]).await;
            assert_eq!(sum(&db, start, start + 600_000).await, 130_000);
            // A restart of ours: nothing is lost, nothing counts twice.
            db.close().await;
            db = place.open_at(&crate::SCHEMA, clock.clone()).await;
            clock.advance(minute);
            see(&db, &[long.clone(), ended]).await;
            assert_eq!(sum(&db, start, start + 600_000).await, 190_000);
            assert_eq!(
                sum(&db, start + 60_000, start + 120_000).await,
                70_000,
                "a part of it"
            );
            // Deleted between two looks: it ends with the last that saw it.
            clock.advance(minute);
            see(&db, &[]).await;
            clock.advance(minute);
            see(&db, &[pod("next", "web", start + 290_000, None)]).await;
            assert_eq!(sum(&db, start, start + 600_000).await, 200_000);
            let mut tx = db.begin("end").await.expect("a transaction");
            end(&mut tx, cluster).await.expect("ended");
            tx.commit().await.expect("committed");
            clock.advance(minute);
            assert_eq!(
                sum(&db, start, start + 600_000).await,
                200_000,
                "the cluster is gone"
            );
            db.close().await;
        })
        .await;
    }
}
