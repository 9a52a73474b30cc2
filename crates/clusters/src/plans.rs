//! Plans: the sizes that an operator offers.
//!
//! Read from the configuration of `stolosd` and immutable while it runs. Ids 1–4 are those that PKS fixed, because scripts
//! name them; one of them has a digit too many there and is kept so.

use serde::{Deserialize, Serialize};

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

/// A plan as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Kubernetes version, without `v`; one that the release offers.
    pub kubernetes_version: String,
    /// Size of masters; a persistent disk is needed, etcd lives there.
    pub master: MachineSize,
    /// Workers when the request names no number.
    pub worker_instances: u32,
    /// The most workers that a request may ask for.
    pub max_worker_instances: u32,
    /// Size of workers.
    pub worker: MachineSize,
    /// Whether pods may be privileged.
    #[serde(default)]
    pub allow_privileged_containers: bool,
    /// How nodes are drained, unless a cluster has settings of its own.
    #[serde(default)]
    pub drain: Drain,
    /// Workers that an update changes at the same time.
    #[serde(default = "one")]
    pub worker_max_in_flight: u32,
}

const fn one() -> u32 {
    1
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
    #[error("no plan is configured")]
    None,
    /// A name is empty or given twice.
    #[error("plan name `{0}` is empty or given twice")]
    Name(String),
    /// A number is outside of its range.
    #[error("plan `{plan}`: {problem}")]
    Number {
        /// The plan.
        plan: String,
        /// What is wrong.
        problem: String,
    },
}

/// The plans on offer, in the operator's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plans(Vec<(String, Plan)>);

impl Plans {
    /// Checks the configured plans and gives them their ids.
    ///
    /// # Errors
    /// [`InvalidPlans`] for the first plan that does not make sense.
    pub fn new(plans: Vec<Plan>) -> Result<Self, InvalidPlans> {
        if plans.is_empty() {
            return Err(InvalidPlans::None);
        }
        let mut checked: Vec<(String, Plan)> = Vec::with_capacity(plans.len());
        for (position, plan) in plans.into_iter().enumerate() {
            if plan.name.trim().is_empty() || checked.iter().any(|(_, other)| other.name == plan.name) {
                return Err(InvalidPlans::Name(plan.name));
            }
            check(&plan).map_err(|problem| InvalidPlans::Number {
                plan: plan.name.clone(),
                problem,
            })?;
            let id = FIXED_IDS
                .get(position)
                .map_or_else(|| format!("plan-{}", position + 1), |id| (*id).to_owned());
            checked.push((id, plan));
        }
        Ok(Self(checked))
    }

    /// All plans with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Plan)> {
        self.0.iter().map(|(id, plan)| (id.as_str(), plan))
    }

    /// The plan of that name or, as old clients send it, of that id.
    #[must_use]
    pub fn find(&self, name_or_id: &str) -> Option<&Plan> {
        self.0
            .iter()
            .find(|(id, plan)| plan.name == name_or_id || id.eq_ignore_ascii_case(name_or_id))
            .map(|(_, plan)| plan)
    }
}

fn check(plan: &Plan) -> Result<(), String> {
    if plan.worker_instances == 0 || plan.worker_instances > plan.max_worker_instances {
        return Err(format!(
            "worker_instances is {}, which is not between 1 and max_worker_instances ({})",
            plan.worker_instances, plan.max_worker_instances
        ));
    }
    // A segment is a /24: the gateway and the masters need addresses too.
    const MOST_WORKERS: u32 = 240;
    if plan.max_worker_instances > MOST_WORKERS {
        return Err(format!(
            "max_worker_instances is {}, more than the {MOST_WORKERS} that a segment holds",
            plan.max_worker_instances
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
    for (what, size) in [("master", plan.master), ("worker", plan.worker)] {
        if size.cpu == 0 || size.ram < 256 || size.ephemeral_disk < 512 {
            return Err(format!(
                "{what} has less than 1 cpu, 256 MiB ram or 512 MiB ephemeral_disk"
            ));
        }
    }
    Ok(())
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
            kubernetes_version: "1.37.1".to_owned(),
            master: size,
            worker_instances: 1,
            max_worker_instances: 5,
            worker: size,
            allow_privileged_containers: true,
            drain: Drain::default(),
            worker_max_in_flight: 1,
        }
    }

    #[test]
    fn plans_are_found_by_name_and_by_id() {
        let plans = Plans::new(["a", "b", "c", "d", "e"].map(plan).to_vec()).expect("valid plans");
        assert_eq!(plans.find("b").map(|p| p.name.as_str()), Some("b"));
        assert_eq!(
            plans
                .find("8a0e21a8-8072-4d80-b365-d1f502085560")
                .map(|p| p.name.as_str()),
            Some("a")
        );
        assert_eq!(plans.find("plan-5").map(|p| p.name.as_str()), Some("e"));
        assert_eq!(plans.find("f"), None);
    }

    #[test]
    fn senseless_plans_are_refused() {
        assert_eq!(Plans::new(vec![]), Err(InvalidPlans::None));
        assert_eq!(
            Plans::new(vec![plan("a"), plan("a")]),
            Err(InvalidPlans::Name("a".into()))
        );
        let mut no_disk = plan("a");
        no_disk.master.persistent_disk = 0;
        assert!(matches!(
            Plans::new(vec![no_disk]),
            Err(InvalidPlans::Number { .. })
        ));
        let mut too_many = plan("a");
        too_many.worker_instances = 6;
        assert!(matches!(
            Plans::new(vec![too_many]),
            Err(InvalidPlans::Number { .. })
        ));
    }
}
