//! The command line of Stolos.
//!
//! Owns arguments, tables, progress, the session file and the kubeconfig. Decides nothing about clusters: it asks the
//! services through their clients in `api` and shows the answers. stdout is data, stderr the rest.

mod args;
mod commands;
mod failure;
mod kubeconfig;
mod output;
mod progress;
mod session;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

/// Runs one command. Exit codes: 0 done, 1 the caller's side, 2 ours.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    stolos_base::logging::start(stolos_base::logging::Format::Text, "warn");
    stolos_base::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("Error: failed to start: {error}"));
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(commands::dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure.to_string());
            ExitCode::from(failure.class().exit_code())
        }
    }
}

/// Parses as the program was called: as `pks` or `tkgi` it says so, and names its version as they did.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<args::Cli, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args
        .first()
        .and_then(|path| path.to_str()?.rsplit('/').next().map(str::to_owned))
        .unwrap_or_else(|| "stolos".to_owned());
    let mut command = args::Cli::command();
    if let "pks" | "tkgi" = name.as_str() {
        // Scripts cut the version out at a fixed column: `PKS CLI version: 1.7.0-build.483`.
        command = command
            .display_name(format!("{} CLI version:", name.to_ascii_uppercase()))
            .version(concat!(env!("CARGO_PKG_VERSION"), "-build.0"))
            .bin_name(name);
    }
    let matches = command.try_get_matches_from(args)?;
    args::Cli::from_arg_matches(&matches)
}

/// The name under which the program was called, for hints.
pub(crate) fn program_name() -> String {
    std::env::args()
        .next()
        .as_deref()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or("stolos")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(args: &[&str]) -> String {
        match parse(args.iter().map(OsString::from)) {
            Ok(_) => "parsed".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_arguments_make_sense_together() {
        args::Cli::command().debug_assert();
        let refused = said(&["stolos", "login", "-a", "x", "--sso", "-u", "me"]);
        assert!(refused.contains("cannot be used with"), "{refused}");
    }

    #[test]
    fn every_help_has_an_example() {
        let command = args::Cli::command();
        let without: Vec<&str> = command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .filter(|verb| {
                let help = verb.get_after_help().map(ToString::to_string);
                !help.is_some_and(|help| help.contains("Example"))
            })
            .map(clap::Command::get_name)
            .collect();
        assert_eq!(without, [""; 0]);
    }

    #[test]
    fn it_answers_with_the_name_it_was_called_by() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            said(&["/usr/bin/pks", "--version"]),
            format!("PKS CLI version: {version}-build.0\n")
        );
        assert_eq!(
            said(&["tkgi", "--version"]),
            format!("TKGI CLI version: {version}-build.0\n")
        );
        assert_eq!(said(&["stolos", "--version"]), format!("stolos {version}\n"));
        assert!(
            said(&["pks", "cluster"]).contains("Usage: pks cluster"),
            "{}",
            said(&["pks", "cluster"])
        );
    }

    #[test]
    fn typing_errors_get_a_suggestion_and_old_names_work() {
        assert!(
            said(&["stolos", "clsters"]).contains("clusters"),
            "{}",
            said(&["stolos", "clsters"])
        );
        for old in ["list-clusters", "list-plans"] {
            assert_eq!(said(&["pks", old]), "parsed");
        }
    }
}
