//! Compute profiles: other sizes, and several pools of workers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Invalid, check_key, check_value, pairs};
use crate::plans::{MachineSize, can_be_masters, check_size};
use crate::shape::{Group, Taint, WORKERS};

/// The most workers of a pool where neither the profile nor the plan says less.
const MOST_WORKERS: u32 = 240;
/// The longest name of a pool: `worker-NAME-123` has to be a label of a domain name.
const LONGEST_NAME: usize = 40;

/// A checked compute profile, as a cluster keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeProfile {
    /// Its name.
    pub name: String,
    /// What differs for masters.
    pub control_plane: Option<Machines>,
    /// The pools; empty where only masters differ.
    pub pools: Vec<Pool>,
}

/// What a profile says about a group of machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machines {
    /// Their size; the plan's when absent.
    pub size: Option<Size>,
    /// Their persistent disk in MiB; the plan's when absent.
    pub persistent_disk: Option<u32>,
    /// Their zones; the plan's when empty.
    pub zones: Vec<String>,
    /// How many; the plan's when absent.
    pub instances: Option<u32>,
}

/// Processors, memory and ephemeral disk: all of them, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Processors.
    pub cpu: u32,
    /// Memory in MiB.
    pub ram: u32,
    /// Ephemeral disk in MiB.
    pub ephemeral_disk: u32,
}

/// A pool of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name; the instance group is `worker-NAME`.
    pub name: String,
    /// Its machines.
    pub machines: Machines,
    /// The most workers that it may have; the plan's maximum when absent.
    pub max_instances: Option<u32>,
    /// Labels of its nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints of its nodes.
    pub taints: Vec<Taint>,
}

/// `parameters` as PKS's documentation has it (pks.md, section 2.7).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// vSphere's placement of zones; zones themselves are the installation's.
    #[serde(default)]
    azs: Vec<Az>,
    cluster_customization: Customization,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Az {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "accepted and told as not applied")]
    cpi: Option<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "accepted and told as not applied")]
    cloud_properties: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Customization {
    #[serde(default)]
    control_plane: Option<GivenMachines>,
    #[serde(default)]
    node_pools: Vec<GivenPool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GivenMachines {
    cpu: Option<u32>,
    memory_in_mb: Option<u32>,
    ephemeral_disk_in_mb: Option<u32>,
    persistent_disk_in_mb: Option<u32>,
    az_names: Vec<String>,
    instances: Option<u32>,
}

/// serde cannot flatten with unknown fields denied, so the fields of [`GivenMachines`] stand here once more.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenPool {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "for people; the profile's body keeps it")]
    description: Option<String>,
    #[serde(default)]
    cpu: Option<u32>,
    #[serde(default)]
    memory_in_mb: Option<u32>,
    #[serde(default)]
    ephemeral_disk_in_mb: Option<u32>,
    #[serde(default)]
    persistent_disk_in_mb: Option<u32>,
    #[serde(default)]
    az_names: Vec<String>,
    #[serde(default)]
    instances: Option<u32>,
    #[serde(default)]
    max_worker_instances: Option<u32>,
    #[serde(default)]
    node_labels: String,
    #[serde(default)]
    node_taints: String,
}

impl ComputeProfile {
    /// Checks a profile; `zones` are those of the installation. Also gives the keys that have no effect here.
    ///
    /// # Errors
    /// [`Invalid`] with the field.
    pub fn parse(name: &str, parameters: &Value, zones: &[String]) -> Result<(Self, Vec<String>), Invalid> {
        let given: Parameters = stolos_document::from_value(parameters.clone())
            .map_err(|error| Invalid(format!("`parameters`: {error}")))?;
        let mut not_applied = Vec::new();
        for az in &given.azs {
            known_zone(&az.name, zones)?;
            not_applied.push(format!("azs.{}", az.name));
        }
        let control_plane = match given.cluster_customization.control_plane {
            None => None,
            Some(given) => Some(control_plane(given, zones)?),
        };
        let mut pools: Vec<Pool> = Vec::new();
        for given in given.cluster_customization.node_pools {
            let name = given.name.clone();
            if pools.iter().any(|pool| pool.name == name) {
                return Err(Invalid(format!("node pool `{name}` is given twice")));
            }
            pools.push(
                pool(given, zones).map_err(|Invalid(what)| Invalid(format!("node pool `{name}`: {what}")))?,
            );
        }
        if !pools.is_empty() && pools.iter().all(|pool| !pool.taints.is_empty()) {
            return Err(Invalid(
                "at least one node pool has to be without taints, or the cluster's own services have no place".to_owned(),
            ));
        }
        if control_plane.is_none() && pools.is_empty() {
            return Err(Invalid(
                "`cluster_customization` has neither `control_plane` nor `node_pools`".to_owned(),
            ));
        }
        let profile = Self {
            name: name.to_owned(),
            control_plane,
            pools,
        };
        Ok((profile, not_applied))
    }

    /// Changes the groups of a plan to those of the profile. `numbers` are the cluster's own numbers of workers by pool.
    pub(crate) fn apply(&self, masters: &mut Group, pools: &mut Vec<Group>, numbers: &BTreeMap<String, u32>) {
        if let Some(machines) = &self.control_plane {
            machines.apply(masters);
        }
        if self.pools.is_empty() {
            return;
        }
        let Some(base) = pools.first().cloned() else {
            return;
        };
        *pools = self
            .pools
            .iter()
            .map(|pool| {
                let mut group = base.clone();
                pool.machines.apply(&mut group);
                group.name = format!("{WORKERS}-{}", pool.name);
                group.instances = numbers
                    .get(&pool.name)
                    .copied()
                    .or(pool.machines.instances)
                    .unwrap_or(1);
                group.labels.clone_from(&pool.labels);
                group.taints.clone_from(&pool.taints);
                group
            })
            .collect();
    }

    /// The names of its pools.
    #[must_use]
    pub fn pool_names(&self) -> BTreeSet<&str> {
        self.pools.iter().map(|pool| pool.name.as_str()).collect()
    }

    /// A pool by name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}

impl Machines {
    fn apply(&self, group: &mut Group) {
        if let Some(size) = self.size {
            group.size = MachineSize {
                cpu: size.cpu,
                ram: size.ram,
                ephemeral_disk: size.ephemeral_disk,
                persistent_disk: group.size.persistent_disk,
            };
        }
        if let Some(disk) = self.persistent_disk {
            group.size.persistent_disk = disk;
        }
        if !self.zones.is_empty() {
            group.zones.clone_from(&self.zones);
        }
        if let Some(instances) = self.instances {
            group.instances = instances;
        }
    }
}

fn control_plane(given: GivenMachines, zones: &[String]) -> Result<Machines, Invalid> {
    let at = |Invalid(what)| Invalid(format!("control_plane: {what}"));
    if let Some(instances) = given.instances
        && !can_be_masters(instances)
    {
        return Err(at(Invalid(format!(
            "`instances` is {instances}, which is not 1, 3 or 5"
        ))));
    }
    if given.persistent_disk_in_mb == Some(0) {
        return Err(at(Invalid(
            "`persistent_disk_in_mb` is 0, but etcd needs a persistent disk".to_owned(),
        )));
    }
    machines(
        (given.cpu, given.memory_in_mb, given.ephemeral_disk_in_mb),
        given.persistent_disk_in_mb,
        given.az_names,
        given.instances,
        zones,
    )
    .map_err(at)
}

fn pool(given: GivenPool, zones: &[String]) -> Result<Pool, Invalid> {
    let name_is_good = (1..=LONGEST_NAME).contains(&given.name.len())
        && given
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !given.name.starts_with('-')
        && !given.name.ends_with('-');
    if !name_is_good {
        return Err(Invalid(format!(
            "its name has to have 1 to {LONGEST_NAME} small letters, digits or `-`, with none of these last at its ends"
        )));
    }
    let most = given.max_worker_instances.unwrap_or(MOST_WORKERS);
    if !(1..=MOST_WORKERS).contains(&most) {
        return Err(Invalid(format!(
            "`max_worker_instances` is {most}, which is not between 1 and {MOST_WORKERS}"
        )));
    }
    if let Some(instances) = given.instances
        && !(1..=most).contains(&instances)
    {
        return Err(Invalid(format!(
            "`instances` is {instances}, which is not between 1 and {most}"
        )));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in pairs(&given.node_labels)? {
        check_key(&key)?;
        check_value(&value)?;
        may_label(&key)?;
        labels.insert(key, value);
    }
    Ok(Pool {
        machines: machines(
            (given.cpu, given.memory_in_mb, given.ephemeral_disk_in_mb),
            given.persistent_disk_in_mb,
            given.az_names,
            given.instances,
            zones,
        )?,
        name: given.name,
        max_instances: given.max_worker_instances,
        labels,
        taints: taints(&given.node_taints)?,
    })
}

fn machines(
    size: (Option<u32>, Option<u32>, Option<u32>),
    persistent_disk: Option<u32>,
    az_names: Vec<String>,
    instances: Option<u32>,
    zones: &[String],
) -> Result<Machines, Invalid> {
    let size = match size {
        (None, None, None) => None,
        (Some(cpu), Some(ram), Some(ephemeral_disk)) => {
            let whole = MachineSize {
                cpu,
                ram,
                ephemeral_disk,
                persistent_disk: 0,
            };
            check_size("it", &whole).map_err(Invalid)?;
            Some(Size {
                cpu,
                ram,
                ephemeral_disk,
            })
        }
        _ => {
            return Err(Invalid(
                "`cpu`, `memory_in_mb` and `ephemeral_disk_in_mb` have to be given together".to_owned(),
            ));
        }
    };
    for zone in &az_names {
        known_zone(zone, zones)?;
    }
    Ok(Machines {
        size,
        persistent_disk,
        zones: az_names,
        instances,
    })
}

fn known_zone(name: &str, zones: &[String]) -> Result<(), Invalid> {
    if zones.iter().any(|zone| zone == name) {
        Ok(())
    } else {
        Err(Invalid(format!(
            "there is no zone `{name}`; the zones are {}",
            zones.join(", ")
        )))
    }
}

/// A kubelet refuses to give itself labels in Kubernetes' own name space, but for a few (its flag `--node-labels`).
fn may_label(key: &str) -> Result<(), Invalid> {
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let owned = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|own| prefix == *own || prefix.ends_with(&format!(".{own}")));
    let allowed = ["kubelet.kubernetes.io", "node.kubernetes.io"]
        .iter()
        .any(|own| prefix == *own || prefix.ends_with(&format!(".{own}")));
    if owned && !allowed {
        Err(Invalid(format!(
            "a node may not give itself the label `{key}`: the name is Kubernetes' own"
        )))
    } else {
        Ok(())
    }
}

/// `KEY=VALUE:EFFECT,KEY=VALUE:EFFECT`.
fn taints(text: &str) -> Result<Vec<Taint>, Invalid> {
    text.split(',')
        .map(str::trim)
        .filter(|taint| !taint.is_empty())
        .map(|taint| {
            let (pair, effect) = taint
                .rsplit_once(':')
                .ok_or_else(|| Invalid(format!("taint `{taint}` is not `KEY=VALUE:EFFECT`")))?;
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            check_key(key)?;
            check_value(value)?;
            if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                return Err(Invalid(format!(
                    "taint `{taint}`: the effect is NoSchedule, PreferNoSchedule or NoExecute"
                )));
            }
            Ok(Taint {
                key: key.to_owned(),
                value: value.to_owned(),
                effect: effect.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn zones() -> Vec<String> {
        ["z1", "z2"].map(str::to_owned).to_vec()
    }

    fn pools(pools: Value) -> Result<(ComputeProfile, Vec<String>), Invalid> {
        let parameters = json!({"cluster_customization": {"node_pools": pools}});
        ComputeProfile::parse("p", &parameters, &zones())
    }

    #[test]
    fn a_profile_of_pks_is_understood() {
        let parameters = json!({
            "azs": [{"name": "z1", "cpi": "abc", "cloud_properties": {"datacenters": []}}],
            "cluster_customization": {
                "control_plane": {"cpu": 2, "memory_in_mb": 4096, "ephemeral_disk_in_mb": 16384, "persistent_disk_in_mb": 16384,
                                  "az_names": ["z1"], "instances": 3},
                "node_pools": [
                    {"name": "tiny", "description": "d", "cpu": 1, "memory_in_mb": 2048, "ephemeral_disk_in_mb": 8192, "az_names": ["z2"],
                     "instances": 2, "max_worker_instances": 5, "node_labels": "type=tiny,size=s"},
                    {"name": "big", "instances": 1, "node_labels": "type=big", "node_taints": "only=big:NoSchedule, x=:NoExecute"},
                ],
            },
        });
        let (profile, not_applied) = ComputeProfile::parse("p", &parameters, &zones()).expect("valid");
        assert_eq!(not_applied, ["azs.z1"]);
        assert_eq!(
            profile.pool_names().into_iter().collect::<Vec<_>>(),
            ["big", "tiny"]
        );
        assert_eq!(profile.pools[0].labels.len(), 2);
        let taints = &profile.pools[1].taints;
        assert_eq!(
            (taints[0].key.as_str(), taints[0].value.as_str()),
            ("only", "big")
        );
        assert_eq!(
            (taints[1].value.as_str(), taints[1].effect.as_str()),
            ("", "NoExecute")
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (bad, words) in [
            (json!([{"name": "a", "cpu": 1}]), "given together"),
            (
                json!([{"name": "a", "node_taints": "k=v:NoSchedule"}]),
                "without taints",
            ),
            (json!([{"name": "a"}, {"name": "a"}]), "twice"),
            (json!([{"name": "A_"}]), "its name"),
            (json!([{"name": "a", "az_names": ["z9"]}]), "the zones are z1, z2"),
            (json!([{"name": "a", "instances": 0}]), "`instances` is 0"),
            (
                json!([{"name": "a", "instances": 6, "max_worker_instances": 5}]),
                "between 1 and 5",
            ),
            (json!([{"name": "a", "node_labels": "x"}]), "KEY=VALUE"),
            (
                json!([{"name": "a", "node_labels": "node-role.kubernetes.io/x=y"}]),
                "Kubernetes' own",
            ),
            (json!([{"name": "a", "node_taints": "k=v"}]), "EFFECT"),
            (json!([{"name": "a", "node_taints": "k=v:Never"}]), "NoSchedule"),
            (json!([{"name": "a", "colour": "red"}]), "colour"),
            (json!([]), "neither"),
        ] {
            let error = pools(bad.clone()).expect_err(words);
            assert!(error.0.contains(words), "{bad}: {error}");
        }
        let masters = json!({"cluster_customization": {"control_plane": {"instances": 2}}});
        let error = ComputeProfile::parse("p", &masters, &zones()).expect_err("two masters");
        assert!(error.0.contains("1, 3 or 5"), "{error}");
    }
}
