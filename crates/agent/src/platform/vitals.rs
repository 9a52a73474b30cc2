//! How a machine does: control groups, `/proc`, file systems.
//!
//! `/proc` tells of the host. What the machine's own control group knows (memory with its limit, processor time) comes from
//! there, in either version; load and swap have no such source and are the host's.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use camino::Utf8Path;
use stolos_mbus::state::{CpuVitals, DiskFill, DiskVitals, SpaceVitals, Uptime, Vitals};

use super::Usage;

/// Ticks of a second in `/proc`; the kernel's interface fixes it at 100 (`USER_HZ`).
const TICKS: f64 = 100.0;
/// The size of a page where we run (x86-64 and the usual arm64 kernels).
const PAGE: u64 = 4096;
/// Shares over less than this say nothing.
const SHORTEST_WINDOW: f64 = 0.5;

/// Reads vitals; remembers the last processor times, since a share needs two readings.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Option<Reading>>);

#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    times: Times,
    shown: CpuVitals,
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    user: f64,
    system: f64,
}

impl Meter {
    pub(super) fn read(&self, ephemeral: &Utf8Path, persistent: Option<&Utf8Path>) -> Vitals {
        let memory = Memory::read();
        Vitals {
            cpu: self.cpu(),
            disk: Some(DiskVitals {
                system: fill(Utf8Path::new("/")),
                ephemeral: fill(ephemeral),
                persistent: persistent.and_then(fill),
            }),
            load: load(),
            mem: Some(space(memory.used, memory.total)),
            swap: Some(space(memory.swap_used, memory.swap_total)),
            uptime: uptime().map(|secs| Uptime { secs }),
        }
    }

    /// Shares of all processors since the last reading; since the boot for the first one.
    fn cpu(&self) -> Option<CpuVitals> {
        let times = Times::read()?;
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, seconds) = match &*last {
            Some(reading) => {
                let seconds = now.duration_since(reading.at).as_secs_f64();
                if seconds < SHORTEST_WINDOW {
                    return Some(reading.shown.clone());
                }
                (reading.times, seconds)
            }
            None => (Times::default(), uptime_seconds()?),
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let processors = f64::from(u32::try_from(processors).unwrap_or(1));
        let share = |spent: f64| {
            format!(
                "{:.1}",
                (spent * 100.0 / (seconds.max(0.01) * processors)).clamp(0.0, 100.0)
            )
        };
        let shown = CpuVitals {
            user: share(times.user - before.user),
            sys: share(times.system - before.system),
            // Nobody counts the waiting of one control group.
            wait: "0.0".to_owned(),
        };
        *last = Some(Reading {
            at: now,
            times,
            shown: shown.clone(),
        });
        Some(shown)
    }
}

impl Times {
    fn read() -> Option<Self> {
        const NANO: f64 = 1e9;
        const MICRO: f64 = 1e6;
        for directory in ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"] {
            let both = (
                number(&format!("{directory}/cpuacct.usage_user")),
                number(&format!("{directory}/cpuacct.usage_sys")),
            );
            if let (Some(user), Some(system)) = both {
                return Some(Self {
                    user: float(user) / NANO,
                    system: float(system) / NANO,
                });
            }
        }
        let stat = std::fs::read_to_string("/sys/fs/cgroup/cpu.stat").ok()?;
        Some(Self {
            user: float(field(&stat, "user_usec")?) / MICRO,
            system: float(field(&stat, "system_usec")?) / MICRO,
        })
    }
}

/// KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    used: u64,
    total: u64,
    swap_used: u64,
    swap_total: u64,
}

impl Memory {
    fn read() -> Self {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let host = Self::of_host(&info);
        let (usage, limit, stat, inactive) = if Utf8Path::new("/sys/fs/cgroup/memory").is_dir() {
            let base = "/sys/fs/cgroup/memory/memory";
            (
                number(&format!("{base}.usage_in_bytes")),
                number(&format!("{base}.limit_in_bytes")),
                format!("{base}.stat"),
                "total_inactive_file",
            )
        } else {
            let base = "/sys/fs/cgroup/memory";
            (
                number(&format!("{base}.current")),
                number(&format!("{base}.max")),
                format!("{base}.stat"),
                "inactive_file",
            )
        };
        // Without a limit of its own a machine has the host's memory.
        match (usage, limit.map(|limit| limit / 1024)) {
            (Some(usage), Some(limit)) if limit < host.total => {
                let stat = std::fs::read_to_string(stat).unwrap_or_default();
                // File pages that nobody has used lately are as good as free.
                let cached = field(&stat, inactive).unwrap_or(0);
                Self {
                    used: usage.saturating_sub(cached) / 1024,
                    total: limit,
                    ..host
                }
            }
            _ => host,
        }
    }

    fn of_host(info: &str) -> Self {
        let value = |key| field(info, key).unwrap_or(0);
        Self {
            used: value("MemTotal:").saturating_sub(value("MemAvailable:")),
            total: value("MemTotal:"),
            swap_used: value("SwapTotal:").saturating_sub(value("SwapFree:")),
            swap_total: value("SwapTotal:"),
        }
    }
}

/// What one process uses.
pub(super) fn usage(pid: i32) -> Option<Usage> {
    let fields = stat(&pid.to_string())?;
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let memory_kb = number(21)? * PAGE / 1024;
    let spent = float(number(11)? + number(12)?) / TICKS;
    let lived = host_uptime()? - float(number(19)?) / TICKS;
    Some(Usage {
        memory_kb,
        memory_percent: percent(memory_kb, Memory::read().total),
        cpu_percent: spent * 100.0 / lived.max(0.01),
    })
}

/// The fields of `/proc/PID/stat` behind the command, which is in parentheses and may hold anything.
fn stat(pid: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(
        text.rsplit_once(')')?
            .1
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    )
}

fn host_uptime() -> Option<f64> {
    std::fs::read_to_string("/proc/uptime")
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Since PID 1 was started.
fn uptime_seconds() -> Option<f64> {
    let start: f64 = stat("1")?.get(19)?.parse().ok()?;
    Some((host_uptime()? - start / TICKS).max(0.0))
}

fn uptime() -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative and fits"
    )]
    uptime_seconds().map(|seconds| seconds as u64)
}

fn load() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).map(str::to_owned).collect()
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a key at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key)
            .then(|| words.next()?.parse().ok())
            .flatten()
    })
}

#[expect(clippy::cast_precision_loss, reason = "shares need no more than 53 bits")]
fn float(number: u64) -> f64 {
    number as f64
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        float(part) * 100.0 / float(whole)
    }
}

fn space(used: u64, total: u64) -> SpaceVitals {
    SpaceVitals {
        kb: used.to_string(),
        percent: format!("{:.0}", percent(used, total)),
    }
}

fn fill(path: &Utf8Path) -> Option<DiskFill> {
    let stat = rustix::fs::statvfs(path.as_std_path()).ok()?;
    let used = |total: u64, free: u64| format!("{:.0}", percent(total.saturating_sub(free), total));
    Some(DiskFill {
        percent: used(stat.f_blocks, stat.f_bavail),
        inode_percent: used(stat.f_files, stat.f_ffree),
    })
}
