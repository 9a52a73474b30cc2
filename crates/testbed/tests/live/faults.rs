//! Things that die. Clusters go on; operations go on; nothing is made twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use stolos_base::process::Process;
use stolos_testbed::{note, programs};

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

/// All machines end at once, and come back by themselves with their data.
pub(crate) fn every_machine_is_killed(installation: &Installation) {
    let before = installation.machines();
    assert_eq!(before.len(), 2);
    for machine in &before {
        process_of(machine).signal(Signal::KILL).expect("killed");
    }
    is_as_it_was(installation);
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

/// The first of the four levels, which is Kubernetes' own: what becomes of a pod that is deleted, whose process is killed, and whose probe fails.
pub(crate) fn pods_come_back(installation: &Installation) {
    const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: lasting}
spec:
  replicas: 2
  selector: {matchLabels: {app: lasting}}
  template:
    metadata: {labels: {app: lasting}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: lasting}}}
      containers:
      - name: app
        image: "stolos.local/busybox:1"
        imagePullPolicy: Never
        command: [sh, -c, "touch /tmp/alive; exec sleep 86400"]
        livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
"#;
    let file = workload::file(installation, "lasting.yml", PODS);
    installation.kubectl(&["apply", "-f", &file]).expect("applied");
    let available = [
        "get",
        "deployment",
        "lasting",
        "-o",
        "jsonpath={.status.availableReplicas}",
    ];
    let whole = |what: &str| {
        let start = Instant::now();
        installation.eventually(what, &available, |text| text == "2");
        note(format!("{what} after {} ms", start.elapsed().as_millis()));
    };
    whole("both pods are there");
    let names = || {
        let listed = installation.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=lasting",
            "--field-selector=status.phase=Running",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{'\\n'}{end}",
        ]);
        let listed = listed.expect("pods");
        let mut pods: Vec<(String, u32)> = listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, restarts)| (name.to_owned(), restarts.parse().unwrap_or(0)))
            .collect();
        pods.sort();
        pods
    };
    let before = names();
    let (first, second) = (&before[0].0, &before[1].0);
    let restarted = |name: &str, what: &str| {
        let start = Instant::now();
        eventually(what, || {
            let now = names();
            match now.iter().find(|(pod, _)| pod == name) {
                Some((_, restarts)) if *restarts > 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        note(format!("{what} after {} ms", start.elapsed().as_millis()));
    };
    // Its process is killed: the kubelet starts it again.
    let uid = installation
        .kubectl(&["get", "pod", first, "-o", "jsonpath={.metadata.uid}"])
        .expect("an id");
    let of_pod = |process: &Process| {
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        cgroup.contains(&uid)
    };
    let killed = installation.processes("sleep").into_iter().find(of_pod);
    killed
        .expect("the pod's process")
        .signal(Signal::KILL)
        .expect("killed");
    restarted(first, "a pod whose process was killed runs again");
    whole("both pods are well");
    // Its probe fails: the same.
    installation
        .kubectl(&["exec", second, "--", "rm", "/tmp/alive"])
        .expect("no longer alive");
    restarted(second, "a pod whose probe failed runs again");
    whole("both pods are well");
    // It is deleted: another takes its place.
    installation
        .kubectl(&["delete", "pod", second, "--wait=false"])
        .expect("deleted");
    installation.eventually(
        "another in its place",
        &["get", "pods", "-l", "app=lasting", "-o", "name"],
        |text| !text.contains(second.as_str()) && text.lines().count() == 2,
    );
    whole("both pods are well");
    installation
        .kubectl(&["delete", "deployment", "lasting"])
        .expect("deleted");
}

/// Planned: a cluster is stopped, everything is stopped and started, and the cluster is started again. It was made of the same data before and after.
pub(crate) fn planned_shutdown(installation: &Installation) {
    let cids = |installation: &Installation| -> Vec<Value> {
        let machines = installation.machines();
        machines.iter().map(|machine| machine["cid"].clone()).collect()
    };
    let before = cids(installation);
    let runs = |program: &str| installation.processes(program).len();
    let nothing_runs = |when: &str| {
        for program in [
            "kube-apiserver",
            "etcd",
            "kubelet",
            "containerd",
            "pause",
            "sleep",
        ] {
            assert_eq!(runs(program), 0, "{program} {when}");
        }
    };
    installation.stolos(&["stop-cluster", "live", "--non-interactive", "--wait"]);
    nothing_runs("in a stopped cluster");
    assert_eq!(installation.json(&["cluster", "live", "--json"])["stopped"], true);
    installation.refused(
        &["resize", "live", "-n", "2", "--non-interactive"],
        "cluster `live` is stopped",
    );
    installation.stolos(&["down"]);
    installation.stolos(&["up"]);
    assert_eq!(cids(installation), before, "machines and disks stay");
    eventually("the agents", || match runs("stolos-agent") {
        2 => Ok(()),
        n => Err(format!("{n} agents")),
    });
    nothing_runs("after everything was started");
    installation.stolos(&["start-cluster", "live", "--wait"]);
    is_as_it_was(installation);
    assert_eq!(cids(installation), before);
}

/// The host reboots: every process ends at once, everything that the kernel had is gone, and records of processes that are no more lie about.
pub(crate) fn host_reboots(installation: &Installation) {
    let before = installation.machines();
    let mut all = vec![
        installation.recorded("run/stolosd.pid"),
        installation.recorded("run/hostd.pid"),
    ];
    all.extend(installation.processes("nats-server"));
    all.extend(before.iter().map(process_of));
    for process in &all {
        process.signal(Signal::KILL).expect("killed");
    }
    // Links, control groups, mounts and loop devices: what a kernel forgets.
    let config = installation.root.join("cpi-host.json");
    let cleared = std::process::Command::new(programs::ours("stolos-cpi-host"))
        .args(["--config", config.as_str(), "stop-all"])
        .output()
        .expect("stolos-cpi-host runs");
    assert!(cleared.status.success(), "{cleared:?}");
    let start = Instant::now();
    installation.stolos(&["up"]);
    is_as_it_was(installation);
    note(format!(
        "as it was {} ms after the start of `up`",
        start.elapsed().as_millis()
    ));
    let cids = |machines: &[Value]| -> Vec<Value> {
        machines.iter().map(|machine| machine["cid"].clone()).collect()
    };
    assert_eq!(
        cids(&installation.machines()),
        cids(&before),
        "the same machines, none made anew"
    );
}

fn is_as_it_was(installation: &Installation) {
    let kept = ["get", "configmap", "memory", "-o", "jsonpath={.data.kept}"];
    installation.eventually("the data", &kept, |text| text == "yes");
    installation.eventually("two nodes Ready", &["get", "nodes", "--no-headers"], |text| {
        ready_nodes(text) == 2
    });
    workload::stateful_set_is_ready(installation);
}

/// The second level: each process of a node is killed and started again by the machine's own init, with pauses that grow when it goes on; operators are told.
pub(crate) fn jobs_are_killed(installation: &Installation) {
    let programs = [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "containerd",
        "kube-proxy",
    ];
    let killed = |program: &str| -> Duration {
        let before = installation.processes(program);
        let victim = before.first().unwrap_or_else(|| panic!("{program} runs"));
        victim.signal(Signal::KILL).expect("killed");
        let start = Instant::now();
        eventually(&format!("{program} again"), || {
            let now = installation.processes(program);
            let anew = now.iter().any(|one| !before.contains(one));
            if anew && now.len() == before.len() {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
        start.elapsed()
    };
    for program in programs {
        let again = killed(program);
        installation.eventually("the API", &["get", "--raw", "/readyz"], |text| text == "ok");
        note(format!(
            "{program}, killed, runs again after {} ms",
            again.as_millis()
        ));
    }
    // One that does not stay up is started less and less often, and somebody is told how often that was.
    let scheduler = "kube-scheduler";
    for _ in 0..3 {
        killed(scheduler);
    }
    eventually("an operator is told", || {
        let output = installation.run(&["events", "live", "--json"]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        for program in programs {
            if !told.contains(&format!("process {program}/{program} was ended by signal 9")) {
                return Err(format!("nothing of {program} in {told}"));
            }
        }
        if told.contains(&format!(
            "process {scheduler}/{scheduler} was ended by signal 9, 3 times in a row"
        )) {
            Ok(())
        } else {
            Err(told)
        }
    });
    is_as_it_was(installation);
}
