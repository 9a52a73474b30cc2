//! The last steps of a machine: everything ended, persistent disks unmounted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::system;

/// What is left after the jobs, pods mostly, may take this long to end in an orderly way.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long SIGKILL is given to work.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(10);

/// Ends every process that is left.
pub(crate) fn end_all() {
    for (signal, limit) in [(Signal::TERM, PATIENCE), (Signal::KILL, KILL_LIMIT)] {
        let start = Instant::now();
        send(signal);
        loop {
            while system::reap().is_some() {}
            if others().is_empty() {
                return;
            }
            if start.elapsed() > limit {
                break;
            }
            if signal == Signal::KILL {
                // What was forked meanwhile has not got it yet.
                send(signal);
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn send(signal: Signal) {
    if rustix::process::getpid() == Pid::INIT {
        system::signal_all(signal);
    } else {
        for pid in others() {
            let _ = kill_process(pid, signal);
        }
    }
}

/// All other processes of our namespace when we are its PID 1; else our descendants, orphans of ours included, since they
/// become our children.
fn others() -> HashSet<Pid> {
    let me = rustix::process::getpid();
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The command is in parentheses and may hold anything.
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (
            fields.next(),
            fields.next().and_then(|field| field.parse::<i32>().ok()),
        );
        parents.push((pid, parent.unwrap_or(0), state == Some("Z")));
    }
    let mut found = HashSet::from([me]);
    loop {
        let before = found.len();
        for (pid, parent, _) in &parents {
            if me == Pid::INIT || Pid::from_raw(*parent).is_some_and(|parent| found.contains(&parent)) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    found.remove(&me);
    // Kernel threads are nobody's descendants, and a zombie that is not ours to reap cannot be ended.
    for (pid, parent, zombie) in parents {
        if zombie && parent != me.as_raw_nonzero().get() {
            found.remove(&pid);
        }
    }
    found
}

/// Unmounts what lies at or below the given paths, the last mounted first; says what stays.
pub(crate) fn unmount_below(paths: &[PathBuf], mut log: impl FnMut(&str)) {
    rustix::fs::sync();
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let points: Vec<PathBuf> = points
        .filter(|point| paths.iter().any(|path| point.starts_with(path)))
        .collect();
    for point in points.iter().rev() {
        if let Err(error) = unmount(point.as_path(), UnmountFlags::empty()) {
            log(&format!(
                "failed to unmount {}, detaching it: {error}",
                point.display()
            ));
            let _ = unmount(point.as_path(), UnmountFlags::DETACH);
        }
    }
}

/// Blanks and the like are octal in mountinfo.
fn unescape(text: &str) -> PathBuf {
    let text = text
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    Path::new(&text).to_owned()
}
