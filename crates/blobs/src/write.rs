//! Writing a blob of which neither size nor digest need to be known.

use aws_lc_rs::digest;
use camino::Utf8PathBuf;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use stolos_base::files;
use tokio::io::AsyncWriteExt as _;

use crate::error::{Error, Result, io};
use crate::id::BlobId;
use crate::store::{Blobs, CHUNK, Form, Stored};

/// How many bytes are written between two looks at the free space.
const SPACE_CHECK: u64 = 64 * 1024 * 1024;

/// A blob that is being written. Dropped before [`Writer::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    blobs: Blobs,
    path: Utf8PathBuf,
    file: tokio::io::BufWriter<tokio::fs::File>,
    digest: Digest,
    size: u64,
    limit: u64,
    unchecked: u64,
}

struct Digest(digest::Context);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest")
    }
}

impl Writer {
    pub(crate) fn new(blobs: Blobs, limit: u64) -> Result<Self> {
        let path = blobs.temporary();
        let file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("make", &path))?;
        let file = tokio::fs::File::from_std(file.into_parts().0);
        Ok(Self {
            blobs,
            path,
            file: tokio::io::BufWriter::with_capacity(CHUNK, file),
            digest: Digest(digest::Context::new(&digest::SHA256)),
            size: 0,
            limit,
            unchecked: 0,
        })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Full`], those of the file system.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let n = bytes.len() as u64;
        if self.size.saturating_add(n) > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.unchecked += n;
        if self.unchecked >= SPACE_CHECK {
            self.blobs.check_space(n)?;
            self.unchecked = 0;
        }
        self.file
            .write_all(bytes)
            .await
            .map_err(io("write", &self.path))?;
        self.digest.0.update(bytes);
        self.size += n;
        Ok(())
    }

    /// Makes the blob durable under its id. With `expected`, bytes of another digest are refused.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Full`], those of the file system.
    pub async fn finish(self, expected: Option<&BlobId>) -> Result<Stored> {
        self.finish_as(expected, Form::Plain).await
    }

    pub(crate) async fn finish_as(mut self, expected: Option<&BlobId>, form: Form) -> Result<Stored> {
        let actual = BlobId::from_digest(self.digest.0.clone().finish());
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(Error::Mismatch {
                expected: expected.clone(),
                actual,
            });
        }
        self.file.flush().await.map_err(io("write", &self.path))?;
        self.file
            .get_ref()
            .sync_all()
            .await
            .map_err(io("sync", &self.path))?;
        let (blobs, path, id) = (self.blobs.clone(), self.path.clone(), actual.clone());
        tokio::task::spawn_blocking(move || blobs.name(&path, &id, form))
            .await
            .expect("naming a blob does not panic")?;
        Ok(Stored {
            id: actual,
            size: self.size,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` the file has another name and this finds nothing.
        if let Err(error) = files::remove_if_there(&self.path) {
            tracing::warn!(path = %self.path, %error, "failed to remove an unfinished blob");
        }
    }
}
