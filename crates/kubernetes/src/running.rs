//! Which pods ran, and from when to when.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::ListParams;
use stolos_base::{Classify as _, retry};

use crate::client::Cluster;
use crate::error::Error;
use crate::nodes::policy;

/// Pods of one answer, so that no answer of a large cluster is large.
const PAGE: u32 = 500;

/// A pod that a node has begun to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRun {
    /// Its uid: another pod of the same name has another.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// When its node took it up, in milliseconds since 1970.
    pub since: i64,
    /// When its last container ended, where it is over; milliseconds since 1970.
    pub until: Option<i64>,
}

impl Cluster {
    /// The pods that run or have run and are still there.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit` for each page.
    pub async fn pod_runs(&self, limit: Duration) -> Result<Vec<PodRun>, Error> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut runs = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut params = ListParams::default().limit(PAGE);
            params.continue_token = next;
            let page = retry::run(policy(limit), Error::retryable, || async {
                pods.list(&params).await.map_err(Error::request("list the pods"))
            })
            .await?;
            runs.extend(page.items.iter().filter_map(run));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(runs);
            }
        }
    }
}

fn run(pod: &Pod) -> Option<PodRun> {
    let status = pod.status.as_ref()?;
    let since = millis(status.start_time.as_ref()?);
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let containers = status.container_statuses.iter().flatten();
    let ends = containers.filter_map(|container| {
        container
            .state
            .as_ref()?
            .terminated
            .as_ref()?
            .finished_at
            .as_ref()
    });
    // A pod that was evicted may have no containers any more; its conditions changed when it ended.
    let changes = status
        .conditions
        .iter()
        .flatten()
        .filter_map(|condition| condition.last_transition_time.as_ref());
    let until = is_over.then(|| {
        let end = ends.map(millis).max().or_else(|| changes.map(millis).max());
        end.unwrap_or(since).max(since)
    });
    Some(PodRun {
        uid: pod.metadata.uid.clone()?,
        namespace: pod.metadata.namespace.clone()?,
        since,
        until,
    })
}

fn millis(time: &Time) -> i64 {
    time.0.as_millisecond()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_runs_from_its_node_s_start_to_its_last_container_s_end() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"uid": "u", "namespace": "n", "name": "p"}, "status": status}),
            )
            .expect("a pod")
        };
        let start = "2026-11-01T00:00:00Z";
        let begin = 1_793_491_200_000;
        let running = run(&pod(json!({"phase": "Running", "startTime": start}))).expect("a run");
        assert_eq!((running.since, running.until), (begin, None));
        assert_eq!(run(&pod(json!({"phase": "Pending"}))), None, "no node has it");
        let ended = pod(
            json!({"phase": "Succeeded", "startTime": start, "containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-01T00:00:05Z"}}},
            {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-01T00:00:09Z"}}}]}),
        );
        assert_eq!(run(&ended).and_then(|run| run.until), Some(begin + 9000));
        let evicted = pod(json!({"phase": "Failed", "startTime": start}));
        assert_eq!(run(&evicted).and_then(|run| run.until), Some(begin));
    }
}
