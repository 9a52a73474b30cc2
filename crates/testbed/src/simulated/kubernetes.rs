//! Clusters' API servers that do at once what they are asked.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use futures::future::{BoxFuture, ready};
use serde_json::{Value, json};
use stolos_clusters::Result;
use stolos_clusters::db::ClusterRow;
use stolos_clusters::deps::{AdminCredential, Grant, Kubernetes, Told};
use stolos_kubernetes::access::{Binding, Holder};
use stolos_kubernetes::losses::LocalVolume;
use stolos_kubernetes::running::PodRun;

/// Every API server.
pub(super) struct Simulated;

impl Kubernetes for Simulated {
    fn smoke_test<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn apply_settings<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a Told,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn pod_runs<'a>(&'a self, _: Ipv4Addr, _: &'a AdminCredential) -> BoxFuture<'a, Result<Vec<PodRun>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn forget_nodes<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn renew_inherited<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<String>> {
        Box::pin(ready(Ok(String::new())))
    }

    fn bind<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        address: Ipv4Addr,
        _: &'a AdminCredential,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<Value>> {
        let server = format!("https://{address}:{}", stolos_clusters::render::API_PORT);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster.name.to_string(),
            "clusters": [{"name": cluster.name.to_string(), "cluster": {"server": server}}],
            "users": [{"name": grant.of.name}],
        });
        Box::pin(ready(Ok(config)))
    }

    fn admit<'a>(
        &'a self,
        _: &'a ClusterRow,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a str,
        _: &'a Grant,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn bindings<'a>(&'a self, _: Ipv4Addr, _: &'a AdminCredential) -> BoxFuture<'a, Result<Vec<Binding>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn local_volumes<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<LocalVolume>>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn adopt<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a Binding,
        _: &'a Holder,
        _: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn unbind<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a Binding,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}
