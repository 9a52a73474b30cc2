//! Sysctls of the host that machines need: changed with a record, put back when the last instance has gone.
//!
//! The record is one file for all instances of a host. It is written before a value is, so that a crash in between leaves a
//! record of a change that was not made, and never the reverse.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::files;
use stolos_base::lock::FileLock;

use crate::error::{Doing as _, Result};
use crate::host::Host;

/// What a sysctl has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This value.
    Exactly(u64),
    /// This value or more.
    AtLeast(u64),
}

/// What machines need. The inotify limits count for the whole host, and a node takes hundreds of instances; packets between
/// segments and to virtual addresses are forwarded; the others are what every kubelet sets or refuses to start without.
pub const REQUIRED: [(&str, Need); 9] = [
    ("fs.inotify.max_user_instances", Need::AtLeast(8192)),
    ("fs.inotify.max_user_watches", Need::AtLeast(1_048_576)),
    ("net.ipv4.ip_forward", Need::Exactly(1)),
    ("kernel.panic", Need::Exactly(10)),
    ("kernel.panic_on_oops", Need::Exactly(1)),
    ("vm.overcommit_memory", Need::Exactly(1)),
    ("vm.panic_on_oom", Need::Exactly(0)),
    ("kernel.keys.root_maxkeys", Need::AtLeast(1_000_000)),
    ("kernel.keys.root_maxbytes", Need::AtLeast(25_000_000)),
];

/// What is known of one changed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlRecord {
    /// The value before the first change.
    pub original: String,
    /// The value set.
    pub set: String,
    /// The instances that need it.
    pub users: BTreeSet<String>,
}

type Record = BTreeMap<String, SysctlRecord>;

/// The sysctls of a host and the record of their changes.
#[derive(Clone, Debug)]
pub struct Sysctls {
    record: Utf8PathBuf,
    root: Utf8PathBuf,
    required: Vec<(String, Need)>,
}

impl Sysctls {
    /// The sysctls of this host, with the record in the directory `record`.
    #[must_use]
    pub fn of_host(record: &Utf8Path) -> Self {
        Self::new(record, "/proc/sys".into(), &REQUIRED)
    }

    /// Sysctls below another root than `/proc/sys`; for tests.
    #[must_use]
    pub fn new(record: &Utf8Path, root: &Utf8Path, required: &[(&str, Need)]) -> Self {
        Self {
            record: record.to_owned(),
            root: root.to_owned(),
            required: required
                .iter()
                .map(|(key, need)| ((*key).to_owned(), *need))
                .collect(),
        }
    }

    /// Sets what is not as `user` needs it.
    ///
    /// # Errors
    /// When a value cannot be read, recorded or written.
    pub fn prepare(&self, user: &str) -> Result<()> {
        if self.is_prepared(user)? {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut record = self.read_record()?;
        for (key, need) in &self.required {
            let now = self.get(key)?;
            let fits = satisfied(&now, *need);
            if let Some(known) = record.get_mut(key) {
                known.users.insert(user.to_owned());
            } else if !fits {
                let made = SysctlRecord {
                    original: now,
                    set: value(*need),
                    users: BTreeSet::from([user.to_owned()]),
                };
                record.insert(key.clone(), made);
            }
        }
        self.write_record(&record)?;
        for (key, need) in &self.required {
            if !satisfied(&self.get(key)?, *need) {
                tracing::info!(%key, value = value(*need), "changing a sysctl of the host");
                self.set(key, &value(*need))?;
            }
        }
        Ok(())
    }

    /// Puts back what nobody but `user` needed. A value that somebody else has changed meanwhile is left as it is.
    ///
    /// # Errors
    /// When a value cannot be read or written.
    pub fn release(&self, user: &str) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut record = self.read_record()?;
        for (key, known) in &mut record {
            known.users.remove(user);
            if known.users.is_empty() && self.get(key)? == known.set {
                tracing::info!(%key, value = known.original, "putting a sysctl of the host back");
                self.set(key, &known.original)?;
            }
        }
        record.retain(|_, known| !known.users.is_empty());
        self.write_record(&record)
    }

    /// What is recorded now.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn read_record(&self) -> Result<Record> {
        let path = self.path();
        Ok(files::read_json(&path)
            .doing(|| format!("read `{path}`"))?
            .unwrap_or_default())
    }

    /// The quick way: everything is as it has to be, and where we changed it, `user` is counted.
    fn is_prepared(&self, user: &str) -> Result<bool> {
        for (key, need) in &self.required {
            if !satisfied(&self.get(key)?, *need) {
                return Ok(false);
            }
        }
        Ok(self
            .read_record()?
            .values()
            .all(|known| known.users.contains(user)))
    }

    fn write_record(&self, record: &Record) -> Result<()> {
        let path = self.path();
        if record.is_empty() {
            return files::remove_if_there(&path).doing(|| format!("remove `{path}`"));
        }
        files::write_json(&path, record, 0o644).doing(|| format!("write `{path}`"))
    }

    fn path(&self) -> Utf8PathBuf {
        self.record.join("sysctls.json")
    }

    fn lock(&self) -> Result<FileLock> {
        let path = self.record.join("lock");
        FileLock::acquire(&path).doing(|| format!("lock `{path}`"))
    }

    fn file(&self, key: &str) -> Utf8PathBuf {
        self.root.join(key.replace('.', "/"))
    }

    fn get(&self, key: &str) -> Result<String> {
        let path = self.file(key);
        let text = fs_err::read_to_string(&path).doing(|| format!("read `{path}`"))?;
        Ok(text.trim().to_owned())
    }

    fn set(&self, key: &str, text: &str) -> Result<()> {
        let path = self.file(key);
        fs_err::write(&path, text).doing(|| format!("write `{path}`"))
    }
}

fn satisfied(text: &str, need: Need) -> bool {
    match (text.parse::<u64>(), need) {
        (Ok(now), Need::Exactly(wanted)) => now == wanted,
        (Ok(now), Need::AtLeast(wanted)) => now >= wanted,
        (Err(_), _) => false,
    }
}

fn value(need: Need) -> String {
    let (Need::Exactly(value) | Need::AtLeast(value)) = need;
    value.to_string()
}

impl Host {
    fn sysctls(&self) -> Sysctls {
        Sysctls::of_host(&self.config.host_record)
    }

    /// The instance among all that may be on a host: two may have the same name in different places.
    fn user(&self) -> String {
        format!("{} {}", self.instance().name, self.instance().root)
    }

    /// Makes the host ready for machines.
    ///
    /// # Errors
    /// When a sysctl cannot be set.
    pub fn prepare(&self) -> Result<()> {
        self.sysctls().prepare(&self.user())
    }

    /// Puts back what was changed of the host, once no other instance needs it.
    ///
    /// # Errors
    /// When a sysctl cannot be put back.
    pub fn release(&self) -> Result<()> {
        self.sysctls().release(&self.user())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_puts_back_what_the_first_one_changed() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let root = dir.path().join("sys");
        fs_err::create_dir_all(root.join("a")).expect("a directory");
        let write = |name: &str, text: &str| fs_err::write(root.join("a").join(name), text).expect("a value");
        let read = |name: &str| {
            fs_err::read_to_string(root.join("a").join(name))
                .expect("a value")
                .trim()
                .to_owned()
        };
        for (name, text) in [("low", "5\n"), ("high", "50\n"), ("off", "0\n"), ("taken", "1\n")] {
            write(name, text);
        }
        let required = [
            ("a.low", Need::AtLeast(10)),
            ("a.high", Need::AtLeast(10)),
            ("a.off", Need::Exactly(1)),
            ("a.taken", Need::Exactly(7)),
        ];
        let sysctls = Sysctls::new(&dir.path().join("record"), &root, &required);
        sysctls.prepare("one").expect("prepared");
        sysctls.prepare("two").expect("prepared");
        sysctls.prepare("one").expect("prepared again");
        assert_eq!(
            [read("low"), read("high"), read("off"), read("taken")],
            ["10", "50", "1", "7"]
        );
        // A host that was booted again has its own values; the record keeps the first originals.
        write("low", "6\n");
        sysctls.prepare("two").expect("prepared");
        assert_eq!(read("low"), "10");
        sysctls.release("one").expect("released");
        assert_eq!(
            [read("low"), read("off")],
            ["10", "1"],
            "the second one still needs it"
        );
        write("taken", "9\n");
        sysctls.release("two").expect("released");
        sysctls.release("two").expect("released again");
        assert_eq!([read("low"), read("high"), read("off")], ["5", "50", "0"]);
        assert_eq!(read("taken"), "9", "somebody else's change stays");
        assert!(sysctls.read_record().expect("the record").is_empty());
    }
}
