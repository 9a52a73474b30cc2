//! The program. `--socket PATH`, `--config FILE`; `--no-mounts` where it does not run in a machine of its own.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use stolos_init::{Config, Start, config, run, wire};

fn main() -> ExitCode {
    match start().and_then(|start| run(start).map_err(|error| error.to_string())) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "stolos-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<Start, String> {
    let mut socket = PathBuf::from(wire::SOCKET);
    let mut file = PathBuf::from(config::FILE);
    let mut machine = true;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or("a value is missing at the end of the command line")
        };
        match argument.to_str() {
            Some("--socket") => socket = value()?.into(),
            Some("--config") => file = value()?.into(),
            Some("--no-mounts") => machine = false,
            _ => return Err(format!("unknown argument {}", argument.display())),
        }
    }
    let mut config =
        Config::read(&file).map_err(|error| format!("failed to read the configuration: {error}"))?;
    if !machine && config.cgroup == Config::default().cgroup {
        // Outside of a machine the root of the hierarchies belongs to others.
        config.cgroup = None;
    }
    Ok(Start {
        socket,
        config,
        machine,
    })
}
