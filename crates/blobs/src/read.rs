//! Reading a blob as a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use tokio::io::{AsyncRead, ReadBuf};

use crate::error::Error;
use crate::id::BlobId;

/// The bytes of a blob. A verifying one gives an error in place of the last bytes when they are not what was stored.
pub struct Reader {
    file: tokio::fs::File,
    size: u64,
    check: Option<Check>,
}

struct Check {
    id: BlobId,
    digest: digest::Context,
    /// Bytes still to come.
    left: u64,
}

impl Reader {
    pub(crate) fn new(mut file: tokio::fs::File, size: u64) -> Self {
        file.set_max_buf_size(crate::store::CHUNK);
        Self {
            file,
            size,
            check: None,
        }
    }

    pub(crate) fn verified(mut self, id: BlobId) -> Self {
        self.check = Some(Check {
            id,
            digest: digest::Context::new(&digest::SHA256),
            left: self.size,
        });
        self
    }

    /// How many bytes there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.file).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        let Some(check) = &mut self.check else {
            return Poll::Ready(Ok(()));
        };
        check.digest.update(new);
        check.left = check.left.saturating_sub(new.len() as u64);
        // At the last bytes, or when the file has become shorter.
        if check.left == 0 || new.is_empty() {
            let check = self.check.take().expect("it was there just now");
            let actual = BlobId::from_digest(check.digest.finish());
            if actual != check.id {
                buf.set_filled(before);
                let error = Error::Damaged { id: check.id, actual };
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
        Poll::Ready(Ok(()))
    }
}
