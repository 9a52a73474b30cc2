//! Backups of clusters by verb and by schedule, and what becomes of clusters that get their contents. Templates are the release's own; etcd is simulated here
//! (`crates/kubernetes/tests/etcd` has real ones).

use std::sync::atomic::Ordering;
use std::time::Duration;

use stolos_api::pks::{self, BackupRun, Client, ClusterParameters, ClusterRequest, OperationState};
use stolos_base::Classify as _;
use stolos_server::cluster_backups::ClusterBackupSettings;
use stolos_store::testing::Place;
use stolos_testbed::simulated::Simulation;

use super::fairness::{create, ended};

/// A schedule looks every few seconds; the host may be busy.
const LIMIT: Duration = Duration::from_secs(90);

async fn taken(client: &Client, cluster: &str) -> BackupRun {
    let begun = client.back_up_cluster(cluster).await.expect("accepted");
    loop {
        let run = client
            .backup_run(&begun.id, Duration::from_secs(5))
            .await
            .expect("it is there");
        if run.state.is_final() {
            return run;
        }
    }
}

fn steps(operation: &pks::Operation) -> Vec<&str> {
    operation.steps.iter().map(|step| step.name.as_str()).collect()
}

async fn world(settings: Option<ClusterBackupSettings>) -> (Simulation, camino_tempfile::Utf8TempDir, Place) {
    let directory = camino_tempfile::tempdir().expect("a directory");
    let place = Place::sqlite();
    let simulation = match settings {
        None => Simulation::start(directory.path(), place.url().clone()).await,
        Some(settings) => Simulation::backing_up(directory.path(), place.url().clone(), settings).await,
    };
    (simulation.expect("an installation"), directory, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_backed_up_and_restored_in_place_and_into_a_new_one() {
    let (simulation, _directory, _place) = world(None).await;
    let client = simulation.access().client().await.expect("a client");
    let made = create(&client, "demo", "kept").await;
    ended(&client, &made).await;

    // Nothing yet, and nothing of another cluster.
    let error = client.restore_cluster("demo", "latest").await.expect_err("none");
    assert!(error.to_string().contains("not found"), "{error}");
    let first = taken(&client, "demo").await;
    assert_eq!(first.state, OperationState::Succeeded, "{first:?}");
    let id = first.backup.clone().expect("a backup");
    let listed = client.cluster_backups("demo").await.expect("a list");
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].id.as_str(), listed[0].problem.as_deref()),
        (id.as_str(), None)
    );
    assert_eq!(listed[0].kubernetes_version.as_deref(), Some("1.37.1"));
    let whole = client
        .verify_cluster_backup("demo", "latest")
        .await
        .expect("whole");
    assert_eq!(whole.id, id);
    for (backup, words) in [
        ("20200101T000000Z-0000", "20200101T000000Z-0000"),
        ("no-id", "no-id"),
        ("", "is empty"),
    ] {
        let error = client.restore_cluster("demo", backup).await.expect_err("none");
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = client.cluster_backups("other").await.expect_err("none");
    assert_eq!(error.class(), stolos_base::Class::NotFound);

    // In place: what there is is saved first, masters are held, etcd alone comes back, and then everything.
    let operation = client
        .restore_cluster("demo", &id)
        .await
        .expect("accepted")
        .expect("an operation");
    let error = client
        .restore_cluster("demo", &id)
        .await
        .expect_err("one at a time");
    assert_eq!(error.class(), stolos_base::Class::Conflict, "{error}");
    let operation = ended(&client, &operation).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let names = steps(&operation);
    for name in [
        "Verify backup",
        "Back up what there is",
        "Offer backup",
        "Stop masters",
        "Restore etcd",
        "Deploy machines",
        "Forget nodes that are gone",
        "Withdraw backup",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let listed = client.cluster_backups("demo").await.expect("a list");
    assert_eq!(
        listed.iter().map(|one| one.before_restore).collect::<Vec<_>>(),
        [false, true],
        "what there was is saved"
    );
    let latest = client
        .verify_cluster_backup("demo", "latest")
        .await
        .expect("whole");
    assert_eq!(latest.id, id, "who asks again means the same one");
    let director = simulation.access().director_client().await.expect("a client");
    let deployments = director.deployments().await.expect("a list");
    let manifest = director
        .deployment(&deployments[0].name)
        .await
        .expect("a deployment")
        .manifest
        .expect("a manifest");
    assert!(
        manifest.contains("kube-apiserver") && !manifest.contains("etcd_restore"),
        "{manifest}"
    );
    assert!(!manifest.contains("cluster-backups"), "no address in it");

    // Into a new one, also when the old one is gone.
    let deletion = client.delete_cluster("demo").await.expect("accepted");
    ended(&client, &deletion.expect("an operation")).await;
    let request = |from: &str| ClusterRequest {
        name: "copy".to_owned(),
        plan_name: "small".to_owned(),
        parameters: ClusterParameters {
            kubernetes_master_host: Some("copy.example.com".to_owned()),
            from_backup: Some(from.to_owned()),
            ..ClusterParameters::default()
        },
        network_profile_name: None,
        compute_profile_name: None,
        kubernetes_profile_name: None,
        other: indexmap::IndexMap::new(),
    };
    for (from, words) in [
        ("nobody", "Cluster nobody not found"),
        ("demo/20200101T000000Z-0000", "20200101T000000Z-0000"),
        ("demo/x", "`x` not found"),
    ] {
        let error = client.create_cluster(&request(from)).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(
        client.clusters().await.expect("a list").is_empty(),
        "nothing was made"
    );
    let (_, begun) = client
        .create_cluster(&request(&format!("demo/{id}")))
        .await
        .expect("accepted");
    let operation = ended(&client, &begun.operation.expect("an operation")).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let names = steps(&operation);
    assert!(
        names.contains(&"Restore etcd") && names.contains(&"Smoke test"),
        "{names:?}"
    );
    let all = client.backups_of_all().await.expect("a list");
    let demo = all.iter().find(|one| one.cluster == "demo").expect("demo");
    assert!(
        demo.deleted && demo.last_backup.as_deref() == Some(id.as_str()),
        "{demo:?}"
    );
    let copy = all.iter().find(|one| one.cluster == "copy").expect("copy");
    assert!(!copy.deleted && copy.last_success.is_none(), "{copy:?}");
    simulation.stop().await;
}

/// A master that cannot get the backup fails while nothing is lost yet; whoever asks again gets what was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_failed_says_why_and_is_asked_for_again() {
    let (simulation, _directory, _place) = world(None).await;
    let client = simulation.access().client().await.expect("a client");
    let made = create(&client, "demo", "kept").await;
    ended(&client, &made).await;
    let first = taken(&client, "demo").await.backup.expect("a backup");
    simulation.machines.state().failing.insert(
        "kept master/0 pre-start".to_owned(),
        "the backup cannot be had".to_owned(),
    );
    // There is nothing to be saved either.
    simulation.etcd.broken.store(true, Ordering::Relaxed);
    let operation = client.restore_cluster("demo", "latest").await.expect("accepted");
    let operation = ended(&client, &operation.expect("an operation")).await;
    assert_eq!(operation.state, OperationState::Failed);
    let why = operation.error.as_deref().unwrap_or_default();
    assert!(why.contains("step `Stop masters`"), "{why}");
    let saved = operation
        .steps
        .iter()
        .find(|step| step.name == "Back up what there is")
        .expect("a step");
    assert_eq!(
        saved.state, "done",
        "a cluster that is broken is restored all the same"
    );
    simulation.machines.state().failing.clear();
    let operation = client.restore_cluster("demo", "latest").await.expect("accepted");
    let operation = ended(&client, &operation.expect("an operation")).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let listed = client.cluster_backups("demo").await.expect("a list");
    assert_eq!(
        listed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(),
        [first]
    );
    simulation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_takes_what_is_due_and_failures_are_seen() {
    let settings = ClusterBackupSettings {
        every: Some("60s".to_owned()),
        keep: 1,
        at_once: 1,
    };
    let (simulation, _directory, _place) = world(Some(settings)).await;
    simulation.etcd.broken.store(true, Ordering::Relaxed);
    let client = simulation.access().client().await.expect("a client");
    for name in ["one", "two"] {
        let made = create(&client, name, "kept").await;
        ended(&client, &made).await;
    }
    // A failure says why, and does not keep the others from being tried.
    let until = async |what: &str, good: &dyn Fn(&pks::ClusterBackups) -> bool| {
        let start = std::time::Instant::now();
        loop {
            let all = client.backups_of_all().await.expect("a list");
            if all.len() == 2 && all.iter().all(good) {
                return all;
            }
            assert!(start.elapsed() < LIMIT, "{what}: {all:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let failed = until("both have failed", &|one| one.error.is_some()).await;
    assert!(
        failed
            .iter()
            .all(|one| one.error.as_deref().is_some_and(|why| why.contains("no leader"))),
        "{failed:?}"
    );
    simulation.etcd.broken.store(false, Ordering::Relaxed);
    // By hand, and the schedule leaves it at that; the other one it tries again itself.
    let by_hand = taken(&client, "one").await;
    assert_eq!(by_hand.state, OperationState::Succeeded, "{by_hand:?}");
    assert_eq!(by_hand.user, "admin");
    let good = until("both are good", &|one| {
        one.error.is_none() && one.last_backup.is_some()
    })
    .await;
    assert_eq!(good[0].last_backup, by_hand.backup);
    // One is kept.
    let again = taken(&client, "two").await;
    let left = client.cluster_backups("two").await.expect("a list");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(Some(&left[0].id), again.backup.as_ref());
    simulation.stop().await;
}
