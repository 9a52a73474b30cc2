//! Addresses as ranges and as sets of intervals. Nothing here is ever expanded to a list of addresses, so an IPv6
//! range costs as much as a single address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Addresses from `first` to `last`, both included and of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not an address, `a-b` or CIDR.
    #[error("'{0}' is not an IP address, a range (10.0.0.1-10.0.0.9) or a CIDR (10.0.0.0/24)")]
    Syntax(String),
    /// The end is before the beginning, or of the other family.
    #[error("the range '{0}' does not go from a lower to a higher address of one family")]
    Backwards(String),
}

impl Range {
    /// From `first` to `last`.
    ///
    /// # Errors
    /// The end is before the beginning, or of the other family.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, RangeError> {
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(RangeError::Backwards(format!("{first}-{last}")));
        }
        Ok(Self { first, last })
    }

    /// All of a network, its network and broadcast addresses included.
    #[must_use]
    pub fn of(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the address is one of these.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub fn covers(&self, other: &Range) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// How many addresses; stops at `u64::MAX`.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::try_from(bits(self.last) - bits(self.first))
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }

    /// Never: a range has at least one address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The addresses, ascending. Ask [`Range::len`] before walking through what people wrote.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        (bits(self.first)..=bits(self.last)).map(address)
    }
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let syntax = || RangeError::Syntax(text.to_owned());
        let text = text.trim();
        if let Some((first, last)) = text.split_once('-') {
            let first = first.trim().parse().map_err(|_| syntax())?;
            let last = last.trim().parse().map_err(|_| syntax())?;
            return Self::new(first, last).map_err(|_| RangeError::Backwards(text.to_owned()));
        }
        if text.contains('/') {
            return text.parse::<IpNet>().map(Self::of).map_err(|_| syntax());
        }
        text.parse()
            .map(|address| Self {
                first: address,
                last: address,
            })
            .map_err(|_| syntax())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A set of addresses as merged intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    /// First address of an interval → last one. IPv4 lies in the mapped part of IPv6, so both families fit.
    intervals: BTreeMap<u128, u128>,
}

impl IpSet {
    /// No address.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one address; false when it was there.
    pub fn insert(&mut self, address: IpAddr) -> bool {
        let there = self.contains(address);
        if !there {
            self.insert_range(&Range {
                first: address,
                last: address,
            });
        }
        !there
    }

    /// Adds all addresses of a range.
    pub fn insert_range(&mut self, range: &Range) {
        let (mut first, mut last) = (bits(range.first), bits(range.last));
        // Intervals that begin inside or right after the new one, and the one that reaches into it, become part of it.
        if let Some((&before, &end)) = self.intervals.range(..first).next_back()
            && end.saturating_add(1) >= first
        {
            first = before;
            last = last.max(end);
        }
        while let Some((&next, &end)) = self.intervals.range(first..=last.saturating_add(1)).next() {
            last = last.max(end);
            self.intervals.remove(&next);
        }
        self.intervals.insert(first, last);
    }

    /// Whether the address is in the set.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.intervals
            .range(..=bits)
            .next_back()
            .is_some_and(|(_, &last)| last >= bits)
    }

    /// Whether any address of the range is in the set.
    #[must_use]
    pub fn overlaps(&self, range: &Range) -> bool {
        self.contains(range.first)
            || self
                .intervals
                .range(bits(range.first)..=bits(range.last))
                .next()
                .is_some()
    }

    /// The lowest address of `range`, from `from` on, that is in none of `sets`.
    #[must_use]
    pub fn lowest_free(range: &Range, from: Option<IpAddr>, sets: &[&IpSet]) -> Option<IpAddr> {
        let last = bits(range.last);
        let mut candidate = bits(range.first).max(from.map_or(0, bits));
        'search: while candidate <= last {
            for set in sets {
                if let Some((_, &end)) = set.intervals.range(..=candidate).next_back()
                    && end >= candidate
                {
                    candidate = end.checked_add(1)?;
                    continue 'search;
                }
            }
            return Some(address(candidate));
        }
        None
    }

    /// How many addresses; stops at `u64::MAX`.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges()
            .fold(0_u64, |sum, range| sum.saturating_add(range.len()))
    }

    /// Whether it has no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The merged intervals, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.intervals.iter().map(|(&first, &last)| Range {
            first: address(first),
            last: address(last),
        })
    }
}

impl FromIterator<Range> for IpSet {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert_range(&range);
        }
        set
    }
}

impl Serialize for IpSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges().map(|range| range.to_string()))
    }
}

impl<'de> Deserialize<'de> for IpSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranges = Vec::<String>::deserialize(deserializer)?;
        ranges
            .iter()
            .map(|text| text.parse::<Range>().map_err(de::Error::custom))
            .collect()
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[&str]) -> IpSet {
        ranges.iter().map(|text| text.parse::<Range>().unwrap()).collect()
    }

    #[test]
    fn neighbors_become_one_interval() {
        let set = set(&["10.0.0.5", "10.0.0.1-10.0.0.3", "10.0.0.4", "10.0.1.0/30"]);
        let ranges: Vec<_> = set.ranges().map(|range| range.to_string()).collect();
        assert_eq!(ranges, ["10.0.0.1-10.0.0.5", "10.0.1.0-10.0.1.3"]);
        assert_eq!(set.len(), 9);
    }

    #[test]
    fn an_ipv6_network_is_one_interval() {
        let set = set(&["2001:db8::/64"]);
        assert!(set.contains("2001:db8::ffff:1".parse().unwrap()));
        assert_eq!(set.len(), u64::MAX);
    }

    #[test]
    fn bad_ranges_say_why() {
        for (text, expect) in [
            (
                "10.0.0.9-10.0.0.1",
                "the range '10.0.0.9-10.0.0.1' does not go from a lower to a higher address of one family",
            ),
            (
                "10.0.0",
                "'10.0.0' is not an IP address, a range (10.0.0.1-10.0.0.9) or a CIDR (10.0.0.0/24)",
            ),
            (
                "10.0.0.0/33",
                "'10.0.0.0/33' is not an IP address, a range (10.0.0.1-10.0.0.9) or a CIDR (10.0.0.0/24)",
            ),
        ] {
            assert_eq!(text.parse::<Range>().unwrap_err().to_string(), expect);
        }
    }

    proptest! {
        /// The intervals behave as the plain set of addresses would.
        #[test]
        fn intervals_are_a_set(ranges in proptest::collection::vec((0_u8..=255, 0_u8..=9), 0..30), from in 0_u8..=255) {
            let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
            let mut set = IpSet::new();
            let mut plain = BTreeSet::new();
            for (first, len) in ranges {
                let last = first.saturating_add(len);
                set.insert_range(&Range::new(ip(first), ip(last)).unwrap());
                plain.extend(first..=last);
            }
            prop_assert_eq!(set.len(), plain.len() as u64);
            for n in 0..=255 {
                prop_assert_eq!(set.contains(ip(n)), plain.contains(&n));
            }
            let all = Range::new(ip(0), ip(255)).unwrap();
            let expect = (from..=255).find(|n| !plain.contains(n)).map(ip);
            prop_assert_eq!(IpSet::lowest_free(&all, Some(ip(from)), &[&set]), expect);
        }
    }
}
