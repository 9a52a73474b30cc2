//! The seam below the bus: publish, subscribe, know whether the link is up.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use stolos_base::error::{Class, Classify};
use tokio::sync::watch;

/// A message that has arrived.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// What it holds.
    pub payload: Bytes,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("subject", &self.subject)
            .field("bytes", &self.payload.len())
            .finish()
    }
}

/// How the link to the bus stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether messages can pass now.
    pub up: bool,
    /// How often the link has come up. When this grows, messages sent before may have been lost.
    pub epoch: u64,
}

/// The bus refused or lost something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first connection could not be set up because of what was configured.
    #[error("failed to connect to the bus at `{servers}`")]
    Connect {
        /// Addresses tried.
        servers: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS material is not usable.
    #[error("failed to set up TLS for the bus")]
    Tls(#[from] stolos_base::tls::Error),
    /// A message could not be handed over.
    #[error("failed to publish to `{subject}`")]
    Publish {
        /// Where to.
        subject: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A message is larger than the bus takes.
    #[error("a message of {size} bytes to `{subject}` is larger than the {limit} bytes that the bus takes")]
    TooLarge {
        /// Where to.
        subject: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The subject is no subject, or this peer has no right to it.
    #[error("subject `{subject}` is not allowed here")]
    Subject {
        /// Which.
        subject: String,
    },
    /// A subscription could not be made.
    #[error("failed to subscribe to `{subject}`")]
    Subscribe {
        /// To what.
        subject: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The transport was closed.
    #[error("the connection to the bus is closed")]
    Closed,
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::TooLarge { .. } => Class::User,
            Self::Subject { .. } | Self::Tls(_) => Class::Internal,
            Self::Connect { .. } | Self::Publish { .. } | Self::Subscribe { .. } | Self::Closed => {
                Class::Unavailable
            }
        }
    }
}

/// What carries messages.
///
/// Guarantees: messages of one publisher on one subject arrive in order or not at all; a subscription survives the loss
/// of the connection. Assumes nothing about delivery: a message may be lost whenever [`Link::epoch`] grows.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Hands a message over. While the link is down it is kept and sent later, or lost.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Subject`], [`Error::Publish`], [`Error::Closed`].
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), Error>>;

    /// Subscribes to a subject that may hold wildcards. What is published by this same transport afterwards is seen.
    ///
    /// # Errors
    /// [`Error::Subject`], [`Error::Subscribe`], [`Error::Closed`].
    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Subscription, Error>>;

    /// Waits until everything published and subscribed so far was written to the connection. The server works through a
    /// connection in order, but another connection may be ahead of it.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Publish`].
    fn flush(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// How the link stands, and how it changes.
    fn link(&self) -> watch::Receiver<Link>;

    /// The largest payload in bytes.
    fn max_payload(&self) -> usize {
        crate::message::MAX_PAYLOAD
    }
}

/// A stream of messages; dropping it unsubscribes.
pub struct Subscription(BoxStream<'static, Message>);

impl Subscription {
    /// Wraps a stream whose drop unsubscribes.
    pub fn new(stream: impl Stream<Item = Message> + Send + 'static) -> Self {
        Self(stream.boxed())
    }

    /// The next message; `None` once the transport is closed.
    pub async fn next(&mut self) -> Option<Message> {
        self.0.next().await
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.0.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}
