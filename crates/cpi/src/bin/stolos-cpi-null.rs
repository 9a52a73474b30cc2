//! The null CPI as an executable whose books are the life of one call: for tests of the wire and of the runner.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut input = Vec::new();
    if std::io::stdin().read_to_end(&mut input).is_err() {
        return ExitCode::FAILURE;
    }
    // Tests of the runner's journal count how often it was called, and make it slow.
    if let Some(log) = std::env::args().nth(1)
        && let Ok(mut file) = fs_err::OpenOptions::new().create(true).append(true).open(log)
    {
        let _ = writeln!(file, "called");
    }
    if let Some(pause) = std::env::args().nth(2).and_then(|text| text.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
    let cpi = stolos_cpi::null::NullCpi::default();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return ExitCode::FAILURE };
    let response = runtime.block_on(stolos_cpi::wire::answer(&cpi, &input));
    match serde_json::to_writer(std::io::stdout(), &response) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
