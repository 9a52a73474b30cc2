//! Changes that said they succeeded and did nothing, or did more than they said; what failed and how to go on with it.

use std::sync::atomic::Ordering::Relaxed;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_kubernetes::losses::LocalVolume;
use stolos_store::testing::Place;

use crate::world::{ADMIN, Answer, MANAGE, World, catalogue, lock, plans};

const ALICE: (&str, &str) = ("alice", MANAGE);
const ROOT: (&str, &str) = ("root", ADMIN);
const BLUE: &str = "/v1/clusters/blue";

async fn patch(world: &World, body: Value) -> Answer {
    world.ask(ALICE, Method::PATCH, BLUE, &body).await
}

async fn with_profile(world: &World, customization: Value) {
    let profile =
        json!({"name": "own", "description": "", "parameters": {"cluster_customization": customization}});
    let made = world
        .ask(ROOT, Method::POST, "/v1/compute-profiles", &profile)
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let body = json!({"name": "blue", "plan_name": "small", "compute_profile_name": "own",
                      "parameters": {"kubernetes_master_host": "blue.test"}});
    let created = world.ask(ALICE, Method::POST, "/v1/clusters", &body).await;
    assert_eq!(world.ended(&created).await, "succeeded");
}

/// The instances of each group, as they were deployed last.
fn groups(world: &World) -> Vec<(String, u64)> {
    let deployed = lock(&world.below.deployed);
    let manifest = deployed.values().next().expect("a deployment");
    let groups = manifest["instance_groups"].as_array().expect("groups");
    let shown = groups.iter().map(|group| {
        let name = group["name"].as_str().unwrap_or_default().to_owned();
        (name, group["instances"].as_u64().unwrap_or_default())
    });
    shown.collect()
}

fn of(groups: &[(&str, u64)]) -> Vec<(String, u64)> {
    groups.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

/// `resize -n 2` of a cluster with pools succeeded and did nothing.
#[tokio::test]
async fn one_number_for_several_pools_is_refused_and_for_one_pool_it_is_that_pool_s() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    with_profile(
        &world,
        json!({"node_pools": [{"name": "web", "instances": 1}, {"name": "batch", "instances": 1}]}),
    )
    .await;
    let refused = patch(&world, json!({"kubernetes_worker_instances": 3})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    assert!(refused.error().contains("node pools batch, web"), "{refused:?}");
    assert_eq!(
        refused.body["hint"],
        "Name the number of each that changes: `--node-pool-instances \"batch:N,web:N\"`."
    );
    // Old clients send the number that there is with everything else.
    let body =
        json!({"kubernetes_worker_instances": 2, "node_pool_instances": [{"name": "web", "instances": 2}]});
    assert_eq!(world.ended(&patch(&world, body).await).await, "succeeded");
    assert_eq!(
        groups(&world),
        of(&[("master", 1), ("worker-web", 2), ("worker-batch", 1)])
    );
    world.stop().await;

    let place = Place::sqlite();
    let world = World::new(&place).await;
    with_profile(&world, json!({"node_pools": [{"name": "web", "instances": 1}]})).await;
    let changed = patch(&world, json!({"kubernetes_worker_instances": 2})).await;
    assert_eq!(world.ended(&changed).await, "succeeded");
    assert_eq!(groups(&world), of(&[("master", 1), ("worker-web", 2)]));
    world.stop().await;
}

/// A profile that named the number of masters made it unchangeable.
#[tokio::test]
async fn masters_change_also_where_a_profile_names_them() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    with_profile(
        &world,
        json!({"control_plane": {"instances": 1}, "node_pools": [{"name": "web"}]}),
    )
    .await;
    for masters in [3_u64, 1] {
        let changed = patch(&world, json!({"kubernetes_master_instances": masters})).await;
        assert_eq!(world.ended(&changed).await, "succeeded", "{changed:?}");
        assert_eq!(groups(&world), of(&[("master", masters), ("worker-web", 1)]));
    }
    world.stop().await;
}

/// A worker with data on its disk went without a word.
#[tokio::test]
async fn workers_with_data_go_only_when_that_is_meant() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 3).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    for (node, claim) in [
        ("worker-0", "web/stays"),
        ("worker-2", "web/data"),
        ("worker-1", "web/more"),
    ] {
        lock(&world.below.volumes).push(LocalVolume {
            node: node.to_owned(),
            claim: claim.to_owned(),
        });
    }
    let refused = patch(
        &world,
        json!({"kubernetes_worker_instances": 1, "local_volumes": "refuse"}),
    )
    .await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    assert_eq!(refused.body["error_code"], "loses_local_volumes");
    let said = refused.error();
    assert!(
        said.contains("web/data on worker-2") && said.contains("web/more on worker-1"),
        "{said}"
    );
    assert!(!said.contains("stays"), "{said}");
    assert_eq!(
        groups(&world),
        of(&[("master", 1), ("worker", 3)]),
        "nothing has changed"
    );
    // More workers lose nothing, and what PKS's clients say is done as PKS did it.
    let grown = patch(
        &world,
        json!({"kubernetes_worker_instances": 4, "local_volumes": "refuse"}),
    )
    .await;
    assert_eq!(world.ended(&grown).await, "succeeded");
    for body in [
        json!({"kubernetes_worker_instances": 2, "local_volumes": "delete"}),
        json!({"kubernetes_worker_instances": 1}),
    ] {
        assert_eq!(world.ended(&patch(&world, body).await).await, "succeeded");
    }
    world.stop().await;
}

/// Who tried again after a failure heard that the name is in use.
#[tokio::test]
async fn what_could_not_be_made_can_be_gone_on_with() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    world.below.fail.store(true, Relaxed);
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "failed");
    world.below.fail.store(false, Relaxed);
    let again = world.create(ALICE, "blue", 1).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let hint = again.body["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("`stolos update-cluster blue`"), "{again:?}");
    // Nobody else learns that, nor that it failed.
    let other = world.create(("bob", MANAGE), "blue", 1).await;
    assert_eq!(
        (other.status, other.error()),
        (StatusCode::CONFLICT, "cluster name `blue` is already in use")
    );
    assert!(other.body["hint"].is_null(), "{other:?}");
    assert_eq!(world.ended(&patch(&world, json!({})).await).await, "succeeded");
    let idle = patch(&world, json!({})).await;
    assert_eq!(
        (idle.status, idle.error()),
        (StatusCode::BAD_REQUEST, "the request names nothing to change")
    );
    world.stop().await;
}

/// The refusal for lack of room said how much others have.
#[tokio::test]
async fn a_refusal_for_lack_of_room_says_what_is_free_and_no_more() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let room = world
        .ask(ALICE, Method::GET, "/stolos/v1/room", &Value::Null)
        .await;
    assert_eq!(room.body, json!({"free_memory_mib": 24_576, "most_cpus": 2}));
    let created = world.create(ROOT, "red", 5).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let plans = world.ask(ALICE, Method::GET, "/v1/plans", &Value::Null).await;
    assert_eq!(plans.body[0]["memory_mib"], 4096, "a master and a worker");
    let second = world.create(ALICE, "blue", 5).await;
    assert_eq!(world.ended(&second).await, "succeeded");
    let refused = world.create(ALICE, "green", 1).await;
    assert_eq!(
        (refused.status, refused.error()),
        (
            StatusCode::BAD_REQUEST,
            "the cluster needs 4096 MiB of memory, and there are 0 MiB for it"
        )
    );
    world.stop().await;
}

/// A deployment was deleted at the director: the cluster said that it had succeeded.
#[tokio::test]
async fn a_cluster_says_that_its_deployment_is_gone_until_it_is_made_anew() {
    let place = Place::sqlite();
    let world = World::with(&place, plans(), catalogue("1"), std::sync::Arc::default()).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    lock(&world.below.deployed).clear();
    let shown = async || world.ask(ALICE, Method::GET, BLUE, &Value::Null).await.body;
    crate::owners::until("the deployment to be missed", async || {
        shown().await["last_action_state"] == "failed"
    })
    .await;
    let why = shown().await["last_action_description"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(why.contains("`update-cluster blue` makes them anew"), "{why}");
    assert_eq!(world.ended(&patch(&world, json!({})).await).await, "succeeded");
    assert_eq!(groups(&world), of(&[("master", 1), ("worker", 1)]));
    crate::owners::until("the deployment to be seen", async || {
        shown().await["last_action_state"] == "succeeded"
    })
    .await;
    world.stop().await;
}

/// `get-credentials` of a stopped cluster waited half a minute for an API that is not there.
#[tokio::test]
async fn a_stopped_cluster_gives_no_credentials_and_says_why() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let stopped = world
        .ask(ALICE, Method::POST, "/stolos/v1/clusters/blue/stop", &Value::Null)
        .await;
    assert_eq!(world.ended(&stopped).await, "succeeded");
    let bound = world
        .ask(ALICE, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
        .await;
    assert_eq!(
        (bound.status, bound.error()),
        (StatusCode::CONFLICT, "cluster `blue` is stopped")
    );
    assert_eq!(bound.body["hint"], "Start it with `stolos start-cluster blue`.");
    world.stop().await;
}
