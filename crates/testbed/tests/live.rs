//! The whole product on this host, as a person uses it: up, a cluster, faults, down. One test, because there is one host.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use stolos_base::process::Process;
use stolos_testbed::host::Picture;
use stolos_testbed::{cannot_run_machines, programs, skip};

/// How long the cluster may take to be itself again after a fault on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

struct Installation {
    name: String,
    root: Utf8PathBuf,
    home: camino_tempfile::Utf8TempDir,
    cache: String,
}

impl Installation {
    fn new() -> Self {
        let name = format!("t{}", stolos_base::ids::random_hex(3));
        let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
        let cache = std::env::var("STOLOS_CACHE").unwrap_or_else(|_| format!("{home}/.cache/stolos"));
        Self {
            root: Utf8PathBuf::from("/var/lib/stolos").join(&name),
            name,
            home: camino_tempfile::tempdir().expect("a home directory"),
            cache,
        }
    }

    fn command(&self, program: &Utf8Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("kubeconfig"))
            .env("STOLOS_CACHE", &self.cache)
            .env("STOLOS_INSTANCE", &self.name)
            .env("STOLOS_ROOT", &self.root)
            .env_remove("PKS_HOME")
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(&programs::ours("stolos"))
            .args(arguments)
            .output()
            .expect("stolos runs")
    }

    #[track_caller]
    fn stolos(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "stolos {arguments:?}: {}\n{out}\n{err}",
            output.status
        );
        out.into_owned()
    }

    /// A command that has to be refused with exit code 1 and these words.
    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &str) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "stolos {arguments:?}: {text}");
        assert!(text.contains(words), "stolos {arguments:?} says: {text}");
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let kubectl = programs::on_path("kubectl").expect("kubectl");
        let output = self
            .command(&kubectl)
            .args(["--request-timeout=10s"])
            .args(arguments)
            .output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Repeats until kubectl prints what is wanted.
    #[track_caller]
    fn eventually(&self, what: &str, arguments: &[&str], good: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let said = match self.kubectl(arguments) {
                Ok(text) if good(&text) => return,
                Ok(text) | Err(text) => text,
            };
            assert!(
                start.elapsed() < PATIENCE,
                "{what} did not come true; kubectl {arguments:?} says: {said}"
            );
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn recorded(&self, file: &str) -> Process {
        Process::recorded(&self.root.join(file))
            .expect("a record")
            .expect("a running process")
    }

    fn machines(&self) -> Vec<Value> {
        let config = self.root.join("cpi-host.json");
        let output = Command::new(programs::ours("stolos-cpi-host"))
            .args(["--config", config.as_str(), "list"])
            .output();
        let output = output.expect("stolos-cpi-host runs");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a machine"))
            .collect()
    }
}

/// Whatever fails, nothing of the test stays on the host.
impl Drop for Installation {
    fn drop(&mut self) {
        let _ = self.run(&["down", "--purge"]);
    }
}

fn ready_nodes(text: &str) -> usize {
    text.lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("Ready"))
        .count()
}

const STATEFUL_SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: stolos.local/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, "trap 'exit 0' TERM; while true; do sleep 1; done"]
"#;

#[test]
fn a_cluster_lives_through_faults_and_leaves_nothing() {
    if let Some(why) = cannot_run_machines().or_else(|| {
        programs::on_path("kubectl")
            .is_none()
            .then(|| "no kubectl".into())
    }) {
        return skip("a_cluster_lives_through_faults_and_leaves_nothing", why);
    }
    let installation = Installation::new();
    let name = installation.name.clone();
    // Only what carries our name, and sysctls: others may work on this host at the same time.
    let not_ours = move |line: &str| !line.contains(&name) && !line.starts_with("sysctl ");
    let before = Picture::take(&not_ours);

    installation.stolos(&["up"]);
    installation.stolos(&[
        "create-cluster",
        "live",
        "-e",
        "live.test",
        "-p",
        "small",
        "-n",
        "1",
        "--non-interactive",
        "--wait",
    ]);
    bad_input(&installation);
    installation.stolos(&["get-credentials", "live"]);
    installation.eventually("two nodes Ready", &["get", "nodes", "--no-headers"], |text| {
        ready_nodes(text) == 2
    });
    workload(&installation);
    processes_are_killed(&installation);
    every_machine_is_killed(&installation);

    installation.stolos(&["delete-cluster", "live", "--non-interactive", "--wait"]);
    assert_eq!(
        installation.machines().len(),
        0,
        "a deleted cluster has no machines"
    );
    installation.refused(&["cluster", "live"], "Cluster live not found");
    installation.stolos(&["down", "--purge"]);
    let left = Picture::take(&not_ours).difference(&before);
    assert!(left.is_empty(), "left behind: {left:#?}");
    assert!(!installation.root.exists(), "the state is gone");
}

fn bad_input(installation: &Installation) {
    let create = |name, host, plan, nodes| {
        [
            "create-cluster",
            name,
            "-e",
            host,
            "-p",
            plan,
            "-n",
            nodes,
            "--non-interactive",
        ]
    };
    installation.refused(&create("x", "x.test", "huge", "1"), "Plan Not Found");
    installation.refused(&create("live", "y.test", "small", "1"), "already in use");
    installation.refused(&create("x", "live.test", "small", "1"), "already in use");
    installation.refused(&create("x", "a_b", "small", "1"), "not valid");
    installation.refused(&create("x", "x.test", "small", "0"), "not between 1 and");
    installation.refused(&create("x", "x.test", "small", "51"), "not between 1 and");
    installation.refused(&create("a/../b", "x.test", "small", "1"), "not valid");
    installation.refused(&create("x", "x.test", "medium", "50"), "MiB of memory");
    installation.refused(&["get-credentials", "nobody"], "not found");
    let clusters: Value = serde_json::from_str(&installation.stolos(&["clusters", "--json"])).expect("JSON");
    assert_eq!(
        clusters.as_array().map(Vec::len),
        Some(1),
        "refused requests leave nothing: {clusters}"
    );
}

fn workload(installation: &Installation) {
    let file = installation.home.path().join("web.yml");
    fs_err::write(&file, STATEFUL_SET).expect("a manifest");
    installation
        .kubectl(&["apply", "-f", file.as_str()])
        .expect("applied");
    let ready = [
        "get",
        "statefulset",
        "web",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    installation.eventually("the stateful set", &ready, |text| text == "2");
    assert_eq!(
        installation
            .kubectl(&["exec", "web-0", "--", "echo", "hello"])
            .expect("exec"),
        "hello\n"
    );
    installation
        .kubectl(&["create", "configmap", "memory", "--from-literal=kept=yes"])
        .expect("a config map");
}

/// Manager and bus are killed: the cluster does not notice, and the next `up` finds everything.
fn processes_are_killed(installation: &Installation) {
    use rustix::process::Signal;
    installation
        .recorded("run/stolosd.pid")
        .signal(Signal::KILL)
        .expect("killed");
    installation
        .kubectl(&["get", "configmap", "memory"])
        .expect("the cluster answers without stolosd");
    installation.stolos(&["up"]);
    let cluster: Value =
        serde_json::from_str(&installation.stolos(&["cluster", "live", "--json"])).expect("JSON");
    assert_eq!(cluster["last_action_state"], "succeeded");
    installation
        .recorded("run/hostd.pid")
        .signal(Signal::KILL)
        .expect("killed");
    installation
        .kubectl(&["get", "configmap", "memory"])
        .expect("the cluster answers without stolos-hostd");
    installation.stolos(&["up"]);
}

/// What a host reboot does to machines: all are gone at once, and come back by themselves with their data.
fn every_machine_is_killed(installation: &Installation) {
    let before = installation.machines();
    assert_eq!(before.len(), 2);
    for machine in &before {
        let pid = machine["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a running machine");
        Process::of(pid)
            .expect("a process")
            .signal(rustix::process::Signal::KILL)
            .expect("killed");
    }
    installation.eventually(
        "the data",
        &["get", "configmap", "memory", "-o", "jsonpath={.data.kept}"],
        |text| text == "yes",
    );
    installation.eventually("two nodes Ready", &["get", "nodes", "--no-headers"], |text| {
        ready_nodes(text) == 2
    });
    let ready = [
        "get",
        "statefulset",
        "web",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    installation.eventually("the stateful set", &ready, |text| text == "2");
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
