//! What can be done to a cluster's machines, and how it is undone.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use stolos_base::poll;
use stolos_base::process::Process;

use crate::api::Etcd;
use crate::site::{Machine, Site, said};

/// The table of a cut-off machine, in its own network namespace.
const TABLE: &str = "stolos_faults";
/// What fills a disk.
const FILL: &str = "/var/vcap/store/stolos-faults.fill";
const ETCD_DATA: &str = "/var/vcap/store/etcd";

/// A fault, on one machine unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// One program of it is killed.
    Process(&'static str),
    /// Its first process is killed, as when a hypervisor loses a machine.
    Killed,
    /// It is deleted behind the director's back. Its disk stays.
    Deleted,
    /// It is deleted, and its persistent disk with it.
    DiskLost,
    /// Everything in it stands still.
    Frozen,
    /// It neither sends nor gets anything.
    CutOff,
    /// Its persistent disk is full.
    FullDisk,
    /// What its etcd had is gone, and etcd with it.
    EtcdDataLost,
    /// What its etcd has is noise.
    EtcdCorrupted,
    /// Its etcd was taken out of the members.
    EtcdRemoved,
    /// All etcds at once are killed.
    EtcdAllKilled,
    /// The manager is killed and comes back; one of them, where there are several.
    Manager,
}

impl Fault {
    /// Whether it is one of a machine with etcd.
    pub(crate) fn is_masters(self) -> bool {
        matches!(
            self,
            Self::DiskLost
                | Self::FullDisk
                | Self::EtcdDataLost
                | Self::EtcdCorrupted
                | Self::EtcdRemoved
                | Self::EtcdAllKilled
                | Self::Process("etcd" | "kube-apiserver" | "kube-controller-manager" | "kube-scheduler")
        )
    }

    /// Whether it lasts until it is lifted.
    pub(crate) fn lasts(self) -> bool {
        matches!(self, Self::Frozen | Self::CutOff | Self::FullDisk | Self::Manager)
    }

    pub(crate) async fn strike(self, site: &Site, machine: &Machine) -> anyhow::Result<()> {
        match self {
            Self::Process(program) => kill(site, machine, program),
            Self::Killed => signal(machine.pid, Signal::KILL),
            Self::Deleted => site.delete_machine(&machine.cid),
            Self::DiskLost => site.delete_machine_and_disks(&machine.cid),
            Self::Frozen => freeze(site, machine),
            Self::CutOff => {
                let rules = format!(
                    "table inet {TABLE} {{ chain in {{ type filter hook input priority -300; policy drop; iifname lo accept; }}; \
                     chain out {{ type filter hook output priority -300; policy drop; oifname lo accept; }}; \
                     chain through {{ type filter hook forward priority -300; policy drop; }}; }}"
                );
                nft(machine, &rules)
            }
            Self::FullDisk => fill(machine),
            Self::EtcdDataLost => {
                kill(site, machine, "etcd")?;
                fs_err::remove_dir_all(machine.path(ETCD_DATA))?;
                // It may have been started again between the two, on files that are no more.
                kill(site, machine, "etcd")
            }
            Self::EtcdCorrupted => {
                let database = machine.path(&format!("{ETCD_DATA}/member/snap/db"));
                let noise: Vec<u8> = (0_u32..256 * 1024)
                    .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
                    .collect();
                kill(site, machine, "etcd")?;
                fs_err::write(database, noise)?;
                kill(site, machine, "etcd")
            }
            Self::EtcdRemoved => {
                let other = site
                    .machines()?
                    .into_iter()
                    .find(|other| other.is_master() && other.name != machine.name)
                    .context("there is one master only")?;
                let etcd = Etcd::of(&other)?;
                // It refuses for some seconds after its members have found each other again.
                poll::until(
                    "removal",
                    Duration::from_secs(1),
                    Duration::from_secs(60),
                    async || {
                        let removed = etcd.remove(&machine.node()).await;
                        removed.map_err(|error| format!("{error:#}"))
                    },
                )
                .await?;
                Ok(())
            }
            Self::EtcdAllKilled => {
                for master in site.machines()?.iter().filter(|machine| machine.is_master()) {
                    kill(site, master, "etcd")?;
                }
                Ok(())
            }
            Self::Manager => {
                let managers = site.instance.running_managers()?;
                let one = usize::try_from(machine.pid)? % managers.len().max(1);
                let (_, manager) = managers.get(one).context("no manager runs")?;
                Ok(manager.signal(Signal::KILL)?)
            }
        }
    }

    /// Undoes a fault that lasts, if the machine is still there.
    pub(crate) fn lift(self, site: &Site, machine: &Machine) -> anyhow::Result<()> {
        let is_there = || {
            site.machines()
                .map(|all| all.iter().any(|one| one.cid == machine.cid))
        };
        match self {
            Self::Manager => site.stolos(&["up"]).map(drop),
            _ if !is_there()? => Ok(()),
            Self::Frozen => {
                for pid in site.pids(&machine.cid) {
                    signal(pid, Signal::CONT)?;
                }
                Ok(())
            }
            Self::CutOff => nft(machine, &format!("delete table inet {TABLE}")),
            Self::FullDisk => Ok(fs_err::remove_file(machine.path(FILL))?),
            _ => Ok(()),
        }
    }
}

/// Stops every process, until there is none that was not stopped: what is being forked meanwhile too.
fn freeze(site: &Site, machine: &Machine) -> anyhow::Result<()> {
    let mut stopped = BTreeSet::new();
    for _ in 0..20 {
        let new: Vec<i32> = site
            .pids(&machine.cid)
            .into_iter()
            .filter(|pid| !stopped.contains(pid))
            .collect();
        if new.is_empty() && !stopped.is_empty() {
            return Ok(());
        }
        for pid in new {
            signal(pid, Signal::STOP)?;
            stopped.insert(pid);
        }
    }
    bail!("{} forks faster than it can be stopped", machine.name)
}

/// Kills a program of a machine, all processes of that name.
fn kill(site: &Site, machine: &Machine, program: &str) -> anyhow::Result<()> {
    for pid in site.pids(&machine.cid) {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let own = arguments
            .split('\0')
            .next()
            .and_then(|first| first.rsplit('/').next());
        if own == Some(program) {
            signal(pid, Signal::KILL)?;
        }
    }
    Ok(())
}

fn fill(machine: &Machine) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs_err::File::create(machine.path(FILL))?;
    let block = vec![0xA5_u8; 1 << 20];
    loop {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// With the machine's own program: the host's may be too old for what others have put there.
fn nft(machine: &Machine, rules: &str) -> anyhow::Result<()> {
    let pid = machine.pid.to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid, "-a", "nft", rules]);
    said(&mut command).map(drop)
}

/// A process that has ended meanwhile is none.
fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    let process = Process::of(pid);
    Ok(process.map_or(Ok(()), |process| process.signal(signal))?)
}
