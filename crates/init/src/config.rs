//! The configuration file, `/etc/stolos/init.json`. All fields have defaults that fit our stemcell; a missing file is as
//! good as `{}`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the file is unless the command line says otherwise.
pub const FILE: &str = "/etc/stolos/init.json";

/// What can be configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The agent to start; none when absent. Another agent (BOSH's Go agent) is put here.
    pub agent: Option<Agent>,
    /// `JOB/PROCESS.stdout.log` and `.stderr.log` lie below.
    pub log_dir: PathBuf,
    /// `agent.stdout.log`, `agent.stderr.log` and `init.log` lie here.
    pub own_log_dir: PathBuf,
    /// A log file is put aside when it has this many bytes.
    pub log_max_bytes: u64,
    /// How many files of a log are kept, the one being written included.
    pub log_files: u32,
    /// How long processes may take to end when the machine is powered off, whatever they were given by definition. Seconds.
    /// With what follows it stays below the ten seconds that the infrastructure waits.
    pub power_off_timeout_s: u64,
    /// Below which control group of each hierarchy ours are made. `/` in a machine, which has a namespace of its own; none
    /// when absent.
    pub cgroup: Option<String>,
    /// What is mounted at or below these paths is unmounted before the machine ends.
    pub unmount: Vec<PathBuf>,
}

/// The program that is kept running beside the jobs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, beside `PATH` and the like.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agent: Some(Agent {
                argv: vec!["/var/vcap/bosh/bin/stolos-agent".to_owned()],
                env: BTreeMap::new(),
            }),
            log_dir: "/var/vcap/sys/log".into(),
            own_log_dir: "/var/vcap/bosh/log".into(),
            log_max_bytes: 10 * 1024 * 1024,
            log_files: 3,
            power_off_timeout_s: 6,
            cgroup: Some("/".to_owned()),
            unmount: vec![
                "/var/vcap/store".into(),
                "/var/vcap/store_migration_target".into(),
            ],
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not of this form.
    pub fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("`{}`: {error}", path.display()),
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }
}
