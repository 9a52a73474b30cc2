//! System calls that need `unsafe`: the signal descriptor, waiting for any child, users, and what happens between fork
//! and exec.
#![expect(
    unsafe_code,
    reason = "PID 1 needs calls that no safe wrapper in our dependencies has; each says why it is sound"
)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The signals that init handles through its descriptor.
const HANDLED: [i32; 5] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGPWR,
    libc::SIGHUP,
];

/// Blocks the handled signals and gives a descriptor that reads them.
pub(crate) fn signal_descriptor() -> io::Result<OwnedFd> {
    let set = handled();
    // SAFETY: `set` is initialized; a null old set is allowed. JUSTIFICATION: signalfd has no safe wrapper in rustix.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn handled() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set, after which adding valid signals cannot fail.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in HANDLED {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// The next pending signal.
pub(crate) fn read_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    let n = rustix::io::read(fd, &mut info).ok()?;
    if n < info.len() {
        return None;
    }
    // ssi_signo is the first field.
    Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Reaps one child that has ended, whoever it was.
pub(crate) fn reap() -> Option<(i32, Exit)> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing. JUSTIFICATION: rustix's wait does not give orphans' ids with WNOHANG for any child.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    Some((pid, exit))
}

/// Makes orphans ours when we are not PID 1.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a signal to a process or to its whole group. One that is gone is no error.
pub(crate) fn kill(pid: i32, signal: i32, group: bool) {
    if pid > 1 {
        let target = if group { -pid } else { pid };
        // SAFETY: kill touches no memory; a process id above 1 is never everybody.
        unsafe { libc::kill(target, signal) };
    }
}

/// Sends a signal to everybody in the machine. Only for PID 1 of a process namespace.
pub(crate) fn kill_everybody(signal: i32) {
    if std::process::id() == 1 {
        // SAFETY: as PID 1, -1 means all processes of this namespace but ourselves.
        unsafe { libc::kill(-1, signal) };
    }
}

/// What is done in the child between fork and exec.
pub(crate) struct Child {
    /// Open `cgroup.procs` files to enter.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// Soft and hard limit of open files.
    pub(crate) nofile: Option<u64>,
    /// Written to `/proc/self/oom_score_adj`.
    pub(crate) oom_score_adj: Option<CString>,
    /// User, group and further groups.
    pub(crate) user: Option<User>,
}

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Prepares a command to start with all that.
pub(crate) fn prepare(command: &mut Command, child: Child) {
    let act = move || -> io::Result<()> {
        // SAFETY: everything here is async-signal-safe: system calls on values that were made before the fork.
        // JUSTIFICATION: sessions, groups, signal masks and cgroups can only be set in the child itself.
        unsafe {
            libc::setsid();
            let mut none = MaybeUninit::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            for cgroup in &child.cgroups {
                // "0" is the writer itself.
                let _ = rustix::io::write(cgroup, b"0");
            }
            if let Some(wanted) = child.nofile {
                let mut limit = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
                    limit.rlim_cur = wanted.min(limit.rlim_max);
                    libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                }
            }
            if let Some(text) = &child.oom_score_adj {
                let fd = libc::open(
                    c"/proc/self/oom_score_adj".as_ptr(),
                    libc::O_WRONLY | libc::O_CLOEXEC,
                );
                if fd >= 0 {
                    libc::write(fd, text.as_ptr().cast(), text.as_bytes().len());
                    libc::close(fd);
                }
            }
            if let Some(user) = &child.user {
                let failed = libc::setgroups(user.groups.len(), user.groups.as_ptr()) != 0
                    || libc::setgid(user.gid) != 0
                    || libc::setuid(user.uid) != 0;
                if failed {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: see `act`.
    unsafe {
        command.pre_exec(act);
    }
}
