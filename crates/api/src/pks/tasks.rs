//! Upgrades of several clusters, and the tasks that they run as (pks.md, section 2.4).

use serde::{Deserialize, Serialize};

use super::{LastAction, LastActionState};

/// Body of `PATCH /v1/clusters`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UpgradeClusters {
    /// Clusters to be upgraded, by name.
    #[serde(default)]
    pub clusters: Vec<String>,
    /// Those of them, or others, that go first and one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canaries: Option<Vec<String>>,
    /// Clusters that are upgraded at the same time; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Workers of each cluster that are upgraded at the same time; the plan's number when absent. Ours, for `--nodes-parallel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_parallel: Option<u32>,
}

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum TaskStatus {
    /// Accepted.
    #[serde(rename = "not started")]
    NotStarted,
    /// At work.
    #[serde(rename = "in progress")]
    InProgress,
    /// Ended because somebody asked for it, or because a canary failed; clusters that were pending were not touched.
    #[serde(rename = "canceled")]
    Canceled,
    /// Every cluster had its turn.
    #[serde(rename = "done")]
    Done,
}

impl TaskStatus {
    /// The words that tables and JSON show.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not started",
            Self::InProgress => "in progress",
            Self::Canceled => "canceled",
            Self::Done => "done",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Canceled | Self::Done)
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TaskInfo {
    /// Id.
    pub uuid: String,
    /// `UPGRADE`; there is no other.
    #[serde(rename = "type")]
    pub kind: LastAction,
    /// Ours: who asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ours: who asked that it stops; absent while nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    /// How it stands.
    pub status: TaskStatus,
    /// When it began, RFC 3339.
    pub start_time: Option<String>,
    /// When it ended, RFC 3339.
    pub end_time: Option<String>,
    /// Its clusters, canaries first, in the order of their turns.
    pub clusters: Vec<TaskCluster>,
}

/// A cluster of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TaskCluster {
    /// Name.
    pub cluster_name: String,
    /// `UPGRADE`.
    pub last_action: LastAction,
    /// How its upgrade stands; `queued` while it waits for its turn, and for ever where the task ended before.
    pub last_action_state: LastActionState,
    /// When its turn came, RFC 3339.
    pub start_time: Option<String>,
    /// When it was done, RFC 3339.
    pub end_time: Option<String>,
    /// Whether it is a canary.
    pub is_canary: bool,
    /// Why it failed. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a cluster can be upgraded to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AvailableUpgrade {
    /// What becomes newer: `PKS`, or `Kubernetes`.
    pub component: String,
    /// The version that it would have.
    pub version: String,
}
