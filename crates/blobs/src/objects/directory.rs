//! Objects as files. One that is being written lies in `.partial/`.

use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use stolos_base::{files, ids};
use tokio::io::AsyncWriteExt as _;

use super::{Error, ObjectInfo, ObjectName, Reader, Result};

/// Where files are that are not whole yet. No object's name begins with a dot.
const PARTIAL: &str = ".partial";
/// Bytes that are written and read at once.
const CHUNK: usize = 256 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Directory(Arc<Utf8PathBuf>);

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl Directory {
    pub(super) fn new(path: Utf8PathBuf) -> Self {
        Self(Arc::new(path))
    }

    fn path(&self, name: &ObjectName) -> Utf8PathBuf {
        self.0.join(name.as_str())
    }

    pub(super) async fn writer(&self, name: &ObjectName) -> Result<Writer> {
        let (own, name) = (self.clone(), name.clone());
        blocking(move || {
            own.make()?;
            let partial = own.0.join(PARTIAL).join(ids::random_hex(8));
            let file = fs_err::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&partial)
                .map_err(own.error(format!("begin object `{name}`"), &partial))?;
            let file = tokio::fs::File::from_std(file.into_parts().0);
            Ok(Writer {
                file: tokio::io::BufWriter::with_capacity(CHUNK, file),
                size: 0,
                directory: own,
                partial: Partial(partial),
                name,
            })
        })
        .await
    }

    /// Makes the directory, but not the one above it.
    fn make(&self) -> Result<()> {
        for path in [self.0.as_ref().clone(), self.0.join(PARTIAL)] {
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(self.error("make the directory".to_owned(), &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) async fn reader(&self, name: &ObjectName) -> Result<Reader> {
        let path = self.path(name);
        match tokio::fs::File::open(&path).await {
            Ok(mut file) => {
                file.set_max_buf_size(CHUNK);
                Ok(Box::new(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound {
                name: name.clone(),
                place: self.to_string(),
            }),
            Err(error) => Err(self.error(format!("open object `{name}`"), &path)(error)),
        }
    }

    pub(super) async fn list(&self, prefix: Option<&ObjectName>) -> Result<Vec<ObjectInfo>> {
        let own = self.clone();
        let from = prefix.map_or_else(|| own.0.as_ref().clone(), |prefix| own.path(prefix));
        blocking(move || own.list_below(&from)).await
    }

    fn list_below(&self, from: &Utf8Path) -> Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        let not_partial = |entry: &walkdir::DirEntry| entry.depth() == 0 || entry.file_name() != PARTIAL;
        for entry in walkdir::WalkDir::new(from).into_iter().filter_entry(not_partial) {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was never made, or an object was removed meanwhile.
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(self.error("list objects".to_owned(), from)(error.into())),
            };
            if !entry.file_type().is_file() {
                continue;
            }
            let inside = entry.path().strip_prefix(self.0.as_std_path()).ok();
            let Some(name) = inside.and_then(|path| path.to_str()?.parse().ok()) else {
                tracing::warn!(file = %entry.path().display(), "a file among the objects is none");
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(self.error("list objects".to_owned(), from)(error.into())),
            };
            found.push(ObjectInfo {
                name,
                size: metadata.len(),
                written_at: metadata.modified().map_or(0, millis),
            });
        }
        Ok(found)
    }

    pub(super) async fn delete(&self, name: &ObjectName) -> Result<()> {
        let (own, name) = (self.clone(), name.clone());
        blocking(move || {
            let path = own.path(&name);
            files::remove_if_there(&path).map_err(own.error(format!("remove object `{name}`"), &path))?;
            // Directories that it leaves empty, up to ours.
            let above = path.ancestors().skip(1);
            for parent in above.take_while(|parent| *parent != own.0.as_path()) {
                if fs_err::remove_dir(parent).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn tidy(&self, age: Duration) -> Result<()> {
        let own = self.clone();
        blocking(move || {
            let partial = own.0.join(PARTIAL);
            let entries = match partial.read_dir_utf8() {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(own.error("list unfinished objects".to_owned(), &partial)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(own.error("list unfinished objects".to_owned(), &partial))?;
                let written = entry.metadata().and_then(|metadata| metadata.modified());
                if written.is_ok_and(|at| at.elapsed().is_ok_and(|old| old >= age)) {
                    files::remove_if_there(entry.path())
                        .map_err(own.error("remove an unfinished object".to_owned(), entry.path()))?;
                }
            }
            Ok(())
        })
        .await
    }

    fn error(&self, action: String, path: &Utf8Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let (place, path) = (self.to_string(), path.to_owned());
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full {
                place,
                action,
                source,
            },
            _ => Error::Io { action, path, source },
        }
    }
}

/// The file is removed unless it got its name.
#[derive(Debug)]
struct Partial(Utf8PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = files::remove_if_there(&self.0) {
            tracing::warn!(path = %self.0, %error, "failed to remove an unfinished object");
        }
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    // Closed before the partial file is removed: fields are dropped in this order.
    file: tokio::io::BufWriter<tokio::fs::File>,
    partial: Partial,
    directory: Directory,
    name: ObjectName,
    size: u64,
}

impl Writer {
    fn failed(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        self.directory
            .error(format!("write object `{}`", self.name), &self.partial.0)
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = self.failed();
        self.file.write_all(bytes).await.map_err(failed)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<u64> {
        let failed = self.failed();
        self.file.flush().await.map_err(failed)?;
        let failed = self.failed();
        self.file.get_ref().sync_all().await.map_err(failed)?;
        blocking(move || {
            let path = self.directory.path(&self.name);
            let parent = path.parent().expect("an object lies below the directory");
            let failed = || {
                self.directory
                    .error(format!("name object `{}`", self.name), &path)
            };
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(failed())?;
            fs_err::rename(&self.partial.0, &path).map_err(failed())?;
            // The names of new directories, too.
            let above = path.ancestors().skip(1);
            for directory in above.take_while(|directory| directory.starts_with(self.directory.0.as_path())) {
                fs_err::File::open(directory)
                    .and_then(|directory| directory.sync_all())
                    .map_err(failed())?;
            }
            Ok(self.size)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("work on files does not panic")
}

fn is_missing(error: &walkdir::Error) -> bool {
    error
        .io_error()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
