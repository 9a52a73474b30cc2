//! The bus of a real installation: `nats-server` on this host, with us as the one who admits.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use futures::future::BoxFuture;
use serde_json::json;
use stolos_base::pki::{Identity as Pair, Leaf, Usage};
use stolos_base::{Clock, Instance};
use stolos_credentials::Credentials;
use stolos_mbus::callout::{AgentDirectory, AuthCallout, DirectoryError, Keys};
use stolos_mbus::server::{Cluster, NatsServer};
use stolos_mbus::{Peer, nats};

use crate::outside::{Buses, Connected, Ground};
use crate::variables;

/// Where the servers of a bus are.
#[derive(Clone, Debug)]
pub struct BusPorts {
    /// For clients, one for each server.
    pub clients: Vec<u16>,
    /// For the servers among themselves, one for each; not used by a server that is alone.
    pub routes: Vec<u16>,
}

impl BusPorts {
    /// Those of an installation with so many servers: 4222, 4223, … and 6222, 6223, ….
    #[must_use]
    pub fn well_known(servers: u8) -> Self {
        let from = |first: u16| (0..u16::from(servers)).map(|n| first + n).collect();
        Self {
            clients: from(4222),
            routes: from(6222),
        }
    }
}

/// The bus answers within a second of its start; a leftover process of a full host may take longer.
const LIMIT: Duration = Duration::from_secs(30);

/// `nats-server` on this host, one or a cluster of several: started, or adopted from an earlier life or another manager.
#[derive(Clone, Debug)]
pub struct HostBus {
    /// Whose.
    pub instance: Instance,
    /// `nats-server`.
    pub program: Utf8PathBuf,
    /// Where it listens.
    pub host: IpAddr,
    /// On which ports.
    pub ports: BusPorts,
    /// Time.
    pub clock: Clock,
}

impl Buses for HostBus {
    fn connect<'a>(&'a self, ground: Ground<'a>) -> BoxFuture<'a, anyhow::Result<Connected>> {
        Box::pin(self.start(ground))
    }
}

impl HostBus {
    async fn start(&self, ground: Ground<'_>) -> anyhow::Result<Connected> {
        let Ground {
            credentials,
            authority,
        } = ground;
        let keys = bus_keys(credentials).await?;
        let identity = bus_certificate(credentials, self.host).await?;
        let mut servers = Vec::new();
        for (number, port) in self.ports.clients.iter().enumerate() {
            let log = match number {
                0 => "nats-server.log".to_owned(),
                number => format!("nats-server-{}.log", number + 1),
            };
            let config = stolos_mbus::server::Config {
                name: match self.ports.clients.len() {
                    1 => "stolos".to_owned(),
                    _ => format!("stolos-{}", number + 1),
                },
                program: self.program.clone(),
                directory: self.instance.nats_server(number),
                log: self.instance.logs().join(log),
                listen: SocketAddr::new(self.host, *port),
                identity: identity.clone(),
                client_ca: authority.certificate().to_owned(),
                keys: keys.public()?,
                cluster: self.cluster(credentials, number).await?,
            };
            servers.push(NatsServer::start(config).await?);
        }
        let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
        let connect = |peer: Peer, name: &str| -> anyhow::Result<nats::Config> {
            let pair = authority.issue(&Leaf::new(peer.to_string(), Usage::Client), self.clock.now())?;
            Ok(nats::Config {
                servers: urls.clone(),
                ca: authority.certificate().to_owned(),
                identity: pair,
                name: name.to_owned(),
                longest_pause: Duration::from_millis(500),
            })
        };
        let callout = AuthCallout::start(
            &connect(Peer::Director, "stolosd admission")?,
            &keys,
            Arc::new(CertificateIsEnough),
            self.clock.clone(),
        )
        .await?;
        // Nobody is admitted before the admission service is there: who came too early would wait for its next attempt.
        tokio::time::timeout(LIMIT, callout.ready())
            .await
            .context("the bus did not become ready in time")??;
        let director =
            Arc::new(nats::NatsTransport::connect(&connect(Peer::Director, "stolosd director")?).await?);
        let monitor =
            Arc::new(nats::NatsTransport::connect(&connect(Peer::HealthMonitor, "stolosd monitor")?).await?);
        tokio::time::timeout(LIMIT, async {
            director.ready().await?;
            monitor.ready().await
        })
        .await
        .context("the bus did not become ready in time")??;
        Ok(Connected {
            director,
            monitor,
            kept: Box::new((callout, servers)),
            urls,
        })
    }

    /// How a server finds the others; `None` for one that is alone.
    async fn cluster(&self, credentials: &Credentials, number: usize) -> anyhow::Result<Option<Cluster>> {
        if self.ports.clients.len() < 2 {
            return Ok(None);
        }
        let route = |port: &u16| SocketAddr::new(self.host, *port);
        let own = self.ports.routes.get(number).map(route);
        let own = own.context("a server of the bus has no port for the others")?;
        let others = self.ports.routes.iter().map(route).filter(|other| *other != own);
        let ca_options = json!({"is_ca": true, "common_name": "Stolos bus servers CA", "duration": 3650});
        let ca = variables::certificate(credentials, "/stolos/bus_servers_ca", ca_options).await?;
        let leaf = stolos_mbus::server::route_leaf(self.host);
        let options = json!({
            "ca": "/stolos/bus_servers_ca",
            "common_name": leaf.common_name,
            "alternative_names": [self.host.to_string()],
            "extended_key_usage": ["server_auth", "client_auth"],
            "duration": 825,
        });
        Ok(Some(Cluster {
            listen: own,
            others: others.collect(),
            identity: variables::identity(
                &variables::certificate(credentials, "/stolos/bus_route", options).await?,
            ),
            ca: ca.certificate,
        }))
    }
}

async fn bus_keys(credentials: &Credentials) -> anyhow::Result<Keys> {
    // Each is a key of its own, so it does not matter whether they were made together.
    Ok(Keys {
        issuer: variables::once(credentials, "/stolos/bus_issuer", || Ok(Keys::generate()?.issuer)).await?,
        user: variables::once(credentials, "/stolos/bus_user", || Ok(Keys::generate()?.user)).await?,
    })
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
