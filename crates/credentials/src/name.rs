//! Names: absolute paths, as in CredHub.

use std::fmt;

use crate::error::Error;

/// CredHub's limit.
const LONGEST: usize = 1024;

/// A credential's absolute name: `/director/deployment/variable`. Compared without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Takes an absolute name; a missing leading slash is added, as CredHub does.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn absolute(text: &str) -> Result<Self, Error> {
        let name = if text.starts_with('/') {
            text.to_owned()
        } else {
            format!("/{text}")
        };
        let wrong = |rule| Error::Name {
            name: text.to_owned(),
            rule,
        };
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.:,()[]+".contains(&byte);
        if name.len() < 2 {
            return Err(wrong("it is empty"));
        }
        if name.len() > LONGEST {
            return Err(wrong("it is longer than 1024 characters"));
        }
        if !name.bytes().all(is_allowed) {
            return Err(wrong("it may hold letters, digits and -_/.:,()[]+ only"));
        }
        if name.contains("//") || name.ends_with('/') {
            return Err(wrong("it holds an empty part"));
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form that is unique.
    pub(crate) fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where relative names live: `/director/deployment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(Name);

impl Scope {
    /// The scope of a deployment.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn deployment(director: &str, deployment: &str) -> Result<Self, Error> {
        Name::absolute(&format!("/{director}/{deployment}")).map(Self)
    }

    /// An absolute name as it is, any other below this scope.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn name(&self, text: &str) -> Result<Name, Error> {
        if text.starts_with('/') {
            Name::absolute(text)
        } else {
            Name::absolute(&format!("{}/{text}", self.0))
        }
    }

    /// The prefix that all names below share, with its final slash.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}/", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_absolute_or_in_their_deployment() {
        let scope = Scope::deployment("d", "dep").expect("a scope");
        let name = |text| scope.name(text).map(|name| name.to_string());
        assert_eq!(name("ca").expect("a name"), "/d/dep/ca");
        assert_eq!(name("/other/ca").expect("a name"), "/other/ca");
        assert_eq!(
            name("kubelet_worker/1").expect("a name"),
            "/d/dep/kubelet_worker/1"
        );
        for bad in ["", "a//b", "a/", "a b", "ä"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
