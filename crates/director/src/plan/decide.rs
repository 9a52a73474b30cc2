//! What changes on each instance, and why.

use std::collections::BTreeMap;
use std::net::IpAddr;

use stolos_base::IdSource;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::{Lifecycle, PersistentDisk};

use super::inventory::{Applied, AppliedJob, Existing, ExistingDisk, Inventory, Settings, State};
use super::order;
use super::types::{
    Action, Change, Deletion, DiskPlan, GroupPlacement, InstancePlan, MachineRef, Options, Placed, Placement,
    Plan, Reason, Recreate, Rendered,
};

/// Compares what should be with what is, and puts the work in order.
///
/// `rendered` has the digests of every placed instance; an instance without them counts as one whose templates are
/// empty. Agent ids of new machines come from `ids`.
#[must_use]
pub fn decide(
    placement: &Placement,
    rendered: &Rendered,
    inventory: &Inventory,
    options: &Options,
    ids: &IdSource,
) -> Plan {
    let existing: BTreeMap<InstanceId, &Existing> = inventory
        .instances
        .iter()
        .map(|instance| (instance.id, instance))
        .collect();
    let mut instances = Vec::with_capacity(placement.instances.len());
    for placed in &placement.instances {
        let Some(group) = placement.groups.get(&placed.group) else {
            continue;
        };
        instances.push(instance(
            placed,
            group,
            existing.get(&placed.id).copied(),
            rendered,
            options,
            ids,
        ));
    }
    let deletions = placement
        .obsolete
        .iter()
        .filter_map(|(id, why)| Some(deletion(existing.get(id).copied()?, *why)))
        .collect();
    let vacate_first = vacated(&instances, &existing);
    let initial = |group: &str| !inventory.instances.iter().any(|instance| instance.group == group);
    let stages = order::stages(placement, &instances, options, initial);
    Plan {
        deployment: placement.deployment.clone(),
        generation: options.generation,
        variables: placement.variables.clone(),
        deletions,
        vacate_first,
        instances,
        stages,
    }
}

fn deletion(existing: &Existing, why: Reason) -> Deletion {
    Deletion {
        id: existing.id,
        group: existing.group.clone(),
        index: existing.index,
        machine: machine_ref(existing),
        disks: existing.disks.iter().map(|disk| disk.cid.clone()).collect(),
        addresses: existing.addresses.clone(),
        why,
    }
}

fn machine_ref(existing: &Existing) -> Option<MachineRef> {
    existing.machine.as_ref().map(|machine| MachineRef {
        cid: machine.cid.clone(),
        agent_id: machine.agent_id,
    })
}

/// Instances that stay but whose machine has an address that another instance is given.
fn vacated(instances: &[InstancePlan], existing: &BTreeMap<InstanceId, &Existing>) -> Vec<InstanceId> {
    let mut holders: BTreeMap<IpAddr, InstanceId> = BTreeMap::new();
    for plan in instances.iter().filter(|plan| plan.current_machine.is_some()) {
        if let Some(existing) = existing.get(&plan.placed.id) {
            holders.extend(
                existing
                    .addresses
                    .values()
                    .map(|address| (*address, plan.placed.id)),
            );
        }
    }
    let mut vacated: Vec<InstanceId> = instances
        .iter()
        .flat_map(|plan| {
            plan.placed
                .networks
                .values()
                .map(|network| (network.ip, plan.placed.id))
        })
        .filter_map(|(address, id)| holders.get(&address).copied().filter(|holder| *holder != id))
        .collect();
    vacated.sort_unstable();
    vacated.dedup();
    vacated
}

fn instance(
    placed: &Placed,
    group: &GroupPlacement,
    existing: Option<&Existing>,
    rendered: &Rendered,
    options: &Options,
    ids: &IdSource,
) -> InstancePlan {
    let desired = desired(placed, group, rendered, options);
    let disks = existing.map_or(&[][..], |existing| &existing.disks);
    let (disk, leftover_disks) = disk_plan(group.persistent_disk.as_ref(), disks);
    let applied = existing.and_then(|existing| existing.applied.as_ref());
    let changed_jobs = changed_jobs(applied, &desired);
    let changed_packages = changed_packages(applied, &desired);
    let mut plan = InstancePlan {
        placed: placed.clone(),
        action: Action::Nothing,
        current_machine: existing.and_then(machine_ref),
        was_stopped: applied.is_some_and(|applied| applied.state != State::Started),
        new_agent_id: None,
        disk,
        leftover_disks,
        desired,
        changed_jobs,
        changed_packages,
    };
    if let Some(existing) = existing.filter(|existing| existing.ignored) {
        untouched(&mut plan, existing);
        return plan;
    }
    plan.action = action(&plan, group, existing, options);
    if plan.action == Action::Nothing && plan.current_machine.is_none() {
        // Without a machine nothing is attached; the disk waits for the next one.
        plan.disk = keep_or_none(disks);
    }
    if plan.action.makes_machine() {
        plan.new_agent_id = Some(AgentId::new(ids));
    }
    plan
}

/// An ignored instance stays exactly as it is.
fn untouched(plan: &mut InstancePlan, existing: &Existing) {
    plan.disk = keep_or_none(&existing.disks);
    plan.leftover_disks = Vec::new();
    plan.changed_jobs = Vec::new();
    plan.changed_packages = Vec::new();
    if let Some(applied) = &existing.applied {
        plan.desired = applied.clone();
    }
}

fn keep_or_none(disks: &[ExistingDisk]) -> DiskPlan {
    disks
        .iter()
        .find(|disk| disk.active)
        .map_or(DiskPlan::None, |disk| DiskPlan::Keep {
            cid: disk.cid.clone(),
        })
}

fn desired(placed: &Placed, group: &GroupPlacement, rendered: &Rendered, options: &Options) -> Applied {
    Applied {
        state: placed.state,
        jobs: group
            .jobs
            .iter()
            .map(|job| AppliedJob {
                name: job.name.clone(),
                release: job.release.clone(),
                fingerprint: job.fingerprint.clone(),
            })
            .collect(),
        packages: group.packages.clone(),
        configuration_hash: rendered
            .configuration_hashes
            .get(&placed.id)
            .cloned()
            .unwrap_or_default(),
        template_hashes: rendered
            .template_hashes
            .get(&placed.id)
            .cloned()
            .unwrap_or_default(),
        settings: Settings {
            tags: group.tags.clone(),
            director: options.director_settings.clone(),
        },
    }
}

fn disk_plan(wanted: Option<&PersistentDisk>, disks: &[ExistingDisk]) -> (DiskPlan, Vec<String>) {
    let active = disks.iter().find(|disk| disk.active);
    let leftover = disks
        .iter()
        .filter(|disk| active.is_none_or(|active| active.cid != disk.cid))
        .map(|disk| disk.cid.clone())
        .collect();
    let plan = match (active, wanted) {
        (None, None) => DiskPlan::None,
        (None, Some(wanted)) => DiskPlan::Create { disk: wanted.clone() },
        (Some(active), None) => DiskPlan::Orphan {
            cid: active.cid.clone(),
        },
        // The name of the type is for people; another name for the same disk changes nothing.
        (Some(active), Some(wanted))
            if active.disk.size_mib == wanted.size_mib
                && active.disk.cloud_properties == wanted.cloud_properties =>
        {
            DiskPlan::Keep {
                cid: active.cid.clone(),
            }
        }
        (Some(active), Some(wanted)) => DiskPlan::Migrate {
            from: active.cid.clone(),
            disk: wanted.clone(),
        },
    };
    (plan, leftover)
}

fn action(
    plan: &InstancePlan,
    group: &GroupPlacement,
    existing: Option<&Existing>,
    options: &Options,
) -> Action {
    let Some(existing) = existing else {
        return if group.lifecycle == Lifecycle::Errand {
            Action::Nothing
        } else {
            Action::Create {
                why: Reason::NewInstance,
            }
        };
    };
    let Some(machine) = &existing.machine else {
        let none = group.lifecycle == Lifecycle::Errand || plan.placed.state == State::Detached;
        // An instance that was chosen but never got its machine is as good as new.
        let why = if existing.applied.is_some() {
            Reason::MissingMachine
        } else {
            Reason::NewInstance
        };
        return if none {
            Action::Nothing
        } else {
            Action::Create { why }
        };
    };
    if plan.placed.state == State::Detached {
        return Action::Detach;
    }
    let changed = changes(plan, existing);
    let asked = options.recreate || options.recreate_instances.contains(&existing.id);
    let (is, should) = (&machine.made_as, &plan.placed.machine);
    let why: Vec<Recreate> = [
        (Recreate::Asked, asked),
        (Recreate::Stemcell, is.stemcell != should.stemcell),
        (Recreate::Az, is.az != should.az),
        (
            Recreate::CloudProperties,
            is.cloud_properties != should.cloud_properties,
        ),
        (Recreate::Env, is.env != should.env),
        (Recreate::Network, is.networks != should.networks),
    ]
    .into_iter()
    .filter_map(|(why, is_so)| is_so.then_some(why))
    .collect();
    if !why.is_empty() {
        return Action::Recreate { why, changed };
    }
    if changed.is_empty() {
        Action::Nothing
    } else if changed
        .iter()
        .all(|change| matches!(change, Change::Tags | Change::Settings))
    {
        Action::UpdateSettings { changed }
    } else {
        Action::Update { changed }
    }
}

fn changes(plan: &InstancePlan, existing: &Existing) -> Vec<Change> {
    let desired = &plan.desired;
    let disk = matches!(
        plan.disk,
        DiskPlan::Create { .. } | DiskPlan::Migrate { .. } | DiskPlan::Orphan { .. }
    );
    let Some(applied) = &existing.applied else {
        let mut changed = vec![Change::Dirty];
        changed.extend(disk.then_some(Change::PersistentDisk));
        return changed;
    };
    [
        (Change::Dirty, !existing.update_completed),
        (Change::Job, !same_jobs(applied, desired)),
        (Change::Packages, !same_packages(applied, desired)),
        (
            Change::Configuration,
            applied.configuration_hash != desired.configuration_hash
                || applied.template_hashes != desired.template_hashes,
        ),
        (Change::PersistentDisk, disk),
        (Change::State, applied.state != desired.state),
        (Change::Tags, applied.settings.tags != desired.settings.tags),
        (
            Change::Settings,
            applied.settings.director != desired.settings.director,
        ),
    ]
    .into_iter()
    .filter_map(|(change, is_so)| is_so.then_some(change))
    .collect()
}

/// A job is what its fingerprint says: a new version of a release that holds the same job changes nothing.
fn same_jobs(applied: &Applied, desired: &Applied) -> bool {
    let identity = |list: &[AppliedJob]| -> Vec<(String, String)> {
        list.iter()
            .map(|job| (job.name.clone(), job.fingerprint.clone()))
            .collect()
    };
    identity(&applied.jobs) == identity(&desired.jobs)
}

/// The same for packages and their digests.
fn same_packages(applied: &Applied, desired: &Applied) -> bool {
    applied.packages.len() == desired.packages.len()
        && applied.packages.iter().all(|(name, package)| {
            desired
                .packages
                .get(name)
                .is_some_and(|other| other.digest == package.digest && other.version == package.version)
        })
}

fn changed_jobs(applied: Option<&Applied>, desired: &Applied) -> Vec<String> {
    let same = |name: &str| {
        applied.is_some_and(|applied| {
            let find = |list: &[AppliedJob]| {
                list.iter()
                    .find(|job| job.name == name)
                    .map(|job| job.fingerprint.clone())
            };
            applied.template_hashes.get(name) == desired.template_hashes.get(name)
                && find(&applied.jobs) == find(&desired.jobs)
        })
    };
    desired
        .jobs
        .iter()
        .map(|job| job.name.clone())
        .filter(|name| !same(name))
        .collect()
}

fn changed_packages(applied: Option<&Applied>, desired: &Applied) -> Vec<String> {
    let digest = |name: &str| applied.and_then(|applied| Some(applied.packages.get(name)?.digest.clone()));
    desired
        .packages
        .iter()
        .filter(|(name, package)| digest(name).as_ref() != Some(&package.digest))
        .map(|(name, _)| name.clone())
        .collect()
}
