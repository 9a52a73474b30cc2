//! The apply spec: what the director wants a machine to be. BOSH's shape plus one field of ours, `generation`.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stolos_base::secret::Secret;

use crate::settings::{Networks, expose_option};

/// The argument of `prepare` and `apply`, and the body of `get_state`.
///
/// The spec right after `create_vm` carries only deployment, job name, index, id and networks: enough for `get_state`
/// to identify the machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct ApplySpec {
    /// Ours: grows with each plan that touches the instance. Our agent refuses a spec that is older than the one it
    /// has; absent from foreign directors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Name of the deployment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub deployment: String,
    /// The instance group and its jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Index within the instance group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// Whether this is the group's bootstrap instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<bool>,
    /// `service` or `errand`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<String>,
    /// Name of the instance group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Id of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub az: Option<String>,
    /// Networks; must come back from `get_state` as they were sent.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub networks: Networks,
    /// Packages by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub packages: IndexMap<String, Package>,
    /// Job properties that the agent itself reads.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Address that others use for this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Address on the default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Size of the persistent disk in MiB; 0 means none.
    #[serde(default)]
    pub persistent_disk: u64,
    /// Digest over all rendered templates. Jobs and packages are applied only if it is there and not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_hash: Option<String>,
    /// Where the rendered templates are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendered_templates_archive: Option<Archive>,
    /// `vm_type`, `stemcell`, `update`, `links`, `template_hashes`, … as they came.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The instance group in an apply spec.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Job {
    /// Name of the instance group.
    pub name: String,
    /// The jobs, in the manifest's order.
    #[serde(default)]
    pub templates: Vec<JobTemplate>,
    /// `release`, `template`, `version` of old directors.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One job.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct JobTemplate {
    /// Its name; also its directory in the rendered archive.
    pub name: String,
    /// Its version (a fingerprint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Digest of the job's archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
    /// Blob of the job's archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobstore_id: Option<String>,
}

/// A compiled package.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// `VERSION.BUILD`.
    pub version: String,
    /// Digest of the archive; may be a multi digest (`sha1;sha256:…`). Ours is always `sha256:…`.
    pub sha1: String,
    /// The blob.
    pub blobstore_id: String,
    /// A URL that needs no more credentials.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_option"
    )]
    pub signed_url: Option<Secret<String>>,
    /// Headers to send with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobstore_headers: Option<IndexMap<String, String>>,
}

/// A gzipped tar in the blob store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Archive {
    /// Digest; may be a multi digest.
    pub sha1: String,
    /// The blob.
    pub blobstore_id: String,
    /// A URL that needs no more credentials.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_option"
    )]
    pub signed_url: Option<Secret<String>>,
    /// Headers to send with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobstore_headers: Option<IndexMap<String, String>>,
}

/// Properties: may hold secrets, so they are counted only when printed.
#[derive(Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(transparent)]
pub struct Properties(pub Map<String, Value>);

impl Properties {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} properties>", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_passes_through_unchanged() {
        let text = serde_json::json!({
            "generation": 7, "deployment": "d", "index": 0, "id": "i", "az": "z1", "name": "worker", "bootstrap": true,
            "job": {"name": "worker", "templates": [{"name": "kubelet", "version": "abc"}], "template": "kubelet"},
            "networks": {"n": {"type": "manual", "ip": "10.0.0.2", "prefix": "24", "netmask": "255.255.255.0",
                               "cloud_properties": {}, "default": ["dns", "gateway"], "dns_record_name": "x"}},
            "packages": {"etcd": {"name": "etcd", "version": "1.0", "sha1": "sha256:aa", "blobstore_id": "b"}},
            "properties": {"password": "TOPSECRET"}, "persistent_disk": 1024, "configuration_hash": "c",
            "rendered_templates_archive": {"sha1": "sha256:bb", "blobstore_id": "r", "signed_url": "https://TOPSECRET"},
            "vm_type": {"name": "small"}, "links": {}
        });
        let spec: ApplySpec = serde_json::from_value(text.clone()).expect("a spec");
        assert_eq!(serde_json::to_value(&spec).expect("JSON"), text);
        assert!(!format!("{spec:?}").contains("TOPSECRET"));
    }
}
