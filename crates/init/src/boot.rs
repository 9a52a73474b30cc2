//! What the OCI runtime left to do when a machine starts, and cgroups of job processes.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_change};

use crate::log;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Directories that job scripts and processes take for granted; /var may be an empty disk on the first start.
const DIRECTORIES: [&str; 10] = [
    "/run/lock",
    "/var/lib",
    "/var/log",
    "/var/tmp",
    "/var/vcap/data",
    "/var/vcap/sys/log",
    "/var/vcap/sys/run",
    "/var/vcap/store",
    "/dev/stolos",
    "/dev/shm",
];

/// Prepares a machine. What cannot be done is logged: a machine that is half right can still say so.
pub(crate) fn boot() {
    let steps: [(&str, fn() -> io::Result<()>); 4] = [
        ("share mounts with what is mounted later", share_mounts),
        ("make directories", make_directories),
        ("forward packets", || fs::write("/proc/sys/net/ipv4/ip_forward", "1")),
        ("move into a cgroup", || enter_cgroups("init")),
    ];
    for (what, step) in steps {
        if let Err(error) = step() {
            log(&format!("failed to {what}: {error}"));
        }
    }
}

/// Volumes with bidirectional propagation need it (as `mount --make-rshared /`).
fn share_mounts() -> io::Result<()> {
    let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(Into::into)
}

fn make_directories() -> io::Result<()> {
    for directory in DIRECTORIES {
        fs::create_dir_all(directory)?;
    }
    for link in ["/var/run", "/var/lock"] {
        if !Path::new(link).exists() {
            let _ = fs::remove_file(link);
            std::os::unix::fs::symlink(link.replace("/var/", "/run/").replace("/run/run", "/run"), link)?;
        }
    }
    Ok(())
}

/// Moves init out of the root of every hierarchy: version 2 allows no processes beside child groups with controllers, and
/// on version 1 the kubelet wants to find itself under the same relative path everywhere.
fn enter_cgroups(name: &str) -> io::Result<()> {
    for root in hierarchies() {
        let group = make_group(&root, name)?;
        fs::write(group.join("cgroup.procs"), "0")?;
        enable_controllers(&root)?;
    }
    Ok(())
}

/// Opens `cgroup.procs` of a group of that name in every hierarchy, made where missing.
pub(crate) fn open_cgroups(name: &str) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    for root in hierarchies() {
        let opened = make_group(&root, name)
            .and_then(|group| OpenOptions::new().write(true).open(group.join("cgroup.procs")));
        match opened {
            Ok(file) => files.push(OwnedFd::from(file)),
            Err(error) => log(&format!("failed to make cgroup `{name}` in `{}`: {error}", root.display())),
        }
    }
    files
}

/// Removes a group; processes that are still in it keep it.
pub(crate) fn remove_cgroups(name: &str) {
    for root in hierarchies() {
        let _ = fs::remove_dir(root.join(name));
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    // Names like `cpu,cpuacct` are links to one directory; each hierarchy counts once.
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink() && path.file_name() != Some("unified".as_ref()))
        .collect();
    found.sort();
    found
}

fn make_group(root: &Path, name: &str) -> io::Result<PathBuf> {
    let group = root.join(name);
    fs::create_dir_all(&group)?;
    // A new cpuset of version 1 has no processors and takes nobody in; every level down to ours needs them.
    let mut level = root.to_owned();
    for part in Path::new(name).components() {
        let parent = level.clone();
        level.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(own), Ok(inherited)) = (fs::read_to_string(level.join(file)), fs::read_to_string(parent.join(file)))
                && own.trim().is_empty()
                && root.join("cpuset.cpu_exclusive").exists()
            {
                fs::write(level.join(file), inherited.trim())?;
            }
        }
    }
    Ok(group)
}

fn enable_controllers(root: &Path) -> io::Result<()> {
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else { return Ok(()) };
    for controller in controllers.split_whitespace() {
        // One by one: a controller that cannot be enabled must not keep the others from it.
        if let Err(error) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            log(&format!("failed to enable cgroup controller `{controller}`: {error}"));
        }
    }
    Ok(())
}
