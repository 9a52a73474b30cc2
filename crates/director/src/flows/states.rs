//! What the agents of a deployment say right now (`GET /deployments/N/instances?format=full`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_api::director::{InstanceState, NameVersion};
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, StepError};
use stolos_store::Tx;

use super::follow;
use crate::app::App;
use crate::db::inventory::{self, InstanceRow, state_word};
use crate::db::tasks::time_text;
use crate::error::{Error, Result};
use crate::states::Seen;
use crate::steps::{Work, step};

/// How long an agent may take to answer, as in BOSH.
const PATIENCE: Duration = Duration::from_secs(5);
/// Agents asked at once.
const AT_ONCE: usize = 64;

/// Asks all agents of a deployment.
pub(crate) struct InstanceStates(pub(crate) Arc<App>);

/// Which deployment, and whether instances without a machine are shown too.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) deployment: String,
    pub(crate) all: bool,
}

impl Kind for InstanceStates {
    const NAME: &'static str = "instance states";
    type Input = Request;

    async fn graph(&self, flow: &FlowInfo, input: Request) -> Result<Graph, StepError> {
        let made = async {
            super::open(&self.0, flow.id).await?;
            let work = Arc::new(Work {
                app: self.0.clone(),
                flow: flow.id,
                what: input,
            });
            let mut graph = Graph::new();
            let ask = step(&work, "Ask agents".to_owned(), |attempt| async move {
                let lines = states(&attempt.app, &attempt.what).await?;
                attempt.app.tasks.result_output(attempt.flow, &lines);
                Ok(())
            });
            graph.add(ask.interrupt(Interrupt::Anytime));
            follow(&self.0, flow.id, (graph, Vec::new())).await
        };
        made.await
            .map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        self.0.tasks.on_state(tx, change, "").await
    }
}

async fn states(app: &Arc<App>, request: &Request) -> Result<String> {
    let instances = inventory::instances(&app.db, &request.deployment).await?;
    let mut shown = Vec::new();
    for instance in instances {
        if request.all || instance.machine().is_some() {
            shown.push(state(app.clone(), instance));
        }
    }
    let states: Vec<InstanceState> = stream::iter(shown).buffered(AT_ONCE).collect().await;
    let mut text = String::new();
    for state in states {
        text.push_str(&serde_json::to_string(&state).map_err(|error| Error::Bug(error.to_string()))?);
        text.push('\n');
    }
    Ok(text)
}

async fn state(app: Arc<App>, instance: InstanceRow) -> InstanceState {
    let mut state = InstanceState {
        job_name: instance.group.clone(),
        index: instance.index,
        state: state_word(instance.state).to_owned(),
        az: instance.az.clone(),
        id: instance.id.to_string(),
        bootstrap: instance.bootstrap,
        ignore: instance.ignored,
        ips: instance.addresses.values().map(ToString::to_string).collect(),
        disk_cids: instance
            .disks
            .iter()
            .filter(|disk| disk.active)
            .filter_map(|disk| disk.cid.clone())
            .collect(),
        ..InstanceState::default()
    };
    state.disk_cid = state.disk_cids.first().cloned();
    let Some((vm, cid)) = instance.machine() else {
        return state;
    };
    state.vm_cid = Some(cid.to_owned());
    state.active = true;
    state.agent_id = Some(vm.agent.to_string());
    state.vm_created_at = Some(time_text(vm.created_at, "%Y-%m-%dT%H:%M:%SZ"));
    state.cloud_properties = vm.made_as.cloud_properties.clone();
    state.stemcell = Some(NameVersion {
        name: vm.made_as.stemcell.name.clone(),
        version: vm.made_as.stemcell.version.clone(),
    });
    let agent = app.bus.agent(vm.agent, instance.name()).with_timeout(PATIENCE);
    match agent.get_full_state().await {
        Ok(answer) => {
            let seen = Seen {
                at: Instant::now(),
                job_state: answer.job_state,
                vitals: answer.vitals,
                processes: Some(answer.processes),
            };
            app.states.note(vm.agent, seen);
        }
        Err(error) => {
            tracing::debug!(agent = %vm.agent, error = %stolos_base::chain(&error), "an agent did not tell its state");
            state.job_state = Some("unresponsive agent".to_owned());
            state.agent_age_ms = app.states.get(vm.agent).map(|seen| age(&seen));
            return state;
        }
    }
    if let Some(seen) = app.states.get(vm.agent) {
        state.job_state = Some(seen.job_state.as_str().to_owned());
        state.agent_age_ms = Some(age(&seen));
        state.vitals = seen
            .vitals
            .as_ref()
            .and_then(|vitals| serde_json::to_value(vitals).ok());
        state.processes = seen.processes.as_ref().map(|processes| {
            processes
                .iter()
                .map(|process| serde_json::to_value(process).unwrap_or(Value::Null))
                .collect()
        });
    }
    state
}

fn age(seen: &Seen) -> u64 {
    u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX)
}
