//! Taking a backup.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::Clock;
use stolos_blobs::objects::{ObjectName, Objects};
use stolos_store::{DatabaseUrl, Db, Schema, dump};
use tokio::io::AsyncReadExt as _;

use crate::error::{Error, Result};
use crate::key::BackupKey;
use crate::manifest::{BackupId, Blob, Database, FILES, FileEntry, Files, Manifest, blob, database};
use crate::place;
use crate::seal::{Sealer, Zipper};
use crate::{Progress, size_text};

/// Files of an installation are small; a larger one is no file of ours.
const LARGEST_FILE: u64 = 64 * 1024 * 1024;
/// The pipe between a dump and what encrypts it.
const PIPE: usize = 256 * 1024;

/// What belongs to an installation.
pub struct Source<'a> {
    /// Its id (of its director): whose backups these are.
    pub installation: String,
    /// The version of this program.
    pub version: &'a str,
    /// Its root directory.
    pub root: &'a Utf8Path,
    /// Where its databases are.
    pub database: DatabaseUrl,
    /// Its services' schemas in the order in which they are read. Each database is read at an instant of its own, so those that
    /// say what is wanted come before those that say what is there, and those that others point into come last: then nothing points
    /// at what a later dump no longer knows.
    pub schemas: &'a [&'static Schema],
    /// Its files.
    pub files: &'a [Entry],
    /// Whether its blobs go along.
    pub blobs: Blobs,
    /// Time.
    pub clock: Clock,
}

/// A file or directory relative to the root. What is not there is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File(&'static str),
    /// A directory with all files in it.
    Tree(&'static str),
}

/// Whether blobs go along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blobs {
    /// Those in this directory.
    In(Utf8PathBuf),
    /// None: what they were made of has to be uploaded again after a restore.
    Without,
}

/// Takes a backup; gives its manifest, which was written last.
///
/// Guarantees: databases are read in a snapshot each while the services run. What was written for the databases and the
/// files is read back and checked before the manifest is written. After an error or a crash there is no new backup;
/// what is left of it is removed by the next [`crate::retain()`].
///
/// # Errors
/// Those of the databases, the files and the place; [`Error::OtherInstallation`].
pub async fn take(
    source: &Source<'_>,
    objects: &Objects,
    key: &BackupKey,
    progress: Progress<'_>,
) -> Result<Manifest> {
    let began = Instant::now();
    place::claim(objects, &source.installation).await?;
    let id = BackupId::new(&source.clock);
    let taken_at = source.clock.now();
    let mut databases = Vec::new();
    for schema in source.schemas {
        if let Some(one) = take_database(source, schema, &id, objects, key).await? {
            progress(&format!(
                "database {}: {} rows, {}",
                schema.name,
                one.contents.rows(),
                size_text(one.stored)
            ));
            databases.push(one);
        }
    }
    let files = take_files(source, &id, objects, key).await?;
    progress(&format!(
        "files: {}, {}",
        files.entries.len(),
        size_text(files.stored)
    ));
    // After the databases: each blob that they name was stored before it was named.
    let blobs = match &source.blobs {
        Blobs::In(directory) => Some(take_blobs(directory, objects, key, progress).await?),
        Blobs::Without => None,
    };
    let manifest = Manifest {
        format: Manifest::format(),
        id,
        key: key.id().clone(),
        installation: source.installation.clone(),
        version: source.version.to_owned(),
        taken_at,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        databases,
        files,
        blobs,
    };
    crate::verify::own_objects(&manifest, objects, key, progress).await?;
    manifest.write(objects, key).await?;
    Ok(manifest)
}

async fn take_database(
    source: &Source<'_>,
    schema: &'static Schema,
    id: &BackupId,
    objects: &Objects,
    key: &BackupKey,
) -> Result<Option<Database>> {
    let open = Db::open_as_is(&source.database, schema, source.clock.clone()).await;
    let Some(db) = open.map_err(Error::database("open", schema.name))? else {
        return Ok(None);
    };
    let name = database(id, schema.name);
    let mut zipper = Zipper::new(Sealer::begin(objects, &name, key, name.as_str()).await?);
    let (mut near, mut far) = tokio::io::duplex(PIPE);
    let dumping = async {
        let contents = dump::dump(&db, &mut near).await;
        drop(near);
        contents
    };
    let writing = async {
        let mut buffer = vec![0; PIPE];
        loop {
            let n = far
                .read(&mut buffer)
                .await
                .map_err(Error::file("read", "a pipe"))?;
            if n == 0 {
                return Ok::<_, Error>(());
            }
            zipper.write(&buffer[..n]).await?;
        }
    };
    // The writer goes first when it fails: the dump then only sees that its pipe is closed.
    let (contents, written) = tokio::join!(dumping, writing);
    db.close().await;
    let contents = written.and_then(|()| contents.map_err(Error::database("dump", schema.name)));
    match contents {
        Ok(contents) => Ok(Some(Database {
            stored: zipper.finish().await?,
            contents,
        })),
        Err(error) => {
            zipper.sealer.abort().await;
            Err(error)
        }
    }
}

async fn take_files(source: &Source<'_>, id: &BackupId, objects: &Objects, key: &BackupKey) -> Result<Files> {
    let name = id.object(FILES);
    let mut zipper = Zipper::new(Sealer::begin(objects, &name, key, name.as_str()).await?);
    let mut entries = Vec::new();
    for path in paths(source)? {
        let Some((entry, packed)) = pack(source.root, &path)? else {
            continue;
        };
        zipper.write(&packed).await?;
        entries.push(entry);
    }
    // The end of a tar archive: two empty blocks.
    zipper.write(&[0; 1024]).await?;
    Ok(Files {
        stored: zipper.finish().await?,
        entries,
    })
}

/// Relative to the root, sorted.
fn paths(source: &Source<'_>) -> Result<Vec<Utf8PathBuf>> {
    let mut paths = Vec::new();
    for entry in source.files {
        match entry {
            Entry::File(path) => paths.push(Utf8PathBuf::from(*path)),
            Entry::Tree(path) => {
                for found in walkdir::WalkDir::new(source.root.join(path)).sort_by_file_name() {
                    let found = match found {
                        Ok(found) => found,
                        // Removed while it was listed.
                        Err(error)
                            if error
                                .io_error()
                                .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) =>
                        {
                            continue;
                        }
                        Err(error) => {
                            return Err(Error::file("list", source.root.join(path))(error.into()));
                        }
                    };
                    let inside = found.path().strip_prefix(source.root).ok();
                    let inside = inside.and_then(|path| Utf8PathBuf::from_path_buf(path.to_owned()).ok());
                    if found.file_type().is_file()
                        && let Some(inside) = inside
                    {
                        paths.push(inside);
                    }
                }
            }
        }
    }
    Ok(paths)
}

/// A file as a member of a tar archive; `None` when it is not there.
fn pack(root: &Utf8Path, path: &Utf8Path) -> Result<Option<(FileEntry, Vec<u8>)>> {
    let full = root.join(path);
    let metadata = match fs_err::symlink_metadata(&full) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("look at", full)(error)),
    };
    if metadata.len() > LARGEST_FILE {
        let error = std::io::Error::other(format!("it has {} bytes", metadata.len()));
        return Err(Error::file("take", full)(error));
    }
    let bytes = match fs_err::read(&full) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", full)(error)),
    };
    let mode = metadata.permissions().mode() & 0o777;
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_entry_type(tar::EntryType::Regular);
    let mut packed = tar::Builder::new(Vec::with_capacity(bytes.len() + 1024));
    packed
        .append_data(&mut header, path, bytes.as_slice())
        .map_err(Error::file("pack", &full))?;
    let entry = FileEntry {
        path: path.to_owned(),
        mode,
        size: bytes.len() as u64,
        sha256: hex::encode(digest::digest(&digest::SHA256, &bytes)),
    };
    // Without the end of an archive, which comes once.
    let mut packed = packed.into_inner().map_err(Error::file("pack", &full))?;
    packed.truncate(packed.len().saturating_sub(1024));
    Ok(Some((entry, packed)))
}

async fn take_blobs(
    directory: &Utf8Path,
    objects: &Objects,
    key: &BackupKey,
    progress: Progress<'_>,
) -> Result<Vec<Blob>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let own = stolos_blobs::Blobs::look(directory);
    let failed = |id: &str| {
        let id = id.to_owned();
        move |error: stolos_blobs::Error| match error {
            stolos_blobs::Error::Damaged { .. } => Error::Blob(id),
            other => Error::file("read", directory.join(id))(std::io::Error::other(other)),
        }
    };
    let listed = {
        let own = own.clone();
        // Sealed ones are templates on their way to a machine: they are gone a moment later, and rendered again when needed.
        tokio::task::spawn_blocking(move || own.list_plain())
            .await
            .map_err(|error| Error::Bug(error.to_string()))?
            .map_err(failed(""))?
    };
    let below: ObjectName = format!("blobs/{}", key.id())
        .parse()
        .map_err(|_| Error::Bug("a key id is no name".to_owned()))?;
    let there: HashSet<ObjectName> = objects
        .list(Some(&below))
        .await?
        .into_iter()
        .map(|object| object.name)
        .collect();
    let mut blobs = Vec::with_capacity(listed.len());
    let (mut new, mut bytes) = (0_u64, 0_u64);
    for stored in listed {
        let (name, binding) = blob(key, &stored.id);
        if !there.contains(&name) {
            let mut reader = match own.get(&stored.id).await {
                Ok(reader) => reader,
                // Deleted since it was listed: no database names it any more.
                Err(stolos_blobs::Error::NotFound(_)) => continue,
                Err(error) => return Err(failed(stored.id.as_str())(error)),
            };
            let mut sealer = Sealer::begin(objects, &name, key, &binding).await?;
            let mut buffer = vec![0; PIPE];
            loop {
                let n = match reader.read(&mut buffer).await {
                    Ok(n) => n,
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                        sealer.abort().await;
                        return Err(Error::Blob(stored.id.to_string()));
                    }
                    Err(error) => {
                        sealer.abort().await;
                        return Err(Error::file("read blob", directory.join(stored.id.as_str()))(
                            error,
                        ));
                    }
                };
                if n == 0 {
                    break;
                }
                sealer.write(&buffer[..n]).await?;
            }
            sealer.finish().await?;
            new += 1;
            bytes += stored.size;
            progress(&format!("blob {}, {}", stored.id, size_text(stored.size)));
        }
        blobs.push(Blob {
            id: stored.id,
            size: stored.size,
        });
    }
    progress(&format!(
        "blobs: {}, of which {new} ({}) were not there yet",
        blobs.len(),
        size_text(bytes)
    ));
    blobs.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(blobs)
}
