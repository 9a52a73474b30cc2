//! A deployment that is no cluster: three members of etcd with disks, by the manifest of `examples/etcd` alone.

use rustix::process::Signal;
use serde_json::Value;
use stolos_base::process::Process;

use crate::installation::{Installation, eventually, said};

const DEPLOYMENT: &str = "etcd";

/// The manifest that newcomers are given.
fn manifest(heartbeat: u32) -> String {
    let text = example("manifest.yml");
    let changed = text.replace("heartbeat_ms: 100", &format!("heartbeat_ms: {heartbeat}"));
    assert!(
        heartbeat == 100 || changed != text,
        "the example has another heartbeat"
    );
    changed
}

/// The cloud config that goes with it, in the range that this installation has.
fn cloud_config(range: &str) -> String {
    let prefix = range.strip_suffix(".0.0/16").expect("a /16");
    let text = example("cloud-config.yml");
    assert!(text.contains("10.117.200.1"), "the example is in another network");
    text.replace("10.117.", &format!("{prefix}."))
}

fn example(name: &str) -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/etcd");
    fs_err::read_to_string(format!("{directory}/{name}")).expect("an example")
}

pub(crate) fn three_members_keep_their_data(installation: &Installation) {
    let network: Value = serde_json::from_str(
        &fs_err::read_to_string(installation.root.join("network.json")).expect("the network"),
    )
    .expect("JSON");
    let cloud = installation.home.path().join("cloud.yml");
    let file = installation.home.path().join("etcd.yml");
    fs_err::write(&cloud, cloud_config(network["range"].as_str().expect("a range"))).expect("a cloud config");
    let write = |heartbeat| fs_err::write(&file, manifest(heartbeat)).expect("a manifest");
    let deploy = || {
        let output = installation.run(&[
            "deploy",
            file.as_str(),
            "--cloud-config",
            cloud.as_str(),
            "--non-interactive",
        ]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    write(100);
    deploy();
    assert_eq!(members(installation).len(), 3);
    etcdctl(installation, 0, &["put", "kept", "yes"]).expect("written");
    let list = etcdctl(installation, 1, &["member", "list"]).expect("listed");
    assert_eq!(list.matches("started").count(), 3, "{list}");

    let again = deploy();
    assert!(
        !again.contains("Updating instance"),
        "an unchanged deploy does nothing: {again}"
    );
    let pids = |machines: &[Value]| -> Vec<Value> { machines.iter().map(|one| one["pid"].clone()).collect() };
    let before = pids(&members(installation));
    write(120);
    let changed = deploy();
    assert_eq!(
        changed.matches("Updating instance").count(),
        3,
        "one after the other: {changed}"
    );
    assert_eq!(
        pids(&members(installation)),
        before,
        "an update of a property needs no new machine"
    );
    assert!(
        etcdctl(installation, 2, &["get", "kept"])
            .expect("read")
            .contains("yes")
    );

    for machine in members(installation) {
        process_of(&machine).signal(Signal::KILL).expect("killed");
    }
    eventually("the members to come back with their data", || {
        let text = etcdctl(installation, 0, &["get", "kept"])?;
        if text.contains("yes") { Ok(()) } else { Err(text) }
    });
    installation.stolos(&["delete-deployment", DEPLOYMENT, "--non-interactive", "--wait"]);
    assert_eq!(members(installation).len(), 0);
}

fn members(installation: &Installation) -> Vec<Value> {
    let mut machines = installation.machines();
    machines.retain(|machine| machine["metadata"]["deployment"] == DEPLOYMENT);
    machines.sort_by_key(|machine| machine["metadata"]["index"].to_string());
    machines
}

pub(crate) fn process_of(machine: &Value) -> Process {
    let pid = machine["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    Process::of(pid.expect("a running machine")).expect("a process")
}

/// etcdctl in a member's machine, with that member's own certificate.
fn etcdctl(installation: &Installation, member: usize, arguments: &[&str]) -> Result<String, String> {
    let machines = members(installation);
    let pid = machines
        .get(member)
        .and_then(|machine| machine["pid"].as_i64())
        .ok_or("the machine does not run")?;
    said(
        installation
            .command("nsenter".into())
            .args([
                "-t",
                &pid.to_string(),
                "-m",
                "-n",
                "/var/vcap/packages/etcd/bin/etcdctl",
            ])
            .args(["--endpoints=https://127.0.0.1:2379", "--command-timeout=5s"])
            .args([
                "--cacert=/var/vcap/jobs/etcd/config/ca.pem",
                "--cert=/var/vcap/jobs/etcd/config/member.pem",
                "--key=/var/vcap/jobs/etcd/config/member.key",
            ])
            .args(arguments),
    )
}
