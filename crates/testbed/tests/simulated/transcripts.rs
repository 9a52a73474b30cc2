//! What people of PKS see: whole sessions at the command line, called by PKS's names, word for word.
//!
//! The snapshots are the golden texts: tables, blocks, prompts, messages, errors and exit codes as section 1 of the reference has them. What differs from
//! run to run (ids, times, addresses) is replaced by its name.

use std::io::Write as _;
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;
use camino_tempfile::Utf8TempDir;
use stolos_store::testing::Place;
use stolos_testbed::programs;
use stolos_testbed::simulated::Simulation;

/// A person at a terminal.
struct Person {
    home: Utf8TempDir,
    program: Utf8PathBuf,
    api: String,
    password: String,
    said: String,
}

impl Person {
    fn new(simulation: &Simulation, name: &str) -> Self {
        let home = camino_tempfile::tempdir().expect("a home directory");
        let program = home.path().join(name);
        fs_err::os::unix::fs::symlink(programs::ours("stolos"), &program).expect("a link");
        let access = simulation.access();
        fs_err::write(home.path().join("ca.pem"), &access.ca).expect("a file");
        fs_err::write(home.path().join("password"), &access.password).expect("a file");
        Self {
            home,
            program,
            api: access.api.trim_start_matches("https://").to_owned(),
            password: access.password.clone(),
            said: String::new(),
        }
    }

    fn file(&self, name: &str, content: &str) {
        fs_err::write(self.home.path().join(name), content).expect("a file");
    }

    /// Types a line, and an answer where it is asked for something.
    async fn types(&mut self, line: &str, answer: &str) {
        let name = self.program.file_name().expect("a name").to_owned();
        let arguments = line.replace("API", &self.api);
        let mut command = Command::new(&self.program);
        command
            .args(arguments.split_whitespace().map(|word| word.replace('_', " ")))
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("kubeconfig"))
            .env_remove("PKS_HOME")
            .env_remove("PKS_USER_PASSWORD")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let answer = answer.to_owned();
        let run = move || {
            let mut child = command.spawn().expect("the program runs");
            let mut input = child.stdin.take().expect("its input");
            // One that asks nothing may have ended already.
            let _ = input.write_all(answer.as_bytes());
            drop(input);
            child.wait_with_output().expect("its output")
        };
        let output = tokio::task::spawn_blocking(run).await.expect("it ran");
        let code = output.status.code().unwrap_or(-1);
        let mut said = format!("$ {name} {line}\n");
        for (mark, bytes) in [("", &output.stdout), ("! ", &output.stderr)] {
            let text = self.plain(&String::from_utf8_lossy(bytes));
            // What a slow step waits on depends on when it is looked at.
            for line in text.lines().filter(|line| !line.starts_with("  running  ")) {
                said.push_str(format!("{mark}{line}").trim_end());
                said.push('\n');
            }
        }
        self.said.push_str(&steps_in_order(&said));
        if code != 0 {
            self.said.push_str(&format!("exit {code}\n"));
        }
        self.said.push('\n');
    }

    /// Without what differs from run to run.
    fn plain(&self, text: &str) -> String {
        let dated = |line: &str| match line.split_once("Created Date:") {
            Some((head, _)) => format!("{head}Created Date:             DATE"),
            None => line.to_owned(),
        };
        let text: Vec<String> = text.lines().map(dated).collect();
        let text = text
            .join("\n")
            .replace(&self.api, "API")
            .replace(&self.password, "PASSWORD")
            .replace(self.home.path().as_str(), "HOME");
        let mut plain = String::new();
        let mut rest = text.as_str();
        while let Some(first) = rest.chars().next() {
            let word: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "-:.".contains(*c))
                .collect();
            if word.is_empty() {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            } else {
                plain.push_str(&named(&word));
                rest = &rest[word.len()..];
            }
        }
        plain
    }
}

/// Steps that run beside each other end in any order: those that follow each other are sorted.
fn steps_in_order(said: &str) -> String {
    let is_step = |line: &&str| line.starts_with("!   done ");
    let mut lines: Vec<&str> = Vec::new();
    let mut steps: Vec<&str> = Vec::new();
    for line in said.lines() {
        if is_step(&line) {
            steps.push(line);
            continue;
        }
        steps.sort_unstable();
        lines.append(&mut steps);
        lines.push(line);
    }
    steps.sort_unstable();
    lines.append(&mut steps);
    lines.join("\n") + "\n"
}

/// Ids, times and addresses by their names, as wide as they are, so that tables stay tables.
fn named(word: &str) -> String {
    let is_uuid = word.len() == 36
        && word.bytes().enumerate().all(|(at, b)| {
            if matches!(at, 8 | 13 | 18 | 23) {
                b == b'-'
            } else {
                b.is_ascii_hexdigit()
            }
        });
    let is_time =
        word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T' && word.starts_with("20");
    // A backup's id: a time and four digits.
    let is_backup = word.len() == 21 && word.as_bytes()[8] == b'T' && word.as_bytes()[15] == b'Z';
    if is_backup {
        format!("{:<21}", "BACKUP").replace(' ', "-")
    } else if is_uuid {
        format!("{:<36}", "UUID").replace(' ', "-")
    } else if is_time {
        "TIME".to_owned()
    } else if word.parse::<f64>().is_ok() && word.contains('.') && word.matches('.').count() == 1 {
        "N.N".to_owned()
    } else {
        word.to_owned()
    }
}

const LOGIN: &str = "login -a API -u admin --password-file password --ca-cert ca.pem";

/// An installation, with the directories that it lives in.
async fn world() -> (Simulation, (Utf8TempDir, Place)) {
    let directory = camino_tempfile::tempdir().expect("a directory");
    let place = Place::sqlite();
    let simulation = Simulation::start(directory.path(), place.url().clone())
        .await
        .expect("an installation");
    (simulation, (directory, place))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_cluster() {
    let (simulation, _directories) = world().await;
    let mut person = Person::new(&simulation, "tkgi");
    for (line, answer) in [
        ("clusters", ""),
        ("login -a API -u admin -p wrong --ca-cert ca.pem", ""),
        (LOGIN, ""),
        ("plans", ""),
        ("plans --json", ""),
        ("clusters", ""),
        (
            "create-cluster my-cluster -e my-cluster.example.com -p small -n 2 --tags team:blue,cost:7",
            "",
        ),
        ("operations --follow", ""),
        ("cluster my-cluster --json", ""),
        ("cluster my-cluster", ""),
        ("cluster my-cluster --details", ""),
        ("clusters", ""),
        ("get-credentials my-cluster", ""),
        ("resize my-cluster -n 3 --wait", "y\n"),
        ("resize my-cluster -n 1", "n\n"),
        (
            "update-cluster my-cluster --num-nodes 2 --kubelet-drain-timeout 5 --wait",
            "y\n",
        ),
        ("update-cluster my-cluster", ""),
        ("certificates my-cluster --days 1", ""),
        ("rotate-certificates my-cluster --only-nsx", ""),
        ("upgrade-cluster my-cluster", "y\n"),
        ("delete-cluster my-cluster", "n\n"),
        ("delete-cluster my-cluster --wait", "y\n"),
        ("cluster my-cluster", ""),
        ("logout", ""),
        ("clusters", ""),
    ] {
        person.types(line, answer).await;
    }
    insta::assert_snapshot!(person.said);
    simulation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_a_cluster() {
    let (simulation, _directories) = world().await;
    let mut person = Person::new(&simulation, "stolos");
    for (line, answer) in [
        (LOGIN, ""),
        ("create-cluster demo -e demo.example.com -p small --wait", ""),
        ("cluster-backups", ""),
        ("restore-cluster demo --backup latest", "y\n"),
        ("backup-cluster demo --wait", ""),
        ("cluster-backups", ""),
        ("cluster-backups demo", ""),
        ("verify-cluster-backup demo", ""),
        ("verify-cluster-backup demo 20200101T000000Z-0000", ""),
        ("restore-cluster demo --backup latest --wait", "n\n"),
        ("restore-cluster demo --backup latest --wait", "y\n"),
        ("cluster-backups demo", ""),
        ("backup-cluster nobody", ""),
        (
            "create-cluster copy -e copy.example.com -p small --from-backup demo --wait",
            "",
        ),
        (
            "create-cluster more -e more.example.com -p small --from-backup nobody",
            "",
        ),
    ] {
        person.types(line, answer).await;
    }
    insta::assert_snapshot!(person.said);
    simulation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_and_quotas() {
    let (simulation, _directories) = world().await;
    let mut person = Person::new(&simulation, "pks");
    person.file(
        "network.json",
        r#"{"name": "net", "description": "own names", "parameters": {"lb_size": "small", "nodes_dns": ["10.0.0.53"]}}"#,
    );
    person.file(
        "compute.json",
        r#"{"name": "pools", "description": "two pools", "parameters": {"cluster_customization": {"node_pools": [
            {"name": "web", "instances": 1, "node_labels": "tier=web"},
            {"name": "batch", "instances": 1, "cpu": 2, "memory_in_mb": 4096, "ephemeral_disk_in_mb": 16384, "node_taints": "only=batch:NoSchedule"}]}}}"#,
    );
    person.file(
        "kubernetes.json",
        r#"{"name": "ports", "description": "", "customizations": [
            {"component": "kube-apiserver", "arguments": {"service-node-port-range": "30000-40000"}}]}"#,
    );
    for (name, password) in [("wrong", "not-it-at-all"), ("other", "another-password")] {
        person.file(name, password);
    }
    person.file(
        "bad.json",
        r#"{"name": "bad", "parameters": {"nodes_dns": ["none"]}}"#,
    );
    for (line, answer) in [
        (LOGIN, ""),
        ("create-network-profile network.json", ""),
        ("create-network-profile network.json", ""),
        ("create-network-profile bad.json", ""),
        ("create-network-profile nothing.json", ""),
        ("network-profiles", ""),
        ("network-profile net", ""),
        ("create-compute-profile compute.json", ""),
        ("compute-profiles", ""),
        ("compute-profile pools", ""),
        ("create-kubernetes-profile kubernetes.json", ""),
        ("k8s-profile ports", ""),
        (
            "create-cluster c1 -e c1.example.com -p small --network-profile net --compute-profile pools --kubernetes-profile ports --wait",
            "",
        ),
        ("delete-compute-profile pools", "y\n"),
        ("update-cluster c1 --node-pool-instances web:2 --wait", "y\n"),
        ("delete-cluster c1 --non-interactive --wait", ""),
        ("delete-compute-profile pools", "y\n"),
        ("delete-network-profile net --non-interactive", ""),
        ("delete-kubernetes-profile ports --non-interactive", ""),
        ("kubernetes-profile ports", ""),
        ("users", ""),
        (
            "create-user alice --email alice@example.com --group pks.clusters.manage --password-file password",
            "",
        ),
        ("create-user alice --password-file password", ""),
        ("create-user bob --group none --password-file password", ""),
        ("create-group developers", ""),
        ("add-member developers bob", ""),
        ("add-member none bob", ""),
        ("users", ""),
        (
            "login -a API -u bob --password-file password --ca-cert ca.pem",
            "",
        ),
        (
            "login -a API -u alice --password-file password --ca-cert ca.pem",
            "",
        ),
        ("clusters", ""),
        ("users", ""),
        ("quotas", ""),
        ("create-network-profile network.json", ""),
        (
            "change-password --old-password-file wrong --password-file other",
            "",
        ),
        ("change-password --old-password-file - --password-file -", ""),
        ("change-password --password-file other", ""),
        (
            "change-password --old-password-file password --password-file other",
            "",
        ),
        ("clusters", ""),
        ("unlock-user alice", ""),
        ("reset-password bob --password-file password", ""),
        (LOGIN, ""),
        ("reset-password alice --password-file password", ""),
        ("reset-password admin --password-file other", ""),
        ("unlock-user alice", ""),
        ("unlock-user nobody", ""),
        ("remove-member developers bob", ""),
        ("transfer-cluster nothing --to alice", ""),
        ("delete-cluster nothing --if-exists", ""),
        ("delete-group developers", "n\n"),
        ("delete-group developers", "y\n"),
        ("delete-group developers --non-interactive", ""),
        ("delete-group pks.clusters.admin --non-interactive", ""),
        ("delete-user bob", "y\n"),
        ("delete-user admin", "y\n"),
        ("delete-user nobody", ""),
        ("quotas", ""),
        ("create-quota alice --cpu 8 --memory 16 --clusters 2", ""),
        ("update-quota alice --clusters 3", ""),
        ("update-quota alice", ""),
        ("quotas", ""),
        ("delete-quota alice", "y\n"),
        ("usages", ""),
    ] {
        person.types(line, answer).await;
    }
    insta::assert_snapshot!(person.said);
    simulation.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes() {
    let (simulation, _directories) = world().await;
    let mut person = Person::new(&simulation, "tkgi");
    for (line, answer) in [
        (LOGIN, ""),
        ("--version", ""),
        ("clsters", ""),
        ("create-clustr", ""),
        ("create-cluster", ""),
        ("create-cluster c1 -e c1.example.com -p huge", ""),
        ("create-cluster C_1 -e c1.example.com -p small", ""),
        ("create-cluster c1 -e c1.example.com -p small -n 0", ""),
        ("create-cluster c1 -e c1.example.com -p small -n 51", ""),
        ("create-cluster c1 -e not!a!host -p small", ""),
        (
            "create-cluster c1 -e c1.example.com -p small --tags director:x",
            "",
        ),
        (
            "create-cluster c1 -e c1.example.com -p small --compute-profile none",
            "",
        ),
        ("create-cluster c1 -e c1.example.com -p small -n 1 --wait", ""),
        ("create-cluster c1 -e other.example.com -p small", ""),
        ("create-cluster c2 -e c1.example.com -p small", ""),
        ("cluster none", ""),
        ("resize none -n 2", ""),
        ("delete-cluster none", "y\n"),
        ("get-credentials none", ""),
        ("upgrade-clusters -c c1,none", ""),
        ("task none", ""),
        ("tasks", ""),
        ("cancel-task none", ""),
        ("delete-cluster c1", ""),
        ("sinks c1", ""),
        ("promote-cluster-to-policy c1", ""),
        ("login -a http://api.example.com -u a", ""),
    ] {
        person.types(line, answer).await;
    }
    insta::assert_snapshot!(person.said);
    simulation.stop().await;
}
