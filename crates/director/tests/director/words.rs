//! What the director says of bodies, queries and documents that cannot be read: our words.

use serde_json::{Value, json};
use stolos_api::director::DeployOptions;
use stolos_document::foreign::{foreign_word, spoiled};
use stolos_flow::faults::Faults;
use stolos_store::testing::Place;

use crate::api::http;
use crate::world::{CLOUD, Site, World};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_told_in_our_words() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.start(&place, Faults::default()).await;
    let token = world.token(&["bosh.admin"]);
    let http = http(&life);
    let ask = async |method: &str, path: &str, kind: &str, body: String| {
        let request = http
            .request(method.parse().expect("a method"), format!("{}{path}", life.url))
            .bearer_auth(&token)
            .header("content-type", kind);
        let answer = request.body(body.clone()).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("text"));
        assert!(!status.is_server_error(), "{method} {path} {body}: {text}");
        assert_eq!(
            foreign_word(&text),
            None,
            "{method} {path} {body}: {status} {text}"
        );
    };
    let bodies: [(&str, &str, Value); 6] = [
        ("PUT", "/resurrection", json!({"resurrection_paused": true})),
        (
            "POST",
            "/configs",
            json!({"type": "cloud", "name": "x", "content": "azs: []", "expected_latest_id": "1"}),
        ),
        (
            "POST",
            "/tasks/cancel",
            json!({"task_ids": [7], "state": ["queued"], "deployment": "x"}),
        ),
        (
            "POST",
            "/releases",
            json!({"location": "file:///nothing", "sha1": "x"}),
        ),
        (
            "POST",
            "/stemcells",
            json!({"location": "file:///nothing", "sha1": "x"}),
        ),
        (
            "POST",
            "/stemcell_uploads",
            json!({"stemcell": {"name": "n", "version": "1"}}),
        ),
    ];
    for (method, path, good) in &bodies {
        for body in spoiled(good) {
            ask(method, path, "application/json", body.to_string()).await;
        }
        for body in ["", "{", "{\"a\"", "[1,", "nothing", "{} {}"] {
            ask(method, path, "application/json", body.to_owned()).await;
        }
    }
    for (path, key) in [
        ("/tasks", "limit"),
        ("/tasks/1/output", "type"),
        ("/configs", "latest"),
        ("/events", "before_id"),
    ] {
        for value in ["", "x", "-1", "1e9", "%ff"] {
            ask(
                "GET",
                &format!("{path}?{key}={value}"),
                "text/plain",
                String::new(),
            )
            .await;
        }
    }
    let manifest: Value = stolos_document::from_yaml(&Site::default().manifest()).expect("a manifest");
    let cloud: Value = stolos_document::from_yaml(CLOUD).expect("a cloud config");
    for document in spoiled(&manifest)
        .into_iter()
        .filter(|document| *document != manifest)
    {
        let text = stolos_document::to_yaml(&document).expect("YAML");
        ask("POST", "/deployments/site/diff", "text/yaml", text).await;
    }
    for document in spoiled(&cloud) {
        let content = stolos_document::to_yaml(&document).expect("YAML");
        let body = json!({"type": "cloud", "name": "x", "content": content});
        ask("POST", "/configs", "application/json", body.to_string()).await;
    }
    let rules = json!({"rules": [{"enabled": true, "include": {"deployments": ["a"]}}]});
    for document in spoiled(&rules) {
        let content = stolos_document::to_yaml(&document).expect("YAML");
        let body = json!({"type": "resurrection", "name": "x", "content": content});
        ask("POST", "/configs", "application/json", body.to_string()).await;
    }
    for text in [
        "name: [",
        "a: 1\na: 2\n",
        "- x\n---\n- y\n",
        "\u{7}",
        "a: &a [*a]\n",
        "\ta: b\n",
        "name: *x\n",
    ] {
        let error = life
            .client
            .deploy(text, &DeployOptions::default())
            .await
            .expect_err(text)
            .to_string();
        assert!(
            error.contains("line ") && foreign_word(&error).is_none(),
            "{text:?}: {error}"
        );
    }
    life.stop().await;
}
