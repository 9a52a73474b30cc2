//! The directory.

use std::collections::HashSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::files;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::error::{Error, Result, io};
use crate::id::{BlobId, UploadName};
use crate::read::Reader;
use crate::seal::{self, SealKey};
use crate::write::Writer;

/// The bytes that are read and written at once.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The suffix of sealed blobs' files.
const SEALED: &str = ".sealed";

/// Settings of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes that blobs leave free on their file system, because databases and machines share it.
    pub reserve: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reserve: 256 * 1024 * 1024,
        }
    }
}

/// A store of blobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Utf8PathBuf,
    options: Options,
    /// Held for the moment in which a blob gets its name, is touched or removed, so that the garbage collector cannot
    /// remove what was just stored again.
    names: Mutex<()>,
}

/// A blob that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: BlobId,
    /// Its bytes on disk.
    pub size: u64,
}

/// What a garbage collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs kept.
    pub kept: u64,
}

/// The two forms of a blob's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Sealed,
}

/// A file of an interrupted write is left for so long: nobody is still writing one that was not written to since.
const STALE: Duration = Duration::from_secs(3600);

impl Blobs {
    /// Opens the store, makes its directory (mode 0700) where it is missing, and removes what writes left that were interrupted more than an hour ago: other
    /// members of an installation may be writing at this moment.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: impl Into<Utf8PathBuf>, options: Options) -> Result<Self> {
        let root = root.into();
        let tmp = root.join("tmp");
        for path in [&tmp, &root.join("uploads")] {
            make_directory(path)?;
        }
        remove_older(&tmp, STALE)?;
        Ok(Self(Arc::new(Inner {
            root,
            options,
            names: Mutex::new(()),
        })))
    }

    /// A look at a store that another process owns: for reading only. Where there is no directory, there is no blob.
    #[must_use]
    pub fn look(root: impl Into<Utf8PathBuf>) -> Self {
        Self(Arc::new(Inner {
            root: root.into(),
            options: Options::default(),
            names: Mutex::default(),
        }))
    }

    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Utf8Path {
        &self.0.root
    }

    /// Begins a blob. `size` is what is announced, to refuse early; `limit` is the most that is taken.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::TooLarge`], those of the file system.
    pub fn writer(&self, size: Option<u64>, limit: u64) -> Result<Writer> {
        if size.is_some_and(|size| size > limit) {
            return Err(Error::TooLarge { limit });
        }
        self.check_space(size.unwrap_or(0))?;
        Writer::new(self.clone(), limit)
    }

    /// Stores everything that the reader gives.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::TooLarge`], [`Error::Receive`], those of the file system; nothing is left then.
    pub async fn put(&self, mut reader: impl AsyncRead + Unpin, limit: u64) -> Result<Stored> {
        let mut writer = self.writer(None, limit)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = reader
                .read(&mut buffer)
                .await
                .map_err(|error| Error::Receive(error.into()))?;
            if n == 0 {
                return writer.finish(None).await;
            }
            writer.write(&buffer[..n]).await?;
        }
    }

    /// Stores these bytes.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_bytes(&self, bytes: &[u8]) -> Result<Stored> {
        let size = bytes.len() as u64;
        let mut writer = self.writer(Some(size), size)?;
        writer.write(bytes).await?;
        writer.finish(None).await
    }

    /// Stores these bytes encrypted with AES-256-GCM. The id is that of the encrypted bytes, so the same content gets a
    /// new id each time. Kept in memory while sealing: for configuration files, not for packages.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_sealed(&self, key: &SealKey, bytes: &[u8]) -> Result<Stored> {
        let sealed = seal::seal(key, bytes);
        let size = sealed.len() as u64;
        let mut writer = self.writer(Some(size), size)?;
        writer.write(&sealed).await?;
        writer.finish_as(None, Form::Sealed).await
    }

    /// A reader that verifies the digest: it gives an error in place of the last bytes when they are damaged.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Form`] for a sealed blob, those of the file system.
    pub async fn get(&self, id: &BlobId) -> Result<Reader> {
        self.open_as(id, Form::Plain)
            .await
            .map(|reader| reader.verified(id.clone()))
    }

    /// A reader that does not verify, for those who compute the digest themselves.
    ///
    /// # Errors
    /// As [`Blobs::get`].
    pub async fn get_unverified(&self, id: &BlobId) -> Result<Reader> {
        self.open_as(id, Form::Plain).await
    }

    /// The whole blob, verified, when it has at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Blobs::get`], [`Error::TooLarge`] and [`Error::Damaged`].
    pub async fn read(&self, id: &BlobId, limit: u64) -> Result<Vec<u8>> {
        self.read_as(id, Form::Plain, limit).await
    }

    /// The content of a sealed blob of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Blobs::read`], [`Error::Form`] for one that is not sealed, [`Error::Unseal`].
    pub async fn read_sealed(&self, key: &SealKey, id: &BlobId, limit: u64) -> Result<Vec<u8>> {
        let bytes = self
            .read_as(id, Form::Sealed, limit.saturating_add(seal::OVERHEAD))
            .await?;
        seal::unseal(key, bytes).ok_or_else(|| Error::Unseal(id.clone()))
    }

    /// The file of a plain blob, for those on this host that read or map it themselves. It must not be changed.
    #[must_use]
    pub fn path(&self, id: &BlobId) -> Option<Utf8PathBuf> {
        let path = self.file(id, Form::Plain);
        path.exists().then_some(path)
    }

    /// Whether there is such a blob, sealed or not.
    #[must_use]
    pub fn contains(&self, id: &BlobId) -> bool {
        self.form(id).is_some()
    }

    /// Removes a blob; one that is not there is as good as removed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn delete(&self, id: &BlobId) -> Result<()> {
        let _names = self.names();
        for form in [Form::Plain, Form::Sealed] {
            let path = self.file(id, form);
            files::remove_if_there(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// All blobs, in no order. Reads the whole directory; blocks the thread.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn list(&self) -> Result<Vec<Stored>> {
        self.list_of(None)
    }

    /// The same without those that are sealed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn list_plain(&self) -> Result<Vec<Stored>> {
        self.list_of(Some(Form::Plain))
    }

    fn list_of(&self, only: Option<Form>) -> Result<Vec<Stored>> {
        let mut all = Vec::new();
        self.each(|stored, _, form| {
            if only.is_none_or(|only| only == form) {
                all.push(stored);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Removes all blobs that are not in `keep` and were last stored longer than `age` ago, and forgotten uploads as old
    /// as that. What is being deployed right now is protected by its age, so `age` has to be longer than the longest
    /// time between storing a blob and recording it. Blocks the thread.
    ///
    /// # Errors
    /// Those of the file system; what was removed before stays removed.
    pub fn sweep(&self, keep: &HashSet<BlobId>, age: Duration) -> Result<Swept> {
        let mut swept = Swept::default();
        self.each(|stored, path, _| {
            if keep.contains(&stored.id) {
                swept.kept += 1;
                return Ok(());
            }
            // From here to the removal nobody stores the same blob again.
            let _names = self.names();
            if is_older(path, age).map_err(io("look at", path))? {
                files::remove_if_there(path).map_err(io("remove", path))?;
                swept.removed += 1;
                swept.bytes += stored.size;
            } else {
                swept.kept += 1;
            }
            Ok(())
        })?;
        remove_older(&self.0.root.join("uploads"), age)?;
        Ok(swept)
    }

    /// Records that a blob was uploaded under a name chosen by us.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn record_upload(&self, name: &UploadName, id: &BlobId) -> Result<()> {
        let path = self.upload(name);
        files::write_atomic(&path, id.as_str().as_bytes(), 0o600).map_err(io("write", &path))
    }

    /// Which blob was uploaded under this name. Repeatable; the record goes with the garbage, or with
    /// [`Blobs::forget_upload`].
    ///
    /// # Errors
    /// [`Error::NoUpload`], those of the file system.
    pub fn uploaded(&self, name: &UploadName) -> Result<BlobId> {
        let path = self.upload(name);
        match fs_err::read_to_string(&path) {
            Ok(text) => text.parse().map_err(|error| Error::Io {
                action: "read",
                path,
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NoUpload(name.to_string()))
            }
            Err(error) => Err(io("read", path)(error)),
        }
    }

    /// Forgets an upload's name; its blob stays.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget_upload(&self, name: &UploadName) -> Result<()> {
        let path = self.upload(name);
        files::remove_if_there(&path).map_err(io("remove", path))
    }

    pub(crate) fn temporary(&self) -> Utf8PathBuf {
        self.0.root.join("tmp").join(stolos_base::ids::random_hex(12))
    }

    /// Gives a finished temporary file its name. A blob that is there already is touched instead, so that the garbage
    /// collector sees that it was wanted again.
    pub(crate) fn name(&self, temporary: &Utf8Path, id: &BlobId, form: Form) -> Result<()> {
        let path = self.file(id, form);
        let directory = path.parent().expect("a blob's file lies in a directory");
        let _names = self.names();
        if path.exists() {
            files::remove_if_there(temporary).map_err(io("remove", temporary))?;
            let now = rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            };
            let times = rustix::fs::Timestamps {
                last_access: now,
                last_modification: now,
            };
            return rustix::fs::utimensat(
                rustix::fs::CWD,
                path.as_std_path(),
                &times,
                rustix::fs::AtFlags::empty(),
            )
            .map_err(|error| io("touch", path.clone())(error.into()));
        }
        make_directory(directory)?;
        fs_err::rename(temporary, &path).map_err(io("name", &path))?;
        // The directory's own entry was made by the same store, perhaps just now.
        for directory in directory.ancestors().take(3) {
            fs_err::File::open(directory)
                .and_then(|file| file.sync_all())
                .map_err(io("sync", directory))?;
        }
        Ok(())
    }

    pub(crate) fn check_space(&self, needed: u64) -> Result<()> {
        let root = &self.0.root;
        let status =
            rustix::fs::statvfs(root.as_std_path()).map_err(|error| io("look at", root)(error.into()))?;
        let free = status.f_bavail.saturating_mul(status.f_frsize);
        let available = free.saturating_sub(self.0.options.reserve);
        if needed >= available {
            return Err(Error::Full {
                path: root.clone(),
                needed,
                available,
            });
        }
        Ok(())
    }

    pub(crate) fn form(&self, id: &BlobId) -> Option<Form> {
        [Form::Plain, Form::Sealed]
            .into_iter()
            .find(|form| self.file(id, *form).exists())
    }

    async fn open_as(&self, id: &BlobId, form: Form) -> Result<Reader> {
        let path = self.file(id, form);
        match tokio::fs::File::open(&path).await {
            Ok(file) => {
                let size = file.metadata().await.map_err(io("look at", &path))?.len();
                Ok(Reader::new(file, size))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(match self.form(id) {
                Some(Form::Plain) => Error::Form {
                    id: id.clone(),
                    actual: "not sealed",
                },
                Some(Form::Sealed) => Error::Form {
                    id: id.clone(),
                    actual: "sealed",
                },
                None => Error::NotFound(id.clone()),
            }),
            Err(error) => Err(io("open", path)(error)),
        }
    }

    async fn read_as(&self, id: &BlobId, form: Form, limit: u64) -> Result<Vec<u8>> {
        let mut reader = self.open_as(id, form).await?;
        if reader.size() > limit {
            return Err(Error::TooLarge { limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(reader.size()).unwrap_or_default());
        reader
            .read_to_end(&mut bytes)
            .await
            .map_err(io("read", self.file(id, form)))?;
        let actual = BlobId::of(&bytes);
        if actual != *id {
            return Err(Error::Damaged {
                id: id.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    /// Calls `visit` for each blob with its file.
    fn each(&self, mut visit: impl FnMut(Stored, &Utf8Path, Form) -> Result<()>) -> Result<()> {
        for first in directories(&self.0.root)? {
            for second in directories(&first)? {
                for entry in second.read_dir_utf8().map_err(io("list", &second))? {
                    let entry = entry.map_err(io("list", &second))?;
                    let name = entry.file_name();
                    let (digits, form) = match name.strip_suffix(SEALED) {
                        Some(digits) => (digits, Form::Sealed),
                        None => (name, Form::Plain),
                    };
                    let Ok(id) = digits.parse() else {
                        tracing::warn!(file = %entry.path(), "a file in the blob store is no blob");
                        continue;
                    };
                    let size = match entry.metadata() {
                        Ok(metadata) => metadata.len(),
                        // Removed meanwhile.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                        Err(error) => return Err(io("look at", entry.path())(error)),
                    };
                    visit(Stored { id, size }, entry.path(), form)?;
                }
            }
        }
        Ok(())
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upload(&self, name: &UploadName) -> Utf8PathBuf {
        self.0.root.join("uploads").join(name.as_str())
    }

    fn file(&self, id: &BlobId, form: Form) -> Utf8PathBuf {
        let digits = id.as_str();
        let suffix = match form {
            Form::Plain => "",
            Form::Sealed => SEALED,
        };
        self.0
            .root
            .join(&digits[..2])
            .join(&digits[2..4])
            .join(format!("{digits}{suffix}"))
    }
}

/// The directories below `path` whose names are two hex digits.
fn directories(path: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    for entry in path.read_dir_utf8().map_err(io("list", path))? {
        let entry = entry.map_err(io("list", path))?;
        if entry.file_name().len() == 2 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().to_owned());
        }
    }
    Ok(found)
}

fn make_directory(path: &Utf8Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("make", path))
}

/// Removes the files of a directory that were last stored longer than `age` ago.
fn remove_older(directory: &Utf8Path, age: Duration) -> Result<()> {
    for entry in directory.read_dir_utf8().map_err(io("list", directory))? {
        let entry = entry.map_err(io("list", directory))?;
        if is_older(entry.path(), age).map_err(io("look at", entry.path()))? {
            files::remove_if_there(entry.path()).map_err(io("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Whether the file was last stored longer than `age` ago.
fn is_older(path: &Utf8Path, age: Duration) -> std::io::Result<bool> {
    match fs_err::metadata(path).and_then(|metadata| metadata.modified()) {
        // A time in the future counts as new.
        Ok(stored) => Ok(stored.elapsed().is_ok_and(|elapsed| elapsed >= age)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
