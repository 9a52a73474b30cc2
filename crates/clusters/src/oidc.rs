//! People in clusters under their own names: what API servers are told of the token service, and who is meant by a name there.
//!
//! PKS's switch "Configure created clusters to use UAA as the OIDC provider" (pks.md, sections 2.5 and 3.1). Where PKS had to choose between
//! service accounts and people, we have both: API servers know the token service unless the operator says otherwise, and the operator
//! chooses which of the two `get-credentials` gives.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stolos_api::identity::PKS_CLUSTER_CLIENT;

/// The beginning of the names of Kubernetes' own users and groups.
const RESERVED: &str = "system:";

/// A token service that API servers trust, as kept with each cluster that does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oidc {
    /// `iss` of its tokens, an https URL; its discovery document lies below it.
    pub issuer: String,
    /// Authority of its certificate (PEM).
    pub ca: String,
    /// What people and groups are called.
    pub claims: Claims,
}

/// What an identity token's name and groups are called in a cluster. The claims are `user_name` and `roles`, and the defaults those of PKS's
/// tile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Claims {
    /// What stands before every name.
    pub username_prefix: String,
    /// What stands before every group.
    pub groups_prefix: String,
}

/// The claims make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` of `oidc`: {problem}")]
pub struct InvalidClaims {
    /// The field.
    field: &'static str,
    /// What is wrong.
    problem: &'static str,
}

impl Default for Claims {
    fn default() -> Self {
        Self {
            username_prefix: "oidc:".to_owned(),
            groups_prefix: "oidc:".to_owned(),
        }
    }
}

impl Claims {
    /// Checks the prefixes: without one, somebody named like a user or group of Kubernetes would be that user.
    ///
    /// # Errors
    /// [`InvalidClaims`].
    pub fn check(&self) -> Result<(), InvalidClaims> {
        for (field, prefix) in [
            ("username_prefix", &self.username_prefix),
            ("groups_prefix", &self.groups_prefix),
        ] {
            let problem = if prefix.is_empty() || prefix == "-" {
                "without a prefix, people could have the names of Kubernetes' own users"
            } else if prefix.starts_with(RESERVED) {
                "names that begin with `system:` are Kubernetes' own"
            } else if prefix.len() > 63 || prefix.chars().any(|c| c.is_whitespace() || c.is_control()) {
                "it is longer than 63 bytes or has blanks in it"
            } else {
                continue;
            };
            return Err(InvalidClaims { field, problem });
        }
        Ok(())
    }
}

impl Oidc {
    /// Flags of kube-apiserver, but for the authority, which is a file.
    pub(crate) fn flags(&self) -> BTreeMap<String, String> {
        let claims = &self.claims;
        [
            ("oidc-issuer-url", self.issuer.as_str()),
            ("oidc-client-id", PKS_CLUSTER_CLIENT),
            ("oidc-username-claim", "user_name"),
            ("oidc-username-prefix", &claims.username_prefix),
            ("oidc-groups-claim", "roles"),
            ("oidc-groups-prefix", &claims.groups_prefix),
        ]
        .map(|(flag, value)| (flag.to_owned(), value.to_owned()))
        .into()
    }

    /// What a person who logs in as `user` is called in the cluster.
    pub(crate) fn subject(&self, user: &str) -> String {
        format!("{}{user}", self.claims.username_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_keep_people_apart_from_kubernetes_own_users() {
        assert_eq!(Claims::default().check(), Ok(()));
        for prefix in ["", "-", "system:", "system:x", "a b", "a\nb"] {
            let claims = Claims {
                groups_prefix: prefix.to_owned(),
                ..Claims::default()
            };
            let error = claims.check().expect_err(prefix);
            assert_eq!(error.field, "groups_prefix", "{prefix}");
        }
    }
}
