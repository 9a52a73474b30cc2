//! `stolos-init`.

mod boot;
mod control;
mod logs;
mod supervisor;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            log(&problem);
            return ExitCode::from(1);
        }
    };
    match control::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("init cannot go on: {error}"));
            ExitCode::from(2)
        }
    }
}

/// How it was called.
#[derive(Debug, Default)]
struct Options {
    /// Control socket.
    socket: Option<String>,
    /// Configuration file.
    config: Option<String>,
    /// Leave the machine as it is: for tests outside of one.
    no_boot: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("`{arg}` needs a value"));
            match arg.as_str() {
                "--socket" => options.socket = Some(value()?),
                "--config" => options.config = Some(value()?),
                "--no-boot" => options.no_boot = true,
                _ => return Err(format!("unknown argument `{arg}`; usage: stolos-init [--socket PATH] [--config FILE] [--no-boot]")),
            }
        }
        Ok(options)
    }
}

/// Standard error is the machine's console log.
#[expect(clippy::print_stderr, reason = "init has no other log than its console")]
fn log(text: &str) {
    eprintln!("stolos-init: {text}");
}
