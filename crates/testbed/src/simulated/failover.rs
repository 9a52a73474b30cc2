//! How long it takes until another manager does what a dead one did.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use indexmap::IndexMap;
use serde::Serialize;
use stolos_api::pks::{self, ClusterParameters, ClusterRequest};
use stolos_store::DatabaseUrl;
use stolos_store::sqlx::{self, AnyConnection, Connection as _, Row as _};
use stolos_store::testing::Place;

use super::members::{World, patiently};

/// Between two looks: what is measured takes many times as long.
const TICK: Duration = Duration::from_millis(5);
/// Longer than anything that is measured may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The managers.
const NAMES: [&str; 2] = ["a", "b"];
/// Leases of all flows.
const LEASES: &str =
    "SELECT (SELECT COUNT(*) FROM director.store_leases WHERE name LIKE 'flow/%' AND holder LIKE $1)
    + (SELECT COUNT(*) FROM clusters.store_leases WHERE name LIKE 'flow/%' AND holder LIKE $1)";

/// What was measured: milliseconds from SIGKILL of a manager, one for each round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// Clusters that were in the making all the while.
    pub clusters: usize,
    /// Flows that belonged to the manager when it was killed.
    pub flows: Vec<u64>,
    /// Until a request on a new connection to the common address was answered.
    pub answered_ms: Vec<u64>,
    /// Until the first of its flows was the other's.
    pub first_ms: Vec<u64>,
    /// Until the last of them was.
    pub last_ms: Vec<u64>,
}

/// Kills one of two managers after the other, while clusters are in the making; `program` is as for [`World::new`].
///
/// # Errors
/// Where PostgreSQL or `nats-server` is missing, and when nobody goes on.
pub async fn measure(program: Utf8PathBuf, rounds: usize, clusters: usize) -> anyhow::Result<Measured> {
    let place = Place::postgres().await.map_err(anyhow::Error::msg)?;
    let nats_server = crate::programs::nats_server().map_err(anyhow::Error::msg)?;
    let directory = camino_tempfile::tempdir()?;
    let mut world = World::new(directory.path(), place.url(), program, nats_server, &NAMES, 1).await?;
    world.start().await?;
    world.upload().await?;
    // Machines come, and their jobs never start: flows that wait for them all the time.
    world
        .machines
        .state()
        .hanging
        .push("master/0 pre-start".to_owned());
    let client = world.access()?.client().await?;
    for number in 0..clusters {
        client.create_cluster(&request(number)).await?;
    }
    drop(client);
    let DatabaseUrl::Postgres { url } = place.url() else {
        anyhow::bail!("it is PostgreSQL");
    };
    let mut connection = AnyConnection::connect(url.expose()).await?;
    // An operation and its task each.
    wait_for(&mut connection, "%", |held| held >= 2 * clusters as u64).await?;

    let mut measured = Measured {
        clusters,
        ..Measured::default()
    };
    for round in 0..rounds {
        let victim = NAMES[round % NAMES.len()];
        let pattern = format!("%/{victim}%");
        let had = held(&mut connection, &pattern).await?;
        let access = world.access()?;
        let token_of = world.access_of(NAMES[(round + 1) % NAMES.len()])?;
        let killed = Instant::now();
        world.kill(victim).await?;
        let answering = async {
            patiently("an answer", async || {
                // A new connection each time, as of somebody who comes now.
                let client = access.client_with_tokens_of(&token_of).await?;
                anyhow::Ok(client.clusters().await?)
            })
            .await?;
            anyhow::Ok(killed.elapsed())
        };
        let taking = async {
            wait_for(&mut connection, &pattern, |held| held < had || had == 0).await?;
            let first = killed.elapsed();
            wait_for(&mut connection, &pattern, |held| held == 0).await?;
            anyhow::Ok((first, killed.elapsed()))
        };
        let (answered, (first, last)) = futures::future::try_join(answering, taking).await?;
        measured.flows.push(had);
        measured.answered_ms.push(millis(answered));
        measured.first_ms.push(millis(first));
        measured.last_ms.push(millis(last));
        world.start().await?;
    }
    Ok(measured)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn held(connection: &mut AnyConnection, holder: &str) -> anyhow::Result<u64> {
    let row = sqlx::query(LEASES).bind(holder).fetch_one(connection).await?;
    Ok(u64::try_from(row.try_get::<i64, _>(0)?)?)
}

async fn wait_for(
    connection: &mut AnyConnection,
    holder: &str,
    enough: impl Fn(u64) -> bool,
) -> anyhow::Result<()> {
    let waiting = async {
        while !enough(held(connection, holder).await?) {
            tokio::time::sleep(TICK).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .context("nobody went on with the flows")?
}

fn request(number: usize) -> ClusterRequest {
    let name = format!("c-{number}");
    pks::ClusterRequest {
        plan_name: "small".to_owned(),
        parameters: ClusterParameters {
            kubernetes_master_host: Some(format!("{name}.test")),
            ..ClusterParameters::default()
        },
        name,
        network_profile_name: None,
        compute_profile_name: None,
        kubernetes_profile_name: None,
        other: IndexMap::new(),
    }
}
