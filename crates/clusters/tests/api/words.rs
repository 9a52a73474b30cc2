//! What is said of bodies and queries that cannot be read: our words, wherever they are sent.
//!
//! "invalid type: sequence, expected struct ClusterRequest" was the answer to a script's mistake.

use axum::http::Method;
use serde_json::{Value, json};
use stolos_document::foreign::{foreign_word, spoiled};
use stolos_store::testing::Place;

use super::endpoints;
use super::world::{ADMIN, World};

/// A good body for each endpoint that takes one, by the name that the table of endpoints has for it.
fn good(takes: &str) -> Value {
    match takes {
        "ClusterRequest" => {
            json!({"name": "blue", "plan_name": "small", "network_profile_name": "n", "parameters": {
            "kubernetes_master_host": "blue.example.com", "kubernetes_worker_instances": 2,
            "node_pool_instances": [{"name": "a", "instances": 1}], "cluster_tags": [{"name": "a", "value": "b"}]}})
        }
        "UpgradeClusters" => {
            json!({"clusters": ["blue"], "canaries": ["blue"], "max_in_flight": 1, "nodes_parallel": 1})
        }
        "UpdateParameters" => json!({"kubernetes_worker_instances": 3, "kubernetes_profile_name": "k",
            "cluster_tags": [{"name": "a", "value": "b"}], "delete_all_tags": false,
            "node_pool_instances": [{"name": "a", "instances": 1}]}),
        "RestoreRequest" => json!({"backup": "latest"}),
        "TransferRequest" => json!({"owner": "alice"}),
        "ProfileRequest" => json!({"name": "p", "description": "d", "parameters": {
            "azs": [{"name": "z1"}], "nodes_dns": ["10.0.0.1"], "cni_configurations": {"type": "stolos", "parameters": {"pod_network": "10.1.0.0/16"}},
            "cluster_customization": {"control_plane": {"cpu": 1, "memory_in_mb": 2048, "ephemeral_disk_in_mb": 8192},
                "node_pools": [{"name": "a", "cpu": 1, "memory_in_mb": 2048, "ephemeral_disk_in_mb": 8192, "instances": 1,
                    "node_labels": "a=b", "node_taints": "a=b:NoSchedule"}]}}}),
        "KubernetesProfileRequest" => json!({"name": "k", "description": "d",
            "customizations": [{"component": "kubelet", "arguments": {"max-pods": 50}, "file-arguments": {}}]}),
        "Quota" => json!({"owner": "alice", "limit": {"cpu": 1, "memory": 1.5, "cluster": 1}}),
        "QuotaChange" => json!({"owner": "alice", "limit": {"cpu": 1}}),
        // A new kind of body needs its line here.
        other => panic!("no good body for `{other}`"),
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_told_in_our_words_everywhere() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let root = world.token("root", &[ADMIN], 600);
    let (mut asked, mut refused) = (0, 0);
    for ((method, path, _), endpoint) in endpoints().iter().zip(stolos_api::pks::ENDPOINTS) {
        let mut tries: Vec<(String, String)> = Vec::new();
        if let Some(takes) = endpoint.request {
            let good = good(takes);
            tries.extend(spoiled(&good).iter().map(|body| (path.clone(), body.to_string())));
            let text = good.to_string();
            for end in [0, 1, text.len() / 3, text.len() / 2, text.len() - 1] {
                tries.push((path.clone(), text[..end].to_owned()));
            }
            for text in [
                "{name: blue}",
                "name: blue",
                "{} {}",
                "\u{0}",
                "{\"name\": \"\\ud800\"}",
                "{\"a\": 1,}",
            ] {
                tries.push((path.clone(), text.to_owned()));
            }
            tries.push((path.clone(), "[".repeat(1000)));
        }
        for key in endpoint.query {
            for value in [
                "",
                "x",
                "-1",
                "1e9",
                "%ff",
                "true&dry_run=x",
                "99999999999999999999",
            ] {
                tries.push((format!("{path}?{key}={value}"), String::new()));
            }
        }
        for (path, body) in tries {
            let answer = world.ask_with(Some(&root), method, &path, &body).await;
            asked += 1;
            refused += usize::from(answer.status.is_client_error());
            assert!(
                !answer.status.is_server_error(),
                "{method} {path} {body}: {answer:?}"
            );
            let word = foreign_word(&answer.text);
            assert_eq!(word, None, "{method} {path} {body}: {}", answer.text);
        }
    }
    assert!(asked > 500 && refused > 300, "{asked} asked, {refused} refused");
    let answer = world
        .ask_with(
            Some(&root),
            &Method::POST,
            "/v1/clusters",
            "{\"name\": \"a\",\n \"plan_name\": []}",
        )
        .await;
    assert_eq!(
        answer.error(),
        "the body cannot be read: line 2, column 15: plan_name: a string is needed here, not a list"
    );
    world.stop().await;
}
