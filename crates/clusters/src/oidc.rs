//! People in clusters under their own names: what API servers are told of the token service, and who is meant by a name there.
//!
//! PKS's switch "Configure created clusters to use UAA as the OIDC provider" (pks.md, sections 2.5 and 3.1). Where PKS had to choose between
//! service accounts and people, we have both: API servers know the token service unless the operator says otherwise, and the operator
//! chooses which of the two `get-credentials` gives.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stolos_api::identity::{PKS_CLUSTER_CLIENT, cluster_audience};
use stolos_base::ids::ClusterId;

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
    /// For whom tokens have to be. Clusters of before each had its own have none and take those for all clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<Audience>,
}

/// For whom tokens have to be that a cluster takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audience {
    /// This cluster alone: what a person shows one cluster is worth nothing at another.
    pub own: String,
    /// Until when tokens for all clusters are taken, too (seconds since 1970), so that kubeconfigs of before go on until their log-in ends. Tokens that are issued later
    /// are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_until: Option<i64>,
}

/// So long a log-in of before may go on (seconds): its six hours, and one for the change of the cluster to come about.
const COMMON_LIVES: i64 = 7 * 60 * 60;

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
    /// The same for one cluster, which trusted `before` until `now`: with an audience of its own.
    pub(crate) fn of_cluster(&self, id: ClusterId, before: Option<&Self>, now: Timestamp) -> Self {
        let kept = before.and_then(|before| before.audience.clone());
        let audience = kept.unwrap_or_else(|| Audience {
            own: cluster_audience(&id.to_string()),
            common_until: before.map(|_| now.as_second().saturating_add(COMMON_LIVES)),
        });
        Self {
            audience: Some(audience),
            ..self.clone()
        }
    }

    /// Flags of kube-apiserver, but for the authority, which is a file; none where [`Self::authentication`] says it all.
    pub(crate) fn flags(&self) -> BTreeMap<String, String> {
        if self.audience.is_some() {
            return BTreeMap::new();
        }
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

    /// The authority that goes with [`Self::flags`]; empty where there are none.
    pub(crate) fn flags_ca(&self) -> &str {
        if self.audience.is_some() { "" } else { &self.ca }
    }

    /// kube-apiserver's `AuthenticationConfiguration` (JSON, and so YAML): flags take one audience.
    pub(crate) fn authentication(&self) -> Option<String> {
        let audience = self.audience.as_ref()?;
        let claims = &self.claims;
        let mut jwt = json!({
            "issuer": {
                "url": self.issuer,
                "certificateAuthority": self.ca,
                "audiences": [audience.own],
                "audienceMatchPolicy": "MatchAny",
            },
            "claimMappings": {
                "username": {"claim": "user_name", "prefix": claims.username_prefix},
                "groups": {"claim": "roles", "prefix": claims.groups_prefix},
                "uid": {"claim": "user_id"},
            },
        });
        if let Some(until) = audience.common_until {
            jwt["issuer"]["audiences"] = json!([audience.own, PKS_CLUSTER_CLIENT]);
            jwt["claimValidationRules"] = json!([{
                // An id of a cluster has neither quotes nor backslashes.
                "expression": format!("'{}' in claims.aud || claims.iat < {until}", audience.own),
                "message": "the token is for all clusters; get the kubeconfig anew",
            }]);
        }
        let config = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthenticationConfiguration",
            "jwt": [jwt],
        });
        Some(config.to_string())
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
    fn each_cluster_has_an_audience_of_its_own_and_takes_the_common_one_for_hours_only() {
        let all = Oidc {
            issuer: "https://identity.test/oauth/token".to_owned(),
            ca: "PEM".to_owned(),
            claims: Claims::default(),
            audience: None,
        };
        let ids = stolos_base::IdSource::counted();
        let (one, other) = (ClusterId::new(&ids), ClusterId::new(&ids));
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let new = all.of_cluster(one, None, now);
        assert!(new.flags().is_empty() && new.flags_ca().is_empty());
        let read = |oidc: &Oidc| -> serde_json::Value {
            serde_json::from_str(&oidc.authentication().expect("a configuration")).expect("JSON")
        };
        let jwt = read(&new)["jwt"][0].clone();
        assert_eq!(jwt["issuer"]["audiences"], json!([format!("cluster/{one}")]));
        assert!(jwt["claimValidationRules"].is_null());
        assert_ne!(new.audience, all.of_cluster(other, None, now).audience);
        // One of before goes on to take what its people have, until their log-ins end, and then no more.
        assert!(!all.flags().is_empty() && all.authentication().is_none());
        let changed = all.of_cluster(one, Some(&all), now);
        let jwt = read(&changed)["jwt"][0].clone();
        assert_eq!(
            jwt["issuer"]["audiences"],
            json!([format!("cluster/{one}"), PKS_CLUSTER_CLIENT])
        );
        assert_eq!(
            jwt["claimValidationRules"][0]["expression"],
            format!("'cluster/{one}' in claims.aud || claims.iat < 1800025200")
        );
        // The next change does not begin that time anew.
        let later = Timestamp::from_second(1_900_000_000).expect("a time");
        assert_eq!(all.of_cluster(one, Some(&changed), later), changed);
    }

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
