//! A cluster's BOSH manifest, made from what the cluster is to be. Pure: no I/O, no clock, no choice that is not in the arguments.
//!
//! Owns the shape of a cluster: its instance groups `master` and `worker`, which jobs run where, which certificates there are
//! and what they name. Never holds a secret: secrets are `((variables))` that the director resolves.
//!
//! Invariants: the same arguments give the same text, byte for byte; a job gets exactly the properties that its spec in
//! `releases/kubernetes` declares; a machine is given only its own identity (`docs/design/0004-node-certificates.md`).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::ids::ClusterId;

use crate::error::{Error, Result};
use crate::model::Hostname;
use crate::plans::{MachineSize, Plan};
use crate::settings::Tag;

/// The port of every cluster's API, on masters and on virtual addresses.
pub const API_PORT: u16 = 8443;
/// Addresses of services in every cluster.
pub const SERVICE_RANGE: &str = "10.100.200.0/24";
/// The first address of [`SERVICE_RANGE`]: the API as pods see it.
pub const FIRST_SERVICE_ADDRESS: &str = "10.100.200.1";
/// The address of the DNS service in every cluster.
pub const DNS_ADDRESS: &str = "10.100.200.2";
/// The domain of services in every cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// What the API server calls metrics-server, and so expects in its certificate.
const METRICS_SERVER_NAME: &str = "metrics-server.kube-system.svc";
/// The first two bytes of the pod network; the third is the last of the machine's address.
pub const POD_NETWORK: &str = "10.200";
/// The one availability zone of a host; the installation's own cloud config defines it.
pub const ZONE: &str = "z1";
/// Manifest variable with the certificate of an administrator (group `system:masters`): what this installation itself uses to
/// reach the cluster. Fields `ca`, `certificate`, `private_key`.
pub const ADMIN_VARIABLE: &str = "kubernetes_admin";
/// Manifest variable with the cluster's CA.
pub const CA_VARIABLE: &str = "kubernetes_ca";
/// How long the leaves of a cluster are valid, in days. Rotation is a re-deploy.
const LEAF_DAYS: u32 = 1460;
/// How long a cluster's CAs are valid, in days.
const CA_DAYS: u32 = 3650;

/// What a person asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// The cluster; in the name of its deployment.
    pub id: ClusterId,
    /// The host that users reach the API under; in the API server's certificate.
    pub hostname: Hostname,
    /// Number of workers.
    pub workers: u32,
    /// Tags of its machines.
    pub tags: Vec<Tag>,
    /// How the director goes about it.
    pub rollout: Rollout,
}

/// How a deploy goes about machines that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rollout {
    /// Nothing that runs changes: a first deploy, or more or fewer workers. All at once.
    #[default]
    Fresh,
    /// What runs may change: masters first, one worker as a canary, then as many at a time as the plan says.
    Careful,
}

/// What the network gave the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLease {
    /// Name of the network segment, see [`stolos_base::instance::is_segment_name`].
    pub segment: String,
    /// The segment's addresses, a /24; the first is the host's.
    pub range: Ipv4Net,
    /// The address that the API is balanced under.
    pub virtual_address: Ipv4Addr,
}

/// What the machines are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Name of the Kubernetes release.
    pub release: String,
    /// Its version.
    pub release_version: String,
    /// The stemcell's `operating_system`.
    pub stemcell_os: String,
    /// The stemcell's version.
    pub stemcell_version: String,
    /// Name of the image store that nodes begin with; empty for none.
    pub image_seed: String,
}

/// What machines can be made of, for each Kubernetes version that is built (without `v`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Catalogue(BTreeMap<String, Artifacts>);

impl Catalogue {
    /// What machines with that Kubernetes version are made of.
    #[must_use]
    pub fn for_version(&self, version: &str) -> Option<&Artifacts> {
        self.0.get(version)
    }

    /// What the machines of a plan's clusters are made of.
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn for_plan(&self, plan: &Plan) -> Result<&Artifacts> {
        self.for_version(&plan.kubernetes_version)
            .ok_or_else(|| Error::NotBuilt {
                plan: plan.name.clone(),
                version: plan.kubernetes_version.clone(),
                built: self.versions().join(", "),
            })
    }

    /// The versions, newest first.
    #[must_use]
    pub fn versions(&self) -> Vec<&str> {
        let mut versions: Vec<&str> = self.0.keys().map(String::as_str).collect();
        versions.sort_by_key(|version| Reverse(places(version)));
        versions
    }
}

impl FromIterator<(String, Artifacts)> for Catalogue {
    fn from_iter<T: IntoIterator<Item = (String, Artifacts)>>(artifacts: T) -> Self {
        Self(artifacts.into_iter().collect())
    }
}

/// The numbers of a version, so that 1.100 is newer than 1.99.
fn places(version: &str) -> Vec<u64> {
    version
        .split('.')
        .map(|place| place.parse().unwrap_or(0))
        .collect()
}

/// A rendered cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Name of the deployment, and of the cloud config that belongs to it.
    pub deployment: String,
    /// Cloud config with the cluster's network and machine sizes (YAML). The zone and the compilation settings are in the
    /// installation's own.
    pub cloud_config: String,
    /// The manifest (YAML).
    pub manifest: String,
}

/// The deployment of a cluster, named as PKS names it.
#[must_use]
pub fn deployment_name(id: ClusterId) -> String {
    format!("service-instance_{id}")
}

/// Renders a cluster.
#[must_use]
pub fn render(spec: &ClusterSpec, plan: &Plan, lease: &NetworkLease, artifacts: &Artifacts) -> Rendered {
    let deployment = deployment_name(spec.id);
    Rendered {
        cloud_config: yaml(&cloud_config(&deployment, plan, lease)),
        manifest: yaml(&manifest(&deployment, spec, plan, lease, artifacts)),
        deployment,
    }
}

/// DNS servers for a cluster of so many workers: one answers from the master, a second makes sense where it runs on another machine, and
/// each further one serves sixteen more workers (the proportion of upstream's cluster-proportional-autoscaler).
#[must_use]
pub fn dns_replicas(workers: u32) -> u32 {
    workers.div_ceil(16).max(workers.min(2))
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("a JSON value is always YAML")
}

fn cloud_config(deployment: &str, plan: &Plan, lease: &NetworkLease) -> Value {
    let gateway = Ipv4Addr::from(u32::from(lease.range.network()) + 1);
    let vm_type = |group: &str, size: MachineSize| {
        json!({
            "name": format!("{deployment}-{group}"),
            "cloud_properties": {
                "cpu": size.cpu,
                "ram": size.ram,
                "ephemeral_disk_size": size.ephemeral_disk,
            },
        })
    };
    json!({
        "networks": [{
            "name": deployment,
            "type": "manual",
            "subnets": [{
                "range": lease.range.to_string(),
                "gateway": gateway.to_string(),
                "azs": [ZONE],
                "cloud_properties": {"segment": lease.segment},
            }],
        }],
        "vm_types": [vm_type("master", plan.master), vm_type("worker", plan.worker)],
    })
}

fn manifest(
    deployment: &str,
    spec: &ClusterSpec,
    plan: &Plan,
    lease: &NetworkLease,
    artifacts: &Artifacts,
) -> Value {
    let group = |name: &str, instances: u32, disk: u32, jobs: Vec<Value>| {
        let mut group = json!({
            "name": name,
            "instances": instances,
            "azs": [ZONE],
            "vm_type": format!("{deployment}-{name}"),
            "stemcell": "default",
            "networks": [{"name": deployment}],
            "jobs": jobs,
        });
        if disk > 0 {
            group["persistent_disk"] = json!(disk);
        }
        group
    };
    let careful = spec.rollout == Rollout::Careful;
    let mut manifest = json!({
        "name": deployment,
        "releases": [{"name": artifacts.release, "version": artifacts.release_version}],
        "stemcells": [{"alias": "default", "os": artifacts.stemcell_os, "version": artifacts.stemcell_version}],
        "update": {
            "canaries": u32::from(careful),
            "max_in_flight": if careful { plan.worker_max_in_flight } else { 4 },
            // At first workers do not wait for masters: their processes do, on the API server itself.
            "serial": careful,
            "canary_watch_time": "1-600000",
            "update_watch_time": "1-600000",
        },
        "instance_groups": [
            group("master", 1, plan.master.persistent_disk, master_jobs(plan, artifacts)),
            group("worker", spec.workers, plan.worker.persistent_disk, worker_jobs(lease, artifacts)),
        ],
        "variables": variables(spec, lease),
    });
    if !spec.tags.is_empty() {
        let tags = spec.tags.iter().map(|tag| (tag.name.clone(), json!(tag.value)));
        manifest["tags"] = Value::Object(tags.collect());
    }
    manifest
}

/// `{certificate, private_key}` of a certificate variable.
fn key_pair(variable: &str) -> Value {
    json!({
        "certificate": format!("(({variable}.certificate))"),
        "private_key": format!("(({variable}.private_key))"),
    })
}

/// The PEM of a CA variable.
fn ca(variable: &str) -> String {
    format!("(({variable}.certificate))")
}

fn job(name: &str, artifacts: &Artifacts, properties: Value) -> Value {
    json!({"name": name, "release": artifacts.release, "properties": properties})
}

fn master_jobs(plan: &Plan, artifacts: &Artifacts) -> Vec<Value> {
    let own_api = format!("https://127.0.0.1:{API_PORT}");
    let client = |variable: &str| json!({"ca": ca(CA_VARIABLE), "client": key_pair(variable)});
    let mut etcd_client = key_pair("etcd_client");
    etcd_client["ca"] = json!(ca("etcd_ca"));
    let mut front_proxy = key_pair("front_proxy_client");
    front_proxy["ca"] = json!(ca("front_proxy_ca"));
    let mut member = key_pair("etcd_{instance}");
    member["ca"] = json!(ca("etcd_ca"));
    let mut jobs = vec![
        job("etcd", artifacts, json!({"tls": member})),
        job(
            "kube-apiserver",
            artifacts,
            json!({
                "port": API_PORT,
                "allow_privileged": plan.allow_privileged_containers,
                "service_cluster_ip_range": SERVICE_RANGE,
                "service_account": {
                    "public_key": "((service_account_key.public_key))",
                    "private_key": "((service_account_key.private_key))",
                },
                "tls": {
                    "ca": ca(CA_VARIABLE),
                    "server": key_pair("kube_apiserver_{instance}"),
                    "kubelet_client": key_pair("kube_apiserver_kubelet_client"),
                    "front_proxy": front_proxy,
                    "etcd": etcd_client,
                },
            }),
        ),
        job(
            "kube-controller-manager",
            artifacts,
            json!({
                "api_server": own_api,
                "service_cluster_ip_range": SERVICE_RANGE,
                "service_account": {"private_key": "((service_account_key.private_key))"},
                "tls": {
                    "ca": ca(CA_VARIABLE),
                    "client": key_pair("kube_controller_manager"),
                    "signing": key_pair(CA_VARIABLE),
                },
            }),
        ),
        job(
            "kube-scheduler",
            artifacts,
            json!({"api_server": own_api, "tls": client("kube_scheduler")}),
        ),
        job(
            "cluster-services",
            artifacts,
            json!({
                "api_server": own_api,
                "tls": client(ADMIN_VARIABLE),
                "dns": {
                    "address": DNS_ADDRESS,
                    "domain": CLUSTER_DOMAIN,
                },
                "metrics_server": key_pair("metrics_server"),
            }),
        ),
    ];
    jobs.extend(node_jobs(&own_api, true, artifacts));
    jobs
}

fn worker_jobs(lease: &NetworkLease, artifacts: &Artifacts) -> Vec<Value> {
    node_jobs(
        &format!("https://{}:{API_PORT}", lease.virtual_address),
        false,
        artifacts,
    )
}

fn node_jobs(api_server: &str, control_plane: bool, artifacts: &Artifacts) -> Vec<Value> {
    vec![
        job("containerd", artifacts, json!({"seed": artifacts.image_seed})),
        job("pod-network", artifacts, json!({"pod_network": POD_NETWORK})),
        job(
            "kubelet",
            artifacts,
            json!({
                "api_server": api_server,
                "control_plane": control_plane,
                "cluster_dns": DNS_ADDRESS,
                "cluster_domain": CLUSTER_DOMAIN,
                "tls": {"ca": ca(CA_VARIABLE), "client": key_pair("kubelet_{instance}")},
            }),
        ),
        job(
            "kube-proxy",
            artifacts,
            json!({
                "api_server": api_server,
                "cluster_cidr": format!("{POD_NETWORK}.0.0/16"),
                "tls": {"ca": ca(CA_VARIABLE), "client": key_pair("kube_proxy")},
            }),
        ),
    ]
}

/// Extended key usages by the names that CredHub has for them.
const CLIENT: &[&str] = &["client_auth"];
const SERVER: &[&str] = &["server_auth"];
const BOTH: &[&str] = &["client_auth", "server_auth"];

fn authority(name: &str, common_name: &str) -> Value {
    json!({
        "name": name,
        "type": "certificate",
        "options": {"is_ca": true, "common_name": common_name, "duration": CA_DAYS},
    })
}

fn leaf(
    name: &str,
    ca: &str,
    common_name: &str,
    organization: Option<&str>,
    names: &[String],
    usage: &[&str],
) -> Value {
    let mut options = json!({"ca": ca, "common_name": common_name});
    if let Some(organization) = organization {
        options["organization"] = json!(organization);
    }
    if !names.is_empty() {
        options["alternative_names"] = json!(names);
    }
    options["extended_key_usage"] = json!(usage);
    options["duration"] = json!(LEAF_DAYS);
    // Names change with addresses and the host name: another set of options makes another certificate.
    json!({"name": name, "type": "certificate", "update_mode": "converge", "options": options})
}

fn variables(spec: &ClusterSpec, lease: &NetworkLease) -> Vec<Value> {
    let local = [
        "127.0.0.1".to_owned(),
        "localhost".to_owned(),
        "{address}".to_owned(),
    ];
    let mut api_names = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        FIRST_SERVICE_ADDRESS.to_owned(),
        lease.virtual_address.to_string(),
    ];
    if !api_names.iter().any(|name| name == spec.hostname.as_str()) {
        api_names.push(spec.hostname.as_str().to_owned());
    }
    api_names.extend(local.iter().cloned());
    let node = "system:node:{instance}";
    let node_names = ["{instance}".to_owned(), "{address}".to_owned()];
    vec![
        authority("etcd_ca", "etcd"),
        leaf("etcd_{instance}", "etcd_ca", "{instance}", None, &local, BOTH),
        leaf(
            "etcd_client",
            "etcd_ca",
            "kube-apiserver-etcd-client",
            None,
            &[],
            CLIENT,
        ),
        authority(CA_VARIABLE, "kubernetes"),
        leaf(
            "kube_apiserver_{instance}",
            CA_VARIABLE,
            "kube-apiserver",
            None,
            &api_names,
            SERVER,
        ),
        leaf(
            "kube_apiserver_kubelet_client",
            CA_VARIABLE,
            "kube-apiserver-kubelet-client",
            None,
            &[],
            CLIENT,
        ),
        leaf(
            "kube_controller_manager",
            CA_VARIABLE,
            "system:kube-controller-manager",
            None,
            &local[..2],
            BOTH,
        ),
        leaf(
            "kube_scheduler",
            CA_VARIABLE,
            "system:kube-scheduler",
            None,
            &local[..2],
            BOTH,
        ),
        leaf("kube_proxy", CA_VARIABLE, "system:kube-proxy", None, &[], CLIENT),
        leaf(
            "kubelet_{instance}",
            CA_VARIABLE,
            node,
            Some("system:nodes"),
            &node_names,
            BOTH,
        ),
        leaf(
            ADMIN_VARIABLE,
            CA_VARIABLE,
            "stolos:admin",
            Some("system:masters"),
            &[],
            CLIENT,
        ),
        leaf(
            "metrics_server",
            CA_VARIABLE,
            "metrics-server",
            None,
            &[METRICS_SERVER_NAME.to_owned()],
            SERVER,
        ),
        authority("front_proxy_ca", "front-proxy"),
        leaf(
            "front_proxy_client",
            "front_proxy_ca",
            "front-proxy-client",
            None,
            &[],
            CLIENT,
        ),
        json!({"name": "service_account_key", "type": "rsa", "options": {"key_length": 2048}}),
    ]
}

#[cfg(test)]
mod tests;
