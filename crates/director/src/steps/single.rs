//! The steps of a deploy, one by one: each works on one instance, machine or disk.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use stolos_base::ids::InstanceId;
use stolos_flow::{Interrupt, Step, StepRef};
use stolos_manifest::WatchTime;

use super::instance::{self, Next, Stopping, short_name};
use super::{Attempt, Work, disk, machine, step};
use crate::db::inventory;
use crate::error::{Error, Result};
use crate::plan::{Action, Deletion, DiskPlan, InstancePlan, MachineRef, State};
use crate::prepare::{Kept, LeftDisk, LeftVm};

/// For CPI calls: another process does the work and cannot be told to stop, so it is waited for when the task is
/// cancelled; machines take seconds.
pub(crate) const CPI_GRACE: Interrupt = Interrupt::Within(Duration::from_secs(120));
/// For agents: they are told to cancel, and that is quick.
pub(crate) const AGENT_GRACE: Interrupt = Interrupt::Within(Duration::from_secs(15));
/// How long drain and life-cycle scripts may take; BOSH sets no limit at all.
pub(crate) const SCRIPT_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// What the steps of a deploy have.
pub(crate) type Deploy = Arc<Work<Kept>>;

pub(crate) fn stop_step(work: &Deploy, plan: &InstancePlan, next: Next) -> Step<()> {
    let id = plan.placed.id;
    step(work, format!("Stop {}", label(plan)), move |attempt| async move {
        let plan = attempt.instance(id)?;
        inventory::mark_dirty(&attempt.app.db, attempt.ctx.fence(), id).await?;
        let Some(machine) = &plan.current_machine else {
            return Ok(());
        };
        if attempt.what.unresponsive.contains(&id) {
            attempt.app.tasks.warn(
                attempt.flow,
                &format!("{} does not answer and is not stopped", plan.placed.name()),
            );
            return Ok(());
        }
        let spec = match next {
            Next::Update => Some(attempt.spec(plan, None)?),
            _ => None,
        };
        let instance = short_name(&plan.placed);
        let stopping = Stopping {
            machine,
            instance: &instance,
            next,
            skip_drain: skips_drain(&attempt.what, plan),
            spec,
        };
        instance::stop(&attempt, stopping).await
    })
    .interrupt(AGENT_GRACE)
    .deadline(SCRIPT_LIMIT)
}

/// Deletes the machine of an instance that stays; its disk is detached first.
pub(crate) fn delete_vm_step(work: &Deploy, plan: &InstancePlan) -> Step<()> {
    let id = plan.placed.id;
    step(
        work,
        format!("Delete VM {}", label(plan)),
        move |attempt| async move {
            let plan = attempt.instance(id)?;
            let Some(machine) = &plan.current_machine else {
                return Ok(());
            };
            let kept = match &plan.disk {
                DiskPlan::Keep { cid } | DiskPlan::Migrate { from: cid, .. } | DiskPlan::Orphan { cid } => {
                    Some(cid)
                }
                DiskPlan::None | DiskPlan::Create { .. } => None,
            };
            let responsive = !attempt.what.unresponsive.contains(&id);
            let disks: Vec<&String> = kept.into_iter().chain(&plan.leftover_disks).collect();
            release_machine(&attempt, machine, &short_name(&plan.placed), &disks, responsive).await?;
            if let DiskPlan::Orphan { cid } = &plan.disk {
                inventory::orphan_disk(&attempt.app.db, attempt.ctx.fence(), cid).await?;
            }
            if let DiskPlan::Create { .. } = &plan.disk {
                // A lost disk must not be taken for the instance's own beside the one that takes its place.
                for cid in &plan.leftover_disks {
                    inventory::orphan_disk(&attempt.app.db, attempt.ctx.fence(), cid).await?;
                }
            }
            Ok(())
        },
    )
    .interrupt(CPI_GRACE)
}

pub(crate) fn create_vm_step(work: &Deploy, plan: &InstancePlan) -> Step<String> {
    let id = plan.placed.id;
    step(
        work,
        format!("Create VM {}", label(plan)),
        move |attempt| async move {
            let plan = attempt.instance(id)?;
            let what = &attempt.what;
            let stemcell = &plan.placed.machine.stemcell;
            let stemcell = what
                .stemcells
                .get(&format!("{}/{}", stemcell.name, stemcell.version))
                .ok_or_else(|| Error::NoStemcell(format!("{}/{}", stemcell.name, stemcell.version)))?;
            let disks = match &plan.disk {
                DiskPlan::Keep { cid } | DiskPlan::Migrate { from: cid, .. } => vec![cid.clone()],
                DiskPlan::None | DiskPlan::Create { .. } | DiskPlan::Orphan { .. } => Vec::new(),
            };
            let group = what.placement.groups.get(&plan.placed.group);
            let no_tags = IndexMap::new();
            let wanted = machine::Wanted {
                agent: new_agent(plan)?,
                deployment: &what.plan.deployment,
                placed: &plan.placed,
                spec: &plan.placed.machine,
                stemcell,
                tags: group.map_or(&no_tags, |group| &group.tags),
                disks: &disks,
            };
            let values = attempt.values().await?;
            machine::create(&attempt, &wanted, &values).await
        },
    )
    .interrupt(CPI_GRACE)
    .deadline(work.app.config.agent_limit + SCRIPT_LIMIT)
}

pub(crate) fn create_disk_step(work: &Deploy, plan: &InstancePlan, active: bool) -> Step<String> {
    let id = plan.placed.id;
    step(
        work,
        format!("Create disk {}", label(plan)),
        move |attempt| async move {
            let plan = attempt.instance(id)?;
            let (DiskPlan::Create { disk } | DiskPlan::Migrate { disk, .. }) = &plan.disk else {
                return Err(Error::Bug(format!(
                    "the plan makes no disk for {}",
                    plan.placed.name()
                )));
            };
            let name = short_name(&plan.placed);
            disk::create(&attempt, &attempt.what.plan.deployment, id, &name, disk, active).await
        },
    )
    .interrupt(CPI_GRACE)
}

pub(crate) fn configure_step(
    work: &Deploy,
    plan: &InstancePlan,
    cid_of: Option<StepRef<String>>,
) -> Step<()> {
    let id = plan.placed.id;
    step(work, format!("Configure {}", label(plan)), move |attempt| {
        let cid_of = cid_of.clone();
        async move {
            let plan = attempt.instance(id)?;
            let machine = current_machine(&attempt, plan, cid_of.as_ref())?;
            instance::configure(&attempt, plan, &machine).await
        }
    })
    .interrupt(AGENT_GRACE)
    .deadline(SCRIPT_LIMIT)
}

pub(crate) fn start_step(
    work: &Deploy,
    plan: &InstancePlan,
    watch: WatchTime,
    cid_of: Option<StepRef<String>>,
) -> Step<()> {
    let id = plan.placed.id;
    step(work, format!("Start {}", label(plan)), move |attempt| {
        let cid_of = cid_of.clone();
        async move {
            let plan = attempt.instance(id)?;
            let machine = current_machine(&attempt, plan, cid_of.as_ref())?;
            if plan.desired.state == State::Started {
                instance::start(&attempt, plan, &machine, watch).await?;
            }
            complete(&attempt, plan, Some(&machine)).await
        }
    })
    .interrupt(AGENT_GRACE)
    .deadline(SCRIPT_LIMIT)
}

pub(crate) fn settings_step(work: &Deploy, plan: &InstancePlan, settings_changed: bool) -> Step<()> {
    let id = plan.placed.id;
    step(
        work,
        format!("Update settings {}", label(plan)),
        move |attempt| async move {
            let plan = attempt.instance(id)?;
            let machine = current_machine(&attempt, plan, None)?;
            let what = &attempt.what;
            let no_tags = IndexMap::new();
            let tags = what
                .placement
                .groups
                .get(&plan.placed.group)
                .map_or(&no_tags, |group| &group.tags);
            machine::describe(&attempt, &machine.cid, &what.plan.deployment, &plan.placed, tags).await?;
            if settings_changed {
                instance::update_settings(&attempt, plan, &machine).await?;
            }
            Ok(())
        },
    )
    .interrupt(AGENT_GRACE)
}

pub(crate) fn complete_step(work: &Deploy, plan: &InstancePlan) -> Step<()> {
    let id = plan.placed.id;
    step(
        work,
        format!("Record {}", label(plan)),
        move |attempt| async move {
            let plan = attempt.instance(id)?;
            let machine = match plan.action {
                Action::Detach => None,
                _ => plan.current_machine.clone(),
            };
            complete(&attempt, plan, machine.as_ref()).await
        },
    )
    .interrupt(CPI_GRACE)
}

/// `group/index`, as step names have it.
pub(crate) fn label(plan: &InstancePlan) -> String {
    format!("{}/{}", plan.placed.group, plan.placed.index)
}

pub(crate) fn has_machine(plan: &InstancePlan) -> bool {
    plan.action.makes_machine() || (plan.current_machine.is_some() && plan.action != Action::Detach)
}

pub(crate) fn new_agent(plan: &InstancePlan) -> Result<stolos_base::ids::AgentId> {
    plan.new_agent_id.ok_or_else(|| {
        Error::Bug(format!(
            "the plan has no agent for the new machine of {}",
            plan.placed.name()
        ))
    })
}

pub(crate) fn output(attempt: &Attempt<Kept>, of: &StepRef<String>) -> Result<String> {
    attempt.ctx.output(of).map_err(|error| Error::Bug(error.message))
}

/// The machine that the instance has now: the new one, or the one that it had before.
pub(crate) fn current_machine(
    attempt: &Attempt<Kept>,
    plan: &InstancePlan,
    cid_of: Option<&StepRef<String>>,
) -> Result<MachineRef> {
    match (cid_of, &plan.current_machine) {
        (Some(cid), _) => Ok(MachineRef {
            cid: output(attempt, cid)?,
            agent_id: new_agent(plan)?,
        }),
        (None, Some(machine)) => Ok(machine.clone()),
        (None, None) => Err(Error::Bug(format!("{} has no machine", plan.placed.name()))),
    }
}

pub(crate) fn deletion_of(attempt: &Attempt<Kept>, id: InstanceId) -> Result<&Deletion> {
    attempt
        .what
        .plan
        .deletions
        .iter()
        .find(|deletion| deletion.id == id)
        .ok_or_else(|| Error::Bug(format!("the plan does not delete {id}")))
}

pub(crate) fn skips_drain(kept: &Kept, plan: &InstancePlan) -> bool {
    let label = label(plan);
    let mut words = kept.skip_drain.iter();
    plan.was_stopped || words.any(|word| word == "*" || *word == plan.placed.group || *word == label)
}

/// Notes that the instance is what the plan wants, and gives up disks that are left over from before.
pub(crate) async fn complete(
    attempt: &Attempt<Kept>,
    plan: &InstancePlan,
    machine: Option<&MachineRef>,
) -> Result<()> {
    let fence = attempt.ctx.fence();
    for cid in &plan.leftover_disks {
        if let Some(machine) = machine {
            let instance = short_name(&plan.placed);
            let place = disk::Place {
                agent: machine.agent_id,
                vm: &machine.cid,
                instance: &instance,
            };
            disk::detach(attempt, &place, cid).await?;
        }
        inventory::orphan_disk(&attempt.app.db, fence, cid).await?;
    }
    inventory::complete(&attempt.app.db, fence, plan.placed.id, &plan.desired).await
}

pub(crate) async fn stop_deleted(attempt: &Attempt<Kept>, deletion: &Deletion) -> Result<()> {
    inventory::mark_dirty(&attempt.app.db, attempt.ctx.fence(), deletion.id).await?;
    let Some(machine) = &deletion.machine else {
        return Ok(());
    };
    if attempt.what.unresponsive.contains(&deletion.id) {
        return Ok(());
    }
    let words = [
        deletion.group.clone(),
        format!("{}/{}", deletion.group, deletion.index),
        "*".to_owned(),
    ];
    let stopping = Stopping {
        machine,
        instance: &format!("{}/{}", deletion.group, deletion.id),
        next: Next::Delete,
        skip_drain: attempt.what.skip_drain.iter().any(|word| words.contains(word)),
        spec: None,
    };
    instance::stop(attempt, stopping).await
}

/// Deletes the machine, gives the disks up, frees the addresses.
pub(crate) async fn delete_instance(attempt: &Attempt<Kept>, deletion: &Deletion) -> Result<()> {
    let (db, fence) = (&attempt.app.db, attempt.ctx.fence());
    if let Some(machine) = &deletion.machine {
        let disks: Vec<&String> = deletion.disks.iter().collect();
        let responsive = !attempt.what.unresponsive.contains(&deletion.id);
        let name = format!("{}/{}", deletion.group, deletion.id);
        release_machine(attempt, machine, &name, &disks, responsive).await?;
    }
    for cid in &deletion.disks {
        inventory::orphan_disk(db, fence, cid).await?;
    }
    inventory::delete_instance(db, fence, deletion.id).await
}

/// Takes the disks off a machine as orderly as it allows, and deletes it.
pub(crate) async fn release_machine<T>(
    attempt: &Attempt<T>,
    machine: &MachineRef,
    instance: &str,
    disks: &[&String],
    responsive: bool,
) -> Result<()> {
    // A machine's end detaches what it has; where somebody answers, file systems are unmounted in order first.
    if responsive && !disks.is_empty() && attempt.machines().has_vm(&machine.cid).await? {
        for cid in disks {
            let place = disk::Place {
                agent: machine.agent_id,
                vm: &machine.cid,
                instance,
            };
            disk::detach(attempt, &place, cid).await?;
        }
    }
    machine::delete(attempt, machine.agent_id, &machine.cid).await
}

pub(crate) async fn remove_left_vm(attempt: &Attempt<Kept>, left: &LeftVm) -> Result<()> {
    let unknown = machine::Unknown {
        agent: left.agent,
        call_id: &left.call_id,
        cid: left.cid.as_deref(),
        made_as: &left.made_as,
    };
    machine::delete_unknown(attempt, &unknown).await
}

pub(crate) async fn remove_left_disk(attempt: &Attempt<Kept>, left: &LeftDisk) -> Result<()> {
    remove_unknown_disk(attempt, left).await
}

/// Deletes a disk of which it is not known whether it was made: the same call gives the one that is there or makes it.
pub(crate) async fn remove_unknown_disk<T>(attempt: &Attempt<T>, left: &LeftDisk) -> Result<()> {
    let machines = attempt.machines();
    if let Some(cid) = machines.find_disk(&left.call_id, &left.made_as).await? {
        machines
            .delete_disk(&attempt.call_id(&format!("delete_disk {cid}")), &cid)
            .await?;
    }
    inventory::disk_gone(&attempt.app.db, attempt.ctx.fence(), &left.call_id).await
}
