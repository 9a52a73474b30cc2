//! Names and hosts of clusters. What a person types becomes one of these or a precise error.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text is not what it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// Not a cluster name.
    #[error(
        "cluster name `{0}` is not valid: it takes 1 to 63 letters, digits, `-` or `_`, and starts with a letter or digit"
    )]
    Name(String),
    /// Not an external host name.
    #[error(
        "external hostname `{0}` is not valid: it takes a host name or an IP address of at most 64 characters"
    )]
    Hostname(String),
}

/// The name of a cluster: 1–63 letters, digits, `-` or `_`, starting with a letter or digit. Unique.
///
/// PKS says "no special characters" and lets the server limit the length to 63; lower case is recommended there, not required.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

/// The external host name of a cluster's API: a DNS name or an IP address of at most 64 bytes. Unique, without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Hostname {
    /// The host as text, lower-case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, when it is one and not a name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

impl FromStr for ClusterName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::Name(shorten(text)))
        }
    }
}

impl FromStr for Hostname {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let lower = text.to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = || {
            // A last label of digits alone would be read as a broken address by every resolver.
            lower.split('.').all(label)
                && !lower
                    .rsplit('.')
                    .next()
                    .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
        };
        let good = (1..=64).contains(&lower.len()) && (lower.parse::<IpAddr>().is_ok() || is_name());
        if good {
            Ok(Self(lower))
        } else {
            Err(Invalid::Hostname(shorten(text)))
        }
    }
}

/// What is quoted back to a caller is kept short: the text may be megabytes.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

macro_rules! text_type {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    )*};
}
text_type!(ClusterName, Hostname);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names() {
        for good in ["demo", "a", "0", "Team-A_1", &"x".repeat(63)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "a b", "a/b", "a.b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hostnames() {
        for good in [
            "demo.example.com",
            "demo",
            "10.1.2.3",
            "fd00::1",
            "a-b.c",
            "x1.2y",
        ] {
            assert!(good.parse::<Hostname>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a.b",
            "a-.b",
            "a..b",
            "a_b",
            "https://a",
            "a:8443",
            "1.2.3",
            "10.1.2.300",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad}");
        }
        assert_eq!(
            "Demo.Example.COM".parse::<Hostname>().expect("valid").as_str(),
            "demo.example.com"
        );
    }

    #[test]
    fn what_is_quoted_back_is_short() {
        let error = "é".repeat(100_000).parse::<ClusterName>().expect_err("invalid");
        assert!(error.to_string().len() < 400);
    }
}
