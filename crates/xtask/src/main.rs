//! Checks of the workspace that `cargo` has no words for, and the list of all checks.

mod bench;
mod chaos;
mod ci;
mod crash;
mod deps;
mod installation;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask", about = "Checks of the workspace")]
enum Task {
    /// Checks which crate may use which (DESIGN: a service is reached by others only through its client in `api`).
    Deps,
    /// Everything but the tests: formatting, lints, documentation, dependency directions.
    Ci,
    /// SIGKILL of the manager at every moment of real operations.
    Crash(crash::Arguments),
    /// Faults of all kinds on a cluster of three masters, with a checker of acknowledged writes.
    Chaos(chaos::Arguments),
    /// Measurements, each beside something else in the same run.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Deps => deps::check_workspace(),
        Task::Ci => ci::run(),
        Task::Crash(crash) => crash.run(),
        Task::Chaos(chaos) => chaos.run(),
        Task::Bench(bench) => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for people.
#[expect(clippy::print_stderr, reason = "this program talks to people")]
fn say(text: &str) {
    eprintln!("{text}");
}
