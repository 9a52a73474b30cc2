//! Several managers: one is killed (SIGKILL) in the middle of everything, the others go on, and nothing happens twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use camino_tempfile::Utf8TempDir;
use rustix::process::Signal;
use stolos_api::pks::{self, ClusterParameters, ClusterRequest, LastActionState, UpdateParameters};
use stolos_base::poll;
use stolos_store::DatabaseUrl;
use stolos_store::sqlx::{self, Connection as _, Row as _};
use stolos_store::testing::Place;
use stolos_testbed::simulated::members::{World, patiently};
use stolos_testbed::{note, programs, skip};

/// How long everything together may take; it is all on two processors.
const LIMIT: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(50);
/// Clusters; each has two machines.
const CLUSTERS: usize = 12;

/// A world with managers `a` and `b`, ready to be asked; `None`, and the reason on standard error, where it cannot be.
async fn world(test: &str, bus_servers: usize) -> Option<(Utf8TempDir, Database, World)> {
    let place = match Place::postgres().await {
        Ok(place) => place,
        Err(reason) => {
            skip(test, reason);
            return None;
        }
    };
    let nats_server = match programs::nats_server() {
        Ok(program) => program,
        Err(reason) => {
            skip(test, reason);
            return None;
        }
    };
    let directory = camino_tempfile::tempdir().expect("a directory");
    let world = World::new(
        directory.path(),
        place.url(),
        env!("CARGO_BIN_EXE_stolos-simulated").into(),
        nats_server,
        &["a", "b"],
        bus_servers,
    );
    let world = world.await.expect("a world");
    // In this order: the last is dropped first, and finds the servers that it ends by their records in the directory.
    Some((directory, Database(place), world))
}

/// Looks at the tables of the services, as no service does.
struct Database(Place);

impl Database {
    async fn rows(&self, sql: &'static str) -> Vec<sqlx::any::AnyRow> {
        let DatabaseUrl::Postgres { url } = self.0.url() else {
            panic!("it is PostgreSQL")
        };
        let mut connection = sqlx::AnyConnection::connect(url.expose())
            .await
            .expect("a connection");
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.expect("rows");
        connection.close().await.expect("closed");
        rows
    }

    async fn number(&self, sql: &'static str) -> i64 {
        self.rows(sql).await[0].try_get(0).expect("a number")
    }
}

fn request(number: usize) -> ClusterRequest {
    let name = format!("c-{number}");
    ClusterRequest {
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
    }
}

/// A client of whichever manager answers.
async fn client(world: &World) -> pks::Client {
    let access = world.access().expect("an administrator");
    patiently("a token", async || access.client().await)
        .await
        .expect("a client")
}

/// The clusters, however often a manager dies meanwhile.
async fn clusters(world: &World) -> Vec<pks::Cluster> {
    let client = client(world).await;
    patiently("the clusters", async || client.clusters().await)
        .await
        .expect("the clusters")
}

/// Waits until so many clusters are as they should be.
async fn until(world: &World, what: &str, enough: usize, is_done: impl Fn(&[pks::Cluster]) -> usize) {
    poll::until(what, TICK, LIMIT, async || {
        let clusters = clusters(world).await;
        for cluster in &clusters {
            assert_ne!(cluster.last_action_state, LastActionState::Failed, "{cluster:?}");
        }
        let done = is_done(&clusters);
        if done >= enough {
            Ok(())
        } else {
            Err(format!("{done} of {enough}"))
        }
    })
    .await
    .expect(what);
}

fn succeeded(action: pks::LastAction) -> impl Fn(&[pks::Cluster]) -> usize {
    move |clusters| {
        let done = |cluster: &&pks::Cluster| {
            cluster.last_action == action && cluster.last_action_state == LastActionState::Succeeded
        };
        clusters.iter().filter(done).count()
    }
}

/// Who has how many flows.
async fn flows(database: &Database) -> BTreeMap<String, i64> {
    let rows = database
        .rows(
            "SELECT holder FROM director.store_leases WHERE name LIKE 'flow/%' AND holder <> ''
             UNION ALL SELECT holder FROM clusters.store_leases WHERE name LIKE 'flow/%' AND holder <> ''",
        )
        .await;
    let mut flows = BTreeMap::new();
    for row in rows {
        let holder: String = row.try_get("holder").expect("a holder");
        // `director@sim/a`, `clusters@sim/a tasks`
        let name = holder
            .split('/')
            .next_back()
            .and_then(|rest| rest.split(' ').next());
        *flows.entry(name.unwrap_or_default().to_owned()).or_default() += 1;
    }
    flows
}

/// The manager that has most to do, and how much, as soon as it is time by the number of machines: in the middle of everything.
async fn busiest(world: &World, database: &Database, is_time: impl Fn(usize) -> bool) -> (String, i64) {
    poll::until("the middle", TICK, LIMIT, async || {
        let machines = world.machines.books().vms.len();
        let flows = flows(database).await;
        match flows.into_iter().max_by_key(|(_, many)| *many) {
            Some(most) if is_time(machines) => Ok(most),
            most => Err(format!("{machines} machines, {most:?}")),
        }
    })
    .await
    .expect("the middle")
}

/// Waits until nothing belongs to the dead any more, and prints how long that took; it asserts nothing about time.
async fn taken_over(database: &Database, dead: &str, had: i64, since: Instant) {
    poll::until("the takeover", TICK, LIMIT, async || {
        match flows(database).await.get(dead) {
            None => Ok(()),
            Some(left) => Err(format!("{left} flows of {dead}")),
        }
    })
    .await
    .expect("the other goes on");
    note(format!(
        "{dead} was gone with {had} flows, the last was taken over after {:?}",
        since.elapsed()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_is_killed_in_the_middle_of_everything() {
    const TEST: &str = "a_manager_is_killed_in_the_middle_of_everything";
    let Some((_directory, database, mut world)) = world(TEST, 3).await else {
        return;
    };
    world.start().await.expect("managers");
    patiently("the upload", async || world.upload().await)
        .await
        .expect("uploaded");

    // Made, while one dies.
    {
        let client = client(&world).await;
        for number in 0..CLUSTERS {
            client.create_cluster(&request(number)).await.expect("accepted");
        }
    }
    let (dead, had) = busiest(&world, &database, |machines| machines >= CLUSTERS / 2).await;
    world.kill(&dead).await.expect("killed");
    taken_over(&database, &dead, had, Instant::now()).await;
    until(
        &world,
        "all clusters",
        CLUSTERS,
        succeeded(pks::LastAction::Create),
    )
    .await;
    assert_eq!(world.machines.books().vms.len(), 2 * CLUSTERS);

    // Changed, while one dies, and a server of the bus with it.
    world.start().await.expect("the dead one again");
    {
        let client = client(&world).await;
        let change = UpdateParameters {
            kubernetes_worker_instances: Some(2),
            ..UpdateParameters::default()
        };
        for number in 0..CLUSTERS {
            let name = format!("c-{number}");
            client.update_cluster(&name, &change).await.expect("accepted");
        }
    }
    let (dead, had) = busiest(&world, &database, |machines| machines > 2 * CLUSTERS).await;
    world.kill(&dead).await.expect("killed");
    let since = Instant::now();
    world.bus()[0].signal(Signal::KILL).expect("killed");
    taken_over(&database, &dead, had, since).await;
    until(
        &world,
        "all changes",
        CLUSTERS,
        succeeded(pks::LastAction::Update),
    )
    .await;
    assert_eq!(world.machines.books().vms.len(), 3 * CLUSTERS);
    assert_eq!(world.bus().len(), 3, "the server was started again");
    nothing_twice(&world, &database).await;

    // Deleted, while one is frozen for longer than its leases last, and goes on then.
    world.start().await.expect("the dead one again");
    {
        let client = client(&world).await;
        for number in 0..CLUSTERS {
            client
                .delete_cluster(&format!("c-{number}"))
                .await
                .expect("accepted");
        }
    }
    let (frozen, had) = busiest(&world, &database, |machines| machines < 3 * CLUSTERS).await;
    let other = if frozen == "a" { "b" } else { "a" };
    let single = world.access_of(other).expect("the other").client().await;
    let single = single.expect("a client");
    world.signal(&frozen, Signal::STOP).expect("frozen");
    taken_over(&database, &frozen, had, Instant::now()).await;
    world.signal(&frozen, Signal::CONT).expect("goes on");
    poll::until("all deletions", TICK, LIMIT, async || {
        let left = single.clusters().await.map_err(|error| error.to_string())?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{} are left", left.len()))
        }
    })
    .await
    .expect("all deletions");
    let books = world.machines.books();
    assert!(books.vms.is_empty() && books.disks.is_empty(), "{books:?}");
    nothing_twice(&world, &database).await;
    for name in ["a", "b"] {
        world.end(name).await.expect("an orderly end");
    }
}

/// Every call that changes something was made once, every operation was one task, and what is metered has no gaps and no overlaps.
async fn nothing_twice(world: &World, database: &Database) {
    let mut made: BTreeMap<String, usize> = BTreeMap::new();
    for call in world.calls() {
        if let Some(id) = call.id {
            *made.entry(format!("{} {id}", call.method)).or_default() += 1;
        }
    }
    let twice: Vec<_> = made.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");

    let tasks = database
        .rows("SELECT context_id, COUNT(*) AS many FROM director.tasks WHERE context_id <> '' AND kind IN ('update_deployment', 'delete_deployment') GROUP BY context_id")
        .await;
    let mut contexts = BTreeSet::new();
    for row in &tasks {
        let context: String = row.try_get("context_id").expect("a context");
        assert_eq!(
            row.try_get::<i64, _>("many").expect("a number"),
            1,
            "operation {context}"
        );
        contexts.insert(context);
    }
    let operations = database.number("SELECT COUNT(*) FROM clusters.operations").await;
    assert_eq!(contexts.len(), usize::try_from(operations).expect("a number"));

    let metered = database
        .rows("SELECT cluster_id, since, until FROM clusters.metering ORDER BY cluster_id, since")
        .await;
    let mut intervals: BTreeMap<String, Vec<(i64, Option<i64>)>> = BTreeMap::new();
    for row in &metered {
        let cluster = row.try_get("cluster_id").expect("an id");
        let since = row.try_get("since").expect("a time");
        let until = row.try_get("until").expect("a time");
        intervals.entry(cluster).or_default().push((since, until));
    }
    assert_eq!(intervals.len(), CLUSTERS);
    for (cluster, intervals) in intervals {
        assert_eq!(
            intervals.len(),
            2,
            "made and changed once: {cluster} {intervals:?}"
        );
        assert_eq!(intervals[0].1, Some(intervals[1].0), "{cluster} {intervals:?}");
    }

    // Output has no line that is cut off or mixed with another process's.
    let output = database
        .rows("SELECT task, body FROM director.task_output WHERE kind = 'event' ORDER BY task, first")
        .await;
    let mut events: BTreeMap<i64, String> = BTreeMap::new();
    for row in &output {
        let body: String = row.try_get("body").expect("a text");
        events
            .entry(row.try_get("task").expect("a task"))
            .or_default()
            .push_str(&body);
    }
    for (task, text) in events {
        for line in text.lines() {
            if let Err(error) = serde_json::from_str::<serde_json::Value>(line) {
                panic!("task {task}: {error}: {line}");
            }
        }
    }
}

/// Who waits at one manager hears what another one does, as it happens; and whoever is asked to cancel, the one that works stops.
#[tokio::test(flavor = "multi_thread")]
async fn managers_hear_of_each_other() {
    const TEST: &str = "managers_hear_of_each_other";
    let Some((_directory, _database, mut world)) = world(TEST, 1).await else {
        return;
    };
    world.start().await.expect("managers");
    patiently("the upload", async || world.upload().await)
        .await
        .expect("uploaded");
    world
        .machines
        .state()
        .hanging
        .push("master/0 pre-start".to_owned());
    let (a, b) = (
        world.access_of("a").expect("a manager"),
        world.access_of("b").expect("a manager"),
    );
    // A token of one is as good at the other.
    let access = world.access().expect("an installation");
    let (first, second) = (
        a.client_with_tokens_of(&access).await.expect("a client"),
        b.client_with_tokens_of(&access).await.expect("a client"),
    );
    let (_, begun) = first.create_cluster(&request(0)).await.expect("accepted");
    let operation = begun.operation.expect("an operation");
    // Long polls at the other manager return with news, long before their limit.
    let mut looks = 0;
    let seen = tokio::time::timeout(LIMIT, async {
        loop {
            looks += 1;
            let shown = second
                .operation(&operation, Duration::from_secs(30))
                .await
                .expect("the operation");
            if shown
                .steps
                .iter()
                .any(|step| step.name == "Deploy machines" && step.state == "running")
            {
                break shown;
            }
        }
    })
    .await
    .expect("the other manager hears of the step");
    note(format!("{looks} looks until {:?}", seen.state));
    let asked = Instant::now();
    second.cancel_operation(&operation).await.expect("asked");
    let ended = tokio::time::timeout(LIMIT, async {
        loop {
            let shown = second
                .operation(&operation, Duration::from_secs(30))
                .await
                .expect("the operation");
            if shown.state.is_final() {
                break shown;
            }
        }
    })
    .await
    .expect("it ends");
    note(format!("cancelled at the other manager: {:?}", asked.elapsed()));
    assert_eq!(ended.state, pks::OperationState::Cancelled);
    for name in ["a", "b"] {
        world.end(name).await.expect("an orderly end");
    }
}

/// Two that start for the first time, at once: everything that is made once is the same for both.
#[tokio::test(flavor = "multi_thread")]
async fn two_managers_start_for_the_first_time_at_once() {
    const TEST: &str = "two_managers_start_for_the_first_time_at_once";
    for _ in 0..10 {
        let Some((_directory, database, mut world)) = world(TEST, 1).await else {
            return;
        };
        let began = Instant::now();
        world.start().await.expect("both");
        note(format!("both are ready after {:?}", began.elapsed()));
        let (a, b) = (
            world.access_of("a").expect("a manager"),
            world.access_of("b").expect("a manager"),
        );
        assert_eq!(a.ca, b.ca, "one CA");
        // One password, and tokens of each are good at each: one signing key.
        let mut ids = BTreeSet::new();
        for (giver, taker) in [(&a, &b), (&b, &a)] {
            let client = taker.client_with_tokens_of(giver).await.expect("a token");
            assert!(client.clusters().await.expect("the token is good").is_empty());
            let director = giver.director_client().await.expect("a director");
            ids.insert(director.info().await.expect("its id").uuid);
        }
        assert_eq!(ids.len(), 1, "one director");
        for row in database
            .rows("SELECT name, COUNT(*) AS many FROM credentials.credentials_versions v JOIN credentials.credentials_names n ON n.key = v.key GROUP BY name")
            .await
        {
            let name: String = row.try_get("name").expect("a name");
            assert_eq!(row.try_get::<i64, _>("many").expect("a number"), 1, "versions of {name}");
        }
        assert_eq!(
            database
                .number("SELECT COUNT(*) FROM identity.identity_users")
                .await,
            1
        );
        assert_eq!(world.bus().len(), 1);
        for name in ["a", "b"] {
            world.end(name).await.expect("an orderly end");
        }
    }
}

/// A newer program has changed the database: an older manager says so and does not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_older_than_the_database_refuses_it() {
    const TEST: &str = "a_manager_older_than_the_database_refuses_it";
    let Some((_directory, database, mut world)) = world(TEST, 1).await else {
        return;
    };
    world.start().await.expect("managers");
    world.end("a").await.expect("an orderly end");
    database
        .rows(
            "INSERT INTO clusters.store_migrations (part, number, name, digest, applied_at)
             VALUES ('clusters', 999, 'from the future', '', 0) RETURNING part",
        )
        .await;
    let words = world.refused("a").await.expect("it does not start");
    assert!(
        words.contains("database `clusters` has migration clusters/999 `from the future`")
            && words.contains("older than the database"),
        "{words}"
    );
}

/// One host's clock is an hour ahead, the other's an hour behind: the database's counts. Neither takes the other's work away, each takes the other's tokens,
/// and what a dead one had is taken over as soon as ever.
#[tokio::test(flavor = "multi_thread")]
async fn managers_whose_clocks_are_wrong_agree() {
    const TEST: &str = "managers_whose_clocks_are_wrong_agree";
    const HOUR: i64 = 3_600_000;
    let Some((_directory, database, mut world)) = world(TEST, 1).await else {
        return;
    };
    world.set_clock("a", HOUR).expect("a name");
    world.set_clock("b", -HOUR).expect("a name");
    world.start().await.expect("managers");
    patiently("the upload", async || world.upload().await)
        .await
        .expect("uploaded");

    let (a, b) = (world.access_of("a").expect("a"), world.access_of("b").expect("b"));
    for (asked, giver) in [(&a, &b), (&b, &a)] {
        let client = asked.client_with_tokens_of(giver).await.expect("a token");
        client.clusters().await.expect("the other's token is good");
    }
    let client = client(&world).await;
    for number in 0..4 {
        client.create_cluster(&request(number)).await.expect("accepted");
    }
    let (dead, had) = busiest(&world, &database, |machines| machines >= 2).await;
    world.kill(&dead).await.expect("killed");
    taken_over(&database, &dead, had, Instant::now()).await;
    until(&world, "all clusters", 4, succeeded(pks::LastAction::Create)).await;
    assert_eq!(world.machines.books().vms.len(), 8, "nothing twice");

    // What is written down is the time that everybody else has.
    let now = stolos_base::Clock::system().now_millis();
    let ended = database
        .number("SELECT MAX(ended_at) FROM clusters.operations")
        .await;
    assert!((now - ended).abs() < HOUR / 2, "{now} and {ended}");
    let other = if dead == "a" { "b" } else { "a" };
    world.end(other).await.expect("an orderly end");
}
