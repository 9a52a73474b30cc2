//! Members as stolos-init drives them, and what is asked of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use camino_tempfile::Utf8TempDir;
use serde_json::Value;
use stolos_base::pki::{Authority, Leaf, Usage};

/// Elections on a busy machine, several in a row.
const LIMIT: Duration = Duration::from_secs(240);
pub(crate) const JOB: &str = env!("CARGO_BIN_EXE_stolos-job");

/// A program that `stolos-build` has left in its cache.
pub(crate) fn built(name: &str) -> Option<Utf8PathBuf> {
    let home = std::env::var("HOME").ok()?;
    let cache = std::env::var("STOLOS_CACHE").unwrap_or_else(|_| {
        let base = std::env::var("XDG_CACHE_HOME").unwrap_or_else(|_| format!("{home}/.cache"));
        format!("{base}/stolos")
    });
    let etcd = Utf8PathBuf::from(cache).join("artefacts/upstream-etcd");
    let mut found: Vec<Utf8PathBuf> = etcd
        .read_dir_utf8()
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("content/bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// Members 0 to N−1 of one cluster, each with an address of its own.
pub(crate) struct World {
    directory: Utf8TempDir,
    etcd: Utf8PathBuf,
    etcdctl: Utf8PathBuf,
    /// Each test has a network of its own: what is left of one does not reach the next.
    net: u8,
    /// Members that the release would know now.
    pub(crate) instances: Vec<usize>,
    running: BTreeMap<usize, Running>,
    keepers: Vec<Running>,
    /// Quota of the databases of members that start from now on, in bytes.
    pub(crate) quota: u64,
    /// Given back last.
    _turn: MutexGuard<'static, ()>,
}

/// Twenty members at once on two processors miss each other's time limits: one cluster after the other.
static TURN: Mutex<()> = Mutex::new(());

struct Running {
    child: Child,
}

impl Running {
    fn kill(mut self) {
        let group = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let _ = group.map(|group| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
        let _ = self.child.wait();
    }
}

impl World {
    pub(crate) fn new(net: u8, members: usize) -> Option<Self> {
        let (Some(etcd), Some(etcdctl)) = (built("etcd"), built("etcdctl")) else {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: no etcd is built; run `stolos-build upstream etcd`"
            );
            return None;
        };
        // A test that failed has ended its members all the same.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let world = Self {
            directory: camino_tempfile::tempdir().expect("a directory"),
            etcd,
            etcdctl,
            net,
            instances: (0..members).collect(),
            running: BTreeMap::new(),
            keepers: Vec::new(),
            quota: 2 << 30,
            _turn: turn,
        };
        let now = stolos_base::Clock::system().now();
        let ca = Authority::root("etcd", Duration::from_secs(3600), now).expect("a CA");
        fs_err::write(world.path("ca.pem"), ca.certificate()).expect("a file");
        for n in 0..5 {
            let mut leaf = Leaf::new(format!("master-{n}"), Usage::ServerAndClient);
            leaf.addresses = vec![
                [127, 0, 0, 1].into(),
                world.address(n).parse().expect("an address"),
            ];
            let identity = ca.issue(&leaf, now).expect("a certificate");
            fs_err::write(world.path(&format!("{n}.pem")), &identity.certificate).expect("a file");
            fs_err::write(world.path(&format!("{n}.key")), identity.key.expose()).expect("a file");
        }
        Some(world)
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn data(&self, n: usize) -> Utf8PathBuf {
        self.path(&format!("data-{n}/etcd"))
    }

    pub(crate) fn address(&self, n: usize) -> String {
        format!("127.88.{}.{}", self.net, n + 1)
    }

    pub(crate) fn words(&self, n: usize) -> Vec<String> {
        let mut words = vec![
            format!("--name=master-{n}"),
            format!("--address={}", self.address(n)),
            format!("--data-dir={}", self.data(n)),
            format!("--ca={}", self.path("ca.pem")),
            format!("--cert={}", self.path(&format!("{n}.pem"))),
            format!("--key={}", self.path(&format!("{n}.key"))),
        ];
        let others = self.instances.iter().filter(|other| **other != n);
        words.extend(others.map(|other| format!("--peer=master-{other}={}", self.address(*other))));
        words
    }

    /// As stolos-init starts the process, `failures` times after it failed.
    pub(crate) fn start(&mut self, n: usize, failures: u32) {
        fs_err::create_dir_all(self.path(&format!("data-{n}"))).expect("a directory");
        let log = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("{n}.log")))
            .expect("a log");
        let log: std::fs::File = log.into();
        let url = |port: u16| format!("https://{}:{port}", self.address(n));
        let (clients, peers) = (url(2379), url(2380));
        let mut command = Command::new(JOB);
        command
            .arg("etcd-member")
            .args(self.words(n))
            .arg("--when-others-run=--feature-gates=InitialCorruptCheck=true")
            .arg("--")
            .arg(self.etcd.as_str());
        command.args([
            format!("--name=master-{n}"),
            format!("--data-dir={}", self.data(n)),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            "--initial-cluster-token=test".to_owned(),
            "--client-cert-auth".to_owned(),
            "--peer-client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", self.path("ca.pem")),
            format!("--peer-trusted-ca-file={}", self.path("ca.pem")),
            format!("--cert-file={}", self.path(&format!("{n}.pem"))),
            format!("--peer-cert-file={}", self.path(&format!("{n}.pem"))),
            format!("--quota-backend-bytes={}", self.quota),
            format!("--key-file={}", self.path(&format!("{n}.key"))),
            format!("--peer-key-file={}", self.path(&format!("{n}.key"))),
        ]);
        if failures > 0 {
            command
                .env("STOLOS_FAILURES", failures.to_string())
                .env("STOLOS_LAST_EXIT", "exited with code 2");
        }
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("stolos-job starts");
        self.running.insert(n, Running { child });
    }

    /// SIGKILL, for the member and for what it left in the background.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(running) = self.running.remove(&n) {
            running.kill();
        }
    }

    /// The keeper beside a member, until the end of the test.
    pub(crate) fn keep(&mut self, n: usize) {
        let log = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("keeper-{n}.log")))
            .expect("a log");
        let log: std::fs::File = log.into();
        let child = Command::new(JOB)
            .arg("etcd-keeper")
            .args(self.words(n))
            .arg(format!("--report={}", self.report(n)))
            .arg("--quota=1")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("stolos-job starts");
        self.keepers.push(Running { child });
    }

    pub(crate) fn end_keepers(&mut self) {
        for keeper in self.keepers.drain(..) {
            keeper.kill();
        }
    }

    fn report(&self, n: usize) -> Utf8PathBuf {
        self.path(&format!("run-{n}/problems.json"))
    }

    /// What a keeper tells the agent.
    pub(crate) fn told(&self, n: usize) -> String {
        fs_err::read_to_string(self.report(n)).unwrap_or_default()
    }

    pub(crate) fn keeper_said(&self, n: usize) -> String {
        fs_err::read_to_string(self.path(&format!("keeper-{n}.log"))).unwrap_or_default()
    }

    pub(crate) fn ready(&self, n: usize, seconds: u64) -> std::process::Output {
        Command::new(JOB)
            .arg("etcd-ready")
            .arg(format!("--url=https://{}:2379", self.address(n)))
            .arg(format!("--ca={}", self.path("ca.pem")))
            .arg(format!("--cert={}", self.path(&format!("{n}.pem"))))
            .arg(format!("--key={}", self.path(&format!("{n}.key"))))
            .arg(format!("--timeout={seconds}"))
            .output()
            .expect("stolos-job runs")
    }

    pub(crate) fn lose_data(&self, n: usize) {
        fs_err::remove_dir_all(self.path(&format!("data-{n}"))).expect("removed");
    }

    pub(crate) fn ctl(&self, n: usize, words: &[&str]) -> Result<String, String> {
        self.ctl_with(n, words, Stdio::null())
    }

    pub(crate) fn ctl_with(&self, n: usize, words: &[&str], input: Stdio) -> Result<String, String> {
        let output = Command::new(&self.etcdctl)
            .args([
                &format!("--endpoints=https://{}:2379", self.address(n)),
                &format!("--cacert={}", self.path("ca.pem")),
                &format!("--cert={}", self.path("0.pem")),
                &format!("--key={}", self.path("0.key")),
                "--command-timeout=3s",
            ])
            .args(words)
            .stdin(input)
            .output()
            .expect("etcdctl runs");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The id of a member, as etcd's JSON gateway writes it.
    pub(crate) fn member_id(&self, n: usize) -> String {
        let text = self
            .ctl(n, &["endpoint", "status", "--write-out=json"])
            .expect("a status");
        let status: Value = serde_json::from_str(&text).expect("JSON");
        status[0]["Status"]["header"]["member_id"].to_string()
    }

    /// Raises an alarm of a member, as etcd does when it finds that something is wrong.
    pub(crate) fn raise(&self, n: usize, member: &str, alarm: &str) {
        let body = format!(r#"{{"action": "ACTIVATE", "memberID": "{member}", "alarm": "{alarm}"}}"#);
        let output = Command::new("curl")
            .args(["-sS", "--fail", "-d", &body])
            .arg(format!("https://{}:2379/v3/maintenance/alarm", self.address(n)))
            .args(["--cacert", self.path("ca.pem").as_str()])
            .args(["--cert", self.path("0.pem").as_str()])
            .args(["--key", self.path("0.key").as_str()])
            .output()
            .expect("curl runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Names of those that vote, as one member sees them.
    pub(crate) fn voters(&self, n: usize) -> Result<Vec<String>, String> {
        let text = self.ctl(n, &["member", "list", "--write-out=json"])?;
        let list: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let mut names: Vec<String> = list["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|member| member["isLearner"] != true)
            .filter_map(|member| member["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, good: impl Fn() -> Result<(), String>) {
        let start = Instant::now();
        loop {
            let Err(problem) = good() else { return };
            if start.elapsed() > LIMIT {
                let logs: Vec<String> = (0..5)
                    .filter_map(|n| {
                        let text = fs_err::read_to_string(self.path(&format!("{n}.log"))).ok()?;
                        let ours: Vec<&str> =
                            text.lines().filter(|line| line.contains("stolos-job")).collect();
                        let last: Vec<&str> = text.lines().rev().take(3).collect();
                        Some(format!("{n}: {}\n   {}", ours.join("\n   "), last.join("\n   ")))
                    })
                    .collect();
                panic!("{what}: {problem}\n{}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All instances vote, each answers, and what was written is there.
    #[track_caller]
    pub(crate) fn whole(&self, written: &str) {
        let wanted: Vec<String> = self.instances.iter().map(|n| format!("master-{n}")).collect();
        for n in &self.instances {
            self.eventually(&format!("member {n} is whole"), || {
                let voters = self.voters(*n)?;
                if voters != wanted {
                    return Err(format!("these vote: {voters:?}"));
                }
                let value = self.ctl(*n, &["get", "--print-value-only", "key"])?;
                if value == written {
                    Ok(())
                } else {
                    Err(format!("it has `{value}` instead of `{written}`"))
                }
            });
        }
    }

    #[track_caller]
    pub(crate) fn write(&self, n: usize, value: &str) {
        self.eventually("a write", || self.ctl(n, &["put", "key", value]).map(drop));
    }

    pub(crate) fn said(&self, n: usize) -> String {
        fs_err::read_to_string(self.path(&format!("{n}.log"))).unwrap_or_default()
    }

    pub(crate) fn job(&self, command: &str, n: usize) -> std::process::Output {
        Command::new(JOB)
            .arg(command)
            .args(self.words(n))
            .output()
            .expect("stolos-job runs")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_keepers();
        for n in 0..5 {
            self.kill(n);
        }
    }
}
