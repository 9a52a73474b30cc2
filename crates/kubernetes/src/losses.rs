//! What goes with nodes: volumes on their disks that are in use.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::api::ListParams;

use crate::client::Cluster;
use crate::error::Error;
use crate::volumes::node_of;

/// A volume on a node's disk that a claim has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalVolume {
    /// The node.
    pub node: String,
    /// The claim, `NAMESPACE/NAME`.
    pub claim: String,
}

impl Cluster {
    /// The volumes in use on the disks of some nodes, by node.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn local_volumes(
        &self,
        nodes: &BTreeSet<String>,
        limit: Duration,
    ) -> Result<Vec<LocalVolume>, Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let all = ListParams::default();
        let listed = self
            .asked("list the volumes", limit, || volumes.list(&all))
            .await?;
        let mut found: Vec<LocalVolume> = listed.iter().filter_map(local).collect();
        found.retain(|volume| nodes.contains(&volume.node));
        found.sort();
        Ok(found)
    }
}

/// A volume by its object, if a claim has it and it is on a node's disk, whoever made it.
fn local(volume: &PersistentVolume) -> Option<LocalVolume> {
    let spec = volume.spec.as_ref()?;
    let is_local = spec.local.is_some() || spec.host_path.is_some();
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let claim = spec.claim_ref.as_ref()?;
    let names = (claim.namespace.as_deref()?, claim.name.as_deref()?);
    if !is_local || phase != Some("Bound") {
        return None;
    }
    Some(LocalVolume {
        node: node_of(volume)?.to_owned(),
        claim: format!("{}/{}", names.0, names.1),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_in_use_on_a_node_s_disk_are_found() {
        let volume = |phase: &str, source: &str| -> PersistentVolume {
            let value = json!({"metadata": {"name": "pvc-1"}, "status": {"phase": phase}, "spec": {
                source: {"path": "/var/vcap/store/pvc-1"},
                "claimRef": {"namespace": "web", "name": "data"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["worker-1"]}]}]}}}});
            serde_json::from_value(value).expect("a volume")
        };
        let found = local(&volume("Bound", "local")).expect("in use");
        assert_eq!(
            (found.node.as_str(), found.claim.as_str()),
            ("worker-1", "web/data")
        );
        assert!(local(&volume("Released", "local")).is_none());
        let elsewhere = json!({"metadata": {"name": "x"}, "status": {"phase": "Bound"}, "spec": {
            "nfs": {"server": "s", "path": "/"}, "claimRef": {"namespace": "web", "name": "data"}}});
        assert!(local(&serde_json::from_value(elsewhere).expect("a volume")).is_none());
    }
}
