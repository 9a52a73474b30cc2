//! The agent's end of the bus: takes requests, answers them, says how the machine does.
//!
//! Requests come out one after the other, as BOSH's agent handles them. A request that arrives a second time (the
//! director sends again what may have been lost with a connection) is not given out again: its answer is repeated, or
//! left to the first one while that is still being worked on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use stolos_base::ids::AgentId;

use crate::call::Call;
use crate::message::{Reply, Request};
use crate::state::{Alert, Heartbeat};
use crate::subject;
use crate::transport::{Error, Subscription, Transport};

/// How many answers are remembered. A repeated request follows its first one within seconds, and a director polls
/// at most a few times a second.
const REMEMBERED: usize = 128;
/// Answers larger than this are not kept for repetition.
const REMEMBERED_SIZE: usize = 64 * 1024;

/// An agent on the bus.
#[derive(Debug)]
pub struct Endpoint {
    agent: AgentId,
    transport: Arc<dyn Transport>,
    requests: Subscription,
    memory: Arc<Mutex<Memory>>,
}

/// Sends what the agent has to say; cheap to clone and independent of the loop that takes requests.
#[derive(Clone, Debug)]
pub struct Announcer {
    agent: AgentId,
    transport: Arc<dyn Transport>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub call: Call,
    /// Protocol version of the director.
    pub protocol: u32,
    /// Answers it.
    pub responder: Responder,
}

/// Answers one request.
#[derive(Debug)]
pub struct Responder {
    reply_to: String,
    transport: Arc<dyn Transport>,
    memory: Arc<Mutex<Memory>>,
}

impl Endpoint {
    /// Listens under the agent's id.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn start(transport: Arc<dyn Transport>, agent: AgentId) -> Result<Self, Error> {
        let requests = transport.subscribe(&subject::agent(agent)).await?;
        transport.flush().await?;
        Ok(Self {
            agent,
            transport,
            requests,
            memory: Arc::default(),
        })
    }

    /// For heartbeats and alerts.
    #[must_use]
    pub fn announcer(&self) -> Announcer {
        Announcer {
            agent: self.agent,
            transport: self.transport.clone(),
        }
    }

    /// The next request that is new and makes sense; what does not is answered with an exception here. `None` once the
    /// transport is closed.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let message = self.requests.next().await?;
            let request: Request = match serde_json::from_slice(&message.payload) {
                Ok(request) => request,
                Err(error) => {
                    tracing::warn!(%error, bytes = message.payload.len(), "ignored what is no request");
                    continue;
                }
            };
            match lock(&self.memory).seen(&request.reply_to) {
                Seen::Never => {}
                Seen::Working => continue,
                Seen::Answered(answer) => {
                    self.repeat(&request.reply_to, answer);
                    continue;
                }
            }
            let responder = Responder {
                reply_to: request.reply_to.clone(),
                transport: self.transport.clone(),
                memory: self.memory.clone(),
            };
            match Call::parse(&request) {
                Ok(call) => {
                    return Some(Incoming {
                        call,
                        protocol: request.protocol,
                        responder,
                    });
                }
                Err(error) => {
                    let text = stolos_base::chain(&error);
                    if let Err(error) = responder.reply(&Reply::exception(text)).await {
                        tracing::warn!(error = %stolos_base::chain(&error), "failed to refuse a request");
                    }
                }
            }
        }
    }

    fn repeat(&self, reply_to: &str, answer: Bytes) {
        let (transport, reply_to) = (self.transport.clone(), reply_to.to_owned());
        stolos_base::task::spawn(stolos_base::task::Kind::Job, "repeat an answer", async move {
            transport
                .publish(&reply_to, answer)
                .await
                .map_err(|error| stolos_base::chain(&error))
        });
    }
}

impl Announcer {
    /// Sends a heartbeat.
    ///
    /// # Errors
    /// When it cannot be handed over.
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), Error> {
        self.send(subject::heartbeat(self.agent), heartbeat).await
    }

    /// Sends an alert.
    ///
    /// # Errors
    /// When it cannot be handed over.
    pub async fn alert(&self, alert: &Alert) -> Result<(), Error> {
        self.send(subject::alert(self.agent), alert).await
    }

    /// Says that the machine goes down in an orderly way, and waits until that is on the wire.
    ///
    /// # Errors
    /// When it cannot be handed over.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.send(subject::shutdown(self.agent), &serde_json::json!({}))
            .await?;
        self.transport.flush().await
    }

    async fn send(&self, subject: String, value: &impl serde::Serialize) -> Result<(), Error> {
        let payload = serde_json::to_vec(value).map_err(|source| Error::Publish {
            subject: subject.clone(),
            source: source.into(),
        })?;
        self.transport.publish(&subject, payload.into()).await
    }
}

impl Responder {
    /// Answers; a reply that is too long is shortened as BOSH does.
    ///
    /// # Errors
    /// When it cannot be handed over.
    pub async fn reply(self, reply: &Reply) -> Result<(), Error> {
        let bytes = Bytes::from(reply.to_bytes(self.transport.max_payload()));
        lock(&self.memory).answered(&self.reply_to, bytes.clone());
        self.transport.publish(&self.reply_to, bytes).await
    }
}

#[derive(Debug, Default)]
struct Memory(VecDeque<(String, Option<Bytes>)>);

enum Seen {
    Never,
    Working,
    Answered(Bytes),
}

impl Memory {
    fn seen(&mut self, reply_to: &str) -> Seen {
        if let Some((_, answer)) = self.0.iter().find(|(known, _)| known == reply_to) {
            return match answer {
                Some(answer) => Seen::Answered(answer.clone()),
                None => Seen::Working,
            };
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((reply_to.to_owned(), None));
        Seen::Never
    }

    fn answered(&mut self, reply_to: &str, answer: Bytes) {
        if answer.len() > REMEMBERED_SIZE {
            // Only reads have answers of this size; those may be worked out again.
            self.0.retain(|(known, _)| known != reply_to);
        } else if let Some(entry) = self.0.iter_mut().find(|(known, _)| known == reply_to) {
            entry.1 = Some(answer);
        }
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
