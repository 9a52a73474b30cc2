//! Calls a CPI executable, one process a call, with a journal.
//!
//! A call has a directory: `request.json` is written before the process starts and removed when it has ended (it may hold
//! secrets), `reply.json` appears by rename. The process leads a session of its own, so it ends its work and leaves its
//! reply even when the caller dies. A call with an id that has a good reply is not made again; one whose process still runs
//! is waited for: the wrapper around the executable holds a lock on the call's directory.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_base::{IdSource, files};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::error::{Error, Result};
use crate::types::{
    CloudProperties, CreateVm, DiskCid, Info, Metadata, Networks, Size, SnapshotCid, StemcellCid, VmCid, VmResources,
};
use crate::wire::{API_VERSION, Request, Response, to_json};
use crate::Cpi;

/// Runs in the call's directory. File descriptor 9 is the lock; the CPI and what it starts do not get it. The reply is
/// complete when it appears. `set -C` is not used: a former life's partial files are overwritten.
const WRAPPER: &str = r#"exec 9>lock && flock 9 || exit 111
[ -e reply.json ] && exit 0
"$@" <request.json >reply.part 2>stderr.log 9>&-
code=$?
mv -f reply.part reply.json && rm -f request.json
exit $code"#;

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
        f.debug_struct("Runner").field("program", &self.shared.config.program).field("call", &self.call).finish()
    }
}

impl Runner {
    /// A runner of an executable.
    #[must_use]
    pub fn new(config: RunnerConfig, ids: IdSource) -> Self {
        Self { shared: Arc::new(Shared { config, ids, info: OnceCell::new() }), call: None }
    }

    /// The same CPI, whose next call has this id: one that was made before is not made again. Letters, digits, `-`, `_` and
    /// `.` are kept, anything else becomes `_`. Use one id for one method with one set of arguments.
    #[must_use]
    pub fn call(&self, id: &str) -> Self {
        let safe: String =
            id.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
        Self { shared: self.shared.clone(), call: Some(safe.into()) }
    }

    /// Forgets calls that ended before `age` ago, and says how many.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn prune(&self, age: Duration) -> io::Result<usize> {
        let calls = &self.shared.config.calls;
        let mut pruned = 0;
        if !calls.exists() {
            return Ok(0);
        }
        for entry in calls.read_dir_utf8()?.flatten() {
            let reply = entry.path().join("reply.json");
            let old = fs_err::metadata(&reply)
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
            if old {
                files::remove_tree_if_there(entry.path())?;
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
        let directory = self.shared.config.calls.join(&id);
        let failed = |source| Error::Call { method: method.to_owned(), source };
        fs_err::create_dir_all(&directory).map_err(failed)?;
        if let Some(Ok(value)) = read_reply(&directory).map_err(failed)? {
            return decode(method, value);
        }
        // A former attempt failed, and said so or left nonsense: this is a new one.
        files::remove_if_there(&directory.join("reply.json")).map_err(failed)?;
        self.write_request(&directory, method, arguments, &id).map_err(failed)?;
        self.run(&directory, method).await?;
        let reply = read_reply(&directory).map_err(failed)?;
        if self.call.is_none() {
            // Nobody can ask for this call again.
            files::remove_tree_if_there(&directory).map_err(failed)?;
        }
        match reply {
            Some(result) => decode(method, result?),
            None => Err(Error::InvalidResponse {
                method: method.to_owned(),
                problem: format!("it left no reply; see `{directory}/stderr.log`"),
            }),
        }
    }

    fn write_request(&self, directory: &Utf8Path, method: &str, arguments: Vec<Value>, id: &str) -> io::Result<()> {
        let mut context = self.shared.config.context.clone();
        context.insert("director_uuid".to_owned(), json!(self.shared.config.director));
        context.insert("request_id".to_owned(), json!(format!("cpi-{id}")));
        context.insert("vm".to_owned(), json!({"stemcell": {"api_version": 3}}));
        let request =
            Request { method: method.to_owned(), arguments, context: Value::Object(context), api_version: API_VERSION };
        files::write_json(&directory.join("request.json"), &request, 0o600)
    }

    async fn run(&self, directory: &Utf8Path, method: &str) -> Result<()> {
        let config = &self.shared.config;
        let failed = |source| Error::Call { method: method.to_owned(), source };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WRAPPER, "stolos-cpi-call", config.program.as_str()]).args(&config.arguments);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The child must outlive a dropped future and a dead director: it is not killed with its handle.
        command.kill_on_drop(false);
        lead_a_session(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        match tokio::time::timeout(config.limit, child.wait()).await {
            Ok(status) => {
                let status = status.map_err(failed)?;
                if status.code() == Some(111) || status.signal().is_some() {
                    return Err(failed(io::Error::other(format!("the call ended with {status}"))));
                }
                Ok(())
            }
            Err(_) => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait().await;
                Err(Error::TimedOut { method: method.to_owned(), limit_s: config.limit.as_secs() })
            }
        }
    }
}

/// A good or bad reply; `None` when there is none, or none that can be read.
fn read_reply(directory: &Utf8Path) -> io::Result<Option<Result<Value>>> {
    match fs_err::read(directory.join("reply.json")) {
        Ok(bytes) => Ok(serde_json::from_slice::<Response>(&bytes).ok().map(Response::into_result)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn decode<T: DeserializeOwned>(method: &str, value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|error| Error::InvalidResponse { method: method.to_owned(), problem: error.to_string() })
}

#[expect(unsafe_code, reason = "setsid has to be called between fork and exec")]
fn lead_a_session(command: &mut Command) {
    // SAFETY: the closure runs in the forked child before exec and calls only setsid, which is async-signal-safe.
    // JUSTIFICATION: there is no stable way in std to start a child in a new session.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

impl Cpi for Runner {
    fn info(&self) -> BoxFuture<'_, Result<Info>> {
        // One process a call is the protocol; asking for what does not change costs one for the life of the runner.
        Box::pin(async move {
            let info = self.shared.info.get_or_try_init(|| async {
                let plain = Self { shared: self.shared.clone(), call: None };
                plain.invoke::<Info>("info", vec![]).await
            });
            info.await.cloned()
        })
    }

    fn create_stemcell<'a>(&'a self, image: &'a str, properties: &'a CloudProperties) -> BoxFuture<'a, Result<StemcellCid>> {
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

    fn calculate_vm_cloud_properties<'a>(&'a self, resources: &'a VmResources) -> BoxFuture<'a, Result<CloudProperties>> {
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

    fn set_disk_metadata<'a>(&'a self, disk: &'a DiskCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("set_disk_metadata", vec![json!(disk), json!(metadata)]))
    }

    fn resize_disk<'a>(&'a self, disk: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("resize_disk", vec![json!(disk), json!(size)]))
    }

    fn snapshot_disk<'a>(&'a self, disk: &'a DiskCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<SnapshotCid>> {
        Box::pin(self.invoke("snapshot_disk", vec![json!(disk), json!(metadata)]))
    }

    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invoke("delete_snapshot", vec![json!(snapshot)]))
    }
}
