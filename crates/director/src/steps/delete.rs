//! The deletion of a deployment: its instances with their machines, records, and, where that is asked for, disks. Else disks are kept as orphans, as in BOSH.
//!
//! What there is is listed once, when the flow is taken up for the first time, and kept as the flow's plan: a second
//! life has the same steps although half of it is gone.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_base::ids::{FlowId, InstanceId};
use stolos_flow::Graph;

use super::instance::{self, Next, Stopping};
use super::single::{AGENT_GRACE, CPI_GRACE, SCRIPT_LIMIT, release_machine, remove_unknown_disk};
use super::{Attempt, Work, machine, step};
use crate::app::App;
use crate::db::deployments as rows;
use crate::db::{begin_fenced, from_json, inventory, to_json};
use crate::error::{Error, Result};
use crate::flows::fence;
use crate::plan::{MachineRef, State};
use crate::prepare::{LeftDisk, LeftVm, Leftovers, leftovers};
use crate::tasks::Line;

/// How long `force` waits for an agent.
const FORCE_PATIENCE: Duration = Duration::from_secs(5);

/// What a person asked for; the input of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) deployment: String,
    /// Go on past agents that do not answer and scripts that fail.
    #[serde(default)]
    pub(crate) force: bool,
    /// Disks become orphans. Requests from before there was a choice delete them.
    #[serde(default)]
    pub(crate) keep_disks: bool,
}

/// All that is to go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Doomed {
    deployment: String,
    force: bool,
    #[serde(default)]
    keep_disks: bool,
    instances: Vec<DoomedInstance>,
    leftovers: Leftovers,
    /// CIDs and calls of disks without an instance.
    orphans: Vec<DoomedDisk>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DoomedInstance {
    id: InstanceId,
    group: String,
    index: u32,
    machine: Option<MachineRef>,
    /// Whether there may be jobs to stop.
    runs: bool,
    disks: Vec<DoomedDisk>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DoomedDisk {
    cid: String,
    call_id: String,
}

/// The list of what is to go: the kept one, else what is there now.
pub(crate) async fn doomed(app: &App, flow: FlowId, request: &Request) -> Result<Doomed> {
    if let Some(body) = rows::plan(&app.db, flow).await? {
        return from_json("body", &body);
    }
    let instances = inventory::instances(&app.db, &request.deployment).await?;
    let orphans = if request.keep_disks {
        Vec::new()
    } else {
        inventory::orphans(&app.db, Some(&request.deployment)).await?
    };
    let disk = |disk: &inventory::DiskRow| {
        let cid = disk.cid.clone()?;
        Some(DoomedDisk {
            cid,
            call_id: disk.call_id.clone(),
        })
    };
    let doomed = Doomed {
        deployment: request.deployment.clone(),
        force: request.force,
        keep_disks: request.keep_disks,
        leftovers: leftovers(&instances),
        orphans: orphans.iter().filter_map(disk).collect(),
        instances: instances
            .iter()
            .map(|one| DoomedInstance {
                id: one.id,
                group: one.group.clone(),
                index: one.index,
                machine: one.machine().map(|(vm, cid)| MachineRef {
                    cid: cid.to_owned(),
                    agent_id: vm.agent,
                }),
                runs: one.state == State::Started && one.machine().is_some_and(|(vm, _)| vm.ready),
                disks: one.disks.iter().filter_map(disk).collect(),
            })
            .collect(),
    };
    let body = to_json(&doomed)?;
    let fence = fence(app, flow).await?;
    let mut tx = begin_fenced(&app.db, "keep a list of what goes", &fence).await?;
    rows::insert_plan(&mut tx, flow, &request.deployment, 0, &body).await?;
    tx.commit().await?;
    match rows::plan(&app.db, flow).await? {
        Some(body) => from_json("body", &body),
        None => Err(Error::NoDeployment(request.deployment.clone())),
    }
}

/// The steps of a deletion, and the line of event output that belongs to each.
pub(crate) fn graph(app: &Arc<App>, flow: FlowId, doomed: Doomed) -> (Graph, Vec<(String, Line)>) {
    let work = Arc::new(Work {
        app: app.clone(),
        flow,
        what: doomed,
    });
    let mut graph = Graph::new();
    let mut lines = Vec::new();
    let mut gone: Vec<String> = Vec::new();
    for left in &work.what.leftovers.vms {
        let vm: LeftVm = left.clone();
        let remove = step(
            &work,
            format!("Remove interrupted VM {}", left.agent),
            move |attempt| {
                let vm = vm.clone();
                async move {
                    let unknown = machine::Unknown {
                        agent: vm.agent,
                        call_id: &vm.call_id,
                        cid: vm.cid.as_deref(),
                        made_as: &vm.made_as,
                    };
                    machine::delete_unknown(&attempt, &unknown).await
                }
            },
        );
        gone.push(graph.add(remove.interrupt(CPI_GRACE)).name().to_owned());
    }
    for left in &work.what.leftovers.disks {
        let disk: LeftDisk = left.clone();
        let remove = step(
            &work,
            format!("Remove interrupted disk {}", left.call_id),
            move |attempt| {
                let disk = disk.clone();
                async move { remove_unknown_disk(&attempt, &disk).await }
            },
        );
        gone.push(graph.add(remove.interrupt(CPI_GRACE)).name().to_owned());
    }
    // Only what is left over comes first; instances go side by side.
    let before = gone.clone();
    let total = work.what.instances.len() as u64;
    for (i, one) in work.what.instances.iter().enumerate() {
        let label = format!("{}/{}", one.group, one.index);
        let line = Line {
            index: i as u64 + 1,
            total,
            ..Line::new(
                "Deleting instances",
                format!("{}/{} ({})", one.group, one.id, one.index),
            )
        };
        let stop = step(&work, format!("Stop {label}"), move |attempt| async move {
            stop_one(&attempt, i).await
        });
        let stop = graph.add(
            stop.interrupt(AGENT_GRACE)
                .deadline(SCRIPT_LIMIT)
                .after_all(&before),
        );
        lines.push((
            stop.name().to_owned(),
            Line {
                closes: false,
                ..line.clone()
            },
        ));
        let delete = step(&work, format!("Delete {label}"), move |attempt| async move {
            delete_one(&attempt, i).await
        });
        let delete = graph.add(delete.interrupt(CPI_GRACE).after(&stop));
        lines.push((delete.name().to_owned(), line));
        gone.push(delete.name().to_owned());
    }
    for orphan in &work.what.orphans {
        let disk = orphan.clone();
        let delete = step(
            &work,
            format!("Delete orphaned disk {}", orphan.cid),
            move |attempt| {
                let disk = disk.clone();
                async move { delete_disk(&attempt, &disk).await }
            },
        );
        gone.push(graph.add(delete.interrupt(CPI_GRACE)).name().to_owned());
    }
    let forget = step(&work, "Forget deployment".to_owned(), |attempt| async move {
        let deployment = &attempt.what.deployment;
        let mut tx = begin_fenced(&attempt.app.db, "forget a deployment", attempt.ctx.fence()).await?;
        rows::delete(&mut tx, deployment).await?;
        tx.commit().await?;
        attempt
            .app
            .tasks
            .set_result(attempt.flow, format!("/deployments/{deployment}"));
        Ok(())
    });
    let forget = graph.add(forget.after_all(&gone));
    lines.push((
        forget.name().to_owned(),
        Line::new("Removing deployment artifacts", "Detaching deployment"),
    ));
    (graph, lines)
}

async fn stop_one(attempt: &Attempt<Doomed>, i: usize) -> Result<()> {
    let one = &attempt.what.instances[i];
    inventory::mark_dirty(&attempt.app.db, attempt.ctx.fence(), one.id).await?;
    let Some(machine) = one.machine.as_ref().filter(|_| one.runs) else {
        return Ok(());
    };
    let name = format!("{}/{}", one.group, one.id);
    if attempt.what.force {
        let agent = attempt
            .agent(machine.agent_id, &name)
            .with_timeout(FORCE_PATIENCE);
        if agent.ping().await.is_err() {
            attempt.app.tasks.warn(
                attempt.flow,
                &format!("{name} does not answer and is not stopped"),
            );
            return Ok(());
        }
    }
    let stopping = Stopping {
        machine,
        instance: &name,
        next: Next::DeleteDeployment,
        skip_drain: false,
        spec: None,
    };
    match instance::stop(attempt, stopping).await {
        Err(error)
            if attempt.what.force
                && !matches!(error, Error::Canceled)
                && !attempt.ctx.cancel().is_cancelled() =>
        {
            let text = stolos_base::chain(&error);
            attempt
                .app
                .tasks
                .warn(attempt.flow, &format!("{name} was not stopped in order: {text}"));
            Ok(())
        }
        other => other,
    }
}

async fn delete_one(attempt: &Attempt<Doomed>, i: usize) -> Result<()> {
    let one = &attempt.what.instances[i];
    if let Some(machine) = &one.machine {
        let disks: Vec<&String> = one.disks.iter().map(|disk| &disk.cid).collect();
        let name = format!("{}/{}", one.group, one.id);
        // Disks that go too need not be unmounted in order.
        let in_order = attempt.what.keep_disks && !disks.is_empty() && answers(attempt, machine, &name).await;
        release_machine(attempt, machine, &name, &disks, in_order).await?;
    }
    for disk in &one.disks {
        if attempt.what.keep_disks {
            inventory::orphan_disk(&attempt.app.db, attempt.ctx.fence(), &disk.cid).await?;
        } else {
            delete_disk(attempt, disk).await?;
        }
    }
    inventory::delete_instance(&attempt.app.db, attempt.ctx.fence(), one.id).await
}

async fn answers(attempt: &Attempt<Doomed>, machine: &MachineRef, name: &str) -> bool {
    let agent = attempt.agent(machine.agent_id, name).with_timeout(FORCE_PATIENCE);
    agent.ping().await.is_ok()
}

async fn delete_disk(attempt: &Attempt<Doomed>, disk: &DoomedDisk) -> Result<()> {
    let call = attempt.call_id(&format!("delete_disk {}", disk.cid));
    attempt.machines().delete_disk(&call, &disk.cid).await?;
    inventory::disk_gone(&attempt.app.db, attempt.ctx.fence(), &disk.call_id).await
}
