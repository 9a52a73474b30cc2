//! Starting one process: everything between `fork` and `exec`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::cgroup::Group;
use crate::users::User;
use crate::wire::{Limits, ProcessSpec};

/// As BOSH's agent gives it to scripts.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What is started.
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) cwd: &'a str,
    pub(crate) user: &'a str,
    pub(crate) limits: Limits,
    pub(crate) oom_score_adj: Option<i32>,
    /// What it is told of its former lives, beside its own environment.
    pub(crate) history: Vec<(&'static str, String)>,
}

impl<'a> From<&'a ProcessSpec> for Program<'a> {
    fn from(spec: &'a ProcessSpec) -> Self {
        Self {
            argv: &spec.argv,
            env: &spec.env,
            cwd: &spec.cwd,
            user: &spec.user,
            limits: spec.limits,
            oom_score_adj: spec.oom_score_adj,
            history: Vec::new(),
        }
    }
}

/// A process that was started, and the ends of its standard streams that are ours.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) stdout: PipeReader,
    pub(crate) stderr: PipeReader,
}

/// Starts a program in a session, a process group and a control group of its own.
pub(crate) fn spawn(program: &Program<'_>, group: &Group) -> io::Result<Started> {
    let (name, arguments) = program
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no program to start"))?;
    let user = User::find(program.user)?;
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .envs(program.env)
        .envs(program.history.iter().map(|(key, value)| (*key, value)))
        .current_dir(program.cwd)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    enter(&mut command, program, group, user)?;
    let child = command.spawn()?;
    // Dropping the handle neither waits nor kills: all children are reaped in one place.
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the process has no id"))?;
    Ok(Started { pid, stdout, stderr })
}

/// Puts what happens in the child into the command.
fn enter(command: &mut Command, program: &Program<'_>, group: &Group, user: User) -> io::Result<()> {
    let doors = group.doors()?;
    let nofile = program.limits.nofile;
    let oom = program
        .oom_score_adj
        .map(|value| CString::new(value.to_string()))
        .transpose()?;
    let gid = rustix::process::Gid::from_raw(user.gid);
    let uid = rustix::process::Uid::from_raw(user.uid);
    let groups: Vec<_> = user
        .groups
        .iter()
        .map(|id| rustix::process::Gid::from_raw(*id))
        .collect();
    let switch = uid != rustix::process::getuid() || gid != rustix::process::getgid();
    let in_child = move || {
        unblock_signals()?;
        setsid()?;
        join(&doors)?;
        if let Some(value) = &oom {
            adjust_oom(value);
        }
        if let Some(nofile) = nofile {
            limit_files(nofile);
        }
        if switch {
            set_thread_groups(&groups)?;
            set_thread_gid(gid)?;
            set_thread_uid(uid)?;
        }
        Ok(())
    };
    before_exec(command, in_child);
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "sessions, groups and limits have to be entered between fork and exec"
)]
fn before_exec(command: &mut Command, in_child: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the closure makes system calls on values that were made before the fork; it neither allocates nor takes a
    // lock, so it does not matter what other threads held when the process was copied.
    // JUSTIFICATION: std offers none of these settings in a stable form.
    unsafe {
        command.pre_exec(in_child);
    }
}

/// Our own signals are blocked, for they are read from a descriptor; a child begins with none blocked.
#[expect(unsafe_code, reason = "no safe binding of sigprocmask is at hand")]
fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set that `sigprocmask` then reads; the old set is not asked for.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn join(doors: &[File]) -> io::Result<()> {
    for door in doors {
        rustix::io::write(door.as_fd(), b"0")?;
    }
    Ok(())
}

/// Best effort: without CAP_SYS_RESOURCE the value cannot go below what it was.
fn adjust_oom(value: &CString) {
    let opened = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    if let Ok(file) = opened {
        let _ = rustix::io::write(&file, value.to_bytes());
    }
}

/// As much as is allowed: raising the hard limit needs CAP_SYS_RESOURCE.
fn limit_files(wanted: u64) {
    let both = |value| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    if setrlimit(Resource::Nofile, both(wanted)).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let soft = hard.map_or(wanted, |hard| hard.min(wanted));
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(soft),
                maximum: hard,
            },
        );
    }
}
