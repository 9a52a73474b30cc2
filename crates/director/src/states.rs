//! What agents say about themselves, kept in memory with its age.
//!
//! Filled by heartbeats and by answers to `get_state`. Nothing here judges health; what is heard is passed on to who does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use stolos_base::ids::AgentId;
use stolos_base::task;
use stolos_mbus::Transport;
use stolos_mbus::client::{Event, events};
use stolos_mbus::state::{JobState, Process, Vitals};
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

/// What all agents said last; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct States(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seen: Mutex<HashMap<AgentId, Seen>>,
    /// Changes with every message, for those who wait for an agent's first.
    news: watch::Sender<u64>,
}

impl States {
    /// Listens until `stop` fires.
    pub(crate) fn start(monitor: Arc<dyn Transport>, health: Health, stop: CancellationToken) -> Self {
        let states = Self(Arc::new(Inner {
            seen: Mutex::default(),
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
                    health.alerted(agent, alert);
                }
                Event::Shutdown(agent) => {
                    health.goes_down(agent);
                    self.seen().remove(&agent);
                }
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<AgentId, Seen>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
