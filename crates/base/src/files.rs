//! Files that are either whole or not there.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// Writes `bytes` to `path` by way of a temporary neighbour, `fsync` and `rename`, then syncs the directory, so that
/// after a crash at any instant the file holds either the old or the new content.
///
/// # Errors
/// Any error of the file system; the old file is untouched then.
pub fn write_atomic(path: &Utf8Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no parent directory"))?;
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("the path has no file name"))?;
    let temporary: Utf8PathBuf = parent.join(format!(".{name}.{}", crate::ids::random_hex(4)));
    let result = (|| {
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        // The mode above is subject to the umask; secrets and sockets rely on the exact one.
        file.file()
            .set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs_err::rename(&temporary, path)?;
        fs_err::File::open(parent)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs_err::remove_file(&temporary);
    }
    result
}

/// Serializes `value` as pretty JSON with a final newline and writes it with [`write_atomic`].
///
/// # Errors
/// Any error of the file system or of serialization.
pub fn write_json<T: serde::Serialize>(path: &Utf8Path, value: &T, mode: u32) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write_atomic(path, &bytes, mode)
}

/// Reads a JSON file; `None` where there is no such file.
///
/// # Errors
/// Any other error of the file system, or content that is not of the type.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> io::Result<Option<T>> {
    match fs_err::read(path) {
        Ok(bytes) => stolos_document::from_json(&bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("`{path}`: {error}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file; one that is not there is as good as removed.
///
/// # Errors
/// Any other error of the file system.
pub fn remove_if_there(path: &Utf8Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it; one that is not there is as good as removed.
///
/// # Errors
/// Any other error of the file system.
pub fn remove_tree_if_there(path: &Utf8Path) -> io::Result<()> {
    match fs_err::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_sets_the_mode() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a");
        write_atomic(&path, b"one", 0o600).expect("the first write");
        write_atomic(&path, b"two", 0o600).expect("the second write");
        assert_eq!(fs_err::read(&path).expect("the file"), b"two");
        assert_eq!(
            fs_err::metadata(&path).expect("metadata").permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs_err::read_dir(dir.path()).expect("the directory").count(),
            1,
            "no temporary file stays"
        );
    }
}
