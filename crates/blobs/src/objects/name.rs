//! Names of objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One or more components of letters, digits, `.`, `_` and `-` that begin with a letter or digit, with slashes in between;
/// at most 512 bytes. So a name is a path below a directory and a key of S3 without any escape.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

/// The text is no object name.
#[derive(Debug, thiserror::Error)]
#[error(
    "object name `{0}` is not made of components of letters, digits, `.`, `_` and `-` with slashes in between"
)]
pub struct InvalidObjectName(String);

impl ObjectName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name below this one.
    ///
    /// # Errors
    /// When `rest` is no name.
    pub fn join(&self, rest: &str) -> Result<Self, InvalidObjectName> {
        format!("{self}/{rest}").parse()
    }
}

impl FromStr for ObjectName {
    type Err = InvalidObjectName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let component = |part: &str| {
            part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if text.len() <= 512 && text.split('/').all(component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidObjectName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ObjectName {
    type Error = InvalidObjectName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_place() {
        for good in ["a", "backups/20261121T000000Z-ab12/manifest.json", "a.b_c-d/0"] {
            assert!(good.parse::<ObjectName>().is_ok(), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a b", "a\\b", "ä", "a%2fb",
        ] {
            assert!(bad.parse::<ObjectName>().is_err(), "{bad}");
        }
    }
}
