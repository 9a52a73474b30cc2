//! From request to intent: everything that is checked before anything is written.
//!
//! Each function authorizes first, checks the whole request, writes in one transaction and says who has to be nudged. It
//! does not wait for anything and does not retry.

use stolos_api::pks::{
    ClusterRequest, ClusterTag, LastAction, LastActionState, OperationState, Quota, QuotaChange,
    UpdateParameters,
};
use stolos_base::ids::{ClusterId, OperationId};
use stolos_base::{Clock, IdSource};
use stolos_flow::Flows;
use stolos_store::{Db, Tx};

use crate::authorize::{Caller, Right};
use crate::db::{self, ClusterRow, OperationRow};
use crate::error::{Error, Result};
use crate::flows::flow_of;
use crate::model::{ClusterName, Hostname};
use crate::plans::{Plan, Plans};
use crate::quotas;
use crate::render::{API_PORT, Catalogue, Rollout};
use crate::settings::{Settings, Tag};

/// What this host can carry; `None` where the machines are not made on it.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
}

/// What acceptance needs.
pub(crate) struct Desk {
    pub(crate) db: Db,
    pub(crate) plans: Plans,
    pub(crate) capacity: Option<Capacity>,
    /// What machines of new clusters are made of.
    pub(crate) artifacts: Catalogue,
    pub(crate) clock: Clock,
    pub(crate) ids: IdSource,
    pub(crate) flows: Flows,
}

impl Desk {
    /// Accepts a create request.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        request: &ClusterRequest,
    ) -> Result<(ClusterRow, OperationRow)> {
        caller.may(Right::Manage)?;
        let cluster = self.check_create(caller, request)?;
        let needed_mib = memory_mib(&cluster.plan, cluster.workers);
        let operation = self.operation(&cluster, LastAction::Create, caller);
        let mut tx = self
            .db
            .begin("accept a cluster")
            .await
            .map_err(Error::database("begin accepting a cluster"))?;
        if let Some(capacity) = self.capacity {
            fits(&mut tx, capacity, &cluster, needed_mib).await?;
        }
        if !caller.has(Right::ManageAll) {
            quotas::refuse_excess(&mut tx, &cluster).await?;
        }
        db::insert_cluster(&mut tx, &cluster, needed_mib).await?;
        self.begin(&mut tx, &operation, Rollout::Fresh).await?;
        tx.commit().await.map_err(Error::database("accept the cluster"))?;
        self.flows.nudge();
        Ok((cluster, operation))
    }

    /// Accepts a change. What is absent in it stays as it is; a plan that the operator changed applies from now on.
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        name: &str,
        change: &UpdateParameters,
    ) -> Result<OperationRow> {
        caller.may(Right::Manage)?;
        let before = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        if before.action == LastAction::Delete {
            return Err(Error::HalfDeleted {
                cluster: before.name.to_string(),
            });
        }
        let after = self.check_update(&before, change)?;
        let needed_mib = memory_mib(&after.plan, after.workers);
        let operation = self.operation(&after, LastAction::Update, caller);
        // What ended well and only gets more or fewer workers keeps every machine as it is.
        let only_size = before.state == LastActionState::Succeeded
            && before.plan == after.plan
            && before.settings.artifacts == after.settings.artifacts;
        let rollout = if only_size {
            Rollout::Fresh
        } else {
            Rollout::Careful
        };
        let mut tx = self
            .db
            .begin("accept a change")
            .await
            .map_err(Error::database("begin accepting a change"))?;
        // The operation first: with one in flight, nothing of the cluster may change.
        self.begin(&mut tx, &operation, rollout).await?;
        if let Some(capacity) = self.capacity
            && needed_mib > memory_mib(&before.plan, before.workers)
        {
            fits(&mut tx, capacity, &after, needed_mib).await?;
        }
        // Who becomes smaller may, also above a limit that was lowered meanwhile.
        if !caller.has(Right::ManageAll) && after.workers > before.workers {
            quotas::refuse_excess(&mut tx, &after).await?;
        }
        db::set_intent(&mut tx, &after, needed_mib).await?;
        let (state, words) = (LastActionState::InProgress, "Instance update in progress");
        db::set_cluster_state(&mut tx, after.id, LastAction::Update, state, words).await?;
        tx.commit().await.map_err(Error::database("accept the change"))?;
        self.flows.nudge();
        Ok(operation)
    }

    fn check_update(&self, before: &ClusterRow, change: &UpdateParameters) -> Result<ClusterRow> {
        refuse_unknown(&change.other)?;
        let mut after = before.clone();
        // A plan that is no longer on offer goes on for those who have it.
        if let Some(plan) = self.plans.find(&before.plan.name)
            && plan.kubernetes_version == before.plan.kubernetes_version
        {
            after.plan = plan.clone();
        }
        let drain = &change.drain;
        let own = &mut after.settings.drain;
        set(
            &mut own.timeout,
            "kubelet_drain_timeout",
            drain.kubelet_drain_timeout.as_ref(),
            |n| *n <= 1440,
        )?;
        set(
            &mut own.grace_period,
            "kubelet_drain_grace_period",
            drain.kubelet_drain_grace_period.as_ref(),
            |n| (-1..=86_400).contains(n),
        )?;
        set(
            &mut own.force,
            "kubelet_drain_force",
            drain.kubelet_drain_force.as_ref(),
            |_| true,
        )?;
        set(
            &mut own.ignore_daemonsets,
            "kubelet_drain_ignore_daemonsets",
            drain.kubelet_drain_ignore_daemonsets.as_ref(),
            |_| true,
        )?;
        set(
            &mut own.delete_local_data,
            "kubelet_drain_delete_local_data",
            drain.kubelet_drain_delete_local_data.as_ref(),
            |_| true,
        )?;
        set(
            &mut own.force_node,
            "kubelet_drain_force_node",
            drain.kubelet_drain_force_node.as_ref(),
            |_| true,
        )?;
        match (&change.cluster_tags, change.delete_all_tags) {
            (Some(tags), Some(true)) if !tags.is_empty() => {
                return Err(Error::Request(
                    "`cluster_tags` and `delete_all_tags` exclude each other".to_owned(),
                ));
            }
            (_, Some(true)) => after.settings.tags.clear(),
            (Some(tags), _) => after.settings.tags = checked_tags(tags)?,
            (None, _) => {}
        }
        if let Some(asked) = change.kubernetes_worker_instances {
            after.workers = worker_count(&after.plan, Some(asked))?;
        }
        let nothing = change.kubernetes_worker_instances.is_none()
            && change.cluster_tags.is_none()
            && change.delete_all_tags.is_none()
            && change.drain.named().is_empty();
        if nothing {
            return Err(Error::Request("the request names nothing to change".to_owned()));
        }
        Ok(after)
    }

    /// Accepts a delete request. A deletion that is running goes on.
    pub(crate) async fn delete(&self, caller: &Caller, name: &str) -> Result<Deletion> {
        caller.may(Right::Manage)?;
        let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        let running = db::unfinished(&self.db)
            .await?
            .into_iter()
            .find(|operation| operation.cluster_id == cluster.id);
        match running {
            Some(operation) if operation.action == LastAction::Delete => Ok(Deletion::Accepted(operation)),
            Some(operation) => Ok(Deletion::After(operation)),
            None => {
                let operation = self.operation(&cluster, LastAction::Delete, caller);
                let mut tx = self
                    .db
                    .begin("accept a deletion")
                    .await
                    .map_err(Error::database("begin a deletion"))?;
                self.begin(&mut tx, &operation, Rollout::Fresh).await?;
                let (state, words) = (LastActionState::InProgress, "Instance deletion in progress");
                db::set_cluster_state(&mut tx, cluster.id, LastAction::Delete, state, words).await?;
                tx.commit()
                    .await
                    .map_err(Error::database("accept the deletion"))?;
                self.flows.nudge();
                Ok(Deletion::Accepted(operation))
            }
        }
    }

    /// Writes an operation together with its flow: there is never one without the other.
    async fn begin(&self, tx: &mut Tx, operation: &OperationRow, rollout: Rollout) -> Result<()> {
        db::insert_operation(tx, operation).await?;
        let flow = flow_of(operation, rollout)
            .ok_or_else(|| Error::Request("upgrades are not offered by this version".to_owned()))?;
        self.flows
            .submit_in(tx, flow)
            .await
            .map_err(|error| Error::service("begin the operation", error))?;
        Ok(())
    }

    fn check_create(&self, caller: &Caller, request: &ClusterRequest) -> Result<ClusterRow> {
        let name: ClusterName = request.name.parse()?;
        let Some(plan) = self.plans.find(&request.plan_name) else {
            let known = self.plans.iter().map(|(_, plan)| plan.name.clone()).collect();
            return Err(Error::NoPlan {
                name: request.plan_name.chars().take(80).collect(),
                known,
            });
        };
        refuse_unknown(&request.other)?;
        refuse_unknown(&request.parameters.other)?;
        let Some(host) = &request.parameters.kubernetes_master_host else {
            return Err(Error::Request(
                "`parameters.kubernetes_master_host` is required".to_owned(),
            ));
        };
        let hostname: Hostname = host.parse()?;
        if let Some(port) = request.parameters.kubernetes_master_port
            && port != API_PORT
        {
            return Err(Error::Request(format!(
                "`kubernetes_master_port` {port} is not offered; the port is {API_PORT}"
            )));
        }
        let tags = checked_tags(request.parameters.cluster_tags.as_deref().unwrap_or_default())?;
        let workers = worker_count(plan, request.parameters.kubernetes_worker_instances)?;
        if let Some(capacity) = self.capacity {
            let cpus = plan.master.cpu.max(plan.worker.cpu);
            if cpus > capacity.cpus {
                return Err(Error::TooManyProcessors {
                    plan: plan.name.clone(),
                    cpus,
                    host: capacity.cpus,
                });
            }
        }
        Ok(ClusterRow {
            id: ClusterId::new(&self.ids),
            name,
            hostname,
            owner: caller.name().to_owned(),
            plan: plan.clone(),
            workers,
            action: LastAction::Create,
            state: LastActionState::InProgress,
            description: "Creating cluster".to_owned(),
            address: None,
            settings: Settings {
                artifacts: Some(self.artifacts.for_plan(plan)?.clone()),
                tags,
                ..Settings::default()
            },
        })
    }

    fn operation(&self, cluster: &ClusterRow, action: LastAction, caller: &Caller) -> OperationRow {
        OperationRow {
            id: OperationId::new(&self.ids),
            cluster_id: cluster.id,
            cluster: cluster.name.to_string(),
            owner: cluster.owner.clone(),
            action,
            actor: caller.name().to_owned(),
            created_at: self.clock.now(),
            cancel: false,
            state: OperationState::Queued,
            ended_at: None,
            error: None,
        }
    }
}

/// What became of a delete request.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// It is written (or was before).
    Accepted(OperationRow),
    /// Another operation is running and has to be stopped first; then the deletion is to be asked for again.
    After(OperationRow),
}

fn worker_count(plan: &Plan, asked: Option<i64>) -> Result<u32> {
    let Some(asked) = asked else {
        return Ok(plan.worker_instances);
    };
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

async fn fits(tx: &mut Tx, capacity: Capacity, cluster: &ClusterRow, needed_mib: u64) -> Result<()> {
    let used_mib = db::allotted_memory(tx, cluster.id).await?;
    if used_mib + needed_mib > capacity.memory_mib {
        return Err(Error::DoesNotFit {
            needed_mib,
            used_mib,
            total_mib: capacity.memory_mib,
        });
    }
    Ok(())
}

/// Takes a setting that comes as text, when it comes.
fn set<T: std::str::FromStr>(
    slot: &mut Option<T>,
    name: &str,
    text: Option<&String>,
    good: impl Fn(&T) -> bool,
) -> Result<()> {
    let Some(text) = text else { return Ok(()) };
    match text.trim().parse::<T>().ok().filter(good) {
        Some(value) => *slot = Some(value),
        None => {
            let shown: String = text.chars().take(80).collect();
            return Err(Error::Request(format!("`{shown}` is not valid for `{name}`")));
        }
    }
    Ok(())
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

fn memory_mib(plan: &Plan, workers: u32) -> u64 {
    u64::from(plan.master.ram) + u64::from(plan.worker.ram) * u64::from(workers)
}

impl Desk {
    /// Makes a quota.
    pub(crate) async fn create_quota(&self, caller: &Caller, quota: &Quota) -> Result<Quota> {
        caller.may(Right::Quotas)?;
        let limits = quotas::check(&quota.owner, &quota.limit)?;
        let mut tx = self
            .db
            .begin("make a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::insert(&mut tx, &quota.owner, limits).await?;
        tx.commit().await.map_err(Error::database("make the quota"))?;
        quotas::one(&self.db, &quota.owner).await
    }

    /// Changes a quota.
    pub(crate) async fn update_quota(
        &self,
        caller: &Caller,
        owner: &str,
        change: &QuotaChange,
    ) -> Result<Quota> {
        caller.may(Right::Quotas)?;
        if change.owner.as_deref().is_some_and(|named| named != owner) {
            return Err(Error::Request(
                "the owner of a quota cannot be changed".to_owned(),
            ));
        }
        let before = quotas::one(&self.db, owner).await?;
        let limits = quotas::check(owner, &quotas::changed(before.limit, change.limit))?;
        let mut tx = self
            .db
            .begin("change a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::update(&mut tx, owner, limits).await?;
        tx.commit().await.map_err(Error::database("change the quota"))?;
        quotas::one(&self.db, owner).await
    }

    /// Deletes a quota: its owner is not limited any more.
    pub(crate) async fn delete_quota(&self, caller: &Caller, owner: &str) -> Result<()> {
        caller.may(Right::Quotas)?;
        let mut tx = self
            .db
            .begin("delete a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::delete(&mut tx, owner).await?;
        tx.commit().await.map_err(Error::database("delete the quota"))
    }
}
