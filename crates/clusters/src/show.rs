//! From what is kept to what is shown.

use stolos_api::pks;

use crate::db::ClusterRow;
use crate::plans::{Drain, Plan};
use crate::render::API_PORT;
use crate::settings::{DrainOverrides, Tag};

/// Shown in place of addresses that are not known yet; PKS's words.
const IN_PROGRESS: &str = "In Progress";

/// A plan on the wire.
pub(crate) fn plan(id: &str, plan: &Plan) -> pks::Plan {
    pks::Plan {
        id: id.to_owned(),
        name: plan.name.clone(),
        description: plan.description.clone(),
        worker_instances: plan.worker_instances,
        master_instances: 1,
        allow_privileged_containers: plan.allow_privileged_containers,
    }
}

/// A cluster on the wire.
pub(crate) fn cluster(row: &ClusterRow) -> pks::Cluster {
    pks::Cluster {
        name: row.name.to_string(),
        plan_name: row.plan.name.clone(),
        last_action: row.action,
        last_action_state: row.state,
        last_action_description: row.description.clone(),
        uuid: row.id.to_string(),
        kubernetes_master_ips: vec![row.address.clone().unwrap_or_else(|| IN_PROGRESS.to_owned())],
        k8s_version: row.plan.kubernetes_version.clone(),
        pks_version: env!("CARGO_PKG_VERSION").to_owned(),
        parameters: pks::ClusterParameters {
            kubernetes_master_host: Some(row.hostname.to_string()),
            kubernetes_master_port: Some(API_PORT),
            kubernetes_worker_instances: Some(i64::from(row.workers)),
            cluster_tags: (!row.settings.tags.is_empty()).then(|| {
                let tag = |tag: &Tag| pks::ClusterTag {
                    name: tag.name.clone(),
                    value: tag.value.clone(),
                    category: None,
                };
                row.settings.tags.iter().map(tag).collect()
            }),
            ..pks::ClusterParameters::default()
        },
        network_profile_name: None,
        compute_profile_name: None,
        kubernetes_profile_name: None,
    }
}

/// A cluster on the wire, with its settings.
pub(crate) fn cluster_details(row: &ClusterRow) -> pks::Cluster {
    let mut shown = cluster(row);
    shown.parameters.kubernetes_setting_plan_details = Some(settings(&all(row.plan.drain)));
    if row.settings.drain != DrainOverrides::default() {
        shown.parameters.kubernetes_setting_cluster_details = Some(settings(&row.settings.drain));
    }
    shown
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
