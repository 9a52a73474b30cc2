//! Backups of clusters: ours beside the foreign API.

use serde::{Deserialize, Serialize};

/// In the place of a backup's id: the newest whole one that was not taken for a restore.
pub const LATEST: &str = "latest";

/// A backup that is being taken or was; what `POST /stolos/v1/clusters/{name}/backups` begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BackupRun {
    /// Id.
    pub id: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster.
    pub cluster_uuid: String,
    /// Who asked; `schedule` when nobody did.
    pub user: String,
    /// Who asked that it stops; absent while nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    /// How it stands.
    pub state: super::OperationState,
    /// What it does at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doing: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Id of the backup, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How the backups of a cluster stand, in `GET /stolos/v1/cluster-backups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterBackups {
    /// Name of the cluster.
    pub cluster: String,
    /// Its id.
    pub cluster_uuid: String,
    /// Whether the cluster is there no more; its backups are.
    pub deleted: bool,
    /// When the last good backup was begun, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<String>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<String>,
    /// When the last failure was, if nothing good came after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether one is being taken.
    pub running: bool,
}

/// A backup of a cluster, in `GET /stolos/v1/clusters/{name}/backups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterBackup {
    /// Id.
    pub id: String,
    /// Name that the cluster had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Id of the cluster.
    pub cluster_uuid: String,
    /// When it was begun, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// Version of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// Revision of etcd that it has at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Bytes of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes in the place.
    pub stored: u64,
    /// SHA-256 of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether it holds what a restore was about to replace; `latest` never means such a one.
    #[serde(default)]
    pub before_restore: bool,
    /// Why it cannot be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Body of `POST /stolos/v1/clusters/{name}/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Id of a backup of this cluster, or `latest`.
    pub backup: String,
}
