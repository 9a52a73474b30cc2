//! Leases and virtual addresses as `clusters` needs them, over `network` and, on a host, the socket of `stolos-hostd`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use stolos_base::ids::ClusterId;
use stolos_clusters::deps::Network;
use stolos_clusters::render::{API_PORT, NetworkLease};
use stolos_clusters::{Error, Result};
use stolos_director::{HostSign, HostSigns, Hosts};
use stolos_network::Leases;
use stolos_network::hostd_client::{HostdClient, MachineEvent, VirtualAddress};

use crate::outside::Addresses;

/// Leases, and whoever has addresses balanced.
pub(crate) struct LeasedNetwork {
    pub(crate) leases: Leases,
    pub(crate) addresses: Arc<dyn Addresses>,
}

impl Network for LeasedNetwork {
    fn lease(&self, cluster: ClusterId) -> BoxFuture<'_, Result<NetworkLease>> {
        Box::pin(async move {
            let lease = self
                .leases
                .lease(cluster)
                .await
                .map_err(|e| Error::service("lease a network", e))?;
            Ok(shown(&lease))
        })
    }

    fn find(&self, cluster: ClusterId) -> BoxFuture<'_, Result<Option<NetworkLease>>> {
        Box::pin(async move {
            let lease = self
                .leases
                .find(cluster)
                .await
                .map_err(|e| Error::service("look for the lease", e))?;
            Ok(lease.as_ref().map(shown))
        })
    }

    fn release(&self, cluster: ClusterId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.leases
                .release(cluster)
                .await
                .map_err(|e| Error::service("release the network", e))
        })
    }

    fn publish(
        &self,
        cluster: ClusterId,
        address: Ipv4Addr,
        masters: Vec<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<()>> {
        self.addresses.publish(cluster, address, masters)
    }

    fn withdraw(&self, address: Ipv4Addr) -> BoxFuture<'_, Result<()>> {
        self.addresses.withdraw(address)
    }
}

impl Addresses for HostdClient {
    fn publish(
        &self,
        cluster: ClusterId,
        address: Ipv4Addr,
        masters: Vec<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let wanted = VirtualAddress {
                cluster: cluster.to_string(),
                port: API_PORT,
                backends: masters
                    .into_iter()
                    .map(|master| SocketAddrV4::new(master, API_PORT))
                    .collect(),
                ca: None,
            };
            self.put_virtual_address(address, &wanted)
                .await
                .map_err(|e| Error::service("publish the address", e))
        })
    }

    fn withdraw(&self, address: Ipv4Addr) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.delete_virtual_address(address)
                .await
                .map_err(|e| Error::service("withdraw the address", e))
        })
    }
}

fn shown(lease: &stolos_network::Lease) -> NetworkLease {
    NetworkLease {
        segment: lease.segment.clone(),
        range: lease.range,
        virtual_address: lease.virtual_address,
    }
}

/// How long the host may wait with an answer for news.
const NEWS_WAIT: Duration = Duration::from_secs(8);

/// This host's machines, as `stolos-hostd` sees them.
pub(crate) struct HostdSigns(pub(crate) HostdClient);

impl Hosts for HostdSigns {
    fn signs(&self, after: Option<u64>) -> BoxFuture<'_, Result<HostSigns, stolos_director::Failure>> {
        Box::pin(async move {
            let wait = if after.is_some() {
                NEWS_WAIT
            } else {
                Duration::ZERO
            };
            let events = self.0.events(after.unwrap_or(0), wait).await?;
            let last = events.last().map_or(after.unwrap_or(0), |event| event.number);
            let sign = |event: MachineEvent| {
                let sign = match event.what.as_str() {
                    "exited" | "failed to start" => HostSign::Ended,
                    "gone" => HostSign::Gone,
                    _ => return None,
                };
                Some((event.cid, sign))
            };
            // What was before we asked first is seen by asking the machines.
            let signs = match after {
                Some(_) => events.into_iter().filter_map(sign).collect(),
                None => Vec::new(),
            };
            Ok((last, signs))
        })
    }
}
