//! Conditions of a node beside the kubelet's own, and events about them.
//!
//! Names and reasons are those of upstream's node-problem-detector, so that what people know to look for is there. Everything works with the
//! node's own identity: NodeRestriction lets it change its own status only.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::{Event, Node};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use stolos_base::ids::random_hex;
use stolos_base::{Class, Classify as _, retry};

use crate::client::Cluster;
use crate::error::Error;
use crate::nodes::policy;

/// Where events about nodes lie, which are in no namespace.
const NAMESPACE: &str = "default";
/// Who says so.
const COMPONENT: &str = "node-problems";

/// Something that is so, or is not, on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// `KernelDeadlock` for instance; `True` is bad for all of them.
    pub kind: &'static str,
    /// Whether there is a problem.
    pub is_problem: bool,
    /// One word.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

impl Cluster {
    /// The conditions of a node, whether each is a problem; `None` when the cluster does not know the node.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn node_conditions(
        &self,
        node: &str,
        limit: Duration,
    ) -> Result<Option<BTreeMap<String, bool>>, Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = retry::run(policy(limit), Error::retryable, || async {
            nodes
                .get(node)
                .await
                .map_err(Error::request(format!("get node `{node}`")))
        })
        .await;
        let node = match found {
            Ok(node) => node,
            Err(error) if error.class() == Class::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let conditions = node.status.and_then(|status| status.conditions);
        Ok(Some(
            conditions
                .into_iter()
                .flatten()
                .map(|condition| (condition.type_, condition.status == "True"))
                .collect(),
        ))
    }

    /// Writes conditions of a node as having changed `now`; its other conditions stay.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn set_node_conditions(
        &self,
        node: &str,
        conditions: &[&NodeCondition],
        now: Timestamp,
        limit: Duration,
    ) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let time = whole_seconds(now);
        let entries: Vec<serde_json::Value> = conditions
            .iter()
            .map(|condition| {
                json!({
                    "type": condition.kind,
                    "status": if condition.is_problem { "True" } else { "False" },
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastHeartbeatTime": time,
                    "lastTransitionTime": time,
                })
            })
            .collect();
        // A strategic patch merges the list by `type`.
        let patch = Patch::Strategic(json!({"status": {"conditions": entries}}));
        retry::run(policy(limit), Error::retryable, || async {
            nodes
                .patch_status(node, &PatchParams::default(), &patch)
                .await
                .map_err(Error::request(format!("write the conditions of node `{node}`")))
        })
        .await?;
        Ok(())
    }

    /// Adds an event about a condition of a node.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn tell_node_event(
        &self,
        node: &str,
        condition: &NodeCondition,
        now: Timestamp,
        limit: Duration,
    ) -> Result<(), Error> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let time = whole_seconds(now);
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{node}.{}", random_hex(8)), "namespace": NAMESPACE},
            // Kubelets give the node's name as its uid, too, and `kubectl describe` looks for that.
            "involvedObject": {"kind": "Node", "name": node, "uid": node},
            "type": if condition.is_problem { "Warning" } else { "Normal" },
            "reason": condition.reason,
            "message": condition.message,
            "source": {"component": COMPONENT, "host": node},
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
        });
        let event: Event = serde_json::from_value(event).expect("an event");
        retry::run(policy(limit), Error::retryable, || async {
            events
                .create(&PostParams::default(), &event)
                .await
                .map_err(Error::request(format!("tell an event of node `{node}`")))
        })
        .await?;
        Ok(())
    }
}

/// As Kubernetes writes times.
fn whole_seconds(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).to_string()
}
