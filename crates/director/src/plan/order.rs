//! The order of the update (bosh.md section 5.5, number 10): groups in the order of the manifest, those with `serial:
//! false` side by side with their neighbors of the same kind; in a group zone by zone, canaries in the first zone only.
//!
//! Other than BOSH's, groups that are stopped or started as a whole are not taken one by one, nor zone by zone: there is nothing to be careful with, and a
//! member of a quorum that waits for the others would wait in vain.

use stolos_base::ids::InstanceId;

use super::types::{Action, GroupOrder, GroupPlacement, InstancePlan, Options, Placement, Stage, Wave};

/// So many instances are stopped or started together at least: more than any quorum has.
const TOGETHER: u32 = 8;

/// `initial` says whether a group had no instance before.
pub(super) fn stages(
    placement: &Placement,
    instances: &[InstancePlan],
    options: &Options,
    initial: impl Fn(&str) -> bool,
) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut parallel = false;
    for (name, group) in &placement.groups {
        let order = GroupOrder {
            group: name.clone(),
            waves: waves(name, group, instances, options, initial(name)),
        };
        let side_by_side = !group.update.serial;
        // A group without work still separates its neighbors when it is serial, as in BOSH.
        match stages.last_mut() {
            Some(stage) if parallel && side_by_side => stage.groups.push(order),
            _ => stages.push(Stage { groups: vec![order] }),
        }
        parallel = side_by_side;
    }
    for stage in &mut stages {
        stage.groups.retain(|group| !group.waves.is_empty());
    }
    stages.retain(|stage| !stage.groups.is_empty());
    stages
}

fn waves(
    name: &str,
    group: &GroupPlacement,
    instances: &[InstancePlan],
    options: &Options,
    initial: bool,
) -> Vec<Wave> {
    let all: Vec<&InstancePlan> = instances
        .iter()
        .filter(|plan| plan.placed.group == name)
        .collect();
    let mut changing: Vec<&InstancePlan> = all
        .iter()
        .copied()
        .filter(|plan| plan.action != Action::Nothing)
        .collect();
    changing.sort_by_key(|plan| (!plan.placed.bootstrap, plan.placed.index));

    let update = &group.update;
    let together = options.together;
    let max_in_flight = match options.max_in_flight {
        Some(asked) => asked.of(all.len(), 1),
        None if together => update.max_in_flight.of(all.len(), 1).max(TOGETHER),
        None => update.max_in_flight.of(all.len(), 1),
    };
    let canaries = options.canaries.unwrap_or(update.canaries).of(all.len(), 0);
    let mut canaries = if together && options.canaries.is_none() {
        0
    } else {
        usize::try_from(canaries).unwrap_or(usize::MAX)
    };
    let at_once = group.azs.is_empty() || together || (initial && update.initial_deploy_az_parallel);
    let zones: Vec<Option<&String>> = if at_once {
        vec![None]
    } else {
        group.azs.iter().map(Some).collect()
    };

    let mut waves = Vec::new();
    for zone in zones {
        let here: Vec<InstanceId> = changing
            .iter()
            .filter(|plan| zone.is_none() || plan.placed.az.as_ref() == zone)
            .map(|plan| plan.placed.id)
            .collect();
        if here.is_empty() {
            continue;
        }
        let (first, rest) = here.split_at(canaries.min(here.len()));
        // Only the first zone with work has canaries.
        canaries = 0;
        let wave = |instances: &[InstanceId], canary: bool| Wave {
            az: zone.cloned(),
            canary,
            max_in_flight,
            watch_time: if canary {
                update.canary_watch_time
            } else {
                update.update_watch_time
            },
            instances: instances.to_vec(),
        };
        waves.extend((!first.is_empty()).then(|| wave(first, true)));
        waves.extend((!rest.is_empty()).then(|| wave(rest, false)));
    }
    waves
}
