//! From what is kept to what is shown.

use stolos_api::pks;

use crate::db::ClusterRow;
use crate::plans::Plan;
use crate::render::API_PORT;

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
            other: indexmap::IndexMap::new(),
        },
        network_profile_name: None,
        compute_profile_name: None,
        kubernetes_profile_name: None,
    }
}
