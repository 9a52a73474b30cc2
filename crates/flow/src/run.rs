//! One flow from its taking up to its end: which steps may begin, and the journal around them.
//!
//! A single task decides and writes; steps are tasks of their own that report to it. All that is decided at one moment
//! (steps that ended, steps that begin, the end of the flow) goes to the journal in one transaction.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use stolos_base::{Class, task};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::attempt::{self, StepEnd, panic_text};
use crate::context::{Outputs, StepContext, StepError};
use crate::engine::Inner;
use crate::error::Error;
use crate::event::EventKind;
use crate::faults::Crash;
use crate::graph::{Graph, OnFailure};
use crate::journal::{self, Entry, StepRow, Taken};
use crate::kind::{AnyKind, Change, Failure, FlowState};
use crate::live::{Live, LiveStep};
use crate::slots::{self, Slots};
use crate::view::StepState;

/// The first pause after a failed journal write or a graph that could not be made yet, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause: a database that is back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long it is tried to find out what a flow's steps are, before the flow fails with what was in the way. A database or service that is restarted is back
/// sooner; a flow holds its lock meanwhile.
const GRAPH_LIMIT: Duration = Duration::from_secs(1800);
/// How long running steps get when the process is to stop. They are repeatable, so this only saves work.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why a run ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// The flow has ended and the journal says so.
    Ended,
    /// Somebody else has the flow now.
    LeaseLost,
    /// The process stops; the flow goes on in the next.
    Stopped,
    /// A test wanted the process to die here.
    Crashed,
}

/// What keeps a run from going on.
enum Halt {
    LeaseLost,
    Stopped,
    Crashed,
}

impl From<Crash> for Halt {
    fn from(_: Crash) -> Self {
        Self::Crashed
    }
}

impl From<Halt> for RunEnd {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::LeaseLost => Self::LeaseLost,
            Halt::Stopped => Self::Stopped,
            Halt::Crashed => Self::Crashed,
        }
    }
}

/// The tasks of running steps; ended with the run, whichever way that ends.
#[derive(Default)]
struct Tasks(HashMap<usize, JoinHandle<()>>);

impl Tasks {
    /// Ends all and waits until none can do anything any more.
    async fn abort(&mut self) {
        for task in self.0.values() {
            task.abort();
        }
        for (_, task) in self.0.drain() {
            let _ = task.await;
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.0.values() {
            task.abort();
        }
    }
}

/// What is written in one transaction.
enum Write<'a> {
    Begin(&'a [(&'a str, Option<&'a str>)]),
    Lines {
        entries: &'a [Entry],
        end: Option<&'a (FlowState, Option<Failure>)>,
    },
}

struct Run {
    inner: Arc<Inner>,
    kind: Arc<dyn AnyKind>,
    taken: Taken,
    live: Arc<Live>,
    /// The flow's own: canceled by a person's wish.
    cancel: CancellationToken,
}

/// Runs a taken flow to its end.
pub(crate) async fn run(
    inner: Arc<Inner>,
    kind: Arc<dyn AnyKind>,
    taken: Taken,
    live: Arc<Live>,
    cancel: CancellationToken,
) -> RunEnd {
    if taken.cancel_requested {
        cancel.cancel();
    }
    let run = Run {
        inner,
        kind,
        taken,
        live,
        cancel,
    };
    match run.all().await {
        Ok(()) => RunEnd::Ended,
        Err(halt) => {
            if matches!(halt, Halt::Stopped) {
                run.leave().await;
            }
            halt.into()
        }
    }
}

impl Run {
    /// Gives the lease back, so that another process need not wait for its end.
    async fn leave(&self) {
        let Taken { info, fence, .. } = &self.taken;
        let left = async {
            let mut tx = self.inner.db.begin("leave a flow").await?;
            stolos_store::lease::release(&mut tx, fence).await?;
            tx.commit().await
        };
        if let Err(error) = left.await {
            tracing::warn!(flow = %info.id, error = %stolos_base::chain(&error), "failed to give the lease of a flow back");
        }
    }

    async fn all(&self) -> Result<(), Halt> {
        let graph = match self.graph().await? {
            Ok(graph) => Arc::new(graph),
            Err(end) => return self.end_without_steps(end).await,
        };
        let names: Vec<(&str, Option<&str>)> = graph
            .steps
            .iter()
            .map(|step| (&*step.name, step.stage.as_deref()))
            .collect();
        let rows = self.write(Write::Begin(&names)).await?;
        let (states, outputs) = match recall(&graph, rows) {
            Ok(known) => known,
            Err(error) => {
                return self
                    .end_without_steps((FlowState::Failed, Some(failure(None, error))))
                    .await;
            }
        };
        *self.live.steps() = states
            .iter()
            .map(|&state| LiveStep {
                state,
                attempts: 0,
                progress: None,
                note: None,
            })
            .collect();
        let _ = self.live.graph.set(graph.clone());
        let done = states.iter().filter(|state| state.is_past()).count();
        self.live.emit(EventKind::FlowStarted {
            resumed: self.taken.state == FlowState::Running || done > 0,
            steps: states.len(),
            done,
        });
        let (report, reports) = mpsc::unbounded_channel();
        let mut steps = Steps {
            run: self,
            graph,
            states,
            outputs,
            entries: Vec::new(),
            failure: None,
            tasks: Tasks::default(),
            stop_steps: CancellationToken::new(),
            give_up: CancellationToken::new(),
            report,
            reports,
        };
        let result = steps.all().await;
        steps.tasks.abort().await;
        result
    }

    /// The graph, or how the flow ends without one.
    async fn graph(&self) -> Result<Result<Graph, (FlowState, Option<Failure>)>, Halt> {
        let mut pause = FIRST_PAUSE;
        let began = Instant::now();
        loop {
            if self.cancel.is_cancelled() {
                return Ok(Err((FlowState::Canceled, None)));
            }
            let made = AssertUnwindSafe(self.kind.graph(&self.taken.info, &self.taken.input)).catch_unwind();
            let made = tokio::select! {
                made = made => made,
                () = self.inner.stop.cancelled() => return Err(Halt::Stopped),
                () = self.cancel.cancelled() => continue,
            };
            let error = match made {
                Ok(Ok(graph)) => match &graph.mistake {
                    None => return Ok(Ok(graph)),
                    Some(mistake) => StepError::internal(mistake),
                },
                Ok(Err(error)) => error,
                Err(panic) => StepError::internal(format!("panicked: {}", panic_text(&*panic))),
            };
            if !error.retryable {
                return Ok(Err((FlowState::Failed, Some(failure(None, error)))));
            }
            if began.elapsed() >= GRAPH_LIMIT {
                let message = format!(
                    "gave up after {} minutes of trying: {}",
                    GRAPH_LIMIT.as_secs() / 60,
                    error.message
                );
                let error = StepError { message, ..error };
                return Ok(Err((FlowState::Failed, Some(failure(None, error)))));
            }
            self.live.set_waiting_on(Some(error.message));
            tokio::select! {
                () = sleep(pause) => {}
                () = self.inner.stop.cancelled() => return Err(Halt::Stopped),
                () = self.cancel.cancelled() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.live.set_waiting_on(None);
        }
    }

    async fn end_without_steps(&self, end: (FlowState, Option<Failure>)) -> Result<(), Halt> {
        self.write(Write::Lines {
            entries: &[],
            end: Some(&end),
        })
        .await?;
        let (state, failure) = end;
        self.live.emit(EventKind::FlowEnded { state, failure });
        Ok(())
    }

    /// Writes to the journal, again and again until the database takes it, the lease is lost, or the process stops.
    async fn write(&self, write: Write<'_>) -> Result<Vec<StepRow>, Halt> {
        let number = self.inner.faults.before_write()?;
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            match self.write_once(&write).await {
                Ok(rows) => {
                    if told {
                        self.live.set_waiting_on(None);
                    }
                    self.inner.faults.after_write(number)?;
                    return Ok(rows);
                }
                Err(Error::Store(stolos_store::Error::LeaseLost { .. })) => {
                    // Ending gives the lease back, so an end whose answer was lost looks like this as well.
                    if let Write::Lines {
                        end: Some((state, _)),
                        ..
                    } = &write
                        && told
                        && matches!(journal::ended(&self.inner.db, self.taken.info.id).await, Ok(Some(ended)) if ended == *state)
                    {
                        return Ok(Vec::new());
                    }
                    return Err(Halt::LeaseLost);
                }
                Err(error) => {
                    let text = format!("the journal: {}", stolos_base::chain(&error));
                    tracing::warn!(flow = %self.taken.info.id, error = %stolos_base::chain(&error), "failed to write the journal; trying again");
                    self.live.set_waiting_on(Some(text.clone()));
                    if !told {
                        told = true;
                        self.live.emit(EventKind::Waiting { on: text });
                    }
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.inner.stop.cancelled() => return Err(Halt::Stopped),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn write_once(&self, write: &Write<'_>) -> Result<Vec<StepRow>, Error> {
        let Taken { info, fence, .. } = &self.taken;
        let mut rows = Vec::new();
        let mut tx = self
            .inner
            .db
            .begin_background("write the journal of a flow")
            .await?;
        match write {
            Write::Begin(steps) => {
                rows = journal::begin(&mut tx, fence, info.id, steps).await?;
                // Also when it was running already: the last change may be of a life that lost its commit.
                self.on_state(&mut tx, FlowState::Running, None).await?;
            }
            Write::Lines { entries, end } => {
                journal::write(&mut tx, fence, info.id, entries).await?;
                if let Some((state, failure)) = end {
                    self.on_state(&mut tx, *state, failure.as_ref()).await?;
                    journal::end(&mut tx, fence, info.id, *state, failure.as_ref()).await?;
                }
            }
        }
        tx.commit().await?;
        Ok(rows)
    }

    async fn on_state(
        &self,
        tx: &mut stolos_store::Tx,
        state: FlowState,
        failure: Option<&Failure>,
    ) -> Result<(), Error> {
        let change = Change {
            flow: &self.taken.info,
            state,
            failure,
        };
        Ok(self.kind.on_state(tx, &change).await?)
    }
}

/// What the journal knew, put to the graph's steps.
fn recall(graph: &Graph, rows: Vec<StepRow>) -> Result<(Vec<StepState>, Outputs), StepError> {
    let mut by_name: HashMap<String, StepRow> = rows.into_iter().map(|row| (row.name.clone(), row)).collect();
    let outputs = Outputs::default();
    let mut states = Vec::with_capacity(graph.steps.len());
    for spec in &graph.steps {
        let row = by_name.remove(&*spec.name);
        let state = row.as_ref().map_or(StepState::Waiting, |row| row.state);
        if let (StepState::Done, Some(text)) = (state, row.and_then(|row| row.output)) {
            let value = serde_json::from_str(&text).map_err(|error| {
                StepError::internal(format!(
                    "failed to read the output of step `{}`: {error}",
                    spec.name
                ))
            })?;
            outputs
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(spec.name.clone(), Arc::new(value));
        }
        states.push(state);
    }
    // Steps of an earlier version of the program that this one does not have.
    for name in by_name.keys() {
        tracing::warn!(step = %name, "the journal has a step that the flow no longer has");
    }
    Ok((states, outputs))
}

fn failure(step: Option<&str>, error: StepError) -> Failure {
    Failure {
        step: step.map(str::to_owned),
        message: error.message,
        class: error.class,
        hints: error.hints,
    }
}

/// The steps of a run.
struct Steps<'a> {
    run: &'a Run,
    graph: Arc<Graph>,
    states: Vec<StepState>,
    outputs: Outputs,
    /// Decided and not yet written.
    entries: Vec<Entry>,
    /// The first failure; the flow's.
    failure: Option<Failure>,
    tasks: Tasks,
    /// Parent of every step's token.
    stop_steps: CancellationToken,
    /// Canceled when the flow has failed: steps are not attempted again.
    give_up: CancellationToken,
    report: mpsc::UnboundedSender<(usize, StepEnd)>,
    reports: mpsc::UnboundedReceiver<(usize, StepEnd)>,
}

impl Steps<'_> {
    async fn all(&mut self) -> Result<(), Halt> {
        let mut canceled = false;
        loop {
            while let Ok((index, end)) = self.reports.try_recv() {
                self.absorb(index, end);
            }
            let starts = if self.may_begin() {
                self.choose()
            } else {
                Vec::new()
            };
            let end = (self.tasks.0.is_empty() && starts.is_empty()).then(|| self.outcome());
            if !self.entries.is_empty() || end.is_some() {
                let entries = std::mem::take(&mut self.entries);
                self.run
                    .write(Write::Lines {
                        entries: &entries,
                        end: end.as_ref(),
                    })
                    .await?;
                self.tell(&entries);
            }
            if let Some((state, failure)) = end {
                self.run.live.emit(EventKind::FlowEnded { state, failure });
                return Ok(());
            }
            for index in starts {
                self.start(index);
            }
            tokio::select! {
                Some((index, end)) = self.reports.recv() => self.absorb(index, end),
                () = self.run.cancel.cancelled(), if !canceled => {
                    canceled = true;
                    self.stop_steps.cancel();
                    self.run.live.emit(EventKind::CancelRequested);
                }
                () = self.run.inner.stop.cancelled() => return self.stop().await,
            }
        }
    }

    fn may_begin(&self) -> bool {
        let failed = self.failure.is_some() && self.graph.on_failure == OnFailure::Stop;
        !failed && !self.run.cancel.is_cancelled() && !self.run.inner.stop.is_cancelled()
    }

    fn set(&mut self, index: usize, state: StepState) {
        self.states[index] = state;
        self.run.live.with(index, |step| step.state = state);
    }

    /// Decides which steps begin now, and notes them and those that are skipped.
    fn choose(&mut self) -> Vec<usize> {
        let mut starts = Vec::new();
        let graph = self.graph.clone();
        // Steps only come after earlier ones, so what is skipped here unlocks others in the same pass.
        let mut slots = Slots::new(&graph, &self.states);
        for (index, spec) in graph.steps.iter().enumerate() {
            if self.states[index] != StepState::Waiting
                || !spec.after.iter().all(|&i| self.states[i].is_past())
            {
                continue;
            }
            if let Some(reason) = &spec.skip {
                self.set(index, StepState::Skipped);
                self.entries.push(Entry::Skipped {
                    step: spec.name.to_string(),
                    reason: reason.clone(),
                });
                continue;
            }
            if !spec
                .slots
                .iter()
                .all(|(group, key)| slots.free(&graph, *group, key))
            {
                continue;
            }
            for (group, key) in &spec.slots {
                slots.take(*group, key);
            }
            self.set(index, StepState::Running);
            self.entries.push(Entry::Begin {
                step: spec.name.to_string(),
            });
            starts.push(index);
        }
        starts
    }

    fn start(&mut self, index: usize) {
        let run = self.run;
        let spec = &self.graph.steps[index];
        run.live.with(index, |step| {
            step.attempts = 0;
            step.progress = None;
            step.note = None;
        });
        let ctx = StepContext {
            flow: run.live.flow.clone(),
            step: spec.name.clone(),
            index,
            attempt: 0,
            cancel: self.stop_steps.child_token(),
            outputs: self.outputs.clone(),
            fence: Arc::new(run.taken.fence.clone()),
            live: run.live.clone(),
        };
        let (graph, faults, report) = (self.graph.clone(), run.inner.faults.clone(), self.report.clone());
        let give_up = self.give_up.clone();
        let name = format!("{} {}: {}", run.taken.info.kind, run.taken.info.id, spec.name);
        let work = run.inner.runs.track_future(async move {
            let end = attempt::run(&graph.steps[index], ctx, &give_up, &faults).await;
            // Nobody listens any more only when the run is over, which ends this task too.
            let _ = report.send((index, end));
            Ok::<(), std::convert::Infallible>(())
        });
        let handle = task::spawn(task::Kind::Job, name, work);
        self.tasks.0.insert(index, handle);
    }

    /// Notes how a step ended.
    fn absorb(&mut self, index: usize, end: StepEnd) {
        self.tasks.0.remove(&index);
        let name = self.graph.steps[index].name.clone();
        let step = name.to_string();
        match end {
            StepEnd::Done { attempts, output } => {
                self.set(index, StepState::Done);
                self.entries.push(Entry::Done {
                    step,
                    attempts,
                    output: output.to_string(),
                });
                self.outputs
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(name, Arc::new(output));
            }
            StepEnd::Skipped { reason } => {
                self.set(index, StepState::Skipped);
                self.entries.push(Entry::Skipped { step, reason });
            }
            StepEnd::Failed { attempts, error } => {
                self.set(index, StepState::Failed);
                self.entries.push(Entry::Failed {
                    step,
                    attempts,
                    error: error.message.clone(),
                });
                if self.graph.on_failure == OnFailure::Stop {
                    self.give_up.cancel();
                }
                self.failure.get_or_insert_with(|| failure(Some(&name), error));
            }
            StepEnd::Canceled { attempts } => {
                self.set(index, StepState::Canceled);
                self.entries.push(Entry::Canceled { step, attempts });
            }
        }
    }

    /// How the flow ends when nothing runs and nothing can begin.
    fn outcome(&self) -> (FlowState, Option<Failure>) {
        if self.states.iter().all(|state| state.is_past()) {
            return (FlowState::Succeeded, None);
        }
        if let Some(failure) = &self.failure {
            return (FlowState::Failed, Some(failure.clone()));
        }
        if self.run.cancel.is_cancelled() {
            return (FlowState::Canceled, None);
        }
        // Limits whose holders wait for steps that wait for the same limits.
        let slots = Slots::new(&self.graph, &self.states);
        let stuck = (0..self.states.len()).find(|&index| self.states[index] == StepState::Waiting);
        let why = stuck.map_or_else(String::new, |index| {
            let reasons = slots::waiting_on(&self.graph, &self.states, &slots, index).join("; ");
            format!("step `{}` waits for {reasons}", self.graph.steps[index].name)
        });
        let failure = Failure {
            step: None,
            message: format!("the flow is stuck: {why}"),
            class: Class::Internal,
            hints: Vec::new(),
        };
        (FlowState::Failed, Some(failure))
    }

    fn tell(&self, entries: &[Entry]) {
        let stages: HashMap<&str, Option<&Arc<str>>> = self
            .graph
            .steps
            .iter()
            .map(|spec| (&*spec.name, spec.stage.as_ref()))
            .collect();
        for entry in entries.iter().cloned() {
            let stage = |step: &str| stages.get(step).copied().flatten().map(|stage| stage.to_string());
            self.run.live.emit(match entry {
                Entry::Begin { step } => EventKind::StepStarted {
                    stage: stage(&step),
                    step,
                },
                Entry::Done { step, .. } => EventKind::StepFinished {
                    stage: stage(&step),
                    step,
                },
                Entry::Skipped { step, reason } => EventKind::StepSkipped {
                    stage: stage(&step),
                    step,
                    reason,
                },
                Entry::Failed { step, error, .. } => EventKind::StepFailed {
                    stage: stage(&step),
                    step,
                    error,
                },
                Entry::Canceled { step, .. } => EventKind::StepCanceled {
                    stage: stage(&step),
                    step,
                },
            });
        }
    }

    /// The process stops: gives running steps a moment and records those that are done. All others stay "running" in the journal, which makes the next process run them again.
    async fn stop(&mut self) -> Result<(), Halt> {
        self.stop_steps.cancel();
        let until = Instant::now() + STOP_GRACE;
        let mut entries = std::mem::take(&mut self.entries);
        while !self.tasks.0.is_empty() {
            let Ok(Some((index, end))) = tokio::time::timeout_at(until, self.reports.recv()).await else {
                break;
            };
            self.absorb(index, end);
        }
        self.tasks.abort().await;
        entries.append(&mut self.entries);
        entries.retain(|entry| matches!(entry, Entry::Done { .. } | Entry::Skipped { .. }));
        let Taken { info, fence, .. } = &self.run.taken;
        let recorded = async {
            let mut tx = self.run.inner.db.begin("record what is done").await?;
            journal::write(&mut tx, fence, info.id, &entries).await?;
            tx.commit().await?;
            Ok::<(), Error>(())
        };
        if let Err(error) = recorded.await {
            // Nothing is lost but time: the steps run again.
            tracing::warn!(flow = %info.id, error = %stolos_base::chain(&error), "failed to record what is done");
        }
        Err(Halt::Stopped)
    }
}
