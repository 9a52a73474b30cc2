//! `stolosd`: configuration and its import from PKS, first start, composition of the services, nothing else.

pub mod backup;
mod bus;
pub mod config;
mod director;
pub mod import;
mod installation;
mod network;
mod outside;
pub mod relocate;
mod start;
mod trust;
mod variables;

use anyhow::Context as _;
use stolos_base::Instance;
use stolos_base::lock::FileLock;
use stolos_base::process::Process;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use crate::installation::{Installation, Urls};
pub use crate::outside::{Addresses, Buses, Connected, Ground, Outside, Ports};

/// Held by the process that runs the instance, and by those that must not run beside it.
pub(crate) const LOCK: &str = "stolosd.lock";
/// The record of the process, for `stolos up` and `stolos down`.
const RECORD: &str = "stolosd.pid";

/// Runs an instance until it is told to end (SIGTERM). Machines, the bus and `stolos-hostd` go on.
///
/// # Errors
/// When something cannot be started, or another process runs the same instance.
pub async fn run(instance: &Instance) -> anyhow::Result<()> {
    let run = instance.run();
    fs_err::create_dir_all(&run)?;
    let Some(_lock) = FileLock::try_acquire(&run.join(LOCK))? else {
        anyhow::bail!("another stolosd runs instance `{}`", instance.name);
    };
    let me = i32::try_from(std::process::id())
        .ok()
        .and_then(Process::of)
        .context("failed to find this process")?;
    me.record(&run.join(RECORD))?;
    let stopping = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let schedule = backup::schedule::configured(instance)?;
    let running = start::start(instance).await?;
    if let Some(schedule) = schedule {
        schedule.start(stopping.clone());
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stopping.cancel();
    running.stop().await;
    stolos_base::files::remove_if_there(&run.join(RECORD))?;
    Ok(())
}
