//! From request to intent: everything that is checked before anything is written.
//!
//! Each function authorizes first, checks the whole request, writes in one transaction and says who has to be nudged. It
//! does not wait for anything and does not retry.

mod backup;
mod create;
mod delete;
mod losses;
mod owner;
mod power;
mod preview;
mod profiles;
mod quotas;
mod rotate;
mod update;
mod upgrade;

use std::sync::Arc;

use stolos_api::pks::{
    ClusterTag, ConfigFile, CustomCaCert, LastAction, LastActionState, OperationState, PrivateRegistries,
    Room,
};
use stolos_base::ids::{ClusterId, OperationId};
use stolos_base::{Clock, IdSource};
use stolos_flow::Flows;
use stolos_store::{Db, Tx};

pub(crate) use delete::Deletion;
pub(crate) use preview::Mode;

use crate::authorize::Caller;
use crate::config_file::{self, Secrets};
use crate::db::{self, ClusterRow, OperationRow};
use crate::deps::{Director, Kubernetes, People, Vault};
use crate::error::{Error, Result};
use crate::flows::{Input, KeptBackups, flow_of, in_progress};
use crate::oidc::Oidc;
use crate::plans::{Plan, Plans};
use crate::profiles::Kind;
use crate::registries;
use crate::render::{Catalogue, Rollout, deployment_name};
use crate::settings::{Settings, Tag};
use crate::shape::Amount;
use crate::who::Who;

/// What this host can carry; `None` where the machines are not made on it.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Memory that machines may be allotted, in MiB: more than there is, where the operator lets it be overcommitted.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
}

/// What acceptance needs.
pub(crate) struct Desk {
    pub(crate) db: Db,
    pub(crate) plans: Plans,
    pub(crate) capacity: Option<Capacity>,
    /// What machines of new and of upgraded clusters are made of.
    pub(crate) artifacts: Catalogue,
    /// The token service that API servers of new and of changed clusters trust.
    pub(crate) oidc: Option<Oidc>,
    /// Whether each cluster has an audience of its own.
    pub(crate) audience_per_cluster: bool,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) people: Arc<dyn People>,
    pub(crate) director: Arc<dyn Director>,
    pub(crate) kubernetes: Arc<dyn Kubernetes>,
    pub(crate) backups: Option<KeptBackups>,
    pub(crate) clock: Clock,
    pub(crate) ids: IdSource,
    /// Runs operations.
    pub(crate) flows: Flows,
    /// Runs tasks, each of which waits for operations: in an executor of their own they never take an operation's place.
    pub(crate) tasks: Flows,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The cluster as it was; none when it is new.
    pub(crate) before: Option<ClusterRow>,
    /// The cluster as it is to be.
    pub(crate) cluster: ClusterRow,
    /// What is done for it.
    pub(crate) operation: OperationRow,
    /// How machines that are there are treated.
    pub(crate) rollout: Rollout,
    /// What the request said that has no effect on this installation's infrastructure.
    pub(crate) not_applied: Vec<String>,
}

/// The version that is written to clusters.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A segment is a /24, with a gateway and masters in it.
const MOST_WORKERS: u32 = 240;

impl Desk {
    async fn begin_tx(&self, what: &'static str) -> Result<Tx> {
        self.db.begin(what).await.map_err(Error::database(what))
    }

    /// Writes an operation together with its flow: there is never one without the other.
    async fn begin(&self, tx: &mut Tx, operation: &OperationRow, input: &Input) -> Result<()> {
        db::insert_operation(tx, operation).await?;
        self.flows
            .submit_in(tx, flow_of(operation, input))
            .await
            .map_err(|error| Error::service("begin the operation", error))?;
        Ok(())
    }

    /// The same for a cluster that is there, which says from now on what is done to it.
    async fn begin_change(&self, tx: &mut Tx, operation: &OperationRow, input: &Input) -> Result<()> {
        self.begin(tx, operation, input).await?;
        let (action, words) = (operation.action, in_progress(operation.action));
        db::set_cluster_state(
            tx,
            operation.cluster_id,
            action,
            LastActionState::InProgress,
            &words,
        )
        .await
    }

    /// The token service that a cluster trusts from now on, which trusted `before`.
    fn oidc_of(&self, id: ClusterId, before: Option<&Oidc>) -> Option<Oidc> {
        let oidc = self.oidc.as_ref()?;
        if self.audience_per_cluster {
            return Some(oidc.of_cluster(id, before, self.clock.now()));
        }
        Some(oidc.clone())
    }

    fn operation(&self, cluster: &ClusterRow, action: LastAction, caller: &Caller) -> OperationRow {
        self.operation_of(OperationId::new(&self.ids), cluster, action, caller.who())
    }

    /// An operation under an id that was chosen before.
    fn operation_of(
        &self,
        id: OperationId,
        cluster: &ClusterRow,
        action: LastAction,
        actor: &Who,
    ) -> OperationRow {
        OperationRow {
            id,
            cluster_id: cluster.id,
            cluster: cluster.name.to_string(),
            owner: cluster.owner.clone(),
            action,
            actor: actor.clone(),
            created_at: self.clock.now(),
            cancel: false,
            canceled_by: None,
            state: OperationState::Queued,
            ended_at: None,
            error: None,
        }
    }

    /// Refuses a cluster that this host cannot carry beside the others.
    async fn fits(&self, tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
        let Some(capacity) = self.capacity else {
            return Ok(());
        };
        let Amount { memory_mib, .. } = cluster.shape().amount();
        let free_mib = capacity
            .memory_mib
            .saturating_sub(db::allotted_memory(tx, cluster.id).await?);
        if memory_mib > free_mib {
            return Err(Error::DoesNotFit {
                needed_mib: memory_mib,
                free_mib,
            });
        }
        Ok(())
    }

    /// What there is room for.
    pub(crate) async fn room(&self) -> Result<Room> {
        let Some(capacity) = self.capacity else {
            return Ok(Room::default());
        };
        let taken: u64 = db::clusters(&self.db, db::Whose::All)
            .await?
            .iter()
            .map(|cluster| cluster.shape().amount().memory_mib)
            .sum();
        Ok(Room {
            free_memory_mib: Some(capacity.memory_mib.saturating_sub(taken)),
            most_cpus: Some(capacity.cpus),
        })
    }

    /// Refuses shapes that no host and no segment could hold, however empty.
    fn check_shape(&self, cluster: &ClusterRow) -> Result<()> {
        let shape = cluster.shape();
        if let Some(capacity) = self.capacity
            && shape.widest() > capacity.cpus
        {
            return Err(Error::TooManyProcessors {
                plan: cluster.plan.name.clone(),
                cpus: shape.widest(),
                host: capacity.cpus,
            });
        }
        if shape.workers() > MOST_WORKERS {
            return Err(Error::Request(format!(
                "the cluster would have {} workers, more than the {MOST_WORKERS} that a network segment holds",
                shape.workers()
            )));
        }
        cluster
            .settings
            .networks()
            .map(drop)
            .map_err(|invalid| Error::Request(invalid.to_string()))
    }

    /// Puts a cluster's secrets where the director finds them.
    async fn keep(&self, cluster: &ClusterRow, secrets: Secrets) -> Result<()> {
        let deployment = deployment_name(cluster.id);
        if let Some(authority) = secrets.authority {
            self.vault.put_authority(&deployment, authority).await?;
        }
        for (name, text) in secrets.texts {
            self.vault.put(&self.vault.name(&deployment, name)?, text).await?;
        }
        Ok(())
    }

    /// Makes sure that the profiles of a cluster stay while it has them.
    async fn hold_profiles(&self, tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
        for (kind, name) in cluster.profiles() {
            crate::profiles::hold(tx, kind, name).await?;
        }
        Ok(())
    }

    /// Whether a cluster's machines are made of what new ones are made of.
    pub(crate) fn is_current(&self, cluster: &ClusterRow) -> bool {
        let newest = self
            .plans
            .find(&cluster.plan.name)
            .and_then(|plan| self.artifacts.for_version(&plan.kubernetes_version));
        // A plan that is no longer on offer has nothing newer.
        newest.is_none() || newest == cluster.settings.artifacts.as_ref()
    }
}

/// What a request says about registries and in `--config-file`.
struct GivenFiles<'a> {
    registries: Option<&'a PrivateRegistries>,
    /// PKS's older way for some registries.
    authorities: Option<&'a [CustomCaCert]>,
    /// The same for registries that are not verified.
    insecure: Option<&'a [String]>,
    config: Option<&'a ConfigFile>,
}

impl GivenFiles<'_> {
    /// Takes it into the settings; gives what is secret, and what has no effect here.
    fn take(&self, settings: &mut Settings, now: jiff::Timestamp) -> Result<(Secrets, Vec<String>)> {
        if let Some(given) = self.registries {
            settings.registries = registries::check(given)?;
        }
        registries::add_older(
            &mut settings.registries,
            self.authorities.unwrap_or_default(),
            self.insecure.unwrap_or_default(),
        )?;
        match self.config {
            Some(file) => Ok(config_file::take(file, &mut settings.proxies, now)?),
            None => Ok((Secrets::default(), Vec::new())),
        }
    }
}

impl ClusterRow {
    /// Its groups of machines.
    #[must_use]
    pub fn shape(&self) -> crate::shape::Shape {
        crate::shape::Shape::of(&self.plan, self.workers, &self.settings)
    }

    /// Its profiles by kind.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = (Kind, &str)> {
        let settings = &self.settings;
        let network = settings.network_profile.as_ref().map(|p| p.name.as_str());
        let compute = settings.compute_profile.as_ref().map(|p| p.name.as_str());
        let kubernetes = settings.kubernetes_profile.as_ref().map(|p| p.name.as_str());
        [
            (Kind::Network, network),
            (Kind::Compute, compute),
            (Kind::Kubernetes, kubernetes),
        ]
        .into_iter()
        .filter_map(|(kind, name)| Some((kind, name?)))
    }
}

fn worker_count(plan: &Plan, asked: i64) -> Result<u32> {
    u32::try_from(asked)
        .ok()
        .filter(|n| (1..=plan.max_worker_instances).contains(n))
        .ok_or_else(|| Error::WorkerCount {
            asked,
            most: plan.max_worker_instances,
            plan: plan.name.clone(),
        })
}

/// Fields that are known to PKS but not offered yet, and typing errors, are refused rather than ignored: a script that asks
/// for a network profile must not get a cluster without one. Old clients send unset fields as null or empty; these are fine.
fn refuse_unknown(other: &indexmap::IndexMap<String, serde_json::Value>) -> Result<()> {
    let is_unset = |value: &serde_json::Value| match value {
        serde_json::Value::Null => true,
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(fields) => fields.is_empty(),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => false,
    };
    match other.iter().find(|(_, value)| !is_unset(value)) {
        None => Ok(()),
        Some((field, _)) => {
            let field: String = field.chars().take(80).collect();
            Err(Error::Request(format!(
                "field `{field}` is not known or not offered by this version"
            )))
        }
    }
}

/// Refuses what is left of a deletion.
fn refuse_half_deleted(cluster: &ClusterRow) -> Result<()> {
    if cluster.action == LastAction::Delete {
        return Err(Error::HalfDeleted {
            cluster: cluster.name.to_string(),
        });
    }
    Ok(())
}

/// Refuses what may not change as it is: what is left of a deletion, and what is stopped.
fn refuse_unfit(cluster: &ClusterRow) -> Result<()> {
    refuse_half_deleted(cluster)?;
    if cluster.settings.stopped {
        return Err(Error::Stopped {
            cluster: cluster.name.to_string(),
        });
    }
    Ok(())
}

/// A text that says something; old clients send unset ones as empty.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

fn checked_tags(tags: &[ClusterTag]) -> Result<Vec<Tag>> {
    let mut checked: Vec<Tag> = Vec::with_capacity(tags.len());
    for tag in tags {
        let tag = Tag::new(&tag.name, &tag.value)?;
        if checked.iter().any(|other| other.name == tag.name) {
            return Err(Error::Request(format!("tag `{}` is given twice", tag.name)));
        }
        checked.push(tag);
    }
    Ok(checked)
}
