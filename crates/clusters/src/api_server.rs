//! Clusters' API servers through `kubernetes`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use stolos_api::identity::PKS_CLUSTER_CLIENT;
use stolos_base::pki::Identity;
use stolos_kubernetes::access::{Binding, Credential, Holder, Kubeconfig, kubeconfig};
use stolos_kubernetes::losses::LocalVolume;
use stolos_kubernetes::running::PodRun;
use stolos_kubernetes::settings::DrainSettings;
use stolos_kubernetes::smoke::SmokeTest;
use stolos_kubernetes::{Cluster, Credentials, Endpoint};

use crate::db::ClusterRow;
use crate::deps::{AdminCredential, Grant, Kubernetes, Told};
use crate::error::{Error, Result};
use crate::oidc::Oidc;
use crate::render::API_PORT;

/// The pod has to be scheduled, started and to get an answer from a DNS server that may be starting itself.
const SMOKE_LIMIT: Duration = Duration::from_secs(4 * 60);
/// The controller that fills in tokens answers within a second on an idle control plane.
const BIND_LIMIT: Duration = Duration::from_secs(30);
/// An API server that answers takes milliseconds; one that was restarted just now takes seconds.
const SETTINGS_LIMIT: Duration = Duration::from_secs(30);
/// A cluster that does not answer at once is looked at again in a minute.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// What the names of role bindings of people end with, so that they are not those of a service account of theirs.
const PERSONAL: &str = "-oidc";
const SMOKE_POD: &str = "stolos-smoke-test";

/// Real API servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiServers;

impl Kubernetes for ApiServers {
    fn smoke_test<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        progress: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            progress("waiting for a pod to run and DNS to answer in it".to_owned());
            let failed = |error| Error::service("run a pod that looks a name up", error);
            let cluster = connect(address, admin).map_err(failed)?;
            let times = cluster
                .smoke_test(&SmokeTest::new(SMOKE_POD, SMOKE_LIMIT))
                .await
                .map_err(failed)?;
            tracing::info!(
                running_ms = times.running.as_millis(),
                answered_ms = times.answered.as_millis(),
                "smoke test passed"
            );
            Ok(())
        })
    }

    fn apply_settings<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        settings: &'a Told,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let failed = |error| Error::service("apply the cluster's settings", error);
            let cluster = connect(address, admin).map_err(failed)?;
            let drain = settings.drain;
            let drain = DrainSettings {
                timeout_minutes: drain.timeout,
                grace_period_seconds: drain.grace_period,
                force: drain.force,
                ignore_daemonsets: drain.ignore_daemonsets,
                delete_local_data: drain.delete_local_data,
                force_node: drain.force_node,
            };
            cluster
                .set_drain_settings(&drain, SETTINGS_LIMIT)
                .await
                .map_err(failed)?;
            if let Some(marks) = &settings.marks {
                cluster.mark_nodes(marks, SETTINGS_LIMIT).await.map_err(failed)?;
            }
            cluster
                .scale_dns(settings.dns_replicas, SETTINGS_LIMIT)
                .await
                .map_err(failed)
        })
    }

    fn pod_runs<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
    ) -> BoxFuture<'a, Result<Vec<PodRun>>> {
        Box::pin(async move {
            let failed = |error| Error::service("look at the pods", error);
            let cluster = connect(address, admin).map_err(failed)?;
            cluster.pod_runs(LOOK_LIMIT).await.map_err(failed)
        })
    }

    fn forget_nodes<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        keep: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(async move {
            let failed = |error| Error::service("delete the nodes whose machines are gone", error);
            let cluster = connect(address, admin).map_err(failed)?;
            cluster.forget_nodes(keep, SETTINGS_LIMIT).await.map_err(failed)
        })
    }

    fn renew_inherited<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let failed = |error| Error::service("renew what the cluster has from another one", error);
            let cluster = connect(address, admin).map_err(failed)?;
            let renewed = cluster.renew_inherited(&admin.ca, since, SETTINGS_LIMIT).await;
            let renewed = renewed.map_err(failed)?;
            Ok(format!("{} tokens, {} pods", renewed.tokens, renewed.pods))
        })
    }

    fn bind<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<serde_json::Value>> {
        Box::pin(async move {
            let failed = |error| {
                let what = format!("give `{}` access to cluster `{}`", grant.of, cluster.name);
                Error::service(what, error)
            };
            // One identity per cluster and person: asking again gives another token of the same, so bindings do not pile up.
            let name = binding_name(&grant.of.name, grant.of.key.as_str());
            let token = connect(address, admin)
                .map_err(failed)?
                .bind(&name, &grant.holder(), grant.at, grant.lives, BIND_LIMIT)
                .await
                .map_err(failed)?;
            Ok(kubeconfig(&Kubeconfig {
                cluster: cluster.name.as_str(),
                server: &server(address),
                ca: &admin.ca,
                tls_server_name: None,
                user: &format!("{}-{name}", cluster.name),
                credential: Credential::Token(&token),
            }))
        })
    }

    fn admit<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        subject: &'a str,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let failed = |error| {
                let what = format!("let `{subject}` administer cluster `{}`", cluster.name);
                Error::service(what, error)
            };
            let name = binding_name(subject, grant.of.key.as_str());
            connect(address, admin)
                .map_err(failed)?
                .admit(&format!("{name}{PERSONAL}"), subject, &grant.holder(), BIND_LIMIT)
                .await
                .map_err(failed)
        })
    }

    fn bindings<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
    ) -> BoxFuture<'a, Result<Vec<Binding>>> {
        Box::pin(async move {
            let failed = |error| Error::service("look who has access", error);
            let cluster = connect(address, admin).map_err(failed)?;
            cluster.bindings(LOOK_LIMIT).await.map_err(failed)
        })
    }

    fn local_volumes<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        nodes: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<LocalVolume>>> {
        Box::pin(async move {
            let failed = |error| Error::service("look for data on the disks of nodes that go", error);
            let cluster = connect(address, admin).map_err(failed)?;
            cluster.local_volumes(nodes, LOOK_LIMIT).await.map_err(failed)
        })
    }

    fn adopt<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        binding: &'a Binding,
        holder: &'a Holder,
        ends: Timestamp,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let failed = |error| Error::service("write down whose access is", error);
            let cluster = connect(address, admin).map_err(failed)?;
            let done = cluster.adopt(binding, holder, ends, LOOK_LIMIT);
            done.await.map_err(failed)
        })
    }

    fn unbind<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let failed = |error| Error::service("take access back", error);
            let cluster = connect(address, admin).map_err(failed)?;
            let done = cluster.unbind(&binding.name, binding.kind, LOOK_LIMIT);
            done.await.map_err(failed)
        })
    }
}

/// A kubeconfig for a person; there is nothing secret in it before its tokens are filled in.
pub(crate) fn person(
    cluster: &ClusterRow,
    address: Ipv4Addr,
    admin: &AdminCredential,
    oidc: &Oidc,
    user: &str,
) -> serde_json::Value {
    kubeconfig(&Kubeconfig {
        cluster: cluster.name.as_str(),
        server: &server(address),
        ca: &admin.ca,
        tls_server_name: None,
        user,
        credential: Credential::Oidc {
            issuer: &oidc.issuer,
            ca: &oidc.ca,
            client: PKS_CLUSTER_CLIENT,
            audience: oidc.audience.as_ref().map(|audience| audience.own.as_str()),
        },
    })
}

fn connect(
    address: Ipv4Addr,
    admin: &AdminCredential,
) -> std::result::Result<Cluster, stolos_kubernetes::Error> {
    Cluster::new(&Endpoint {
        server: server(address),
        ca: admin.ca.clone(),
        tls_server_name: None,
        credentials: Credentials::Certificate(Identity {
            certificate: admin.certificate.clone(),
            key: admin.private_key.clone(),
        }),
    })
}

/// The virtual address is in the API server's certificate, so kubeconfigs work without DNS.
fn server(address: Ipv4Addr) -> String {
    format!("https://{address}:{API_PORT}")
}

/// The name of the service account of somebody with a key: the name as far as Kubernetes takes it, and what makes it unique.
pub(crate) fn binding_name(name: &str, key: &str) -> String {
    let plain: String = name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(30)
        .collect();
    // FNV-1a: two people whose names differ only in what was replaced must not share an identity.
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("stolos-{}-{hash:016x}", plain.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_names_are_unique_and_valid() {
        let names = [
            "admin",
            "a.b@example.com",
            "a-b@example.com",
            "Ä",
            &"x".repeat(200),
        ]
        .map(|name| binding_name(name, name));
        for name in &names {
            assert!(
                name.len() <= 63
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert_ne!(
            binding_name("alana", "user:1"),
            binding_name("alana", "user:2"),
            "a new person of an old name has an identity of their own"
        );
    }
}
