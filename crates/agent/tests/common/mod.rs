//! A machine in a temporary directory: a real init, an agent on the in-memory bus, and the director's end of it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use serde_json::{Value, json};
use stolos_agent::platform::{Linux, Platform};
use stolos_agent::{Agent, Config, Core, Paths};
use stolos_base::ids::{AgentId, IdSource};
use stolos_base::poll;
use stolos_mbus::call::UploadBlob;
use stolos_mbus::memory::MemoryBus;
use stolos_mbus::rights::Peer;
use stolos_mbus::settings::Settings;
use stolos_mbus::spec::ApplySpec;
use stolos_mbus::{AgentClient, Bus, Call};
use stolos_release::MultiDigest;
use stolos_release::tarball::{Level, Packer};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(5);
/// The directory of the init that this program is to be, instead of running tests.
const INIT_VARIABLE: &str = "STOLOS_TEST_INIT";

/// To be called by the test named `init_program`: turns this process into an init when it was started to be one.
pub(crate) fn be_init_if_asked() {
    let Ok(dir) = std::env::var(INIT_VARIABLE) else {
        return;
    };
    let dir = Utf8PathBuf::from(dir);
    let config: stolos_init::Config = serde_json::from_value(json!({
        "agent": null, "log_dir": dir.join("vcap/sys/log"), "own_log_dir": dir.join("init"), "cgroup": null, "unmount": [],
    }))
    .expect("a configuration");
    let start = stolos_init::Start {
        socket: dir.join("init.sock").into(),
        config,
        machine: false,
    };
    let code = stolos_init::run(start).expect("init runs");
    assert_eq!(code, stolos_init::POWERED_OFF);
}

/// The machine.
pub(crate) struct Machine {
    pub(crate) dir: Utf8TempDir,
    pub(crate) paths: Paths,
    pub(crate) bus: MemoryBus,
    pub(crate) id: AgentId,
    init: Option<Child>,
    life: Option<Life>,
    director: Bus,
}

/// One life of the agent.
struct Life {
    agent: Agent,
    core: Core,
}

impl Machine {
    /// Boots a machine, its agent included.
    pub(crate) async fn boot() -> Self {
        Self::boot_with(json!({})).await
    }

    /// As [`Machine::boot`], with further settings.
    pub(crate) async fn boot_with(further: Value) -> Self {
        let mut machine = Self::off(further).await;
        machine.power_on();
        machine.start_agent().await;
        machine
    }

    /// A machine that was made and is off.
    pub(crate) async fn off(further: Value) -> Self {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let id = AgentId::new(&IdSource::random());
        let paths = Paths::below(dir.path());
        let mut settings = json!({
            "agent_id": id, "mbus": "nats://127.0.0.1:1", "vm": {"name": "vm-1"}, "blobstore": {"provider": "dav"},
        });
        for (key, value) in further.as_object().expect("an object") {
            settings[key] = value.clone();
        }
        let file = paths.settings();
        fs_err::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        fs_err::write(&file, settings.to_string()).expect("settings");
        let bus = MemoryBus::new();
        let director = Bus::start(Arc::new(bus.connect(Peer::Director)), IdSource::random()).await;
        Self {
            paths,
            id,
            init: None,
            life: None,
            director: director.expect("the director's end"),
            bus,
            dir,
        }
    }

    /// Starts init.
    pub(crate) fn power_on(&mut self) {
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .args(["--exact", "init_program", "--nocapture", "--test-threads=1"])
            .env(INIT_VARIABLE, self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.init = Some(child.expect("init starts"));
        let socket = self.dir.path().join("init.sock");
        let start = std::time::Instant::now();
        while stolos_init::Client::connect(&socket).is_err() {
            assert!(start.elapsed() < LIMIT, "gave up waiting for init");
            std::thread::sleep(TICK);
        }
    }

    /// Ends the machine and everything in it at once; what a boot would find gone is gone.
    pub(crate) fn power_off(&mut self) {
        self.life = None;
        self.end_init();
        let run = self.paths.booted();
        fs_err::remove_dir_all(run.parent().expect("a parent")).expect("the tmpfs is empty");
    }

    fn end_init(&mut self) {
        let Some(mut init) = self.init.take() else {
            return;
        };
        let pid = init.id().to_string();
        // The second one takes away its patience.
        for _ in 0..2 {
            let _ = Command::new("kill").args(["-TERM", &pid]).output();
        }
        let _ = init.wait();
    }

    /// Starts the agent, in a new life when there was one.
    pub(crate) async fn start_agent(&mut self) {
        self.start_agent_on(Arc::new(Linux::with_socket(self.dir.path().join("init.sock"))))
            .await;
    }

    pub(crate) async fn start_agent_on(&mut self, platform: Arc<dyn Platform>) {
        self.life = None;
        let settings: Settings = stolos_agent::read_settings(&self.paths).expect("settings");
        let core = Core::new(settings, self.paths.clone(), platform).expect("a core");
        let transport = Arc::new(self.bus.connect(Peer::Agent(self.id)));
        let config = Config {
            heartbeat: Duration::from_millis(50),
            ..Config::default()
        };
        let agent = Agent::start(config, core.clone(), transport)
            .await
            .expect("an agent");
        let booting = core.clone();
        stolos_base::task::spawn(stolos_base::task::Kind::Job, "boot", async move {
            booting.boot().await;
            Ok::<(), std::convert::Infallible>(())
        });
        self.life = Some(Life { agent, core });
    }

    /// Ends the agent alone.
    pub(crate) fn kill_agent(&mut self) {
        self.life = None;
    }

    pub(crate) fn core(&self) -> &Core {
        let life = self.life.as_ref().expect("the agent lives");
        assert!(std::ptr::eq(life.agent.core().settings(), life.core.settings()));
        &life.core
    }

    /// The director's view of the agent.
    pub(crate) fn agent(&self) -> AgentClient {
        self.director.agent(self.id, "group/0")
    }

    /// Makes a call and waits for the end of its task.
    pub(crate) async fn call(&self, call: Call) -> Result<Value, String> {
        self.agent()
            .run(&call)
            .await
            .map_err(|error| stolos_base::chain(&error))
    }

    /// Uploads the rendered jobs and gives the spec for them.
    pub(crate) async fn spec(&self, generation: u64, jobs: &[Job]) -> ApplySpec {
        let archive = pack(jobs);
        let digest = MultiDigest::sha256(&archive).to_string();
        let upload = UploadBlob {
            blob_id: format!("blob-{generation}"),
            checksum: digest.clone(),
            payload: base64::engine::general_purpose::STANDARD.encode(&archive).into(),
        };
        self.call(Call::UploadBlob(upload)).await.expect("uploaded");
        let templates: Vec<_> = jobs
            .iter()
            .map(|job| json!({"name": job.name, "version": "1"}))
            .collect();
        serde_json::from_value(json!({
            "generation": generation, "deployment": "dep", "name": "group", "index": 0, "id": "i-1", "az": "z1",
            "job": {"name": "group", "templates": templates},
            "networks": {"n": {"type": "manual", "ip": "10.0.0.2", "prefix": "24", "default": ["dns", "gateway"],
                               "cloud_properties": {"segment": "c1"}, "dns_record_name": "x"}},
            "persistent_disk": 0, "configuration_hash": digest,
            "rendered_templates_archive": {"sha1": digest, "blobstore_id": format!("blob-{generation}")},
        }))
        .expect("a spec")
    }

    /// Uploads, applies and starts.
    pub(crate) async fn deploy(&self, generation: u64, jobs: &[Job]) {
        let spec = self.spec(generation, jobs).await;
        self.agent().apply(spec).await.expect("applied");
        self.agent().start_jobs().await.expect("started");
    }

    /// The id of a running process, as init has it.
    pub(crate) fn pid(&self, name: &str) -> Option<i32> {
        let list = stolos_init::Client::connect(self.dir.path().join("init.sock"))
            .ok()?
            .list()
            .ok()?;
        list.into_iter()
            .find(|one| one.name == name)
            .and_then(|one| match one.state {
                stolos_init::State::Running { pid, .. } => Some(pid),
                _ => None,
            })
    }

    /// Waits for a state of the jobs.
    pub(crate) async fn until_state(&self, state: &str) {
        until(&format!("state {state}"), async || {
            let now = self
                .agent()
                .get_state()
                .await
                .map_err(|error| error.to_string())?;
            if now.job_state.as_str() == state {
                Ok(())
            } else {
                Err(now.job_state.as_str().to_owned())
            }
        })
        .await;
    }

    pub(crate) fn read(&self, path: impl AsRef<Utf8Path>) -> String {
        fs_err::read_to_string(self.dir.path().join(path)).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.life = None;
        self.end_init();
    }
}

/// Waits until something is so.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = std::time::Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) => assert!(start.elapsed() < LIMIT, "gave up waiting for {what}: {last}"),
        }
        tokio::time::sleep(TICK).await;
    }
}

/// A rendered job.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    files: Vec<(String, String)>,
}

pub(crate) fn job(name: &'static str) -> Job {
    Job {
        name,
        files: Vec::new(),
    }
}

impl Job {
    /// A script in `bin`.
    pub(crate) fn script(self, name: &str, body: impl AsRef<str>) -> Self {
        self.file(&format!("bin/{name}"), format!("#!/bin/sh\n{}\n", body.as_ref()))
    }

    /// A process that is a shell script.
    pub(crate) fn process(self, name: &str, body: impl AsRef<str>) -> Self {
        let text = json!({"processes": [{"name": name, "argv": ["/bin/sh", "-c", body.as_ref()], "stop": {"timeout_s": 5}}]});
        self.file("config/processes.yml", text.to_string())
    }

    pub(crate) fn file(mut self, path: &str, content: impl Into<String>) -> Self {
        self.files.push((path.to_owned(), content.into()));
        self
    }
}

fn pack(jobs: &[Job]) -> Vec<u8> {
    let mut packer = Packer::new(Vec::new(), Level::Fast);
    for job in jobs {
        packer
            .directory(&format!("./{}", job.name), 0o755)
            .expect("packed");
        for (path, content) in &job.files {
            // All too open: the agent sets the modes.
            packer
                .bytes(&format!("./{}/{path}", job.name), 0o666, content.as_bytes())
                .expect("packed");
        }
    }
    packer.finish().expect("packed")
}

/// Polls with words.
pub(crate) async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    poll::until(what, TICK, LIMIT, || {
        let good = look();
        async move { if good { Ok(()) } else { Err("not yet".to_owned()) } }
    })
    .await
    .expect("it happens");
}
