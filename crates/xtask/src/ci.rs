//! What has to hold of every change besides the tests, in the order of how fast it says no.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{deps, say};

/// Runs all checks and names all that fail.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (name, arguments, environment) in [
        ("formatting", &["fmt", "--all", "--check"][..], None),
        (
            "lints",
            &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            None,
        ),
        (
            "documentation",
            &["doc", "--workspace", "--no-deps", "--document-private-items"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        ),
    ] {
        say(&format!("== {name}: cargo {}", arguments.join(" ")));
        let mut command = cargo();
        command.args(arguments).envs(environment);
        let status = command
            .status()
            .with_context(|| format!("failed to start cargo for: {name}"))?;
        if !status.success() {
            failed.push(name.to_owned());
        }
    }
    say("== dependency directions");
    if let Err(error) = deps::check_workspace() {
        say(&format!("{error:#}"));
        failed.push("dependency directions".to_owned());
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
