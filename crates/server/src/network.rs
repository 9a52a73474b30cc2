//! Leases and virtual addresses as `clusters` needs them, over `network` and the socket of `stolos-hostd`.

use std::net::{Ipv4Addr, SocketAddrV4};

use futures::future::BoxFuture;
use stolos_base::ids::ClusterId;
use stolos_clusters::deps::Network;
use stolos_clusters::render::{API_PORT, NetworkLease};
use stolos_clusters::{Error, Result};
use stolos_network::Leases;
use stolos_network::hostd_client::{HostdClient, VirtualAddress};

/// The network of this host.
pub(crate) struct HostNetwork {
    pub(crate) leases: Leases,
    pub(crate) hostd: HostdClient,
}

impl Network for HostNetwork {
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
            self.hostd
                .put_virtual_address(address, &wanted)
                .await
                .map_err(|e| Error::service("publish the address", e))
        })
    }

    fn withdraw(&self, address: Ipv4Addr) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.hostd
                .delete_virtual_address(address)
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
