//! A cluster with profiles of all kinds goes from the older Kubernetes to the newer one, by the names that PKS's people type.

use serde_json::json;

use crate::installation::Installation;
use crate::workload::file;

const OLDER: &str = "1.36.3";
const NEWER: &str = "1.37.1";
/// The plan whose Kubernetes changes.
const PLAN: &str = "moving";

/// Writes the operator's configuration: the plan of all other tests, and one with a Kubernetes of its own.
pub(crate) fn configure(installation: &Installation) {
    write(installation, OLDER);
}

fn write(installation: &Installation, version: &str) {
    let path = installation.root.join("config.yml");
    let mut config: serde_json::Value = match fs_err::read_to_string(&path) {
        Ok(text) => stolos_document::from_yaml(&text).expect("YAML"),
        Err(_) => json!({}),
    };
    let size = |disk: u32| json!({"cpu": 2, "ram": 1536, "ephemeral_disk": 8192, "persistent_disk": disk});
    let plan = |name: &str, version: &str| {
        json!({"name": name, "description": "for tests", "kubernetes_version": version, "master": size(2048), "worker": size(0),
               "worker_instances": 1, "max_worker_instances": 50})
    };
    let mut moving = plan(PLAN, version);
    moving["addons"] =
        json!("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: greeting}\ndata: {said: hello}\n");
    moving["pod_security"] = json!({"enforce": "baseline"});
    config["plans"] = json!([plan("small", NEWER), moving]);
    fs_err::create_dir_all(&installation.root).expect("the root");
    let text = stolos_document::to_yaml(&config).expect("YAML");
    fs_err::write(&path, text).expect("the configuration");
}

/// Made as its profiles say, upgraded with what is in it, deleted.
pub(crate) fn a_cluster_with_profiles_is_upgraded(installation: &Installation) {
    let pools = json!({"name": "pools", "parameters": {"cluster_customization": {"node_pools": [
        {"name": "web", "instances": 1, "node_labels": "tier=web", "az_names": ["z2"]}]}}});
    let network = json!({"name": "own", "parameters": {"lb_size": "small", "cni_configurations":
        {"type": "stolos", "parameters": {"pod_network": "172.20.0.0/16", "service_network": "10.96.0.0/24"}}}});
    let key = "c2l4dGVlbiBieXRlcyBrMQ==";
    let encryption = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aescbc: {{keys: [{{name: k, secret: {key}}}]}}\n"
    );
    let kubernetes = json!({"name": "sealed", "customizations": [{"component": "kube-apiserver",
        "arguments": {"service-node-port-range": "31000-31999"}, "file-arguments": {"encryption-provider-config": encryption}}]});
    installation.stolos(&[
        "create-compute-profile",
        &file(installation, "pools.json", &pools.to_string()),
    ]);
    installation.stolos(&[
        "create-network-profile",
        &file(installation, "own.json", &network.to_string()),
    ]);
    installation.stolos(&[
        "create-k8s-profile",
        &file(installation, "sealed.json", &kubernetes.to_string()),
    ]);
    let create = [
        "create-cluster",
        "moving",
        "-e",
        "moving.test",
        "-p",
        PLAN,
        "--compute-profile",
        "pools",
        "--network-profile",
        "own",
        "--kubernetes-profile",
        "sealed",
        "--non-interactive",
    ];
    installation.stolos(&[&create[..], &["--dry-run"]].concat());
    installation.refused(&["cluster", "moving"], "Cluster moving not found");
    installation.stolos(&[&create[..], &["--wait"]].concat());
    installation.refused(
        &["delete-compute-profile", "pools", "--non-interactive"],
        "in use by moving",
    );
    installation.stolos(&["get-credentials", "moving"]);
    runs(installation, OLDER);
    let get = |arguments: &[&str]| installation.kubectl(arguments).expect("kubectl");
    let labels = get(&[
        "get",
        "node",
        "worker-web-0",
        "-o",
        "jsonpath={.metadata.labels.tier} {.metadata.labels.topology\\.kubernetes\\.io/zone}",
    ]);
    assert_eq!(labels, "web z2");
    let memory = get(&[
        "get",
        "node",
        "worker-web-0",
        "-o",
        "jsonpath={.status.capacity.memory}",
    ]);
    assert_eq!(memory, "1536Mi", "a node is as large as its machine");
    assert_eq!(
        get(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]),
        "10.96.0.1"
    );
    assert_eq!(
        get(&["get", "configmap", "greeting", "-o", "jsonpath={.data.said}"]),
        "hello"
    );
    let host = r#"{"spec": {"hostNetwork": true}}"#;
    let refused = installation.kubectl(&[
        "run",
        "bad",
        "--image=stolos.local/busybox:1",
        "--overrides",
        host,
    ]);
    assert!(
        refused.is_err_and(|why| why.contains("PodSecurity")),
        "baseline is enforced"
    );
    get(&[
        "create",
        "secret",
        "generic",
        "sealed",
        "--from-literal=word=verysecretword",
    ]);
    let refused = installation.kubectl(&[
        "create",
        "service",
        "nodeport",
        "out",
        "--tcp=80",
        "--node-port=30000",
    ]);
    assert!(
        refused.is_err_and(|why| why.contains("31000")),
        "the range of the profile holds"
    );
    assert!(
        audited(installation).contains("\"resource\":\"secrets\""),
        "requests are noted"
    );
    assert!(
        !audited(installation).contains("verysecretword"),
        "no secret is noted"
    );

    write(installation, NEWER);
    installation.stolos(&["up"]);
    let listed = installation.stolos(&["clusters"]);
    assert!(
        listed.starts_with("Upgrade is available to PKS Version:"),
        "{listed}"
    );
    let upgraded = installation.stolos(&["upgrade-clusters", "-c", "moving", "--non-interactive", "--wait"]);
    assert!(
        upgraded.contains("Finished upgrading cluster: moving"),
        "{upgraded}"
    );
    runs(installation, NEWER);
    let word = get(&["get", "secret", "sealed", "-o", "jsonpath={.data.word}"]);
    assert_eq!(word, "dmVyeXNlY3JldHdvcmQ=", "what was encrypted is read");
    installation.stolos(&["delete-cluster", "moving", "--non-interactive", "--wait"]);
    installation.stolos(&["delete-compute-profile", "pools", "--non-interactive"]);
    installation.stolos(&["get-credentials", "live"]);
}

fn runs(installation: &Installation, version: &str) {
    let nodes = ["get", "nodes", "--no-headers"];
    installation.eventually("nodes of the version", &nodes, |text| {
        let ready = |line: &str| line.contains(" Ready ") && line.ends_with(&format!("v{version}"));
        text.lines().count() == 2 && text.lines().all(ready)
    });
}

/// What the API servers of all clusters noted.
fn audited(installation: &Installation) -> String {
    let machines = fs_err::read_dir(installation.root.join("machines")).expect("the machines");
    machines
        .flatten()
        .filter_map(|machine| {
            let log = machine.path().join("var/vcap/sys/log/kube-apiserver/audit.log");
            std::fs::read_to_string(log).ok()
        })
        .collect()
}
