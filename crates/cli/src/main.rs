//! `stolos`, the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    stolos_cli::run(std::env::args_os())
}
