//! What connections may take.

use std::time::Duration;

use crate::process;

/// What connections to the listeners of one process may take, in number and in time.
///
/// Nothing here limits how long an answer takes to begin (long-polls) or how long a body takes altogether (uploads over slow
/// links): who waits is not the peer, and bodies have a least rate instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, at all listeners together.
    pub total: usize,
    /// How many of those may be of peers that have not signed in (yet). The others are kept for those who have.
    pub anonymous: usize,
    /// Connections at once from one address.
    pub per_address: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request until its header is whole; on a new connection from the handshake on.
    pub header: Duration,
    /// Between two requests. Longer than our own clients keep a connection (90 s), so that it is they who end it.
    pub idle: Duration,
    /// How long a body may pause, in either direction. What comes faster than [`Self::least_rate`] earns it back.
    pub stall: Duration,
    /// Bytes per second that a body has to make on average once it has used up [`Self::stall`].
    pub least_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 2048,
            anonymous: 1024,
            per_address: 256,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(15),
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(30),
            least_rate: 1024,
        }
    }
}

impl Limits {
    /// The same with no more connections than a process with `open_files` descriptors has room for: half of them are for
    /// databases, blobs, pipes to programs and connections of our own.
    #[must_use]
    pub fn fitting(self, open_files: u64) -> Self {
        let room = usize::try_from(open_files / 2).unwrap_or(usize::MAX).max(2);
        let total = self.total.clamp(2, room);
        Self {
            total,
            // The same part of what there is.
            anonymous: (self.anonymous * total / self.total.max(1)).clamp(1, total - 1),
            per_address: self.per_address.clamp(1, total),
            ..self
        }
    }

    /// Fitting to this process, whose limit of open files is raised first.
    #[must_use]
    pub fn for_this_process(self) -> Self {
        self.fitting(process::raise_open_files())
    }

    /// How often a connection is looked at: often enough that no limit is overstepped by more than a quarter.
    pub(super) fn look(&self) -> Duration {
        let shortest = self.header.min(self.idle).min(self.stall);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
    }

    /// The time in which that many bytes come at the least rate.
    pub(super) fn time_of(&self, bytes: usize) -> Duration {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = u32::try_from(self.least_rate).unwrap_or(u32::MAX).max(1);
        Duration::from_secs(1).saturating_mul(bytes) / rate
    }
}
