//! Where a request comes from, as far as somebody can choose it: what wrong passwords are counted by, beside the name.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use stolos_base::http::PeerAddress;

/// An address of IPv4, or a network of IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(String);

impl Source {
    /// The service itself.
    pub(crate) fn own() -> Self {
        Self("own".to_owned())
    }

    /// Where connections of `address` come from. A site has a /64 of IPv6 and more addresses in it than anybody can count, so the
    /// network is what counts.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_string()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The peer of the connection. What headers say about it is whatever the peer wants it to be. Where the router is served without addresses, all
/// requests are of one source.
impl<S: Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts
            .extensions
            .get::<PeerAddress>()
            .map_or_else(|| Self("unknown".to_owned()), |peer| Self::of(peer.0.ip())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_network_is_one_source() {
        let of = |text: &str| Source::of(text.parse().expect("an address"));
        assert_eq!(
            of("10.0.0.1"),
            of("::ffff:10.0.0.1"),
            "the same, seen by another socket"
        );
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
