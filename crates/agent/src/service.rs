//! The agent on the bus.

use std::sync::Arc;
use std::time::Duration;

use stolos_base::{Clock, chain, task};
use stolos_init::wire::{Event, What};
use stolos_mbus::endpoint::Announcer;
use stolos_mbus::state::Alert;
use stolos_mbus::transport::Link;
use stolos_mbus::{Call, Endpoint, Transport};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::problems::{CRITICAL_AFTER, Standing};

/// BOSH's severities: a process that was restarted.
const ERROR: i32 = 3;
/// A process that does not stay up.
const CRITICAL: i32 = 2;
/// How long the last words of a machine may take.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// Between two heartbeats that only bring news.
const NEWS_PAUSE: Duration = Duration::from_secs(1);
/// The pause before init is asked for events again after it went away.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What is settled at the agent's start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Wall-clock time.
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            clock: Clock::system(),
        }
    }
}

/// A running agent. Ends when it is dropped.
#[derive(Debug)]
pub struct Agent {
    core: Core,
    stop: CancellationToken,
}

impl Agent {
    /// Starts to listen and to send heartbeats, the first at once.
    ///
    /// # Errors
    /// When the bus cannot be subscribed to.
    pub async fn start(config: Config, core: Core, transport: Arc<dyn Transport>) -> Result<Self> {
        let agent = core.settings().agent_id;
        let link = transport.link();
        let endpoint = Endpoint::start(transport, agent).await.map_err(Error::Listen)?;
        let stop = CancellationToken::new();
        let announcer = Arc::new(endpoint.announcer());
        let news = Arc::new(Notify::new());
        let hearts = beat(
            core.clone(),
            announcer.clone(),
            config.heartbeat,
            config.clock.clone(),
            link,
            news.clone(),
        );
        spawn("heartbeats", stop.clone(), hearts);
        let told = alerts(core.clone(), announcer.clone(), config.clock, news);
        spawn("process events", stop.clone(), told);
        spawn(
            "requests",
            stop.clone(),
            listen(core.clone(), announcer, endpoint),
        );
        Ok(Self { core, stop })
    }

    /// Its mind.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn spawn(name: &'static str, stop: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    task::spawn(task::Kind::Service, name, async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
}

async fn listen(core: Core, announcer: Arc<Announcer>, mut endpoint: Endpoint) {
    while let Some(incoming) = endpoint.next().await {
        let (core, announcer) = (core.clone(), announcer.clone());
        // Each in its own task: a slow answer must not hold back `get_task`.
        task::spawn(task::Kind::Connection, incoming.call.method(), async move {
            let ends = matches!(incoming.call, Call::Shutdown);
            let reply = core.handle(incoming.call).await;
            let sent = incoming
                .responder
                .reply(&reply)
                .await
                .map_err(|error| chain(&error));
            if ends {
                // The announcement follows the answer and waits until both are on the wire, unless nobody is there.
                let announced = tokio::time::timeout(SHUTDOWN_LIMIT, announcer.shutdown()).await;
                if !matches!(announced, Ok(Ok(()))) {
                    tracing::warn!("the end of the machine could not be announced");
                }
                core.power_off().await.map_err(|error| chain(&error))?;
            }
            sent
        });
    }
}

/// Sends a heartbeat at once, then at the interval, and when there is news: the bus is reached again, or a process ended.
async fn beat(
    core: Core,
    announcer: Arc<Announcer>,
    interval: Duration,
    clock: Clock,
    mut link: watch::Receiver<Link>,
    news: Arc<Notify>,
) {
    let mut epoch = link.borrow_and_update().epoch;
    let mut standing = Standing::default();
    loop {
        let asked = core.clone();
        let Ok(mut heartbeat) = tokio::task::spawn_blocking(move || asked.heartbeat()).await else {
            continue;
        };
        for news in standing.compare(std::time::Instant::now(), &mut heartbeat.problems) {
            let alert = news.alert(stolos_base::ids::random_hex(16), clock.now().as_second());
            tracing::warn!(title = alert.title, summary = alert.summary, "told");
            if let Err(error) = announcer.alert(&alert).await {
                tracing::debug!(error = %chain(&error), "alert not sent");
            }
        }
        if let Err(error) = announcer.heartbeat(&heartbeat).await {
            tracing::debug!(error = %chain(&error), "heartbeat not sent");
        }
        let sent = Instant::now();
        let up_again = async {
            let changed = link
                .wait_for(|link| link.up && link.epoch > epoch)
                .await
                .map(|link| link.epoch);
            match changed {
                Ok(now) => now,
                // A transport that was closed brings no news.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            now = up_again => {
                epoch = now;
                tracing::info!(epoch, "the bus is reached");
            }
            () = news.notified() => {
                // A process that flaps does not make the heart race.
                tokio::time::sleep_until(sent + NEWS_PAUSE).await;
            }
        }
    }
}

async fn alerts(core: Core, announcer: Arc<Announcer>, clock: Clock, news: Arc<Notify>) {
    let (told, mut events) = mpsc::unbounded_channel::<Event>();
    let platform = core.platform();
    // A thread of its own: it waits on init's socket for as long as the agent lives.
    let watch = std::thread::Builder::new()
        .name("init-events".to_owned())
        .spawn(move || {
            let mut last = None;
            loop {
                let mut open = true;
                let ended = platform.watch(last, &mut |event| {
                    last = Some(event.number);
                    open = told.send(event).is_ok();
                    open
                });
                if !open || told.is_closed() || ended.is_ok() {
                    return;
                }
                std::thread::sleep(WATCH_PAUSE);
            }
        });
    if let Err(error) = watch {
        tracing::error!(%error, "exits of processes cannot be watched");
        return;
    }
    while let Some(event) = events.recv().await {
        news.notify_one();
        let What::Failed { exit, failures, .. } = &event.what else {
            continue;
        };
        let alert = Alert {
            id: stolos_base::ids::random_hex(16),
            severity: if *failures >= CRITICAL_AFTER {
                CRITICAL
            } else {
                ERROR
            },
            title: format!("{} - {exit} - restart", event.name),
            summary: format!("process {} {exit}, {failures} times in a row", event.name),
            created_at: clock.now().as_second(),
            over: false,
        };
        tracing::warn!(process = %event.name, how = %exit, failures, "process ended");
        if let Err(error) = announcer.alert(&alert).await {
            tracing::debug!(error = %chain(&error), "alert not sent");
        }
    }
    // A simulated machine has no events; the task stays, because its end would be logged as a fault.
    std::future::pending::<()>().await;
}
