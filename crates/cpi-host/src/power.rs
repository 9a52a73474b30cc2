//! Starting and stopping a machine: namespaces, root file system, runtime.
//!
//! The mounts of a machine are made in a mount namespace of the starting thread, which only the machine keeps: when all of
//! them die at any instant, the kernel takes the mounts back. The network namespace is made and configured before the
//! runtime is called, so that the machine's first process finds its network complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use stolos_base::files;
use stolos_base::process::Process;
use stolos_cpi::DiskCid;

use crate::error::{Doing as _, Error, Result};
use crate::host::{Host, MachineLock, boot_id};
use crate::record::{Init, Machine, Size};
use crate::{cgroup, net, nft};

/// How long a machine may take to power itself off before its processes are ended.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(10);
/// The longest a console log gets before it is started anew at a boot.
const CONSOLE_LIMIT: u64 = 4 << 20;

impl Host {
    pub(crate) fn cgroup_of(&self, machine: &Machine) -> String {
        format!("{}/{}", self.instance().cgroup(), machine.cid)
    }

    /// Starts a machine that does not run. Whatever is left of a former start is removed first.
    pub(crate) fn start(&self, machine: &Machine, lock: &MachineLock) -> Result<Process> {
        let begun = Instant::now();
        self.prepare()?;
        self.clear(machine)?;
        let cleared = begun.elapsed();
        {
            let _shared = self.lock_shared()?;
            self.ensure_segments(machine)?;
            cgroup::make(&self.cgroup_of(machine))?;
        }
        let mut devices = BTreeMap::new();
        for disk in &machine.disks {
            devices.insert(disk.clone(), self.loop_of(disk)?);
        }
        let shared = begun.elapsed();
        let started = std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.start_in_namespaces(machine, &devices, lock));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        tracing::info!(
            vm = %machine.cid,
            clear_ms = cleared.as_millis(),
            shared_ms = (shared - cleared).as_millis(),
            namespaces_ms = started.1.as_millis(),
            runtime_ms = started.2.as_millis(),
            total_ms = begun.elapsed().as_millis(),
            "machine started"
        );
        Ok(started.0)
    }

    /// Ends all processes of a machine and removes what only a running machine has.
    pub(crate) fn stop(&self, machine: &Machine) -> Result<()> {
        if let Some(init) = self.init(&machine.cid)? {
            init.signal(Signal::TERM)
                .doing(|| format!("power machine `{}` off", machine.cid))?;
            wait_for_end(&init, POWER_OFF_PATIENCE)?;
        }
        self.clear(machine)
    }

    /// Ends a machine without asking it, and removes what only a running machine has.
    pub(crate) fn clear(&self, machine: &Machine) -> Result<()> {
        let cgroup = self.cgroup_of(machine);
        cgroup::kill(&cgroup)?;
        files::remove_if_there(&self.dir(&machine.cid).join("init.json"))
            .doing(|| format!("forget the process of machine `{}`", machine.cid))?;
        net::with(async |net| {
            for link in machine.links.iter().filter(|link| !link.host_end.is_empty()) {
                net::remove(&net, &link.host_end).await?;
            }
            Ok(())
        })?;
        cgroup::remove(&cgroup)?;
        let state = self.runtime_root().join(machine.cid.as_str());
        files::remove_tree_if_there(&state).doing(|| format!("remove `{state}`"))
    }

    /// Makes the bridges of a machine's segments. The bridge comes last, so that one that is there is complete.
    fn ensure_segments(&self, machine: &Machine) -> Result<()> {
        net::with(async |net| {
            for link in &machine.links {
                let bridge = self.instance().bridge(&link.segment);
                if net::index(&net, &bridge).await?.is_none() {
                    nft::add_segment(self.instance(), &link.range())?;
                }
                net::ensure_bridge(&net, &bridge, link.gateway, link.prefix).await?;
            }
            Ok(())
        })
    }

    fn start_in_namespaces(
        &self,
        machine: &Machine,
        devices: &BTreeMap<DiskCid, Device>,
        lock: &MachineLock,
    ) -> Result<(Process, Duration, Duration)> {
        let begun = Instant::now();
        let namespace = net::with_here(async |outside| {
            // The socket stays in the host's network namespace when this thread leaves it.
            leave_namespaces()?;
            let namespace =
                File::open("/proc/thread-self/ns/net").doing(|| "open a network namespace".to_owned())?;
            for link in &machine.links {
                let bridge = self.instance().bridge(&link.segment);
                net::connect(&outside, link, &bridge, namespace.as_raw_fd()).await?;
            }
            Ok(namespace)
        })?;
        net::with_here(async |inside| net::configure(&inside, &machine.links).await)?;
        let dir = self.dir(&machine.cid);
        self.mount_root(machine)?;
        let network = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let spec = self.specification(machine, devices, &network)?;
        files::write_json(&dir.join("config.json"), &spec, 0o600)
            .doing(|| format!("write `{dir}/config.json`"))?;
        let namespaces = begun.elapsed();
        let process = self.call_runtime(machine, lock)?;
        let init = Init {
            process,
            boot_id: boot_id()?,
        };
        files::write_json(&dir.join("init.json"), &init, 0o644)
            .doing(|| format!("write `{dir}/init.json`"))?;
        Ok((process, namespaces, begun.elapsed().saturating_sub(namespaces)))
    }

    fn mount_root(&self, machine: &Machine) -> Result<()> {
        let dir = self.dir(&machine.cid);
        let lower = self.stemcell_root(&machine.stemcell);
        let options = format!("lowerdir={lower},upperdir={dir}/upper,workdir={dir}/work");
        let options = std::ffi::CString::new(options)
            .map_err(|error| Error::io("mount the root of a machine", io::Error::other(error)))?;
        let target = dir.join("rootfs");
        mount(
            "overlay",
            target.as_str(),
            "overlay",
            MountFlags::empty(),
            &*options,
        )
        .doing(|| format!("mount the root of machine `{}`", machine.cid))
    }

    /// Calls the OCI runtime, which inherits the machine's lock: should this process be killed, nobody else gets the lock
    /// before the runtime has ended.
    fn call_runtime(&self, machine: &Machine, lock: &MachineLock) -> Result<Process> {
        let dir = self.dir(&machine.cid);
        let what = || format!("start machine `{}`", machine.cid);
        let console = console(&dir.join("console.log")).doing(what)?;
        let errors = console.try_clone().doing(what)?;
        let (pid_file, log) = (dir.join("pid"), dir.join("runtime.log"));
        files::remove_if_there(&pid_file).doing(what)?;
        files::remove_if_there(&log).doing(what)?;
        let root = self.runtime_root();
        fs_err::create_dir_all(&root).doing(what)?;
        let mut command = Command::new(&self.config.runtime);
        command.args(["--root", root.as_str(), "--log", log.as_str(), "run", "--detach"]);
        command.args([
            "--pid-file",
            pid_file.as_str(),
            "--bundle",
            dir.as_str(),
            machine.cid.as_str(),
        ]);
        command.stdin(Stdio::null()).stdout(console).stderr(errors);
        fcntl_setfd(&lock.0, FdFlags::empty()).doing(what)?;
        let spawned = command.spawn();
        fcntl_setfd(&lock.0, FdFlags::CLOEXEC).doing(what)?;
        let status = spawned
            .map_err(|source| Error::io(format!("call `{}`", self.config.runtime), source))?
            .wait()
            .doing(what)?;
        if !status.success() {
            let detail = fs_err::read_to_string(&log).unwrap_or_default();
            return Err(Error::Program {
                what: what(),
                detail: format!("{status}: {}", detail.trim()),
            });
        }
        let text = fs_err::read_to_string(&pid_file).doing(what)?;
        let pid = text
            .trim()
            .parse()
            .map_err(|error| Error::io(what(), io::Error::other(error)))?;
        Process::of(pid).ok_or_else(|| Error::Program {
            what: what(),
            detail: format!("its first process ended at once; see `{dir}/console.log`"),
        })
    }

    /// The OCI bundle's configuration. Its `rootfsPropagation` does not survive the runtime's entering of the root, which makes
    /// that mount private: `stolos-init` shares it again. What is in it and why was found by running Kubernetes conformance in such machines.
    fn specification(
        &self,
        machine: &Machine,
        devices: &BTreeMap<DiskCid, Device>,
        network: &str,
    ) -> Result<Value> {
        let dir = self.dir(&machine.cid);
        let capabilities = capabilities()?;
        // A limit cannot be raised above the host's without CAP_SYS_RESOURCE.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let files = files.unwrap_or(1 << 20);
        let mut nodes = vec![
            node("/dev/kmsg", "c", 1, 11, 0o644),
            node("/dev/fuse", "c", 10, 229, 0o666),
            node("/dev/net/tun", "c", 10, 200, 0o666),
        ];
        for (disk, device) in devices {
            nodes.push(node(
                &format!("/dev/stolos/{disk}"),
                "b",
                device.major,
                device.minor,
                0o660,
            ));
        }
        let capability_sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
        let capability_sets: serde_json::Map<String, Value> = capability_sets
            .iter()
            .map(|set| ((*set).to_owned(), json!(capabilities)))
            .collect();
        Ok(json!({
            "ociVersion": "1.0.2",
            "hostname": machine.cid.as_str(),
            "root": {"path": dir.join("rootfs"), "readonly": false},
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": ["/sbin/init"],
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=stolos"],
                "cwd": "/",
                "noNewPrivileges": false,
                "capabilities": capability_sets,
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}],
            },
            "mounts": self.mounts(&dir, &machine.size)?,
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": network}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}, {"type": "cgroup"}],
                "cgroupsPath": format!("/{}", self.cgroup_of(machine)),
                "resources": limits(&machine.size),
                "devices": nodes,
                "rootfsPropagation": "rshared",
                "maskedPaths": [],
                "readonlyPaths": [],
            },
        }))
    }

    fn mounts(&self, dir: &Utf8Path, size: &Size) -> Result<Value> {
        let (packages, images) = (self.instance().packages(), self.instance().images());
        for place in [&packages, &images] {
            fs_err::create_dir_all(place).doing(|| format!("make `{place}`"))?;
        }
        let meminfo = dir.join("meminfo");
        fs_err::write(&meminfo, memory(size)).doing(|| format!("write `{meminfo}`"))?;
        let mount = |at: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": source, "options": options});
        Ok(json!([
            mount("/proc", "proc", "proc", &[]),
            // A kubelet believes this file, and gives pods as much as it says.
            mount("/proc/meminfo", "bind", meminfo.as_str(), &["bind", "ro"]),
            mount(
                "/dev",
                "tmpfs",
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"]
            ),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5"
                ]
            ),
            mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
            ),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"]),
            mount(
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "rw"]
            ),
            mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"]),
            mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
            // A container's images and volumes cannot lie on an overlay; this is the host's own file system.
            mount("/var", "bind", dir.join("var").as_str(), &["rbind", "rw"]),
            mount(
                "/var/vcap/shared/packages",
                "bind",
                packages.as_str(),
                &["rbind", "ro", "rslave"]
            ),
            mount(
                "/var/vcap/shared/images",
                "bind",
                images.as_str(),
                &["rbind", "ro", "rslave"]
            ),
        ]))
    }
}

/// A block device of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

fn node(path: &str, kind: &str, major: u32, minor: u32, mode: u32) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": 0, "gid": 0})
}

/// What a machine sees as its memory: its limit, and nothing of what its host does.
fn memory(size: &Size) -> String {
    let kib = size.ram.saturating_mul(1024);
    let line = |name: &str, kib: u64| format!("{:<16}{kib:>8} kB\n", format!("{name}:"));
    [
        line("MemTotal", kib),
        line("MemFree", kib),
        line("MemAvailable", kib),
        line("Buffers", 0),
        line("Cached", 0),
        line("SwapCached", 0),
        line("SwapTotal", 0),
        line("SwapFree", 0),
    ]
    .concat()
}

fn limits(size: &Size) -> Value {
    /// Microseconds; the kernel's default.
    const PERIOD: u32 = 100_000;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a quota of 2^63 microseconds is out of reach"
    )]
    let quota = (size.cpu * f64::from(PERIOD)).max(1000.0) as i64;
    json!({
        "devices": [{"allow": true, "access": "rwm"}],
        "memory": {"limit": size.ram.saturating_mul(1 << 20)},
        "cpu": {"quota": quota, "period": PERIOD},
        "pids": {"limit": size.pids},
    })
}

/// Moves the calling thread into mount and network namespaces of its own. Mounts of the host go on to appear, ours do not
/// appear there.
fn leave_namespaces() -> Result<()> {
    let what = || "make the namespaces of a machine".to_owned();
    #[expect(unsafe_code, reason = "unshare is unsafe in rustix because of its FILES flag")]
    // SAFETY: the file descriptor table stays shared: FILES is not among the flags. The thread is our own and ends soon.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }.doing(what)?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .doing(what)
}

fn console(path: &Utf8Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    if file.metadata()?.len() > CONSOLE_LIMIT {
        file.set_len(0)?;
    }
    Ok(file)
}

/// All capabilities that the host can give (`CapBnd` of our own process), by name.
fn capabilities() -> Result<Vec<&'static str>> {
    let path = "/proc/self/status";
    let text = fs_err::read_to_string(path).doing(|| format!("read `{path}`"))?;
    let set = text
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| Error::io(format!("read `{path}`"), io::Error::other("it has no CapBnd")))?;
    Ok(CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| set & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect())
}

/// By number, from `linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn wait_for_end(process: &Process, patience: Duration) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let what = || "wait for the end of a machine".to_owned();
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(());
    };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.doing(what)?,
    };
    if !process.is_alive() {
        return Ok(());
    }
    let limit = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let mut events = [PollFd::new(&handle, PollFlags::IN)];
    match poll(&mut events, Some(&limit)) {
        Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
        Err(error) => Err(Error::io(what(), error)),
    }
}
