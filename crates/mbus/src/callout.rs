//! Who may connect: the service that `nats-server` asks about each connection.
//!
//! The server has verified the client's certificate; we read its common name and grant the rights that
//! [`crate::rights`] has for it, if the [`AgentDirectory`] knows the agent. So rights exist the moment a machine does,
//! and nothing is written into the server's configuration.
//!
//! While this service does not run, connections that stand go on, and new ones are turned away and come back until it
//! runs again: a restart of `stolosd` is not noticed by agents.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use nkeys::KeyPair;
use serde::Deserialize;
use stolos_base::{Clock, Secret, chain, task};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};
use x509_parser::pem::parse_x509_pem;

use crate::claims::{AuthorizationRequest, Verdict, answer};
use crate::nats;
use crate::rights::Peer;
use crate::transport::Error;

/// The subject that the server asks at.
const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
/// Several `stolosd` share the work.
const QUEUE: &str = "stolos";
/// Questions that are worked on at once. Each may ask a database.
const AT_ONCE: usize = 32;
/// The account that agents, director and health monitor are in.
pub(crate) const ACCOUNT: &str = "BOSH";
/// The account of this service; also the server's system account, so that it sees connections come and go.
pub(crate) const SERVICE_ACCOUNT: &str = "STOLOS";
/// How many comings and goings a slow reader may lag behind before it misses some.
const PRESENCE_BUFFER: usize = 4096;

/// Why it is not known whether an agent may connect.
pub type DirectoryError = Box<dyn std::error::Error + Send + Sync>;

/// Says which agents there are. Injected: the director knows its machines.
pub trait AgentDirectory: Send + Sync {
    /// Whether the peer ([`Peer::Agent`] or [`Peer::Bootstrap`]) is to be admitted.
    ///
    /// # Errors
    /// When nobody can tell now. The connection is given no answer then, so that it ends by the server's time limit: a Go agent that is
    /// turned away quickly twice in a row never connects again (`docs/design/0006-go-agent.md`).
    fn admits(&self, peer: Peer) -> BoxFuture<'_, Result<bool, DirectoryError>>;
}

/// The two keys that bind the server and this service together. Made once per installation and kept by the caller.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Seed of the account key that signs answers.
    pub issuer: Secret<String>,
    /// Seed of the user key that this service logs in with.
    pub user: Secret<String>,
}

/// A key is no usable seed.
#[derive(Debug, thiserror::Error)]
#[error("the {which} key of the bus is not usable")]
pub struct KeyError {
    which: &'static str,
    #[source]
    source: nkeys::error::Error,
}

impl Keys {
    /// New random keys.
    ///
    /// # Errors
    /// [`KeyError`] when a key cannot be written down.
    pub fn generate() -> Result<Self, KeyError> {
        let seed = |which, pair: KeyPair| {
            pair.seed()
                .map(Secret::new)
                .map_err(|source| KeyError { which, source })
        };
        Ok(Self {
            issuer: seed("issuer", KeyPair::new_account())?,
            user: seed("user", KeyPair::new_user())?,
        })
    }

    /// What the server has to know.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn public(&self) -> Result<PublicKeys, KeyError> {
        Ok(PublicKeys {
            issuer: read("issuer", &self.issuer)?.public_key(),
            user: read("user", &self.user)?.public_key(),
        })
    }
}

fn read(which: &'static str, seed: &Secret<String>) -> Result<KeyPair, KeyError> {
    KeyPair::from_seed(seed.expose()).map_err(|source| KeyError { which, source })
}

/// The public halves of [`Keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeys {
    /// `A…`
    pub issuer: String,
    /// `U…`
    pub user: String,
}

/// A connection has come or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whose.
    pub peer: Peer,
    /// The server's number of the connection: an agent that restarts may have two for a moment.
    pub connection: u64,
    /// Whether it has come.
    pub connected: bool,
}

/// The service could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection.
    #[error(transparent)]
    Transport(#[from] Error),
}

/// The running service; stopped when dropped.
pub struct AuthCallout {
    presence: broadcast::Sender<Presence>,
    connection: nats::Connection,
    _stop: DropGuard,
}

impl fmt::Debug for AuthCallout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthCallout")
    }
}

/// What each question needs.
struct Desk {
    client: async_nats::Client,
    issuer: KeyPair,
    directory: Arc<dyn AgentDirectory>,
    clock: Clock,
}

impl AuthCallout {
    /// Starts answering. `config` holds the service's own client certificate (of any common name); the server may come
    /// later.
    ///
    /// # Errors
    /// When keys, addresses or TLS material are not usable.
    pub async fn start(
        config: &nats::Config,
        keys: &Keys,
        directory: Arc<dyn AgentDirectory>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let issuer = read("issuer", &keys.issuer)?;
        let connection = nats::connect(config, Some(&keys.user)).await?;
        let failed = |subject: &str| {
            let subject = subject.to_owned();
            move |error: async_nats::SubscribeError| {
                StartError::Transport(Error::Subscribe {
                    subject,
                    source: error.into(),
                })
            }
        };
        let client = connection.client.clone();
        let questions = client
            .queue_subscribe(SUBJECT, QUEUE.to_owned())
            .await
            .map_err(failed(SUBJECT))?;
        let events = format!("$SYS.ACCOUNT.{ACCOUNT}.*");
        let movements = client.subscribe(events.clone()).await.map_err(failed(&events))?;
        let stop = CancellationToken::new();
        let (presence, _) = broadcast::channel(PRESENCE_BUFFER);
        let desk = Arc::new(Desk {
            client,
            issuer,
            directory,
            clock,
        });
        task::spawn(
            task::Kind::Service,
            "admission to the bus",
            serve(desk, questions, stop.clone()),
        );
        task::spawn(
            task::Kind::Service,
            "presence on the bus",
            watch_presence(movements, presence.clone(), stop.clone()),
        );
        Ok(Self {
            presence,
            connection,
            _stop: stop.drop_guard(),
        })
    }

    /// Connections that come and go from now on. Those that stand already are not told.
    #[must_use]
    pub fn presence(&self) -> broadcast::Receiver<Presence> {
        self.presence.subscribe()
    }

    /// Waits until the server knows this service: from then on others can connect.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn ready(&self) -> Result<(), Error> {
        self.connection.ready().await
    }
}

async fn serve(
    desk: Arc<Desk>,
    mut questions: async_nats::Subscriber,
    stop: CancellationToken,
) -> Result<(), &'static str> {
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            message = questions.next() => message.ok_or("the connection to the bus was closed")?,
        };
        let Ok(permit) = limit.clone().acquire_owned().await else {
            return Ok(());
        };
        let desk = desk.clone();
        task::spawn(task::Kind::Connection, "admit a connection", async move {
            let _permit = permit;
            desk.handle(message).await
        });
    }
}

impl Desk {
    async fn handle(&self, message: async_nats::Message) -> Result<(), String> {
        let reply = message.reply.ok_or("a question without a place for the answer")?;
        // A request that no server has signed is not answered at all: the server then turns the client away.
        let request = AuthorizationRequest::decode(&message.payload)
            .map_err(|error| format!("a question is not valid: {}", chain(&error)))?;
        let verdict = match self.judge(&request).await {
            Ok(peer) => {
                tracing::debug!(%peer, "admitted to the bus");
                Verdict::Admitted {
                    account: ACCOUNT,
                    name: peer.to_string(),
                    rights: peer.rights(),
                }
            }
            Err(Refusal::Never(reason)) => {
                tracing::warn!(host = %request.client_info.host, reason, "turned away from the bus");
                Verdict::Rejected(reason)
            }
            Err(Refusal::NotNow(reason)) => return Err(reason),
        };
        let now = self.clock.now().as_second();
        let answer = answer(&request, verdict, &self.issuer, now)
            .map_err(|error| format!("failed to sign an answer: {}", chain(&error)))?;
        self.client
            .publish(reply, Bytes::from(answer))
            .await
            .map_err(|error| format!("failed to answer: {}", chain(&error)))
    }

    async fn judge(&self, request: &AuthorizationRequest) -> Result<Peer, Refusal> {
        let pem = request
            .certificate()
            .ok_or_else(|| Refusal::Never("the client has shown no verified certificate".to_owned()))?;
        let peer: Peer = common_name(pem)
            .map_err(Refusal::Never)?
            .parse()
            .map_err(|error: crate::rights::UnknownPeer| Refusal::Never(error.to_string()))?;
        if peer.agent().is_some() {
            match self.directory.admits(peer).await {
                Ok(true) => {}
                Ok(false) => return Err(Refusal::Never(format!("`{peer}` is not a known agent"))),
                Err(error) => {
                    return Err(Refusal::NotNow(format!(
                        "nobody can tell whether `{peer}` is known: {}",
                        chain(error.as_ref())
                    )));
                }
            }
        }
        Ok(peer)
    }
}

/// The one common name of a certificate.
fn common_name(pem: &str) -> Result<String, String> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| "the certificate is not PEM")?;
    let certificate = pem.parse_x509().map_err(|_| "the certificate is not readable")?;
    let mut names = certificate.subject().iter_common_name();
    match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) => Ok(name.to_owned()),
        _ => Err("the certificate has not exactly one common name".to_owned()),
    }
}

async fn watch_presence(
    mut movements: async_nats::Subscriber,
    presence: broadcast::Sender<Presence>,
    stop: CancellationToken,
) -> Result<(), &'static str> {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            message = movements.next() => message.ok_or("the connection to the bus was closed")?,
        };
        if let Some(change) = read_presence(&message.subject, &message.payload) {
            // Nobody listening is fine.
            let _ = presence.send(change);
        }
    }
}

fn read_presence(subject: &str, payload: &[u8]) -> Option<Presence> {
    #[derive(Deserialize)]
    struct Movement {
        client: Moved,
    }
    #[derive(Deserialize)]
    struct Moved {
        id: u64,
        #[serde(default)]
        user: String,
    }
    let connected = match subject.rsplit('.').next()? {
        "CONNECT" => true,
        "DISCONNECT" => false,
        _ => return None,
    };
    let movement: Movement = serde_json::from_slice(payload).ok()?;
    Some(Presence {
        peer: movement.client.user.parse().ok()?,
        connection: movement.client.id,
        connected,
    })
}

/// Why a client is not admitted.
enum Refusal {
    /// It has no business here.
    Never(String),
    /// Nobody can tell at the moment.
    NotNow(String),
}

/// How long the server waits for an answer before it turns a client away. While this service is down, that is how long a new connection hangs
/// before it is tried again, so it is short. But it has to be longer than the two seconds after which the Go agent's own client gives an attempt up:
/// a client that is told of a refusal twice in a row gives up for ever (nats.go `processAuthError`), one that hears nothing tries again for ever.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(3);
