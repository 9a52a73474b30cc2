//! Whose things are: by person, not by name; and what becomes of them, and of access to clusters, when somebody goes.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_base::poll;
use stolos_clusters::SCHEMA;
use stolos_clusters::who::Person;
use stolos_store::testing::each;

use crate::world::{ADMIN, MANAGE, World, lock};

const ROOT: (&str, &str) = ("root", ADMIN);
const BOB: (&str, &str) = ("bob", MANAGE);
/// Ids of 2024 and of the year 2527.
const EARLY: &str = "018cc251-f400-7000-8000-000000000000";
const LATE: &str = "0fffffff-ffff-7fff-8000-000000000000";

fn alice(id: &str) -> Person {
    Person {
        id: id.to_owned(),
        name: "alice".to_owned(),
        groups: vec![MANAGE.to_owned()],
    }
}

/// Waits until a look at access has done something.
pub(crate) async fn until(what: &str, done: impl AsyncFn() -> bool) {
    poll::until(
        what,
        Duration::from_millis(10),
        Duration::from_secs(20),
        async || {
            if done().await {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        },
    )
    .await
    .expect(what);
}

/// Alice was deleted and somebody else got her name: the clusters were theirs, with a kubeconfig for the asking.
#[tokio::test]
async fn a_new_person_of_an_old_name_inherits_nothing() {
    each(async |place| {
        let world = World::new(place).await;
        let (old, new) = (alice("a1"), alice("a2"));
        world.below.add_person(old.clone());
        let request = json!({"name": "blue", "plan_name": "small", "parameters": {"kubernetes_master_host": "blue.test"}});
        let created = world.ask_as(&old, Method::POST, "/v1/clusters", &request).await;
        assert_eq!(world.ended(&created).await, "succeeded");
        let profile = json!({"name": "mine", "customizations": []});
        let made = world.ask_as(&old, Method::POST, "/v1/kubernetes-profiles", &profile).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
        let quota = json!({"owner": "alice", "limit": {"cpu": 12, "memory": 10.0, "cluster": 2}});
        let made = world.ask(ROOT, Method::POST, "/v1/quotas", &quota).await;
        assert_eq!(made.status, StatusCode::CREATED, "{made:?}");

        world.below.delete_person("a1");
        world.below.add_person(new.clone());
        for path in ["/v1/clusters", "/v1/kubernetes-profiles", "/v1/usages", "/v1/tasks", "/stolos/v1/metering"] {
            let got = world.ask_as(&new, Method::GET, path, &Value::Null).await;
            assert_eq!((got.status, got.body), (StatusCode::OK, json!([])), "{path}");
        }
        for path in ["/stolos/v1/operations", "/stolos/v1/clusters"] {
            let got = world.ask_as(&new, Method::GET, path, &Value::Null).await;
            assert_eq!(got.body["items"], json!([]), "{path}");
        }
        for (method, path) in [
            (Method::GET, "/v1/clusters/blue"),
            (Method::POST, "/v1/clusters/blue/binds"),
            (Method::DELETE, "/v1/clusters/blue"),
            (Method::GET, "/v1/kubernetes-profiles/mine"),
        ] {
            let got = world.ask_as(&new, method, path, &Value::Null).await;
            assert_eq!(got.status, StatusCode::NOT_FOUND, "{path}: {got:?}");
        }
        // Whoever still has a token of hers makes nothing with it.
        let bound = world.ask_as(&old, Method::POST, "/v1/clusters/blue/binds", &Value::Null).await;
        assert_eq!(bound.status, StatusCode::UNAUTHORIZED, "{bound:?}");
        // What limited the old one limits nobody, and the new one can have limits of their own.
        until("the quota of somebody who is gone to go", async || {
            let made = world.ask(ROOT, Method::POST, "/v1/quotas", &quota).await;
            made.status == StatusCode::CREATED
        })
        .await;

        // The cluster says that its owner is gone, until it has another one.
        let show = async || world.ask(ROOT, Method::GET, "/v1/clusters/blue", &Value::Null).await.body;
        until("the owner to be missed", async || show().await["owner_gone"] == true).await;
        assert_eq!(show().await["owner"], "alice");
        let transfer = "/stolos/v1/clusters/blue/transfer";
        let refused = world.ask_as(&new, Method::POST, transfer, &json!({"owner": "alice"})).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        let refused = world.ask(ROOT, Method::POST, transfer, &json!({"owner": "nobody"})).await;
        assert_eq!((refused.status, refused.error()), (StatusCode::NOT_FOUND, "there is no user `nobody`"));
        let given = world.ask(ROOT, Method::POST, transfer, &json!({"owner": "bob"})).await;
        assert_eq!((given.status, &given.body["owner"]), (StatusCode::OK, &json!("bob")), "{given:?}");
        assert_eq!(given.body["owner_id"], "id-of-bob");
        assert!(given.body["owner_gone"].is_null());
        let seen = world.ask(BOB, Method::GET, "/v1/clusters/blue", &Value::Null).await;
        assert_eq!(seen.status, StatusCode::OK);
        let history = world.ask(BOB, Method::GET, "/stolos/v1/operations", &Value::Null).await;
        assert_eq!(history.body["items"][0]["user"], "alice", "the history goes with the cluster");
        let found = world.ask(ROOT, Method::GET, "/stolos/v1/clusters?owner=id-of-bob", &Value::Null).await;
        assert_eq!(found.body["items"][0]["name"], "blue");
        world.stop().await;
    })
    .await;
}

/// Kubeconfigs of people who were deleted, or who might no longer manage clusters, went on for ever.
#[tokio::test]
async fn access_ends_with_the_right_to_it() {
    let place = stolos_store::testing::Place::sqlite();
    let world = World::new(&place).await;
    for (who, name) in [("alice", "blue"), ("bob", "red")] {
        let created = world.create((who, MANAGE), name, 1).await;
        assert_eq!(world.ended(&created).await, "succeeded");
    }
    let holders = || {
        let mut names: Vec<String> = lock(&world.below.bindings)
            .iter()
            .map(|(_, binding)| binding.name.clone())
            .collect();
        names.sort();
        names
    };
    for (who, path) in [
        (("alice", MANAGE), "/v1/clusters/blue/binds"),
        (ROOT, "/v1/clusters/blue/binds"),
        (BOB, "/v1/clusters/red/binds"),
    ] {
        let bound = world.ask(who, Method::POST, path, &Value::Null).await;
        assert_eq!(bound.status, StatusCode::CREATED, "{bound:?}");
    }
    let all = [
        "user:id-of-alice in blue",
        "user:id-of-bob in red",
        "user:id-of-root in blue",
    ];
    assert_eq!(holders(), all);
    world.below.delete_person("id-of-alice");
    until("a deleted user's access to end", async || holders() == all[1..]).await;
    // The others were looked at as well, and stay as long as they may.
    let transfer = json!({"owner": "carol"});
    let given = world
        .ask(ROOT, Method::POST, "/stolos/v1/clusters/red/transfer", &transfer)
        .await;
    assert_eq!(given.status, StatusCode::OK, "{given:?}");
    until("a former owner's access to end", async || holders() == all[2..]).await;
    let mut root = crate::world::usual("root");
    root.groups = vec![MANAGE.to_owned()];
    world.below.add_person(root);
    until("access to end with the role", async || holders().is_empty()).await;
    world.stop().await;
}

/// Rows of before there were keys say a name. A person who was there when they began made them; one who came later did not.
#[tokio::test]
async fn rows_of_before_go_to_who_made_them_and_to_nobody_else() {
    each(async |place| {
        let world = World::new(place).await;
        for (who, name) in [("alice", "blue"), ("carol", "red"), ("dave", "green")] {
            let created = world.create((who, MANAGE), name, 1).await;
            assert_eq!(world.ended(&created).await, "succeeded");
        }
        let below = world.below.clone();
        world.stop().await;
        let db = place.open(&SCHEMA).await;
        let mut tx = db.begin("make rows of before").await.expect("begun");
        for sql in [
            "UPDATE clusters SET owner_key = 'name:' || owner",
            "UPDATE operations SET owner_key = 'name:' || owner, actor_key = 'name:' || actor",
            "UPDATE metering SET owner_key = 'name:' || owner",
        ] {
            stolos_store::query(sql)
                .execute(tx.conn())
                .await
                .expect("written");
        }
        tx.commit().await.expect("committed");
        let person = |name: &str, id: &str| Person {
            name: name.to_owned(),
            ..alice(id)
        };
        let (early, late) = (person("alice", EARLY), person("carol", LATE));
        below.add_person(early.clone());
        below.add_person(late.clone());
        below.delete_person("id-of-dave");
        let world = World::with(place, crate::world::plans(), crate::world::catalogue("1"), below).await;
        let named = async |who: &Person| -> Vec<Value> {
            let got = world
                .ask_as(who, Method::GET, "/v1/clusters", &Value::Null)
                .await
                .body;
            got.as_array()
                .expect("a list")
                .iter()
                .map(|cluster| cluster["name"].clone())
                .collect()
        };
        until("rows to be given", async || named(&early).await == ["blue"]).await;
        let history = world
            .ask_as(&early, Method::GET, "/stolos/v1/operations", &Value::Null)
            .await;
        assert_eq!(history.body["items"].as_array().map(Vec::len), Some(1));
        let metered = world
            .ask_as(&early, Method::GET, "/stolos/v1/metering", &Value::Null)
            .await;
        assert_eq!(metered.body[0]["cluster"], "blue");
        // Carol came after the cluster, and nobody is called Dave: an administrator sees both, and that their owners are gone.
        until("the others to be nobody's", async || {
            let all = world
                .ask(ROOT, Method::GET, "/v1/clusters", &Value::Null)
                .await
                .body;
            let gone = all
                .as_array()
                .into_iter()
                .flatten()
                .filter(|cluster| cluster["owner_gone"] == true);
            gone.map(|cluster| cluster["name"].clone()).collect::<Vec<_>>() == ["green", "red"]
        })
        .await;
        assert!(named(&late).await.is_empty());
        assert!(named(&person("dave", EARLY)).await.is_empty());
        world.stop().await;
    })
    .await;
}

/// Nobody knew who had cancelled something.
#[tokio::test]
async fn who_cancels_is_remembered() {
    let place = stolos_store::testing::Place::sqlite();
    let world = World::new(&place).await;
    world.below.hold.store(true, std::sync::atomic::Ordering::Relaxed);
    let created = world.create(("alice", MANAGE), "blue", 1).await;
    let id = created.operation.clone().expect("an operation");
    let path = format!("/stolos/v1/operations/{id}");
    let cancelled = world
        .ask(ROOT, Method::POST, &format!("{path}/cancel"), &Value::Null)
        .await;
    assert_eq!(cancelled.status, StatusCode::ACCEPTED);
    world.ended(&created).await;
    let shown = world
        .ask(("alice", MANAGE), Method::GET, &path, &Value::Null)
        .await;
    assert_eq!(
        (&shown.body["user"], &shown.body["cancelled_by"]),
        (&json!("alice"), &json!("root"))
    );
    world.stop().await;
}
