//! What tests see of simulated machines, and machines that run the real agent.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use stolos_agent::paths::Paths;
use stolos_agent::{Agent, Core};
use stolos_base::ids::AgentId;
use stolos_cpi::CreateVm;
use stolos_director::testing::{Boot, Machine};
use stolos_mbus::Transport;
use stolos_mbus::call::Call;
use stolos_mbus::message::Reply;
use stolos_mbus::settings::Settings;
use stolos_mbus::state::AgentState;

/// Path → content of the rendered files that a machine has.
pub(crate) fn files(machine: &Machine) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(machine.templates.as_slice()));
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

/// The real agents of all machines that were made and are there.
#[derive(Clone, Default)]
pub(crate) struct RealAgents(Arc<Mutex<BTreeMap<AgentId, Core>>>);

/// Ends with the machine.
struct Running {
    agent: Agent,
    all: RealAgents,
}

impl Drop for Running {
    fn drop(&mut self) {
        let id = self.agent.core().settings().agent_id;
        self.all.0.lock().expect("no test panics with it").remove(&id);
    }
}

impl RealAgents {
    /// Machines below `root` that run the real agent, with packages from `packages`.
    pub(crate) fn boot(&self, root: Utf8PathBuf, packages: Utf8PathBuf) -> Boot {
        let all = self.clone();
        Arc::new(move |request, transport| {
            let (all, root, packages) = (all.clone(), root.clone(), packages.clone());
            Box::pin(async move {
                Box::new(all.start(&request, transport, &root, &packages).await) as Box<dyn Any + Send>
            })
        })
    }

    async fn start(
        self,
        request: &CreateVm,
        transport: Arc<dyn Transport>,
        root: &Utf8Path,
        packages: &Utf8Path,
    ) -> Running {
        let agent = request.agent_id;
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
        let real = Agent::start(stolos_agent::Config::default(), core.clone(), transport).await;
        self.0.lock().expect("no test panics with it").insert(agent, core);
        Running {
            agent: real.expect("an agent on the bus"),
            all: self,
        }
    }

    /// Asks them how they are.
    pub(crate) async fn states(&self) -> Vec<AgentState> {
        let cores: Vec<Core> = self
            .0
            .lock()
            .expect("no test panics with it")
            .values()
            .cloned()
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
}
