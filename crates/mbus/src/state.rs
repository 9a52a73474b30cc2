//! What agents say about themselves: `get_state`, heartbeats, alerts.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stolos_base::ids::AgentId;

use crate::settings::Vm;
use crate::spec::ApplySpec;

/// The sum over all processes of a machine.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// All run.
    Running,
    /// Some are on their way.
    Starting,
    /// Some do not stay up.
    Failing,
    /// All were stopped on purpose.
    Stopped,
    /// Nobody knows; also what we read for a word we do not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl JobState {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Failing => "failing",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// The result of `get_state`: the stored spec and how the machine does.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct AgentState {
    /// Who answers.
    pub agent_id: AgentId,
    /// The machine.
    #[serde(default)]
    pub vm: Vm,
    /// The sum over all processes.
    #[serde(default)]
    pub job_state: JobState,
    /// Only with `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<Vitals>,
    /// Each process.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// The spec that was last applied.
    #[serde(flatten)]
    pub spec: ApplySpec,
}

/// One supervised process.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Process {
    /// `JOB/PROCESS` from our agent.
    pub name: String,
    /// A word as [`JobState`]'s.
    pub state: String,
    /// Since when it runs.
    #[serde(default)]
    pub uptime: Uptime,
    /// Memory.
    #[serde(default)]
    pub mem: ProcessMemory,
    /// CPU.
    #[serde(default)]
    pub cpu: ProcessCpu,
}

/// Seconds since the start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Uptime {
    /// Seconds.
    #[serde(default)]
    pub secs: u64,
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ProcessMemory {
    /// KiB.
    #[serde(default)]
    pub kb: u64,
    /// Of the machine's.
    #[serde(default)]
    pub percent: f64,
}

/// CPU of a process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ProcessCpu {
    /// Percent.
    #[serde(default)]
    pub total: f64,
}

/// How the machine does. Numbers are strings on the wire, as in BOSH.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Vitals {
    /// CPU shares in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuVitals>,
    /// Disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskVitals>,
    /// Load over 1, 5 and 15 minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load: Vec<String>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem: Option<SpaceVitals>,
    /// Swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SpaceVitals>,
    /// Since the machine's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<Uptime>,
}

/// CPU shares in percent, as strings.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CpuVitals {
    /// Kernel.
    #[serde(default)]
    pub sys: String,
    /// User.
    #[serde(default)]
    pub user: String,
    /// Waiting for disks.
    #[serde(default)]
    pub wait: String,
}

/// Fill of each disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskVitals {
    /// `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<DiskFill>,
    /// `/var/vcap/data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<DiskFill>,
    /// `/var/vcap/store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<DiskFill>,
}

/// How full a disk is, in percent as strings.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskFill {
    /// Bytes.
    #[serde(default)]
    pub percent: String,
    /// Inodes.
    #[serde(default)]
    pub inode_percent: String,
}

/// Memory or swap, as strings.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct SpaceVitals {
    /// KiB in use.
    #[serde(default)]
    pub kb: String,
    /// Percent in use.
    #[serde(default)]
    pub percent: String,
}

/// What an agent sends at its start and then at an interval to `hm.agent.heartbeat.<id>`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Heartbeat {
    /// Name of the deployment, empty before the first apply.
    #[serde(default)]
    pub deployment: String,
    /// Instance group.
    #[serde(default)]
    pub job: Option<String>,
    /// Index within it.
    #[serde(default)]
    pub index: Option<u64>,
    /// The sum over all processes.
    #[serde(default)]
    pub job_state: JobState,
    /// How the machine does.
    #[serde(default)]
    pub vitals: Vitals,
    /// Id of the instance.
    #[serde(default)]
    pub node_id: String,
    /// How many processes are supervised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_of_processes: Option<u64>,
    /// Ours: what is not well although the machine answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Something that is not well in a machine that answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Problem {
    /// The process (`JOB/PROCESS`) that does not stay up, or the job that says it.
    pub source: String,
    /// What, in a word or two; empty where the process itself is it.
    #[serde(default)]
    pub kind: String,
    /// As an alert's.
    pub severity: i32,
    /// For people.
    pub text: String,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Seconds since it is so.
    #[serde(default)]
    pub since_s: u64,
}

/// What an agent sends to `hm.agent.alert.<id>`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Alert {
    /// Unique.
    pub id: String,
    /// 1 alert, 2 critical, 3 error, 4 warning, −1 ignored.
    pub severity: i32,
    /// `PROCESS - EVENT - ACTION`.
    pub title: String,
    /// For people.
    #[serde(default)]
    pub summary: String,
    /// Seconds since the Unix epoch.
    pub created_at: i64,
    /// Ours: what alerts with the same beginning of the title told is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_heartbeat_have_the_bosh_shape() {
        let text = serde_json::json!({
            "agent_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "vm": {"name": "vm-1"}, "job_state": "running",
            "processes": [{"name": "a/b", "state": "running", "uptime": {"secs": 1},
                           "mem": {"kb": 100, "percent": 0.1}, "cpu": {"total": 0.1}}],
            "deployment": "d", "index": 0, "persistent_disk": 0
        });
        let state: AgentState = serde_json::from_value(text.clone()).expect("a state");
        assert_eq!(state.spec.deployment, "d");
        assert_eq!(serde_json::to_value(&state).expect("JSON"), text);

        let heartbeat: Heartbeat = serde_json::from_value(serde_json::json!({
            "deployment": "d", "job": null, "index": null, "job_state": "melting",
            "vitals": {"load": ["0.1", "0.2", "0.3"], "mem": {"kb": "1024", "percent": "10"}}, "node_id": "n"
        }))
        .expect("a heartbeat");
        assert_eq!(heartbeat.job_state, JobState::Unknown);
    }
}
