//! An installation of its own, used as a person uses it: by its command line.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use stolos_base::process::Process;
use stolos_testbed::programs;

/// How long something may take to come true after a fault on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) struct Installation {
    pub(crate) name: String,
    pub(crate) root: Utf8PathBuf,
    pub(crate) home: camino_tempfile::Utf8TempDir,
    cache: String,
}

impl Installation {
    pub(crate) fn new() -> Self {
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

    /// One whose state lies elsewhere.
    pub(crate) fn below(directory: &Utf8Path) -> Self {
        let mut installation = Self::new();
        installation.root = directory.join(&installation.name);
        installation
    }

    pub(crate) fn command(&self, program: &Utf8Path) -> Command {
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(&programs::ours("stolos"))
            .args(arguments)
            .output()
            .expect("stolos runs")
    }

    #[track_caller]
    pub(crate) fn stolos(&self, arguments: &[&str]) -> String {
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

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.stolos(arguments)).expect("JSON")
    }

    #[track_caller]
    pub(crate) fn create_cluster(&self, name: &str, wait: bool) {
        let host = format!("{name}.test");
        let mut arguments = vec![
            "create-cluster",
            name,
            "-e",
            &host,
            "-p",
            "small",
            "-n",
            "1",
            "--non-interactive",
        ];
        if wait {
            arguments.push("--wait");
        }
        self.stolos(&arguments);
    }

    /// A program of an upstream component, as built for this repository.
    pub(crate) fn upstream(&self, component: &str, program: &str) -> Utf8PathBuf {
        let output = self
            .command(&programs::ours("stolos-build"))
            .args(["--json", "upstream", component])
            .output()
            .expect("stolos-build runs");
        let built: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{component}: {}", String::from_utf8_lossy(&output.stderr)));
        Utf8Path::new(built["bin"].as_str().expect("a directory")).join(program)
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let kubectl = self.upstream("kubernetes-1.37", "kubectl");
        said(
            self.command(&kubectl)
                .args(["--request-timeout=10s"])
                .args(arguments),
        )
    }

    /// Repeats until kubectl prints what is wanted.
    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, arguments: &[&str], good: impl Fn(&str) -> bool) {
        eventually(what, || match self.kubectl(arguments) {
            Ok(text) if good(&text) => Ok(()),
            Ok(text) | Err(text) => Err(format!("kubectl {arguments:?} says: {text}")),
        });
    }

    pub(crate) fn recorded(&self, file: &str) -> Process {
        Process::recorded(&self.root.join(file))
            .expect("a record")
            .expect("a running process")
    }

    /// The machines of this installation as the CPI lists them.
    pub(crate) fn machines(&self) -> Vec<Value> {
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

    /// Processes of a program whose cgroup or arguments name this installation: in its machines or beside them.
    pub(crate) fn processes(&self, program: &str) -> Vec<Process> {
        let in_machine = format!("/stolos-{}/", self.name);
        let mut found = Vec::new();
        for entry in fs_err::read_dir("/proc").expect("the processes").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let arguments = read("cmdline");
            let own = arguments
                .split('\0')
                .next()
                .and_then(|first| first.rsplit('/').next());
            let is_ours = read("cgroup").contains(&in_machine) || arguments.contains(self.root.as_str());
            if own == Some(program) && is_ours {
                found.extend(Process::of(pid));
            }
        }
        found
    }
}

/// Whatever fails, nothing of the test stays on the host.
impl Drop for Installation {
    fn drop(&mut self) {
        let _ = self.run(&["down", "--purge"]);
    }
}

/// What a command printed, on one or the other side.
pub(crate) fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Repeats until it is so; the error says how things stand.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(how) => assert!(start.elapsed() < PATIENCE, "{what} did not come true; {how}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
