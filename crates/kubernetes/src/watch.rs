//! Following what an API server has of one kind: a list, then a watch that goes on where it broke off.
//!
//! Owns: when a list is asked for again and when a watch is only opened again. Never does: keeping what was seen; that is up to whoever
//! follows, who knows what of it is worth keeping.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::client::Cluster;
use crate::error::{Cause, Error};

/// The API server ends a watch after this time, in seconds; opening one again costs one request.
const WATCH_SECONDS: u32 = 290;
/// When nothing has come in all the time of a watch, its end included, whoever was there is gone without a word.
const SILENCE: Duration = Duration::from_secs(320);
/// A list or the beginning of a watch takes milliseconds; longer means that nobody answers.
const ANSWER: Duration = Duration::from_secs(30);
/// Pause before a watch that ended is opened again, and the first one after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between a list and its watch.
const LISTED_PAUSE: Duration = Duration::from_secs(1);
/// Pauses double with each failure up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What happened to objects of a kind.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// Everything that there is; what was known before and is not among it is gone.
    All(Vec<K>),
    /// The object is new or has changed.
    Changed(K),
    /// The object is gone; this is what it was at last.
    Gone(K),
}

/// What [`Cluster::follow`] gives.
pub type Changes<K> = Pin<Box<dyn Stream<Item = Result<Change<K>, Error>> + Send>>;

impl Cluster {
    /// Follows all objects of a kind in all namespaces; `what` names them for people, as in `the volumes`.
    ///
    /// Begins with [`Change::All`], which comes again whenever the API server no longer knows what happened meanwhile. The stream
    /// does not end. An error in it says that the API server refuses or does not answer; what comes later goes on from what came before.
    ///
    /// # Errors
    /// When the connection cannot be set up.
    pub fn follow<K>(&self, what: &'static str) -> Result<Changes<K>, Error>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let following = Following {
            what,
            lists: Api::all(self.client.clone()),
            watches: Api::all(self.patient()?.client),
            version: None,
            events: None,
            pause: Duration::ZERO,
        };
        Ok(Box::pin(futures::stream::unfold(
            following,
            |mut following| async {
                let item = following.next().await;
                Some((item, following))
            },
        )))
    }
}

type Events<K> = Pin<Box<dyn Stream<Item = Result<WatchEvent<K>, kube::Error>> + Send>>;

struct Following<K> {
    what: &'static str,
    lists: Api<K>,
    watches: Api<K>,
    /// What the API server has told of so far; none when everything has to be listed.
    version: Option<String>,
    events: Option<Events<K>>,
    /// How long to wait before the next request.
    pause: Duration,
}

impl<K> Following<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    async fn next(&mut self) -> Result<Change<K>, Error> {
        loop {
            match self.step().await {
                Ok(None) => {}
                Ok(Some(change)) => return Ok(change),
                Err(error) => {
                    self.events = None;
                    self.wait_longer();
                    if error.status() != Some(410) {
                        return Err(error);
                    }
                    // It has forgotten what came after this version.
                    self.version = None;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Change<K>>, Error> {
        let Some(version) = self.version.clone() else {
            sleep(self.pause).await;
            let list = answer(
                format!("list {}", self.what),
                self.lists.list(&ListParams::default()),
            )
            .await?;
            self.version = list.metadata.resource_version;
            // It answers, so the watch need not wait as long as one may for a server that is gone.
            self.pause = self.pause.min(LISTED_PAUSE);
            return Ok(Some(Change::All(list.items)));
        };
        let Some(events) = &mut self.events else {
            sleep(self.pause).await;
            let params = WatchParams::default().timeout(WATCH_SECONDS);
            let what = format!("watch {}", self.what);
            let events = answer(what, self.watches.watch(&params, &version)).await?;
            self.events = Some(Box::pin(events));
            return Ok(None);
        };
        let Ok(Some(event)) = timeout(SILENCE, events.next()).await else {
            self.events = None;
            // Bookmarks come once a minute: a watch that ends without any event is one that does not work.
            self.wait_longer();
            return Ok(None);
        };
        let event = event.map_err(Error::request(format!("watch {}", self.what)))?;
        // Not zero: watches that give a single event and end must not make a loop.
        self.pause = FIRST_PAUSE;
        Ok(match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.version.clone_from(&object.meta().resource_version);
                Some(Change::Changed(object))
            }
            WatchEvent::Deleted(object) => {
                self.version.clone_from(&object.meta().resource_version);
                Some(Change::Gone(object))
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                None
            }
            WatchEvent::Error(status) => {
                return Err(Error::request(format!("watch {}", self.what))(kube::Error::Api(
                    status,
                )));
            }
        })
    }

    fn wait_longer(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }
}

/// A request's answer, if there is one in time.
async fn answer<T>(what: String, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(Error::request(what)),
        Err(_) => Err(Error::Request {
            what,
            source: Cause::Silence(ANSWER),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    use super::*;

    /// Answers as many requests as there are bodies, and tells what was asked for.
    fn server(bodies: Vec<(u16, String)>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for (status, body) in bodies {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut lines = BufReader::new(stream.try_clone().expect("a reader")).lines();
                asked.push(lines.next().expect("a request").expect("text"));
                while !lines.next().expect("a header").expect("text").is_empty() {}
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .expect("an answer");
            }
            asked
        });
        (url, thread)
    }

    fn map(name: &str, version: &str) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": version}})
    }

    fn list(version: &str, items: &[Value]) -> (u16, String) {
        let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        (200, list.to_string())
    }

    fn watch(events: &[(&str, Value)]) -> (u16, String) {
        let lines = events
            .iter()
            .map(|(kind, object)| format!("{}\n", json!({"type": kind, "object": object})));
        (200, lines.collect())
    }

    /// A change as a short text.
    fn short(change: &Change<ConfigMap>) -> String {
        let name = |object: &ConfigMap| object.metadata.name.clone().unwrap_or_default();
        match change {
            Change::All(objects) => {
                format!("all: {}", objects.iter().map(name).collect::<Vec<_>>().join(" "))
            }
            Change::Changed(object) => format!("changed: {}", name(object)),
            Change::Gone(object) => format!("gone: {}", name(object)),
        }
    }

    #[tokio::test]
    async fn a_watch_goes_on_where_it_broke_off_and_lists_when_that_is_forgotten() {
        let gone = json!({"kind": "Status", "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
        let bookmark = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}});
        let down = json!({"kind": "Status", "status": "Failure", "message": "down", "reason": "InternalError", "code": 500});
        let (url, thread) = server(vec![
            list("5", &[map("a", "1")]),
            watch(&[
                ("ADDED", map("b", "6")),
                ("DELETED", map("a", "7")),
                ("BOOKMARK", bookmark),
            ]),
            (500, down.to_string()),
            watch(&[("MODIFIED", map("b", "10"))]),
            watch(&[("ERROR", gone)]),
            list("20", &[map("c", "20")]),
        ]);
        let cluster = Cluster::from_kubeconfig_value(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }))
        .await
        .expect("a cluster");
        let mut changes = cluster.follow::<ConfigMap>("the maps").expect("a connection");
        let mut seen = Vec::new();
        while seen.len() < 6 {
            seen.push(match changes.next().await.expect("it never ends") {
                Ok(change) => short(&change),
                Err(error) => format!("{error} {:?}", error.status()),
            });
        }
        assert_eq!(
            seen,
            [
                "all: a",
                "changed: b",
                "gone: a",
                "failed to watch the maps Some(500)",
                "changed: b",
                "all: c"
            ]
        );
        let asked = thread.join().expect("the server");
        let versions: Vec<Option<&str>> = asked
            .iter()
            .map(|line| line.split("resourceVersion=").nth(1)?.split([' ', '&']).next())
            .collect();
        assert_eq!(
            versions,
            [None, Some("5"), Some("9"), Some("9"), Some("10"), None]
        );
    }
}
