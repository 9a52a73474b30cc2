//! `stolos-agent`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use stolos_agent::platform::Linux;
use stolos_agent::{Agent, Config, Core, Paths};
use stolos_base::logging::{self, Format};
use stolos_base::pki::Identity;
use stolos_base::{task, tls};
use stolos_mbus::{Transport, nats};
use tokio::signal::unix::{SignalKind, signal};

/// BOSH's longest pause between two attempts to reach the bus is ten seconds; a new machine should be heard at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the last answers of a connection may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // The bus's client tells of each of its attempts, which go on for as long as nobody answers.
    logging::start(Format::Json, "info,async_nats=error");
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "the agent cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// Lives again each time settings change that count at the start: on the same boot and without losing a process.
async fn run() -> anyhow::Result<()> {
    let paths = Paths::default();
    let platform = Arc::new(Linux::default());
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        let settings = stolos_agent::read_settings(&paths)?;
        let cert = settings.env.bosh.mbus.clone().unwrap_or_default().cert;
        let bus = nats::Config {
            servers: settings.bus_urls(),
            ca: cert.ca,
            identity: Identity {
                certificate: cert.certificate,
                key: cert.private_key,
            },
            name: format!("agent {}", settings.agent_id),
            longest_pause: LONGEST_PAUSE,
        };
        let core = Core::new(settings, paths.clone(), platform.clone())?;
        // The bus is reached while the machine gets ready: neither waits for the other.
        let booting = core.clone();
        let boot = task::spawn(task::Kind::Job, "boot", async move {
            booting.boot().await;
            Ok::<(), std::convert::Infallible>(())
        });
        let transport: Arc<dyn Transport> = Arc::new(nats::NatsTransport::connect(&bus).await?);
        let agent = Agent::start(Config::default(), core, transport.clone()).await?;
        tokio::select! {
            _ = terminated.recv() => return Ok(()),
            () = agent.core().restart().cancelled() => {}
        }
        tracing::info!("starting again with new settings");
        boot.abort();
        drop(agent);
        // The answer to the call that asked for it goes out before the connection ends.
        let _ = tokio::time::timeout(FLUSH_LIMIT, transport.flush()).await;
    }
}
