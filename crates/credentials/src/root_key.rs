//! The root key: 32 random bytes in a file of mode 0600. Losing it means losing every secret.
//!
//! It encrypts nothing but the data keys in the database, so it can be replaced by wrapping those anew.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::Utf8Path;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use stolos_base::ids::random_hex;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// What the file begins with; the number is the format's.
const PREFIX: &str = "stolos-root-key-1 ";
/// Bytes of the key.
const LENGTH: usize = 32;

/// The key. Wiped when dropped, never shown.
#[derive(Clone)]
pub struct RootKey(Zeroizing<[u8; LENGTH]>);

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(<redacted>)")
    }
}

impl RootKey {
    /// A key that is in no file yet.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0_u8; LENGTH]);
        aws_lc_rs::rand::fill(bytes.as_mut()).expect("the operating system gives random bytes");
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

/// Reads the root key; makes it where the file is missing. Two callers at once get the same key, and after a crash the
/// file is whole or not there.
///
/// # Errors
/// [`Error::RootKeyFile`], [`Error::RootKeyFormat`] (also when others than the owner may read it).
pub fn load_or_create(path: &Utf8Path) -> Result<RootKey> {
    match load(path) {
        Err(Error::RootKeyFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|source| file(path, source))?;
            load(path)
        }
        other => other,
    }
}

/// Reads the root key.
///
/// # Errors
/// As [`load_or_create`]; a missing file is [`Error::RootKeyFile`].
pub fn load(path: &Utf8Path) -> Result<RootKey> {
    let format = |rule| Error::RootKeyFormat {
        path: path.to_owned(),
        rule,
    };
    let metadata = fs_err::metadata(path).map_err(|source| file(path, source))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format("others than its owner may use it, so it is not secret"));
    }
    let text = Zeroizing::new(fs_err::read(path).map_err(|source| file(path, source))?);
    let text = std::str::from_utf8(&text).map_err(|_| format("it is no text"))?;
    let encoded = text
        .trim_end()
        .strip_prefix(PREFIX)
        .ok_or_else(|| format("it has another format"))?;
    let decoded = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| format("it is no base64"))?);
    let bytes = decoded
        .as_slice()
        .try_into()
        .map_err(|_| format("it has another length"))?;
    Ok(RootKey(Zeroizing::new(bytes)))
}

fn create(path: &Utf8Path) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no parent directory"))?;
    fs_err::create_dir_all(parent)?;
    let temporary = parent.join(format!(".root-key.{}", random_hex(4)));
    let key = RootKey::random();
    let text = Zeroizing::new(format!("{PREFIX}{}\n", STANDARD.encode(key.bytes())));
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
    fs_err::remove_file(&temporary)?;
    written?;
    fs_err::File::open(parent)?.sync_all()
}

fn file(path: &Utf8Path, source: io::Error) -> Error {
    Error::RootKeyFile {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_guarded() {
        let directory = camino_tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("a/root.key");
        let first = load_or_create(&path).expect("a new key");
        let mode = fs_err::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            first.bytes(),
            load_or_create(&path).expect("the same key").bytes()
        );
        assert_eq!(
            fs_err::read_dir(directory.path().join("a"))
                .expect("the directory")
                .count(),
            1
        );
        assert!(!format!("{first:?}").contains(&STANDARD.encode(first.bytes())));

        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("a mode");
        let error = load(&path).expect_err("others may read it");
        assert!(error.to_string().contains("others than its owner"), "{error}");
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        fs_err::write(&path, "stolos-root-key-1 aGk=\n").expect("a wrong key");
        assert!(matches!(load(&path), Err(Error::RootKeyFormat { .. })));
    }
}
