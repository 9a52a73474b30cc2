//! The arithmetic of addresses. Pure: no I/O, no clock, no chance.
//!
//! An instance owns one /16, its [`Base`]. `X.Y.0.1` is the host; `X.Y.0.10` and up are virtual API addresses; the
//! segment of lease `N` is `X.Y.N.0/24` and its virtual address `X.Y.0.(N + 9)`, so that one number is all that a lease
//! has to record.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use stolos_base::ids::ClusterId;

/// The last octet of the first virtual API address.
const FIRST_VIRTUAL: u8 = 10;
/// The most leases of one instance: as many as there are virtual addresses from .10 to .254.
pub const CAPACITY: u8 = 245;
/// The pods of every cluster; inside it a machine owns the /24 of its own last octet.
pub const POD_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 16);
/// The services of every cluster.
pub const SERVICE_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 100, 200, 0), 24);
/// The cluster DNS of every cluster.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 100, 200, 2);

/// The /16 of an instance; `stolos_base::range` chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct Base(Ipv4Net);

/// The range cannot be an instance's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a private IPv4 network of the form X.Y.0.0/16 apart from the ranges of pods and services"
)]
pub struct InvalidBase(String);

impl Base {
    /// The whole range.
    #[must_use]
    pub fn range(self) -> Ipv4Net {
        self.0
    }

    /// Where the instance's services listen: `X.Y.0.1`.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        self.at(0, 1)
    }

    /// The instance's own segment: `X.Y.0.0/24`.
    #[must_use]
    pub fn management(self) -> Ipv4Net {
        Ipv4Net::new_assert(self.at(0, 0), 24)
    }

    fn at(self, third: u8, fourth: u8) -> Ipv4Addr {
        let [first, second, ..] = self.0.network().octets();
        Ipv4Addr::new(first, second, third, fourth)
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

impl TryFrom<Ipv4Net> for Base {
    type Error = InvalidBase;

    fn try_from(net: Ipv4Net) -> Result<Self, Self::Error> {
        let is_free = ![POD_RANGE, SERVICE_RANGE]
            .iter()
            .any(|range| overlap(net, *range));
        if net.prefix_len() == 16 && net == net.trunc() && net.network().is_private() && is_free {
            Ok(Self(net))
        } else {
            Err(InvalidBase(net.to_string()))
        }
    }
}

impl From<Base> for Ipv4Net {
    fn from(base: Base) -> Self {
        base.0
    }
}

impl FromStr for Base {
    type Err = InvalidBase;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: Ipv4Net = text.parse().map_err(|_| InvalidBase(text.to_owned()))?;
        net.try_into()
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a lease: 1 to [`CAPACITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(u8);

impl Number {
    /// The number, if it is one of a lease.
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (1..=CAPACITY).contains(&number).then_some(Self(number))
    }

    /// As a plain number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The number for a new lease: the first free one after the last that was given, so that an address that was just
/// returned stays unused for as long as possible. None when all are taken.
#[must_use]
pub fn choose(last: Option<Number>, taken: &BTreeSet<Number>) -> Option<Number> {
    let start = last.map_or(0, |number| number.0);
    (0..CAPACITY)
        .map(|offset| {
            let number = (u16::from(start) + u16::from(offset)) % u16::from(CAPACITY) + 1;
            Number(u8::try_from(number).expect("at most CAPACITY"))
        })
        .find(|number| !taken.contains(number))
}

/// All addresses that one cluster has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose it is.
    pub cluster: ClusterId,
    /// The name of its network segment: `c` and the lease's number in hex.
    pub segment: String,
    /// The segment's range.
    pub range: Ipv4Net,
    /// The host in that segment, the machines' gateway.
    pub gateway: Ipv4Addr,
    /// The first address for machines.
    pub first_machine: Ipv4Addr,
    /// The last address for machines.
    pub last_machine: Ipv4Addr,
    /// Where the cluster's API server is reached, whichever master answers.
    pub virtual_address: Ipv4Addr,
    /// The range of its pods; see [`pod_range`].
    pub pod_range: Ipv4Net,
    /// The range of its services.
    pub service_range: Ipv4Net,
    /// The address of its DNS service.
    pub dns_address: Ipv4Addr,
}

impl Lease {
    /// What follows from a number.
    #[must_use]
    pub fn new(base: Base, number: Number, cluster: ClusterId) -> Self {
        let n = number.get();
        Self {
            cluster,
            segment: format!("c{n:x}"),
            range: Ipv4Net::new_assert(base.at(n, 0), 24),
            gateway: base.at(n, 1),
            first_machine: base.at(n, 2),
            last_machine: base.at(n, 254),
            virtual_address: base.at(0, FIRST_VIRTUAL + n - 1),
            pod_range: POD_RANGE,
            service_range: SERVICE_RANGE,
            dns_address: DNS_ADDRESS,
        }
    }
}

/// The pods of the machine with this address: `10.200.M.0/24` for an address that ends in `.M`
/// (`docs/design/0003-static-pod-routes.md`).
#[must_use]
pub fn pod_range(machine: Ipv4Addr) -> Ipv4Net {
    let [.., last] = machine.octets();
    Ipv4Net::new_assert(Ipv4Addr::new(10, 200, last, 0), 24)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stolos_base::IdSource;

    use super::*;

    proptest! {
        /// Leases and returns in any order: no number is out twice, none is lost, none is refused while one is free.
        #[test]
        fn numbers_are_given_once_and_never_lost(actions in prop::collection::vec(any::<Option<u8>>(), 0..1200)) {
            let mut taken = BTreeSet::new();
            let mut last = None;
            for action in actions {
                match action {
                    // Mostly leases, so that the pool runs dry sometimes.
                    None | Some(0..=160) => match choose(last, &taken) {
                        Some(number) => {
                            prop_assert!((1..=CAPACITY).contains(&number.get()));
                            prop_assert!(taken.insert(number), "{number:?} is out twice");
                            last = Some(number);
                        }
                        None => prop_assert_eq!(taken.len(), usize::from(CAPACITY)),
                    },
                    Some(pick) => {
                        if let Some(&number) = taken.iter().nth(usize::from(pick) % taken.len().max(1)) {
                            taken.remove(&number);
                        }
                    }
                }
            }
            let mut rest = 0;
            while let Some(number) = choose(last, &taken) {
                taken.insert(number);
                last = Some(number);
                rest += 1;
            }
            prop_assert!(rest <= CAPACITY);
            prop_assert_eq!(taken.len(), usize::from(CAPACITY));
        }
    }

    #[test]
    fn no_two_leases_share_an_address_and_all_names_fit() {
        let base = "10.117.0.0/16".parse::<Base>().expect("a range");
        let ids = IdSource::counted();
        let leases: Vec<Lease> = (1..=i64::from(CAPACITY))
            .map(|n| Lease::new(base, Number::new(n).expect("a number"), ClusterId::new(&ids)))
            .collect();
        let mut segments = BTreeSet::new();
        let mut virtuals = BTreeSet::new();
        for lease in &leases {
            assert!(stolos_base::instance::is_segment_name(&lease.segment));
            assert!(segments.insert(lease.segment.clone()));
            assert!(virtuals.insert(lease.virtual_address));
            assert!(base.range().contains(&lease.range) && !overlap(lease.range, base.management()));
            assert!(base.management().contains(&lease.virtual_address));
            assert!(lease.range.contains(&lease.first_machine) && lease.range.contains(&lease.last_machine));
            assert_ne!(lease.range.broadcast(), lease.last_machine);
        }
        for (i, lease) in leases.iter().enumerate() {
            assert!(leases[..i].iter().all(|other| !overlap(other.range, lease.range)));
        }
        assert_eq!(virtuals.first(), Some(&Ipv4Addr::new(10, 117, 0, 10)));
        assert_eq!(virtuals.last(), Some(&Ipv4Addr::new(10, 117, 0, 254)));
    }

    #[test]
    fn a_base_is_private_and_apart_from_pods_and_services() {
        for bad in [
            "10.117.0.0/24",
            "10.117.3.0/16",
            "8.8.0.0/16",
            "10.200.0.0/16",
            "10.100.0.0/16",
            "x",
        ] {
            assert!(bad.parse::<Base>().is_err(), "{bad}");
        }
        assert_eq!(
            pod_range(Ipv4Addr::new(10, 117, 3, 7)).to_string(),
            "10.200.7.0/24"
        );
    }
}
