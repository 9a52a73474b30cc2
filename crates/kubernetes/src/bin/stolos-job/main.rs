//! `stolos-job`: what the jobs of a cluster's machines call. Parses, runs one command, ends when that does.

mod arguments;
mod directories;
mod https;
mod images;
mod keeper;
mod member;
mod problems;
mod queue;
mod ready;
mod restore;
mod volumes;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    match arguments.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("stolos-job: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One line to stderr, where the agent takes progress from. A closed stderr is no reason to stop.
fn note(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
