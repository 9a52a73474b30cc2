//! Method calls in, replies out. Knows no transport.
//!
//! Asynchronous methods run one after the other in a worker and are asked for by `get_task`; everything else is answered
//! at once, also while a task runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use stolos_base::{chain, files, task};
use stolos_mbus::call::{Call, Drain, LogsResult};
use stolos_mbus::message::AgentTask;
use stolos_mbus::settings::{Settings, UpdateSettings};
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::state::{AgentState, Heartbeat};
use stolos_mbus::Reply;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;
use crate::{apply, disks, logs, processes, scripts};

/// Results of tasks that are kept for a director that asks late.
const RESULTS_KEPT: usize = 200;

/// The agent's mind. Cheap to clone.
#[derive(Clone)]
pub struct Core(Arc<Inner>);

struct Inner {
    settings: Settings,
    paths: Paths,
    platform: Arc<dyn Platform>,
    blobs: Blobs,
    tasks: Mutex<Tasks>,
    queue: mpsc::UnboundedSender<Queued>,
    /// Cancelled when the agent is to end: settings that count at its start have changed.
    restart: CancellationToken,
}

#[derive(Default)]
struct Tasks {
    all: BTreeMap<u64, TaskEntry>,
    next: u64,
}

struct TaskEntry {
    id: String,
    cancel: CancellationToken,
    result: Option<Reply>,
}

struct Queued {
    number: u64,
    work: BoxFuture<'static, Result<Value>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("agent", &self.0.settings.agent_id).finish_non_exhaustive()
    }
}

impl Core {
    /// An agent with its settings and machine. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the blob store's settings cannot be used.
    pub fn new(settings: Settings, paths: Paths, platform: Arc<dyn Platform>) -> Result<Self> {
        let blobs = Blobs::new(paths.clone(), settings.effective_blobstore().clone())?;
        let (queue, waiting) = mpsc::unbounded_channel();
        let core = Self(Arc::new(Inner {
            settings,
            paths,
            platform,
            blobs,
            tasks: Mutex::default(),
            queue,
            restart: CancellationToken::new(),
        }));
        let weak = Arc::downgrade(&core.0);
        task::spawn(task::Kind::Job, "agent tasks", work(weak, waiting));
        Ok(core)
    }

    /// What the agent was told about itself.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Cancelled when the agent should end, to be started again with new settings.
    #[must_use]
    pub fn restart(&self) -> &CancellationToken {
        &self.0.restart
    }

    /// The machine below.
    #[must_use]
    pub fn platform(&self) -> Arc<dyn Platform> {
        self.0.platform.clone()
    }

    /// After a boot of the machine: the disk is mounted and the jobs start again, as they were. Does nothing when the
    /// agent alone was restarted.
    ///
    /// # Errors
    /// When disks, scripts or processes fail; the agent answers all the same, so that a director can mend it.
    pub async fn boot(&self) -> Result<()> {
        let inner = &self.0;
        let mark = inner.paths.booted();
        if mark.exists() {
            return Ok(());
        }
        if let Some(parent) = mark.parent() {
            fs_err::create_dir_all(parent).map_err(Error::file("make", parent))?;
        }
        let result = self.start_again().await;
        files::write_atomic(&mark, b"", 0o600).map_err(Error::file("write", mark))?;
        result
    }

    async fn start_again(&self) -> Result<()> {
        let inner = &self.0;
        disks::mount_known(&inner.paths, &*inner.platform)?;
        let spec = apply::stored(&inner.paths)?;
        let jobs = apply::job_names(&spec);
        if jobs.is_empty() || inner.paths.stopped().exists() {
            return Ok(());
        }
        // What pre-start made in /run, in the network namespace or among mounts went with the last boot.
        let none = indexmap::IndexMap::new();
        scripts::run_all(&inner.paths, &jobs, "pre-start", &none, &CancellationToken::new()).await?;
        processes::start(&inner.paths, &*inner.platform, &jobs)
    }

    /// The answer to a call. Asynchronous ones are answered with a task.
    pub async fn handle(&self, call: Call) -> Reply {
        let method = call.method();
        match self.dispatch(call).await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(method, error = %chain(&error), "method failed");
                Reply::exception(chain(&error))
            }
        }
    }

    /// What a heartbeat says now.
    pub fn heartbeat(&self) -> Heartbeat {
        let inner = &self.0;
        let spec = apply::stored(&inner.paths).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "the stored spec cannot be read");
            ApplySpec::default()
        });
        let (job_state, shown) = processes::state(&inner.paths, &*inner.platform);
        Heartbeat {
            deployment: spec.deployment.clone(),
            job: spec.job.as_ref().map(|job| job.name.clone()),
            index: spec.index,
            job_state,
            vitals: inner.platform.vitals(&inner.paths.data_tmp(), &inner.paths.store()),
            node_id: spec.id.clone().unwrap_or_default(),
            number_of_processes: Some(shown.len() as u64),
            other: serde_json::Map::new(),
        }
    }

    async fn dispatch(&self, call: Call) -> Result<Reply> {
        let inner = self.0.clone();
        Ok(match call {
            Call::Ping => Reply::value("pong"),
            Call::Info => Reply::value(json!({"api_version": 1})),
            Call::GetTask(id) => self.task(&id)?,
            Call::CancelTask(id) => {
                self.cancel(&id)?;
                Reply::value("canceled")
            }
            Call::GetState { full } => Reply::value(self.blocking(move |inner| state(inner, full)).await?),
            Call::Start => {
                self.blocking(|inner| processes::start(&inner.paths, &*inner.platform, &apply::job_names(&apply::stored(&inner.paths)?)))
                    .await?;
                Reply::value("started")
            }
            Call::Prepare(spec) => self.queue(|_| async move {
                apply::check_generation(&apply::stored(&inner.paths)?, &spec)?;
                apply::prepare(&inner.paths, &inner.blobs, &*inner.platform, &spec).await?;
                Ok(json!("prepared"))
            }),
            Call::Apply(spec) => self.queue(|_| async move {
                apply::check_generation(&apply::stored(&inner.paths)?, &spec)?;
                apply::apply(&inner.paths, &inner.blobs, &*inner.platform, &spec).await?;
                Ok(json!("applied"))
            }),
            Call::Stop => self.queue_blocking(|inner| {
                processes::stop(&inner.paths, &*inner.platform, &apply::job_names(&apply::stored(&inner.paths)?))?;
                Ok(json!("stopped"))
            }),
            Call::Drain(drain) => self.queue(|cancel| async move { run_drain(&inner, drain, &cancel).await }),
            Call::RunScript { script, env } => self.queue(|cancel| async move {
                let script = apply::component(&script)?;
                let jobs = apply::job_names(&apply::stored(&inner.paths)?);
                scripts::run_all(&inner.paths, &jobs, script, &env, &cancel).await?;
                Ok(json!({}))
            }),
            Call::RunErrand { job } => self.queue(|cancel| async move {
                let jobs = apply::job_names(&apply::stored(&inner.paths)?);
                let job = match (job, jobs.as_slice()) {
                    (Some(job), _) if jobs.contains(&job) => job,
                    (None, [only]) => only.clone(),
                    _ => return Err(Error::Refused("it has to be said whose errand is to run".to_owned())),
                };
                Ok(json!(scripts::errand(&inner.paths, &job, &cancel).await?))
            }),
            Call::MountDisk(cid) => self.queue_blocking(move |inner| {
                disks::mount(&inner.paths, &*inner.platform, &cid)?;
                Ok(json!({}))
            }),
            Call::UnmountDisk(cid) => self.queue_blocking(move |inner| {
                Ok(json!({"message": disks::unmount(&inner.paths, &*inner.platform, &cid)?}))
            }),
            Call::ListDisk => {
                self.queue_blocking(|inner| Ok(json!(disks::mounted(&inner.paths, &*inner.platform)?)))
            }
            Call::MigrateDisk => self.queue_blocking(|inner| {
                disks::migrate(&inner.paths, &*inner.platform)?;
                Ok(json!({}))
            }),
            Call::AddPersistentDisk { cid, hint } => self.queue_blocking(move |inner| {
                disks::add(&inner.paths, &cid, hint)?;
                Ok(json!({}))
            }),
            Call::RemovePersistentDisk(cid) => self.queue_blocking(move |inner| {
                disks::remove(&inner.paths, &cid)?;
                Ok(json!({}))
            }),
            Call::FetchLogs { kind, filters } => self.queue(|_| async move {
                let (paths, kinds) = (inner.paths.clone(), kind.clone());
                let pack = tokio::task::spawn_blocking(move || logs::pack(&paths, &kinds, &filters));
                let bytes = pack.await.map_err(panicked)??;
                let sha1 = stolos_release::MultiDigest::sha256(&bytes).to_string();
                let blobstore_id = inner.blobs.put("the logs", bytes).await?;
                Ok(json!(LogsResult { blobstore_id, sha1 }))
            }),
            Call::UploadBlob(blob) => self.queue_blocking(move |inner| {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(blob.payload.expose())
                    .map_err(|error| Error::Refused(format!("the payload of blob `{}` is no base64: {error}", blob.blob_id)))?;
                inner.blobs.keep(&blob.blob_id, &bytes, &blob.checksum)?;
                Ok(json!(blob.blob_id))
            }),
            Call::UpdateSettings(update) => self.queue_blocking(move |inner| {
                update_settings(inner, &update)?;
                Ok(json!("ok"))
            }),
            Call::DeleteArpEntries(entries) => {
                self.blocking(move |inner| {
                    entries.ips.iter().for_each(|ip| inner.platform.forget_neighbour(ip));
                    Ok(())
                })
                .await?;
                Reply::value(json!({}))
            }
            Call::Shutdown => {
                self.blocking(|inner| {
                    let failed = |source| Error::Platform { what: "power the machine off".to_owned(), source };
                    inner.platform.power_off().map_err(failed)
                })
                .await?;
                Reply::value("")
            }
            // BOSH's words for what an agent does not do; a director reads them as "not offered".
            Call::SyncDns { .. } | Call::SyncDnsWithSignedUrl(_) | Call::Ssh(_) => {
                return Err(Error::Refused(format!("unknown message {}", call.method())));
            }
        })
    }

    async fn blocking<T: Send + 'static>(&self, act: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || act(&inner)).await.map_err(panicked)?
    }

    fn queue_blocking(&self, act: impl FnOnce(&Inner) -> Result<Value> + Send + 'static) -> Reply {
        let core = self.clone();
        self.queue(move |_| async move { core.blocking(act).await })
    }

    fn queue<F>(&self, work: impl FnOnce(CancellationToken) -> F) -> Reply
    where
        F: Future<Output = Result<Value>> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        let work: BoxFuture<'static, _> = Box::pin(work(cancel.clone()));
        let id = stolos_base::ids::random_hex(16);
        let number = {
            let mut tasks = self.0.tasks();
            let number = tasks.next;
            tasks.next += 1;
            tasks.all.insert(number, TaskEntry { id: id.clone(), cancel, result: None });
            // The oldest finished ones go; a running one never does.
            while tasks.all.len() > RESULTS_KEPT {
                let Some(oldest) = tasks.all.iter().find(|(_, task)| task.result.is_some()).map(|(number, _)| *number)
                else {
                    break;
                };
                tasks.all.remove(&oldest);
            }
            number
        };
        match self.0.queue.send(Queued { number, work }) {
            Ok(()) => Reply::value(AgentTask::running(id)),
            Err(_) => Reply::exception("the agent is ending"),
        }
    }

    fn task(&self, id: &str) -> Result<Reply> {
        let tasks = self.0.tasks();
        let entry = tasks.all.values().find(|task| task.id == id);
        let entry = entry.ok_or_else(|| Error::Refused(format!("Task with id {id} could not be found")))?;
        Ok(entry.result.clone().unwrap_or_else(|| Reply::value(AgentTask::running(id))))
    }

    fn cancel(&self, id: &str) -> Result<()> {
        let tasks = self.0.tasks();
        let entry = tasks.all.values().find(|task| task.id == id);
        entry.ok_or_else(|| Error::Refused(format!("Task with id {id} could not be found")))?.cancel.cancel();
        Ok(())
    }
}

impl Inner {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs tasks one after the other for as long as the agent lives.
async fn work(inner: std::sync::Weak<Inner>, mut waiting: mpsc::UnboundedReceiver<Queued>) -> Result<(), String> {
    while let Some(Queued { number, work }) = waiting.recv().await {
        let cancelled = inner.upgrade().is_none_or(|inner| {
            inner.tasks().all.get(&number).is_none_or(|task| task.cancel.is_cancelled())
        });
        let result = if cancelled { Err(Error::Canceled) } else { work.await };
        let Some(inner) = inner.upgrade() else { return Ok(()) };
        let reply = match result {
            Ok(value) => Reply::Value(value),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "task failed");
                Reply::exception(chain(&error))
            }
        };
        if let Some(task) = inner.tasks().all.get_mut(&number) {
            task.result = Some(reply);
        }
    }
    Ok(())
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::Platform { what: "do the work".to_owned(), source: std::io::Error::other(error) }
}

fn state(inner: &Inner, full: bool) -> Result<AgentState> {
    let (job_state, processes) = processes::state(&inner.paths, &*inner.platform);
    Ok(AgentState {
        agent_id: inner.settings.agent_id,
        vm: inner.settings.vm.clone(),
        job_state,
        vitals: full.then(|| inner.platform.vitals(&inner.paths.data_tmp(), &inner.paths.store())),
        processes,
        spec: apply::stored(&inner.paths)?,
    })
}

async fn run_drain(inner: &Inner, drain: Drain, cancel: &CancellationToken) -> Result<Value> {
    let now = apply::stored(&inner.paths)?;
    let jobs = apply::job_names(&now);
    let disk = |spec: &ApplySpec| json!({"persistent_disk": spec.persistent_disk}).to_string();
    let mut env = indexmap::IndexMap::from([("BOSH_JOB_STATE".to_owned(), disk(&now))]);
    let (reason, next) = match &drain {
        Drain::Update(next) => ("job_changed", Some(next)),
        Drain::Shutdown(next) => ("job_shutdown", next.as_ref()),
    };
    let mut arguments = vec![reason.to_owned(), "hash_unchanged".to_owned()];
    if let Some(next) = next {
        env.insert("BOSH_JOB_NEXT_STATE".to_owned(), disk(next));
        if next.configuration_hash != now.configuration_hash {
            arguments[1] = "hash_changed".to_owned();
        }
        let changed = next.packages.iter().filter(|(name, package)| {
            now.packages.get(*name).is_none_or(|old| old.sha1 != package.sha1)
        });
        arguments.extend(changed.map(|(name, _)| name.clone()));
    }
    scripts::drain_all(&inner.paths, &jobs, &arguments, &env, cancel).await?;
    Ok(json!(0))
}

fn update_settings(inner: &Inner, update: &UpdateSettings) -> Result<()> {
    let path = inner.paths.updated_settings();
    let before: Option<UpdateSettings> = files::read_json(&path).map_err(Error::file("read", &path))?;
    files::write_json(&path, update, 0o600).map_err(Error::file("write", path))?;
    let before = before.unwrap_or_default();
    // These count at the agent's start only.
    if before.mbus != update.mbus || before.blobstores != update.blobstores {
        inner.restart.cancel();
    }
    Ok(())
}
