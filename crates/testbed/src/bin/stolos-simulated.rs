//! The processes of [`stolos_testbed::simulated::members`]: a manager, and the CPI that managers call. And the measuring of
//! `cargo xtask bench failover`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use stolos_testbed::simulated::{failover as measuring, members};

#[tokio::main]
async fn main() -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "error");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["manage", orders] => members::manage(orders).await,
        ["cpi", socket] => members::call(socket).await,
        ["failover", rounds, clusters] => failover(rounds, clusters).await,
        _ => Err(anyhow::anyhow!(
            "usage: stolos-simulated manage ORDERS | cpi SOCKET | failover ROUNDS CLUSTERS"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stolos_testbed::note(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints what was measured as a line of JSON.
async fn failover(rounds: &str, clusters: &str) -> anyhow::Result<()> {
    let program = camino::Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let measured = measuring::measure(program, rounds.parse()?, clusters.parse()?).await?;
    let line = serde_json::to_string(&measured)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("nobody reads what this prints")
}
