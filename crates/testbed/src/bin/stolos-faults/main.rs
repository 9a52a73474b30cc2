//! Faults on a real cluster of a real installation: how long its repairs take, and whether it keeps what it said through a storm of them.
//!
//! It works on the installation that `STOLOS_INSTANCE` names, as `stolos` does, with the programs that lie beside it. Everything that it breaks belongs to
//! the one cluster that it is given: a cluster that somebody needs is none for this.

mod api;
mod chaos;
mod checker;
mod faults;
mod repair;
mod site;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "stolos-faults", about = "Breaks a cluster on purpose, and watches")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Takes machines away and freezes them, one after the other, and measures until each is back; prints JSON
    Repair(repair::Arguments),
    /// Faults of all kinds for a while, under load, with a checker of acknowledged writes; prints JSON
    Chaos(chaos::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "error");
    let result = match Arguments::parse().what {
        What::Repair(arguments) => arguments.run().await,
        What::Chaos(arguments) => arguments.run().await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            stolos_testbed::note(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a result as JSON.
fn print(result: &impl serde::Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let text = serde_json::to_string_pretty(result)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())?;
    Ok(())
}
