//! Plans and zones.
//!
//! Whether a value is one that our plans can have is never decided here: each is tried in a plan, and [`Plans::new`] says no.

use std::collections::HashSet;

use serde_json::Value;
use stolos_clusters::plans::{InvalidPlans, MachineSize, Plan, Plans};
use stolos_manifest::{Node, yaml};

use super::machines::{Understood, understand};
use super::report::Report;
use super::staged::{Given, Staged, is_word, short};
use super::{Error, Options};
use crate::config::{default_plans, default_zones};

/// Linux plans of the tile; those after them are for Windows.
const LINUX_PLANS: u32 = 10;
/// The last of the Windows plans.
const LAST_PLAN: u32 = 13;
/// The tile's default.
const WORKERS: u32 = 3;
/// The tile's default.
const MAX_WORKERS: u32 = 50;
/// The most that a segment of ours holds.
const MOST_WORKERS: u32 = 240;
/// What `automatic` stands for where etcd is, in MiB.
const MASTER_DISK: u32 = 10_240;
/// What `automatic` stands for where images and volumes are, in MiB.
const WORKER_DISK: u32 = 51_200;
/// Admission plug-ins that the tile has switches for and Kubernetes has no more.
const GONE_PLUGINS: &[&str] = &["DenyEscalatingExec", "PodSecurityPolicy", "SecurityContextDeny"];
/// What stands in their place.
const POD_SECURITY: &str = "Write `pod_security: {enforce: baseline}` (or `restricted`) into this plan in config.yml for Pod Security Admission";

/// Takes the plans, each in its place, and the zones.
///
/// # Errors
/// When no plan is active, or the plans do not go together.
pub(super) fn take(
    staged: &mut Staged,
    report: &mut Report,
    options: &Options,
) -> Result<(Vec<Plan>, Vec<String>), Error> {
    report.changed(
        0,
        "kubernetes_version",
        format!(
            "{} in all plans; the tile's own version is that of its release and not in the file",
            options.kubernetes_version
        ),
    );
    let mut zones = Zones::default();
    zones.of_networks(staged, report);
    let in_flight = in_flight(staged, report);
    let active: Vec<u32> = (1..=LAST_PLAN)
        .filter(|number| is_active(staged, *number))
        .collect();
    let last = active
        .iter()
        .copied()
        .filter(|number| *number <= LINUX_PLANS)
        .max()
        .ok_or(Error::NoPlan)?;
    let mut names = Names::new(staged, &active);
    let mut plans = Vec::new();
    for number in 1..=last {
        let mut taking = Taking {
            staged,
            report,
            options,
            zones: &mut zones,
            number,
            in_flight,
        };
        plans.push(if active.contains(&number) {
            taking.active(&mut names)
        } else {
            taking.inactive(&mut names)
        });
    }
    windows(staged, report, &active);
    pass_inactive(staged, report, last);
    let zones = zones.ours();
    Plans::new(plans.clone(), or_default(&zones)).map_err(Error::Plans)?;
    Ok((plans, zones))
}

fn or_default(zones: &[String]) -> Vec<String> {
    if zones.is_empty() {
        default_zones()
    } else {
        zones.to_vec()
    }
}

fn is_active(staged: &mut Staged, number: u32) -> bool {
    let selected = staged.selected(&format!(".properties.plan{number}_selector"));
    matches!(selected, Some((option, _)) if option == "active" || option == "plan active")
}

fn in_flight(staged: &mut Staged, report: &mut Report) -> u32 {
    const KEY: &str = ".properties.worker_max_in_flight";
    let Some(given) = staged.take(KEY) else { return 1 };
    match given.number() {
        Some(number) if number > 0 => {
            report.taken(given.line, &short(KEY), format!("{number}, as each plan's own"));
            number
        }
        _ => {
            report.changed(given.line, &short(KEY), "1 in each plan; it is no number from 1");
            1
        }
    }
}

/// Windows plans have no place.
fn windows(staged: &mut Staged, report: &mut Report, active: &[u32]) {
    for number in LINUX_PLANS + 1..=LAST_PLAN {
        let selector = format!(".properties.plan{number}_selector");
        let line = staged.selected(&selector).map_or(0, |(_, line)| line);
        for (key, _) in staged.below(&format!("{selector}.")) {
            staged.pass(&key);
        }
        if active.contains(&number) {
            report.not_taken(
                line,
                &format!("plan{number}"),
                "a plan for Windows workers",
                "Nothing does the same: nodes run Linux",
            );
        }
    }
}

/// What inactive plans say after the last active one.
fn pass_inactive(staged: &mut Staged, report: &mut Report, last: u32) {
    for number in last + 1..=LINUX_PLANS {
        for (key, _) in staged.below(&format!(".properties.plan{number}_selector.")) {
            staged.pass(&key);
            report.switched_off += 1;
        }
    }
}

/// Names of plans, each of which can be there once. Those of active plans go first.
struct Names {
    used: HashSet<String>,
    of_active: HashSet<String>,
}

impl Names {
    fn new(staged: &mut Staged, active: &[u32]) -> Self {
        let of_active = active
            .iter()
            .filter_map(|number| {
                staged
                    .take(&format!(".properties.plan{number}_selector.active.name"))?
                    .text()
            })
            .collect();
        Self {
            used: HashSet::new(),
            of_active,
        }
    }

    /// The name itself, or one made of it that nobody has.
    fn unique(&mut self, wish: &str, is_active: bool, number: u32) -> String {
        let mut name = wish.to_owned();
        let mut stem = format!("{wish}-{number}");
        while self.used.contains(&name) || (!is_active && self.of_active.contains(&name)) {
            name.clone_from(&stem);
            stem.push('x');
        }
        self.used.insert(name.clone());
        name
    }
}

/// Zones, in the order in which the file names them; the name in the file with ours.
#[derive(Default)]
struct Zones(Vec<(String, String)>);

impl Zones {
    /// Takes those of the tile's networks: the tile's own first.
    fn of_networks(&mut self, staged: &Staged, report: &mut Report) {
        let Some(networks) = staged.part("network-properties") else {
            return;
        };
        let single = networks.get("singleton_availability_zone");
        let others = networks.get("other_availability_zones").and_then(Node::as_list);
        for zone in single.into_iter().chain(others.into_iter().flatten()) {
            let name = zone.get("name").unwrap_or(zone);
            if let Some(text) = name.scalar_text() {
                self.ours_of(text.trim(), name.at.line, report);
            }
        }
    }

    /// Our name of a zone; `None` for a placeholder.
    fn ours_of(&mut self, theirs: &str, line: u32, report: &mut Report) -> Option<String> {
        if theirs.is_empty() || theirs.starts_with("((") {
            return None;
        }
        if let Some((_, ours)) = self.0.iter().find(|(known, _)| known == theirs) {
            return Some(ours.clone());
        }
        let mut ours = label(theirs);
        let mut number = 1;
        while self.0.iter().any(|(_, taken)| *taken == ours) {
            number += 1;
            ours = label(&format!("{:.60}-{number}", label(theirs)));
        }
        let property = "availability zone";
        if ours == theirs {
            report.taken(
                line,
                property,
                format!("`{ours}`, as a label: all machines are on this host"),
            );
        } else {
            report.changed(
                line,
                property,
                format!("`{theirs}` is `{ours}`: zones are labels of nodes, of letters, digits and `-`"),
            );
        }
        self.0.push((theirs.to_owned(), ours.clone()));
        Some(ours)
    }

    fn ours(&self) -> Vec<String> {
        self.0.iter().map(|(_, ours)| ours.clone()).collect()
    }
}

/// The nearest text that can be a zone.
fn label(text: &str) -> String {
    let made: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let made = made.trim_matches('-');
    if made.is_empty() {
        "zone".to_owned()
    } else {
        made.to_owned()
    }
}

/// One plan on its way.
struct Taking<'a> {
    staged: &'a mut Staged,
    report: &'a mut Report,
    options: &'a Options,
    zones: &'a mut Zones,
    number: u32,
    in_flight: u32,
}

impl Taking<'_> {
    fn key(&self, field: &str) -> String {
        format!(".properties.plan{}_selector.active.{field}", self.number)
    }

    /// The first of the fields that is there. Versions of the tile named some of them differently.
    fn first(&mut self, fields: &[&str]) -> (String, Option<Given>) {
        let keys: Vec<String> = fields.iter().map(|field| self.key(field)).collect();
        let found = keys
            .iter()
            .find_map(|key| self.staged.take(key).map(|given| (short(key), Some(given))));
        found.unwrap_or_else(|| (short(&keys[0]), None))
    }

    /// A plan that is what ours are until an operator says otherwise.
    fn usual(&self, name: String) -> Plan {
        let plan = default_plans(&self.options.kubernetes_version).into_iter().next();
        Plan {
            name,
            description: String::new(),
            ..plan.expect("there are default plans")
        }
    }

    /// A plan that is not on offer keeps its place, because ids go by it.
    fn inactive(&mut self, names: &mut Names) -> Plan {
        let number = self.number;
        let (_, name) = self.first(&["name"]);
        let name = name
            .filter(|name| !name.is_placeholder())
            .and_then(|name| name.text());
        let name = name.filter(|name| !name.is_empty());
        let name = names.unique(&name.unwrap_or_else(|| format!("plan{number}")), false, number);
        for (key, _) in self.staged.below(&self.key("")) {
            self.staged.pass(&key);
            self.report.switched_off += 1;
        }
        self.report.changed(
            0,
            &format!("plan{number}"),
            format!("`{name}`, not active and of usual size; it keeps the plans after it at their ids"),
        );
        Plan {
            active: false,
            ..self.usual(name)
        }
    }

    fn active(&mut self, names: &mut Names) -> Plan {
        let name = self.name(names);
        let mut plan = self.usual(name);
        plan.description = self.description();
        plan.master_instances = self.masters();
        plan.master = self.size("master", MASTER_DISK, 1);
        plan.worker = self.size("worker", WORKER_DISK, 0);
        (plan.worker_instances, plan.max_worker_instances) = self.workers();
        plan.master_zones = self.placement("master_az_placement");
        plan.worker_zones = self.placement("worker_az_placement");
        plan.allow_privileged_containers = self.privileged();
        plan.worker_max_in_flight = self.in_flight;
        for what in ["system_reserved", "eviction_hard"] {
            self.reservations(what, &mut plan);
        }
        self.admission_plugins(&mut plan);
        self.drain(&mut plan);
        self.addons(&mut plan);
        self.rest();
        plan
    }

    fn name(&mut self, names: &mut Names) -> String {
        let number = self.number;
        let (property, given) = self.first(&["name"]);
        let line = given.as_ref().map_or(0, |given| given.line);
        let wish = given
            .filter(|name| !name.is_placeholder())
            .and_then(|name| name.text());
        let Some(wish) = wish.filter(|name| !name.is_empty()) else {
            let name = names.unique(&format!("plan{number}"), true, number);
            self.report
                .changed(line, &property, format!("`{name}`; the file has no name"));
            return name;
        };
        let name = names.unique(&wish, true, number);
        if name == wish {
            self.report.taken(line, &property, format!("`{name}`"));
        } else {
            self.report.changed(
                line,
                &property,
                format!("`{name}`; a plan before it is named `{wish}` already"),
            );
        }
        name
    }

    fn description(&mut self) -> String {
        let (property, given) = self.first(&["description"]);
        let Some(given) = given.filter(|given| !given.is_placeholder()) else {
            return String::new();
        };
        self.report.taken(given.line, &property, "as it is");
        given.text().unwrap_or_default()
    }

    /// A number of the file as it can be here, or the default.
    fn number(&mut self, field: &str, default: u32, fit: impl Fn(u32) -> u32, why: &str) -> u32 {
        let (property, given) = self.first(&[field]);
        let line = given.as_ref().map_or(0, |given| given.line);
        let missing = match &given {
            None => "the file has none",
            Some(given) if given.is_placeholder() => "the file has a placeholder",
            Some(given) => match given.number() {
                Some(number) => {
                    let fitting = fit(number);
                    if fitting == number {
                        self.report.taken(line, &property, number.to_string());
                    } else {
                        self.report.changed(
                            line,
                            &property,
                            format!("{fitting} in place of {number}; {why}"),
                        );
                    }
                    return fitting;
                }
                None => "what the file has is no number",
            },
        };
        self.report
            .changed(line, &property, format!("{default}, the usual; {missing}"));
        default
    }

    fn masters(&mut self) -> u32 {
        let fit = |number| match number {
            0 | 1 => 1,
            2 | 3 => 3,
            _ => 5,
        };
        self.number("master_instances", 1, fit, "there can be 1, 3 or 5")
    }

    fn workers(&mut self) -> (u32, u32) {
        let why = format!("there can be 1 to {MOST_WORKERS}, the addresses of a cluster's network");
        let fit = |number: u32| number.clamp(1, MOST_WORKERS);
        let most = self.number("max_worker_instances", MAX_WORKERS, fit, &why);
        let why = format!("there can be 1 to max_worker_instances, which is {most}");
        let fit = |number: u32| number.clamp(1, most);
        (self.number("worker_instances", fit(WORKERS), fit, &why), most)
    }

    /// The size of masters or workers.
    fn size(&mut self, who: &str, automatic_disk: u32, least_disk: u32) -> MachineSize {
        let (property, given) = self.first(&[format!("{who}_vm_type").as_str()]);
        let line = given.as_ref().map_or(0, |given| given.line);
        let is_placeholder = given.as_ref().is_some_and(Given::is_placeholder);
        let name = given
            .filter(|_| !is_placeholder)
            .and_then(|given| given.text())
            .unwrap_or_default();
        let why = if is_placeholder {
            "the file has a placeholder"
        } else {
            "the tile leaves the type to Ops Manager"
        };
        let understood = understand(&name, self.options);
        let size = understood.size();
        match understood {
            Understood::Known(_) => self.report.taken(line, &property, format!("`{name}`, {size}")),
            Understood::DiskAssumed(_) => self.report.changed(
                line,
                &property,
                format!("`{name}`, {size}; the disk is assumed, --vm-type sets it"),
            ),
            Understood::Automatic(_) => self.report.changed(line, &property, format!("{size}; {why}")),
            Understood::Unknown(_) => {
                let shown = if is_word(&name) { name.as_str() } else { "its type" };
                self.report.changed(
                    line,
                    &property,
                    format!(
                        "{size}; nobody knows `{shown}` here, --vm-type '{shown}=CPU:RAM_MB:DISK_MB' sets it"
                    ),
                );
            }
        }
        let own = format!("{who}_persistent_disk_type");
        let fields: &[&str] = if who == "worker" {
            // The first versions of the tile had one for workers only.
            &[own.as_str(), "persistent_disk_type"]
        } else {
            &[own.as_str()]
        };
        let (property, given) = self.first(fields);
        let line = given.as_ref().map_or(0, |given| given.line);
        let disk = match given.as_ref().and_then(Given::number) {
            Some(disk) if disk >= least_disk => {
                self.report.taken(line, &property, format!("{disk} MiB"));
                disk
            }
            _ => {
                let why = if given.is_some_and(|given| given.text().is_some_and(|text| text != "automatic")) {
                    "what the file has is no size in MB that can be taken"
                } else {
                    "the tile leaves the size to Ops Manager"
                };
                self.report
                    .changed(line, &property, format!("{automatic_disk} MiB; {why}"));
                automatic_disk
            }
        };
        size.with_persistent_disk(disk)
    }

    fn placement(&mut self, field: &str) -> Vec<String> {
        // The first versions of the tile had one for all machines.
        let key = if self.staged.take(&self.key(field)).is_some() {
            field
        } else {
            "az_placement"
        };
        let (property, given) = self.first(&[key]);
        let Some(given) = given else {
            return Vec::new();
        };
        let mut ours = Vec::new();
        for zone in given.list() {
            match self.zones.ours_of(&zone, given.line, self.report) {
                Some(zone) if !ours.contains(&zone) => ours.push(zone),
                Some(_) => {}
                None => self.report.changed(
                    given.line,
                    &property,
                    "a placeholder is left out; without any zone, machines are in all of them",
                ),
            }
        }
        if !ours.is_empty() {
            self.report.taken(given.line, &property, ours.join(", "));
        }
        ours
    }

    fn privileged(&mut self) -> bool {
        let (property, given) = self.first(&["allow_privileged_containers"]);
        match given.as_ref().map(|given| (given.line, given.switch())) {
            Some((line, Some(switch))) => {
                self.report.taken(line, &property, switch.to_string());
                switch
            }
            other => {
                let line = other.map_or(0, |(line, _)| line);
                self.report.changed(
                    line,
                    &property,
                    "false, the tile's default; the file does not say",
                );
                false
            }
        }
    }

    /// Changes the plan if it is still one that can be used afterwards.
    fn attempt(&self, plan: &mut Plan, change: impl FnOnce(&mut Plan)) -> Result<(), String> {
        let mut changed = plan.clone();
        change(&mut changed);
        let zones = or_default(&self.zones.ours());
        match Plans::new(vec![changed.clone()], zones) {
            Ok(_) => {
                *plan = changed;
                Ok(())
            }
            Err(InvalidPlans::Field { problem, .. }) => Err(problem),
            Err(other) => Err(other.to_string()),
        }
    }

    /// `memory=250Mi, cpu=150m`.
    fn reservations(&mut self, what: &str, plan: &mut Plan) {
        let (property, given) = self.first(&[what]);
        let Some(given) = given.filter(|given| !given.is_empty()) else {
            return;
        };
        let mut taken = Vec::new();
        for part in given.list() {
            // Kubelet's own notation for signals is `memory.available<100Mi`.
            let result = match part.split_once(['=', '<']) {
                Some((name, amount)) => self.attempt(plan, |plan| {
                    let (name, amount) = (name.trim().to_owned(), amount.trim().to_owned());
                    if what == "system_reserved" {
                        plan.kubelet.system_reserved.insert(name, amount);
                    } else {
                        plan.kubelet.eviction_hard.insert(name, amount);
                    }
                }),
                None => Err("a part is not NAME=AMOUNT".to_owned()),
            };
            match result {
                Ok(()) => taken.push(part),
                Err(problem) => self.report.not_taken(
                    given.line,
                    &property,
                    problem,
                    format!("Write what was meant into `kubelet.{what}` of the plan in config.yml"),
                ),
            }
        }
        if !taken.is_empty() {
            self.report.taken(given.line, &property, taken.join(", "));
        }
    }

    fn admission_plugins(&mut self, plan: &mut Plan) {
        let (property, given) = self.first(&["admission_plugins"]);
        if let Some(given) = given {
            for name in given.list() {
                let result = self.attempt(plan, |plan| plan.admission_plugins.push(name.clone()));
                match result {
                    Ok(()) => self.report.taken(given.line, &property, format!("`{name}`")),
                    Err(problem) => {
                        let next = if GONE_PLUGINS.contains(&name.as_str()) {
                            POD_SECURITY
                        } else {
                            "Nothing does the same"
                        };
                        self.report.not_taken(given.line, &property, problem, next);
                    }
                }
            }
        }
        let (property, given) = self.first(&["disable_deny_escalating_exec"]);
        let Some(given) = given else { return };
        match given.switch() {
            Some(true) => self.report.taken(
                given.line,
                &property,
                "the plug-in DenyEscalatingExec is off; Kubernetes has it no more",
            ),
            _ => self.report.not_taken(
                given.line,
                &property,
                "the plug-in DenyEscalatingExec is gone from Kubernetes",
                POD_SECURITY,
            ),
        }
    }

    /// How nodes are drained. Names of these fields differ between versions of the tile, so that they are known by their words.
    fn drain(&mut self, plan: &mut Plan) {
        for (key, line) in self.staged.below(&self.key("")) {
            let field = key.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            let is_about = |word: &str| field.contains(word);
            if !is_about("drain") && !is_about("pod_shutdown") {
                continue;
            }
            let property = short(&key);
            let Some(given) = self.staged.take(&key) else {
                continue;
            };
            let (ours, result) = if is_about("timeout") {
                let change = given
                    .number()
                    .map(|n| self.attempt(plan, |plan| plan.drain.timeout = n));
                ("timeout", change)
            } else if is_about("grace") {
                let change = given
                    .number()
                    .map(|n| self.attempt(plan, |plan| plan.drain.grace_period = n));
                ("grace_period", change)
            } else {
                type Place = fn(&mut Plan) -> &mut bool;
                let (ours, place): (_, Place) = if is_about("daemonset") || is_about("daemon_set") {
                    ("ignore_daemonsets", |plan| &mut plan.drain.ignore_daemonsets)
                } else if is_about("local_data") || is_about("emptydir") {
                    ("delete_local_data", |plan| &mut plan.drain.delete_local_data)
                } else if is_about("force_node") {
                    ("force_node", |plan| &mut plan.drain.force_node)
                } else if is_about("force") {
                    ("force", |plan| &mut plan.drain.force)
                } else {
                    self.report.not_taken(
                        line,
                        &property,
                        "not known",
                        "See `drain` of the plan in config.yml for what there is",
                    );
                    continue;
                };
                let change = given
                    .switch()
                    .map(|switch| self.attempt(plan, |plan| *place(plan) = switch));
                (ours, change)
            };
            match result {
                Some(Ok(())) => {
                    let text = given.text().unwrap_or_default();
                    let no_limit = if ours == "timeout" && text == "0" {
                        ", no limit: a drain that a disruption budget stops holds up its update until it is cancelled"
                    } else {
                        ""
                    };
                    self.report
                        .taken(line, &property, format!("{text}, as `drain.{ours}`{no_limit}"));
                }
                Some(Err(problem)) => self.report.not_taken(line, &property, problem, usual_drain(ours)),
                None => self.report.not_taken(
                    line,
                    &property,
                    "what the file has cannot be understood",
                    usual_drain(ours),
                ),
            }
        }
    }

    /// Kubernetes objects. Secrets among them are left out: what is imported is printed, and kept in a file.
    fn addons(&mut self, plan: &mut Plan) {
        let (property, given) = self.first(&["addons_spec"]);
        let Some(given) = given.filter(|given| !given.is_empty()) else {
            return;
        };
        let line = given.line;
        if given.is_placeholder() {
            return self.report.not_taken(
                line,
                &property,
                "a placeholder",
                "Write the objects into `addons` of the plan in config.yml",
            );
        }
        let text = given.whole_text().unwrap_or_default();
        let mut kept = Vec::new();
        for (at, document) in documents(&text).into_iter().enumerate() {
            let at = at + 1;
            // Our own parser and not the one of `Plans::new`, whose messages show the lines around a mistake, with what is in them.
            match stolos_manifest::yaml::parse(format!("document {at}"), &document) {
                Err(problem) => {
                    return self.report.not_taken(
                        line,
                        &property,
                        format!("none of it, {problem}"),
                        "Mend it and write it into `addons` of the plan in config.yml",
                    );
                }
                Ok(node) if holds_secret(&node.to_json()) => {
                    self.report.not_taken(
                        line,
                        &property,
                        format!("document {at} holds a Secret, and secrets are not copied"),
                        "Apply it with kubectl to each cluster, or write it into `addons` of the plan in config.yml",
                    );
                    // Of a list, the other objects stay.
                    kept.extend(without_secrets(node.to_json()).map(|rest| yaml::write(&Node::from(rest))));
                }
                Ok(node) if node.is_null() => {}
                Ok(_) => kept.push(document),
            }
        }
        if kept.is_empty() {
            return;
        }
        let count = kept.len();
        let result = self.attempt(plan, |plan| plan.addons = kept.join("---\n"));
        match result {
            Ok(()) => self
                .report
                .taken(line, &property, format!("{count} documents, as `addons`")),
            Err(problem) => self.report.not_taken(
                line,
                &property,
                format!("none of it, {problem}"),
                "Mend it and write it into `addons` of the plan in config.yml",
            ),
        }
    }

    /// What has no place in a plan.
    fn rest(&mut self) {
        for (key, line) in self.staged.below(&self.key("")) {
            self.staged.pass(&key);
            let field = key.rsplit('.').next().unwrap_or_default();
            match field {
                "errand_vm_type" => self.report.not_taken(
                    line,
                    &short(&key),
                    "the size of machines for errands",
                    "Nothing is needed: what errands did runs without machines of its own",
                ),
                "authorization_mode" => {
                    self.report.taken(line, &short(&key), "clusters use RBAC, always");
                }
                _ => self.report.not_taken(
                    line,
                    &short(&key),
                    "not known",
                    "See the fields of plans in config.yml for what there is",
                ),
            }
        }
    }
}

fn usual_drain(field: &str) -> String {
    format!("Our default stays; write another into `drain.{field}` of the plan in config.yml")
}

/// The documents of a YAML text, each as it is written.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim().is_empty() || rest.trim_start().starts_with('#'));
        if is_marker {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

/// A list of objects without the Secrets in it; `None` when nothing is left.
fn without_secrets(mut object: Value) -> Option<Value> {
    if object["kind"] == "Secret" || object["kind"] == "SecretList" {
        return None;
    }
    let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) else {
        return Some(object);
    };
    let rest: Vec<Value> = std::mem::take(items)
        .into_iter()
        .filter_map(without_secrets)
        .collect();
    let is_empty = rest.is_empty();
    *items = rest;
    (!is_empty).then_some(object)
}

/// Whether an object is a Secret, or a list with one.
fn holds_secret(object: &Value) -> bool {
    object["kind"] == "Secret"
        || object["kind"] == "SecretList"
        || object["items"]
            .as_array()
            .is_some_and(|items| items.iter().any(holds_secret))
}
