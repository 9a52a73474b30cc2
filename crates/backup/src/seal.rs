//! Objects as a stream of encrypted pieces: AES-256-GCM in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár
//! 2015), as `age` and Tink have it.
//!
//! An object is a head (`stolos-backup-1`, a line end, the key's id, a salt of 32 random bytes) and pieces of
//! [`PIECE`] bytes, the last one shorter or as long, each with its tag. The key of an object follows from backup key, salt
//! and binding (which backup, which name); the nonce is the piece's number and whether it is the last. So no key sees two
//! pieces with one nonce, pieces cannot be exchanged, and an object that was cut off or prolonged does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_blobs::objects::{ObjectName, Objects, Reader, Writer};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::error::{Error, Result};
use crate::key::BackupKey;

const MAGIC: &[u8] = b"stolos-backup-1\n";
/// Plaintext bytes of a piece.
const PIECE: usize = 256 * 1024;
const TAG: usize = 16;
const SALT: usize = 32;
/// Hex digits of a key's id.
const KEY_ID: usize = 16;
const HEAD: usize = MAGIC.len() + KEY_ID + SALT;

/// The key id in the head of an object, if that is one.
pub(crate) fn key_of(head: &[u8]) -> Option<&str> {
    let rest = head.strip_prefix(MAGIC)?;
    std::str::from_utf8(rest.get(..KEY_ID)?).ok()
}

/// Writes an object with JSON, bound to its name, and gives its size.
pub(crate) async fn write_json(
    objects: &Objects,
    name: &ObjectName,
    key: &BackupKey,
    value: &impl Serialize,
) -> Result<u64> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::Bug(error.to_string()))?;
    let mut sealer = Sealer::begin(objects, name, key, name.as_str()).await?;
    sealer.write(&bytes).await?;
    sealer.finish().await
}

/// Reads what [`write_json`] wrote, if it has at most so many bytes.
///
/// # Errors
/// [`Error::OtherKey`], [`Error::Damaged`], those of the place.
pub(crate) async fn read_json<T: DeserializeOwned>(
    objects: &Objects,
    name: &ObjectName,
    key: &BackupKey,
    largest: usize,
) -> Result<T> {
    let damaged = |problem: String| Error::Damaged {
        object: name.clone(),
        problem,
    };
    let mut opener = Opener::begin(objects, name, key, name.as_str()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = opener.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > largest {
            return Err(damaged("it is too large".to_owned()));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

struct Pieces {
    key: LessSafeKey,
    number: u64,
}

impl Pieces {
    fn new(key: &BackupKey, salt: &[u8], binding: &str) -> Self {
        let derived = key.derive(salt, binding);
        let unbound =
            UnboundKey::new(&AES_256_GCM, derived.as_ref()).expect("AES-256 takes keys of 32 bytes");
        Self {
            key: LessSafeKey::new(unbound),
            number: 0,
        }
    }

    fn nonce(&mut self, last: bool) -> Nonce {
        let mut nonce = [0_u8; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.number.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(last);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, piece: &[u8], last: bool) -> Bytes {
        let nonce = self.nonce(last);
        let mut sealed = Vec::with_capacity(piece.len() + TAG);
        sealed.extend_from_slice(piece);
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed)
            .expect("a piece is far shorter than the cipher's limit");
        sealed.into()
    }

    fn open(&mut self, mut sealed: BytesMut, last: bool) -> Option<Bytes> {
        let nonce = self.nonce(last);
        let n = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(n);
        Some(sealed.freeze())
    }
}

/// Writes an object.
pub(crate) struct Sealer {
    out: Writer,
    pieces: Pieces,
    buffer: BytesMut,
}

impl Sealer {
    pub(crate) async fn begin(
        objects: &Objects,
        name: &ObjectName,
        key: &BackupKey,
        binding: &str,
    ) -> Result<Self> {
        let mut salt = [0_u8; SALT];
        aws_lc_rs::rand::fill(&mut salt)
            .map_err(|_| Error::Bug("the operating system gives no random bytes".to_owned()))?;
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(key.id().as_str().as_bytes());
        head.extend_from_slice(&salt);
        let mut out = objects.writer(name).await?;
        out.write(head.into()).await?;
        Ok(Self {
            out,
            pieces: Pieces::new(key, &salt, binding),
            buffer: BytesMut::with_capacity(2 * PIECE),
        })
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        // The last piece is written by `finish`, so one is always kept back.
        while self.buffer.len() > PIECE {
            let piece = self.buffer.split_to(PIECE);
            let sealed = self.pieces.seal(&piece, false);
            self.out.write(sealed).await?;
        }
        Ok(())
    }

    /// Gives the object's size.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        let sealed = self.pieces.seal(&self.buffer, true);
        self.out.write(sealed).await?;
        Ok(self.out.finish().await?)
    }

    pub(crate) async fn abort(self) {
        self.out.abort().await;
    }
}

/// Reads an object.
pub(crate) struct Opener {
    objects: Objects,
    name: ObjectName,
    input: Reader,
    pieces: Pieces,
    buffer: BytesMut,
    done: bool,
}

impl Opener {
    pub(crate) async fn begin(
        objects: &Objects,
        name: &ObjectName,
        key: &BackupKey,
        binding: &str,
    ) -> Result<Self> {
        let mut input = objects.reader(name).await?;
        let mut head = Vec::with_capacity(HEAD);
        (&mut input)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .await
            .map_err(|error| objects.read_error(name, error))?;
        let damaged = |problem: &str| Error::Damaged {
            object: name.clone(),
            problem: problem.to_owned(),
        };
        let theirs = key_of(&head).ok_or_else(|| damaged("it has no head"))?;
        if theirs != key.id().as_str() {
            return Err(Error::OtherKey {
                object: name.clone(),
                theirs: theirs.to_owned(),
                ours: key.id().clone(),
            });
        }
        let salt = head
            .get(MAGIC.len() + KEY_ID..HEAD)
            .ok_or_else(|| damaged("its head is cut off"))?;
        Ok(Self {
            objects: objects.clone(),
            name: name.clone(),
            input,
            pieces: Pieces::new(key, salt, binding),
            buffer: BytesMut::with_capacity(2 * PIECE),
            done: false,
        })
    }

    /// The next bytes, authenticated; `None` after the last ones.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.done {
            return Ok(None);
        }
        // One byte more than a piece says that it is not the last one.
        while self.buffer.len() <= PIECE + TAG {
            let n = self
                .input
                .read_buf(&mut self.buffer)
                .await
                .map_err(|error| self.objects.read_error(&self.name, error))?;
            if n == 0 {
                break;
            }
        }
        let last = self.buffer.len() <= PIECE + TAG;
        let piece = self.buffer.split_to(self.buffer.len().min(PIECE + TAG));
        self.done = last;
        let number = self.pieces.number;
        self.pieces
            .open(piece, last)
            .map(Some)
            .ok_or_else(|| Error::Damaged {
                object: self.name.clone(),
                problem: format!("piece {number} does not open"),
            })
    }

    /// Hands everything to `out`, unzipped if it is to be. A reader that went away ends it: that one has the reason.
    pub(crate) async fn pump(mut self, zipped: bool, mut out: impl AsyncWrite + Unpin + Send) -> Result<()> {
        use std::io::Write as _;
        let damaged = {
            let name = self.name.clone();
            move |error: std::io::Error| Error::Damaged {
                object: name.clone(),
                problem: format!("it cannot be unzipped: {error}"),
            }
        };
        let mut unzip = flate2::write::GzDecoder::new(Vec::new());
        while let Some(bytes) = self.next().await? {
            let written = if zipped {
                unzip.write_all(&bytes).map_err(&damaged)?;
                let plain = std::mem::take(unzip.get_mut());
                out.write_all(&plain).await
            } else {
                out.write_all(&bytes).await
            };
            if written.is_err() {
                return Ok(());
            }
        }
        if zipped {
            let rest = unzip.finish().map_err(&damaged)?;
            if out.write_all(&rest).await.is_err() {
                return Ok(());
            }
        }
        // The pipe is in memory; whoever reads it has gone when this fails.
        let _ = out.shutdown().await;
        Ok(())
    }
}

/// Zips what comes and writes it into an object.
pub(crate) struct Zipper {
    zip: flate2::write::GzEncoder<Vec<u8>>,
    pub(crate) sealer: Sealer,
}

impl Zipper {
    pub(crate) fn new(sealer: Sealer) -> Self {
        Self {
            // The fastest level: dumps are repetitive, and the manager has other work.
            zip: flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()),
            sealer,
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        use std::io::Write as _;
        self.zip
            .write_all(bytes)
            .map_err(|error| Error::Bug(format!("zipping into memory failed: {error}")))?;
        if self.zip.get_ref().len() >= PIECE {
            let zipped = std::mem::take(self.zip.get_mut());
            self.sealer.write(&zipped).await?;
        }
        Ok(())
    }

    pub(crate) async fn finish(self) -> Result<u64> {
        let mut sealer = self.sealer;
        let rest = self
            .zip
            .finish()
            .map_err(|error| Error::Bug(format!("zipping into memory failed: {error}")))?;
        sealer.write(&rest).await?;
        sealer.finish().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(objects: &Objects, key: &BackupKey, name: &ObjectName, bytes: &[u8]) {
        let mut sealer = Sealer::begin(objects, name, key, name.as_str())
            .await
            .expect("begun");
        for part in bytes.chunks(100_000) {
            sealer.write(part).await.expect("written");
        }
        sealer.finish().await.expect("finished");
    }

    async fn get(objects: &Objects, key: &BackupKey, name: &ObjectName, binding: &str) -> Result<Vec<u8>> {
        let mut opener = Opener::begin(objects, name, key, binding).await?;
        let mut all = Vec::new();
        while let Some(bytes) = opener.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn what_was_written_opens_and_nothing_else_does() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let objects = Objects::directory(directory.path().join("o"));
        let key = BackupKey::new([7; 32]);
        let name: ObjectName = "a/b".parse().expect("a name");
        let other: ObjectName = "a/c".parse().expect("a name");
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 17] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            put(&objects, &key, &name, &bytes).await;
            assert!(
                get(&objects, &key, &name, "a/b").await.expect("it opens") == bytes,
                "{size}"
            );
            assert!(
                get(&objects, &key, &name, "a/c").await.is_err(),
                "bound to its name"
            );
            let stored = objects.get(&name, 1 << 30).await.expect("stored");
            let spoil = async |bytes: Vec<u8>| {
                objects.put(&other, bytes).await.expect("put");
                let error = get(&objects, &key, &other, "a/b")
                    .await
                    .expect_err("it is damaged");
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
            };
            for at in [HEAD - 1, HEAD, stored.len() - 1] {
                let mut changed = stored.clone();
                changed[at] ^= 1;
                spoil(changed).await;
            }
            for end in [0, HEAD - 1, HEAD, stored.len() - 1, HEAD + PIECE + TAG] {
                if end < stored.len() {
                    spoil(stored[..end].to_vec()).await;
                }
            }
            spoil([&stored[..], b"x"].concat()).await;
        }
        let error = get(&objects, &BackupKey::new([8; 32]), &name, "a/b")
            .await
            .expect_err("another key");
        assert!(matches!(error, Error::OtherKey { .. }), "{error}");
    }
}
