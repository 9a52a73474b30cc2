//! Backups of an installation: what belongs to one, where they go, the verbs, and the schedule.

pub mod command;
pub mod schedule;

use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use stolos_backup::{Entry, Source};
use stolos_base::ids::DirectorId;
use stolos_base::lock::FileLock;
use stolos_base::{Clock, Instance, files};
use stolos_blobs::objects::{self, Objects};
use stolos_store::lease::{self, Acquired};
use stolos_store::{DatabaseUrl, Db, Fence, Schema};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// The services' databases in the order in which they are dumped: what is wanted first, then what is there, and last what others
/// point into (addresses, versions of secrets). So nothing in a backup points at what a later dump no longer knows.
pub const SCHEMAS: &[&Schema] = &[
    &stolos_clusters::SCHEMA,
    &stolos_network::SCHEMA,
    &stolos_director::SCHEMA,
    &stolos_identity::SCHEMA,
    &stolos_credentials::SCHEMA,
];
/// Everything else that makes an installation what it is. Machines, disks, images and logs are not the manager's.
pub const FILES: &[Entry] = &[
    Entry::File("config.yml"),
    Entry::File("root.key"),
    Entry::File("director.json"),
    Entry::File("artifacts.json"),
    Entry::File("network.json"),
    Entry::File("cpi-host.json"),
    Entry::File("admin.password"),
    Entry::Tree("hostd"),
    Entry::Tree("cpi-calls"),
];
/// A directory with one of these is an installation already. Machines, disks, blobs and the journal of CPI calls may have outlived the
/// manager.
const SIGNS: &[&str] = &[
    "config.yml",
    "root.key",
    "director.json",
    "artifacts.json",
    "network.json",
    "admin.password",
    "db",
];
/// The lease under which a place is written to, in the director's database.
const LEASE: &str = "backup";
/// How long it holds without being renewed.
const LEASE_TIME: Duration = Duration::from_secs(120);
/// Backups that are kept unless the operator says otherwise: a week of one every six hours.
const KEPT: usize = 28;

/// `backup` of `config.yml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `/directory` or `s3://BUCKET[/PREFIX]`; each installation has its own.
    pub to: String,
    /// The S3 store's URL; AWS's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The S3 store's region; `us-east-1` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Authorities (PEM) to trust beside the system's, for an S3 store with a private one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Utf8PathBuf>,
    /// The access key, as in AWS's `credentials` file, mode 0600; `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` of the
    /// environment unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<Utf8PathBuf>,
    /// The key that encrypts backups; `backup.key` beside `config.yml` unless given. Made when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<Utf8PathBuf>,
    /// How often `stolosd` takes one: `6h`, `30m`. Never by itself unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// How many are kept.
    #[serde(default = "kept")]
    pub keep: usize,
    /// Whether the director's blobs go along.
    #[serde(default = "yes")]
    pub blobs: bool,
}

fn kept() -> usize {
    KEPT
}

fn yes() -> bool {
    true
}

impl Settings {
    /// Settings that name a place and nothing else.
    #[must_use]
    pub fn to(place: &str) -> Self {
        Self {
            to: place.to_owned(),
            endpoint: None,
            region: None,
            ca_file: None,
            credentials_file: None,
            key_file: None,
            every: None,
            keep: KEPT,
            blobs: true,
        }
    }

    /// The place.
    ///
    /// # Errors
    /// When it is none, or its credentials cannot be read.
    pub fn objects(&self) -> Result<Objects, objects::Error> {
        if self.to.starts_with('/') {
            return Ok(Objects::directory(self.to.clone()));
        }
        let Some(rest) = self.to.strip_prefix("s3://") else {
            return Err(objects::Error::Settings(format!(
                "`{}` is no place for backups; one is `/directory` or `s3://BUCKET/PREFIX`",
                self.to
            )));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let credentials = match &self.credentials_file {
            Some(path) => objects::s3::Credentials::read(path)?,
            None => objects::s3::Credentials::from_environment()?,
        };
        let settings = objects::s3::Settings {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
            ca_file: self.ca_file.clone(),
        };
        Ok(Objects::s3(objects::S3::new(&settings, &credentials)?))
    }

    /// The file of the key.
    #[must_use]
    pub fn key_file(&self, instance: &Instance) -> Utf8PathBuf {
        self.key_file
            .clone()
            .unwrap_or_else(|| instance.root.join("backup.key"))
    }

    /// How often a backup is due.
    ///
    /// # Errors
    /// When `every` is no time of at least a minute.
    pub fn interval(&self) -> anyhow::Result<Option<Duration>> {
        let every = self.every.as_deref();
        every.map(|text| interval("backup", text)).transpose()
    }
}

/// The time that `every` of a section of the configuration names.
///
/// # Errors
/// When it is no time of at least a minute.
pub(crate) fn interval(section: &str, text: &str) -> anyhow::Result<Duration> {
    let parsed: jiff::SignedDuration = text
        .parse()
        .with_context(|| format!("`every: {text}` of `{section}` is no time; one is `6h` or `30m`"))?;
    match Duration::try_from(parsed) {
        Ok(interval) if interval >= Duration::from_secs(60) => Ok(interval),
        _ => anyhow::bail!("`every: {text}` of `{section}` is less than a minute"),
    }
}

/// Makes sure that no manager of the installation runs on this host, and that none starts while the locks are held.
pub(crate) fn keep_stopped(instance: &Instance) -> anyhow::Result<Vec<FileLock>> {
    let run = instance.run();
    fs_err::create_dir_all(&run)?;
    let mut paths = vec![instance.manager(None).lock];
    // Members have a lock each, beside the one of a manager that is alone.
    for entry in run.read_dir_utf8()? {
        let entry = entry?;
        let name = entry.file_name();
        if name.starts_with("stolosd-") && name.ends_with(".lock") {
            paths.push(entry.path().to_owned());
        }
    }
    paths
        .iter()
        .map(|path| {
            FileLock::try_acquire(path)?
                .with_context(|| format!("stolosd runs instance `{}`; stop it first", instance.name))
        })
        .collect()
}

/// The configuration as it is written, without a look at whether what it offers is built.
pub(crate) fn read_configuration(instance: &Instance) -> anyhow::Result<Config> {
    let path = instance.config_file();
    let text = fs_err::read_to_string(&path)?;
    stolos_document::from_yaml(&text)
        .map_err(|error| anyhow::anyhow!("the configuration `{path}` is not valid: {error}"))
}

/// What belongs to an installation that was started once.
///
/// # Errors
/// When it never was.
pub fn source<'a>(
    instance: &'a Instance,
    database: &DatabaseUrl,
    blobs: bool,
    clock: &Clock,
) -> anyhow::Result<Source<'a>> {
    let id: DirectorId = files::read_json(&instance.root.join("director.json"))?.with_context(|| {
        format!(
            "there is no installation in `{}` that was started once",
            instance.root
        )
    })?;
    Ok(Source {
        installation: id.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        root: &instance.root,
        database: database.clone(),
        schemas: SCHEMAS,
        files: FILES,
        blobs: if blobs {
            stolos_backup::Blobs::In(instance.blobs())
        } else {
            stolos_backup::Blobs::Without
        },
        clock: clock.clone(),
    })
}

/// The right to write to the place of an installation's backups, over all its processes. Renewed until it is given back; one that is lost
/// cancels [`Turn::lost`].
pub(crate) struct Turn {
    db: Db,
    fence: Fence,
    lost: CancellationToken,
    done: CancellationToken,
}

/// Takes the turn; `Err` in the middle names who has it.
pub(crate) async fn turn(
    database: &DatabaseUrl,
    holder: &str,
    clock: &Clock,
) -> anyhow::Result<Result<Turn, String>> {
    let db = Db::open_as_is(database, &stolos_director::SCHEMA, clock.clone())
        .await?
        .context("there is no database of the director: the installation was never started")?;
    let mut tx = db.begin("take the turn of backups").await?;
    let acquired = lease::acquire(&mut tx, LEASE, holder, LEASE_TIME).await?;
    tx.commit().await?;
    let fence = match acquired {
        Acquired::Yes(lease) => lease.fence,
        Acquired::No { holder, .. } => {
            db.close().await;
            return Ok(Err(holder));
        }
    };
    let turn = Turn {
        db,
        fence,
        lost: CancellationToken::new(),
        done: CancellationToken::new(),
    };
    turn.renew_until_done();
    Ok(Ok(turn))
}

impl Turn {
    fn renew_until_done(&self) {
        let (db, fence) = (self.db.clone(), self.fence.clone());
        let (lost, done) = (self.lost.clone(), self.done.clone());
        stolos_base::task::spawn(stolos_base::task::Kind::Service, "turn of backups", async move {
            loop {
                tokio::select! {
                    () = done.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                    () = tokio::time::sleep(LEASE_TIME / 4) => {}
                }
                let renewed = async {
                    let mut tx = db.begin("renew the turn of backups").await?;
                    lease::renew(&mut tx, &fence, LEASE_TIME).await?;
                    tx.commit().await
                };
                match renewed.await {
                    Ok(()) => {}
                    Err(stolos_store::Error::LeaseLost { .. }) => {
                        lost.cancel();
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::warn!(error = %stolos_base::chain(&error), "failed to renew the turn of backups; trying again");
                    }
                }
            }
        });
    }

    /// Does the work, unless somebody else has the turn meanwhile.
    pub(crate) async fn work<T>(self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let result = tokio::select! {
            result = work => result,
            () = self.lost.cancelled() => Err(anyhow::anyhow!("another process took over the writing of backups")),
        };
        self.done.cancel();
        let released = async {
            let mut tx = self.db.begin("give the turn of backups back").await?;
            lease::release(&mut tx, &self.fence).await?;
            tx.commit().await
        };
        if let Err(error) = released.await {
            // It runs out by itself.
            tracing::warn!(error = %stolos_base::chain(&error), "failed to give the turn of backups back");
        }
        self.db.close().await;
        result
    }
}

/// Who this process is among those that write backups: itself alone, also beside an earlier life.
pub(crate) fn holder() -> String {
    format!("{} {}", std::process::id(), stolos_base::ids::random_hex(4))
}

/// The verbs' and the schedule's one way to take a backup: under the turn, and with what is too old removed afterwards.
///
/// # Errors
/// As [`stolos_backup::take`], and when another process is writing to the place.
pub async fn take_and_retain(
    instance: &Instance,
    database: &DatabaseUrl,
    settings: &Settings,
    key: &stolos_backup::BackupKey,
    clock: &Clock,
    progress: stolos_backup::Progress<'_>,
) -> anyhow::Result<(stolos_backup::Manifest, stolos_backup::Removed)> {
    let turn = match turn(database, &holder(), clock).await? {
        Ok(turn) => turn,
        Err(other) => anyhow::bail!("another process ({other}) is taking a backup right now"),
    };
    turn.work(take_in_turn(instance, database, settings, key, clock, progress))
        .await
}

/// The same for who has the turn.
pub(crate) async fn take_in_turn(
    instance: &Instance,
    database: &DatabaseUrl,
    settings: &Settings,
    key: &stolos_backup::BackupKey,
    clock: &Clock,
    progress: stolos_backup::Progress<'_>,
) -> anyhow::Result<(stolos_backup::Manifest, stolos_backup::Removed)> {
    let objects = settings.objects()?;
    let source = source(instance, database, settings.blobs, clock)?;
    let manifest = stolos_backup::take(&source, &objects, key, progress).await?;
    let removed = stolos_backup::retain(&objects, key, settings.keep, progress).await?;
    Ok((manifest, removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, stolos_document::Error> {
        let all = format!("programs: {{nats_server: /n, cpi_host: /c}}\nbackup: {text}\n");
        let config: Config = stolos_document::from_yaml(&all)?;
        Ok(config.backup.expect("it has one"))
    }

    #[test]
    fn settings_say_where_how_often_and_what_is_wrong() {
        let settings = read("{to: /backups, every: 6h}").expect("valid");
        assert_eq!((settings.keep, settings.blobs), (KEPT, true));
        assert_eq!(
            settings.interval().expect("a time"),
            Some(Duration::from_secs(6 * 3600))
        );
        assert_eq!(
            read("{to: /backups}").expect("valid").interval().expect("none"),
            None
        );
        assert_eq!(settings.objects().expect("a place").to_string(), "`/backups`");
        let error = read("{to: /backups, evry: 6h}").expect_err("a typing error");
        assert!(error.to_string().contains("evry"), "{error}");
        for (every, expected) in [
            ("often", "is no time"),
            ("5s", "less than a minute"),
            ("-6h", "less than a minute"),
        ] {
            let settings = Settings {
                every: Some(every.to_owned()),
                ..Settings::to("/backups")
            };
            let text = format!("{:#}", settings.interval().expect_err("it makes no sense"));
            assert!(text.contains(expected), "{text}");
        }
        let error = Settings::to("backups").objects().expect_err("no place");
        assert!(
            error.to_string().contains("`backups` is no place for backups"),
            "{error}"
        );
        let s3 = Settings {
            credentials_file: Some("/not/there".into()),
            ..Settings::to("s3://bucket/a/b/")
        };
        let error = s3.objects().expect_err("no key");
        assert!(error.to_string().contains("/not/there"), "{error}");
    }

    #[test]
    fn every_service_s_database_is_in_a_backup() {
        let names: Vec<&str> = SCHEMAS.iter().map(|schema| schema.name).collect();
        assert_eq!(
            names,
            ["clusters", "network", "director", "identity", "credentials"]
        );
    }
}
