//! From request to intent: everything that is checked before anything is written.
//!
//! Each function authorizes first, checks the whole request, writes in one transaction and says who has to be nudged. It
//! does not wait for anything and does not retry.

use stolos_api::pks::{ClusterRequest, LastAction, LastActionState, OperationState};
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
use crate::render::API_PORT;

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
            let used_mib = db::allotted_memory(&mut tx).await?;
            if used_mib + needed_mib > capacity.memory_mib {
                return Err(Error::DoesNotFit {
                    needed_mib,
                    used_mib,
                    total_mib: capacity.memory_mib,
                });
            }
        }
        db::insert_cluster(&mut tx, &cluster, needed_mib).await?;
        self.begin(&mut tx, &operation).await?;
        tx.commit().await.map_err(Error::database("accept the cluster"))?;
        self.flows.nudge();
        Ok((cluster, operation))
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
                self.begin(&mut tx, &operation).await?;
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
    async fn begin(&self, tx: &mut Tx, operation: &OperationRow) -> Result<()> {
        db::insert_operation(tx, operation).await?;
        let flow = flow_of(operation).ok_or_else(|| {
            Error::Request("updates and upgrades are not offered by this version".to_owned())
        })?;
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

fn memory_mib(plan: &Plan, workers: u32) -> u64 {
    u64::from(plan.master.ram) + u64::from(plan.worker.ram) * u64::from(workers)
}
