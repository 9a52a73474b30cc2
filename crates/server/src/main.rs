//! `stolosd`.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use stolos_base::logging::{self, Format};
use stolos_base::{Instance, InstanceName, MemberName};
use stolos_server::backup::command as backup;
use stolos_server::import::command as import;
use stolos_server::relocate;

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
    /// Take a backup of the manager, and end. stolosd may be running.
    #[command(after_help = "Example:\n  stolosd backup\n  stolosd backup --to /mnt/backups --without-blobs")]
    Backup(backup::Take),
    /// List the backups, and end.
    #[command(after_help = "Example:\n  stolosd backups\n  stolosd backups --json")]
    Backups(backup::List),
    /// Read a backup back and check everything in it, and end.
    #[command(
        after_help = "Example:\n  stolosd verify-backup\n  stolosd verify-backup 20261121T235959Z-1f2e"
    )]
    VerifyBackup(backup::Verify),
    /// Make an empty directory the installation that a backup holds, and end.
    #[command(
        after_help = "Example:\n  stolosd restore --from s3://bucket/stolos --endpoint https://s3.example.com \\\n    \
                      --credentials-file /root/s3 --key-file /root/backup.key"
    )]
    Restore(backup::Restore),
    /// Move the databases to the other engine, and end. stolosd must not be running.
    #[command(
        after_help = "Example:\n  stolosd move --to-file /root/database-url\n  stolosd move --to sqlite"
    )]
    Move(relocate::Arguments),
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
        Some(Verb::Backup(words)) => backup::main(&instance, backup::Verb::Take(words)),
        Some(Verb::Backups(words)) => backup::main(&instance, backup::Verb::List(words)),
        Some(Verb::VerifyBackup(words)) => backup::main(&instance, backup::Verb::Verify(words)),
        Some(Verb::Restore(words)) => backup::main(&instance, backup::Verb::Restore(words)),
        Some(Verb::Move(words)) => relocate::main(&instance, &words),
        None => serve(&instance, arguments.member.as_ref()),
    }
}

fn serve(instance: &Instance, member: Option<&MemberName>) -> ExitCode {
    stolos_base::memory::settle();
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
