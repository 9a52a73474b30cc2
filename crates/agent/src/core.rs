//! Method calls in, replies out. Knows no transport.
//!
//! Asynchronous methods run one after the other in a worker and are asked for by `get_task`; everything else is answered
//! at once, also while a task runs.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::{Value, json};
use stolos_base::{chain, files};
use stolos_mbus::Reply;
use stolos_mbus::call::{Call, Drain, LogsResult};
use stolos_mbus::settings::Settings;
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::state::{AgentState, Heartbeat};
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Applier};
use crate::blobs::{Blobs, private_directory};
use crate::disks::Disks;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;
use crate::processes::{self, Wanted};
use crate::scripts::Run;
use crate::tasks::{Durable, Tasks, Work};
use crate::{logs, settings};

/// The first pause after a boot that did not bring the jobs up.
const BOOT_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const BOOT_PAUSE_LONGEST: Duration = Duration::from_secs(30);

/// The agent's mind. Cheap to clone.
#[derive(Clone)]
pub struct Core(Arc<Inner>);

struct Inner {
    settings: Settings,
    paths: Paths,
    platform: Arc<dyn Platform>,
    blobs: Blobs,
    tasks: Tasks,
    /// Cancelled when the agent is to end: settings that count at its start have changed.
    restart: CancellationToken,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("agent", &self.0.settings.agent_id)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// An agent with its settings and machine. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the blob store's settings, or files of a former life, cannot be used.
    pub fn new(settings: Settings, paths: Paths, platform: Arc<dyn Platform>) -> Result<Self> {
        let blobs = Blobs::new(paths.clone(), settings.effective_blobstore().clone())?;
        if let Some(own) = paths.spec().parent() {
            fs_err::create_dir_all(own).map_err(Error::file("make", own))?;
        }
        apply::clean_up(&paths)?;
        let (tasks, open) = Tasks::start(paths.tasks())?;
        let core = Self(Arc::new(Inner {
            settings,
            paths,
            platform,
            blobs,
            tasks,
            restart: CancellationToken::new(),
        }));
        for task in open {
            core.update_settings(task);
        }
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

    /// After a boot of the machine: the disk is mounted and the jobs start again, as they were; tried until it works, or until
    /// a director says what to do. Does nothing when the agent alone was restarted.
    pub async fn boot(&self) {
        let mut pause = BOOT_PAUSE;
        while !self.0.paths.booted().exists() {
            let result = {
                // A director's tasks come before or after, not in between.
                let _turn = self.0.tasks.turn().await;
                self.start_again().await
            };
            match result {
                Ok(()) => return,
                Err(error) => tracing::error!(error = %chain(&error), "the jobs could not be started again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BOOT_PAUSE_LONGEST);
        }
    }

    async fn start_again(&self) -> Result<()> {
        let (spec, wanted) = self
            .blocking(|inner| {
                let spec = apply::stored(&inner.paths)?;
                inner.disks().mount_known(spec.persistent_disk > 0)?;
                apply::make_directories(&inner.paths, &*inner.platform, &apply::job_names(&spec))?;
                Ok((spec, Wanted::read(&inner.paths)?))
            })
            .await?;
        let jobs = apply::job_names(&spec);
        if wanted == Wanted::Running {
            // What pre-start made in /run, in the network namespace or among mounts went with the last boot.
            let (env, cancel) = (IndexMap::new(), CancellationToken::new());
            self.0
                .run(&jobs, &env, &cancel, async |run| run.all("pre-start").await)
                .await?;
            self.blocking(move |inner| processes::start(&inner.paths, &*inner.platform, &jobs))
                .await?;
        }
        self.blocking(|inner| inner.mark_booted()).await
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
        let jobs = apply::job_names(&spec);
        let (job_state, shown) = processes::state(&inner.paths, &*inner.platform, &jobs);
        Heartbeat {
            problems: processes::problems(&inner.paths, &*inner.platform, &jobs),
            deployment: spec.deployment.clone(),
            job: spec.job.as_ref().map(|job| job.name.clone()),
            index: spec.index,
            job_state,
            vitals: inner.platform.vitals(&inner.paths.data(), &inner.paths.store()),
            node_id: spec.id.clone().unwrap_or_default(),
            number_of_processes: Some(shown.len() as u64),
            other: serde_json::Map::new(),
        }
    }

    async fn dispatch(&self, call: Call) -> Result<Reply> {
        Ok(match call {
            Call::Ping => Reply::value("pong"),
            Call::Info => Reply::value(json!({"api_version": 1})),
            Call::GetTask(id) => self.0.tasks.get(&id)?,
            Call::CancelTask(id) => {
                self.0.tasks.cancel(&id)?;
                Reply::value("canceled")
            }
            Call::GetState { full } => Reply::value(self.blocking(move |inner| inner.state(full)).await?),
            Call::Start => {
                self.blocking(|inner| {
                    processes::start(&inner.paths, &*inner.platform, &inner.jobs()?)?;
                    inner.mark_booted()
                })
                .await?;
                Reply::value("started")
            }
            Call::Prepare(spec) => self.queue(async move |inner, _| {
                inner.applier().prepare(&spec).await?;
                Ok(json!("prepared"))
            }),
            Call::Apply(spec) => self.queue(async move |inner, _| {
                inner.applier().apply(&spec).await?;
                Ok(json!("applied"))
            }),
            Call::Stop => self.queue_blocking(|inner| {
                processes::stop(&inner.paths, &*inner.platform, &inner.jobs()?)?;
                inner.mark_booted()?;
                Ok(json!("stopped"))
            }),
            Call::Drain(drain) => self.queue(async move |inner, cancel| inner.drain(drain, &cancel).await),
            Call::RunScript { script, env } => self.queue(async move |inner, cancel| {
                let jobs = inner.jobs()?;
                inner
                    .run(&jobs, &env, &cancel, async |run| run.all(&script).await)
                    .await?;
                Ok(json!({}))
            }),
            Call::RunErrand { job } => {
                self.queue(async move |inner, cancel| inner.errand(job, &cancel).await)
            }
            Call::FetchLogs { kind, filters } => {
                self.queue(async move |inner, _| inner.fetch_logs(kind, filters).await)
            }
            Call::UploadBlob(blob) => self.queue_blocking(move |inner| {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(blob.payload.expose())
                    .map_err(|error| {
                        Error::Refused(format!(
                            "the payload of blob `{}` is no base64: {error}",
                            blob.blob_id
                        ))
                    })?;
                inner.blobs.keep(&blob.blob_id, &bytes, &blob.checksum)?;
                Ok(json!(blob.blob_id))
            }),
            Call::UpdateSettings(update) => {
                let task = self.blocking(move |inner| inner.tasks.begin(update)).await?;
                self.update_settings(task)
            }
            Call::DeleteArpEntries(entries) => {
                self.blocking(move |inner| {
                    entries
                        .ips
                        .iter()
                        .for_each(|ip| inner.platform.forget_neighbour(ip));
                    Ok(())
                })
                .await?;
                Reply::value(json!({}))
            }
            // The machine ends once the answer is on its way: see `Core::power_off`.
            Call::Shutdown => Reply::value(""),
            // BOSH's words for what an agent does not do; a director reads them as "not offered".
            Call::SyncDns { .. } | Call::SyncDnsWithSignedUrl(_) | Call::Ssh(_) => {
                return Err(Error::Refused(format!("unknown message {}", call.method())));
            }
            call => self.disk_call(call),
        })
    }

    fn disk_call(&self, call: Call) -> Reply {
        self.queue_blocking(move |inner| {
            let disks = inner.disks();
            Ok(match call {
                Call::MountDisk(cid) => {
                    disks.mount(&cid)?;
                    json!({})
                }
                Call::UnmountDisk(cid) => json!({"message": disks.unmount(&cid)?}),
                Call::ListDisk => json!(disks.mounted()?),
                Call::MigrateDisk => {
                    disks.migrate()?;
                    json!({})
                }
                Call::AddPersistentDisk { cid, hint } => {
                    disks.add(&cid, hint)?;
                    json!({})
                }
                Call::RemovePersistentDisk(cid) => {
                    disks.remove(&cid)?;
                    json!({})
                }
                other => return Err(Error::Refused(format!("unknown message {}", other.method()))),
            })
        })
    }

    /// Ends the machine.
    ///
    /// # Errors
    /// When init does not answer.
    pub async fn power_off(&self) -> Result<()> {
        self.blocking(|inner| {
            inner.platform.power_off().map_err(|source| Error::Platform {
                what: "power the machine off".to_owned(),
                source,
            })
        })
        .await
    }

    /// Queues an update that is noted on disk.
    fn update_settings(&self, task: Durable) -> Reply {
        let core = self.clone();
        let queued = Durable::same(&task);
        self.0.tasks.add_durable(&queued, move |_| -> Work {
            Box::pin(async move {
                let act = move |inner: &Inner| {
                    let update = task.update.as_deref().cloned().unwrap_or_default();
                    let changed = settings::update(&inner.paths, &update);
                    let result = changed.as_ref().map(|_| json!("ok"));
                    let result = result.map_err(|error| Error::Refused(chain(error)));
                    // Before the agent ends, so that its next life can answer.
                    inner.tasks.end(&task, &result)?;
                    if changed.is_ok_and(|changed| changed) {
                        inner.restart.cancel();
                    }
                    result
                };
                core.blocking(act).await
            })
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || act(&inner))
            .await
            .map_err(panicked)?
    }

    fn queue_blocking(&self, act: impl FnOnce(&Inner) -> Result<Value> + Send + 'static) -> Reply {
        let core = self.clone();
        self.0
            .tasks
            .add(move |_| Box::pin(async move { core.blocking(act).await }))
    }

    fn queue<F>(&self, work: impl FnOnce(Arc<Inner>, CancellationToken) -> F) -> Reply
    where
        F: Future<Output = Result<Value>> + Send + 'static,
    {
        let inner = self.0.clone();
        self.0.tasks.add(|cancel| Box::pin(work(inner, cancel)))
    }
}

impl Inner {
    fn jobs(&self) -> Result<Vec<String>> {
        Ok(apply::job_names(&apply::stored(&self.paths)?))
    }

    fn disks(&self) -> Disks<'_> {
        Disks {
            paths: &self.paths,
            settings: &self.settings,
            platform: &*self.platform,
        }
    }

    fn applier(&self) -> Applier<'_> {
        Applier {
            paths: &self.paths,
            blobs: &self.blobs,
            platform: &*self.platform,
        }
    }

    /// Calls scripts of the given jobs.
    async fn run<T>(
        &self,
        jobs: &[String],
        env: &IndexMap<String, String>,
        cancel: &CancellationToken,
        work: impl AsyncFnOnce(&Run<'_>) -> Result<T>,
    ) -> Result<T> {
        let run = Run {
            paths: &self.paths,
            platform: &*self.platform,
            jobs,
            env,
            cancel,
        };
        work(&run).await
    }

    /// The jobs are as they are to be on this boot.
    fn mark_booted(&self) -> Result<()> {
        let mark = self.paths.booted();
        if let Some(parent) = mark.parent() {
            private_directory(parent)?;
        }
        files::write_atomic(&mark, b"", 0o600).map_err(Error::file("write", mark))
    }

    fn state(&self, full: bool) -> Result<AgentState> {
        let spec = apply::stored(&self.paths)?;
        let (job_state, processes) = processes::state(&self.paths, &*self.platform, &apply::job_names(&spec));
        Ok(AgentState {
            agent_id: self.settings.agent_id,
            vm: self.settings.vm.clone(),
            job_state,
            vitals: full.then(|| self.platform.vitals(&self.paths.data(), &self.paths.store())),
            processes,
            spec,
        })
    }

    async fn drain(&self, drain: Drain, cancel: &CancellationToken) -> Result<Value> {
        let now = apply::stored(&self.paths)?;
        let jobs = apply::job_names(&now);
        let (arguments, env) = drain_arguments(&now, &drain);
        self.run(&jobs, &env, cancel, async |run| run.drain(&arguments).await)
            .await?;
        // We have waited ourselves, as the Go agent does.
        Ok(json!(0))
    }

    async fn errand(&self, job: Option<String>, cancel: &CancellationToken) -> Result<Value> {
        let jobs = self.jobs()?;
        let job = match (job, jobs.as_slice()) {
            (Some(job), _) if jobs.contains(&job) => job,
            (Some(job), _) => return Err(Error::Refused(format!("there is no job `{job}`"))),
            (None, [only]) => only.clone(),
            (None, _) => {
                return Err(Error::Refused(
                    "it has to be said whose errand is to run".to_owned(),
                ));
            }
        };
        let result = self
            .run(&jobs, &IndexMap::new(), cancel, async |run| {
                run.errand(&job).await
            })
            .await?;
        Ok(json!(result))
    }

    async fn fetch_logs(&self, kind: String, filters: Vec<String>) -> Result<Value> {
        private_directory(&self.paths.data_tmp())?;
        let file = self.paths.data_tmp().join(stolos_base::ids::random_hex(8));
        let (paths, into) = (self.paths.clone(), file.clone());
        let packed = tokio::task::spawn_blocking(move || logs::pack(&paths, &kind, &filters, &into)).await;
        let sent = match packed.map_err(panicked).flatten() {
            Ok(digest) => self.blobs.put("the logs", &file).await.map(|id| (id, digest)),
            Err(error) => Err(error),
        };
        files::remove_if_there(&file).map_err(Error::file("remove", file))?;
        let (blobstore_id, digest) = sent?;
        let sha1 = digest.to_string();
        Ok(json!(LogsResult { blobstore_id, sha1 }))
    }
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> Error {
    Error::Platform {
        what: "do the work".to_owned(),
        source: std::io::Error::other(error),
    }
}

/// Tells drain scripts of an update which jobs change, separated by blanks. Ours: BOSH says only that some do, and a node whose
/// kubelet gets another flag need not lose its pods.
const CHANGED_JOBS: &str = "STOLOS_CHANGED_JOBS";

/// The jobs of `next` that are not what they are now, and those that go.
fn changed_jobs(now: &ApplySpec, next: &ApplySpec) -> Vec<String> {
    let jobs = |spec: &ApplySpec| -> IndexMap<String, (Option<String>, Option<Value>)> {
        let hashes = spec.other.get("template_hashes").and_then(Value::as_object);
        let jobs = spec.job.iter().flat_map(|job| &job.templates);
        jobs.map(|job| {
            let hash = hashes.and_then(|hashes| hashes.get(&job.name)).cloned();
            (job.name.clone(), (job.version.clone(), hash))
        })
        .collect()
    };
    let (now, next) = (jobs(now), jobs(next));
    let gone = now.keys().filter(|name| !next.contains_key(*name));
    // A director that sends no hashes leaves open what changes.
    let changed = next
        .iter()
        .filter(|(name, job)| job.1.is_none() || now.get(*name) != Some(job));
    changed.map(|(name, _)| name).chain(gone).cloned().collect()
}

/// What drain scripts are told (bosh.md 2.7): what happens to the jobs, whether their configuration changes, and which packages
/// do; the sizes of the disk before and after.
fn drain_arguments(now: &ApplySpec, drain: &Drain) -> (Vec<String>, IndexMap<String, String>) {
    let disk = |spec: &ApplySpec| json!({"persistent_disk": spec.persistent_disk}).to_string();
    let mut env = IndexMap::from([("BOSH_JOB_STATE".to_owned(), disk(now))]);
    let next = match drain {
        Drain::Update(next) => Some(next),
        Drain::Shutdown(next) => next.as_ref(),
    };
    if let Some(next) = next {
        env.insert("BOSH_JOB_NEXT_STATE".to_owned(), disk(next));
    }
    let Drain::Update(next) = drain else {
        return (vec!["job_shutdown".to_owned(), "hash_unchanged".to_owned()], env);
    };
    env.insert(CHANGED_JOBS.to_owned(), changed_jobs(now, next).join(" "));
    let templates = |spec: &ApplySpec| spec.job.as_ref().map(|job| job.templates.clone());
    let job = match (templates(now), templates(next)) {
        (None, _) => "job_new",
        (now, next) if now == next => "job_unchanged",
        _ => "job_changed",
    };
    let hash = match (&now.configuration_hash, &next.configuration_hash) {
        (None, _) => "hash_new",
        (now, next) if now == next => "hash_unchanged",
        _ => "hash_changed",
    };
    let packages = next
        .packages
        .iter()
        .filter(|(name, package)| now.packages.get(*name).is_none_or(|old| old.sha1 != package.sha1));
    let mut arguments = vec![job.to_owned(), hash.to_owned()];
    arguments.extend(packages.map(|(name, _)| name.clone()));
    (arguments, env)
}
