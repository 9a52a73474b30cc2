//! The kinds of flows that tasks run as, and how a request becomes one.

pub(crate) mod disks;
pub(crate) mod import;
pub(crate) mod repair;
mod states;

use std::sync::Arc;

use stolos_base::ids::FlowId;
use stolos_flow::{Change, FlowInfo, Graph, Kind, NewFlow, StepError};
use stolos_store::{Fence, Tx};

use crate::app::App;
use crate::db::tasks::{self, NewTask};
use crate::db::{deployments, from_json};
use crate::error::{Error, Result};
use crate::plan::Action;
use crate::prepare::{self, prepare};
use crate::steps::{delete, deploy};
use crate::tasks::Line;

pub(crate) use disks::DeleteDisk;
pub(crate) use import::{DeleteArtifact, ImportRelease, ImportStemcell};
pub(crate) use repair::{Repair, Request as RepairRequest};
pub(crate) use states::{InstanceStates, Request as StatesRequest};

/// The word for a deploy among tasks, as in BOSH.
pub(crate) const UPDATE_DEPLOYMENT: &str = "update_deployment";
/// The word for a repair among tasks, as in BOSH.
pub(crate) const SCAN_AND_FIX: &str = "cck_scan_and_fix";
/// The word for a deletion among tasks, as in BOSH.
pub(crate) const DELETE_DEPLOYMENT: &str = "delete_deployment";

/// The word for the deletion of a disk among tasks.
pub(crate) const DELETE_DISK: &str = "delete_orphan_disks";

/// A deploy.
pub(crate) struct Deploy(pub(crate) Arc<App>);
/// The deletion of a deployment.
pub(crate) struct Delete(pub(crate) Arc<App>);

/// What a request wants to be done.
pub(crate) struct Wish<'a, I> {
    pub(crate) id: FlowId,
    pub(crate) kind: &'static str,
    pub(crate) description: String,
    pub(crate) deployment: Option<&'a str>,
    pub(crate) user: &'a str,
    pub(crate) context: &'a str,
    /// Of all unfinished tasks with the same key, the first one runs.
    pub(crate) lock: Option<String>,
    pub(crate) input: I,
}

/// Writes task and flow together; gives the task's number.
pub(crate) async fn submit<K: Kind>(app: &App, wish: Wish<'_, K::Input>) -> Result<i64> {
    let mut tx = app.db.begin("submit a task").await?;
    let id = submit_in::<K>(app, &mut tx, wish).await?;
    tx.commit().await?;
    nudge(app);
    Ok(id)
}

/// Has flows that were submitted looked at now.
pub(crate) fn nudge(app: &App) {
    if let Some(flows) = app.flows.get() {
        flows.nudge();
    }
}

/// The same as part of a transaction; [`nudge`] after its commit.
pub(crate) async fn submit_in<K: Kind>(app: &App, tx: &mut Tx, wish: Wish<'_, K::Input>) -> Result<i64> {
    let flows = app
        .flows
        .get()
        .ok_or_else(|| Error::Bug("flows are not started".to_owned()))?;
    let subject = wish.deployment.unwrap_or(wish.kind);
    let mut new = NewFlow::new::<K>(subject, &wish.input).id(wish.id);
    if let Some(lock) = &wish.lock {
        new = new.lock(lock.clone());
    }
    let task = NewTask {
        flow: wish.id,
        kind: wish.kind,
        description: &wish.description,
        deployment: wish.deployment,
        username: wish.user,
        context_id: wish.context,
    };
    let id = tasks::insert(tx, &task).await?;
    flows.submit_in(tx, new).await?;
    Ok(id)
}

/// The lock of a deployment.
pub(crate) fn deployment_lock(name: &str) -> String {
    format!("deployment/{name}")
}

/// The right to act for a flow, which this process has taken up.
pub(crate) async fn fence(app: &App, flow: FlowId) -> Result<Fence> {
    // Set right after the executor was started, which may be after it has taken the first flow up.
    let flows = app.flows.wait().await;
    flows
        .fence(flow)
        .ok_or_else(|| Error::Bug(format!("flow `{flow}` is not run by this process any more")))
}

/// Begins to say what happens in a flow that this process has taken up.
pub(crate) async fn open(app: &App, flow: FlowId) -> Result<()> {
    let fence = fence(app, flow).await?;
    app.tasks.open(flow, fence).await
}

/// Follows the flow, registers its lines, and says what an earlier life could not say.
pub(crate) async fn follow(app: &App, flow: FlowId, made: (Graph, Vec<(String, Line)>)) -> Result<Graph> {
    let (graph, lines) = made;
    app.tasks.register(flow, lines);
    app.tasks.catch_up(app.flows.wait().await, flow).await?;
    Ok(graph)
}

impl Deploy {
    async fn made(&self, flow: FlowId, request: &prepare::Request) -> Result<Graph> {
        let app = &self.0;
        open(app, flow).await?;
        let kept = match deployments::plan(&app.db, flow).await? {
            Some(body) => from_json("body", &body)?,
            None => match prepare(app, flow, request).await? {
                // A dry run has said what it has to say.
                None => return Ok(Graph::new()),
                Some(prepared) => {
                    let plan = &prepared.kept.plan;
                    let changed = prepared.rendered.into_iter().filter(|(id, _)| {
                        let action = plan.instance(*id).map(|instance| &instance.action);
                        action.is_some_and(|action| *action != Action::Nothing)
                    });
                    app.remember_rendered(flow, changed);
                    prepared.kept
                }
            },
        };
        follow(app, flow, deploy::graph(app, flow, kept)).await
    }
}

impl Kind for Deploy {
    const NAME: &'static str = "deploy";
    type Input = prepare::Request;

    async fn graph(&self, flow: &FlowInfo, input: prepare::Request) -> Result<Graph, StepError> {
        let made = self.made(flow.id, &input).await;
        made.map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        if change.state.is_end() {
            self.0.forget_rendered(change.flow.id, None);
        }
        let result = format!("/deployments/{}", change.flow.subject);
        self.0.tasks.on_state(tx, change, &result).await
    }
}

impl Kind for Delete {
    const NAME: &'static str = "delete deployment";
    type Input = delete::Request;

    async fn graph(&self, flow: &FlowInfo, input: delete::Request) -> Result<Graph, StepError> {
        let made = async {
            open(&self.0, flow.id).await?;
            let doomed = delete::doomed(&self.0, flow.id, &input).await?;
            follow(&self.0, flow.id, delete::graph(&self.0, flow.id, doomed)).await
        };
        made.await
            .map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let result = format!("/deployments/{}", change.flow.subject);
        self.0.tasks.on_state(tx, change, &result).await
    }
}
