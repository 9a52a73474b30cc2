//! Plans: the sizes that an operator offers.
//!
//! Read from the configuration of `stolosd` and immutable while it runs. Ids 1–4 are those that PKS fixed, because scripts
//! name them; one of them has a digit too many there and is kept so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stolos_kubernetes::Document;

/// The ids of PKS's first four plans, in order.
pub const FIXED_IDS: [&str; 4] = [
    "8A0E21A8-8072-4D80-B365-D1F502085560",
    "58375a45-17f7-4291-acf1-455bfdc8e371",
    "241118e5-69b2-4ef9-b47f-4d2ab071aff5",
    "2fa824527-318d-4253-9f8e-0025863b8c8a",
];

/// The size of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSize {
    /// Processors.
    pub cpu: u32,
    /// Memory in MiB.
    pub ram: u32,
    /// Disk that lives and dies with the machine, in MiB.
    pub ephemeral_disk: u32,
    /// Disk that outlives the machine, in MiB; 0 for none.
    #[serde(default)]
    pub persistent_disk: u32,
}

/// A plan as configured: the fields of PKS's tile (pks.md, section 3.2), under their own names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Whether new clusters may have it. Those that have it keep it; the plans after it keep their ids.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub active: bool,
    /// Kubernetes version, without `v`; one that the release offers.
    pub kubernetes_version: String,
    /// Number of masters of new clusters: 1, 3 or 5. A cluster keeps the number that it was made with, until somebody changes that one.
    #[serde(default = "one")]
    pub master_instances: u32,
    /// Size of masters; a persistent disk is needed, etcd lives there.
    pub master: MachineSize,
    /// Zones of masters; all of the installation's when empty. A single master is in the first one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub master_zones: Vec<String>,
    /// Workers when the request names no number.
    pub worker_instances: u32,
    /// The most workers that a request may ask for.
    pub max_worker_instances: u32,
    /// Size of workers.
    pub worker: MachineSize,
    /// Zones of workers, which are spread evenly over them; all of the installation's when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worker_zones: Vec<String>,
    /// Whether pods may be privileged.
    #[serde(default)]
    pub allow_privileged_containers: bool,
    /// Admission plug-ins of the API server beside upstream's default ones and `NodeRestriction`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admission_plugins: Vec<String>,
    /// What Pod Security Admission demands in namespaces that say nothing themselves.
    #[serde(default, skip_serializing_if = "PodSecurity::is_default")]
    pub pod_security: PodSecurity,
    /// How nodes are drained, unless a cluster has settings of its own.
    #[serde(default)]
    pub drain: Drain,
    /// Workers that an update changes at the same time.
    #[serde(default = "one")]
    pub worker_max_in_flight: u32,
    /// What kubelets keep for the machine itself.
    #[serde(default, skip_serializing_if = "KubeletReservations::is_default")]
    pub kubelet: KubeletReservations,
    /// Kubernetes objects that each cluster gets when it is made, updated or upgraded: YAML documents separated by `---`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub addons: String,
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// What is kept back from pods, and when pods are evicted; each by the names and in the units of kubelet's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubeletReservations {
    /// `systemReserved`: `cpu`, `memory`, `ephemeral-storage` or `pid`, such as `memory: 250Mi`.
    pub system_reserved: BTreeMap<String, String>,
    /// `evictionHard`: signals such as `memory.available: 100Mi`.
    pub eviction_hard: BTreeMap<String, String>,
}

impl KubeletReservations {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A level of the Pod Security Standards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurityLevel {
    /// Everything.
    #[default]
    Privileged,
    /// No known privilege escalation.
    Baseline,
    /// Current hardening practice.
    Restricted,
}

/// What is demanded of pods in namespaces without labels of their own. `kube-system` is exempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodSecurity {
    /// What a pod must fulfil to be admitted.
    pub enforce: PodSecurityLevel,
    /// What is noted in the audit log when it is not fulfilled.
    pub audit: PodSecurityLevel,
    /// What the person is warned of.
    pub warn: PodSecurityLevel,
}

impl PodSecurity {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How nodes are drained. PKS's defaults, but for the time limit: PKS had none, and a drain that waited for a disruption budget
/// held up an update for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// Minutes that a drain may take; 0 for no limit.
    pub timeout: u32,
    /// Seconds that a pod gets to end; -1 for the pod's own.
    pub grace_period: i32,
    /// Whether pods that no controller makes anew are evicted too.
    pub force: bool,
    /// Whether pods of daemon sets are left where they are; otherwise they stop the drain.
    pub ignore_daemonsets: bool,
    /// Whether pods with data in `emptyDir` volumes are evicted too.
    pub delete_local_data: bool,
    /// Whether pods that are left when the time is over are deleted.
    pub force_node: bool,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            timeout: 10,
            grace_period: 10,
            force: true,
            ignore_daemonsets: true,
            delete_local_data: true,
            force_node: false,
        }
    }
}

/// The configured plans do not make sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPlans {
    /// None are configured.
    #[error("no active plan is configured")]
    None,
    /// There is no zone.
    #[error("no zone is configured")]
    NoZone,
    /// A zone's name cannot be a label of a node.
    #[error(
        "zone `{0}` is not valid: it takes 1 to 63 letters, digits or `-`, none of these last at its ends"
    )]
    Zone(String),
    /// More than PKS had.
    #[error("{0} plans are configured; there can be {MOST_PLANS}")]
    TooMany(usize),
    /// A name is empty or given twice.
    #[error("plan name `{0}` is empty or given twice")]
    Name(String),
    /// A field is not what it should be.
    #[error("plan `{plan}`: {problem}")]
    Field {
        /// The plan.
        plan: String,
        /// What is wrong.
        problem: String,
    },
}

/// The plans on offer, in the operator's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plans {
    plans: Vec<(String, Plan)>,
    zones: Vec<String>,
}

impl Plans {
    /// Checks the configured plans, gives them their ids, and all zones to those that name none.
    ///
    /// # Errors
    /// [`InvalidPlans`] for the first plan that does not make sense.
    pub fn new(plans: Vec<Plan>, zones: Vec<String>) -> Result<Self, InvalidPlans> {
        check_zones(&zones)?;
        if !plans.iter().any(|plan| plan.active) {
            return Err(InvalidPlans::None);
        }
        if plans.len() > MOST_PLANS {
            return Err(InvalidPlans::TooMany(plans.len()));
        }
        let mut checked: Vec<(String, Plan)> = Vec::with_capacity(plans.len());
        for (position, mut plan) in plans.into_iter().enumerate() {
            if plan.name.trim().is_empty() || checked.iter().any(|(_, other)| other.name == plan.name) {
                return Err(InvalidPlans::Name(plan.name));
            }
            for own in [&mut plan.master_zones, &mut plan.worker_zones] {
                if own.is_empty() {
                    own.clone_from(&zones);
                }
            }
            check(&plan, &zones).map_err(|problem| InvalidPlans::Field {
                plan: plan.name.clone(),
                problem,
            })?;
            let id = FIXED_IDS
                .get(position)
                .map_or_else(|| format!("plan-{}", position + 1), |id| (*id).to_owned());
            checked.push((id, plan));
        }
        Ok(Self {
            plans: checked,
            zones,
        })
    }

    /// The installation's zones.
    #[must_use]
    pub fn zones(&self) -> &[String] {
        &self.zones
    }

    /// All plans with their ids, active or not.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Plan)> {
        self.plans.iter().map(|(id, plan)| (id.as_str(), plan))
    }

    /// The plans that new clusters may have, with their ids.
    pub fn active(&self) -> impl Iterator<Item = (&str, &Plan)> {
        self.iter().filter(|(_, plan)| plan.active)
    }

    /// The plan of that name or, as old clients send it, of that id; active or not.
    #[must_use]
    pub fn find(&self, name_or_id: &str) -> Option<&Plan> {
        self.iter()
            .find(|(id, plan)| plan.name == name_or_id || id.eq_ignore_ascii_case(name_or_id))
            .map(|(_, plan)| plan)
    }
}

/// The most plans that PKS's tile had for Linux.
const MOST_PLANS: usize = 10;
/// A segment is a /24: the gateway and the masters need addresses too.
const MOST_WORKERS: u32 = 240;
/// Admission plug-ins that upstream compiles in and that make sense to switch on (kube-apiserver 1.36 and 1.37, `--help`).
pub(crate) const ADMISSION_PLUGINS: &[&str] = &[
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "DenyServiceExternalIPs",
    "ExtendedResourceToleration",
    "LimitPodHardAntiAffinityTopology",
    "LimitRanger",
    "MutatingAdmissionWebhook",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "NamespaceLifecycle",
    "NodeRestriction",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "PodNodeSelector",
    "PodSecurity",
    "PodTolerationRestriction",
    "Priority",
    "ResourceQuota",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
    "TaintNodesByCondition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];
/// Plug-ins that do nothing, or stop the API server, without a configuration file of their own.
const UNCONFIGURED_PLUGINS: &[&str] = &["EventRateLimit", "ImagePolicyWebhook"];
/// Plug-ins of PKS's plans that upstream has removed since.
const GONE_PLUGINS: &[&str] = &["DenyEscalatingExec", "PodSecurityPolicy", "SecurityContextDeny"];

/// Checks the name of an admission plug-in.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_plugin(name: &str) -> Result<(), String> {
    if ADMISSION_PLUGINS.contains(&name) {
        Ok(())
    } else if GONE_PLUGINS.contains(&name) {
        Err(format!(
            "admission plug-in `{name}` was removed from Kubernetes; what it did is done by Pod Security Admission (`pod_security`)"
        ))
    } else if UNCONFIGURED_PLUGINS.contains(&name) {
        Err(format!(
            "admission plug-in `{name}` needs a configuration file, for which there is no place"
        ))
    } else if name == "AlwaysPullImages" {
        Err(
            "admission plug-in `AlwaysPullImages` would keep the cluster's own services from starting: their images lie on the nodes and in no registry"
                .to_owned(),
        )
    } else {
        Err(format!("there is no admission plug-in `{name}`"))
    }
}

fn check_zones(zones: &[String]) -> Result<(), InvalidPlans> {
    let good = |zone: &String| {
        (1..=63).contains(&zone.len())
            && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !zone.starts_with('-')
            && !zone.ends_with('-')
    };
    match zones.iter().find(|zone| !good(zone)) {
        Some(zone) => Err(InvalidPlans::Zone(zone.clone())),
        None if zones.is_empty() => Err(InvalidPlans::NoZone),
        None => Ok(()),
    }
}

/// Whether a cluster may have so many masters. Two survive no more than one, and four no more than three.
pub(crate) fn can_be_masters(n: u32) -> bool {
    matches!(n, 1 | 3 | 5)
}

fn check(plan: &Plan, zones: &[String]) -> Result<(), String> {
    for zone in plan.master_zones.iter().chain(&plan.worker_zones) {
        if !zones.contains(zone) {
            return Err(format!(
                "there is no zone `{zone}`; the zones are {}",
                zones.join(", ")
            ));
        }
    }
    if plan.worker_instances == 0 || plan.worker_instances > plan.max_worker_instances {
        return Err(format!(
            "worker_instances is {}, which is not between 1 and max_worker_instances ({})",
            plan.worker_instances, plan.max_worker_instances
        ));
    }
    if plan.max_worker_instances > MOST_WORKERS {
        return Err(format!(
            "max_worker_instances is {}, more than the {MOST_WORKERS} that a segment holds",
            plan.max_worker_instances
        ));
    }
    if !can_be_masters(plan.master_instances) {
        return Err(format!(
            "master_instances is {}, which is not 1, 3 or 5",
            plan.master_instances
        ));
    }
    if plan.worker_max_in_flight == 0 {
        return Err("worker_max_in_flight is 0, so no update would ever change a worker".to_owned());
    }
    if !(-1..=86_400).contains(&plan.drain.grace_period) || plan.drain.timeout > 1440 {
        return Err(
            "drain: grace_period is not between -1 and 86400 seconds, or timeout more than 1440 minutes"
                .to_owned(),
        );
    }
    if plan.master.persistent_disk == 0 {
        return Err("master.persistent_disk is 0, but etcd needs a persistent disk".to_owned());
    }
    check_size("master", &plan.master)?;
    check_size("worker", &plan.worker)?;
    plan.admission_plugins
        .iter()
        .try_for_each(|name| check_plugin(name))?;
    check_reservations(&plan.kubelet)?;
    Document::parse(&plan.addons)
        .map(drop)
        .map_err(|error| format!("addons: {}", stolos_base::chain(&error)))
}

/// Checks that a machine can be a node.
///
/// # Errors
/// What is too small.
pub(crate) fn check_size(what: &str, size: &MachineSize) -> Result<(), String> {
    if size.cpu == 0 || size.ram < 256 || size.ephemeral_disk < 512 {
        Err(format!(
            "{what} has less than 1 cpu, 256 MiB ram or 512 MiB ephemeral_disk"
        ))
    } else {
        Ok(())
    }
}

fn check_reservations(kubelet: &KubeletReservations) -> Result<(), String> {
    const RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage", "pid"];
    const SIGNALS: &[&str] = &[
        "memory.available",
        "nodefs.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "imagefs.inodesFree",
        "pid.available",
    ];
    for (what, known, given) in [
        ("system_reserved", RESOURCES, &kubelet.system_reserved),
        ("eviction_hard", SIGNALS, &kubelet.eviction_hard),
    ] {
        for (name, amount) in given {
            if !known.contains(&name.as_str()) {
                return Err(format!("kubelet.{what} knows {}, not `{name}`", known.join(", ")));
            }
            if !is_quantity(amount.strip_suffix('%').unwrap_or(amount)) {
                return Err(format!("kubelet.{what}.{name}: `{amount}` is no quantity"));
            }
        }
    }
    Ok(())
}

/// Whether a text is a Kubernetes quantity without sign and exponent, such as `250Mi` or `0.5`.
pub(crate) fn is_quantity(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let units = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
    units.contains(&unit)
        && number.bytes().any(|b| b.is_ascii_digit())
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && number.bytes().filter(|b| *b == b'.').count() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> Plan {
        let size = MachineSize {
            cpu: 2,
            ram: 2048,
            ephemeral_disk: 4096,
            persistent_disk: 1024,
        };
        Plan {
            name: name.to_owned(),
            description: String::new(),
            active: true,
            kubernetes_version: "1.37.1".to_owned(),
            master_instances: 1,
            master: size,
            master_zones: Vec::new(),
            worker_instances: 1,
            max_worker_instances: 5,
            worker: size,
            worker_zones: Vec::new(),
            allow_privileged_containers: true,
            admission_plugins: Vec::new(),
            pod_security: PodSecurity::default(),
            drain: Drain::default(),
            worker_max_in_flight: 1,
            kubelet: KubeletReservations::default(),
            addons: String::new(),
        }
    }

    fn checked(plans: Vec<Plan>) -> Result<Plans, InvalidPlans> {
        Plans::new(plans, vec!["z1".to_owned(), "z2".to_owned()])
    }

    #[test]
    fn plans_are_found_by_name_and_by_id() {
        let mut plans = ["a", "b", "c", "d", "e"].map(plan).to_vec();
        plans[1].active = false;
        let plans = checked(plans).expect("valid plans");
        let found = |name| plans.find(name).map(|plan| plan.name.as_str());
        assert_eq!(
            found("b"),
            Some("b"),
            "clusters go on with a plan that is not active"
        );
        assert_eq!(found("8a0e21a8-8072-4d80-b365-d1f502085560"), Some("a"));
        assert_eq!(found("plan-5"), Some("e"));
        assert_eq!(found("f"), None);
        let active: Vec<&str> = plans.active().map(|(_, plan)| plan.name.as_str()).collect();
        assert_eq!(active, ["a", "c", "d", "e"]);
        assert_eq!(plans.find("a").map(|plan| plan.worker_zones.len()), Some(2));
    }

    #[test]
    fn senseless_plans_are_refused() {
        assert_eq!(checked(vec![]), Err(InvalidPlans::None));
        assert_eq!(
            checked(vec![plan("a"), plan("a")]),
            Err(InvalidPlans::Name("a".into()))
        );
        assert_eq!(
            checked((0..11).map(|n| plan(&n.to_string())).collect()),
            Err(InvalidPlans::TooMany(11))
        );
        assert_eq!(Plans::new(vec![plan("a")], vec![]), Err(InvalidPlans::NoZone));
        let reserve = |what: &str, amount: &str| [(what.to_owned(), amount.to_owned())].into();
        type Change = Box<dyn Fn(&mut Plan)>;
        let changes: Vec<(Change, &str)> = vec![
            (Box::new(|plan| plan.master.persistent_disk = 0), "etcd"),
            (Box::new(|plan| plan.worker_instances = 6), "worker_instances"),
            (Box::new(|plan| plan.max_worker_instances = 241), "segment"),
            (Box::new(|plan| plan.master_instances = 2), "1, 3 or 5"),
            (
                Box::new(|plan| plan.worker_zones = vec!["z9".to_owned()]),
                "the zones are z1, z2",
            ),
            (Box::new(|plan| plan.worker.ram = 128), "256 MiB"),
            (
                Box::new(|plan| plan.admission_plugins = vec!["PodSecurityPolicy".to_owned()]),
                "pod_security",
            ),
            (
                Box::new(|plan| plan.admission_plugins = vec!["AlwaysPullImages".to_owned()]),
                "in no registry",
            ),
            (
                Box::new(|plan| plan.admission_plugins = vec!["Nonsense".to_owned()]),
                "no admission plug-in",
            ),
            (
                Box::new(move |plan| plan.kubelet.system_reserved = reserve("disk", "1Gi")),
                "system_reserved",
            ),
            (
                Box::new(move |plan| plan.kubelet.eviction_hard = reserve("memory.available", "a lot")),
                "no quantity",
            ),
            (Box::new(|plan| plan.addons = "kind: Pod\n".to_owned()), "addons"),
            (Box::new(|plan| plan.drain.timeout = 5000), "drain"),
            (
                Box::new(|plan| plan.worker_max_in_flight = 0),
                "worker_max_in_flight",
            ),
        ];
        for (change, words) in changes {
            let mut bad = plan("a");
            change(&mut bad);
            let error = checked(vec![bad]).expect_err(words);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn quantities() {
        for good in ["1", "250Mi", "0.5", "100m", "1Ti"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "Mi", "-1", "1.2.3", "1Zi", "1 Gi"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
