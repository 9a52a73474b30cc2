//! What the operator says about connections to the services, `connections` of `config.yml`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_base::http::Limits;

/// How many connections the services take at once, and how long they wait for whoever is at the other end. All numbers are at least 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// Connections to one manager at once, to all its ports; never more than half of the files that it may open.
    pub total: usize,
    /// How many of them may be of somebody who has not signed in; less than `total`, since the others are kept for who has.
    pub anonymous: usize,
    /// Connections from one address.
    pub per_address: usize,
    /// Seconds for the TLS handshake.
    pub handshake_seconds: u64,
    /// Seconds in which the header of a request has to be whole.
    pub header_seconds: u64,
    /// Seconds between two requests after which a connection ends.
    pub idle_seconds: u64,
    /// Seconds for which an upload or a download may pause.
    pub stall_seconds: u64,
    /// Bytes per second that an upload or a download makes at least. There is no limit for the whole of it.
    pub least_bytes_per_second: u64,
}

impl Default for Connections {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            total: limits.total,
            anonymous: limits.anonymous,
            per_address: limits.per_address,
            handshake_seconds: limits.handshake.as_secs(),
            header_seconds: limits.header.as_secs(),
            idle_seconds: limits.idle.as_secs(),
            stall_seconds: limits.stall.as_secs(),
            least_bytes_per_second: limits.least_rate,
        }
    }
}

impl Connections {
    /// In words for people: what makes no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        let numbers = [
            ("total", self.total as u64),
            ("anonymous", self.anonymous as u64),
            ("per_address", self.per_address as u64),
            ("handshake_seconds", self.handshake_seconds),
            ("header_seconds", self.header_seconds),
            ("idle_seconds", self.idle_seconds),
            ("stall_seconds", self.stall_seconds),
            ("least_bytes_per_second", self.least_bytes_per_second),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == 0) {
            return Err(format!("`{name}` of `connections` is 0, and is at least 1"));
        }
        if self.anonymous >= self.total {
            return Err(format!(
                "`anonymous` of `connections` is {}, which leaves nothing of {} for who has signed in",
                self.anonymous, self.total
            ));
        }
        Ok(())
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            total: self.total,
            anonymous: self.anonymous,
            per_address: self.per_address,
            handshake: Duration::from_secs(self.handshake_seconds),
            header: Duration::from_secs(self.header_seconds),
            idle: Duration::from_secs(self.idle_seconds),
            stall: Duration::from_secs(self.stall_seconds),
            least_rate: self.least_bytes_per_second,
        }
    }
}
