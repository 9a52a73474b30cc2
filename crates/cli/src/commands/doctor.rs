//! Whether this host can run Stolos, and whether what runs is well.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use stolos_base::Instance;
use stolos_base::process::Process;

use crate::args::Doctor;
use crate::commands::clusters::gib;
use crate::commands::login::pks_client;
use crate::commands::managers::{Managers, bus_record};
use crate::failure::Failure;
use crate::{output, session};

/// The oldest kernel that kube-proxy's nftables mode runs on (Kubernetes v1.36: pkg/proxy/nftables/supported.go).
const OLDEST_KERNEL: (u32, u32) = (5, 13);
/// Caches, a stemcell and one cluster take about six GiB.
const LEAST_DISK_MIB: u64 = 10 * 1024;
/// With less, not even one cluster's machines start.
const NO_DISK_MIB: u64 = 2 * 1024;
/// One master and one worker of the smallest plan.
const LEAST_MEMORY_MIB: u64 = 4 * 1024;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but worse than it could.
    Warning,
    /// Stolos cannot run so.
    Failed,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn bad(
        name: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            verdict,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// `stolos doctor`
pub(crate) async fn run(args: &Doctor) -> Result<(), Failure> {
    let instance = args.local.instance();
    let mut checks = host(&instance);
    checks.extend(running(&instance));
    checks.extend(room().await);
    if args.json {
        output::json(&checks)?;
    } else {
        let rows: Vec<Vec<String>> = checks
            .iter()
            .map(|check| {
                let verdict = match check.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "warning",
                    Verdict::Failed => "FAILED",
                };
                vec![verdict.to_owned(), check.name.clone(), check.found.clone()]
            })
            .collect();
        output::data(&output::table(&["State", "Check", "Found"], &rows));
        for check in &checks {
            if let Some(advice) = &check.advice {
                output::note(&format!("\nhint: {}: {advice}", check.name));
            }
        }
    }
    refuse_failed(&checks)
}

/// What there is room for at the API of the session; nothing where there is no session, or no end to the room.
async fn room() -> Option<Check> {
    let api = session::load().ok()?.api;
    let room = pks_client().await.ok()?.room().await.ok()?;
    let free = gib(room.free_memory_mib?);
    Some(Check::ok(
        "room",
        format!("{free} of memory for machines of new clusters at {api}"),
    ))
}

/// An error when a check has failed.
pub(crate) fn refuse_failed(checks: &[Check]) -> Result<(), Failure> {
    let failed: Vec<&Check> = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Failed)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = failed
        .iter()
        .map(|check| format!("{} ({})", check.name, check.found))
        .collect();
    let mut failure = Failure::user(format!("this host cannot run Stolos: {}", names.join("; ")));
    for check in failed {
        if let Some(advice) = &check.advice {
            failure = failure.hint(advice.clone());
        }
    }
    Err(failure)
}

/// The checks of the host.
pub(crate) fn host(instance: &Instance) -> Vec<Check> {
    vec![
        root(),
        kernel(),
        controllers(),
        namespaces(),
        file_systems(),
        programs(),
        memory(),
        disk(&instance.root),
    ]
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("root", "yes")
    } else {
        let advice = "Machines, bridges and mounts need root; run the command with sudo.";
        Check::bad("root", Verdict::Failed, "no", advice)
    }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        Check::ok("kernel", release)
    } else {
        let advice = format!(
            "Linux {}.{} or newer is needed.",
            OLDEST_KERNEL.0, OLDEST_KERNEL.1
        );
        Check::bad("kernel", Verdict::Failed, release, advice)
    }
}

fn controllers() -> Check {
    const NAME: &str = "cgroups";
    const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
    let unified = Utf8Path::new("/sys/fs/cgroup/cgroup.controllers");
    let (version, found): (&str, Vec<String>) = match std::fs::read_to_string(unified) {
        Ok(text) => ("v2", text.split_whitespace().map(str::to_owned).collect()),
        Err(_) => {
            let entries = std::fs::read_dir("/sys/fs/cgroup").map(|dir| dir.flatten().collect::<Vec<_>>());
            let names = entries
                .unwrap_or_default()
                .into_iter()
                .map(|entry| entry.file_name().to_string_lossy().into_owned());
            (
                "v1",
                names
                    .flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>())
                    .collect(),
            )
        }
    };
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|need| !found.iter().any(|have| have == need))
        .collect();
    if missing.is_empty() {
        Check::ok(NAME, version)
    } else {
        let advice = "Enable these controllers in the kernel's command line or build.";
        Check::bad(
            NAME,
            Verdict::Failed,
            format!("{version} without {}", missing.join(", ")),
            advice,
        )
    }
}

fn namespaces() -> Check {
    const NEEDED: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !Utf8Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        Check::ok("namespaces", "all")
    } else {
        let advice = "The kernel has to be built with these namespaces.";
        Check::bad(
            "namespaces",
            Verdict::Failed,
            format!("missing {}", missing.join(", ")),
            advice,
        )
    }
}

fn file_systems() -> Check {
    let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| {
        text.lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    };
    let missing: Vec<&str> = ["overlay", "ext4"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    if missing.is_empty() {
        Check::ok("file systems", "overlay, ext4")
    } else {
        let advice = format!("Load the modules first: `modprobe {}`.", missing.join(" "));
        Check::bad(
            "file systems",
            Verdict::Failed,
            format!("missing {}", missing.join(", ")),
            advice,
        )
    }
}

fn programs() -> Check {
    // `go` is not here: an installation from finished artefacts does not need it, and the build says itself when it is missing.
    const NEEDED: [(&str, &str); 4] = [
        ("runc", "runc"),
        ("nft", "nftables"),
        ("mmdebstrap", "mmdebstrap"),
        ("conntrack", "conntrack"),
    ];
    let missing: Vec<(&str, &str)> = NEEDED
        .into_iter()
        .filter(|(program, _)| on_path(program).is_none())
        .collect();
    if missing.is_empty() {
        return Check::ok("programs", NEEDED.map(|(program, _)| program).join(", "));
    }
    let found: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let advice = format!(
        "Install them: `apt-get install {}`, or run `make up`, which does.",
        packages.join(" ")
    );
    Check::bad(
        "programs",
        Verdict::Failed,
        format!("missing {}", found.join(", ")),
        advice,
    )
}

fn memory() -> Check {
    let mib = total_memory_mib().unwrap_or(0);
    if mib >= LEAST_MEMORY_MIB {
        Check::ok("memory", format!("{mib} MiB"))
    } else {
        let advice = format!("The smallest plan with one worker needs {LEAST_MEMORY_MIB} MiB.");
        Check::bad("memory", Verdict::Warning, format!("{mib} MiB"), advice)
    }
}

fn disk(root: &Utf8Path) -> Check {
    const NAME: &str = "disk";
    let there = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Utf8Path::new("/"));
    let stat = match rustix::fs::statvfs(there.as_std_path()) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::bad(
                NAME,
                Verdict::Failed,
                io::Error::from(error).to_string(),
                format!("`{there}` has to be readable."),
            );
        }
    };
    let free = stat.f_bavail * stat.f_frsize / (1024 * 1024);
    /// The magic number of overlay file systems (linux/magic.h).
    const OVERLAYFS: i64 = 0x794c_7630;
    let overlay = rustix::fs::statfs(there.as_std_path()).is_ok_and(|stat| stat.f_type == OVERLAYFS);
    if overlay {
        let advice =
            "Machines need a directory on a real file system: set STOLOS_ROOT to one on ext4 or xfs.";
        return Check::bad(
            NAME,
            Verdict::Failed,
            format!("`{there}` lies on an overlay file system"),
            advice,
        );
    }
    if free >= LEAST_DISK_MIB {
        Check::ok(NAME, format!("{free} MiB free in {there}"))
    } else {
        let advice = format!(
            "Programs, a stemcell and one cluster take about {LEAST_DISK_MIB} MiB: make room, or set STOLOS_ROOT to a larger disk."
        );
        let verdict = if free < NO_DISK_MIB {
            Verdict::Failed
        } else {
            Verdict::Warning
        };
        Check::bad(NAME, verdict, format!("{free} MiB free in {there}"), advice)
    }
}

/// The checks of what runs; none when nothing was ever started here.
fn running(instance: &Instance) -> Vec<Check> {
    if !instance.config_file().exists() {
        return Vec::new();
    }
    let check = |name: String, record: &Utf8Path| match Process::recorded(record) {
        Ok(Some(process)) => Check::ok(name, format!("running, process {}", process.pid)),
        Ok(None) => Check::bad(
            name,
            Verdict::Warning,
            "not running",
            "Start it with `stolos up`.",
        ),
        Err(error) => Check::bad(
            name,
            Verdict::Warning,
            error.to_string(),
            "The run directory has to be readable.",
        ),
    };
    let mut checks = vec![check(
        "stolos-hostd".to_owned(),
        &instance.run().join("hostd.pid"),
    )];
    match Managers::configured(instance) {
        Ok(managers) => {
            let each = managers.members.iter();
            checks.extend(each.map(|member| {
                let name = match member {
                    None => "stolosd".to_owned(),
                    Some(member) => format!("stolosd {member}"),
                };
                check(name, &instance.manager(member.as_ref()).record)
            }));
            let each = 0..managers.bus_servers;
            checks.extend(each.map(|number| {
                let name = match (number, managers.bus_servers) {
                    (_, 1) => "nats-server".to_owned(),
                    (number, _) => format!("nats-server {}", number + 1),
                };
                check(name, &bus_record(instance, number))
            }));
        }
        Err(failure) => checks.push(Check::bad(
            "config.yml",
            Verdict::Warning,
            failure.to_string(),
            "Correct it, then run `stolos up`.",
        )),
    }
    checks
}

/// The host's memory.
pub(crate) fn total_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}

/// A program on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").ok()?;
    path.split(':')
        .map(|dir| Utf8PathBuf::from(dir).join(name))
        .find(|candidate| candidate.is_file())
}
