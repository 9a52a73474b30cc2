//! The steps of a deploy and of a deletion.
//!
//! Owns: the graph that a plan becomes ([`deploy`]) with its steps ([`single`]), the deletion of a deployment
//! ([`delete`]), and what steps do to machines ([`machine`]), disks ([`disk`]) and agents ([`instance`]). Never decides: what is done to which instance
//! is in the plan.
//!
//! Each step can be repeated: rows come before what they stand for, CPI calls have ids that follow from flow and step,
//! agents recognize a generation that they have, and what has to be gone may be gone already.

pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod disk;
pub(crate) mod instance;
pub(crate) mod machine;
pub(crate) mod single;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_base::ids::{AgentId, FlowId};
use stolos_flow::{Step, StepContext};
use stolos_mbus::AgentClient;

use crate::app::App;
use crate::error::Result;
use crate::machines::Calls;

/// What every step of a flow has.
pub(crate) struct Work<T> {
    pub(crate) app: Arc<App>,
    pub(crate) flow: FlowId,
    /// What is to be done; never changes.
    pub(crate) what: T,
}

/// One attempt of a step.
pub(crate) struct Attempt<T> {
    pub(crate) work: Arc<Work<T>>,
    pub(crate) ctx: StepContext,
}

impl<T> std::ops::Deref for Attempt<T> {
    type Target = Work<T>;
    fn deref(&self) -> &Work<T> {
        &self.work
    }
}

impl<T> Attempt<T> {
    /// The id of a CPI call of this step: the same in every attempt and life, so that the call is not made twice.
    pub(crate) fn call_id(&self, label: &str) -> String {
        self.ctx.derive_id::<uuid::Uuid>(label).to_string()
    }

    /// The infrastructure.
    pub(crate) fn machines(&self) -> Calls<'_> {
        self.app.machines.of(self.flow)
    }

    /// A client of an agent whose calls end when the step is cancelled.
    pub(crate) fn agent(&self, agent: AgentId, instance: &str) -> AgentClient {
        self.app
            .bus
            .agent(agent, instance)
            .with_cancel(self.ctx.cancel().clone())
    }

    /// What the step does, for people who follow it.
    pub(crate) fn status(&self, text: &str) {
        self.ctx.progress(text);
    }
}

/// A step whose errors are cleaned of secrets before anything keeps them.
pub(crate) fn step<T, O, F>(
    work: &Arc<Work<T>>,
    name: String,
    run: impl Fn(Attempt<T>) -> F + Send + Sync + 'static,
) -> Step<O>
where
    T: Send + Sync + 'static,
    O: Serialize + DeserializeOwned + Send + 'static,
    F: Future<Output = Result<O>> + Send + 'static,
{
    let work = work.clone();
    Step::new(name, move |ctx| {
        let work = work.clone();
        let attempt = run(Attempt {
            work: work.clone(),
            ctx,
        });
        async move {
            attempt
                .await
                .map_err(|error| work.app.tasks.step_error(work.flow, &error))
        }
    })
}
