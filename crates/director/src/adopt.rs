//! Machines that are newer than the database.
//!
//! A database that was restored from a backup is older than the world: machines were made anew meanwhile, under other
//! agents and CIDs; instances came and went; agents have applied plans with greater numbers. The machines say so themselves,
//! in their heartbeats. This reconciler listens, and where an agent is heard of that no row knows, it looks: at what the agent says
//! it is, at whether the infrastructure has its machine, and at whether the recorded one is gone. Only then the row is replaced.
//!
//! - The instance is known, its recorded machine is gone, the new one exists: the machine is adopted, with its disk.
//! - The instance is not known, its deployment and group are: instance and machine are adopted, so that its address is not given
//!   away, and the next deploy keeps or removes it in an orderly way.
//! - Anything else, above all a deployment that is not known: it is reported (`GET /unknown_machines`) and left alone.
//!
//! Never does: delete or make a machine, or write while a task works on the deployment. What it writes depends in the same transaction on
//! what it has read ([`adoption::adopt`]).
//!
//! Before a plan is made ([`before_plan`]), the same is done for its deployment at once, and the number of the plan is raised above
//! what its agents have applied, because they refuse older ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use stolos_api::director::UnknownMachine;
use stolos_base::ids::{AgentId, FlowId, InstanceId};
use stolos_base::task;
use stolos_manifest::PersistentDisk;
use stolos_mbus::Transport;
use stolos_mbus::client::{Event, events};
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::state::AgentState;
use stolos_store::lease::{self, Acquired};
use stolos_store::restored;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::db::adoption::{self, Adopted, AdoptedDisk, NewInstance, Outcome};
use crate::db::deployments;
use crate::db::inventory::{self, DiskRow, InstanceRow};
use crate::error::Result;
use crate::machines::Calls;
use crate::plan::{MachineSpec, StemcellRef};

/// How often those who were heard of and not placed are looked at.
const TICK: Duration = Duration::from_secs(1);
/// An agent that could not be placed is looked at again this much later.
const AGAIN: Duration = Duration::from_secs(30);
/// How long an agent may take to say what it is. It has just sent a heartbeat.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one may take before a plan that nobody repairs anything with: it is asked for a number only.
const PLAN_PATIENCE: Duration = Duration::from_secs(2);
/// Agents asked at once.
const ASKED_AT_ONCE: usize = 32;
/// After so long every agent that lives has been heard of: the Go agent's interval is 30 s.
const HEARD_ALL: Duration = Duration::from_secs(35);
/// An agent that was silent for so long has no machine any more, or will be heard of again: three of the Go agent's intervals.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// The pause before heartbeats are subscribed to again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The lease of the one process that adopts without being asked.
const LEASE: &str = "adopt";
const LEASE_TIME: Duration = Duration::from_secs(30);

/// What was heard of agents.
#[derive(Debug)]
pub(crate) struct Adoption {
    began: Instant,
    heard: Mutex<HashMap<AgentId, Heard>>,
    unknown: Mutex<BTreeMap<AgentId, UnknownMachine>>,
    /// Deployments whose agents were all asked for the number of their plan.
    asked: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Debug)]
struct Heard {
    deployment: String,
    job: Option<String>,
    instance: String,
    at: Instant,
    /// When to look; `None` for those that are known.
    look_at: Option<Instant>,
}

impl Default for Adoption {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            heard: Mutex::default(),
            unknown: Mutex::default(),
            asked: Mutex::default(),
        }
    }
}

impl Adoption {
    /// Machines that nobody knows.
    pub(crate) fn unknown(&self) -> Vec<UnknownMachine> {
        lock(&self.unknown).values().cloned().collect()
    }

    fn hear(&self, agent: AgentId, deployment: String, job: Option<String>, instance: String) {
        // A machine that was not configured yet has a row: it comes before the machine.
        if deployment.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut heard = lock(&self.heard);
        let one = heard.entry(agent).or_insert_with(|| Heard {
            deployment: String::new(),
            job: None,
            instance: String::new(),
            at: now,
            look_at: Some(now),
        });
        one.at = now;
        one.deployment = deployment;
        one.job = job;
        one.instance = instance;
    }

    fn silent(&self, agent: AgentId) {
        lock(&self.heard).remove(&agent);
        lock(&self.unknown).remove(&agent);
    }

    /// Forgets those that are silent.
    fn forget(&self) {
        let now = Instant::now();
        let mut heard = lock(&self.heard);
        heard.retain(|_, one| now.duration_since(one.at) < FORGOTTEN);
        lock(&self.unknown).retain(|agent, _| heard.contains_key(agent));
    }

    /// Those that are to be looked at now: of one deployment, or all.
    fn due(&self, deployment: Option<&str>) -> Vec<(AgentId, Heard)> {
        let now = Instant::now();
        lock(&self.heard)
            .iter()
            .filter(|(_, one)| match deployment {
                Some(name) => one.deployment == name && one.look_at.is_some(),
                None => one.look_at.is_some_and(|at| at <= now),
            })
            .map(|(agent, one)| (*agent, one.clone()))
            .collect()
    }

    fn known(&self, agent: AgentId) {
        if let Some(one) = lock(&self.heard).get_mut(&agent) {
            one.look_at = None;
        }
        lock(&self.unknown).remove(&agent);
    }

    fn later(&self, agent: AgentId) {
        if let Some(one) = lock(&self.heard).get_mut(&agent) {
            one.look_at = Some(Instant::now() + AGAIN);
        }
    }

    /// True when that is news.
    fn report(&self, agent: AgentId, heard: &Heard, cid: &str, reason: &str) -> bool {
        self.later(agent);
        let machine = UnknownMachine {
            agent_id: agent.to_string(),
            vm_cid: Some(cid.to_owned()).filter(|cid| !cid.is_empty()),
            deployment: heard.deployment.clone(),
            job: heard.job.clone(),
            id: heard.instance.clone(),
            reason: reason.to_owned(),
        };
        let before = lock(&self.unknown).insert(agent, machine.clone());
        let is_news = before.as_ref() != Some(&machine);
        if is_news {
            tracing::warn!(
                %agent, vm = machine.vm_cid, deployment = machine.deployment, instance = machine.id, reason = machine.reason,
                "a machine that the database does not know; it is left alone"
            );
        }
        is_news
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts listening and looking; ends with `stop`.
pub(crate) fn start(app: Arc<App>, monitor: Arc<dyn Transport>, stop: CancellationToken) {
    let (listener, over) = (app.clone(), stop.clone());
    task::spawn(task::Kind::Service, "hearing of machines", async move {
        loop {
            tokio::select! {
                () = over.cancelled() => return Ok::<(), Infallible>(()),
                () = listen(&listener.adoption, &*monitor) => {}
            }
            tokio::select! {
                () = over.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    });
    task::spawn(task::Kind::Service, "adoption of machines", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), Infallible>(()),
                () = tokio::time::sleep(TICK) => {}
            }
            if let Err(error) = look(&app).await {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to look at machines that were heard of; trying again");
            }
        }
    });
}

async fn listen(adoption: &Adoption, monitor: &dyn Transport) {
    let mut events = match events(monitor).await {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(error = %stolos_base::chain(&error), "failed to listen to heartbeats; trying again");
            return;
        }
    };
    while let Some(event) = events.next().await {
        match event {
            Event::Heartbeat(agent, beat) => adoption.hear(agent, beat.deployment, beat.job, beat.node_id),
            Event::Shutdown(agent) => adoption.silent(agent),
            Event::Alert(..) => {}
        }
    }
}

/// Looks once at everybody who is due.
async fn look(app: &App) -> Result<()> {
    app.adoption.forget();
    let mut due = Vec::new();
    for (agent, heard) in app.adoption.due(None) {
        // Nearly always: no need for the lease, nor for asking anybody.
        match adoption::recorded(&app.db, agent).await? {
            Some(recorded) if recorded.cid.is_some() => app.adoption.known(agent),
            _ => due.push((agent, heard)),
        }
    }
    if due.is_empty() {
        return Ok(());
    }
    let mut tx = app.db.begin_background("take the lease of adoption").await?;
    let lease = lease::acquire(&mut tx, LEASE, &app.config.holder, LEASE_TIME).await?;
    tx.commit().await?;
    let Acquired::Yes(lease) = lease else {
        // Another member does it, and the rows will say so.
        for (agent, _) in due {
            app.adoption.later(agent);
        }
        return Ok(());
    };
    let placed = async {
        for (agent, heard) in due {
            if adoption::is_busy(&app.db, &heard.deployment).await? {
                app.adoption.later(agent);
                continue;
            }
            place(app, agent, &heard, Asker::Nobody).await?;
        }
        Ok(())
    };
    let placed = placed.await;
    let mut tx = app.db.begin_background("give the lease of adoption back").await?;
    lease::release(&mut tx, &lease.fence).await?;
    tx.commit().await?;
    placed
}

/// Before a plan: every machine of the deployment that was heard of has its row, and the number of the plan will be above what its
/// agents have applied.
///
/// After a restore this waits until every agent that lives must have been heard of, when a recorded machine is gone: to make a machine
/// anew that was made anew long ago would make it twice.
pub(crate) async fn before_plan(app: &App, deployment: &str) -> Result<()> {
    settle(app, deployment).await?;
    if lock(&app.adoption.asked).contains(deployment) {
        return Ok(());
    }
    let mut answers = ask(app, deployment).await?;
    if answers.silent && restored::last(&app.db).await?.is_some() {
        let left = HEARD_ALL.saturating_sub(app.adoption.began.elapsed());
        if !left.is_zero() {
            tracing::info!(deployment, wait = ?left, "a recorded machine is gone; waiting for what took its place to be heard of");
            tokio::time::sleep(left).await;
        }
        settle(app, deployment).await?;
        answers = ask(app, deployment).await?;
    }
    if let Some(generation) = answers.generation {
        adoption::raise(&app.db, deployment, generation).await?;
    }
    if answers.all {
        lock(&app.adoption.asked).insert(deployment.to_owned());
    }
    Ok(())
}

/// Places everybody of a deployment who was heard of.
async fn settle(app: &App, deployment: &str) -> Result<()> {
    for (agent, heard) in app.adoption.due(Some(deployment)) {
        match adoption::recorded(&app.db, agent).await? {
            Some(recorded) if recorded.cid.is_some() => app.adoption.known(agent),
            _ => place(app, agent, &heard, Asker::Plan).await?,
        }
    }
    Ok(())
}

struct Answers {
    /// The greatest number of a plan that an agent has applied.
    generation: Option<u64>,
    /// Whether all have answered.
    all: bool,
    /// Whether one did not answer whose machine the infrastructure no longer has.
    silent: bool,
}

async fn ask(app: &App, deployment: &str) -> Result<Answers> {
    let instances = inventory::instances(&app.db, deployment).await?;
    let machines: Vec<(AgentId, String, String)> = instances
        .iter()
        .filter_map(|instance| {
            let (vm, cid) = instance.machine()?;
            Some((vm.agent, cid.to_owned(), instance.name()))
        })
        .collect();
    let bus = app.bus.clone();
    let asked: Vec<(String, Option<AgentState>)> = stream::iter(machines)
        .map(|(agent, cid, name)| {
            let client = bus.agent(agent, name).with_timeout(PLAN_PATIENCE);
            async move { (cid, client.get_state().await.ok()) }
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    let mut answers = Answers {
        generation: None,
        all: true,
        silent: false,
    };
    for (cid, state) in asked {
        match state {
            Some(state) => answers.generation = answers.generation.max(state.spec.generation),
            None => {
                answers.all = false;
                answers.silent |= !calls(app).has_vm(&cid).await?;
            }
        }
    }
    Ok(answers)
}

/// Calls that belong to no flow.
fn calls(app: &App) -> Calls<'_> {
    app.machines.of(FlowId::from(uuid::Uuid::nil()))
}

/// Finds out who an agent is whose row is missing or does not know its machine, and writes what is certain.
async fn place(app: &App, agent: AgentId, heard: &Heard, asker: Asker) -> Result<()> {
    let adoption = &app.adoption;
    let name = format!("{}/{}", heard.job.as_deref().unwrap_or("?"), heard.instance);
    let state = match app
        .bus
        .agent(agent, name)
        .with_timeout(PATIENCE)
        .get_state()
        .await
    {
        Ok(state) => state,
        Err(error) => {
            tracing::debug!(%agent, error = %stolos_base::chain(&error), "an agent that nobody knows does not say what it is");
            adoption.later(agent);
            return Ok(());
        }
    };
    let cid = state.vm.name.clone();
    if deployments::find(&app.db, &heard.deployment).await?.is_none() {
        let reason = format!("its deployment `{}` is not known", heard.deployment);
        return unknown(app, agent, heard, &cid, &reason).await;
    }
    let found = Found {
        agent,
        heard,
        state: &state,
    };
    match judge(app, &found, asker).await? {
        Verdict::Later => adoption.later(agent),
        Verdict::Adopted(text) => {
            adoption.known(agent);
            tracing::warn!(%agent, vm = cid, deployment = heard.deployment, instance = heard.instance, "adopted a machine that is newer than the database: {text}");
        }
        Verdict::Unknown(reason) => unknown(app, agent, heard, &cid, &reason).await?,
    }
    Ok(())
}

/// Reports a machine; as an event, too, when that is news.
async fn unknown(app: &App, agent: AgentId, heard: &Heard, cid: &str, reason: &str) -> Result<()> {
    if app.adoption.report(agent, heard, cid, reason) {
        adoption::note_unknown(&app.db, cid, &heard.deployment, reason).await?;
    }
    Ok(())
}

/// For whom is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// Nobody: then no task may be working on the deployment.
    Nobody,
    /// The one task of the deployment, which has decided nothing yet.
    Plan,
}

/// A machine that was heard of.
struct Found<'a> {
    agent: AgentId,
    heard: &'a Heard,
    state: &'a AgentState,
}

enum Verdict {
    /// With what it replaced, for people.
    Adopted(String),
    /// Why not.
    Unknown(String),
    Later,
}

/// Adopts the machine, or says why that is not possible.
async fn judge(app: &App, found: &Found<'_>, asker: Asker) -> Result<Verdict> {
    let (agent, heard, state) = (found.agent, found.heard, found.state);
    let (spec, cid) = (&state.spec, state.vm.name.as_str());
    let instance: InstanceId = match spec.id.as_deref().unwrap_or(&heard.instance).parse() {
        Ok(id) if spec.deployment == heard.deployment => id,
        _ => {
            return Ok(Verdict::Unknown(
                "it does not say which instance it is".to_owned(),
            ));
        }
    };
    if cid.is_empty() || !calls(app).has_vm(cid).await? {
        return Ok(Verdict::Unknown(
            "the infrastructure does not know its machine".to_owned(),
        ));
    }
    let rows = inventory::instances(&app.db, &heard.deployment).await?;
    let Some(row) = rows.iter().find(|row| row.id == instance) else {
        return adopt_instance(app, found, instance, &rows, asker).await;
    };
    let mut gone = Vec::new();
    for vm in row.vms.iter().filter(|vm| vm.agent != agent) {
        if let Some(old) = &vm.cid {
            if calls(app).has_vm(old).await? {
                return Ok(Verdict::Unknown(format!(
                    "its instance has machine `{old}`, which exists, too"
                )));
            }
            gone.push((vm.agent, old.clone()));
        }
    }
    let recorded = row
        .vms
        .iter()
        .rev()
        .find(|vm| vm.agent == agent)
        .or(row.vms.last());
    let Some(made_as) = recorded
        .map(|vm| made_as(&vm.made_as, spec))
        .or_else(|| sibling(&rows, &row.group, spec))
    else {
        return Ok(Verdict::Unknown(format!(
            "its instance has no machine on record, and no other of group `{}` has one to compare it with",
            row.group
        )));
    };
    let disks = match disk(app, cid, row, spec).await? {
        Ok(disks) => disks,
        Err(reason) => return Ok(Verdict::Unknown(reason)),
    };
    let name = row.name();
    let adopted = Adopted {
        deployment: &heard.deployment,
        agent,
        cid,
        instance,
        new_instance: None,
        made_as: &made_as,
        gone: &gone,
        disk: disks.as_ref().map(|disk| disk.row(&name)),
        generation: spec.generation,
    };
    write(app, &adopted, asker).await
}

/// Adopts an instance that was made after the backup, with its machine.
async fn adopt_instance(
    app: &App,
    found: &Found<'_>,
    instance: InstanceId,
    rows: &[InstanceRow],
    asker: Asker,
) -> Result<Verdict> {
    let (spec, cid) = (&found.state.spec, found.state.vm.name.as_str());
    let (Some(group), Some(index)) = (
        spec.name.clone().or_else(|| found.heard.job.clone()),
        spec.index.and_then(|index| u32::try_from(index).ok()),
    ) else {
        return Ok(Verdict::Unknown(
            "it does not say which instance it is".to_owned(),
        ));
    };
    let Some(made_as) = sibling(rows, &group, spec) else {
        return Ok(Verdict::Unknown(format!(
            "its instance is not known, and no other of group `{group}` has a machine to compare it with"
        )));
    };
    let addresses: Vec<(String, IpAddr)> = spec
        .networks
        .iter()
        .filter_map(|(name, network)| {
            let network = serde_json::to_value(network).ok()?;
            Some((name.clone(), network["ip"].as_str()?.parse().ok()?))
        })
        .collect();
    let name = format!("{group}/{instance}");
    let disk = match attached(app, cid).await? {
        Some(disks) if disks.len() > 1 => {
            return Ok(Verdict::Unknown(format!(
                "it has several disks: {}",
                disks.join(", ")
            )));
        }
        Some(disks) => disks.into_iter().next().map(|cid| NewDisk {
            cid,
            made_as: disk_of(
                rows.iter()
                    .filter(|row| row.group == group)
                    .find_map(|row| row.disks.last()),
                spec,
            ),
            instead_of: None,
            is_gone: false,
            call_id: None,
        }),
        None => None,
    };
    let adopted = Adopted {
        deployment: &found.heard.deployment,
        agent: found.agent,
        cid,
        instance,
        new_instance: Some(NewInstance {
            group: &group,
            index,
            az: spec.az.as_deref(),
            // There is one among those that are known.
            bootstrap: false,
            addresses: &addresses,
        }),
        made_as: &made_as,
        gone: &[],
        disk: disk.as_ref().map(|disk| disk.row(&name)),
        generation: spec.generation,
    };
    write(app, &adopted, asker).await
}

async fn write(app: &App, adopted: &Adopted<'_>, asker: Asker) -> Result<Verdict> {
    let outcome = adoption::adopt(&app.db, adopted, asker == Asker::Plan).await?;
    let replaced: Vec<&str> = adopted.gone.iter().map(|(_, cid)| cid.as_str()).collect();
    Ok(match outcome {
        Outcome::Later => Verdict::Later,
        Outcome::AddressTaken(address) => {
            Verdict::Unknown(format!("its address {address} belongs to another instance"))
        }
        Outcome::Done if adopted.new_instance.is_some() => {
            Verdict::Adopted("its instance was not known either".to_owned())
        }
        Outcome::Done if replaced.is_empty() => {
            Verdict::Adopted("its instance had none on record".to_owned())
        }
        Outcome::Done => Verdict::Adopted(format!("it took the place of {}", replaced.join(", "))),
    })
}

/// What a machine was made as, as far as that can be known: as the one before it, of the stemcell that it says. Where that is not all, the
/// next deploy sees a difference and makes it anew, with its disk.
fn made_as(like: &MachineSpec, spec: &ApplySpec) -> MachineSpec {
    let said = spec.other.get("stemcell").cloned();
    let stemcell = said.and_then(|value| serde_json::from_value::<StemcellRef>(value).ok());
    let mut made_as = MachineSpec {
        stemcell: stemcell.unwrap_or_else(|| like.stemcell.clone()),
        ..like.clone()
    };
    for (name, network) in &mut made_as.networks {
        let said = spec
            .networks
            .get(name)
            .and_then(|one| serde_json::to_value(one).ok());
        if let Some(ip) = said.and_then(|said| said["ip"].as_str()?.parse().ok()) {
            network.ip = ip;
        }
    }
    made_as
}

/// The same by another machine of the group.
fn sibling(rows: &[InstanceRow], group: &str, spec: &ApplySpec) -> Option<MachineSpec> {
    let mut others = rows.iter().filter(|row| row.group == group);
    let like = others.find_map(|row| Some(&row.vms.last()?.made_as))?;
    let mut made = made_as(like, spec);
    made.az.clone_from(&spec.az);
    Some(made)
}

/// A disk that takes its place among the rows.
struct NewDisk {
    cid: String,
    made_as: PersistentDisk,
    instead_of: Option<String>,
    is_gone: bool,
    call_id: Option<String>,
}

impl NewDisk {
    fn row<'a>(&'a self, instance_name: &'a str) -> AdoptedDisk<'a> {
        AdoptedDisk {
            cid: &self.cid,
            instance_name,
            made_as: &self.made_as,
            instead_of: self.instead_of.as_deref(),
            is_gone: self.is_gone,
            call_id: self.call_id.as_deref(),
        }
    }
}

/// What a disk was made as: as another one, of the size that the agent was told.
fn disk_of(like: Option<&DiskRow>, spec: &ApplySpec) -> PersistentDisk {
    let size_mib = spec.persistent_disk;
    match like {
        Some(like) => PersistentDisk {
            size_mib,
            ..like.made_as.clone()
        },
        None => PersistentDisk {
            size_mib,
            kind: None,
            cloud_properties: serde_json::Value::Object(serde_json::Map::new()),
        },
    }
}

/// The disks of a machine, as far as the infrastructure can tell.
async fn attached(app: &App, cid: &str) -> Result<Option<Vec<String>>> {
    calls(app).disks_of(cid).await
}

/// The machine's disk, when that is another than the recorded one; the reason when it is not certain which one counts.
async fn disk(
    app: &App,
    cid: &str,
    row: &InstanceRow,
    spec: &ApplySpec,
) -> Result<std::result::Result<Option<NewDisk>, String>> {
    let Some(disks) = attached(app, cid).await? else {
        // The recorded one is attached again by the next deploy, or is what the machine has.
        return Ok(Ok(None));
    };
    let is_recorded = |cid: &String| row.disks.iter().any(|disk| disk.cid.as_ref() == Some(cid));
    let new: Vec<&String> = disks.iter().filter(|cid| !is_recorded(cid)).collect();
    let new = match new[..] {
        [] => return Ok(Ok(None)),
        [one] => one.clone(),
        _ => {
            let all: Vec<&str> = new.iter().map(|cid| cid.as_str()).collect();
            return Ok(Err(format!(
                "it has several disks that are not known: {}",
                all.join(", ")
            )));
        }
    };
    let active = row.disks.iter().find(|disk| disk.active && disk.cid.is_some());
    let intended: Option<&DiskRow> = row.disks.iter().find(|disk| disk.cid.is_none());
    let old = active.and_then(|disk| disk.cid.clone());
    let is_gone = match &old {
        // One that cannot say leaves an orphan, which is kept.
        Some(old) => calls(app).has_disk(old).await? == Some(false),
        None => false,
    };
    Ok(Ok(Some(NewDisk {
        cid: new,
        made_as: disk_of(intended.or(active), spec),
        instead_of: old,
        is_gone,
        call_id: intended.map(|disk| disk.call_id.clone()),
    })))
}
