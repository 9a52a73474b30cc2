//! The CPI for this host as an executable: without a subcommand, one BOSH CPI call on standard input and its reply on
//! standard output.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use stolos_base::{Classify as _, IdSource, chain, logging};
use stolos_cpi::wire;
use stolos_cpi_host::{Config, Host, HostCpi, Result};

/// The CPI for this Linux host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (JSON).
    #[arg(long)]
    config: Utf8PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Start a machine, which is to run from now on.
    PowerOn { cid: String },
    /// Stop a machine, which is to stay off.
    PowerOff { cid: String },
    /// Print the machines, one JSON object a line.
    List,
    /// Stop every machine and take all off the host that is there for it; the files stay.
    StopAll,
    /// Remove every machine and all that the instance put on the host for them. Disks and stemcells stay.
    DestroyAll,
    /// Make the host ready for machines.
    PrepareHost,
    /// Put back what was changed of the host, once no other instance needs it.
    ReleaseHost,
}

fn main() -> ExitCode {
    logging::start(logging::Format::Text, "info");
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::from(error.class().exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let host = Host::new(Config::read(&arguments.config)?, IdSource::random());
    match arguments.command {
        None => answer(&HostCpi::new(host)),
        Some(Command::PowerOn { cid }) => host.power_on(&cid.into()).map(drop),
        Some(Command::PowerOff { cid }) => host.power_off(&cid.into()),
        Some(Command::List) => list(&host),
        Some(Command::StopAll) => host.stop_all(),
        Some(Command::DestroyAll) => host.destroy_all(),
        Some(Command::PrepareHost) => host.prepare(),
        Some(Command::ReleaseHost) => host.release(),
    }
}

fn answer(cpi: &HostCpi) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| stolos_cpi_host::Error::Io { what, source }
    };
    let mut input = Vec::new();
    std::io::stdin()
        .read_to_end(&mut input)
        .map_err(failed("read the call"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start"))?;
    let cpi = match wire::call_id(&input) {
        Some(id) => cpi.call(&id),
        None => cpi.clone(),
    };
    let response = runtime.block_on(wire::answer(&cpi, &input));
    let text = serde_json::to_vec(&response)
        .map_err(std::io::Error::from)
        .map_err(failed("write the reply"))?;
    std::io::stdout()
        .write_all(&text)
        .map_err(failed("write the reply"))
}

fn list(host: &Host) -> Result<()> {
    let mut out = std::io::stdout();
    for machine in host.machines()? {
        let running = host.init(&machine.cid)?.map(|init| init.pid);
        let line = serde_json::json!({"cid": machine.cid, "state": machine.state, "power": machine.power, "pid": running,
            "links": machine.links, "disks": machine.disks, "metadata": machine.metadata});
        writeln!(out, "{line}").map_err(|source| stolos_cpi_host::Error::Io {
            what: "print".to_owned(),
            source,
        })?;
    }
    Ok(())
}
