//! `stolosd move`: the databases of an installation from one engine to the other.
//!
//! Expected flow: with `stolosd` stopped, each database is dumped from where it is into where it is to be, read back there and
//! compared; then `database` of `config.yml` is changed, in one rename. Guarantees: before the rename the old databases are in use,
//! after it the new ones, never some of each; the old ones are never written to. A move that was killed begins anew and recognizes
//! what it had copied; a target that somebody else uses is refused.
//!
//! Assumes that no other member of the installation runs on another host. The lock is this host's; a lease that somebody holds in the old
//! databases is seen, too, but who does nothing holds none.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use stolos_base::{Clock, Instance, Secret, files};
use stolos_store::dump::{self, Contents, Life, Occupied};
use stolos_store::{DatabaseUrl, Db, Row as _};
use tokio::io::BufReader;

use crate::backup::command::{print, run_to_end, say};
use crate::backup::{SCHEMAS, keep_stopped};
use crate::config::Config;
use crate::start;

/// What is noted while a move is under way, relative to the root.
const JOURNAL: &str = "moving.json";
/// The pipe between the two databases.
const PIPE: usize = 256 * 1024;

/// The words of `stolosd move`.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true)))]
pub struct Arguments {
    /// `sqlite` (files in the installation's directory), or a `postgres://` URL without a password.
    #[arg(long, value_name = "DATABASE", group = "target")]
    pub to: Option<String>,
    /// File that holds the same, for a URL with a password: others can read the command line.
    #[arg(long, value_name = "FILE", group = "target")]
    pub to_file: Option<Utf8PathBuf>,
    /// Print JSON in place of text.
    #[arg(long)]
    pub json: bool,
}

/// What was moved.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// Where the databases were, and still are, without user and password.
    pub from: String,
    /// Where they are now.
    pub to: String,
    /// Database → rows; empty when they were there already.
    pub databases: BTreeMap<String, u64>,
}

#[derive(Default, Serialize, Deserialize)]
struct Journal {
    to: String,
    /// Database → digest of what was committed there.
    databases: BTreeMap<String, String>,
}

/// Runs the verb: exit code 0 done, 1 the caller's side, 2 ours.
#[must_use]
pub fn main(instance: &Instance, words: &Arguments) -> ExitCode {
    run_to_end(async {
        let to = match (&words.to, &words.to_file) {
            (Some(to), _) => {
                let has_password = to
                    .split_once("://")
                    .and_then(|(_, rest)| rest.split_once('@'))
                    .is_some_and(|(user, _)| user.contains(':'));
                anyhow::ensure!(
                    !has_password,
                    "a password on the command line can be read by everybody on this host; use `--to-file`"
                );
                Secret::new(to.clone())
            }
            (None, Some(path)) => Secret::new(fs_err::read_to_string(path)?.trim().to_owned()),
            (None, None) => anyhow::bail!("nothing says where the databases are to be"),
        };
        let moved = relocate(instance, &to, &Clock::system(), &say).await?;
        if words.json {
            return print(&serde_json::to_string_pretty(&moved)?);
        }
        if moved.databases.is_empty() {
            return print(&format!("the databases are in {} already", moved.to));
        }
        print(&format!(
            "moved {} databases with {} rows to {}\nthe old ones are untouched in {}",
            moved.databases.len(),
            moved.databases.values().sum::<u64>(),
            moved.to,
            moved.from
        ))
    })
}

/// Moves the databases. `to` is what `database` of the configuration will be.
///
/// # Errors
/// When `stolosd` runs, a database cannot be read or written, or the target is in use.
pub async fn relocate(
    instance: &Instance,
    to: &Secret<String>,
    clock: &Clock,
    progress: stolos_backup::Progress<'_>,
) -> anyhow::Result<Moved> {
    let _stopped = keep_stopped(instance)?;
    let path = instance.config_file();
    let text = fs_err::read_to_string(&path)?;
    let config: Config = stolos_document::from_yaml(&text)
        .map_err(|error| anyhow::anyhow!("the configuration `{path}` is not valid: {error}"))?;
    let source = start::database(instance, &config.database)?;
    let target = start::database(instance, to.expose()).context("the target is no database")?;
    let journal_path = instance.root.join(JOURNAL);
    let mut moved = Moved {
        from: source.to_string(),
        to: target.to_string(),
        databases: BTreeMap::new(),
    };
    if config.database == *to.expose() {
        // Also what a move leaves that was killed right after its last word.
        files::remove_if_there(&journal_path)?;
        return Ok(moved);
    }
    anyhow::ensure!(
        moved.from != moved.to,
        "source and target are the same database: {}",
        moved.to
    );
    anyhow::ensure!(
        config.members.is_empty() || matches!(target, DatabaseUrl::Postgres { .. }),
        "`members` of `{path}` share a PostgreSQL database; remove them first"
    );
    let changed = with_database(&text, to.expose())?;

    let read: Option<Journal> = files::read_json(&journal_path)?;
    let left = read.filter(|journal| journal.to == moved.to).unwrap_or_default();
    let mut leftovers = Vec::new();
    for schema in SCHEMAS {
        let digest = left.databases.get(schema.name).map(String::as_str);
        match dump::occupied(&target, schema, clock.clone(), digest).await? {
            Occupied::No => {}
            Occupied::Leftover(leftover) => leftovers.push(leftover),
            Occupied::Yes(table) => anyhow::bail!(
                "{target} is in use: database `{}` has table `{table}`. Nothing was changed; remove it if it is an old copy, or \
                 take another target",
                schema.name
            ),
        }
    }
    for leftover in leftovers {
        leftover.erase().await?;
    }
    let mut journal = Journal {
        to: moved.to.clone(),
        databases: BTreeMap::new(),
    };
    files::write_json(&journal_path, &journal, 0o600)?;
    for schema in SCHEMAS {
        let Some(db) = Db::open_as_is(&source, schema, clock.clone()).await? else {
            continue;
        };
        nobody_works(&db, clock).await?;
        let about_to = |digest: &str| {
            journal
                .databases
                .insert(schema.name.to_owned(), digest.to_owned());
            files::write_json(&journal_path, &journal, 0o600)
        };
        let contents = copy(&db, &target, schema, clock, about_to)
            .await
            .with_context(|| format!("failed to copy database `{}`", schema.name))?;
        db.close().await;
        progress(&format!("database {}: {} rows", schema.name, contents.rows()));
        moved.databases.insert(schema.name.to_owned(), contents.rows());
    }
    anyhow::ensure!(
        !moved.databases.is_empty(),
        "there is no database in {source}: the installation was never started"
    );
    // The one moment from which on the new ones are in use. The file may hold a password.
    files::write_atomic(&path, changed.as_bytes(), 0o600)?;
    files::remove_if_there(&journal_path)?;
    Ok(moved)
}

/// Refuses while somebody holds a lease in the database: a member on another host, which the lock does not see. One that was killed
/// holds its leases for some seconds.
async fn nobody_works(db: &Db, clock: &Clock) -> anyhow::Result<()> {
    let now = clock.now_millis();
    let held = stolos_store::query(
        "SELECT name, holder FROM store_leases WHERE holder <> '' AND expires_at > $1 LIMIT 1",
    )
    .bind(now)
    .fetch_optional(db.read())
    .await
    .map_err(stolos_store::Error::from)?;
    if let Some(row) = held {
        let (name, holder): (String, String) = (
            row.try_get("name").map_err(stolos_store::Error::from)?,
            row.try_get("holder").map_err(stolos_store::Error::from)?,
        );
        anyhow::bail!(
            "`{holder}` works in database `{}` (lease `{name}`): stop every manager, or wait half a minute when it was killed",
            db.name()
        );
    }
    Ok(())
}

async fn copy(
    db: &Db,
    target: &DatabaseUrl,
    schema: &'static stolos_store::Schema,
    clock: &Clock,
    about_to: impl FnOnce(&str) -> io::Result<()> + Send,
) -> anyhow::Result<Contents> {
    let (mut near, far) = tokio::io::duplex(PIPE);
    let dumping = async {
        let dumped = dump::dump(db, &mut near).await;
        drop(near);
        dumped
    };
    let restoring = async {
        let mut lines = BufReader::with_capacity(PIPE, far);
        dump::restore(target, schema, clock.clone(), &Life::Same, about_to, &mut lines).await
    };
    let (dumped, restored) = tokio::join!(dumping, restoring);
    match (dumped, restored) {
        // The restore compared what it has read back with what came; this compares what came with what was sent.
        (Ok(dumped), Ok(restored)) if dumped == restored => Ok(dumped),
        (Ok(_), Ok(_)) => anyhow::bail!("the copy holds something else than the original"),
        // A dump whose reader went away fails, too; the reader has the reason.
        (Err(stolos_store::Error::Stream { .. }) | Ok(_), Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error.into()),
    }
}

/// The configuration's text with another `database`. The operator's lines and comments stay where that is possible.
pub(crate) fn with_database(text: &str, database: &str) -> io::Result<String> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut wanted: Config = stolos_document::from_yaml(text).map_err(|error| invalid(error.to_string()))?;
    database.to_owned().clone_into(&mut wanted.database);
    let line = format!(
        "database: {}",
        serde_json::to_string(database).map_err(io::Error::other)?
    );
    let mut found = false;
    let mut lines: Vec<String> = Vec::new();
    for old in text.lines() {
        if old.starts_with("database:") {
            found = true;
            lines.push(line.clone());
        } else {
            lines.push(old.to_owned());
        }
    }
    if !found {
        lines.insert(0, line);
    }
    let edited = lines.join("\n") + "\n";
    match stolos_document::from_yaml::<Config>(&edited) {
        Ok(read) if read == wanted => Ok(edited),
        // A form that lines cannot be exchanged in, such as one long flow mapping.
        _ => stolos_document::to_yaml(&wanted).map_err(|error| invalid(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_s_lines_stay() {
        let text = "# ours\ndatabase: sqlite # small\nprograms: {nats_server: /n, cpi_host: /c}\n# zones\nzones: [a]\n";
        let changed = with_database(text, "postgres://u:p@h/d?host=/x").expect("changed");
        assert_eq!(
            changed,
            "# ours\ndatabase: \"postgres://u:p@h/d?host=/x\"\nprograms: {nats_server: /n, cpi_host: /c}\n# zones\nzones: [a]\n"
        );
        let back = with_database(&changed, "sqlite").expect("changed");
        assert!(back.contains("\ndatabase: \"sqlite\"\n"), "{back}");
        let flow = "{programs: {nats_server: /n, cpi_host: /c}, database: sqlite}\n";
        let changed = with_database(flow, "postgres://h/d").expect("changed");
        let config: Config = stolos_document::from_yaml(&changed).expect("valid");
        assert_eq!(config.database, "postgres://h/d");
        let absent =
            with_database("programs: {nats_server: /n, cpi_host: /c}\n", "postgres://h/d").expect("changed");
        assert!(absent.starts_with("database: "), "{absent}");
    }
}
