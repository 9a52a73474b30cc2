//! Everything that an installation touches outside of its process, in one place: real on a host, simulated in the testbed.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use stolos_base::http::Limits;
use stolos_base::ids::ClusterId;
use stolos_base::pki::Authority;
use stolos_base::{Clock, IdSource, MemberName};
use stolos_clusters::Capacity;
use stolos_clusters::deps::Kubernetes;
use stolos_clusters::plans::Plans;
use stolos_clusters::render::Catalogue;
use stolos_credentials::Credentials;
use stolos_director::{Hosts, Infrastructure, Resurrection, Webhook};
use stolos_mbus::Transport;
use stolos_store::DatabaseUrl;

use crate::config::Oidc;

/// The outside of an installation.
pub struct Outside {
    /// Which of several managers this is.
    pub member: Option<Member>,
    /// The address under which everybody reaches the services: it is in certificates and tokens.
    pub host: IpAddr,
    /// On which ports; where one is 0, the port that is listened on is the one under which it is reached.
    pub ports: Ports,
    /// Where this process listens.
    pub listen: Listen,
    /// What clusters' networks and virtual addresses are leased from: a /16.
    pub range: Ipv4Net,
    /// Where the databases are.
    pub database: DatabaseUrl,
    /// Time.
    pub clock: Clock,
    /// Ids of everything new.
    pub ids: IdSource,
    /// Plans on offer.
    pub plans: Plans,
    /// What machines are made of.
    pub artifacts: Catalogue,
    /// What the machines may take together; `None` where they take nothing.
    pub capacity: Option<Capacity>,
    /// How people are known in clusters.
    pub people: Oidc,
    /// The bus.
    pub bus: Arc<dyn Buses>,
    /// Machines.
    pub cpi: Arc<dyn Infrastructure>,
    /// Hosts that see machines end.
    pub hosts: Option<Arc<dyn Hosts>>,
    /// When machines count as dead.
    pub resurrection: Resurrection,
    /// How long disks without an instance are kept.
    pub orphaned_disks_kept: Duration,
    /// Who is told of alerts.
    pub alerts: Option<Webhook>,
    /// Virtual addresses.
    pub addresses: Arc<dyn Addresses>,
    /// Clusters' API servers.
    pub kubernetes: Arc<dyn Kubernetes>,
    /// What connections to the services may take.
    pub connections: Limits,
    /// Where backups of clusters are kept; none where no place is configured.
    pub backups: Option<crate::cluster_backups::Kept>,
}

/// One of several managers.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name, which no other one has.
    pub name: MemberName,
    /// How many there are.
    pub of: usize,
}

/// Where a process listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub host: IpAddr,
    /// The ports.
    pub ports: Ports,
    /// Where all managers listen, this one among them: for the certificates, which they share.
    pub all: Vec<IpAddr>,
}

/// Ports of the services; 0 for any that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// PKS API.
    pub api: u16,
    /// Tokens.
    pub identity: u16,
    /// Director.
    pub director: u16,
    /// Signed blob URLs.
    pub blobs: u16,
}

impl Ports {
    /// Those that clients know.
    pub const WELL_KNOWN: Self = Self {
        api: stolos_api::pks::PORT,
        identity: 8443,
        director: stolos_api::director::PORT,
        blobs: 25250,
    };
    /// Whatever is free.
    pub const ANY: Self = Self {
        api: 0,
        identity: 0,
        director: 0,
        blobs: 0,
    };
}

/// What a bus stands on.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Keeps the bus's own keys.
    pub credentials: &'a Credentials,
    /// Issues the certificates of everybody on the bus.
    pub authority: &'a Authority,
}

/// A bus that is ready, and our ends of it.
pub struct Connected {
    /// With a director's rights.
    pub director: Arc<dyn Transport>,
    /// With a health monitor's rights.
    pub monitor: Arc<dyn Transport>,
    /// What new machines are told: `nats://IP:PORT`.
    pub urls: Vec<String>,
    /// Dropped when the installation has stopped.
    pub kept: Box<dyn Any + Send>,
}

/// How to get a bus.
pub trait Buses: Send + Sync {
    /// Starts the bus or finds the one that runs, and connects to it.
    fn connect<'a>(&'a self, ground: Ground<'a>) -> BoxFuture<'a, anyhow::Result<Connected>>;
}

/// Virtual addresses of clusters' API servers.
pub trait Addresses: Send + Sync {
    /// Has the address balanced over `masters` from now on, also while this process is down.
    fn publish(
        &self,
        cluster: ClusterId,
        address: Ipv4Addr,
        masters: Vec<Ipv4Addr>,
    ) -> BoxFuture<'_, stolos_clusters::Result<()>>;
    /// Ends that; fine when it is not published.
    fn withdraw(&self, address: Ipv4Addr) -> BoxFuture<'_, stolos_clusters::Result<()>>;
}
