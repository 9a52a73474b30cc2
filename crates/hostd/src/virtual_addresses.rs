//! Virtual addresses: /32s of the host whose connections go to backends that answer. And the host's own address at the ports of
//! `stolosd`, where several managers are behind it: the same with more ports.
//!
//! One backend is always connected to, alive or not: nobody would be better off with a refusal by us, and the first
//! connection works the moment it listens. Of several, those that answer; if none does, all.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stolos_base::chain;
use stolos_base::task::{self, Kind};
use stolos_cpi_host::{Host, nft_apply};
use stolos_network::hostd_client::{
    HostNetwork, Managers, ManagersStatus, VirtualAddress, VirtualAddressStatus,
};
use tokio_util::sync::CancellationToken;

use crate::state::State;

/// Between two probes of a backend among several.
const PROBE: Duration = Duration::from_millis(250);
/// Between two probes of a backend that has not answered yet: a new master is used at once.
const PROBE_NEW: Duration = Duration::from_millis(50);
/// How long a probe may take. A master under load is slow, not dead.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take while others answer: new connections are better off with those, and within a second.
const IMPATIENT_LIMIT: Duration = Duration::from_millis(350);
/// So many probes in a row have to fail.
const FAILURES: u32 = 3;
/// So many while others answer.
const IMPATIENT_FAILURES: u32 = 2;
/// Connections to a backend that is only silent are ended after this time: it may be slow, and they may go on.
const CUT_AFTER: Duration = Duration::from_secs(3);

/// The addresses. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    host: Host,
    state: Arc<State>,
    /// One change of addresses or rules at a time.
    changing: tokio::sync::Mutex<()>,
    live: Mutex<BTreeMap<Ipv4Addr, Live>>,
}

struct Live {
    wanted: Balanced,
    alive: BTreeMap<SocketAddrV4, bool>,
    stop: CancellationToken,
}

/// An address whose connections are balanced.
#[derive(Clone, Debug)]
struct Balanced {
    /// The ports; backends listen on the same ones.
    ports: Vec<u16>,
    /// Where it is asked whether they answer.
    backends: Vec<SocketAddrV4>,
}

impl From<&VirtualAddress> for Balanced {
    fn from(wanted: &VirtualAddress) -> Self {
        Self {
            ports: vec![wanted.port],
            backends: wanted.backends.clone(),
        }
    }
}

impl From<&Managers> for Balanced {
    fn from(wanted: &Managers) -> Self {
        let asked = wanted.ports.first().copied().unwrap_or_default();
        let backends = wanted.addresses.iter();
        Self {
            ports: wanted.ports.clone(),
            backends: backends
                .map(|address| SocketAddrV4::new(*address, asked))
                .collect(),
        }
    }
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Answer,
    /// Nobody listens, or who does is not ready.
    Refusal,
    Silence,
}

/// Why a request was refused or failed.
#[derive(Debug)]
pub(crate) enum Refusal {
    Wrong(String),
    Failed(String),
}

impl Service {
    /// Brings everything that was told before into force.
    pub(crate) async fn start(host: Host, state: Arc<State>) -> anyhow::Result<Self> {
        let service = Self(Arc::new(Inner {
            host,
            state,
            changing: tokio::sync::Mutex::new(()),
            live: Mutex::default(),
        }));
        let told = service.0.state.told();
        if let Some(network) = told.host_network {
            service
                .0
                .host
                .ensure_host_network(network.address)
                .context("failed to make the host's network")?;
            let add = |address: Ipv4Addr| {
                let added = service.0.host.add_host_address(address);
                added.with_context(|| format!("failed to add {address}"))
            };
            for (address, wanted) in &told.virtual_addresses {
                add(*address)?;
                service.watch(*address, wanted.into());
            }
            if let Some(managers) = &told.managers {
                managers.addresses.iter().try_for_each(|address| add(*address))?;
                service.watch(network.address.addr(), managers.into());
            }
            service.program().await.map_err(anyhow::Error::msg)?;
        }
        Ok(service)
    }

    pub(crate) async fn put_host_network(&self, network: HostNetwork) -> Result<(), Refusal> {
        let _one = self.0.changing.lock().await;
        let told = self.0.state.told().host_network;
        if told.as_ref().is_some_and(|there| *there != network) {
            return Err(Refusal::Wrong(format!(
                "the host's network is {} and cannot change: it is in certificates",
                told.map(|there| there.address.to_string()).unwrap_or_default()
            )));
        }
        self.0
            .state
            .change(|told| told.host_network = Some(network.clone()))
            .map_err(failed("record the network"))?;
        self.0
            .host
            .ensure_host_network(network.address)
            .map_err(|error| Refusal::Failed(chain(&error)))
    }

    pub(crate) async fn put(&self, address: Ipv4Addr, wanted: VirtualAddress) -> Result<(), Refusal> {
        let _one = self.0.changing.lock().await;
        let told = self.0.state.told();
        let Some(network) = told.host_network else {
            return Err(Refusal::Wrong(
                "the host's network has to be told first".to_owned(),
            ));
        };
        if !network.address.contains(&address) || address == network.address.addr() {
            return Err(Refusal::Wrong(format!(
                "{address} is no free address of {}",
                network.address.trunc()
            )));
        }
        if wanted
            .backends
            .iter()
            .any(|backend| backend.port() != wanted.port)
        {
            return Err(Refusal::Wrong(format!(
                "all backends have to listen on port {}",
                wanted.port
            )));
        }
        if told.virtual_addresses.get(&address) == Some(&wanted) {
            return Ok(());
        }
        let balanced = (&wanted).into();
        let record = self
            .0
            .state
            .change(|told| drop(told.virtual_addresses.insert(address, wanted)));
        record.map_err(failed("record the address"))?;
        self.0
            .host
            .add_host_address(address)
            .map_err(|error| Refusal::Failed(chain(&error)))?;
        self.watch(address, balanced);
        self.program().await.map_err(Refusal::Failed)
    }

    /// Has the host's own address balanced over managers.
    pub(crate) async fn put_managers(&self, wanted: Managers) -> Result<(), Refusal> {
        let _one = self.0.changing.lock().await;
        let told = self.0.state.told();
        let Some(network) = told.host_network else {
            return Err(Refusal::Wrong(
                "the host's network has to be told first".to_owned(),
            ));
        };
        if wanted.ports.is_empty() || wanted.addresses.is_empty() {
            return Err(Refusal::Wrong("there have to be ports and addresses".to_owned()));
        }
        let host = network.address.addr();
        for address in &wanted.addresses {
            let is_free = network.address.contains(address)
                && *address != host
                && !told.virtual_addresses.contains_key(address);
            if !is_free {
                return Err(Refusal::Wrong(format!(
                    "{address} is no free address of {}",
                    network.address.trunc()
                )));
            }
        }
        if told.managers.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let (before, balanced) = (told.managers, Balanced::from(&wanted));
        let addresses = wanted.addresses.clone();
        let record = self.0.state.change(|told| told.managers = Some(wanted));
        record.map_err(failed("record the managers"))?;
        for address in &addresses {
            self.0
                .host
                .add_host_address(*address)
                .map_err(|error| Refusal::Failed(chain(&error)))?;
        }
        self.watch(host, balanced);
        self.program().await.map_err(Refusal::Failed)?;
        self.remove_managers(before, &addresses)
    }

    /// Has the host's own address lead to the host again.
    pub(crate) async fn delete_managers(&self) -> Result<(), Refusal> {
        let _one = self.0.changing.lock().await;
        let told = self.0.state.told();
        let (Some(network), Some(managers)) = (told.host_network, told.managers) else {
            return Ok(());
        };
        if let Some(live) = self.live().remove(&network.address.addr()) {
            live.stop.cancel();
        }
        self.program().await.map_err(Refusal::Failed)?;
        self.remove_managers(Some(managers), &[])?;
        let record = self.0.state.change(|told| told.managers = None);
        record.map_err(failed("forget the managers"))
    }

    /// Takes the addresses of managers away that are not kept.
    fn remove_managers(&self, before: Option<Managers>, kept: &[Ipv4Addr]) -> Result<(), Refusal> {
        let before = before.map(|managers| managers.addresses).unwrap_or_default();
        for address in before.iter().filter(|address| !kept.contains(address)) {
            self.0
                .host
                .remove_host_address(*address)
                .map_err(|error| Refusal::Failed(chain(&error)))?;
        }
        Ok(())
    }

    pub(crate) fn managers(&self) -> ManagersStatus {
        let told = self.0.state.told();
        let host = told.host_network.map(|network| network.address.addr());
        let live = self.live();
        let live = host.and_then(|host| live.get(&host));
        ManagersStatus {
            active: live
                .map(|live| active(live).iter().map(|backend| *backend.ip()).collect())
                .unwrap_or_default(),
            wanted: told.managers,
        }
    }

    pub(crate) async fn delete(&self, address: Ipv4Addr) -> Result<(), Refusal> {
        let _one = self.0.changing.lock().await;
        if let Some(live) = self.live().remove(&address) {
            live.stop.cancel();
        }
        self.program().await.map_err(Refusal::Failed)?;
        self.0
            .host
            .remove_host_address(address)
            .map_err(|error| Refusal::Failed(chain(&error)))?;
        let record = self
            .0
            .state
            .change(|told| drop(told.virtual_addresses.remove(&address)));
        record.map_err(failed("forget the address"))
    }

    pub(crate) fn list(&self) -> Vec<VirtualAddressStatus> {
        let told = self.0.state.told().virtual_addresses;
        let live = self.live();
        told.into_iter()
            .map(|(address, wanted)| VirtualAddressStatus {
                address,
                wanted,
                active: live.get(&address).map(active).unwrap_or_default(),
            })
            .collect()
    }

    /// Replaces what is known of an address and begins to probe.
    fn watch(&self, address: Ipv4Addr, wanted: Balanced) {
        let stop = CancellationToken::new();
        let backends = wanted.backends.clone();
        let entry = Live {
            wanted,
            alive: BTreeMap::new(),
            stop: stop.clone(),
        };
        if let Some(old) = self.live().insert(address, entry) {
            old.stop.cancel();
        }
        if backends.len() < 2 {
            return;
        }
        for backend in backends {
            let (service, stop) = (self.clone(), stop.clone());
            task::spawn(Kind::Service, format!("probe {backend}"), async move {
                tokio::select! {
                    result = service.probe(address, backend) => result,
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
    }

    async fn probe(&self, address: Ipv4Addr, backend: SocketAddrV4) -> Result<(), String> {
        // Who answers is the caller's business: every kubeconfig has the CA. Here it is only asked whether.
        let tls = stolos_base::tls::client_without_verification().map_err(|error| chain(&error))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy();
        let client = client.build().map_err(|error| chain(&error))?;
        let url = format!("https://{backend}/readyz");
        let mut failures = 0;
        let mut ever = false;
        let mut silent_since = None;
        loop {
            let others = self.others_answer(address, backend);
            let (limit, most) = if others {
                (IMPATIENT_LIMIT, IMPATIENT_FAILURES)
            } else {
                (PROBE_LIMIT, FAILURES)
            };
            let begun = Instant::now();
            let found = match client.get(&url).timeout(limit).send().await {
                // Not allowed to ask is an answer; not ready is not.
                Ok(response) if !response.status().is_server_error() => Found::Answer,
                Ok(_) => Found::Refusal,
                Err(error) if error.is_timeout() => Found::Silence,
                Err(_) => Found::Refusal,
            };
            failures = if found == Found::Answer { 0 } else { failures + 1 };
            ever |= found == Found::Answer;
            match found {
                Found::Answer => {
                    silent_since = None;
                    self.set_alive(address, backend, true).await;
                }
                Found::Refusal if failures >= most => {
                    silent_since = None;
                    if self.set_alive(address, backend, false).await {
                        cut(address, backend).await;
                    }
                }
                Found::Silence if failures >= most => {
                    self.set_alive(address, backend, false).await;
                    let since = *silent_since.get_or_insert(begun);
                    if since.elapsed() > CUT_AFTER && since.elapsed() < CUT_AFTER + PROBE_LIMIT + PROBE {
                        cut(address, backend).await;
                    }
                }
                Found::Refusal | Found::Silence => {}
            }
            tokio::time::sleep(if ever { PROBE } else { PROBE_NEW }).await;
        }
    }

    /// Whether another backend of the address answers.
    fn others_answer(&self, address: Ipv4Addr, backend: SocketAddrV4) -> bool {
        let live = self.live();
        let alive = live.get(&address).map(|live| &live.alive);
        alive.is_some_and(|alive| alive.iter().any(|(other, alive)| *other != backend && *alive))
    }

    /// A machine has ended: nothing goes to its address any more until it answers again, and what went there is told so.
    pub(crate) async fn ended(&self, machine: Ipv4Addr) {
        let concerned: Vec<(Ipv4Addr, SocketAddrV4)> = {
            let live = self.live();
            let of = |(address, live): (&Ipv4Addr, &Live)| {
                let backends = live
                    .wanted
                    .backends
                    .iter()
                    .filter(|backend| *backend.ip() == machine);
                backends.map(|backend| (*address, *backend)).collect::<Vec<_>>()
            };
            live.iter().flat_map(of).collect()
        };
        for (address, backend) in concerned {
            // The only one there is is used, alive or not.
            if self.others_answer(address, backend) && self.set_alive(address, backend, false).await {
                cut(address, backend).await;
            }
        }
    }

    /// Notes whether a backend answers; whether that is news.
    async fn set_alive(&self, address: Ipv4Addr, backend: SocketAddrV4, alive: bool) -> bool {
        let changed = self
            .live()
            .get_mut(&address)
            .is_some_and(|live| live.alive.insert(backend, alive) != Some(alive));
        if changed {
            tracing::info!(%address, %backend, alive, "backend");
            if let Err(error) = self.program().await {
                tracing::error!(%error, "failed to program virtual addresses");
            }
        }
        changed
    }

    /// Writes all rules in one transaction.
    async fn program(&self) -> Result<(), String> {
        let script = {
            let live = self.live();
            let rules = live.iter().flat_map(|(address, live)| {
                let ports = live.wanted.ports.iter();
                ports.map(|port| (*address, *port, active(live)))
            });
            script(&self.0.host.instance().nft_table(), rules)
        };
        let applied = tokio::task::spawn_blocking(move || nft_apply(&script)).await;
        applied
            .map_err(|error| error.to_string())?
            .map_err(|error| chain(&error))
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn active(live: &Live) -> Vec<SocketAddrV4> {
    let is_alive = |backend: &&SocketAddrV4| live.alive.get(backend).copied().unwrap_or(false);
    let alive: Vec<SocketAddrV4> = live.wanted.backends.iter().filter(is_alive).copied().collect();
    if alive.is_empty() {
        live.wanted.backends.clone()
    } else {
        alive
    }
}

fn script(table: &str, addresses: impl Iterator<Item = (Ipv4Addr, u16, Vec<SocketAddrV4>)>) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "add table inet {table}
add set inet {table} segments {{ type ipv4_addr; flags interval; }}
add chain inet {table} vip_in {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {table} vip_out {{ type nat hook output priority -100; policy accept; }}
add chain inet {table} vip_back {{ type nat hook postrouting priority 90; policy accept; }}
flush chain inet {table} vip_in
flush chain inet {table} vip_out
flush chain inet {table} vip_back
"
    );
    for (address, port, backends) in addresses {
        let target = match backends.as_slice() {
            [] => continue,
            [only] => only.ip().to_string(),
            many => {
                let map: Vec<String> = many
                    .iter()
                    .enumerate()
                    .map(|(n, backend)| format!("{n} : {}", backend.ip()))
                    .collect();
                format!("numgen random mod {} map {{ {} }}", many.len(), map.join(", "))
            }
        };
        for chain in ["vip_in", "vip_out"] {
            let _ = writeln!(
                text,
                "add rule inet {table} {chain} ip daddr {address} tcp dport {port} dnat ip to {target}"
            );
        }
        // A machine that calls the address of a master in its own segment would be answered directly, from an address that
        // it never called.
        let _ = writeln!(
            text,
            "add rule inet {table} vip_back ct original ip daddr {address} ct status dnat ip saddr @segments masquerade"
        );
    }
    text
}

/// Ends connections to a backend that is gone, so that clients connect anew.
async fn cut(address: Ipv4Addr, backend: SocketAddrV4) {
    let run = move || {
        let mut command = Command::new("conntrack");
        command.args([
            "-D",
            "-p",
            "tcp",
            "--orig-dst",
            &address.to_string(),
            "--reply-src",
            &backend.ip().to_string(),
        ]);
        // It fails when there was nothing to delete, which is as good.
        let _ = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    };
    if let Err(error) = tokio::task::spawn_blocking(run).await {
        tracing::warn!(%error, "connections to a dead backend were not cut");
    }
}

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> Refusal {
    move |error| Refusal::Failed(format!("failed to {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(backends: &[&str], alive: &[&str]) -> Live {
        let parse = |text: &&str| text.parse::<SocketAddrV4>().expect("an address");
        Live {
            wanted: Balanced {
                ports: vec![8443],
                backends: backends.iter().map(parse).collect(),
            },
            alive: alive.iter().map(|text| (parse(text), true)).collect(),
            stop: CancellationToken::new(),
        }
    }

    #[test]
    fn connections_go_to_those_that_answer_and_to_all_when_none_does() {
        let (a, b) = ("10.0.1.2:8443", "10.0.1.3:8443");
        assert_eq!(active(&live(&[a], &[])).len(), 1, "one backend is always used");
        assert_eq!(active(&live(&[a, b], &[])).len(), 2);
        assert_eq!(active(&live(&[a, b], &[b])), [b.parse().expect("an address")]);
    }

    #[test]
    fn rules_are_made_for_each_address() {
        let backends = vec![
            "10.0.1.2:8443".parse().expect("an address"),
            "10.0.1.3:8443".parse().expect("an address"),
        ];
        let text = script(
            "stolos_x",
            [(Ipv4Addr::new(10, 0, 0, 10), 8443, backends)].into_iter(),
        );
        assert!(text.contains(
            "add rule inet stolos_x vip_in ip daddr 10.0.0.10 tcp dport 8443 dnat ip to numgen random mod 2 map { 0 : 10.0.1.2, 1 : 10.0.1.3 }"
        ), "{text}");
    }
}
