//! Where things lie in a machine: BOSH's layout below `/var/vcap`.

use camino::{Utf8Path, Utf8PathBuf};

/// The layout below a base directory.
#[derive(Clone, Debug)]
pub struct Paths {
    base: Utf8PathBuf,
    run: Utf8PathBuf,
}

impl Default for Paths {
    /// That of a machine.
    fn default() -> Self {
        Self {
            base: "/var/vcap".into(),
            run: "/run/stolos-agent".into(),
        }
    }
}

macro_rules! paths {
    ($($(#[$doc:meta])* $name:ident => $path:literal),* $(,)?) => {
        impl Paths {$(
            $(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> Utf8PathBuf {
                self.base.join($path)
            }
        )*}
    };
}

paths! {
    /// What the CPI wrote.
    settings => "bosh/settings.json",
    /// What `update_settings` wrote.
    updated_settings => "bosh/update_settings.json",
    /// The spec that was last applied.
    spec => "bosh/spec.json",
    /// Where persistent disks are, by CID.
    disk_hints => "bosh/persistent_disk_hints.json",
    /// The highest generation that was ever applied.
    generation => "bosh/generation.json",
    /// What the director wants of the processes: see `processes::Wanted`.
    wanted => "bosh/wanted.json",
    /// The disk that belongs at the store, as BOSH's agent keeps it.
    managed_disk => "bosh/managed_disk_settings.json",
    /// Tasks whose results outlive the agent.
    tasks => "bosh/tasks.json",
    /// The agent's own logs.
    agent_log => "bosh/log",
    /// Links to rendered jobs.
    jobs => "jobs",
    /// Links to packages.
    packages => "packages",
    /// Unpacked packages that the CPI shares with all machines of a host, by SHA-256.
    shared_packages => "shared/packages",
    /// What jobs keep on the ephemeral disk.
    data => "data",
    /// Rendered jobs by digest.
    data_jobs => "data/jobs",
    /// Packages that were downloaded.
    data_packages => "data/packages",
    /// Half done things.
    data_tmp => "data/tmp",
    /// Logs of jobs.
    log => "sys/log",
    /// Process ids and sockets of jobs.
    sys_run => "sys/run",
    /// The persistent disk.
    store => "store",
    /// The disk that the store is migrated to.
    migration_target => "store_migration_target",
    /// `id`, `az`, `name`, `deployment` for scripts.
    instance => "instance",
}

impl Paths {
    /// A layout elsewhere: for simulated machines and tests.
    #[must_use]
    pub fn below(root: &Utf8Path) -> Self {
        Self {
            base: root.join("vcap"),
            run: root.join("run"),
        }
    }

    /// Blobs that came over the bus; gone with the next boot.
    #[must_use]
    pub fn sensitive_blobs(&self) -> Utf8PathBuf {
        self.run.join("blobs")
    }

    /// Says that a disk is being formatted: what it holds counts for nothing.
    #[must_use]
    pub(crate) fn formatting(&self, cid: &str) -> Utf8PathBuf {
        self.base.join("bosh").join(format!("formatting-{cid}"))
    }

    /// Made once per boot.
    #[must_use]
    pub fn booted(&self) -> Utf8PathBuf {
        self.run.join("booted")
    }
}
