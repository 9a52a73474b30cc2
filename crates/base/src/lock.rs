//! Advisory locks between processes of one host.

use std::io;

use camino::Utf8Path;
use rustix::fs::{FlockOperation, flock};

/// A held `flock`; released when dropped and, by the kernel, when the process dies.
#[derive(Debug)]
pub struct FileLock {
    _file: fs_err::File,
}

impl FileLock {
    /// Waits for the lock. Blocks the thread.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn acquire(path: &Utf8Path) -> io::Result<Self> {
        let file = open(path)?;
        loop {
            match flock(file.file(), FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        }
        Ok(Self { _file: file })
    }

    /// Takes the lock if it is free; `None` when another process holds it.
    ///
    /// # Errors
    /// When the file cannot be opened or locked for another reason.
    pub fn try_acquire(path: &Utf8Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match flock(file.file(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(path: &Utf8Path) -> io::Result<fs_err::File> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
}
