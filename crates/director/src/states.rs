//! What agents say about themselves, kept in memory with its age.
//!
//! Filled by heartbeats and by answers to `get_state`. Nothing here judges health; what is heard is passed on to who does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use stolos_base::ids::AgentId;
use stolos_base::{task, text};
use stolos_mbus::Transport;
use stolos_mbus::client::{Event, events};
use stolos_mbus::state::{Heartbeat, JobState, Problem, Process, Vitals};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// The pause before heartbeats are subscribed to again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// An agent that was silent for so long is forgotten: its machine is gone, or is asked when somebody wants to know.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// What one agent said last.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) job_state: JobState,
    pub(crate) vitals: Option<Vitals>,
    pub(crate) processes: Option<Vec<Process>>,
}

/// Problems of one agent that are kept, and characters of each of their texts: a machine says what it likes.
const PROBLEMS: usize = 16;
const PROBLEM_TEXT: usize = 300;

/// An agent whose last heartbeat says that something is not well.
#[derive(Clone, Debug)]
pub(crate) struct Unwell {
    /// When that heartbeat came.
    pub(crate) at: Instant,
    /// What it says; bounded and harmless.
    pub(crate) problems: Vec<Problem>,
    /// Since when its heartbeats say without a break that jobs fail.
    pub(crate) failing_since: Option<Instant>,
}

/// What all agents said last; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct States(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seen: Mutex<HashMap<AgentId, Seen>>,
    unwell: Mutex<HashMap<AgentId, Unwell>>,
    /// Changes with every message, for those who wait for an agent's first.
    news: watch::Sender<u64>,
}

impl States {
    /// Listens until `stop` fires.
    pub(crate) fn start(monitor: Arc<dyn Transport>, health: Health, stop: CancellationToken) -> Self {
        let states = Self(Arc::new(Inner {
            seen: Mutex::default(),
            unwell: Mutex::default(),
            news: watch::Sender::new(0),
        }));
        let listener = states.clone();
        task::spawn(task::Kind::Service, "states of agents", async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = listener.listen(&*monitor, &health) => {}
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
            }
            Ok::<(), std::convert::Infallible>(())
        });
        states
    }

    /// What an agent said last.
    pub(crate) fn get(&self, agent: AgentId) -> Option<Seen> {
        self.seen().get(&agent).cloned()
    }

    /// Notes an answer to `get_state`.
    pub(crate) fn note(&self, agent: AgentId, seen: Seen) {
        self.seen().insert(agent, seen);
    }

    /// Agents that say that something is not well.
    pub(crate) fn unwell(&self) -> Vec<(AgentId, Unwell)> {
        let unwell = self.unwells();
        unwell.iter().map(|(agent, one)| (*agent, one.clone())).collect()
    }

    fn judge(&self, agent: AgentId, heartbeat: &Heartbeat, now: Instant) {
        let mut unwell = self.unwells();
        let failing = heartbeat.job_state == JobState::Failing;
        if heartbeat.problems.is_empty() && !failing {
            unwell.remove(&agent);
            return;
        }
        if unwell.len() % 1024 == 1023 {
            unwell.retain(|_, one| now.duration_since(one.at) < FORGOTTEN);
        }
        let before = unwell.get(&agent).and_then(|one| one.failing_since);
        let told = heartbeat.problems.iter().take(PROBLEMS).map(harmless);
        let one = Unwell {
            at: now,
            problems: told.collect(),
            failing_since: failing.then(|| before.unwrap_or(now)),
        };
        unwell.insert(agent, one);
    }

    fn unwells(&self) -> MutexGuard<'_, HashMap<AgentId, Unwell>> {
        self.0.unwell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the agent has been heard of.
    pub(crate) async fn heard_of(&self, agent: AgentId) {
        let mut news = self.0.news.subscribe();
        // The sender lives as long as this handle.
        let _ = news.wait_for(|_| self.seen().contains_key(&agent)).await;
    }

    async fn listen(&self, monitor: &dyn Transport, health: &Health) {
        let mut events = match events(monitor).await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to listen to agents; trying again");
                return;
            }
        };
        while let Some(event) = events.next().await {
            match event {
                Event::Heartbeat(agent, heartbeat) => {
                    health.heard(agent);
                    self.judge(agent, &heartbeat, Instant::now());
                    let mut seen = self.seen();
                    let processes = seen.remove(&agent).and_then(|old| old.processes);
                    let now = Instant::now();
                    if seen.len() % 1024 == 1023 {
                        seen.retain(|_, one| now.duration_since(one.at) < FORGOTTEN);
                    }
                    seen.insert(
                        agent,
                        Seen {
                            at: now,
                            job_state: heartbeat.job_state,
                            vitals: Some(heartbeat.vitals),
                            processes,
                        },
                    );
                    drop(seen);
                    self.0.news.send_modify(|number| *number += 1);
                }
                Event::Alert(agent, alert) => {
                    health.alerted(agent, &alert);
                }
                Event::Shutdown(agent) => {
                    health.goes_down(agent);
                    self.seen().remove(&agent);
                    self.unwells().remove(&agent);
                }
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<AgentId, Seen>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn harmless(problem: &Problem) -> Problem {
    let short =
        |said: &str| text::clip(&text::line(&text::clip(said, PROBLEM_TEXT)), PROBLEM_TEXT).into_owned();
    Problem {
        source: short(&problem.source),
        kind: short(&problem.kind),
        severity: problem.severity.clamp(1, 4),
        text: short(&problem.text),
        next: problem.next.as_deref().map(short),
        since_s: problem.since_s,
    }
}
