//! Taking an installation off this host.

use std::process::Command;
use std::time::Duration;

use camino::Utf8PathBuf;
use stolos_base::process::Process;
use stolos_base::{Instance, files};

use crate::args::Down;
use crate::commands::{doctor, managers};
use crate::failure::Failure;
use crate::output;

/// All but managers have nothing to finish.
const PATIENCE: Duration = Duration::from_secs(10);

/// `stolos down`
pub(crate) fn run(args: &Down) -> Result<(), Failure> {
    let instance = args.local.instance();
    if !instance.root.exists() {
        output::note(&format!("nothing is there: `{}` does not exist", instance.root));
        return Ok(());
    }
    doctor::refuse_failed(&doctor::host(&instance)[..1])?;
    // In the order of dependence: nobody may start again what is being ended.
    managers::end(&instance, managers::recorded(&instance)?, "")?;
    stop(
        &instance,
        "stolos-hostd",
        &instance.run().join("hostd.pid"),
        PATIENCE,
    )?;
    for record in managers::bus_records(&instance) {
        stop(&instance, "nats-server", &record, PATIENCE)?;
    }
    if instance.cpi_config().exists() {
        let verb = if args.purge { "destroy-all" } else { "stop-all" };
        output::note(if args.purge {
            "removing all machines"
        } else {
            "stopping all machines"
        });
        cpi(&instance, verb)?;
    }
    if args.purge {
        files::remove_tree_if_there(&instance.root)
            .map_err(|error| Failure::ours(format!("failed to remove the state: {error}")))?;
        stolos_base::range::release(instance.root.as_str())
            .map_err(|error| Failure::ours(format!("failed to give the address range back: {error}")))?;
        output::note(&format!("{} is gone, with its state", instance.name));
    } else {
        output::note(&format!(
            "{} is stopped; `stolos up` brings it back with its clusters, `stolos down --purge` removes them",
            instance.name
        ));
    }
    Ok(())
}

fn stop(
    instance: &Instance,
    name: &str,
    record: &camino::Utf8Path,
    patience: Duration,
) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::ours(format!("failed to stop {name} of {}: {error}", instance.name));
    if let Some(process) = Process::recorded(record).map_err(failed)? {
        output::note(&format!("stopping {name}"));
        process.end(patience).map_err(failed)?;
    }
    files::remove_if_there(record).map_err(failed)
}

fn cpi(instance: &Instance, verb: &str) -> Result<(), Failure> {
    let output = Command::new(sibling("stolos-cpi-host")?)
        .args(["--config", instance.cpi_config().as_str(), verb])
        .output()
        .map_err(|error| Failure::ours(format!("failed to run stolos-cpi-host: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(
        Failure::ours(format!("failed to remove the machines: {}", why.trim()))
            .hint("Run `stolos down` again; it goes on where it stopped."),
    )
}

/// A program that was built and is installed together with this one.
pub(crate) fn sibling(name: &str) -> Result<Utf8PathBuf, Failure> {
    let exe = std::env::current_exe()
        .map_err(|error| Failure::ours(format!("failed to find this program's place: {error}")))?;
    let path = Utf8PathBuf::try_from(exe)
        .map_err(|error| Failure::ours(error.to_string()))?
        .with_file_name(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Failure::user(format!("`{path}` is missing"))
            .hint("Build all programs: `cargo build --workspace --bins`."))
    }
}
