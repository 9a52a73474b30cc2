//! Verbs about backups of clusters.

use clap::Args;
use stolos_api::pks::LATEST;

use super::clusters::Going;

#[derive(Debug, Args)]
pub(crate) struct BackUpCluster {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Follow it to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterBackups {
    /// Name of a cluster, or its id when it is gone; all clusters with their last backups when absent.
    pub(crate) name: Option<String>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyClusterBackup {
    /// Name of the cluster, or its id when it is gone.
    pub(crate) name: String,
    /// Id of the backup; `latest` is the newest.
    #[arg(default_value = LATEST)]
    pub(crate) backup: String,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreCluster {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Id of one of its backups; `latest` is the newest.
    #[arg(short = 'b', long, value_name = "ID")]
    pub(crate) backup: String,
    #[command(flatten)]
    pub(crate) going: Going,
}
