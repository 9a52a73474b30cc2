//! What a request would do, for those who ask before they do it.

use stolos_api::pks::{Preview, PreviewGroup};

use super::Accepted;
use crate::db::ClusterRow;
use crate::profiles::Kind;
use crate::render::Rollout;
use crate::settings::Tag;

/// Whether a request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is.
    Do,
    /// It is checked as if it were, and nothing is written.
    DryRun,
}

impl Accepted {
    /// What it would do.
    pub(crate) fn preview(&self) -> Preview {
        let after = &self.cluster;
        let shape = after.shape();
        let old = self.before.as_ref().map(ClusterRow::shape);
        let number = |name: &str| {
            let groups = old.iter().flat_map(crate::shape::Shape::groups);
            groups
                .filter(|group| group.name == name)
                .map(|group| group.instances)
                .sum()
        };
        let mut groups: Vec<PreviewGroup> = shape
            .groups()
            .map(|group| PreviewGroup {
                name: group.name.clone(),
                before: number(&group.name),
                after: group.instances,
                cpu: group.size.cpu,
                memory_mib: group.size.ram,
                zones: group.zones.clone(),
            })
            .collect();
        for gone in old.iter().flat_map(crate::shape::Shape::groups) {
            if shape.groups().all(|group| group.name != gone.name) {
                groups.push(PreviewGroup {
                    name: gone.name.clone(),
                    before: gone.instances,
                    after: 0,
                    cpu: gone.size.cpu,
                    memory_mib: gone.size.ram,
                    zones: gone.zones.clone(),
                });
            }
        }
        Preview {
            cluster: after.name.to_string(),
            action: self.operation.action,
            k8s_version: after.plan.kubernetes_version.clone(),
            groups,
            changes: self
                .before
                .as_ref()
                .map(|before| changes(before, after))
                .unwrap_or_default(),
            machines: self.machines(),
            not_applied: self.not_applied.clone(),
        }
    }

    fn machines(&self) -> String {
        match (&self.before, self.rollout) {
            (None, _) => "all machines are made at once".to_owned(),
            (Some(_), Rollout::Fresh) => {
                "machines that stay are not touched; those that go are drained first".to_owned()
            }
            (Some(before), Rollout::Careful) => format!(
                "machines whose jobs change are changed: masters one after the other, one worker as a canary, then {} at a time, each drained first; pods that no controller makes again end with that",
                before.plan.worker_max_in_flight
            ),
        }
    }
}

/// What differs, a line each.
fn changes(before: &ClusterRow, after: &ClusterRow) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |what: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{what}: {old} → {new}"));
        }
    };
    let workers = |cluster: &ClusterRow| cluster.shape().workers().to_string();
    line("workers", workers(before), workers(after));
    let profile = |cluster: &ClusterRow, wanted: Kind| {
        let mut profiles = cluster.profiles();
        let found = profiles.find(|(kind, _)| *kind == wanted);
        found.map_or_else(|| "none".to_owned(), |(_, name)| name.to_owned())
    };
    for kind in [Kind::Network, Kind::Compute, Kind::Kubernetes] {
        line(kind.noun(), profile(before, kind), profile(after, kind));
    }
    let tags = |cluster: &ClusterRow| {
        let tags: Vec<String> = cluster.settings.tags.iter().map(Tag::to_string).collect();
        if tags.is_empty() {
            "none".to_owned()
        } else {
            tags.join(",")
        }
    };
    line("tags", tags(before), tags(after));
    let registries = |cluster: &ClusterRow| {
        let hosts: Vec<&str> = cluster
            .settings
            .registries
            .iter()
            .map(|r| r.host.as_str())
            .collect();
        if hosts.is_empty() {
            "none".to_owned()
        } else {
            hosts.join(",")
        }
    };
    line("registries", registries(before), registries(after));
    let (old, new) = (&before.settings, &after.settings);
    if old.registries != new.registries && registries(before) == registries(after) {
        lines.push("registries: other places, certificates or capabilities".to_owned());
    }
    if old.drain != new.drain {
        lines.push("drain settings: read by nodes when they are drained next".to_owned());
    }
    if old.proxies != new.proxies {
        lines.push("proxies of the container runtime".to_owned());
    }
    if before.plan != after.plan {
        lines.push(format!(
            "plan `{}`: what the operator changed in it since",
            after.plan.name
        ));
    }
    lines
}
