//! Simulated machines: a CPI that keeps books, and one agent on the in-memory bus for each machine of it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use camino::{Utf8Path, Utf8PathBuf};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use stolos_agent::paths::Paths;
use stolos_agent::{Agent as RealAgent, Core};
use stolos_base::ids::AgentId;
use stolos_base::task;
use stolos_cpi::null::NullCpi;
use stolos_cpi::{
    CloudProperties, Cpi, CreateVm, DiskCid, Info, Metadata, Networks, Result, Size, SnapshotCid,
    StemcellCid, VmCid, VmResources,
};
use stolos_director::Infrastructure;
use stolos_mbus::call::Call;
use stolos_mbus::memory::MemoryBus;
use stolos_mbus::message::{AgentTask, Reply};
use stolos_mbus::rights::Peer;
use stolos_mbus::settings::{Settings, Vm};
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::state::{AgentState, Heartbeat, JobState, Process};
use stolos_mbus::{Endpoint, Transport};
use tokio_util::sync::CancellationToken;

/// The outside: it outlives directors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outside(Arc<Inner>);

struct Inner {
    pub(crate) cpi: NullCpi,
    pub(crate) bus: MemoryBus,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Replies of CPI calls by id: the journal of the real runner.
    disks_made: HashMap<String, DiskCid>,
    pub(crate) machines: BTreeMap<AgentId, Machine>,
    /// `group/index method` (and script) of every request but reads, in order.
    pub(crate) calls: Vec<String>,
    /// When set, machines run the real agent below this directory, with packages from the second one.
    pub(crate) real: Option<(Utf8PathBuf, Utf8PathBuf)>,
    real_agents: BTreeMap<AgentId, RealAgent>,
    /// `group/index` whose jobs never run.
    pub(crate) broken: Vec<String>,
    /// `group/index script` that does not end.
    pub(crate) hanging: Vec<String>,
    /// `group/index script` that fails, with what it says.
    pub(crate) failing: HashMap<String, String>,
}

/// What an agent knows.
pub(crate) struct Machine {
    pub(crate) spec: ApplySpec,
    pub(crate) job_state: JobState,
    pub(crate) mounted: Vec<String>,
    known_disks: Vec<String>,
    blobs: HashMap<String, Vec<u8>>,
    /// Path → content of the rendered files.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Set when the templates came by URL.
    pub(crate) signed_url: Option<String>,
    tasks: HashMap<String, Option<Reply>>,
    stop: CancellationToken,
}

impl Outside {
    pub(crate) fn new(cpi: NullCpi) -> Self {
        Self(Arc::new(Inner {
            cpi,
            bus: MemoryBus::new(),
            state: Mutex::default(),
        }))
    }

    pub(crate) fn bus(&self) -> &MemoryBus {
        &self.0.bus
    }

    pub(crate) fn books(&self) -> stolos_cpi::null::Books {
        self.0.cpi.books()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no test panics with it")
    }

    /// The calls so far, forgotten.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Boots the machine's real agent, once.
    async fn boot_real(&self, request: &CreateVm, root: Utf8PathBuf, packages: &Utf8Path) {
        let agent = request.agent_id;
        if self.state().real_agents.contains_key(&agent) {
            return;
        }
        let settings = json!({"agent_id": agent, "vm": {"name": format!("vm-{agent}")},
                              "networks": request.networks, "env": request.env});
        let settings: Settings = serde_json::from_value(settings).expect("settings as the CPI writes them");
        let paths = Paths::below(&root.join(agent.to_string()));
        let shared = paths.shared_packages();
        fs_err::create_dir_all(shared.parent().expect("a parent")).expect("a directory");
        fs_err::os::unix::fs::symlink(packages, &shared).expect("packages");
        let core = Core::new(
            settings,
            paths,
            Arc::new(stolos_agent::platform::Memory::default()),
        )
        .expect("an agent");
        core.boot().await;
        let transport: Arc<dyn Transport> = Arc::new(self.0.bus.connect(Peer::Agent(agent)));
        let real = RealAgent::start(stolos_agent::Config::default(), core, transport).await;
        self.state()
            .real_agents
            .insert(agent, real.expect("an agent on the bus"));
    }

    /// Asks the real agents how they are.
    pub(crate) async fn real_states(&self) -> Vec<AgentState> {
        let cores: Vec<Core> = self
            .state()
            .real_agents
            .values()
            .map(|agent| agent.core().clone())
            .collect();
        let mut states = Vec::new();
        for core in cores {
            match core.handle(Call::GetState { full: false }).await {
                Reply::Value(value) => states.push(serde_json::from_value(value).expect("a state")),
                Reply::Exception(exception) => panic!("{exception:?}"),
            }
        }
        states
    }

    /// Boots the machine's agent, once.
    async fn boot(&self, agent: AgentId) {
        let stop = CancellationToken::new();
        {
            let mut state = self.state();
            if state.machines.contains_key(&agent) {
                return;
            }
            let machine = Machine {
                spec: ApplySpec::default(),
                job_state: JobState::Unknown,
                mounted: Vec::new(),
                known_disks: Vec::new(),
                blobs: HashMap::new(),
                files: BTreeMap::new(),
                signed_url: None,
                tasks: HashMap::new(),
                stop: stop.clone(),
            };
            state.machines.insert(agent, machine);
        }
        let transport: Arc<dyn Transport> = Arc::new(self.0.bus.connect(Peer::Agent(agent)));
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
        if !call.is_read() {
            state.calls.push(format!("{who} {what}"));
        }
        let key = format!("{who} {what}");
        if !call.is_asynchronous() {
            return machine.answer(agent, call, state.broken.contains(&who));
        }
        let reply = match state.failing.get(&key) {
            Some(text) => Some(Reply::exception(text.clone())),
            None if state.hanging.contains(&key) => None,
            None => Some(machine.answer(agent, call, state.broken.contains(&who))),
        };
        let id = format!("task-{}", machine.tasks.len() + 1);
        machine.tasks.insert(id.clone(), reply);
        Reply::value(AgentTask::running(id))
    }
}

impl Machine {
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
            let Some(bytes) = self.blobs.get(&archive.blobstore_id) else {
                return Reply::exception("the templates were never uploaded");
            };
            assert_eq!(
                archive.sha1,
                format!("sha256:{}", stolos_blobs::BlobId::of(bytes))
            );
            self.files = unpack(bytes);
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

pub(crate) fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let path = path.strip_prefix("./").expect("as BOSH packs").to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        files.insert(path, content);
    }
    files
}

impl Infrastructure for Outside {
    fn journalled(&self, call: &str) -> Arc<dyn Cpi> {
        Arc::new(Call1 {
            outside: self.clone(),
            id: Some(call.to_owned()),
        })
    }

    fn plain(&self) -> Arc<dyn Cpi> {
        Arc::new(Call1 {
            outside: self.clone(),
            id: None,
        })
    }
}

/// One call: remembers disks by its id, boots and ends agents with machines, leaves the rest to the books.
struct Call1 {
    outside: Outside,
    id: Option<String>,
}

impl Call1 {
    fn cpi(&self) -> &NullCpi {
        &self.outside.0.cpi
    }
}

impl Cpi for Call1 {
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
            let made = self.cpi().create_vm(request).await?;
            let real = self.outside.state().real.clone();
            match real {
                Some((root, packages)) => self.outside.boot_real(request, root, &packages).await,
                None => self.outside.boot(request.agent_id).await,
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
        self.outside.state().real_agents.remove(&agent);
        if let Some(machine) = self.outside.state().machines.remove(&agent) {
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
