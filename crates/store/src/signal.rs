//! Signals: short words by which one process tells all others of the same database that there is something to look at.
//!
//! A signal is sent by the transaction that makes the news ([`crate::Tx::signal`]), so nobody hears of what was rolled back, and
//! nobody hears of it too early. It says where to look, never what is there, and may get lost with a connection: whoever waits
//! for one also looks from time to time, and at once after [`Signal::Missed`].
//!
//! Only other processes hear: within a process there are better means. On SQLite, which one process alone uses, there is nobody
//! to tell, and signals cost nothing. On PostgreSQL they are `NOTIFY` and `LISTEN`, one connection for each database that somebody
//! listens to.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::postgres::PgListener;
use stolos_base::{Secret, chain, task};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Signals that a slow listener may be behind; then it hears [`Signal::Missed`] in their place.
const BACKLOG: usize = 4096;
/// The pause before a listener that cannot connect tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// What another process has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A word.
    Word(Arc<str>),
    /// Some words may have been lost: look at everything that is waited for.
    Missed,
}

/// What other processes say. Cheap; dropped by whoever wants to hear no more.
#[derive(Debug)]
pub struct Signals(pub(crate) Option<broadcast::Receiver<Signal>>);

impl Signals {
    /// The next signal. Never ends where there are no other processes.
    pub async fn next(&mut self) -> Signal {
        if let Some(words) = &mut self.0 {
            match words.recv().await {
                Ok(signal) => return signal,
                Err(broadcast::error::RecvError::Lagged(_)) => return Signal::Missed,
                // The database was closed.
                Err(broadcast::error::RecvError::Closed) => {}
            }
        }
        std::future::pending().await
    }
}

/// Who listens for whom: what a [`crate::Db`] on PostgreSQL keeps for it.
pub(crate) struct Ears {
    pub(crate) url: Secret<String>,
    pub(crate) channel: String,
    /// What this process's own words begin with, so that they are not heard here.
    pub(crate) own: String,
    pub(crate) words: broadcast::Sender<Signal>,
    pub(crate) stop: CancellationToken,
    pub(crate) begun: std::sync::Once,
}

impl Ears {
    pub(crate) fn new(url: Secret<String>, database: &str) -> Self {
        Self {
            url,
            channel: format!("stolos_{database}"),
            own: stolos_base::ids::random_hex(6),
            words: broadcast::channel(BACKLOG).0,
            stop: CancellationToken::new(),
            begun: std::sync::Once::new(),
        }
    }

    /// What is said from now on. Begins to listen, the first time.
    pub(crate) fn listen(self: &Arc<Self>) -> broadcast::Receiver<Signal> {
        let words = self.words.subscribe();
        self.begun.call_once(|| {
            let (ears, stop) = (Arc::downgrade(self), self.stop.clone());
            task::spawn(task::Kind::Service, "signals", async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = listen(&ears) => {}
                }
                Ok::<(), std::convert::Infallible>(())
            });
        });
        words
    }
}

/// Until nobody has the database open any more.
async fn listen(ears: &Weak<Ears>) {
    while let Some(strong) = ears.upgrade() {
        let (url, channel, own) = (strong.url.clone(), strong.channel.clone(), strong.own.clone());
        drop(strong);
        if let Err(source) = hear(ears, &url, &channel, &own).await {
            let error = Error::from(source);
            tracing::warn!(error = %chain(&error), "failed to listen for signals; trying again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(ears: &Weak<Ears>, url: &Secret<String>, channel: &str, own: &str) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect(url.expose()).await?;
    listener.listen(channel).await?;
    // What was said before is lost.
    let mut signal = Signal::Missed;
    loop {
        match ears.upgrade() {
            // Nobody waiting is fine.
            Some(strong) => drop(strong.words.send(signal)),
            None => return Ok(()),
        }
        signal = loop {
            match listener.try_recv().await? {
                None => break Signal::Missed,
                Some(said) => match said.payload().split_once(' ') {
                    Some((who, _)) if who == own => {}
                    Some((_, word)) => break Signal::Word(word.into()),
                    None => tracing::debug!(payload = said.payload(), "a signal that is none of ours"),
                },
            }
        };
    }
}
