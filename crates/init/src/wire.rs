//! One JSON object a line, each way. A request is answered in order; a subscriber also gets events between answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes a process known or changes what it is; a running one keeps running as it was until it is started anew.
    Define {
        /// `JOB/PROCESS`
        name: String,
        /// What it is.
        spec: Spec,
    },
    /// Wants it running from now on. Fine when it is.
    Start {
        /// `JOB/PROCESS`
        name: String,
    },
    /// Wants it stopped from now on; answered when it is.
    Stop {
        /// `JOB/PROCESS`
        name: String,
    },
    /// Forgets a stopped process. Fine when it is not known.
    Remove {
        /// `JOB/PROCESS`
        name: String,
    },
    /// All processes.
    List,
    /// From now on, exits of processes come on this connection as [`Event`]s.
    Subscribe,
    /// Stops everything and ends the machine.
    PowerOff,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Answer to [`Request::List`].
    Processes(Vec<Process>),
    /// Not done, and why.
    Error(String),
}

/// A process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `JOB/PROCESS`
    pub exited: String,
    /// How: `exit 1`, `signal 9`.
    pub how: String,
    /// Whether it had been asked to stop.
    pub wanted: bool,
    /// How often it has failed in a row.
    pub failures: u32,
}

/// What a process is (ARCHITECTURE.md, Jobs).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Program and arguments; the program is an absolute path.
    pub argv: Vec<String>,
    /// Environment; `PATH` is set where it is not here.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default = "root_directory")]
    pub cwd: String,
    /// User by name; its groups are taken too.
    #[serde(default = "root_user")]
    pub user: String,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
    /// Best effort: a machine may not be allowed to lower it.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// When it ends by itself.
    #[serde(default)]
    pub restart: Restart,
    /// When it is to end.
    #[serde(default)]
    pub stop: Stop,
    /// Standard output is appended here.
    pub stdout: String,
    /// Standard error is appended here.
    pub stderr: String,
}

/// Resource limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Open files; cut to the hard limit.
    #[serde(default)]
    pub nofile: Option<u64>,
}

/// The pause before a process that has ended is started again: it doubles with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// The first pause in milliseconds.
    pub min_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self { min_ms: 100, max_ms: 10_000 }
    }
}

/// How a process is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// `TERM`, `INT`, `QUIT`, `HUP`, `USR1`, `USR2`, `KILL`.
    pub signal: String,
    /// Seconds until it is killed.
    pub timeout_s: u64,
    /// Who gets the signals.
    pub kill: Kill,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: "TERM".to_owned(), timeout_s: 20, kill: Kill::Group }
    }
}

/// Who gets the signals of a stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kill {
    /// The process and all of its process group.
    #[default]
    Group,
    /// The process alone: what it started goes on (containers of a container runtime).
    Process,
}

/// A process as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `JOB/PROCESS`
    pub name: String,
    /// How it stands.
    #[serde(flatten)]
    pub state: State,
    /// How often it was started.
    pub starts: u64,
    /// How often it has failed in a row.
    pub failures: u32,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
}

/// How a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running {
        /// Its process id in the machine.
        pid: i32,
        /// For how long, in milliseconds.
        uptime_ms: u64,
    },
    /// It has ended and will be started again.
    BackingOff {
        /// In so many milliseconds.
        in_ms: u64,
    },
    /// It was told to end and has not yet.
    Stopping,
    /// It does not run and is not meant to.
    Stopped,
}

fn root_directory() -> String {
    "/".to_owned()
}

fn root_user() -> String {
    "root".to_owned()
}
