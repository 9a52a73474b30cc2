//! Reading everything back.

use std::collections::BTreeMap;
use std::io::Read as _;

use aws_lc_rs::digest;
use camino::Utf8PathBuf;
use serde::Serialize;
use stolos_blobs::objects::Objects;
use stolos_store::dump;
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::key::BackupKey;
use crate::manifest::{BackupId, Database, FILES, FileEntry, Manifest, blob, database};
use crate::place;
use crate::seal::Opener;
use crate::{Progress, size_text};

/// The pipe between what decrypts and what checks.
const PIPE: usize = 256 * 1024;

/// What was read back.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The backup.
    pub id: BackupId,
    /// Databases.
    pub databases: u64,
    /// Their rows.
    pub rows: u64,
    /// Files.
    pub files: u64,
    /// Blobs; absent when the backup has none or they were left out.
    pub blobs: Option<u64>,
    /// Bytes read from the place.
    pub bytes: u64,
}

/// Reads a backup (the newest one unless named) as a restore would: every object opens, every dump parses with its
/// counts and digests, every file and every blob (with `blobs`) has its digest.
///
/// # Errors
/// [`Error::NoBackup`], [`Error::OtherKey`], [`Error::Damaged`] with the object, and those of the place.
pub async fn verify(
    objects: &Objects,
    key: &BackupKey,
    id: Option<&BackupId>,
    blobs: bool,
    progress: Progress<'_>,
) -> Result<Verified> {
    let manifest = match id {
        Some(id) => Manifest::read(objects, key, id).await?,
        None => newest_named(objects, key).await?,
    };
    own_objects(&manifest, objects, key, progress).await?;
    let mut bytes = manifest.stored();
    let mut n_blobs = None;
    if let Some(all) = manifest.blobs.as_ref().filter(|_| blobs) {
        for one in all {
            let (name, binding) = blob(key, &one.id);
            let mut opener = Opener::begin(objects, &name, key, &binding).await?;
            let mut context = digest::Context::new(&digest::SHA256);
            while let Some(piece) = opener.next().await? {
                context.update(&piece);
            }
            if hex::encode(context.finish()) != one.id.as_str() {
                return Err(Error::Damaged {
                    object: name,
                    problem: format!("it is not blob {}", one.id),
                });
            }
            bytes += one.size;
        }
        progress(&format!("{} blobs have their digests", all.len()));
        n_blobs = Some(all.len() as u64);
    }
    Ok(Verified {
        id: manifest.id.clone(),
        databases: manifest.databases.len() as u64,
        rows: manifest.databases.iter().map(|one| one.contents.rows()).sum(),
        files: manifest.files.entries.len() as u64,
        blobs: n_blobs,
        bytes,
    })
}

/// The newest one that has a manifest: unlike for a restore, one of which an object is missing is what should be found out.
async fn newest_named(objects: &Objects, key: &BackupKey) -> Result<Manifest> {
    let found = place::Found::look(objects).await?;
    let id = found.backups.keys().rev().find(|id| found.has_manifest(id));
    match id {
        Some(id) => Manifest::read(objects, key, id).await,
        None => Err(Error::NoBackup {
            id: None,
            place: objects.to_string(),
        }),
    }
}

/// Checks what belongs to this backup alone.
pub(crate) async fn own_objects(
    manifest: &Manifest,
    objects: &Objects,
    key: &BackupKey,
    progress: Progress<'_>,
) -> Result<()> {
    for one in &manifest.databases {
        check_database(&manifest.id, one, objects, key).await?;
    }
    progress(&format!(
        "{} dumps read back, {}",
        manifest.databases.len(),
        size_text(manifest.stored())
    ));
    files(manifest, objects, key, |_, _| Ok(())).await
}

async fn check_database(id: &BackupId, one: &Database, objects: &Objects, key: &BackupKey) -> Result<()> {
    let name = database(id, &one.contents.schema);
    let opener = Opener::begin(objects, &name, key, name.as_str()).await?;
    let (near, far) = tokio::io::duplex(PIPE);
    let mut lines = BufReader::with_capacity(PIPE, far);
    let check = async {
        let checked = dump::check(&mut lines).await;
        drop(lines);
        checked
    };
    let (pumped, read) = tokio::join!(opener.pump(true, near), check);
    pumped?;
    let damaged = |problem: String| Error::Damaged {
        object: name.clone(),
        problem,
    };
    let read = read.map_err(|error| damaged(error.to_string()))?;
    if read != one.contents {
        return Err(damaged(
            "the dump holds something else than its manifest says".to_owned(),
        ));
    }
    Ok(())
}

/// Reads the files; `each` is called (on a thread that may block) with every file whose digest is right.
pub(crate) async fn files(
    manifest: &Manifest,
    objects: &Objects,
    key: &BackupKey,
    each: impl Fn(&FileEntry, &[u8]) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let name = manifest.id.object(FILES);
    let opener = Opener::begin(objects, &name, key, name.as_str()).await?;
    let (near, mut far) = tokio::io::duplex(PIPE);
    let (sender, pieces) = mpsc::channel::<Vec<u8>>(4);
    let mut wanted: BTreeMap<Utf8PathBuf, FileEntry> = manifest
        .files
        .entries
        .iter()
        .map(|entry| (entry.path.clone(), entry.clone()))
        .collect();
    let object = name.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let damaged = |problem: String| Error::Damaged {
            object: object.clone(),
            problem,
        };
        let broken = |error: std::io::Error| damaged(format!("its archive cannot be read: {error}"));
        let mut archive = tar::Archive::new(Blocking {
            pieces,
            piece: std::io::Cursor::default(),
        });
        for member in archive.entries().map_err(broken)? {
            let mut member = member.map_err(broken)?;
            let path = member.path().map_err(broken)?.to_string_lossy().into_owned();
            let Some(entry) = wanted.remove(Utf8PathBuf::from(&path).as_path()) else {
                return Err(damaged(format!(
                    "it holds `{path}`, which the manifest does not name"
                )));
            };
            let mut bytes = Vec::new();
            (&mut member)
                .take(entry.size + 1)
                .read_to_end(&mut bytes)
                .map_err(broken)?;
            if hex::encode(digest::digest(&digest::SHA256, &bytes)) != entry.sha256 {
                return Err(damaged(format!("`{path}` has another digest")));
            }
            each(&entry, &bytes)?;
        }
        if let Some(missing) = wanted.keys().next() {
            return Err(damaged(format!("`{missing}` is missing")));
        }
        Ok(())
    });
    let passing = async move {
        loop {
            let mut piece = vec![0; PIPE];
            // A pipe in memory does not fail; its other end says why it ended early.
            let n = far.read(&mut piece).await.unwrap_or(0);
            piece.truncate(n);
            // Nobody who reads any more has the reason, too.
            if n == 0 || sender.send(piece).await.is_err() {
                break;
            }
        }
    };
    let (pumped, (), read) = tokio::join!(opener.pump(true, near), passing, reading);
    pumped?;
    read.map_err(|error| Error::Bug(format!("reading files ended: {error}")))?
}

/// The pieces of a channel for a thread that may block.
struct Blocking {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: std::io::Cursor<Vec<u8>>,
}

impl std::io::Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = std::io::Read::read(&mut self.piece, buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = std::io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}
