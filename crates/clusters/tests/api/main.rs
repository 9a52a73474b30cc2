//! The PKS API from outside: every endpoint as nobody and as the wrong role; what is accepted, what is refused, and what it leads to.

mod changes;
mod hostile;
mod old_client;
mod owners;
mod pages;
mod people;
mod power;
mod profiles;
mod upgrades;
mod words;
mod world;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_store::testing::{Place, each};

use world::{ADMIN, MANAGE, READ, World, lock};

const ALICE: (&str, &str) = ("alice", MANAGE);
const BOB: (&str, &str) = ("bob", MANAGE);
const ROOT: (&str, &str) = ("root", ADMIN);
const WATCHER: (&str, &str) = ("watcher", READ);

/// The table's paths, with names in them.
fn endpoints() -> Vec<(Method, String, bool)> {
    let filled = |path: &str| {
        path.replace("{name}", "blue")
            .replace("{owner}", "alice")
            .replace("{user}", "alice")
            .replace("{id}", "x")
    };
    let method = |name: &str| Method::from_bytes(name.to_uppercase().as_bytes()).expect("a method");
    stolos_api::pks::ENDPOINTS
        .iter()
        .map(|endpoint| (method(endpoint.method), filled(endpoint.path), endpoint.changes))
        .collect()
}

#[tokio::test]
async fn nobody_and_the_wrong_roles_are_refused_everywhere() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let expired = world.token("root", &[ADMIN], -61);
    let elsewhere = Place::sqlite();
    let foreign = World::new(&elsewhere).await.token("root", &[ADMIN], 600);
    for (method, path, changes) in &endpoints() {
        for token in [
            None,
            Some("nonsense"),
            Some(expired.as_str()),
            Some(foreign.as_str()),
        ] {
            let answer = world.ask_with(token, method, path, "{}").await;
            assert_eq!(
                answer.status,
                StatusCode::UNAUTHORIZED,
                "{method} {path} with {token:?}"
            );
            assert!(
                answer.error().contains("not currently authenticated"),
                "{answer:?}"
            );
        }
        let other = world.token("eve", &["openid", "bosh.admin"], 600);
        let answer = world.ask_with(Some(&other), method, path, "{}").await;
        assert_eq!(
            answer.status,
            StatusCode::FORBIDDEN,
            "{method} {path} with another service's scopes"
        );
        let reader = world.token("watcher", &[READ], 600);
        let answer = world.ask_with(Some(&reader), method, path, "{}").await;
        assert_eq!(
            answer.status == StatusCode::FORBIDDEN,
            *changes,
            "{method} {path} as one who may only read: {answer:?}"
        );
    }
    let answer = world.ask_with(None, &Method::GET, "/stolos/v1/info", "").await;
    assert_eq!(answer.status, StatusCode::OK, "anybody may ask where to log in");
    world.stop().await;
}

#[tokio::test]
async fn owners_see_their_own_clusters_only() {
    each(async |place| {
        let world = World::new(place).await;
        let created = world.create(ALICE, "blue", 2).await;
        assert_eq!(created.status, StatusCode::ACCEPTED, "{created:?}");
        assert_eq!(created.body["last_action"], "CREATE");
        assert_eq!(created.body["kubernetes_master_ips"][0], "In Progress");
        assert_eq!(world.ended(&created).await, "succeeded");
        let listed = async |who| {
            let answer = world.ask(who, Method::GET, "/v1/clusters", &Value::Null).await;
            answer.body.as_array().map_or(0, Vec::len)
        };
        assert_eq!(
            [
                listed(ALICE).await,
                listed(BOB).await,
                listed(ROOT).await,
                listed(WATCHER).await
            ],
            [1, 0, 1, 1]
        );
        for (method, path, body) in [
            (Method::GET, "/v1/clusters/blue", Value::Null),
            (Method::GET, "/v1/clusterdetails/blue", Value::Null),
            (
                Method::PATCH,
                "/v1/clusters/blue",
                json!({"kubernetes_worker_instances": 3}),
            ),
            (Method::DELETE, "/v1/clusters/blue", Value::Null),
            (Method::POST, "/v1/clusters/blue/binds", Value::Null),
        ] {
            let answer = world.ask(BOB, method.clone(), path, &body).await;
            assert_eq!(
                answer.status,
                StatusCode::NOT_FOUND,
                "{method} {path} of somebody else"
            );
            assert_eq!(answer.error(), "Cluster blue not found");
        }
        let shown = world
            .ask(ROOT, Method::GET, "/v1/clusters/blue", &Value::Null)
            .await;
        assert_eq!(shown.body["parameters"]["kubernetes_worker_instances"], 2);
        assert_eq!(shown.body["kubernetes_master_ips"][0], "10.117.0.10");
        let bound = world
            .ask(ALICE, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
            .await;
        assert_eq!(
            (bound.status, &bound.body["user"]),
            (StatusCode::CREATED, &json!("alice"))
        );

        let deleted = world
            .ask(ALICE, Method::DELETE, "/v1/clusters/blue", &Value::Null)
            .await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
        assert_eq!(world.ended(&deleted).await, "succeeded");
        assert_eq!(listed(ROOT).await, 0);
        assert!(lock(&world.below.deployed).is_empty(), "no machine is left");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let create = |change: fn(&mut Value)| {
        let mut body = json!({"name": "new", "plan_name": "small", "parameters": {"kubernetes_master_host": "new.test"}});
        change(&mut body);
        body
    };
    let blue = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&blue).await, "succeeded");
    let long = "x".repeat(100_000);
    let cases: Vec<(Value, StatusCode, &str)> = vec![
        (
            Value::Null,
            StatusCode::BAD_REQUEST,
            "the JSON ends where a value has to be",
        ),
        (
            json!([]),
            StatusCode::BAD_REQUEST,
            "an object is needed here, not a list",
        ),
        (json!({"name": "new"}), StatusCode::BAD_REQUEST, "is missing"),
        (
            create(|b| b["name"] = json!(7)),
            StatusCode::BAD_REQUEST,
            "is needed here",
        ),
        (
            create(|b| b["name"] = json!("")),
            StatusCode::BAD_REQUEST,
            "not valid",
        ),
        (
            create(|b| b["name"] = json!("a/../b")),
            StatusCode::BAD_REQUEST,
            "not valid",
        ),
        (
            create(|b| b["name"] = json!("x".repeat(64))),
            StatusCode::BAD_REQUEST,
            "not valid",
        ),
        (
            create(|b| b["name"] = json!("blue")),
            StatusCode::CONFLICT,
            "already in use",
        ),
        (
            create(|b| b["plan_name"] = json!("huge")),
            StatusCode::BAD_REQUEST,
            "Plan Not Found",
        ),
        (
            create(|b| b["parameters"]["kubernetes_master_host"] = json!("blue.test")),
            StatusCode::CONFLICT,
            "already in use",
        ),
        (
            create(|b| b["parameters"]["kubernetes_master_host"] = json!("a b")),
            StatusCode::BAD_REQUEST,
            "not valid",
        ),
        (
            create(|b| b["parameters"]["kubernetes_master_host"] = Value::Null),
            StatusCode::BAD_REQUEST,
            "required",
        ),
        (
            create(|b| b["parameters"]["kubernetes_master_port"] = json!(443)),
            StatusCode::BAD_REQUEST,
            "8443",
        ),
        (
            create(|b| b["parameters"]["kubernetes_worker_instances"] = json!(0)),
            StatusCode::BAD_REQUEST,
            "not between 1 and 5",
        ),
        (
            create(|b| b["parameters"]["kubernetes_worker_instances"] = json!(-1)),
            StatusCode::BAD_REQUEST,
            "not between 1 and 5",
        ),
        (
            create(|b| b["parameters"]["kubernetes_worker_instances"] = json!(6)),
            StatusCode::BAD_REQUEST,
            "not between 1 and 5",
        ),
        (
            create(|b| b["parameters"]["kubernetes_worker_instances"] = json!("3")),
            StatusCode::BAD_REQUEST,
            "is needed here",
        ),
        (
            create(|b| b["network_profile_name"] = json!("p")),
            StatusCode::BAD_REQUEST,
            "network profile `p` not found",
        ),
        (
            create(|b| b["parameters"]["tpyo"] = json!(1)),
            StatusCode::BAD_REQUEST,
            "tpyo",
        ),
        (
            create(|b| b["parameters"]["cluster_tags"] = json!([{"name": "a:b", "value": ""}])),
            StatusCode::BAD_REQUEST,
            "colon",
        ),
        (
            create(|b| b["parameters"]["cluster_tags"] = json!([{"name": "a"}, {"name": "a"}])),
            StatusCode::BAD_REQUEST,
            "twice",
        ),
    ];
    for (body, status, words) in &cases {
        let answer = world.ask(ALICE, Method::POST, "/v1/clusters", body).await;
        assert_eq!(answer.status, *status, "{body}: {answer:?}");
        assert!(
            answer.error().contains(words),
            "{body} should say `{words}`: {}",
            answer.error()
        );
    }
    let huge = create(|_| {})
        .to_string()
        .replace("new.test", &"x".repeat(1_200_000));
    let token = world.token("alice", &[MANAGE], 600);
    let answer = world
        .ask_with(Some(&token), &Method::POST, "/v1/clusters", &huge)
        .await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{answer:?}");
    for (body, words) in [
        (json!({}), "nothing to change"),
        (json!({"kubernetes_worker_instances": 0}), "not between 1 and 5"),
        (json!({"kubernetes_worker_instances": 6}), "not between 1 and 5"),
        (
            json!({"kubernetes_worker_instances": 1.5}),
            "an integer is needed here, not 1.5",
        ),
        (json!({"kubelet_drain_timeout": "soon"}), "kubelet_drain_timeout"),
        (json!({"kubelet_drain_timeout": "-1"}), "kubelet_drain_timeout"),
        (
            json!({"kubelet_drain_grace_period": "-2"}),
            "kubelet_drain_grace_period",
        ),
        (json!({"kubelet_drain_force": "maybe"}), "kubelet_drain_force"),
        (
            json!({"cluster_tags": [{"name": "deployment", "value": "x"}]}),
            "director itself",
        ),
        (
            json!({"cluster_tags": [{"name": "a"}], "delete_all_tags": true}),
            "exclude each other",
        ),
        (
            json!({"kubernetes_profile_name": "p"}),
            "Kubernetes profile `p` not found",
        ),
        (json!({"kubernetes_profile_name": long}), "not found"),
    ] {
        let answer = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
        assert!(
            answer.error().contains(words),
            "should say `{words}`: {}",
            answer.error()
        );
    }
    let all = world.ask(ROOT, Method::GET, "/v1/clusters", &Value::Null).await;
    assert_eq!(all.body.as_array().map(Vec::len), Some(1));
    assert_eq!(
        all.body[0]["last_action"], "CREATE",
        "a refused change changes nothing"
    );
    let operations = world
        .ask(ROOT, Method::GET, "/stolos/v1/operations", &Value::Null)
        .await;
    assert_eq!(operations.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

#[tokio::test]
async fn a_cluster_grows_shrinks_and_keeps_its_settings() {
    each(async |place| {
        let world = World::new(place).await;
        assert_eq!(world.ended(&world.create(ALICE, "blue", 1).await).await, "succeeded");
        let change = json!({"kubernetes_worker_instances": 4, "kubelet_drain_timeout": "3", "kubelet_drain_force_node": "true",
                            "cluster_tags": [{"name": "team", "value": "a"}, {"name": "stage", "value": ""}]});
        let updated = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &change).await;
        assert_eq!((updated.status, &updated.body), (StatusCode::ACCEPTED, &Value::Null));
        assert_eq!(world.ended(&updated).await, "succeeded");
        {
            let deployed = lock(&world.below.deployed);
            let manifest = deployed.values().next().expect("a deployment");
            assert_eq!(manifest["instance_groups"][1]["instances"], 4);
            assert_eq!(manifest["update"]["canaries"], 0, "machines that are there do not change");
            assert_eq!(manifest["tags"], json!({"team": "a", "stage": ""}));
        }
        let told = lock(&world.below.settings).last().cloned().expect("settings");
        let drain = told.drain;
        assert_eq!((drain.timeout, drain.force_node, drain.grace_period, told.dns_replicas), (3, true, 10, 2));
        let kept: Vec<String> = lock(&world.below.kept_nodes).iter().cloned().collect();
        assert_eq!(kept, ["master-0", "worker-0", "worker-1", "worker-2", "worker-3"]);
        let details = world.ask(ALICE, Method::GET, "/v1/clusterdetails/blue", &Value::Null).await;
        let parameters = &details.body["parameters"];
        assert_eq!(parameters["kubernetes_setting_plan_details"]["kubelet_drain_timeout"], "10");
        assert_eq!(parameters["kubernetes_setting_cluster_details"], json!({"kubelet_drain_timeout": "3", "kubelet_drain_force_node": "true"}));

        let smaller = json!({"kubernetes_worker_instances": 2, "delete_all_tags": true});
        let updated = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &smaller).await;
        assert_eq!(world.ended(&updated).await, "succeeded");
        let shown = world.ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null).await;
        assert_eq!(shown.body["last_action"], "UPDATE");
        assert_eq!(shown.body["last_action_description"], "Instance update completed");
        assert_eq!(shown.body["parameters"]["cluster_tags"], Value::Null);
        assert_eq!(lock(&world.below.settings).last().expect("settings").drain.timeout, 3, "settings stay");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn one_request_at_a_time_and_every_failure_can_be_gone_on_from() {
    use std::sync::atomic::Ordering::Relaxed;
    let place = Place::sqlite();
    let world = World::new(&place).await;
    world.below.hold.store(true, Relaxed);
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(created.status, StatusCode::ACCEPTED);
    let resize = json!({"kubernetes_worker_instances": 2});
    let busy = world
        .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &resize)
        .await;
    assert_eq!(busy.status, StatusCode::CONFLICT);
    assert_eq!(
        busy.error(),
        "An operation is in progress for your service instance. Please try again later."
    );
    let early = world
        .ask(ALICE, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
        .await;
    assert_eq!(
        early.status,
        StatusCode::CONFLICT,
        "no credentials before there is an API: {early:?}"
    );
    world.below.hold.store(false, Relaxed);
    assert_eq!(world.ended(&created).await, "succeeded");

    world.below.fail.store(true, Relaxed);
    let failed = world
        .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &resize)
        .await;
    assert_eq!(world.ended(&failed).await, "failed");
    let shown = world
        .ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(shown.body["last_action_state"], "failed");
    let why = shown.body["last_action_description"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        why.contains("Deploy machines") && why.contains("no more machines"),
        "{why}"
    );
    world.below.fail.store(false, Relaxed);
    let again = world
        .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &resize)
        .await;
    assert_eq!(world.ended(&again).await, "succeeded");
    let manifest = lock(&world.below.deployed)
        .values()
        .next()
        .cloned()
        .expect("a deployment");
    assert_eq!(
        manifest["update"]["canaries"], 1,
        "after a failure nobody knows what runs: carefully"
    );

    // A deletion takes over from what runs.
    world.below.hold.store(true, Relaxed);
    let running = world
        .ask(
            ALICE,
            Method::PATCH,
            "/v1/clusters/blue",
            &json!({"kubernetes_worker_instances": 3}),
        )
        .await;
    assert_eq!(running.status, StatusCode::ACCEPTED);
    let deleted = world
        .ask(ALICE, Method::DELETE, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT, "{deleted:?}");
    world.below.hold.store(false, Relaxed);
    assert_eq!(world.ended(&running).await, "cancelled");
    assert_eq!(world.ended(&deleted).await, "succeeded");
    world.stop().await;
}

#[tokio::test]
async fn a_quota_counts_what_is_allotted() {
    each(async |place| {
        let world = World::new(place).await;
        let quota = json!({"owner": "alice", "limit": {"cpu": 12, "memory": 10.0, "cluster": 2}});
        for who in [ALICE, WATCHER] {
            let answer = world.ask(who, Method::POST, "/v1/quotas", &quota).await;
            assert_eq!(
                answer.status,
                StatusCode::FORBIDDEN,
                "quotas are an administrator's"
            );
        }
        let made = world.ask(ROOT, Method::POST, "/v1/quotas", &quota).await;
        assert_eq!((made.status, &made.body), (StatusCode::CREATED, &quota));
        let twice = world.ask(ROOT, Method::POST, "/v1/quotas", &quota).await;
        assert_eq!(twice.status, StatusCode::CONFLICT);
        for bad in [
            json!({"owner": "bob", "limit": {"cpu": -1, "memory": 1, "cluster": 1}}),
            json!({"owner": "bob", "limit": {"cpu": 1, "memory": 1, "cluster": 0}}),
            json!({"owner": "bob", "limit": {"cpu": 1, "memory": 1}}),
            json!({"owner": "bob", "limit": {"cpu": 1, "memory": 1, "cluster": 1, "disk": 1}}),
            json!({"owner": "", "limit": {"cpu": 1, "memory": 1, "cluster": 1}}),
        ] {
            let answer = world.ask(ROOT, Method::POST, "/v1/quotas", &bad).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}: {answer:?}");
        }

        // A master and two workers of 2 processors and 2 GB each.
        let created = world.create(ALICE, "blue", 2).await;
        assert_eq!(world.ended(&created).await, "succeeded");
        let usage = world
            .ask(ALICE, Method::GET, "/v1/usages/alice", &Value::Null)
            .await;
        let blue = json!({"name": "blue", "cpu": 6, "memory": 6.0});
        assert_eq!(
            usage.body,
            json!({"owner": "alice", "totals": {"cpu": 6, "memory": 6.0, "cluster": 1}, "clusters": [blue]})
        );
        let others = world
            .ask(BOB, Method::GET, "/v1/usages/alice", &Value::Null)
            .await;
        assert_eq!(others.status, StatusCode::FORBIDDEN);
        let all = world.ask(WATCHER, Method::GET, "/v1/usages", &Value::Null).await;
        assert_eq!(all.body.as_array().map(Vec::len), Some(1));

        let over = world.create(ALICE, "green", 2).await;
        assert_eq!(over.status, StatusCode::BAD_REQUEST);
        assert_eq!(
            over.error(),
            "the quota of `alice` allows memory 10 GB, but with this request it would be 12 GB"
        );
        let grow = json!({"kubernetes_worker_instances": 5});
        let over = world.ask(ALICE, Method::PATCH, "/v1/clusters/blue", &grow).await;
        assert!(over.error().contains("would be 12 GB"), "{over:?}");
        let green = world.create(ALICE, "green", 1).await;
        assert_eq!(world.ended(&green).await, "succeeded", "10 of 10 GB is allowed");
        let third = world.create(ALICE, "red", 1).await;
        assert!(third.error().contains("allows clusters 2"), "{third:?}");
        let administrators = world.create(ROOT, "red", 1).await;
        assert_eq!(
            world.ended(&administrators).await,
            "succeeded",
            "administrators are not limited"
        );

        // What is there stays when a limit is lowered; it may shrink and not grow.
        let lower = json!({"limit": {"memory": 1}});
        let changed = world.ask(ROOT, Method::PATCH, "/v1/quotas/alice", &lower).await;
        assert_eq!(
            changed.body["limit"],
            json!({"cpu": 12, "memory": 1.0, "cluster": 2})
        );
        let shrink = json!({"kubernetes_worker_instances": 1});
        let smaller = world
            .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &shrink)
            .await;
        assert_eq!(world.ended(&smaller).await, "succeeded");
        let deleted = world
            .ask(ROOT, Method::DELETE, "/v1/quotas/alice", &Value::Null)
            .await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
        let gone = world
            .ask(ROOT, Method::GET, "/v1/quotas/alice", &Value::Null)
            .await;
        assert_eq!(
            (gone.status, gone.error()),
            (StatusCode::NOT_FOUND, "there is no quota for `alice`")
        );
        world.stop().await;
    })
    .await;
}
