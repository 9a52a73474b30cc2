//! What is done for a person who asks for a cluster, or for its end.
//!
//! Each flow is one readable list of named steps. Steps can be repeated: what they make is keyed by the cluster or by the
//! flow, so a second run finds the first one's work.

mod backup;
mod change;
mod create;
mod delete;
mod power;
mod restore;
mod steps;
mod task;

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stolos_api::pks::{LastAction, LastActionState, OperationState};
use stolos_base::ids::{ClusterId, FlowId, OperationId, UpgradeId};
use stolos_base::{Class, Classify, chain};
use stolos_flow::{Change, FlowInfo, FlowState, NewFlow, StepContext, StepError};
use stolos_store::{Db, Tx};

pub(crate) use backup::{BackUp, backup_of};
pub(crate) use change::{Update, Upgrade};
pub(crate) use create::Create;
pub(crate) use delete::Delete;
pub(crate) use power::{Power, SwitchPower};
pub(crate) use restore::Restore;
pub(crate) use task::{TaskInput, UpgradeClusters};

use crate::db::{self, OperationRow};
use crate::deps::{Backups, Director, Kubernetes, Network, TaskState, Vault};
use crate::error::Error;
use crate::render::{Catalogue, Rollout};

/// What the flows work with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) db: Db,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) director: Arc<dyn Director>,
    pub(crate) kubernetes: Arc<dyn Kubernetes>,
    pub(crate) artifacts: Catalogue,
    /// None where no place is configured.
    pub(crate) backups: Option<KeptBackups>,
}

/// Where backups of clusters are kept, and how many of each.
#[derive(Clone)]
pub(crate) struct KeptBackups {
    pub(crate) place: Arc<dyn Backups>,
    pub(crate) keep: usize,
}

/// A backup of some cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    pub(crate) cluster: ClusterId,
    pub(crate) backup: String,
}

/// The input of all flows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) cluster: ClusterId,
    pub(crate) operation: OperationId,
    /// How machines that are there are treated.
    #[serde(default)]
    pub(crate) rollout: Rollout,
    /// Workers that are changed at the same time; the plan's number when absent.
    #[serde(default)]
    pub(crate) in_flight: Option<u32>,
    /// Whether the leaves of the cluster's certificates are made anew.
    #[serde(default)]
    pub(crate) renew: bool,
    /// The backup whose contents the cluster gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restore: Option<Source>,
    /// Whether the cluster is stopped or started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) power: Option<Power>,
}

impl Input {
    pub(crate) fn new(operation: &OperationRow, rollout: Rollout) -> Self {
        Self {
            cluster: operation.cluster_id,
            operation: operation.id,
            rollout,
            in_flight: None,
            renew: false,
            restore: None,
            power: None,
        }
    }
}

/// The flow of an operation: it has the operation's id, so that twice is once.
pub(crate) fn flow_of(operation: &OperationRow, input: &Input) -> NewFlow {
    let subject = operation.cluster_id.to_string();
    let flow = match operation.action {
        LastAction::Create => NewFlow::new::<Create>(subject, input),
        LastAction::Delete => NewFlow::new::<Delete>(subject, input),
        LastAction::Update if input.restore.is_some() => NewFlow::new::<Restore>(subject, input),
        LastAction::Update if input.power.is_some() => NewFlow::new::<SwitchPower>(subject, input),
        LastAction::Update => NewFlow::new::<Update>(subject, input),
        LastAction::Upgrade => NewFlow::new::<Upgrade>(subject, input),
    };
    flow.id(FlowId::from(operation.id.as_uuid()))
}

/// The flow of a task, which has its id too.
pub(crate) fn task_of(id: UpgradeId, input: &TaskInput) -> NewFlow {
    NewFlow::new::<UpgradeClusters>(id.to_string(), input).id(FlowId::from(id.as_uuid()))
}

/// Ends a flow that began before the installation was restored from a backup: its steps may be long done, and undone. What is wanted
/// is asked for anew; an update brings what a create left to its end.
async fn refuse_old_life(db: &Db, flow: &FlowInfo) -> Result<(), StepError> {
    let refusal = stolos_store::restored::refusal(db, flow.created_at).await;
    let failed = |error: stolos_store::Error| StepError {
        message: chain(&error),
        class: error.class(),
        retryable: error.retryable(),
        hints: error.hints(),
    };
    match refusal.map_err(failed)? {
        Some(reason) => Err(StepError::fatal(Class::Conflict, reason)),
        None => Ok(()),
    }
}

/// A flow's id is its operation's, and its subject is the cluster's id.
fn input_of(change: &Change<'_>) -> Option<Input> {
    let cluster = change.flow.subject.parse();
    if let Err(error) = &cluster {
        tracing::error!(flow = %change.flow.id, %error, "a flow's subject is no cluster id");
    }
    Some(Input {
        cluster: cluster.ok()?,
        operation: OperationId::from(change.flow.id.as_uuid()),
        rollout: Rollout::default(),
        in_flight: None,
        renew: false,
        restore: None,
        power: None,
    })
}

/// Follows a director task to its end; a cancelled step cancels the task and waits until it has stopped.
async fn follow(tools: &Tools, ctx: &StepContext, task: u64) -> Result<(), StepError> {
    let mut seen = String::new();
    let mut asked_to_stop = false;
    loop {
        if ctx.cancel().is_cancelled() && !asked_to_stop {
            asked_to_stop = true;
            tools.director.cancel(task).await?;
        }
        match tools.director.task(task, &seen).await {
            Ok(TaskState::Running(text)) => {
                if text != seen {
                    ctx.progress(text.clone());
                    seen = text;
                }
            }
            Ok(TaskState::Done) => return Ok(()),
            Ok(TaskState::Failed(why)) => {
                return Err(StepError::fatal(
                    Class::Internal,
                    format!("director task {task} failed: {why}"),
                ));
            }
            Err(error) if error.retryable() => {
                tracing::debug!(task, error = %chain(&error), "the director does not answer; asking again");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The addresses of a deployment's masters, as far as they are placed.
async fn masters(tools: &Tools, deployment: &str) -> Result<Vec<Ipv4Addr>, Error> {
    let instances = tools.director.instances(deployment).await?;
    Ok(instances
        .into_iter()
        .filter(|instance| instance.group == "master")
        .filter_map(|one| one.address)
        .collect())
}

/// PKS's word for what is done to a service instance.
fn noun(action: LastAction) -> &'static str {
    match action {
        LastAction::Create => "provisioning",
        LastAction::Delete => "deletion",
        LastAction::Update => "update",
        LastAction::Upgrade => "upgrade",
    }
}

/// What a cluster says of itself while something is done to it.
pub(crate) fn in_progress(action: LastAction) -> String {
    format!("Instance {} in progress", noun(action))
}

/// Writes what a flow's new state means for the operation and its cluster.
async fn write_state(
    tx: &mut Tx,
    input: &Input,
    action: LastAction,
    change: &Change<'_>,
) -> Result<(), stolos_store::Error> {
    let noun = noun(action);
    let why = change.failure.map(|failure| match &failure.step {
        Some(step) => format!("step `{step}`: {}", failure.message),
        None => failure.message.clone(),
    });
    let (operation, cluster, words) = match change.state {
        FlowState::Pending => (
            OperationState::Queued,
            LastActionState::InProgress,
            in_progress(action),
        ),
        FlowState::Running => (
            OperationState::Running,
            LastActionState::InProgress,
            in_progress(action),
        ),
        FlowState::Succeeded => (
            OperationState::Succeeded,
            LastActionState::Succeeded,
            format!("Instance {noun} completed"),
        ),
        FlowState::Failed => (
            OperationState::Failed,
            LastActionState::Failed,
            format!(
                "Instance {noun} failed: {}",
                why.as_deref().unwrap_or("unknown cause")
            ),
        ),
        FlowState::Canceled => (
            OperationState::Cancelled,
            LastActionState::Failed,
            format!("Instance {noun} was cancelled"),
        ),
    };
    let run = async {
        db::set_operation_state(tx, input.operation, operation, why.as_deref()).await?;
        if action == LastAction::Delete && change.state == FlowState::Succeeded {
            db::delete_cluster(tx, input.cluster).await
        } else {
            db::set_cluster_state(tx, input.cluster, action, cluster, &words).await
        }
    };
    run.await.map_err(|error| match error {
        Error::Database { source, .. } => source,
        other => {
            debug_assert_eq!(
                other.class(),
                Class::Internal,
                "writing a state only fails with the database"
            );
            tracing::error!(error = %chain(&other), "failed to write the state of an operation");
            stolos_store::Error::NoRow
        }
    })
}
