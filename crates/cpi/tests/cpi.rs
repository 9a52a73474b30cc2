//! The null CPI against the conformance suite, and the runner against a real executable.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, json};
use stolos_base::{IdSource, poll};
use stolos_cpi::conformance::{self, Env};
use stolos_cpi::null::NullCpi;
use stolos_cpi::{CloudProperties, Cpi, Error, Networks, Runner, RunnerConfig, VmResources};

fn env() -> Env {
    let networks: Networks =
        serde_json::from_value(json!({"n": {"type": "manual", "ip": "10.0.0.2"}})).expect("networks");
    Env {
        image: "image".to_owned(),
        networks: [networks.clone(), networks],
        resources: VmResources {
            ram: 256,
            cpu: 1,
            ephemeral_disk_size: 512,
        },
        disk: 16,
        ids: IdSource::random(),
    }
}

#[tokio::test]
async fn the_null_cpi_conforms() {
    conformance::run(&NullCpi::new(IdSource::random()), &env())
        .await
        .expect("conformance");
}

#[tokio::test]
async fn the_null_cpi_conforms_behind_the_wire() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), 0, Duration::from_secs(60));
    config.arguments.push(dir.path().join("books.json").to_string());
    conformance::run(&Runner::new(config, IdSource::random()), &env())
        .await
        .expect("conformance");
    assert_eq!(
        walk(&dir.path().join("calls")),
        Vec::<Utf8PathBuf>::new(),
        "calls without an id leave nothing"
    );
}

fn config(dir: &Utf8Path, pause_ms: u64, limit: Duration) -> RunnerConfig {
    RunnerConfig {
        program: Utf8PathBuf::from(env!("CARGO_BIN_EXE_stolos-cpi-null")),
        arguments: vec![dir.join("log").to_string(), pause_ms.to_string()],
        calls: dir.join("calls"),
        director: "d".to_owned(),
        context: Map::new(),
        limit,
    }
}

fn runner(dir: &Utf8Path, pause_ms: u64, limit: Duration) -> Runner {
    Runner::new(config(dir, pause_ms, limit), IdSource::random())
}

fn called(dir: &Utf8Path) -> usize {
    fs_err::read_to_string(dir.join("log"))
        .map(|text| text.lines().count())
        .unwrap_or(0)
}

#[tokio::test]
async fn a_call_with_an_id_is_made_once() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 0, Duration::from_secs(30));
    let none = CloudProperties::new();
    let first = runner
        .call("flow/step 1")
        .create_disk(16, &none, None)
        .await
        .expect("a disk");
    let second = runner
        .call("flow/step 1")
        .create_disk(16, &none, None)
        .await
        .expect("the same disk");
    assert_eq!(first, second);
    assert_eq!(called(dir.path()), 1);
    let third = runner
        .call("flow/step 2")
        .create_disk(16, &none, None)
        .await
        .expect("another disk");
    assert_ne!(first, third);
    assert_eq!(requests(dir.path()), 0, "requests hold secrets and do not stay");
}

#[tokio::test]
async fn a_call_whose_caller_died_is_waited_for() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 600, Duration::from_secs(30));
    let none = CloudProperties::new();
    // Dropping the future in mid-call is what the death of the director looks like to the executable.
    let cut = runner.call("one");
    tokio::select! {
        result = cut.create_disk(16, &none, None) => panic!("it should take longer: {result:?}"),
        () = is_called(dir.path()) => {}
    }
    runner
        .call("one")
        .create_disk(16, &none, None)
        .await
        .expect("the first call's disk");
    assert_eq!(called(dir.path()), 1, "it was not called twice");
    assert_eq!(requests(dir.path()), 0, "requests hold secrets and do not stay");
}

#[tokio::test]
async fn callers_at_once_share_one_call() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 200, Duration::from_secs(30));
    let none = CloudProperties::new();
    let calls = (0..4).map(|_| {
        let (runner, none) = (runner.call("one"), none.clone());
        async move { runner.create_disk(16, &none, None).await.expect("a disk") }
    });
    let disks = futures::future::join_all(calls).await;
    assert!(disks.iter().all(|disk| *disk == disks[0]), "{disks:?}");
    assert_eq!(called(dir.path()), 1);
}

#[tokio::test]
async fn a_hanging_call_of_a_dead_caller_is_ended() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let none = CloudProperties::new();
    let dead = runner(dir.path(), 60_000, Duration::from_secs(90)).call("one");
    tokio::select! {
        result = dead.create_disk(16, &none, None) => panic!("it should hang: {result:?}"),
        () = is_called(dir.path()) => {}
    }
    let next = runner(dir.path(), 0, Duration::from_millis(100)).call("one");
    let error = next.create_disk(16, &none, None).await.expect_err("it hangs");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(requests(dir.path()), 0, "requests hold secrets and do not stay");
    let later = runner(dir.path(), 0, Duration::from_secs(60)).call("one");
    later.create_disk(16, &none, None).await.expect("a new call");
}

#[tokio::test]
async fn a_cancelled_call_ends_with_its_session() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let none = CloudProperties::new();
    let slow = runner(dir.path(), 60_000, Duration::from_secs(90));
    let call = slow.call("one");
    let (result, ()) = tokio::join!(call.create_disk(16, &none, None), async {
        is_called(dir.path()).await;
        slow.cancel("one").await.expect("cancelled");
    });
    assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
    assert_eq!(requests(dir.path()), 0, "requests hold secrets and do not stay");
}

#[tokio::test]
async fn an_id_is_one_call() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 0, Duration::from_secs(30)).call("one");
    runner
        .create_disk(16, &CloudProperties::new(), None)
        .await
        .expect("a disk");
    runner
        .has_vm(&"vm-x".into())
        .await
        .expect_err("another method with the same id");
}

#[tokio::test]
async fn an_error_is_asked_again_and_a_hanging_call_is_killed() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let quick = runner(dir.path(), 0, Duration::from_secs(30));
    for times in 1..=2 {
        quick
            .call("bad")
            .reboot_vm(&"vm-x".into())
            .await
            .expect_err("no such machine");
        assert_eq!(called(dir.path()), times);
    }
    let slow = runner(dir.path(), 60_000, Duration::from_millis(300));
    let error = slow
        .call("slow")
        .has_vm(&"vm-x".into())
        .await
        .expect_err("too slow");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

async fn is_called(dir: &Utf8Path) {
    poll::until(
        "the call",
        Duration::from_millis(10),
        Duration::from_secs(60),
        || async {
            if called(dir) == 1 {
                Ok(())
            } else {
                Err("not called".to_owned())
            }
        },
    )
    .await
    .expect("called");
}

fn requests(dir: &Utf8Path) -> usize {
    walk(&dir.join("calls"))
        .iter()
        .filter(|path| path.file_name() == Some("request.json"))
        .count()
}

fn walk(dir: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    for entry in dir.read_dir_utf8().expect("a directory").flatten() {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(walk(entry.path()));
        } else {
            found.push(entry.path().to_owned());
        }
    }
    found
}
