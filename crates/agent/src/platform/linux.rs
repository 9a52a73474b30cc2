//! A machine of ours: init's socket, mounts, disks.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use stolos_init::client::Client;
use stolos_init::wire::{self, Event, ProcessSpec, ProcessStatus};
use stolos_mbus::state::Vitals;

use super::vitals::{self, Meter};
use super::{Content, Platform, Usage};

/// The group that may read rendered jobs.
const JOBS_GROUP: &str = "vcap";
/// How much of a disk's start has to be empty for the disk to count as blank.
const BLANK_CHECK: usize = 1024 * 1024;

/// The machine that this program runs in.
#[derive(Debug)]
pub struct Linux {
    socket: Utf8PathBuf,
    meter: Meter,
}

impl Default for Linux {
    fn default() -> Self {
        Self::with_socket(wire::SOCKET)
    }
}

impl Linux {
    /// With init listening elsewhere: for tests.
    #[must_use]
    pub fn with_socket(socket: impl Into<Utf8PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            meter: Meter::default(),
        }
    }

    fn init(&self) -> io::Result<Client> {
        Client::connect(&self.socket).map_err(io::Error::other)
    }
}

impl Platform for Linux {
    fn processes(&self) -> io::Result<Vec<ProcessStatus>> {
        self.init()?.list().map_err(io::Error::other)
    }

    fn start(&self, spec: &ProcessSpec) -> io::Result<()> {
        let mut init = self.init()?;
        init.define(spec).map_err(io::Error::other)?;
        init.start(&spec.name).map_err(io::Error::other)
    }

    fn stop(&self, name: &str, limit: Duration) -> io::Result<()> {
        self.init()?.stop(name, limit).map_err(io::Error::other)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.init()?.remove(name).map_err(io::Error::other)
    }

    fn watch(&self, after: Option<u64>, told: &mut dyn FnMut(Event) -> bool) -> io::Result<()> {
        let (_, mut events) = self.init()?.subscribe(after).map_err(io::Error::other)?;
        while told(events.next_event().map_err(io::Error::other)?) {}
        Ok(())
    }

    fn usage(&self, pid: i32) -> Usage {
        vitals::usage(pid).unwrap_or_default()
    }

    fn vitals(&self, ephemeral: &Utf8Path, persistent: &Utf8Path) -> Vitals {
        let persistent = self.mounted(persistent).ok().flatten().map(|_| persistent);
        self.meter.read(ephemeral, persistent)
    }

    fn has_device(&self, device: &str) -> bool {
        Utf8Path::new(device).exists()
    }

    fn content(&self, device: &str) -> io::Result<Content> {
        content(device)
    }

    fn format(&self, device: &str) -> io::Result<()> {
        let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        // Whole and without a question: the caller has looked at what it holds.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", options, device]))
    }

    fn mount(&self, device: &str, target: &Utf8Path) -> io::Result<()> {
        if self.mounted(target)?.as_deref() == Some(device) {
            return Ok(());
        }
        fs_err::create_dir_all(target)?;
        mount(device, target.as_std_path(), "ext4", MountFlags::NOATIME, None).map_err(Into::into)
    }

    fn unmount(&self, target: &Utf8Path) -> io::Result<()> {
        while self.mounted(target)?.is_some() {
            unmount(target.as_std_path(), UnmountFlags::empty())?;
        }
        Ok(())
    }

    fn mounted(&self, target: &Utf8Path) -> io::Result<Option<String>> {
        let table = fs_err::read_to_string("/proc/self/mounts")?;
        // The last one counts: it lies on top.
        let found = table.lines().rev().find_map(|line| {
            let mut fields = line.split(' ');
            let device = fields.next()?;
            (fields.next()? == target.as_str()).then(|| device.to_owned())
        });
        Ok(found)
    }

    fn copy_tree(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
        run(Command::new("cp").args(["-a", &format!("{from}/."), to.as_str()]))
    }

    fn give_to_jobs(&self, path: &Utf8Path) -> io::Result<()> {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let id = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == JOBS_GROUP)
                .then(|| fields.nth(1)?.parse::<u32>().ok())
                .flatten()
        });
        match id {
            Some(group) => chown_tree(path, group),
            // A stemcell without the group has no jobs that need it.
            None => Ok(()),
        }
    }

    fn forget_neighbour(&self, address: &str) {
        let Ok(address) = address.parse::<std::net::IpAddr>() else {
            return;
        };
        // It may not be there, and that is as good.
        let _ = Command::new("ip")
            .args(["neigh", "flush", "to", &address.to_string()])
            .output();
    }

    fn power_off(&self) -> io::Result<()> {
        self.init()?.power_off().map_err(io::Error::other)
    }
}

fn chown_tree(path: &Utf8Path, group: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(0), Some(group))?;
    if fs_err::symlink_metadata(path)?.is_dir() {
        for entry in path.read_dir_utf8()? {
            chown_tree(entry?.path(), group)?;
        }
    }
    Ok(())
}

fn content(device: &str) -> io::Result<Content> {
    /// Offset and value of the magic number of ext file systems.
    const MAGIC: (usize, [u8; 2]) = (0x438, [0x53, 0xEF]);
    let mut file = fs_err::File::open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut start = Vec::new();
    file.take(size.min(BLANK_CHECK as u64)).read_to_end(&mut start)?;
    if start.get(MAGIC.0..MAGIC.0 + 2) == Some(&MAGIC.1) {
        return Ok(Content::FileSystem);
    }
    Ok(if start.iter().all(|byte| *byte == 0) {
        Content::Blank
    } else {
        Content::Other
    })
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy().into_owned();
    Err(io::Error::other(format!(
        "`{program}` ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
