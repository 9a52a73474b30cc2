//! Things that die. Clusters go on; operations go on; nothing is made twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use stolos_testbed::note;

use crate::etcd::process_of;
use crate::installation::{Installation, eventually};
use crate::{ready_nodes, workload};

/// Manager, keeper of machines, bus and agents are killed while nothing is going on.
pub(crate) fn processes_are_killed(installation: &Installation) {
    let answers = |without: &str| {
        let kept = installation.kubectl(&["get", "configmap", "memory"]);
        kept.unwrap_or_else(|error| panic!("the cluster answers without {without}: {error}"));
    };
    kill_recorded(installation, "run/stolosd.pid");
    answers("stolosd");
    installation.stolos(&["up"]);
    assert_eq!(
        installation.json(&["cluster", "live", "--json"])["last_action_state"],
        "succeeded"
    );
    kill_recorded(installation, "run/hostd.pid");
    answers("stolos-hostd");
    installation.stolos(&["up"]);

    let servers = || installation.processes("kube-apiserver");
    let kubelets = || installation.processes("kubelet");
    let jobs = (servers(), kubelets());
    let agents = installation.processes("stolos-agent");
    assert_eq!(agents.len(), 2, "one agent in each machine");
    for agent in &agents {
        agent.signal(Signal::KILL).expect("killed");
    }
    for bus in installation.processes("nats-server") {
        bus.signal(Signal::KILL).expect("killed");
    }
    answers("bus and agents");
    eventually("bus and agents to be there again", || {
        let (bus, now) = (
            installation.processes("nats-server"),
            installation.processes("stolos-agent"),
        );
        if bus.len() == 1 && now.len() == 2 && now.iter().all(|one| !agents.contains(one)) {
            Ok(())
        } else {
            Err(format!("nats-server: {bus:?}, agents: {now:?}"))
        }
    });
    assert_eq!((servers(), kubelets()), jobs, "jobs outlive their agent");
    let deployments = installation.json(&["deployments", "--json"]);
    let deployment = deployments[0]["name"]
        .as_str()
        .expect("the cluster's deployment")
        .to_owned();
    eventually("both instances to answer", || {
        let output = installation.run(&["instances", &deployment, "--json"]);
        let states: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let running = states
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["job_state"] == "running")
            .count();
        if running == 2 {
            Ok(())
        } else {
            Err(states.to_string())
        }
    });
}

fn kill_recorded(installation: &Installation, record: &str) {
    installation
        .recorded(record)
        .signal(Signal::KILL)
        .expect("killed");
}

/// What dies in the middle of creating a cluster.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Manager,
    Bus,
    Agents,
}

/// A cluster is being made when something is killed, early, in the middle and late: it is made all the same, once.
pub(crate) fn operations_survive(installation: &Installation) {
    for (round, (victim, after)) in [
        (Victim::Manager, 300),
        (Victim::Manager, 1500),
        (Victim::Manager, 3500),
        (Victim::Bus, 1200),
        (Victim::Agents, 1500),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("killed{round}");
        let machines = installation.machines().len();
        installation.create_cluster(&name, false);
        std::thread::sleep(Duration::from_millis(after));
        match victim {
            Victim::Manager => {
                kill_recorded(installation, "run/stolosd.pid");
                let start = Instant::now();
                installation.stolos(&["up"]);
                // `up` has logged in, so the manager serves; the operation goes on when a step of it runs.
                eventually("the operation to go on", || {
                    let shown = installation.json(&["operations", "--cluster", &name, "--json"]);
                    let steps = shown[0]["steps"].as_array().cloned().unwrap_or_default();
                    let goes_on = shown[0]["state"] == "succeeded"
                        || steps.iter().any(|step| step["state"] == "running");
                    if goes_on { Ok(()) } else { Err(shown.to_string()) }
                });
                note(format!(
                    "killed after {after} ms: goes on {} ms after the start of `up`",
                    start.elapsed().as_millis()
                ));
            }
            Victim::Bus => {
                for bus in installation.processes("nats-server") {
                    bus.signal(Signal::KILL).expect("killed");
                }
            }
            Victim::Agents => {
                for agent in installation.processes("stolos-agent") {
                    agent.signal(Signal::KILL).expect("killed");
                }
            }
        }
        installation.stolos(&["operations", "--cluster", &name, "--follow"]);
        let cluster = installation.json(&["cluster", &name, "--json"]);
        assert_eq!(
            cluster["last_action_state"], "succeeded",
            "{victim:?} after {after} ms: {cluster}"
        );
        assert_eq!(
            installation.machines().len(),
            machines + 2,
            "{victim:?} after {after} ms: nothing twice"
        );
        installation.stolos(&["delete-cluster", &name, "--non-interactive", "--wait"]);
        assert_eq!(
            installation.machines().len(),
            machines,
            "{victim:?} after {after} ms: nothing stays"
        );
    }
}

/// What a host reboot does to machines: all are gone at once, and come back by themselves with their data.
pub(crate) fn every_machine_is_killed(installation: &Installation) {
    let before = installation.machines();
    assert_eq!(before.len(), 2);
    for machine in &before {
        process_of(machine).signal(Signal::KILL).expect("killed");
    }
    let kept = ["get", "configmap", "memory", "-o", "jsonpath={.data.kept}"];
    installation.eventually("the data", &kept, |text| text == "yes");
    installation.eventually("two nodes Ready", &["get", "nodes", "--no-headers"], |text| {
        ready_nodes(text) == 2
    });
    workload::stateful_set_is_ready(installation);
    let after = installation.machines();
    let pids = |machines: &[Value]| {
        machines
            .iter()
            .map(|machine| machine["pid"].clone())
            .collect::<Vec<_>>()
    };
    assert!(
        pids(&after).iter().all(|pid| !pids(&before).contains(pid)),
        "the machines were started anew"
    );
}
