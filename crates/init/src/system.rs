//! The few system interfaces that have no safe binding at hand, and waiting.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::wire::{Exit, SignalName};

/// A signal that was sent to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A child has ended.
    Child,
    /// We are to end.
    End,
}

/// Blocks the signals that we handle and gives a descriptor to read them from.
#[expect(unsafe_code, reason = "no safe binding of signalfd is at hand")]
pub(crate) fn signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set, the other calls read or change it while it lives; `signalfd` makes a new
    // descriptor (−1 for the first argument), which is ours alone and is wrapped once.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Reads what was sent to us.
pub(crate) fn received(signals: &OwnedFd) -> Vec<Received> {
    const SIZE: usize = size_of::<libc::signalfd_siginfo>();
    let mut found = Vec::new();
    let mut buffer = [0_u8; SIZE * 8];
    while let Ok(n) = rustix::io::read(signals, &mut buffer) {
        for one in buffer[..n].chunks_exact(SIZE) {
            // The first field is the number of the signal, 32 bits.
            let number = u32::from_ne_bytes([one[0], one[1], one[2], one[3]]);
            found.push(if number == libc::SIGCHLD.cast_unsigned() {
                Received::Child
            } else {
                Received::End
            });
        }
        if n < buffer.len() {
            break;
        }
    }
    found
}

/// Takes the next child that has ended: one of ours, or an orphan that was given to us.
pub(crate) fn reap() -> Option<(Pid, Exit)> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Some((pid, exit(status))),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

fn exit(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(-1),
    }
}

/// The signal of a name.
pub(crate) fn signal(name: SignalName) -> Signal {
    match name {
        SignalName::Hup => Signal::HUP,
        SignalName::Int => Signal::INT,
        SignalName::Quit => Signal::QUIT,
        SignalName::Kill => Signal::KILL,
        SignalName::Usr1 => Signal::USR1,
        SignalName::Usr2 => Signal::USR2,
        SignalName::Term => Signal::TERM,
        SignalName::Winch => Signal::WINCH,
    }
}

/// Sends a signal to everything that we can see but ourselves. Only for PID 1 of a namespace: anywhere else this would
/// reach strangers.
#[expect(unsafe_code, reason = "no safe binding sends to all processes")]
pub(crate) fn signal_all(signal: Signal) {
    if rustix::process::getpid() != Pid::INIT {
        return;
    }
    // SAFETY: `kill` takes two numbers. That we are PID 1, so that "all" means this namespace, was just checked.
    unsafe {
        libc::kill(-1, signal.as_raw());
    }
}
