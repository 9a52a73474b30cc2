//! `stolosd backup`, `backups`, `verify-backup`, `restore`: results on standard output, progress on standard error.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use serde::Serialize;
use stolos_backup::{BackupId, BackupKey, Made, size_text};
use stolos_base::{Class, Classify, Clock, Instance};

use super::{SCHEMAS, SIGNS, Settings, read_configuration, take_and_retain};
use crate::start;

/// Where backups are. What is not given is taken from `backup` in config.yml.
#[derive(Clone, Debug, clap::Args)]
pub struct Where {
    /// URL of the S3 store.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region of the S3 store.
    #[arg(long)]
    pub region: Option<String>,
    /// Certificates (PEM) of authorities to trust beside the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<Utf8PathBuf>,
    /// File with the S3 store's access key, as AWS's programs have it; the environment's AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY unless given.
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<Utf8PathBuf>,
    /// File with the key that encrypts backups.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<Utf8PathBuf>,
    /// Print JSON in place of text.
    #[arg(long)]
    pub json: bool,
}

/// The words of `stolosd backup`.
#[derive(Clone, Debug, clap::Args)]
pub struct Take {
    /// `/directory` or `s3://BUCKET/PREFIX`.
    #[arg(long, value_name = "PLACE")]
    pub to: Option<String>,
    /// Leave the director's blobs out; releases have to be uploaded again after a restore.
    #[arg(long)]
    pub without_blobs: bool,
    /// The rest of where and how.
    #[command(flatten)]
    pub place: Where,
}

/// The words of `stolosd backups`.
#[derive(Clone, Debug, clap::Args)]
pub struct List {
    /// `/directory` or `s3://BUCKET/PREFIX`.
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    /// The rest of where and how.
    #[command(flatten)]
    pub place: Where,
}

/// The words of `stolosd verify-backup`.
#[derive(Clone, Debug, clap::Args)]
pub struct Verify {
    /// Which one; the newest unless given.
    pub backup: Option<BackupId>,
    /// `/directory` or `s3://BUCKET/PREFIX`.
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    /// Do not read the blobs.
    #[arg(long)]
    pub without_blobs: bool,
    /// The rest of where and how.
    #[command(flatten)]
    pub place: Where,
}

/// The words of `stolosd restore`.
#[derive(Clone, Debug, clap::Args)]
pub struct Restore {
    /// `/directory` or `s3://BUCKET/PREFIX`.
    #[arg(long, value_name = "PLACE")]
    pub from: String,
    /// Which one; the newest whole one unless given.
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// File that holds where the databases are to be: `sqlite`, or a `postgres://` URL. As in the backup unless given.
    #[arg(long, value_name = "FILE")]
    pub database_file: Option<Utf8PathBuf>,
    /// The rest of where and how.
    #[command(flatten)]
    pub place: Where,
}

/// One of them.
#[derive(Clone, Debug)]
pub enum Verb {
    /// `stolosd backup`
    Take(Take),
    /// `stolosd backups`
    List(List),
    /// `stolosd verify-backup`
    Verify(Verify),
    /// `stolosd restore`
    Restore(Restore),
}

/// Runs a verb: exit code 0 done, 1 the caller's side, 2 ours.
#[must_use]
pub fn main(instance: &Instance, verb: Verb) -> ExitCode {
    run_to_end(async {
        match verb {
            Verb::Take(words) => take(instance, words).await,
            Verb::List(words) => list(instance, words).await,
            Verb::Verify(words) => verify(instance, words).await,
            Verb::Restore(words) => restore(instance, words).await,
        }
    })
}

/// Runs a verb's work and says on standard error what went wrong.
pub(crate) fn run_to_end(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "warn");
    stolos_base::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(work));
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let (class, hints) = known(&error);
    let mut stderr = std::io::stderr().lock();
    // Where standard error is closed, the exit code has to do.
    let _ = writeln!(stderr, "error: {}", stolos_base::chain(error.as_ref()));
    for hint in hints {
        let _ = writeln!(stderr, "\nhint: {hint}");
    }
    ExitCode::from(class.exit_code())
}

fn known(error: &anyhow::Error) -> (Class, Vec<String>) {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<stolos_backup::Error>() {
            return (error.class(), error.hints());
        }
        if let Some(error) = cause.downcast_ref::<stolos_blobs::objects::Error>() {
            return (error.class(), error.hints());
        }
        if let Some(error) = cause.downcast_ref::<stolos_store::Error>() {
            return (error.class(), error.hints());
        }
    }
    // Said by us, about what the caller asked for.
    (Class::User, Vec::new())
}

pub(crate) fn say(text: &str) {
    // Progress that nobody can read is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A result; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// What the words and the configuration say together.
fn settings(configured: Option<Settings>, to: Option<&str>, place: &Where) -> anyhow::Result<Settings> {
    let mut settings = match (configured, to) {
        // Another place than the configured one has nothing of it but the key and how many are kept.
        (Some(configured), Some(to)) if configured.to != to => Settings {
            key_file: configured.key_file,
            keep: configured.keep,
            blobs: configured.blobs,
            ..Settings::to(to)
        },
        (Some(configured), _) => configured,
        (None, Some(to)) => Settings::to(to),
        (None, None) => {
            anyhow::bail!("no place for backups is known: config.yml has no `backup`, and none is given")
        }
    };
    let given = place.clone();
    settings.endpoint = given.endpoint.or(settings.endpoint);
    settings.region = given.region.or(settings.region);
    settings.ca_file = given.ca_file.or(settings.ca_file);
    settings.credentials_file = given.credentials_file.or(settings.credentials_file);
    settings.key_file = given.key_file.or(settings.key_file);
    Ok(settings)
}

fn configured(instance: &Instance) -> anyhow::Result<Option<Settings>> {
    if !instance.config_file().exists() {
        return Ok(None);
    }
    Ok(read_configuration(instance)?.backup)
}

async fn take(instance: &Instance, words: Take) -> anyhow::Result<()> {
    let configuration = read_configuration(instance)?;
    let database = start::database(instance, &configuration.database)?;
    let mut settings = settings(configuration.backup, words.to.as_deref(), &words.place)?;
    settings.blobs &= !words.without_blobs;
    let path = settings.key_file(instance);
    let (key, made) = BackupKey::load_or_create(&path)?;
    if made == Made::Now {
        say(&format!(
            "!! Made the key that encrypts backups: {path}\n\
             !! It is in no backup. Keep a copy in another place: without it every backup is lost."
        ));
    }
    let clock = Clock::system();
    let (manifest, removed) = take_and_retain(instance, &database, &settings, &key, &clock, &say).await?;
    if words.place.json {
        return print_json(&serde_json::json!({
            "id": manifest.id, "key": manifest.key, "taken_at": manifest.taken_at, "took_ms": manifest.took_ms,
            "stored": manifest.stored(), "blobs": manifest.blobs.as_ref().map(Vec::len), "removed": removed,
        }));
    }
    print(&format!(
        "{}  {}  key {}  {} ms",
        manifest.id,
        size_text(manifest.stored()),
        manifest.key,
        manifest.took_ms
    ))
}

async fn list(instance: &Instance, words: List) -> anyhow::Result<()> {
    let settings = settings(configured(instance)?, words.from.as_deref(), &words.place)?;
    let path = settings.key_file(instance);
    // A list needs no key; with one it says more.
    let key = if path.exists() {
        Some(BackupKey::load(&path)?)
    } else {
        None
    };
    let listed = stolos_backup::list(&settings.objects()?, key.as_ref()).await?;
    if words.place.json {
        return print_json(&listed);
    }
    if listed.is_empty() {
        say("There is no backup yet.");
        return Ok(());
    }
    print("BACKUP                 KEY               SIZE        BLOBS          STATE")?;
    for one in listed {
        let blobs = match (one.blobs, one.blob_bytes) {
            (Some(n), Some(bytes)) => format!("{n} ({})", size_text(bytes)),
            _ => "-".to_owned(),
        };
        print(&format!(
            "{}  {:16}  {:10}  {:13}  {}",
            one.id,
            one.key.as_deref().unwrap_or("?"),
            size_text(one.stored),
            blobs,
            one.problem.as_deref().unwrap_or("there")
        ))?;
    }
    Ok(())
}

async fn verify(instance: &Instance, words: Verify) -> anyhow::Result<()> {
    let settings = settings(configured(instance)?, words.from.as_deref(), &words.place)?;
    let key = BackupKey::load(&settings.key_file(instance))?;
    let verified = stolos_backup::verify(
        &settings.objects()?,
        &key,
        words.backup.as_ref(),
        !words.without_blobs,
        &say,
    )
    .await?;
    if words.place.json {
        return print_json(&verified);
    }
    print(&format!(
        "{} is whole: {} databases with {} rows, {} files{}",
        verified.id,
        verified.databases,
        verified.rows,
        verified.files,
        verified
            .blobs
            .map_or_else(String::new, |blobs| format!(", {blobs} blobs"))
    ))
}

async fn restore(instance: &Instance, words: Restore) -> anyhow::Result<()> {
    let _stopped = super::keep_stopped(instance)?;
    let settings = settings(None, Some(&words.from), &words.place)?;
    let key_file = settings.key_file(instance);
    let key =
        BackupKey::load(&key_file).context("a restore needs the key with which the backup was encrypted")?;
    let database = words
        .database_file
        .as_ref()
        .map(fs_err::read_to_string)
        .transpose()?
        .map(|text| text.trim().to_owned());
    let restored = restore_into(
        instance,
        &settings,
        &key,
        words.backup,
        database,
        &Clock::system(),
        &say,
    )
    .await?;
    if words.place.json {
        return print_json(&restored);
    }
    print(&format!(
        "restored {}, taken {}: {} rows in {}, {} files",
        restored.id, restored.taken_at, restored.rows, restored.database, restored.files
    ))?;
    say(
        "Start it with `stolos up`. What was under way when the backup was taken ends as failed; ask for it again.",
    );
    Ok(())
}

/// Restores a backup into an empty installation.
///
/// # Errors
/// As [`stolos_backup::restore`].
pub async fn restore_into(
    instance: &Instance,
    settings: &Settings,
    key: &BackupKey,
    backup: Option<BackupId>,
    database: Option<String>,
    clock: &Clock,
    progress: stolos_backup::Progress<'_>,
) -> anyhow::Result<stolos_backup::Restored> {
    let chosen = |text: &str| {
        let text = match &database {
            Some(database) => crate::relocate::with_database(text, database)?,
            None => text.to_owned(),
        };
        let invalid = |error: String| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let config: crate::config::Config =
            stolos_document::from_yaml(&text).map_err(|error| invalid(error.to_string()))?;
        let url = start::database(instance, &config.database).map_err(|error| invalid(error.to_string()))?;
        Ok((url, text))
    };
    let wish = stolos_backup::Restore {
        root: &instance.root,
        database: &chosen,
        schemas: SCHEMAS,
        configuration: "config.yml",
        must_not_exist: SIGNS,
        blobs: instance.blobs(),
        backup,
        clock: clock.clone(),
    };
    Ok(stolos_backup::restore(&wish, &settings.objects()?, key, progress).await?)
}
