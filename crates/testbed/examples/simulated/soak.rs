//! Everything that people and attackers do, for long: what memory the services take then, and how they answer all the while.
//!
//! Seven clusters are changed, looked at and waited for; people log in, floods of wrong passwords come in bursts; releases are uploaded,
//! whole ones and such that are cut off; connections are held with headers that do not end.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::Args;
use futures::future::join_all;
use rustls_pki_types::ServerName;
use serde_json::json;
use stolos_api::pks::{Client, ClusterParameters, ClusterRequest, PageOf, UpdateParameters};
use stolos_api::{director, http, identity};
use stolos_base::{Secret, chain, task, tls};
use stolos_testbed::simulated::Access;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Engine, bench, print};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=24 * 60))]
    minutes: u64,
    /// The database's engine
    #[arg(long, value_enum, default_value_t = Engine::Sqlite)]
    database: Engine,
}

const CLUSTERS: usize = 7;
/// People who look at clusters, one request after the other.
const READERS: usize = 2;
const READER_PAUSE: Duration = Duration::from_millis(100);
/// Connections whose headers do not end; half of them do not even finish the handshake.
const HOLDERS: usize = 150;
/// How often those send a byte.
const TRICKLE: Duration = Duration::from_secs(2);
/// Log-ins of one burst, and the time between two bursts.
const FLOOD: usize = 60;
const FLOOD_PAUSE: Duration = Duration::from_secs(20);
const LOGIN_PAUSE: Duration = Duration::from_secs(2);
const UPLOAD_PAUSE: Duration = Duration::from_secs(15);
const LONG_POLL: Duration = Duration::from_secs(20);
/// Tokens last ten minutes.
const TOKEN_AGE: Duration = Duration::from_secs(300);
/// After which memory is what it is usually, if there is time for it.
const SETTLED: Duration = Duration::from_secs(600);
const SAMPLE: Duration = Duration::from_secs(5);
/// How long nothing is asked at the end.
const REST: Duration = Duration::from_secs(90);

/// What was asked, how long it took, and what went wrong.
#[derive(Default)]
struct Heard {
    micros: BTreeMap<&'static str, Vec<u64>>,
    errors: BTreeMap<String, u64>,
}

#[derive(Clone)]
struct Soak {
    access: Access,
    release: Utf8PathBuf,
    end: Instant,
    heard: Arc<Mutex<Heard>>,
}

/// An error in the few words by which it is counted.
trait Counted {
    fn kind(&self) -> String;
}

impl Counted for http::Error {
    fn kind(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.status.to_string(),
            Self::Unreachable { .. } => "unreachable".to_owned(),
            other => chain(other),
        }
    }
}

impl Counted for director::Error {
    fn kind(&self) -> String {
        match self {
            Self::Refused { status, .. } => status.to_string(),
            Self::Unreachable { .. } => "unreachable".to_owned(),
            Self::TaskFailed { error, .. } => {
                let code = error.as_ref().map_or(0, |error| error.code);
                format!("task failed, code {code}")
            }
            other => chain(other),
        }
    }
}

impl Counted for anyhow::Error {
    fn kind(&self) -> String {
        match self.downcast_ref::<http::Error>() {
            Some(error) => error.kind(),
            None => format!("{self:#}"),
        }
    }
}

impl Soak {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn of<T, E: Counted>(
        &self,
        what: &'static str,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let began = Instant::now();
        let answer = asked.await;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut heard = self.heard();
        heard.micros.entry(what).or_default().push(micros);
        answer
            .map_err(|error| {
                *heard
                    .errors
                    .entry(format!("{what}: {}", error.kind()))
                    .or_default() += 1
            })
            .ok()
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// With a token that is not old.
    async fn client<'a>(&self, kept: &'a mut Option<(Client, Instant)>) -> Option<&'a Client> {
        if kept.as_ref().is_none_or(|(_, since)| since.elapsed() > TOKEN_AGE) {
            *kept = self
                .of("log in", self.access.client())
                .await
                .map(|client| (client, Instant::now()));
        }
        kept.as_ref().map(|(client, _)| client)
    }

    async fn read(self) {
        let mut kept = None;
        while self.goes_on() {
            if let Some(client) = self.client(&mut kept).await {
                self.of("info", client.info()).await;
                self.of("list", client.clusters()).await;
                self.of("page", client.cluster_page(None, PageOf::default()))
                    .await;
                self.of("operations", client.operation_page(None, PageOf::default()))
                    .await;
                self.of("show", client.cluster("cluster-3")).await;
            }
            tokio::time::sleep(READER_PAUSE).await;
        }
    }

    /// Changes one cluster after the other, and waits for each by long-polls.
    async fn change(self) {
        let mut kept = None;
        for number in 0.. {
            if !self.goes_on() {
                return;
            }
            let Some(client) = self.client(&mut kept).await else {
                tokio::time::sleep(LOGIN_PAUSE).await;
                continue;
            };
            let change = UpdateParameters {
                kubernetes_worker_instances: Some(1 + (number / CLUSTERS as i64 + 1) % 2),
                ..UpdateParameters::default()
            };
            let name = format!("cluster-{}", number % CLUSTERS as i64);
            let begun = self.of("resize", client.update_cluster(&name, &change)).await;
            let Some(id) = begun.and_then(|begun| begun.operation) else {
                tokio::time::sleep(READER_PAUSE).await;
                continue;
            };
            loop {
                let operation = self.of("long-poll", client.operation(&id, LONG_POLL)).await;
                if operation.is_none_or(|operation| operation.ended_at.is_some()) || !self.goes_on() {
                    break;
                }
            }
        }
    }

    fn identity(&self) -> anyhow::Result<identity::Client> {
        let http = http::client(&http::Trust::Authorities(self.access.ca.clone()), None)?;
        Ok(identity::Client::new(&self.access.identity, http))
    }

    async fn log_in(self) {
        while self.goes_on() {
            self.of("log in", self.access.client()).await;
            tokio::time::sleep(LOGIN_PAUSE).await;
        }
    }

    /// Wrong passwords for names that there are and for such as there are not, all at once.
    async fn flood(self) -> anyhow::Result<()> {
        let wrong = Secret::from("not the password");
        while self.goes_on() {
            let attempts = (0..FLOOD).map(|number| {
                let wrong = &wrong;
                let soak = &self;
                async move {
                    let client = soak.identity()?;
                    let name = if number.is_multiple_of(2) {
                        "flooded".to_owned()
                    } else {
                        format!("nobody-{number}")
                    };
                    let attempt = client.password(identity::PKS_CLI, &name, wrong);
                    soak.of("wrong password", attempt).await;
                    anyhow::Ok(())
                }
            });
            for attempt in join_all(attempts).await {
                attempt?;
            }
            tokio::time::sleep(FLOOD_PAUSE).await;
        }
        Ok(())
    }

    /// The release that is there, and one that is cut off.
    async fn upload(self) -> anyhow::Result<()> {
        let whole = fs_err::read(&self.release)?;
        let cut = self.release.with_file_name("cut-off.tgz");
        fs_err::write(&cut, &whole[..whole.len() - 100])?;
        let mut kept: Option<(director::Client, Instant)> = None;
        let mut turn = 0_u32;
        while self.goes_on() {
            if kept.as_ref().is_none_or(|(_, since)| since.elapsed() > TOKEN_AGE) {
                kept = self
                    .of("log in", self.access.director_client())
                    .await
                    .map(|client| (client, Instant::now()));
            }
            if let Some((client, _)) = &kept {
                let file = if turn.is_multiple_of(2) {
                    &self.release
                } else {
                    &cut
                };
                let task = client.upload_release(director::Upload::File(file));
                if let Some(task) = self.of("upload", task).await {
                    let what = if turn.is_multiple_of(2) {
                        "take in"
                    } else {
                        "take in what is cut off"
                    };
                    self.of(what, client.follow(task, |_| {})).await;
                }
                turn += 1;
            }
            tokio::time::sleep(UPLOAD_PAUSE).await;
        }
        Ok(())
    }

    /// Holds a connection as long as it may; how often it was ended is counted.
    async fn hold(self, number: usize, connector: TlsConnector) {
        let services = [&self.access.api, &self.access.identity, &self.access.director];
        let address = services[number % services.len()].trim_start_matches("https://");
        let Ok(address) = address.parse::<SocketAddr>() else {
            return;
        };
        while self.goes_on() {
            let held = if number.is_multiple_of(2) {
                trickle(address, None, self.end).await
            } else {
                trickle(address, Some(&connector), self.end).await
            };
            let how = match held {
                Ok(()) => "held connection: ended".to_owned(),
                Err(error) => format!("held connection: {:?}", error.kind()),
            };
            *self.heard().errors.entry(how).or_default() += 1;
            tokio::time::sleep(TRICKLE).await;
        }
    }
}

async fn trickle(address: SocketAddr, tls: Option<&TlsConnector>, end: Instant) -> io::Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    match tls {
        None => until_ended(&mut socket, b"\x16", end).await,
        Some(tls) => {
            let name = ServerName::try_from(address.ip().to_string()).map_err(io::Error::other)?;
            let mut stream = tls.connect(name, socket).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await?;
            until_ended(&mut stream, b"x", end).await
        }
    }
}

async fn until_ended(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    byte: &[u8],
    end: Instant,
) -> io::Result<()> {
    let mut answer = [0; 512];
    while Instant::now() < end {
        stream.write_all(byte).await?;
        stream.flush().await?;
        tokio::select! {
            read = stream.read(&mut answer) => if read? == 0 { return Ok(()) },
            () = tokio::time::sleep(TRICKLE) => {}
        }
    }
    Ok(())
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let (mut server, served) = bench::start(self.database).await?;
        let pid = server.id().context("it has ended")?;
        let client = served.access.client().await?;
        make_clusters(&client).await?;
        let (began, length) = (Instant::now(), Duration::from_secs(self.minutes * 60));
        let soak = Soak {
            access: served.access,
            release: served.release,
            end: began + length,
            heard: Arc::default(),
        };
        soak.make_flooded().await?;
        let fresh = bench::memory(pid)?;
        let working = soak.start()?;
        let settled = SETTLED.min(length / 2);
        let mut samples: Vec<(u64, u64)> = Vec::new();
        while soak.goes_on() {
            tokio::time::sleep(SAMPLE).await;
            samples.push((began.elapsed().as_secs(), bench::memory(pid)?));
        }
        for work in working {
            work.await?;
        }
        tokio::time::sleep(REST).await;
        let rested = bench::memory(pid)?;
        drop(server.stdin.take());
        server.wait().await?;
        let then = samples.iter().find(|(at, _)| *at >= settled.as_secs());
        let heard = soak.heard();
        print(&serde_json::to_string(&json!({
            "database": self.database.name(),
            "minutes": self.minutes,
            "clusters": CLUSTERS,
            "settled_after_s": settled.as_secs(),
            "memory_kib": {
                "fresh": fresh,
                "settled": then.map(|(_, kib)| kib),
                "end": samples.last().map(|(_, kib)| kib),
                "worst": samples.iter().map(|(_, kib)| kib).max(),
                "rested": rested,
            },
            "samples": samples,
            "requests_us": heard.micros,
            "errors": heard.errors,
        }))?)
    }
}

impl Soak {
    /// A user whose name the floods try.
    async fn make_flooded(&self) -> anyhow::Result<()> {
        let client = self.identity()?;
        let password = Secret::from(self.access.password.clone());
        let tokens = client.password(identity::PKS_CLI, "admin", &password).await?;
        let theirs = Secret::from("Correct-horse-battery-7");
        client
            .create_user(&tokens.access_token, "flooded", None, &theirs)
            .await?;
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Vec<tokio::task::JoinHandle<()>>> {
        let connector = TlsConnector::from(Arc::new(tls::client(&self.access.ca, None)?));
        let fine = |work: futures::future::BoxFuture<'static, anyhow::Result<()>>| {
            task::spawn(task::Kind::Job, "soak", work)
        };
        let mut working = Vec::new();
        for _ in 0..READERS {
            let soak = self.clone();
            working.push(fine(Box::pin(async move {
                soak.read().await;
                Ok(())
            })));
        }
        let (changing, logging_in) = (self.clone(), self.clone());
        working.push(fine(Box::pin(async move {
            changing.change().await;
            Ok(())
        })));
        working.push(fine(Box::pin(async move {
            logging_in.log_in().await;
            Ok(())
        })));
        working.push(fine(Box::pin(self.clone().flood())));
        working.push(fine(Box::pin(self.clone().upload())));
        for number in 0..HOLDERS {
            let (soak, connector) = (self.clone(), connector.clone());
            working.push(fine(Box::pin(async move {
                soak.hold(number, connector).await;
                Ok(())
            })));
        }
        Ok(working)
    }
}

async fn make_clusters(client: &Client) -> anyhow::Result<()> {
    let mut begun = Vec::new();
    for number in 0..CLUSTERS {
        let name = format!("cluster-{number}");
        let request = ClusterRequest {
            plan_name: "small".to_owned(),
            parameters: ClusterParameters {
                kubernetes_master_host: Some(format!("{name}.test")),
                ..ClusterParameters::default()
            },
            name,
            network_profile_name: None,
            compute_profile_name: None,
            kubernetes_profile_name: None,
            other: indexmap::IndexMap::new(),
        };
        begun.extend(client.create_cluster(&request).await?.1.operation);
    }
    for id in begun {
        while client.operation(&id, LONG_POLL).await?.ended_at.is_none() {}
    }
    Ok(())
}
