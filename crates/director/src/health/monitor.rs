//! Listening, asking, and acting upon what the judge says.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stolos_api::director::{MachineProblem as Problem, TaskState};
use stolos_base::ids::{AgentId, FlowId, InstanceId};
use stolos_base::{chain, task};
use stolos_mbus::Transport;
use stolos_mbus::state::Alert;
use stolos_store::lease::{self, Acquired};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::alerts::{Arrived, Intake};
use super::judge::{Case, Death, Decision, Doubt, Judge, Probe, Witness, decide};
use super::metrics::{self, Metrics};
use super::switches::Switches;
use crate::app::App;
use crate::db::alerts::{self as counted, Origin};
use crate::db::health::{self as rows, EventRow, RepairRow, USER};
use crate::db::inventory::{self, InstanceRow};
use crate::db::tasks;
use crate::deps::{HostSign, Hosts, Resurrection};
use crate::error::Result;
use crate::flows::{self, Repair, SCAN_AND_FIX, Wish, deployment_lock};
use crate::plan::State;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(500);
/// Who counts as alive and was silent for a moment is asked whether it is: so many in each look. Fleets of up to some hundred machines are asked every two
/// seconds by that, larger ones less often, and thousands not before their heartbeats come anyway.
pub(super) const NUDGES: usize = 150;
/// How long such a one may take: it is only shown then, and asked again with more patience.
const NUDGE_PATIENCE: Duration = Duration::from_secs(1);
/// How long an agent may take at least, while its infrastructure is asked.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
/// How long an agent may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(3);
/// Machines that are asked at once: many, so that a storm is known as one before anybody is fenced.
const ASKED_AT_ONCE: usize = 256;
/// Who was heard in this time lives.
const FRESH_MILLIS: u64 = 5_000;
/// Pause after listening to the host failed.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The right to begin repairs. Taken when there is something to do, and held only for that.
const LEASE: &str = "health";
/// Long enough for what is done under it.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Repairs in this time count against one more.
const HOUR_MILLIS: i64 = 3600 * 1000;
/// A repair that failed is tried again after this time, twice as long after each further one.
const FIRST_RETRY_MILLIS: i64 = 20_000;
/// How often a failed repair is looked at.
const UNSETTLED_LOOK: Duration = Duration::from_secs(3);
/// A reason that stands so long is told.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// The monitor; a cheap handle.
#[derive(Clone)]
pub(crate) struct Health(Arc<Inner>);

struct Inner {
    rules: Resurrection,
    judge: Mutex<Judge>,
    /// Agents that were heard of and are not known yet.
    strangers: Mutex<BTreeMap<AgentId, Option<Instant>>>,
    alerts: Mutex<Intake>,
    problems: Mutex<Vec<Problem>>,
    metrics: Metrics,
    wake: Notify,
}

impl Health {
    pub(crate) fn new(rules: Resurrection) -> Self {
        Self(Arc::new(Inner {
            rules,
            judge: Mutex::new(Judge::new(rules)),
            strangers: Mutex::default(),
            alerts: Mutex::default(),
            problems: Mutex::default(),
            metrics: Metrics::new(),
            wake: Notify::new(),
        }))
    }

    /// The figures, as text for Prometheus.
    pub(crate) fn metrics(&self) -> std::result::Result<String, std::fmt::Error> {
        let (alive, suspect, dead) = self.judge().counts();
        let counts = [
            (metrics::State::Alive, alive),
            (metrics::State::Suspect, suspect),
            (metrics::State::Dead, dead),
        ];
        self.0.metrics.text(counts)
    }

    /// Whether the machine was heard so lately that it need not be asked.
    pub(crate) fn is_fresh(&self, agent: AgentId) -> bool {
        self.judge().is_fresh(agent, FRESH_MILLIS)
    }

    /// A heartbeat or an answer.
    pub(crate) fn heard(&self, agent: AgentId) {
        let mut judge = self.judge();
        if judge.knows(agent) {
            if judge.hear(agent) {
                tracing::info!(%agent, "a suspect lives");
                drop(judge);
                self.0.wake.notify_one();
            }
            return;
        }
        drop(judge);
        if let Entry::Vacant(entry) = lock(&self.0.strangers).entry(agent) {
            entry.insert(None);
            self.0.wake.notify_one();
        }
    }

    /// It says that its machine goes down.
    pub(crate) fn goes_down(&self, agent: AgentId) {
        self.judge().alarm(agent, "it said that its machine goes down");
        self.0.wake.notify_one();
    }

    /// One of its processes is not well.
    pub(crate) fn alerted(&self, agent: AgentId, alert: &Alert) {
        lock(&self.0.alerts).add(Instant::now(), agent, alert);
        self.0.wake.notify_one();
    }

    /// Everything that is not well, the longest first.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        lock(&self.0.problems).clone()
    }

    /// Watches until `stop` fires.
    pub(crate) fn start(
        &self,
        app: Arc<App>,
        link: Arc<dyn Transport>,
        hosts: Option<Arc<dyn Hosts>>,
        stop: CancellationToken,
    ) {
        if let Some(hosts) = hosts {
            let (health, app, stop) = (self.clone(), app.clone(), stop.clone());
            task::spawn(task::Kind::Service, "signs of hosts", async move {
                tokio::select! {
                    () = health.listen_to_hosts(&app, &*hosts) => {}
                    () = stop.cancelled() => {}
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }
        let health = self.clone();
        task::spawn(task::Kind::Service, "health of machines", async move {
            tokio::select! {
                () = health.watch(&app, &*link) => {}
                () = stop.cancelled() => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// A host sees a machine's end before anybody misses its heartbeat.
    async fn listen_to_hosts(&self, app: &Arc<App>, hosts: &dyn Hosts) {
        let mut after = None;
        loop {
            let signs = match hosts.signs(after).await {
                Ok((number, signs)) => {
                    after = Some(number);
                    signs
                }
                Err(failure) => {
                    tracing::debug!(error = %failure.source, "failed to listen to the host; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            };
            for (cid, sign) in signs {
                let why = match sign {
                    HostSign::Ended => "its host saw it end",
                    HostSign::Gone => "its host does not have it any more",
                };
                match rows::agent_of(&app.db, &cid).await {
                    Ok(Some(agent)) => {
                        self.judge().alarm(agent, why);
                        self.0.wake.notify_one();
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%cid, error = %chain(&error), "a host's sign was lost"),
                }
            }
        }
    }

    async fn watch(&self, app: &Arc<App>, link: &dyn Transport) {
        let mut work = Work {
            health: self.clone(),
            app: app.clone(),
            asking: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            reasons: HashMap::new(),
            unsettled: true,
            looked: None,
            nudged: None,
            known: false,
        };
        let state = link.link();
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.0.wake.notified() => {}
            }
            let listening = state.borrow().up;
            self.judge().pass(last.elapsed(), listening);
            last = Instant::now();
            if let Err(error) = work.pass().await {
                tracing::warn!(error = %chain(&error), "failed to look after machines; trying again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        lock(&self.0.judge)
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

/// What the watching task has for itself.
struct Work {
    health: Health,
    app: Arc<App>,
    asking: Arc<Semaphore>,
    /// Why a dead instance is not repaired: since when, and whether that was told.
    reasons: HashMap<InstanceId, Reason>,
    /// Whether a repair may go on, or may have failed.
    unsettled: bool,
    looked: Option<Instant>,
    /// When those who were silent for a moment were asked last.
    nudged: Option<Instant>,
    /// Whether those who should live were read once.
    known: bool,
}

struct Reason {
    text: String,
    since: Instant,
    told: bool,
}

/// A dead instance with what is known of it.
struct Patient {
    row: InstanceRow,
    deployment: String,
    agent: Option<AgentId>,
    death: Death,
    why: String,
    since: Duration,
}

impl Work {
    async fn pass(&mut self) -> Result<()> {
        if !self.known {
            for watched in rows::watched(&self.app.db, None).await? {
                self.health.judge().expect(watched.agent, &watched.deployment);
            }
            self.known = true;
        }
        self.meet_strangers().await?;
        self.tell_alerts().await?;
        // Whatever else wakes us: so many in so much time.
        if self.nudged.is_none_or(|at| at.elapsed() >= LOOK) {
            self.nudged = Some(Instant::now());
            let (quiet, epoch) = {
                let mut judge = self.health.judge();
                (judge.take_quiet(NUDGES), judge.epoch())
            };
            for agent in quiet {
                self.nudge(agent, epoch);
            }
        }
        let due = self.health.judge().take_due();
        for agent in due {
            self.ask(agent);
        }
        let calm = self.health.judge().is_calm();
        let look = self.unsettled && self.looked.is_none_or(|at| at.elapsed() > UNSETTLED_LOOK);
        if calm && !look {
            if !self.unsettled {
                lock(&self.health.0.problems).clear();
                self.reasons.clear();
            }
            return Ok(());
        }
        self.reconcile().await
    }

    /// Agents that were heard of for the first time.
    async fn meet_strangers(&self) -> Result<()> {
        // A machine that was just made is known once its making is done: from then on it is watched.
        const AGAIN: Duration = Duration::from_secs(2);
        const FORGOTTEN: Duration = Duration::from_secs(60);
        let asked: Vec<AgentId> = {
            let strangers = lock(&self.health.0.strangers);
            let due = |at: &Option<Instant>| at.is_none_or(|at| at.elapsed() > AGAIN);
            strangers
                .iter()
                .filter(|(_, at)| due(at))
                .map(|(agent, _)| *agent)
                .take(500)
                .collect()
        };
        if asked.is_empty() {
            return Ok(());
        }
        let known = rows::watched(&self.app.db, Some(&asked)).await?;
        let mut strangers = lock(&self.health.0.strangers);
        for agent in asked {
            // One of a machine that is being made, or of another installation's making; it will be heard of again.
            strangers.insert(agent, Some(Instant::now()));
        }
        strangers.retain(|_, at| at.is_none_or(|at| at.elapsed() < FORGOTTEN));
        let mut judge = self.health.judge();
        for watched in known {
            strangers.remove(&watched.agent);
            judge.expect(watched.agent, &watched.deployment);
            judge.hear(watched.agent);
        }
        Ok(())
    }

    /// Counts what agents said, and tells what is due.
    async fn tell_alerts(&self) -> Result<()> {
        let arrived = lock(&self.health.0.alerts).take(Instant::now());
        if arrived.is_empty() {
            return Ok(());
        }
        let counted = self.count_alerts(&arrived).await;
        if counted.is_err() {
            let mut intake = lock(&self.health.0.alerts);
            for (agent, arrived) in arrived {
                intake.give_back(Instant::now(), agent, arrived);
            }
        }
        counted
    }

    async fn count_alerts(&self, arrived: &[(AgentId, Arrived)]) -> Result<()> {
        let mut known = Vec::new();
        for (agent, arrived) in arrived {
            match inventory::of_agent(&self.app.db, *agent).await? {
                Some(place) => known.push((place, arrived)),
                None => {
                    tracing::debug!(%agent, subject = arrived.subject, "an alert of a machine that nobody knows")
                }
            }
        }
        if known.is_empty() {
            return Ok(());
        }
        let mut tx = self.app.db.begin_background("count alerts").await?;
        let mut told = Vec::new();
        for ((deployment, instance), arrived) in &known {
            let from = Origin { deployment, instance };
            told.extend(counted::note(&mut tx, &from, arrived).await?);
        }
        tx.commit().await?;
        for event in &told {
            self.log(event);
        }
        Ok(())
    }

    fn log(&self, event: &EventRow) {
        tracing::warn!(
            deployment = event.deployment,
            instance = event.instance,
            kind = event.object_name,
            "{}",
            event.message
        );
        self.health.0.metrics.alerted(&event.object_name);
    }

    async fn tell(&self, events: &[EventRow]) -> Result<()> {
        let mut tx = self.app.db.begin_background("tell of health").await?;
        for event in events {
            rows::insert_event(&mut tx, event).await?;
        }
        tx.commit().await?;
        for event in events {
            self.log(event);
        }
        Ok(())
    }

    /// Asks one that counts as alive.
    fn nudge(&self, agent: AgentId, epoch: u64) {
        let (health, app) = (self.health.clone(), self.app.clone());
        task::spawn(task::Kind::Job, format!("nudge {agent}"), async move {
            let client = app
                .bus
                .agent(agent, agent.to_string())
                .with_timeout(NUDGE_PATIENCE);
            match client.ping().await {
                Ok(()) => health.heard(agent),
                Err(error) => {
                    tracing::debug!(%agent, error = %chain(&error), "a machine does not answer");
                    health.judge().unmoved(agent, epoch);
                    health.0.wake.notify_one();
                }
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Asks a suspect and its infrastructure, beside everything else.
    fn ask(&self, agent: AgentId) {
        let (health, app, asking) = (self.health.clone(), self.app.clone(), self.asking.clone());
        task::spawn(task::Kind::Job, format!("ask {agent}"), async move {
            let _place = asking.acquire_owned().await;
            let client = app.bus.agent(agent, agent.to_string()).with_timeout(PATIENCE);
            let (witness, worth) = {
                let judge = health.judge();
                (judge.witness(agent), judge.is_worth_a_call(agent))
            };
            let mut answer = std::pin::pin!(client.ping());
            let exists = async {
                if worth {
                    believed(&app, agent, witness).await
                } else {
                    Ok(None)
                }
            };
            let (answered, exists) = tokio::join!(tokio::time::timeout(FIRST_PATIENCE, &mut answer), exists);
            let exists = exists.unwrap_or_else(|error| {
                tracing::info!(%agent, error = %chain(&error), "the infrastructure does not say whether a machine is there");
                None
            });
            let answered = match (answered, exists) {
                (Ok(answer), _) => answer.is_ok(),
                // Nobody answers from a machine that is not there.
                (Err(_), Some(false)) => false,
                (Err(_), _) => answer.await.is_ok(),
            };
            let probe = Probe { answered, exists };
            if health.judge().probed(agent, probe) {
                tracing::info!(%agent, "a suspect answers");
            }
            health.0.wake.notify_one();
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Looks at everybody in doubt and at repairs that go on, acts, and says how things stand.
    async fn reconcile(&mut self) -> Result<()> {
        let doubts = self.health.judge().doubts();
        let agents: Vec<AgentId> = doubts.iter().map(|doubt| doubt.agent).collect();
        let mut watched = BTreeSet::new();
        for some in agents.chunks(500) {
            watched.extend(
                rows::watched(&self.app.db, Some(some))
                    .await?
                    .into_iter()
                    .map(|one| one.agent),
            );
        }
        let now = self.app.db.clock().now_millis();
        let repairs = rows::repairs_since(&self.app.db, now - HOUR_MILLIS).await?;
        self.looked = Some(Instant::now());
        self.unsettled = false;
        let mut deployments: BTreeMap<String, Vec<InstanceRow>> = BTreeMap::new();
        let names = doubts
            .iter()
            .filter(|doubt| watched.contains(&doubt.agent))
            .map(|doubt| doubt.deployment.to_string())
            .chain(repairs.iter().map(|repair| repair.deployment.clone()));
        for name in names.collect::<BTreeSet<_>>() {
            let instances = inventory::instances(&self.app.db, &name).await?;
            deployments.insert(name, instances);
        }
        let mut problems = Vec::new();
        let mut patients: Vec<Patient> = Vec::new();
        for doubt in doubts {
            let row = deployments
                .get(&*doubt.deployment)
                .filter(|_| watched.contains(&doubt.agent))
                .and_then(|instances| of_agent(instances, doubt.agent));
            let Some(row) = row else {
                // Deleted on purpose, or made anew.
                self.health.judge().forget(doubt.agent);
                continue;
            };
            match doubt.death {
                None => problems.push(problem(&doubt, row)),
                Some(death) => {
                    self.health.judge().count(doubt.agent);
                    patients.push(Patient {
                        row: row.clone(),
                        deployment: doubt.deployment.to_string(),
                        agent: Some(doubt.agent),
                        death,
                        why: doubt.why,
                        since: doubt.since,
                    });
                }
            }
        }
        patients.extend(self.half_repaired(&repairs, &deployments, &patients));
        // Those whose old machines are gone and whose new ones are not there yet.
        for repair in repairs.iter().filter(|repair| !repair.state.is_final()) {
            let known = patients.iter().any(|patient| patient.row.id == repair.instance);
            let row = deployments
                .get(&repair.deployment)
                .and_then(|instances| instances.iter().find(|row| row.id == repair.instance));
            if let Some(row) = row.filter(|_| !known) {
                problems.push(in_repair(repair, row, now));
            }
        }
        let acted = self
            .treat(patients, &repairs, &deployments, &mut problems, now)
            .await;
        *lock(&self.health.0.problems) = problems;
        acted
    }

    /// Instances whose repair failed in the middle: they may have no machine that anybody would miss.
    fn half_repaired(
        &mut self,
        repairs: &[RepairRow],
        deployments: &BTreeMap<String, Vec<InstanceRow>>,
        known: &[Patient],
    ) -> Vec<Patient> {
        let mut last: BTreeMap<InstanceId, &RepairRow> = BTreeMap::new();
        for repair in repairs {
            last.insert(repair.instance, repair);
        }
        let mut found = Vec::new();
        for (instance, repair) in last {
            if !repair.state.is_final() {
                self.unsettled = true;
                continue;
            }
            let row = deployments
                .get(&repair.deployment)
                .and_then(|instances| instances.iter().find(|row| row.id == instance));
            let Some(row) = row.filter(|row| row.state == State::Started && !row.ignored) else {
                continue;
            };
            let whole = row.update_completed && row.machine().is_some_and(|(vm, _)| vm.ready);
            if whole || known.iter().any(|patient| patient.row.id == instance) {
                continue;
            }
            self.unsettled = true;
            found.push(Patient {
                row: row.clone(),
                deployment: repair.deployment.clone(),
                agent: row.machine().map(|(vm, _)| vm.agent),
                death: Death::Gone,
                why: format!("its repair by task {} did not come to its end", repair.task),
                since: Duration::ZERO,
            });
        }
        found
    }

    /// Decides about the dead, and begins the repairs that may be.
    async fn treat(
        &mut self,
        patients: Vec<Patient>,
        repairs: &[RepairRow],
        deployments: &BTreeMap<String, Vec<InstanceRow>>,
        problems: &mut Vec<Problem>,
        now: i64,
    ) -> Result<()> {
        let running: BTreeMap<InstanceId, i64> = repairs
            .iter()
            .filter(|repair| !repair.state.is_final())
            .map(|repair| (repair.instance, repair.task))
            .collect();
        let mut wanted: BTreeMap<String, BTreeMap<InstanceId, String>> = BTreeMap::new();
        let mut tell = Vec::new();
        let mut switches = None;
        let storms = self.health.judge().storms();
        self.reasons
            .retain(|instance, _| patients.iter().any(|patient| patient.row.id == *instance));
        for patient in patients {
            let (row, deployment) = (&patient.row, &patient.deployment);
            let mut shown = of_patient(&patient);
            if let Some(task) = running.get(&row.id) {
                shown.state = "repairing".to_owned();
                shown.task = Some(*task);
                problems.push(shown);
                self.unsettled = true;
                continue;
            }
            if switches.is_none() {
                switches = Some(Switches::read(&self.app.db).await?);
            }
            let enabled = switches
                .as_ref()
                .is_some_and(|switches| switches.are_on(deployment, &row.group));
            let others = deployments.get(deployment).map_or(&[][..], Vec::as_slice);
            let case = Case {
                enabled,
                busy: tasks::works_on(&self.app.db, deployment).await?,
                repairs: count(repairs, row.id),
                too_soon: too_soon(repairs, row.id, now),
                other_in_repair: others.iter().any(|other| {
                    other.group == row.group
                        && (running.contains_key(&other.id)
                            || wanted
                                .get(deployment)
                                .is_some_and(|these| these.contains_key(&other.id)))
                }),
                ..self.case(&patient, others)
            };
            let storm = storms.over(deployment);
            let waiting = match decide(&case, storm.as_ref(), &self.health.0.rules) {
                Decision::Repair => {
                    self.reasons.remove(&row.id);
                    wanted
                        .entry(deployment.clone())
                        .or_default()
                        .insert(row.id, patient.why.clone());
                    problems.push(shown);
                    continue;
                }
                Decision::Wait(why) => (why.to_owned(), false),
                Decision::Person(why) => (why, true),
            };
            tell.extend(self.reason(&patient, &waiting.0, waiting.1));
            shown.waiting_on = Some(waiting.0);
            problems.push(shown);
        }
        if !tell.is_empty() {
            self.tell(&tell).await?;
        }
        for (deployment, instances) in wanted {
            self.begin(&deployment, instances).await?;
        }
        Ok(())
    }

    fn case(&self, patient: &Patient, others: &[InstanceRow]) -> Case {
        let group: Vec<&InstanceRow> = others
            .iter()
            .filter(|other| other.group == patient.row.group && other.state == State::Started)
            .collect();
        let judge = self.health.judge();
        let alive = group
            .iter()
            .filter(|other| other.machine().is_some_and(|(vm, _)| judge.is_alive(vm.agent)))
            .count();
        Case {
            instance: patient.row.id,
            death: patient.death,
            enabled: true,
            busy: false,
            stateful: patient.row.disks.iter().any(|disk| disk.active),
            group: group.len(),
            alive,
            other_in_repair: false,
            repairs: 0,
            too_soon: false,
        }
    }

    /// Remembers why nothing is done, and tells it once it has stood for a while.
    fn reason(&mut self, patient: &Patient, text: &str, person: bool) -> Option<EventRow> {
        let reason = self.reasons.entry(patient.row.id).or_insert_with(|| Reason {
            text: text.to_owned(),
            since: Instant::now(),
            told: false,
        });
        if !same_kind(&reason.text, text) {
            *reason = Reason {
                text: text.to_owned(),
                since: Instant::now(),
                told: false,
            };
        }
        if !person || reason.told || reason.since.elapsed() < TELL_AFTER {
            return None;
        }
        reason.told = true;
        Some(EventRow {
            severity: 2,
            deployment: Some(patient.deployment.clone()),
            instance: Some(name(&patient.row)),
            message: format!("dead and not repaired: {}; {text}", patient.why),
            ..EventRow::alert("not repaired")
        })
    }

    /// Writes the repair's task, if nobody else does.
    async fn begin(&mut self, deployment: &str, instances: BTreeMap<InstanceId, String>) -> Result<()> {
        let app = &self.app;
        let mut tx = app.db.begin("begin a repair").await?;
        let Acquired::Yes(held) = lease::acquire(&mut tx, LEASE, &app.config.holder, LEASE_TTL).await? else {
            // Another member is about it; what it begins is seen next time.
            self.unsettled = true;
            return Ok(());
        };
        let whys: Vec<&str> = instances.values().map(String::as_str).collect();
        let why = whys.join("; ");
        let wish = Wish {
            id: FlowId::new(&app.ids),
            kind: SCAN_AND_FIX,
            description: "scan and fix".to_owned(),
            deployment: Some(deployment),
            user: USER,
            context: "",
            lock: Some(deployment_lock(deployment)),
            input: flows::RepairRequest {
                deployment: deployment.to_owned(),
                instances: instances.clone(),
            },
        };
        if tasks::works_on_in(&mut tx, deployment).await? {
            self.unsettled = true;
            return Ok(());
        }
        let task = flows::submit_in::<Repair>(app, &mut tx, wish).await?;
        rows::insert_repair(&mut tx, task, deployment, &instances).await?;
        let event = EventRow {
            severity: 1,
            task: Some(task),
            deployment: Some(deployment.to_owned()),
            instance: (instances.len() == 1)
                .then(|| instances.keys().next().map(ToString::to_string))
                .flatten(),
            message: format!("{} of its machines is made anew: {why}", instances.len()),
            ..EventRow::alert("repair")
        };
        rows::insert_event(&mut tx, &event).await?;
        let now = tx.now_millis();
        rows::forget_repairs(&mut tx, now - 24 * HOUR_MILLIS).await?;
        lease::release(&mut tx, &held.fence).await?;
        tx.commit().await?;
        self.health.0.metrics.alerted(&event.object_name);
        self.health.0.metrics.repair_begun();
        tracing::warn!(deployment, task, why, "a repair begins");
        flows::nudge(app);
        self.unsettled = true;
        self.looked = None;
        Ok(())
    }
}

/// Whether the infrastructure has an agent's machine. That it has not is believed only if it knows another one that lives.
async fn believed(app: &App, agent: AgentId, witness: Witness) -> Result<Option<bool>> {
    let exists = exists(app, agent).await?;
    if exists != Some(false) {
        return Ok(exists);
    }
    match witness {
        Witness::Nobody => Ok(exists),
        Witness::Lives(witness) if self::exists(app, witness).await? == Some(true) => Ok(exists),
        Witness::Lives(witness) => {
            tracing::warn!(%agent, %witness, "the infrastructure denies a machine that lives, and is not believed about another");
            Ok(None)
        }
        Witness::Unknown => Ok(None),
    }
}

/// Whether the infrastructure has an agent's machine; `None` when no row knows the machine.
async fn exists(app: &App, agent: AgentId) -> Result<Option<bool>> {
    let Some(cid) = inventory::cid_of(&app.db, agent).await? else {
        return Ok(None);
    };
    let flow = FlowId::new(&app.ids);
    app.machines.of(flow).has_vm(&cid).await.map(Some)
}

fn of_agent(instances: &[InstanceRow], agent: AgentId) -> Option<&InstanceRow> {
    instances
        .iter()
        .find(|row| row.machine().is_some_and(|(vm, _)| vm.agent == agent))
}

fn count(repairs: &[RepairRow], instance: InstanceId) -> u32 {
    let of = repairs
        .iter()
        .filter(|repair| repair.instance == instance)
        .count();
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// Whether an instance's last repair failed so short ago that another one would fail again. Those that succeeded are no reason to wait.
fn too_soon(repairs: &[RepairRow], instance: InstanceId, now: i64) -> bool {
    let failed = || {
        repairs
            .iter()
            .filter(|repair| repair.instance == instance && repair.state != TaskState::Done)
    };
    let pause = FIRST_RETRY_MILLIS << failed().count().saturating_sub(1).min(6);
    failed()
        .next_back()
        .is_some_and(|last| now - last.created_at < pause)
}

/// Reasons that differ in numbers only are one.
fn same_kind(one: &str, other: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(one) == words(other)
}

fn name(row: &InstanceRow) -> String {
    format!("{}/{}", row.group, row.id)
}

fn problem(doubt: &Doubt, row: &InstanceRow) -> Problem {
    Problem {
        deployment: doubt.deployment.to_string(),
        instance: format!("{}/{}", row.group, row.index),
        id: row.id.to_string(),
        agent_id: Some(doubt.agent.to_string()),
        cid: row.machine().map(|(_, cid)| cid.to_owned()),
        state: "suspect".to_owned(),
        since: doubt.since.as_secs(),
        why: doubt.why.clone(),
        waiting_on: None,
        next: None,
        task: None,
    }
}

fn in_repair(repair: &RepairRow, row: &InstanceRow, now: i64) -> Problem {
    Problem {
        deployment: repair.deployment.clone(),
        instance: format!("{}/{}", row.group, row.index),
        id: row.id.to_string(),
        agent_id: None,
        cid: None,
        state: "repairing".to_owned(),
        since: u64::try_from((now - repair.created_at) / 1000).unwrap_or(0),
        why: repair.why.clone(),
        waiting_on: None,
        next: None,
        task: Some(repair.task),
    }
}

fn of_patient(patient: &Patient) -> Problem {
    Problem {
        deployment: patient.deployment.clone(),
        instance: format!("{}/{}", patient.row.group, patient.row.index),
        id: patient.row.id.to_string(),
        agent_id: patient.agent.map(|agent| agent.to_string()),
        cid: patient.row.machine().map(|(_, cid)| cid.to_owned()),
        state: "dead".to_owned(),
        since: patient.since.as_secs(),
        why: patient.why.clone(),
        waiting_on: None,
        next: None,
        task: None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
