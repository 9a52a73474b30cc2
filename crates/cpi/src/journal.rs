//! The directory of one call: what is asked, by which process, what it answered.
//!
//! The lock is the truth about running: the file `lock` is held (`flock`) by whoever starts the call and, inherited as
//! standard input, by the wrapper that runs the CPI. So it is free exactly when nobody works on the call, whoever died.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use stolos_base::files;
use stolos_base::process::Process;

use crate::wire::{Request, Response};

/// How much of the error output an error shows, in bytes.
const STDERR_SHOWN: u64 = 2048;
/// Between two looks at a session that is being ended.
const PAUSE: Duration = Duration::from_millis(5);

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The process has been or is about to be started.
    Started,
    /// The reply is there.
    Done,
    /// The process was ended after the limit.
    TimedOut,
    /// The process was ended because somebody said so.
    Cancelled,
    /// The process ended without a reply.
    Died,
}

/// `status.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) method: String,
    pub(crate) state: State,
    pub(crate) attempt: u32,
    /// The leader of the call's session.
    #[serde(default)]
    pub(crate) process: Option<Process>,
}

/// What to do about a call.
#[derive(Debug)]
pub(crate) enum Begin {
    /// It was answered before.
    Replied(Response),
    /// Somebody works on it.
    Busy,
    /// It is to be started; the file is the held lock.
    Start(File, Status),
}

/// The directory of one call.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dir: Utf8PathBuf,
}

impl Entry {
    pub(crate) fn new(calls: &Utf8Path, id: &str) -> Self {
        Self { dir: calls.join(id) }
    }

    pub(crate) fn status(&self) -> io::Result<Option<Status>> {
        files::read_json(&self.dir.join("status.json"))
    }

    pub(crate) fn set_status(&self, status: &Status) -> io::Result<()> {
        files::write_json(&self.dir.join("status.json"), status, 0o600)
    }

    /// Takes the lock if nobody has it, and with it the decision what to do. A good reply is the reply for ever; a bad one is
    /// one only for those who waited for it (`waited`), and the call is made again for others. For [`Begin::Start`] the
    /// request is on disk.
    pub(crate) fn begin(&self, request: &Request, waited: bool) -> io::Result<Begin> {
        fs_err::create_dir_all(&self.dir)?;
        let Some(lock) = self.lock()? else {
            return Ok(Begin::Busy);
        };
        let before = self.status()?;
        if let Some(before) = before.as_ref().filter(|before| before.method != request.method) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the id of the call was used for `{}` before", before.method),
            ));
        }
        if let Some(Ok(reply)) = self.reply()?
            && (reply.error.is_none() || waited)
        {
            self.forget_request()?;
            return Ok(Begin::Replied(reply));
        }
        let status = Status {
            method: request.method.clone(),
            state: State::Started,
            attempt: before.map_or(1, |before| before.attempt + 1),
            process: None,
        };
        files::remove_if_there(&self.dir.join("reply.json"))?;
        self.set_status(&status)?;
        files::write_json(&self.dir.join("request.json"), request, 0o600)?;
        Ok(Begin::Start(lock, status))
    }

    /// The lock, unless somebody has it.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.dir.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The reply: absent, valid, or text that is none.
    pub(crate) fn reply(&self) -> io::Result<Option<Result<Response, String>>> {
        match fs_err::read(self.dir.join("reply.json")) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the request, which may hold secrets. The wrapper does so too; this is for calls whose wrapper was killed.
    pub(crate) fn forget_request(&self) -> io::Result<()> {
        files::remove_if_there(&self.dir.join("request.json"))
    }

    /// The end of the CPI's error output, empty where there is none.
    pub(crate) fn stderr_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.dir.join("stderr.log"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(STDERR_SHOWN)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// Ends every process of the call's session with SIGKILL.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match self.status()?.and_then(|status| status.process) {
            Some(leader) => kill_session(leader),
            None => Ok(()),
        }
    }
}

/// Ends all processes of the session that `leader` leads or led. Repeats until none is left, because a process may fork
/// while the list is read. Blocks the thread for some milliseconds.
fn kill_session(leader: Process) -> io::Result<()> {
    loop {
        if Process::of(leader.pid).is_some_and(|now| now != leader) {
            // The id is somebody else's now, so nobody of the old session is left: a session's id is not given out while the
            // session has members.
            return Ok(());
        }
        let mut found = false;
        for entry in fs_err::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if session_of(pid) == Some(leader.pid)
                && let Some(target) = Pid::from_raw(pid)
            {
                found = true;
                match kill_process(target, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if !found {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The session of a process that is no zombie.
fn session_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(2)?.parse().ok()
}
