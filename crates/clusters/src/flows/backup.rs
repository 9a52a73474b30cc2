//! Take a backup of a cluster. Nothing of the cluster is touched, and whatever else is done to it goes on.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_api::pks::OperationState;
use stolos_base::ids::{BackupRunId, ClusterId, FlowId};
use stolos_base::{Class, Classify as _, chain};
use stolos_flow::{
    Change, FlowInfo, FlowState, Graph, Interrupt, Kind, NewFlow, Step, StepContext, StepError,
};
use stolos_store::{Tx, lease};

use super::{Tools, masters};
use crate::backups::{self, RunRow};
use crate::db::{self, ClusterRow};
use crate::deps::{BackedUp, Backup, Backups};
use crate::error::Error;
use crate::render::{ETCD_CLIENT_VARIABLE, deployment_name};

/// Two gigabytes over a slow line to the place.
const TAKE_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// A list and some deletions.
const RETAIN_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// A member without a majority says so, or it does not answer; both may pass. What does not pass within this time is a failure, and tried again by the schedule.
const PATIENCE: u32 = 5;

/// The kind of flow.
pub(crate) struct BackUp(pub(crate) Tools);

/// The input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackUpInput {
    cluster: ClusterId,
}

/// The flow of a taking, which has its id.
pub(crate) fn backup_of(run: &RunRow) -> NewFlow {
    let input = BackUpInput {
        cluster: run.cluster_id,
    };
    NewFlow::new::<BackUp>(run.cluster_id.to_string(), &input).id(FlowId::from(run.id.as_uuid()))
}

impl Kind for BackUp {
    const NAME: &'static str = "back up cluster";
    type Input = BackUpInput;

    async fn graph(&self, flow: &FlowInfo, input: BackUpInput) -> Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let cluster = db::cluster_by_id(&self.0.db, input.cluster).await?;
        let mut graph = Graph::new();
        let captured = (self.0.clone(), cluster);
        let taken = graph.add(
            Step::new("Take backup", move |ctx| {
                let (tools, cluster) = captured.clone();
                async move {
                    match take(&tools, &ctx, &cluster).await {
                        Err(error) if error.retryable() && ctx.attempt() >= PATIENCE => {
                            Err(StepError::fatal(Class::Unavailable, chain(&error)))
                        }
                        Err(error) => Err(error.into()),
                        Ok(backup) => {
                            note(&tools, &ctx, &backup).await?;
                            Ok(backup)
                        }
                    }
                }
            })
            .deadline(TAKE_DEADLINE)
            .interrupt(Interrupt::Anytime),
        );
        let captured = (self.0.clone(), input.cluster);
        graph.add(
            Step::new("Remove old backups", move |ctx| {
                let (tools, cluster) = captured.clone();
                async move {
                    let Some(kept) = &tools.backups else { return Ok(()) };
                    // It may be restored, from one of those that are too old.
                    if !db::cluster_by_id(&tools.db, cluster).await?.state.is_final() {
                        ctx.progress("something is done to the cluster: next time");
                        return Ok(());
                    }
                    let removed = kept.place.retain(cluster, kept.keep).await?;
                    if !removed.is_empty() {
                        ctx.progress(removed.join(", "));
                    }
                    Ok(())
                }
            })
            .after(&taken)
            .deadline(RETAIN_DEADLINE)
            .interrupt(Interrupt::Anytime),
        );
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let id = BackupRunId::from(change.flow.id.as_uuid());
        let why = change.failure.map(|failure| failure.message.as_str());
        let state = match change.state {
            FlowState::Pending => OperationState::Queued,
            FlowState::Running => OperationState::Running,
            FlowState::Succeeded => OperationState::Succeeded,
            FlowState::Failed => OperationState::Failed,
            FlowState::Canceled => OperationState::Cancelled,
        };
        if state == OperationState::Failed {
            tracing::warn!(
                cluster = change.flow.subject,
                error = why.unwrap_or("unknown cause"),
                "failed to back a cluster up"
            );
        }
        match backups::set_state(tx, id, state, why).await {
            Err(Error::Database { source, .. }) => Err(source),
            Err(other) => {
                tracing::error!(run = %id, error = %chain(&other), "failed to write the state of a backup");
                Err(stolos_store::Error::NoRow)
            }
            Ok(()) => Ok(()),
        }
    }
}

async fn note(tools: &Tools, ctx: &StepContext, backup: &Backup) -> Result<(), Error> {
    let mut tx = tools
        .db
        .begin_background("note a backup")
        .await
        .map_err(Error::database("begin"))?;
    lease::verify(&mut tx, ctx.fence())
        .await
        .map_err(Error::database("show the right to note a backup"))?;
    backups::set_backup(&mut tx, BackupRunId::from(ctx.flow_id().as_uuid()), backup).await?;
    tx.commit().await.map_err(Error::database("note a backup"))
}

/// What a backup says of its cluster.
fn described(cluster: &ClusterRow) -> Result<BackedUp, Error> {
    let networks = cluster.settings.networks();
    let profile = cluster.settings.kubernetes_profile.as_ref();
    Ok(BackedUp {
        name: cluster.name.to_string(),
        owner: cluster.owner.name.clone(),
        kubernetes_version: cluster.plan.kubernetes_version.clone(),
        networks: networks.map_err(|invalid| Error::Request(invalid.to_string()))?,
        encrypted_by: profile
            .filter(|profile| profile.encrypts())
            .map(|profile| (profile.id.clone(), profile.name.clone())),
        before_restore: false,
    })
}

/// Takes a backup of a cluster as it is.
async fn take(tools: &Tools, ctx: &StepContext, cluster: &ClusterRow) -> Result<Backup, Error> {
    take_as(tools, ctx, cluster, described(cluster)?).await
}

/// Takes one of what a restore is about to replace.
pub(super) async fn save(tools: &Tools, ctx: &StepContext, cluster: &ClusterRow) -> Result<Backup, Error> {
    let of = BackedUp {
        before_restore: true,
        ..described(cluster)?
    };
    take_as(tools, ctx, cluster, of).await
}

async fn take_as(
    tools: &Tools,
    ctx: &StepContext,
    cluster: &ClusterRow,
    of: BackedUp,
) -> Result<Backup, Error> {
    let place: &dyn Backups = &*tools.backups.as_ref().ok_or(Error::NoBackups)?.place;
    let deployment = deployment_name(cluster.id);
    let masters: Vec<Ipv4Addr> = masters(tools, &deployment).await?;
    let client = tools.vault.client(&deployment, ETCD_CLIENT_VARIABLE).await?;
    let progress = |text: String| ctx.progress(text);
    place.take(cluster.id, &of, &masters, &client, &progress).await
}
