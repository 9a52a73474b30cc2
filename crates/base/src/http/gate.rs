//! Who may connect: a cap of connections in all and per address, a part of which is kept for those who have signed in.
//!
//! Where a part is full, newcomers are let in at the cost of whoever holds a connection without using it: a person who comes
//! for a moment gets through a flood of connections that are only held.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::http::Extensions;
use tokio::time::Instant;

use super::connection::State;
use super::limits::Limits;

/// How often the log is told that connections are refused.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The connections of all listeners of a process.
#[derive(Clone)]
pub(super) struct Gate(Arc<Inner>);

struct Inner {
    limits: Arc<Limits>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last: u64,
    entries: HashMap<u64, Entry>,
    addresses: HashMap<IpAddr, usize>,
    signed_in: usize,
    refused: u64,
    said: Option<Instant>,
}

struct Entry {
    address: Option<IpAddr>,
    signed_in: bool,
    state: Arc<State>,
}

/// A connection that counts until this is dropped.
pub(super) struct Admitted {
    gate: Gate,
    id: u64,
    pub(super) state: Arc<State>,
    pub(super) peer: Peer,
}

/// The other end of a connection, as an extension of its requests.
#[derive(Clone)]
pub struct Peer {
    pub(super) address: Option<SocketAddr>,
    gate: Weak<Inner>,
    id: u64,
}

impl Peer {
    /// The one that a request came from; `None` for a request that came over no connection of ours.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// From now on the connection is one of those that descriptors are kept for.
    pub fn signed_in(&self) {
        if let Some(inner) = self.gate.upgrade() {
            inner.table().sign_in(self.id);
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Peer").field(&self.address).finish()
    }
}

/// Says that the request with these extensions has shown who sends it ([`Peer::signed_in`]).
pub fn signed_in(extensions: &Extensions) {
    if let Some(peer) = Peer::of(extensions) {
        peer.signed_in();
    }
}

impl Gate {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self(Arc::new(Inner {
            limits,
            table: Mutex::default(),
        }))
    }

    /// Lets a connection in; `None` when there is no room, and nobody who would have to make some.
    pub(super) fn admit(&self, address: SocketAddr) -> Option<Admitted> {
        let ip = address.ip().to_canonical();
        let mut table = self.0.table();
        let limits = &self.0.limits;
        let from_there = table.addresses.get(&ip).copied().unwrap_or_default();
        let there = |entry: &Entry| entry.address == Some(ip);
        let mut fits = from_there < limits.per_address || table.make_room(true, there);
        if fits && !table.has_room(limits) {
            let also_signed_in = table.entries.len() >= limits.total;
            fits = table.make_room(also_signed_in, |_| true);
        }
        if !fits {
            table.say_refused();
            return None;
        }
        Some(self.enter(&mut table, Some(address), Some(ip)))
    }

    /// A connection whose socket's mode has let it in: it counts as signed in, and to no address.
    pub(super) fn admit_known(&self) -> Admitted {
        let mut table = self.0.table();
        let admitted = self.enter(&mut table, None, None);
        table.sign_in(admitted.id);
        admitted
    }

    /// Ends one connection that is only held, when descriptors are missing.
    pub(super) fn make_room(&self) {
        self.0.table().make_room(false, |_| true);
    }

    fn enter(&self, table: &mut Table, address: Option<SocketAddr>, ip: Option<IpAddr>) -> Admitted {
        table.last += 1;
        let (id, state) = (table.last, State::new(self.0.limits.clone()));
        if let Some(ip) = ip {
            *table.addresses.entry(ip).or_default() += 1;
        }
        let entry = Entry {
            address: ip,
            signed_in: false,
            state: state.clone(),
        };
        table.entries.insert(id, entry);
        Admitted {
            gate: self.clone(),
            id,
            state,
            peer: Peer {
                address,
                gate: Arc::downgrade(&self.0),
                id,
            },
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn has_room(&self, limits: &Limits) -> bool {
        self.entries.len() < limits.total && self.entries.len() - self.signed_in < limits.anonymous
    }

    /// Ends one of the connections that are only held: of the address that has the most, the one that is quiet for longest.
    /// Those that have signed in are spared, or come last.
    fn make_room(&mut self, also_signed_in: bool, of: impl Fn(&Entry) -> bool) -> bool {
        let now = Instant::now();
        let victim = self
            .entries
            .iter()
            .filter(|(_, entry)| of(entry) && (also_signed_in || !entry.signed_in))
            .filter_map(|(id, entry)| {
                let quiet_since = entry.state.only_held_since(now, entry.signed_in)?;
                let address = entry.address.and_then(|address| self.addresses.get(&address));
                Some(((entry.signed_in, Reverse(address.copied()), quiet_since), *id))
            })
            .min();
        let Some((_, id)) = victim else { return false };
        if let Some(entry) = self.leave(id) {
            entry.state.cut();
        }
        true
    }

    fn sign_in(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !entry.signed_in
        {
            entry.signed_in = true;
            self.signed_in += 1;
        }
    }

    fn leave(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.signed_in -= usize::from(entry.signed_in);
        if let Some(address) = entry.address
            && let Some(count) = self.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
        Some(entry)
    }

    fn say_refused(&mut self) {
        self.refused += 1;
        if self.said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
            tracing::warn!(
                open = self.entries.len(),
                signed_in = self.signed_in,
                refused = self.refused,
                "refused connections: too many are open"
            );
            self.said = Some(Instant::now());
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.0.table().leave(self.id);
    }
}
