//! What is said on the control socket: one JSON object a line, each way.
//!
//! A client sends [`Request`]s; each is answered by one [`Reply`] before the next one of the same connection is looked at.
//! So a `stop`, which is answered when the process has ended, holds up its own connection only: whoever stops several
//! processes at once uses a connection for each. After `subscribe` a connection also carries [`Reply::Event`]s, between
//! replies. A line that is no request is answered with [`Reply::Error`]; a line of more than [`LINE_LIMIT`] bytes, or a
//! client that does not read, ends the connection.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the socket is unless the command line says otherwise.
pub const SOCKET: &str = "/run/stolos-init.sock";
/// The longest line in bytes.
pub const LINE_LIMIT: usize = 1024 * 1024;
/// A process that lived so long counts as well: its next failure is a first one again.
pub const LONG_LIFE: Duration = Duration::from_secs(10);
/// The environment variable in which a process that failed is told how often it did in a row; absent after a long life.
pub const FAILURES_VARIABLE: &str = "STOLOS_FAILURES";
/// The one in which it is told how it ended last: the text of an [`Exit`].
pub const LAST_EXIT_VARIABLE: &str = "STOLOS_LAST_EXIT";

/// What is asked of init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? → [`Reply::Hello`]
    Hello,
    /// Makes a process known, or changes what is known of it. A running process is left alone: the change counts from its
    /// next start on. → [`Reply::Done`]
    Define {
        /// The process.
        process: ProcessSpec,
    },
    /// Starts a process unless it runs. Answered at once; how it goes is seen in the list. → [`Reply::Done`]
    Start {
        /// `JOB/PROCESS`.
        name: String,
    },
    /// Stops a process and keeps it stopped. Answered when it has ended. → [`Reply::Done`]
    Stop {
        /// `JOB/PROCESS`.
        name: String,
    },
    /// Forgets a stopped process. One that is not known is as good as forgotten. → [`Reply::Done`]
    Remove {
        /// `JOB/PROCESS`.
        name: String,
    },
    /// → [`Reply::Processes`]
    List,
    /// Events from now on, those that came after number `after` first. → [`Reply::Subscribed`]
    Subscribe {
        /// The last event that the client has seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// Stops everything and ends the machine. → [`Reply::Done`], at once
    PowerOff,
    /// As `power_off`; the exit code says that the machine is to be started again. → [`Reply::Done`], at once
    Reboot,
}

/// What init says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// Who answers.
    Hello {
        /// Version of the program.
        version: String,
        /// Process id, as init sees it.
        pid: i32,
        /// Milliseconds since init was started.
        uptime_ms: u64,
    },
    /// All processes, by name.
    Processes {
        /// The processes.
        processes: Vec<ProcessStatus>,
    },
    /// Events follow.
    Subscribed {
        /// Number of the last event so far; 0 before the first.
        last: u64,
    },
    /// Something happened. Only after `subscribe`.
    Event {
        /// What.
        event: Event,
    },
    /// It was not done.
    Error {
        /// Why, for people.
        message: String,
    },
}

/// A process to supervise. In `processes.yml` it has its short name, on the socket `JOB/PROCESS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// `JOB/PROCESS`: letters, digits, `-`, `_` and `.`, not beginning with a dot.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment. `PATH`, `HOME`, `USER` and `LOGNAME` are there unless they are overridden; nothing else is inherited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default = "slash")]
    pub cwd: String,
    /// User by name; its groups come from `/etc/group`.
    #[serde(default = "root")]
    pub user: String,
    /// Resource limits.
    #[serde(default)]
    pub limits: Limits,
    /// −1000 … 1000, best effort: lowering it may not be allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// What happens when it ends by itself.
    #[serde(default)]
    pub restart: Restart,
    /// How it is stopped.
    #[serde(default)]
    pub stop: Stop,
}

fn slash() -> String {
    "/".to_owned()
}

fn root() -> String {
    "root".to_owned()
}

/// Resource limits of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Open files, soft and hard. What the machine does not allow is cut to what it allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
}

/// The pauses before a process that ended is started again: `min_ms` after the first failure, twice the last pause after
/// each further one, at most `max_ms`. A life of [`LONG_LIFE`] or more begins the count anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// The first pause in milliseconds.
    pub min_ms: u64,
    /// The longest pause in milliseconds.
    pub max_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            min_ms: 100,
            max_ms: 10_000,
        }
    }
}

impl Restart {
    /// The pause after the given number of failures in a row (1 is the first).
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(32);
        Duration::from_millis(
            self.min_ms
                .saturating_mul(1 << doublings)
                .min(self.max_ms.max(self.min_ms)),
        )
    }
}

/// How a process is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// The polite signal.
    pub signal: SignalName,
    /// Seconds until SIGKILL.
    pub timeout_s: u64,
    /// Who gets the signals.
    pub kill: KillMode,
    /// Where everything is stopped, this comes after these (`JOB/PROCESS`) have ended: what they do at their end needs it. Those that the machine does
    /// not have do not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            signal: SignalName::Term,
            timeout_s: 20,
            kill: KillMode::Group,
            after: Vec::new(),
        }
    }
}

/// Who is ended with a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillMode {
    /// Everything that it started: its process group gets the polite signal, group and control group get SIGKILL. What it
    /// leaves behind when it ends by itself is killed before it is started again.
    #[default]
    Group,
    /// It alone. For those whose children are to outlive them, as containerd's do.
    Process,
}

/// A signal by its name without `SIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum SignalName {
    Hup,
    Int,
    Quit,
    Kill,
    Usr1,
    Usr2,
    Term,
    Winch,
}

/// How a process stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// `JOB/PROCESS`.
    pub name: String,
    /// What it is doing.
    #[serde(flatten)]
    pub state: State,
    /// Failures in a row: it ended, or could not be started, without being told to. Counted anew after a life of
    /// [`LONG_LIFE`].
    pub failures: u32,
    /// How often it was started again since it was started on demand.
    pub restarts: u64,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// Whether it runs with another definition than the one that its next start will use.
    #[serde(default)]
    pub changed: bool,
}

/// What a process is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It does not run and will not by itself.
    Stopped,
    /// It runs.
    Running {
        /// Process id.
        pid: i32,
        /// Milliseconds since its start.
        uptime_ms: u64,
    },
    /// It ended by itself and will be started again.
    BackingOff {
        /// Milliseconds until then.
        retry_ms: u64,
    },
    /// It was told to end.
    Stopping {
        /// Process id, while it is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It could not be started.
    NotStarted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::NotStarted(reason) => write!(f, "could not be started: {reason}"),
        }
    }
}

/// Something that happened to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 since init was started.
    pub number: u64,
    /// `JOB/PROCESS`.
    pub name: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// It was started.
    Started {
        /// Process id.
        pid: i32,
    },
    /// It ended, or could not be started, although it should run.
    Failed {
        /// How.
        exit: Exit,
        /// How long it had lived, in milliseconds.
        uptime_ms: u64,
        /// Failures in a row.
        failures: u32,
        /// Milliseconds until it is started again.
        retry_ms: u64,
    },
    /// It ended because it was told to.
    Stopped {
        /// How; absent when it was only waiting to be started again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    },
}

/// Whether a text is a process name: `JOB/PROCESS`.
#[must_use]
pub fn is_process_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 100
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/')
        .is_some_and(|(job, process)| part(job) && part(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_documented() {
        let check = |line: &str, request: &Request| {
            assert_eq!(serde_json::to_string(request).expect("JSON"), line);
            assert_eq!(
                &serde_json::from_str::<Request>(line).expect("a request"),
                request
            );
        };
        check(r#"{"request":"list"}"#, &Request::List);
        check(
            r#"{"request":"stop","name":"a/b"}"#,
            &Request::Stop { name: "a/b".into() },
        );
        check(r#"{"request":"subscribe"}"#, &Request::Subscribe { after: None });
        let reply = Reply::Event {
            event: Event {
                number: 3,
                name: "a/b".into(),
                what: What::Failed {
                    exit: Exit::Signal(9),
                    uptime_ms: 5,
                    failures: 1,
                    retry_ms: 100,
                },
            },
        };
        assert_eq!(
            serde_json::to_string(&reply).expect("JSON"),
            r#"{"reply":"event","event":{"number":3,"name":"a/b","what":"failed","exit":{"signal":9},"uptime_ms":5,"failures":1,"retry_ms":100}}"#
        );
        let status = ProcessStatus {
            name: "a/b".into(),
            state: State::Running { pid: 7, uptime_ms: 1 },
            failures: 0,
            restarts: 0,
            last_exit: None,
            changed: false,
        };
        assert_eq!(
            serde_json::to_string(&status).expect("JSON"),
            r#"{"name":"a/b","state":"running","pid":7,"uptime_ms":1,"failures":0,"restarts":0,"changed":false}"#
        );
    }

    #[test]
    fn a_definition_has_the_documented_defaults() {
        let spec: ProcessSpec =
            serde_json::from_str(r#"{"name":"a/b","argv":["/bin/true"]}"#).expect("a spec");
        assert_eq!((spec.cwd.as_str(), spec.user.as_str()), ("/", "root"));
        assert_eq!((spec.restart.min_ms, spec.restart.max_ms), (100, 10_000));
        assert_eq!((spec.stop.signal, spec.stop.timeout_s), (SignalName::Term, 20));
        assert!(serde_json::from_str::<ProcessSpec>(r#"{"name":"a/b","argv":[],"nofiles":1}"#).is_err());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let restart = Restart {
            min_ms: 100,
            max_ms: 1000,
        };
        let pauses: Vec<_> = [1, 2, 3, 4, 5, 60].map(|n| restart.pause(n).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for good in ["a/b", "kube-apiserver/kube-apiserver", "A_1/x.y"] {
            assert!(is_process_name(good), "{good}");
        }
        for bad in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a b/c", "a/.b"] {
            assert!(!is_process_name(bad), "{bad}");
        }
    }
}
