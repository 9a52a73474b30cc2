//! kubectl's lock of a kubeconfig: an empty file `NAME.lock` beside it, made with `O_EXCL` and removed afterwards (client-go,
//! `clientcmd.ModifyConfig`).
//!
//! kubectl fails at once where such a file is; we wait for a while. Nobody can tell a lock that was left behind from one that is
//! held, so we never remove one that we did not make.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use stolos_base::files;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::output;

/// How long a lock is waited for: others hold it for milliseconds; fifty of us after each other need seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is tried.
const AGAIN: Duration = Duration::from_millis(10);
/// When a person who waits is told for what.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// Does `work` while the locks of all files are held, as kubectl holds them. Signals that end a process wait until the locks are
/// given back.
///
/// # Errors
/// When a lock cannot be had, the waiting was interrupted, or that of `work`.
pub(super) async fn holding<T>(
    files: &[Utf8PathBuf],
    patience: Duration,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let names = names(files)?;
    let mut ending = Ending::listen()?;
    let mut held = Vec::new();
    for name in names {
        let lock = tokio::select! {
            lock = take(&name, patience) => lock?,
            () = ending.wanted() => {
                return Err(Failure::user(format!("interrupted while waiting for the lock `{name}`; nothing was changed")));
            }
        };
        held.extend(lock);
    }
    work()
}

/// The lock files: kubectl's, and those that kubectl takes when it is given what a link leads to. In an order of their own, so
/// that two of us cannot wait for each other whatever the files are called.
fn names(files: &[Utf8PathBuf]) -> Result<Vec<Utf8PathBuf>, Failure> {
    let failed = |path: &Utf8Path, error: std::io::Error| {
        Failure::user(format!("failed to find the kubeconfig `{path}`: {error}"))
    };
    let mut names = std::collections::BTreeMap::new();
    for path in files {
        let target = files::target(path).map_err(|error| failed(path, error))?;
        for path in [path.clone(), target] {
            let (Some(name), Some(directory)) = (path.file_name(), path.parent()) else {
                continue;
            };
            let directory = if directory == "" {
                Utf8Path::new(".")
            } else {
                directory
            };
            let Ok(directory) = directory.canonicalize_utf8() else {
                // Where there is no directory there is no file to lock.
                continue;
            };
            names.insert(
                directory.join(format!("{name}.lock")),
                Utf8PathBuf::from(format!("{path}.lock")),
            );
        }
    }
    Ok(names.into_values().collect())
}

/// Waits for a lock. `None` where no lock can be made: whoever cannot make one cannot change the file beside it either.
async fn take(name: &Utf8Path, patience: Duration) -> Result<Option<Lock>, Failure> {
    let start = Instant::now();
    let mut told = false;
    loop {
        // As kubectl makes it: empty, for nobody to read or write.
        let made = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0)
            .open(name);
        match made {
            Ok(_) => return Ok(Some(Lock(name.to_owned()))),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Failure::user(format!("failed to lock the kubeconfig: {error}"))),
        }
        if start.elapsed() > patience {
            return Err(Failure::user(format!(
                "the kubeconfig is locked: `{name}` has been there for {} s",
                start.elapsed().as_secs()
            ))
            .hint(
                "If no kubectl is at work, one that was interrupted has left the file behind: remove it.",
            ));
        }
        if !told && start.elapsed() > TOLD_AFTER {
            output::note(&format!("Waiting for kubectl, which holds `{name}`."));
            told = true;
        }
        sleep(AGAIN).await;
    }
}

/// A lock of ours; given back when dropped.
struct Lock(Utf8PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = files::remove_if_there(&self.0) {
            output::note(&format!("warning: the lock stays behind: {error}"));
        }
    }
}

/// Signals that would end the process.
struct Ending([Signal; 3]);

impl Ending {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::ours(format!("failed to listen for signals: {error}")))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn wanted(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
