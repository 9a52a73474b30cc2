//! What a cluster is told beside its manifest: how nodes are drained, how many DNS servers there are, which nodes it has.
//!
//! These change without a machine being touched. The drain settings lie in a config map that every node may read, so that an update of
//! them is there at once; a job property would restart every node to say how it is to be restarted.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use stolos_base::{Class, Classify as _, retry};

use crate::apply::FIELD_MANAGER;
use crate::client::Cluster;
use crate::error::Error;
use crate::nodes::policy;

const NAMESPACE: &str = "kube-system";
/// The config map with the drain settings. The release's role for nodes names it too.
const CONFIG_MAP: &str = "stolos-node-settings";
const KEY: &str = "drain.json";

/// How nodes are drained; the fields are PKS's six.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainSettings {
    /// Minutes that a drain may take; 0 for no limit.
    pub timeout_minutes: u32,
    /// Seconds that a pod gets to end; -1 for the pod's own.
    pub grace_period_seconds: i32,
    /// Whether pods that no controller makes anew are evicted too.
    pub force: bool,
    /// Whether pods of daemon sets are left where they are; otherwise they stop the drain.
    pub ignore_daemonsets: bool,
    /// Whether pods with data in `emptyDir` volumes are evicted too.
    pub delete_local_data: bool,
    /// Whether pods that are left after all that are deleted without asking anybody.
    pub force_node: bool,
}

impl Cluster {
    /// Writes the drain settings where nodes read them.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn set_drain_settings(&self, settings: &DrainSettings, limit: Duration) -> Result<(), Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let text = json!(settings).to_string();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "stolos"}},
            "data": {KEY: text},
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        retry::run(policy(limit), Error::retryable, || async {
            maps.patch(CONFIG_MAP, &params, &Patch::Apply(&map))
                .await
                .map_err(Error::request("write the drain settings"))
        })
        .await?;
        Ok(())
    }

    /// The drain settings, if the cluster has any that are understood.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn drain_settings(&self) -> Result<Option<DrainSettings>, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        match maps
            .get(CONFIG_MAP)
            .await
            .map_err(Error::request("read the drain settings"))
        {
            Ok(map) => Ok(map
                .data
                .and_then(|data| serde_json::from_str(data.get(KEY)?).ok())),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has so many DNS servers run.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn scale_dns(&self, replicas: u32, limit: Duration) -> Result<(), Error> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let patch = json!({"spec": {"replicas": replicas}});
        // Right after the machines the add-on may not be there yet.
        let may_come = |error: &Error| error.retryable() || error.class() == Class::NotFound;
        retry::run(policy(limit), may_come, || async {
            deployments
                .patch_scale("coredns", &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .map_err(Error::request("scale the DNS service"))
        })
        .await?;
        Ok(())
    }

    /// Deletes the nodes whose machines are gone: all but `keep`. Gives the names of those that were deleted.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn forget_nodes(&self, keep: &BTreeSet<String>, limit: Duration) -> Result<Vec<String>, Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut forgotten = Vec::new();
        for name in self.node_names(limit).await? {
            if keep.contains(&name) {
                continue;
            }
            let deleted = retry::run(policy(limit), Error::retryable, || async {
                nodes
                    .delete(&name, &DeleteParams::default())
                    .await
                    .map_err(Error::request(format!("delete node `{name}`")))
            })
            .await;
            match deleted {
                Ok(_) => forgotten.push(name),
                Err(error) if error.class() == Class::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}
