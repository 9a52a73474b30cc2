//! For tests only: simulated machines. A CPI that keeps books, and one agent on the in-memory bus for each machine of it.
//!
//! Owns what a director sees of machines, and what can go wrong with them on demand. Never runs a job: an agent answers at once, and keeps
//! the packed templates that it was given. A machine is one small task and a few kilobytes, so that thousands fit into a process.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use stolos_base::ids::AgentId;
use stolos_base::task;
use stolos_cpi::null::NullCpi;
use stolos_cpi::{
    CloudProperties, Cpi, CreateVm, DiskCid, Info, Metadata, Networks, Result, Size, SnapshotCid,
    StemcellCid, VmCid, VmResources,
};
use stolos_mbus::call::Call;
use stolos_mbus::memory::MemoryBus;
use stolos_mbus::message::{AgentTask, Reply};
use stolos_mbus::rights::Peer;
use stolos_mbus::settings::Vm;
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::state::{AgentState, Heartbeat, JobState, Process};
use stolos_mbus::{Endpoint, Transport};
use tokio_util::sync::CancellationToken;

use crate::Infrastructure;

/// Starts something else than a simulated agent in a new machine, the real one for instance. What it gives is dropped when the machine is
/// deleted.
pub type Boot =
    Arc<dyn Fn(CreateVm, Arc<dyn Transport>) -> BoxFuture<'static, Box<dyn Any + Send>> + Send + Sync>;

/// Connects a new machine's agent to another bus than the one in this process.
pub type Join = Arc<dyn Fn(CreateVm) -> BoxFuture<'static, Arc<dyn Transport>> + Send + Sync>;

/// The outside: it outlives directors. Cheap to clone.
#[derive(Clone)]
pub struct Outside(Arc<Inner>);

struct Inner {
    cpi: NullCpi,
    bus: MemoryBus,
    state: Mutex<State>,
}

/// The machines, what was asked of them, and what goes wrong. A label is the value of one of a deployment's tags; a member is `GROUP/INDEX`
/// (in every deployment), or `LABEL GROUP/INDEX`.
#[derive(Default)]
pub struct State {
    /// Replies of CPI calls by id: the journal of the real runner.
    disks_made: HashMap<String, DiskCid>,
    /// Simulated machines.
    pub machines: BTreeMap<AgentId, Machine>,
    /// `GROUP/INDEX METHOD` (or script) of every request but reads, in order.
    pub calls: Vec<String>,
    /// When set, new machines run this instead.
    pub boot: Option<Boot>,
    /// When set, agents of new machines are on that bus.
    pub join: Option<Join>,
    booted: BTreeMap<AgentId, Box<dyn Any + Send>>,
    /// Members whose jobs never run.
    pub broken: Vec<String>,
    /// `MEMBER METHOD` (or script) that does not end.
    pub hanging: Vec<String>,
    /// `MEMBER METHOD` (or script) that fails, with what it says.
    pub failing: HashMap<String, String>,
    /// Agents that say nothing any more, though their machines are there.
    pub frozen: BTreeSet<AgentId>,
    /// Labels of machines that are made and never heard of.
    pub silent: BTreeSet<String>,
    /// Labels of machines that the CPI does not make: its calls go on until the token is cancelled.
    pub stuck: BTreeMap<String, CancellationToken>,
}

/// What an agent knows.
pub struct Machine {
    labels: Vec<String>,
    /// What it is to be.
    pub spec: ApplySpec,
    /// How its jobs are.
    pub job_state: JobState,
    /// Disks that are mounted.
    pub mounted: Vec<String>,
    known_disks: Vec<String>,
    /// Blobs that were uploaded and not applied yet.
    blobs: HashMap<String, Vec<u8>>,
    /// The rendered templates, a gzipped tar; empty when they came by URL.
    pub templates: Vec<u8>,
    /// Set when the templates came by URL.
    pub signed_url: Option<String>,
    tasks: HashMap<String, Option<Reply>>,
    stop: CancellationToken,
}

impl Outside {
    /// No machines yet.
    #[must_use]
    pub fn new(cpi: NullCpi) -> Self {
        Self(Arc::new(Inner {
            cpi,
            bus: MemoryBus::new(),
            state: Mutex::default(),
        }))
    }

    /// The bus that agents are on.
    #[must_use]
    pub fn bus(&self) -> &MemoryBus {
        &self.0.bus
    }

    /// What the CPI holds.
    #[must_use]
    pub fn books(&self) -> stolos_cpi::null::Books {
        self.0.cpi.books()
    }

    /// To look and to make things go wrong; not to be held while waiting.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls so far, forgotten.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Has every simulated agent send a heartbeat that says what it is, as a real one does every few seconds.
    ///
    /// # Panics
    /// When the bus does not take one.
    pub async fn beat(&self) {
        let beats: Vec<(AgentId, Heartbeat)> = {
            let state = self.state();
            let beats = state.machines.iter().map(|(agent, machine)| {
                let spec = &machine.spec;
                let beat = Heartbeat {
                    deployment: spec.deployment.clone(),
                    job: spec.name.clone(),
                    index: spec.index,
                    job_state: machine.job_state,
                    node_id: spec.id.clone().unwrap_or_default(),
                    ..Heartbeat::default()
                };
                (*agent, beat)
            });
            beats.collect()
        };
        for (agent, beat) in beats {
            let transport = self.0.bus.connect(Peer::Agent(agent));
            let payload = serde_json::to_vec(&beat).expect("a heartbeat is JSON");
            let subject = stolos_mbus::subject::heartbeat(agent);
            transport
                .publish(&subject, payload.into())
                .await
                .expect("the bus takes it");
        }
    }

    /// Boots what runs in the machine, once.
    async fn boot(&self, request: &CreateVm) {
        let agent = request.agent_id;
        let (other, join) = {
            let state = self.state();
            if state.machines.contains_key(&agent) || state.booted.contains_key(&agent) {
                return;
            }
            (state.boot.clone(), state.join.clone())
        };
        let transport: Arc<dyn Transport> = match join {
            Some(join) => join(request.clone()).await,
            None => Arc::new(self.0.bus.connect(Peer::Agent(agent))),
        };
        if let Some(boot) = other {
            let running = boot(request.clone(), transport).await;
            self.state().booted.insert(agent, running);
            return;
        }
        let stop = CancellationToken::new();
        let machine = Machine::new(labels(request), stop.clone());
        self.state().machines.insert(agent, machine);
        let mut endpoint = Endpoint::start(transport, agent)
            .await
            .expect("an agent on the bus");
        let first = endpoint.announcer().heartbeat(&Heartbeat::default()).await;
        first.expect("a heartbeat");
        let outside = self.clone();
        task::spawn(task::Kind::Service, "simulated agent", async move {
            loop {
                let incoming = tokio::select! {
                    () = stop.cancelled() => break,
                    incoming = endpoint.next() => incoming,
                };
                let Some(incoming) = incoming else { break };
                if outside.state().frozen.contains(&agent) {
                    continue;
                }
                let reply = outside.answer(agent, &incoming.call);
                if incoming.responder.reply(&reply).await.is_err() {
                    break;
                }
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }

    fn answer(&self, agent: AgentId, call: &Call) -> Reply {
        let mut state = self.state();
        let state = &mut *state;
        let Some(machine) = state.machines.get_mut(&agent) else {
            return Reply::exception("the machine is gone");
        };
        if let Call::GetTask(id) = call {
            return match machine.tasks.get(id) {
                Some(Some(reply)) => reply.clone(),
                Some(None) => Reply::value(AgentTask::running(id.clone())),
                None => Reply::exception(format!("Task with id {id} could not be found")),
            };
        }
        if let Call::CancelTask(id) = call {
            machine
                .tasks
                .insert(id.clone(), Some(Reply::exception("canceled")));
            return Reply::value("canceled");
        }
        let spec = match call {
            Call::Apply(spec) | Call::Prepare(spec) => spec,
            _ => &machine.spec,
        };
        let who = format!(
            "{}/{}",
            spec.name.as_deref().unwrap_or("?"),
            spec.index.unwrap_or(999)
        );
        let what = match call {
            Call::RunScript { script, .. } => script.clone(),
            other => other.method().to_owned(),
        };
        let labelled = machine.labels.iter().map(|label| format!("{label} {who}"));
        let members: Vec<String> = std::iter::once(who.clone()).chain(labelled).collect();
        let broken = state.broken.iter().any(|member| members.contains(member));
        let keys: Vec<String> = members.iter().map(|member| format!("{member} {what}")).collect();
        if !call.is_read() {
            state.calls.push(keys[0].clone());
        }
        if !call.is_asynchronous() {
            return machine.answer(agent, call, broken);
        }
        let reply = match keys.iter().find_map(|key| state.failing.get(key)) {
            Some(text) => Some(Reply::exception(text.clone())),
            None if keys.iter().any(|key| state.hanging.contains(key)) => None,
            None => Some(machine.answer(agent, call, broken)),
        };
        let id = format!("task-{}", machine.tasks.len() + 1);
        machine.tasks.insert(id.clone(), reply);
        Reply::value(AgentTask::running(id))
    }
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outside")
    }
}

impl Machine {
    fn new(labels: Vec<String>, stop: CancellationToken) -> Self {
        Self {
            labels,
            spec: ApplySpec::default(),
            job_state: JobState::Unknown,
            mounted: Vec::new(),
            known_disks: Vec::new(),
            blobs: HashMap::new(),
            templates: Vec::new(),
            signed_url: None,
            tasks: HashMap::new(),
            stop,
        }
    }

    fn answer(&mut self, agent: AgentId, call: &Call, broken: bool) -> Reply {
        match call {
            Call::Ping => Reply::value("pong"),
            Call::GetState { .. } => Reply::value(self.state(agent)),
            Call::UploadBlob(upload) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(upload.payload.expose());
                self.blobs.insert(upload.blob_id.clone(), bytes.expect("base64"));
                Reply::value(&upload.blob_id)
            }
            Call::Prepare(_) => Reply::value("prepared"),
            Call::Apply(spec) => self.apply(spec),
            Call::Start => {
                self.job_state = if broken {
                    JobState::Failing
                } else {
                    JobState::Running
                };
                Reply::value("started")
            }
            Call::Stop => {
                self.job_state = JobState::Stopped;
                Reply::value("stopped")
            }
            Call::Drain(_) => Reply::value(0),
            Call::RunScript { .. } => Reply::value(json!({})),
            Call::AddPersistentDisk { cid, .. } => {
                self.known_disks.push(cid.clone());
                Reply::value(json!({}))
            }
            Call::RemovePersistentDisk(cid) => {
                self.known_disks.retain(|one| one != cid);
                Reply::value(json!({}))
            }
            Call::MountDisk(cid) if self.known_disks.contains(cid) => {
                if !self.mounted.contains(cid) {
                    self.mounted.push(cid.clone());
                }
                Reply::value(json!({}))
            }
            Call::UnmountDisk(cid) => {
                self.mounted.retain(|one| one != cid);
                Reply::value(json!({"message": "Unmounted"}))
            }
            Call::MigrateDisk => {
                // The content is on the second one now, which takes the place of the first.
                self.mounted.remove(0);
                Reply::value(json!({}))
            }
            Call::ListDisk => Reply::value(&self.mounted),
            Call::UpdateSettings(_) => Reply::value("ok"),
            other => Reply::exception(format!("the simulated agent cannot {}", other.method())),
        }
    }

    fn apply(&mut self, spec: &ApplySpec) -> Reply {
        if spec.generation < self.spec.generation {
            return Reply::exception("an older generation");
        }
        let archive = spec
            .rendered_templates_archive
            .as_ref()
            .expect("templates to apply");
        self.signed_url = archive.signed_url.as_ref().map(|url| url.expose().clone());
        if self.signed_url.is_none() {
            let Some(bytes) = self.blobs.remove(&archive.blobstore_id) else {
                return Reply::exception("the templates were never uploaded");
            };
            assert_eq!(
                archive.sha1,
                format!("sha256:{}", stolos_blobs::BlobId::of(&bytes))
            );
            self.templates = bytes;
        }
        self.spec = spec.clone();
        Reply::value("applied")
    }

    fn state(&self, agent: AgentId) -> AgentState {
        AgentState {
            agent_id: agent,
            vm: Vm {
                name: format!("vm-{agent}"),
                id: None,
            },
            job_state: self.job_state,
            vitals: None,
            processes: vec![Process {
                name: "web/server".to_owned(),
                state: self.job_state.as_str().to_owned(),
                ..Process::default()
            }],
            spec: self.spec.clone(),
        }
    }
}

impl Infrastructure for Outside {
    fn journalled(&self, call: &str) -> Arc<dyn Cpi> {
        Arc::new(Caller {
            outside: self.clone(),
            id: Some(call.to_owned()),
        })
    }

    fn plain(&self) -> Arc<dyn Cpi> {
        Arc::new(Caller {
            outside: self.clone(),
            id: None,
        })
    }
}

/// The values of the tags of a machine's deployment: the director tells agents so.
fn labels(request: &CreateVm) -> Vec<String> {
    let tags = request.env["bosh"]["tags"].as_object();
    let values = tags.into_iter().flat_map(|tags| tags.values());
    values.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// One call: remembers disks by its id, boots and ends agents with machines, leaves the rest to the books.
struct Caller {
    outside: Outside,
    id: Option<String>,
}

impl Caller {
    fn cpi(&self) -> &NullCpi {
        &self.outside.0.cpi
    }
}

impl Cpi for Caller {
    fn info(&self) -> BoxFuture<'_, Result<Info>> {
        self.cpi().info()
    }

    fn create_stemcell<'a>(
        &'a self,
        image: &'a str,
        properties: &'a CloudProperties,
    ) -> BoxFuture<'a, Result<StemcellCid>> {
        self.cpi().create_stemcell(image, properties)
    }

    fn delete_stemcell<'a>(&'a self, stemcell: &'a StemcellCid) -> BoxFuture<'a, Result<()>> {
        self.cpi().delete_stemcell(stemcell)
    }

    fn create_vm<'a>(&'a self, request: &'a CreateVm) -> BoxFuture<'a, Result<(VmCid, Networks)>> {
        Box::pin(async move {
            let (stuck, silent) = {
                let state = self.outside.state();
                let labels = labels(request);
                let stuck = labels.iter().find_map(|label| state.stuck.get(label));
                let silent = labels.iter().any(|label| state.silent.contains(label));
                (stuck.cloned(), silent)
            };
            if let Some(stuck) = stuck {
                stuck.cancelled().await;
            }
            let made = self.cpi().create_vm(request).await?;
            if !silent {
                self.outside.boot(request).await;
            }
            Ok(made)
        })
    }

    fn delete_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        let agent: AgentId = vm
            .as_str()
            .trim_start_matches("vm-")
            .parse()
            .expect("an agent's machine");
        let (booted, machine) = {
            let mut state = self.outside.state();
            (state.booted.remove(&agent), state.machines.remove(&agent))
        };
        // Not under the lock: what ends may look at the outside.
        drop(booted);
        if let Some(machine) = machine {
            machine.stop.cancel();
        }
        self.cpi().delete_vm(vm)
    }

    fn has_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<bool>> {
        self.cpi().has_vm(vm)
    }

    fn reboot_vm<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<()>> {
        self.cpi().reboot_vm(vm)
    }

    fn set_vm_metadata<'a>(&'a self, vm: &'a VmCid, metadata: &'a Metadata) -> BoxFuture<'a, Result<()>> {
        self.cpi().set_vm_metadata(vm, metadata)
    }

    fn calculate_vm_cloud_properties<'a>(
        &'a self,
        resources: &'a VmResources,
    ) -> BoxFuture<'a, Result<CloudProperties>> {
        self.cpi().calculate_vm_cloud_properties(resources)
    }

    fn create_disk<'a>(
        &'a self,
        size: Size,
        properties: &'a CloudProperties,
        vm: Option<&'a VmCid>,
    ) -> BoxFuture<'a, Result<DiskCid>> {
        Box::pin(async move {
            let id = self.id.clone().expect("disks are made with a call id");
            let known = self.outside.state().disks_made.get(&id).cloned();
            if let Some(cid) = known {
                return Ok(cid);
            }
            let cid = self.cpi().create_disk(size, properties, vm).await?;
            self.outside.state().disks_made.insert(id, cid.clone());
            Ok(cid)
        })
    }

    fn delete_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        self.cpi().delete_disk(disk)
    }

    fn has_disk<'a>(&'a self, disk: &'a DiskCid) -> BoxFuture<'a, Result<bool>> {
        self.cpi().has_disk(disk)
    }

    fn attach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<Value>> {
        self.cpi().attach_disk(vm, disk)
    }

    fn detach_disk<'a>(&'a self, vm: &'a VmCid, disk: &'a DiskCid) -> BoxFuture<'a, Result<()>> {
        self.cpi().detach_disk(vm, disk)
    }

    fn get_disks<'a>(&'a self, vm: &'a VmCid) -> BoxFuture<'a, Result<Vec<DiskCid>>> {
        self.cpi().get_disks(vm)
    }

    fn set_disk_metadata<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Result<()>> {
        self.cpi().set_disk_metadata(disk, metadata)
    }

    fn resize_disk<'a>(&'a self, disk: &'a DiskCid, size: Size) -> BoxFuture<'a, Result<()>> {
        self.cpi().resize_disk(disk, size)
    }

    fn snapshot_disk<'a>(
        &'a self,
        disk: &'a DiskCid,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<SnapshotCid>> {
        self.cpi().snapshot_disk(disk, metadata)
    }

    fn delete_snapshot<'a>(&'a self, snapshot: &'a SnapshotCid) -> BoxFuture<'a, Result<()>> {
        self.cpi().delete_snapshot(snapshot)
    }
}
