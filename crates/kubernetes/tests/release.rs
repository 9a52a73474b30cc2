//! The jobs of `releases/kubernetes`, rendered as the director renders them: what comes out has to be readable by what reads it.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use stolos_kubernetes::{Document, volumes};
use stolos_release::JobArchive;
use stolos_release::render::{
    InstanceContext, JobInput, Link, LinkInstance, RenderedInstance, render_instance,
};

const PEM: &str = "-----BEGIN X-----\nMA==\n-----END X-----\n";

fn release() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../releases/kubernetes")
}

fn read(path: &str) -> Value {
    let text = fs_err::read_to_string(release().join(path)).expect("a file of the release");
    stolos_document::from_yaml(&text).expect("YAML")
}

fn jobs() -> Vec<JobArchive> {
    let manifest = read("release.yml");
    let names = manifest["jobs"].as_array().expect("a list of jobs");
    names
        .iter()
        .map(|name| {
            let directory = release().join("jobs").join(name.as_str().expect("a name"));
            JobArchive::from_source(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"))
        })
        .collect()
}

fn members(n: u64) -> Vec<LinkInstance> {
    (0..n)
        .map(|index| LinkInstance {
            name: "master".to_owned(),
            index,
            id: format!("id-{index}"),
            az: Some("z1".to_owned()),
            address: format!("10.117.1.{}", 2 + index),
            bootstrap: index == 0,
        })
        .collect()
}

/// Renders all jobs on instance `index` of a group of `n`, each given `given` beside what it cannot do without.
fn rendered(n: u64, index: u64, given: &BTreeMap<&str, Value>) -> RenderedInstance {
    let jobs = jobs();
    let links: BTreeMap<String, Link> = ["etcd", "kube-apiserver"]
        .into_iter()
        .map(|name| {
            (
                name.to_owned(),
                Link {
                    instances: members(n),
                    properties: json!({}),
                },
            )
        })
        .collect();
    let properties: Vec<Value> = jobs
        .iter()
        .map(|job| {
            let mut manifest = json!({});
            for (name, property) in &job.spec.properties {
                let value = match (given.get(name.as_str()), &property.default) {
                    (Some(value), _) => value.clone(),
                    (None, Value::Null) => json!(PEM),
                    (None, _) => continue,
                };
                let mut place = &mut manifest;
                for part in name.split('.') {
                    place = &mut place[part];
                }
                *place = value;
            }
            job.spec.properties_for(&manifest).expect("properties")
        })
        .collect();
    let inputs: Vec<JobInput<'_>> = jobs
        .iter()
        .zip(&properties)
        .map(|(job, properties)| JobInput {
            job,
            properties,
            links: &links,
        })
        .collect();
    let me = members(n).swap_remove(usize::try_from(index).expect("small"));
    let context = InstanceContext {
        deployment: "service-instance_1".to_owned(),
        name: me.name,
        index,
        id: me.id,
        az: me.az,
        bootstrap: me.bootstrap,
        ip: me.address.clone(),
        address: me.address,
        networks: json!({}),
    };
    render_instance(&inputs, &context).unwrap_or_else(|errors| panic!("{errors}"))
}

fn usual() -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("api_server", json!("https://10.117.0.10:8443")),
        ("seed", json!("seed-1")),
    ])
}

fn text<'a>(rendered: &'a RenderedInstance, job: &str, file: &str) -> &'a str {
    let file = rendered.jobs[job]
        .files
        .get(file)
        .unwrap_or_else(|| panic!("{job} has no {file}"));
    std::str::from_utf8(file.bytes.expose()).expect("UTF-8")
}

fn argv(rendered: &RenderedInstance, job: &str) -> Vec<String> {
    let processes: Value =
        stolos_document::from_yaml(text(rendered, job, "config/processes.yml")).expect("YAML");
    serde_json::from_value(processes["processes"][0]["argv"].clone()).expect("a list of texts")
}

#[test]
fn processes_run_programs_of_the_jobs_own_packages() {
    let rendered = rendered(1, 0, &usual());
    let packages = read("release.yml");
    let packages: Vec<&str> = packages["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    for job in jobs() {
        let name = &job.spec.name;
        for package in &job.spec.packages {
            assert!(
                packages.contains(&package.as_str()),
                "job `{name}` wants the unknown package `{package}`"
            );
        }
        for (path, file) in &rendered.jobs[name].files {
            let content = std::str::from_utf8(file.bytes.expose()).expect("UTF-8");
            assert!(
                !path.starts_with("bin/") || content.starts_with("#!/bin/sh\n"),
                "{name}/{path} is no script"
            );
            for rest in content.split("/var/vcap/packages/").skip(1) {
                let package = rest.split('/').next().unwrap_or_default();
                let known = job.spec.packages.iter().any(|own| own == package);
                assert!(
                    known,
                    "job `{name}` uses the package `{package}` without naming it"
                );
            }
        }
    }
}

#[test]
fn what_kubernetes_reads_is_readable() {
    let rendered = rendered(1, 0, &usual());
    let services =
        Document::parse(text(&rendered, "cluster-services", "config/services.yml")).expect("objects");
    let titles: Vec<String> = services.iter().map(Document::title).collect();
    // kube-proxy waits for its role, so that has to come first.
    assert_eq!(
        titles[..2],
        [
            "ClusterRole stolos:kube-proxy",
            "ClusterRoleBinding stolos:kube-proxy"
        ]
    );
    for title in [
        "Service kube-system/kube-dns",
        "Deployment kube-system/coredns",
        "StorageClass local",
    ] {
        assert!(
            titles.iter().any(|known| known == title),
            "no {title} in {titles:?}"
        );
    }
    let addons = Document::parse(text(&rendered, "cluster-services", "config/addons.yml")).expect("objects");
    let titles: Vec<String> = addons.iter().map(Document::title).collect();
    // Who makes an object that nobody in the cluster acts on is warned.
    for name in [
        "stolos-load-balancers",
        "stolos-ingresses",
        "stolos-network-policies",
    ] {
        for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
            assert!(
                titles.contains(&format!("{kind} {name}")),
                "{kind} {name}: {titles:?}"
            );
        }
    }
    // Whoever asks for metrics is sent to the service, so that comes last.
    assert_eq!(
        titles[titles.len() - 2..],
        [
            "Service kube-system/metrics-server",
            "APIService v1beta1.metrics.k8s.io"
        ]
    );
    for job in [
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "local-volumes",
        "cluster-services",
    ] {
        kube::config::Kubeconfig::from_yaml(text(&rendered, job, "config/kubeconfig"))
            .unwrap_or_else(|error| panic!("kubeconfig of {job}: {error}"));
    }
    for (job, file) in [
        ("kubelet", "config/kubelet.yml"),
        ("kube-proxy", "config/kube-proxy.yml"),
    ] {
        let config: Value = stolos_document::from_yaml(text(&rendered, job, file)).expect("YAML");
        assert!(
            config["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("Configuration")),
            "{job}"
        );
    }
    let network: Value =
        serde_json::from_str(text(&rendered, "pod-network", "config/10-stolos.conflist")).expect("JSON");
    assert_eq!(
        network["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
        "10.200.2.0/24"
    );
}

#[test]
fn a_machine_has_a_route_to_every_other_one_and_none_to_itself() {
    let rendered = rendered(1, 0, &usual());
    let routes: Vec<&str> = text(&rendered, "pod-network", "config/routes")
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(routes.len(), 252);
    assert_eq!(routes[0], "route replace 10.200.3.0/24 via 10.117.1.3");
    assert_eq!(routes[251], "route replace 10.200.254.0/24 via 10.117.1.254");
}

#[test]
fn etcd_members_know_each_other_and_one_alone_elects_fast() {
    let one = argv(&rendered(1, 0, &usual()), "etcd");
    assert!(!one.iter().any(|word| word.starts_with("--peer=")), "{one:?}");
    assert!(one.contains(&"--election-timeout=250".to_owned()), "{one:?}");
    let third = rendered(3, 2, &usual());
    let words = argv(&third, "etcd");
    let peers: Vec<&str> = words
        .iter()
        .filter_map(|word| word.strip_prefix("--peer="))
        .collect();
    assert_eq!(peers, ["master-0=10.117.1.2", "master-1=10.117.1.3"]);
    assert!(
        words.contains(&"--name=master-2".to_owned())
            && words.contains(&"--election-timeout=1000".to_owned())
    );
    let common = text(&third, "etcd", "config/member.sh");
    for word in [
        "--peer='master-0=10.117.1.2'",
        "--name='master-2'",
        "--data-dir='/var/vcap/store/etcd'",
    ] {
        assert!(common.contains(word), "{common}");
    }
}

#[test]
fn flags_of_an_operator_win() {
    let mut given = usual();
    given.insert("extra_args", json!({"profiling": "true", "v": 2}));
    let argv = argv(&rendered(1, 0, &given), "kube-apiserver");
    assert!(
        argv.contains(&"--profiling=true".to_owned()) && argv.contains(&"--v=2".to_owned()),
        "{argv:?}"
    );
    assert!(!argv.contains(&"--profiling=false".to_owned()), "{argv:?}");
}

/// Names that the program, its job and the policies over it have to agree on.
#[test]
fn local_volumes_are_made_where_the_policy_allows_them() {
    for (persistent, of_gone_nodes) in [(false, true), (true, false)] {
        let mut given = usual();
        given.insert("persistent", json!(persistent));
        given.insert("control_plane", json!(of_gone_nodes));
        let rendered = rendered(1, 0, &given);
        let services = text(&rendered, "cluster-services", "config/services.yml");
        let argv = argv(&rendered, "local-volumes");
        let directories: Vec<&str> = argv
            .iter()
            .filter_map(|argument| argument.strip_prefix("--directory="))
            .collect();
        assert_eq!(directories.len(), 2, "{argv:?}");
        assert_eq!(
            directories[0].starts_with("/var/vcap/store/"),
            persistent,
            "{argv:?}"
        );
        for directory in directories {
            let allowed = format!("'{directory}/' + object.metadata.name");
            assert!(services.contains(&allowed), "no policy allows `{directory}`");
        }
        assert_eq!(argv.contains(&"--of-gone-nodes".to_owned()), of_gone_nodes);
        for name in [volumes::PROVISIONER, volumes::FINALIZER] {
            assert!(
                services.contains(&format!("'{name}'")),
                "no policy names `{name}`"
            );
        }
        assert!(services.contains(&format!("provisioner: {}\n", volumes::PROVISIONER)));
    }
}

#[test]
fn only_the_first_master_applies_the_cluster_services() {
    let script = |index| {
        text(
            &rendered(3, index, &usual()),
            "cluster-services",
            "bin/post-start",
        )
        .to_owned()
    };
    assert!(script(0).contains("$job apply") && !script(1).contains("$job apply"));
    assert!(script(1).contains("label-node"));
}

#[test]
fn addons_of_an_operator_are_applied_as_they_are() {
    let addons = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# {{ no template }}\napiVersion: v1\nkind: ConfigMap\n\
                  metadata: {name: b}\n";
    let mut given = usual();
    given.insert("addons", json!(addons));
    let (with, without) = (rendered(1, 0, &given), rendered(1, 0, &usual()));
    let own = |rendered| Document::parse(text(rendered, "cluster-services", "config/own-addons.yml"));
    let titles: Vec<String> = own(&with).expect("objects").iter().map(Document::title).collect();
    assert_eq!(titles, ["Namespace a", "ConfigMap b"]);
    assert!(own(&without).expect("nothing").is_empty());
    let script = |rendered| text(rendered, "cluster-services", "bin/post-deploy").to_owned();
    assert!(script(&with).contains("/own-addons.yml"));
    assert!(script(&without).contains("/addons.yml") && !script(&without).contains("/own-addons.yml"));
    let second = rendered(3, 1, &given);
    assert!(
        !script(&second).contains("apply"),
        "only the first master applies"
    );
}

#[test]
fn a_held_member_runs_nothing_and_a_restoring_one_does_its_part_first() {
    let wish = r#"{"id": "x", "url": "https://10.117.0.1:25250/cluster-backups/aa/b?st=s&ts=1&e=2"}"#;
    let given = |restore: &str, hold: bool| {
        let mut given = usual();
        given.insert("restore", json!(restore));
        given.insert("hold", json!(hold));
        rendered(3, 0, &given)
    };
    let processes = |rendered: &RenderedInstance| -> usize {
        let file: Value =
            stolos_document::from_yaml(text(rendered, "etcd", "config/processes.yml")).expect("YAML");
        file["processes"].as_array().expect("a list").len()
    };
    let held = given(wish, true);
    assert_eq!(processes(&held), 0);
    assert!(text(&held, "etcd", "bin/pre-start").contains("--prepare"));
    assert!(text(&held, "etcd", "bin/post-start").contains("set -eu\nexit 0"));
    assert!(!text(&held, "etcd", "bin/post-deploy").contains("etcd-ready"));
    let read: Value = serde_json::from_str(text(&held, "etcd", "config/restore.json")).expect("JSON");
    assert_eq!(read["id"], "x", "it is handed on as it is");

    let restoring = given(wish, false);
    assert_eq!(processes(&restoring), 2, "etcd and its keeper");
    let first = text(&restoring, "etcd", "bin/pre-start");
    assert!(
        first.contains("etcd-restore") && !first.contains("--prepare"),
        "{first}"
    );
    // All have to vote before anything else begins, and what was before stays until then.
    assert!(text(&restoring, "etcd", "bin/post-deploy").contains("etcd-ready"));
    assert!(!text(&restoring, "etcd", "bin/post-start").contains("member.before-restore"));
    // The address of the backup is a right: it is in no argument.
    for (file, content) in &restoring.jobs["etcd"].files {
        let content = std::str::from_utf8(content.bytes.expose()).expect("UTF-8");
        assert_eq!(
            content.contains("?st="),
            file.as_str() == "config/restore.json",
            "{file}"
        );
    }

    let usual = rendered(3, 0, &usual());
    assert!(!text(&usual, "etcd", "bin/pre-start").contains("etcd-restore"));
    assert!(text(&usual, "etcd", "bin/post-start").contains("member.before-restore"));
    // What a shell makes of the words in common.
    let script = text(&usual, "etcd", "config/member.sh").replace(
        "exec /var/vcap/packages/stolos-job/bin/stolos-job",
        "printf '%s\\n'",
    );
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            &script,
            "member.sh",
            "etcd-restore",
            "--from=a",
            "--prepare",
        ])
        .output()
        .expect("a shell");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let first: Vec<&str> = words.lines().take(4).collect();
    assert_eq!(
        first,
        ["etcd-restore", "--from=a", "--prepare", "--name=master-0"],
        "{words}"
    );
}
