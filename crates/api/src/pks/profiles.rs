//! Network, compute and Kubernetes profiles, as PKS 1.7 and later have them on the wire (pks.md, sections 2.4 to 2.8).

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/network-profiles` and `POST /v1/compute-profiles`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProfileRequest {
    /// Unique name.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it says: an object, or a text that holds one as JSON (PKS's client sends network profiles so).
    pub parameters: serde_json::Value,
}

/// A network or compute profile as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Profile {
    /// Unique name.
    pub name: String,
    /// Id.
    pub uuid: String,
    /// For people.
    pub description: String,
    /// What it says: an object as JSON, in a text.
    pub parameters: String,
    /// Keys that are accepted and have no effect on this installation's infrastructure. Ours; PKS's clients pass over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied: Vec<String>,
}

/// Body of `POST /v1/kubernetes-profiles`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct KubernetesProfileRequest {
    /// Unique name, at most 200 characters.
    pub name: String,
    /// For people, at most 4000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Settings that are checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub customizations: Vec<Customization>,
    /// Flags that are passed on as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experimental_customizations: Vec<Customization>,
}

/// A Kubernetes profile as the API shows it. Contents of files are secrets and never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubernetesProfile {
    /// Unique name.
    pub name: String,
    /// Id.
    pub uuid: String,
    /// Who made it.
    pub owner: String,
    /// For people.
    pub description: String,
    /// When it was made, in seconds since 1970.
    pub created_at: i64,
    /// Settings that were checked.
    pub customizations: Vec<Customization>,
    /// Flags that are passed on as they are.
    pub experimental_customizations: Vec<Customization>,
}

/// What a profile says about one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Customization {
    /// `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kubelet`, `kube-proxy` or `etcd`.
    pub component: String,
    /// Values by the names of flags.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub arguments: IndexMap<String, serde_json::Value>,
    /// Contents of files by the names of the flags that take a path.
    #[serde(
        default,
        rename = "file-arguments",
        skip_serializing_if = "IndexMap::is_empty"
    )]
    pub file_arguments: IndexMap<String, String>,
}
