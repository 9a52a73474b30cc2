//! Clusters that are stopped and started, and clusters that get more or fewer masters.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_clusters::deps::StateChange;
use stolos_store::testing::{Place, each};

use super::world::{World, lock};
use super::{ALICE, BOB, WATCHER};

const STOP: &str = "/stolos/v1/clusters/blue/stop";
const START: &str = "/stolos/v1/clusters/blue/start";

fn change(group: &str, runs: bool) -> StateChange {
    StateChange {
        group: group.to_owned(),
        runs,
    }
}

#[tokio::test]
async fn what_is_stopped_stays_so_until_it_is_started() {
    each(async |place| {
        let world = World::new(place).await;
        let created = world.create(ALICE, "blue", 1).await;
        assert_eq!(world.ended(&created).await, "succeeded");
        for who in [BOB, WATCHER] {
            let refused = world.ask(who, Method::POST, STOP, &Value::Null).await;
            assert!(refused.status.is_client_error(), "{refused:?}");
        }

        // Twice is once more the same: scripts repeat themselves.
        for _ in 0..2 {
            let stopped = world.ask(ALICE, Method::POST, STOP, &Value::Null).await;
            assert_eq!(stopped.status, StatusCode::ACCEPTED, "{stopped:?}");
            assert_eq!(world.ended(&stopped).await, "succeeded");
            let switched: Vec<StateChange> = lock(&world.below.switched).drain(..).collect();
            assert_eq!(switched, [change("worker", false), change("master", false)]);
        }
        let shown = world
            .ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null)
            .await;
        assert_eq!(shown.body["stopped"], true);

        // It keeps what it is.
        for (method, path, body) in [
            (
                Method::PATCH,
                "/v1/clusters/blue",
                json!({"kubernetes_worker_instances": 2}),
            ),
            (Method::POST, "/v1/clusters/blue/certificates", Value::Null),
        ] {
            let refused = world.ask(ALICE, method, path, &body).await;
            assert_eq!(refused.status, StatusCode::CONFLICT, "{path}: {refused:?}");
            assert!(
                refused.error().contains("cluster `blue` is stopped"),
                "{refused:?}"
            );
        }

        let started = world.ask(ALICE, Method::POST, START, &Value::Null).await;
        assert_eq!(world.ended(&started).await, "succeeded");
        let switched: Vec<StateChange> = lock(&world.below.switched).drain(..).collect();
        assert_eq!(switched, [change("master", true), change("worker", true)]);
        let shown = world
            .ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null)
            .await;
        assert_eq!(shown.body.get("stopped"), None, "absent, as in PKS");
        let resize = json!({"kubernetes_worker_instances": 2});
        let grown = world
            .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &resize)
            .await;
        assert_eq!(world.ended(&grown).await, "succeeded");
    })
    .await;
}

#[tokio::test]
async fn a_stop_that_failed_can_be_repeated_or_taken_back() {
    use std::sync::atomic::Ordering::Relaxed;
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    world.below.fail.store(true, Relaxed);
    let stopped = world.ask(ALICE, Method::POST, STOP, &Value::Null).await;
    assert_eq!(world.ended(&stopped).await, "failed");
    world.below.fail.store(false, Relaxed);
    for path in [STOP, START] {
        let again = world.ask(ALICE, Method::POST, path, &Value::Null).await;
        assert_eq!(world.ended(&again).await, "succeeded", "{path}");
    }
    // A stopped cluster can be deleted.
    let stopped = world.ask(ALICE, Method::POST, STOP, &Value::Null).await;
    assert_eq!(world.ended(&stopped).await, "succeeded");
    let deleted = world
        .ask(ALICE, Method::DELETE, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(world.ended(&deleted).await, "succeeded");
}

#[tokio::test]
async fn a_cluster_gets_more_and_fewer_masters() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    for asked in [0, 2, 4, 7, -1] {
        let body = json!({"kubernetes_master_instances": asked});
        let refused = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &body).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{asked}: {refused:?}");
        assert!(refused.error().contains("is not 1, 3 or 5"), "{refused:?}");
    }
    for masters in [3_u64, 5, 3, 1] {
        let body = json!({"kubernetes_master_instances": masters});
        let changed = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &body).await;
        assert_eq!(world.ended(&changed).await, "succeeded", "{masters}");
        let manifest = lock(&world.below.deployed).values().next().cloned();
        let groups = manifest.expect("a deployment")["instance_groups"].clone();
        let master = groups
            .as_array()
            .into_iter()
            .flatten()
            .find(|group| group["name"] == "master")
            .cloned();
        assert_eq!(master.expect("masters")["instances"], masters);
        let published = lock(&world.below.published).clone().expect("an address");
        assert_eq!(published.len() as u64, masters, "all are led to, and nobody else");
    }
}
