//! The running service: accepted operations become flows, flows become news for those who wait.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use stolos_api::pks;
use stolos_api::token::Verifier;
use stolos_base::ids::{BackupRunId, FlowId, OperationId, UpgradeId};
use stolos_base::task::{self, Kind};
use stolos_base::{Clock, IdSource, chain};
use stolos_flow::{FlowView, Flows, StepState};
use stolos_store::{Db, Tx};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::accept::{Capacity, Desk};
use crate::api_server::person;
use crate::authorize::Caller;
use crate::backups::RunRow;
use crate::db::{self, ClusterRow, OperationRow};
use crate::deps::{Backups, Director, Grant, Kubernetes, Network, People, Vault};
use crate::error::{Error, Result};
use crate::flows::{
    BackUp, Create, Delete, KeptBackups, Restore, SwitchPower, Tools, Update, Upgrade, UpgradeClusters,
};
use crate::oidc::Oidc;
use crate::plans::Plans;
use crate::render::Catalogue;
use crate::schedule::{self, Schedule};
use crate::who::{Key, Who};
use crate::{access, backups, owners, pods, precheck, upgrades};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// Plans on offer.
    pub plans: Plans,
    /// What the host can carry, where machines are made on it.
    pub capacity: Option<Capacity>,
    /// What `GET /stolos/v1/info` answers.
    pub info: pks::Info,
    /// What machines are made of.
    pub artifacts: Catalogue,
    /// The token service that clusters trust; `None` when they trust none.
    pub oidc: Option<Oidc>,
    /// Whether each cluster takes tokens for itself alone; else those for all clusters, the only ones that PKS's own command line knows.
    pub audience_per_cluster: bool,
    /// Whether `get-credentials` gives people kubeconfigs under their own names, as PKS did where OIDC was on; else, and always for clients,
    /// those of service accounts.
    pub personal_credentials: bool,
    /// How long the tokens of service accounts live that `get-credentials` gives; 600 s at least.
    pub credentials_live: Duration,
    /// How often is looked whether those who have access to clusters may have it; see [`crate::LOOK_AT_ACCESS`].
    pub look_at_access: Duration,
    /// This process among those that share the database.
    pub holder: String,
    /// How clusters are backed up, where they are.
    pub backups: BackupSettings,
}

/// How clusters are backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSettings {
    /// How often by itself; never when absent.
    pub every: Option<Duration>,
    /// How many backups of each cluster are kept.
    pub keep: usize,
    /// How many clusters are backed up at the same time by the schedule.
    pub at_once: usize,
}

impl Default for BackupSettings {
    /// By hand only; a week of one a day.
    fn default() -> Self {
        Self {
            every: None,
            keep: 7,
            at_once: 2,
        }
    }
}

/// The services below.
pub struct Deps {
    /// A database opened with [`crate::SCHEMA`].
    pub db: Db,
    /// Verifies tokens of requests.
    pub verifier: Verifier,
    /// Leases and virtual addresses.
    pub network: Arc<dyn Network>,
    /// Generated credentials.
    pub vault: Arc<dyn Vault>,
    /// The director.
    pub director: Arc<dyn Director>,
    /// Clusters' API servers.
    pub kubernetes: Arc<dyn Kubernetes>,
    /// The people who may have clusters.
    pub people: Arc<dyn People>,
    /// Where backups of clusters are kept; none where no place is configured.
    pub backups: Option<Arc<dyn Backups>>,
    /// Wall-clock time.
    pub clock: Clock,
    /// Ids of clusters and operations.
    pub ids: IdSource,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    desk: Arc<Desk>,
    flows: Flows,
    tools: Tools,
    verifier: Verifier,
    info: pks::Info,
    personal_credentials: bool,
    credentials_live: Duration,
    /// Ends what goes on beside requests and flows.
    stop: CancellationToken,
    _stopped: DropGuard,
}

impl Service {
    /// Starts the service and goes on with operations that a former process left unfinished. Needs a Tokio runtime.
    #[must_use]
    pub fn start(config: Config, deps: Deps) -> Self {
        let kept = deps.backups.map(|place| KeptBackups {
            place,
            keep: config.backups.keep,
        });
        let tools = Tools {
            backups: kept.clone(),
            db: deps.db.clone(),
            network: deps.network,
            vault: deps.vault.clone(),
            director: deps.director,
            kubernetes: deps.kubernetes,
            artifacts: config.artifacts.clone(),
        };
        let stop = CancellationToken::new();
        let meter = pods::Meter {
            db: deps.db.clone(),
            vault: deps.vault.clone(),
            kubernetes: tools.kubernetes.clone(),
        };
        task::spawn(
            Kind::Service,
            "metering of pods",
            pods::run(meter, config.holder.clone(), stop.clone()),
        );
        let watch = access::Watch {
            db: deps.db.clone(),
            vault: deps.vault.clone(),
            director: tools.director.clone(),
            kubernetes: tools.kubernetes.clone(),
            people: deps.people.clone(),
            clock: deps.clock.clone(),
            every: config.look_at_access,
        };
        task::spawn(
            Kind::Service,
            "access to clusters",
            access::run(watch, config.holder.clone(), stop.clone()),
        );
        let flows = Flows::builder(deps.db.clone(), config.holder.clone())
            .kind(Create(tools.clone()))
            .kind(Update::new(tools.clone()))
            .kind(Upgrade::new(tools.clone()))
            .kind(Delete(tools.clone()))
            .kind(Restore(tools.clone()))
            .kind(SwitchPower(tools.clone()))
            .kind(BackUp(tools.clone()))
            .other_kind::<UpgradeClusters>()
            .start();
        let later = Arc::new(OnceLock::new());
        let tasks = Flows::builder(deps.db.clone(), format!("{} tasks", config.holder))
            .kind(UpgradeClusters(later.clone()))
            .other_kind::<Create>()
            .other_kind::<Update>()
            .other_kind::<Upgrade>()
            .other_kind::<Delete>()
            .other_kind::<Restore>()
            .other_kind::<SwitchPower>()
            .other_kind::<BackUp>()
            .start();
        let desk = Arc::new(Desk {
            db: deps.db,
            plans: config.plans,
            capacity: config.capacity,
            artifacts: config.artifacts,
            oidc: config.oidc,
            audience_per_cluster: config.audience_per_cluster,
            vault: deps.vault,
            people: deps.people,
            director: tools.director.clone(),
            kubernetes: tools.kubernetes.clone(),
            clock: deps.clock,
            ids: deps.ids,
            flows: flows.clone(),
            tasks,
            backups: kept,
        });
        if let (Some(every), true) = (config.backups.every, desk.backups.is_some()) {
            let schedule = Schedule {
                every,
                at_once: config.backups.at_once,
            };
            task::spawn(
                Kind::Service,
                "backups of clusters",
                schedule::run(desk.clone(), schedule, config.holder.clone(), stop.clone()),
            );
        }
        // Nobody else has it, so it cannot be set already.
        let _ = later.set(desk.clone());
        Self(Arc::new(Inner {
            desk,
            flows,
            tools,
            verifier: deps.verifier,
            info: config.info,
            personal_credentials: config.personal_credentials,
            credentials_live: config.credentials_live,
            _stopped: stop.clone().drop_guard(),
            stop,
        }))
    }

    /// Finds out whose the clusters are that older versions kept by name: before anybody is served, so that nobody misses theirs. What cannot be found out now
    /// is by the looks that follow.
    ///
    /// # Errors
    /// Those of the database, and of asking for people.
    pub async fn settle_owners(&self) -> Result<()> {
        owners::settle(&self.0.desk.db, &*self.0.desk.people).await
    }

    /// The PKS API.
    pub fn router(&self) -> Router {
        crate::http::router(self.clone())
    }

    /// Stops taking up work; running steps are interrupted and go on in the next process.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.desk.tasks.stop().await;
        self.0.flows.stop().await;
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.0.desk
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    pub(crate) fn info(&self) -> &pks::Info {
        &self.0.info
    }

    async fn begin_cancel(&self) -> Result<Tx> {
        let begun = self.0.desk.db.begin("note a cancellation").await;
        begun.map_err(Error::database("begin cancelling"))
    }

    /// Asks a running operation to stop.
    pub(crate) async fn cancel(&self, operation: &OperationRow, by: &Who) -> Result<()> {
        let mut tx = self.begin_cancel().await?;
        db::request_cancel(&mut tx, operation.id, by).await?;
        tx.commit()
            .await
            .map_err(Error::database("note the cancellation"))?;
        let id = FlowId::from(operation.id.as_uuid());
        match self.0.flows.cancel(id).await {
            // It ended while we were asking; there is nothing left to cancel.
            Ok(()) | Err(stolos_flow::Error::State { .. }) => Ok(()),
            Err(error) => Err(Error::service("cancel the operation", error)),
        }
    }

    /// Waits until the operation has ended, or for `limit`.
    pub(crate) async fn wait_ended(&self, id: OperationId, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.flows.wait(FlowId::from(id.as_uuid()))).await;
    }

    /// Waits until something happens in the operation, or for `limit`.
    pub(crate) async fn wait_news(&self, id: OperationId, limit: Duration) {
        wait_news(&self.0.flows, FlowId::from(id.as_uuid()), limit).await;
    }

    /// Waits until something happens in the taking of a backup, or for `limit`.
    pub(crate) async fn wait_backup_news(&self, id: BackupRunId, limit: Duration) {
        wait_news(&self.0.flows, FlowId::from(id.as_uuid()), limit).await;
    }

    /// Asks the taking of a backup to stop.
    pub(crate) async fn cancel_backup(&self, id: BackupRunId, by: &Who) -> Result<()> {
        let mut tx = self.begin_cancel().await?;
        backups::request_cancel(&mut tx, id, by).await?;
        tx.commit()
            .await
            .map_err(Error::database("note the cancellation"))?;
        match self.0.flows.cancel(FlowId::from(id.as_uuid())).await {
            // It ended while we were asking; there is nothing left to cancel.
            Ok(()) | Err(stolos_flow::Error::State { .. }) => Ok(()),
            Err(error) => Err(Error::service("cancel the backup", error)),
        }
    }

    /// The taking of a backup on the wire.
    pub(crate) async fn show_backup_run(&self, run: &RunRow) -> pks::BackupRun {
        let id = FlowId::from(run.id.as_uuid());
        let views = self.0.flows.views(&[id]).await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "failed to read the steps of a backup");
            Vec::new()
        });
        let running = views
            .iter()
            .flat_map(|view| &view.steps)
            .find(|step| step.state == StepState::Running);
        pks::BackupRun {
            id: run.id.to_string(),
            cluster: run.cluster.clone(),
            cluster_uuid: run.cluster_id.to_string(),
            user: run.actor.name.clone(),
            cancelled_by: run.canceled_by.clone(),
            state: run.state,
            doing: running.map(|step| step.progress.clone().unwrap_or_else(|| step.name.clone())),
            created_at: run.created_at.to_string(),
            ended_at: run.ended_at.map(|time| time.to_string()),
            backup: run.backup.clone(),
            error: run.error.clone(),
        }
    }

    /// The same for a task.
    pub(crate) async fn wait_task_news(&self, id: UpgradeId, limit: Duration) {
        wait_news(&self.0.desk.tasks, FlowId::from(id.as_uuid()), limit).await;
    }

    /// Asks a task to leave alone those clusters whose turn has not come.
    pub(crate) async fn cancel_task(&self, id: UpgradeId, by: &Who) -> Result<()> {
        let mut tx = self.begin_cancel().await?;
        upgrades::request_cancel(&mut tx, id, by).await?;
        tx.commit()
            .await
            .map_err(Error::database("note the cancellation"))?;
        match self.0.desk.tasks.cancel(FlowId::from(id.as_uuid())).await {
            // It ended while we were asking; there is nothing left to cancel.
            Ok(()) | Err(stolos_flow::Error::State { .. }) => Ok(()),
            Err(error) => Err(Error::service("cancel the task", error)),
        }
    }

    /// An operation with its steps.
    pub(crate) async fn show_operation(&self, row: &OperationRow) -> pks::Operation {
        let flows = self.flows_of(std::slice::from_ref(row)).await;
        self.shown(row, &flows)
    }

    /// Several of them.
    pub(crate) async fn show_operations(&self, rows: &[OperationRow]) -> Vec<pks::Operation> {
        let flows = self.flows_of(rows).await;
        rows.iter().map(|row| self.shown(row, &flows)).collect()
    }

    async fn flows_of(&self, rows: &[OperationRow]) -> HashMap<FlowId, FlowView> {
        let ids: Vec<FlowId> = rows.iter().map(|row| FlowId::from(row.id.as_uuid())).collect();
        let views = self.0.flows.views(&ids).await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "failed to read the steps of operations");
            Vec::new()
        });
        views
            .into_iter()
            .map(|view| (view.summary.info.id, view))
            .collect()
    }

    fn shown(&self, row: &OperationRow, flows: &HashMap<FlowId, FlowView>) -> pks::Operation {
        let now = self.0.desk.clock.now_millis();
        let flow = flows.get(&FlowId::from(row.id.as_uuid()));
        let steps = flow.into_iter().flat_map(|view| &view.steps);
        pks::Operation {
            id: row.id.to_string(),
            cluster: row.cluster.clone(),
            action: row.action,
            state: row.state,
            user: row.actor.name.clone(),
            cancelled_by: row.canceled_by.clone(),
            created_at: row.created_at.to_string(),
            ended_at: row.ended_at.map(|time| time.to_string()),
            steps: steps.map(|step| show_step(step, now)).collect(),
            error: row.error.clone(),
        }
    }

    /// Whether a cluster is well enough to be upgraded.
    pub(crate) async fn pre_check(&self, cluster: &ClusterRow) -> Result<pks::PreCheck> {
        let deployment = crate::render::deployment_name(cluster.id);
        let tools = &self.0.tools;
        let certificates = tools.vault.certificates(&deployment).await?;
        let machines = tools.director.health(&deployment).await?;
        Ok(precheck::check(certificates, &machines, self.0.desk.clock.now()))
    }

    /// Whether people get kubeconfigs under their own names.
    pub(crate) fn gives_personal(&self) -> bool {
        self.0.personal_credentials
    }

    /// A kubeconfig for a cluster, which `caller` asks for and answers for.
    pub(crate) async fn bind(
        &self,
        caller: &Caller,
        cluster: &ClusterRow,
        user: &str,
        access: Access,
    ) -> Result<serde_json::Value> {
        let desk = self.desk();
        desk.is_there(caller).await?;
        if cluster.settings.stopped {
            return Err(Error::Stopped {
                cluster: cluster.name.to_string(),
            });
        }
        let address = api_address(cluster)?;
        let tools = &self.0.tools;
        let admin = tools
            .vault
            .admin(&crate::render::deployment_name(cluster.id))
            .await?;
        let grant = |of: Who| Grant {
            of,
            by: caller.who().key.clone(),
            at: desk.clock.now(),
            lives: self.0.credentials_live,
        };
        match access {
            Access::ServiceAccount => {
                // A name that nobody has is a label of whoever asks: it is not held for somebody of that name who comes later.
                let of = desk.who_is(caller, user).await?.unwrap_or_else(|| Who {
                    name: user.to_owned(),
                    key: Key::unknown(&format!("{user}@{}", caller.who().key)),
                });
                tools.kubernetes.bind(cluster, address, &admin, &grant(of)).await
            }
            Access::Person { administers } => {
                let oidc = trusted(cluster)?;
                if administers {
                    let of = desk.who_is(caller, user).await?;
                    let of = of.ok_or_else(|| Error::NoPerson(user.chars().take(80).collect()))?;
                    let subject = oidc.subject(user);
                    tools
                        .kubernetes
                        .admit(cluster, address, &admin, &subject, &grant(of))
                        .await?;
                }
                Ok(person(cluster, address, &admin, oidc, user))
            }
        }
    }
}

/// Where a cluster's API is, once there is one to be asked.
fn api_address(cluster: &ClusterRow) -> Result<std::net::Ipv4Addr> {
    // While a cluster is made or deleted there may be half an API; after a failed smoke test there is one to look at.
    let settled = cluster.state.is_final() && cluster.action != pks::LastAction::Delete;
    let address = cluster.address.as_ref().and_then(|text| text.parse().ok());
    address.filter(|_| settled).ok_or_else(|| Error::NotReady {
        cluster: cluster.name.to_string(),
        action: cluster.action.as_str(),
        state: cluster.state.as_str(),
    })
}

/// What a kubeconfig lets in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Whoever has it: a service account that administers the cluster, one for each person.
    ServiceAccount,
    /// A person, whose tokens have to be filled in.
    Person {
        /// Whether the person is to administer the cluster.
        administers: bool,
    },
}

/// The token service that the cluster trusts.
fn trusted(cluster: &ClusterRow) -> Result<&Oidc> {
    let why = match (&cluster.settings.oidc, cluster.settings.trusted_oidc()) {
        (_, Some(oidc)) => return Ok(oidc),
        (Some(_), None) => "its Kubernetes profile names an identity provider of its own",
        (None, None) => "its API servers do not trust the token service",
    };
    Err(Error::NotPersonal {
        cluster: cluster.name.to_string(),
        why: why.to_owned(),
    })
}

/// Waits until something happens in a flow, whoever runs it, or may have happened, or for `limit`: the caller looks for itself.
async fn wait_news(flows: &Flows, id: FlowId, limit: Duration) {
    let _ = tokio::time::timeout(limit, flows.news(id).next()).await;
}

fn show_step(step: &stolos_flow::StepView, now: i64) -> pks::OperationStep {
    let state = match step.state {
        StepState::Waiting => "waiting",
        StepState::Running => "running",
        StepState::Done => "done",
        StepState::Skipped => "skipped",
        StepState::Failed => "failed",
        StepState::Canceled => "cancelled",
    };
    pks::OperationStep {
        name: step.name.clone(),
        state: state.to_owned(),
        detail: step.progress.clone().or_else(|| step.note.clone()),
        elapsed_ms: step.began_at.map(|start| step.ended_at.unwrap_or(now) - start),
        waiting_for: step.waiting_on.clone(),
    }
}
