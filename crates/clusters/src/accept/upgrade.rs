//! Accepting upgrades: which clusters, in which order, and whether each of them may.

use stolos_api::pks::{LastAction, LastActionState, TaskInfo, UpgradeClusters};
use stolos_base::ids::{OperationId, UpgradeId};

use super::{Desk, VERSION, refuse_unfit};
use crate::authorize::{Caller, Right};
use crate::db::{self, ClusterRow};
use crate::error::{Error, Result};
use crate::flows::{Input, TaskInput, task_of};
use crate::render::Rollout;
use crate::upgrades::{self, Turn};
use crate::who::Who;

/// The most clusters that a task upgrades at the same time.
const MOST_IN_FLIGHT: u32 = 100;
/// `--nodes-parallel` takes one or two.
const MOST_NODES: u32 = 2;
/// So many workers a cluster needs in each group for two of them to be away.
const LEAST_WORKERS: u32 = 3;

impl Desk {
    /// Accepts an upgrade of clusters as a task.
    pub(crate) async fn upgrade(&self, caller: &Caller, request: &UpgradeClusters) -> Result<TaskInfo> {
        caller.may(Right::Manage)?;
        let in_flight = request.max_in_flight.unwrap_or(1);
        if !(1..=MOST_IN_FLIGHT).contains(&in_flight) {
            return Err(Error::Request(format!(
                "`max_in_flight` is {in_flight}, which is not between 1 and {MOST_IN_FLIGHT}"
            )));
        }
        let mut turns: Vec<Turn> = Vec::new();
        let canaries = request.canaries.as_deref().unwrap_or_default();
        for (names, is_canary) in [(canaries, true), (request.clusters.as_slice(), false)] {
            for name in names {
                if let Some(other) = turns.iter().find(|turn| turn.name == *name) {
                    // A canary is usually one of the clusters too.
                    if other.is_canary && !is_canary {
                        continue;
                    }
                    return Err(Error::Request(format!("cluster `{name}` is named twice")));
                }
                let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
                self.may_upgrade(&cluster)?;
                check_parallel(&cluster, request.nodes_parallel)?;
                turns.push(Turn {
                    cluster: cluster.id,
                    name: cluster.name.to_string(),
                    is_canary,
                });
            }
        }
        if request.clusters.is_empty() {
            return Err(Error::Request("`clusters` names no cluster".to_owned()));
        }
        let id = UpgradeId::new(&self.ids);
        let input = TaskInput {
            turns: turns
                .iter()
                .map(|turn| (turn.name.clone(), turn.cluster))
                .collect(),
            canaries: turns.iter().filter(|turn| turn.is_canary).count(),
            max_in_flight: in_flight,
            in_flight: request.nodes_parallel,
            actor: caller.name().to_owned(),
            actor_key: caller.who().key.as_str().to_owned(),
        };
        let mut tx = self.begin_tx("accept an upgrade").await?;
        upgrades::insert(&mut tx, id, caller.who(), &turns).await?;
        self.tasks
            .submit_in(&mut tx, task_of(id, &input))
            .await
            .map_err(|error| Error::service("begin the task", error))?;
        tx.commit().await.map_err(Error::database("accept the upgrade"))?;
        self.tasks.nudge();
        upgrades::one(&self.db, &id.to_string(), db::Whose::All).await
    }

    /// What an upgrade would bring the cluster to; an error when it may not, or need not.
    fn may_upgrade(&self, cluster: &ClusterRow) -> Result<ClusterRow> {
        refuse_unfit(cluster)?;
        if !cluster.state.is_final() {
            return Err(Error::Busy {
                cluster: cluster.name.to_string(),
            });
        }
        let mut after = cluster.clone();
        self.refresh(&mut after);
        after.settings.artifacts = Some(self.artifacts.for_plan(&after.plan)?.clone());
        VERSION.clone_into(&mut after.settings.version);
        let (from, to) = (&cluster.plan.kubernetes_version, &after.plan.kubernetes_version);
        if !may_go(from, to) {
            return Err(Error::Skew {
                cluster: cluster.name.to_string(),
                from: from.clone(),
                to: to.clone(),
            });
        }
        // What failed on its way is named as it is to be already, and may go on.
        let unchanged = after.plan == cluster.plan && after.settings == cluster.settings;
        if unchanged && cluster.state == LastActionState::Succeeded {
            return Err(Error::UpToDate {
                cluster: cluster.name.to_string(),
                version: to.clone(),
            });
        }
        Ok(after)
    }

    /// Begins the upgrade of one cluster of a task. Again with the same id, it finds that it has begun.
    pub(crate) async fn begin_upgrade(
        &self,
        id: OperationId,
        cluster: stolos_base::ids::ClusterId,
        in_flight: Option<u32>,
        actor: &Who,
    ) -> Result<()> {
        match db::operation(&self.db, &id.to_string(), db::Whose::All).await {
            Ok(_) => return Ok(()),
            Err(Error::NoOperation(_)) => {}
            Err(error) => return Err(error),
        }
        let before = db::cluster_by_id(&self.db, cluster).await?;
        let after = self.may_upgrade(&before)?;
        let operation = self.operation_of(id, &after, LastAction::Upgrade, actor);
        let mut tx = self.begin_tx("begin an upgrade").await?;
        let mut input = Input::new(&operation, Rollout::Careful);
        input.in_flight = in_flight;
        self.begin_change(&mut tx, &operation, &input).await?;
        db::set_intent(&mut tx, &after).await?;
        tx.commit().await.map_err(Error::database("begin the upgrade"))?;
        self.flows.nudge();
        Ok(())
    }

    /// What a cluster can be upgraded to: its plan's newest Kubernetes and release.
    pub(crate) fn upgrade_of(&self, cluster: &ClusterRow) -> Option<&str> {
        let failed = cluster.action == LastAction::Upgrade && cluster.state == LastActionState::Failed;
        if self.is_current(cluster) && !failed {
            return None;
        }
        let plan = self.plans.find(&cluster.plan.name)?;
        Some(plan.kubernetes_version.as_str())
    }
}

/// PKS's rule: two workers may be away at once where each group has three.
fn check_parallel(cluster: &ClusterRow, nodes: Option<u32>) -> Result<()> {
    let Some(nodes) = nodes else { return Ok(()) };
    if !(1..=MOST_NODES).contains(&nodes) {
        return Err(Error::Request(format!(
            "`nodes_parallel` is {nodes}, which is not 1 or {MOST_NODES}"
        )));
    }
    let small = cluster
        .shape()
        .pools
        .into_iter()
        .find(|pool| nodes > 1 && pool.instances < LEAST_WORKERS);
    match small {
        None => Ok(()),
        Some(pool) => Err(Error::Request(format!(
            "cluster `{}` has only {} workers in `{}`; for {nodes} at once it needs {LEAST_WORKERS}",
            cluster.name, pool.instances, pool.name
        ))),
    }
}

/// Whether Kubernetes can go from one version to another at once: the same minor or the next one, and never back.
pub(super) fn may_go(from: &str, to: &str) -> bool {
    let numbers = |version: &str| -> Option<(u32, u32, u32)> {
        let mut numbers = version.split(['.', '-', '+']).map(|n| n.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    match (numbers(from), numbers(to)) {
        (Some(from), Some(to)) => from.0 == to.0 && to >= from && to.1 <= from.1 + 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_at_a_time_and_never_back() {
        for (from, to) in [("1.36.3", "1.37.1"), ("1.37.1", "1.37.1"), ("1.37.1", "1.37.2")] {
            assert!(may_go(from, to), "{from} → {to}");
        }
        for (from, to) in [
            ("1.36.3", "1.38.0"),
            ("1.37.1", "1.36.3"),
            ("1.37.1", "1.37.0"),
            ("1.37.1", "2.0.0"),
            ("x", "1.37.1"),
        ] {
            assert!(!may_go(from, to), "{from} → {to}");
        }
    }
}
