use std::collections::BTreeMap;

use stolos_clusters::plans::Plans;
use stolos_clusters::profiles::network::NetworkProfile;
use stolos_manifest::{Node, yaml};

use super::*;
use crate::config::default_zones;

const FLANNEL: &str = include_str!("../../tests/import/flannel.yml");
const ANTREA: &str = include_str!("../../tests/import/antrea.yml");

fn options() -> Options {
    Options {
        kubernetes_version: "1.37.1".to_owned(),
        vm_types: BTreeMap::new(),
    }
}

/// Converts a text, and checks what always holds: the plans can be used, and no secret is told.
fn imported(text: &str) -> Imported {
    let imported = convert(text, &options()).expect("a staged configuration");
    let Configuration { plans, zones } = imported.configuration.clone();
    let zones = if zones.is_empty() { default_zones() } else { zones };
    Plans::new(plans, zones).expect("plans that can be used");
    let json = serde_json::to_string(&imported).expect("JSON");
    let told = format!("{json}{}{imported:?}", imported.report);
    assert!(!told.contains("never-show-this"), "{told}");
    imported
}

fn as_yaml(imported: &Imported) -> String {
    let json = serde_json::to_value(&imported.configuration).expect("JSON");
    yaml::write(&Node::from(json))
}

/// A tile with one plan and these properties of it, and other lines.
fn tile(fields: &str, others: &str) -> String {
    let mut text = String::from("product-properties:\n  .properties.plan1_selector: {value: Plan Active}\n");
    for field in fields.lines() {
        let (name, value) = field.split_once(": ").expect("a field");
        text.push_str(&format!(
            "  .properties.plan1_selector.active.{name}: {{value: {value}}}\n"
        ));
    }
    text + others
}

fn plan(fields: &str) -> Plan {
    imported(&tile(fields, "")).configuration.plans.remove(0)
}

#[test]
fn a_tile_with_flannel() {
    let imported = imported(FLANNEL);
    insta::assert_snapshot!("flannel_report", imported.report);
    insta::assert_snapshot!("flannel_configuration", as_yaml(&imported));
    assert_eq!(imported.network_profile, None);
}

#[test]
fn a_newer_tile_with_gaps() {
    let imported = imported(ANTREA);
    insta::assert_snapshot!("antrea_report", imported.report);
    insta::assert_snapshot!("antrea_configuration", as_yaml(&imported));
    let profile = imported.network_profile.expect("networks of its own");
    let (parsed, not_applied) =
        NetworkProfile::parse("x", &profile["parameters"]).expect("a profile of ours");
    assert_eq!(
        parsed.pods.map(|net| net.to_string()).as_deref(),
        Some("172.20.0.0/16")
    );
    assert_eq!(
        parsed.services.map(|net| net.to_string()).as_deref(),
        Some("10.96.0.0/20")
    );
    assert_eq!(not_applied, Vec::<String>::new());
}

/// PKS gives ids by position, and so do we: a script that names plan 4's id has to get plan 4.
#[test]
fn plans_keep_their_ids() {
    let configuration = imported(FLANNEL).configuration;
    let plans = Plans::new(configuration.plans, configuration.zones).expect("plans");
    let of_id = |id| plans.find(id).map(|plan| (plan.name.as_str(), plan.active));
    assert_eq!(
        of_id("8A0E21A8-8072-4D80-B365-D1F502085560"),
        Some(("small", true))
    );
    assert_eq!(
        of_id("241118e5-69b2-4ef9-b47f-4d2ab071aff5"),
        Some(("wide", false))
    );
    assert_eq!(
        of_id("2fa824527-318d-4253-9f8e-0025863b8c8a"),
        Some(("medium-4", true))
    );
}

#[test]
fn sizes_of_machines() {
    let size = |name: &str| {
        let worker = plan(&format!("worker_vm_type: {name}")).worker;
        (worker.cpu, worker.ram, worker.ephemeral_disk)
    };
    assert_eq!(size("medium"), (2, 4096, 8192));
    assert_eq!(size("xlarge"), (4, 16_384, 32_768));
    assert_eq!(size("m4.large"), (2, 8192, 32_768));
    assert_eq!(size("automatic"), (2, 4096, 32_768));
    assert_eq!(size("unheard-of"), (2, 4096, 32_768));
    let named: machines::NamedVmType = "unheard-of=8:1024:2048".parse().expect("a size");
    let mut options = options();
    options.vm_types.insert(named.name, named.size);
    let text = tile("worker_vm_type: unheard-of", "");
    let worker = convert(&text, &options).expect("a plan").configuration.plans[0].worker;
    assert_eq!((worker.cpu, worker.ram, worker.ephemeral_disk), (8, 1024, 2048));
    for bad in [
        "a",
        "a=1",
        "a=1:2",
        "=1:1024:1024",
        "a=0:1024:1024",
        "a=x:1024:1024",
        "a=1:1024:1024:1",
    ] {
        assert!(bad.parse::<machines::NamedVmType>().is_err(), "{bad}");
    }
}

#[test]
fn the_first_tiles_named_fields_differently() {
    let plan = plan("az_placement: one\npersistent_disk_type: \"20480\"\nauthorization_mode: rbac");
    assert_eq!(
        (plan.master_zones, plan.worker_zones),
        (vec!["one".into()], vec!["one".into()])
    );
    assert_eq!(plan.worker.persistent_disk, 20_480);
    assert_eq!(plan.master.persistent_disk, 10_240, "it was for workers only");
}

#[test]
fn zones_get_names_that_nodes_can_have() {
    let long = "z".repeat(80);
    let text = tile(&format!("worker_az_placement: [\"a b\", a_b, \"-\", {long}]"), "");
    let configuration = imported(&text).configuration;
    assert_eq!(configuration.zones, ["a-b", "a-b-2", "zone", &long[..63]]);
}

#[test]
fn networks_that_clusters_cannot_have() {
    let of = |pods: &str, services: &str| {
        let text = tile(
            "",
            &format!(
                "  .properties.network_selector: {{value: flannel}}\n  .properties.network_selector.flannel.pod_network_cidr: {{value: {pods}}}\n  .properties.network_selector.flannel.service_cluster_cidr: {{value: {services}}}\n"
            ),
        );
        let imported = imported(&text);
        let not_taken = imported
            .report
            .lines
            .iter()
            .filter(|line| line.outcome == Outcome::NotTaken);
        let texts: Vec<String> = not_taken.map(|line| line.text.clone()).collect();
        let parameters = imported
            .network_profile
            .map(|profile| profile["parameters"]["cni_configurations"]["parameters"].to_string());
        (parameters, texts.join("; "))
    };
    let (profile, problem) = of("10.244.0.0/14", "10.96.0.0/20");
    assert_eq!(profile.as_deref(), Some(r#"{"service_network":"10.96.0.0/20"}"#));
    assert!(problem.contains("not a private /16"), "{problem}");
    let (profile, problem) = of("172.20.0.0/16", "172.20.8.0/24");
    assert_eq!(profile, None);
    assert!(problem.contains("overlap"), "{problem}");
    // Alone it would overlap our usual network of services; together they go.
    let (profile, problem) = of("10.100.0.0/16", "10.96.0.0/20");
    assert!(profile.is_some(), "{problem}");
    assert_eq!(of("((pods))", "10.96.0.0/20").1, "a placeholder");
}

#[test]
fn addons_are_taken_whole_or_not_at_all() {
    let addons = |text: &str| {
        let imported = imported(&tile(
            &format!("addons_spec: {}", serde_json::to_string(text).expect("JSON")),
            "",
        ));
        let told = imported.report.to_string();
        (imported.configuration.plans[0].addons.clone(), told)
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    assert_eq!(addons(namespace).0, namespace);
    let (none, told) = addons(&format!("{namespace}---\nkind: Namespace\n"));
    assert_eq!(none, "");
    assert!(
        told.contains("none of it, addons: ") && told.contains("apiVersion"),
        "{told}"
    );
    let list =
        format!("{namespace}--- # secrets\nkind: List\nitems: [{{kind: Secret, data: never-show-this}}]\n");
    let (kept, told) = addons(&list);
    assert_eq!(kept, namespace);
    assert!(told.contains("document 2 holds a Secret"), "{told}");
    // The other objects of a list were dropped with it.
    let item = |kind: &str| {
        format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: a}}, data: {{a: never-show-this}}}}")
    };
    let list = format!(
        "apiVersion: v1\nkind: List\nitems: [{}, {}]\n",
        item("Secret"),
        item("ConfigMap")
    );
    let (kept, told) = addons(&list.replace(
        "kind: ConfigMap, metadata: {name: a}, data: {a: never-show-this}",
        "kind: ConfigMap, metadata: {name: b}",
    ));
    assert!(
        kept.contains("kind: ConfigMap") && kept.contains("name: b"),
        "{kept}"
    );
    assert!(
        !kept.contains("Secret") && !kept.contains("never-show-this"),
        "{kept}"
    );
    assert!(told.contains("document 1 holds a Secret"), "{told}");
}

#[test]
fn what_is_no_staged_configuration_is_refused() {
    let refused = |text: &str| {
        let error = convert(text, &options()).expect_err(text);
        let told = stolos_base::chain(&error);
        assert!(!told.contains("never-show-this"), "{told}");
        assert!(!told.contains('\n'), "{told}");
        told
    };
    insta::assert_snapshot!(refused("a: [never-show-this\nb: c\n"), @"staged configuration line 2, column 2: not valid YAML: illegal placement of ':' indicator");
    insta::assert_snapshot!(refused("a: 1\na: 2\n"), @"staged configuration line 2, column 1: a: not valid YAML: this key is there twice");
    insta::assert_snapshot!(refused(""), @"not the staged configuration of pivotal-container-service (line 1, column 1): it is null, not a map");
    insta::assert_snapshot!(refused("- a\n"), @"not the staged configuration of pivotal-container-service (line 1, column 1): it is a list, not a map");
    insta::assert_snapshot!(refused("product-name: cf\n"), @"not the staged configuration of pivotal-container-service (line 1, column 15): `product-name` is cf, not pivotal-container-service");
    insta::assert_snapshot!(refused("product-name: [never-show-this]\n"), @"not the staged configuration of pivotal-container-service (line 1, column 15): `product-name` is something else, not pivotal-container-service");
    insta::assert_snapshot!(refused("product-name: pivotal-container-service\n"), @"not the staged configuration of pivotal-container-service: `product-properties` is missing");
    insta::assert_snapshot!(refused("product-name: pivotal-container-service\nproduct-properties: []\n"), @"not the staged configuration of pivotal-container-service (line 2, column 21): `product-properties` is a list, not a map");
    insta::assert_snapshot!(refused("product-properties: {a: {value: 1}}\n"), @"not the staged configuration of pivotal-container-service: neither `product-name` nor `.properties.plan1_selector` is there");
    insta::assert_snapshot!(refused("product-name: pivotal-container-service\nproduct-properties: {a: {value: 1}}\n"), @"no plan from 1 to 10 is active, so nothing would be on offer");
}

#[test]
fn values_of_any_shape_do_no_harm() {
    for value in [
        "null",
        "[]",
        "{}",
        "{secret: never-show-this}",
        "[[1], {a: b}]",
        "true",
        "-1",
        "1.5",
        "\"\"",
        "'***'",
        "18446744073709551615",
    ] {
        let mut fields = String::new();
        for field in [
            "name",
            "description",
            "master_instances",
            "master_vm_type",
            "master_persistent_disk_type",
            "master_az_placement",
            "max_worker_instances",
            "worker_instances",
            "worker_vm_type",
            "worker_persistent_disk_type",
            "worker_az_placement",
            "addons_spec",
            "allow_privileged_containers",
            "admission_plugins",
            "system_reserved",
            "eviction_hard",
            "node_drain_timeout",
            "node_drain_grace_period",
            "node_drain_force",
            "disable_deny_escalating_exec",
            "unknown",
        ] {
            fields.push_str(&format!("{field}: {value}\n"));
        }
        let others = format!(
            "  .properties.network_selector: {{value: {value}}}\n  .properties.network_selector.nsx.nodes_dns: {{value: {value}}}\n  .properties.worker_max_in_flight: {{value: {value}}}\n  .properties.uaa: {{value: {value}}}\n  odd: {value}\nnetwork-properties: {value}\nresource-config: {value}\nerrand-config: {value}\n"
        );
        imported(&tile(&fields, &others));
    }
    // The one reader of YAML takes no integer that would lose digits, and says where it is.
    let refused = convert(&tile("name: 99999999999999999999\n", ""), &options());
    let text = refused.map(drop).expect_err("a number of 67 bits").to_string();
    assert!(text.contains("does not fit into 64 bits"), "{text}");
}
