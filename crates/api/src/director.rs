//! The director's HTTP API: BOSH's shapes plus a few fields and parameters of ours.
//!
//! Owns the wire types and the [`Client`]. Field names, statuses and codes are those that the `bosh` CLI reads; nothing
//! here decides anything. What BOSH does not have is optional and named: `wait_ms` on task output, the header
//! [`TASK_STATE_HEADER`], `agent_age_ms` on instances.

mod client;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{
    Client, DeleteOptions, DeployOptions, Error, Output, READ_LIMIT, Result, TaskFilter, Token, TokenError,
    TokenSource, Tokens, Upload,
};

/// The director's port.
pub const PORT: u16 = 25555;
/// On answers to `GET /tasks/N/output`: the task's state after the output that is in the body, so that a client that
/// follows a task needs one request a round.
pub const TASK_STATE_HEADER: &str = "x-stolos-task-state";
/// The longest that `wait_ms` makes an answer wait, in milliseconds.
pub const LONGEST_WAIT_MS: u64 = 30_000;

/// BOSH's error codes that we use (its `errors.rb`).
pub mod code {
    /// Anything without a code of its own.
    pub const GENERIC: u32 = 100;
    /// No such task.
    pub const TASK_NOT_FOUND: u32 = 10_000;
    /// The task was cancelled.
    pub const TASK_CANCELLED: u32 = 10_001;
    /// The task is not in a state in which that can be done.
    pub const TASK_STATE: u32 = 10_002;
    /// Fingerprints of one job differ.
    pub const JOB_MISMATCH: u32 = 30_001;
    /// No such release.
    pub const RELEASE_NOT_FOUND: u32 = 30_005;
    /// No such version of the release.
    pub const RELEASE_VERSION_NOT_FOUND: u32 = 30_006;
    /// The release archive is not what it should be.
    pub const RELEASE_INVALID: u32 = 30_002;
    /// Fingerprints of one package differ.
    pub const PACKAGE_MISMATCH: u32 = 30_013;
    /// The same release version with another commit.
    pub const COMMIT_HASH_MISMATCH: u32 = 30_014;
    /// The release archive's digest is not the one announced.
    pub const RELEASE_DIGEST: u32 = 30_015;
    /// A parameter or property is missing.
    pub const MISSING_FIELD: u32 = 40_001;
    /// A parameter or property is not of the right kind.
    pub const INVALID_FIELD: u32 = 40_002;
    /// The stemcell archive is not what it should be.
    pub const STEMCELL_INVALID: u32 = 50_001;
    /// No such stemcell.
    pub const STEMCELL_NOT_FOUND: u32 = 50_003;
    /// The stemcell is used by a deployment.
    pub const STEMCELL_IN_USE: u32 = 50_004;
    /// The stemcell archive's digest is not the one announced.
    pub const STEMCELL_DIGEST: u32 = 50_007;
    /// No such deployment.
    pub const DEPLOYMENT_NOT_FOUND: u32 = 70_000;
    /// No such instance.
    pub const INSTANCE_NOT_FOUND: u32 = 70_001;
    /// A template could not be filled in.
    pub const TEMPLATE: u32 = 80_006;
    /// The release is used by a deployment.
    pub const RELEASE_IN_USE: u32 = 30_007;
    /// An instance did not run after its update.
    pub const NOT_RUNNING: u32 = 400_007;
    /// An instance did not stop.
    pub const NOT_STOPPED: u32 = 400_008;
    /// A manifest or config is not right.
    pub const BAD_MANIFEST: u32 = 440_001;
    /// No such config.
    pub const CONFIG_NOT_FOUND: u32 = 440_012;
    /// An agent answered with an exception.
    pub const AGENT_EXCEPTION: u32 = 450_001;
    /// An agent did not answer.
    pub const AGENT_TIMEOUT: u32 = 450_002;
    /// A bug of ours.
    pub const SYSTEM: u32 = 500_000;
    /// No token, or a wrong or expired one.
    pub const UNAUTHORIZED: u32 = 600_000;
    // new codes go above this line
}

/// `GET /info`: no authentication is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Name of the director.
    pub name: String,
    /// Its id.
    pub uuid: String,
    /// `VERSION (COMMIT)`.
    pub version: String,
    /// Who asks, when the token is good.
    pub user: Option<String>,
    /// The CPI's name.
    pub cpi: String,
    /// Operating system of the machine that the director runs on; `-` for us.
    #[serde(default)]
    pub stemcell_os: String,
    /// See [`Info::stemcell_os`].
    #[serde(default)]
    pub stemcell_version: String,
    /// How to log in.
    pub user_authentication: UserAuthentication,
    /// What the director can do.
    #[serde(default)]
    pub features: IndexMap<String, Feature>,
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserAuthentication {
    /// `uaa`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where.
    #[serde(default)]
    pub options: AuthenticationOptions,
}

/// Where to log in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthenticationOptions {
    /// URL of the token service.
    #[serde(default)]
    pub url: String,
    /// All its URLs.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// Something that a director may be able to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Whether it is on.
    pub status: bool,
    /// More about it.
    #[serde(default)]
    pub extras: IndexMap<String, Value>,
}

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Accepted, not begun.
    Queued,
    /// Running.
    Processing,
    /// Asked to end early.
    Cancelling,
    /// Ended early.
    Cancelled,
    /// Ended well.
    Done,
    /// Ended badly.
    Error,
    /// Nobody has worked on it for long.
    Timeout,
}

impl TaskState {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done | Self::Error | Self::Timeout)
    }
}

impl std::str::FromStr for TaskState {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [
            Self::Queued,
            Self::Processing,
            Self::Cancelling,
            Self::Cancelled,
            Self::Done,
            Self::Error,
            Self::Timeout,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// The text is none of the words that are expected here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not known here")]
pub struct UnknownWord(pub String);

/// A task, as `GET /tasks/N` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Number.
    pub id: i64,
    /// How it stands.
    pub state: TaskState,
    /// `create deployment`, …
    pub description: String,
    /// When it ended, in seconds since the Unix epoch.
    pub timestamp: Option<i64>,
    /// When it began, in seconds since the Unix epoch.
    pub started_at: Option<i64>,
    /// `/deployments/NAME` and the like, or why it failed; cut at 128 characters.
    pub result: Option<String>,
    /// Who asked.
    pub user: String,
    /// The deployment that it is about.
    pub deployment: Option<String>,
    /// What the caller's `X-Bosh-Context-Id` said.
    #[serde(default)]
    pub context_id: String,
    /// Ours: who wanted it to end early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
}

/// The outputs of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// For people, redacted.
    Debug,
    /// [`Event`]s, one a line.
    Event,
    /// What the task was asked for.
    Result,
    /// Output of CPI calls; part of debug here, so always empty.
    Cpi,
}

impl OutputKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Event => "event",
            Self::Result => "result",
            Self::Cpi => "cpi",
        }
    }
}

/// One line of a task's event output. Three kinds share it: progress of a stage (`stage` is there), the error that
/// ended the task (`error`), and notices (`type` and `message`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since the Unix epoch.
    pub time: i64,
    /// `Updating instance` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The instance group, for `Updating instance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// How many tasks the stage has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is done, `web/UUID (0) (canary)` for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Number of the task in the stage, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// How it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<EventState>,
    /// Percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    /// `status` while it runs, `error` when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<EventData>,
    /// Why the task failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<EventError>,
    /// `warning` or `deprecation`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What the notice says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a task of a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// Begun.
    Started,
    /// On its way.
    InProgress,
    /// Ended well.
    Finished,
    /// Ended badly.
    Failed,
}

/// More about a task of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventData {
    /// What is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventError {
    /// See [`code`].
    pub code: u32,
    /// For people.
    pub message: String,
}

/// Body of every error but 401.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// See [`code`].
    pub code: u32,
    /// For people.
    pub description: String,
}

/// Name and version of a release or stemcell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameVersion {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
}

/// An element of `GET /deployments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentSummary {
    /// Name.
    pub name: String,
    /// Teams; none here.
    #[serde(default)]
    pub teams: Vec<String>,
    /// `none`, `latest` or `outdated`.
    #[serde(default)]
    pub cloud_config: String,
    /// Releases in use.
    #[serde(default)]
    pub releases: Vec<NameVersion>,
    /// Stemcells in use.
    #[serde(default)]
    pub stemcells: Vec<NameVersion>,
    /// Whether a task works on it.
    #[serde(default)]
    pub locked: bool,
}

/// `GET /deployments/N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The manifest as it was last deployed with success; absent before the first time.
    pub manifest: Option<String>,
}

/// Ours, an element of `GET /unknown_machines`: a machine whose agent is heard of, that the director's database does not know and that
/// cannot take anybody's place. It is never deleted by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownMachine {
    /// Its agent.
    pub agent_id: String,
    /// The CPI's id of it, as far as it was looked for.
    pub vm_cid: Option<String>,
    /// What it says it belongs to.
    pub deployment: String,
    /// Its instance group.
    pub job: Option<String>,
    /// The instance's id.
    pub id: String,
    /// Why it cannot be adopted.
    pub reason: String,
}

/// An element of `GET /deployments/N/vms` and `/instances`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSummary {
    /// Agent of its machine.
    pub agent_id: Option<String>,
    /// CID of its machine.
    pub cid: Option<String>,
    /// Instance group.
    pub job: String,
    /// Index within the group.
    pub index: u32,
    /// Id of the instance.
    pub id: String,
    /// Zone.
    pub az: Option<String>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<String>,
    /// When the machine was made, RFC 3339.
    #[serde(default)]
    pub vm_created_at: Option<String>,
    /// Whether the instance should have a machine; `/instances` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expects_vm: Option<bool>,
}

/// A line of the result of `GET /deployments/N/instances?format=full` (and `/vms`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceState {
    /// CID of its machine.
    pub vm_cid: Option<String>,
    /// Whether it is the instance's current machine.
    #[serde(default)]
    pub active: bool,
    /// When the machine was made, RFC 3339.
    #[serde(default)]
    pub vm_created_at: Option<String>,
    /// For the CPI.
    #[serde(default)]
    pub cloud_properties: Value,
    /// The first persistent disk.
    #[serde(default)]
    pub disk_cid: Option<String>,
    /// All persistent disks.
    #[serde(default)]
    pub disk_cids: Vec<String>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<String>,
    /// Agent of its machine.
    pub agent_id: Option<String>,
    /// Instance group.
    pub job_name: String,
    /// Index within the group.
    pub index: u32,
    /// `running`, `failing`, …, or `unresponsive agent`.
    pub job_state: Option<String>,
    /// What it should be doing: `started`, `stopped`, `detached`.
    #[serde(default)]
    pub state: String,
    /// Type of machine; empty: BOSH's field, which needs the cloud config of that time.
    #[serde(default)]
    pub vm_type: String,
    /// How the machine does, as the agent said.
    #[serde(default)]
    pub vitals: Option<Value>,
    /// Processes, as the agent said.
    #[serde(default)]
    pub processes: Option<Vec<Value>>,
    /// Zone.
    pub az: Option<String>,
    /// Id of the instance.
    pub id: String,
    /// Whether it is the group's bootstrap instance.
    #[serde(default)]
    pub bootstrap: bool,
    /// Whether people asked to leave it alone.
    #[serde(default)]
    pub ignore: bool,
    /// Stemcell of the machine.
    #[serde(default)]
    pub stemcell: Option<NameVersion>,
    /// Ours: how old what the agent said is, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_age_ms: Option<u64>,
}

/// An element of `GET /releases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Name.
    pub name: String,
    /// Versions, newest first.
    pub release_versions: Vec<ReleaseVersion>,
}

/// A version of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseVersion {
    /// Version.
    pub version: String,
    /// Commit that it was made from.
    #[serde(default)]
    pub commit_hash: String,
    /// Whether there was more than the commit.
    #[serde(default)]
    pub uncommitted_changes: bool,
    /// Whether a deployment uses it.
    #[serde(default)]
    pub currently_deployed: bool,
    /// Its jobs.
    #[serde(default)]
    pub job_names: Vec<String>,
}

/// An element of `GET /stemcells`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stemcell {
    /// Name.
    pub name: String,
    /// Operating system.
    pub operating_system: String,
    /// Version.
    pub version: String,
    /// The CPI's id.
    pub cid: String,
    /// Which CPI; empty: the only one.
    #[serde(default)]
    pub cpi: String,
    /// Deployments that use it.
    #[serde(default)]
    pub deployments: Vec<NameOnly>,
    /// The stemcell's API version.
    #[serde(default)]
    pub api_version: Option<u32>,
    /// Row number, as text.
    #[serde(default)]
    pub id: String,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameOnly {
    /// It.
    pub name: String,
}

/// A config, as `GET /configs` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// YAML.
    pub content: String,
    /// Row number, as text.
    pub id: String,
    /// `cloud`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name; `default` for the only one.
    pub name: String,
    /// Team; none here.
    #[serde(default)]
    pub team: Option<String>,
    /// `2026-01-02 03:04:05 UTC`.
    #[serde(default)]
    pub created_at: String,
    /// Whether it is the newest of its type and name.
    #[serde(default)]
    pub current: bool,
}

/// Body of `POST /configs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigUpdate {
    /// `cloud`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name.
    pub name: String,
    /// YAML.
    pub content: String,
    /// Refuse (412) unless this is the newest one's id; `"0"` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_latest_id: Option<String>,
}

/// Body of the 412 of `POST /configs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigMismatch {
    /// The newest one's id.
    pub latest_id: String,
    /// What was expected.
    pub expected_latest_id: String,
    /// For people.
    pub description: String,
}

/// An element of `GET /locks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// `deployment`, `release`, `stemcells`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What of that type.
    pub resource: Vec<String>,
    /// When it runs out unless renewed: seconds since the Unix epoch with a fraction, as text.
    pub timeout: String,
    /// The task that holds it.
    pub task_id: String,
}

/// A disk without an instance, an element of `GET /disks`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrphanedDisk {
    /// The CPI's id.
    pub disk_cid: String,
    /// MiB.
    pub size: u64,
    /// Zone.
    pub az: Option<String>,
    /// The deployment that it was of.
    pub deployment_name: String,
    /// The instance that it was of: `GROUP/ID`.
    pub instance_name: String,
    /// What it was made with.
    pub cloud_properties: Value,
    /// Since when it is without one: `2026-01-02 03:04:05 UTC`.
    pub orphaned_at: String,
}

/// What happened, an element of `GET /events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastEvent {
    /// Its number.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub timestamp: i64,
    /// Who did it; `health_monitor` for alerts.
    pub user: String,
    /// `create`, `update` …
    pub action: String,
    /// `alert`, `deployment` …
    pub object_type: String,
    /// Which of that type; for alerts, their kind.
    pub object_name: String,
    /// The task in which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// `GROUP/ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// More.
    #[serde(default)]
    pub context: EventContext,
}

/// More about an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventContext {
    /// For people.
    pub message: String,
    /// Of an alert: `alert`, `critical`, `error`, `warning`, the worst first; empty where it is no alert.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub severity: String,
}

/// `GET` and `PUT /resurrection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResurrectionState {
    /// Whether dead machines are made anew at all. Rules of configs of the type `resurrection` say more.
    pub resurrection: bool,
}

/// What `PUT /resurrection` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResurrectionUpdate {
    /// Whether nothing is to be made anew.
    pub resurrection_paused: bool,
}

/// A machine or a deployment that is not well, an element of `GET /health/problems` (ours).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineProblem {
    /// The deployment.
    pub deployment: String,
    /// `GROUP/INDEX`; empty where it is about the whole deployment.
    pub instance: String,
    /// Id of the instance; empty where it is about the whole deployment.
    pub id: String,
    /// The agent that is not heard of; absent when the machine is gone.
    pub agent_id: Option<String>,
    /// The CPI's id of the machine.
    pub cid: Option<String>,
    /// Of machines: `suspect`, `dead`, `repairing`, or `failing` when it answers and its jobs are not well. Of deployments: `unfinished`, when its last change
    /// did not come to its end and nobody works on it.
    pub state: String,
    /// Seconds.
    pub since: u64,
    /// For people.
    pub why: String,
    /// What a repair waits for; absent when it goes on, or when nothing is to be repaired yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_on: Option<String>,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The task that repairs it, or that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<i64>,
}

/// What `POST /deployments/N/diff` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// To be sent back with `POST /deployments`.
    pub context: DiffContext,
    /// Lines with `added`, `removed` or null.
    pub diff: Vec<(String, Option<String>)>,
    /// Why there is no diff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which configs a diff was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffContext {
    /// Cloud configs.
    #[serde(default)]
    pub cloud_config_ids: Vec<i64>,
    /// Runtime configs; none here.
    #[serde(default)]
    pub runtime_config_ids: Vec<i64>,
}

/// Body of `POST /releases` and `POST /stemcells` with `Content-Type: application/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// `file:///…` on the director's host.
    pub location: String,
    /// Digest of what lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
}

/// Body of `POST /tasks/cancel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelTasks {
    /// Only tasks of this deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// Only tasks in these states; `queued` and `processing` make sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<Vec<String>>,
    /// Only tasks of these types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<String>>,
}

/// A variable of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Id of the version in use.
    pub id: String,
    /// Full name.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_line_has_only_what_it_says() {
        let event = Event {
            time: 7,
            stage: Some("Updating instance".into()),
            tags: Some(vec!["web".into()]),
            total: Some(3),
            task: Some("web/x (0)".into()),
            index: Some(1),
            state: Some(EventState::InProgress),
            progress: Some(35),
            data: Some(EventData {
                status: Some("executing pre-stop".into()),
                error: None,
            }),
            ..Event::default()
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"time":7,"stage":"Updating instance","tags":["web"],"total":3,"task":"web/x (0)","index":1,"state":"in_progress","progress":35,"data":{"status":"executing pre-stop"}}"#
        );
        let error: Event =
            serde_json::from_str(r#"{"time":7,"error":{"code":450001,"message":"m"}}"#).unwrap();
        assert_eq!(error.error.unwrap().code, code::AGENT_EXCEPTION);
    }
}
