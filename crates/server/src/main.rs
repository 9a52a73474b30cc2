//! `stolosd`.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use stolos_base::logging::{self, Format};
use stolos_base::{Instance, InstanceName, MemberName};
use stolos_server::import::command as import;

/// The services of a Stolos installation in one process.
#[derive(Debug, Parser)]
#[command(name = "stolosd", version)]
struct Arguments {
    /// Name of the installation.
    #[arg(long, default_value = "stolos")]
    instance: InstanceName,
    /// Where it keeps everything; /var/lib/stolos/INSTANCE unless given.
    #[arg(long)]
    root: Option<Utf8PathBuf>,
    /// Which of several managers this is; they are named in config.yml.
    #[arg(long)]
    member: Option<MemberName>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make plans and zones of what PKS's tile was told, and end.
    Import(import::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // As `stolos` does: 1 is the caller's side.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let mut instance = Instance::at_default(arguments.instance);
    if let Some(root) = arguments.root {
        instance.root = root;
    }
    match arguments.verb {
        Some(Verb::Import(words)) => import::main(&instance, &words),
        None => serve(&instance, arguments.member.as_ref()),
    }
}

fn serve(instance: &Instance, member: Option<&MemberName>) -> ExitCode {
    logging::start(Format::Json, "info,sqlx=warn");
    stolos_base::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(stolos_server::run(instance, member)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "stolosd cannot go on");
            ExitCode::FAILURE
        }
    }
}
