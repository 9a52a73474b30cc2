//! Asynchronous methods: one worker, first come first served; results are kept for a director that asks late.
//!
//! `update_settings` is answered by the agent's next life when it made the agent start again, so it and its result are on
//! disk.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::Utf8PathBuf;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_base::{chain, files, task};
use stolos_mbus::Reply;
use stolos_mbus::message::AgentTask;
use stolos_mbus::settings::UpdateSettings;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Results that are kept.
const KEPT: usize = 200;
/// Results that are kept on disk.
const KEPT_ON_DISK: usize = 8;

pub(crate) type Work = BoxFuture<'static, Result<Value>>;

/// The queue. Its worker ends with the last handle.
pub(crate) struct Tasks {
    all: Arc<Mutex<All>>,
    queue: mpsc::UnboundedSender<Queued>,
    file: Utf8PathBuf,
    /// Held while a task runs.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct All {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    id: String,
    cancel: CancellationToken,
    said: Said,
    result: Option<Reply>,
}

/// What a task said last.
type Said = Arc<Mutex<Option<String>>>;

/// A line is for people; what is longer is no line.
const LONGEST_LINE: usize = 500;

tokio::task_local! {
    /// Of the task that runs.
    static SAID: Said;
}

/// Notes what the running task does, for whoever asks for it. Outside of a task nobody does.
pub(crate) fn say(line: &str) {
    let line: String = line.trim().chars().take(LONGEST_LINE).collect();
    if !line.is_empty() {
        let _ = SAID.try_with(|said| *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(line));
    }
}

struct Queued {
    number: u64,
    cancel: CancellationToken,
    work: Work,
}

/// A task on disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct Durable {
    id: String,
    /// What is to be done; gone once it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) update: Option<Box<UpdateSettings>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Reply>,
}

impl Durable {
    /// The same task without its content.
    pub(crate) fn same(task: &Self) -> Self {
        Self {
            id: task.id.clone(),
            update: None,
            result: None,
        }
    }
}

impl Tasks {
    /// Starts the worker; gives the tasks of a former life that were not done.
    pub(crate) fn start(file: Utf8PathBuf) -> Result<(Self, Vec<Durable>)> {
        let durable: Vec<Durable> = files::read_json(&file)
            .map_err(Error::file("read", &file))?
            .unwrap_or_default();
        let (queue, waiting) = mpsc::unbounded_channel();
        let tasks = Self {
            all: Arc::default(),
            queue,
            file,
            turn: Arc::default(),
        };
        task::spawn(
            task::Kind::Job,
            "agent tasks",
            work(tasks.all.clone(), tasks.turn.clone(), waiting),
        );
        let (done, open): (Vec<_>, Vec<_>) = durable.into_iter().partition(|task| task.result.is_some());
        for task in done {
            let mut all = tasks.lock();
            let number = all.add(task.id, CancellationToken::new());
            all.finish(number, task.result);
        }
        Ok((tasks, open))
    }

    /// Waits until no task runs, and holds the others up until the guard is dropped.
    pub(crate) async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Queues work; answers with the running task.
    pub(crate) fn add(&self, work: impl FnOnce(CancellationToken) -> Work) -> Reply {
        self.add_as(stolos_base::ids::random_hex(16), work)
    }

    fn add_as(&self, id: String, work: impl FnOnce(CancellationToken) -> Work) -> Reply {
        let cancel = CancellationToken::new();
        let number = self.lock().add(id.clone(), cancel.clone());
        let work = work(cancel.clone());
        match self.queue.send(Queued { number, cancel, work }) {
            Ok(()) => Reply::value(AgentTask::running(id)),
            Err(_) => Reply::exception("the agent is ending"),
        }
    }

    /// Notes on disk that settings are to be updated.
    pub(crate) fn begin(&self, update: Box<UpdateSettings>) -> Result<Durable> {
        let mut all = self.read()?;
        let id = stolos_base::ids::random_hex(16);
        let task = |update| Durable {
            id: id.clone(),
            update: Some(update),
            result: None,
        };
        all.push(task(update.clone()));
        let excess = all.len().saturating_sub(KEPT_ON_DISK);
        all.drain(..excess);
        self.write(&all)?;
        Ok(task(update))
    }

    /// Queues a task that is on disk.
    pub(crate) fn add_durable(&self, task: &Durable, work: impl FnOnce(CancellationToken) -> Work) -> Reply {
        self.add_as(task.id.clone(), work)
    }

    /// Notes the result of a task on disk.
    pub(crate) fn end(&self, task: &Durable, result: &Result<Value>) -> Result<()> {
        let mut all = self.read()?;
        if let Some(known) = all.iter_mut().find(|known| known.id == task.id) {
            known.update = None;
            known.result = Some(reply(result));
        }
        self.write(&all)
    }

    fn read(&self) -> Result<Vec<Durable>> {
        Ok(files::read_json(&self.file)
            .map_err(Error::file("read", &self.file))?
            .unwrap_or_default())
    }

    fn write(&self, all: &[Durable]) -> Result<()> {
        files::write_json(&self.file, &all, 0o600).map_err(Error::file("write", &self.file))
    }

    /// How a task stands.
    pub(crate) fn get(&self, id: &str) -> Result<Reply> {
        let all = self.lock();
        let entry = all.find(id)?;
        Ok(entry.result.clone().unwrap_or_else(|| {
            let said = entry.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Reply::value(AgentTask::running(id).saying(said))
        }))
    }

    /// Cancels a task; one that has ended is left as it is.
    pub(crate) fn cancel(&self, id: &str) -> Result<()> {
        self.lock().find(id)?.cancel.cancel();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        lock(&self.all)
    }
}

impl All {
    fn add(&mut self, id: String, cancel: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        let entry = Entry {
            id,
            cancel,
            said: Said::default(),
            result: None,
        };
        self.entries.insert(number, entry);
        // The oldest finished ones go; a running one never does.
        while self.entries.len() > KEPT {
            let Some(oldest) = self.entries.iter().find(|(_, entry)| entry.result.is_some()) else {
                break;
            };
            let oldest = *oldest.0;
            self.entries.remove(&oldest);
        }
        number
    }

    fn finish(&mut self, number: u64, result: Option<Reply>) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.result = result;
        }
    }

    fn find(&self, id: &str) -> Result<&Entry> {
        let entry = self.entries.values().find(|entry| entry.id == id);
        entry.ok_or_else(|| Error::Refused(format!("Task with id {id} could not be found")))
    }
}

fn lock(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reply(result: &Result<Value>) -> Reply {
    match result {
        Ok(value) => Reply::Value(value.clone()),
        Err(error) => Reply::exception(chain(error)),
    }
}

async fn work(
    all: Arc<Mutex<All>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    mut waiting: mpsc::UnboundedReceiver<Queued>,
) -> Result<(), String> {
    while let Some(Queued { number, cancel, work }) = waiting.recv().await {
        let _turn = turn.lock().await;
        let result = if cancel.is_cancelled() {
            Err(Error::Canceled)
        } else {
            // A bug in one method must not end all that come after it.
            let said = lock(&all).entries.get(&number).map(|entry| entry.said.clone());
            let work = SAID.scope(said.unwrap_or_default(), work);
            let caught = AssertUnwindSafe(work).catch_unwind().await;
            caught.unwrap_or_else(|_| {
                Err(Error::Refused(
                    "the method ended by a bug of the agent; see its log".to_owned(),
                ))
            })
        };
        if let Err(error) = &result {
            tracing::warn!(error = %chain(error), "task failed");
        }
        lock(&all).finish(number, Some(reply(&result)));
    }
    Ok(())
}
