//! What all parts of the director share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stolos_base::IdSource;
use stolos_base::ids::{FlowId, InstanceId};
use stolos_blobs::{Blobs, SealKey, Signer};
use stolos_flow::Flows;
use stolos_mbus::Bus;
use stolos_release::RenderedInstance;
use stolos_store::Db;
use tokio::sync::SetOnce;

use crate::adopt::Adoption;
use crate::cloud::CloudConfigs;
use crate::deps::{AgentTrust, Config, Deps, Variables};
use crate::error::Result;
use crate::health::Health;
use crate::machines::Machines;
use crate::prepare::settings_digest;
use crate::render::JobCache;
use crate::states::States;
use crate::tasks::Tasks;

/// What all parts of the director share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) blobs: Blobs,
    pub(crate) seal: SealKey,
    pub(crate) signer: Signer,
    pub(crate) machines: Machines,
    pub(crate) bus: Bus,
    pub(crate) trust: Arc<dyn AgentTrust>,
    pub(crate) variables: Arc<dyn Variables>,
    pub(crate) verifier: stolos_api::token::Verifier,
    pub(crate) ids: IdSource,
    pub(crate) jobs: JobCache,
    pub(crate) cloud: CloudConfigs,
    pub(crate) tasks: Tasks,
    pub(crate) states: States,
    pub(crate) health: Health,
    /// Machines that are newer than the database.
    pub(crate) adoption: Adoption,
    /// Digest of what machines are told about the director.
    pub(crate) settings_digest: String,
    /// Set right after the flows were started with what they need of this.
    pub(crate) flows: SetOnce<Flows>,
    /// What was rendered for running flows; what is missing is rendered again.
    rendered: Mutex<HashMap<FlowId, HashMap<InstanceId, Arc<RenderedInstance>>>>,
}

impl App {
    pub(crate) fn new(
        config: Config,
        deps: Deps,
        tasks: Tasks,
        states: States,
        health: Health,
    ) -> Result<Self> {
        Ok(Self {
            settings_digest: settings_digest(&config)?,
            machines: Machines::new(deps.cpi, config.max_cpi_calls),
            jobs: JobCache::new(deps.blobs.clone()),
            cloud: CloudConfigs::default(),
            db: deps.db,
            blobs: deps.blobs,
            seal: deps.seal,
            signer: deps.signer,
            bus: deps.bus,
            trust: deps.trust,
            variables: deps.variables,
            verifier: deps.verifier,
            ids: deps.ids,
            tasks,
            states,
            health,
            adoption: Adoption::default(),
            config,
            flows: SetOnce::new(),
            rendered: Mutex::default(),
        })
    }

    /// Keeps what was rendered until the flow has used it.
    pub(crate) fn remember_rendered(
        &self,
        flow: FlowId,
        rendered: impl IntoIterator<Item = (InstanceId, Arc<RenderedInstance>)>,
    ) {
        self.rendered().insert(flow, rendered.into_iter().collect());
    }

    /// What was rendered for an instance, if this process has it.
    pub(crate) fn rendered_for(&self, flow: FlowId, instance: InstanceId) -> Option<Arc<RenderedInstance>> {
        self.rendered().get(&flow)?.get(&instance).cloned()
    }

    /// Forgets what was rendered: for one instance that has it now, or for a flow that has ended.
    pub(crate) fn forget_rendered(&self, flow: FlowId, instance: Option<InstanceId>) {
        let mut all = self.rendered();
        match instance {
            None => {
                all.remove(&flow);
            }
            Some(instance) => {
                if let Some(of_flow) = all.get_mut(&flow) {
                    of_flow.remove(&instance);
                }
            }
        }
    }

    fn rendered(&self) -> MutexGuard<'_, HashMap<FlowId, HashMap<InstanceId, Arc<RenderedInstance>>>> {
        self.rendered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
