//! What a machine needs before anything else runs: mounts that the container runtime did not make, directories, forwarding.
//!
//! Nothing here is fatal: a machine that boots with a warning can be looked at, one that does not cannot.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// Directories and their modes. Those below `/var` are in the stemcell too; a machine whose `/var` began empty gets them here.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/dev/stolos", 0o700),
    ("/run/lock", 0o1777),
    ("/run/stolos", 0o700),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
    ("/var/vcap", 0o755),
    ("/var/vcap/bosh", 0o755),
    ("/var/vcap/bosh/log", 0o750),
    ("/var/vcap/data", 0o755),
    ("/var/vcap/instance", 0o755),
    ("/var/vcap/packages", 0o755),
    ("/var/vcap/store", 0o755),
    ("/var/vcap/sys/log", 0o755),
    ("/var/vcap/sys/run", 0o755),
];

/// Prepares the machine; says what did not work.
pub(crate) fn prepare(mut log: impl FnMut(&str)) {
    let mut step = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            log(&format!("failed to {what}: {error}"));
        }
    };
    // Mounts that pods make have to be seen by the kubelet and the other way round.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    step(
        "share the mounts below /",
        mount_change("/", shared).map_err(io::Error::from),
    );
    for (path, kind, flags, data) in [
        (
            "/proc",
            "proc",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            c"",
        ),
        (
            "/sys",
            "sysfs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            c"",
        ),
        (
            "/run",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755",
        ),
        (
            "/tmp",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=1777",
        ),
        (
            "/dev/shm",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=1777",
        ),
        (
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"newinstance,ptmxmode=0666,mode=0620",
        ),
    ] {
        step(
            &format!("mount {path}"),
            mount_unless_there(Path::new(path), kind, flags, data),
        );
    }
    for (path, mode) in DIRECTORIES {
        step(&format!("make {path}"), directory(Path::new(path), *mode));
    }
    step("link /var/run", link_run());
    // What lies there belongs to processes of the last boot.
    step("empty /var/vcap/sys/run", empty(Path::new("/var/vcap/sys/run")));
    step(
        "turn on IP forwarding",
        fs::write("/proc/sys/net/ipv4/ip_forward", "1"),
    );
    step("make /etc/machine-id", machine_id(Path::new("/etc/machine-id")));
}

/// Mounts a file system unless something is mounted there.
fn mount_unless_there(path: &Path, kind: &str, flags: MountFlags, data: &std::ffi::CStr) -> io::Result<()> {
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo")
        && mounts.lines().any(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|point| Path::new(point) == path)
        })
    {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    mount(kind, path, kind, flags, Some(data)).map_err(Into::into)
}

/// Makes a directory; one that is there keeps its mode, which jobs may have changed.
fn directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn link_run() -> io::Result<()> {
    match symlink("/run", "/var/run") {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The kubelet tells nodes apart by it; it stays the same as long as the machine does.
fn machine_id(path: &Path) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|text| text.trim().len() == 32) {
        return Ok(());
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    fs::write(path, id)
}
