//! Upgrade several clusters: canaries one after the other, then the rest, so many at a time.
//!
//! Each step begins one cluster's upgrade and waits for its end. A canary that fails ends the task; another cluster that fails does not. Who
//! cancels the task leaves clusters alone whose turn has not come; an upgrade that has begun ends in its own time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_api::pks::{LastActionState, OperationState, TaskStatus};
use stolos_base::ids::{ClusterId, FlowId, OperationId, UpgradeId};
use stolos_base::{Class, Classify as _, chain};
use stolos_flow::{
    Change, FlowInfo, FlowState, Graph, Interrupt, Kind, Step, StepContext, StepError, StepRef,
};
use stolos_store::{Tx, lease};

use crate::accept::Desk;
use crate::db::{self, Whose};
use crate::error::Error;
use crate::upgrades;
use crate::who::{Key, Who};

/// A cluster of two hundred workers, each with the longest drain.
const CLUSTER_DEADLINE: Duration = Duration::from_secs(48 * 60 * 60);

/// The kind of flow. The desk exists after the executor, which it submits to.
pub(crate) struct UpgradeClusters(pub(crate) Arc<OnceLock<Arc<Desk>>>);

/// The input of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TaskInput {
    /// Name and id of each cluster, canaries first.
    pub(crate) turns: Vec<(String, ClusterId)>,
    /// How many of them are canaries.
    pub(crate) canaries: usize,
    /// Clusters at the same time.
    pub(crate) max_in_flight: u32,
    /// Workers of a cluster at the same time; the plan's number when absent.
    pub(crate) in_flight: Option<u32>,
    /// Who asked.
    pub(crate) actor: String,
    /// The key of that one; empty in tasks of before there were keys.
    #[serde(default)]
    pub(crate) actor_key: String,
}

impl TaskInput {
    fn who(&self) -> Who {
        let key = match self.actor_key.as_str() {
            "" => Key::unknown(&self.actor),
            key => Key::kept(key.to_owned()),
        };
        Who {
            name: self.actor.clone(),
            key,
        }
    }
}

impl Kind for UpgradeClusters {
    const NAME: &'static str = "upgrade clusters";
    type Input = TaskInput;

    async fn graph(&self, flow: &FlowInfo, input: TaskInput) -> Result<Graph, StepError> {
        let desk = self
            .0
            .get()
            .cloned()
            .ok_or_else(|| StepError::transient("the service is starting"))?;
        super::refuse_old_life(&desk.db, flow).await?;
        let mut graph = Graph::new();
        let at_once = graph.group("clusters", usize::try_from(input.max_in_flight).unwrap_or(1));
        let mut last_canary: Option<StepRef<()>> = None;
        for (position, (name, cluster)) in input.turns.iter().enumerate() {
            let is_canary = position < input.canaries;
            let captured = (desk.clone(), input.clone(), *cluster);
            let step = Step::new(format!("Upgrade {name}"), move |ctx| {
                let (desk, input, cluster) = captured.clone();
                async move { turn(&desk, &ctx, &input, cluster, is_canary).await }
            })
            .after_all(&last_canary)
            .within(&at_once)
            .deadline(CLUSTER_DEADLINE)
            .interrupt(Interrupt::Never);
            let added = graph.add(step);
            if is_canary {
                last_canary = Some(added);
            }
        }
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let status = match change.state {
            FlowState::Pending => TaskStatus::NotStarted,
            FlowState::Running => TaskStatus::InProgress,
            FlowState::Succeeded => TaskStatus::Done,
            // A canary failed, or somebody cancelled.
            FlowState::Failed | FlowState::Canceled => TaskStatus::Canceled,
        };
        let id = UpgradeId::from(change.flow.id.as_uuid());
        match upgrades::set_status(tx, id, status).await {
            Err(Error::Database { source, .. }) => Err(source),
            Err(other) => {
                tracing::error!(task = %id, error = %chain(&other), "failed to write the state of a task");
                Err(stolos_store::Error::NoRow)
            }
            Ok(()) => Ok(()),
        }
    }
}

/// One cluster's turn.
async fn turn(
    desk: &Desk,
    ctx: &StepContext,
    input: &TaskInput,
    cluster: ClusterId,
    is_canary: bool,
) -> Result<(), StepError> {
    let operation: OperationId = ctx.derive_id("operation");
    note(desk, ctx, cluster, LastActionState::InProgress, None).await?;
    let result = match desk
        .begin_upgrade(operation, cluster, input.in_flight, &input.who())
        .await
    {
        Ok(()) => ended(desk, ctx, operation).await?,
        Err(error) if error.retryable() => return Err(error.into()),
        // It was busy, deleted or upgraded meanwhile.
        Err(error) => Err(chain(&error)),
    };
    let state = match &result {
        Ok(()) => LastActionState::Succeeded,
        Err(_) => LastActionState::Failed,
    };
    note(
        desk,
        ctx,
        cluster,
        state,
        result.as_ref().err().map(String::as_str),
    )
    .await?;
    match result {
        Err(why) if is_canary => Err(StepError::fatal(
            Class::Conflict,
            format!("a canary failed: {why}"),
        )),
        Err(why) => {
            ctx.progress(format!("failed: {why}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Waits for an operation's end; the inner error is why it did not end well.
async fn ended(
    desk: &Desk,
    ctx: &StepContext,
    operation: OperationId,
) -> Result<Result<(), String>, StepError> {
    ctx.progress(format!("operation {operation}"));
    desk.flows
        .wait(FlowId::from(operation.as_uuid()))
        .await
        .map_err(|error| {
            StepError::transient(format!("failed to wait for the operation: {}", chain(&error)))
        })?;
    let row = db::operation(&desk.db, &operation.to_string(), Whose::All).await?;
    Ok(match row.state {
        OperationState::Succeeded => Ok(()),
        OperationState::Cancelled => Err("its upgrade was cancelled".to_owned()),
        _ => Err(row.error.unwrap_or_else(|| "it gave no cause".to_owned())),
    })
}

async fn note(
    desk: &Desk,
    ctx: &StepContext,
    cluster: ClusterId,
    state: LastActionState,
    error: Option<&str>,
) -> Result<(), Error> {
    let mut tx = desk
        .db
        .begin_background("note a cluster's upgrade")
        .await
        .map_err(Error::database("begin"))?;
    lease::verify(&mut tx, ctx.fence())
        .await
        .map_err(Error::database("show the right to note the cluster's upgrade"))?;
    let task = UpgradeId::from(ctx.flow_id().as_uuid());
    upgrades::set_turn(&mut tx, task, cluster, state, error).await?;
    tx.commit()
        .await
        .map_err(Error::database("note the cluster's upgrade"))
}
