//! An installation with simulated machines: for whatever is about many clusters.
//!
//! Everything of `stolosd` is real (identity, credentials with real certificates, leases, the director with its plans, templates and
//! journal, `clusters`, all behind HTTPS on free ports of 127.0.0.1, on either database). Machines, the bus and clusters' API servers are not,
//! and nothing is published in the host's network. Needs no root, no upstream program and no build of the Kubernetes release; a machine
//! costs a few kilobytes.
//!
//! What can go wrong with machines is switched on in [`Simulation::machines`].

pub mod etcd;
pub mod failover;
mod kubernetes;
pub mod members;
mod release;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use futures::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};
use stolos_api::{director, http, identity, pks};
use stolos_base::ids::ClusterId;
use stolos_base::{Clock, IdSource, Instance, Secret};
use stolos_clusters::plans::Plans;
use stolos_cpi::null::NullCpi;
use stolos_director::testing::Outside as Machines;
use stolos_mbus::Peer;
use stolos_mbus::memory::MemoryBus;
use stolos_server::cluster_backups::{ClusterBackupSettings, Kept};
use stolos_server::config::{Oidc, default_plans, default_zones};
use stolos_server::{Addresses, Buses, Connected, Ground, Installation, Listen, Outside, Ports};
use stolos_store::DatabaseUrl;

/// The Kubernetes version of all plans.
pub const KUBERNETES_VERSION: &str = "1.37.1";
/// The name of the administrator.
const ADMINISTRATOR: &str = "admin";

/// A running installation.
pub struct Simulation {
    /// Its machines.
    pub machines: Machines,
    /// Its clusters' etcd.
    pub etcd: Arc<etcd::SimulatedEtcd>,
    installation: Installation,
    access: Access,
}

/// What a client needs; also in another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    /// URL of the PKS API.
    pub api: String,
    /// URL of the token service.
    pub identity: String,
    /// URL of the director.
    pub director: String,
    /// CA (PEM) of all three.
    pub ca: String,
    /// The administrator's password.
    pub password: String,
}

impl Simulation {
    /// Starts an installation in an empty directory, with the plans of a first start and everything uploaded that their clusters need.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn start(directory: &Utf8Path, database: DatabaseUrl) -> anyhow::Result<Self> {
        Self::backing_up(directory, database, ClusterBackupSettings::default()).await
    }

    /// The same with clusters that are backed up by these settings, to `backups` in the directory.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn backing_up(
        directory: &Utf8Path,
        database: DatabaseUrl,
        backups: ClusterBackupSettings,
    ) -> anyhow::Result<Self> {
        let machines = Machines::new(NullCpi::new(IdSource::random()));
        let (simulation, built) = Self::over(directory, database, machines, backups).await?;
        let director = simulation.access.director_client().await?;
        for task in [
            director
                .upload_stemcell(director::Upload::Location(&built.stemcell))
                .await?,
            director
                .upload_release(director::Upload::Location(&built.release))
                .await?,
        ] {
            director.follow(task, |_| {}).await?;
        }
        Ok(simulation)
    }

    /// Starts an installation over what is in the directory already, and over machines of an earlier life: another process, or one that
    /// was restored from a backup.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn resume(
        directory: &Utf8Path,
        database: DatabaseUrl,
        machines: Machines,
    ) -> anyhow::Result<Self> {
        let backups = ClusterBackupSettings::default();
        Ok(Self::over(directory, database, machines, backups).await?.0)
    }

    /// The instance in a directory.
    ///
    /// # Panics
    /// Never: its name is valid.
    #[must_use]
    pub fn instance(directory: &Utf8Path) -> Instance {
        Instance {
            name: "sim".parse().expect("a valid name"),
            root: directory.join("instance"),
        }
    }

    async fn over(
        directory: &Utf8Path,
        database: DatabaseUrl,
        machines: Machines,
        backups: ClusterBackupSettings,
    ) -> anyhow::Result<(Self, release::Built)> {
        stolos_base::tls::install_provider();
        let instance = Self::instance(directory);
        fs_err::create_dir_all(&instance.root)?;
        let (clock, ids) = (Clock::system(), IdSource::random());
        let built = release::build(directory)?;
        let etcd = Arc::new(etcd::SimulatedEtcd::default());
        let outside = Outside {
            member: None,
            host: Ipv4Addr::LOCALHOST.into(),
            ports: Ports::ANY,
            listen: Listen {
                host: Ipv4Addr::LOCALHOST.into(),
                ports: Ports::ANY,
                all: Vec::new(),
            },
            range: "10.117.0.0/16".parse()?,
            database,
            clock,
            ids,
            plans: Plans::new(default_plans(KUBERNETES_VERSION), default_zones())?,
            artifacts: [(KUBERNETES_VERSION.to_owned(), release::artifacts())]
                .into_iter()
                .collect(),
            capacity: None,
            people: Oidc::default(),
            bus: Arc::new(Bus(machines.bus().clone())),
            cpi: Arc::new(machines.clone()),
            hosts: None,
            connections: stolos_base::http::Limits::default(),
            resurrection: stolos_director::Resurrection::default(),
            orphaned_disks_kept: Duration::from_secs(5 * 24 * 3600),
            alerts: None,
            addresses: Arc::new(Unpublished),
            kubernetes: Arc::new(kubernetes::Simulated),
            backups: Some(Kept {
                settings: stolos_server::backup::Settings::to(directory.join("backups").as_str()),
                key_file: directory.join("backup.key"),
                clusters: backups,
                etcd: etcd.clone(),
            }),
        };
        let installation = Installation::start(&instance, outside).await?;
        let urls = installation.urls().clone();
        let password = fs_err::read_to_string(instance.root.join("admin.password"))
            .context("there is no administrator's password")?;
        let access = Access {
            api: urls.api,
            identity: urls.identity,
            director: urls.director,
            ca: installation.ca().to_owned(),
            password: password.trim().to_owned(),
        };
        let simulation = Self {
            machines,
            etcd,
            installation,
            access,
        };
        Ok((simulation, built))
    }

    /// How to reach it.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Ends everything.
    pub async fn stop(self) {
        self.installation.stop().await;
    }
}

impl Access {
    /// A client of the PKS API with a fresh token of the administrator, on a connection of its own. The token is good for ten minutes.
    ///
    /// # Errors
    /// When there is no token to be had.
    pub async fn client(&self) -> anyhow::Result<pks::Client> {
        Ok(pks::Client::new(&self.api, self.http()?, self.token().await?))
    }

    /// The same with a token that `giver` gave, another manager of the installation.
    ///
    /// # Errors
    /// When there is no token to be had.
    pub async fn client_with_tokens_of(&self, giver: &Self) -> anyhow::Result<pks::Client> {
        Ok(pks::Client::new(&self.api, self.http()?, giver.token().await?))
    }

    /// The same for the director.
    ///
    /// # Errors
    /// When there is no token to be had.
    pub async fn director_client(&self) -> anyhow::Result<director::Client> {
        let token = Arc::new(self.token().await?);
        Ok(director::Client::new(&self.director, &self.ca, token)?)
    }

    async fn token(&self) -> anyhow::Result<Secret<String>> {
        let client = identity::Client::new(&self.identity, self.http()?);
        let password = Secret::from(self.password.clone());
        let tokens = client.password(identity::PKS_CLI, ADMINISTRATOR, &password);
        Ok(tokens.await?.access_token)
    }

    fn http(&self) -> anyhow::Result<reqwest::Client> {
        Ok(http::client(&http::Trust::Authorities(self.ca.clone()), None)?)
    }
}

/// The bus in this process.
struct Bus(MemoryBus);

impl Buses for Bus {
    fn connect<'a>(&'a self, _: Ground<'a>) -> BoxFuture<'a, anyhow::Result<Connected>> {
        Box::pin(ready(Ok(Connected {
            director: Arc::new(self.0.connect(Peer::Director)),
            monitor: Arc::new(self.0.connect(Peer::HealthMonitor)),
            urls: vec!["nats://127.0.0.1:4222".to_owned()],
            kept: Box::new(()),
        })))
    }
}

/// Addresses that are leased, and that nobody can reach.
struct Unpublished;

impl Addresses for Unpublished {
    fn publish(
        &self,
        _: ClusterId,
        _: Ipv4Addr,
        _: Vec<Ipv4Addr>,
    ) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn withdraw(&self, _: Ipv4Addr) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        Box::pin(ready(Ok(())))
    }
}
