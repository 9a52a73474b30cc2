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
use stolos_credentials::{Credentials, Name, Value};
use stolos_mbus::callout::{AgentDirectory, AuthCallout, DirectoryError, Keys};
use stolos_mbus::server::NatsServer;
use stolos_mbus::{Peer, nats};

use crate::outside::{Buses, Connected, Ground};
use crate::variables;

/// Port of the bus.
const PORT: u16 = 4222;
/// The bus answers within a second of its start; a leftover process of a full host may take longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts `nats-server`, or adopts the one that an earlier life left.
pub(crate) struct HostBus {
    pub(crate) instance: Instance,
    /// `nats-server`.
    pub(crate) program: Utf8PathBuf,
    /// Where it listens.
    pub(crate) host: IpAddr,
    pub(crate) clock: Clock,
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
        let server = NatsServer::start(stolos_mbus::server::Config {
            program: self.program.clone(),
            directory: self.instance.nats(),
            log: self.instance.logs().join("nats-server.log"),
            listen: SocketAddr::new(self.host, PORT),
            identity: bus_certificate(credentials, self.host).await?,
            client_ca: authority.certificate().to_owned(),
            keys: keys.public()?,
        })
        .await?;
        let connect = |peer: Peer, name: &str| -> anyhow::Result<nats::Config> {
            let pair = authority.issue(&Leaf::new(peer.to_string(), Usage::Client), self.clock.now())?;
            Ok(nats::Config {
                servers: vec![server.url()],
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
            urls: vec![format!("nats://{}:{PORT}", self.host)],
            kept: Box::new((callout, server)),
        })
    }
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
