//! A picture of what a host has: taken before and after, the difference is what was left behind.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

/// What an installation could leave behind, as sorted lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(BTreeSet<String>);

impl Picture {
    /// Takes the picture. `ignore` filters lines that belong to somebody else.
    ///
    /// # Panics
    /// When the host cannot be read; a test cannot go on then.
    #[must_use]
    pub fn take(ignore: impl Fn(&str) -> bool) -> Self {
        let mut lines = BTreeSet::new();
        mounts(&mut lines);
        links(&mut lines);
        cgroups(&mut lines);
        loops(&mut lines);
        nft(&mut lines);
        sysctls(&mut lines);
        processes(&mut lines);
        lines.retain(|line| !ignore(line));
        Self(lines)
    }

    /// Lines that are there now and were not in `before`, and the other way round.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let gone = before.0.difference(&self.0).map(|line| format!("- {line}"));
        new.chain(gone).collect()
    }
}

fn mounts(lines: &mut BTreeSet<String>) {
    let text = fs_err::read_to_string("/proc/self/mounts").expect("the mount table");
    lines.extend(
        text.lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(|target| format!("mount {target}")),
    );
}

fn links(lines: &mut BTreeSet<String>) {
    for entry in fs_err::read_dir("/sys/class/net").expect("the links") {
        lines.insert(format!(
            "link {}",
            entry.expect("a link").file_name().to_string_lossy()
        ));
    }
    if let Ok(named) = fs_err::read_dir("/run/netns") {
        lines.extend(
            named
                .flatten()
                .map(|entry| format!("netns {}", entry.file_name().to_string_lossy())),
        );
    }
}

fn cgroups(lines: &mut BTreeSet<String>) {
    fn walk(path: &Utf8Path, lines: &mut BTreeSet<String>, depth: usize) {
        let Ok(entries) = path.read_dir_utf8() else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                lines.insert(format!("cgroup {}", entry.path()));
                if depth > 0 {
                    walk(entry.path(), lines, depth - 1);
                }
            }
        }
    }
    walk(Utf8Path::new("/sys/fs/cgroup"), lines, 2);
}

fn loops(lines: &mut BTreeSet<String>) {
    for entry in fs_err::read_dir("/sys/block")
        .expect("the block devices")
        .flatten()
    {
        let backing = entry.path().join("loop/backing_file");
        if let Ok(file) = std::fs::read_to_string(backing) {
            lines.insert(format!("loop {}", file.trim()));
        }
    }
}

fn nft(lines: &mut BTreeSet<String>) {
    let output = std::process::Command::new("nft")
        .args(["list", "tables"])
        .output()
        .expect("nft");
    lines.extend(
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| format!("nft {line}")),
    );
}

fn sysctls(lines: &mut BTreeSet<String>) {
    const WATCHED: [&str; 10] = [
        "fs/inotify/max_user_instances",
        "fs/inotify/max_user_watches",
        "kernel/keys/root_maxbytes",
        "kernel/keys/root_maxkeys",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/bridge/bridge-nf-call-iptables",
        "net/ipv4/ip_forward",
        "vm/overcommit_memory",
        "vm/panic_on_oom",
    ];
    for name in WATCHED {
        let value = std::fs::read_to_string(Utf8PathBuf::from("/proc/sys").join(name)).unwrap_or_default();
        lines.insert(format!("sysctl {name} = {}", value.trim()));
    }
}

fn processes(lines: &mut BTreeSet<String>) {
    const OURS: [&str; 12] = [
        "stolosd",
        "stolos-hostd",
        "stolos-init",
        "stolos-agent",
        "stolos-cpi-host",
        "nats-server",
        "etcd",
        "kube-apiserver",
        "kubelet",
        "containerd",
        "containerd-shim",
        "kube-proxy",
    ];
    for entry in fs_err::read_dir("/proc").expect("the processes").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if OURS.iter().any(|name| comm.trim().starts_with(name)) {
            // The arguments name the instance, by which a test tells its own processes from others'.
            let arguments = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            lines.insert(format!("process {pid} {}", arguments.replace('\0', " ").trim()));
        }
    }
}
