//! `node-problems`: says on the node object what is wrong with the machine that a kubelet does not look at.
//!
//! Looks every half a minute, without asking anybody outside of the machine; writes only what has changed, and looks now and then whether it is
//! still written, because a node that registers anew has no conditions but the kubelet's. Between writes there is no connection.
//!
//! A kubelet registers its node when it starts, and never again: where the node object is gone that was there, because somebody deleted it or the cluster
//! got the contents of an older backup, the kubelet is ended, so that init starts it anew.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use rustix::fs::{OFlags, SeekFrom};
use stolos_base::{Clock, chain};
use stolos_kubernetes::Cluster;
use stolos_kubernetes::conditions::NodeCondition;

use crate::note;

/// The first look comes when a new machine is through with the work of its start.
const FIRST: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_secs(30);
/// How often is looked whether the conditions are still written.
const COMPARE: Duration = Duration::from_secs(300);
/// As node-problem-detector has it: so many restarts within so long are frequent.
const RESTARTS: usize = 5;
const RESTARTS_WITHIN: Duration = Duration::from_secs(20 * 60);
/// How long a task that hung is reported after the kernel said so last.
const DEADLOCK_HOLDS: Duration = Duration::from_secs(20 * 60);
/// So full, in percent, is too full for the next burst of connections.
const CONNTRACK_FULL: u64 = 90;
/// So many looks without a node object that was there: one may fall into the moment in which somebody replaces it.
const MISSED: u32 = 2;
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// The longest record of the kernel's log.
const RECORD_LIMIT: usize = 8192;

#[derive(Args)]
pub(crate) struct NodeProblems {
    /// Connection and identity
    #[arg(long)]
    kubeconfig: Utf8PathBuf,
    /// Name of the node
    #[arg(long)]
    node: String,
    /// A directory on the disk that has to take writes
    #[arg(long)]
    directory: Utf8PathBuf,
}

impl NodeProblems {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut machine = Machine::new(&self.directory);
        let mut written: BTreeMap<&'static str, bool> = BTreeMap::new();
        let mut compared: Option<Instant> = None;
        let mut complaint = String::new();
        let mut registered = Registered::default();
        tokio::time::sleep(FIRST).await;
        loop {
            let found = machine.look(Instant::now());
            let is_due = compared.is_none_or(|at| at.elapsed() >= COMPARE);
            let changed = found
                .iter()
                .any(|condition| written.get(condition.kind) != Some(&condition.is_problem));
            if is_due || changed {
                match self.write(&found, &mut written).await {
                    Ok(true) => {
                        compared = Some(Instant::now());
                        complaint.clear();
                        registered.seen(true);
                    }
                    // It has not registered yet, or it is gone; then it is looked for again at the next look.
                    Ok(false) => {
                        compared = None;
                        if registered.seen(false) {
                            end_kubelet();
                        }
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        if text != complaint {
                            note(&format!("stolos-job: {text}"));
                            complaint = text;
                        }
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Writes what the node object does not say; `false` when there is no such node.
    async fn write(
        &self,
        found: &[NodeCondition],
        written: &mut BTreeMap<&'static str, bool>,
    ) -> anyhow::Result<bool> {
        let cluster = Cluster::from_kubeconfig(&self.kubeconfig).await?;
        let Some(said) = cluster.node_conditions(&self.node, WRITE_LIMIT).await? else {
            return Ok(false);
        };
        let news: Vec<&NodeCondition> = found
            .iter()
            .filter(|condition| said.get(condition.kind) != Some(&condition.is_problem))
            .collect();
        if !news.is_empty() {
            let now = Clock::system().now();
            cluster
                .set_node_conditions(&self.node, &news, now, WRITE_LIMIT)
                .await?;
            for condition in news {
                // That all is well with a new node is no news.
                let was_problem = said.get(condition.kind).copied().unwrap_or(false);
                if (condition.is_problem || was_problem)
                    && let Err(error) = cluster
                        .tell_node_event(&self.node, condition, now, WRITE_LIMIT)
                        .await
                {
                    note(&format!("stolos-job: {}", chain(&error)));
                }
            }
        }
        written.extend(
            found
                .iter()
                .map(|condition| (condition.kind, condition.is_problem)),
        );
        Ok(true)
    }
}

/// Whether the node object was there, and for how many looks it has not been.
#[derive(Debug, Default)]
struct Registered {
    was_there: bool,
    missed: u32,
}

impl Registered {
    /// Takes what was seen; whether the kubelet has to register anew. Asked for once only: what keeps it from that is not changed by another start.
    fn seen(&mut self, there: bool) -> bool {
        if there {
            *self = Self {
                was_there: true,
                missed: 0,
            };
            return false;
        }
        self.missed += 1;
        let lost = self.was_there && self.missed >= MISSED;
        if lost {
            *self = Self::default();
        }
        lost
    }
}

/// Has init start the kubelet anew. Pods go on meanwhile.
fn end_kubelet() {
    let Some((pid, _)) = running("kubelet") else {
        return;
    };
    note("stolos-job: the node object is gone; the kubelet is ended, so that it registers anew");
    if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
        note(&format!("stolos-job: the kubelet could not be ended: {error}"));
    }
}

/// What is remembered between looks.
struct Machine {
    directory: Utf8PathBuf,
    kubelet: Starts,
    containerd: Starts,
    kernel: Option<KernelLog>,
}

impl Machine {
    fn new(directory: &Utf8Path) -> Self {
        Self {
            directory: directory.to_owned(),
            kubelet: Starts::of("kubelet"),
            containerd: Starts::of("containerd"),
            kernel: KernelLog::open(),
        }
    }

    fn look(&mut self, now: Instant) -> Vec<NodeCondition> {
        let mut found = vec![read_only(&self.directory)];
        let restarts = self.kubelet.frequent(now);
        found.push(condition(
            "FrequentKubeletRestart",
            restarts.map(|text| ("FrequentKubeletRestart", text)),
            ("NoFrequentKubeletRestart", "kubelet is functioning properly"),
        ));
        let restarts = self.containerd.frequent(now);
        found.push(condition(
            "FrequentContainerdRestart",
            restarts.map(|text| ("FrequentContainerdRestart", text)),
            (
                "NoFrequentContainerdRestart",
                "containerd is functioning properly",
            ),
        ));
        if let Some(kernel) = &mut self.kernel {
            found.push(condition(
                "KernelDeadlock",
                kernel.hung(now).map(|text| ("TaskHung", text)),
                ("KernelHasNoDeadlock", "kernel has no deadlock"),
            ));
        }
        found.extend(conntrack());
        found
    }
}

fn condition(
    kind: &'static str,
    problem: Option<(&'static str, String)>,
    (fine, words): (&'static str, &str),
) -> NodeCondition {
    let is_problem = problem.is_some();
    let (reason, message) = problem.unwrap_or_else(|| (fine, words.to_owned()));
    NodeCondition {
        kind,
        is_problem,
        reason,
        message,
    }
}

/// Whether the disk takes a file. A full one does not either, but that is the kubelet's DiskPressure.
fn read_only(directory: &Utf8Path) -> NodeCondition {
    let probe = directory.join(".node-problems");
    let problem = match fs_err::write(&probe, b"") {
        Err(error) if matches!(error.raw_os_error().map(rustix::io::Errno::from_raw_os_error), Some(errno) if errno == rustix::io::Errno::ROFS || errno == rustix::io::Errno::IO) => {
            Some((
                "FilesystemIsReadOnly",
                format!("a file could not be written: {error}"),
            ))
        }
        _ => None,
    };
    // A file that could not be written is not there; one that stays is written over the next time.
    let _ = fs_err::remove_file(&probe);
    condition(
        "ReadonlyFilesystem",
        problem,
        ("FilesystemIsNotReadOnly", "Filesystem is not read-only"),
    )
}

/// The starts of a program of this machine.
struct Starts {
    program: &'static str,
    /// The start time of the process seen last, in clock ticks after the boot.
    last: Option<u64>,
    restarts: VecDeque<Instant>,
}

impl Starts {
    fn of(program: &'static str) -> Self {
        Self {
            program,
            last: None,
            restarts: VecDeque::new(),
        }
    }

    fn frequent(&mut self, now: Instant) -> Option<String> {
        self.seen(start_of(self.program), now)
    }

    /// Takes what is running at the moment; the problem, if that was too often another.
    fn seen(&mut self, start: Option<u64>, now: Instant) -> Option<String> {
        if let Some(start) = start {
            if self.last.is_some_and(|last| last != start) {
                self.restarts.push_back(now);
            }
            self.last = Some(start);
        }
        while self
            .restarts
            .front()
            .is_some_and(|at| now.duration_since(*at) > RESTARTS_WITHIN)
        {
            self.restarts.pop_front();
        }
        let count = self.restarts.len();
        (count >= RESTARTS).then(|| {
            format!(
                "{} was seen to start anew {count} times within {} minutes",
                self.program,
                RESTARTS_WITHIN.as_secs() / 60
            )
        })
    }
}

/// When the program of this machine was started.
fn start_of(program: &str) -> Option<u64> {
    running(program).map(|(_, start)| start)
}

/// The newest process of a program of this machine, not one of a pod, and when it was started.
fn running(program: &str) -> Option<(rustix::process::Pid, u64)> {
    let own = fs_err::read_link("/proc/self/ns/pid").ok()?;
    let processes = fs_err::read_dir("/proc").ok()?;
    processes
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_digit())
        })
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let start = start_in(&stat, program)?;
            let namespace = std::fs::read_link(entry.path().join("ns/pid")).ok()?;
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            (namespace == own).then_some((rustix::process::Pid::from_raw(pid)?, start))
        })
        .max_by_key(|(_, start)| *start)
}

/// The start time in `/proc/PID/stat` (proc(5)) of a process of this name. The name is in brackets, and may have brackets in it.
fn start_in(stat: &str, program: &str) -> Option<u64> {
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    if name != program {
        return None;
    }
    // `state` is field 3, `starttime` 22.
    rest.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// The kernel's log from now on.
struct KernelLog {
    file: std::fs::File,
    hung: Option<(Instant, String)>,
}

impl KernelLog {
    /// `None` where it may not be read: then nothing is claimed.
    fn open() -> Option<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg")
            .ok()?;
        rustix::fs::seek(&file, SeekFrom::End(0)).ok()?;
        Some(Self { file, hung: None })
    }

    fn hung(&mut self, now: Instant) -> Option<String> {
        let mut record = [0_u8; RECORD_LIMIT];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(read) => self.heard(&String::from_utf8_lossy(&record[..read]), now),
                // Records were overwritten before they were read; the next read goes on after them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        self.hung
            .as_ref()
            .filter(|(at, _)| now.duration_since(*at) <= DEADLOCK_HOLDS)
            .map(|(_, text)| text.clone())
    }

    fn heard(&mut self, record: &str, now: Instant) {
        if let Some(text) = hung_task(record) {
            self.hung = Some((now, text));
        }
    }
}

/// `INFO: task NAME:PID blocked for more than N seconds.` (the kernel's `kernel/hung_task.c`)
fn hung_task(record: &str) -> Option<String> {
    let (_, message) = record.split_once(';')?;
    let line = message.lines().next()?;
    let is_hung = line.contains("task ") && line.contains(" blocked for more than ");
    is_hung.then(|| line.trim().to_owned())
}

/// Whether the table of connections has room; nothing where there is none.
fn conntrack() -> Option<NodeCondition> {
    let number = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let (count, most) = (number("nf_conntrack_count")?, number("nf_conntrack_max")?);
    let problem = (most > 0 && count * 100 >= most * CONNTRACK_FULL).then(|| {
        (
            "ConntrackFull",
            format!("{count} of {most} connections are in the table; beyond that new ones are dropped"),
        )
    });
    Some(condition(
        "ConntrackFull",
        problem,
        ("ConntrackHasRoom", "the connection table has room"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_registers_anew_once_when_its_node_is_gone() {
        let mut registered = Registered::default();
        let mut seen = |all: &[bool]| {
            all.iter()
                .map(|there| registered.seen(*there))
                .collect::<Vec<_>>()
        };
        assert_eq!(seen(&[false, false, false]), [false; 3], "it was never there");
        assert_eq!(seen(&[true, false, true, false]), [false; 4], "replaced");
        assert_eq!(seen(&[false]), [true], "gone");
        assert_eq!(seen(&[false, false, false]), [false; 3], "it was asked for");
        assert_eq!(seen(&[true, false, false]), [false, false, true], "gone again");
    }

    #[test]
    fn five_restarts_within_twenty_minutes_are_frequent() {
        let (mut starts, mut now) = (Starts::of("kubelet"), Instant::now());
        assert_eq!(starts.seen(None, now), None);
        for start in 1..=5 {
            assert_eq!(starts.seen(Some(start), now), None, "start {start}");
            assert_eq!(starts.seen(Some(start), now), None, "no news");
        }
        let problem = starts.seen(Some(6), now).expect("a problem");
        assert_eq!(
            problem,
            "kubelet was seen to start anew 5 times within 20 minutes"
        );
        now += RESTARTS_WITHIN + Duration::from_secs(1);
        assert_eq!(starts.seen(Some(6), now), None, "it is over");
    }

    #[test]
    fn a_process_is_known_by_its_name() {
        let stat = "77 (kubelet) S 1 77 77 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 9 0 4711 1 2";
        assert_eq!(start_in(stat, "kubelet"), Some(4711));
        assert_eq!(start_in(&stat.replace("kubelet", "a) (b"), "a) (b"), Some(4711));
        assert_eq!(start_in(stat, "kube"), None);
        assert_eq!(start_in("", "kubelet"), None);
        assert!(start_of("no such program").is_none());
    }

    #[test]
    fn the_kernel_says_that_a_task_hangs() {
        let record = "3,1,2,-;INFO: task kworker/0:1:9 blocked for more than 120 seconds.\n SUBSYSTEM=x\n";
        assert_eq!(
            hung_task(record).as_deref(),
            Some("INFO: task kworker/0:1:9 blocked for more than 120 seconds.")
        );
        assert_eq!(hung_task("6,1,2,-;a task begins\n"), None);
    }

    #[test]
    fn a_disk_that_takes_a_file_is_not_read_only() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        assert!(!read_only(directory.path()).is_problem);
        assert!(
            !read_only(Utf8Path::new("/no/such/directory")).is_problem,
            "that is another problem"
        );
    }
}
