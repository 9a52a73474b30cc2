//! What has to work on a host whether or not `stolosd` runs: machines that should be on are on, and each cluster's virtual
//! API address leads to a master that answers.
//!
//! Owns: starting machines again after a host reboot or their death, telling of deaths, the host's own bridge and address,
//! virtual addresses and their balancing in the instance's nft table. Never does: making or deleting machines (the CPI
//! does), deciding where virtual addresses lead (`stolosd` says).
//!
//! Invariants: what it was told is on disk before it is answered; what it does follows from that and from the CPI's
//! records alone, so it can die at any instant.

mod http;
mod machines;
mod state;
mod virtual_addresses;

use std::sync::Arc;

use anyhow::Context as _;
use camino::Utf8Path;
use stolos_base::lock::FileLock;
use stolos_base::process::Process;
use stolos_base::task::{self, Kind};
use stolos_base::{Clock, IdSource};
use stolos_cpi_host::{Config, Host};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The record of the process, for `stolos up` and `stolos down`.
const RECORD: &str = "hostd.pid";

/// Runs until it is told to end (SIGTERM). Machines and addresses stay as they are then.
///
/// # Errors
/// When the host cannot be prepared, or another one runs for the same instance.
pub async fn run(config: &Utf8Path) -> anyhow::Result<()> {
    // Before programs of the CPI are started, which have many files, too.
    let limits = stolos_base::http::Limits::default().for_this_process();
    let config = Config::read(config).context("failed to read the configuration")?;
    let instance = config.instance.clone();
    let host = Host::new(config, IdSource::random());
    let run = instance.run();
    fs_err::create_dir_all(&run)?;
    let Some(_lock) = FileLock::try_acquire(&run.join("hostd.lock"))? else {
        anyhow::bail!("another stolos-hostd runs for instance `{}`", instance.name);
    };
    host.prepare().context("failed to prepare the host")?;
    let state = Arc::new(state::State::open(&instance.hostd())?);
    let addresses = virtual_addresses::Service::start(host.clone(), state).await?;
    let machines = machines::Service::new(host, addresses.clone(), Clock::system());
    let stop = CancellationToken::new();
    let socket = instance.hostd_socket();
    stolos_base::files::remove_if_there(&socket)?;
    let listener = UnixListener::bind(&socket).with_context(|| format!("failed to listen on `{socket}`"))?;
    set_private(&socket)?;
    let router = http::router(machines.clone(), addresses);
    let serving = stop.clone();
    task::spawn(Kind::Service, "socket", async move {
        stolos_base::http::Server::new(limits)
            .serve_unix(listener, router, serving)
            .await;
        Ok::<(), std::convert::Infallible>(())
    });
    let me = i32::try_from(std::process::id())
        .ok()
        .and_then(Process::of)
        .context("failed to find this process")?;
    me.record(&run.join(RECORD))?;
    tracing::info!(instance = %instance.name, "started");
    let keeping = stop.clone();
    task::spawn(Kind::Service, "machines", async move {
        machines.keep(keeping).await;
        Ok::<(), std::convert::Infallible>(())
    });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    stolos_base::files::remove_if_there(&run.join(RECORD))?;
    Ok(())
}

/// The socket's mode is its authentication.
fn set_private(socket: &Utf8Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
}
