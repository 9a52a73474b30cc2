//! The instance's own /16, chosen once.
//!
//! Invariant: once recorded it never changes, because it is in certificates and kubeconfigs.

use std::io;
use std::net::Ipv4Addr;

use crate::{files, lock::FileLock};
use camino::Utf8Path;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The candidates, in order: 10.117.0.0/16 and the fifteen after it.
const FIRST: u8 = 117;
const CANDIDATES: u8 = 16;
/// Installations of one host choose one after the other, and see what the others took even before it is routed.
const CLAIMS: &str = "/var/lib/stolos-host/ranges.json";

/// Managers that have addresses: `X.Y.0.2` to `X.Y.0.9`.
pub const MANAGERS: usize = 8;

/// The range of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNetwork {
    /// The /16.
    pub range: Ipv4Net,
}

impl HostNetwork {
    /// The host's own address in it: where all services listen.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 1)
    }

    /// Where a manager listens that is one of several: `X.Y.0.2` for the first of them (0), up to [`MANAGERS`]. The host's own address
    /// is balanced over them.
    #[must_use]
    pub fn manager(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 2 + u32::from(number))
    }

    /// The host's address with the prefix of the management segment.
    #[must_use]
    pub fn host_cidr(&self) -> String {
        format!("{}/24", self.host())
    }
}

/// No range could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All candidates are routed or claimed.
    #[error("none of the ranges 10.117.0.0/16 to 10.132.0.0/16 is free on this host")]
    NoneFree,
    /// A file cannot be read or written.
    #[error("failed to record the address range")]
    Record(#[source] io::Error),
}

fn candidates() -> impl Iterator<Item = Ipv4Net> {
    (0..CANDIDATES).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(10, FIRST + n, 0, 0), 16).ok())
}

/// Whether a network shares addresses with one of the candidates.
#[must_use]
pub fn may_be_ours(network: Ipv4Net) -> bool {
    candidates().any(|candidate| candidate.contains(&network) || network.contains(&candidate))
}

/// The recorded range, else a new one, which is recorded in `file` and among the host's claims.
///
/// # Errors
/// When no range is free or it cannot be recorded.
pub fn claim(file: &Utf8Path, owner: &str) -> Result<HostNetwork, Error> {
    claim_at(
        file,
        owner,
        Utf8Path::new(CLAIMS),
        &routes().map_err(Error::Record)?,
    )
}

/// Gives a claim back, when an instance is removed for good.
///
/// # Errors
/// When the host's claims cannot be written.
pub fn release(owner: &str) -> Result<(), Error> {
    let claims = Utf8Path::new(CLAIMS);
    if !claims.exists() {
        return Ok(());
    }
    let _lock = FileLock::acquire(&claims.with_extension("lock")).map_err(Error::Record)?;
    let mut taken: Vec<Claim> = files::read_json(claims)
        .map_err(Error::Record)?
        .unwrap_or_default();
    taken.retain(|claim| claim.owner != owner);
    files::write_json(claims, &taken, 0o644).map_err(Error::Record)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    owner: String,
    range: Ipv4Net,
}

fn claim_at(
    file: &Utf8Path,
    owner: &str,
    claims: &Utf8Path,
    routed: &[Ipv4Net],
) -> Result<HostNetwork, Error> {
    if let Some(network) = files::read_json(file).map_err(Error::Record)? {
        return Ok(network);
    }
    let _lock = FileLock::acquire(&claims.with_extension("lock")).map_err(Error::Record)?;
    let mut taken: Vec<Claim> = files::read_json(claims)
        .map_err(Error::Record)?
        .unwrap_or_default();
    // A claim of ours without a record is that of an instance whose directory was removed, or of a start that was cut off.
    taken.retain(|claim| claim.owner != owner);
    let overlaps = |range: &Ipv4Net, other: &Ipv4Net| range.contains(other) || other.contains(range);
    let range = candidates()
        .find(|range| {
            !routed.iter().any(|route| overlaps(range, route))
                && !taken.iter().any(|claim| overlaps(range, &claim.range))
        })
        .ok_or(Error::NoneFree)?;
    let network = HostNetwork { range };
    taken.push(Claim {
        owner: owner.to_owned(),
        range,
    });
    files::write_json(claims, &taken, 0o644).map_err(Error::Record)?;
    files::write_json(file, &network, 0o644).map_err(Error::Record)?;
    Ok(network)
}

/// All IPv4 routes of the host but the default one.
fn routes() -> io::Result<Vec<Ipv4Net>> {
    let text = fs_err::read_to_string("/proc/net/route")?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(parse_route)
        .filter(|route| route.prefix_len() > 0)
        .collect())
}

/// A line of `/proc/net/route`: addresses are hexadecimal in the host's byte order, which is little-endian where we run.
fn parse_route(line: &str) -> Option<Ipv4Net> {
    let mut fields = line.split_whitespace().skip(1);
    let address = |field: &str| {
        u32::from_str_radix(field, 16)
            .ok()
            .map(|n| Ipv4Addr::from(n.swap_bytes()))
    };
    let destination = address(fields.next()?)?;
    let mask = address(fields.nth(5)?)?;
    Ipv4Net::with_netmask(destination, mask).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_kept_and_two_instances_differ() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let claims = dir.path().join("ranges.json");
        let routed = ["10.117.3.0/24", "10.0.0.0/16"].map(|text| text.parse().expect("a network"));
        let one = claim_at(&dir.path().join("one.json"), "one", &claims, &routed).expect("a range");
        let two = claim_at(&dir.path().join("two.json"), "two", &claims, &routed).expect("a range");
        assert_eq!(one.range.to_string(), "10.118.0.0/16");
        assert_eq!(two.range.to_string(), "10.119.0.0/16");
        assert_eq!(
            claim_at(&dir.path().join("one.json"), "one", &claims, &[]).expect("a range"),
            one
        );
        assert_eq!(one.host_cidr(), "10.118.0.1/24");
    }

    #[test]
    fn all_taken_is_said() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let everything = ["10.0.0.0/8".parse().expect("a network")];
        let result = claim_at(
            &dir.path().join("a.json"),
            "a",
            &dir.path().join("ranges.json"),
            &everything,
        );
        assert!(matches!(result, Err(Error::NoneFree)));
    }

    #[test]
    fn routes_are_read() {
        let line = "eth0\t0000A80A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        assert_eq!(
            parse_route(line).map(|net| net.to_string()).as_deref(),
            Some("10.168.0.0/16")
        );
    }
}
