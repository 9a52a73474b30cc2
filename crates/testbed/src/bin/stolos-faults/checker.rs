//! What a cluster said must stay true: writes that it acknowledged are never lost and never undone. And how long it says nothing.
//!
//! Each writer has a config map of its own with a number that only grows. What it reads back must be at least what was acknowledged last and at most what was
//! tried last, and never less than what was read before: a write without an answer may have happened or not, and once seen it must stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api::Api;

const NAMESPACE: &str = "stolos-faults";
/// How long a write or a read may take before it has no answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two writes of one writer.
const PAUSE: Duration = Duration::from_millis(100);
/// How often is asked whether the API answers, and how long that may take.
const ASKED_EVERY: Duration = Duration::from_millis(200);
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seen {
    pub(crate) acknowledged: u64,
    /// Writes without an answer, or refused.
    pub(crate) unanswered: u64,
    pub(crate) reads: u64,
    /// What must never be.
    pub(crate) broken: Vec<String>,
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    /// The longest time without an answer, and all that were longer than a second, in milliseconds.
    pub(crate) longest_gap_ms: u64,
    pub(crate) gaps_ms: Vec<u64>,
}

pub(crate) struct Checker {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Seen>,
}

impl Checker {
    /// Begins to write and to ask.
    pub(crate) async fn start(api: &Api, writers: usize) -> anyhow::Result<Self> {
        // Of an earlier run.
        let _ = api.delete(&format!("/api/v1/namespaces/{NAMESPACE}")).await;
        let start = Instant::now();
        while api
            .post("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}}))
            .await
            .is_err()
        {
            anyhow::ensure!(
                start.elapsed() < Duration::from_secs(60),
                "the namespace cannot be made"
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let stop = Arc::<AtomicBool>::default();
        let mut tasks = JoinSet::new();
        for n in 0..writers {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
            let name = format!("writer-{n}");
            api.post(
                &path,
                &json!({"metadata": {"name": name}, "data": {"number": "0"}}),
            )
            .await
            .context("a config map to write to")?;
            let (api, stop) = (api.clone(), stop.clone());
            let path = format!("{path}/{name}");
            tasks.spawn(async move { write(&api, &path, &stop).await });
        }
        let (api, stopped) = (api.clone(), stop.clone());
        tasks.spawn(async move { ask(&api, &stopped).await });
        Ok(Self { stop, tasks })
    }

    /// Ends it and says what was seen.
    pub(crate) async fn end(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen?;
            all.acknowledged += seen.acknowledged;
            all.unanswered += seen.unanswered;
            all.reads += seen.reads;
            all.broken.extend(seen.broken);
            all.asked += seen.asked;
            all.answered += seen.answered;
            all.longest_gap_ms = all.longest_gap_ms.max(seen.longest_gap_ms);
            all.gaps_ms.extend(seen.gaps_ms);
        }
        Ok(all)
    }
}

async fn write(api: &Api, path: &str, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let (mut acknowledged, mut tried, mut read) = (0_u64, 0_u64, 0_u64);
    let mut version = Value::Null;
    loop {
        let ending = stop.load(Ordering::SeqCst);
        if !ending {
            tried += 1;
            // On what was seen last, and nothing else: a write that an API server has in hand while its machine is frozen may be done when it goes on, long after
            // later ones were acknowledged. Nobody was promised that it would not be, so it must not look like one of those being undone.
            let body =
                json!({"metadata": {"resourceVersion": version}, "data": {"number": tried.to_string()}});
            match api.patch(path, &body, PATIENCE).await {
                Ok(written) => {
                    acknowledged = tried;
                    seen.acknowledged += 1;
                    version = written["metadata"]["resourceVersion"].clone();
                }
                Err(_) => seen.unanswered += 1,
            }
        }
        // Not from a cache: without a resource version the API server asks a majority of etcd.
        let found = api.get(path, PATIENCE).await;
        match found.map(|found| (number(&found), found["metadata"]["resourceVersion"].clone())) {
            Ok((Some(found), now)) => {
                seen.reads += 1;
                version = now;
                if found < acknowledged || found > tried || found < read {
                    seen.broken.push(format!(
                        "{path}: read {found}; acknowledged {acknowledged}, tried {tried}, read before {read}"
                    ));
                }
                read = read.max(found);
                if ending {
                    return seen;
                }
            }
            Ok((None, _)) => seen.broken.push(format!("{path}: it has no number")),
            Err(error) if error.to_string().starts_with("404") => {
                seen.broken
                    .push(format!("{path}: gone; acknowledged {acknowledged}"));
            }
            // No answer; the last reading has to be one.
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn number(found: &Value) -> Option<u64> {
    found["data"]["number"].as_str()?.parse().ok()
}

async fn ask(api: &Api, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let asked = Instant::now();
        seen.asked += 1;
        if api.get("/readyz", ANSWERED_WITHIN).await.is_ok() {
            seen.answered += 1;
            let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
            seen.longest_gap_ms = seen.longest_gap_ms.max(gap);
            if gap > 1000 {
                seen.gaps_ms.push(gap);
            }
            last = Instant::now();
        }
        tokio::time::sleep(ASKED_EVERY.saturating_sub(asked.elapsed())).await;
    }
    seen
}
