//! The configuration file, which is JSON.

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_base::{Instance, files};

use crate::error::{Error, Result};

/// What the CPI has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Whose machines they are.
    pub instance: Instance,
    /// What agents are told.
    #[serde(default)]
    pub agent: AgentConfig,
    /// The OCI runtime: a name on `PATH` or a path.
    #[serde(default = "runc")]
    pub runtime: String,
    /// How many times the host's memory the machines of the instance may be promised together.
    #[serde(default = "overcommit")]
    pub memory_overcommit: f64,
    /// Where changes to the host itself are recorded; one place for all instances of a host.
    #[serde(default = "host_record")]
    pub host_record: Utf8PathBuf,
}

/// What agents are told, as in BOSH's settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentConfig {
    /// Where the bus is.
    #[serde(default)]
    pub mbus: Vec<String>,
    /// The blob store: `{provider, options}`; empty where the director tells agents of it.
    #[serde(default = "no_blobstore")]
    pub blobstore: Value,
    /// Time servers.
    #[serde(default)]
    pub ntp: Vec<String>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            mbus: Vec::new(),
            blobstore: no_blobstore(),
            ntp: Vec::new(),
        }
    }
}

/// An object, because an agent reads an object.
fn no_blobstore() -> Value {
    Value::Object(serde_json::Map::new())
}

impl Config {
    /// A configuration with defaults.
    #[must_use]
    pub fn new(instance: Instance) -> Self {
        Self {
            instance,
            agent: AgentConfig::default(),
            runtime: runc(),
            memory_overcommit: overcommit(),
            host_record: host_record(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it is not there or not as it should be.
    pub fn read(path: &Utf8Path) -> Result<Self> {
        files::read_json(path)
            .and_then(|config| config.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .map_err(|source| Error::io(format!("read the configuration `{path}`"), source))
    }
}

fn runc() -> String {
    "runc".to_owned()
}

fn overcommit() -> f64 {
    1.5
}

fn host_record() -> Utf8PathBuf {
    "/var/lib/stolos-host".into()
}
