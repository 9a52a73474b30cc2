//! A plan for people: what will be touched, in what order, why, and what it waits for.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use stolos_base::ids::InstanceId;

use super::types::{Action, DiskPlan, InstancePlan, Plan, Wave};

/// A plan for people; `Display` gives text, serde gives JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the deployment.
    pub deployment: String,
    /// Number of the plan.
    pub generation: u64,
    /// One line: how many instances are created, changed, deleted and left alone.
    pub summary: String,
    /// What happens, in order.
    pub phases: Vec<Phase>,
}

/// Things that happen side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `delete unneeded instances`, `update etcd in z1, canaries, 1 at once` …
    pub name: String,
    /// Name of the phase that this one waits for; empty for the first.
    pub waits_for: String,
    /// What happens.
    pub lines: Vec<ReportLine>,
}

/// What happens to one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportLine {
    /// `etcd/8c1f… (0)`.
    pub subject: String,
    /// `create machine`, `recreate machine`, `update` …
    pub action: String,
    /// Why.
    pub why: String,
    /// Zone, addresses, disks.
    pub details: String,
}

impl Plan {
    /// The plan for people.
    #[must_use]
    pub fn report(&self) -> Report {
        let by_id: BTreeMap<InstanceId, &InstancePlan> =
            self.instances.iter().map(|plan| (plan.placed.id, plan)).collect();
        let mut phases: Vec<Phase> = Vec::new();
        let mut add = |name: String, waits_for: &str, lines: Vec<ReportLine>| -> String {
            if lines.is_empty() {
                return waits_for.to_owned();
            }
            phases.push(Phase {
                name: name.clone(),
                waits_for: waits_for.to_owned(),
                lines,
            });
            name
        };
        let before = add(
            "delete unneeded instances and machines".to_owned(),
            "",
            self.removed(&by_id),
        );
        let mut before = add("create missing machines".to_owned(), &before, self.created());
        for stage in &self.stages {
            let mut ends = Vec::new();
            for group in &stage.groups {
                let mut own = before.clone();
                for wave in &group.waves {
                    own = add(wave_name(&group.group, wave), &own, self.wave_lines(wave, &by_id));
                }
                ends.push(own);
            }
            before = ends.join(" and ");
        }
        Report {
            deployment: self.deployment.clone(),
            generation: self.generation,
            summary: self.summary(),
            phases,
        }
    }

    fn summary(&self) -> String {
        let count =
            |which: fn(&Action) -> bool| self.instances.iter().filter(|plan| which(&plan.action)).count();
        let parts = [
            (self.deletions.len(), "to delete"),
            (
                count(|action| matches!(action, Action::Create { .. })),
                "to create",
            ),
            (
                count(|action| matches!(action, Action::Recreate { .. })),
                "to recreate",
            ),
            (
                count(|action| matches!(action, Action::Update { .. })),
                "to update",
            ),
            (
                count(|action| matches!(action, Action::UpdateSettings { .. })),
                "to send settings to",
            ),
            (count(|action| matches!(action, Action::Detach)), "to detach"),
            (count(|action| matches!(action, Action::Nothing)), "unchanged"),
        ];
        let parts: Vec<_> = parts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        if parts.is_empty() {
            "no instances".to_owned()
        } else {
            parts.join(", ")
        }
    }

    fn removed(&self, by_id: &BTreeMap<InstanceId, &InstancePlan>) -> Vec<ReportLine> {
        let deleted = self.deletions.iter().map(|deletion| {
            let mut details: Vec<String> = deletion
                .addresses
                .values()
                .map(|address| format!("frees {address}"))
                .collect();
            details.extend(deletion.disks.iter().map(|cid| format!("orphans disk {cid}")));
            ReportLine {
                subject: format!("{}/{} ({})", deletion.group, deletion.id, deletion.index),
                action: "delete".to_owned(),
                why: deletion.why.to_string(),
                details: details.join(", "),
            }
        });
        let vacated = self
            .vacate_first
            .iter()
            .filter_map(|id| by_id.get(id))
            .map(|plan| ReportLine {
                subject: plan.placed.name(),
                action: "delete machine".to_owned(),
                why: "another instance is given its address".to_owned(),
                details: "its disks stay".to_owned(),
            });
        deleted.chain(vacated).collect()
    }

    fn wave_lines(&self, wave: &Wave, by_id: &BTreeMap<InstanceId, &InstancePlan>) -> Vec<ReportLine> {
        let plans = wave.instances.iter().filter_map(|id| by_id.get(id));
        plans
            .map(|plan| line(plan, self.vacate_first.contains(&plan.placed.id)))
            .collect()
    }

    fn created(&self) -> Vec<ReportLine> {
        let vacated = |plan: &&InstancePlan| self.vacate_first.contains(&plan.placed.id);
        self.instances
            .iter()
            .filter(|plan| matches!(plan.action, Action::Create { .. }) || vacated(plan))
            .map(|plan| ReportLine {
                subject: plan.placed.name(),
                action: "create machine".to_owned(),
                why: match &plan.action {
                    Action::Create { why } => why.to_string(),
                    _ => "its machine was deleted for its address".to_owned(),
                },
                details: place(plan),
            })
            .collect()
    }
}

fn wave_name(group: &str, wave: &Wave) -> String {
    let az = wave
        .az
        .as_ref()
        .map_or_else(String::new, |az| format!(" in {az}"));
    let canary = if wave.canary { ", canaries" } else { "" };
    format!("update {group}{az}{canary}, {} at once", wave.max_in_flight)
}

fn line(plan: &InstancePlan, vacated: bool) -> ReportLine {
    let join = |parts: Vec<String>| parts.join(", ");
    let texts = |list: &[super::types::Change]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (action, why) = match &plan.action {
        Action::Create { why } => ("start jobs", why.to_string()),
        Action::Recreate { why, changed } => {
            let mut all: Vec<String> = why.iter().map(ToString::to_string).collect();
            all.extend(texts(changed));
            (if vacated { "start jobs" } else { "recreate machine" }, join(all))
        }
        Action::Update { changed } => ("update", join(texts(changed))),
        Action::UpdateSettings { changed } => ("send settings", join(texts(changed))),
        Action::Detach => ("delete machine", "detached".to_owned()),
        Action::Nothing => ("nothing", String::new()),
    };
    let mut details = Vec::new();
    if matches!(plan.action, Action::Recreate { .. }) && !vacated {
        details.push(place(plan));
    }
    details.extend(disk(plan));
    if matches!(plan.action, Action::Update { .. } | Action::Recreate { .. }) {
        details
            .extend((!plan.changed_jobs.is_empty()).then(|| format!("jobs {}", plan.changed_jobs.join(" "))));
        details.extend(
            (!plan.changed_packages.is_empty())
                .then(|| format!("packages {}", plan.changed_packages.join(" "))),
        );
    }
    ReportLine {
        subject: plan.placed.name(),
        action: action.to_owned(),
        why,
        details: details.join(", "),
    }
}

fn place(plan: &InstancePlan) -> String {
    let az = plan.placed.az.iter().map(|az| format!("zone {az}"));
    let networks = plan
        .placed
        .networks
        .iter()
        .map(|(name, network)| format!("{name} {}", network.ip));
    let bootstrap = plan.placed.bootstrap.then(|| "bootstrap".to_owned());
    az.chain(networks).chain(bootstrap).collect::<Vec<_>>().join(", ")
}

fn disk(plan: &InstancePlan) -> Option<String> {
    let makes = plan.action.makes_machine();
    let text = match &plan.disk {
        DiskPlan::Keep { cid } if makes => format!("attaches disk {cid}"),
        DiskPlan::None | DiskPlan::Keep { .. } => return None,
        DiskPlan::Create { disk } => format!("creates a disk of {} MiB", disk.size_mib),
        DiskPlan::Migrate { from, disk } => format!("migrates disk {from} to one of {} MiB", disk.size_mib),
        DiskPlan::Orphan { cid } => format!("orphans disk {cid}"),
    };
    Some(text)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "plan {} of deployment '{}': {}",
            self.generation, self.deployment, self.summary
        )?;
        for phase in &self.phases {
            let after = if phase.waits_for.is_empty() {
                String::new()
            } else {
                format!(" (after: {})", phase.waits_for)
            };
            writeln!(f, "{}{after}", phase.name)?;
            for line in &phase.lines {
                write!(f, "  {}: {}", line.subject, line.action)?;
                if !line.why.is_empty() {
                    write!(f, ", because: {}", line.why)?;
                }
                if !line.details.is_empty() {
                    write!(f, "; {}", line.details)?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
