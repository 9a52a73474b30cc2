//! Proof that a cluster works: a pod is scheduled, runs, DNS answers from within it, and its log can be read.
//!
//! The answer is taken from the pod's log as it is written: that a container has ended is noticed up to a second later.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{LogParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use stolos_base::poll::TimedOut;
use stolos_base::{Class, Classify as _, chain, retry};

use crate::client::Cluster;
use crate::error::Error;
use crate::pods;

const NAMESPACE: &str = "default";
/// What the pod writes when DNS has answered.
const ANSWERED: &str = "answered";
/// Pause between attempts to read the log of a container that has not started.
const LOG_PAUSE: Duration = Duration::from_millis(50);

/// What is tested.
#[derive(Clone, Debug)]
pub struct SmokeTest {
    /// Name of the pod. A pod of that name left by an earlier test is removed first.
    pub pod: String,
    /// An image with `sh`, `nslookup`, `timeout` and `sleep` that is on every node.
    pub image: String,
    /// The name that DNS is asked for.
    pub lookup: String,
    /// How long it may take as a whole.
    pub limit: Duration,
}

impl SmokeTest {
    /// The usual test: the API's own service name, asked from a pod with our busybox image.
    pub fn new(pod: impl Into<String>, limit: Duration) -> Self {
        Self {
            pod: pod.into(),
            image: "stolos.local/busybox:1".to_owned(),
            lookup: "kubernetes.default.svc.cluster.local".to_owned(),
            limit,
        }
    }
}

/// When things happened, counted from the start of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmokeTimes {
    /// The API server took the pod.
    pub created: Duration,
    /// The pod was seen running.
    pub running: Duration,
    /// DNS had answered.
    pub answered: Duration,
}

impl Cluster {
    /// Runs the test and removes its pod again, also when it failed.
    ///
    /// # Errors
    /// [`Error::Smoke`] with the pod's own words when it ran and failed, [`Error::TimedOut`] with what is being waited for.
    pub async fn smoke_test(&self, test: &SmokeTest) -> Result<SmokeTimes, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let result = match pods::remove(&pods, &test.pod, test.limit).await {
            Ok(()) => self.run(&pods, test).await,
            Err(error) => Err(error),
        };
        let removed = pods::remove(&pods, &test.pod, test.limit).await;
        let times = result?;
        removed?;
        Ok(times)
    }

    async fn run(&self, pods: &Api<Pod>, test: &SmokeTest) -> Result<SmokeTimes, Error> {
        let start = Instant::now();
        let pod = pod(test);
        let policy = retry::Policy {
            first: Duration::from_millis(25),
            longest: Duration::from_millis(200),
            deadline: test.limit,
        };
        // A fresh namespace gets its service account a moment after it appears; until then pods are refused with 403.
        let may_come = |error: &Error| {
            matches!(
                error.class(),
                Class::Unavailable | Class::Denied | Class::NotFound
            )
        };
        retry::run(policy, may_come, || async {
            pods.create(&PostParams::default(), &pod)
                .await
                .map_err(Error::request(format!("create pod `{}`", test.pod)))
        })
        .await?;
        let created = start.elapsed();
        let mut running = None;
        let mut last = "nothing has happened to the pod yet".to_owned();
        let fate = async {
            loop {
                match self.watch(pods, test, start, &mut running, &mut last).await {
                    Ok(Some(outcome)) => return outcome,
                    Ok(None) => {}
                    Err(error) => last = chain(&error),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let wait = async {
            tokio::select! {
                outcome = fate => outcome,
                () = self.answer(pods, &test.pod) => Ok(()),
            }
        };
        match tokio::time::timeout(test.limit.saturating_sub(created), wait).await {
            Ok(Ok(())) => {
                let answered = start.elapsed();
                Ok(SmokeTimes {
                    created,
                    running: running.unwrap_or(answered),
                    answered,
                })
            }
            Ok(Err(problem)) => {
                let params = LogParams {
                    tail_lines: Some(5),
                    ..LogParams::default()
                };
                let said = pods.logs(&test.pod, &params).await.unwrap_or_default();
                let problem = if said.trim().is_empty() {
                    problem
                } else {
                    format!("{problem}: {}", said.trim())
                };
                Err(Error::Smoke {
                    pod: test.pod.clone(),
                    problem,
                })
            }
            Err(_) => Err(TimedOut {
                what: format!("the test pod `{}`", test.pod),
                last,
                after: test.limit,
            }
            .into()),
        }
    }

    /// Reads the pod's log until it says that DNS answered. While there is no log yet, or when the stream breaks, it is tried again.
    async fn answer(&self, pods: &Api<Pod>, pod: &str) {
        let params = LogParams {
            follow: true,
            ..LogParams::default()
        };
        loop {
            if let Ok(log) = pods.log_stream(pod, &params).await {
                let mut lines = pin!(log.lines());
                while let Ok(Some(line)) = lines.try_next().await {
                    if line.trim() == ANSWERED {
                        return;
                    }
                }
            }
            tokio::time::sleep(LOG_PAUSE).await;
        }
    }

    /// One watch; `None` when it ended before the pod did.
    async fn watch(
        &self,
        pods: &Api<Pod>,
        test: &SmokeTest,
        start: Instant,
        running: &mut Option<Duration>,
        last: &mut String,
    ) -> Result<Option<Result<(), String>>, Error> {
        let what = || Error::request(format!("watch pod `{}`", test.pod));
        let params = WatchParams::default()
            .fields(&format!("metadata.name={}", test.pod))
            .timeout(20);
        let events = pods.watch(&params, "0").await.map_err(what())?;
        let mut events = pin!(events);
        while let Some(event) = events.try_next().await.map_err(what())? {
            let pod = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
                WatchEvent::Deleted(_) => return Ok(Some(Err("somebody deleted it".to_owned()))),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(_) => return Ok(None),
            };
            match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Succeeded") => return Ok(Some(Ok(()))),
                Some("Failed") => return Ok(Some(Err(pods::words(&pod)))),
                Some("Running") => {
                    running.get_or_insert_with(|| start.elapsed());
                    *last = "the pod runs, but DNS has not answered in it".to_owned();
                }
                _ => *last = pods::words(&pod),
            }
        }
        Ok(None)
    }
}

fn pod(test: &SmokeTest) -> Pod {
    // Questions are asked side by side. As long as the DNS service has nobody to answer, the kernel refuses them with ICMP errors,
    // but only some: after six in a row, one a second. A question that meets silence would wait a resolver's whole timeout.
    let script = format!(
        "while [ ! -e /tmp/{ANSWERED} ]; do \
         (timeout 2 nslookup {name} >/tmp/said 2>&1 && : >/tmp/{ANSWERED}) & sleep 0.1; done; echo {ANSWERED}",
        name = test.lookup
    );
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": test.pod, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "stolos"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": test.limit.as_secs().max(1),
            "containers": [{
                "name": "lookup",
                "image": test.image,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
            }],
        },
    }))
    .expect("the pod above is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_hangs_says_why() {
        let pod: Pod = serde_json::from_value(json!({"status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}}))
        .expect("a pod");
        assert_eq!(pods::words(&pod), "PodScheduled: 0/1 nodes are available");
        let pod: Pod = serde_json::from_value(json!({"status": {"phase": "Pending", "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}}))
        .expect("a pod");
        assert_eq!(pods::words(&pod), "container waits: ErrImagePull no such image");
    }
}
