//! The backup key: 32 random bytes in a file of mode 0600. Losing it means losing every backup.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use aws_lc_rs::{digest, hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::Utf8Path;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use serde::{Deserialize, Serialize};
use stolos_base::Secret;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// What the file begins with; the number is the format's.
const PREFIX: &str = "stolos-backup-key-1 ";

/// Which key it is; says nothing about its bytes. Sixteen hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key. Wiped when dropped, never shown.
#[derive(Clone, Debug)]
pub struct BackupKey {
    bytes: Secret<[u8; 32]>,
    id: KeyId,
}

/// Whether the file was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was.
    Before,
    /// It was made just now: people should be told where it is.
    Now,
}

impl BackupKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"stolos backup key id 1");
        context.update(&bytes);
        let id = hex::encode(&context.finish().as_ref()[..8]);
        Self {
            bytes: Secret::new(bytes),
            id: KeyId(id),
        }
    }

    /// Which key it is.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Reads the file; makes it where it is missing.
    ///
    /// # Errors
    /// [`Error::Key`], also when others than the owner may read it.
    pub fn load_or_create(path: &Utf8Path) -> Result<(Self, Made)> {
        match Self::load(path) {
            Err(_) if !path.exists() => {
                create(path).map_err(|error| wrong(path, error.to_string()))?;
                Ok((Self::load(path)?, Made::Now))
            }
            other => Ok((other?, Made::Before)),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// As [`BackupKey::load_or_create`], also when there is none.
    pub fn load(path: &Utf8Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| wrong(path, error.to_string()))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(wrong(
                path,
                "others than its owner may use it; set its mode to 0600",
            ));
        }
        let text = std::fs::read(path).map_err(|error| wrong(path, error.to_string()))?;
        let text = Zeroizing::new(text);
        let text = std::str::from_utf8(&text).map_err(|_| wrong(path, "it is no text"))?;
        let encoded = text
            .trim_end()
            .strip_prefix(PREFIX)
            .ok_or_else(|| wrong(path, "it has another format"))?;
        let bytes = Zeroizing::new(
            STANDARD
                .decode(encoded)
                .map_err(|_| wrong(path, "it is no base64"))?,
        );
        let bytes: [u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| wrong(path, "it has another length"))?;
        Ok(Self::new(bytes))
    }

    /// A key for one object: `salt` is the object's, `binding` says what the object is.
    pub(crate) fn derive(&self, salt: &[u8], binding: &str) -> Zeroizing<[u8; 32]> {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(self.bytes.expose());
        let info = [b"stolos backup object 1".as_slice(), binding.as_bytes()];
        let mut derived = Zeroizing::new([0_u8; 32]);
        prk.expand(&info, Length)
            .and_then(|okm| okm.fill(derived.as_mut()))
            .expect("HKDF gives 32 bytes");
        derived
    }

    /// The name of a blob in the place. Only who has the key can tell which blob it is.
    pub(crate) fn name(&self, blob: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.bytes.expose());
        let tag = hmac::sign(&key, format!("stolos backup blob 1 {blob}").as_bytes());
        hex::encode(&tag.as_ref()[..20])
    }
}

fn wrong(path: &Utf8Path, problem: impl Into<String>) -> Error {
    Error::Key {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

fn create(path: &Utf8Path) -> io::Result<()> {
    use std::io::Write as _;
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no parent directory"))?;
    let mut bytes = Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| io::Error::other("there is no randomness"))?;
    let text = Zeroizing::new(format!("{PREFIX}{}\n", STANDARD.encode(bytes.as_ref())));
    let temporary = parent.join(format!(".backup-key.{}", stolos_base::ids::random_hex(4)));
    let written = (|| {
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link, unlike a rename, never replaces a key that somebody else has made meanwhile.
        match fs_err::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    stolos_base::files::remove_if_there(&temporary)?;
    written?;
    fs_err::File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_guarded_and_never_shown() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backup.key");
        assert!(BackupKey::load(&path).is_err());
        let (first, made) = BackupKey::load_or_create(&path).expect("a key");
        assert_eq!(made, Made::Now);
        let (again, made) = BackupKey::load_or_create(&path).expect("a key");
        assert_eq!((again.id(), made), (first.id(), Made::Before));
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).expect("a file");
        let secret = text.trim().strip_prefix(PREFIX).expect("the format");
        assert!(!format!("{first:?}").contains(secret));
        assert_ne!(first.derive(&[1], "a"), first.derive(&[1], "b"));
        assert_ne!(first.derive(&[1], "a"), first.derive(&[2], "a"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("a mode");
        let error = BackupKey::load_or_create(&path).expect_err("others may read it");
        assert!(error.to_string().contains("others than its owner"), "{error}");
    }
}
