//! Control groups: one for each process that we start, at the same relative path in every hierarchy.
//!
//! Version 1 has one hierarchy per controller, version 2 has one for all; on some hosts both are mounted. The kubelet wants
//! its own path to be the same in all of them, which is why a process joins them all or is not started. In version 2
//! only leaves may hold processes, so nothing stays in the root.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Where we are ourselves.
const OWN: &str = "init";
/// Below this are the job processes.
const JOBS: &str = "jobs";

/// The hierarchies in which we make groups; none where control groups are not wanted or not there.
#[derive(Debug, Default)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    /// The directory of our root group.
    base: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One { cpuset: bool },
    Two,
}

/// The group of one process.
#[derive(Debug, Default)]
pub(crate) struct Group(Vec<(PathBuf, Kind)>);

impl Hierarchies {
    /// Finds what is mounted, makes our groups below `root` (relative to where we are), and moves us out of the root. What a
    /// hierarchy refuses is told to `log` and that hierarchy is left alone.
    pub(crate) fn set_up(root: &str, mut log: impl FnMut(&str)) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mut usable = Vec::new();
        for mut hierarchy in discover(&mounts, &own) {
            hierarchy.base.push(root.trim_start_matches('/'));
            match hierarchy.prepare(&mut log) {
                Ok(()) => usable.push(hierarchy),
                Err(error) => log(&format!(
                    "control groups below {} are not used: {error}",
                    hierarchy.base.display()
                )),
            }
        }
        Ok(Self(usable))
    }

    /// Makes, or finds, the group of a process. The agent's name has no job.
    pub(crate) fn group(&self, name: &str) -> io::Result<Group> {
        let path = match name.split_once('/') {
            // Neither part can hold an `@`, so two processes never share a group.
            Some((job, process)) => format!("{JOBS}/{job}@{process}"),
            None => name.to_owned(),
        };
        let mut group = Group::default();
        for hierarchy in &self.0 {
            let directory = hierarchy.base.join(&path);
            make(&directory)?;
            if matches!(hierarchy.kind, Kind::One { cpuset: true }) {
                inherit_cpuset(&directory)?;
            }
            group.0.push((directory, hierarchy.kind));
        }
        Ok(group)
    }
}

impl Hierarchy {
    fn prepare(&self, log: &mut impl FnMut(&str)) -> io::Result<()> {
        fs::create_dir_all(&self.base)?;
        let (own, jobs) = (self.base.join(OWN), self.base.join(JOBS));
        make(&own)?;
        make(&jobs)?;
        if self.kind == (Kind::One { cpuset: true }) {
            inherit_cpuset(&self.base)?;
            inherit_cpuset(&own)?;
            inherit_cpuset(&jobs)?;
        }
        fs::write(own.join("cgroup.procs"), "0")?;
        if self.kind == Kind::Two {
            for directory in [&self.base, &jobs] {
                let controllers = fs::read_to_string(directory.join("cgroup.controllers"))?;
                for controller in controllers.split_whitespace() {
                    // One by one: some cannot be passed on, and one refusal would refuse them all.
                    let control = directory.join("cgroup.subtree_control");
                    if let Err(error) = fs::write(control, format!("+{controller}")) {
                        log(&format!(
                            "controller {controller} is not passed on in {}: {error}",
                            directory.display()
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Group {
    /// The files that a process writes `0` to in order to join.
    pub(crate) fn doors(&self) -> io::Result<Vec<File>> {
        self.0
            .iter()
            .map(|(directory, _)| {
                OpenOptions::new()
                    .write(true)
                    .open(directory.join("cgroup.procs"))
            })
            .collect()
    }

    /// Whether there is a group at all.
    pub(crate) fn exists(&self) -> bool {
        !self.0.is_empty()
    }

    /// The processes in the group and below.
    pub(crate) fn members(&self) -> BTreeSet<i32> {
        let mut members = BTreeSet::new();
        // All hierarchies hold the same processes; the first one tells.
        if let Some((directory, _)) = self.0.first() {
            collect(directory, &mut members, 0);
        }
        members
    }

    /// Ends everything in the group. May have to be repeated: what forks meanwhile can escape once.
    pub(crate) fn kill(&self) {
        for (directory, kind) in &self.0 {
            if *kind == Kind::Two && fs::write(directory.join("cgroup.kill"), "1").is_ok() {
                return;
            }
        }
        for pid in self.members().into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Removes the group; one that is still busy stays, which does no harm.
    pub(crate) fn remove(&self) {
        for (directory, _) in &self.0 {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A new cpuset of version 1 has no processors and takes no process.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        if fs::read_to_string(&own)?.trim().is_empty() {
            let value = fs::read_to_string(parent.join(file))?;
            OpenOptions::new()
                .write(true)
                .open(own)?
                .write_all(value.trim().as_bytes())?;
        }
    }
    Ok(())
}

fn collect(directory: &Path, into: &mut BTreeSet<i32>, depth: u32) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        into.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        );
    }
    if depth == 8 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), into, depth + 1);
        }
    }
}

/// Our own group in each mounted hierarchy. `mounts` is `/proc/self/mountinfo`, `own` is `/proc/self/cgroup`.
fn discover(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(point), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let options: Vec<_> = right.get(2).unwrap_or(&"").split(',').collect();
        let ours = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let fits = match *kind {
                "cgroup" => {
                    !controllers.is_empty() && controllers.split(',').all(|one| options.contains(&one))
                }
                "cgroup2" => controllers.is_empty(),
                _ => false,
            };
            fits.then_some((controllers, path))
        });
        let Some((controllers, path)) = ours else {
            continue;
        };
        // The mount shows the tree from `root` on; a group outside of it cannot be reached.
        let Ok(below) = Path::new(path).strip_prefix(root) else {
            continue;
        };
        let kind = match *kind {
            "cgroup2" => Kind::Two,
            _ => Kind::One {
                cpuset: controllers.split(',').any(|one| one == "cpuset"),
            },
        };
        let base = if below.as_os_str().is_empty() {
            PathBuf::from(point)
        } else {
            Path::new(point).join(below)
        };
        if !found.iter().any(|known| known.base == base) {
            found.push(Hierarchy { base, kind });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, own: &str, expected: &[(&str, Kind)]) {
        let found: Vec<_> = discover(mounts, own)
            .into_iter()
            .map(|one| (one.base.display().to_string(), one.kind))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(base, kind)| ((*base).to_owned(), *kind))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn version_one_is_found_with_and_without_a_namespace() {
        let mounts = "30 24 0:26 / /sys rw - sysfs sysfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      34 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        check(
            mounts,
            "4:cpuset:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
            &[
                ("/sys/fs/cgroup/cpu,cpuacct", Kind::One { cpuset: false }),
                ("/sys/fs/cgroup/cpuset", Kind::One { cpuset: true }),
                ("/sys/fs/cgroup/systemd", Kind::One { cpuset: false }),
            ],
        );
        check(
            "32 31 0:28 /m /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n33 31 0:29 / /x rw - cgroup cgroup rw,memory\n",
            "3:cpu:/m/a\n2:memory:/m/a\n",
            &[
                ("/sys/fs/cgroup/cpu/a", Kind::One { cpuset: false }),
                ("/x/m/a", Kind::One { cpuset: false }),
            ],
        );
    }

    #[test]
    fn version_two_is_found() {
        check(
            "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
            "0::/\n",
            &[("/sys/fs/cgroup", Kind::Two)],
        );
        // A group outside of what is mounted cannot be reached.
        check(
            "30 24 0:26 /other /c rw - cgroup2 cgroup2 rw\n",
            "0::/mine\n",
            &[],
        );
    }
}
