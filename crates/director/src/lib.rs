//! The director: from manifests to machines that run jobs, with BOSH's HTTP API.
//!
//! Owns: planning ([`plan`], pure), the preparation of a plan (what is read, generated, rendered), the steps that carry it
//! out (flows over the CPI and the agents), tasks and their output, releases and stemcells, the inventory, the health of machines
//! and their repair, the API. Never
//! does: keep a secret (it names variables and asks for their values when a step needs them), know Kubernetes.
//!
//! The way through: `http` (extract, authorize) → `flows` (task and flow in one transaction) → `prepare` (resolve, place,
//! generate, render, decide; the plan is kept) → `steps` (a graph that says everything) → machines and agents.
//!
//! Invariants:
//! - Nothing is made before a row says so; ids are chosen with the plan.
//! - A plan is kept once and never changed; a flow that goes on after a restart carries out the same one.
//! - One task at a time works on a deployment; what it writes shows the fence of its flow.
//! - A task's final state is seen only after all of its output.

mod adopt;
mod agents;
mod app;
mod cloud;
mod db;
mod deps;
mod error;
mod flows;
mod health;
mod http;
mod machines;
mod maintenance;
pub mod plan;
mod prepare;
mod redact;
mod render;
mod states;
mod steps;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod variables;

use std::sync::Arc;

use axum::Router;
use stolos_flow::{Event, EventKind, Flows};
use tokio_util::sync::CancellationToken;

pub use crate::db::{SCHEMA, TABLES};
pub use crate::deps::{
    AgentTrust, Config, Deps, Failure, GenerateVariable, HostSign, HostSigns, Hosts, Infrastructure,
    Resurrection, Variables, Webhook,
};
pub use crate::error::{Cause, Error, Result};

use crate::app::App;
use crate::flows::{
    Delete, DeleteArtifact, DeleteDisk, Deploy, ImportRelease, ImportStemcell, InstanceStates, Repair,
};
use crate::health::Health;
use crate::states::States;
use crate::tasks::Tasks;

/// The director service.
#[derive(Debug)]
pub struct Director;

/// A running director. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    app: Arc<App>,
    flows: Flows,
    stop: CancellationToken,
}

impl Director {
    /// Starts the director: tasks that an earlier life left go on at once. Serve [`Handle::router`] over TLS.
    ///
    /// # Errors
    /// Those of the database and of the director's own directories.
    pub async fn start(config: Config, deps: Deps) -> Result<Handle> {
        let stop = CancellationToken::new();
        let tasks = Tasks::start(deps.db.clone(), stop.clone());
        let health = Health::new(config.resurrection);
        let states = States::start(deps.monitor.clone(), health.clone(), stop.clone());
        let (link, hosts) = (deps.monitor.clone(), deps.hosts.clone());
        let (faults, monitor) = (deps.faults.clone(), deps.monitor.clone());
        let app = Arc::new(App::new(config, deps, tasks, states, health.clone())?);
        flows::import::remove_stale_uploads(&app).await?;
        let flows = Flows::builder(app.db.clone(), app.config.holder.clone())
            .ids(app.ids.clone())
            .faults(faults)
            .observer(app.tasks.clone())
            .observer({
                let app = app.clone();
                move |event: &Event| {
                    if event.what == EventKind::FlowLost {
                        app.forget_rendered(event.flow, None);
                    }
                }
            })
            .kind(Deploy(app.clone()))
            .kind(Delete(app.clone()))
            .kind(ImportRelease(app.clone()))
            .kind(ImportStemcell(app.clone()))
            .kind(DeleteArtifact(app.clone()))
            .kind(DeleteDisk(app.clone()))
            .kind(InstanceStates(app.clone()))
            .kind(Repair(app.clone()))
            .start();
        let _ = app.flows.set(flows.clone());
        maintenance::start(app.clone(), flows.clone(), stop.clone());
        health.start(app.clone(), link, hosts, stop.clone());
        if let Some(webhook) = app.config.alerts.clone() {
            health::webhook::start(&app, webhook, stop.clone())?;
        }
        adopt::start(app.clone(), monitor, stop.clone());
        Ok(Handle { app, flows, stop })
    }
}

impl Handle {
    /// BOSH's API, for port 25555.
    pub fn router(&self) -> Router {
        http::router(self.app.clone())
    }

    /// The flows, for those who watch them in this process.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Stops in order: running steps get a moment, what they have done is recorded, the rest goes on at the next start.
    pub async fn stop(&self) {
        self.flows.stop().await;
        self.stop.cancel();
        self.app.tasks.ended().await;
    }
}
