//! `stolos-hostd`.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;
use stolos_base::logging::{self, Format};

/// Keeps this host's machines running and balances the API addresses of clusters.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration of the CPI (JSON).
    #[arg(long)]
    config: Utf8PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start(Format::Json, "info");
    stolos_base::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(stolos_hostd::run(&arguments.config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "stolos-hostd cannot go on");
            ExitCode::FAILURE
        }
    }
}
