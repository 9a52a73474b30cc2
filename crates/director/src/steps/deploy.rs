//! The graph of a deploy: what the plan says, as named steps in their order.
//!
//! 1. what interrupted deploys left, instances that go, machines whose addresses are needed: side by side;
//! 2. new machines and disks, all side by side; packages for instances that change on their machines;
//! 3. stage by stage, groups side by side, wave by wave: stop, change, start. A new instance waits for its own machine
//!    only; one that runs is touched when all machines are there;
//! 4. post-deploy scripts, then the record that all this is so; neither after a repair.

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;
use stolos_base::ids::InstanceId;
use stolos_flow::{Graph, Step, StepRef};
use stolos_manifest::WatchTime;

use super::instance::{self, Next, short_name};
use super::single::{
    AGENT_GRACE, CPI_GRACE, Deploy, SCRIPT_LIMIT, complete_step, configure_step, create_disk_step,
    create_vm_step, current_machine, delete_instance, delete_vm_step, deletion_of, has_machine, label,
    new_agent, output, remove_left_disk, remove_left_vm, settings_step, start_step, stop_deleted, stop_step,
};
use super::{Work, disk, step};
use crate::app::App;
use crate::db::{deployments, inventory};
use crate::plan::{Action, Change, DiskPlan, InstancePlan, State};
use crate::prepare::{Kept, Purpose};
use crate::tasks::Line;

type Lines = Vec<(String, Line)>;

/// The graph of a plan, and the line of event output that belongs to each step.
pub(crate) fn graph(app: &Arc<App>, flow: stolos_base::ids::FlowId, kept: Kept) -> (Graph, Lines) {
    let work = Arc::new(Work {
        app: app.clone(),
        flow,
        what: kept,
    });
    let mut builder = Builder {
        graph: Graph::new(),
        lines: Vec::new(),
        gone: Vec::new(),
        made: BTreeMap::new(),
        prepared: Vec::new(),
        work: work.clone(),
    };
    builder.removals();
    builder.creations();
    builder.preparations();
    let ends = builder.updates();
    builder.finish(&ends);
    (builder.graph, builder.lines)
}

struct Builder {
    work: Deploy,
    graph: Graph,
    lines: Lines,
    /// The last step of everything that goes away first.
    gone: Vec<String>,
    /// The last step of each new machine.
    made: BTreeMap<InstanceId, Made>,
    /// Packages of instances that change on their machines.
    prepared: Vec<String>,
}

/// A machine that a step makes.
#[derive(Clone)]
struct Made {
    last: String,
    cid: StepRef<String>,
}

impl Builder {
    fn removals(&mut self) {
        let work = self.work.clone();
        for vm in &work.what.leftovers.vms {
            let left = vm.clone();
            let remove = step(
                &work,
                format!("Remove interrupted VM {}", vm.agent),
                move |attempt| {
                    let left = left.clone();
                    async move { remove_left_vm(&attempt, &left).await }
                },
            );
            self.add_removal(remove.interrupt(CPI_GRACE));
        }
        for disk in &work.what.leftovers.disks {
            let left = disk.clone();
            let remove = step(
                &work,
                format!("Remove interrupted disk {}", disk.call_id),
                move |attempt| {
                    let left = left.clone();
                    async move { remove_left_disk(&attempt, &left).await }
                },
            );
            self.add_removal(remove.interrupt(CPI_GRACE));
        }
        let total = work.what.plan.deletions.len() as u64;
        for (i, deletion) in work.what.plan.deletions.iter().enumerate() {
            let label = format!("{}/{}", deletion.group, deletion.index);
            let line = Line {
                index: i as u64 + 1,
                total,
                ..Line::new(
                    "Deleting unneeded instances",
                    format!("{}/{} ({})", deletion.group, deletion.id, deletion.index),
                )
            };
            let id = deletion.id;
            let stop = step(
                &work,
                format!("Stop {label} for good"),
                move |attempt| async move { stop_deleted(&attempt, deletion_of(&attempt, id)?).await },
            );
            let stop = self.graph.add(stop.interrupt(AGENT_GRACE).deadline(SCRIPT_LIMIT));
            self.lines.push((
                stop.name().to_owned(),
                Line {
                    closes: false,
                    ..line.clone()
                },
            ));
            let delete = step(&work, format!("Delete {label}"), move |attempt| async move {
                delete_instance(&attempt, deletion_of(&attempt, id)?).await
            });
            let delete = self.graph.add(delete.interrupt(CPI_GRACE).after(&stop));
            self.lines.push((delete.name().to_owned(), line));
            self.gone.push(delete.name().to_owned());
        }
        for id in &work.what.plan.vacate_first {
            let Some(plan) = work.what.plan.instance(*id) else {
                continue;
            };
            let stop = stop_step(&work, plan, Next::Recreate);
            let stop = self.graph.add(stop);
            let vacate = self.graph.add(delete_vm_step(&work, plan).after(&stop));
            self.gone.push(vacate.name().to_owned());
        }
    }

    fn add_removal(&mut self, removal: Step<()>) {
        let removal = self.graph.add(removal);
        self.gone.push(removal.name().to_owned());
    }

    /// New machines with their disks, all at once.
    fn creations(&mut self) {
        let work = self.work.clone();
        let created: Vec<&InstancePlan> = work
            .what
            .plan
            .instances
            .iter()
            .filter(|plan| matches!(plan.action, Action::Create { .. }))
            .collect();
        let total = created.len() as u64;
        for (i, plan) in created.into_iter().enumerate() {
            let line = Line {
                index: i as u64 + 1,
                total,
                ..Line::new("Creating missing vms", plan.placed.name())
            };
            let create = self.graph.add(create_vm_step(&work, plan).after_all(&self.gone));
            let mut made = Made {
                last: create.name().to_owned(),
                cid: create,
            };
            let has_disk = !matches!(plan.disk, DiskPlan::None | DiskPlan::Orphan { .. });
            self.lines.push((
                made.last.clone(),
                Line {
                    closes: !has_disk,
                    ..line.clone()
                },
            ));
            if has_disk {
                made.last = self.attach(plan, &made, &[]);
                self.lines.push((made.last.clone(), line));
            }
            self.made.insert(plan.placed.id, made);
        }
    }

    /// A new machine's disk: made beside the machine, then attached to it. Gives the last step.
    fn attach(&mut self, plan: &InstancePlan, made: &Made, slots: &[(&stolos_flow::Group, &str)]) -> String {
        let work = self.work.clone();
        let (id, label) = (plan.placed.id, label(plan));
        let mut after = vec![made.last.clone()];
        let mut disk_of = None;
        if matches!(plan.disk, DiskPlan::Create { .. }) {
            let mut create = create_disk_step(&work, plan, true).after_all(&self.gone);
            for (group, key) in slots {
                create = create.within_slot(group, key);
            }
            let create = self.graph.add(create);
            after.push(create.name().to_owned());
            disk_of = Some(create);
        }
        let cid_of = made.cid.clone();
        let attach = step(&work, format!("Attach disk {label}"), move |attempt| {
            let (cid_of, disk_of) = (cid_of.clone(), disk_of.clone());
            async move {
                let vm = output(&attempt, &cid_of)?;
                let plan = attempt.instance(id)?;
                let cid = match (&plan.disk, &disk_of) {
                    (DiskPlan::Keep { cid } | DiskPlan::Migrate { from: cid, .. }, _) => cid.clone(),
                    (_, Some(created)) => output(&attempt, created)?,
                    (_, None) => return Ok(()),
                };
                let instance = short_name(&plan.placed);
                let place = disk::Place {
                    agent: new_agent(plan)?,
                    vm: &vm,
                    instance: &instance,
                };
                disk::attach(&attempt, &place, &cid).await
            }
        });
        let mut attach = attach.interrupt(CPI_GRACE).after_all(after);
        for (group, key) in slots {
            attach = attach.within_slot(group, key);
        }
        let mut last = self.graph.add(attach).name().to_owned();
        if let DiskPlan::Migrate { .. } = plan.disk {
            last = self.migrate(plan, Some(made.cid.clone()), &last, slots);
        }
        last
    }

    /// A larger (or other) disk in the place of the one that is attached. Gives the last step.
    fn migrate(
        &mut self,
        plan: &InstancePlan,
        cid_of: Option<StepRef<String>>,
        after: &str,
        slots: &[(&stolos_flow::Group, &str)],
    ) -> String {
        let work = self.work.clone();
        let (id, label) = (plan.placed.id, label(plan));
        let mut create = create_disk_step(&work, plan, false).after(after);
        for (group, key) in slots {
            create = create.within_slot(group, key);
        }
        let create = self.graph.add(create);
        let created = create.clone();
        let migrate = step(&work, format!("Migrate disk {label}"), move |attempt| {
            let (cid_of, created) = (cid_of.clone(), created.clone());
            async move {
                let plan = attempt.instance(id)?;
                let machine = current_machine(&attempt, plan, cid_of.as_ref())?;
                let DiskPlan::Migrate { from, .. } = &plan.disk else {
                    return Ok(());
                };
                let instance = short_name(&plan.placed);
                let place = disk::Place {
                    agent: machine.agent_id,
                    vm: &machine.cid,
                    instance: &instance,
                };
                let to = output(&attempt, &created)?;
                disk::migrate(&attempt, &place, id, from, &to).await
            }
        });
        let mut migrate = migrate
            .interrupt(AGENT_GRACE)
            .deadline(SCRIPT_LIMIT)
            .after(&create);
        for (group, key) in slots {
            migrate = migrate.within_slot(group, key);
        }
        self.graph.add(migrate).name().to_owned()
    }

    /// Packages for instances that change on their machines, while their old jobs go on.
    fn preparations(&mut self) {
        let work = self.work.clone();
        let changed: Vec<&InstancePlan> = work
            .what
            .plan
            .instances
            .iter()
            .filter(|plan| matches!(plan.action, Action::Update { .. }))
            .collect();
        let total = changed.len() as u64;
        for (i, plan) in changed.into_iter().enumerate() {
            let line = Line {
                index: i as u64 + 1,
                total,
                ..Line::new("Downloading packages", plan.placed.name())
            };
            let id = plan.placed.id;
            let prepare = step(
                &work,
                format!("Prepare {}", label(plan)),
                move |attempt| async move {
                    let plan = attempt.instance(id)?;
                    let machine = current_machine(&attempt, plan, None)?;
                    instance::prepare(&attempt, plan, &machine).await
                },
            );
            let prepare = self.graph.add(
                prepare
                    .interrupt(AGENT_GRACE)
                    .deadline(SCRIPT_LIMIT)
                    .after_all(&self.gone),
            );
            self.lines.push((prepare.name().to_owned(), line));
            self.prepared.push(prepare.name().to_owned());
        }
    }

    /// Stages, groups and waves. Gives the last steps of the last stage.
    fn updates(&mut self) -> Vec<String> {
        let work = self.work.clone();
        let mut before: Vec<String> = Vec::new();
        for stage in &work.what.plan.stages {
            let mut ends = Vec::new();
            for order in &stage.groups {
                let total = order.waves.iter().map(|wave| wave.instances.len() as u64).sum();
                let mut index = 0;
                let mut ready = before.clone();
                for (n, wave) in order.waves.iter().enumerate() {
                    let limit = usize::try_from(wave.max_in_flight).unwrap_or(usize::MAX);
                    let name = format!("{} at once, wave {}", order.group, n + 1);
                    let slots = self.graph.group(&name, limit);
                    let mut wave_ends = Vec::new();
                    for id in &wave.instances {
                        let Some(plan) = work.what.plan.instance(*id) else {
                            continue;
                        };
                        index += 1;
                        let suffix = if wave.canary { " (canary)" } else { "" };
                        let line = Line {
                            tags: vec![order.group.clone()],
                            index,
                            total,
                            ..Line::new("Updating instance", format!("{}{suffix}", plan.placed.name()))
                        };
                        let names = self.update(plan, wave.watch_time, &ready, &slots);
                        for (i, name) in names.iter().enumerate() {
                            let closes = i + 1 == names.len();
                            self.lines.push((
                                name.clone(),
                                Line {
                                    closes,
                                    ..line.clone()
                                },
                            ));
                        }
                        wave_ends.extend(names.last().cloned());
                    }
                    if !wave_ends.is_empty() {
                        ready = wave_ends;
                    }
                }
                ends.extend(ready);
            }
            if !ends.is_empty() {
                ends.sort();
                ends.dedup();
                before = ends;
            }
        }
        before
    }

    /// The steps of one instance, in their order.
    fn update(
        &mut self,
        plan: &InstancePlan,
        watch: WatchTime,
        ready: &[String],
        slots: &stolos_flow::Group,
    ) -> Vec<String> {
        let work = self.work.clone();
        let key = label(plan);
        let mut names = Vec::new();
        let mut after: Vec<String> = ready.iter().chain(&self.gone).cloned().collect();
        if let Some(made) = self.made.get(&plan.placed.id) {
            after.push(made.last.clone());
        } else {
            // What runs is touched only when everything new is there.
            after.extend(self.made.values().map(|made| made.last.clone()));
            after.extend(self.prepared.iter().cloned());
        }
        let mut chain = Chain {
            names: &mut names,
            after,
            slots,
            key: &key,
        };
        let vacated = self.work.what.plan.vacate_first.contains(&plan.placed.id);
        let mut made = self.made.get(&plan.placed.id).cloned();
        match &plan.action {
            Action::Nothing => {}
            Action::UpdateSettings { changed } => {
                let settings = settings_step(&work, plan, changed.contains(&Change::Settings));
                chain.add(&mut self.graph, settings);
            }
            Action::Detach => {
                chain.add(&mut self.graph, stop_step(&work, plan, Next::Recreate));
                chain.add(&mut self.graph, delete_vm_step(&work, plan));
            }
            Action::Update { .. } => {
                let next = match plan.desired.state {
                    State::Started => Next::Update,
                    State::Stopped | State::Detached => Next::Stop,
                };
                chain.add(&mut self.graph, stop_step(&work, plan, next));
            }
            Action::Recreate { .. } => {
                if !vacated {
                    chain.add(&mut self.graph, stop_step(&work, plan, Next::Recreate));
                    chain.add(&mut self.graph, delete_vm_step(&work, plan));
                }
                let create = create_vm_step(&work, plan);
                let cid = chain.add(&mut self.graph, create);
                let mut one = Made {
                    last: cid.name().to_owned(),
                    cid,
                };
                if matches!(
                    plan.disk,
                    DiskPlan::Keep { .. } | DiskPlan::Create { .. } | DiskPlan::Migrate { .. }
                ) {
                    one.last = self.attach(plan, &one, &[(slots, &key)]);
                    chain.names.push(one.last.clone());
                    chain.after = vec![one.last.clone()];
                }
                made = Some(one);
            }
            Action::Create { .. } => {}
        }
        if matches!(plan.action, Action::Update { .. }) {
            self.disk_changes(plan, &mut chain);
        }
        if !matches!(
            plan.action,
            Action::Nothing | Action::UpdateSettings { .. } | Action::Detach
        ) {
            let cid_of = made.map(|made| made.cid);
            chain.add(&mut self.graph, configure_step(&work, plan, cid_of.clone()));
            chain.add(&mut self.graph, start_step(&work, plan, watch, cid_of));
        } else if !matches!(plan.action, Action::Nothing) || !plan.leftover_disks.is_empty() {
            chain.add(&mut self.graph, complete_step(&work, plan));
        }
        names
    }

    fn disk_changes(&mut self, plan: &InstancePlan, chain: &mut Chain<'_>) {
        let work = self.work.clone();
        let (id, label) = (plan.placed.id, label(plan));
        let after = chain.after.first().cloned().unwrap_or_default();
        match &plan.disk {
            DiskPlan::None | DiskPlan::Keep { .. } => {}
            DiskPlan::Create { .. } => {
                let created = chain.add(&mut self.graph, create_disk_step(&work, plan, true));
                let attach = step(&self.work, format!("Attach disk {label}"), move |attempt| {
                    let created = created.clone();
                    async move {
                        let plan = attempt.instance(id)?;
                        let machine = current_machine(&attempt, plan, None)?;
                        let instance = short_name(&plan.placed);
                        let place = disk::Place {
                            agent: machine.agent_id,
                            vm: &machine.cid,
                            instance: &instance,
                        };
                        disk::attach(&attempt, &place, &output(&attempt, &created)?).await
                    }
                });
                chain.add(&mut self.graph, attach.interrupt(CPI_GRACE));
            }
            DiskPlan::Migrate { .. } => {
                let slots = [(chain.slots, chain.key)];
                let last = self.migrate(plan, None, &after, &slots);
                chain.names.push(last.clone());
                chain.after = vec![last];
            }
            DiskPlan::Orphan { .. } => {
                let orphan = step(
                    &self.work,
                    format!("Orphan disk {label}"),
                    move |attempt| async move {
                        let plan = attempt.instance(id)?;
                        let machine = current_machine(&attempt, plan, None)?;
                        let DiskPlan::Orphan { cid } = &plan.disk else {
                            return Ok(());
                        };
                        let instance = short_name(&plan.placed);
                        let place = disk::Place {
                            agent: machine.agent_id,
                            vm: &machine.cid,
                            instance: &instance,
                        };
                        disk::detach(&attempt, &place, cid).await?;
                        inventory::orphan_disk(&attempt.app.db, attempt.ctx.fence(), cid).await
                    },
                );
                chain.add(&mut self.graph, orphan.interrupt(CPI_GRACE));
            }
        }
    }

    fn finish(&mut self, ends: &[String]) {
        let work = self.work.clone();
        if work.what.purpose == Purpose::Repair {
            // What the deployment is does not change by it, and what its scripts do for all of it is done.
            return;
        }
        let all: Vec<String> = self
            .gone
            .iter()
            .chain(ends)
            .chain(self.made.values().map(|made| &made.last))
            .cloned()
            .collect();
        let mut last = all;
        if !work.what.plan.is_empty() {
            let running: Vec<&InstancePlan> = work
                .what
                .plan
                .instances
                .iter()
                .filter(|plan| {
                    plan.desired.state == State::Started && has_machine(plan) && !plan.placed.ignored
                })
                .collect();
            let mut posts = Vec::new();
            for plan in running {
                let id = plan.placed.id;
                let post = step(
                    &work,
                    format!("Post-deploy {}", label(plan)),
                    move |attempt| async move {
                        let plan = attempt.instance(id)?;
                        let agent = match plan.new_agent_id {
                            Some(agent) => agent,
                            None => current_machine(&attempt, plan, None)?.agent_id,
                        };
                        let agent = attempt.agent(agent, &short_name(&plan.placed));
                        agent.run_script("post-deploy", IndexMap::new()).await?;
                        Ok(())
                    },
                );
                let post = post
                    .interrupt(AGENT_GRACE)
                    .deadline(SCRIPT_LIMIT)
                    .after_all(&last);
                posts.push(self.graph.add(post).name().to_owned());
            }
            last.extend(posts);
        }
        let save = step(&work, "Save deployment".to_owned(), |attempt| async move {
            let what = &attempt.what;
            let plan = &what.plan;
            let fence = attempt.ctx.fence();
            deployments::finish(
                &attempt.app.db,
                fence,
                &plan.deployment,
                plan.generation,
                &what.uses,
            )
            .await?;
            if plan.is_empty() {
                attempt
                    .app
                    .tasks
                    .result_output(attempt.flow, "nothing has changed\n");
            }
            attempt
                .app
                .tasks
                .set_result(attempt.flow, format!("/deployments/{}", plan.deployment));
            Ok(())
        });
        self.graph.add(save.after_all(last));
    }
}

/// Steps one after another in one slot.
struct Chain<'a> {
    names: &'a mut Vec<String>,
    after: Vec<String>,
    slots: &'a stolos_flow::Group,
    key: &'a str,
}

impl Chain<'_> {
    fn add<T>(&mut self, graph: &mut Graph, step: Step<T>) -> StepRef<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        let step = graph.add(step.after_all(&self.after).within_slot(self.slots, self.key));
        self.names.push(step.name().to_owned());
        self.after = vec![step.name().to_owned()];
        step
    }
}
