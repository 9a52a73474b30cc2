//! The manager is lost and comes back from a backup that is older than its machines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::Utf8Path;
use stolos_api::director::{self, DeployOptions};
use stolos_api::pks::{self, LastActionState, OperationState, UpdateParameters};
use stolos_backup::BackupKey;
use stolos_base::task::{self, Kind};
use stolos_base::{Clock, Secret};
use stolos_blobs::objects::testing::Store;
use stolos_director::testing::Outside as Machines;
use stolos_server::backup::schedule::Schedule;
use stolos_server::backup::{Settings, command, take_and_retain};
use stolos_server::relocate;
use stolos_store::DatabaseUrl;
use stolos_store::testing::Place;
use stolos_testbed::note;
use stolos_testbed::simulated::Simulation;
use tokio_util::sync::CancellationToken;

use super::fairness::{create, ended};

/// Adoption looks every second; the host may be busy.
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    directory: camino_tempfile::Utf8TempDir,
    settings: Settings,
    _store: Option<Store>,
}

impl World {
    /// A directory, with the place of its backups beside it or in S3.
    fn new(store: Option<Store>) -> Self {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let mut settings = Settings::to(directory.path().join("backups").as_str());
        if let Some(store) = &store {
            settings.to = "s3://backups/stolos".to_owned();
            settings.endpoint = Some(store.endpoint());
            settings.credentials_file = Some(store.credentials_file());
        }
        settings.key_file = Some(directory.path().join("backup.key"));
        Self {
            directory,
            settings,
            _store: store,
        }
    }

    fn path(&self) -> &Utf8Path {
        self.directory.path()
    }

    fn key(&self) -> BackupKey {
        let path = self.settings.key_file.as_ref().expect("a key file");
        BackupKey::load_or_create(path).expect("a key").0
    }

    fn write_configuration(&self, database: &str) {
        let text = format!("programs: {{nats_server: /n, cpi_host: /c}}\ndatabase: \"{database}\"\n");
        fs_err::write(Simulation::instance(self.path()).config_file(), text).expect("the configuration");
    }

    async fn back_up(&self, database: &DatabaseUrl) {
        let instance = Simulation::instance(self.path());
        let (key, clock) = (self.key(), Clock::system());
        let taken = take_and_retain(&instance, database, &self.settings, &key, &clock, &|_| {});
        let (manifest, _) = taken.await.expect("a backup");
        note(format!(
            "backup: {} ms, {} bytes",
            manifest.took_ms,
            manifest.stored()
        ));
        // Two members look at the same time: one takes the backup that is due, and none is due after that.
        let clock = Clock::manual(Clock::system().now());
        let schedule = || Schedule {
            instance: instance.clone(),
            database: database.clone(),
            settings: self.settings.clone(),
            interval: Duration::from_secs(6 * 3600),
            clock: clock.clone(),
        };
        let objects = self.settings.objects().expect("a place");
        let count = async || {
            stolos_backup::list(&objects, Some(&key))
                .await
                .expect("a list")
                .len()
        };
        let (one, two) = (schedule(), schedule());
        assert!(!one.look().await.expect("a look").is_zero());
        assert_eq!(count().await, 1, "none is due");
        clock.advance(Duration::from_secs(7 * 3600));
        let (a, b) = tokio::join!(one.look(), two.look());
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
        one.look().await.expect("a look");
        assert_eq!(count().await, 2);
        stolos_backup::verify(&objects, &self.key(), None, true, &|_| {})
            .await
            .expect("it is whole");
    }
}

/// What `sqlite` of the configuration means, or the other engine's URL.
fn text_of(url: &DatabaseUrl) -> String {
    match url {
        DatabaseUrl::Sqlite { .. } => "sqlite".to_owned(),
        DatabaseUrl::Postgres { url } => url.expose().clone(),
    }
}

/// Deployment → CIDs of its machines, as the infrastructure and the agents in them say.
fn truth(machines: &Machines) -> BTreeMap<String, BTreeSet<String>> {
    let there: BTreeSet<String> = machines.books().vms.keys().map(ToString::to_string).collect();
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (agent, machine) in &machines.state().machines {
        let cid = format!("vm-{agent}");
        assert!(there.contains(&cid), "{cid}");
        all.entry(machine.spec.deployment.clone())
            .or_default()
            .insert(cid);
    }
    assert_eq!(
        all.values().map(BTreeSet::len).sum::<usize>(),
        there.len(),
        "every machine has an agent"
    );
    all
}

async fn recorded(client: &director::Client, deployment: &str) -> BTreeSet<String> {
    let instances = client.instances(deployment).await.expect("the instances");
    instances.into_iter().filter_map(|one| one.cid).collect()
}

async fn deployment(client: &pks::Client, name: &str) -> String {
    let cluster = client.cluster(name).await.expect("the cluster");
    format!("service-instance_{}", cluster.uuid)
}

async fn make(client: &pks::Client, name: &str) {
    let operation = create(client, name, "plain").await;
    assert_eq!(
        ended(client, &operation).await.state,
        OperationState::Succeeded,
        "{name}"
    );
}

async fn workers(client: &pks::Client, name: &str, n: i64) -> pks::Operation {
    let change = UpdateParameters {
        kubernetes_worker_instances: Some(n),
        ..UpdateParameters::default()
    };
    let begun = client
        .update_cluster(name, &change)
        .await
        .expect("it is accepted");
    ended(client, &begun.operation.expect("an operation")).await
}

/// Makes every machine of a deployment anew.
async fn remake(client: &director::Client, deployment: &str) {
    let manifest = client
        .deployment(deployment)
        .await
        .expect("the deployment")
        .manifest
        .expect("a manifest");
    let options = DeployOptions {
        recreate: true,
        ..DeployOptions::default()
    };
    let task = client.deploy(&manifest, &options).await.expect("a task");
    let task = client.follow(task, |_| {}).await.expect("it ends");
    assert_eq!(task.state, director::TaskState::Done, "{task:?}");
}

/// Backs up on one engine, restores on the other.
async fn lost_and_restored(world: World, first: DatabaseUrl, second: DatabaseUrl) {
    let simulation = Simulation::start(world.path(), first.clone())
        .await
        .expect("an installation");
    world.write_configuration(&text_of(&first));
    let client = simulation.access().client().await.expect("a client");
    let direct = simulation.access().director_client().await.expect("a client");
    for name in ["same", "remade", "grown", "shrunk", "deleted"] {
        make(&client, name).await;
    }
    assert_eq!(
        workers(&client, "shrunk", 3).await.state,
        OperationState::Succeeded
    );
    // One is being made while the backup is taken: its machines are there, and a script in its master does not end.
    simulation
        .machines
        .state()
        .hanging
        .push("half master/0 pre-start".to_owned());
    simulation.machines.take_calls();
    let half = create(&client, "half", "half").await;
    let hangs = || {
        let state = simulation.machines.state();
        state.calls.iter().any(|call| call == "master/0 pre-start")
    };
    let began = std::time::Instant::now();
    while !hangs() {
        assert!(
            began.elapsed() < LIMIT,
            "the creation does not come to its script"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.back_up(&first).await;

    // The world goes on.
    let names: BTreeMap<&str, String> = {
        let mut names = BTreeMap::new();
        for name in ["same", "remade", "grown", "shrunk", "deleted", "half"] {
            names.insert(name, deployment(&client, name).await);
        }
        names
    };
    simulation.machines.state().hanging.clear();
    client.cancel_operation(&half).await.expect("cancelled");
    ended(&client, &half).await;
    let finished = workers(&client, "half", 1).await;
    assert_eq!(
        finished.state,
        OperationState::Succeeded,
        "an update brings it to its end: {finished:?}"
    );
    remake(&direct, &names["remade"]).await;
    remake(&direct, &names["remade"]).await;
    remake(&direct, &names["half"]).await;
    assert_eq!(
        workers(&client, "grown", 3).await.state,
        OperationState::Succeeded
    );
    remake(&direct, &names["grown"]).await;
    assert_eq!(
        workers(&client, "shrunk", 1).await.state,
        OperationState::Succeeded
    );
    let operation = client
        .delete_cluster("deleted")
        .await
        .expect("accepted")
        .expect("an operation");
    ended(&client, &operation).await;
    make(&client, "later").await;
    let later = deployment(&client, "later").await;
    let before = truth(&simulation.machines);
    let machines = simulation.machines.clone();
    simulation.stop().await;
    fs_err::remove_dir_all(Simulation::instance(world.path()).root).expect("the manager is lost");

    let instance = Simulation::instance(world.path());
    let database = Some(text_of(&second));
    let (key, clock) = (world.key(), Clock::system());
    let restored = command::restore_into(&instance, &world.settings, &key, None, database, &clock, &|_| {});
    let restored = restored.await.expect("restored");
    note(format!(
        "restored {} rows into {}",
        restored.rows, restored.database
    ));
    let simulation = Simulation::resume(world.path(), second, machines.clone())
        .await
        .expect("it starts");
    let stop = CancellationToken::new();
    let (beating, hearts) = (stop.clone(), machines.clone());
    task::spawn(Kind::Service, "heartbeats", async move {
        while !beating.is_cancelled() {
            hearts.beat().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let client = simulation
        .access()
        .client()
        .await
        .expect("the password is as it was");
    let direct = simulation.access().director_client().await.expect("a client");

    let listed = client.clusters().await.expect("the clusters");
    let listed: BTreeMap<&str, &pks::Cluster> = listed.iter().map(|one| (one.name.as_str(), one)).collect();
    assert_eq!(
        listed.keys().copied().collect::<Vec<_>>(),
        ["deleted", "grown", "half", "remade", "same", "shrunk"]
    );

    // What was under way ends, and says why.
    let half = ended(&client, &half).await;
    assert_eq!(half.state, OperationState::Failed);
    let why = client.cluster("half").await.expect("the cluster");
    assert_eq!(why.last_action_state, LastActionState::Failed);
    assert!(
        why.last_action_description
            .contains("the installation was restored"),
        "{}",
        why.last_action_description
    );

    // Machines are adopted, and those of a cluster that nobody knows are left alone.
    let began = std::time::Instant::now();
    loop {
        let mut missing = Vec::new();
        for name in ["same", "remade", "grown", "half"] {
            let now = recorded(&direct, &names[name]).await;
            if now != before[&names[name]] {
                missing.push(format!("{name}: {now:?} in place of {:?}", before[&names[name]]));
            }
        }
        let unknown = direct.unknown_machines().await.expect("unknown machines");
        let of_later = unknown
            .iter()
            .filter(|one| one.deployment == later && one.reason.contains("is not known"));
        if missing.is_empty() && of_later.count() == before[&later].len() {
            assert!(unknown.iter().all(|one| one.deployment == later), "{unknown:?}");
            break;
        }
        assert!(began.elapsed() < LIMIT, "{missing:?} {unknown:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    note(format!("adopted after {:?}", began.elapsed()));
    assert_eq!(truth(&machines), before, "nothing was made or deleted by itself");

    // A deploy of each goes through: agents take its number, and no machine is made twice.
    for (name, n) in [("same", 1), ("remade", 1), ("grown", 3), ("half", 1)] {
        let operation = workers(&client, name, n).await;
        assert_eq!(
            operation.state,
            OperationState::Succeeded,
            "{name}: {operation:?}"
        );
    }
    let after = truth(&machines);
    for name in ["same", "remade", "grown", "half"] {
        assert_eq!(
            after[&names[name]], before[&names[name]],
            "{name}: the same machines"
        );
    }
    assert_eq!(after[&later], before[&later]);

    // A cluster that had lost workers gets what is asked for now.
    let operation = workers(&client, "shrunk", 1).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(truth(&machines)[&names["shrunk"]].len(), 2);

    // One that was deleted after the backup is listed, and can be deleted.
    let operation = client
        .delete_cluster("deleted")
        .await
        .expect("accepted")
        .expect("an operation");
    ended(&client, &operation).await;
    let listed = client.clusters().await.expect("the clusters");
    assert!(listed.iter().all(|one| one.name != "deleted"));
    // A new one gets no address of the one that nobody knows.
    make(&client, "new").await;
    let new = deployment(&client, "new").await;
    let addresses = |deployment: &str| -> BTreeSet<String> {
        let state = machines.state();
        let of = state
            .machines
            .values()
            .filter(|machine| machine.spec.deployment == deployment);
        of.filter_map(|machine| machine.spec.ip.clone()).collect()
    };
    assert!(
        addresses(&new).is_disjoint(&addresses(&later)),
        "{:?}",
        addresses(&new)
    );
    stop.cancel();
    simulation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_manager_adopts_machines_that_are_newer_than_its_backup() {
    let sqlite = |world: &World| DatabaseUrl::Sqlite {
        directory: Simulation::instance(world.path()).databases(),
    };
    let world = World::new(None);
    let (first, other) = (sqlite(&world), Place::postgres().await);
    let second = other
        .as_ref()
        .map_or_else(|_| first.clone(), |place| place.url().clone());
    lost_and_restored(world, first, second).await;
    match (Store::start(), Place::postgres().await) {
        (Ok(store), Ok(place)) => {
            let world = World::new(Some(store));
            let second = sqlite(&world);
            lost_and_restored(world, place.url().clone(), second).await;
        }
        (Err(reason), _) | (_, Err(reason)) => {
            note(format!("skipped from PostgreSQL by way of S3: {reason}"))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_move_to_the_other_engine_and_back() {
    let Ok(place) = Place::postgres().await else {
        note("skipped: there is no PostgreSQL");
        return;
    };
    let world = World::new(None);
    let instance = Simulation::instance(world.path());
    let sqlite = DatabaseUrl::Sqlite {
        directory: instance.databases(),
    };
    let simulation = Simulation::start(world.path(), sqlite.clone())
        .await
        .expect("an installation");
    world.write_configuration("sqlite");
    make(&simulation.access().client().await.expect("a client"), "first").await;
    let machines = simulation.machines.clone();
    simulation.stop().await;

    let to = |url: &DatabaseUrl| Secret::new(text_of(url));
    let move_to =
        async |url: &DatabaseUrl| relocate::relocate(&instance, &to(url), &Clock::system(), &|_| {}).await;
    let configured = || fs_err::read_to_string(instance.config_file()).expect("the configuration");

    // Killed at many moments, the old one is in use, and the next move begins anew.
    let mut killed = 0;
    for polls in (1..).step_by(29) {
        let mut work = Box::pin(move_to(place.url()));
        let mut left = polls;
        let end = std::future::poll_fn(|cx| {
            if left == 0 {
                return std::task::Poll::Ready(None);
            }
            left -= 1;
            work.as_mut().poll(cx).map(Some)
        })
        .await;
        drop(work);
        match end {
            Some(moved) => {
                let moved = moved.expect("moved");
                assert_eq!(moved.databases.len(), 5, "{moved:?}");
                break;
            }
            None if configured().contains("postgres://") => break,
            None => killed += 1,
        }
    }
    assert!(killed > 3, "{killed}");
    assert!(configured().contains("postgres://"), "{}", configured());
    assert!(
        move_to(place.url())
            .await
            .expect("it is there already")
            .databases
            .is_empty()
    );
    let file = instance.databases().join("clusters.sqlite");
    assert!(file.exists(), "the old one is untouched");

    let simulation = Simulation::resume(world.path(), place.url().clone(), machines.clone())
        .await
        .expect("it starts");
    let client = simulation.access().client().await.expect("a client");
    assert_eq!(client.clusters().await.expect("clusters").len(), 1);
    make(&client, "second").await;
    simulation.stop().await;

    let error = move_to(&sqlite).await.expect_err("the old copy is in the way");
    assert!(format!("{error:#}").contains("is in use"), "{error:#}");
    fs_err::rename(instance.databases(), world.path().join("old")).expect("moved aside");
    let lock =
        stolos_base::lock::FileLock::try_acquire(&instance.run().join("stolosd.lock")).expect("a lock");
    let error = move_to(&sqlite).await.expect_err("it runs");
    assert!(format!("{error:#}").contains("stop it first"), "{error:#}");
    drop(lock);
    let moved = move_to(&sqlite).await.expect("moved back");
    assert!(
        !format!("{moved:?}").contains("stolos@"),
        "no user, no password: {moved:?}"
    );
    let simulation = Simulation::resume(world.path(), sqlite, machines)
        .await
        .expect("it starts");
    let client = simulation.access().client().await.expect("a client");
    assert_eq!(client.clusters().await.expect("clusters").len(), 2);
    assert_eq!(
        workers(&client, "second", 2).await.state,
        OperationState::Succeeded
    );
    simulation.stop().await;
}
