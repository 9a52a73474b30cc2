//! Log files of processes.
//!
//! Processes write to their files themselves (appending), so init can never block on a pipe or a full disk. A file that
//! has grown past its cap is copied aside and truncated; lines written between the two are lost, which is the price.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The size at which a file is rotated.
pub(crate) const CAP: u64 = 10 * 1024 * 1024;
/// How many old files are kept.
const KEPT: u32 = 2;

/// Opens a log file for a process.
pub(crate) fn open(path: &str) -> io::Result<File> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Rotates a file that is larger than the cap.
pub(crate) fn rotate(path: &str, cap: u64) -> io::Result<()> {
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    if meta.len() <= cap {
        return Ok(());
    }
    for n in (1..KEPT).rev() {
        let _ = fs::rename(old(path, n), old(path, n + 1));
    }
    // On a full disk the copy fails; then what is old goes rather than the machine.
    if fs::copy(path, old(path, 1)).is_err() {
        let _ = fs::remove_file(old(path, 1));
    }
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

fn old(path: &str, n: u32) -> PathBuf {
    PathBuf::from(format!("{path}.{n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_rotated_and_old_ones_are_capped() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log").to_string();
        for round in 0..5 {
            fs::write(&path, format!("{round}").repeat(200)).expect("a log");
            rotate(&path, 100).expect("rotated");
            assert_eq!(fs::metadata(&path).expect("the log").len(), 0);
        }
        assert_eq!(fs::read_to_string(old(&path, 1)).expect("the newest old one"), "4".repeat(200));
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 3, "the log and two old ones");
        fs::write(&path, "small").expect("a log");
        rotate(&path, 100).expect("nothing to do");
        assert_eq!(fs::read_to_string(&path).expect("the log"), "small");
    }
}
