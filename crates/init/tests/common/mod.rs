//! A real init in a temporary directory.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use stolos_init::{Client, ProcessSpec, ProcessStatus, State};

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it looks.
const TICK: Duration = Duration::from_millis(5);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_stolos-init");

/// An init of the test's own; ended with everything it started when dropped.
pub(crate) struct Init {
    child: Child,
    pub(crate) dir: Utf8TempDir,
}

impl Init {
    /// Starts one without agent. `config` holds further fields of the configuration file.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_by(config, |program| Command::new(program))
    }

    /// Starts one through another program.
    pub(crate) fn start_by(config: &str, command: impl FnOnce(&str) -> Command) -> Self {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let path = dir.path();
        let extra = if config.is_empty() {
            String::new()
        } else {
            format!(",{config}")
        };
        let agent = if config.contains("\"agent\"") {
            ""
        } else {
            ",\"agent\":null"
        };
        let text = format!(
            r#"{{"log_dir":"{path}/log","own_log_dir":"{path}/own","unmount":[]{agent}{}}}"#,
            extra.replace("DIR", path.as_str())
        );
        std::fs::write(path.join("init.json"), text).expect("the configuration");
        let mut command = command(PROGRAM);
        command
            .args([
                "--no-mounts",
                "--socket",
                path.join("init.sock").as_str(),
                "--config",
            ])
            .arg(path.join("init.json"))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("init starts");
        let mut init = Self { child, dir };
        wait("init to listen", || {
            if let Some(status) = init.child.try_wait().expect("a status") {
                panic!("init ended: {status}");
            }
            Client::connect(init.socket()).ok()
        });
        init
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> Utf8PathBuf {
        self.dir.path().join("init.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.socket()).expect("a connection")
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Defines and starts a shell script.
    pub(crate) fn run(&self, name: &str, script: &str) {
        self.run_with(shell(name, script));
    }

    pub(crate) fn run_with(&self, spec: ProcessSpec) {
        let mut client = self.client();
        client.define(&spec).expect("defined");
        client.start(&spec.name).expect("started");
    }

    pub(crate) fn status(&self, name: &str) -> ProcessStatus {
        let all = self.client().list().expect("a list");
        all.into_iter()
            .find(|one| one.name == name)
            .expect("the process is known")
    }

    /// The process id of a running process.
    pub(crate) fn running(&self, name: &str) -> i32 {
        wait(&format!("{name} to run"), || match self.status(name).state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        })
    }

    /// A number that a script wrote into a file in the directory.
    pub(crate) fn number(&self, file: &str) -> i32 {
        wait(&format!("a number in {file}"), || {
            std::fs::read_to_string(self.path().join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        })
    }

    pub(crate) fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }

    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait("init to end", || child.try_wait().expect("a status"))
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("TERM");
            self.signal("TERM");
            let start = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < LIMIT {
                std::thread::sleep(TICK);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to one process.
pub(crate) fn send(signal: &str, pid: i32) {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
    assert!(
        status.expect("kill runs").success(),
        "no signal {signal} to {pid}"
    );
}

pub(crate) fn shell(name: &str, script: &str) -> ProcessSpec {
    let text = serde_json::json!({"name": name, "argv": ["/bin/sh", "-c", script]});
    serde_json::from_value(text).expect("a definition")
}

/// Waits until there is something.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "gave up waiting for {what}");
        std::thread::sleep(TICK);
    }
}

/// The state letter of a process, `None` when it is gone.
pub(crate) fn process_state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next()
}

pub(crate) fn is_gone(pid: i32) -> bool {
    process_state(pid).is_none_or(|state| state == 'Z')
}
