//! A cluster's BOSH manifest, made from what the cluster is to be. Pure: no I/O, no clock, no choice that is not in the arguments.
//!
//! Owns which jobs run on which of a cluster's groups of machines, which certificates there are and what they name. Never holds a secret:
//! secrets are `((variables))` that the director resolves. What people wrote enters as a [`Doc`], which makes it literal: it cannot
//! name a variable.
//!
//! Invariants: the same arguments give the same text, byte for byte; a job gets exactly the properties that its spec in
//! `releases/kubernetes` declares; a machine is given only its own identity (`docs/design/0004-node-certificates.md`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use stolos_base::ids::ClusterId;
use stolos_manifest::build::Doc;
use stolos_manifest::doc_map;

use crate::config_file;
use crate::error::{Error, Result};
use crate::model::Hostname;
use crate::oidc::Oidc;
use crate::plans::Plan;
use crate::settings::Settings;
pub(crate) use crate::shape::MASTERS;
use crate::shape::{Group, Shape};

/// The port of every cluster's API, on masters and on virtual addresses.
pub const API_PORT: u16 = 8443;
/// The domain of services in every cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The least and the most prefix length of a service network: Kubernetes takes no larger one (kube-apiserver, `--service-cluster-ip-range`),
/// and in a smaller one there is no room for anybody's services.
pub const SERVICE_PREFIXES: (u8, u8) = (12, 27);
/// The address of DNS in the service network, counted from its first.
const DNS_OFFSET: u32 = 2;
/// What the API server calls metrics-server, and so expects in its certificate.
const METRICS_SERVER_NAME: &str = "metrics-server.kube-system.svc";
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
#[derive(Clone, Copy, Debug)]
pub struct ClusterSpec<'a> {
    /// The cluster; in the name of its deployment.
    pub id: ClusterId,
    /// The host that users reach the API under; in the API server's certificate.
    pub hostname: &'a Hostname,
    /// Its plan.
    pub plan: &'a Plan,
    /// Number of workers, where no compute profile says it.
    pub workers: u32,
    /// What it has of its own.
    pub settings: &'a Settings,
    /// Its networks.
    pub networks: Networks,
    /// How the director goes about it.
    pub rollout: Rollout,
    /// Workers that are changed at the same time; the plan's number when absent.
    pub in_flight: Option<u32>,
    /// What its masters do.
    pub phase: Phase,
}

/// What the masters of a cluster do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    #[default]
    Usual,
    /// Nothing runs on them, so that nobody goes on with what etcd has; what it is to have is laid ready.
    Held,
    /// Only etcd runs, with the contents of a backup. There are no workers yet where `alone`.
    Restoring {
        /// Whether the masters are the first machines of a new cluster.
        alone: bool,
    },
}

/// Manifest variable with what a cluster is restored from, while it is.
pub const RESTORE_VARIABLE: &str = "etcd_restore";
/// Manifest variable with the certificate of a client of etcd.
pub const ETCD_CLIENT_VARIABLE: &str = "etcd_client";

/// The networks inside of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// Addresses of pods, a /16: the third byte of a pod's address is the last of its machine's.
    pub pods: Ipv4Net,
    /// Addresses of services.
    pub services: Ipv4Net,
}

impl Default for Networks {
    /// PKS's networks.
    fn default() -> Self {
        Self {
            pods: Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 16),
            services: Ipv4Net::new_assert(Ipv4Addr::new(10, 100, 200, 0), 24),
        }
    }
}

impl Networks {
    /// The first address of services: the API as pods see it.
    #[must_use]
    pub fn api_address(&self) -> Ipv4Addr {
        self.service(1)
    }

    /// The address of the DNS service.
    #[must_use]
    pub fn dns_address(&self) -> Ipv4Addr {
        self.service(DNS_OFFSET)
    }

    fn service(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.services.network()) + offset)
    }

    /// The first two bytes of pods' addresses.
    fn pod_prefix(&self) -> String {
        let [a, b, ..] = self.pods.network().octets();
        format!("{a}.{b}")
    }
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
pub fn render(spec: &ClusterSpec<'_>, lease: &NetworkLease, artifacts: &Artifacts) -> Rendered {
    let deployment = deployment_name(spec.id);
    let shape = Shape::of(spec.plan, spec.workers, spec.settings);
    let cluster = Cluster {
        spec,
        shape: &shape,
        lease,
        artifacts,
        deployment: &deployment,
    };
    Rendered {
        cloud_config: yaml(&cluster.cloud_config()),
        manifest: yaml(&cluster.manifest()),
        deployment,
    }
}

/// DNS servers for a cluster of so many workers: one answers from the master, a second makes sense where it runs on another machine, and
/// each further one serves sixteen more workers (the proportion of upstream's cluster-proportional-autoscaler).
#[must_use]
pub fn dns_replicas(workers: u32) -> u32 {
    workers.div_ceil(16).max(workers.min(2))
}

fn yaml(doc: &Doc) -> String {
    stolos_document::to_yaml(doc.as_json()).expect("a JSON value is always YAML")
}

/// Everything that a manifest is made of.
struct Cluster<'a> {
    spec: &'a ClusterSpec<'a>,
    shape: &'a Shape,
    lease: &'a NetworkLease,
    artifacts: &'a Artifacts,
    deployment: &'a str,
}

impl Cluster<'_> {
    fn vm_type(&self, group: &Group) -> String {
        format!("{}-{}", self.deployment, group.name)
    }

    fn cloud_config(&self) -> Doc {
        let range = self.lease.range;
        let gateway = Ipv4Addr::from(u32::from(range.network()) + 1);
        let zones: BTreeSet<&str> = self
            .shape
            .groups()
            .flat_map(|group| group.zones.iter().map(String::as_str))
            .collect();
        let vm_types: Doc = self
            .shape
            .groups()
            .map(|group| {
                doc_map! {
                    "name" => self.vm_type(group),
                    "cloud_properties" => doc_map! {
                        "cpu" => group.size.cpu,
                        "ram" => group.size.ram,
                        "ephemeral_disk_size" => group.size.ephemeral_disk,
                    },
                }
            })
            .collect();
        let subnet = doc_map! {
            "range" => range.to_string(),
            "gateway" => gateway.to_string(),
            "azs" => zones.into_iter().collect::<Doc>(),
            "cloud_properties" => doc_map! {"segment" => &self.lease.segment},
        };
        doc_map! {
            "networks" => [doc_map! {"name" => self.deployment, "type" => "manual", "subnets" => [subnet]}],
            "vm_types" => vm_types,
        }
    }

    fn manifest(&self) -> Doc {
        let spec = self.spec;
        let careful = spec.rollout == Rollout::Careful;
        let in_flight = spec.in_flight.unwrap_or(spec.plan.worker_max_in_flight);
        let mut masters = self.group(&self.shape.masters, self.master_jobs());
        if careful {
            // Never two members of a quorum at once.
            masters.set("update", doc_map! {"max_in_flight" => 1_u32});
        }
        let mut groups = vec![masters];
        if spec.phase != (Phase::Restoring { alone: true }) {
            for pool in &self.shape.pools {
                groups.push(self.group(pool, self.worker_jobs(pool)));
            }
        }
        let mut manifest = doc_map! {
            "name" => self.deployment,
            "releases" => [doc_map! {
                "name" => &self.artifacts.release,
                "version" => &self.artifacts.release_version,
            }],
            "stemcells" => [doc_map! {
                "alias" => "default",
                "os" => &self.artifacts.stemcell_os,
                "version" => &self.artifacts.stemcell_version,
            }],
            "update" => doc_map! {
                "canaries" => u32::from(careful),
                "max_in_flight" => if careful { in_flight } else { 4 },
                // At first workers do not wait for masters: their processes do, on the API server itself.
                "serial" => careful,
                // Masters of all zones have to come up together: one alone is no quorum.
                "initial_deploy_az_update_strategy" => if careful { "serial" } else { "parallel" },
                "canary_watch_time" => "1-600000",
                "update_watch_time" => "1-600000",
            },
            "instance_groups" => groups,
            "variables" => variables(spec, self.lease),
        };
        if !spec.settings.tags.is_empty() {
            let tags = spec.settings.tags.iter();
            manifest.set("tags", Doc::map(tags.map(|tag| (&tag.name, &tag.value))));
        }
        manifest
    }

    fn group(&self, group: &Group, jobs: Vec<Doc>) -> Doc {
        let mut value = doc_map! {
            "name" => &group.name,
            "instances" => group.instances,
            "azs" => group.zones.iter().collect::<Doc>(),
            "vm_type" => self.vm_type(group),
            "stemcell" => "default",
            "networks" => [doc_map! {"name" => self.deployment}],
            "jobs" => jobs,
        };
        if group.size.persistent_disk > 0 {
            value.set("persistent_disk", group.size.persistent_disk);
        }
        value
    }
}

/// `{certificate, private_key}` of a certificate variable.
fn key_pair(variable: &str) -> Doc {
    doc_map! {
        "certificate" => Doc::part(variable, "certificate"),
        "private_key" => Doc::part(variable, "private_key"),
    }
}

/// The same with the PEM of a CA variable.
fn key_pair_of(variable: &str, authority: &str) -> Doc {
    let mut pair = key_pair(variable);
    pair.set("ca", ca(authority));
    pair
}

/// The PEM of a CA variable.
fn ca(variable: &str) -> Doc {
    Doc::part(variable, "certificate")
}

impl Cluster<'_> {
    fn job(&self, name: &str, properties: Doc) -> Doc {
        doc_map! {"name" => name, "release" => &self.artifacts.release, "properties" => properties}
    }

    /// Flags that a Kubernetes profile gives a program.
    fn flags(&self, component: &str) -> BTreeMap<String, String> {
        let profile = self.spec.settings.kubernetes_profile.as_ref();
        profile
            .map(|profile| profile.flags_of(component))
            .unwrap_or_default()
    }

    fn master_jobs(&self) -> Vec<Doc> {
        let (settings, networks) = (self.spec.settings, self.spec.networks);
        let phase = self.spec.phase;
        let own_api = format!("https://127.0.0.1:{API_PORT}");
        let client = |variable: &str| doc_map! {"ca" => ca(CA_VARIABLE), "client" => key_pair(variable)};
        let mut etcd = doc_map! {"tls" => key_pair_of("etcd_{instance}", "etcd_ca")};
        if let Some(quota) = settings
            .kubernetes_profile
            .as_ref()
            .and_then(|profile| profile.etcd_quota)
        {
            etcd.set("quota_backend_bytes", quota);
        }
        let mut dns = doc_map! {"address" => networks.dns_address().to_string(), "domain" => CLUSTER_DOMAIN};
        if let Some(profile) = &settings.network_profile
            && !profile.nodes_dns.is_empty()
        {
            dns.set("upstreams", Doc::literal(&profile.nodes_dns));
        }
        if phase != Phase::Usual {
            etcd.set("restore", Doc::variable(RESTORE_VARIABLE));
            etcd.set("hold", phase == Phase::Held);
            return vec![self.job("etcd", etcd)];
        }
        let mut jobs = vec![
            self.job("etcd", etcd),
            self.job("kube-apiserver", self.api_server()),
            self.job(
                "kube-controller-manager",
                doc_map! {
                    "api_server" => &own_api,
                    "service_cluster_ip_range" => networks.services.to_string(),
                    "service_account" => doc_map! {"private_key" => Doc::part("service_account_key", "private_key")},
                    "extra_args" => Doc::map(self.flags("kube-controller-manager")),
                    "tls" => doc_map! {
                        "ca" => ca(CA_VARIABLE),
                        "client" => key_pair("kube_controller_manager"),
                        "signing" => key_pair(CA_VARIABLE),
                    },
                },
            ),
            self.job(
                "kube-scheduler",
                doc_map! {
                    "api_server" => &own_api,
                    "tls" => client("kube_scheduler"),
                    "extra_args" => Doc::map(self.flags("kube-scheduler")),
                },
            ),
            self.job(
                "cluster-services",
                doc_map! {
                    "api_server" => &own_api,
                    "tls" => client(ADMIN_VARIABLE),
                    "dns" => dns,
                    "metrics_server" => key_pair("metrics_server"),
                    "addons" => &self.spec.plan.addons,
                },
            ),
        ];
        jobs.extend(self.node_jobs(&self.shape.masters, &own_api));
        jobs
    }

    fn api_server(&self) -> Doc {
        let (spec, plan) = (self.spec, self.spec.plan);
        let mut flags = self.flags("kube-apiserver");
        // The profile's plug-ins come to the plan's; as a flag they would replace them.
        let mut plugins = plan.admission_plugins.clone();
        let of_profile = flags.remove("enable-admission-plugins").unwrap_or_default();
        plugins.extend(
            of_profile
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        );
        let oidc = spec.settings.trusted_oidc();
        flags.extend(oidc.map(Oidc::flags).unwrap_or_default());
        let mut properties = doc_map! {
            "port" => u32::from(API_PORT),
            "allow_privileged" => plan.allow_privileged_containers,
            "admission_plugins" => plugins,
            "pod_security" => Doc::literal(&plan.pod_security),
            "service_cluster_ip_range" => spec.networks.services.to_string(),
            "extra_args" => Doc::map(flags),
            "oidc_ca_file" => oidc.map(Oidc::flags_ca).unwrap_or_default(),
            "service_account" => doc_map! {
                "public_key" => Doc::part("service_account_key", "public_key"),
                "private_key" => Doc::part("service_account_key", "private_key"),
            },
            "tls" => doc_map! {
                "ca" => ca(CA_VARIABLE),
                "server" => key_pair("kube_apiserver_{instance}"),
                "kubelet_client" => key_pair("kube_apiserver_kubelet_client"),
                "front_proxy" => key_pair_of("front_proxy_client", "front_proxy_ca"),
                "etcd" => key_pair_of(ETCD_CLIENT_VARIABLE, "etcd_ca"),
            },
        };
        if let Some(authentication) = oidc.and_then(Oidc::authentication) {
            properties.set("authentication_config", authentication);
        }
        if let Some(profile) = &spec.settings.kubernetes_profile {
            for flag in &profile.files {
                // `oidc-ca-file` is the property `oidc_ca_file`.
                properties.set(&flag.replace('-', "_"), Doc::variable(&profile.variable_of(flag)));
            }
        }
        properties
    }

    fn worker_jobs(&self, pool: &Group) -> Vec<Doc> {
        self.node_jobs(
            pool,
            &format!("https://{}:{API_PORT}", self.lease.virtual_address),
        )
    }

    fn node_jobs(&self, group: &Group, api_server: &str) -> Vec<Doc> {
        let (settings, networks) = (self.spec.settings, self.spec.networks);
        let kubelet = &self.spec.plan.kubelet;
        let mut runtime = doc_map! {
            "seed" => &self.artifacts.image_seed,
            "registries" => Doc::literal(&settings.registries),
        };
        let proxies = &settings.proxies;
        for (there, name) in [
            (proxies.http, config_file::HTTP_PROXY),
            (proxies.https, config_file::HTTPS_PROXY),
        ] {
            if there {
                runtime.set(name, Doc::variable(name));
            }
        }
        if !proxies.none_for.is_empty() {
            runtime.set("no_proxy", &proxies.none_for);
        }
        vec![
            self.job("containerd", runtime),
            self.job("pod-network", doc_map! {"pod_network" => networks.pod_prefix()}),
            self.job(
                "kubelet",
                doc_map! {
                    "api_server" => api_server,
                    "control_plane" => group.name == MASTERS,
                    "cluster_dns" => networks.dns_address().to_string(),
                    "cluster_domain" => CLUSTER_DOMAIN,
                    "labels" => Doc::map(&group.labels),
                    "taints" => Doc::literal(&group.taints),
                    "system_reserved" => Doc::map(&kubelet.system_reserved),
                    "eviction_hard" => Doc::map(&kubelet.eviction_hard),
                    "extra_args" => Doc::map(self.flags("kubelet")),
                    "tls" => doc_map! {"ca" => ca(CA_VARIABLE), "client" => key_pair("kubelet_{instance}")},
                },
            ),
            self.job(
                "kube-proxy",
                doc_map! {
                    "api_server" => api_server,
                    "cluster_cidr" => networks.pods.to_string(),
                    "extra_args" => Doc::map(self.flags("kube-proxy")),
                    "tls" => doc_map! {"ca" => ca(CA_VARIABLE), "client" => key_pair("kube_proxy")},
                },
            ),
            self.job(
                "local-volumes",
                doc_map! {
                    "api_server" => api_server,
                    "control_plane" => group.name == MASTERS,
                    // A master's persistent disk is etcd's: what pods write must not fill it.
                    "persistent" => group.name != MASTERS && group.size.persistent_disk > 0,
                    "tls" => doc_map! {"ca" => ca(CA_VARIABLE), "client" => key_pair("local_volumes_{instance}")},
                },
            ),
        ]
    }
}

/// Extended key usages by the names that CredHub has for them.
const CLIENT: &[&str] = &["client_auth"];
const SERVER: &[&str] = &["server_auth"];
const BOTH: &[&str] = &["client_auth", "server_auth"];

/// Variables that each instance has a member of its own of (`docs/design/0004-node-certificates.md`): `NAME_{instance}`.
const FAMILIES: [&str; 4] = ["etcd", "kube_apiserver", "kubelet", "local_volumes"];

/// The instance, `GROUP-INDEX`, that a certificate is a member for, by the certificate's whole name.
pub(crate) fn member_of(name: &str) -> Option<&str> {
    let variable = name.rsplit('/').next()?;
    let instance = FAMILIES
        .iter()
        .find_map(|family| variable.strip_prefix(family)?.strip_prefix('_'))?;
    let (group, index) = instance.rsplit_once('-')?;
    (!group.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) && !index.is_empty()).then_some(instance)
}

fn authority(name: &str, common_name: &str) -> Doc {
    doc_map! {
        "name" => name,
        "type" => "certificate",
        "options" => doc_map! {"is_ca" => true, "common_name" => common_name, "duration" => CA_DAYS},
    }
}

fn leaf(
    name: &str,
    ca: &str,
    common_name: &str,
    organization: Option<&str>,
    names: &[String],
    usage: &[&str],
) -> Doc {
    let mut options = doc_map! {"ca" => ca, "common_name" => common_name};
    if let Some(organization) = organization {
        options.set("organization", organization);
    }
    if !names.is_empty() {
        options.set("alternative_names", names.iter().collect::<Doc>());
    }
    options.set("extended_key_usage", usage.iter().copied().collect::<Doc>());
    options.set("duration", LEAF_DAYS);
    // Names change with addresses and the host name: another set of options makes another certificate.
    doc_map! {"name" => name, "type" => "certificate", "update_mode" => "converge", "options" => options}
}

fn variables(spec: &ClusterSpec<'_>, lease: &NetworkLease) -> Vec<Doc> {
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
        spec.networks.api_address().to_string(),
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
            ETCD_CLIENT_VARIABLE,
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
            "local_volumes_{instance}",
            CA_VARIABLE,
            "stolos:local-volumes:{instance}",
            Some("stolos:local-volumes"),
            &[],
            CLIENT,
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
        doc_map! {
            "name" => "service_account_key",
            "type" => "rsa",
            "options" => doc_map! {"key_length" => 2048_u32},
        },
    ]
}

#[cfg(test)]
mod tests;
