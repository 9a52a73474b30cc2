//! What the tests of the bus share: a simulated agent, and a real server with its admission service.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use futures::future::BoxFuture;
use jiff::Timestamp;
use stolos_base::ids::{AgentId, IdSource};
use stolos_base::pki::{Authority, Identity, Leaf, Usage};
use stolos_base::process::Process;
use stolos_base::{Clock, task};
use stolos_mbus::callout::{DirectoryError, Keys};
use stolos_mbus::message::AgentTask;
use stolos_mbus::rights::Peer;
use stolos_mbus::{
    AgentDirectory, AuthCallout, Call, Endpoint, NatsServer, NatsTransport, Reply, Transport, nats, server,
};

/// How long a test waits for what must happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// How often it looks.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// An agent that answers `ping`, and whose `start`-ed tasks run until `Script::finish`.
pub(crate) async fn simulated_agent(transport: Arc<dyn Transport>, agent: AgentId) -> Arc<Script> {
    let mut endpoint = Endpoint::start(transport, agent).await.expect("an endpoint");
    let script = Arc::new(Script::default());
    let shared = script.clone();
    task::spawn(task::Kind::Connection, "simulated agent", async move {
        while let Some(incoming) = endpoint.next().await {
            let reply = shared.answer(&incoming.call);
            incoming
                .responder
                .reply(&reply)
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    });
    script
}

/// What a simulated agent was asked, and what its tasks come to.
#[derive(Default)]
pub(crate) struct Script {
    calls: Mutex<Vec<&'static str>>,
    outcome: Mutex<Option<Reply>>,
}

impl Script {
    /// All tasks end with this from now on.
    pub(crate) fn finish(&self, reply: Reply) {
        *self.outcome.lock().expect("not poisoned") = Some(reply);
    }

    /// How often a method was asked for, not counting repetitions of one request.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.calls
            .lock()
            .expect("not poisoned")
            .iter()
            .filter(|one| **one == method)
            .count()
    }

    fn answer(&self, call: &Call) -> Reply {
        self.calls.lock().expect("not poisoned").push(call.method());
        match call {
            Call::Ping => Reply::value("pong"),
            Call::Stop => Reply::value(AgentTask::running("task-1")),
            Call::GetTask(_) => self
                .outcome
                .lock()
                .expect("not poisoned")
                .clone()
                .unwrap_or_else(|| Reply::value(AgentTask::running("task-1"))),
            Call::CancelTask(_) => Reply::value("canceled"),
            Call::MountDisk(cid) => Reply::exception(format!("no disk {cid}")),
            Call::Info => Reply::value("x".repeat(2 * 1024 * 1024)),
            _ => Reply::value(serde_json::json!({})),
        }
    }
}

/// Where the real server is: the environment, else the build cache.
pub(crate) fn nats_server() -> Result<Utf8PathBuf, String> {
    if let Ok(path) = std::env::var("STOLOS_NATS_SERVER") {
        return Ok(path.into());
    }
    let cache = std::env::var("STOLOS_CACHE")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache/stolos")))
        .map_err(|_| "neither STOLOS_NATS_SERVER nor STOLOS_CACHE nor HOME is set".to_owned())?;
    let mut found = Vec::new();
    search(Utf8Path::new(&cache), 6, &mut found);
    found
        .into_iter()
        .max_by_key(|path| {
            fs_err::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .ok_or_else(|| format!("no nats-server below {cache}; run `stolos-build upstream nats-server`"))
}

fn search(directory: &Utf8Path, depth: u32, found: &mut Vec<Utf8PathBuf>) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(entries) = directory.read_dir_utf8() else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = fs_err::symlink_metadata(entry.path()) else {
            continue;
        };
        if metadata.is_dir() && depth > 0 {
            search(entry.path(), depth - 1, found);
        } else if metadata.is_file()
            && entry.file_name() == "nats-server"
            && metadata.permissions().mode() & 0o111 != 0
        {
            found.push(entry.path().to_owned());
        }
    }
}

/// Agents that are admitted.
#[derive(Default)]
pub(crate) struct Known(pub(crate) Mutex<HashSet<AgentId>>);

impl AgentDirectory for Known {
    fn admits(&self, peer: Peer) -> BoxFuture<'_, Result<bool, DirectoryError>> {
        let known = peer
            .agent()
            .is_some_and(|id| self.0.lock().expect("not poisoned").contains(&id));
        Box::pin(std::future::ready(Ok(known)))
    }
}

/// A server's surroundings: directory, CA, keys, known agents.
pub(crate) struct World {
    pub(crate) directory: Utf8TempDir,
    pub(crate) ca: Authority,
    pub(crate) keys: Keys,
    pub(crate) known: Arc<Known>,
    pub(crate) ids: IdSource,
    program: Utf8PathBuf,
    identity: Identity,
    listen: std::net::SocketAddr,
}

impl World {
    /// `None`, and the reason on stderr, where there is no server to be had.
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub(crate) fn new() -> Option<Self> {
        stolos_base::tls::install_provider();
        let program = match nats_server() {
            Ok(program) => program,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return None;
            }
        };
        let ca = authority();
        let leaf = server::leaf(Ipv4Addr::LOCALHOST.into());
        let identity = ca.issue(&leaf, Timestamp::now()).expect("a server certificate");
        Some(Self {
            directory: camino_tempfile::tempdir().expect("a temporary directory"),
            keys: Keys::generate().expect("keys"),
            known: Arc::default(),
            ids: IdSource::random(),
            program,
            identity,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            ca,
        })
    }

    pub(crate) fn server_config(&self) -> server::Config {
        server::Config {
            name: "stolos".to_owned(),
            program: self.program.clone(),
            directory: self.directory.path().join("nats"),
            log: self.directory.path().join("nats.log"),
            listen: self.listen,
            identity: self.identity.clone(),
            client_ca: self.ca.certificate().to_owned(),
            keys: self.keys.public().expect("public keys"),
            cluster: None,
        }
    }

    /// Configurations of servers that make a cluster. Their directories are `nats`, `nats-2`, ….
    pub(crate) fn cluster(&self, servers: usize) -> Vec<server::Config> {
        // All at once, so that no two are the same.
        let ports: Vec<std::net::TcpListener> = (0..2 * servers)
            .map(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))
            .collect();
        let address = |n: usize| ports[n].local_addr().expect("an address");
        let ca = authority();
        (0..servers)
            .map(|n| {
                let leaf = server::route_leaf(Ipv4Addr::LOCALHOST.into());
                let others = (0..servers).filter(|other| *other != n);
                server::Config {
                    name: format!("stolos-{}", n + 1),
                    directory: self.directory.path().join(server_directory(n)),
                    log: self.directory.path().join(format!("nats-{}.log", n + 1)),
                    listen: address(n),
                    cluster: Some(server::Cluster {
                        listen: address(servers + n),
                        others: others.map(|other| address(servers + other)).collect(),
                        identity: ca.issue(&leaf, Timestamp::now()).expect("a certificate"),
                        ca: ca.certificate().to_owned(),
                    }),
                    ..self.server_config()
                }
            })
            .collect()
    }

    /// Starts the server; the next start takes the same port.
    pub(crate) async fn server(&mut self) -> NatsServer {
        let server = NatsServer::start(self.server_config()).await;
        let server = server.unwrap_or_else(|error| panic!("{}", stolos_base::chain(&error)));
        self.listen = server.address();
        server
    }

    pub(crate) async fn callout(&self) -> AuthCallout {
        let config = self.client_config(&self.ca, "default.callout.stolos-internal");
        let known: Arc<dyn AgentDirectory> = self.known.clone();
        let callout = AuthCallout::start(&config, &self.keys, known, Clock::system()).await;
        let callout = callout.expect("an admission service");
        callout.ready().await.expect("the server lets it in");
        callout
    }

    pub(crate) fn client_config(&self, ca: &Authority, common_name: &str) -> nats::Config {
        let leaf = Leaf::new(common_name, Usage::Client);
        nats::Config {
            servers: vec![format!("nats://{}", self.listen)],
            ca: self.ca.certificate().to_owned(),
            identity: ca.issue(&leaf, Timestamp::now()).expect("a client certificate"),
            name: common_name.to_owned(),
            longest_pause: Duration::from_millis(200),
        }
    }

    /// Begins to connect.
    pub(crate) async fn begin(&self, peer: Peer) -> NatsTransport {
        let config = self.client_config(&self.ca, &peer.to_string());
        NatsTransport::connect(&config).await.expect("a transport")
    }

    /// Connects, as one that is known.
    pub(crate) async fn connect(&self, peer: Peer) -> Arc<dyn Transport> {
        if let Some(id) = peer.agent() {
            self.known.0.lock().expect("not poisoned").insert(id);
        }
        let transport = self.begin(peer).await;
        tokio::time::timeout(LIMIT, transport.ready())
            .await
            .expect("connected in time")
            .expect("connected");
        Arc::new(transport)
    }

    pub(crate) fn agent_id(&self) -> AgentId {
        AgentId::new(&self.ids)
    }
}

/// The server outlives its owner on purpose; a test that fails must not leave it behind.
impl Drop for World {
    fn drop(&mut self) {
        for n in 0..3 {
            let record = self.directory.path().join(server_directory(n));
            if let Ok(Some(process)) = Process::recorded(&record.join("nats-server.pid.json")) {
                let _ = process.end(Duration::from_secs(5));
            }
        }
    }
}

fn server_directory(n: usize) -> String {
    if n == 0 {
        "nats".to_owned()
    } else {
        format!("nats-{}", n + 1)
    }
}

pub(crate) fn authority() -> Authority {
    Authority::root("bus", Duration::from_secs(3600), Timestamp::now()).expect("a CA")
}
