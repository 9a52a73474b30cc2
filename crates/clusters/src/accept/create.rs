//! Accepting a new cluster.

use stolos_api::pks::{ClusterParameters, ClusterRequest, LastAction, LastActionState};
use stolos_base::ids::ClusterId;

use super::{Accepted, Desk, GivenFiles, Mode, VERSION, checked_tags, given, refuse_unknown, worker_count};
use crate::authorize::{Caller, Right};
use crate::config_file::Secrets;
use crate::db::{self, ClusterRow, Found};
use crate::error::{Error, Result};
use crate::flows::Input;
use crate::model::{ClusterName, Hostname};
use crate::plans::Plan;
use crate::profiles::Kind;
use crate::quotas;
use crate::render::{API_PORT, Rollout, deployment_name};
use crate::settings::Settings;

impl Desk {
    /// Accepts a create request.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        request: &ClusterRequest,
        mode: Mode,
    ) -> Result<Accepted> {
        caller.may(Right::Manage)?;
        let (mut cluster, secrets, not_applied) = self.check_create(caller, request)?;
        self.give_profiles(caller, &mut cluster, request).await?;
        self.set_pools(
            &mut cluster,
            request
                .parameters
                .node_pool_instances
                .as_deref()
                .unwrap_or_default(),
        )?;
        self.check_shape(&cluster)?;
        cluster.workers = cluster.shape().workers();
        let contents = match given(request.parameters.from_backup.as_ref()) {
            Some(reference) => Some(self.first_contents(caller, reference, &cluster).await?),
            None => None,
        };
        let operation = self.operation(&cluster, LastAction::Create, caller);
        let mut tx = self.begin_tx("accept a cluster").await?;
        self.fits(&mut tx, &cluster).await?;
        if !caller.has(Right::ManageAll) {
            quotas::refuse_excess(&mut tx, &cluster).await?;
        }
        self.hold_profiles(&mut tx, &cluster).await?;
        if let Err(error) = db::insert_cluster(&mut tx, &cluster).await {
            drop(tx);
            return Err(self.half_made(caller, &cluster, error).await);
        }
        let mut input = Input::new(&operation, Rollout::Fresh);
        input.restore = contents;
        self.begin(&mut tx, &operation, &input).await?;
        let accepted = Accepted {
            before: None,
            cluster,
            operation,
            rollout: Rollout::Fresh,
            not_applied,
        };
        if mode == Mode::DryRun {
            return Ok(accepted);
        }
        // Last before the commit: a request that is refused leaves nothing among the credentials.
        let has_secrets = !secrets.is_empty();
        self.keep(&accepted.cluster, secrets).await?;
        if let Err(error) = tx.commit().await {
            if has_secrets {
                self.vault.forget(&deployment_name(accepted.cluster.id)).await?;
            }
            return Err(Error::database("accept the cluster")(error));
        }
        self.flows.nudge();
        Ok(accepted)
    }

    /// Says of a name that is taken by what is left of the caller's own former attempt that it can be gone on with.
    async fn half_made(&self, caller: &Caller, cluster: &ClusterRow, error: Error) -> Error {
        let Error::NameTaken(name) = &error else {
            return error;
        };
        match db::cluster(&self.db, name, caller.own(Right::ManageAll)).await {
            Ok(other) if other.action == LastAction::Create && other.state == LastActionState::Failed => {
                Error::HalfMade(cluster.name.to_string())
            }
            _ => error,
        }
    }

    /// The plan of a request, which has to be active.
    fn active_plan(&self, name: &str) -> Result<&Plan> {
        let plan = self.plans.find(name).filter(|plan| plan.active);
        plan.ok_or_else(|| Error::NoPlan {
            name: name.chars().take(80).collect(),
            known: self.plans.active().map(|(_, plan)| plan.name.clone()).collect(),
        })
    }

    fn check_create(
        &self,
        caller: &Caller,
        request: &ClusterRequest,
    ) -> Result<(ClusterRow, Secrets, Vec<String>)> {
        let name: ClusterName = request.name.parse()?;
        let plan = self.active_plan(&request.plan_name)?;
        refuse_unknown(&request.other)?;
        let parameters = &request.parameters;
        refuse_unknown(&parameters.other)?;
        let Some(host) = &parameters.kubernetes_master_host else {
            return Err(Error::Request(
                "`parameters.kubernetes_master_host` is required".to_owned(),
            ));
        };
        let hostname: Hostname = host.parse()?;
        if let Some(port) = parameters.kubernetes_master_port
            && port != API_PORT
        {
            return Err(Error::Request(format!(
                "`kubernetes_master_port` {port} is not offered; the port is {API_PORT}"
            )));
        }
        let workers = match parameters.kubernetes_worker_instances {
            Some(asked) => worker_count(plan, asked)?,
            None => plan.worker_instances,
        };
        let id = ClusterId::new(&self.ids);
        let (settings, secrets, not_applied) = self.own_settings(id, plan, parameters)?;
        let cluster = ClusterRow {
            id,
            name,
            hostname,
            owner: caller.who().clone(),
            plan: plan.clone(),
            workers,
            action: LastAction::Create,
            state: LastActionState::InProgress,
            description: "Creating cluster".to_owned(),
            address: None,
            settings,
            found: Found::default(),
        };
        Ok((cluster, secrets, not_applied))
    }

    fn own_settings(
        &self,
        id: ClusterId,
        plan: &Plan,
        parameters: &ClusterParameters,
    ) -> Result<(Settings, Secrets, Vec<String>)> {
        let mut settings = Settings {
            artifacts: Some(self.artifacts.for_plan(plan)?.clone()),
            oidc: self.oidc_of(id, None),
            version: VERSION.to_owned(),
            tags: checked_tags(parameters.cluster_tags.as_deref().unwrap_or_default())?,
            ..Settings::default()
        };
        let given = GivenFiles {
            registries: parameters.private_registries.as_ref(),
            authorities: parameters.custom_ca_certs.as_deref(),
            insecure: None,
            config: parameters.config_file.as_ref(),
        };
        let (secrets, not_applied) = given.take(&mut settings, self.clock.now())?;
        Ok((settings, secrets, not_applied))
    }

    async fn give_profiles(
        &self,
        caller: &Caller,
        cluster: &mut ClusterRow,
        request: &ClusterRequest,
    ) -> Result<()> {
        let settings = &mut cluster.settings;
        if let Some(name) = given(request.network_profile_name.as_ref()) {
            settings.network_profile = Some(self.network_profile(caller, name).await?);
        }
        if let Some(name) = given(request.compute_profile_name.as_ref()) {
            settings.compute_profile = Some(self.compute_profile(caller, name).await?);
        }
        if let Some(name) = given(request.kubernetes_profile_name.as_ref()) {
            settings.kubernetes_profile = Some(self.kubernetes_profile(caller, name).await?);
        }
        Ok(())
    }
}

/// Which rights see which profiles, for whom: everybody may use network and compute profiles, Kubernetes profiles are their owner's.
/// `right` is what it takes to have those of others: files of a Kubernetes profile are secrets, which a reader may not put into a
/// cluster of their own.
pub(super) fn whose(caller: &Caller, kind: Kind, right: Right) -> db::Whose<'_> {
    match kind {
        Kind::Network | Kind::Compute => db::Whose::All,
        Kind::Kubernetes => caller.own(right),
    }
}
