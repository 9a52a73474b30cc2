//! The first process of the machines in tests: answers one line commands on TCP port 7, as seen from inside.
//!
//! `report` · `share` · `write DEVICE TEXT` · `read DEVICE LENGTH` · `exists PATH` · `cat PATH` · `put PATH TEXT` ·
//! `mount DEVICE DIRECTORY` · `umount DIRECTORY` · `connect ADDRESS` · `exit`

use std::io::{self, Read as _, Write as _};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    // The first process gets no signal that it does not handle.
    let mut end = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind("0.0.0.0:7").await?;
    loop {
        let stream = tokio::select! {
            _ = end.recv() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let words: Vec<&str> = line.trim_end().splitn(3, ' ').collect();
        if words == ["exit"] {
            return Ok(());
        }
        let answer = match words.as_slice() {
            ["connect", address] => TcpStream::connect(address).await.map(|_| "ok".to_owned()),
            words => answer(words),
        };
        let text = answer.unwrap_or_else(|error| format!("error: {error}"));
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
    }
}

fn answer(words: &[&str]) -> io::Result<String> {
    let ok = |()| "ok".to_owned();
    match words {
        ["report"] => report(),
        ["share"] => mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
            .map_err(Into::into)
            .map(ok),
        ["write", device, text] => {
            let mut file = std::fs::OpenOptions::new().write(true).open(device)?;
            file.write_all(text.as_bytes())?;
            file.sync_all().map(ok)
        }
        ["read", device, length] => {
            let mut bytes = vec![0; length.parse().map_err(io::Error::other)?];
            std::fs::File::open(device)?.read_exact(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        ["exists", path] => Ok(std::path::Path::new(path).exists().to_string()),
        ["cat", path] => std::fs::read_to_string(path),
        ["put", path, text] => std::fs::write(path, text).map(ok),
        ["mount", device, directory] => {
            std::fs::create_dir_all(directory)?;
            mount(*device, *directory, "ext4", MountFlags::empty(), None)
                .map_err(Into::into)
                .map(ok)
        }
        ["umount", directory] => unmount(*directory, UnmountFlags::empty())
            .map_err(Into::into)
            .map(ok),
        other => Err(io::Error::other(format!("no command: {other:?}"))),
    }
}

fn report() -> io::Result<String> {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let first = |paths: [&str; 2]| paths.iter().map(|path| read(path)).find(|text| !text.is_empty());
    let report = json!({
        "pid": std::process::id(),
        "hostname": read("/proc/sys/kernel/hostname"),
        "machine_id": read("/etc/machine-id"),
        "resolver": read("/etc/resolv.conf"),
        "memory": first(["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"]),
        "cpu": first(["/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu.max"]),
        "pids": first(["/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"]),
        "files": [files.current, files.maximum],
        "capabilities": read("/proc/self/status").lines().find(|line| line.starts_with("CapEff")),
        "mounts": read("/proc/self/mountinfo"),
    });
    Ok(report.to_string())
}
