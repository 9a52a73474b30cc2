//! `stolosd`: configuration and its import from PKS, first start, composition of the services, nothing else.

pub mod backup;
mod bus;
pub mod cluster_backups;
pub mod config;
pub mod connections;
mod director;
pub mod import;
mod installation;
mod network;
mod outside;
mod people;
pub mod relocate;
mod start;
mod time;
mod trust;
mod variables;

use anyhow::Context as _;
use stolos_base::lock::FileLock;
use stolos_base::process::Process;
use stolos_base::task::{self, Kind};
use stolos_base::{Instance, MemberName};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use crate::bus::{BusPorts, HostBus};
pub use crate::installation::{Installation, Urls};
pub use crate::outside::{Addresses, Buses, Connected, Ground, Listen, Member, Outside, Ports};

/// Runs an instance, or one of its managers, until it is told to end (SIGTERM). Machines, the bus and `stolos-hostd` go on.
///
/// # Errors
/// When something cannot be started, or another process runs the same instance (as the same member).
pub async fn run(instance: &Instance, member: Option<&MemberName>) -> anyhow::Result<()> {
    let files = instance.manager(member);
    fs_err::create_dir_all(instance.run())?;
    let Some(_lock) = FileLock::try_acquire(&files.lock)? else {
        match member {
            None => anyhow::bail!("another stolosd runs instance `{}`", instance.name),
            Some(member) => {
                anyhow::bail!(
                    "another stolosd is member `{member}` of instance `{}`",
                    instance.name
                )
            }
        }
    };
    let me = i32::try_from(std::process::id())
        .ok()
        .and_then(Process::of)
        .context("failed to find this process")?;
    me.record(&files.record)?;
    let stopping = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    task::spawn(Kind::Service, "memory", stolos_base::memory::keep_settled());
    let schedule = backup::schedule::configured(instance)?;
    let running = start::start(instance, member).await?;
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
    stolos_base::files::remove_if_there(&files.record)?;
    Ok(())
}
