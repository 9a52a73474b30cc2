//! The outside of an installation on this host: its address, `nats-server`, the CPI as a program, `stolos-hostd`, real API servers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stolos_base::range::{self, HostNetwork};
use stolos_base::{Clock, IdSource, Instance, MemberName, files, poll};
use stolos_clusters::render::Catalogue;
use stolos_network::hostd_client::{self, HostdClient};
use stolos_store::DatabaseUrl;

use crate::bus::{BusPorts, HostBus};
use crate::cluster_backups::{Kept, Members};
use crate::config::{Alerts, Capacity, Config};
use crate::installation::Installation;
use crate::network::HostdSigns;
use crate::outside::{Listen, Member, Outside, Ports};
use crate::trust;

/// A call of the CPI: a large machine on a slow disk.
const CPI_LIMIT: Duration = Duration::from_secs(600);
/// `stolos-hostd` is started right before us.
const HOSTD_LIMIT: Duration = Duration::from_secs(20);

/// Starts an installation on this host, or one of several managers of one.
pub(crate) async fn start(instance: &Instance, member: Option<&MemberName>) -> anyhow::Result<Installation> {
    let artifacts: Catalogue = files::read_json(&instance.root.join("artifacts.json"))?
        .context("artifacts.json is missing; `stolos up` writes it")?;
    let (config, plans) = Config::read(&instance.config_file(), &artifacts)?;
    let position = config.position(member).map_err(anyhow::Error::msg)?;
    let (clock, ids) = (Clock::correctable(), IdSource::random());
    let network = range::claim(&instance.root.join("network.json"), instance.root.as_str())?;
    let hostd = announce_host(instance, &network).await?;
    let host = IpAddr::V4(network.host());
    let managers = announce_managers(&hostd, &network, config.members.len()).await?;
    let outside = Outside {
        member: member.map(|name| Member {
            name: name.clone(),
            of: config.members.len(),
        }),
        host,
        ports: Ports::WELL_KNOWN,
        listen: Listen {
            host: position.and_then(|n| managers.get(n).copied()).unwrap_or(host),
            ports: Ports::WELL_KNOWN,
            all: managers,
        },
        range: network.range,
        database: database(instance, &config.database)?,
        plans,
        artifacts,
        capacity: capacity(config.capacity),
        people: config.oidc,
        bus: Arc::new(HostBus {
            instance: instance.clone(),
            program: config.programs.nats_server.clone(),
            host,
            ports: BusPorts::well_known(config.bus.servers),
            clock: clock.clone(),
        }),
        cpi: Arc::new(stolos_cpi::Runner::new(
            stolos_cpi::RunnerConfig {
                program: config.programs.cpi_host.clone(),
                arguments: vec!["--config".to_owned(), instance.cpi_config().to_string()],
                calls: instance.cpi_calls(),
                director: trust::director_id(instance, &ids).await?.to_string(),
                context: serde_json::Map::new(),
                limit: CPI_LIMIT,
            },
            ids.clone(),
        )),
        hosts: Some(Arc::new(HostdSigns(hostd.clone()))),
        resurrection: config.resurrection.into(),
        orphaned_disks_kept: Duration::from_secs(u64::from(config.orphaned_disk_days) * 24 * 3600),
        alerts: config.alerts.as_ref().map(Alerts::webhook).transpose()?,
        addresses: Arc::new(hostd),
        kubernetes: Arc::new(stolos_clusters::ApiServers),
        connections: config.connections.limits().for_this_process(),
        backups: config.backup.map(|settings| Kept {
            key_file: settings.key_file(instance),
            settings,
            clusters: config.cluster_backups,
            etcd: Arc::new(Members),
        }),
        clock,
        ids,
    };
    Installation::start(instance, outside).await
}

/// Where the databases of an installation are: what `database` of its configuration means.
pub(crate) fn database(instance: &Instance, configured: &str) -> anyhow::Result<DatabaseUrl> {
    if configured == "sqlite" {
        return Ok(DatabaseUrl::Sqlite {
            directory: instance.databases(),
        });
    }
    Ok(configured.parse()?)
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

/// Has `stolos-hostd` balance the host's address over the addresses of managers, which are given; over none, when there is one
/// that listens there itself.
async fn announce_managers(
    hostd: &HostdClient,
    network: &HostNetwork,
    members: usize,
) -> anyhow::Result<Vec<IpAddr>> {
    let numbers = 0..u8::try_from(members)?;
    let addresses: Vec<Ipv4Addr> = numbers.map(|number| network.manager(number)).collect();
    if addresses.is_empty() {
        hostd.delete_managers().await?;
        return Ok(Vec::new());
    }
    let ports = Ports::WELL_KNOWN;
    let wanted = hostd_client::Managers {
        ports: vec![ports.api, ports.identity, ports.director, ports.blobs],
        addresses: addresses.clone(),
    };
    hostd.put_managers(&wanted).await?;
    Ok(addresses.into_iter().map(IpAddr::V4).collect())
}

/// What machines may be allotted of the host's memory, and its processors.
fn capacity(allowed: Capacity) -> Option<stolos_clusters::Capacity> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let cpus = std::thread::available_parallelism().ok()?;
    Some(stolos_clusters::Capacity {
        memory_mib: kib / 1024 * allowed.memory_percent / 100,
        cpus: u32::try_from(cpus.get()).ok()?,
    })
}
