//! The processes: what they are, how they stand, and every change of that.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stolos_init::wire::{Event, Kill, Process, Spec, State};

use crate::sys::{Child, Exit, User};
use crate::{boot, log, logs, sys};

/// A process that lived this long has not failed in a row.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// Where processes find programs when they do not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All processes.
pub(crate) struct Supervisor {
    table: BTreeMap<String, Entry>,
    /// Whether processes get cgroups of their own: in machines only.
    cgroups: bool,
}

struct Entry {
    spec: Spec,
    wanted: bool,
    now: Now,
    starts: u64,
    failures: u32,
    last_exit: Option<String>,
}

enum Now {
    Stopped,
    Running { pid: i32, since: Instant, stop: Stopping },
    BackingOff { until: Instant },
}

/// How the process that runs is to end; kept from its start, because a new spec must not change how an old process ends.
struct Stopping {
    kill: Kill,
    /// When it is killed; none while nobody asked it to end.
    deadline: Option<Instant>,
    killed: bool,
}

impl Supervisor {
    pub(crate) fn new(cgroups: bool) -> Self {
        Self { table: BTreeMap::new(), cgroups }
    }

    pub(crate) fn define(&mut self, name: &str, spec: Spec) -> Result<(), String> {
        check(name, &spec)?;
        match self.table.get_mut(name) {
            Some(entry) => entry.spec = spec,
            None => {
                let entry = Entry { spec, wanted: false, now: Now::Stopped, starts: 0, failures: 0, last_exit: None };
                self.table.insert(name.to_owned(), entry);
            }
        }
        Ok(())
    }

    pub(crate) fn start(&mut self, name: &str) -> Result<(), String> {
        let cgroups = self.cgroups;
        let entry = self.entry(name)?;
        entry.wanted = true;
        match &entry.now {
            Now::Running { stop, .. } if stop.deadline.is_none() => {}
            // It is on its way out; its exit starts it again.
            Now::Running { .. } => {}
            Now::Stopped | Now::BackingOff { .. } => {
                entry.failures = 0;
                launch(name, entry, cgroups);
            }
        }
        Ok(())
    }

    /// Begins to stop; `true` when it is stopped already.
    pub(crate) fn stop(&mut self, name: &str) -> Result<bool, String> {
        let entry = self.entry(name)?;
        entry.wanted = false;
        match &mut entry.now {
            Now::Stopped => Ok(true),
            Now::BackingOff { .. } => {
                entry.now = Now::Stopped;
                Ok(true)
            }
            Now::Running { pid, stop, .. } => {
                if stop.deadline.is_none() {
                    stop.deadline = Some(Instant::now() + Duration::from_secs(entry.spec.stop.timeout_s));
                    sys::kill(*pid, signal_number(&entry.spec.stop.signal).unwrap_or(libc::SIGTERM), stop.kill == Kill::Group);
                }
                Ok(false)
            }
        }
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<(), String> {
        match self.table.get(name).map(|entry| &entry.now) {
            None => Ok(()),
            Some(Now::Stopped) => {
                self.table.remove(name);
                if self.cgroups {
                    boot::remove_cgroups(&cgroup(name));
                }
                Ok(())
            }
            Some(_) => Err(format!("process `{name}` has to be stopped before it is removed")),
        }
    }

    pub(crate) fn list(&self) -> Vec<Process> {
        let now = Instant::now();
        self.table
            .iter()
            .map(|(name, entry)| Process {
                name: name.clone(),
                state: match &entry.now {
                    Now::Stopped => State::Stopped,
                    Now::BackingOff { until } => {
                        State::BackingOff { in_ms: millis(until.saturating_duration_since(now)) }
                    }
                    Now::Running { stop, .. } if stop.deadline.is_some() => State::Stopping,
                    Now::Running { pid, since, .. } => State::Running { pid: *pid, uptime_ms: millis(now - *since) },
                },
                starts: entry.starts,
                failures: entry.failures,
                last_exit: entry.last_exit.clone(),
            })
            .collect()
    }

    /// A child has ended; gives the event when it was a process of ours.
    pub(crate) fn exited(&mut self, pid: i32, exit: Exit) -> Option<Event> {
        let (name, entry) =
            self.table.iter_mut().find(|(_, entry)| matches!(entry.now, Now::Running { pid: own, .. } if own == pid))?;
        let Now::Running { since, stop, .. } = &entry.now else { return None };
        if stop.kill == Kill::Group {
            // What the process left behind in its group would hold its ports and files.
            sys::kill(pid, libc::SIGKILL, true);
        }
        let wanted = stop.deadline.is_some();
        entry.last_exit = Some(exit.to_string());
        if !wanted {
            entry.failures = if since.elapsed() >= HEALTHY_AFTER { 1 } else { entry.failures.saturating_add(1) };
        }
        let event = Event { exited: name.clone(), how: exit.to_string(), wanted, failures: entry.failures };
        if !entry.wanted {
            entry.now = Now::Stopped;
        } else if wanted {
            let name = name.clone();
            launch(&name, entry, self.cgroups);
        } else {
            entry.now = Now::BackingOff { until: Instant::now() + pause(&entry.spec, entry.failures) };
        }
        Some(event)
    }

    /// Does what is due and says when something will be next.
    pub(crate) fn tick(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (name, entry) in &mut self.table {
            match &mut entry.now {
                Now::BackingOff { until } if *until <= now => launch(name, entry, self.cgroups),
                Now::Running { pid, stop, .. } => {
                    if stop.deadline.is_some_and(|deadline| deadline <= now) && !stop.killed {
                        stop.killed = true;
                        sys::kill(*pid, libc::SIGKILL, stop.kill == Kill::Group);
                    }
                }
                Now::Stopped | Now::BackingOff { .. } => {}
            }
            let due = match &entry.now {
                Now::BackingOff { until } => Some(*until),
                Now::Running { stop, .. } if !stop.killed => stop.deadline,
                _ => None,
            };
            next = [next, due].into_iter().flatten().min();
        }
        next
    }

    /// Whether a process is stopped, or not known at all.
    pub(crate) fn is_stopped(&self, name: &str) -> bool {
        self.table.get(name).is_none_or(|entry| matches!(entry.now, Now::Stopped))
    }

    /// Begins to stop all.
    pub(crate) fn stop_all(&mut self) {
        let names: Vec<String> = self.table.keys().cloned().collect();
        for name in names {
            let _ = self.stop(&name);
        }
    }

    pub(crate) fn all_stopped(&self) -> bool {
        self.table.values().all(|entry| matches!(entry.now, Now::Stopped))
    }

    /// Rotates log files that have grown too large.
    pub(crate) fn rotate_logs(&self) {
        for entry in self.table.values() {
            for path in [&entry.spec.stdout, &entry.spec.stderr] {
                if let Err(error) = logs::rotate(path, logs::CAP) {
                    log(&format!("failed to rotate `{path}`: {error}"));
                }
            }
        }
    }

    fn entry(&mut self, name: &str) -> Result<&mut Entry, String> {
        self.table.get_mut(name).ok_or_else(|| format!("process `{name}` is not defined"))
    }
}

fn launch(name: &str, entry: &mut Entry, cgroups: bool) {
    entry.starts += 1;
    match spawn(name, &entry.spec, cgroups) {
        Ok(pid) => {
            let stop = Stopping { kill: entry.spec.stop.kill, deadline: None, killed: false };
            entry.now = Now::Running { pid, since: Instant::now(), stop };
        }
        Err(error) => {
            log(&format!("failed to start `{name}`: {error}"));
            entry.failures = entry.failures.saturating_add(1);
            entry.last_exit = Some(format!("failed to start: {error}"));
            entry.now = Now::BackingOff { until: Instant::now() + pause(&entry.spec, entry.failures) };
        }
    }
}

fn spawn(name: &str, spec: &Spec, cgroups: bool) -> std::io::Result<i32> {
    let user = user(&spec.user)?;
    let mut command = Command::new(&spec.argv[0]);
    command.args(&spec.argv[1..]).current_dir(&spec.cwd).env_clear().env("PATH", PATH);
    if let Some(user) = &user {
        command.env("HOME", &user.home).env("USER", &spec.user);
    }
    command.envs(&spec.env).stdin(Stdio::null());
    command.stdout(logs::open(&spec.stdout)?).stderr(logs::open(&spec.stderr)?);
    let child = Child {
        cgroups: if cgroups { boot::open_cgroups(&cgroup(name)) } else { Vec::new() },
        nofile: spec.limits.nofile,
        oom_score_adj: spec.oom_score_adj.and_then(|n| CString::new(n.to_string()).ok()),
        user: user.filter(|user| user.uid != 0),
    };
    sys::prepare(&mut command, child);
    // The handle is dropped: all children are reaped in one place.
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(std::io::Error::other)
}

/// `JOB/PROCESS` as one path component below the group of all jobs.
fn cgroup(name: &str) -> String {
    format!("jobs/{}", name.replace('/', "."))
}

fn pause(spec: &Spec, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    Duration::from_millis(spec.restart.min_ms.saturating_mul(1 << doublings).min(spec.restart.max_ms))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn check(name: &str, spec: &Spec) -> Result<(), String> {
    let good_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.')
    };
    if name.split('/').count() > 2 || !name.split('/').all(good_part) {
        return Err(format!("`{name}` is no process name"));
    }
    match spec.argv.first() {
        Some(program) if program.starts_with('/') => {}
        _ => return Err(format!("process `{name}` has no program with an absolute path")),
    }
    if spec.argv.iter().any(|arg| arg.contains('\0')) || spec.env.iter().any(|(k, v)| k.contains(['=', '\0']) || v.contains('\0')) {
        return Err(format!("process `{name}` has an argument or variable that no process can get"));
    }
    for path in [&spec.stdout, &spec.stderr, &spec.cwd] {
        if !path.starts_with('/') {
            return Err(format!("process `{name}`: `{path}` is no absolute path"));
        }
    }
    if signal_number(&spec.stop.signal).is_none() {
        return Err(format!("process `{name}`: `{}` is no signal", spec.stop.signal));
    }
    if spec.restart.min_ms == 0 || spec.restart.min_ms > spec.restart.max_ms {
        return Err(format!("process `{name}`: restart.min_ms has to be above 0 and not above max_ms"));
    }
    user(&spec.user).map(drop).map_err(|error| format!("process `{name}`: {error}"))
}

fn signal_number(name: &str) -> Option<i32> {
    Some(match name {
        "TERM" => libc::SIGTERM,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "HUP" => libc::SIGHUP,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "KILL" => libc::SIGKILL,
        _ => return None,
    })
}

/// A user from /etc/passwd with its groups from /etc/group. Root is there even when the files are not.
fn user(name: &str) -> std::io::Result<Option<User>> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(fields) = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 6 && f[0] == name)
    else {
        if name == "root" {
            return Ok(Some(User { uid: 0, gid: 0, groups: vec![0], home: "/root".to_owned() }));
        }
        return Err(std::io::Error::other(format!("there is no user `{name}`")));
    };
    let number = |text: &str| text.parse::<u32>().map_err(std::io::Error::other);
    let (uid, gid) = (number(fields[2])?, number(fields[3])?);
    let mut groups = vec![gid];
    for line in fs::read_to_string("/etc/group").unwrap_or_default().lines() {
        let parts: Vec<&str> = line.split(':').collect();
        if parts.len() >= 4 && parts[3].split(',').any(|member| member == name) {
            groups.extend(parts[2].parse::<u32>().ok().filter(|id| *id != gid));
        }
    }
    Ok(Some(User { uid, gid, groups, home: fields[5].to_owned() }))
}
