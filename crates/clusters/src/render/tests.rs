//! The manifest against the release it is for: what one says, the other has to know.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use stolos_base::ids::IdSource;

use super::*;

fn plan() -> Plan {
    let size = json!({"cpu": 2, "ram": 2048, "ephemeral_disk": 8192});
    let mut master = size.clone();
    master["persistent_disk"] = json!(1024);
    let plan = json!({"name": "small", "description": "", "kubernetes_version": "1.37.1", "master": master, "worker": size,
                      "worker_instances": 1, "max_worker_instances": 5, "worker_max_in_flight": 2});
    serde_json::from_value(plan).expect("a plan")
}

fn rendered(workers: u32) -> Rendered {
    let settings = Settings {
        tags: vec!["team:a".parse().expect("a tag")],
        ..Settings::default()
    };
    rendered_with(&plan(), workers, &settings)
}

fn rendered_with(plan: &Plan, workers: u32, settings: &Settings) -> Rendered {
    rendered_in(Phase::Usual, plan, workers, settings)
}

fn rendered_in(phase: Phase, plan: &Plan, workers: u32, settings: &Settings) -> Rendered {
    let hostname = "demo.example.com".parse().expect("a host name");
    let spec = ClusterSpec {
        id: ClusterId::new(&IdSource::counted()),
        hostname: &hostname,
        plan,
        workers,
        settings,
        networks: settings.networks().expect("apart"),
        rollout: Rollout::Fresh,
        in_flight: None,
        phase,
    };
    let lease = NetworkLease {
        segment: "c1".to_owned(),
        range: "10.117.1.0/24".parse().expect("a range"),
        virtual_address: [10, 117, 0, 10].into(),
    };
    let artifacts = Artifacts {
        release: "kubernetes".to_owned(),
        release_version: "1.37.1".to_owned(),
        stemcell_os: "stolos-trixie".to_owned(),
        stemcell_version: "1".to_owned(),
        image_seed: "seed".to_owned(),
    };
    render(&spec, &lease, &artifacts)
}

fn parsed(yaml: &str) -> Value {
    stolos_document::from_yaml(yaml).expect("the rendered text is YAML")
}

fn items<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("`{key}` is no list"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The dotted paths of all leaves below `value`; a map in `declared` counts as a leaf.
fn leaves(value: &Value, path: &str, declared: &BTreeMap<String, bool>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !declared.contains_key(path) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &path, declared, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The properties that a job's spec declares, and whether each has a default.
fn declared(job: &str) -> BTreeMap<String, bool> {
    let path = format!(
        "{}/../../releases/kubernetes/jobs/{job}/spec",
        env!("CARGO_MANIFEST_DIR")
    );
    let spec = parsed(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")));
    spec["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, property)| (name.clone(), property.get("default").is_some()))
        .collect()
}

#[test]
fn every_job_gets_the_properties_that_its_spec_declares() {
    let manifest = parsed(&rendered(2).manifest);
    for group in items(&manifest, "instance_groups") {
        for job in items(group, "jobs") {
            let name = text(&job["name"]);
            let declared = declared(name);
            let mut given = BTreeSet::new();
            leaves(&job["properties"], "", &declared, &mut given);
            for property in &given {
                assert!(
                    declared.contains_key(property),
                    "job `{name}` does not know the property `{property}`"
                );
            }
            for (property, has_default) in &declared {
                assert!(
                    *has_default || given.contains(property),
                    "job `{name}` is not given `{property}`"
                );
            }
        }
    }
}

#[test]
fn variables_are_declared_once_and_all_are_used() {
    let rendered = rendered(2);
    let manifest = parsed(&rendered.manifest);
    let mut declared = BTreeSet::new();
    for variable in items(&manifest, "variables") {
        assert!(
            declared.insert(text(&variable["name"]).to_owned()),
            "declared twice: {variable}"
        );
    }
    let mut used: BTreeSet<String> = rendered
        .manifest
        .split("((")
        .skip(1)
        .filter_map(|rest| rest.split_once("))"))
        .map(|(reference, _)| reference.split('.').next().unwrap_or_default().to_owned())
        .collect();
    used.extend(
        items(&manifest, "variables")
            .iter()
            .filter_map(|v| v["options"]["ca"].as_str())
            .map(str::to_owned),
    );
    assert_eq!(used, declared);
}

/// Certificates of workers that a resize had removed were shown and renewed until they ended.
#[test]
fn a_members_certificate_is_told_from_the_clusters() {
    let manifest = parsed(&rendered(2).manifest);
    let mut members = 0;
    for variable in items(&manifest, "variables") {
        let declared = text(&variable["name"]);
        let name = format!(
            "/stolos/service-instance_x/{}",
            declared.replace("{instance}", "worker-web-3")
        );
        let of_instance = declared.contains("{instance}");
        assert_eq!(member_of(&name), of_instance.then_some("worker-web-3"), "{name}");
        members += usize::from(of_instance);
    }
    assert_eq!(members, FAMILIES.len());
}

#[test]
fn a_worker_sees_no_identity_but_its_own() {
    let manifest = parsed(&rendered(2).manifest);
    let worker = items(&manifest, "instance_groups")
        .iter()
        .find(|g| g["name"] == "worker")
        .expect("a worker group");
    let text = worker.to_string();
    let mut keys: Vec<&str> = text
        .split("((")
        .skip(1)
        .filter_map(|rest| rest.split_once("))"))
        .map(|(reference, _)| reference)
        .filter(|reference| reference.ends_with(".private_key"))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(
        keys,
        [
            "kube_proxy.private_key",
            "kubelet_{instance}.private_key",
            "local_volumes_{instance}.private_key"
        ]
    );
}

#[test]
fn the_api_is_named_by_everything_that_reaches_it() {
    let manifest = parsed(&rendered(1).manifest);
    let server = items(&manifest, "variables")
        .iter()
        .find(|v| v["name"] == "kube_apiserver_{instance}")
        .expect("the serving certificate");
    let names: Vec<&str> = items(&server["options"], "alternative_names")
        .iter()
        .map(text)
        .collect();
    for name in [
        "10.117.0.10",
        "10.100.200.1",
        "127.0.0.1",
        "{address}",
        "demo.example.com",
        "kubernetes.default.svc.cluster.local",
    ] {
        assert!(names.contains(&name), "`{name}` is not in {names:?}");
    }
}

#[test]
fn the_cloud_config_has_what_the_manifest_names() {
    let rendered = rendered(3);
    let (manifest, cloud) = (parsed(&rendered.manifest), parsed(&rendered.cloud_config));
    assert_eq!(cloud["networks"][0]["subnets"][0]["gateway"], "10.117.1.1");
    let types: BTreeSet<&str> = items(&cloud, "vm_types")
        .iter()
        .map(|t| text(&t["name"]))
        .collect();
    for group in items(&manifest, "instance_groups") {
        assert!(
            types.contains(text(&group["vm_type"])),
            "no machine size for {}",
            group["name"]
        );
        assert_eq!(group["networks"][0]["name"], cloud["networks"][0]["name"]);
    }
    assert_eq!(manifest["instance_groups"][1]["instances"], 3);
    assert_eq!(manifest["instance_groups"][0]["persistent_disk"], 1024);
}

#[test]
fn while_a_cluster_is_restored_its_masters_have_etcd_alone_and_its_workers_stay_as_they_are() {
    let settings = Settings::default();
    let usual = parsed(&rendered_in(Phase::Usual, &plan(), 2, &settings).manifest);
    for (phase, hold) in [
        (Phase::Held, true),
        (Phase::Restoring { alone: false }, false),
        (Phase::Restoring { alone: true }, false),
    ] {
        let manifest = parsed(&rendered_in(phase, &plan(), 2, &settings).manifest);
        let groups = items(&manifest, "instance_groups");
        let jobs = items(&groups[0], "jobs");
        assert_eq!(jobs.len(), 1);
        let properties = &jobs[0]["properties"];
        assert_eq!(
            (&jobs[0]["name"], &properties["hold"], &properties["restore"]),
            (&json!("etcd"), &json!(hold), &json!("((etcd_restore))"))
        );
        let declared = declared("etcd");
        assert!(declared.contains_key("hold") && declared.contains_key("restore"));
        // What the machine is made of, and its disk, do not change.
        let mut same = groups[0].clone();
        same["jobs"] = items(&usual, "instance_groups")[0]["jobs"].clone();
        assert_eq!(same, items(&usual, "instance_groups")[0]);
        let workers = &items(&usual, "instance_groups")[1..];
        let alone = phase == (Phase::Restoring { alone: true });
        assert_eq!(&groups[1..], if alone { &[] } else { workers });
    }
}
