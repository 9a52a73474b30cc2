//! The command line of Stolos.
//!
//! Owns arguments, tables, progress, the session file and the kubeconfig. Decides nothing about clusters: it asks the
//! services through their clients in `api` and shows the answers. stdout is data, stderr the rest.

mod args;
mod commands;
mod failure;
mod kubeconfig;
mod output;
mod progress;
mod session;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

/// Runs one command. Exit codes: 0 done, 1 the caller's side, 2 ours.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match args::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    stolos_base::logging::start(stolos_base::logging::Format::Text, "warn");
    stolos_base::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("Error: failed to start: {error}"));
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(commands::dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure.to_string());
            ExitCode::from(failure.class().exit_code())
        }
    }
}

/// The name under which the program was called, for hints.
pub(crate) fn program_name() -> String {
    std::env::args()
        .next()
        .as_deref()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or("stolos")
        .to_owned()
}
