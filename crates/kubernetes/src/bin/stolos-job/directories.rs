//! The directories of local volumes on this machine's disk.
//!
//! What is removed may have been filled by anybody, as root too: no link is followed, no mount is entered, and a tree may be as deep as it likes.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// Only the node reaches volumes through here; pods are given the one below that is theirs. On the ephemeral disk the agent has made the directory
/// for the job, with rights for its own group too, which nobody in a pod has here.
const PARENT_MODE: u32 = 0o700;
/// Pods run as any user; which one is not known before they do.
const VOLUME_MODE: u32 = 0o777;
/// The names that parts of a tree get while it is being removed.
const MOVED: &str = ".stolos-removed-";
/// The kernel itself sees to it that what is emptied is no other file system, and no other place of this one.
const WITHIN: ResolveFlags = ResolveFlags::NO_XDEV
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::BENEATH);

/// Makes the directory that volumes are made in.
pub(crate) fn prepare(parent: &Utf8Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(PARENT_MODE)
        .create(parent)
}

/// Makes the directory of a volume, to stay; one that is there is as good as made.
pub(crate) fn make(path: &Utf8Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let directory = open(CWD, path.as_str(), ResolveFlags::NO_SYMLINKS)?;
    // Not by `mkdir`, whose mode is cut by the umask.
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(VOLUME_MODE))?;
    rustix::fs::fsync(&directory)?;
    // The volume's record is on another disk, and must not outlive its directory.
    rustix::fs::fsync(open(CWD, parent(path).as_str(), ResolveFlags::NO_SYMLINKS)?)?;
    Ok(())
}

/// What can still be written below, in bytes.
pub(crate) fn free(path: &Utf8Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path.as_std_path())?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The directories in the given ones. One that is not there holds none; names that are no text are none of ours.
pub(crate) fn list(parents: &[Utf8PathBuf]) -> io::Result<BTreeSet<Utf8PathBuf>> {
    let mut found = BTreeSet::new();
    for parent in parents {
        let entries = match fs_err::read_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Ok(path) = Utf8PathBuf::from_path_buf(entry.path())
            {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

/// Removes a directory if it is empty; says whether it is gone.
pub(crate) fn remove_empty(path: &Utf8Path) -> io::Result<bool> {
    match fs_err::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory and all in it; one that is not there is as good as removed, but its parent has to be there. Cut off, it goes on when it is called again.
///
/// Directories in directories are moved up before they are emptied, so neither open files nor the stack grow with the depth.
pub(crate) fn remove_tree(path: &Utf8Path) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = open(CWD, parent(path).as_str(), ResolveFlags::NO_SYMLINKS)?;
    let top = match open(&parent, name, WITHIN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        top => top.map_err(|error| in_words(&error, path))?,
    };
    let mut moved = 0_u64;
    loop {
        let mut is_empty = true;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_dots(name) {
                is_empty = false;
                remove_entry(&top, name, &mut moved)
                    .map_err(|error| in_words(&error, &path.join(name.to_string_lossy().as_ref())))?;
            }
        }
        if is_empty {
            break;
        }
    }
    Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes an entry of `top`, whose own directories become entries of `top`.
fn remove_entry(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    match rustix::fs::unlinkat(top, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let directory = open(top, name, WITHIN)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let inner = entry.file_name();
        if is_dots(inner) {
            continue;
        }
        match rustix::fs::unlinkat(&directory, inner, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(&directory, inner, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            *moved += 1;
            let free = format!("{MOVED}{moved}");
            match rustix::fs::renameat_with(&directory, inner, top, &free, RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
        // Something was moved away while the list was read: the next round sees what is left.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open(
    at: impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(at, path, flags, Mode::empty(), resolve)?)
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn parent(path: &Utf8Path) -> &Utf8Path {
    path.parent().unwrap_or(path)
}

fn in_words(error: &io::Error, path: &Utf8Path) -> io::Error {
    let why = match Errno::from_io_error(error) {
        Some(Errno::XDEV | Errno::BUSY) => "something is mounted there".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("`{path}`: {why}"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Utf8Path) -> u32 {
        fs_err::metadata(path).expect("a directory").permissions().mode() & 0o7777
    }

    #[test]
    fn a_volume_is_writable_for_everybody_who_gets_there() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let parent = dir.path().join("local-volumes");
        let volume = parent.join("pvc-1");
        for _ in 0..2 {
            prepare(&parent).expect("prepared");
            make(&volume).expect("made");
        }
        assert_eq!((mode(&parent), mode(&volume)), (0o700, 0o777));
        assert!(free(&volume).expect("statvfs") > 0);
        let there = list(&[dir.path().join("nothing"), parent.clone()]).expect("listed");
        assert_eq!(there, BTreeSet::from([volume.clone()]));
        fs_err::write(volume.join("a"), b"a").expect("a file");
        assert!(!remove_empty(&volume).expect("looked"), "it has a file");
        fs_err::remove_file(volume.join("a")).expect("removed");
        assert!(remove_empty(&volume).expect("removed"));
        assert!(remove_empty(&volume).expect("nothing to do"));
        assert!(make(&parent.join("no/parent")).is_err());
    }

    #[test]
    fn a_tree_is_removed_whatever_it_holds_and_nothing_else() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let outside = dir.path().join("outside");
        fs_err::create_dir(&outside).expect("a directory");
        fs_err::write(outside.join("kept"), b"kept").expect("a file");
        let volume = dir.path().join("pvc-1");
        fs_err::create_dir_all(volume.join("a/b/c")).expect("directories");
        for link in ["link", "a/link", "a/b/link"] {
            symlink(&outside, volume.join(link)).expect("a link");
        }
        symlink(outside.join("kept"), volume.join("a/b/c/file-link")).expect("a link");
        // Names that we would use ourselves, and one that is no text.
        fs_err::create_dir_all(volume.join(".stolos-removed-1/x/y")).expect("directories");
        fs_err::write(volume.join(".stolos-removed-2"), b"").expect("a file");
        fs_err::write(volume.as_std_path().join(OsStr::from_bytes(b"\xff")), b"").expect("a file");
        fs_err::set_permissions(volume.join("a/b"), PermissionsExt::from_mode(0o000)).expect("a mode");
        // Deeper than open files or a stack go.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut deep = rustix::fs::open(volume.as_std_path(), flags, Mode::empty()).expect("open");
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&deep, "d", Mode::from_raw_mode(0o755)).expect("a directory");
            deep = rustix::fs::openat(&deep, "d", flags, Mode::empty()).expect("open");
        }
        drop(deep);
        for _ in 0..2 {
            remove_tree(&volume).expect("removed");
            assert!(!volume.exists());
        }
        assert_eq!(fs_err::read(outside.join("kept")).expect("the file"), b"kept");
    }

    #[test]
    fn a_link_in_place_of_a_volume_is_not_followed() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let outside = dir.path().join("outside");
        fs_err::create_dir_all(outside.join("kept")).expect("a directory");
        let volume = dir.path().join("pvc-1");
        symlink(&outside, &volume).expect("a link");
        assert!(remove_tree(&volume).is_err());
        assert!(make(&volume).is_err());
        assert!(outside.join("kept").is_dir());
    }
}
