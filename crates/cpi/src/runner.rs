//! Calls a CPI executable, one process a call, with a journal.
//!
//! A call has a directory: `request.json` is written before the process starts and removed when it has ended (it may hold
//! secrets), `reply.json` appears by rename, `status.json` says which process it is and how it ended, `stderr.log` is its
//! error output. The process leads a session of its own, so it ends its work and leaves its reply even when the caller dies.
//! A call with an id that has a good reply is not made again; one whose process still runs is waited for.

use std::fs::File;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_base::process::{Process, set_session};
use stolos_base::{IdSource, files};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::Cpi;
use crate::error::{Error, Result};
use crate::journal::{Begin, Entry, State, Status};
use crate::types::{
    CloudProperties, CreateVm, DiskCid, Info, Metadata, Networks, Size, SnapshotCid, StemcellCid, VmCid,
    VmResources,
};
use crate::wire::{API_VERSION, CALL_ID, Request, Response, to_json};

/// Runs in the call's directory. Its standard input is the held lock of the call; the CPI and what it starts do not get it.
/// It is a shell, because the reply must reach its final name, and the secrets must go, even when the caller dies meanwhile.
const WRAPPER: &str = r#"umask 077
"$@" <request.json >reply.part 2>>stderr.log
code=$?
[ -s reply.part ] && mv -f reply.part reply.json
rm -f request.json
exit $code"#;

/// How often a call that somebody else has started is looked at.
const BUSY_INTERVAL: Duration = Duration::from_millis(20);

/// How a CPI is called.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// The executable.
    pub program: Utf8PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where calls are journalled.
    pub calls: Utf8PathBuf,
    /// Goes to `context.director_uuid`.
    pub director: String,
    /// Properties of the CPI config; merged into `context`.
    pub context: serde_json::Map<String, Value>,
    /// A call that takes longer is killed: making a machine takes minutes on slow clouds.
    pub limit: Duration,
}

/// A CPI behind an executable. Cheap to clone.
#[derive(Clone)]
pub struct Runner {
    shared: Arc<Shared>,
    call: Option<Arc<str>>,
}

struct Shared {
    config: RunnerConfig,
    ids: IdSource,
    info: OnceCell<Info>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("program", &self.shared.config.program)
            .field("call", &self.call)
            .finish()
    }
}

impl Runner {
    /// A runner of an executable.
    #[must_use]
    pub fn new(config: RunnerConfig, ids: IdSource) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                ids,
                info: OnceCell::new(),
            }),
            call: None,
        }
    }

    /// The same CPI, whose next call has this id: one that was made before is not made again. Letters, digits, `-`, `_` and
    /// `.` are kept, anything else becomes `_`. Use one id for one method with one set of arguments.
    #[must_use]
    pub fn call(&self, id: &str) -> Self {
        Self {
            shared: self.shared.clone(),
            call: Some(directory_name(id).into()),
        }
    }

    /// Ends a running call with SIGKILL for its whole session; whoever waits for it gets [`Error::Cancelled`]. A call that does
    /// not run is left as it is.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn cancel(&self, id: &str) -> io::Result<()> {
        let entry = Entry::new(&self.shared.config.calls, &directory_name(id));
        while entry.dir.exists() && entry.lock()?.is_none() {
            // Between taking the lock and recording the process there is an instant without one.
            if let Some(status) = entry.status()?.filter(|status| status.process.is_some()) {
                return end(&entry, status, State::Cancelled);
            }
            tokio::time::sleep(BUSY_INTERVAL).await;
        }
        Ok(())
    }

    /// Forgets calls that ended before `age` ago, and says how many. Requests of calls whose processes were killed go too,
    /// whatever their age: they may hold secrets.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn prune(&self, age: Duration) -> io::Result<usize> {
        let calls = &self.shared.config.calls;
        let mut pruned = 0;
        if !calls.exists() {
            return Ok(0);
        }
        for entry in calls.read_dir_utf8()? {
            let entry = Entry {
                dir: entry?.into_path(),
            };
            let Some(_lock) = entry.lock()? else { continue };
            entry.forget_request()?;
            let old = fs_err::metadata(entry.dir.join("status.json"))
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
            if old {
                files::remove_tree_if_there(&entry.dir)?;
                pruned += 1;
            }
        }
        Ok(pruned)
    }

    async fn invoke<T: DeserializeOwned>(&self, method: &str, arguments: Vec<Value>) -> Result<T> {
        let id = match &self.call {
            Some(id) => id.to_string(),
            None => format!("{method}-{}", self.shared.ids.next()),
        };
        let entry = Entry::new(&self.shared.config.calls, &id);
        let reply = self.reply(&entry, self.request(method, arguments, &id)).await?;
        if self.call.is_none() {
            // Nobody can ask for this call again.
            files::remove_tree_if_there(&entry.dir).map_err(|source| failed(method, source))?;
        }
        serde_json::from_value(reply.into_result()?).map_err(|error| Error::InvalidResponse {
            method: method.to_owned(),
            problem: error.to_string(),
        })
    }

    fn request(&self, method: &str, arguments: Vec<Value>, id: &str) -> Request {
        let mut context = self.shared.config.context.clone();
        context.insert("director_uuid".to_owned(), json!(self.shared.config.director));
        context.insert("request_id".to_owned(), json!(format!("cpi-{id}")));
        context.insert("vm".to_owned(), json!({"stemcell": {"api_version": 3}}));
        if self.call.is_some() {
            context.insert(CALL_ID.to_owned(), json!(id));
        }
        Request {
            method: method.to_owned(),
            arguments,
            context: Value::Object(context),
            api_version: API_VERSION,
        }
    }

    /// The journalled reply, that of the running process, or that of a new one.
    async fn reply(&self, entry: &Entry, request: Request) -> Result<Response> {
        let begun = Instant::now();
        let method = request.method.clone();
        let fail = |source| failed(&method, source);
        let request = Arc::new(request);
        let mut waited = false;
        loop {
            let (at, asked) = (entry.clone(), Arc::clone(&request));
            let begin = tokio::task::spawn_blocking(move || at.begin(&asked, waited))
                .await
                .map_err(|error| fail(io::Error::other(error)))?;
            match begin.map_err(fail)? {
                Begin::Replied(reply) => return Ok(reply),
                Begin::Start(lock, status) => {
                    let child = self.start(entry, &lock).map_err(fail)?;
                    drop(lock);
                    return self.finish(entry, child, status).await;
                }
                Begin::Busy => waited = true,
            }
            tokio::time::sleep(BUSY_INTERVAL).await;
            let Some(status) = entry.status().map_err(fail)? else {
                continue;
            };
            if let Some(error) = self.ended_on_purpose(&status) {
                return Err(error);
            }
            // The process may be one of a dead caller, whose limit nobody watches any more.
            if status.state == State::Started && begun.elapsed() > self.shared.config.limit {
                end(entry, status, State::TimedOut).map_err(fail)?;
                return Err(Error::TimedOut {
                    method,
                    limit_s: self.shared.config.limit.as_secs(),
                });
            }
        }
    }

    fn start(&self, entry: &Entry, lock: &File) -> io::Result<Child> {
        let config = &self.shared.config;
        // The shell would say only in words that there is no such program.
        if config.program.components().count() > 1 {
            fs_err::metadata(&config.program)?;
        }
        let mut command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", WRAPPER, "stolos-cpi-call", config.program.as_str()])
            .args(&config.arguments);
        command
            .current_dir(&entry.dir)
            .stdin(lock.try_clone()?)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // As in BOSH: a CPI gets what it needs in its request.
        command.env_clear();
        for name in ["PATH", "HOME", "TMPDIR", "STOLOS_LOG"] {
            if let Ok(value) = std::env::var(name) {
                command.env(name, value);
            }
        }
        set_session(&mut command);
        // Not killed with its handle: the child outlives a dropped future and a dead director.
        Command::from(command).kill_on_drop(false).spawn()
    }

    /// Records the process, waits for its end, reads its reply. Dropping this future leaves the process running.
    async fn finish(&self, entry: &Entry, mut child: Child, mut status: Status) -> Result<Response> {
        let method = status.method.clone();
        let fail = |source| failed(&method, source);
        status.process = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Process::of);
        entry.set_status(&status).map_err(fail)?;
        match tokio::time::timeout(self.shared.config.limit, child.wait()).await {
            Ok(ended) => drop(ended.map_err(fail)?),
            Err(_) => {
                end(entry, status.clone(), State::TimedOut).map_err(fail)?;
                child.wait().await.map_err(fail)?;
            }
        }
        entry.forget_request().map_err(fail)?;
        if let Some(error) = entry
            .status()
            .map_err(fail)?
            .and_then(|status| self.ended_on_purpose(&status))
        {
            return Err(error);
        }
        let reply = entry.reply().map_err(fail)?;
        status.state = if matches!(reply, Some(Ok(_))) {
            State::Done
        } else {
            State::Died
        };
        entry.set_status(&status).map_err(fail)?;
        let problem = match reply {
            Some(Ok(reply)) => return Ok(reply),
            Some(Err(why)) => why,
            None => "it left no reply".to_owned(),
        };
        let words = entry.stderr_tail();
        let problem = if words.is_empty() {
            problem
        } else {
            format!("{problem}; {words}")
        };
        Err(Error::InvalidResponse {
            method: status.method,
            problem,
        })
    }

    fn ended_on_purpose(&self, status: &Status) -> Option<Error> {
        let method = status.method.clone();
        match status.state {
            State::TimedOut => Some(Error::TimedOut {
                method,
                limit_s: self.shared.config.limit.as_secs(),
            }),
            State::Cancelled => Some(Error::Cancelled { method }),
            State::Started | State::Done | State::Died => None,
        }
    }
}

/// Records why, then ends the session.
fn end(entry: &Entry, status: Status, state: State) -> io::Result<()> {
    tracing::warn!(call = %entry.dir, method = %status.method, ?state, "ending a cpi call");
    entry.set_status(&Status { state, ..status })?;
    entry.kill()?;
    entry.forget_request()
}

fn failed(method: &str, source: io::Error) -> Error {
    Error::Call {
        method: method.to_owned(),
        source,
    }
}

fn directory_name(id: &str) -> String {
    let safe: String = id
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    if safe.is_empty() || safe.starts_with('.') {
        format!("_{safe}")
    } else {
        safe
    }
}

impl Cpi for Runner {
    fn info(&self) -> BoxFuture<'_, Result<Info>> {
        // One process a call is the protocol; asking for what does not change costs one for the life of the runner.
        Box::pin(async move {
            let info = self.shared.info.get_or_try_init(|| async {
                let plain = Self {
                    shared: self.shared.clone(),
                    call: None,
                };
                plain.invoke::<Info>("info", vec![]).await
            });
            info.await.cloned()
        })
    }

    fn create_stemcell<'a>(
        &'a self,
        image: &'a str,
        properties: &'a CloudProperties,
    ) -> BoxFuture<'a, Result<StemcellCid>> {
        Box::pin(self.invoke("create_stemcell", vec![json!(image), json!(properties)]))
    }

    fn delete_stemcell<'a>(&'a self, stemcell: &'a StemcellCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("delete_stemcell", vec![json!(stemcell)]))
    }

    fn create_vm<'a>(&'a self, request: &'a CreateVm) -> BoxFuture<'a, Result<(VmCid, Networks)>> {
        Box::pin(async move {
            let networks = to_json(&request.networks)?;
            let arguments = vec![
                json!(request.agent_id),
                json!(request.stemcell),
                json!(request.cloud_properties),
                networks,
                json!(request.disks),
                request.env.clone(),
            ];
            self.invoke("create_vm", arguments).await
        })
    }

    fn delete_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("delete_vm", vec![json!(vm)]))
    }

    fn has_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.invoke("has_vm", vec![json!(vm)]))
    }

    fn reboot_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("reboot_vm", vec![json!(vm)]))
    }

    fn set_vm_metadata<'a>(&'a self, vm: &'a VmCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("set_vm_metadata", vec![json!(vm), json!(metadata)]))
    }

    fn calculate_vm_cloud_properties<'a>(
        &'a self,
        resources: &'a VmResources,
    ) -> BoxFuture<'a, Result<CloudProperties>> {
        Box::pin(self.invoke("calculate_vm_cloud_properties", vec![json!(resources)]))
    }

    fn create_disk<'a>(
        &'a self,
        size: Size,
        properties: &'a CloudProperties,
        vm: Option<&'a VmCid>,
    ) -> BoxFuture<'a, Result<DiskCid>> {
        Box::pin(self.invoke("create_disk", vec![json!(size), json!(properties), json!(vm)]))
    }

    fn delete_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("delete_disk", vec![json!(disk)]))
    }

    fn has_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.invoke("has_disk", vec![json!(disk)]))
    }

    fn attach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<Value>> {
        Box::pin(self.invoke("attach_disk", vec![json!(vm), json!(disk)]))
    }

    fn detach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("detach_disk", vec![json!(vm), json!(disk)]))
    }

    fn get_disks<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<Vec<DiskCid>>> {
        Box::pin(self.invoke("get_disks", vec![json!(vm)]))
    }

    fn set_disk_metadata<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("set_disk_metadata", vec![json!(disk), json!(metadata)]))
    }

    fn resize_disk<'a>(&'a self, disk: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("resize_disk", vec![json!(disk), json!(size)]))
    }

    fn snapshot_disk<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<SnapshotCid>> {
        Box::pin(self.invoke("snapshot_disk", vec![json!(disk), json!(metadata)]))
    }

    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("delete_snapshot", vec![json!(snapshot)]))
    }
}
