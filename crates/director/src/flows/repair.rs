//! The repair of instances whose machines are dead: BOSH's `scan_and_fix`.
//!
//! It is asked for by the health monitor or by a person, waits for whatever else works on the deployment, and then looks again: who answers needs no
//! repair. Deleting a machine is what fences it: afterwards it cannot write to its disk or answer under its address, whatever it was doing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stolos_base::ids::{AgentId, FlowId, InstanceId};
use stolos_flow::{Change, FlowInfo, Graph, Kind, StepError};
use stolos_store::Tx;

use super::follow;
use crate::adopt;
use crate::agents::{self, Asked};
use crate::app::App;
use crate::db::inventory::{self, InstanceRow};
use crate::db::{deployments, from_json, health, releases, to_json};
use crate::error::{Error, Result};
use crate::health::judge::{self, Storm};
use crate::plan::{self, Existing, State};
use crate::prepare::{Kept, Purpose, leftovers};
use crate::steps::deploy;
use crate::tasks::{Line, StageState};

/// How often an agent is asked before its machine counts as dead.
const ASKED: u32 = 2;
/// Of the machines of other deployments that were not heard in the last seconds, so many are asked at most; they stand for all.
const MOST_ASKED: usize = 500;
/// In a group of so many, one can be brought back from what the others have.
const REPLICAS: usize = 3;

/// Makes the machines of a few instances anew.
pub(crate) struct Repair(pub(crate) Arc<App>);

/// Which instances, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) deployment: String,
    pub(crate) instances: BTreeMap<InstanceId, String>,
}

impl Kind for Repair {
    const NAME: &'static str = "repair";
    type Input = Request;

    async fn graph(&self, flow: &FlowInfo, input: Request) -> Result<Graph, StepError> {
        let made = self.made(flow.id, &input).await;
        made.map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        if change.state.is_end() {
            self.0.forget_rendered(change.flow.id, None);
            // It says what was repaired, not what the deployment is: the next repair stands on the plan of the last deploy again.
            deployments::forget_plan(tx, change.flow.id).await?;
        }
        self.0.tasks.on_state(tx, change, "scan and fix complete").await
    }
}

impl Repair {
    async fn made(&self, flow: FlowId, request: &Request) -> Result<Graph> {
        let app = &self.0;
        super::open(app, flow).await?;
        let kept = match deployments::plan(&app.db, flow).await? {
            Some(body) => Some(from_json("body", &body)?),
            None => {
                let line = Line::new("Scanning machines", "Asking those that should be dead");
                app.tasks.stage(flow, &line, StageState::Started);
                let kept = plan_repair(app, flow, request).await;
                match &kept {
                    Err(error) if stolos_base::Classify::retryable(error) => {}
                    Err(error) => {
                        let text = stolos_base::chain(error);
                        app.tasks.stage(flow, &line, StageState::Failed(&text));
                    }
                    Ok(_) => app.tasks.stage(flow, &line, StageState::Finished),
                }
                kept?
            }
        };
        match kept {
            Some(kept) => follow(app, flow, deploy::graph(app, flow, kept)).await,
            None => Ok(Graph::new()),
        }
    }
}

/// The plan, kept; `None` when there is nothing to repair any more.
async fn plan_repair(app: &Arc<App>, flow: FlowId, request: &Request) -> Result<Option<Kept>> {
    let name = &request.deployment;
    // After a restore, who is taken for dead may have been made anew long ago.
    adopt::before_plan(app, name).await?;
    let deployment = deployments::existing(&app.db, name).await?;
    let rows = inventory::instances(&app.db, name).await?;
    let dead = dead(app, flow, request, &rows).await?;
    let Some(first) = dead.first() else {
        app.tasks.result_output(
            flow,
            "nothing is made anew: all of them answer, or had better be left alone\n",
        );
        return Ok(None);
    };
    let existing: BTreeMap<InstanceId, Existing> =
        rows.iter().map(|row| (row.id, row.clone().existing())).collect();
    let (generation, source) = source(app, name, existing.get(&first.id)).await?;
    let described: Vec<&InstanceRow> = dead
        .iter()
        .copied()
        .filter(|row| source.plan.instance(row.id).is_some())
        .filter(|row| {
            row.id == first.id
                || existing
                    .get(&row.id)
                    .is_none_or(|one| plan::describes(&source.plan, one))
        })
        .collect();
    for row in dead
        .iter()
        .filter(|row| !described.iter().any(|one| one.id == row.id))
    {
        app.tasks.warn(
            flow,
            &format!(
                "{} runs another version of the deployment and is repaired later",
                row.name()
            ),
        );
    }
    let wanted = plan::Repair {
        instances: described.iter().map(|row| row.id).collect(),
        empty_disks: lost_disks(app, &source, &described, &rows).await?,
        generation: deployment.generation + 1,
    };
    let plan = plan::repair(&source.plan, &source.placement, &existing, &wanted, &app.ids);
    let kept = Kept {
        leftovers: leftovers(described.iter().copied()),
        unresponsive: wanted.instances,
        skip_drain: Vec::new(),
        purpose: Purpose::Repair,
        plan,
        ..source
    };
    keep(app, flow, name, generation, kept).await.map(Some)
}

/// Those among the instances that were asked for whose machines are there no more, or do not answer; nobody is waited for in a machine that is not there.
async fn dead<'a>(
    app: &Arc<App>,
    flow: FlowId,
    request: &Request,
    rows: &'a [InstanceRow],
) -> Result<Vec<&'a InstanceRow>> {
    let mut dead = Vec::new();
    for row in rows {
        if request.instances.contains_key(&row.id) && row.state == State::Started && !row.ignored {
            dead.push(row);
        }
    }
    let mut there = Vec::new();
    for row in &dead {
        if let Some((_, cid)) = row.machine()
            && app.machines.of(flow).has_vm(cid).await?
        {
            there.extend(Asked::of(row));
        }
    }
    let asked: BTreeSet<InstanceId> = there.iter().map(Asked::instance).collect();
    let silent = agents::silent(&app.bus, there, ASKED).await;
    dead.retain(|row| {
        let answers = asked.contains(&row.id) && !silent.contains(&row.id);
        if answers {
            let why = request.instances.get(&row.id).map_or("", String::as_str);
            let text = format!("{} answers; it was to be repaired because {why}", row.name());
            app.tasks.warn(flow, &text);
        }
        !answers
    });
    // Those that are there and silent are taken down: never below what their group needs.
    let there: Vec<&InstanceRow> = dead
        .iter()
        .copied()
        .filter(|row| asked.contains(&row.id))
        .collect();
    let storm = if there.is_empty() {
        None
    } else {
        let known: BTreeSet<AgentId> = there
            .iter()
            .filter_map(|row| row.machine().map(|(vm, _)| vm.agent))
            .collect();
        storm(app, &request.deployment, &known)
            .await?
            .map(|storm| storm.to_string())
    };
    let mut spared = BTreeSet::new();
    for row in there {
        let why = match &storm {
            Some(storm) => Some(storm.clone()),
            None => endangered(app, row, rows).await,
        };
        if let Some(why) = why {
            let text = format!("{} is left alone: {why}", row.name());
            app.tasks.warn(flow, &text);
            spared.insert(row.id);
        }
    }
    dead.retain(|row| !spared.contains(&row.id));
    Ok(dead)
}

/// Whether too many are silent in the moment before one of them is ended. The monitor knows of a storm when its machines have been silent for a while; one
/// that began in the last seconds is found only by asking. Those that are `known` to be silent were asked already.
async fn storm(app: &Arc<App>, deployment: &str, known: &BTreeSet<AgentId>) -> Result<Option<Storm>> {
    let watched = health::watched(&app.db, None).await?;
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    for one in watched {
        if one.deployment == deployment {
            here.push(one.agent);
        } else {
            elsewhere.push(one.agent);
        }
    }
    let (here, elsewhere) = tokio::join!(
        down(app, &here, known, usize::MAX),
        down(app, &elsewhere, known, MOST_ASKED)
    );
    let everywhere = (here.0 + elsewhere.0, here.1 + elsewhere.1);
    let rules = &app.config.resurrection;
    Ok(judge::storm(rules, here, false).or_else(|| judge::storm(rules, everywhere, true)))
}

/// How many of these are down, of how many. Where more than `most` were not heard in the last seconds, some of them are asked and stand for all.
async fn down(app: &Arc<App>, agents: &[AgentId], known: &BTreeSet<AgentId>, most: usize) -> (usize, usize) {
    let stale: Vec<AgentId> = agents
        .iter()
        .copied()
        .filter(|agent| !known.contains(agent) && !app.health.is_fresh(*agent))
        .collect();
    let part = stale.len().div_ceil(most).max(1);
    let sample = stale.iter().copied().step_by(part).collect();
    let silent = agents::silent_agents(&app.bus, sample).await.len();
    let already = agents.iter().filter(|agent| known.contains(agent)).count();
    (already + (silent * part).min(stale.len()), agents.len())
}

/// Why a silent instance with a disk is not taken down: it may work still, unheard by us, and be one of the majority that its group needs. The monitor has
/// asked that too, but only knows what it heard last; here the others are asked in the moment before.
async fn endangered(app: &Arc<App>, row: &InstanceRow, rows: &[InstanceRow]) -> Option<String> {
    let group = || {
        rows.iter()
            .filter(|other| other.group == row.group && other.state == State::Started)
    };
    let all = group().count();
    if all < 2 || !row.disks.iter().any(|disk| disk.active) {
        return None;
    }
    let answering = answering(app, group().filter(|other| other.id != row.id)).await;
    (answering < majority(all)).then(|| {
        format!(
            "it may still run, and only {answering} of the {} others of its group answer",
            all - 1
        )
    })
}

/// How many of these answer when they are asked once. One without a machine does not.
async fn answering<'a>(app: &Arc<App>, rows: impl Iterator<Item = &'a InstanceRow>) -> usize {
    let asked: Vec<Asked> = rows.filter_map(Asked::of).collect();
    let with_machine = asked.len();
    with_machine - agents::silent(&app.bus, asked, 1).await.len()
}

/// Of all, the one that is to be repaired included: two of three, three of five.
fn majority(all: usize) -> usize {
    all / 2 + 1
}

/// The plan that says what an instance runs: the one by which it was last completed, else the newest.
async fn source(app: &Arc<App>, name: &str, of: Option<&Existing>) -> Result<(u64, Kept)> {
    let mut newest = None;
    for (generation, body) in deployments::plans(&app.db, name).await? {
        let kept: Kept = from_json("body", &body)?;
        if kept.purpose != Purpose::Deploy {
            continue;
        }
        if of.is_some_and(|existing| plan::describes(&kept.plan, existing)) {
            return Ok((generation, kept));
        }
        let has = of.is_some_and(|existing| kept.plan.instance(existing.id).is_some());
        if has && newest.is_none() {
            newest = Some((generation, kept));
        }
    }
    newest.ok_or_else(|| {
        Error::Irreparable(format!(
            "no plan of deployment '{name}' is kept that says what the instance runs; deploy it with `--fix`"
        ))
    })
}

/// Instances that get an empty disk because theirs is lost, where others have what was on it.
///
/// # Errors
/// [`Error::Irreparable`] for a lost disk that nobody has a copy of: it is a person's business whether to go on without.
async fn lost_disks(
    app: &Arc<App>,
    source: &Kept,
    dead: &[&InstanceRow],
    rows: &[InstanceRow],
) -> Result<BTreeSet<InstanceId>> {
    let mut lost = BTreeSet::new();
    for row in dead {
        let Some(cid) = row
            .disks
            .iter()
            .find(|disk| disk.active)
            .and_then(|disk| disk.cid.as_deref())
        else {
            continue;
        };
        if app.machines.of(FlowId::new(&app.ids)).has_disk(cid).await? != Some(false) {
            continue;
        }
        let others: Vec<&InstanceRow> = rows
            .iter()
            .filter(|other| other.group == row.group && other.id != row.id)
            .collect();
        let answering = answering(app, others.iter().copied()).await;
        let all = others.len() + 1;
        let replicated = has_copies(app, source, &row.group).await?;
        if !replicated || all < REPLICAS || answering < majority(all) {
            let why = match () {
                () if !replicated => "nobody has a copy of what was on it".to_owned(),
                () if all < REPLICAS => {
                    format!("its group has {all} instances, which is too few to have copies")
                }
                () => format!("only {answering} of the {} others answer", others.len()),
            };
            return Err(Error::Irreparable(format!(
                "the persistent disk '{cid}' of {} is lost, and {why}; restore it from a backup, or delete the instance's disk on purpose",
                row.name()
            )));
        }
        lost.insert(row.id);
    }
    Ok(lost)
}

/// Whether a job of the group says that the group's instances have copies of each other's disks.
async fn has_copies(app: &Arc<App>, source: &Kept, group: &str) -> Result<bool> {
    for job in source.placement.jobs(group) {
        let rows = releases::jobs(&app.db, &job.release.name, &job.release.version).await?;
        if rows
            .iter()
            .any(|row| row.name == job.name && row.spec.replicated_disk)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keeps the plan under the deployment's next number, with the versions of variables of the plan that it stands on. Another life of this flow may have
/// been quicker; then its plan counts.
async fn keep(app: &Arc<App>, flow: FlowId, name: &str, from: u64, kept: Kept) -> Result<Kept> {
    let pinned = deployments::pinned(&app.db, name, from).await?;
    let (body, generation) = (to_json(&kept)?, kept.plan.generation);
    let mut tx = app.db.begin_background("keep the plan of a repair").await?;
    if !deployments::insert_plan(&mut tx, flow, name, generation, &body).await? {
        drop(tx);
        let body = deployments::plan(&app.db, flow).await?;
        let body = body.ok_or_else(|| Error::Bug(format!("flow {flow} lost its plan")))?;
        return from_json("body", &body);
    }
    if !deployments::advance(&mut tx, name, generation).await? {
        return Err(Error::Bug(format!(
            "deployment '{name}' was planned by somebody else meanwhile"
        )));
    }
    deployments::pin(&mut tx, name, generation, &pinned).await?;
    tx.commit().await?;
    Ok(kept)
}
