//! Restoring into an empty installation.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::{Clock, files};
use stolos_blobs::objects::Objects;
use stolos_store::dump::{self, Life, Occupied};
use stolos_store::{DatabaseUrl, Schema};
use tokio::io::BufReader;

use crate::error::{Error, Result};
use crate::key::BackupKey;
use crate::manifest::{BackupId, Blob, Database, Manifest, blob, database};
use crate::place;
use crate::seal::Opener;
use crate::verify;
use crate::{Progress, size_text};

/// The pipe between what decrypts and what loads.
const PIPE: usize = 256 * 1024;
/// What a restore that was interrupted has left behind, and what it has done.
const JOURNAL: &str = "restoring.json";

/// A restore.
pub struct Restore<'a> {
    /// The root directory. Nothing of an installation may be in it; machines and disks may.
    pub root: &'a Utf8Path,
    /// Where the databases are to be, which need not be where they were. Given the configuration's text as it was in the backup.
    pub database: &'a (dyn Fn(&str) -> std::io::Result<(DatabaseUrl, String)> + Send + Sync),
    /// The services' schemas.
    pub schemas: &'a [&'static Schema],
    /// The file that makes an installation of the directory, and is therefore written last: its path relative to the root.
    pub configuration: &'a str,
    /// What must not be there yet, relative to the root.
    pub must_not_exist: &'a [&'a str],
    /// Where the blobs are to be.
    pub blobs: Utf8PathBuf,
    /// Which backup; the newest whole one unless named.
    pub backup: Option<BackupId>,
    /// Time.
    pub clock: Clock,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The backup.
    pub id: BackupId,
    /// When it was taken.
    pub taken_at: jiff::Timestamp,
    /// Where the databases are, without user and password.
    pub database: String,
    /// Rows.
    pub rows: u64,
    /// Files.
    pub files: u64,
    /// Blobs; absent when the backup has none.
    pub blobs: Option<u64>,
}

/// What is noted while a restore is under way.
#[derive(Default, Serialize, Deserialize)]
struct Journal {
    backup: String,
    /// Database → digest of what it held when it was committed.
    databases: BTreeMap<String, String>,
}

/// Restores a backup.
///
/// Expected flow: everything is read once and checked; then files, databases, blobs; the configuration last.
/// Guarantees: an installation that is there is refused and left alone. Killed at any moment, it leaves a directory without
/// a configuration, which nobody takes for an installation; the same call then begins anew.
///
/// # Errors
/// [`Error::NotEmpty`], those of [`crate::verify()`], of the databases and the file system.
pub async fn restore(
    wish: &Restore<'_>,
    objects: &Objects,
    key: &BackupKey,
    progress: Progress<'_>,
) -> Result<Restored> {
    let journal_path = wish.root.join(JOURNAL);
    let read: Option<Journal> =
        files::read_json(&journal_path).map_err(Error::file("read", &journal_path))?;
    if read.is_none() {
        for path in wish.must_not_exist {
            if is_something(&wish.root.join(path)) {
                return Err(Error::NotEmpty {
                    path: wish.root.join(path).into_string(),
                });
            }
        }
    }
    let manifest = match &wish.backup {
        Some(id) => Manifest::read(objects, key, id).await?,
        None => place::newest(objects, key).await?,
    };
    progress(&format!("backup {}, taken {}", manifest.id, manifest.taken_at));
    verify::own_objects(&manifest, objects, key, progress).await?;
    let configuration = configuration(wish, &manifest, objects, key).await?;
    let (url, configuration) =
        (wish.database)(&configuration).map_err(Error::file("read", wish.root.join(wish.configuration)))?;
    let mut free = Vec::new();
    for one in &manifest.databases {
        free.push(room(wish, &url, one, read.as_ref()).await?);
    }

    fs_err::create_dir_all(wish.root).map_err(Error::file("make", wish.root))?;
    let mut journal = Journal {
        backup: manifest.id.to_string(),
        databases: BTreeMap::new(),
    };
    files::write_json(&journal_path, &journal, 0o600).map_err(Error::file("write", &journal_path))?;
    for leftover in free.into_iter().flatten() {
        leftover
            .erase()
            .await
            .map_err(Error::database("clear", "left by an interrupted restore"))?;
    }
    write_files(wish, &manifest, objects, key).await?;
    progress(&format!("{} files", manifest.files.entries.len()));
    let life = Life::New(stolos_store::restored::Restored {
        at: wish.clock.now_millis(),
        backup: manifest.id.to_string(),
        taken_at: manifest.taken_at.as_millisecond(),
    });
    for one in &manifest.databases {
        let schema = schema(wish, one)?;
        let about_to = |digest: &str| {
            journal
                .databases
                .insert(schema.name.to_owned(), digest.to_owned());
            files::write_json(&journal_path, &journal, 0o600)
        };
        let loading = Loading {
            url: &url,
            schema,
            life: &life,
            clock: wish.clock.clone(),
        };
        load(loading, &manifest.id, objects, key, about_to).await?;
        progress(&format!("database {}: {} rows", schema.name, one.contents.rows()));
    }
    if let Some(blobs) = &manifest.blobs {
        write_blobs(wish, blobs, objects, key, progress).await?;
    }
    let path = wish.root.join(wish.configuration);
    files::write_atomic(&path, configuration.as_bytes(), 0o600).map_err(Error::file("write", &path))?;
    files::remove_if_there(&journal_path).map_err(Error::file("remove", &journal_path))?;
    Ok(Restored {
        id: manifest.id.clone(),
        taken_at: manifest.taken_at,
        database: url.to_string(),
        rows: manifest.databases.iter().map(|one| one.contents.rows()).sum(),
        files: manifest.files.entries.len() as u64,
        blobs: manifest.blobs.as_ref().map(|blobs| blobs.len() as u64),
    })
}

/// A file, or a directory with something in it.
fn is_something(path: &Utf8Path) -> bool {
    match path.read_dir_utf8() {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

fn schema(wish: &Restore<'_>, one: &Database) -> Result<&'static Schema> {
    let found = wish
        .schemas
        .iter()
        .find(|schema| schema.name == one.contents.schema);
    found
        .copied()
        .ok_or_else(|| Error::Newer(one.contents.schema.clone()))
}

/// Looks whether the database can be restored; gives what an interrupted restore left there.
async fn room(
    wish: &Restore<'_>,
    url: &DatabaseUrl,
    one: &Database,
    journal: Option<&Journal>,
) -> Result<Option<dump::Leftover>> {
    let schema = schema(wish, one)?;
    let left = journal.and_then(|journal| journal.databases.get(schema.name));
    let looked = dump::occupied(url, schema, wish.clock.clone(), left.map(String::as_str)).await;
    match looked.map_err(Error::database("look at", schema.name))? {
        Occupied::No => Ok(None),
        Occupied::Leftover(leftover) => Ok(Some(leftover)),
        Occupied::Yes(table) => Err(Error::NotEmpty {
            path: format!("table `{table}` of database `{}` at {url}", schema.name),
        }),
    }
}

/// The configuration's text as it was.
async fn configuration(
    wish: &Restore<'_>,
    manifest: &Manifest,
    objects: &Objects,
    key: &BackupKey,
) -> Result<String> {
    let found = Arc::new(std::sync::Mutex::new(None));
    let (sink, wanted) = (found.clone(), wish.configuration.to_owned());
    verify::files(manifest, objects, key, move |entry, bytes| {
        if entry.path == wanted {
            let text = String::from_utf8_lossy(bytes).into_owned();
            *sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(text);
        }
        Ok(())
    })
    .await?;
    let text = found
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    text.ok_or_else(|| Error::Damaged {
        object: manifest.id.manifest(),
        problem: format!("the backup has no `{}`", wish.configuration),
    })
}

async fn write_files(
    wish: &Restore<'_>,
    manifest: &Manifest,
    objects: &Objects,
    key: &BackupKey,
) -> Result<()> {
    let (root, last) = (wish.root.to_owned(), Utf8PathBuf::from(wish.configuration));
    verify::files(manifest, objects, key, move |entry, bytes| {
        if entry.path == last {
            return Ok(());
        }
        let normal = |part| matches!(part, camino::Utf8Component::Normal(_));
        if !entry.path.components().all(normal) {
            return Err(Error::Bug(format!("`{}` is no path below the root", entry.path)));
        }
        let path = root.join(&entry.path);
        // What lies in a directory and is there is newer than the backup: a reply of the CPI for instance, which must not be lost.
        if entry.path.components().count() > 1 && path.exists() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent).map_err(Error::file("make", parent))?;
        }
        files::write_atomic(&path, bytes, entry.mode).map_err(Error::file("write", &path))
    })
    .await
}

struct Loading<'a> {
    url: &'a DatabaseUrl,
    schema: &'static Schema,
    life: &'a Life,
    clock: Clock,
}

async fn load(
    loading: Loading<'_>,
    id: &BackupId,
    objects: &Objects,
    key: &BackupKey,
    about_to: impl FnOnce(&str) -> std::io::Result<()> + Send,
) -> Result<()> {
    let name = database(id, loading.schema.name);
    let opener = Opener::begin(objects, &name, key, name.as_str()).await?;
    let (near, far) = tokio::io::duplex(PIPE);
    let loaded = async {
        let mut lines = BufReader::with_capacity(PIPE, far);
        dump::restore(
            loading.url,
            loading.schema,
            loading.clock,
            loading.life,
            about_to,
            &mut lines,
        )
        .await
    };
    let (pumped, loaded) = tokio::join!(opener.pump(true, near), loaded);
    pumped?;
    loaded
        .map(drop)
        .map_err(Error::database("restore", loading.schema.name))
}

async fn write_blobs(
    wish: &Restore<'_>,
    blobs: &[Blob],
    objects: &Objects,
    key: &BackupKey,
    progress: Progress<'_>,
) -> Result<()> {
    let failed = |error: stolos_blobs::Error| {
        Error::file("write blobs to", &wish.blobs)(std::io::Error::other(stolos_base::chain(&error)))
    };
    let own = stolos_blobs::Blobs::open(&wish.blobs, stolos_blobs::Options::default()).map_err(failed)?;
    for one in blobs {
        if own.contains(&one.id) {
            continue;
        }
        let (name, binding) = blob(key, &one.id);
        let mut opener = Opener::begin(objects, &name, key, &binding).await?;
        let mut writer = own.writer(Some(one.size), one.size).map_err(failed)?;
        while let Some(piece) = opener.next().await? {
            writer.write(&piece).await.map_err(failed)?;
        }
        writer.finish(Some(&one.id)).await.map_err(failed)?;
        progress(&format!("blob {}, {}", one.id, size_text(one.size)));
    }
    Ok(())
}
