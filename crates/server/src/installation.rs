//! Putting the services together, and the first start of trust. What they touch outside of the process is given ([`Outside`]).
//!
//! In this order: root key → credentials → our CA and server certificates → identity → bus → director → clusters. Each
//! needs what comes before it; everything can be repeated, and a second start finds what the first one made. Of several managers
//! that start at once, one after the other does what is made once (`docs/design/0011-several-managers.md`).

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use serde_json::json;
use stolos_api::{director as director_api, http as api_http, identity as identity_api, pks};
use stolos_base::http::Server;
use stolos_base::pki::Identity as Pair;
use stolos_base::task::{self, Kind};
use stolos_base::tls::{self, Clients};
use stolos_base::{Clock, IdSource, Instance, Secret};
use stolos_blobs::{Blobs, SealKey, Signer};
use stolos_clusters::deps::Backups;
use stolos_clusters::oidc::Oidc;
use stolos_clusters::plans::Plans;
use stolos_clusters::render::Catalogue;
use stolos_credentials::{Credentials, root_key};
use stolos_identity::{Administrator, ClientConfig, Identity};
use stolos_mbus::Bus;
use stolos_store::{DatabaseUrl, Db};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster_backups::Placed;
use crate::director::RemoteDirector;
use crate::network::LeasedNetwork;
use crate::outside::{Ground, Member, Outside};
use crate::people::RemotePeople;
use crate::time;
use crate::trust::{self, Trust};
use crate::variables::{self, BusAuthority, DIRECTOR_NAME, Store};

/// The largest blob that an agent may upload: logs.
const MAX_UPLOAD: u64 = 4 << 30;
/// The client under which `clusters` calls the director.
const CLUSTERS_CLIENT: &str = "clusters";
/// The first administrator's name.
const ADMINISTRATOR: &str = "admin";
/// CPI calls of all managers at once: a host makes one machine as fast as eight but not eighty.
const CPI_CALLS: usize = 8;
/// What a manager has of them at least, whatever the others do.
const CPI_CALLS_LEAST: usize = 4;

/// All services of an installation, running. Stopped in the opposite order of their start.
pub struct Installation {
    clusters: stolos_clusters::Service,
    director: stolos_director::Handle,
    serving: CancellationToken,
    urls: Urls,
    own: Urls,
    ca: String,
    _bus: Box<dyn Any + Send>,
}

/// Where the services are reached.
#[derive(Clone, Debug)]
pub struct Urls {
    /// PKS API.
    pub api: String,
    /// Tokens.
    pub identity: String,
    /// Director.
    pub director: String,
    /// Blobs.
    pub blobs: String,
}

impl Installation {
    /// Starts everything.
    ///
    /// # Errors
    /// When something cannot be started; what was started ends with the process.
    pub async fn start(instance: &Instance, outside: Outside) -> anyhow::Result<Self> {
        let (clock, ids) = (&outside.clock.clone(), &outside.ids.clone());
        let (listen, member) = (&outside.listen, outside.member.as_ref());
        let reached = |port: Port, known: u16| port.reached(outside.host, known);
        let alone = trust::alone(instance).await?;
        let databases = Databases {
            url: outside.database.clone(),
            clock: clock.clone(),
        };
        let root = root_key::load_or_create(&instance.root_key()).context("failed to get the root key")?;
        let serving = CancellationToken::new();
        let front = Server::new(outside.connections);
        let db = databases.open(&stolos_credentials::SCHEMA).await?;
        time::follow(db.clone(), serving.clone()).await?;
        let credentials = Credentials::open(db, &root, ids.clone()).await?;
        let trust = Trust::make(instance, &credentials, outside.host, &listen.all).await?;

        let port = reached(
            Port::listen(listen.host, listen.ports.identity).await?,
            outside.ports.identity,
        );
        let (identity_url, own_identity_url) = (port.url.clone(), port.own_url());
        let clusters_secret = variables::password(&credentials, "/stolos/clients/clusters").await?;
        let identity = start_identity(
            instance,
            &databases,
            &credentials,
            &identity_url,
            &clusters_secret,
            ids,
        )
        .await?;
        drop(alone);
        port.serve(&front, &trust.api, identity.router(), &serving)?;

        let bus = outside
            .bus
            .connect(Ground {
                credentials: &credentials,
                authority: &trust.bus,
            })
            .await?;
        let seal = trust::secret_bytes(&credentials, "/stolos/seal_key").await?;
        let signer_key = variables::password(&credentials, "/stolos/blob_signing_key").await?;
        let signer = Signer::new(&Secret::new(signer_key.expose().clone().into_bytes()));
        let blobs = Blobs::open(instance.blobs(), stolos_blobs::Options::default())?;
        let port = reached(
            Port::listen(listen.host, listen.ports.blobs).await?,
            outside.ports.blobs,
        );
        let (blobs_url, own_blobs_url) = (port.url.clone(), port.own_url());
        let served = stolos_blobs::signed::Config {
            blobs: blobs.clone(),
            signer: signer.clone(),
            clock: clock.clone(),
            max_upload: MAX_UPLOAD,
            seal_key: Some(SealKey::new(seal)),
        };
        let mut served = stolos_blobs::signed::router(served);
        let backup_settings = match &outside.backups {
            Some(kept) => kept.clusters.to_service()?,
            None => stolos_clusters::BackupSettings::default(),
        };
        let director_id = trust::director_id(instance, ids).await?.to_string();
        let placed = outside.backups.map(|kept| {
            let (url, ca) = (blobs_url.clone(), trust.ca.clone());
            Placed::new(kept, director_id, signer.clone(), url, ca, clock.clone())
        });
        if let Some(placed) = &placed {
            served = served.merge(placed.router());
        }
        port.serve(&front, &trust.api, served, &serving)?;
        let deps = stolos_director::Deps {
            db: databases.open(&stolos_director::SCHEMA).await?,
            blobs,
            seal: SealKey::new(seal),
            signer,
            cpi: outside.cpi.clone(),
            bus: Bus::start(bus.director, ids.clone()).await?,
            monitor: bus.monitor,
            hosts: outside.hosts,
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
                id: trust::director_id(instance, ids).await?,
                name: DIRECTOR_NAME.to_owned(),
                instance: instance.clone(),
                cpi: "host_cpi".to_owned(),
                token_url: identity_url.clone(),
                mbus_urls: bus.urls,
                blobstores: vec![blobstore(&blobs_url, &trust.ca)],
                blobs_url: blobs_url.clone(),
                holder: holder("director", instance, member),
                max_cpi_calls: member.map_or(CPI_CALLS, |member| {
                    CPI_CALLS.div_ceil(member.of).max(CPI_CALLS_LEAST)
                }),
                agent_limit: Duration::from_secs(120),
                resurrection: outside.resurrection,
                orphaned_disks_kept: outside.orphaned_disks_kept,
                alerts: outside.alerts,
            },
            deps,
        )
        .await?;
        let port = reached(
            Port::listen(listen.host, listen.ports.director).await?,
            outside.ports.director,
        );
        let (director_url, own_director_url) = (port.url.clone(), port.own_url());
        port.serve(&front, &trust.director, director.router(), &serving)?;

        let http = api_http::client(
            &api_http::Trust::Authorities(trust.ca.clone()),
            Some(Duration::from_secs(60)),
        )?;
        // Its own: what it needs to work depends on no other manager.
        let identity_client = identity_api::Client::new(&own_identity_url, http);
        let tokens = identity_api::TokenSource::new(
            identity_client.clone(),
            CLUSTERS_CLIENT,
            clusters_secret,
            clock.clone(),
        );
        let people = RemotePeople {
            identity: identity_client,
            tokens: tokens.clone(),
        };
        let director_client = director_api::Client::new(&own_director_url, &trust.ca, Arc::new(tokens))?;
        offer_zones(&director_client, outside.plans.zones()).await?;
        let leases_db = databases.open(&stolos_network::SCHEMA).await?;
        let leases = stolos_network::Leases::open(leases_db, outside.range.try_into()?).await?;
        let clusters = stolos_clusters::Service::start(
            stolos_clusters::Config {
                info: pks::Info {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    identity: identity_url.clone(),
                    director: director_url.clone(),
                    kubernetes_versions: offered(&outside.artifacts, &outside.plans),
                },
                plans: outside.plans,
                capacity: outside.capacity,
                artifacts: outside.artifacts,
                oidc: outside.people.enabled.then(|| Oidc {
                    issuer: identity.issuer().to_owned(),
                    ca: trust.ca.clone(),
                    claims: outside.people.claims.clone(),
                    audience: None,
                }),
                audience_per_cluster: outside.people.audience_per_cluster,
                personal_credentials: outside.people.personal_credentials,
                credentials_live: outside.people.credentials_live(),
                look_at_access: stolos_clusters::LOOK_AT_ACCESS,
                holder: holder("clusters", instance, member),
                backups: backup_settings,
            },
            stolos_clusters::Deps {
                db: databases.open(&stolos_clusters::SCHEMA).await?,
                verifier: identity.verifier(),
                network: Arc::new(LeasedNetwork {
                    leases,
                    addresses: outside.addresses,
                }),
                vault: Arc::new(Store(credentials)),
                director: Arc::new(RemoteDirector(director_client)),
                kubernetes: outside.kubernetes,
                people: Arc::new(people),
                backups: placed.map(|placed| Arc::new(placed) as Arc<dyn Backups>),
                clock: outside.clock,
                ids: outside.ids,
            },
        );
        if let Err(error) = clusters.settle_owners().await {
            tracing::warn!(error = %stolos_base::chain(&error), "failed to find out whose clusters are that are kept by name; trying again");
        }
        let port = reached(
            Port::listen(outside.listen.host, outside.listen.ports.api).await?,
            outside.ports.api,
        );
        let urls = Urls {
            api: port.url.clone(),
            identity: identity_url,
            director: director_url,
            blobs: blobs_url,
        };
        let own = Urls {
            api: port.own_url(),
            identity: own_identity_url,
            director: own_director_url,
            blobs: own_blobs_url,
        };
        port.serve(&front, &trust.api, clusters.router(), &serving)?;
        tracing::info!(api = %urls.api, "started");
        Ok(Self {
            clusters,
            director,
            serving,
            urls,
            own,
            ca: trust.ca,
            _bus: bus.kept,
        })
    }

    /// Where the services are reached.
    #[must_use]
    pub fn urls(&self) -> &Urls {
        &self.urls
    }

    /// Where the services of this process listen: another place than [`Self::urls`] where several managers are behind one address.
    #[must_use]
    pub fn own_urls(&self) -> &Urls {
        &self.own
    }

    /// The CA (PEM) of the services' certificates.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Stops in order. Machines go on, and so does a bus that is a process: agents stay connected to it, and the next start adopts it.
    pub async fn stop(self) {
        self.serving.cancel();
        self.clusters.stop().await;
        self.director.stop().await;
    }
}

/// Has the director know the zones. The config is named as BOSH's own; what an operator wrote into it stays, but for the zones.
async fn offer_zones(director: &director_api::Client, zones: &[String]) -> anyhow::Result<()> {
    const NAME: &str = "default";
    let configs = director.configs("cloud").await?;
    let there = configs.iter().find(|config| config.name == NAME);
    let mut content: serde_json::Value = match there {
        Some(config) => stolos_document::from_yaml(&config.content)
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
        content: stolos_document::to_yaml(&content)?,
        expected_latest_id: None,
    };
    director.update_config(&update).await?;
    Ok(())
}

struct Databases {
    url: DatabaseUrl,
    clock: Clock,
}

impl Databases {
    async fn open(&self, schema: &'static stolos_store::Schema) -> anyhow::Result<Db> {
        Ok(Db::open(&self.url, schema, self.clock.clone()).await?)
    }
}

async fn start_identity(
    instance: &Instance,
    databases: &Databases,
    credentials: &Credentials,
    url: &str,
    clusters_secret: &Secret<String>,
    ids: &IdSource,
) -> anyhow::Result<Identity> {
    let key = trust::signing_key(credentials).await?;
    let db = databases.open(&stolos_identity::SCHEMA).await?;
    let config = stolos_identity::Config {
        external_url: url.to_owned(),
        administrator: Administrator {
            name: ADMINISTRATOR.to_owned(),
            password: trust::first_password(instance, &db, ADMINISTRATOR).await?,
        },
        clients: vec![ClientConfig {
            id: CLUSTERS_CLIENT.to_owned(),
            secret: clusters_secret.clone(),
            // Machines are the director's, and whose a cluster is depends on who is still there.
            authorities: vec!["bosh.admin".to_owned(), "scim.read".to_owned()],
        }],
    };
    Ok(Identity::start(db, &config, key, ids).await?)
}

fn blobstore(url: &str, ca: &str) -> stolos_mbus::settings::Blobstore {
    use stolos_mbus::settings::{Blobstore, BlobstoreCa, BlobstoreOptions, BlobstoreTls};
    Blobstore {
        provider: "dav".to_owned(),
        options: BlobstoreOptions {
            endpoint: Some(url.to_owned()),
            tls: Some(BlobstoreTls {
                cert: BlobstoreCa { ca: ca.to_owned() },
            }),
            ..BlobstoreOptions::default()
        },
        other: serde_json::Map::new(),
    }
}

/// The same name after a restart, so that a new process takes up its own flows at once; another one for each of several managers.
fn holder(service: &str, instance: &Instance, member: Option<&Member>) -> String {
    match member {
        None => format!("{service}@{}", instance.name),
        Some(member) => format!("{service}@{}/{}", instance.name, member.name),
    }
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

/// A port of ours that listens and answers nobody yet.
struct Port {
    listener: TcpListener,
    address: SocketAddr,
    /// Where everybody reaches it.
    url: String,
}

impl Port {
    async fn listen(host: IpAddr, port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::new(host, port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("failed to listen on {address}; is another program there?"))?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            url: format!("https://{address}"),
        })
    }

    /// The same port, reached under another address. `known` is the port there, 0 for the one that is listened on.
    fn reached(self, host: IpAddr, known: u16) -> Self {
        let port = if known == 0 { self.address.port() } else { known };
        Self {
            url: format!("https://{}", SocketAddr::new(host, port)),
            ..self
        }
    }

    /// Where this process itself listens.
    fn own_url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn serve(
        self,
        front: &Server,
        identity: &Pair,
        router: Router,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (tls, stop, front) = (tls::server(identity, Clients::Any)?, stop.clone(), front.clone());
        let name = format!("port {}", self.address.port());
        task::spawn(Kind::Service, name, async move {
            front.serve_tls(self.listener, tls, router, stop).await;
            Ok::<(), std::convert::Infallible>(())
        });
        Ok(())
    }
}
