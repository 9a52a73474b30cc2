//! What one who asks waits for, while operations on a whole fleet are running on the same processors.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use futures::future::{try_join, try_join_all};
use serde_json::{Value, json};
use stolos_api::http::Error;
use stolos_api::pks::{
    Client, Cluster, ClusterParameters, ClusterRequest, LastAction, LastActionState, PageOf, UpdateParameters,
};
use stolos_base::Clock;
use stolos_store::{Db, Migration, Part, Schema, query};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Engine, Served, print};
use stolos_testbed::simulated::Access;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Clusters
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=245))]
    clusters: u32,
    /// How often all of them are made, changed and deleted
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The database's engine
    #[arg(long, value_enum, default_value_t = Engine::Sqlite)]
    database: Engine,
}

/// People who ask for clusters at the same time, each on a connection of their own.
const ASKING: u32 = 4;
/// Between two rounds of reading: a console that looks at everything and is never still.
const PAUSE: Duration = Duration::from_millis(50);
/// How many clusters a page has.
const PAGE: u32 = 50;
/// Tokens last ten minutes.
const TOKEN_AGE: Duration = Duration::from_secs(300);
/// The whole fleet is made on two processors.
const PHASE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The floor: a table in the same place.
static FLOOR: Schema = Schema {
    name: "bench",
    parts: &[&Part {
        name: "bench",
        migrations: &[Migration {
            number: 1,
            name: "rows",
            statements: &["CREATE TABLE rows (id BIGINT PRIMARY KEY, body TEXT NOT NULL)"],
        }],
    }],
};

/// What is asked of each cluster, and what it then is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Create,
    Resize,
    Delete,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Resize => "resize",
            Self::Delete => "delete",
        }
    }

    /// How many clusters have come through, of those that there are.
    fn through(self, clusters: &[Cluster], all: u32) -> anyhow::Result<u32> {
        if let Some(failed) = clusters
            .iter()
            .find(|cluster| cluster.last_action_state == LastActionState::Failed)
        {
            bail!("{}: {}", failed.name, failed.last_action_description);
        }
        let action = match self {
            Self::Create => LastAction::Create,
            Self::Resize => LastAction::Update,
            Self::Delete => return Ok(all - u32::try_from(clusters.len())?),
        };
        let done = |cluster: &&Cluster| {
            cluster.last_action == action && cluster.last_action_state == LastActionState::Succeeded
        };
        Ok(u32::try_from(clusters.iter().filter(done).count())?)
    }
}

/// Microseconds by what was asked.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<BTreeMap<&'static str, Vec<u64>>>>);

impl Times {
    async fn of<T, E>(&self, what: &'static str, asked: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let answer = asked.await?;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(what).or_default().push(micros);
        Ok(answer)
    }
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let (mut server, served) = start(self.database).await?;
        let floor = Db::open(&served.database.parse()?, &FLOOR, Clock::system()).await?;
        let pid = server.id().context("it has ended")?;
        let times = Times::default();
        let mut phases: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let mut bench = Bench {
            access: served.access,
            floor,
            rows: 0,
            times: times.clone(),
            clusters: self.clusters,
        };
        let idle = memory(pid)?;
        let mut full = 0;
        for _ in 0..self.rounds {
            for phase in [Phase::Create, Phase::Resize, Phase::Delete] {
                let (began, used) = (Instant::now(), processor_ms(pid)?);
                let asked = bench.phase(phase).await?;
                let numbers = json!({
                    "asked_ms": asked.as_millis(),
                    "all_ms": began.elapsed().as_millis(),
                    "processor_ms": processor_ms(pid)? - used,
                });
                phases.entry(phase.name()).or_default().push(numbers);
                if phase == Phase::Resize {
                    full = full.max(memory(pid)?);
                }
            }
        }
        bench.floor.close().await;
        drop(server.stdin.take());
        server.wait().await?;
        let requests = times.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        print(&serde_json::to_string(&json!({
            "database": self.database.name(),
            "clusters": self.clusters,
            "rounds": self.rounds,
            "asking_at_once": ASKING,
            "requests_us": requests,
            "phases": phases,
            "memory_kib": {"idle": idle, "fleet": full},
        }))?)
    }
}

/// Runs `serve` in a process of its own, so that its memory and its processor time are its own.
pub(super) async fn start(engine: Engine) -> anyhow::Result<(Child, Served)> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", "--database", engine.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = server.stdout.take().context("it has no output")?;
    let line = BufReader::new(out).lines().next_line().await?;
    let line = line.context("the installation did not start")?;
    Ok((server, serde_json::from_str(&line)?))
}

struct Bench {
    access: Access,
    floor: Db,
    rows: i64,
    times: Times,
    clusters: u32,
}

impl Bench {
    /// Asks for everything, reads all the while, and waits for the end of all operations; how long the asking took.
    async fn phase(&mut self, phase: Phase) -> anyhow::Result<Duration> {
        let (began, asked) = (Instant::now(), OnceLock::new());
        let (access, times, all) = (self.access.clone(), self.times.clone(), self.clusters);
        let asking = async {
            try_join_all((0..ASKING).map(|first| ask_for_some(&access, &times, phase, first, all))).await?;
            let _ = asked.set(began.elapsed());
            anyhow::Ok(())
        };
        let reading = async {
            let mut client = (self.access.client().await?, Instant::now());
            loop {
                if client.1.elapsed() > TOKEN_AGE {
                    client = (self.access.client().await?, Instant::now());
                }
                let clusters = self.read(&client.0).await?;
                if let Some(asked) = asked.get()
                    && phase.through(&clusters, all)? == all
                {
                    return anyhow::Ok(*asked);
                }
                if began.elapsed() > PHASE_LIMIT {
                    bail!("{} does not end", phase.name());
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        try_join(asking, reading).await.map(|((), asked)| asked)
    }

    /// Everything that is read, one after the other, and the floor beside it.
    async fn read(&mut self, client: &Client) -> anyhow::Result<Vec<Cluster>> {
        let times = self.times.clone();
        times.of("info", client.info()).await?;
        let clusters = times.of("list", client.clusters()).await?;
        let page = PageOf {
            limit: Some(PAGE),
            after: None,
        };
        let first = times.of("page", client.cluster_page(None, page)).await?;
        let page = PageOf {
            after: first.next.as_deref(),
            ..page
        };
        if page.after.is_some() {
            times.of("page", client.cluster_page(None, page)).await?;
        }
        let page = PageOf { after: None, ..page };
        times.of("search", client.cluster_page(Some("-1"), page)).await?;
        times
            .of("operations", client.operation_page(None, PageOf::default()))
            .await?;
        if let Some(cluster) = clusters.get(clusters.len() / 2) {
            match times.of("show", client.cluster(&cluster.name)).await {
                // It was deleted meanwhile.
                Err(Error::Refused(refusal)) if refusal.status == 404 => {}
                other => drop(other?),
            }
        }
        self.rows += 1;
        times.of("insert", insert(&self.floor, self.rows)).await?;
        Ok(clusters)
    }
}

async fn insert(db: &Db, id: i64) -> Result<(), stolos_store::Error> {
    let mut tx = db.begin("the floor").await?;
    query("INSERT INTO rows (id, body) VALUES ($1, $2)")
        .bind(id)
        .bind("a row")
        .execute(tx.conn())
        .await?;
    tx.commit().await
}

/// Every so-manyth cluster, on one connection.
async fn ask_for_some(
    access: &Access,
    times: &Times,
    phase: Phase,
    first: u32,
    all: u32,
) -> anyhow::Result<()> {
    let client = access.client().await?;
    for number in (first..all).step_by(ASKING as usize) {
        ask(&client, times, phase, number).await?;
    }
    Ok(())
}

async fn ask(client: &Client, times: &Times, phase: Phase, number: u32) -> anyhow::Result<()> {
    let name = format!("cluster-{number}");
    match phase {
        Phase::Create => {
            let request = ClusterRequest {
                plan_name: "small".to_owned(),
                parameters: ClusterParameters {
                    kubernetes_master_host: Some(format!("{name}.test")),
                    ..ClusterParameters::default()
                },
                name,
                network_profile_name: None,
                compute_profile_name: None,
                kubernetes_profile_name: None,
                other: indexmap::IndexMap::new(),
            };
            times.of("create", client.create_cluster(&request)).await?;
        }
        Phase::Resize => {
            let change = UpdateParameters {
                kubernetes_worker_instances: Some(2),
                ..UpdateParameters::default()
            };
            times.of("resize", client.update_cluster(&name, &change)).await?;
        }
        Phase::Delete => {
            times.of("delete", client.delete_cluster(&name)).await?;
        }
    }
    Ok(())
}

/// Resident memory in KiB.
pub(super) fn memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.context("the process has no memory")
}

/// Processor time so far in milliseconds; Linux counts it in hundredths of a second for programs.
fn processor_ms(pid: u32) -> anyhow::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name, which may hold anything, in parentheses.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let mut times = fields.context("the process is gone")?.skip(11);
    let mut next = || times.next().and_then(|field| field.parse::<u64>().ok());
    match (next(), next()) {
        (Some(user), Some(system)) => Ok((user + system) * 10),
        _ => bail!("the process has no times"),
    }
}
