//! Profiles from outside: making, using and deleting them, and what clusters look like with them.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_store::testing::{Place, each};

use crate::world::{MANAGE, READ, World, lock};
use crate::{ALICE, BOB, ROOT, WATCHER};

const POOLS: &str = "/v1/compute-profiles";
const NETWORKS: &str = "/v1/network-profiles";
const KUBERNETES: &str = "/v1/kubernetes-profiles";

fn pools(name: &str, pools: Value) -> Value {
    json!({"name": name, "description": "d", "parameters": {"cluster_customization": {"node_pools": pools}}})
}

fn flags(name: &str, component: &str, arguments: Value) -> Value {
    json!({"name": name, "customizations": [{"component": component, "arguments": arguments}]})
}

async fn made(world: &World, who: (&str, &str), path: &str, body: &Value) -> Value {
    let answer = world.ask(who, Method::POST, path, body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{body}: {answer:?}");
    answer.body
}

fn cluster(name: &str) -> Value {
    json!({"name": name, "plan_name": "small", "parameters": {"kubernetes_master_host": format!("{name}.test")}})
}

fn group<'a>(manifest: &'a Value, name: &str) -> &'a Value {
    let groups = manifest["instance_groups"].as_array().expect("groups");
    let found = groups.iter().find(|group| group["name"] == name);
    found.unwrap_or_else(|| panic!("no group `{name}`"))
}

fn job<'a>(group: &'a Value, name: &str) -> &'a Value {
    let jobs = group["jobs"].as_array().expect("jobs");
    let found = jobs.iter().find(|job| job["name"] == name);
    &found.unwrap_or_else(|| panic!("no job `{name}`"))["properties"]
}

async fn manifest_of(world: &World, name: &str) -> Value {
    let shown = world
        .ask(ROOT, Method::GET, &format!("/v1/clusters/{name}"), &Value::Null)
        .await;
    let deployment = format!("service-instance_{}", shown.body["uuid"].as_str().expect("an id"));
    lock(&world.below.deployed)[&deployment].clone()
}

#[tokio::test]
async fn who_may_make_see_and_delete_profiles() {
    each(async |place| {
        let world = World::new(place).await;
        let pool = pools("pools", json!([{"name": "web"}]));
        for (path, body) in [
            (POOLS, &pool),
            (
                NETWORKS,
                &json!({"name": "net", "parameters": "{\"lb_size\": \"small\"}"}),
            ),
        ] {
            let refused = world.ask(ALICE, Method::POST, path, body).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
            let made = made(&world, ROOT, path, body).await;
            assert!(made["parameters"].is_string(), "PKS's answer has a text: {made}");
            let again = world.ask(ROOT, Method::POST, path, body).await;
            assert_eq!(again.status, StatusCode::CONFLICT, "{path}");
            let name = made["name"].as_str().expect("a name");
            let one = format!("{path}/{name}");
            for who in [ALICE, WATCHER, ROOT] {
                assert_eq!(
                    world.ask(who, Method::GET, &one, &Value::Null).await.status,
                    StatusCode::OK
                );
            }
            let refused = world.ask(ALICE, Method::DELETE, &one, &Value::Null).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN);
            let gone = world.ask(ROOT, Method::DELETE, &one, &Value::Null).await;
            assert_eq!(gone.status, StatusCode::NO_CONTENT);
            let gone = world.ask(ROOT, Method::GET, &one, &Value::Null).await;
            assert_eq!(gone.status, StatusCode::NOT_FOUND);
        }
        // Kubernetes profiles are their owner's, and an administrator's.
        let ports = flags(
            "ports",
            "kube-apiserver",
            json!({"service-node-port-range": "30000-40000"}),
        );
        let made = made(&world, ALICE, KUBERNETES, &ports).await;
        assert_eq!(made["owner"], "alice");
        let one = format!("{KUBERNETES}/ports");
        assert_eq!(
            world.ask(BOB, Method::GET, &one, &Value::Null).await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            world.ask(BOB, Method::DELETE, &one, &Value::Null).await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            world.ask(WATCHER, Method::GET, &one, &Value::Null).await.status,
            StatusCode::OK
        );
        let listed = world.ask(BOB, Method::GET, KUBERNETES, &Value::Null).await;
        assert_eq!(listed.body, json!([]));
        // Who may read everything and change their own uses and deletes nobody else's: a copy in a cluster of theirs would be readable.
        let both = world.token("bob", &[MANAGE, READ], 600);
        let mut with = cluster("bobs");
        with["kubernetes_profile_name"] = json!("ports");
        for (method, path, body, status) in [
            (Method::GET, one.as_str(), String::new(), StatusCode::OK),
            (Method::DELETE, one.as_str(), String::new(), StatusCode::NOT_FOUND),
            (
                Method::POST,
                "/v1/clusters",
                with.to_string(),
                StatusCode::BAD_REQUEST,
            ),
        ] {
            let answer = world.ask_with(Some(&both), &method, path, &body).await;
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        }
        let mut theirs = cluster("bobs");
        theirs["kubernetes_profile_name"] = json!("ports");
        let refused = world.ask(BOB, Method::POST, "/v1/clusters", &theirs).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "somebody else's profile: {refused:?}"
        );
        assert_eq!(
            world.ask(ROOT, Method::DELETE, &one, &Value::Null).await.status,
            StatusCode::NO_CONTENT
        );
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_cluster_is_made_as_its_profiles_say() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let two = json!([
        {"name": "web", "instances": 2, "cpu": 1, "memory_in_mb": 1024, "ephemeral_disk_in_mb": 4096, "node_labels": "tier=web", "az_names": ["z2"]},
        {"name": "batch", "instances": 1, "max_worker_instances": 3, "node_taints": "only=batch:NoSchedule"},
    ]);
    made(&world, ROOT, POOLS, &pools("pools", two)).await;
    let own = json!({"cni_configurations": {"type": "stolos", "parameters": {"pod_network": "172.20.0.0/16", "service_network": "10.96.0.0/20"}},
                     "nodes_dns": ["10.0.0.53"], "lb_size": "large"});
    let net = made(&world, ROOT, NETWORKS, &json!({"name": "net", "parameters": own})).await;
    assert_eq!(net["not_applied"], json!(["lb_size"]));
    let encryption = "kind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{aescbc: {keys: [{name: k, secret: dG9wc2VjcmV0dG9wc2VjcmV0dG9wc2Vj}]}}]}]\n";
    let sealed = json!({"name": "sealed", "customizations": [{"component": "kube-apiserver",
        "arguments": {"service-node-port-range": "30000-40000", "enable-admission-plugins": ["NamespaceAutoProvision"]},
        "file-arguments": {"encryption-provider-config": encryption}}],
        "experimental_customizations": [{"component": "kubelet", "arguments": {"v": 4}}]});
    let shown = made(&world, ALICE, KUBERNETES, &sealed).await;
    assert!(
        !shown.to_string().contains("dG9wc2VjcmV0dG9w"),
        "a secret is shown: {shown}"
    );

    let mut request = cluster("blue");
    for (key, name) in [("network", "net"), ("compute", "pools"), ("kubernetes", "sealed")] {
        request[format!("{key}_profile_name")] = json!(name);
    }
    request["parameters"]["node_pool_instances"] = json!([{"name": "batch", "instances": 2}]);
    let created = world.ask(ALICE, Method::POST, "/v1/clusters", &request).await;
    assert_eq!(world.ended(&created).await, "succeeded", "{created:?}");
    assert_eq!(created.body["compute_profile_name"], "pools");
    assert_eq!(created.body["parameters"]["kubernetes_worker_instances"], 4);
    let manifest = manifest_of(&world, "blue").await;
    assert!(
        !manifest.to_string().contains("dG9wc2VjcmV0dG9w"),
        "a secret is in the manifest"
    );
    let (web, batch) = (group(&manifest, "worker-web"), group(&manifest, "worker-batch"));
    assert_eq!((&web["instances"], &batch["instances"]), (&json!(2), &json!(2)));
    assert_eq!(web["azs"], json!(["z2"]));
    assert_eq!(job(web, "kubelet")["labels"], json!({"tier": "web"}));
    assert_eq!(job(batch, "kubelet")["taints"][0]["key"], "only");
    assert_eq!(job(web, "kubelet")["cluster_dns"], "10.96.0.2");
    assert_eq!(job(web, "kubelet")["extra_args"], json!({"v": "4"}));
    assert_eq!(job(web, "pod-network")["pod_network"], "172.20");
    let api = job(group(&manifest, "master"), "kube-apiserver");
    assert_eq!(api["service_cluster_ip_range"], "10.96.0.0/20");
    assert_eq!(api["admission_plugins"], json!(["NamespaceAutoProvision"]));
    let told = lock(&world.below.settings).last().cloned().expect("settings");
    let marks = told.marks.expect("marks after the deploy");
    assert_eq!(marks["worker-web"].labels["tier"], "web");
    assert_eq!(marks["worker-batch"].taints[0].key, "only");
    let extra = &api["extra_args"];
    assert_eq!(extra["service-node-port-range"], "30000-40000");
    // The token service beside it, for this cluster alone: not by flags, of which there is one audience for all.
    assert_eq!(
        (&extra["oidc-issuer-url"], &api["oidc_ca_file"]),
        (&Value::Null, &json!(""))
    );
    let trusted: Value = serde_json::from_str(api["authentication_config"].as_str().expect("a text"))
        .expect("a configuration");
    let issuer = &trusted["jwt"][0]["issuer"];
    assert_eq!(issuer["url"], "https://identity.test/oauth/token");
    let audience = format!("cluster/{}", created.body["uuid"].as_str().expect("an id"));
    assert_eq!(issuer["audiences"], json!([audience]));
    let reference = api["encryption_provider_config"].as_str().expect("a reference");
    let name = reference.trim_start_matches("((").trim_end_matches("))");
    // A copy among the deployment's own credentials, which are all that it may name.
    let name = format!("{}/{name}", manifest["name"].as_str().expect("a name"));
    assert_eq!(
        lock(&world.below.secrets).get(&name).map(String::as_str),
        Some(encryption)
    );
    assert_eq!(
        job(group(&manifest, "master"), "cluster-services")["dns"]["upstreams"],
        json!(["10.0.0.53"])
    );

    // In use: nobody deletes what a cluster has.
    for path in [
        format!("{POOLS}/pools"),
        format!("{NETWORKS}/net"),
        format!("{KUBERNETES}/sealed"),
    ] {
        let refused = world.ask(ROOT, Method::DELETE, &path, &Value::Null).await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{path}");
        assert!(refused.error().contains("in use by blue"), "{refused:?}");
    }
    // What cannot change does not.
    made(
        &world,
        ROOT,
        NETWORKS,
        &json!({"name": "plain", "parameters": {}}),
    )
    .await;
    made(
        &world,
        ALICE,
        KUBERNETES,
        &flags(
            "open",
            "kube-apiserver",
            json!({"service-node-port-range": "30000-31000"}),
        ),
    )
    .await;
    made(
        &world,
        ROOT,
        POOLS,
        &pools("others", json!([{"name": "web"}, {"name": "new"}])),
    )
    .await;
    for (change, words) in [
        (
            json!({"network_profile_name": "plain"}),
            "networks of pods and services cannot change",
        ),
        (json!({"kubernetes_profile_name": "open"}), "encrypts"),
        (json!({"compute_profile_name": "others"}), "in one step"),
        (json!({"compute_profile_name": "none"}), "not found"),
        (
            json!({"node_pool_instances": [{"name": "batch", "instances": 4}]}),
            "between 1 and 3",
        ),
        (
            json!({"node_pool_instances": [{"name": "big", "instances": 1}]}),
            "no node pool `big`",
        ),
    ] {
        let refused = world
            .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &change)
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{change}: {refused:?}");
        assert!(refused.error().contains(words), "{change}: {refused:?}");
    }
    assert_eq!(manifest_of(&world, "blue").await, manifest);
    let enforced = json!({"compute_profile_name": "others", "enforce_compute_profile_update": true});
    let changed = world
        .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &enforced)
        .await;
    assert_eq!(world.ended(&changed).await, "succeeded", "{changed:?}");
    let manifest = manifest_of(&world, "blue").await;
    assert_eq!(group(&manifest, "worker-new")["instances"], 1);

    // With the cluster the use ends, and with the profile its secrets.
    let deleted = world
        .ask(ALICE, Method::DELETE, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(world.ended(&deleted).await, "succeeded");
    let gone = world
        .ask(
            ALICE,
            Method::DELETE,
            &format!("{KUBERNETES}/sealed"),
            &Value::Null,
        )
        .await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert!(lock(&world.below.secrets).is_empty());
    world.stop().await;
}

#[tokio::test]
async fn senseless_profiles_are_refused() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    for (path, bad, words) in [
        (POOLS, json!({"name": "p", "parameters": 7}), "no object"),
        (POOLS, json!({"name": "p", "parameters": "{"}), "no JSON"),
        (POOLS, json!({"name": "p"}), "parameters"),
        (POOLS, pools("", json!([{"name": "a"}])), "`name`"),
        (POOLS, pools(&"x".repeat(201), json!([{"name": "a"}])), "`name`"),
        (POOLS, pools("../x", json!([{"name": "a"}])), "`name`"),
        (
            POOLS,
            pools("p", json!([{"name": "a", "az_names": ["nowhere"]}])),
            "no zone `nowhere`",
        ),
        (
            NETWORKS,
            json!({"name": "p", "parameters": {"nonsense": 1}}),
            "parameters.nonsense",
        ),
        (
            NETWORKS,
            json!({"name": "p", "parameters": {}, "colour": 1}),
            "colour",
        ),
        (
            KUBERNETES,
            flags("p", "kube-apiserver", json!({"service-node-port-range": "1-2"})),
            "invalid value for service-node-port-range",
        ),
        (KUBERNETES, flags("p", "docker", json!({"x": 1})), "docker"),
        (KUBERNETES, json!({"name": "p"}), "customizes nothing"),
        (
            KUBERNETES,
            json!({"name": "p", "description": "x".repeat(4001), "customizations": []}),
            "description",
        ),
        (KUBERNETES, json!([]), ""),
    ] {
        let refused = world.ask(ROOT, Method::POST, path, &bad).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}: {refused:?}");
        assert!(refused.error().contains(words), "{bad}: {refused:?}");
        let listed = world.ask(ROOT, Method::GET, path, &Value::Null).await;
        assert_eq!(listed.body, json!([]), "{bad}");
    }
    let secret = "kind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{aescbc: {keys: [{name: k, secret: dG9wc2Vj";
    let broken = json!({"name": "p", "customizations": [{"component": "kube-apiserver", "file-arguments": {"encryption-provider-config": secret}}]});
    let refused = world.ask(ROOT, Method::POST, KUBERNETES, &broken).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(
        !refused.body.to_string().contains("dG9wc2Vj"),
        "an error quotes a secret: {refused:?}"
    );
    assert!(lock(&world.below.secrets).is_empty());
    world.stop().await;
}

#[tokio::test]
async fn own_authorities_proxies_and_registries() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let now = stolos_base::Clock::system().now();
    let root = stolos_base::pki::Authority::root("own", std::time::Duration::from_secs(400 * 86_400), now)
        .expect("a CA");
    let mut request = cluster("blue");
    request["parameters"]["config_file"] = json!({
        "custom_ca": {"certificate": root.certificate(), "private_key": root.identity().key.expose()},
        "http_proxy": {"url": "http://proxy:3128", "username": "u", "password": "verysecret"},
        "no_proxy": "10.0.0.0/8",
        "instance_groups": [{"name": "worker", "vm_extension": {"vmx_options": {"disk.enableUUID": "1"}}}],
    });
    request["parameters"]["private_registries"] = json!({"servers": [{"url": "harbor.test", "hosts": [{"url": "https://harbor.test", "ca_cert": root.certificate()}]}]});
    let created = world.ask(ALICE, Method::POST, "/v1/clusters", &request).await;
    assert_eq!(world.ended(&created).await, "succeeded", "{created:?}");
    let shown = world
        .ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(
        shown.body["parameters"]["private_registries"]["servers"][0]["url"],
        "harbor.test"
    );
    for text in [
        created.body.to_string(),
        shown.body.to_string(),
        manifest_of(&world, "blue").await.to_string(),
    ] {
        assert!(
            !text.contains("verysecret") && !text.contains("PRIVATE KEY"),
            "{text}"
        );
    }
    let manifest = manifest_of(&world, "blue").await;
    let runtime = job(group(&manifest, "worker"), "containerd");
    assert_eq!(runtime["http_proxy"], "((http_proxy))");
    assert_eq!(runtime["no_proxy"], "10.0.0.0/8");
    assert_eq!(runtime["registries"][0]["host"], "harbor.test");
    let id = shown.body["uuid"].as_str().expect("an id").to_owned();
    let kept = |name: &str| {
        lock(&world.below.secrets)
            .get(&format!("service-instance_{id}/{name}"))
            .cloned()
    };
    assert_eq!(
        kept("http_proxy").as_deref(),
        Some("http://u:verysecret@proxy:3128")
    );
    assert_eq!(kept("kubernetes_ca").as_deref(), Some(root.certificate()));
    for (change, words) in [
        (
            json!({"config_file": {"custom_ca": {"certificate": "x", "private_key": "y"}}}),
            "when a cluster is made",
        ),
        (json!({"config_file": {"no_proxy": "a b;c"}}), "no_proxy"),
        (
            json!({"private_registries": {"servers": [{"url": "../x"}]}}),
            "registry",
        ),
        (json!({"config_file": {"proxy": 1}}), "proxy"),
    ] {
        let refused = world
            .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &change)
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{change}: {refused:?}");
        assert!(refused.error().contains(words), "{change}: {refused:?}");
    }
    let cleared =
        json!({"config_file": {"http_proxy": {}, "no_proxy": ""}, "private_registries": {"servers": []}});
    let changed = world
        .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &cleared)
        .await;
    assert_eq!(world.ended(&changed).await, "succeeded");
    let manifest = manifest_of(&world, "blue").await;
    let runtime = job(group(&manifest, "worker"), "containerd");
    assert_eq!(
        (&runtime["http_proxy"], &runtime["registries"]),
        (&Value::Null, &json!([]))
    );
    world.stop().await;
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let preview = world
        .ask(ALICE, Method::POST, "/v1/clusters?dry_run=true", &cluster("blue"))
        .await;
    assert_eq!(
        (preview.status, &preview.operation),
        (StatusCode::OK, &None),
        "{preview:?}"
    );
    assert_eq!(
        preview.body["groups"][1],
        json!({"name": "worker", "before": 0, "after": 1, "cpu": 2, "memory_mib": 2048, "zones": ["z1", "z2"]})
    );
    let listed = world.ask(ROOT, Method::GET, "/v1/clusters", &Value::Null).await;
    assert_eq!(listed.body, json!([]));
    let created = world.create(ALICE, "blue", 2).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let taken = world
        .ask(ALICE, Method::POST, "/v1/clusters?dry_run=true", &cluster("blue"))
        .await;
    assert_eq!(taken.status, StatusCode::CONFLICT, "{taken:?}");
    let before = manifest_of(&world, "blue").await;
    let preview = world
        .ask(
            ALICE,
            Method::PATCH,
            "/v1/clusters/blue?dry_run=true",
            &json!({"kubernetes_worker_instances": 4}),
        )
        .await;
    assert_eq!(preview.body["changes"], json!(["workers: 2 → 4"]), "{preview:?}");
    assert!(
        preview.body["machines"]
            .as_str()
            .is_some_and(|text| text.contains("not touched"))
    );
    let shown = world
        .ask(ALICE, Method::GET, "/v1/clusters/blue", &Value::Null)
        .await;
    assert_eq!(shown.body["last_action"], "CREATE");
    assert_eq!(shown.body["parameters"]["kubernetes_worker_instances"], 2);
    assert_eq!(manifest_of(&world, "blue").await, before);
    world.stop().await;
}

#[tokio::test]
async fn certificates_are_listed_and_made_anew() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let created = world.create(ALICE, "blue", 1).await;
    assert_eq!(world.ended(&created).await, "succeeded");
    let path = "/v1/clusters/blue/certificates";
    let all = world.ask(ALICE, Method::GET, path, &Value::Null).await;
    let kinds: Vec<&str> = all
        .body
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["type"].as_str())
        .collect();
    assert_eq!(kinds, ["Root", "Leaf"]);
    let soon = world
        .ask(ALICE, Method::GET, &format!("{path}?days=180"), &Value::Null)
        .await;
    assert_eq!(soon.body.as_array().map(Vec::len), Some(1));
    assert_eq!(soon.body[0]["days_left"], 90);
    for method in [Method::GET, Method::POST] {
        let foreign = world.ask(BOB, method, path, &Value::Null).await;
        assert_eq!(foreign.status, StatusCode::NOT_FOUND);
    }
    assert!(lock(&world.below.renewed).is_empty());
    let rotated = world.ask(ALICE, Method::POST, path, &Value::Null).await;
    assert_eq!(rotated.status, StatusCode::ACCEPTED);
    assert_eq!(world.ended(&rotated).await, "succeeded");
    assert_eq!(lock(&world.below.renewed).len(), 1);
    assert_eq!(
        manifest_of(&world, "blue").await["update"]["canaries"],
        1,
        "one after the other"
    );
    world.stop().await;
}

#[tokio::test]
async fn what_clusters_had_is_metered_exactly() {
    each(async |place| {
        let world = World::new(place).await;
        let created = world.create(ALICE, "blue", 1).await;
        assert_eq!(world.ended(&created).await, "succeeded");
        // A change without another size begins no other interval, a restart loses nothing.
        let tagged = json!({"cluster_tags": [{"name": "a", "value": "b"}]});
        let tagged = world
            .ask(ALICE, Method::PATCH, "/v1/clusters/blue", &tagged)
            .await;
        assert_eq!(world.ended(&tagged).await, "succeeded");
        let below = world.below.clone();
        world.stop().await;
        let world = World::with(place, crate::world::plans(), crate::world::catalogue("1"), below).await;
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let grown = world
            .ask(
                ALICE,
                Method::PATCH,
                "/v1/clusters/blue",
                &json!({"kubernetes_worker_instances": 3}),
            )
            .await;
        assert_eq!(world.ended(&grown).await, "succeeded");
        let deleted = world
            .ask(ALICE, Method::DELETE, "/v1/clusters/blue", &Value::Null)
            .await;
        assert_eq!(world.ended(&deleted).await, "succeeded");
        let metered = async |who, query: &str| {
            let path = format!("/stolos/v1/metering{query}");
            world.ask(who, Method::GET, &path, &Value::Null).await
        };
        let first = metered(ALICE, "").await;
        let one = &first.body[0];
        let number = |key: &str| one[key].as_i64().unwrap_or_default();
        // Two machines of 2 processors and 2 GiB for more than a second, then four for a moment.
        assert!(number("machine_seconds") >= 2, "{first:?}");
        assert!(
            number("cpu_seconds") >= 4 && number("memory_mib_seconds") >= 4 * 1024,
            "{first:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        assert_eq!(
            metered(ALICE, "").await.body,
            first.body,
            "what is gone costs nothing more"
        );
        assert_eq!(metered(ROOT, "").await.body, first.body);
        assert_eq!(metered(BOB, "").await.body, json!([]));
        assert_eq!(metered(ALICE, "?to=2020-01-01T00:00:00Z").await.body, json!([]));
        for bad in [
            "?from=yesterday",
            "?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        ] {
            assert_eq!(metered(ALICE, bad).await.status, StatusCode::BAD_REQUEST, "{bad}");
        }
        world.stop().await;
    })
    .await;
}
