//! The instance on this host: its places, locks and records. Everything here blocks the thread.

use std::fs::File;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FlockOperation, flock};
use stolos_base::lock::FileLock;
use stolos_base::process::Process;
use stolos_base::{IdSource, Instance, files};
use stolos_cpi::{Kind, VmCid};

use crate::config::Config;
use crate::error::{Doing as _, Error, Result};
use crate::record::{Init, Machine};

/// An instance on this host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) config: std::sync::Arc<Config>,
    pub(crate) ids: IdSource,
}

/// The right to work on one machine. The OCI runtime inherits it while it runs.
#[derive(Debug)]
pub(crate) struct MachineLock(pub(crate) File);

impl Host {
    /// The host as an instance sees it.
    #[must_use]
    pub fn new(config: Config, ids: IdSource) -> Self {
        Self {
            config: config.into(),
            ids,
        }
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.config.instance
    }

    /// All machines, whole or not, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        let mut machines = Vec::new();
        for name in names(&self.instance().machines())? {
            if !name.starts_with('.')
                && let Some(machine) = self.machine(&VmCid::from(name))?
            {
                machines.push(machine);
            }
        }
        machines.sort_by(|a, b| a.cid.cmp(&b.cid));
        Ok(machines)
    }

    /// A machine's record.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn machine(&self, cid: &VmCid) -> Result<Option<Machine>> {
        if !is_plain(cid.as_str()) {
            return Ok(None);
        }
        let path = self.dir(cid).join("machine.json");
        files::read_json(&path).doing(|| format!("read the record of machine `{cid}`"))
    }

    /// The machine's first process, while it lives.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn init(&self, cid: &VmCid) -> Result<Option<Process>> {
        let path = self.dir(cid).join("init.json");
        let init: Option<Init> =
            files::read_json(&path).doing(|| format!("read the process of machine `{cid}`"))?;
        let boot_id = boot_id()?;
        Ok(init
            .filter(|init| init.boot_id == boot_id)
            .map(|init| init.process)
            .filter(Process::is_alive))
    }

    pub(crate) fn need(&self, cid: &VmCid) -> Result<Machine> {
        match self.machine(cid)? {
            Some(machine) if machine.state == crate::record::State::Ready => Ok(machine),
            _ => Err(Error::refuse(
                Kind::VmNotFound,
                format!("machine `{cid}` does not exist"),
            )),
        }
    }

    pub(crate) fn save(&self, machine: &Machine) -> Result<()> {
        let path = self.dir(&machine.cid).join("machine.json");
        files::write_json(&path, machine, 0o600).doing(|| format!("record machine `{}`", machine.cid))
    }

    pub(crate) fn dir(&self, cid: &VmCid) -> Utf8PathBuf {
        self.instance().machines().join(cid.as_str())
    }

    /// The directory of the OCI runtime's own state.
    pub(crate) fn runtime_root(&self) -> Utf8PathBuf {
        self.instance().run().join("runtime")
    }

    /// Waits for the right to work on a machine.
    pub(crate) fn lock_machine(&self, cid: &VmCid) -> Result<MachineLock> {
        if !is_plain(cid.as_str()) {
            return Err(Error::refuse(
                Kind::VmNotFound,
                format!("machine `{cid}` does not exist"),
            ));
        }
        let path = self.lock_path(cid.as_str());
        loop {
            let lock = lock_file(&path).doing(|| format!("lock machine `{cid}`"))?;
            // Whoever removed the machine removed the lock file as well; then the one we hold is nobody's.
            if same_file(&lock, &path) {
                return Ok(MachineLock(lock));
            }
        }
    }

    /// Waits for the right to change what machines share: segments, names, cgroup parents.
    pub(crate) fn lock_shared(&self) -> Result<FileLock> {
        FileLock::acquire(&self.lock_path("shared")).doing(|| "lock the instance".to_owned())
    }

    /// Waits for the right to work on a disk.
    pub(crate) fn lock_disk(&self, cid: &str) -> Result<FileLock> {
        FileLock::acquire(&self.lock_path(cid)).doing(|| format!("lock disk `{cid}`"))
    }

    pub(crate) fn lock_path(&self, name: &str) -> Utf8PathBuf {
        self.instance().run().join("locks").join(name)
    }

    /// Tells `stolos-hostd`, which watches this file, that machines have changed.
    pub(crate) fn changed(&self) -> Result<()> {
        let path = self.changes();
        fs_err::write(&path, b"").doing(|| format!("touch `{path}`"))
    }

    /// The file that is written whenever machines have changed.
    #[must_use]
    pub fn changes(&self) -> Utf8PathBuf {
        self.instance().machines().join(".changed")
    }
}

fn lock_file(path: &Utf8Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    }
    Ok(file)
}

fn same_file(file: &File, path: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The names in a directory; none where there is no directory.
pub(crate) fn names(dir: &Utf8Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs_err::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other.doing(|| format!("list `{dir}`"))?,
    };
    for entry in entries {
        let entry = entry.doing(|| format!("list `{dir}`"))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether the text can be the name of a directory of ours: it comes from outside.
pub(crate) fn is_plain(cid: &str) -> bool {
    !cid.is_empty()
        && cid.len() <= 128
        && !cid.starts_with('.')
        && cid
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The name of this boot of the host.
pub(crate) fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs_err::read_to_string(path).doing(|| format!("read `{path}`"))?;
    Ok(text.trim().to_owned())
}
