//! The bus over NATS: mutual TLS, reconnects for ever.
//!
//! While the server is away, what is published is kept in the client's buffer and sent when it is back; what was on its
//! way is lost, which [`Link::epoch`] shows. A refused certificate is tried again too: the service that admits
//! connections may only just be starting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::FlushErrorKind;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use stolos_base::pki::Identity;
use stolos_base::{Secret, tls};
use tokio::sync::watch;

use crate::message::MAX_PAYLOAD;
use crate::subject;
use crate::transport::{Error, Link, Message, Subscription, Transport};

/// How long a connection may take to stand: TCP, TLS and the answer of the service that admits it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How often the client asks whether the server is there: two unanswered ones end the connection.
const PING: Duration = Duration::from_secs(5);
/// The first pause after a failed attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The pause before the next attempt of a connection that nobody wants any more.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How to reach the bus.
#[derive(Clone, Debug)]
pub struct Config {
    /// `nats://HOST:PORT`; the first that answers is taken.
    pub servers: Vec<String>,
    /// Whom to trust as server, PEM.
    pub ca: String,
    /// Client certificate and key: they decide the rights.
    pub identity: Identity,
    /// What the server's log calls this connection.
    pub name: String,
    /// The longest pause between two attempts; agents take BOSH's ten seconds, programs beside the server less.
    pub longest_pause: Duration,
}

/// A connection to NATS. Closed when dropped.
pub struct NatsTransport(Connection);

/// What [`connect`] gives.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) link: watch::Receiver<Link>,
    /// Its end ends the attempts to connect: the client's own go on as long as nobody answers.
    _alive: Arc<()>,
}

impl Connection {
    /// Waits until the connection stands.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let mut link = self.link.clone();
        let ready = link.wait_for(|link| link.up).await;
        ready.map(drop).map_err(|_| Error::Closed)
    }
}

impl fmt::Debug for NatsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsTransport")
            .field("link", &*self.0.link.borrow())
            .finish_non_exhaustive()
    }
}

impl NatsTransport {
    /// Begins to connect and returns at once: a server that is not there yet is waited for by the calls.
    ///
    /// # Errors
    /// When addresses or TLS material are not usable.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        connect(config, None).await.map(Self)
    }

    /// Waits until the connection stands.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn ready(&self) -> Result<(), Error> {
        self.0.ready().await
    }
}

/// Connects; with a nkey seed where the server knows the user by that.
pub(crate) async fn connect(config: &Config, seed: Option<&Secret<String>>) -> Result<Connection, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Connect {
        servers: config.servers.join(", "),
        source,
    };
    let servers: Vec<ServerAddr> = config
        .servers
        .iter()
        .map(|server| server.parse::<ServerAddr>())
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.into()))?;
    let longest = config.longest_pause;
    let (sender, link) = watch::channel(Link::default());
    let alive = Arc::new(());
    let wanted = Arc::downgrade(&alive);
    let options = ConnectOptions::new()
        .name(&config.name)
        .require_tls(true)
        .tls_client_config(tls::client(&config.ca, Some(&config.identity))?)
        .connection_timeout(CONNECT_LIMIT)
        .ping_interval(PING)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .ignore_discovered_servers()
        .reconnect_delay_callback(move |attempt| match wanted.strong_count() {
            0 => NEVER,
            _ => pause(attempt, longest),
        })
        .event_callback(move |event| {
            note(&event, &sender);
            std::future::ready(())
        });
    let options = match seed {
        Some(seed) => options.nkey(seed.expose().clone()),
        None => options,
    };
    let client = options
        .connect(servers)
        .await
        .map_err(|error| failed(error.into()))?;
    Ok(Connection {
        client,
        link,
        _alive: alive,
    })
}

/// Doubles up to `longest`; a quarter of each pause is random, so that a thousand agents do not come back at once.
fn pause(attempt: usize, longest: Duration) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(20);
    let full = FIRST_PAUSE.saturating_mul(1 << doublings).min(longest);
    let mut byte = [0_u8; 1];
    let random = aws_lc_rs::rand::fill(&mut byte).map_or(0, |()| u32::from(byte[0]));
    full - full * random / 1024
}

/// Turns the client's events into the state of the link. The client is not at hand here on purpose: held by its own
/// callback, it would never be dropped.
fn note(event: &Event, link: &watch::Sender<Link>) {
    let up = match event {
        Event::Connected => true,
        Event::Disconnected | Event::Closed => false,
        Event::ServerError(error) => return tracing::warn!(%error, "the bus reports an error"),
        Event::ClientError(error) => {
            return tracing::debug!(%error, "the connection to the bus reports an error");
        }
        Event::SlowConsumer(_) => {
            return tracing::warn!("messages were dropped: they come faster than they are read");
        }
        Event::LameDuckMode | Event::Draining => return,
    };
    link.send_if_modified(|link| {
        // Two connections in a row mean that the end of the first was not reported.
        if link.up == up && *event != Event::Connected {
            return false;
        }
        link.epoch += u64::from(up);
        link.up = up;
        true
    });
}

impl Transport for NatsTransport {
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if payload.len() > MAX_PAYLOAD {
                return Err(Error::TooLarge {
                    subject: subject.to_owned(),
                    size: payload.len(),
                    limit: MAX_PAYLOAD,
                });
            }
            if !subject::is_concrete(subject) {
                return Err(Error::Subject {
                    subject: subject.to_owned(),
                });
            }
            self.0
                .client
                .publish(subject.to_owned(), payload)
                .await
                .map_err(|error| Error::Publish {
                    subject: subject.to_owned(),
                    source: error.into(),
                })
        })
    }

    fn subscribe<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move {
            let subscriber = self
                .0
                .client
                .subscribe(subject.to_owned())
                .await
                .map_err(|error| Error::Subscribe {
                    subject: subject.to_owned(),
                    source: error.into(),
                })?;
            Ok(Subscription::new(subscriber.map(|message| Message {
                subject: message.subject.to_string(),
                payload: message.payload,
            })))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.0.client.flush().await.map_err(|error| match error.kind() {
                FlushErrorKind::SendError => Error::Closed,
                FlushErrorKind::FlushError => Error::Publish {
                    subject: "*".to_owned(),
                    source: error.into(),
                },
            })
        })
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.link.clone()
    }
}
