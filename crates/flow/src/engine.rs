//! The executor of a service's flows: takes them up, keeps their leases, and is the handle that everybody else uses.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use stolos_base::ids::FlowId;
use stolos_base::{Clock, IdSource, task};
use stolos_store::lease::{self, Acquired};
use stolos_store::{Db, Fence, Signal, Signals, Tx};
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::panic_text;
use crate::error::{Error, Result};
use crate::event::{Event, EventKind, Observer};
use crate::faults::Faults;
use crate::journal::{self, NewRow};
use crate::kind::{AnyKind, Change, FlowInfo, FlowState, Kind};
use crate::live::Live;
use crate::run::{self, RunEnd};
use crate::view::{self, Filter, FlowSummary, FlowView};

/// How long a flow belongs to a process that gives no sign of life, unless said otherwise. Together with [`POLL`] it says when others
/// go on with the flows of a dead process; a living one that is silent for so long (a frozen machine) is shut out.
const LEASE: Duration = Duration::from_secs(6);
/// A living process says so this many times while a lease lasts, so that one late or lost renewal does no harm.
const RENEWALS: u32 = 3;
/// How often the executor looks for what other processes have submitted or left; its own are told at once, and of cancels others
/// signal.
const POLL: Duration = Duration::from_secs(1);
/// How long who waits for news of a flow does not look: signals of other processes may get lost.
const UNHEARD: Duration = Duration::from_secs(2);
/// Flows looked at in one go beyond twice those that may run (ours that run are among them).
const MARGIN: usize = 100;
/// Events that a slow subscriber may be behind before it misses some.
const BACKLOG: usize = 4096;
/// Flows that run at once unless said otherwise.
const MAX_RUNNING: usize = 256;
/// The signal to executors of other processes: somebody asked to cancel a flow.
const CANCEL: &str = "cancel";

/// Puts an executor together.
pub struct Builder {
    db: Db,
    holder: String,
    ids: IdSource,
    kinds: HashMap<&'static str, Arc<dyn AnyKind>>,
    others: Vec<&'static str>,
    observers: Vec<Arc<dyn Observer>>,
    max_running: usize,
    lease: Duration,
    faults: Faults,
}

impl Builder {
    /// Adds a kind of flow. Flows of kinds that are not added stay untouched.
    #[must_use]
    pub fn kind<K: Kind>(mut self, kind: K) -> Self {
        self.kinds.insert(K::NAME, Arc::new(kind));
        self
    }

    /// Names a kind that another executor of the same database runs: its flows are none of this one's business.
    #[must_use]
    pub fn other_kind<K: Kind>(mut self) -> Self {
        self.others.push(K::NAME);
        self
    }

    /// Adds someone to be told of every event.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Where the ids of flows come from.
    #[must_use]
    pub fn ids(mut self, ids: IdSource) -> Self {
        self.ids = ids;
        self
    }

    /// How many flows run at once; others wait in the order of their submission.
    #[must_use]
    pub fn max_running(mut self, max_running: usize) -> Self {
        self.max_running = max_running.max(1);
        self
    }

    /// How long a flow belongs to a process that gives no sign of life, when several run flows of the same database;
    /// 6 s unless said.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// For tests: what goes wrong.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Starts the executor. Flows that an earlier life left are taken up at once. Needs a Tokio runtime.
    #[must_use]
    pub fn start(self) -> Flows {
        let sink = Sink {
            clock: self.db.clock().clone(),
            observers: self.observers,
            events: broadcast::channel(BACKLOG).0,
        };
        let inner = Arc::new(Inner {
            db: self.db,
            holder: self.holder,
            ids: self.ids,
            kinds: self.kinds,
            others: self.others,
            sink: Arc::new(sink),
            max_running: self.max_running,
            lease: self.lease,
            faults: self.faults,
            stop: CancellationToken::new(),
            crashed: CancellationToken::new(),
            nudge: Notify::new(),
            running: Mutex::default(),
            runs: TaskTracker::new(),
        });
        let executor = inner.runs.track_future({
            let inner = inner.clone();
            async move {
                execute(inner).await;
                Ok::<(), std::convert::Infallible>(())
            }
        });
        task::spawn(task::Kind::Service, "flows", executor);
        let keeper = inner.runs.track_future({
            let inner = inner.clone();
            async move {
                keep(&inner).await;
                Ok::<(), std::convert::Infallible>(())
            }
        });
        task::spawn(task::Kind::Service, "leases of flows", keeper);
        Flows { inner }
    }
}

/// Where events go.
pub(crate) struct Sink {
    clock: Clock,
    observers: Vec<Arc<dyn Observer>>,
    events: broadcast::Sender<Event>,
}

impl Sink {
    pub(crate) fn emit(&self, flow: &FlowInfo, what: EventKind) {
        let event = Event {
            flow: flow.id,
            kind: flow.kind.clone(),
            subject: flow.subject.clone(),
            at: self.clock.now_millis(),
            what,
        };
        for observer in &self.observers {
            observer.on(&event);
        }
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

pub(crate) struct Inner {
    pub(crate) db: Db,
    holder: String,
    ids: IdSource,
    kinds: HashMap<&'static str, Arc<dyn AnyKind>>,
    /// Kinds of another executor.
    others: Vec<&'static str>,
    sink: Arc<Sink>,
    max_running: usize,
    lease: Duration,
    pub(crate) faults: Faults,
    /// The process is to end in order.
    pub(crate) stop: CancellationToken,
    /// A test has "killed" the process.
    crashed: CancellationToken,
    nudge: Notify,
    running: Mutex<HashMap<FlowId, Running>>,
    /// The executor, its runs and their steps.
    pub(crate) runs: TaskTracker,
}

struct Running {
    cancel: CancellationToken,
    /// Absent while the flow is being taken.
    run: Option<Taking>,
}

/// What belongs to a flow that was taken.
struct Taking {
    live: Arc<Live>,
    fence: Fence,
    /// Ends the run at once: somebody else has the flow.
    lost: CancellationToken,
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, HashMap<FlowId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flow to be submitted.
#[derive(Clone, Debug)]
pub struct NewFlow {
    id: Option<FlowId>,
    kind: &'static str,
    subject: String,
    lock: Option<String>,
    input: std::result::Result<String, Arc<serde_json::Error>>,
}

impl NewFlow {
    /// A flow of a kind, about something (a name or id that lists can be filtered by).
    #[must_use]
    pub fn new<K: Kind>(subject: impl Into<String>, input: &K::Input) -> Self {
        Self {
            id: None,
            kind: K::NAME,
            subject: subject.into(),
            lock: None,
            input: serde_json::to_string(input).map_err(Arc::new),
        }
    }

    /// An id chosen by the caller (one that its own rows refer to); submitting it twice is a conflict.
    #[must_use]
    pub fn id(mut self, id: FlowId) -> Self {
        self.id = Some(id);
        self
    }

    /// Of all unfinished flows with the same key, of whatever kind, only the one submitted first runs.
    #[must_use]
    pub fn lock(mut self, key: impl Into<String>) -> Self {
        self.lock = Some(key.into());
        self
    }
}

/// The flows of one service in this process. Cheap to clone; the executor runs until [`Flows::stop`].
#[derive(Clone)]
pub struct Flows {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flows")
            .field("db", &self.inner.db)
            .field("holder", &self.inner.holder)
            .finish_non_exhaustive()
    }
}

impl Flows {
    /// Begins to put an executor together. `holder` names this process among those that run flows of this database: the
    /// same name after each restart of one that is alone (it then takes up at once what it left), different names for
    /// processes that run side by side. One executor per name and database. The schema of `db` must have [`crate::TABLES`].
    #[must_use]
    pub fn builder(db: Db, holder: impl Into<String>) -> Builder {
        Builder {
            db,
            holder: holder.into(),
            ids: IdSource::random(),
            kinds: HashMap::new(),
            others: Vec::new(),
            observers: Vec::new(),
            max_running: MAX_RUNNING,
            lease: LEASE,
            faults: Faults::default(),
        }
    }

    /// Submits a flow and has it taken up at once.
    ///
    /// # Errors
    /// Those of the database, and a kind that was not added.
    pub async fn submit<K: Kind>(&self, subject: impl Into<String>, input: &K::Input) -> Result<FlowId> {
        self.submit_new(NewFlow::new::<K>(subject, input)).await
    }

    /// The same with an id or a lock.
    ///
    /// # Errors
    /// Those of the database, a taken id, and a kind that was not added.
    pub async fn submit_new(&self, new: NewFlow) -> Result<FlowId> {
        let mut tx = self.inner.db.begin("submit a flow").await?;
        let id = self.submit_in(&mut tx, new).await?;
        tx.commit().await?;
        self.nudge();
        Ok(id)
    }

    /// Submits a flow in the caller's transaction, together with what the caller writes about it. Call
    /// [`Flows::nudge`] after the commit.
    ///
    /// # Errors
    /// Those of the database, a taken id, and a kind that was not added.
    pub async fn submit_in(&self, tx: &mut Tx, new: NewFlow) -> Result<FlowId> {
        if !self.inner.kinds.contains_key(new.kind) {
            return Err(Error::UnknownKind(new.kind.to_owned()));
        }
        let id = new.id.unwrap_or_else(|| FlowId::new(&self.inner.ids));
        let input = new.input.map_err(|error| Error::Json {
            what: "the input",
            flow: id,
            source: <serde_json::Error as serde::ser::Error>::custom(error),
        })?;
        let row = NewRow {
            id,
            kind: new.kind,
            subject: &new.subject,
            lock: new.lock.as_deref(),
            input: &input,
        };
        journal::insert(tx, row).await?;
        Ok(id)
    }

    /// Has the executor look for new flows now.
    pub fn nudge(&self) {
        self.inner.nudge.notify_one();
    }

    /// Asks for the flow to be canceled. One that has not begun ends at once; a running one ends when its running steps
    /// have (see [`crate::Interrupt`]).
    ///
    /// # Errors
    /// When there is no such flow or it has ended, and those of the database.
    pub async fn cancel(&self, id: FlowId) -> Result<()> {
        let runs_here = self.inner.running().contains_key(&id);
        let mut tx = self.inner.db.begin("cancel a flow").await?;
        let state = journal::request_cancel(&mut tx, id).await?;
        if !runs_here {
            // Whoever runs it looks now, not at the next poll.
            tx.signal(CANCEL).await?;
        }
        if state.is_end() {
            return Err(Error::State {
                action: "cancel",
                flow: id,
                state,
            });
        }
        let mut ended = None;
        if state == FlowState::Pending && !runs_here {
            // Nobody works on it, unless somebody takes it right now: then they have the lease, and will see the request.
            let (info, _) = journal::current(&mut tx, id).await?;
            if let Some(kind) = self.inner.kinds.get(info.kind.as_str())
                && let Acquired::Yes(lease) = lease::acquire(
                    &mut tx,
                    &journal::lease_name(id),
                    &self.inner.holder,
                    self.inner.lease,
                )
                .await?
            {
                let change = Change {
                    flow: &info,
                    state: FlowState::Canceled,
                    failure: None,
                };
                kind.on_state(&mut tx, &change).await?;
                journal::end(&mut tx, &lease.fence, id, FlowState::Canceled, None).await?;
                ended = Some(info);
            }
        }
        tx.commit().await?;
        if let Some(info) = ended {
            let state = FlowState::Canceled;
            self.inner
                .sink
                .emit(&info, EventKind::FlowEnded { state, failure: None });
            // It may have been in the way of others.
            self.nudge();
        } else if let Some(running) = self.inner.running().get(&id) {
            running.cancel.cancel();
        }
        Ok(())
    }

    /// Tells a failed or canceled flow to go on: steps that are done stay done.
    ///
    /// # Errors
    /// When there is no such flow, it has not ended or has succeeded, and those of the database.
    pub async fn retry(&self, id: FlowId) -> Result<()> {
        let mut tx = self.inner.db.begin("tell a flow to go on").await?;
        self.retry_in(&mut tx, id).await?;
        tx.commit().await?;
        self.nudge();
        Ok(())
    }

    /// The same in the caller's transaction. Call [`Flows::nudge`] after the commit.
    ///
    /// # Errors
    /// As [`Flows::retry`].
    pub async fn retry_in(&self, tx: &mut Tx, id: FlowId) -> Result<()> {
        let (info, state) = journal::current(tx, id).await?;
        if !matches!(state, FlowState::Failed | FlowState::Canceled) {
            return Err(Error::State {
                action: "go on with",
                flow: id,
                state,
            });
        }
        let kind = self
            .inner
            .kinds
            .get(info.kind.as_str())
            .ok_or_else(|| Error::UnknownKind(info.kind.clone()))?;
        journal::revive(tx, id).await?;
        let change = Change {
            flow: &info,
            state: FlowState::Pending,
            failure: None,
        };
        Ok(kind.on_state(tx, &change).await?)
    }

    /// What the flow is doing, since when, and what it waits for.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn view(&self, id: FlowId) -> Result<Option<FlowView>> {
        Ok(self.views(&[id]).await?.pop())
    }

    /// The same for several, in no order; those that are not there are left out.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn views(&self, ids: &[FlowId]) -> Result<Vec<FlowView>> {
        let mut views = view::find(&self.inner.db, ids).await?;
        for view in &mut views {
            let id = view.summary.info.id;
            let live = self
                .inner
                .running()
                .get(&id)
                .and_then(|running| running.run.as_ref().map(|run| run.live.clone()));
            if let Some(live) = live {
                live.enrich(view);
            } else if view.state() == FlowState::Pending {
                let reason = match journal::blocker(&self.inner.db, id).await? {
                    Some((earlier, kind)) => format!("flow `{earlier}` ({kind})"),
                    None => "being taken up".to_owned(),
                };
                view.waiting_on.push(reason);
            }
        }
        Ok(views)
    }

    /// Flows without their steps, newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<FlowSummary>> {
        view::list(&self.inner.db, filter).await
    }

    /// Waits for the flow's end, whoever runs it.
    ///
    /// # Errors
    /// When there is no such flow, when this executor is stopped meanwhile, and those of the database.
    pub async fn wait(&self, id: FlowId) -> Result<FlowView> {
        let mut news = self.news(id);
        loop {
            let view = self.view(id).await?.ok_or(Error::NotFound(id))?;
            if view.state().is_end() {
                return Ok(view);
            }
            tokio::select! {
                () = news.next() => {}
                () = self.inner.stop.cancelled() => return Err(Error::Stopped),
                () = self.inner.crashed.cancelled() => return Err(Error::Stopped),
            }
        }
    }

    /// News of a flow from now on, whoever runs it: for those who look at [`Flows::view`] after each.
    #[must_use]
    pub fn news(&self, id: FlowId) -> News {
        News {
            id,
            word: journal::word(id),
            events: self.subscribe(),
            signals: self.inner.db.signals(),
        }
    }

    /// The right to act for a flow, while this process runs it.
    #[must_use]
    pub fn fence(&self, id: FlowId) -> Option<Fence> {
        let running = self.inner.running();
        running.get(&id)?.run.as_ref().map(|run| run.fence.clone())
    }

    /// The events of all flows that this process runs (other processes' are not among them), from now on. Who is too slow misses some (`Lagged`) and should
    /// look at [`Flows::view`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.sink.events.subscribe()
    }

    /// Deletes flows that ended before the given time (milliseconds since the Unix epoch), at most `limit`, and says
    /// how many.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn delete_ended(&self, before: i64, limit: u32) -> Result<u64> {
        self.delete_ended_named("", before, limit).await
    }

    /// The same for one kind, whose journals are nobody's business so long.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn delete_ended_of<K: Kind>(&self, before: i64, limit: u32) -> Result<u64> {
        self.delete_ended_named(K::NAME, before, limit).await
    }

    async fn delete_ended_named(&self, kind: &str, before: i64, limit: u32) -> Result<u64> {
        let mut tx = self.inner.db.begin("delete old flows").await?;
        let deleted = journal::delete_ended(&mut tx, kind, before, i64::from(limit)).await?;
        tx.commit().await?;
        Ok(deleted)
    }

    /// Stops running flows: running steps are told to return and get a moment, what is done is recorded, the rest goes on
    /// when flows are started the next time. Returns when nothing runs any more.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.runs.close();
        self.inner.runs.wait().await;
    }

    /// For tests: the process "dies" now. Nothing is recorded or given back; [`Flows::crashed`] says when nothing of it runs any more.
    pub fn die(&self) {
        self.inner.crashed.cancel();
    }

    /// For tests with [`Faults`]: ends when the executor has "died" and nothing of it runs any more.
    pub async fn crashed(&self) {
        self.inner.crashed.cancelled().await;
        self.inner.runs.close();
        self.inner.runs.wait().await;
    }
}

/// News of one flow; see [`Flows::news`].
#[derive(Debug)]
pub struct News {
    id: FlowId,
    word: String,
    events: broadcast::Receiver<Event>,
    signals: Signals,
}

impl News {
    /// Returns when something has happened in the flow since the last time, or may have.
    pub async fn next(&mut self) {
        let Self {
            id,
            word,
            events,
            signals,
        } = self;
        let here = async {
            // Too slow a listener, or the end of the executor, may be news too.
            while events.recv().await.is_ok_and(|event| event.flow != *id) {}
        };
        let elsewhere = async {
            loop {
                match signals.next().await {
                    Signal::Word(said) if *said != **word => {}
                    Signal::Word(_) | Signal::Missed => break,
                }
            }
        };
        tokio::select! {
            () = here => {}
            () = elsewhere => {}
            () = sleep(UNHEARD) => {}
        }
    }
}

/// The executor: takes up flows until it is stopped.
async fn execute(inner: Arc<Inner>) {
    let mut unknown = HashSet::new();
    let mut signals = inner.db.signals();
    let mut sight = Sight::default();
    loop {
        if inner.stop.is_cancelled() || inner.crashed.is_cancelled() {
            return;
        }
        let began = Instant::now();
        let round = async {
            if !inner.running().is_empty() {
                for id in journal::cancel_requests(&inner.db).await? {
                    if let Some(running) = inner.running().get(&id) {
                        running.cancel.cancel();
                    }
                }
            }
            let others = sight.may_judge(began, inner.lease);
            take_up(&inner, &mut unknown, others).await
        };
        match round.await {
            Ok(()) => sight.looked(Instant::now(), inner.lease),
            Err(error) => {
                sight.failed(Instant::now());
                tracing::warn!(error = %stolos_base::chain(&error), "failed to look for flows; trying again");
            }
        }
        let canceled = async {
            loop {
                match signals.next().await {
                    Signal::Word(word) if &*word != CANCEL => {}
                    Signal::Word(_) | Signal::Missed => break,
                }
            }
        };
        tokio::select! {
            () = inner.nudge.notified() => {}
            () = canceled => {}
            () = sleep(POLL.min(inner.lease / RENEWALS)) => {}
            () = inner.stop.cancelled() => {}
            () = inner.crashed.cancelled() => {}
        }
    }
}

/// Whether this process may judge by a lease that has run out that its holder is dead. After it was without the database, or frozen,
/// so may all others have been: they get a lease's time to say that they live, or an outage of the database would have all processes
/// take each other's flows.
#[derive(Default)]
struct Sight {
    last: Option<Instant>,
    troubled: Option<Instant>,
}

impl Sight {
    fn may_judge(&mut self, now: Instant, lease: Duration) -> bool {
        if self.last.is_some_and(|last| now.duration_since(last) > lease / 2) {
            self.troubled = Some(now);
        }
        self.troubled
            .is_none_or(|since| now.duration_since(since) >= lease)
    }

    fn looked(&mut self, now: Instant, lease: Duration) {
        // A round that took so long says nothing about now; the next one is judged by this one's beginning.
        if self.last.is_some_and(|last| now.duration_since(last) > lease / 2) {
            self.troubled = Some(now);
        }
        self.last = Some(now);
    }

    fn failed(&mut self, now: Instant) {
        self.troubled = Some(now);
        self.last = Some(now);
    }
}

/// Says again and again that this process lives. Apart from the executor, which may be busy with taking up hundreds of flows.
async fn keep(inner: &Arc<Inner>) {
    let pause = inner.lease / RENEWALS;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            // Running flows get a moment, in which they are still ours; they give their leases back themselves.
            () = ended(inner) => return,
            () = inner.crashed.cancelled() => return,
        }
        while !inner.running().is_empty() {
            match renew(inner).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(error = %stolos_base::chain(&error), "failed to renew leases; trying again");
                }
            }
            tokio::select! {
                () = sleep(pause / 4) => {}
                () = inner.crashed.cancelled() => return,
            }
        }
    }
}

/// The executor was told to stop and nothing runs any more.
async fn ended(inner: &Inner) {
    inner.stop.cancelled().await;
    while !inner.running().is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Says that this process lives, and ends the runs of flows that somebody else has taken meanwhile, so that no step goes
/// on beside its repetition by the other for longer than it has to.
async fn renew(inner: &Arc<Inner>) -> Result<()> {
    let held: Vec<(Fence, CancellationToken)> = inner
        .running()
        .values()
        .filter_map(|running| running.run.as_ref())
        .map(|run| (run.fence.clone(), run.lost.clone()))
        .collect();
    let (fences, lost): (Vec<Fence>, Vec<CancellationToken>) = held.into_iter().unzip();
    let mut tx = inner.db.begin("renew leases").await?;
    let taken = lease::renew_all(&mut tx, &fences, inner.lease).await?;
    tx.commit().await?;
    for (fence, lost) in fences.iter().zip(lost) {
        // Also one that ended just now, whose run has nothing left to do.
        if taken.contains(fence) {
            lost.cancel();
        }
    }
    Ok(())
}

/// `others`: whether leases of others that have run out may be taken.
async fn take_up(inner: &Arc<Inner>, unknown: &mut HashSet<FlowId>, others: bool) -> Result<()> {
    if inner.running().len() >= inner.max_running {
        return Ok(());
    }
    let limit = i64::try_from(inner.max_running * 2 + MARGIN).unwrap_or(i64::MAX);
    let found = journal::candidates(&inner.db, &inner.holder, &inner.others, others, limit).await?;
    for (id, kind) in found {
        let Some(kind) = inner.kinds.get(kind.as_str()) else {
            if unknown.insert(id) {
                tracing::error!(flow = %id, kind, "a flow waits for a program that knows its kind");
            }
            continue;
        };
        let cancel = CancellationToken::new();
        {
            let mut running = inner.running();
            if running.len() >= inner.max_running {
                return Ok(());
            }
            if running.contains_key(&id) {
                continue;
            }
            running.insert(
                id,
                Running {
                    cancel: cancel.clone(),
                    run: None,
                },
            );
        }
        match journal::take(&inner.db, id, &inner.holder, inner.lease).await {
            Ok(Some(taken)) => start(inner, kind.clone(), taken, cancel),
            Ok(None) => {
                inner.running().remove(&id);
            }
            Err(error) => {
                inner.running().remove(&id);
                return Err(error);
            }
        }
    }
    Ok(())
}

fn start(inner: &Arc<Inner>, kind: Arc<dyn AnyKind>, taken: journal::Taken, cancel: CancellationToken) {
    let id = taken.info.id;
    let name = format!("flow {} {id}", taken.info.kind);
    let live = Arc::new(Live::new(Arc::new(taken.info.clone()), inner.sink.clone()));
    let lost = CancellationToken::new();
    inner.running().insert(
        id,
        Running {
            cancel: cancel.clone(),
            run: Some(Taking {
                live: live.clone(),
                fence: taken.fence.clone(),
                lost: lost.clone(),
            }),
        },
    );
    let inner = inner.clone();
    let info = live.flow.clone();
    let run = inner.runs.track_future({
        let inner = inner.clone();
        async move {
            let crashed = inner.crashed.clone();
            let end = tokio::select! {
                end = AssertUnwindSafe(run::run(inner.clone(), kind, taken, live, cancel)).catch_unwind() => end,
                () = lost.cancelled() => Ok(RunEnd::LeaseLost),
                // One run "kills" the process: all others die with it, at whatever they do.
                () = crashed.cancelled() => Ok(RunEnd::Crashed),
            };
            inner.running().remove(&id);
            match end {
                Ok(RunEnd::Ended | RunEnd::Stopped) => inner.nudge.notify_one(),
                Ok(RunEnd::LeaseLost) => {
                    tracing::warn!(flow = %id, "the flow is somebody else's now");
                    inner.sink.emit(&info, EventKind::FlowLost);
                    inner.nudge.notify_one();
                }
                Ok(RunEnd::Crashed) => inner.crashed.cancel(),
                // A bug in `Kind::on_state` or an observer. The flow is taken up again at the next look, not at once.
                Err(panic) => {
                    tracing::error!(flow = %id, panic = panic_text(&*panic), "the run of a flow panicked");
                }
            }
            Ok::<(), std::convert::Infallible>(())
        }
    });
    task::spawn(task::Kind::Job, name, run);
}
