//! Files that are either whole or not there.

use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// Writes `bytes` to `path` by way of a temporary neighbour, `fsync` and `rename`, then syncs the directory, so that
/// after a crash at any instant the file holds either the old or the new content.
///
/// # Errors
/// Any error of the file system; the old file is untouched then.
pub fn write_atomic(path: &Utf8Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, bytes, mode, None)
}

/// Writes a file of a person, who may have put a symbolic link in its place: the file at the end of the links changes, as it would
/// with an editor, and the links stay. Mode and owner stay as well; a new file gets `new_mode`. The change is as atomic as that of
/// [`write_atomic`], except where a new file cannot take the place of the old one (a mount point, a device, another hard link, an
/// owner that only root can give): there the file is written in place.
///
/// # Errors
/// Any error of the file system, such as links that form a circle or end in a directory that is not there; the old file is
/// untouched then, unless writing in place failed half-way.
pub fn write_through(path: &Utf8Path, bytes: &[u8], new_mode: u32) -> io::Result<()> {
    // The kernel follows the links first, because it refuses circles and links that others planted in a shared directory.
    let old = match fs_err::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return replace(&target(path)?, bytes, new_mode, None);
        }
        Err(error) => return Err(error),
    };
    let path = target(path)?;
    if !old.is_file() || old.nlink() > 1 {
        return write_in_place(&path, bytes);
    }
    let owner = Owner {
        user: old.uid(),
        group: old.gid(),
    };
    match replace(&path, bytes, old.mode() & 0o7777, Some(owner)) {
        // EBUSY is a file that something is mounted on; EPERM, one that belongs to somebody else.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied
            ) =>
        {
            write_in_place(&path, bytes)
        }
        done => done,
    }
}

/// The file that a path names in the end: the path itself, or where its links lead. It need not exist.
///
/// # Errors
/// When the links form a circle, or cannot be read.
pub fn target(path: &Utf8Path) -> io::Result<Utf8PathBuf> {
    /// As many as the kernel follows.
    const MOST_LINKS: u32 = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let is_link = match fs_err::symlink_metadata(&path) {
            Ok(metadata) => metadata.is_symlink(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !is_link {
            return Ok(path);
        }
        let link = Utf8PathBuf::try_from(fs_err::read_link(&path)?).map_err(io::Error::other)?;
        path = directory_of(&path).join(link);
    }
    Err(rustix::io::Errno::LOOP.into())
}

#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

fn replace(path: &Utf8Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let parent = directory_of(path);
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
        if let Some(owner) = owner {
            let new = file.metadata()?;
            let user = (new.uid() != owner.user).then_some(owner.user);
            let group = (new.gid() != owner.group).then_some(owner.group);
            if user.is_some() || group.is_some() {
                std::os::unix::fs::fchown(file.file(), user, group)?;
            }
        }
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

fn write_in_place(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs_err::OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    // A device has nothing to sync.
    match file.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// The directory that a file lies in; of a bare name, the current one.
fn directory_of(path: &Utf8Path) -> &Utf8Path {
    match path.parent() {
        Some(parent) if !parent.as_str().is_empty() => parent,
        _ => Utf8Path::new("."),
    }
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
    /// `get-credentials` put a file in the place of a link to a dotfiles repository: the repository never saw the change.
    #[test]
    fn write_through_changes_what_a_link_leads_to() {
        use fs_err::os::unix::fs::symlink;
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let (real, first, second) = (
            dir.path().join("dotfiles/config"),
            dir.path().join("first"),
            dir.path().join("second"),
        );
        fs_err::create_dir(dir.path().join("dotfiles")).expect("a directory");
        // A chain whose last link is relative and leads nowhere yet.
        symlink("dotfiles/config", &second).expect("a link");
        symlink(&second, &first).expect("a link");
        write_through(&first, b"one", 0o600).expect("a dangling link");
        let mode = |path: &Utf8Path| fs_err::metadata(path).expect("metadata").permissions().mode() & 0o7777;
        assert_eq!(
            (fs_err::read(&real).expect("the file").as_slice(), mode(&real)),
            (&b"one"[..], 0o600)
        );

        fs_err::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).expect("a mode");
        write_through(&first, b"two", 0o600).expect("a link to a file");
        assert_eq!(
            (fs_err::read(&real).expect("the file").as_slice(), mode(&real)),
            (&b"two"[..], 0o640)
        );
        for link in [&first, &second] {
            assert!(
                fs_err::symlink_metadata(link).expect("metadata").is_symlink(),
                "{link}"
            );
        }
        let names = |path: &str| {
            fs_err::read_dir(dir.path().join(path))
                .expect("a directory")
                .count()
        };
        assert_eq!((names("dotfiles"), names("")), (1, 3), "no temporary file stays");

        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        symlink(&here, &there).expect("a link");
        symlink(&there, &here).expect("a link");
        let error = write_through(&here, b"x", 0o600)
            .expect_err("a circle")
            .to_string();
        assert!(error.contains("symbolic links"), "{error}");
    }

    #[test]
    fn write_through_keeps_what_cannot_be_replaced() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs_err::write(&one, "a long old text").expect("a file");
        fs_err::hard_link(&one, &other).expect("a second name");
        write_through(&one, b"new", 0o600).expect("a file with two names");
        assert_eq!(fs_err::read(&other).expect("the file"), b"new");
        // Root once had a file in place of the null device.
        write_through(Utf8Path::new("/dev/null"), b"new", 0o600).expect("a device");
        let null = fs_err::metadata("/dev/null").expect("metadata");
        assert!(!null.is_file());
    }

    #[test]
    fn a_bare_name_is_a_file_of_the_current_directory() {
        assert_eq!(directory_of(Utf8Path::new("config")), ".");
        assert_eq!(directory_of(Utf8Path::new("a/config")), "a");
        assert_eq!(directory_of(Utf8Path::new("/config")), "/");
    }
}
