//! Cgroups of machines, versions 1, 2 and both at once: the same path below every hierarchy that is mounted.
//!
//! The OCI runtime makes them and sets the limits; ending all processes and removing the directories is done here, because it
//! has to work whatever state the runtime was killed in.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing as _, Error, Result};

/// How long processes may take to die and directories to become free. Dying memory cgroups of version 1 answer EBUSY for a
/// while; a process in an uninterruptible wait takes longer than this only when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(3);

/// The directories of a cgroup in all hierarchies, those that exist.
fn directories(path: &str) -> Result<Vec<Utf8PathBuf>> {
    Ok(hierarchies()?
        .into_iter()
        .map(|root| root.join(path))
        .filter(|dir| dir.exists())
        .collect())
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Result<BTreeSet<Utf8PathBuf>> {
    let table = "/proc/self/mountinfo";
    let text = fs_err::read_to_string(table).doing(|| format!("read `{table}`"))?;
    Ok(text.lines().filter_map(hierarchy).collect())
}

fn hierarchy(line: &str) -> Option<Utf8PathBuf> {
    let (mount, system) = line.split_once(" - ")?;
    let kind = system.split(' ').next()?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (kind.starts_with("cgroup") && root == "/").then(|| point.into())
}

/// Makes a cgroup in every hierarchy, so that machines that start at once find their parent.
pub(crate) fn make(path: &str) -> Result<()> {
    for root in hierarchies()? {
        let dir = root.join(path);
        if dir.exists() {
            continue;
        }
        fs_err::create_dir_all(&dir).doing(|| format!("make the cgroup `{dir}`"))?;
        // In version 1 a new cpuset is empty and takes no process until it has cores and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = dir.join(file);
            if own.exists() && !root.join("cgroup.controllers").exists() {
                let parent = dir.parent().unwrap_or(&root).join(file);
                let value = fs_err::read(&parent).doing(|| format!("read `{parent}`"))?;
                fs_err::write(&own, value).doing(|| format!("write `{own}`"))?;
            }
        }
    }
    Ok(())
}

/// Ends every process in the cgroup and below with SIGKILL, until none is left.
pub(crate) fn kill(path: &str) -> Result<()> {
    let directories = directories(path)?;
    let start = Instant::now();
    loop {
        let mut pids = BTreeSet::new();
        for dir in &directories {
            // Version 2 has one file for it; where it is, it leaves no race.
            let all = dir.join("cgroup.kill");
            if all.exists() {
                let _ = fs_err::write(&all, b"1");
            }
            processes(dir, &mut pids).doing(|| format!("read the processes of `{dir}`"))?;
        }
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(Error::io("end a process of a machine", error)),
            }
        }
        if start.elapsed() > PATIENCE {
            let detail = format!("{pids:?} are there even after SIGKILL");
            return Err(Error::Program {
                what: format!("end the processes of `{path}`"),
                detail,
            });
        }
        std::thread::sleep(PAUSE);
    }
}

fn processes(dir: &Utf8Path, pids: &mut BTreeSet<i32>) -> io::Result<()> {
    let text = match fs_err::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        // A directory that went away has no processes; EOPNOTSUPP is what a threaded one of version 2 answers.
        Err(error) if gone(&error) || error.raw_os_error() == Some(95) => String::new(),
        Err(error) => return Err(error),
    };
    // Zero stands for a process of another pid namespace.
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for child in children(dir)? {
        processes(&child, pids)?;
    }
    Ok(())
}

fn children(dir: &Utf8Path) -> io::Result<Vec<Utf8PathBuf>> {
    let entries = match dir.read_dir_utf8() {
        Err(error) if gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut children = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?, entry.into_path()))) {
            Ok((kind, path)) if kind.is_dir() => children.push(path),
            Ok(_) => {}
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// Removes the cgroup and all below it in every hierarchy.
pub(crate) fn remove(path: &str) -> Result<()> {
    let start = Instant::now();
    for dir in directories(path)? {
        while let Err(error) = remove_tree(&dir) {
            let busy =
                [io::ErrorKind::ResourceBusy, io::ErrorKind::DirectoryNotEmpty].contains(&error.kind());
            if !busy || start.elapsed() > PATIENCE {
                return Err(Error::io(format!("remove the cgroup `{dir}`"), error));
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Removes the cgroup where nothing is below it.
pub(crate) fn remove_if_empty(path: &str) -> Result<()> {
    for dir in directories(path)? {
        match std::fs::remove_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if gone(&error) => {}
            other => other.doing(|| format!("remove the cgroup `{dir}`"))?,
        }
    }
    Ok(())
}

/// The hierarchies in which the cgroup exists.
pub(crate) fn left(path: &str) -> Result<Vec<String>> {
    Ok(directories(path)?
        .into_iter()
        .map(|dir| format!("cgroup `{dir}`"))
        .collect())
}

fn remove_tree(dir: &Utf8Path) -> io::Result<()> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if gone(&error) => Ok(()),
        other => other,
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_seen() {
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(hierarchy(line).as_deref(), expect.map(Utf8Path::new), "{line}");
        };
        check(
            "30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
            Some("/sys/fs/cgroup/memory"),
        );
        check(
            "31 24 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup"),
        );
        check("32 24 0:28 /a /mnt rw - cgroup cgroup rw,pids", None);
        check("33 24 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw", None);
    }
}
