//! Putting the services together, and the first start of trust.
//!
//! In this order: root key → credentials → our CA and server certificates → identity → bus → director → clusters. Each
//! needs what comes before it; everything can be repeated, and a second start finds what the first one made.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use futures::future::BoxFuture;
use serde_json::json;
use stolos_api::{director as director_api, http as api_http, identity as identity_api, pks};
use stolos_base::ids::DirectorId;
use stolos_base::pki::{Authority, Identity as Pair, Leaf, Usage};
use stolos_base::range::{self, HostNetwork};
use stolos_base::task::{self, Kind};
use stolos_base::tls::{self, Clients};
use stolos_base::{Clock, IdSource, Instance, Secret, files, poll};
use stolos_blobs::{Blobs, SealKey, Signer};
use stolos_clusters::oidc::Oidc;
use stolos_clusters::plans::Plans;
use stolos_clusters::render::Catalogue;
use stolos_credentials::{Credentials, Mode, Name, Parameters, Scope, Value, root_key};
use stolos_identity::{Administrator, ClientConfig, Identity, SigningKey};
use stolos_mbus::callout::{AgentDirectory, AuthCallout, DirectoryError, Keys};
use stolos_mbus::server::NatsServer;
use stolos_mbus::{Bus, Peer, nats};
use stolos_network::hostd_client::{self, HostdClient};
use stolos_store::{DatabaseUrl, Db};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::director::RemoteDirector;
use crate::network::HostNetwork as Network;
use crate::variables::{self, BusAuthority, DIRECTOR_NAME, Store};

/// Port of the token service.
const IDENTITY_PORT: u16 = 8443;
/// Port of signed blob URLs.
const BLOBS_PORT: u16 = 25250;
/// Port of the bus.
const BUS_PORT: u16 = 4222;
/// The largest blob that an agent may upload: logs.
const MAX_UPLOAD: u64 = 4 << 30;
/// A call of the CPI: a large machine on a slow disk.
const CPI_LIMIT: Duration = Duration::from_secs(600);
/// `stolos-hostd` is started right before us.
const HOSTD_LIMIT: Duration = Duration::from_secs(20);
/// The bus answers within a second of its start; a leftover process of a full host may take longer.
const BUS_LIMIT: Duration = Duration::from_secs(30);
/// The client under which `clusters` calls the director.
const CLUSTERS_CLIENT: &str = "clusters";

/// What runs; stopped in the opposite order.
pub(crate) struct Running {
    clusters: stolos_clusters::Service,
    director: stolos_director::Handle,
    serving: CancellationToken,
    _callout: AuthCallout,
    _nats: NatsServer,
}

impl Running {
    /// Stops in order. The bus goes on: agents stay connected to it, and the next start adopts it.
    pub(crate) async fn stop(self) {
        self.serving.cancel();
        self.clusters.stop().await;
        self.director.stop().await;
    }
}

/// Starts everything.
pub(crate) async fn start(instance: &Instance) -> anyhow::Result<Running> {
    let artifacts: Catalogue = files::read_json(&instance.root.join("artifacts.json"))?
        .context("artifacts.json is missing; `stolos up` writes it")?;
    let (config, plans) = Config::read(&instance.config_file(), &artifacts)?;
    let (clock, ids) = (Clock::system(), IdSource::random());
    let network = range::claim(&instance.root.join("network.json"), instance.root.as_str())?;
    let hostd = announce_host(instance, &network).await?;

    let databases = Databases::new(instance, &config.database, clock.clone())?;
    let root = root_key::load_or_create(&instance.root_key()).context("failed to get the root key")?;
    let credentials = Credentials::open(
        databases.open(&stolos_credentials::SCHEMA).await?,
        &root,
        ids.clone(),
    )
    .await?;
    let trust = Trust::make(instance, &credentials, &network).await?;
    let serving = CancellationToken::new();

    let host = IpAddr::V4(network.host());
    let identity_url = format!("https://{host}:{IDENTITY_PORT}");
    let clusters_secret = variables::password(&credentials, "/stolos/clients/clusters").await?;
    let identity = start_identity(&databases, &credentials, &identity_url, &clusters_secret, &ids).await?;
    remember_password(instance, &identity)?;
    serve(host, IDENTITY_PORT, &trust.api, identity.router(), &serving).await?;

    let bus = start_bus(instance, &config, &credentials, &trust, host, &clock).await?;
    let director_url = format!("https://{host}:{}", director_api::PORT);
    let seal = secret_bytes(&credentials, "/stolos/seal_key").await?;
    let signer_key = variables::password(&credentials, "/stolos/blob_signing_key").await?;
    let signer = Signer::new(&Secret::new(signer_key.expose().clone().into_bytes()));
    let blobs = Blobs::open(instance.blobs(), stolos_blobs::Options::default())?;
    serve(
        host,
        BLOBS_PORT,
        &trust.api,
        stolos_blobs::signed::router(stolos_blobs::signed::Config {
            blobs: blobs.clone(),
            signer: signer.clone(),
            clock: clock.clone(),
            max_upload: MAX_UPLOAD,
            seal_key: Some(SealKey::new(seal)),
        }),
        &serving,
    )
    .await?;
    let deps = stolos_director::Deps {
        db: databases.open(&stolos_director::SCHEMA).await?,
        blobs,
        seal: SealKey::new(seal),
        signer,
        cpi: Arc::new(stolos_cpi::Runner::new(
            stolos_cpi::RunnerConfig {
                program: config.programs.cpi_host.clone(),
                arguments: vec!["--config".to_owned(), instance.cpi_config().to_string()],
                calls: instance.cpi_calls(),
                director: director_id(instance, &ids)?.to_string(),
                context: serde_json::Map::new(),
                limit: CPI_LIMIT,
            },
            ids.clone(),
        )),
        bus: Bus::start(bus.director.clone(), ids.clone()).await?,
        monitor: bus.monitor.clone(),
        trust: Arc::new(BusAuthority {
            authority: trust.bus.clone(),
            clock: clock.clone(),
        }),
        variables: Arc::new(Store(credentials.clone())),
        verifier: identity.verifier(),
        ids: ids.clone(),
        faults: stolos_flow::faults::Faults::default(),
    };
    let director = stolos_director::Director::start(
        stolos_director::Config {
            id: director_id(instance, &ids)?,
            name: DIRECTOR_NAME.to_owned(),
            instance: instance.clone(),
            cpi: "host_cpi".to_owned(),
            token_url: identity_url.clone(),
            mbus_urls: vec![format!("nats://{host}:{BUS_PORT}")],
            blobstores: vec![blobstore(host, &trust.ca)],
            blobs_url: format!("https://{host}:{BLOBS_PORT}"),
            holder: holder("director", instance),
            max_cpi_calls: 8,
            agent_limit: Duration::from_secs(120),
        },
        deps,
    )
    .await?;
    serve(
        host,
        director_api::PORT,
        &trust.director,
        director.router(),
        &serving,
    )
    .await?;

    let http = api_http::client(
        &api_http::Trust::Authorities(trust.ca.clone()),
        Some(Duration::from_secs(60)),
    )?;
    let tokens = identity_api::TokenSource::new(
        identity_api::Client::new(&identity_url, http),
        CLUSTERS_CLIENT,
        clusters_secret,
        clock.clone(),
    );
    let director_client = director_api::Client::new(&director_url, &trust.ca, Arc::new(tokens))?;
    offer_zones(&director_client, plans.zones()).await?;
    let leases_db = databases.open(&stolos_network::SCHEMA).await?;
    let leases = stolos_network::Leases::open(leases_db, network.range.try_into()?).await?;
    let clusters = stolos_clusters::Service::start(
        stolos_clusters::Config {
            info: pks::Info {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                identity: identity_url,
                director: director_url,
                kubernetes_versions: offered(&artifacts, &plans),
            },
            plans,
            capacity: capacity(),
            artifacts,
            oidc: config.oidc.enabled.then(|| Oidc {
                issuer: identity.issuer().to_owned(),
                ca: trust.ca.clone(),
                claims: config.oidc.claims.clone(),
            }),
            personal_credentials: config.oidc.personal_credentials,
            holder: holder("clusters", instance),
        },
        stolos_clusters::Deps {
            db: databases.open(&stolos_clusters::SCHEMA).await?,
            verifier: identity.verifier(),
            network: Arc::new(Network { leases, hostd }),
            vault: Arc::new(Store(credentials)),
            director: Arc::new(RemoteDirector(director_client)),
            kubernetes: Arc::new(stolos_clusters::ApiServers),
            clock,
            ids,
        },
    );
    serve(host, pks::PORT, &trust.api, clusters.router(), &serving).await?;
    tracing::info!(api = %format!("https://{host}:{}", pks::PORT), "started");
    Ok(Running {
        clusters,
        director,
        serving,
        _callout: bus.callout,
        _nats: bus.server,
    })
}

/// Has the director know the zones. The config is named as BOSH's own; what an operator wrote into it stays, but for the zones.
async fn offer_zones(director: &director_api::Client, zones: &[String]) -> anyhow::Result<()> {
    const NAME: &str = "default";
    let configs = director.configs("cloud").await?;
    let there = configs.iter().find(|config| config.name == NAME);
    let mut content: serde_json::Value = match there {
        Some(config) => serde_saphyr::from_str(&config.content)
            .context("the director's default cloud config is not YAML")?,
        None => json!({}),
    };
    let named = |zone: &String| {
        content["azs"]
            .as_array()
            .is_some_and(|azs| azs.iter().any(|az| az["name"] == *zone))
    };
    let missing: Vec<serde_json::Value> = zones
        .iter()
        .filter(|zone| !named(zone))
        .map(|zone| json!({"name": zone}))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut all = content["azs"].as_array().cloned().unwrap_or_default();
    all.extend(missing);
    content["azs"] = all.into();
    let update = director_api::ConfigUpdate {
        kind: "cloud".to_owned(),
        name: NAME.to_owned(),
        content: serde_saphyr::to_string(&content)?,
        expected_latest_id: None,
    };
    director.update_config(&update).await?;
    Ok(())
}

/// Makes the host reachable under the instance's address, through `stolos-hostd`.
async fn announce_host(instance: &Instance, network: &HostNetwork) -> anyhow::Result<HostdClient> {
    let hostd = HostdClient::new(&instance.hostd_socket())?;
    let wanted = hostd_client::HostNetwork {
        address: network.host_cidr().parse()?,
    };
    poll::until(
        "stolos-hostd",
        Duration::from_millis(50),
        HOSTD_LIMIT,
        async || {
            hostd
                .put_host_network(&wanted)
                .await
                .map_err(|error| stolos_base::chain(&error))
        },
    )
    .await?;
    Ok(hostd)
}

struct Databases {
    url: DatabaseUrl,
    clock: Clock,
}

impl Databases {
    fn new(instance: &Instance, configured: &str, clock: Clock) -> anyhow::Result<Self> {
        let url = if configured == "sqlite" {
            DatabaseUrl::Sqlite {
                directory: instance.databases(),
            }
        } else {
            configured.parse()?
        };
        Ok(Self { url, clock })
    }

    async fn open(&self, schema: &'static stolos_store::Schema) -> anyhow::Result<Db> {
        Ok(Db::open(&self.url, schema, self.clock.clone()).await?)
    }
}

/// Authorities and the certificates of our own listeners.
struct Trust {
    ca: String,
    api: Pair,
    director: Pair,
    bus: Authority,
}

impl Trust {
    async fn make(
        instance: &Instance,
        credentials: &Credentials,
        network: &HostNetwork,
    ) -> anyhow::Result<Self> {
        let ca_options = |name: &str| json!({"is_ca": true, "common_name": name, "duration": 3650});
        let ca = variables::certificate(credentials, "/stolos/ca", ca_options("Stolos CA")).await?;
        let bus = variables::certificate(credentials, "/stolos/bus_ca", ca_options("Stolos bus CA")).await?;
        let leaf = |name: &str, algorithm: &str| {
            json!({
                "ca": "/stolos/ca",
                "common_name": name,
                "alternative_names": [network.host().to_string(), name],
                "extended_key_usage": ["server_auth"],
                "duration": 825,
                "key_algorithm": algorithm,
            })
        };
        let api =
            variables::certificate(credentials, "/stolos/api", leaf("api.stolos.internal", "ecdsa")).await?;
        // BOSH's command line takes ECDSA certificates over TLS 1.3 only (bosh.md, section 0).
        let director = variables::certificate(
            credentials,
            "/stolos/director",
            leaf("director.stolos.internal", "rsa"),
        )
        .await?;
        files::write_atomic(&instance.ca_file(), ca.certificate.as_bytes(), 0o644)?;
        Ok(Self {
            ca: ca.certificate,
            api: variables::identity(&api),
            director: variables::identity(&director),
            bus: Authority::from_identity(variables::identity(&bus)),
        })
    }
}

async fn start_identity(
    databases: &Databases,
    credentials: &Credentials,
    url: &str,
    clusters_secret: &Secret<String>,
    ids: &IdSource,
) -> anyhow::Result<Identity> {
    let scope = Scope::deployment(DIRECTOR_NAME, "installation")?;
    let parameters = Parameters::parse("rsa", &json!({}), &scope)?;
    let key = credentials
        .generate(
            &Name::absolute("/stolos/token_key")?,
            &parameters,
            Mode::NoOverwrite,
        )
        .await?;
    let Value::Rsa {
        public_key,
        private_key,
    } = &key.value
    else {
        anyhow::bail!("`/stolos/token_key` is no RSA key");
    };
    let config = stolos_identity::Config {
        external_url: url.to_owned(),
        administrator: Administrator {
            name: "admin".to_owned(),
            password: None,
        },
        clients: vec![ClientConfig {
            id: CLUSTERS_CLIENT.to_owned(),
            secret: clusters_secret.clone(),
            authorities: vec!["bosh.admin".to_owned()],
        }],
    };
    let db = databases.open(&stolos_identity::SCHEMA).await?;
    Ok(Identity::start(db, &config, SigningKey::from_pem(public_key, private_key)?, ids).await?)
}

/// The first administrator's password goes to a file that only root reads, so that `stolos up` can log in.
fn remember_password(instance: &Instance, identity: &Identity) -> anyhow::Result<()> {
    if let Some(password) = identity.first_password() {
        let path = instance.root.join("admin.password");
        files::write_atomic(&path, format!("{}\n", password.expose()).as_bytes(), 0o600)
            .context("failed to write down the administrator's password")?;
    }
    Ok(())
}

struct BusParts {
    server: NatsServer,
    callout: AuthCallout,
    director: Arc<nats::NatsTransport>,
    monitor: Arc<nats::NatsTransport>,
}

async fn start_bus(
    instance: &Instance,
    config: &Config,
    credentials: &Credentials,
    trust: &Trust,
    host: IpAddr,
    clock: &Clock,
) -> anyhow::Result<BusParts> {
    let keys = bus_keys(credentials).await?;
    let server = NatsServer::start(stolos_mbus::server::Config {
        program: config.programs.nats_server.clone(),
        directory: instance.nats(),
        log: instance.logs().join("nats-server.log"),
        listen: SocketAddr::new(host, BUS_PORT),
        identity: bus_certificate(credentials, host).await?,
        client_ca: trust.bus.certificate().to_owned(),
        keys: keys.public()?,
    })
    .await?;
    let connect = |peer: Peer, name: &str| -> anyhow::Result<nats::Config> {
        let pair = trust
            .bus
            .issue(&Leaf::new(peer.to_string(), Usage::Client), clock.now())?;
        Ok(nats::Config {
            servers: vec![server.url()],
            ca: trust.bus.certificate().to_owned(),
            identity: pair,
            name: name.to_owned(),
            longest_pause: Duration::from_millis(500),
        })
    };
    let callout = AuthCallout::start(
        &connect(Peer::Director, "stolosd admission")?,
        &keys,
        Arc::new(CertificateIsEnough),
        clock.clone(),
    )
    .await?;
    // Nobody is admitted before the admission service is there: who came too early would wait for its next attempt.
    tokio::time::timeout(BUS_LIMIT, callout.ready())
        .await
        .context("the bus did not become ready in time")??;
    let director =
        Arc::new(nats::NatsTransport::connect(&connect(Peer::Director, "stolosd director")?).await?);
    let monitor =
        Arc::new(nats::NatsTransport::connect(&connect(Peer::HealthMonitor, "stolosd monitor")?).await?);
    tokio::time::timeout(BUS_LIMIT, async {
        director.ready().await?;
        monitor.ready().await
    })
    .await
    .context("the bus did not become ready in time")??;
    Ok(BusParts {
        server,
        callout,
        director,
        monitor,
    })
}

async fn bus_keys(credentials: &Credentials) -> anyhow::Result<Keys> {
    let (issuer, user) = (
        Name::absolute("/stolos/bus_issuer")?,
        Name::absolute("/stolos/bus_user")?,
    );
    let stored =
        |credential: Option<stolos_credentials::Credential>| credential.and_then(|c| c.value.text().cloned());
    let found = (
        stored(credentials.find(&issuer).await?),
        stored(credentials.find(&user).await?),
    );
    if let (Some(issuer), Some(user)) = found {
        return Ok(Keys { issuer, user });
    }
    let keys = Keys::generate()?;
    credentials
        .set(&issuer, Value::Value(keys.issuer.clone()))
        .await?;
    credentials.set(&user, Value::Value(keys.user.clone())).await?;
    Ok(keys)
}

async fn bus_certificate(credentials: &Credentials, host: IpAddr) -> anyhow::Result<Pair> {
    let leaf = stolos_mbus::server::leaf(host);
    let mut names = leaf.dns.clone();
    names.push(host.to_string());
    let options = json!({
        "ca": "/stolos/bus_ca",
        "common_name": leaf.common_name,
        "alternative_names": names,
        "extended_key_usage": ["server_auth"],
        "duration": 825,
    });
    Ok(variables::identity(
        &variables::certificate(credentials, "/stolos/bus", options).await?,
    ))
}

/// A client certificate of the bus's CA is only ever issued for a machine that the director is making, and its key lies in
/// that machine alone; so whoever shows one is admitted to what its name allows.
struct CertificateIsEnough;

impl AgentDirectory for CertificateIsEnough {
    fn admits(&self, _: Peer) -> BoxFuture<'_, Result<bool, DirectoryError>> {
        Box::pin(std::future::ready(Ok(true)))
    }
}

/// 32 bytes that are made once.
async fn secret_bytes(credentials: &Credentials, name: &str) -> anyhow::Result<[u8; 32]> {
    let name = Name::absolute(name)?;
    if let Some(text) = credentials
        .find(&name)
        .await?
        .and_then(|credential| credential.value.text().cloned())
    {
        let bytes = hex_bytes(text.expose()).context("a stored key is not valid")?;
        return Ok(bytes);
    }
    let text = Secret::new(stolos_base::ids::random_hex(32));
    credentials.set(&name, Value::Value(text.clone())).await?;
    hex_bytes(text.expose()).context("a new key is not valid")
}

fn hex_bytes(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

fn blobstore(host: IpAddr, ca: &str) -> stolos_mbus::settings::Blobstore {
    use stolos_mbus::settings::{Blobstore, BlobstoreCa, BlobstoreOptions, BlobstoreTls};
    Blobstore {
        provider: "dav".to_owned(),
        options: BlobstoreOptions {
            endpoint: Some(format!("https://{host}:{BLOBS_PORT}")),
            tls: Some(BlobstoreTls {
                cert: BlobstoreCa { ca: ca.to_owned() },
            }),
            ..BlobstoreOptions::default()
        },
        other: serde_json::Map::new(),
    }
}

fn director_id(instance: &Instance, ids: &IdSource) -> anyhow::Result<DirectorId> {
    let path = instance.root.join("director.json");
    if let Some(id) = files::read_json(&path)? {
        return Ok(id);
    }
    let id = DirectorId::new(ids);
    files::write_json(&path, &id, 0o644)?;
    Ok(id)
}

/// The same name after a restart, so that a new process takes up its own flows at once.
fn holder(service: &str, instance: &Instance) -> String {
    format!("{service}@{}", instance.name)
}

/// The versions that plans have, newest first.
fn offered(artifacts: &Catalogue, plans: &Plans) -> Vec<String> {
    let has = |version: &str| plans.iter().any(|(_, plan)| plan.kubernetes_version == version);
    let versions = artifacts.versions().into_iter();
    versions
        .filter(|version| has(version))
        .map(str::to_owned)
        .collect()
}

/// The host's memory and processors.
fn capacity() -> Option<stolos_clusters::Capacity> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let cpus = std::thread::available_parallelism().ok()?;
    Some(stolos_clusters::Capacity {
        memory_mib: kib / 1024,
        cpus: u32::try_from(cpus.get()).ok()?,
    })
}

async fn serve(
    host: IpAddr,
    port: u16,
    identity: &Pair,
    router: Router,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let address = SocketAddr::new(host, port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}; is another program there?"))?;
    let tls = tls::server(identity, Clients::Any)?;
    let stop = stop.clone();
    task::spawn(Kind::Service, format!("port {port}"), async move {
        stolos_base::http::serve_tls(listener, tls, router, stop).await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(())
}
