//! A plan that makes the machines of a few instances anew and touches nothing else.
//!
//! It stands on an earlier plan, the one that says what these instances run: a repair is no update, so it brings neither what somebody wanted
//! meanwhile nor what a broken update left undone.

use std::collections::{BTreeMap, BTreeSet};

use stolos_base::IdSource;
use stolos_base::ids::{AgentId, InstanceId};

use super::inventory::{Existing, State};
use super::types::{
    Action, DiskPlan, GroupOrder, InstancePlan, MachineRef, Placement, Plan, Reason, Recreate, Stage, Wave,
};

/// Which instances, and what is to become of their disks.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// Instances whose machines are made anew.
    pub instances: BTreeSet<InstanceId>,
    /// Those of them that get an empty disk, because theirs is lost and others have what was on it.
    pub empty_disks: BTreeSet<InstanceId>,
    /// Number of the new plan.
    pub generation: u64,
}

/// Whether an earlier plan says what an instance runs. One whose update did not come to its end is nobody's yet.
#[must_use]
pub fn describes(plan: &Plan, existing: &Existing) -> bool {
    plan.instance(existing.id).is_some_and(|of_plan| {
        existing.applied.as_ref().is_some_and(|applied| {
            existing.update_completed
                && applied.configuration_hash == of_plan.desired.configuration_hash
                && applied.template_hashes == of_plan.desired.template_hashes
        })
    })
}

/// The plan of a repair. Instances that `source` does not know, and those that nobody wants to run, are left alone.
#[must_use]
pub fn repair(
    source: &Plan,
    placement: &Placement,
    existing: &BTreeMap<InstanceId, Existing>,
    wanted: &Repair,
    ids: &IdSource,
) -> Plan {
    let mut instances = Vec::with_capacity(source.instances.len());
    for of_source in &source.instances {
        let Some(now) = existing.get(&of_source.placed.id) else {
            continue;
        };
        let machine = now.machine.as_ref().map(|machine| MachineRef {
            cid: machine.cid.clone(),
            agent_id: machine.agent_id,
        });
        let active = now.disks.iter().find(|disk| disk.active);
        let group = placement.groups.get(&of_source.placed.group);
        let mut plan = InstancePlan {
            placed: of_source.placed.clone(),
            action: Action::Nothing,
            current_machine: machine,
            was_stopped: false,
            new_agent_id: None,
            disk: active.map_or(DiskPlan::None, |disk| DiskPlan::Keep {
                cid: disk.cid.clone(),
            }),
            leftover_disks: Vec::new(),
            desired: of_source.desired.clone(),
            changed_jobs: Vec::new(),
            changed_packages: Vec::new(),
        };
        plan.placed.existing = true;
        plan.placed.ignored = now.ignored;
        if wanted.instances.contains(&now.id) && !now.ignored && now.state == State::Started {
            plan.action = if plan.current_machine.is_some() {
                Action::Recreate {
                    why: vec![Recreate::Dead],
                    changed: Vec::new(),
                }
            } else {
                Action::Create {
                    why: Reason::MissingMachine,
                }
            };
            plan.new_agent_id = Some(AgentId::new(ids));
            let disk = group.and_then(|group| group.persistent_disk.clone());
            if let Some(disk) = disk
                && (wanted.empty_disks.contains(&now.id) || active.is_none())
            {
                plan.leftover_disks = active.map(|lost| lost.cid.clone()).into_iter().collect();
                plan.disk = DiskPlan::Create { disk };
            }
        }
        instances.push(plan);
    }
    let stages = stages(placement, &instances);
    Plan {
        deployment: source.deployment.clone(),
        generation: wanted.generation,
        variables: Vec::new(),
        deletions: Vec::new(),
        vacate_first: Vec::new(),
        instances,
        stages,
    }
}

/// All groups side by side: what is dead stands in nobody's way. Instances with a disk one after another, because what they run may count its members.
fn stages(placement: &Placement, instances: &[InstancePlan]) -> Vec<Stage> {
    let mut groups: Vec<GroupOrder> = Vec::new();
    for (name, group) in &placement.groups {
        let here: Vec<InstanceId> = instances
            .iter()
            .filter(|plan| plan.placed.group == *name && plan.action != Action::Nothing)
            .map(|plan| plan.placed.id)
            .collect();
        if here.is_empty() {
            continue;
        }
        let at_once = if group.persistent_disk.is_some() {
            1
        } else {
            here.len()
        };
        groups.push(GroupOrder {
            group: name.clone(),
            waves: vec![Wave {
                az: None,
                canary: false,
                max_in_flight: u32::try_from(at_once).unwrap_or(u32::MAX),
                watch_time: group.update.update_watch_time,
                instances: here,
            }],
        });
    }
    if groups.is_empty() {
        Vec::new()
    } else {
        vec![Stage { groups }]
    }
}
