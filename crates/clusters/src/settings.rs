//! What a cluster has of its own beside plan and size: profiles, drain settings, tags, registries, proxies, and what its machines are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config_file::Proxies;
use crate::oidc::Oidc;
use crate::plans::Drain;
use crate::profiles::Invalid;
use crate::profiles::compute::ComputeProfile;
use crate::profiles::kubernetes::KubernetesProfile;
use crate::profiles::network::NetworkProfile;
use crate::registries::Registry;
use crate::render::{Artifacts, Networks};

/// Settings of one cluster, as kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// What its machines are made of: those of its creation or of its last upgrade. An update must not upgrade in passing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Artifacts>,
    /// What differs from the plan's drain settings.
    pub drain: DrainOverrides,
    /// Tags of its machines and disks, in the order in which they were given.
    pub tags: Vec<Tag>,
    /// Its network profile, as it was when the cluster got it; profiles do not change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_profile: Option<NetworkProfile>,
    /// Its compute profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_profile: Option<ComputeProfile>,
    /// Its Kubernetes profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_profile: Option<KubernetesProfile>,
    /// Workers by pool, where they differ from the compute profile.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pool_instances: BTreeMap<String, u32>,
    /// Masters, where the cluster has a number of its own: neither the plan's nor that of its compute profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_instances: Option<u32>,
    /// Registries of its nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<Registry>,
    /// Proxies of its nodes' container runtime.
    #[serde(skip_serializing_if = "is_default")]
    pub proxies: Proxies,
    /// The token service that its API servers trust, as it was when the cluster was made or changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// Whether nothing is to run on its machines.
    #[serde(skip_serializing_if = "is_default")]
    pub stopped: bool,
    /// Version of Stolos that made it or changed it last; empty for the first versions, which did not write it down.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Settings {
    /// The networks that its profiles come to.
    ///
    /// # Errors
    /// When those of pods and services overlap.
    pub fn networks(&self) -> Result<Networks, Invalid> {
        let usual = NetworkProfile::default();
        let services = self
            .kubernetes_profile
            .as_ref()
            .and_then(|profile| profile.services);
        self.network_profile.as_ref().unwrap_or(&usual).networks(services)
    }

    /// The token service that its API servers trust; an identity provider of its Kubernetes profile takes its place.
    #[must_use]
    pub fn trusted_oidc(&self) -> Option<&Oidc> {
        let profile = self.kubernetes_profile.as_ref();
        let has_own = profile.is_some_and(KubernetesProfile::has_identity_provider);
        self.oidc.as_ref().filter(|_| !has_own)
    }
}

/// Drain settings that a person gave; absent ones are the plan's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainOverrides {
    /// See [`Drain::timeout`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// See [`Drain::grace_period`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<i32>,
    /// See [`Drain::force`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// See [`Drain::ignore_daemonsets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_daemonsets: Option<bool>,
    /// See [`Drain::delete_local_data`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_local_data: Option<bool>,
    /// See [`Drain::force_node`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_node: Option<bool>,
}

impl DrainOverrides {
    /// What holds for the cluster.
    #[must_use]
    pub fn over(&self, plan: Drain) -> Drain {
        Drain {
            timeout: self.timeout.unwrap_or(plan.timeout),
            grace_period: self.grace_period.unwrap_or(plan.grace_period),
            force: self.force.unwrap_or(plan.force),
            ignore_daemonsets: self.ignore_daemonsets.unwrap_or(plan.ignore_daemonsets),
            delete_local_data: self.delete_local_data.unwrap_or(plan.delete_local_data),
            force_node: self.force_node.unwrap_or(plan.force_node),
        }
    }
}

/// A tag: a name and a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// Its value; may be empty.
    pub value: String,
}

/// Why a tag is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tag `{tag}` {problem}")]
pub struct InvalidTag {
    tag: String,
    problem: String,
}

/// Names of tags that the director itself gives to machines (BOSH's ten; pks.md, section 1.9).
const RESERVED: [&str; 10] = [
    "deployment",
    "director",
    "id",
    "index",
    "instance_group",
    "job",
    "name",
    "created_at",
    "compiling",
    "instance",
];
/// The longest name or value, in characters; PKS's limit.
const LONGEST: usize = 80;

impl Tag {
    /// A tag with a name and a value.
    ///
    /// # Errors
    /// [`InvalidTag`] when one of them is too long, holds one of `" : ,`, or the name is empty or reserved.
    pub fn new(name: &str, value: &str) -> Result<Self, InvalidTag> {
        let refuse = |problem: &str| {
            Err(InvalidTag {
                tag: name.chars().take(LONGEST).collect(),
                problem: problem.to_owned(),
            })
        };
        if name.is_empty() {
            return refuse("has no name");
        }
        if name.chars().count() > LONGEST || value.chars().count() > LONGEST {
            return refuse("is longer than 80 characters");
        }
        if name
            .chars()
            .chain(value.chars())
            .any(|c| matches!(c, '"' | ':' | ',') || c.is_control())
        {
            return refuse("holds a quotation mark, a colon, a comma or a control character");
        }
        if RESERVED.contains(&name) {
            return refuse("has a name that the director itself uses");
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.value)
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        Self::new(name.trim(), value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_checked() {
        assert_eq!(
            "team:a b".parse(),
            Ok(Tag {
                name: "team".into(),
                value: "a b".into()
            })
        );
        assert_eq!(
            "team".parse(),
            Ok(Tag {
                name: "team".into(),
                value: String::new()
            })
        );
        for (bad, words) in [
            ("", "no name"),
            (":x", "no name"),
            ("a:b:c", "a colon"),
            ("a:b\"", "quotation"),
            ("deployment:x", "director itself"),
            (&format!("a:{}", "x".repeat(81)), "80 characters"),
        ] {
            let error = bad.parse::<Tag>().expect_err(bad);
            assert!(error.to_string().contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_not_overridden_is_the_plans() {
        let overrides = DrainOverrides {
            grace_period: Some(-1),
            force: Some(false),
            ..DrainOverrides::default()
        };
        let plan = Drain {
            timeout: 3,
            ..Drain::default()
        };
        let drain = overrides.over(plan);
        assert_eq!(
            (
                drain.timeout,
                drain.grace_period,
                drain.force,
                drain.ignore_daemonsets
            ),
            (3, -1, false, true)
        );
    }

    #[test]
    fn settings_of_an_older_version_are_read() {
        assert_eq!(
            serde_json::from_str::<Settings>("{}").expect("settings"),
            Settings::default()
        );
    }
}
