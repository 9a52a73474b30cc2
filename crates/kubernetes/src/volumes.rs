//! Volumes on nodes' own disks: what is to be done about a claim and about a volume, and the requests that do it.
//!
//! Each node has a process (`stolos-job local-volumes`) that makes and removes the volumes of its node. A volume is a directory
//! `pvc-UID` of that node, `UID` being that of its claim, and a `local` persistent volume of the same name, bound to the node by its affinity.
//!
//! Owns: the decisions, which are pure functions of what the API server says, and the requests. Never does: anything on a disk.
//!
//! Invariants: a directory is there before its volume is, and the volume leaves after it, held by a finalizer of ours. So whatever holds data has
//! a volume, and a directory that was left behind by a process that died is an empty one. `docs/design/0007-local-volumes.md` says more.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use k8s_openapi::api::core::v1::{Event, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;
use stolos_base::{Class, Classify as _, Clock};

use crate::apply::FIELD_MANAGER;
use crate::client::Cluster;
use crate::error::Error;

/// The provisioner that storage classes name.
pub const PROVISIONER: &str = "stolos.dev/local";
/// What keeps a volume in the API until its directory is gone.
pub const FINALIZER: &str = "stolos.dev/local-volume";

/// The label by which a volume names its node; the kubelet sets it to the node's name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Where the scheduler writes which node a claim's first pod goes to.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Where the controller manager writes who has to provide a claim's volume: the present name and the one before it.
const CLAIM_PROVISIONERS: [&str; 2] = [
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
];
/// Where a volume says who made it; the controller manager leaves such volumes to their makers.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Upstream's mark on a volume that a claim may still be using.
const PROTECTION: &str = "kubernetes.io/pv-protection";
/// What a claim's uid becomes a name with.
const PREFIX: &str = "pvc-";
/// What a directory of one node can do.
const ACCESS_MODES: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

/// A node and where its volumes lie.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the node.
    pub node: String,
    /// New volumes are made in the first; the others may hold older ones.
    pub directories: Vec<Utf8PathBuf>,
}

/// A volume that is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// The directory to be made first.
    pub directory: Utf8PathBuf,
    /// What has to be free, in bytes.
    pub bytes: u64,
    /// The volume.
    pub volume: PersistentVolume,
}

/// What has to happen next to a volume that is not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: it is in use, kept on purpose, or not ours.
    Nothing,
    /// Its claim is gone, and nobody wants it kept: it is to be deleted.
    Delete,
    /// It is deleted and waits for us.
    LetGo {
        /// What becomes of its directory.
        data: Data,
    },
}

/// What becomes of a volume's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// They go, as the reclaim policy `Delete` says.
    Remove,
    /// They stay where they are, for a person.
    Keep,
}

/// Whether the claim waits for a volume of ours on this node.
#[must_use]
pub fn waits(claim: &PersistentVolumeClaim, node: &str) -> bool {
    let annotation = |name| annotation(&claim.metadata, name);
    claim.metadata.deletion_timestamp.is_none()
        && !is_bound(claim)
        && CLAIM_PROVISIONERS
            .iter()
            .find_map(|name| annotation(name))
            .is_some_and(|provisioner| provisioner == PROVISIONER)
        && annotation(SELECTED_NODE) == Some(node)
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    volume.is_some_and(|volume| !volume.is_empty())
}

/// The volume for a claim that waits.
///
/// # Errors
/// In words for whoever made the claim: what it asks for that a directory of one node cannot do.
pub fn order(claim: &PersistentVolumeClaim, class: &StorageClass, place: &Place) -> Result<Order, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let class_name = class.metadata.name.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("the volume mode Block is not possible: a local volume is a directory".to_owned());
    }
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !ACCESS_MODES.contains(&mode.as_str())) {
        return Err(format!(
            "the access mode {mode} is not possible: a local volume is on one node; it can do {}",
            ACCESS_MODES.join(" and ")
        ));
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("local volumes begin empty: a dataSource is not possible".to_owned());
    }
    if spec.selector.is_some() {
        return Err("a claim with a selector takes a volume that is there; none is made for it".to_owned());
    }
    if class
        .parameters
        .as_ref()
        .is_some_and(|parameters| !parameters.is_empty())
    {
        return Err(format!(
            "the storage class {class_name} has parameters; {PROVISIONER} knows none"
        ));
    }
    let asked = spec
        .resources
        .and_then(|resources| resources.requests?.remove("storage"))
        .ok_or("it does not ask for storage")?;
    let bytes = bytes(&asked.0).ok_or_else(|| format!("`{}` is no amount of storage", asked.0))?;
    let uid = claim.metadata.uid.as_deref().ok_or("it has no uid")?;
    let name = format!("{PREFIX}{uid}");
    let directory = place
        .directories
        .first()
        .ok_or("the node has no place for volumes")?
        .join(&name);
    let mut volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": modes,
            "capacity": {"storage": asked},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": uid,
            },
            "local": {"path": directory},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{
                "matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [place.node]}],
            }]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class_name,
            "volumeMode": "Filesystem",
        },
    });
    if let Some(options) = &class.mount_options {
        volume["spec"]["mountOptions"] = json!(options);
    }
    Ok(Order {
        directory,
        bytes,
        volume: serde_json::from_value(volume).expect("the volume above is one"),
    })
}

/// What has to happen next to a volume, wherever it is.
#[must_use]
pub fn ending(volume: &PersistentVolume) -> Ending {
    if annotation(&volume.metadata, PROVISIONED_BY) != Some(PROVISIONER) {
        return Ending::Nothing;
    }
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let data = if policy == Some("Delete") {
        Data::Remove
    } else {
        Data::Keep
    };
    let held_by = |name: &str| {
        let mut finalizers = volume.metadata.finalizers.iter().flatten();
        finalizers.any(|finalizer| finalizer == name)
    };
    if volume.metadata.deletion_timestamp.is_some() {
        return if held_by(FINALIZER) && !held_by(PROTECTION) {
            Ending::LetGo { data }
        } else {
            Ending::Nothing
        };
    }
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    match (phase, data) {
        (Some("Released"), Data::Remove) => Ending::Delete,
        _ => Ending::Nothing,
    }
}

/// The node that the volume is bound to, if it is one.
#[must_use]
pub fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else {
        return None;
    };
    let [expression] = term.match_expressions.as_deref()? else {
        return None;
    };
    match expression.values.as_deref()? {
        [node] if expression.key == HOSTNAME && expression.operator == "In" => Some(node),
        _ => None,
    }
}

/// The directory of a volume of this node; none where it is not one that we would have made.
#[must_use]
pub fn directory_of(volume: &PersistentVolume, place: &Place) -> Option<Utf8PathBuf> {
    let name = volume.metadata.name.as_deref()?;
    let path = Utf8Path::new(&volume.spec.as_ref()?.local.as_ref()?.path);
    let is_ours = name.starts_with(PREFIX)
        && annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
        && node_of(volume) == Some(&place.node)
        && place
            .directories
            .iter()
            .any(|directory| directory.join(name) == path);
    is_ours.then(|| path.to_owned())
}

/// Of the directories found, those that have neither a volume nor a claim that may still get one.
#[must_use]
pub fn leftovers(
    found: &BTreeSet<Utf8PathBuf>,
    volumes: &[PersistentVolume],
    claims: &[PersistentVolumeClaim],
) -> Vec<Utf8PathBuf> {
    let names: BTreeSet<&str> = volumes
        .iter()
        .filter_map(|volume| volume.metadata.name.as_deref())
        .collect();
    let uids: BTreeSet<&str> = claims
        .iter()
        .filter_map(|claim| claim.metadata.uid.as_deref())
        .collect();
    let is_left = |path: &&Utf8PathBuf| {
        let name = path.file_name().unwrap_or_default();
        let uid = name.strip_prefix(PREFIX);
        uid.is_some_and(|uid| !names.contains(name) && !uids.contains(uid))
    };
    found.iter().filter(is_left).cloned().collect()
}

/// The volumes of this node that are in use and whose directories are not among those found: their data went with a disk.
#[must_use]
pub fn lost<'a>(
    found: &BTreeSet<Utf8PathBuf>,
    volumes: &'a [PersistentVolume],
    place: &Place,
) -> Vec<&'a PersistentVolume> {
    let is_lost = |volume: &&PersistentVolume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Bound") && directory_of(volume, place).is_some_and(|path| !found.contains(&path))
    };
    volumes.iter().filter(is_lost).collect()
}

/// A Kubernetes quantity in whole bytes, rounded up; none when it is none or less than nothing.
#[must_use]
pub fn bytes(quantity: &str) -> Option<u64> {
    const SUFFIXES: [(&str, i32, i32); 13] = [
        ("Ki", 2, 10),
        ("Mi", 2, 20),
        ("Gi", 2, 30),
        ("Ti", 2, 40),
        ("Pi", 2, 50),
        ("Ei", 2, 60),
        ("m", 10, -3),
        ("k", 10, 3),
        ("M", 10, 6),
        ("G", 10, 9),
        ("T", 10, 12),
        ("P", 10, 15),
        ("E", 10, 18),
    ];
    let end = quantity
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+'))
        .unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(end);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        _ => match SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
            Some((_, base, power)) => f64::from(*base).powi(*power),
            None => 10_f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
        },
    };
    // Above 2^53 the last bits are lost, which no disk notices.
    let bytes = (number * factor).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked"
    )]
    (bytes >= 0.0 && bytes < 2_f64.powi(64)).then_some(bytes as u64)
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Something that people are told with an object, as `kubectl describe` shows it.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The object.
    pub about: ObjectReference,
    /// Whether it went well.
    pub kind: NoticeKind,
    /// One word, as in `ProvisioningFailed`.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// How a notice is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// It went well.
    Normal,
    /// It did not.
    Warning,
}

/// What a notice about a claim names.
#[must_use]
pub fn about_claim(claim: &PersistentVolumeClaim) -> ObjectReference {
    about("PersistentVolumeClaim", &claim.metadata)
}

/// What a notice about a volume names.
#[must_use]
pub fn about_volume(volume: &PersistentVolume) -> ObjectReference {
    about("PersistentVolume", &volume.metadata)
}

fn about(kind: &str, metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

impl Cluster {
    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    /// All volumes and then all claims, as they are now.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn volumes_and_claims(
        &self,
    ) -> Result<(Vec<PersistentVolume>, Vec<PersistentVolumeClaim>), Error> {
        let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        let params = ListParams::default();
        let volumes = self
            .volumes()
            .list(&params)
            .await
            .map_err(Error::request("list the volumes"))?;
        let claims = claims
            .list(&params)
            .await
            .map_err(Error::request("list the volume claims"))?;
        Ok((volumes.items, claims.items))
    }

    /// The volume as it is now, if it is there.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Error> {
        let found = self.volumes().get_opt(name).await;
        found.map_err(Error::request(format!("get volume `{name}`")))
    }

    /// The storage class, if it is there.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn storage_class(&self, name: &str) -> Result<Option<StorageClass>, Error> {
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let found = classes.get_opt(name).await;
        found.map_err(Error::request(format!("get storage class `{name}`")))
    }

    /// Whether the cluster knows the node.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn has_node(&self, name: &str) -> Result<bool, Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = nodes.get_metadata_opt(name).await;
        Ok(found
            .map_err(Error::request(format!("get node `{name}`")))?
            .is_some())
    }

    /// Makes a volume; one that is there already is as good as made, since its name holds the uid of its claim.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn make_volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let made = self.volumes().create(&params, volume).await;
        match made.map_err(Error::request(format!("make volume `{name}`"))) {
            Err(error) if error.status() != Some(409) => Err(error),
            _ => Ok(()),
        }
    }

    /// Has a volume deleted, unless it has changed since it was read. It stays until [`Cluster::let_volume_go`].
    ///
    /// # Errors
    /// When it has changed, or the API server refuses or does not answer.
    pub async fn delete_volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: volume.metadata.uid.clone(),
                resource_version: volume.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let deleted = self.volumes().delete(name, &params).await.map(drop);
        gone_is_fine(deleted.map_err(Error::request(format!("delete volume `{name}`"))))
    }

    /// Lets a deleted volume leave the API.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn let_volume_go(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {
            "uid": volume.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [FINALIZER],
        }});
        let patched = self
            .volumes()
            .patch(name, &changes(), &Patch::Strategic(&patch))
            .await
            .map(drop);
        gone_is_fine(patched.map_err(Error::request(format!("let volume `{name}` go"))))
    }

    /// Has the scheduler choose a node for the claim again, unless the claim has changed since it was read.
    ///
    /// # Errors
    /// When it has changed, or the API server refuses or does not answer.
    pub async fn select_node_again(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"metadata": {
            "uid": claim.metadata.uid,
            "resourceVersion": claim.metadata.resource_version,
            "annotations": {SELECTED_NODE: null},
        }});
        let patched = claims
            .patch(name, &changes(), &Patch::Merge(&patch))
            .await
            .map(drop);
        gone_is_fine(patched.map_err(Error::request(format!("give claim `{namespace}/{name}` back"))))
    }

    /// Tells people something with an object. The same reason from the same node is one event, which counts and says what was said last.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn tell(&self, notice: &Notice, place: &Place, clock: &Clock) -> Result<(), Error> {
        let namespace = notice.about.namespace.as_deref().unwrap_or("default");
        let uid = notice.about.uid.as_deref().unwrap_or_default();
        let name = format!("{uid}.{}.{}", notice.reason, place.node).to_lowercase();
        let now = clock.now().to_string();
        let kind = match notice.kind {
            NoticeKind::Normal => "Normal",
            NoticeKind::Warning => "Warning",
        };
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": notice.about,
            "type": kind,
            "reason": notice.reason,
            "message": notice.message,
            "source": {"component": PROVISIONER, "host": place.node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let event: Event = serde_json::from_value(event).expect("the event above is one");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let failed = || Error::request(format!("tell {} of `{namespace}/{name}`", notice.reason));
        match events
            .create(&PostParams::default(), &event)
            .await
            .map_err(failed())
        {
            Err(error) if error.status() == Some(409) => {}
            other => return other.map(drop),
        }
        let patch = json!({"message": notice.message, "lastTimestamp": now});
        let there = events
            .patch(&name, &changes(), &Patch::Merge(&patch))
            .await
            .map_err(failed())?;
        let patch = json!({"count": there.count.unwrap_or(1).saturating_add(1)});
        events
            .patch(&name, &changes(), &Patch::Merge(&patch))
            .await
            .map_err(failed())?;
        Ok(())
    }
}

fn changes() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.class() == Class::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn place() -> Place {
        Place {
            node: "worker-0".to_owned(),
            directories: vec!["/new".into(), "/old".into()],
        }
    }

    /// A claim that waits for us on `worker-0`, changed by `change`.
    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {
                "name": "data", "namespace": "shop", "uid": "u1",
                "annotations": {
                    "volume.kubernetes.io/storage-provisioner": PROVISIONER,
                    "volume.kubernetes.io/selected-node": "worker-0",
                },
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "1.5Gi"}},
            },
        });
        change(&mut claim);
        serde_json::from_value(claim).expect("a claim")
    }

    fn class(change: impl FnOnce(&mut Value)) -> StorageClass {
        let mut class =
            json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER, "reclaimPolicy": "Delete"});
        change(&mut class);
        serde_json::from_value(class).expect("a class")
    }

    /// The volume of [`claim`] in a phase, changed by `change`.
    fn volume(phase: &str, change: impl FnOnce(&mut Value)) -> PersistentVolume {
        let order = order(&claim(|_| {}), &class(|_| {}), &place()).expect("an order");
        let mut volume = serde_json::to_value(order.volume).expect("JSON");
        volume["status"] = json!({"phase": phase});
        change(&mut volume);
        serde_json::from_value(volume).expect("a volume")
    }

    #[test]
    fn which_claims_wait_for_this_node() {
        assert!(waits(&claim(|_| {}), "worker-0"));
        assert!(!waits(&claim(|_| {}), "worker-1"));
        let others: [fn(&mut Value); 5] = [
            |claim| claim["spec"]["volumeName"] = json!("pvc-u1"),
            |claim| claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
            |claim| claim["metadata"]["annotations"] = json!({SELECTED_NODE: "worker-0"}),
            |claim| claim["metadata"]["annotations"][CLAIM_PROVISIONERS[0]] = json!("example.com/other"),
            |claim| claim["metadata"]["annotations"][SELECTED_NODE] = json!(null),
        ];
        for (at, other) in others.into_iter().enumerate() {
            let mut value = serde_json::to_value(claim(|_| {})).expect("JSON");
            other(&mut value);
            if let Some(annotations) = value["metadata"]["annotations"].as_object_mut() {
                annotations.retain(|_, value| !value.is_null());
            }
            let claim: PersistentVolumeClaim = serde_json::from_value(value).expect("a claim");
            assert!(!waits(&claim, "worker-0"), "case {at}");
        }
    }

    #[test]
    fn a_volume_is_what_its_claim_and_class_say() {
        let class = class(|class| {
            class["reclaimPolicy"] = json!("Retain");
            class["mountOptions"] = json!(["noatime"]);
        });
        let order = order(&claim(|_| {}), &class, &place()).expect("an order");
        assert_eq!((order.directory.as_str(), order.bytes), ("/new/pvc-u1", 3 << 29));
        let volume = serde_json::to_value(&order.volume).expect("JSON");
        assert_eq!(volume["metadata"]["name"], "pvc-u1");
        assert_eq!(volume["spec"]["capacity"]["storage"], "1.5Gi");
        assert_eq!(volume["spec"]["claimRef"]["uid"], "u1");
        assert_eq!(volume["spec"]["claimRef"]["namespace"], "shop");
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(volume["spec"]["mountOptions"], json!(["noatime"]));
        assert_eq!(volume["spec"]["storageClassName"], "local");
        assert_eq!(node_of(&order.volume), Some("worker-0"));
        assert_eq!(
            directory_of(&order.volume, &place()).as_deref(),
            Some(Utf8Path::new("/new/pvc-u1"))
        );
    }

    #[test]
    fn what_a_directory_cannot_do_is_refused_in_words() {
        let check = |words: &str, change: &dyn Fn(&mut Value)| {
            let refused = order(&claim(change), &class(|_| {}), &place()).expect_err(words);
            assert!(refused.contains(words), "{refused}");
        };
        check("Block", &|claim| claim["spec"]["volumeMode"] = json!("Block"));
        check("ReadWriteMany", &|claim| {
            claim["spec"]["accessModes"] = json!(["ReadWriteOnce", "ReadWriteMany"])
        });
        check("ReadOnlyMany", &|claim| {
            claim["spec"]["accessModes"] = json!(["ReadOnlyMany"])
        });
        check("dataSource", &|claim| {
            claim["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "a"});
        });
        check("selector", &|claim| {
            claim["spec"]["selector"] = json!({"matchLabels": {"a": "b"}})
        });
        check("`lots`", &|claim| {
            claim["spec"]["resources"]["requests"]["storage"] = json!("lots")
        });
        let class = class(|class| class["parameters"] = json!({"fsType": "ext4"}));
        let refused = order(&claim(|_| {}), &class, &place()).expect_err("parameters");
        assert!(refused.contains("parameters"), "{refused}");
        let once = claim(|claim| claim["spec"]["accessModes"] = json!(["ReadWriteOncePod"]));
        order(&once, &self::class(|_| {}), &place()).expect("one pod is fewer than one node");
    }

    #[test]
    fn how_a_volume_ends() {
        let deleted =
            |volume: &mut Value| volume["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let retain = |volume: &mut Value| volume["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        let finalizers = |volume: &mut Value, list: &[&str]| volume["metadata"]["finalizers"] = json!(list);
        for phase in ["Pending", "Available", "Bound", "Failed"] {
            assert_eq!(ending(&volume(phase, |_| {})), Ending::Nothing, "{phase}");
        }
        assert_eq!(ending(&volume("Released", |_| {})), Ending::Delete);
        assert_eq!(ending(&volume("Released", retain)), Ending::Nothing);
        let other = volume("Released", |volume| volume["metadata"]["annotations"] = json!({}));
        assert_eq!(ending(&other), Ending::Nothing);
        let used = volume("Bound", |volume| {
            deleted(volume);
            finalizers(volume, &[PROTECTION, FINALIZER]);
        });
        assert_eq!(ending(&used), Ending::Nothing, "a claim may use it");
        assert_eq!(
            ending(&volume("Released", deleted)),
            Ending::LetGo { data: Data::Remove }
        );
        let kept = volume("Released", |volume| {
            deleted(volume);
            retain(volume);
        });
        assert_eq!(ending(&kept), Ending::LetGo { data: Data::Keep });
        let waits_for_others = volume("Released", |volume| {
            deleted(volume);
            finalizers(volume, &["example.com/backup"]);
        });
        assert_eq!(ending(&waits_for_others), Ending::Nothing);
    }

    #[test]
    fn only_directories_that_we_would_have_made_are_ours() {
        let at = |path: &str| volume("Released", |volume| volume["spec"]["local"]["path"] = json!(path));
        let directory = |path: &str| directory_of(&at(path), &place());
        assert_eq!(
            directory("/old/pvc-u1").as_deref(),
            Some(Utf8Path::new("/old/pvc-u1"))
        );
        for foreign in [
            "/",
            "/etc",
            "/new",
            "/new/pvc-u2",
            "/new/../etc/pvc-u1",
            "/other/pvc-u1",
        ] {
            assert_eq!(directory(foreign), None, "{foreign}");
        }
        let elsewhere = Place {
            node: "worker-1".to_owned(),
            ..place()
        };
        assert_eq!(directory_of(&at("/new/pvc-u1"), &elsewhere), None);
        let anywhere = volume("Released", |volume| {
            volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] =
                json!(["worker-0", "worker-1"]);
        });
        assert_eq!(node_of(&anywhere), None);
    }

    #[test]
    fn a_directory_is_left_over_when_neither_volume_nor_claim_is_there() {
        let found: BTreeSet<Utf8PathBuf> = ["/new/pvc-u1", "/new/pvc-u2", "/old/pvc-u3", "/new/lost+found"]
            .iter()
            .map(Utf8PathBuf::from)
            .collect();
        let of_claim = [claim(|claim| claim["metadata"]["uid"] = json!("u2"))];
        let bound = [volume("Bound", |_| {})];
        assert_eq!(leftovers(&found, &bound, &of_claim), ["/old/pvc-u3"]);
        assert_eq!(
            leftovers(&found, &[], &[]),
            ["/new/pvc-u1", "/new/pvc-u2", "/old/pvc-u3"]
        );

        assert!(lost(&found, &bound, &place()).is_empty());
        assert_eq!(lost(&BTreeSet::new(), &bound, &place()).len(), 1);
        assert!(lost(&BTreeSet::new(), &[volume("Released", |_| {})], &place()).is_empty());
    }

    #[test]
    fn quantities() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(bytes(text), expect, "{text}");
        check("0", Some(0));
        check("1000", Some(1000));
        check("1k", Some(1000));
        check("1Ki", Some(1024));
        check("10Gi", Some(10 << 30));
        check("0.5Gi", Some(1 << 29));
        check("1e3", Some(1000));
        check("2E3", Some(2000));
        check("2E", Some(2_000_000_000_000_000_000));
        check("100m", Some(1));
        check("1Ei", Some(1 << 60));
        check("100Ei", None);
        check("-1", None);
        check("", None);
        check("1 Gi", None);
        check("Gi", None);
    }
}
