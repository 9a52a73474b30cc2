//! A machine of ours: init's socket, mounts, `/proc`.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use stolos_init::client::Client;
use stolos_init::wire::{self, Event, ProcessSpec, ProcessStatus};
use stolos_mbus::state::{CpuVitals, DiskFill, DiskVitals, SpaceVitals, Uptime, Vitals};

use super::{Platform, Usage};

/// The group that may read rendered jobs.
const JOBS_GROUP: &str = "vcap";
/// Ticks of a second in `/proc`; the kernel's interface fixes it at 100 (`USER_HZ`).
const TICKS: f64 = 100.0;
/// The size of a page where we run (x86-64 and the usual arm64 kernels).
const PAGE: u64 = 4096;
/// How much of a disk's start has to be empty for the disk to count as blank.
const BLANK_CHECK: usize = 1024 * 1024;

/// The machine that this program runs in.
#[derive(Clone, Debug)]
pub struct Linux {
    socket: Utf8PathBuf,
}

impl Default for Linux {
    fn default() -> Self {
        Self { socket: wire::SOCKET.into() }
    }
}

impl Linux {
    /// With init listening elsewhere: for tests.
    #[must_use]
    pub fn with_socket(socket: impl Into<Utf8PathBuf>) -> Self {
        Self { socket: socket.into() }
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

    fn watch(&self, told: &mut dyn FnMut(Event) -> bool) -> io::Result<()> {
        let (_, mut events) = self.init()?.subscribe(None).map_err(io::Error::other)?;
        while told(events.next_event().map_err(io::Error::other)?) {}
        Ok(())
    }

    fn usage(&self, pid: i32) -> Usage {
        usage(pid).unwrap_or_default()
    }

    fn vitals(&self, ephemeral: &Utf8Path, persistent: &Utf8Path) -> Vitals {
        let memory = meminfo();
        let used = memory.total.saturating_sub(memory.available);
        let swap_used = memory.swap_total.saturating_sub(memory.swap_free);
        let is_mounted = |path: &Utf8Path| self.mounted(path).ok().flatten().is_some();
        Vitals {
            cpu: cpu(),
            disk: Some(DiskVitals {
                system: fill(Utf8Path::new("/")),
                ephemeral: fill(ephemeral),
                persistent: is_mounted(persistent).then(|| fill(persistent)).flatten(),
            }),
            load: load(),
            mem: Some(space(used, memory.total)),
            swap: Some(space(swap_used, memory.swap_total)),
            uptime: uptime().map(|secs| Uptime { secs }),
        }
    }

    fn mount(&self, device: &str, target: &Utf8Path) -> io::Result<()> {
        if self.mounted(target)?.as_deref() == Some(device) {
            return Ok(());
        }
        match content(device)? {
            Content::Ext4 => {}
            Content::Blank => run(Command::new("mkfs.ext4").args([
                "-q",
                "-m",
                "0",
                "-E",
                "nodiscard,lazy_itable_init=1,lazy_journal_init=1",
                device,
            ]))?,
            Content::Other => {
                return Err(io::Error::other(format!("`{device}` is neither blank nor an ext4 file system; it is left alone")));
            }
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
            (fields.next()? == JOBS_GROUP).then(|| fields.nth(1)?.parse::<u32>().ok()).flatten()
        });
        match id {
            Some(group) => chown_tree(path, group),
            // A stemcell without the group has no jobs that need it.
            None => Ok(()),
        }
    }

    fn forget_neighbour(&self, address: &str) {
        let Ok(address) = address.parse::<std::net::IpAddr>() else { return };
        // It may not be there, and that is as good.
        let _ = Command::new("ip").args(["neigh", "flush", "to", &address.to_string()]).output();
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

enum Content {
    Blank,
    Ext4,
    Other,
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
        return Ok(Content::Ext4);
    }
    Ok(if start.iter().all(|byte| *byte == 0) { Content::Blank } else { Content::Other })
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy().into_owned();
    Err(io::Error::other(format!("`{program}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

#[derive(Default)]
struct Meminfo {
    total: u64,
    available: u64,
    swap_total: u64,
    swap_free: u64,
}

fn meminfo() -> Meminfo {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Meminfo {
        total: value("MemTotal:").unwrap_or(0),
        available: value("MemAvailable:").unwrap_or(0),
        swap_total: value("SwapTotal:").unwrap_or(0),
        swap_free: value("SwapFree:").unwrap_or(0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "percentages need no more than 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn space(used: u64, total: u64) -> SpaceVitals {
    SpaceVitals { kb: used.to_string(), percent: format!("{:.0}", percent(used, total)) }
}

fn fill(path: &Utf8Path) -> Option<DiskFill> {
    let stat = rustix::fs::statvfs(path.as_std_path()).ok()?;
    Some(DiskFill {
        percent: format!("{:.0}", percent(stat.f_blocks.saturating_sub(stat.f_bavail), stat.f_blocks)),
        inode_percent: format!("{:.0}", percent(stat.f_files.saturating_sub(stat.f_ffree), stat.f_files)),
    })
}

fn load() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).map(str::to_owned).collect()
}

fn uptime() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/1/stat").ok()?;
    let start: f64 = stat[stat.rfind(')')? + 1..].split_whitespace().nth(19)?.parse().ok()?;
    let host: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
    Some((host - start / TICKS).max(0.0) as u64)
}

/// Shares since boot: a moving window would need a memory for little gain.
fn cpu() -> Option<CpuVitals> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let total = ticks.iter().sum();
    let share = |fields: &[usize]| {
        format!("{:.1}", percent(fields.iter().filter_map(|field| ticks.get(*field)).sum(), total))
    };
    Some(CpuVitals { user: share(&[0, 1]), sys: share(&[2]), wait: share(&[4]) })
}

fn usage(pid: i32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let pages = number(21)?;
    let memory_kb = pages * (PAGE) / 1024;
    let host: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "ticks fit")]
    let (spent, started) = ((number(11)? + number(12)?) as f64 / TICKS, number(19)? as f64 / TICKS);
    Some(Usage {
        memory_kb,
        memory_percent: percent(memory_kb, meminfo().total),
        cpu_percent: (spent * 100.0 / (host - started).max(0.01)).max(0.0),
    })
}
