//! The null CPI as an executable, for tests of the wire and of the runner:
//! `stolos-cpi-null [LOG [PAUSE_MS [BOOKS]]]`. Without BOOKS its books are the life of one call.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use camino::Utf8PathBuf;
use stolos_base::lock::FileLock;
use stolos_base::{IdSource, files};
use stolos_cpi::null::NullCpi;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> std::io::Result<()> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Tests of the runner's journal count how often it was called, and make it slow.
    if let Some(log) = arguments.first() {
        writeln!(
            fs_err::OpenOptions::new().create(true).append(true).open(log)?,
            "called"
        )?;
    }
    if let Some(pause) = arguments.get(1).and_then(|text| text.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
    let books = arguments.get(2).map(Utf8PathBuf::from);
    let _lock = books
        .as_ref()
        .map(|file| FileLock::acquire(&file.with_extension("lock")))
        .transpose()?;
    let before = books
        .as_ref()
        .map(|file| files::read_json(file))
        .transpose()?
        .flatten();
    let cpi = NullCpi::with_books(IdSource::random(), before.unwrap_or_default());
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let response = runtime.block_on(stolos_cpi::wire::answer(&cpi, &input));
    if let Some(file) = &books {
        files::write_json(file, &cpi.books(), 0o600)?;
    }
    serde_json::to_writer(std::io::stdout(), &response).map_err(Into::into)
}
