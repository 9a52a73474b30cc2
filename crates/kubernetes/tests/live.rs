//! On a running cluster: `STOLOS_TEST_KUBECONFIG` names the kubeconfig of an administrator. Without it, this says so and passes.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify as _};
use stolos_kubernetes::access::{Credential, Holder, Kind, Kubeconfig, kubeconfig};
use stolos_kubernetes::smoke::SmokeTest;
use stolos_kubernetes::{Cluster, Document, Error};

const LIMIT: Duration = Duration::from_secs(60);

#[expect(clippy::print_stderr, reason = "a test that skips says why")]
fn path() -> Option<Utf8PathBuf> {
    let path = std::env::var("STOLOS_TEST_KUBECONFIG")
        .ok()
        .map(Utf8PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: STOLOS_TEST_KUBECONFIG names no kubeconfig of a running cluster");
    }
    path
}

#[tokio::test]
async fn a_pod_runs_and_dns_answers() {
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let nodes = cluster.wait_nodes_ready(1, LIMIT).await.expect("Ready nodes");
    assert!(!nodes.is_empty());
    let times = cluster
        .smoke_test(&SmokeTest::new("test-smoke", LIMIT))
        .await
        .expect("a cluster that works");
    assert!(
        times.created <= times.running && times.running <= times.answered,
        "{times:?}"
    );
}

#[tokio::test]
async fn a_pod_that_cannot_run_says_why() {
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let mut test = SmokeTest::new("test-no-image", Duration::from_secs(15));
    test.image = "stolos.local/no-such-image:1".to_owned();
    let error = cluster
        .smoke_test(&test)
        .await
        .expect_err("there is no such image");
    assert!(error.to_string().contains("Image"), "{error}");
}

#[tokio::test]
async fn what_is_applied_twice_stays_as_it_is() {
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let documents = Document::parse(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: test-apply, namespace: default}\ndata: {a: b}\n",
    )
    .expect("a document");
    let configs: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::namespaced(cluster.client().clone(), "default");
    let mut versions = Vec::new();
    for _ in 0..2 {
        cluster.apply(&documents, LIMIT, |_| {}).await.expect("applied");
        versions.push(
            configs
                .get("test-apply")
                .await
                .expect("it is there")
                .metadata
                .resource_version,
        );
    }
    assert_eq!(versions[0], versions[1], "the second apply wrote again");
    configs
        .delete("test-apply", &kube::api::DeleteParams::default())
        .await
        .expect("deleted");

    let once = |value: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: test-once, namespace: default, annotations: {{stolos.dev/apply: if-absent}}}}\n\
             data: {{a: {value}}}\n"
        );
        Document::parse(&text).expect("a document")
    };
    for value in ["first", "second"] {
        cluster.apply(&once(value), LIMIT, |_| {}).await.expect("applied");
        let there = configs.get("test-once").await.expect("it is there");
        assert_eq!(
            there.data.expect("data")["a"],
            "first",
            "what is there is left as it is"
        );
    }
    configs
        .delete("test-once", &kube::api::DeleteParams::default())
        .await
        .expect("deleted");

    let unknown =
        Document::parse("apiVersion: v1\nkind: Unheard\nmetadata: {name: x}\n").expect("a document");
    let error = cluster
        .apply(&unknown, LIMIT, |_| {})
        .await
        .expect_err("no such kind");
    assert!(
        matches!(error, Error::UnknownKind { .. }) && error.class() == Class::User,
        "{error}"
    );
}

/// Two kinds of one group, each defined right before its object: what the server said of the group after the first definition
/// does not know the second.
#[tokio::test]
async fn definitions_and_their_objects_are_applied_in_one_go() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let kind = |kind: &str, plural: &str, scope: &str| {
        format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.test.stolos.dev}}\n\
             spec:\n  group: test.stolos.dev\n  names: {{kind: {kind}, plural: {plural}}}\n  scope: {scope}\n\
             \x20 versions: [{{name: v1, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object}}}}}}]\n---\n\
             apiVersion: test.stolos.dev/v1\nkind: {kind}\nmetadata: {{name: x}}\n---\n"
        )
    };
    let text = kind("Ship", "ships", "Namespaced") + &kind("Fleet", "fleets", "Cluster");
    let documents = Document::parse(&text).expect("documents");
    let mut applied = Vec::new();
    let result = cluster
        .apply(&documents, LIMIT, |document| applied.push(document.title()))
        .await;
    let definitions: kube::Api<CustomResourceDefinition> = kube::Api::all(cluster.client().clone());
    let ships = kube::Api::<kube::api::DynamicObject>::namespaced_with(
        cluster.client().clone(),
        "default",
        &kube::api::ApiResource {
            group: "test.stolos.dev".to_owned(),
            version: "v1".to_owned(),
            api_version: "test.stolos.dev/v1".to_owned(),
            kind: "Ship".to_owned(),
            plural: "ships".to_owned(),
        },
    );
    let ship = ships.get("x").await;
    for plural in ["ships", "fleets"] {
        let name = format!("{plural}.test.stolos.dev");
        definitions
            .delete(&name, &kube::api::DeleteParams::default())
            .await
            .expect("deleted");
    }
    result.expect("applied");
    assert_eq!(applied.len(), 4);
    ship.expect("the object without a namespace is in `default`");
}

#[tokio::test]
async fn a_binding_lets_its_holder_in_until_it_is_removed() {
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let name = "test-binding";
    let owner = Holder {
        of: "user:1".to_owned(),
        by: "user:1".to_owned(),
    };
    let now = stolos_base::Clock::system().now();
    let bind = || cluster.bind(name, &owner, now, Duration::from_secs(3600), LIMIT);
    bind().await.expect("a token");
    let token = bind().await.expect("another token of the same binding");
    let found = cluster.bindings(LIMIT).await.expect("the bindings");
    let found = found
        .iter()
        .find(|binding| binding.name == name)
        .expect("it is there");
    assert_eq!(found.holder.as_ref(), Some(&owner));
    assert_eq!(found.ends, now.checked_add(Duration::from_secs(3600)).ok());

    let own = kube::config::Kubeconfig::read_from(&path).expect("a kubeconfig");
    let endpoint = own.clusters[0].cluster.as_ref().expect("a cluster entry");
    let ca = {
        use base64::Engine as _;
        let data = endpoint
            .certificate_authority_data
            .as_ref()
            .expect("a CA in the kubeconfig");
        let pem = base64::engine::general_purpose::STANDARD
            .decode(data)
            .expect("base64");
        String::from_utf8(pem).expect("PEM")
    };
    let server = endpoint.server.clone().expect("a server");
    let parts = Kubeconfig {
        cluster: "test",
        server: &server,
        ca: &ca,
        tls_server_name: Some("kubernetes.default.svc"),
        user: "holder",
        credential: Credential::Token(&token),
    };
    let dir = camino_tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config");
    fs_err::write(&file, kubeconfig(&parts).to_string()).expect("a file");
    let holder = Cluster::from_kubeconfig(&file).await.expect("a cluster");
    let label = |value: &str| BTreeMap::from([("test-binding".to_owned(), value.to_owned())]);
    let node = holder
        .wait_nodes_ready(1, LIMIT)
        .await
        .expect("the holder sees nodes")
        .swap_remove(0);
    holder
        .label_node(&node, &label("x"), LIMIT)
        .await
        .expect("the holder administers");

    cluster
        .unbind(name, Kind::ServiceAccount, LIMIT)
        .await
        .expect("removed");
    cluster
        .unbind(name, Kind::ServiceAccount, LIMIT)
        .await
        .expect("removing again does nothing");
    // The API server remembers a token that it accepted for some seconds.
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(holder.client().clone());
    let gone = stolos_base::poll::until(
        "the token to be refused",
        Duration::from_millis(200),
        LIMIT,
        || async {
            match nodes.get(&node).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => Ok(()),
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("it is still accepted".to_owned()),
            }
        },
    );
    gone.await.expect("a token that is worthless");
}

#[tokio::test]
async fn a_node_is_cordoned_and_uncordoned() {
    let Some(path) = path() else { return };
    let cluster = Cluster::from_kubeconfig(&path).await.expect("a cluster");
    let node = cluster
        .wait_nodes_ready(1, LIMIT)
        .await
        .expect("Ready nodes")
        .swap_remove(0);
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(cluster.client().clone());
    for (schedulable, mark) in [
        (false, Some(true)),
        (false, Some(true)),
        (true, None),
        (true, None),
    ] {
        cluster
            .set_schedulable(&node, schedulable, LIMIT)
            .await
            .expect("changed");
        let found = nodes.get(&node).await.expect("the node");
        assert_eq!(found.spec.and_then(|spec| spec.unschedulable), mark);
    }
    let error = cluster
        .set_schedulable("no-such-node", false, LIMIT)
        .await
        .expect_err("no such node");
    assert_eq!(error.class(), Class::NotFound);
}
