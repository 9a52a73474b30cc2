//! The bus without a server: for tests with many simulated agents, with faults on demand.
//!
//! Peers have the rights that their certificates would give them. A peer that is cut off keeps what it publishes and
//! sends it when it is back, as a NATS client does; what is sent to it meanwhile is lost.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::rights::{Peer, Rights};
use crate::subject;
use crate::transport::{Error, Link, Message, Subscription, Transport};

/// What happens to one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It arrives at once.
    #[default]
    Deliver,
    /// It is lost.
    Drop,
    /// It arrives later. Messages to one subscription keep their order.
    Delay(Duration),
}

/// A message on its way to one subscription.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Who published it.
    pub from: Peer,
    /// Whose subscription it is.
    pub to: Peer,
    /// Where it was published.
    pub subject: &'a str,
    /// What it holds.
    pub payload: &'a [u8],
}

type Judge = Arc<dyn Fn(&Delivery<'_>) -> Fate + Send + Sync>;

/// A bus in this process; a cheap handle.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Mutex<Hub>>);

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBus")
    }
}

#[derive(Default)]
struct Hub {
    /// Subscriptions without wildcards by subject: one an agent.
    exact: HashMap<String, Vec<Route>>,
    /// Subscriptions with wildcards: a handful.
    wild: Vec<Route>,
    connections: HashMap<u64, Connection>,
    judge: Option<Judge>,
}

struct Connection {
    peer: Peer,
    link: watch::Sender<Link>,
    held: Vec<Message>,
}

struct Route {
    id: u64,
    connection: u64,
    pattern: String,
    sender: mpsc::UnboundedSender<(Instant, Message)>,
}

/// One peer's connection to a [`MemoryBus`]; closed when dropped.
pub struct MemoryTransport {
    bus: MemoryBus,
    id: u64,
    peer: Peer,
    rights: Rights,
    link: watch::Receiver<Link>,
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl MemoryBus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects a peer; it may connect several times.
    #[must_use]
    pub fn connect(&self, peer: Peer) -> MemoryTransport {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (sender, link) = watch::channel(Link { up: true, epoch: 1 });
        self.hub().connections.insert(
            id,
            Connection {
                peer,
                link: sender,
                held: Vec::new(),
            },
        );
        MemoryTransport {
            bus: self.clone(),
            id,
            peer,
            rights: peer.rights(),
            link,
        }
    }

    /// Asks `judge` about every delivery from now on.
    pub fn set_fault(&self, judge: impl Fn(&Delivery<'_>) -> Fate + Send + Sync + 'static) {
        self.hub().judge = Some(Arc::new(judge));
    }

    /// Delivers everything again.
    pub fn clear_fault(&self) {
        self.hub().judge = None;
    }

    /// Cuts off those peers that `which` picks: their links go down.
    pub fn cut(&self, which: impl Fn(Peer) -> bool) {
        for connection in self.hub().connections.values().filter(|one| which(one.peer)) {
            connection.link.send_modify(|link| link.up = false);
        }
    }

    /// Connects those peers again that `which` picks; what they held back is delivered now.
    pub fn heal(&self, which: impl Fn(Peer) -> bool) {
        let mut hub = self.hub();
        let mut held = Vec::new();
        for (id, connection) in hub
            .connections
            .iter_mut()
            .filter(|(_, one)| which(one.peer) && !one.link.borrow().up)
        {
            connection.link.send_modify(|link| {
                link.up = true;
                link.epoch += 1;
            });
            held.extend(connection.held.drain(..).map(|message| (*id, message)));
        }
        for (from, message) in held {
            hub.deliver(from, &message);
        }
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn publish(&mut self, from: u64, message: Message) -> Result<(), Error> {
        let connection = self.connections.get_mut(&from).ok_or(Error::Closed)?;
        if connection.link.borrow().up {
            self.deliver(from, &message);
        } else {
            connection.held.push(message);
        }
        Ok(())
    }

    fn deliver(&self, from: u64, message: &Message) {
        let Some(sender) = self.connections.get(&from) else {
            return;
        };
        let exact = self.exact.get(&message.subject).into_iter().flatten();
        let wild = self
            .wild
            .iter()
            .filter(|route| subject::matches(&route.pattern, &message.subject));
        for route in exact.chain(wild) {
            let Some(receiver) = self.connections.get(&route.connection) else {
                continue;
            };
            if !receiver.link.borrow().up {
                continue;
            }
            let fate = self.judge.as_ref().map_or(Fate::Deliver, |judge| {
                judge(&Delivery {
                    from: sender.peer,
                    to: receiver.peer,
                    subject: &message.subject,
                    payload: &message.payload,
                })
            });
            let at = match fate {
                Fate::Deliver => Instant::now(),
                Fate::Drop => continue,
                Fate::Delay(by) => Instant::now() + by,
            };
            let _ = route.sender.send((at, message.clone()));
        }
    }

    fn forget(&mut self, route: u64, pattern: &str) {
        if let Some(routes) = self.exact.get_mut(pattern) {
            routes.retain(|one| one.id != route);
            if routes.is_empty() {
                self.exact.remove(pattern);
            }
        } else {
            self.wild.retain(|one| one.id != route);
        }
    }
}

impl Transport for MemoryTransport {
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if payload.len() > self.max_payload() {
                return Err(Error::TooLarge {
                    subject: subject.to_owned(),
                    size: payload.len(),
                    limit: self.max_payload(),
                });
            }
            if !subject::is_concrete(subject) {
                return Err(Error::Subject {
                    subject: subject.to_owned(),
                });
            }
            if !self.rights.may_publish(subject) {
                // A server answers such a message with an error on the side; the publisher does not see it.
                tracing::warn!(peer = %self.peer, subject, "dropped a message without the right to send it");
                return Ok(());
            }
            self.bus.hub().publish(
                self.id,
                Message {
                    subject: subject.to_owned(),
                    payload,
                },
            )
        })
    }

    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::unbounded_channel();
            if !self.rights.may_subscribe(subject) {
                // As with a server: the subscription is there and stays silent.
                tracing::warn!(peer = %self.peer, subject, "no right to subscribe");
                return Ok(Subscription::new(futures::stream::pending()));
            }
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            let route = Route {
                id,
                connection: self.id,
                pattern: subject.to_owned(),
                sender,
            };
            let mut hub = self.bus.hub();
            if subject.contains(['*', '>']) {
                hub.wild.push(route);
            } else {
                hub.exact.entry(subject.to_owned()).or_default().push(route);
            }
            let guard = Unsubscribe {
                bus: self.bus.clone(),
                id,
                pattern: subject.to_owned(),
            };
            Ok(Subscription::new(futures::stream::unfold(
                (receiver, guard),
                |(mut receiver, guard)| async move {
                    let (at, message) = receiver.recv().await?;
                    tokio::time::sleep_until(at).await;
                    Some((message, (receiver, guard)))
                },
            )))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut link = self.link.clone();
            link.wait_for(|link| link.up)
                .await
                .map(drop)
                .map_err(|_| Error::Closed)
        })
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        let mut hub = self.bus.hub();
        hub.connections.remove(&self.id);
        hub.wild.retain(|route| route.connection != self.id);
        hub.exact.retain(|_, routes| {
            routes.retain(|route| route.connection != self.id);
            !routes.is_empty()
        });
    }
}

struct Unsubscribe {
    bus: MemoryBus,
    id: u64,
    pattern: String,
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        self.bus.hub().forget(self.id, &self.pattern);
    }
}
