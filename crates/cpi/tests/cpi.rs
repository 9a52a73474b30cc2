//! The null CPI against the conformance suite, and the runner against a real executable.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, json};
use stolos_base::IdSource;
use stolos_cpi::conformance::{self, Env};
use stolos_cpi::null::NullCpi;
use stolos_cpi::{CloudProperties, Cpi, Error, Networks, Runner, RunnerConfig, VmResources};

#[tokio::test]
async fn the_null_cpi_conforms() {
    let networks: Networks = serde_json::from_value(json!({"n": {"type": "manual", "ip": "10.0.0.2"}})).expect("networks");
    let env = Env {
        image: "image".to_owned(),
        networks: [networks.clone(), networks],
        resources: VmResources { ram: 256, cpu: 1, ephemeral_disk_size: 512 },
        disk: 16,
        ids: IdSource::random(),
    };
    conformance::run(&NullCpi::new(IdSource::random()), &env).await.expect("conformance");
}

fn runner(dir: &Utf8Path, pause_ms: u64, limit: Duration) -> Runner {
    Runner::new(
        RunnerConfig {
            program: Utf8PathBuf::from(env!("CARGO_BIN_EXE_stolos-cpi-null")),
            arguments: vec![dir.join("log").to_string(), pause_ms.to_string()],
            calls: dir.join("calls"),
            director: "d".to_owned(),
            context: Map::new(),
            limit,
        },
        IdSource::random(),
    )
}

fn called(dir: &Utf8Path) -> usize {
    fs_err::read_to_string(dir.join("log")).map(|text| text.lines().count()).unwrap_or(0)
}

#[tokio::test]
async fn a_call_with_an_id_is_made_once() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 0, Duration::from_secs(30));
    let none = CloudProperties::new();
    let first = runner.call("flow/step 1").create_disk(16, &none, None).await.expect("a disk");
    let second = runner.call("flow/step 1").create_disk(16, &none, None).await.expect("the same disk");
    assert_eq!(first, second);
    assert_eq!(called(dir.path()), 1);
    let third = runner.call("flow/step 2").create_disk(16, &none, None).await.expect("another disk");
    assert_ne!(first, third);
    let requests = walk(&dir.path().join("calls")).into_iter().filter(|path| path.ends_with("request.json")).count();
    assert_eq!(requests, 0, "requests hold secrets and do not stay");
}

#[tokio::test]
async fn a_call_whose_caller_died_is_waited_for() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let runner = runner(dir.path(), 600, Duration::from_secs(30));
    let none = CloudProperties::new();
    // Dropping the future in mid-call is what the death of the director looks like to the executable.
    let cut = runner.call("one");
    let dropped = tokio::time::timeout(Duration::from_millis(250), cut.create_disk(16, &none, None)).await;
    assert!(dropped.is_err(), "the call was cut off");
    runner.call("one").create_disk(16, &none, None).await.expect("the first call's disk");
    assert_eq!(called(dir.path()), 1, "it was not called twice");
}

#[tokio::test]
async fn an_error_is_asked_again_and_a_hanging_call_is_killed() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let quick = runner(dir.path(), 0, Duration::from_secs(30));
    for times in 1..=2 {
        quick.call("bad").reboot_vm(&"vm-x".into()).await.expect_err("no such machine");
        assert_eq!(called(dir.path()), times);
    }
    let slow = runner(dir.path(), 60_000, Duration::from_millis(300));
    let error = slow.call("slow").has_vm(&"vm-x".into()).await.expect_err("too slow");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
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
