//! Kubeconfigs: of service accounts, and of people under their own names.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_store::testing::Place;

use crate::world::{ADMIN, MANAGE, READ, World, catalogue, lock, plans};

const ALICE: (&str, &str) = ("alice", MANAGE);
const ROOT: (&str, &str) = ("root", ADMIN);
/// Somebody whom only the token service knows.
const EVE: (&str, &str) = ("eve", "openid");

async fn personal(place: &Place) -> World {
    World::configured(place, plans(), catalogue("1"), Arc::default(), |config| {
        config.personal_credentials = true;
    })
    .await
}

fn provider(config: &Value) -> &Value {
    &config["users"][0]["user"]["auth-provider"]
}

#[tokio::test]
async fn everybody_gets_a_kubeconfig_without_rights_for_themselves_alone() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let own = "/v1/clusters/blue/binds/eve?suppress_cluster_role_binding=true";
    let got = world.ask(EVE, Method::GET, own, &Value::Null).await;
    assert_eq!(got.status, StatusCode::OK, "{got:?}");
    assert_eq!(
        got.body["clusters"][0]["cluster"]["server"],
        "https://10.117.0.10:8443"
    );
    assert_eq!(got.body["users"][0]["name"], "eve");
    assert_eq!(
        provider(&got.body),
        &json!({"name": "oidc", "config": {
            "client-id": "pks_cluster_client", "cluster_client_secret": "", "id-token": "", "refresh-token": "",
            "idp-certificate-authority-data": "UEVN", "idp-issuer-url": "https://identity.test/oauth/token",
            "audience": format!("cluster/{}", created.body["uuid"].as_str().expect("an id")),
        }})
    );
    assert!(lock(&world.below.admitted).is_empty());
    for (who, path, status) in [
        (EVE, "/v1/clusters/blue/binds/eve", StatusCode::FORBIDDEN),
        (
            EVE,
            "/v1/clusters/blue/binds/alice?suppress_cluster_role_binding=true",
            StatusCode::FORBIDDEN,
        ),
        (
            EVE,
            "/v1/clusters/red/binds/eve?suppress_cluster_role_binding=true",
            StatusCode::NOT_FOUND,
        ),
        (
            ("bob", MANAGE),
            "/v1/clusters/blue/binds/eve?suppress_cluster_role_binding=true",
            StatusCode::NOT_FOUND,
        ),
        (
            ("carol", READ),
            "/v1/clusters/blue/binds/eve?suppress_cluster_role_binding=true",
            StatusCode::FORBIDDEN,
        ),
        (
            EVE,
            "/v1/clusters/blue/binds/eve?suppress_cluster_role_binding=perhaps",
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let answer = world.ask(who, Method::GET, path, &Value::Null).await;
        assert_eq!(answer.status, status, "{who:?} {path}: {answer:?}");
    }
    // Where credentials are those of service accounts, a person's own rights are not touched.
    let bound = world
        .ask(ALICE, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
        .await;
    assert_eq!(bound.body["user"], "alice");
    assert!(lock(&world.below.admitted).is_empty());
    world.stop().await;
}

#[tokio::test]
async fn with_personal_credentials_people_administer_under_their_own_names() {
    let place = Place::sqlite();
    let world = personal(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let bound = world
        .ask(ALICE, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
        .await;
    assert_eq!(bound.status, StatusCode::CREATED, "{bound:?}");
    assert_eq!(provider(&bound.body)["name"], "oidc");
    assert_eq!(bound.body["users"][0]["name"], "alice");
    let given = world
        .ask(ROOT, Method::GET, "/v1/clusters/blue/binds/bob", &Value::Null)
        .await;
    assert_eq!(given.body["users"][0]["name"], "bob");
    assert_eq!(
        *lock(&world.below.admitted),
        ["oidc:alice in blue", "oidc:bob in blue"]
    );
    world.stop().await;
}

#[tokio::test]
async fn an_identity_provider_of_a_profile_takes_our_place() {
    let place = Place::sqlite();
    let world = personal(&place).await;
    let profile = json!({"name": "own", "customizations": [{"component": "kube-apiserver", "arguments": {
        "oidc-issuer-url": "https://people.example.com", "oidc-client-id": "kubernetes"}}]});
    let made = world
        .ask(ROOT, Method::POST, "/v1/kubernetes-profiles", &profile)
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    let body = json!({"name": "blue", "plan_name": "small", "kubernetes_profile_name": "own",
                      "parameters": {"kubernetes_master_host": "blue.test"}});
    let created = world.ask(ROOT, Method::POST, "/v1/clusters", &body).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let manifest = lock(&world.below.deployed)
        .values()
        .next()
        .cloned()
        .expect("a manifest");
    let jobs = manifest["instance_groups"][0]["jobs"]
        .as_array()
        .expect("jobs")
        .clone();
    let server = jobs
        .iter()
        .find(|job| job["name"] == "kube-apiserver")
        .expect("an API server");
    let properties = &server["properties"];
    assert_eq!(
        properties["extra_args"],
        json!({"oidc-issuer-url": "https://people.example.com", "oidc-client-id": "kubernetes"})
    );
    assert_eq!(properties["oidc_ca_file"], "");
    let own = "/v1/clusters/blue/binds/root?suppress_cluster_role_binding=true";
    let refused = world.ask(ROOT, Method::GET, own, &Value::Null).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(
        refused.error().contains("identity provider of its own"),
        "{refused:?}"
    );
    // Credentials are there all the same.
    let bound = world
        .ask(ROOT, Method::POST, "/v1/clusters/blue/binds", &Value::Null)
        .await;
    assert_eq!(
        (bound.status, &bound.body["user"]),
        (StatusCode::CREATED, &json!("root"))
    );
    world.stop().await;
}
