//! From what is kept to what is shown.

use stolos_api::pks;

use crate::accept::{Desk, VERSION};
use crate::db::{self, ClusterRow};
use crate::deps::Certificate;
use crate::error::Result;
use crate::plans::{Drain, Plan};
use crate::profiles::ProfileRow;
use crate::registries;
use crate::render::API_PORT;
use crate::settings::{DrainOverrides, Settings, Tag};
use crate::shape::Shape;

/// Shown in place of addresses that are not known yet; PKS's words.
const IN_PROGRESS: &str = "In Progress";

/// A plan on the wire.
pub(crate) fn plan(id: &str, plan: &Plan) -> pks::Plan {
    pks::Plan {
        id: id.to_owned(),
        name: plan.name.clone(),
        description: plan.description.clone(),
        worker_instances: plan.worker_instances,
        master_instances: plan.master_instances,
        allow_privileged_containers: plan.allow_privileged_containers,
        memory_mib: Some(
            Shape::of(plan, plan.worker_instances, &Settings::default())
                .amount()
                .memory_mib,
        ),
    }
}

impl Desk {
    /// A cluster on the wire.
    pub(crate) fn show(&self, row: &ClusterRow) -> pks::Cluster {
        let settings = &row.settings;
        let upgrade = |component: &str, version: &str| pks::AvailableUpgrade {
            component: component.to_owned(),
            version: version.to_owned(),
        };
        let available_upgrades = match self.upgrade_of(row) {
            Some(kubernetes) => vec![upgrade("PKS", VERSION), upgrade("Kubernetes", kubernetes)],
            None => Vec::new(),
        };
        let is_gone = row.found.deployment_gone_at.is_some();
        pks::Cluster {
            name: row.name.to_string(),
            plan_name: row.plan.name.clone(),
            last_action: row.action,
            last_action_state: if is_gone {
                pks::LastActionState::Failed
            } else {
                row.state
            },
            last_action_description: if is_gone {
                gone_text(row)
            } else {
                row.description.clone()
            },
            uuid: row.id.to_string(),
            kubernetes_master_ips: vec![row.address.clone().unwrap_or_else(|| IN_PROGRESS.to_owned())],
            k8s_version: row.plan.kubernetes_version.clone(),
            pks_version: if settings.version.is_empty() {
                VERSION.to_owned()
            } else {
                settings.version.clone()
            },
            parameters: parameters(row),
            network_profile_name: settings.network_profile.as_ref().map(|p| p.name.clone()),
            compute_profile_name: settings.compute_profile.as_ref().map(|p| p.name.clone()),
            kubernetes_profile_name: settings.kubernetes_profile.as_ref().map(|p| p.name.clone()),
            available_upgrades,
            stopped: settings.stopped,
            owner: Some(row.owner.name.clone()),
            owner_id: row.owner.key.person_id().map(str::to_owned),
            owner_gone: row.found.owner_gone_at.is_some(),
        }
    }

    /// A cluster on the wire, with its settings.
    pub(crate) fn show_details(&self, row: &ClusterRow) -> pks::Cluster {
        let mut shown = self.show(row);
        shown.parameters.kubernetes_setting_plan_details = Some(settings(&all(row.plan.drain)));
        if row.settings.drain != DrainOverrides::default() {
            shown.parameters.kubernetes_setting_cluster_details = Some(settings(&row.settings.drain));
        }
        shown
    }

    /// A network or compute profile on the wire.
    pub(crate) fn show_profile(&self, row: &ProfileRow) -> pks::Profile {
        pks::Profile {
            name: row.name.clone(),
            uuid: row.id.clone(),
            description: row.description.clone(),
            parameters: row.body.to_string(),
            not_applied: self.not_applied(row),
        }
    }
}

/// What is said of a cluster whose machines somebody deleted at the director.
fn gone_text(row: &ClusterRow) -> String {
    format!(
        "The director has no deployment of the cluster any more, and its machines are gone. `update-cluster {0}` makes them anew, without what was in the \
         cluster; `restore-cluster {0}` then brings a backup back; `delete-cluster {0}` removes the rest",
        row.name
    )
}

/// A certificate on the wire.
pub(crate) fn certificate(certificate: Certificate, now: jiff::Timestamp) -> pks::Certificate {
    const DAY: i64 = 24 * 60 * 60;
    let left = certificate.valid_until.as_second() - now.as_second();
    let until = jiff::Timestamp::from_second(certificate.valid_until.as_second());
    pks::Certificate {
        name: certificate.name,
        kind: if certificate.is_root { "Root" } else { "Leaf" }.to_owned(),
        days_left: left.div_euclid(DAY),
        valid_until: until.unwrap_or(certificate.valid_until).to_string(),
    }
}

fn parameters(row: &ClusterRow) -> pks::ClusterParameters {
    let settings = &row.settings;
    let tag = |tag: &Tag| pks::ClusterTag {
        name: tag.name.clone(),
        value: tag.value.clone(),
        category: None,
    };
    let shape = row.shape();
    let pools = settings
        .compute_profile
        .as_ref()
        .filter(|profile| !profile.pools.is_empty());
    pks::ClusterParameters {
        kubernetes_master_host: Some(row.hostname.to_string()),
        kubernetes_master_port: Some(API_PORT),
        kubernetes_worker_instances: Some(i64::from(shape.workers())),
        node_pool_instances: pools.map(|profile| {
            let numbers = profile.pools.iter().zip(&shape.pools);
            numbers
                .map(|(pool, group)| pks::PoolInstances {
                    name: pool.name.clone(),
                    instances: i64::from(group.instances),
                })
                .collect()
        }),
        cluster_tags: (!settings.tags.is_empty()).then(|| settings.tags.iter().map(tag).collect()),
        private_registries: (!settings.registries.is_empty()).then(|| registries::show(&settings.registries)),
        ..pks::ClusterParameters::default()
    }
}

/// A Kubernetes profile on the wire.
///
/// # Errors
/// When what is kept cannot be read.
pub(crate) fn kubernetes_profile(row: &ProfileRow) -> Result<pks::KubernetesProfile> {
    let list = |key: &str| -> Result<Vec<pks::Customization>> { db::from_json(&row.body[key].to_string()) };
    Ok(pks::KubernetesProfile {
        name: row.name.clone(),
        uuid: row.id.clone(),
        owner: row.owner.name.clone(),
        description: row.description.clone(),
        created_at: row.created_at / 1000,
        customizations: list("customizations")?,
        experimental_customizations: list("experimental_customizations")?,
    })
}

fn all(drain: Drain) -> DrainOverrides {
    DrainOverrides {
        timeout: Some(drain.timeout),
        grace_period: Some(drain.grace_period),
        force: Some(drain.force),
        ignore_daemonsets: Some(drain.ignore_daemonsets),
        delete_local_data: Some(drain.delete_local_data),
        force_node: Some(drain.force_node),
    }
}

fn settings(drain: &DrainOverrides) -> pks::KubernetesSettings {
    pks::KubernetesSettings {
        kubelet_drain_timeout: drain.timeout.map(|n| n.to_string()),
        kubelet_drain_grace_period: drain.grace_period.map(|n| n.to_string()),
        kubelet_drain_force: drain.force.map(|b| b.to_string()),
        kubelet_drain_ignore_daemonsets: drain.ignore_daemonsets.map(|b| b.to_string()),
        kubelet_drain_delete_local_data: drain.delete_local_data.map(|b| b.to_string()),
        kubelet_drain_force_node: drain.force_node.map(|b| b.to_string()),
    }
}
