//! The command line of Stolos.
//!
//! Owns arguments, tables, progress, the session file and the kubeconfig. Decides nothing about clusters: it asks the
//! services through their clients in `api` and shows the answers. stdout is data, and the sentences that PKS printed there,
//! which scripts read; stderr the rest.

mod args;
mod commands;
mod failure;
mod kubeconfig;
mod output;
mod progress;
mod session;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

pub(crate) use usage::program_name;

/// Runs one command. Exit codes: 0 done, 1 the caller's side, 2 ours.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match usage::parse(args) {
        Ok(cli) => cli,
        Err(error) => return usage::tell(&error),
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
    let ended = runtime.block_on(commands::dispatch(cli.command));
    match ended.and_then(|()| output::arrived()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure.to_string());
            ExitCode::from(failure.class().exit_code())
        }
    }
}
