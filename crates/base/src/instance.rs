//! The name of an installation, and where it keeps things.
//!
//! Everything that an instance puts on a host carries its name, so that two instances and the tests run side by side
//! and `down` touches only its own. Interface names are limited to 15 bytes (`IFNAMSIZ`), which is why an instance
//! name is short.

use std::str::FromStr;
use std::{fmt, io};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// The name of one installation on a host: a lower-case letter, then up to seven lower-case letters or digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// The text is no instance name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "instance name `{0}` is not a lower-case letter followed by up to seven lower-case letters or digits"
)]
pub struct InvalidInstanceName(String);

impl InstanceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self("stolos".to_owned())
    }
}

impl FromStr for InstanceName {
    type Err = InvalidInstanceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        if starts_well && text.len() <= 8 && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInstanceName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for InstanceName {
    type Error = InvalidInstanceName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instance and its root directory. The only place where paths and host object names are put together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The name that all host objects carry.
    pub name: InstanceName,
    /// Everything that the instance keeps on disk lies below; not on an overlay file system.
    pub root: Utf8PathBuf,
}

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident => $path:literal),* $(,)?) => {
        impl Instance {$(
            $(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> Utf8PathBuf {
                self.root.join($path)
            }
        )*}
    };
}

places! {
    /// The operator's configuration of `stolosd`.
    config_file => "config.yml",
    /// The root key that encrypts all secrets (mode 0600).
    root_key => "root.key",
    /// Our CA certificate, for clients.
    ca_file => "ca.pem",
    /// SQLite databases, one per service.
    databases => "db",
    /// The blob store.
    blobs => "blobs",
    /// What is being uploaded to the director: one file a task.
    uploads => "uploads",
    /// Unpacked compiled packages by the SHA-256 of their archive; mounted read-only into machines.
    packages => "packages",
    /// Unpacked images of system containers; mounted read-only into machines.
    images => "images",
    /// Configuration of the CPI executable.
    cpi_config => "cpi-host.json",
    /// Journal of CPI calls: one directory a call.
    cpi_calls => "cpi-calls",
    /// Unpacked stemcells by CID.
    stemcells => "stemcells",
    /// Machines by CID.
    machines => "machines",
    /// Persistent disks by CID.
    disks => "disks",
    /// Snapshots of persistent disks by CID.
    snapshots => "snapshots",
    /// What `stolos-hostd` keeps.
    hostd => "hostd",
    /// Configuration and store of the bus.
    nats => "nats",
    /// Log files of the instance's own processes.
    logs => "log",
    /// Sockets and process ids.
    run => "run",
    /// The control socket of `stolos-hostd`.
    hostd_socket => "run/hostd.sock",
}

/// The name of one of several managers (`stolosd`) of an installation: as that of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberName(String);

/// The text is no member's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("member name `{0}` is not a lower-case letter followed by up to seven lower-case letters or digits")]
pub struct InvalidMemberName(String);

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberName {
    type Err = InvalidMemberName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<InstanceName>() {
            Ok(InstanceName(text)) => Ok(Self(text)),
            Err(InvalidInstanceName(text)) => Err(InvalidMemberName(text)),
        }
    }
}

impl TryFrom<String> for MemberName {
    type Error = InvalidMemberName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MemberName> for String {
    fn from(name: MemberName) -> Self {
        name.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one manager process has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerFiles {
    /// Held while it runs.
    pub lock: Utf8PathBuf,
    /// Which process it is, for `stolos up` and `stolos down`.
    pub record: Utf8PathBuf,
    /// What it says.
    pub log: Utf8PathBuf,
}

impl Instance {
    /// The files of a manager: of the only one, or of a member.
    #[must_use]
    pub fn manager(&self, member: Option<&MemberName>) -> ManagerFiles {
        let name = match member {
            None => "stolosd".to_owned(),
            Some(member) => format!("stolosd-{member}"),
        };
        ManagerFiles {
            lock: self.run().join(format!("{name}.lock")),
            record: self.run().join(format!("{name}.pid")),
            log: self.logs().join(format!("{name}.log")),
        }
    }

    /// The managers that run on this host, configured or not, each with its record, in the order of those.
    ///
    /// # Errors
    /// When the directory of records cannot be read.
    pub fn running_managers(&self) -> io::Result<Vec<(Utf8PathBuf, Process)>> {
        let mut found = Vec::new();
        if !self.run().exists() {
            return Ok(found);
        }
        for entry in self.run().read_dir_utf8()? {
            let path = entry?.into_path();
            let name = path.file_name().unwrap_or_default();
            if name.starts_with("stolosd")
                && name.ends_with(".pid")
                && let Some(process) = Process::recorded(&path)?
            {
                found.push((path, process));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// The directory of one of the bus's servers, counted from 0. That of the first one is what a server that is alone has.
    #[must_use]
    pub fn nats_server(&self, number: usize) -> Utf8PathBuf {
        match number {
            0 => self.nats(),
            number => self.nats().join(format!("server-{}", number + 1)),
        }
    }

    /// An instance below the usual place, `/var/lib/stolos/NAME`.
    #[must_use]
    pub fn at_default(name: InstanceName) -> Self {
        let root = Utf8Path::new("/var/lib/stolos").join(name.as_str());
        Self { name, root }
    }

    /// The cgroup below which the instance's machines live, relative to each controller's root.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("stolos-{}", self.name)
    }

    /// The nft table (family `inet`) of the instance.
    #[must_use]
    pub fn nft_table(&self) -> String {
        format!("stolos_{}", self.name)
    }

    /// The bridge of a network segment. `segment` has at most six bytes, see [`crate::instance::is_segment_name`].
    #[must_use]
    pub fn bridge(&self, segment: &str) -> String {
        format!("{}-{segment}", self.name)
    }

    /// The host's end of a machine's link; `tag` has at most six bytes.
    #[must_use]
    pub fn veth(&self, tag: &str) -> String {
        format!("{}v{tag}", self.name)
    }
}

/// Whether the text can name a network segment: one to six lower-case letters or digits.
#[must_use]
pub fn is_segment_name(text: &str) -> bool {
    (1..=6).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_interface_names() {
        let instance = Instance::at_default("abcdefg8".parse().expect("a valid name"));
        assert_eq!(instance.bridge("s00001").len(), 15);
        assert_eq!(instance.veth("ffffff").len(), 15);
        for bad in ["", "A", "9a", "with-dash", "ninechars"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
    }
}
