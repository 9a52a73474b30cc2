//! What was typed, and what is said about mistakes in it: in the name under which the program was called, in PKS's form.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use crate::args::Cli;

/// Verbs that are suggested for one that is unknown.
const MOST_SUGGESTIONS: usize = 3;

/// Parses as the program was called: as `pks` or `tkgi` it says so, and names its version as they did.
///
/// # Errors
/// What is wrong with the arguments; also help and version, when they are asked for.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args
        .first()
        .and_then(|path| path.to_str())
        .map_or("stolos", base_name);
    let command = command(name);
    let verbs: Vec<String> = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .map(|verb| verb.get_name().to_owned())
        .collect();
    command
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| with_nearest(error, &verbs))
}

/// The verbs and their help, for a program of a name.
pub(crate) fn command(name: &str) -> Command {
    let command = Cli::command();
    let ("pks" | "tkgi") = name else {
        return command;
    };
    command
        // Scripts cut the version out at a fixed column: `PKS CLI version: 1.7.0-build.483`.
        .display_name(format!("{} CLI version:", name.to_ascii_uppercase()))
        .version(concat!(env!("CARGO_PKG_VERSION"), "-build.0"))
        .bin_name(name)
        .mut_subcommands(|verb| {
            let help = verb.get_after_help().map(|help| in_name_of(name, &help.to_string()));
            match help {
                Some(help) => verb.after_help(help),
                None => verb,
            }
        })
}

/// The name under which the program was called, for hints.
pub(crate) fn program_name() -> String {
    let path = std::env::args().next();
    path.as_deref().map_or("stolos", base_name).to_owned()
}

/// A text that names commands of `stolos`, for who knows the program by another name.
pub(crate) fn in_name_of(name: &str, text: &str) -> String {
    match name {
        "pks" | "tkgi" => text.replace("stolos ", &format!("{name} ")),
        _ => text.to_owned(),
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Prints help or what is wrong with the arguments; the exit code.
pub(crate) fn tell(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // PKS's first word, and ours of every other failure. What was typed may be somebody else's text, so it goes the way of all notes.
        crate::output::note(error.to_string().replacen("error:", "Error:", 1).trim_end());
        return ExitCode::FAILURE;
    }
    // Help is our own text, in colors where there are any.
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    if let Err(error) = printed {
        crate::output::lost(error);
    }
    match crate::output::arrived() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            crate::output::note(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Puts the verbs that are nearest to an unknown one in the place of clap's suggestions, which were sixteen for `create-clustr`.
fn with_nearest(mut error: clap::Error, verbs: &[String]) -> clap::Error {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    let nearest = nearest(typed, verbs);
    if nearest.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
    } else {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(nearest));
    }
    error
}

fn nearest(typed: &str, verbs: &[String]) -> Vec<String> {
    /// Shorter ones are part of too many verbs.
    const PART_OF_A_VERB: usize = 4;
    let most = (typed.chars().count() / 4).max(2);
    let mut near: Vec<(usize, &String)> = verbs
        .iter()
        .filter_map(|verb| {
            let distance = distance(typed, verb);
            let is_near = distance <= most || (typed.len() >= PART_OF_A_VERB && verb.contains(typed));
            is_near.then_some((distance, verb))
        })
        .collect();
    near.sort();
    // Next to one that is a letter away, those that are three away are noise.
    let least = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance <= least + 1);
    near.truncate(MOST_SUGGESTIONS);
    near.into_iter().map(|(_, verb)| verb.clone()).collect()
}

/// How many letters have to be typed, left out, changed or swapped with their neighbor to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut least = (last[j] + usize::from(a != b))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[other.len()]
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
        Cli::command().debug_assert();
        let refused = said(&["stolos", "login", "-a", "x", "--sso", "-u", "me"]);
        assert!(refused.contains("cannot be used with"), "{refused}");
    }

    #[test]
    fn every_help_has_an_example_in_the_programs_name() {
        for name in ["stolos", "pks"] {
            let command = command(name);
            let without: Vec<&str> = command
                .get_subcommands()
                .filter(|verb| !verb.is_hide_set())
                .filter(|verb| {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    !help.contains("Example") || !help.contains(&format!("{name} {}", verb.get_name()))
                })
                .map(Command::get_name)
                .collect();
            assert_eq!(without, [""; 0], "{name}");
        }
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
        assert_eq!(
            in_name_of("pks", "Start it with `stolos start-cluster x`."),
            "Start it with `pks start-cluster x`."
        );
    }

    /// Scripts of PKS users call `pks help`, and it was an unknown verb.
    #[test]
    fn help_is_a_verb_too() {
        assert!(said(&["pks", "help"]).contains("create-cluster"));
        assert!(said(&["pks", "help", "resize"]).contains("pks resize demo"));
    }

    #[test]
    fn typing_errors_get_the_nearest_verbs_and_old_names_work() {
        let verbs: Vec<String> = command("stolos")
            .get_subcommands()
            .map(|verb| verb.get_name().to_owned())
            .collect();
        for (typed, expected) in [
            ("create-clustr", &["create-cluster"][..]),
            ("clsters", &["clusters", "cluster"]),
            ("kubeconfig", &["get-kubeconfig"]),
            ("xyzzy-plugh", &[]),
        ] {
            assert_eq!(nearest(typed, &verbs), expected, "{typed}");
        }
        let all = nearest("delete", &verbs);
        assert_eq!(all.len(), MOST_SUGGESTIONS, "{all:?}");
        let text = said(&["stolos", "create-clustr"]);
        assert!(
            text.contains("'create-cluster'") && !text.contains("create-user"),
            "{text}"
        );
        for old in ["list-clusters", "list-plans"] {
            assert_eq!(said(&["pks", old]), "parsed");
        }
        assert_eq!(distance("clusters", "clutsers"), 1);
        assert_eq!(distance("plans", "plasn"), 1);
    }
}
