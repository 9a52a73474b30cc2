//! The shape of a cluster: its groups of machines, from plan, compute profile and the cluster's own numbers. Pure.
//!
//! Everything that counts or renders machines asks this, so that a quota, a capacity check and the manifest never disagree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plans::{MachineSize, Plan};
use crate::settings::Settings;

/// The group of all masters.
pub const MASTERS: &str = "master";
/// The group of workers where there is no compute profile; with one, pools are `worker-POOL`, as in PKS.
pub const WORKERS: &str = "worker";
/// Where machines are when nothing says otherwise: clusters of before there were zones.
const FIRST_ZONE: &str = "z1";

/// Machines that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of the instance group; nodes are `NAME-INDEX`.
    pub name: String,
    /// How many.
    pub instances: u32,
    /// How large each is.
    pub size: MachineSize,
    /// Where they are, spread evenly.
    pub zones: Vec<String>,
    /// Labels of their nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints of their nodes.
    pub taints: Vec<Taint>,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// All groups of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The masters.
    pub masters: Group,
    /// The workers: one group, or one for each pool of a compute profile.
    pub pools: Vec<Group>,
}

/// What machines take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Processors.
    pub cpu: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.memory_mib += other.memory_mib;
    }
}

impl Shape {
    /// The shape of a cluster of `plan` with so many workers. With a compute profile, its pools and their numbers hold instead.
    #[must_use]
    pub fn of(plan: &Plan, workers: u32, settings: &Settings) -> Self {
        let mut masters = Group {
            name: MASTERS.to_owned(),
            instances: plan.master_instances,
            size: plan.master,
            zones: zones(&plan.master_zones),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        };
        if masters.instances == 1 {
            masters.zones.truncate(1);
        }
        let mut pools = vec![Group {
            name: WORKERS.to_owned(),
            instances: workers,
            size: plan.worker,
            zones: zones(&plan.worker_zones),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }];
        if let Some(profile) = &settings.compute_profile {
            profile.apply(&mut masters, &mut pools, &settings.pool_instances);
        }
        if let Some(instances) = settings.master_instances {
            masters.instances = instances;
        }
        Self { masters, pools }
    }

    /// All groups, masters first.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.masters).chain(&self.pools)
    }

    /// The number of workers.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.pools.iter().map(|pool| pool.instances).sum()
    }

    /// What all machines take together.
    #[must_use]
    pub fn amount(&self) -> Amount {
        let mut sum = Amount::default();
        for group in self.groups() {
            sum += Amount {
                cpu: u64::from(group.instances) * u64::from(group.size.cpu),
                memory_mib: u64::from(group.instances) * u64::from(group.size.ram),
            };
        }
        sum
    }

    /// The processors of the largest machine.
    #[must_use]
    pub fn widest(&self) -> u32 {
        self.groups().map(|group| group.size.cpu).max().unwrap_or(0)
    }
}

fn zones(configured: &[String]) -> Vec<String> {
    if configured.is_empty() {
        vec![FIRST_ZONE.to_owned()]
    } else {
        configured.to_vec()
    }
}
