//! Several managers of one installation, each a process of its own, over one simulated world: for whatever is about their death.
//!
//! The world (machines and their agents) is in the process that holds [`World`]. Managers reach it as they reach a real one: the CPI is a
//! program, called by the real runner with its journal on disk, which asks the world over a socket; agents are on real `nats-server`s,
//! which the managers start and see to. In front of the managers is what `stolos-hostd` is on a host: one address, balanced over those
//! that accept connections. So a manager can be killed (SIGKILL) at any instant, and everything else goes on as it would.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use stolos_api::director;
use stolos_base::process::Process;
use stolos_base::{Clock, IdSource, Instance, MemberName, Secret, task};
use stolos_clusters::plans::Plans;
use stolos_cpi::null::NullCpi;
use stolos_cpi::{CreateVm, Runner, RunnerConfig};
use stolos_director::Infrastructure as _;
use stolos_director::testing::Outside as Machines;
use stolos_mbus::settings::Mbus;
use stolos_mbus::{NatsTransport, Transport, nats};
use stolos_server::config::{Oidc, default_plans, default_zones};
use stolos_server::{BusPorts, HostBus, Installation, Listen, Member, Outside, Ports, Urls};
use stolos_store::DatabaseUrl;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::{Child, Command};

use super::release::{self, Built};
use super::{Access, KUBERNETES_VERSION, Unpublished, kubernetes};

/// A manager that starts for the first time makes keys and databases, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long a manager that was told to end may take.
const END_LIMIT: Duration = Duration::from_secs(60);
/// A simulated call takes milliseconds; starting its process, on a busy machine, more.
const CPI_LIMIT: Duration = Duration::from_secs(60);
/// Services behind the common address.
const SERVICES: usize = 4;

/// What a manager's process is told, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    name: MemberName,
    of: usize,
    root: Utf8PathBuf,
    database: String,
    program: Utf8PathBuf,
    socket: Utf8PathBuf,
    nats_server: Utf8PathBuf,
    bus: Vec<u16>,
    routes: Vec<u16>,
    /// Milliseconds by which its host's clock is ahead.
    wrong_millis: i64,
    /// Of the common address: API, tokens, director, blobs.
    ports: [u16; SERVICES],
}

/// Where a manager's own listeners are, in the same order; the line that it prints when it is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ready {
    urls: [String; SERVICES],
    ca: String,
}

/// A manager's process: starts it and runs until standard input ends.
///
/// # Errors
/// Whatever kept it from starting.
pub async fn manage(orders: &str) -> anyhow::Result<()> {
    stolos_base::tls::install_provider();
    let orders: Orders = serde_json::from_str(orders)?;
    let instance = Instance {
        name: "sim".parse()?,
        root: orders.root.clone(),
    };
    let (clock, ids) = (Clock::wrong_by(orders.wrong_millis), IdSource::random());
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let [api, identity, director, blobs] = orders.ports;
    let runner = Runner::new(
        RunnerConfig {
            program: orders.program,
            arguments: vec!["cpi".to_owned(), orders.socket.to_string()],
            calls: instance.cpi_calls(),
            director: "simulated".to_owned(),
            context: serde_json::Map::new(),
            limit: CPI_LIMIT,
        },
        ids.clone(),
    );
    let outside = Outside {
        member: Some(Member {
            name: orders.name,
            of: orders.of,
        }),
        host,
        ports: Ports {
            api,
            identity,
            director,
            blobs,
        },
        listen: Listen {
            host,
            ports: Ports::ANY,
            all: vec![host],
        },
        range: "10.117.0.0/16".parse()?,
        database: orders.database.parse()?,
        plans: Plans::new(default_plans(KUBERNETES_VERSION), default_zones())?,
        artifacts: [(KUBERNETES_VERSION.to_owned(), release::artifacts())]
            .into_iter()
            .collect(),
        capacity: None,
        people: Oidc::default(),
        bus: Arc::new(HostBus {
            instance: instance.clone(),
            program: orders.nats_server,
            host,
            ports: BusPorts {
                clients: orders.bus,
                routes: orders.routes,
            },
            clock: clock.clone(),
        }),
        cpi: Arc::new(runner),
        hosts: None,
        connections: stolos_base::http::Limits::default(),
        resurrection: stolos_director::Resurrection::default(),
        orphaned_disks_kept: Duration::from_secs(5 * 24 * 3600),
        alerts: None,
        addresses: Arc::new(Unpublished),
        kubernetes: Arc::new(kubernetes::Simulated),
        backups: None,
        clock,
        ids,
    };
    let installation = Installation::start(&instance, outside).await?;
    let Urls {
        api,
        identity,
        director,
        blobs,
    } = installation.own_urls().clone();
    let ready = Ready {
        urls: [api, identity, director, blobs],
        ca: installation.ca().to_owned(),
    };
    let mut out = tokio::io::stdout();
    out.write_all(format!("{}\n", serde_json::to_string(&ready)?).as_bytes())
        .await?;
    out.flush().await?;
    let mut ended = [0; 1];
    while tokio::io::stdin().read(&mut ended).await? > 0 {}
    installation.stop().await;
    Ok(())
}

/// The CPI's process: has the world do what standard input asks for.
///
/// # Errors
/// When the world is gone.
pub async fn call(socket: &str) -> anyhow::Result<()> {
    let mut world = UnixStream::connect(socket).await?;
    let mut request = Vec::new();
    tokio::io::stdin().read_to_end(&mut request).await?;
    world.write_all(&request).await?;
    world.shutdown().await?;
    let mut response = Vec::new();
    world.read_to_end(&mut response).await?;
    tokio::io::stdout().write_all(&response).await?;
    tokio::io::stdout().flush().await?;
    Ok(())
}

/// A call that has reached the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Its id, if it is one that changes something.
    pub id: Option<String>,
    /// The method.
    pub method: String,
}

/// The world, and the managers that work on it.
pub struct World {
    /// The machines.
    pub machines: Machines,
    calls: Arc<Mutex<Vec<Called>>>,
    instance: Instance,
    orders: Orders,
    names: Vec<MemberName>,
    managers: BTreeMap<MemberName, Manager>,
    /// Milliseconds by which a manager's host's clock is ahead, where it is wrong.
    clocks: BTreeMap<MemberName, i64>,
    front: Arc<Front>,
    built: Built,
    ca: String,
}

struct Manager {
    child: Child,
    ready: Ready,
}

impl World {
    /// A world in an empty directory, with nobody who manages it yet. `program` is run as `program manage ORDERS` ([`manage`]) and
    /// `program cpi SOCKET` ([`call`]); the bus has so many servers.
    ///
    /// # Errors
    /// Whatever kept it from being made.
    pub async fn new(
        directory: &Utf8Path,
        database: &DatabaseUrl,
        program: Utf8PathBuf,
        nats_server: Utf8PathBuf,
        names: &[&str],
        bus_servers: usize,
    ) -> anyhow::Result<Self> {
        stolos_base::tls::install_provider();
        let DatabaseUrl::Postgres { url } = database else {
            anyhow::bail!("several managers need PostgreSQL");
        };
        let instance = Instance {
            name: "sim".parse()?,
            root: directory.join("instance"),
        };
        for path in [instance.root.clone(), instance.run(), instance.logs()] {
            fs_err::create_dir_all(path)?;
        }
        let machines = Machines::new(NullCpi::new(IdSource::random()));
        machines.state().join = Some(Arc::new(|request| Box::pin(join(request))));
        let calls = Arc::<Mutex<Vec<Called>>>::default();
        let socket = directory.join("world.sock");
        answer_calls(UnixListener::bind(&socket)?, machines.clone(), calls.clone());
        let front = Arc::new(Front::default());
        let mut ports = [0; SERVICES];
        for (service, port) in ports.iter_mut().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            *port = listener.local_addr()?.port();
            balance(front.clone(), service, listener);
        }
        let free = free_ports(2 * bus_servers)?;
        let (bus, routes) = free.split_at(bus_servers);
        let names = names
            .iter()
            .map(|name| name.parse())
            .collect::<Result<Vec<MemberName>, _>>()?;
        let first = names.first().cloned().context("nobody manages the world")?;
        Ok(Self {
            machines,
            calls,
            orders: Orders {
                name: first,
                of: names.len(),
                root: instance.root.clone(),
                database: url.expose().clone(),
                program,
                socket,
                nats_server,
                bus: bus.to_vec(),
                routes: routes.to_vec(),
                wrong_millis: 0,
                ports,
            },
            instance,
            names,
            managers: BTreeMap::new(),
            clocks: BTreeMap::new(),
            front,
            built: release::build(directory)?,
            ca: String::new(),
        })
    }

    /// Starts those managers that do not run, all at once, and waits until they are ready.
    ///
    /// # Errors
    /// When one does not become ready; its words are on standard error.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let missing: Vec<MemberName> = self
            .names
            .iter()
            .filter(|name| !self.managers.contains_key(*name))
            .cloned()
            .collect();
        let starts = missing.iter().map(|name| self.launch(name));
        for (name, manager) in missing.iter().zip(futures::future::try_join_all(starts).await?) {
            self.ca.clone_from(&manager.ready.ca);
            let addresses = manager.ready.urls.clone().map(|url| address(&url));
            let [Some(a), Some(b), Some(c), Some(d)] = addresses else {
                anyhow::bail!("manager `{name}` listens nowhere");
            };
            self.front.managers().insert(name.clone(), [a, b, c, d]);
            self.managers.insert(name.clone(), manager);
        }
        Ok(())
    }

    /// Puts the clock of a manager's host wrong, by so many milliseconds; before the manager is started.
    ///
    /// # Errors
    /// When the name is none.
    pub fn set_clock(&mut self, name: &str, wrong_millis: i64) -> anyhow::Result<()> {
        self.clocks.insert(name.parse()?, wrong_millis);
        Ok(())
    }

    async fn launch(&self, name: &MemberName) -> anyhow::Result<Manager> {
        let orders = Orders {
            name: name.clone(),
            wrong_millis: self.clocks.get(name).copied().unwrap_or(0),
            ..self.orders.clone()
        };
        let mut child = Command::new(&self.orders.program)
            .args(["manage", &serde_json::to_string(&orders)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().context("it has no output")?;
        let line = tokio::time::timeout(START_LIMIT, BufReader::new(out).lines().next_line()).await??;
        let line = line.with_context(|| format!("manager `{name}` did not start"))?;
        Ok(Manager {
            child,
            ready: serde_json::from_str(&line)?,
        })
    }

    /// Starts a manager that is not to start, and gives its last words.
    ///
    /// # Errors
    /// When it starts, or neither starts nor ends.
    pub async fn refused(&self, name: &str) -> anyhow::Result<String> {
        let orders = Orders {
            name: name.parse()?,
            ..self.orders.clone()
        };
        let ended = Command::new(&self.orders.program)
            .args(["manage", &serde_json::to_string(&orders)?])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(START_LIMIT, ended).await??;
        anyhow::ensure!(!output.status.success(), "it has started");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Kills a manager (SIGKILL) and returns when it is no more.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let mut manager = self.take(name)?;
        manager.child.start_kill()?;
        manager.child.wait().await?;
        Ok(())
    }

    /// Tells a manager to end, and waits for it.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn end(&mut self, name: &str) -> anyhow::Result<()> {
        let mut manager = self.take(name)?;
        drop(manager.child.stdin.take());
        tokio::time::timeout(END_LIMIT, manager.child.wait()).await??;
        Ok(())
    }

    /// Stops a manager's process where it is (SIGSTOP), or has it go on (SIGCONT): as a host does that is frozen for a while.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let manager = self.managers.get(&name.parse::<MemberName>()?);
        let pid = manager.and_then(|manager| manager.child.id());
        let pid = pid.with_context(|| format!("manager `{name}` does not run"))?;
        let process = Process::of(i32::try_from(pid)?).context("it is gone")?;
        Ok(process.signal(signal)?)
    }

    fn take(&mut self, name: &str) -> anyhow::Result<Manager> {
        let manager = self.managers.remove(&name.parse::<MemberName>()?);
        manager.with_context(|| format!("manager `{name}` does not run"))
    }

    /// Uploads what the clusters of the plans need.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn upload(&self) -> anyhow::Result<()> {
        let director = self.access()?.director_client().await?;
        for task in [
            director
                .upload_stemcell(director::Upload::Location(&self.built.stemcell))
                .await?,
            director
                .upload_release(director::Upload::Location(&self.built.release))
                .await?,
        ] {
            director.follow(task, |_| {}).await?;
        }
        Ok(())
    }

    /// How to reach the installation, whichever manager answers.
    ///
    /// # Errors
    /// When there is no administrator yet.
    pub fn access(&self) -> anyhow::Result<Access> {
        let [api, identity, director, _] = self.orders.ports;
        let url = |port: u16| format!("https://{}:{port}", Ipv4Addr::LOCALHOST);
        self.access_at([url(api), url(identity), url(director)])
    }

    /// How to reach one manager itself.
    ///
    /// # Errors
    /// When it does not run.
    pub fn access_of(&self, name: &str) -> anyhow::Result<Access> {
        let manager = self.managers.get(&name.parse::<MemberName>()?);
        let manager = manager.with_context(|| format!("manager `{name}` does not run"))?;
        let [api, identity, director, _] = manager.ready.urls.clone();
        self.access_at([api, identity, director])
    }

    fn access_at(&self, [api, identity, director]: [String; 3]) -> anyhow::Result<Access> {
        let password = fs_err::read_to_string(self.instance.root.join("admin.password"))
            .context("there is no administrator's password")?;
        Ok(Access {
            api,
            identity,
            director,
            ca: self.ca.clone(),
            password: password.trim().to_owned(),
        })
    }

    /// All calls that have reached the world, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Called> {
        lock(&self.calls).clone()
    }

    /// The processes of the bus's servers, as they are recorded.
    #[must_use]
    pub fn bus(&self) -> Vec<Process> {
        let numbers = 0..self.orders.bus.len();
        let record = |number| self.instance.nats_server(number).join("nats-server.pid.json");
        numbers
            .filter_map(|number| Process::recorded(&record(number)).ok().flatten())
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // First those who would start the servers again.
        for manager in self.managers.values_mut() {
            let _ = manager.child.start_kill();
        }
        for server in self.bus() {
            let _ = server.end(Duration::from_secs(5));
        }
    }
}

/// So many ports that are free, all of them different.
fn free_ports(many: usize) -> std::io::Result<Vec<u16>> {
    let listeners = (0..many)
        .map(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

fn address(url: &str) -> Option<SocketAddr> {
    url.strip_prefix("https://")?.parse().ok()
}

/// A new machine's agent connects as its settings say.
async fn join(request: CreateVm) -> Arc<dyn Transport> {
    let mbus: Mbus = serde_json::from_value(request.env["bosh"]["mbus"].clone())
        .expect("the director tells machines how to reach the bus");
    let config = nats::Config {
        servers: mbus.urls,
        ca: mbus.cert.ca,
        identity: stolos_base::pki::Identity {
            certificate: mbus.cert.certificate,
            key: Secret::new(mbus.cert.private_key.expose().clone()),
        },
        name: format!("agent {}", request.agent_id),
        longest_pause: Duration::from_secs(1),
    };
    let transport = NatsTransport::connect(&config).await;
    Arc::new(transport.expect("usable settings"))
}

/// Does what CPI processes ask for.
fn answer_calls(listener: UnixListener, machines: Machines, calls: Arc<Mutex<Vec<Called>>>) {
    task::spawn(task::Kind::Service, "simulated infrastructure", async move {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let (machines, calls) = (machines.clone(), calls.clone());
            task::spawn(task::Kind::Connection, "simulated call", async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await?;
                let id = stolos_cpi::wire::call_id(&request);
                let method = serde_json::from_slice::<serde_json::Value>(&request)
                    .ok()
                    .and_then(|request| request["method"].as_str().map(str::to_owned));
                lock(&calls).push(Called {
                    id: id.clone(),
                    method: method.unwrap_or_default(),
                });
                let cpi = match &id {
                    Some(id) => machines.journalled(id),
                    None => machines.plain(),
                };
                let response = stolos_cpi::wire::answer(cpi.as_ref(), &request).await;
                stream.write_all(&serde_json::to_vec(&response)?).await?;
                stream.shutdown().await
            });
        }
        #[expect(unreachable_code, reason = "says what the errors of the loop are")]
        Ok::<(), std::io::Error>(())
    });
}

/// The common address: where the managers behind it listen.
#[derive(Default)]
struct Front {
    managers: Mutex<BTreeMap<MemberName, [SocketAddr; SERVICES]>>,
    turn: AtomicUsize,
}

impl Front {
    fn managers(&self) -> MutexGuard<'_, BTreeMap<MemberName, [SocketAddr; SERVICES]>> {
        lock(&self.managers)
    }

    /// A connection to the next manager that accepts one.
    async fn connect(&self, service: usize) -> Option<TcpStream> {
        let all: Vec<SocketAddr> = self.managers().values().map(|ports| ports[service]).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in 0..all.len() {
            if let Ok(stream) = TcpStream::connect(all[(turn + n) % all.len()]).await {
                return Some(stream);
            }
        }
        None
    }
}

fn balance(front: Arc<Front>, service: usize, listener: TcpListener) {
    task::spawn(task::Kind::Service, "common address", async move {
        loop {
            let (mut client, _) = listener.accept().await?;
            let front = front.clone();
            task::spawn(task::Kind::Connection, "balanced connection", async move {
                match front.connect(service).await {
                    Some(mut manager) => tokio::io::copy_bidirectional(&mut client, &mut manager)
                        .await
                        .map(drop),
                    // Nobody is there: the client's connection ends.
                    None => Ok(()),
                }
            });
        }
        #[expect(unreachable_code, reason = "says what the errors of the loop are")]
        Ok::<(), std::io::Error>(())
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks again and again until there is a good answer: a request may meet a manager that dies.
///
/// # Errors
/// The last answer, when there was no good one for a minute.
pub async fn patiently<T, E: std::fmt::Display>(
    what: &str,
    ask: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let mut ask = ask;
    let began = std::time::Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if began.elapsed() > Duration::from_secs(60) => {
                anyhow::bail!("{what}: {error}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
