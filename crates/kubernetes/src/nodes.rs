//! Nodes: waiting until they are Ready, labels, cordon and drain.
//!
//! All but [`Cluster::label_node`] work with the node's own identity: the Node authorizer lets it see its own node object and its own
//! pods, and NodeRestriction lets it mark itself unschedulable and evict the pods bound to it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;
use stolos_base::poll::{self, TimedOut};
use stolos_base::{Class, Classify as _, chain, retry};

use crate::apply::FIELD_MANAGER;
use crate::client::Cluster;
use crate::error::Error;
use crate::settings::DrainSettings;

/// Pause before a watch that ended is opened again, and between attempts while the API server is not there.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause between looks at pods that are being evicted: ending a pod takes seconds.
const DRAIN_PAUSE: Duration = Duration::from_millis(500);
/// An API server that does not answer for this long cannot move pods anywhere, so draining has no sense.
const UNREACHABLE: Duration = Duration::from_secs(10);

/// What a drain may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainOptions {
    /// How long it may take as a whole; `None` for no limit.
    pub limit: Option<Duration>,
    /// How long a pod gets to end, in seconds; `None` for the pod's own.
    pub grace_period: Option<u32>,
    /// What happens to pods that no controller makes anew.
    pub unmanaged: Loss,
    /// What happens to pods whose data in `emptyDir` volumes is lost.
    pub local_data: Loss,
    /// What happens where daemon sets have pods on the node. They stay either way; whoever refuses that wants no drain then.
    pub daemon_sets: Loss,
    /// Whether pods that are left in the end are deleted without asking disruption budgets or the pods themselves.
    pub force_node: bool,
}

impl From<DrainSettings> for DrainOptions {
    fn from(settings: DrainSettings) -> Self {
        let minutes = u64::from(settings.timeout_minutes);
        Self {
            limit: (minutes > 0).then(|| Duration::from_secs(minutes * 60)),
            grace_period: u32::try_from(settings.grace_period_seconds).ok(),
            unmanaged: settings.force.into(),
            local_data: settings.delete_local_data.into(),
            daemon_sets: settings.ignore_daemonsets.into(),
            force_node: settings.force_node,
        }
    }
}

/// Whether a loss is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is.
    Accept,
    /// The drain fails before anything is evicted.
    Refuse,
}

impl From<bool> for Loss {
    fn from(accepted: bool) -> Self {
        if accepted { Self::Accept } else { Self::Refuse }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// This many pods were evicted and are gone.
    Evicted(usize),
    /// The API server does not answer, so nothing could be moved.
    Unreachable,
    /// The cluster does not know the node.
    NoSuchNode,
}

impl Cluster {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// The names of all nodes, in order.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn node_names(&self, limit: Duration) -> Result<Vec<String>, Error> {
        let list = retry::run(policy(limit), Error::retryable, || async {
            self.nodes()
                .list(&ListParams::default())
                .await
                .map_err(Error::request("list the nodes"))
        })
        .await?;
        let mut names: Vec<String> = list
            .items
            .into_iter()
            .filter_map(|node| node.metadata.name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Waits until the node is there and Ready.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with what the node said last.
    pub async fn wait_node_ready(&self, node: &str, limit: Duration) -> Result<(), Error> {
        self.wait_node(node, limit, "to become Ready", |node| {
            match ready_condition(node) {
                Some((true, _)) => Ok(()),
                Some((false, message)) => Err(message),
                None => Err("it has no Ready condition yet".to_owned()),
            }
        })
        .await
    }

    /// Watches the node until `condition` is `Ok`; its `Err` text says how things stand.
    async fn wait_node(
        &self,
        node: &str,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Node) -> Result<(), String>,
    ) -> Result<(), Error> {
        let mut last = "the API server has not answered yet".to_owned();
        let wait = async {
            loop {
                match self.watch_node(node, &condition, &mut last).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => last = chain(&error),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(()) => Ok(()),
            Err(_) => Err(TimedOut {
                what: format!("node `{node}` {what}"),
                last,
                after: limit,
            }
            .into()),
        }
    }

    /// One watch; `false` when it ended without the condition.
    async fn watch_node(
        &self,
        node: &str,
        condition: &impl Fn(&Node) -> Result<(), String>,
        last: &mut String,
    ) -> Result<bool, Error> {
        let what = || Error::request(format!("watch node `{node}`"));
        let params = WatchParams::default()
            .fields(&format!("metadata.name={node}"))
            .timeout(20);
        // From version 0 the watch begins with the object as it is, if it is there.
        let events = self.nodes().watch(&params, "0").await.map_err(what())?;
        let mut events = pin!(events);
        "the node has not registered yet".clone_into(last);
        while let Some(event) = events.try_next().await.map_err(what())? {
            match event {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => match condition(&node) {
                    Ok(()) => return Ok(true),
                    Err(text) => *last = text,
                },
                WatchEvent::Deleted(_) => "the node was deleted".clone_into(last),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Puts labels on a node; waits for it to register.
    ///
    /// # Errors
    /// When it does not register in time or the API server refuses.
    pub async fn label_node(
        &self,
        node: &str,
        labels: &BTreeMap<String, String>,
        limit: Duration,
    ) -> Result<(), Error> {
        self.wait_node(node, limit, "to register", |_| Ok(())).await?;
        let patch = json!({"metadata": {"labels": labels}});
        self.patch_node(node, &patch, limit).await
    }

    /// Marks a node so that no pod is scheduled on it, or takes the mark away. Leaves a node alone that is as wanted.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn set_schedulable(&self, node: &str, schedulable: bool, limit: Duration) -> Result<(), Error> {
        let api = self.nodes();
        let found = retry::run(policy(limit), Error::retryable, || async {
            api.get(node)
                .await
                .map_err(Error::request(format!("get node `{node}`")))
        })
        .await?;
        let is_marked = found.spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        if is_marked != schedulable {
            return Ok(());
        }
        // A mark is taken away by null: `false` would stay in the object.
        let mark = if schedulable {
            serde_json::Value::Null
        } else {
            true.into()
        };
        self.patch_node(node, &json!({"spec": {"unschedulable": mark}}), limit)
            .await
    }

    async fn patch_node(&self, node: &str, patch: &serde_json::Value, limit: Duration) -> Result<(), Error> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        retry::run(policy(limit), Error::retryable, || async {
            let patched = self.nodes().patch(node, &params, &Patch::Merge(patch)).await;
            patched.map_err(Error::request(format!("change node `{node}`")))
        })
        .await?;
        Ok(())
    }

    /// Marks the node unschedulable and evicts its pods, respecting disruption budgets; waits until they are gone. Pods of daemon sets,
    /// mirror pods and finished pods stay.
    ///
    /// # Errors
    /// [`Error::CannotDrain`] before anything is evicted when a loss is refused, [`Error::TimedOut`] with the pods that are left, or
    /// what the API server answers.
    pub async fn drain(
        &self,
        node: &str,
        options: DrainOptions,
        mut progress: impl FnMut(&str),
    ) -> Result<Drained, Error> {
        match self.set_schedulable(node, false, UNREACHABLE).await {
            Ok(()) => {}
            Err(error) if error.class() == Class::NotFound => return Ok(Drained::NoSuchNode),
            Err(error) if error.class() == Class::Unavailable => return Ok(Drained::Unreachable),
            Err(error) => return Err(error),
        }
        match self.empty(node, options, &mut progress).await {
            Ok(count) => Ok(Drained::Evicted(count)),
            Err(error) if options.force_node => {
                progress(&format!("{}: deleting what is left", chain(&error)));
                self.delete_pods(node, options).await.map(Drained::Evicted)
            }
            Err(error) => Err(error),
        }
    }

    /// Evicts the pods of a marked node and waits until they and their volumes are gone.
    async fn empty(
        &self,
        node: &str,
        options: DrainOptions,
        progress: &mut impl FnMut(&str),
    ) -> Result<usize, Error> {
        let mut left = Vec::new();
        for pod in self.pods_of(node).await? {
            match fate(&pod, options) {
                Fate::Stays => {}
                Fate::Evicted => left.push(Victim::of(&pod)),
                Fate::Refused(problem) => {
                    return Err(Error::CannotDrain {
                        node: node.to_owned(),
                        problem,
                    });
                }
            }
        }
        let count = left.len();
        let start = Instant::now();
        while !left.is_empty() {
            let mut news = false;
            for victim in left.iter_mut().filter(|victim| !victim.asked) {
                if self.evict(victim, options.grace_period).await? {
                    progress(&format!("evicting pod {}/{}", victim.namespace, victim.name));
                    victim.asked = true;
                    news = true;
                } else {
                    news |= !victim.held;
                    victim.held = true;
                }
            }
            // Said last, because the last words are those that stay to be seen.
            if news {
                for victim in left.iter().filter(|victim| !victim.asked) {
                    progress(&format!(
                        "pod {}/{} is held by a disruption budget",
                        victim.namespace, victim.name
                    ));
                }
            }
            tokio::time::sleep(DRAIN_PAUSE).await;
            let there: Vec<String> = self
                .pods_of(node)
                .await?
                .iter()
                .map(|pod| Victim::of(pod).uid)
                .collect();
            left.retain(|victim| there.contains(&victim.uid));
            if let Some(limit) = options.limit
                && start.elapsed() >= limit
                && !left.is_empty()
            {
                let names: Vec<String> = left
                    .iter()
                    .map(|v| format!("{}/{}", v.namespace, v.name))
                    .collect();
                return Err(TimedOut {
                    what: format!("the pods of node `{node}` to end"),
                    last: format!("still there: {}", names.join(", ")),
                    after: limit,
                }
                .into());
            }
        }
        self.wait_volumes(
            node,
            options.limit.map(|limit| limit.saturating_sub(start.elapsed())),
            progress,
        )
        .await?;
        Ok(count)
    }

    /// Waits until no volume is in use on the node: one that is still attached when its machine goes cannot be attached elsewhere for minutes.
    async fn wait_volumes(
        &self,
        node: &str,
        limit: Option<Duration>,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), Error> {
        let start = Instant::now();
        let mut told = false;
        loop {
            let found = retry::run(policy(UNREACHABLE), Error::retryable, || async {
                self.nodes()
                    .get(node)
                    .await
                    .map_err(Error::request(format!("get node `{node}`")))
            })
            .await?;
            let volumes = found
                .status
                .and_then(|status| status.volumes_in_use)
                .unwrap_or_default();
            if volumes.is_empty() {
                return Ok(());
            }
            if !told {
                told = true;
                progress(&format!(
                    "waiting for volumes to be detached: {}",
                    volumes.join(", ")
                ));
            }
            if limit.is_some_and(|limit| start.elapsed() >= limit) {
                return Err(TimedOut {
                    what: format!("the volumes of node `{node}` to be detached"),
                    last: format!("still in use: {}", volumes.join(", ")),
                    after: start.elapsed(),
                }
                .into());
            }
            tokio::time::sleep(DRAIN_PAUSE).await;
        }
    }

    /// Deletes the pods of a node at once.
    async fn delete_pods(&self, node: &str, options: DrainOptions) -> Result<usize, Error> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let ruthless = DrainOptions {
            unmanaged: Loss::Accept,
            local_data: Loss::Accept,
            daemon_sets: Loss::Accept,
            ..options
        };
        let mut count = 0;
        for pod in self.pods_of(node).await? {
            if fate(&pod, ruthless) != Fate::Evicted {
                continue;
            }
            let victim = Victim::of(&pod);
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace);
            let what = format!("delete pod `{}/{}`", victim.namespace, victim.name);
            match pods
                .delete(&victim.name, &params)
                .await
                .map_err(Error::request(what))
            {
                Ok(_) => count += 1,
                Err(error) if error.class() == Class::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    async fn pods_of(&self, node: &str) -> Result<Vec<Pod>, Error> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        retry::run(policy(UNREACHABLE), Error::retryable, || async {
            let list = pods
                .list(&params)
                .await
                .map_err(Error::request(format!("list the pods of node `{node}`")))?;
            Ok(list.items)
        })
        .await
    }

    /// Asks for one eviction; `false` when a disruption budget forbids it for now.
    async fn evict(&self, victim: &Victim, grace_period: Option<u32>) -> Result<bool, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace);
        let params = EvictParams {
            delete_options: Some(DeleteParams {
                grace_period_seconds: grace_period,
                ..DeleteParams::default()
            }),
            ..EvictParams::default()
        };
        let what = format!("evict pod `{}/{}`", victim.namespace, victim.name);
        match pods
            .evict(&victim.name, &params)
            .await
            .map_err(Error::request(what))
        {
            Ok(_) => Ok(true),
            Err(error) => match error.status() {
                Some(404) => Ok(true),
                Some(429 | 500..=599) => Ok(false),
                None if error.retryable() => Ok(false),
                _ => Err(error),
            },
        }
    }
}

pub(crate) fn policy(limit: Duration) -> retry::Policy {
    retry::Policy {
        first: Duration::from_millis(50),
        longest: Duration::from_secs(1),
        deadline: limit,
    }
}

struct Victim {
    namespace: String,
    name: String,
    uid: String,
    asked: bool,
    /// Somebody was told that a disruption budget holds it.
    held: bool,
}

impl Victim {
    fn of(pod: &Pod) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
            asked: false,
            held: false,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Evicted,
    Refused(String),
}

fn fate(pod: &Pod, options: DrainOptions) -> Fate {
    let victim = Victim::of(pod);
    let title = format!("{}/{}", victim.namespace, victim.name);
    let is_mirror = pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let controller = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    if is_mirror || matches!(phase, Some("Succeeded" | "Failed")) {
        return Fate::Stays;
    }
    if controller.is_some_and(|owner| owner.kind == "DaemonSet") {
        return match options.daemon_sets {
            Loss::Accept => Fate::Stays,
            Loss::Refuse => Fate::Refused(format!(
                "the pod `{title}` belongs to a daemon set, which would make it anew"
            )),
        };
    }
    if controller.is_none() && options.unmanaged == Loss::Refuse {
        return Fate::Refused(format!("nothing would make the pod `{title}` anew"));
    }
    let has_local_data = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_ref())
        .is_some_and(|volumes| volumes.iter().any(|volume| volume.empty_dir.is_some()));
    if has_local_data && options.local_data == Loss::Refuse {
        return Fate::Refused(format!("the pod `{title}` has data in an emptyDir volume"));
    }
    Fate::Evicted
}

/// Whether the node is Ready, and its own words when not; `None` while it has not said anything.
fn ready_condition(node: &Node) -> Option<(bool, String)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status == "True", ready.message.clone().unwrap_or_default()))
}

impl Cluster {
    /// Waits until as many nodes as wanted are Ready; gives the names of all Ready nodes.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with the nodes that are.
    pub async fn wait_nodes_ready(&self, wanted: usize, limit: Duration) -> Result<Vec<String>, Error> {
        let names = poll::until(
            &format!("{wanted} nodes to become Ready"),
            PAUSE,
            limit,
            || async {
                let list = self.nodes().list(&ListParams::default()).await;
                let list = list.map_err(|error| chain(&Error::request("list the nodes")(error)))?;
                let ready: Vec<String> = list
                    .items
                    .iter()
                    .filter(|node| ready_condition(node).is_some_and(|(ready, _)| ready))
                    .filter_map(|node| node.metadata.name.clone())
                    .collect();
                if ready.len() >= wanted {
                    Ok(ready)
                } else {
                    Err(format!(
                        "{} of {} registered are Ready: {}",
                        ready.len(),
                        list.items.len(),
                        ready.join(", ")
                    ))
                }
            },
        )
        .await?;
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn who_is_evicted() {
        let careful = DrainOptions {
            limit: None,
            grace_period: None,
            unmanaged: Loss::Refuse,
            local_data: Loss::Refuse,
            daemon_sets: Loss::Accept,
            force_node: false,
        };
        let ruthless = DrainOptions {
            unmanaged: Loss::Accept,
            local_data: Loss::Accept,
            ..careful
        };
        let owner = |kind: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": true}]);
        let replica =
            pod(json!({"metadata": {"name": "a", "namespace": "n", "ownerReferences": owner("ReplicaSet")}}));
        let daemon =
            pod(json!({"metadata": {"name": "a", "namespace": "n", "ownerReferences": owner("DaemonSet")}}));
        let mirror =
            pod(json!({"metadata": {"name": "a", "annotations": {"kubernetes.io/config.mirror": "x"}}}));
        let naked = pod(json!({"metadata": {"name": "a", "namespace": "n"}}));
        let done = pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}}));
        let scratch = pod(
            json!({"metadata": {"name": "a", "namespace": "n", "ownerReferences": owner("ReplicaSet")},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}}),
        );
        for stays in [&daemon, &mirror, &done] {
            assert_eq!(fate(stays, ruthless), Fate::Stays);
        }
        let no_daemons = DrainOptions {
            daemon_sets: Loss::Refuse,
            ..ruthless
        };
        assert!(matches!(fate(&daemon, no_daemons), Fate::Refused(_)));
        assert_eq!(fate(&replica, careful), Fate::Evicted);
        assert_eq!(
            fate(&naked, careful),
            Fate::Refused("nothing would make the pod `n/a` anew".to_owned())
        );
        assert_eq!(
            fate(&scratch, careful),
            Fate::Refused("the pod `n/a` has data in an emptyDir volume".to_owned())
        );
        assert_eq!(fate(&naked, ruthless), Fate::Evicted);
        assert_eq!(fate(&scratch, ruthless), Fate::Evicted);
    }
}
