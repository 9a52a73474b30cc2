//! Labels and taints of the groups of nodes.
//!
//! A kubelet puts them on its node when that registers, and never again; so what changes for nodes that stay is changed here. What was put on
//! them before is kept in a config map, because only that may be taken away: the rest is the people's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Taint};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::{Class, Classify as _, retry};

use crate::apply::FIELD_MANAGER;
use crate::client::Cluster;
use crate::error::Error;
use crate::nodes::policy;

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "stolos-node-groups";
const KEY: &str = "groups.json";

/// What the nodes of a group have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Mark>,
}

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Key.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Cluster {
    /// Has the nodes of each group have its labels and taints; those of an earlier call that are not named any more are taken away. Nodes are
    /// called `GROUP-INDEX`; nodes of other groups are left alone.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn mark_nodes(&self, groups: &BTreeMap<String, Marks>, limit: Duration) -> Result<(), Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let before = self.groups_before(&maps, limit).await?;
        let list = retry::run(policy(limit), Error::retryable, || async {
            nodes
                .list(&ListParams::default())
                .await
                .map_err(Error::request("list the nodes"))
        })
        .await?;
        for node in &list.items {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let group = name.rsplit_once('-').map_or(name, |(group, _)| group);
            let Some(wanted) = groups.get(group) else {
                continue;
            };
            if change(node, before.get(group), wanted).is_none() {
                continue;
            }
            // A kubelet writes to its node all the time, so the version may be another by now.
            let again = |error: &Error| error.retryable() || error.class() == Class::Conflict;
            retry::run(policy(limit), again, || async {
                let what = || Error::request(format!("mark node `{name}`"));
                let node = nodes.get(name).await.map_err(what())?;
                if let Some(patch) = change(&node, before.get(group), wanted) {
                    let patch = Patch::Merge(&patch);
                    nodes
                        .patch(name, &PatchParams::default(), &patch)
                        .await
                        .map_err(what())?;
                }
                Ok(())
            })
            .await?;
        }
        // Last, so that a call that was cut off still knows what to take away.
        if before == *groups {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "stolos"}},
            "data": {KEY: json!(groups).to_string()},
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        retry::run(policy(limit), Error::retryable, || async {
            maps.patch(CONFIG_MAP, &params, &Patch::Apply(&map))
                .await
                .map_err(Error::request("note the marks of nodes"))
        })
        .await?;
        Ok(())
    }

    async fn groups_before(
        &self,
        maps: &Api<ConfigMap>,
        limit: Duration,
    ) -> Result<BTreeMap<String, Marks>, Error> {
        let found = retry::run(policy(limit), Error::retryable, || async {
            maps.get(CONFIG_MAP)
                .await
                .map_err(Error::request("read the marks of nodes"))
        })
        .await;
        match found {
            // What somebody has made unreadable is as if it were not there: nothing is taken away then.
            Ok(map) => Ok(map
                .data
                .and_then(|data| serde_json::from_str(data.get(KEY)?).ok())
                .unwrap_or_default()),
            Err(error) if error.class() == Class::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }
}

/// What has to change of a node, as a merge patch.
fn change(node: &Node, before: Option<&Marks>, wanted: &Marks) -> Option<Value> {
    let mut labels = serde_json::Map::new();
    let empty = BTreeMap::new();
    let has = node.metadata.labels.as_ref().unwrap_or(&empty);
    for key in before.iter().flat_map(|marks| marks.labels.keys()) {
        if !wanted.labels.contains_key(key) && has.contains_key(key) {
            labels.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in &wanted.labels {
        if has.get(key) != Some(value) {
            labels.insert(key.clone(), json!(value));
        }
    }
    let own: BTreeSet<(&str, &str)> = before
        .into_iter()
        .chain([wanted])
        .flat_map(|marks| &marks.taints)
        .map(|taint| (taint.key.as_str(), taint.effect.as_str()))
        .collect();
    let there: Vec<Taint> = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let mut taints: Vec<Taint> = there
        .iter()
        .filter(|taint| !own.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for mark in &wanted.taints {
        let same = |taint: &&Taint| {
            taint.key == mark.key
                && taint.effect == mark.effect
                && taint.value.as_deref().unwrap_or_default() == mark.value
        };
        taints.push(match there.iter().find(same) {
            Some(taint) => taint.clone(),
            None => Taint {
                key: mark.key.clone(),
                effect: mark.effect.clone(),
                value: Some(mark.value.clone()).filter(|value| !value.is_empty()),
                time_added: None,
            },
        });
    }
    let sorted = |taints: &[Taint]| {
        let mut texts: Vec<String> = taints.iter().map(|taint| json!(taint).to_string()).collect();
        texts.sort();
        texts
    };
    let mut patch = json!({});
    if !labels.is_empty() {
        patch["metadata"] = json!({"labels": labels});
    }
    if sorted(&taints) != sorted(&there) {
        // A merge patch replaces lists; the version makes sure that nobody's taint of this moment is lost.
        patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
        patch["spec"] = json!({"taints": taints});
    }
    (patch != json!({})).then_some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(labels: Value, taints: &[(&str, &str)]) -> Marks {
        Marks {
            labels: serde_json::from_value(labels).expect("labels"),
            taints: taints
                .iter()
                .map(|(key, value)| Mark {
                    key: (*key).to_owned(),
                    value: (*value).to_owned(),
                    effect: "NoSchedule".to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn what_was_ours_goes_and_what_is_the_peoples_stays() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "worker-a-0", "resourceVersion": "7", "labels": {"old": "1", "same": "1", "theirs": "1"}},
            "spec": {"taints": [
                {"key": "gone", "value": "x", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a node");
        let before = marks(json!({"old": "1", "same": "1"}), &[("gone", "x")]);
        let wanted = marks(json!({"same": "1", "new": "2"}), &[("only", "batch")]);
        assert_eq!(
            change(&node, Some(&before), &wanted).expect("a change"),
            json!({
                "metadata": {"labels": {"old": null, "new": "2"}, "resourceVersion": "7"},
                "spec": {"taints": [
                    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"},
                    {"key": "only", "value": "batch", "effect": "NoSchedule"}]},
            })
        );
        assert_eq!(change(&node, None, &Marks::default()), None, "nothing of ours");
        let as_is = marks(json!({"old": "1"}), &[("gone", "x")]);
        assert_eq!(change(&node, Some(&as_is), &as_is), None, "nothing changes");
    }
}
