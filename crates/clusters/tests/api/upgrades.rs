//! Upgrades of clusters from outside.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_clusters::plans::Plan;
use stolos_store::testing::{Place, each};

use crate::world::{World, catalogue, lock, plan, plans};
use crate::{ALICE, BOB, ROOT};

/// The plan of the clusters here, with a version.
fn plan_of(version: &str) -> Vec<Plan> {
    vec![plan("small", version)]
}

async fn upgrade(world: &World, who: (&str, &str), body: Value) -> crate::world::Answer {
    world.ask(who, Method::PATCH, "/v1/clusters", &body).await
}

#[tokio::test]
async fn a_pre_check_looks_at_machines_and_certificates() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let path = "/stolos/v1/clusters/blue/pre-check";
    let well = world.ask(ALICE, Method::GET, path, &Value::Null).await;
    assert_eq!(well.status, StatusCode::OK, "{well:?}");
    let passed = |answer: &Value| -> Vec<bool> {
        let checks = answer["checks"].as_array().expect("checks").iter();
        checks.map(|check| check["passed"] == true).collect()
    };
    assert_eq!(passed(&well.body), [true, true, true]);
    world.below.fail.store(true, Ordering::Relaxed);
    let ill = world.ask(ALICE, Method::GET, path, &Value::Null).await;
    assert_eq!(passed(&ill.body), [true, false, true]);
    assert_eq!(ill.body["checks"][1]["problems"][0], "master/0: failing");
    let foreign = world.ask(BOB, Method::GET, path, &Value::Null).await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND);
    world.stop().await;
}

/// Waits until a task has ended.
async fn ended(world: &World, id: &Value) -> Value {
    let path = format!("/v1/tasks/{}?wait_ms=1000", id.as_str().expect("an id"));
    for _ in 0..30 {
        let task = world.ask(ROOT, Method::GET, &path, &Value::Null).await.body;
        if task["status"] == "done" || task["status"] == "canceled" {
            return task;
        }
    }
    panic!("the task does not end")
}

async fn shown(world: &World, name: &str) -> Value {
    world
        .ask(ROOT, Method::GET, &format!("/v1/clusters/{name}"), &Value::Null)
        .await
        .body
}

/// Clusters of 1.36.3, and then a service whose plan has 1.37.1.
async fn newer(place: &Place, names: &[&str]) -> World {
    let world = World::with(place, plan_of("1.36.3"), catalogue("1"), Arc::default()).await;
    for name in names {
        let created = world.create(ALICE, name, 1).await;
        assert_eq!(world.ended(&created).await, "succeeded", "{created:?}");
    }
    let below = world.below.clone();
    world.stop().await;
    World::with(place, plan_of("1.37.1"), catalogue("2"), below).await
}

#[tokio::test]
async fn clusters_go_to_what_is_newest_in_turn() {
    each(async |place| {
        let world = newer(place, &["one", "two", "three"]).await;
        let one = shown(&world, "one").await;
        assert_eq!(
            one["available_upgrades"][1],
            json!({"component": "Kubernetes", "version": "1.37.1"}),
            "{one}"
        );
        // What is behind may change its size, and nothing else.
        let refused = world
            .ask(
                ALICE,
                Method::PATCH,
                "/v1/clusters/one",
                &json!({"kubelet_drain_timeout": "5"}),
            )
            .await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
        assert!(
            refused.error().contains("has to be upgraded first"),
            "{refused:?}"
        );
        let grown = world
            .ask(
                ALICE,
                Method::PATCH,
                "/v1/clusters/one",
                &json!({"kubernetes_worker_instances": 2}),
            )
            .await;
        assert_eq!(world.ended(&grown).await, "succeeded");
        assert_eq!(
            shown(&world, "one").await["k8s_version"],
            "1.36.3",
            "a resize upgrades nothing"
        );

        let accepted = upgrade(
            &world,
            ALICE,
            json!({"clusters": ["one", "two", "three"], "canaries": ["two"], "max_in_flight": 2}),
        )
        .await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{accepted:?}");
        assert_eq!(
            accepted.body["clusters"][0]["cluster_name"], "two",
            "canaries go first"
        );
        assert_eq!(accepted.body["clusters"][0]["is_canary"], true);
        let task = ended(&world, &accepted.body["uuid"]).await;
        assert_eq!(task["status"], "done", "{task}");
        for cluster in task["clusters"].as_array().expect("clusters") {
            assert_eq!(cluster["last_action_state"], "succeeded", "{task}");
            assert!(cluster["end_time"].is_string());
        }
        let one = shown(&world, "one").await;
        assert_eq!(
            (&one["k8s_version"], &one["last_action"]),
            (&json!("1.37.1"), &json!("UPGRADE"))
        );
        assert_eq!(one["available_upgrades"], Value::Null);
        assert_eq!(one["parameters"]["kubernetes_worker_instances"], 2);
        let manifest = lock(&world.below.deployed)
            .values()
            .next()
            .cloned()
            .expect("a manifest");
        assert_eq!(manifest["releases"][0]["version"], "1.37.1+2");
        assert_eq!(manifest["update"]["canaries"], 1);

        let again = upgrade(&world, ALICE, json!({"clusters": ["one"]})).await;
        assert_eq!(again.status, StatusCode::CONFLICT);
        assert!(again.error().contains("up to date"), "{again:?}");
        let listed = world
            .ask(ALICE, Method::GET, "/v1/tasks?limit=5", &Value::Null)
            .await;
        assert_eq!(listed.body.as_array().map(Vec::len), Some(1));
        assert_eq!(
            world.ask(BOB, Method::GET, "/v1/tasks", &Value::Null).await.body,
            json!([])
        );
        let path = format!("/v1/tasks/{}", task["uuid"].as_str().expect("an id"));
        assert_eq!(
            world.ask(BOB, Method::GET, &path, &Value::Null).await.status,
            StatusCode::NOT_FOUND
        );
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_failed_canary_spares_the_others_and_another_failure_does_not() {
    let place = Place::sqlite();
    let world = newer(&place, &["one", "two"]).await;
    world.below.fail.store(true, Ordering::Relaxed);
    let accepted = upgrade(&world, ALICE, json!({"clusters": ["two"], "canaries": ["one"]})).await;
    let task = ended(&world, &accepted.body["uuid"]).await;
    assert_eq!(task["status"], "canceled");
    assert_eq!(task["clusters"][0]["last_action_state"], "failed");
    assert!(
        task["clusters"][0]["error"]
            .as_str()
            .is_some_and(|why| why.contains("no more machines")),
        "{task}"
    );
    assert_eq!(task["clusters"][1]["last_action_state"], "queued");
    assert_eq!(
        shown(&world, "two").await["k8s_version"],
        "1.36.3",
        "its turn never came"
    );
    // Without canaries the rest goes on.
    let accepted = upgrade(&world, ALICE, json!({"clusters": ["one", "two"]})).await;
    let task = ended(&world, &accepted.body["uuid"]).await;
    assert_eq!(task["status"], "done");
    assert_eq!(task["clusters"][1]["last_action_state"], "failed");
    // What failed can go on.
    world.below.fail.store(false, Ordering::Relaxed);
    let accepted = upgrade(&world, ALICE, json!({"clusters": ["one", "two"]})).await;
    let task = ended(&world, &accepted.body["uuid"]).await;
    assert!(
        task["clusters"]
            .as_array()
            .expect("clusters")
            .iter()
            .all(|cluster| cluster["last_action_state"] == "succeeded"),
        "{task}"
    );
    world.stop().await;
}

#[tokio::test]
async fn cancelling_leaves_alone_those_whose_turn_has_not_come() {
    let place = Place::sqlite();
    let world = newer(&place, &["one", "two"]).await;
    world.below.hold.store(true, Ordering::Relaxed);
    let accepted = upgrade(&world, ALICE, json!({"clusters": ["one", "two"]})).await;
    let id = accepted.body["uuid"].as_str().expect("an id").to_owned();
    let path = format!("/v1/tasks/{id}");
    let begun = async || shown(&world, "one").await["last_action"] == "UPGRADE";
    while !begun().await {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        world.ask(BOB, Method::PUT, &path, &Value::Null).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        world.ask(ALICE, Method::PUT, &path, &Value::Null).await.status,
        StatusCode::OK
    );
    world.below.hold.store(false, Ordering::Relaxed);
    let task = ended(&world, &json!(id)).await;
    assert_eq!(task["status"], "canceled");
    assert_eq!(task["clusters"][0]["last_action_state"], "succeeded", "{task}");
    assert_eq!(task["clusters"][1]["last_action_state"], "queued");
    assert_eq!(shown(&world, "two").await["k8s_version"], "1.36.3");
    world.stop().await;
}

#[tokio::test]
async fn senseless_upgrades_are_refused() {
    let place = Place::sqlite();
    let world = newer(&place, &["one"]).await;
    for (body, status, words) in [
        (json!({"clusters": []}), 400, "names no cluster"),
        (json!({"clusters": ["none"]}), 404, "Cluster none not found"),
        (json!({"clusters": ["one", "one"]}), 400, "named twice"),
        (
            json!({"clusters": ["one"], "max_in_flight": 0}),
            400,
            "max_in_flight",
        ),
        (
            json!({"clusters": ["one"], "nodes_parallel": 3}),
            400,
            "nodes_parallel",
        ),
        (
            json!({"clusters": ["one"], "nodes_parallel": 2}),
            400,
            "it needs 3",
        ),
        (json!({"clusters": "one"}), 400, ""),
        (json!({"clusters": ["one"], "colour": 1}), 400, "colour"),
    ] {
        let refused = upgrade(&world, ALICE, body.clone()).await;
        assert_eq!(refused.status.as_u16(), status, "{body}: {refused:?}");
        assert!(refused.error().contains(words), "{body}: {refused:?}");
    }
    let theirs = upgrade(&world, BOB, json!({"clusters": ["one"]})).await;
    assert_eq!(theirs.status, StatusCode::NOT_FOUND);
    assert_eq!(
        world.ask(ROOT, Method::GET, "/v1/tasks", &Value::Null).await.body,
        json!([])
    );
    let below = world.below.clone();
    world.stop().await;
    // Never back.
    let upgraded = World::with(&place, plan_of("1.37.1"), catalogue("2"), below.clone()).await;
    let accepted = upgrade(&upgraded, ALICE, json!({"clusters": ["one"]})).await;
    ended(&upgraded, &accepted.body["uuid"]).await;
    upgraded.stop().await;
    let older = World::with(&place, plan_of("1.36.3"), catalogue("3"), below).await;
    let refused = upgrade(&older, ALICE, json!({"clusters": ["one"]})).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.error().contains("never back"), "{refused:?}");
    older.stop().await;
}

#[tokio::test]
async fn plans_have_several_masters_or_are_retired() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let listed = world.ask(ALICE, Method::GET, "/v1/plans", &Value::Null).await;
    let names: Vec<&str> = listed
        .body
        .as_array()
        .expect("plans")
        .iter()
        .filter_map(|plan| plan["name"].as_str())
        .collect();
    assert_eq!(names, ["small", "three"]);
    assert_eq!(plans().len(), 3);
    let body = |plan: &str| json!({"name": plan, "plan_name": plan, "parameters": {"kubernetes_master_host": format!("{plan}.test")}});
    let refused = world
        .ask(ALICE, Method::POST, "/v1/clusters", &body("retired"))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.error().contains("Plan Not Found"), "{refused:?}");
    let created = world
        .ask(ALICE, Method::POST, "/v1/clusters", &body("three"))
        .await;
    assert_eq!(world.ended(&created).await, "succeeded", "{created:?}");
    let manifest = lock(&world.below.deployed)
        .values()
        .next()
        .cloned()
        .expect("a manifest");
    let masters = &manifest["instance_groups"][0];
    assert_eq!(
        (&masters["instances"], &masters["azs"]),
        (&json!(3), &json!(["z1", "z2"]))
    );
    let published = lock(&world.below.published).clone();
    assert_eq!(
        published.map(|masters| masters.len()),
        Some(3),
        "the address is balanced over all masters"
    );
    let usage = world
        .ask(ALICE, Method::GET, "/v1/usages/alice", &Value::Null)
        .await;
    assert_eq!(
        usage.body["totals"],
        json!({"cpu": 8, "memory": 8.0, "cluster": 1})
    );
    world.stop().await;
}
