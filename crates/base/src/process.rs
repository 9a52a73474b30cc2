//! Processes by identity: a process id alone may be somebody else's tomorrow.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::files;

/// A process: its id and when it was started. Both together are not used twice on one boot of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// Clock ticks since the boot of the host at which it was started (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

impl Process {
    /// The process that has this id now; `None` when there is none, or only its zombie.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command is in parentheses and may hold anything, parentheses and blanks included.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self {
            pid,
            started: fields.nth(18)?.parse().ok()?,
        })
    }

    /// Reads a record that [`Process::record`] wrote; `None` when there is none or the process is gone.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn recorded(path: &Utf8Path) -> io::Result<Option<Self>> {
        Ok(files::read_json::<Self>(path)?.filter(Self::is_alive))
    }

    /// Records the process in a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self, path: &Utf8Path) -> io::Result<()> {
        files::write_json(path, self, 0o644)
    }

    /// Whether exactly this process is there and no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends a signal, if it is still this process.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) else {
            return Ok(());
        };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end (SIGTERM) and ends it (SIGKILL) when it has not after `patience`. Blocks the thread.
    ///
    /// # Errors
    /// When it may not be signalled, or is there even after SIGKILL.
    pub fn end(&self, patience: Duration) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if self.wait_gone(patience) {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        if self.wait_gone(Duration::from_secs(10)) {
            Ok(())
        } else {
            Err(io::Error::other(format!(
                "process {} is still there after SIGKILL",
                self.pid
            )))
        }
    }

    fn wait_gone(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            if !self.is_alive() {
                return true;
            }
            if start.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts a process that outlives this one: in a session of its own, without our standard streams. Its output is appended
/// to `log`.
///
/// # Errors
/// When the log cannot be opened or the program not started.
pub fn spawn_detached(command: &mut Command, log: &Utf8Path) -> io::Result<Process> {
    if let Some(parent) = log.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let out = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)?
        .into_file();
    let errors = out.try_clone()?;
    command.stdin(Stdio::null()).stdout(out).stderr(errors);
    set_session(command);
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Process::of(pid).ok_or_else(|| io::Error::other(format!("it ended at once; see `{log}`")))
}

/// Makes `command` start in a session of its own, so that signals to our terminal or process group do not reach it.
#[expect(unsafe_code, reason = "setsid has to be called between fork and exec")]
pub fn set_session(command: &mut Command) {
    // SAFETY: the closure runs in the forked child before exec and calls only setsid, which is async-signal-safe and
    // touches no memory of ours. JUSTIFICATION: std has no stable way to start a child in a new session.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

/// How many files a process of ours opens at most. Programs that we start inherit the limit, and some go through all numbers
/// below it when they start; a million of them takes seconds, a billion (some container runtimes') minutes.
const MOST_OPEN_FILES: u64 = 65_536;

/// Raises the soft limit of open files to the hard one, or to 65,536 where that is less; what it is then.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(MOST_OPEN_FILES);
    if current >= wanted {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, wanted, current, "failed to raise the limit of open files");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_id_and_start() {
        let me = Process::of(i32::try_from(std::process::id()).expect("a pid")).expect("this process");
        assert!(me.is_alive());
        assert!(
            !Process {
                started: me.started + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_detached_process_is_ended() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sleep");
        command.arg("600");
        let process = spawn_detached(&mut command, &dir.path().join("log")).expect("a process");
        let file = dir.path().join("pid");
        process.record(&file).expect("a record");
        assert_eq!(Process::recorded(&file).expect("a record"), Some(process));
        // Our own child stays a zombie after its end, which counts as gone.
        process.end(Duration::from_secs(5)).expect("ended");
        assert_eq!(Process::recorded(&file).expect("a record"), None);
    }
}
