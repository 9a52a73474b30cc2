//! Network profiles.
//!
//! PKS's say what NSX-T is to do. What has a meaning on our network is applied; the rest is taken, so that a migrated profile goes on, and
//! named as not applied. The networks of pods and services, which PKS had in its tile, are parameters of our own network plug-in.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Invalid;
use crate::render::{Networks, SERVICE_PREFIXES};

/// A checked network profile, as a cluster keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkProfile {
    /// Its name.
    pub name: String,
    /// Name servers that the cluster's DNS asks for names outside of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes_dns: Vec<Ipv4Addr>,
    /// Addresses of pods, a /16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Ipv4Net>,
    /// Addresses of services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Ipv4Net>,
}

/// Keys of PKS (pks.md, section 2.6) that are about NSX-T alone.
const NSX_ONLY: &[&str] = &[
    "lb_size",
    "pod_ip_block_ids",
    "pod_subnet_prefix",
    "pod_routable",
    "fip_pool_ids",
    "t0_router_id",
    "master_vms_nsgroup_id",
    "node_ip_block_ids",
    "node_routable",
    "node_subnet_prefix",
    "dns_lookup_mode",
    "ingress_prefix",
    "single_tier_topology",
    "infrastructure_networks",
    "failover_mode",
];
/// The most name servers; PKS's limit, and the resolver's.
const MOST_SERVERS: usize = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cni {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OwnParameters {
    pod_network: Option<Ipv4Net>,
    service_network: Option<Ipv4Net>,
}

impl NetworkProfile {
    /// Checks a profile. Also gives the keys that have no effect here.
    ///
    /// # Errors
    /// [`Invalid`] with the field.
    pub fn parse(name: &str, parameters: &Value) -> Result<(Self, Vec<String>), Invalid> {
        let Value::Object(given) = parameters else {
            return Err(Invalid("`parameters` is no object".to_owned()));
        };
        let mut profile = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        let mut not_applied = Vec::new();
        for (key, value) in given {
            match key.as_str() {
                "nodes_dns" => profile.nodes_dns = name_servers(value)?,
                "cni_configurations" => profile.cni(value, &mut not_applied)?,
                known if NSX_ONLY.contains(&known) => not_applied.push(key.clone()),
                _ => return Err(Invalid(format!("`parameters.{key}` is not known"))),
            }
        }
        Ok((profile, not_applied))
    }

    fn cni(&mut self, value: &Value, not_applied: &mut Vec<String>) -> Result<(), Invalid> {
        let at = |error: stolos_document::Error| Invalid(format!("`cni_configurations`: {error}"));
        let cni: Cni = stolos_document::from_value(value.clone()).map_err(at)?;
        match cni.kind.as_str() {
            "nsxt" | "antrea" => {
                not_applied.extend(
                    cni.parameters
                        .keys()
                        .map(|key| format!("cni_configurations.parameters.{key}")),
                );
                Ok(())
            }
            "stolos" => {
                let own: OwnParameters =
                    stolos_document::from_value(Value::Object(cni.parameters)).map_err(at)?;
                if let Some(pods) = own.pod_network
                    && (pods.prefix_len() != 16 || pods.trunc() != pods || !is_private(pods))
                {
                    return Err(Invalid(format!(
                        "`pod_network` {pods} is not a private /16 network"
                    )));
                }
                if let Some(services) = own.service_network {
                    check_services(services)?;
                }
                (self.pods, self.services) = (own.pod_network, own.service_network);
                self.networks(None).map(drop)
            }
            other => Err(Invalid(format!(
                "`cni_configurations.type` is `{other}`; known are `stolos`, and `nsxt` and `antrea` without effect"
            ))),
        }
    }

    /// The networks of a cluster with this profile; `services` is what a Kubernetes profile says.
    ///
    /// # Errors
    /// When pods and services would share addresses.
    pub fn networks(&self, services: Option<Ipv4Net>) -> Result<Networks, Invalid> {
        let usual = Networks::default();
        let networks = Networks {
            pods: self.pods.unwrap_or(usual.pods),
            services: services.or(self.services).unwrap_or(usual.services),
        };
        let overlap =
            networks.pods.contains(&networks.services) || networks.services.contains(&networks.pods);
        if overlap {
            return Err(Invalid(format!(
                "the networks of pods {} and of services {} overlap",
                networks.pods, networks.services
            )));
        }
        for network in [networks.pods, networks.services] {
            if stolos_base::range::may_be_ours(network) {
                return Err(Invalid(format!(
                    "the network {network} overlaps those that machines get their addresses from (10.117.0.0/16 to 10.132.0.0/16)"
                )));
            }
        }
        Ok(networks)
    }
}

/// Checks a network for services.
pub(super) fn check_services(services: Ipv4Net) -> Result<(), Invalid> {
    let (least, most) = SERVICE_PREFIXES;
    if !(least..=most).contains(&services.prefix_len())
        || services.trunc() != services
        || !is_private(services)
    {
        return Err(Invalid(format!(
            "the service network {services} is not a private network of /{least} to /{most}"
        )));
    }
    Ok(())
}

fn is_private(net: Ipv4Net) -> bool {
    net.network().is_private() && net.broadcast().is_private()
}

fn name_servers(value: &Value) -> Result<Vec<Ipv4Addr>, Invalid> {
    let servers: Vec<Ipv4Addr> = stolos_document::from_value(value.clone())
        .map_err(|error| Invalid(format!("`nodes_dns`: {error}")))?;
    if servers.len() > MOST_SERVERS {
        return Err(Invalid(format!(
            "`nodes_dns` has more than {MOST_SERVERS} servers"
        )));
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_for_nsx_alone_is_taken_and_named() {
        let (profile, not_applied) = NetworkProfile::parse(
            "p",
            &json!({"lb_size": "medium", "nodes_dns": ["10.0.0.53"], "cni_configurations": {"type": "nsxt", "parameters": {"x_forwarded_for": "insert"}}}),
        )
        .expect("valid");
        assert_eq!(profile.nodes_dns, [Ipv4Addr::new(10, 0, 0, 53)]);
        assert_eq!(
            not_applied,
            ["lb_size", "cni_configurations.parameters.x_forwarded_for"]
        );
        assert_eq!(profile.networks(None).expect("the usual"), Networks::default());
    }

    #[test]
    fn networks_are_checked() {
        let own = |parameters: Value| {
            NetworkProfile::parse(
                "p",
                &json!({"cni_configurations": {"type": "stolos", "parameters": parameters}}),
            )
        };
        let (good, _) =
            own(json!({"pod_network": "172.20.0.0/16", "service_network": "10.96.0.0/20"})).expect("valid");
        let networks = good.networks(None).expect("apart");
        assert_eq!(networks.dns_address(), Ipv4Addr::new(10, 96, 0, 2));
        for (bad, words) in [
            (json!({"pod_network": "172.20.0.0/20"}), "/16"),
            (json!({"pod_network": "8.8.0.0/16"}), "private"),
            (json!({"service_network": "10.96.0.0/28"}), "/27"),
            (json!({"service_network": "10.200.8.0/24"}), "overlap"),
            (
                json!({"pod_network": "10.117.0.0/16"}),
                "machines get their addresses",
            ),
            (json!({"pod_network": "x"}), "cni_configurations"),
            (json!({"mtu": 1400}), "mtu"),
        ] {
            let error = own(bad.clone()).expect_err(words);
            assert!(error.0.contains(words), "{bad}: {error}");
        }
        for (bad, words) in [
            (json!({"lb_sise": "small"}), "lb_sise"),
            (json!({"nodes_dns": ["a"]}), "nodes_dns"),
            (
                json!({"nodes_dns": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}),
                "more than 3",
            ),
            (json!({"cni_configurations": {"type": "calico"}}), "calico"),
            (json!([]), "no object"),
        ] {
            let error = NetworkProfile::parse("p", &bad).expect_err(words);
            assert!(error.0.contains(words), "{bad}: {error}");
        }
    }
}
