//! What `--config-file` and `--private-registries` hold (pks.md, section 1.10).

use serde::{Deserialize, Serialize};

/// Body of `--config-file`, JSON or YAML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The cluster's own root authority; only when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_ca: Option<CustomCa>,
    /// Extensions of machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instance_groups: Vec<InstanceGroup>,
    /// Proxy for HTTP; an empty one clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<Proxy>,
    /// Proxy for HTTPS; an empty one clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_proxy: Option<Proxy>,
    /// Hosts and networks that are reached without a proxy, separated by commas; an empty text clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_proxy: Option<String>,
    /// Whether the installation's list is joined with `no_proxy`. There is no such list here, so it changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global_no_proxy_merge: Option<bool>,
}

/// A root authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CustomCa {
    /// Self-signed certificate (PEM), valid for more than six months.
    pub certificate: String,
    /// Its key (PEM). A secret.
    pub private_key: String,
}

impl std::fmt::Debug for CustomCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomCa")
    }
}

/// Extensions of the machines of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstanceGroup {
    /// `master`, `worker` or `worker-POOL`.
    pub name: String,
    /// What the CPI is told beside the machine's size.
    pub vm_extension: serde_json::Map<String, serde_json::Value>,
}

/// A proxy. All fields empty: none.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// `http://HOST:PORT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// User, where the proxy wants one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password. A secret.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("url", &self.url)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Body of `--private-registries`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PrivateRegistries {
    /// The registries, each by the host that image names begin with.
    pub servers: Vec<RegistryServer>,
}

/// A registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegistryServer {
    /// The host that image names begin with, with its port where that is not 443; `https://` may stand before it.
    pub url: String,
    /// Where it is asked, in order; itself when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<RegistryHost>,
}

/// A place where a registry is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegistryHost {
    /// `https://HOST[:PORT]`.
    pub url: String,
    /// `pull`, `resolve`, `push`; the first two when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Authority that it is verified with (PEM); those of the operating system when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_cert: String,
    /// Whether it is not verified.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_verify: bool,
}
