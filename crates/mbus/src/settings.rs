//! `settings.json`: what a CPI tells an agent at its first boot, and what `update_settings` changes later.
//!
//! Shapes are BOSH's (Go agent `settings` package). Fields that we do not know are kept in `other`, so that a file that
//! passes through us loses nothing. Private keys and passwords are [`Secret`]s in memory; the files and messages hold
//! them in clear, by protocol, so they are serialized deliberately here and nowhere else.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use stolos_base::ids::AgentId;
use stolos_base::secret::Secret;

/// Serializes a secret in clear: only for wires and 0600 files that have to hold it.
pub(crate) fn expose<S: Serializer>(secret: &Secret<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

/// As [`expose`], for one that may be missing.
pub(crate) fn expose_option<S: Serializer>(
    secret: &Option<Secret<String>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_some(secret.expose()),
        None => serializer.serialize_none(),
    }
}

/// The whole file `/var/vcap/bosh/settings.json`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Settings {
    /// The id the agent listens under.
    pub agent_id: AgentId,
    /// One address of the bus, `nats://IP:PORT`; `env.bosh.mbus.urls` wins over it.
    #[serde(default)]
    pub mbus: String,
    /// Time servers.
    #[serde(default)]
    pub ntp: Vec<String>,
    /// The machine.
    pub vm: Vm,
    /// Where blobs are; `env.bosh.blobstores[0]` wins over it.
    #[serde(default)]
    pub blobstore: Blobstore,
    /// Disks by what they are for.
    #[serde(default)]
    pub disks: Disks,
    /// Networks by name.
    #[serde(default)]
    pub networks: Networks,
    /// What the director passed through the CPI.
    #[serde(default)]
    pub env: Env,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Settings {
    /// The addresses of the bus that count: the director's when it gave some, else the CPI's.
    #[must_use]
    pub fn bus_urls(&self) -> Vec<String> {
        match &self.env.bosh.mbus {
            Some(mbus) if !mbus.urls.is_empty() => mbus.urls.clone(),
            _ if self.mbus.is_empty() => Vec::new(),
            _ => vec![self.mbus.clone()],
        }
    }

    /// The blob store that counts.
    #[must_use]
    pub fn effective_blobstore(&self) -> &Blobstore {
        self.env.bosh.blobstores.first().unwrap_or(&self.blobstore)
    }
}

/// The machine as the CPI knows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Vm {
    /// The machine's CID.
    pub name: String,
    /// `id` of some CPIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// A blob store's provider and options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Blobstore {
    /// `dav`, `local`, `s3`, …
    #[serde(default)]
    pub provider: String,
    /// The provider's options.
    #[serde(default)]
    pub options: BlobstoreOptions,
    /// `name` and the like.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of the providers `dav` and `local`; other providers' are in `other`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct BlobstoreOptions {
    /// dav: `https://host:25250`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// dav: the name of the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// dav: its password.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_option"
    )]
    pub password: Option<Secret<String>>,
    /// dav: whom to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BlobstoreTls>,
    /// local: a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobstore_path: Option<String>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `tls` of a dav blob store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct BlobstoreTls {
    /// The trusted certificate.
    pub cert: BlobstoreCa,
}

/// `tls.cert` of a dav blob store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct BlobstoreCa {
    /// PEM.
    pub ca: String,
}

/// Disks by what they are for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Disks {
    /// The root disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<DiskHint>,
    /// The disk below `/var/vcap/data`; none means that the root disk is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<DiskHint>,
    /// Persistent disks by CID.
    #[serde(default)]
    pub persistent: IndexMap<String, DiskHint>,
    /// Unformatted local disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_ephemeral: Vec<DiskHint>,
}

/// How a disk is found: what `attach_disk` returned.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum DiskHint {
    /// A device path.
    Path(String),
    /// `path`, `id`, `volume_id`, `lun`, … as the infrastructure has it.
    Object(Map<String, Value>),
}

impl DiskHint {
    /// The device path where the hint has one: ours always do.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Path(path) => Some(path),
            Self::Object(object) => object.get("path")?.as_str(),
        }
    }
}

/// Networks by name, in the order given.
pub type Networks = IndexMap<String, Network>;

/// One network of a machine: the same shape in the CPI call, in `settings.json` and in the apply spec.
///
/// The director compares what comes back from `get_state` with what it sent, so nothing is added or dropped on the way:
/// absent stays absent, and unknown fields are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Network {
    /// `manual`, `dynamic` or `vip`.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The mask, dotted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netmask: Option<String>,
    /// The mask's length; a string on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// DNS servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<String>>,
    /// What this network is the default for: `dns`, `gateway`, sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Vec<String>>,
    /// Options of the CPI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_properties: Option<Value>,
    /// The interface's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The CPI has configured the interface; the agent leaves it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preconfigured: Option<bool>,
    /// `use_dhcp`, `routes`, `alias`, `dns_record_name`, … as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What the director passes through the CPI to the agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Env {
    /// Read by the agent.
    #[serde(default)]
    pub bosh: BoshEnv,
    /// File system of persistent disks, `ext4` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_disk_fs: Option<String>,
    /// Mount options of persistent disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_disk_mount_options: Option<Vec<String>>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `env.bosh`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct BoshEnv {
    /// The bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mbus: Option<Mbus>,
    /// Blob stores; the first one counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobstores: Vec<Blobstore>,
    /// Crypted password of the user `vcap`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_option"
    )]
    pub password: Option<Secret<String>>,
    /// Public keys of the user `vcap`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
    /// The full name of the instance group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Names that the CPI may group machines by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Tags of the deployment.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub tags: Map<String, Value>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How the agent reaches the bus.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Mbus {
    /// The client certificate.
    #[serde(default)]
    pub cert: MbusCert,
    /// `nats://IP:PORT`.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// A client certificate for the bus and the CA of its server, PEM.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct MbusCert {
    /// Whom to trust as server.
    pub ca: String,
    /// The agent's certificate.
    pub certificate: String,
    /// Its key.
    #[serde(serialize_with = "expose")]
    pub private_key: Secret<String>,
}

impl Default for MbusCert {
    fn default() -> Self {
        Self {
            ca: String::new(),
            certificate: String::new(),
            private_key: String::new().into(),
        }
    }
}

/// The argument of `update_settings`. A change of `mbus` or `blobstores` makes the agent restart itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct UpdateSettings {
    /// Extra CA certificates to trust, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_certs: Option<String>,
    /// Names of disks for jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_associations: Vec<DiskAssociation>,
    /// New blob stores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobstores: Vec<Blobstore>,
    /// A new way to the bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mbus: Option<Mbus>,
    /// What we do not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The name under which a job knows a disk.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DiskAssociation {
    /// The job's name for it.
    pub name: String,
    /// The disk.
    pub cid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
      "agent_id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","mbus":"nats://10.117.0.1:4222","ntp":[],
      "vm":{"name":"vm-1"},
      "blobstore":{"provider":"local","options":{"blobstore_path":"/b"}},
      "disks":{"system":"/dev/sda","persistent":{"disk-1":{"path":"/dev/stolos/disk-1"},"disk-2":"/dev/sdc"}},
      "networks":{"n":{"type":"manual","ip":"10.117.1.2","netmask":"255.255.255.0","prefix":"24",
                       "gateway":"10.117.1.1","dns":[],"default":["dns","gateway"],"preconfigured":true,
                       "cloud_properties":{"segment":"c1"},"routes":[]}},
      "env":{"bosh":{"mbus":{"cert":{"ca":"CA","certificate":"CERT","private_key":"TOPSECRET"},
                              "urls":["nats://10.117.0.1:4223"]},
                     "blobstores":[{"provider":"dav","options":{"endpoint":"https://e","user":"u",
                                    "password":"TOPSECRET","tls":{"cert":{"ca":"CA"}}}}],
                     "password":"TOPSECRET","parallel":5}},
      "unknown":1}"#;

    #[test]
    fn a_file_passes_through_unchanged_and_shows_no_secret() {
        let settings: Settings = serde_json::from_str(FILE).expect("settings");
        let before: Value = serde_json::from_str(FILE).expect("JSON");
        assert_eq!(serde_json::to_value(&settings).expect("JSON"), before);
        assert!(!format!("{settings:?}").contains("TOPSECRET"));
        assert_eq!(settings.bus_urls(), ["nats://10.117.0.1:4223"]);
        assert_eq!(settings.effective_blobstore().provider, "dav");
        assert_eq!(
            settings.disks.persistent["disk-1"].path(),
            Some("/dev/stolos/disk-1")
        );
        assert_eq!(settings.disks.persistent["disk-2"].path(), Some("/dev/sdc"));
    }
}
