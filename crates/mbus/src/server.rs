//! The `nats-server` process: its configuration, its start, its end, and its adoption after a restart of ours.
//!
//! The process is in a session of its own and outlives `stolosd`: agents stay connected while that restarts. Its
//! identity is recorded; where the record is missing (we were killed between the start and the record), the process is
//! found by its command line, which names this instance's configuration file. There is never a second one.
//!
//! A changed configuration or program makes a restart of the server; its clients come back by themselves.
//!
//! Several processes of ours may supervise the same server: whoever has the lock in its directory does, the others stand by and go
//! on within a quarter of a second of its death. Several servers make a cluster ([`Cluster`]), each with a directory of its own; a client
//! that is told of all of them goes to another one when its own dies.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use stolos_base::error::{Class, Classify};
use stolos_base::lock::FileLock;
use stolos_base::pki::{Identity, Leaf, Usage};
use stolos_base::process::{Process, spawn_detached};
use stolos_base::{chain, files, poll, task};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::callout::{ACCOUNT, ANSWER_LIMIT, PublicKeys, SERVICE_ACCOUNT};
use crate::message::MAX_PAYLOAD;

/// How long the server may take to accept connections; it is there within some 20 ms on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether it does.
const START_POLL: Duration = Duration::from_millis(5);
/// How long it may take to end by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The first pause before a server that has ended is started again. It doubles, and is reset by a life of
/// [`LIVED_WELL`].
const RESTART_FIRST: Duration = Duration::from_millis(50);
/// The longest such pause.
const RESTART_LONGEST: Duration = Duration::from_secs(5);
/// A server that has lived so long did not fail at its start.
const LIVED_WELL: Duration = Duration::from_secs(10);
/// How often who stands by looks whether the supervisor lives.
const STAND_BY: Duration = Duration::from_millis(250);
/// The log is rotated at this size …
const LOG_SIZE: u64 = 8 * 1024 * 1024;
/// … and so many old ones are kept.
const LOGS_KEPT: u32 = 3;
/// Clients at once: machines, each with one connection, and us. What has not shown a certificate within `timeout` of `tls`, or not
/// said who it is within that of `authorization`, is gone again.
const MOST_CONNECTIONS: u32 = 8192;

/// What the server needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name; another one for each server of a cluster.
    pub name: String,
    /// The program.
    pub program: Utf8PathBuf,
    /// Its configuration, keys and record; made with mode 0700.
    pub directory: Utf8PathBuf,
    /// Its log.
    pub log: Utf8PathBuf,
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Server certificate and key; see [`leaf`].
    pub identity: Identity,
    /// CA of client certificates, PEM.
    pub client_ca: String,
    /// Keys of the admission service.
    pub keys: PublicKeys,
    /// The others; `None` for a server that is alone.
    pub cluster: Option<Cluster>,
}

/// How the servers of a cluster find and believe each other. Their CA is not that of clients: whoever is believed as a server sees
/// everything that is said.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it listens for the other servers.
    pub listen: SocketAddr,
    /// Where the other servers do.
    pub others: Vec<SocketAddr>,
    /// Certificate and key for both ends of such a connection; see [`route_leaf`].
    pub identity: Identity,
    /// CA of all servers' certificates, PEM.
    pub ca: String,
}

/// What to ask of the servers' CA for the certificate of one.
#[must_use]
pub fn route_leaf(address: std::net::IpAddr) -> Leaf {
    Leaf {
        addresses: vec![address],
        ..Leaf::new("route.nats.stolos-internal", Usage::ServerAndClient)
    }
}

/// What to ask of the CA for the server's certificate: BOSH's agent insists on such a common name, and on the address.
#[must_use]
pub fn leaf(address: std::net::IpAddr) -> Leaf {
    Leaf {
        addresses: vec![address],
        dns: vec!["default.nats.bosh-internal".to_owned()],
        ..Leaf::new("default.nats.bosh-internal", Usage::Server)
    }
}

/// The server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error("failed to prepare `{path}` for nats-server")]
    Prepare {
        /// Which.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error("nats-server cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The program does not start.
    #[error("failed to start `{program}`")]
    Start {
        /// Which.
        program: Utf8PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended, or does not accept connections.
    #[error("nats-server did not come up: {reason}")]
    NotUp {
        /// Its own last words, where it has some.
        reason: String,
    },
    /// It does not end.
    #[error("failed to stop nats-server")]
    Stop(#[source] io::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Prepare { .. } | Self::NotUp { .. } | Self::Stop(_) => Class::Internal,
            Self::Listen { .. } | Self::Start { .. } => Class::User,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                vec![format!(
                    "Something else listens on {address}: end it, or configure another port."
                )]
            }
            Self::Start { program, .. } => {
                vec![format!("Make sure that `{program}` is there and can be run.")]
            }
            _ => Vec::new(),
        }
    }
}

/// The supervised server. Dropping it ends the supervision, not the server: see [`NatsServer::stop`].
#[derive(Debug)]
pub struct NatsServer {
    setup: Arc<Setup>,
    process: watch::Receiver<Process>,
    supervision: CancellationToken,
    /// Held while this process supervises.
    lock: Lock,
}

/// The right to supervise, once this process has it.
type Lock = Arc<Mutex<Option<FileLock>>>;

/// A configuration that was written down.
#[derive(Debug)]
struct Setup {
    program: Utf8PathBuf,
    file: Utf8PathBuf,
    record: Utf8PathBuf,
    log: Utf8PathBuf,
    /// What the process prints itself, before its log is open.
    output: Utf8PathBuf,
    listen: SocketAddr,
}

impl NatsServer {
    /// Adopts the running server of this directory, or starts one, and keeps one running from then on. Where another process of ours
    /// does so already, it stands by.
    ///
    /// Guarantees: when this returns, exactly one server runs with this configuration and accepts connections.
    /// Assumptions: processes that share a directory give the same configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(mut config: Config) -> Result<Self, Error> {
        if config.listen.port() == 0 {
            config.listen = free_port(config.listen)?;
        }
        make_directory(&config.directory).map_err(|source| Error::Prepare {
            path: config.directory.clone(),
            source,
        })?;
        let setup = Arc::new(Setup::new(&config));
        let (lock, supervision) = (Lock::default(), CancellationToken::new());
        let began = Instant::now();
        let process = loop {
            if let Some(own) = setup.try_lock()? {
                let process = setup.adopt_or_launch(&config).await?;
                keep_lock(&lock, own);
                break process;
            }
            if let Some(process) = setup.find()? {
                tracing::info!(
                    pid = process.pid,
                    "nats-server runs already, and somebody sees to it"
                );
                setup.until_up(process).await?;
                break process;
            }
            if began.elapsed() > START_LIMIT {
                return Err(Error::NotUp {
                    reason: "another process is to start it and does not".to_owned(),
                });
            }
            tokio::time::sleep(START_POLL).await;
        };
        let (sender, receiver) = watch::channel(process);
        task::spawn(
            task::Kind::Service,
            "nats-server",
            see_to(config, setup.clone(), sender, lock.clone(), supervision.clone()),
        );
        Ok(Self {
            setup,
            process: receiver,
            supervision,
            lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.setup.listen
    }

    /// What clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.setup.listen)
    }

    /// The process that runs now.
    #[must_use]
    pub fn process(&self) -> Process {
        *self.process.borrow()
    }

    /// Ends the supervision and the server.
    ///
    /// # Errors
    /// [`Error::Stop`].
    pub async fn stop(self) -> Result<(), Error> {
        self.supervision.cancel();
        match self.setup.find()? {
            Some(process) => stop_process(&self.setup, process).await,
            None => Ok(()),
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.supervision.cancel();
        // Not when the task has ended: whoever starts it next in this process is to find it free.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn keep_lock(place: &Lock, lock: FileLock) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
}

/// Ends the server of a directory that nobody supervises any more (`stolos down`); whether there was one.
///
/// # Errors
/// [`Error::Stop`], [`Error::Prepare`].
pub async fn stop_leftover(directory: &Utf8Path) -> Result<bool, Error> {
    let setup = Setup {
        program: Utf8PathBuf::new(),
        file: directory.join("nats-server.conf"),
        record: directory.join("nats-server.pid.json"),
        log: Utf8PathBuf::new(),
        output: Utf8PathBuf::new(),
        listen: ([127, 0, 0, 1], 0).into(),
    };
    match setup.find()? {
        Some(process) => stop_process(&setup, process).await.map(|()| true),
        None => Ok(false),
    }
}

fn free_port(listen: SocketAddr) -> Result<SocketAddr, Error> {
    std::net::TcpListener::bind(listen)
        .and_then(|listener| listener.local_addr())
        .map_err(|source| Error::Listen {
            address: listen,
            source,
        })
}

/// Writes what the server reads; whether anything differs from what was there.
fn write_files(config: &Config, setup: &Setup) -> Result<bool, Error> {
    let failed = |path: &Utf8Path| {
        let path = path.to_owned();
        move |source| Error::Prepare { path, source }
    };
    if let Some(parent) = config.log.parent() {
        fs_err::create_dir_all(parent).map_err(failed(parent))?;
    }
    let file = |name: &str| config.directory.join(name);
    let text = render(config);
    let mut contents = vec![
        (file("server.pem"), config.identity.certificate.as_str()),
        (file("server.key"), config.identity.key.expose().as_str()),
        (file("clients.pem"), config.client_ca.as_str()),
        (setup.file.clone(), text.as_str()),
    ];
    if let Some(cluster) = &config.cluster {
        contents.extend([
            (file("route.pem"), cluster.identity.certificate.as_str()),
            (file("route.key"), cluster.identity.key.expose().as_str()),
            (file("servers.pem"), cluster.ca.as_str()),
        ]);
    }
    let mut changed = false;
    for (path, content) in contents {
        if fs_err::read(&path).is_ok_and(|old| old == content.as_bytes()) {
            continue;
        }
        changed = true;
        files::write_atomic(&path, content.as_bytes(), 0o600).map_err(failed(&path))?;
    }
    Ok(changed)
}

fn make_directory(path: &Utf8Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// The configuration. Texts are quoted as JSON, which this format reads alike.
fn render(config: &Config) -> String {
    let file = |name: &str| config.directory.join(name);
    let quoted = |text: &dyn std::fmt::Display| serde_json::Value::from(text.to_string()).to_string();
    let mut text = String::new();
    let mut line = |content: String| {
        let _ = writeln!(text, "{content}");
    };
    line("# Written by stolosd; changes are overwritten.".to_owned());
    line(format!("server_name: {}", quoted(&config.name)));
    line(format!("listen: {}", quoted(&config.listen)));
    line(format!("max_payload: {MAX_PAYLOAD}"));
    // BOSH's figures: a peer that is silent for ten seconds is gone.
    line("ping_interval: \"5s\"".to_owned());
    line("ping_max: 2".to_owned());
    line(format!("max_connections: {MOST_CONNECTIONS}"));
    // A client that takes nothing for so long is gone, too.
    line("write_deadline: \"10s\"".to_owned());
    line(format!("log_file: {}", quoted(&config.log)));
    line(format!("logfile_size_limit: {LOG_SIZE}"));
    line(format!("logfile_max_num: {LOGS_KEPT}"));
    line("tls {".to_owned());
    line(format!("  cert_file: {}", quoted(&file("server.pem"))));
    line(format!("  key_file: {}", quoted(&file("server.key"))));
    line(format!("  ca_file: {}", quoted(&file("clients.pem"))));
    line("  verify: true".to_owned());
    line("  timeout: 5".to_owned());
    line("}".to_owned());
    if let Some(cluster) = &config.cluster {
        let others = cluster
            .others
            .iter()
            .map(|other| quoted(&format!("nats://{other}")));
        line("cluster {".to_owned());
        line("  name: \"stolos\"".to_owned());
        line(format!("  listen: {}", quoted(&cluster.listen)));
        // Clients are told of all servers by us, under addresses that they can reach.
        line("  no_advertise: true".to_owned());
        line("  tls {".to_owned());
        line(format!("    cert_file: {}", quoted(&file("route.pem"))));
        line(format!("    key_file: {}", quoted(&file("route.key"))));
        line(format!("    ca_file: {}", quoted(&file("servers.pem"))));
        line("    verify: true".to_owned());
        line("    timeout: 5".to_owned());
        line("  }".to_owned());
        line(format!("  routes: [ {} ]", others.collect::<Vec<_>>().join(", ")));
        line("}".to_owned());
    }
    line("accounts {".to_owned());
    line(format!(
        "  {SERVICE_ACCOUNT} {{ users: [ {{ nkey: {} }} ] }}",
        quoted(&config.keys.user)
    ));
    line(format!("  {ACCOUNT} {{}}"));
    line("}".to_owned());
    line(format!("system_account: {SERVICE_ACCOUNT}"));
    line("authorization {".to_owned());
    line(format!("  timeout: {}", ANSWER_LIMIT.as_secs()));
    line("  auth_callout {".to_owned());
    line(format!("    issuer: {}", quoted(&config.keys.issuer)));
    line(format!("    account: {SERVICE_ACCOUNT}"));
    line(format!("    auth_users: [ {} ]", quoted(&config.keys.user)));
    line("  }".to_owned());
    line("}".to_owned());
    text
}

impl Setup {
    fn new(config: &Config) -> Self {
        let directory = &config.directory;
        Self {
            program: config.program.clone(),
            file: directory.join("nats-server.conf"),
            record: directory.join("nats-server.pid.json"),
            log: config.log.clone(),
            output: directory.join("nats-server.out"),
            listen: config.listen,
        }
    }

    /// The right to start and restart the server, unless another process has it.
    fn try_lock(&self) -> Result<Option<FileLock>, Error> {
        let path = self.file.with_file_name("supervisor.lock");
        FileLock::try_acquire(&path).map_err(|source| Error::Prepare { path, source })
    }

    /// Brings the server to what the configuration says.
    async fn adopt_or_launch(&self, config: &Config) -> Result<Process, Error> {
        let changed = write_files(config, self)?;
        let process = match self.find()? {
            Some(process) if changed || !self.runs_program(process) => {
                tracing::info!(
                    pid = process.pid,
                    "restarting nats-server: its configuration or program has changed"
                );
                stop_process(self, process).await?;
                self.launch().await?
            }
            Some(process) => {
                tracing::info!(pid = process.pid, "nats-server runs already");
                self.until_up(process).await?;
                process
            }
            None => self.launch().await?,
        };
        self.keep_record(process)?;
        Ok(process)
    }

    /// The running server of this directory: by record, else by command line.
    fn find(&self) -> Result<Option<Process>, Error> {
        // A damaged record is no obstacle: the search below does not need it.
        if let Ok(Some(process)) = Process::recorded(&self.record)
            && self.is_ours(process.pid)
        {
            return Ok(Some(process));
        }
        let failed = |source| Error::Prepare {
            path: "/proc".into(),
            source,
        };
        for entry in fs_err::read_dir("/proc").map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if self.is_ours(pid)
                && let Some(process) = Process::of(pid)
            {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    /// Whether the process was started as `… -c <our file>`.
    fn is_ours(&self, pid: i32) -> bool {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            return false;
        };
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        arguments
            .windows(2)
            .any(|pair| pair[0] == b"-c" && pair[1] == self.file.as_str().as_bytes())
    }

    fn runs_program(&self, process: Process) -> bool {
        let running = std::fs::read_link(format!("/proc/{}/exe", process.pid)).ok();
        let wanted = self.program.canonicalize().ok();
        running.is_some() && running == wanted
    }

    fn keep_record(&self, process: Process) -> Result<(), Error> {
        process.record(&self.record).map_err(|source| Error::Prepare {
            path: self.record.clone(),
            source,
        })
    }

    /// Starts a server and waits until it accepts connections.
    async fn launch(&self) -> Result<Process, Error> {
        // It would say so only in its log, and we could take the other program's answers for its own.
        free_port(self.listen)?;
        files::remove_if_there(&self.output).map_err(|source| Error::Prepare {
            path: self.output.clone(),
            source,
        })?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.file).current_dir("/");
        let process = spawn_detached(&mut command, &self.output).map_err(|source| {
            // A bad configuration ends it before it can be looked at; its words say more than ours.
            match last_line(&self.output) {
                Some(reason) => Error::NotUp { reason },
                None => Error::Start {
                    program: self.program.clone(),
                    source,
                },
            }
        })?;
        self.keep_record(process)?;
        if let Err(error) = self.until_up(process).await {
            stop_process(self, process).await?;
            return Err(error);
        }
        tracing::info!(pid = process.pid, address = %self.listen, "nats-server started");
        Ok(process)
    }

    async fn until_up(&self, process: Process) -> Result<(), Error> {
        let up = poll::until("nats-server", START_POLL, START_LIMIT, || async {
            if !process.is_alive() {
                // No use in waiting; the outer match tells the two apart.
                return Ok(false);
            }
            let connected = tokio::net::TcpStream::connect(self.listen).await;
            connected.map(|_| true).map_err(|error| error.to_string())
        })
        .await;
        match up {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::NotUp {
                reason: self.last_words(),
            }),
            Err(timed_out) => Err(Error::NotUp {
                reason: timed_out.to_string(),
            }),
        }
    }

    /// The last line that the server has printed or logged.
    fn last_words(&self) -> String {
        last_line(&self.output)
            .or_else(|| last_line(&self.log))
            .unwrap_or_else(|| "it ended without a word".to_owned())
    }
}

/// The last line of a file that is not blank.
fn last_line(path: &Utf8Path) -> Option<String> {
    let text = fs_err::read_to_string(path).ok()?;
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.to_owned())
}

/// Asks the process to end, ends it, and forgets the record.
async fn stop_process(setup: &Setup, process: Process) -> Result<(), Error> {
    let ended = tokio::task::spawn_blocking(move || process.end(STOP_PATIENCE)).await;
    ended
        .map_err(io::Error::other)
        .and_then(|ended| ended)
        .map_err(Error::Stop)?;
    reap(process);
    files::remove_if_there(&setup.record).map_err(Error::Stop)
}

/// Takes a child of ours that has ended out of the process table; one that we adopted is somebody else's.
fn reap(process: Process) {
    if let Some(pid) = Pid::from_raw(process.pid) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Sees to the server as soon as nobody else does.
async fn see_to(
    config: Config,
    setup: Arc<Setup>,
    process: watch::Sender<Process>,
    lock: Lock,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        let is_ours = lock.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_ours {
            return supervise(setup, process, stop).await;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(STAND_BY) => {}
        }
        let taken = async {
            let Some(own) = setup.try_lock()? else {
                return Ok(());
            };
            tracing::info!(address = %setup.listen, "nobody else sees to nats-server any more");
            process.send_replace(setup.adopt_or_launch(&config).await?);
            keep_lock(&lock, own);
            Ok::<(), Error>(())
        };
        if let Err(error) = taken.await {
            tracing::error!(error = %chain(&error), "failed to take nats-server over; trying again");
        }
        if stop.is_cancelled() {
            // Dropped meanwhile, when it was not ours yet.
            drop(lock.lock().unwrap_or_else(PoisonError::into_inner).take());
            return Ok(());
        }
    }
}

/// Starts the server again whenever it ends.
async fn supervise(
    setup: Arc<Setup>,
    process: watch::Sender<Process>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut pause = RESTART_FIRST;
    loop {
        let current = *process.borrow();
        let began = Instant::now();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = ended(current) => {}
        }
        reap(current);
        if began.elapsed() >= LIVED_WELL {
            pause = RESTART_FIRST;
        }
        tracing::warn!(
            pid = current.pid,
            last_words = setup.last_words(),
            "nats-server has ended; starting it again"
        );
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RESTART_LONGEST);
            match setup.launch().await {
                Ok(new) => {
                    process.send_replace(new);
                    break;
                }
                Err(error) => tracing::error!(error = %chain(&error), "nats-server does not start"),
            }
        }
    }
}

/// Waits for the end of a process, child or not, without polling where the kernel allows it.
async fn ended(process: Process) {
    if let Ok(fd) = watch_process(process)
        && fd.readable().await.is_ok()
    {
        return;
    }
    while process.is_alive() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn watch_process(process: Process) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = Pid::from_raw(process.pid).ok_or_else(|| io::Error::other("no process id"))?;
    let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // The id could have been given to somebody else before it was opened.
    if !process.is_alive() {
        return Err(io::Error::other("it has ended"));
    }
    register(fd)
}

#[expect(
    unsafe_code,
    reason = "tokio leaves it to the caller that the descriptor stays the same"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always gives the same descriptor, and is owned by the `AsyncFd` from here on.
    // JUSTIFICATION: waiting for a process that may not be our child, without polling and without a thread.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
