//! What people write is data: every text of every request that leads to a manifest reaches it as it was written, or is refused.
//!
//! A tenant wrote `((/stolos/token_key.public_key))` into a profile and read the installation's key on a node. The walk below puts
//! such texts, and those of template languages, into every place of every request, keys of maps included; a field that the API
//! gets is walked as soon as it is in its description.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_base::pki::Authority;
use stolos_manifest::Node;
use stolos_manifest::variables::{interpolate, references};
use stolos_store::testing::Place;

use crate::ROOT;
use crate::world::{World, lock};

/// Few and long: each is sent in every place. What one grammar refuses must not hide what another lets through.
const HOSTILE: &[&str] = &[
    "((/stolos/token_key.public_key))((kubernetes_admin.private_key))",
    "((!))((!kubernetes_ca))((etcd_{instance}.private_key)){instance}",
    "{{ p('tls.ca') }}{% raw %}<%= p('tls.ca') %>\"'`$(id)\\",
    "a\nb: c\u{202e}\u{2028}\u{85}",
];
/// A text that nothing is wrong with: where it arrives, hostile ones have to arrive too.
const BENIGN: &str = "marker";

const CLUSTERS: &str = "/v1/clusters";
const POOLS: &str = "/v1/compute-profiles";
const NETWORKS: &str = "/v1/network-profiles";
const KUBERNETES: &str = "/v1/kubernetes-profiles";

/// A request with every field set, by the name of its description.
fn requests() -> Vec<(&'static str, &'static str, Value)> {
    let now = stolos_base::Clock::system().now();
    let year = std::time::Duration::from_secs(400 * 86_400);
    let authority = Authority::root("own", year, now).expect("a CA");
    let pem = authority.certificate();
    let registries = json!({"servers": [{"url": "r.test", "hosts": [
        {"url": "https://m.test", "capabilities": ["pull"], "ca_cert": pem, "skip_verify": false}]}]});
    let proxy = json!({"url": "http://proxy.test:3128", "username": "u", "password": "p"});
    let file = json!({"custom_ca": {"certificate": pem, "private_key": authority.identity().key.expose()},
        "instance_groups": [{"name": "worker", "vm_extension": {"x": "y"}}], "http_proxy": proxy, "https_proxy": proxy,
        "no_proxy": "a.test", "global_no_proxy_merge": true});
    let drain = json!({"kubelet_drain_timeout": "5", "kubelet_drain_grace_period": "5", "kubelet_drain_force": "true",
        "kubelet_drain_ignore_daemonsets": "true", "kubelet_drain_delete_local_data": "true", "kubelet_drain_force_node": "false"});
    let tags = json!([{"name": "team", "value": "blue", "category": "c"}]);
    let authorities = json!([{"domain_name": "old.test", "ca_cert": pem}]);
    let created = json!({"name": "c", "plan_name": "small", "network_profile_name": "net",
        "compute_profile_name": "pools", "kubernetes_profile_name": "flags", "parameters": {
        "kubernetes_master_host": "c.test", "kubernetes_master_port": 8443,
        "node_pool_instances": [{"name": "web", "instances": 1}], "cluster_tags": tags, "private_registries": registries,
        "config_file": file, "custom_ca_certs": authorities, "kubernetes_setting_cluster_details": drain,
        "kubernetes_setting_plan_details": drain, "kubernetes_worker_instances": 1, "from_backup": ""}});
    let mut updated = json!({"kubernetes_worker_instances": 1, "kubernetes_master_instances": 1,
        "node_pool_instances": [{"name": "web", "instances": 1}], "network_profile_name": "net",
        "compute_profile_name": "pools", "enforce_compute_profile_update": true, "kubernetes_profile_name": "flags",
        "private_registries": registries, "config_file": {"no_proxy": "a.test", "http_proxy": proxy}, "custom_ca_certs": authorities,
        "insecure_registries": ["lax.test"], "cluster_tags": tags, "delete_all_tags": false, "local_volumes": "delete"});
    updated
        .as_object_mut()
        .expect("a map")
        .extend(drain.as_object().expect("a map").clone());
    let pools = json!({"name": "p", "description": "d", "parameters": {"cluster_customization": {"node_pools": [
        {"name": "web", "description": "d", "instances": 1, "node_labels": "tier=web", "node_taints": "only=web:NoSchedule",
         "az_names": ["z1"]}, {"name": "plain"}]}}});
    let networks = json!({"name": "p", "description": "d", "parameters": {"nodes_dns": ["10.0.0.53"], "lb_size": "small",
        "cni_configurations": {"type": "stolos", "parameters": {"pod_network": "172.20.0.0/16", "service_network": "10.96.0.0/20"}}}});
    let unchecked = |component: &str| json!({"component": component, "arguments": {"feature": "text", "list": ["a", "b"]}});
    let kubernetes = json!({"name": "p", "description": "d", "customizations": [
        {"component": "kube-apiserver", "arguments": {"service-node-port-range": "30000-31000",
            "enable-admission-plugins": ["NamespaceAutoProvision"], "oidc-issuer-url": "https://i.test",
            "oidc-client-id": "c", "oidc-username-claim": "u", "oidc-username-prefix": "p", "oidc-groups-claim": "g",
            "oidc-groups-prefix": "p", "oidc-required-claim": "k=v", "requestheader-allowed-names": "front-proxy-client"},
         "file-arguments": {"oidc-ca-file": pem}},
        {"component": "etcd", "arguments": {"quota-backend-bytes": "4294967296"}}],
        "experimental_customizations": [unchecked("kubelet"), unchecked("kube-proxy"), unchecked("kube-scheduler"),
            unchecked("kube-controller-manager"), {"component": "kube-apiserver", "arguments": {"v": "4"}}]});
    vec![
        ("ClusterRequest", CLUSTERS, created),
        ("UpdateParameters", CLUSTERS, updated),
        ("ProfileRequest", POOLS, pools),
        ("ProfileRequest", NETWORKS, networks),
        ("KubernetesProfileRequest", KUBERNETES, kubernetes),
    ]
}

/// Fails for a field of the API's description that the first sample of its type does not have.
fn complete(schemas: &Value, name: &str, sample: &Value, path: &str, seen: &mut BTreeSet<String>) {
    if !seen.insert(name.to_owned()) {
        return;
    }
    let fields = schemas[name]["properties"].as_object().into_iter().flatten();
    for (field, described) in fields {
        let given = &sample[field];
        assert!(
            !given.is_null(),
            "the request at `{path}` lacks `{field}`, which {name} has"
        );
        let text = described.to_string();
        let inner = text
            .split("#/components/schemas/")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        if let Some(inner) = inner {
            let first = if given.is_array() { &given[0] } else { given };
            complete(schemas, inner, first, &format!("{path}.{field}"), seen);
        }
    }
}

/// A place of a document.
#[derive(Clone, Debug)]
enum Spot {
    /// The text at a pointer.
    Text(String),
    /// A key of the map at a pointer.
    Key(String, String),
}

fn spots(value: &Value, pointer: &str, found: &mut Vec<Spot>) {
    match value {
        Value::String(_) => found.push(Spot::Text(pointer.to_owned())),
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                spots(value, &format!("{pointer}/{i}"), found);
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                found.push(Spot::Key(pointer.to_owned(), key.clone()));
                spots(value, &format!("{pointer}/{key}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The request with a text in the place of what was there, or behind it.
fn changed(request: &Value, spot: &Spot, text: &str, behind: bool) -> Value {
    let mut request = request.clone();
    let joined = |old: &str| {
        if behind {
            format!("{old}{text}")
        } else {
            text.to_owned()
        }
    };
    match spot {
        Spot::Text(pointer) => {
            let value = request.pointer_mut(pointer).expect("a value");
            *value = json!(joined(value.as_str().expect("a text")));
        }
        Spot::Key(pointer, key) => {
            let map = request
                .pointer_mut(pointer)
                .and_then(Value::as_object_mut)
                .expect("a map");
            let value = map.shift_remove(key).expect("a value");
            map.insert(joined(key), value);
        }
    }
    request
}

/// All texts of a document, keys included.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
        Value::Object(map) => {
            for (key, value) in map {
                found.push(key.clone());
                texts(value, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What the director makes of a manifest where every variable has the same value.
fn resolved(manifest: &Value) -> Value {
    let any = json!({"certificate": "-", "private_key": "-", "public_key": "-", "ca": "-"});
    interpolate(manifest, |_| Some(any.clone())).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// How often each variable is named.
fn named(manifest: &Value) -> BTreeMap<String, usize> {
    let mut named = BTreeMap::new();
    for reference in references(&Node::from(manifest.clone())) {
        // The id of a profile is another one each time.
        let name = reference.name.split('/').next().unwrap_or_default().to_owned();
        *named.entry(name).or_default() += 1;
    }
    named
}

struct Walk {
    world: World,
    number: usize,
}

/// What became of a request.
enum Outcome {
    Refused,
    /// Manifests and secrets that came of it.
    Manifest(Value, Vec<String>),
}

impl Walk {
    async fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let answer = self.world.ask(ROOT, Method::POST, path, body).await;
        match answer.status {
            StatusCode::CREATED => Some(answer.body),
            StatusCode::ACCEPTED => {
                let state = self.world.ended(&answer).await;
                assert_eq!(state, "succeeded", "{body}");
                Some(answer.body)
            }
            refused if refused.is_client_error() => None,
            other => panic!("{other} for {body}: {answer:?}"),
        }
    }

    /// Sends a request and gives the manifest that it leads to.
    async fn outcome(&mut self, kind: &str, path: &str, request: &Value) -> Outcome {
        self.number += 1;
        let plain = json!({"name": format!("x{}", self.number), "plan_name": "small",
            "parameters": {"kubernetes_master_host": format!("x{}.test", self.number)}});
        let mut cluster = plain.clone();
        let mut profile = None;
        let shown = match (kind, path) {
            ("ClusterRequest", _) => self.post(CLUSTERS, request).await,
            ("UpdateParameters", _) => {
                for key in ["network", "compute", "kubernetes"] {
                    cluster[format!("{key}_profile_name")] = request[format!("{key}_profile_name")].clone();
                }
                let made = self
                    .post(CLUSTERS, &plain_with_profiles(&plain))
                    .await
                    .expect("a cluster");
                let name = made["name"].as_str().expect("a name").to_owned();
                let answer = self
                    .world
                    .ask(ROOT, Method::PATCH, &format!("{CLUSTERS}/{name}"), request)
                    .await;
                if answer.status == StatusCode::ACCEPTED {
                    assert_eq!(self.world.ended(&answer).await, "succeeded", "{request}");
                    Some(made)
                } else {
                    assert!(answer.status.is_client_error(), "{request}: {answer:?}");
                    self.forget(&name).await;
                    None
                }
            }
            (_, path) => match self.post(path, request).await {
                None => None,
                Some(made) => {
                    let key = path.trim_start_matches("/v1/").trim_end_matches("-profiles");
                    let name = made["name"].as_str().expect("a name").to_owned();
                    cluster[format!("{key}_profile_name")] = json!(name);
                    profile = Some(format!("{path}/{name}"));
                    Some(
                        self.post(CLUSTERS, &cluster)
                            .await
                            .unwrap_or_else(|| panic!("{cluster}")),
                    )
                }
            },
        };
        let Some(shown) = shown else {
            return Outcome::Refused;
        };
        let deployment = format!("service-instance_{}", shown["uuid"].as_str().expect("an id"));
        let manifest = lock(&self.world.below.deployed)[&deployment].clone();
        let secrets = lock(&self.world.below.secrets).values().cloned().collect();
        self.forget(shown["name"].as_str().expect("a name")).await;
        if let Some(profile) = profile {
            let gone = self.world.ask(ROOT, Method::DELETE, &profile, &Value::Null).await;
            assert_eq!(gone.status, StatusCode::NO_CONTENT, "{profile}: {gone:?}");
        }
        Outcome::Manifest(manifest, secrets)
    }

    async fn forget(&self, cluster: &str) {
        let path = format!("{CLUSTERS}/{cluster}");
        let deleted = self.world.ask(ROOT, Method::DELETE, &path, &Value::Null).await;
        assert_eq!(self.world.ended(&deleted).await, "succeeded");
    }
}

/// A cluster that has the profiles of the samples.
fn plain_with_profiles(plain: &Value) -> Value {
    let mut cluster = plain.clone();
    for (key, name) in [("network", "net"), ("compute", "pools"), ("kubernetes", "flags")] {
        cluster[format!("{key}_profile_name")] = json!(name);
    }
    cluster
}

#[tokio::test]
async fn every_text_of_every_request_arrives_as_it_was_written_or_is_refused() {
    let place = Place::sqlite();
    let mut walk = Walk {
        world: World::new(&place).await,
        number: 0,
    };
    let description = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi/pks-v1.json");
    let description: Value =
        serde_json::from_str(&std::fs::read_to_string(description).expect("the description")).expect("JSON");
    let requests = requests();
    for (path, name) in [(NETWORKS, "net"), (POOLS, "pools"), (KUBERNETES, "flags")] {
        let (_, _, sample) = requests
            .iter()
            .find(|(_, other, _)| *other == path)
            .expect("a sample");
        let mut sample = sample.clone();
        sample["name"] = json!(name);
        walk.post(path, &sample).await.expect("a profile");
    }
    let (mut arrived, mut refused, mut missed) = (BTreeSet::new(), 0, BTreeSet::new());
    let mut seen = BTreeSet::new();
    for (kind, path, request) in &requests {
        complete(
            &description["components"]["schemas"],
            kind,
            request,
            kind,
            &mut seen,
        );
        let Outcome::Manifest(usual, _) = walk.outcome(kind, path, request).await else {
            panic!("the sample of {kind} for {path} is refused");
        };
        let usual = named(&usual);
        let mut all = Vec::new();
        spots(request, "", &mut all);
        for spot in &all {
            for behind in [false, true] {
                let benign = changed(request, spot, BENIGN, behind);
                let arrives = match walk.outcome(kind, path, &benign).await {
                    Outcome::Refused => false,
                    Outcome::Manifest(manifest, secrets) => has(&manifest, &secrets, BENIGN),
                };
                for hostile in HOSTILE {
                    let request = changed(request, spot, hostile, behind);
                    let Outcome::Manifest(manifest, secrets) = walk.outcome(kind, path, &request).await
                    else {
                        refused += 1;
                        continue;
                    };
                    let found = named(&manifest);
                    assert!(
                        found
                            .iter()
                            .all(|(name, count)| usual.get(name).is_some_and(|usual| count <= usual)),
                        "{kind} {spot:?} with {hostile:?} names more variables: {found:?}, not {usual:?}"
                    );
                    if arrives && !has(&resolved(&manifest), &secrets, hostile) {
                        missed.insert(format!("{kind} {spot:?} with {hostile:?}"));
                    } else if arrives {
                        arrived.insert(format!("{kind} {spot:?}"));
                    }
                }
            }
        }
    }
    assert!(
        missed.is_empty(),
        "taken and not passed on as written: {missed:#?}"
    );
    // A walk that meets a wall everywhere shows nothing.
    assert!(
        arrived.len() >= 10,
        "only {arrived:?} took anything hostile; {refused} requests were refused"
    );
    walk.world.stop().await;
}

/// Whether a text is in a manifest or among secrets; users and passwords stand in the URLs of proxies, encoded as these are.
fn has(manifest: &Value, secrets: &[String], text: &str) -> bool {
    let decode = |secret: &String| {
        percent_encoding::percent_decode_str(secret)
            .decode_utf8_lossy()
            .into_owned()
    };
    let mut all: Vec<String> = secrets.iter().map(decode).collect();
    texts(manifest, &mut all);
    all.iter().any(|one| one.contains(text))
}
