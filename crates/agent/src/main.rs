//! `stolos-agent`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use stolos_agent::platform::Linux;
use stolos_agent::{Agent, Config, Core, Paths};
use stolos_base::logging::{self, Format};
use stolos_base::pki::Identity;
use stolos_base::{chain, tls};
use stolos_mbus::nats;
use tokio::signal::unix::{SignalKind, signal};

/// BOSH's longest pause between two attempts to reach the bus is ten seconds; a new machine should be heard at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    logging::start(Format::Json, "info");
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "the agent cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let paths = Paths::default();
    let settings = stolos_agent::read_settings(&paths)?;
    let urls = settings.bus_urls();
    let cert = settings.env.bosh.mbus.clone().unwrap_or_default().cert;
    let bus = nats::Config {
        servers: urls,
        ca: cert.ca,
        identity: Identity { certificate: cert.certificate, key: cert.private_key },
        name: format!("agent {}", settings.agent_id),
        longest_pause: LONGEST_PAUSE,
    };
    let core = Core::new(settings, paths, Arc::new(Linux::default()))?;
    // The bus is reached while the machine gets ready: neither waits for the other.
    let booting = core.clone();
    stolos_base::task::spawn(stolos_base::task::Kind::Job, "boot", async move {
        booting.boot().await.map_err(|error| chain(&error))
    });
    let transport = nats::NatsTransport::connect(&bus).await?;
    let agent = Agent::start(Config::default(), core, Arc::new(transport)).await?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => {}
        () = agent.core().restart().cancelled() => {
            // The answer to the call that asked for it goes out first.
            tokio::time::sleep(Duration::from_millis(500)).await;
            tracing::info!("starting again with new settings");
        }
    }
    Ok(())
}
