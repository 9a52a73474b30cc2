//! The processes of [`stolos_testbed::simulated::members`]: a manager, and the CPI that managers call.

use std::process::ExitCode;

use stolos_testbed::simulated::members;

#[tokio::main]
async fn main() -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "error");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["manage", orders] => members::manage(orders).await,
        ["cpi", socket] => members::call(socket).await,
        _ => Err(anyhow::anyhow!(
            "usage: stolos-simulated manage ORDERS | cpi SOCKET"
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
