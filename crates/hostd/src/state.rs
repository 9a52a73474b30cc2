//! What it was told, on disk.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::files;
use stolos_network::hostd_client::{HostNetwork, Managers, VirtualAddress};

/// What it was told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    #[serde(default)]
    pub(crate) host_network: Option<HostNetwork>,
    #[serde(default)]
    pub(crate) virtual_addresses: BTreeMap<Ipv4Addr, VirtualAddress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) managers: Option<Managers>,
}

/// The same with its file.
#[derive(Debug)]
pub(crate) struct State {
    path: Utf8PathBuf,
    told: Mutex<Told>,
}

impl State {
    pub(crate) fn open(directory: &Utf8Path) -> io::Result<Self> {
        fs_err::create_dir_all(directory)?;
        let path = directory.join("state.json");
        let told = files::read_json(&path)?.unwrap_or_default();
        Ok(Self {
            path,
            told: Mutex::new(told),
        })
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is told; on disk before it returns.
    pub(crate) fn change(&self, act: impl FnOnce(&mut Told)) -> io::Result<()> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = told.clone();
        act(&mut next);
        files::write_json(&self.path, &next, 0o600)?;
        *told = next;
        Ok(())
    }
}
