//! Tasks: what people see of flows.
//!
//! Owns the texts that a task leaves behind (events, debug, result) and the row that says how it stands. Events follow
//! from what the flow engine tells: each step of a flow is registered with the line that BOSH's clients expect
//! ([`Line`]), so steps themselves write none.
//!
//! Texts are collected in memory and written in batches, each as soon as the one before it is on disk. Before a task's
//! state becomes final, everything that was said is written in the same transaction: who sees a final state sees all of
//! the output. Nothing here blocks a step.

mod log;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stolos_api::director::{EventError, OutputKind, TaskState};
use stolos_base::ids::FlowId;
use stolos_base::{Class, Clock, task};
use stolos_flow::{Change, Event, EventKind, FlowState, Flows, Observer, StepError};
use stolos_store::{Db, Fence, Signal, Tx, lease, restored};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::log::Line;
use self::log::Log;
use crate::db::{begin_fenced, tasks as rows};
use crate::error::{Error, Result, code_of_class};

/// The pause after a failed write of output.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// What the signal of news of a task begins with; its number follows.
const WORD: &str = "task ";
/// Debug output of one task ends after so many bytes; events are never cut.
const DEBUG_LIMIT: u64 = 4 * 1024 * 1024;

/// The tasks of this process; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Db,
    clock: Clock,
    live: Mutex<HashMap<FlowId, Live>>,
    /// For those who wait for news of a task; the number only changes.
    news: Mutex<HashMap<i64, watch::Sender<u64>>>,
    wake: Notify,
    /// Fires when the writer has written everything and ended.
    ended: CancellationToken,
}

#[derive(Debug)]
struct Live {
    task: i64,
    /// Shown with everything that is written: what a process that was overtaken has still to say would end up in the middle of
    /// what the other one says.
    fence: Fence,
    log: Log,
    /// Said and not known to be on disk.
    pending: HashMap<OutputKind, Pending>,
    /// The code of the error that a step is about to fail with.
    code: Option<u32>,
    result: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Pending {
    /// Offset of the text in the output, in bytes.
    first: u64,
    text: String,
}

const KINDS: [OutputKind; 3] = [OutputKind::Event, OutputKind::Debug, OutputKind::Result];

impl Tasks {
    /// Starts the writer of output; it ends when `stop` fires and all is written.
    pub(crate) fn start(db: Db, stop: CancellationToken) -> Self {
        let tasks = Self(Arc::new(Inner {
            clock: db.clock().clone(),
            db,
            live: Mutex::default(),
            news: Mutex::default(),
            wake: Notify::new(),
            ended: CancellationToken::new(),
        }));
        let (listener, stopped) = (tasks.clone(), stop.clone());
        task::spawn(task::Kind::Service, "news of tasks", async move {
            listener.hear_all(stopped).await;
            Ok::<(), std::convert::Infallible>(())
        });
        let writer = tasks.clone();
        task::spawn(task::Kind::Service, "task output", async move {
            writer.write_all(stop).await;
            writer.0.ended.cancel();
            Ok::<(), std::convert::Infallible>(())
        });
        tasks
    }

    /// Waits until everything that was said is written, after the end was asked for.
    pub(crate) async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Begins to follow a flow that has been taken up under this fence: its task's row has to be there. Done again for a flow that
    /// is already followed, it changes nothing.
    pub(crate) async fn open(&self, flow: FlowId, fence: Fence) -> Result<()> {
        if self.live().get(&flow).is_some_and(|live| live.fence == fence) {
            return Ok(());
        }
        let row = rows::by_flow(&self.0.db, flow).await?;
        let row = rows::found(row, flow)?;
        let task = row.id;
        // Its machines may have been made, replaced and deleted since: to make them "again" would make them twice.
        if let Some(reason) = restored::refusal(&self.0.db, row.created_at).await? {
            return Err(Error::OldLife(reason));
        }
        if row.state == TaskState::Queued {
            // The engine says so only when the graph is there; planning is work already.
            let mut tx = begin_fenced(&self.0.db, "begin a task", &fence).await?;
            rows::set_state(&mut tx, flow, TaskState::Processing, None).await?;
            tx.signal(&word(task)).await?;
            tx.commit().await?;
        }
        let mut pending = HashMap::new();
        for kind in KINDS {
            let first = rows::length(&self.0.db, task, kind).await?;
            pending.insert(
                kind,
                Pending {
                    first,
                    text: String::new(),
                },
            );
        }
        let said = rows::output(&self.0.db, task, OutputKind::Event, 0, usize::MAX).await?;
        let live = Live {
            task,
            fence,
            log: Log::after(&String::from_utf8_lossy(&said)),
            pending,
            code: None,
            result: None,
        };
        // What an earlier taking of the same flow left is of no use any more.
        self.live().insert(flow, live);
        Ok(())
    }

    /// Says which line of the event output each step has.
    pub(crate) fn register(&self, flow: FlowId, lines: Vec<(String, Line)>) {
        self.with(flow, |live, _| live.log.register(lines));
    }

    /// After a restart, says what an earlier life could not say any more about steps that are done.
    pub(crate) async fn catch_up(&self, flows: &Flows, flow: FlowId) -> Result<()> {
        let Some(view) = flows.view(flow).await? else {
            return Ok(());
        };
        self.with(flow, |live, now| {
            for step in view.steps.iter().filter(|step| step.state.is_past()) {
                let mut lines = live.log.started(&step.name, now);
                lines.extend(live.log.finished(&step.name, now));
                live.say_events(&lines);
            }
        });
        Ok(())
    }

    /// A stage that is no step: something that is done while the graph is made.
    pub(crate) fn stage(&self, flow: FlowId, line: &Line, state: StageState<'_>) {
        self.with(flow, |live, now| {
            let lines = match state {
                StageState::Started => live.log.start_line(line, now),
                StageState::Finished => live.log.finish_line(line, now),
                StageState::Failed(error) => live.log.fail_line(line, error, now),
            };
            live.say_events(&lines);
        });
    }

    /// A notice to whoever follows the task.
    pub(crate) fn warn(&self, flow: FlowId, text: &str) {
        self.with(flow, |live, now| {
            let line = live.log.warning(text, now);
            live.say_events(&[line]);
        });
    }

    /// A line of debug output.
    pub(crate) fn debug(&self, flow: FlowId, text: &str) {
        let time = self.0.clock.now();
        self.with(flow, |live, _| live.say_debug(&format!("{time} {text}")));
    }

    /// What the task was asked for.
    pub(crate) fn result_output(&self, flow: FlowId, text: &str) {
        self.with(flow, |live, _| live.say(OutputKind::Result, text));
    }

    /// The short result of a task that ends well.
    pub(crate) fn set_result(&self, flow: FlowId, text: impl Into<String>) {
        self.with(flow, |live, _| live.result = Some(text.into()));
    }

    /// Registers a secret before it is used in this task.
    pub(crate) fn add_secret(&self, flow: FlowId, value: &serde_json::Value) {
        self.with(flow, |live, _| live.log.redactor.add(value));
    }

    /// Turns an error into a step's, without the secrets of this task, and remembers its code.
    pub(crate) fn step_error(&self, flow: FlowId, error: &Error) -> StepError {
        let mut step = crate::error::step_error(error);
        self.with(flow, |live, _| {
            step.message = live.log.redactor.redact(&step.message);
            live.code = Some(error.code());
        });
        step
    }

    /// Writes what the change of a flow means for its task. Part of the transaction in which the flow changes.
    pub(crate) async fn on_state(
        &self,
        tx: &mut Tx,
        change: &Change<'_>,
        result: &str,
    ) -> Result<(), stolos_store::Error> {
        let flow = change.flow.id;
        let state = match change.state {
            FlowState::Pending => TaskState::Queued,
            FlowState::Running => TaskState::Processing,
            FlowState::Succeeded => TaskState::Done,
            FlowState::Failed => TaskState::Error,
            FlowState::Canceled => TaskState::Cancelled,
        };
        let result = match (state, change.failure) {
            // The engine tells of the last step only after this.
            (TaskState::Done, _) => {
                self.with(flow, |live, now| {
                    let lines = live.log.close_all(None, now);
                    live.say_events(&lines);
                });
                let own = self.live().get(&flow).and_then(|live| live.result.clone());
                Some(own.unwrap_or_else(|| result.to_owned()))
            }
            (TaskState::Error, failure) => {
                let text = failure.map_or("unknown cause", |failure| &failure.message);
                if let Some(step) = failure.and_then(|failure| failure.step.as_deref()) {
                    self.with(flow, |live, now| {
                        let lines = live.log.failed(step, text, now);
                        live.say_events(&lines);
                    });
                }
                self.say_end(
                    flow,
                    change.failure.map_or(Class::Internal, |failure| failure.class),
                    text,
                );
                Some(text.to_owned())
            }
            (TaskState::Cancelled, _) => {
                let text = match self.live().get(&flow) {
                    Some(live) => format!("Task {} cancelled", live.task),
                    None => "Task cancelled".to_owned(),
                };
                self.with(flow, |live, now| {
                    live.code = Some(stolos_api::director::code::TASK_CANCELLED);
                    let lines = live.log.close_all(Some(&text), now);
                    live.say_events(&lines);
                });
                self.say_end(flow, Class::Conflict, &text);
                Some(text)
            }
            _ => None,
        };
        if state.is_final() {
            let pending = self
                .live()
                .get(&flow)
                .map(|live| (live.task, live.pending.clone()));
            if let Some((task, pending)) = pending {
                for (kind, pending) in pending {
                    flush(tx, task, kind, &pending).await?;
                }
            }
        }
        let task = rows::set_state(tx, flow, state, result.as_deref()).await?;
        match task {
            Some(task) => tx.signal(&word(task)).await,
            None => Ok(()),
        }
    }

    /// Waits for news of a task: more output, or its end; whichever process works on it.
    pub(crate) fn news(&self, task: i64) -> watch::Receiver<u64> {
        lock(&self.0.news)
            .entry(task)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    /// The error line that ends a task. Said once, even when the change of state is tried again.
    fn say_end(&self, flow: FlowId, class: Class, text: &str) {
        self.with(flow, |live, now| {
            let error = EventError {
                code: live.code.unwrap_or_else(|| code_of_class(class)),
                message: text.to_owned(),
            };
            let lines = live.log.end(error, now);
            live.say_events(&lines);
        });
    }

    fn with(&self, flow: FlowId, change: impl FnOnce(&mut Live, i64)) {
        let now = self.0.clock.now().as_second();
        if let Some(live) = self.live().get_mut(&flow) {
            change(live, now);
        }
        self.0.wake.notify_one();
    }

    fn live(&self) -> MutexGuard<'_, HashMap<FlowId, Live>> {
        lock(&self.0.live)
    }

    /// Tells those who wait for a task.
    fn tell(&self, task: i64) {
        let mut news = lock(&self.0.news);
        if let Some(sender) = news.get(&task) {
            sender.send_modify(|number| *number += 1);
            if sender.receiver_count() == 0 {
                news.remove(&task);
            }
        }
    }

    /// Tells those who wait here what other processes say of tasks, until `stop` fires.
    async fn hear_all(&self, stop: CancellationToken) {
        let mut signals = self.0.db.signals();
        loop {
            let signal = tokio::select! {
                signal = signals.next() => signal,
                () = stop.cancelled() => return,
            };
            match signal {
                Signal::Missed => self.tell_all(),
                Signal::Word(word) => {
                    let task = word.strip_prefix(WORD).and_then(|number| number.parse().ok());
                    if let Some(task) = task {
                        self.tell(task);
                    }
                }
            }
        }
    }

    fn tell_all(&self) {
        let tasks: Vec<i64> = lock(&self.0.news).keys().copied().collect();
        tasks.into_iter().for_each(|task| self.tell(task));
    }

    async fn write_all(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = stop.cancelled() => {}
            }
            // What was said until now, in one transaction; what is said meanwhile comes with the next.
            while let Err(error) = self.write_batch().await {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to write output of tasks; trying again");
                if stop.is_cancelled() {
                    return;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn write_batch(&self) -> Result<(), stolos_store::Error> {
        let mut fences = Vec::new();
        let mut batch: Vec<(FlowId, i64, OutputKind, Pending)> = Vec::new();
        for (flow, live) in self.live().iter() {
            let before = batch.len();
            let said = live
                .pending
                .iter()
                .filter(|(_, pending)| !pending.text.is_empty());
            batch.extend(said.map(|(kind, pending)| (*flow, live.task, *kind, pending.clone())));
            if batch.len() > before {
                fences.push((*flow, live.fence.clone()));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut tx = self.0.db.begin_background("write output of tasks").await?;
        let (flows, fences): (Vec<FlowId>, Vec<Fence>) = fences.into_iter().unzip();
        let lost = lease::lost_of(&mut tx, &fences).await?;
        let lost: Vec<FlowId> = flows
            .into_iter()
            .zip(&fences)
            .filter(|(_, fence)| lost.contains(fence))
            .map(|(flow, _)| flow)
            .collect();
        batch.retain(|(flow, ..)| !lost.contains(flow));
        let mut written = Vec::with_capacity(batch.len());
        for (flow, task, kind, pending) in batch {
            let end = flush(&mut tx, task, kind, &pending).await?;
            tx.signal(&word(task)).await?;
            written.push((flow, task, kind, end));
        }
        tx.commit().await?;
        // Ended just now, with all that was said, or somebody else's.
        self.live()
            .retain(|flow, live| !(lost.contains(flow) && fences.contains(&live.fence)));
        for (flow, task, kind, end) in written {
            if let Some(pending) = self
                .live()
                .get_mut(&flow)
                .and_then(|live| live.pending.get_mut(&kind))
            {
                pending.forget_until(end);
            }
            self.tell(task);
        }
        Ok(())
    }
}

/// How something that is no step stands.
pub(crate) enum StageState<'a> {
    Started,
    Finished,
    Failed(&'a str),
}

impl Observer for Tasks {
    fn on(&self, event: &Event) {
        let flow = event.flow;
        match &event.what {
            EventKind::StepStarted { step, .. } => self.with(flow, |live, now| {
                let lines = live.log.started(step, now);
                live.say_events(&lines);
            }),
            EventKind::Progress { step, text } => self.with(flow, |live, now| {
                let lines = live.log.progress(step, text, now);
                live.say_events(&lines);
            }),
            EventKind::StepFinished { step, .. } | EventKind::StepSkipped { step, .. } => {
                self.with(flow, |live, now| {
                    let mut lines = live.log.started(step, now);
                    lines.extend(live.log.finished(step, now));
                    live.say_events(&lines);
                });
            }
            EventKind::StepFailed { step, error, .. } => self.with(flow, |live, now| {
                let lines = live.log.failed(step, error, now);
                live.say_events(&lines);
            }),
            EventKind::StepCanceled { step, .. } => self.with(flow, |live, now| {
                let lines = live
                    .log
                    .failed(step, &format!("Task {} cancelled", live.task), now);
                live.say_events(&lines);
            }),
            _ => {}
        }
        if let Some(text) = log::debug_text(&event.what) {
            self.debug(flow, &text);
        }
        if matches!(event.what, EventKind::FlowEnded { .. } | EventKind::FlowLost) {
            let ended = self.live().remove(&flow);
            if let Some(live) = ended {
                self.tell(live.task);
            } else {
                // Ended before it was followed; whoever waits looks at the row again.
                self.tell_all();
            }
        }
    }
}

/// What other processes hear of news of a task.
fn word(task: i64) -> String {
    format!("{WORD}{task}")
}

impl Live {
    fn say(&mut self, kind: OutputKind, text: &str) {
        let clean = self.log.redactor.redact(text);
        self.pending.entry(kind).or_default().text.push_str(&clean);
    }

    fn say_events(&mut self, lines: &[stolos_api::director::Event]) {
        for line in lines {
            match serde_json::to_string(line) {
                Ok(text) => self.say(OutputKind::Event, &(text + "\n")),
                Err(error) => tracing::error!(%error, "failed to write an event"),
            }
        }
    }

    fn say_debug(&mut self, line: &str) {
        let pending = self.pending.entry(OutputKind::Debug).or_default();
        let end = pending.first + pending.text.len() as u64;
        if end < DEBUG_LIMIT {
            self.say(OutputKind::Debug, &format!("{}\n", line.replace('\n', "\\n")));
            if end + line.len() as u64 >= DEBUG_LIMIT {
                self.say(OutputKind::Debug, "the rest of the debug output is not kept\n");
            }
        }
    }
}

impl Pending {
    fn forget_until(&mut self, end: u64) {
        let n = usize::try_from(end.saturating_sub(self.first))
            .unwrap_or(usize::MAX)
            .min(self.text.len());
        self.text.drain(..n);
        self.first = self.first.max(end);
    }
}

/// Writes what is not there yet, whoever wrote what is there; gives the new end.
async fn flush(
    tx: &mut Tx,
    task: i64,
    kind: OutputKind,
    pending: &Pending,
) -> Result<u64, stolos_store::Error> {
    if pending.text.is_empty() {
        return Ok(pending.first);
    }
    let end = rows::length_in(tx, task, kind).await?;
    let skip = usize::try_from(end.saturating_sub(pending.first)).unwrap_or(usize::MAX);
    match pending.text.get(skip..) {
        Some(rest) if !rest.is_empty() => {
            rows::append(tx, task, kind, end, rest).await?;
            Ok(end + rest.len() as u64)
        }
        _ => Ok(end),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
