//! `stolosd`.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;
use stolos_base::logging::{self, Format};
use stolos_base::{Instance, InstanceName};

/// The services of a Stolos installation in one process.
#[derive(Debug, Parser)]
#[command(name = "stolosd", version)]
struct Arguments {
    /// Name of the installation.
    #[arg(long, default_value = "stolos")]
    instance: InstanceName,
    /// Where it keeps everything; /var/lib/stolos/INSTANCE unless given.
    #[arg(long)]
    root: Option<Utf8PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start(Format::Json, "info,sqlx=warn");
    stolos_base::tls::install_provider();
    let mut instance = Instance::at_default(arguments.instance);
    if let Some(root) = arguments.root {
        instance.root = root;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(stolos_server::run(&instance)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "stolosd cannot go on");
            ExitCode::FAILURE
        }
    }
}
