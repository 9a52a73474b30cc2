//! A client of PKS 1.7, written by hand from its swagger (pks.md, sections 2.3 and 2.4): it sends what generated clients send, unset fields as
//! null or empty included, and reads answers strictly.

use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_store::testing::Place;

use crate::world::{ADMIN, World};

/// Every field that the swagger has; what it does not know it passes over, what it needs has to be there in its type.
#[derive(Debug, Deserialize)]
struct Cluster {
    name: String,
    plan_name: String,
    last_action: String,
    last_action_state: String,
    last_action_description: String,
    uuid: String,
    kubernetes_master_ips: Vec<String>,
    network_profile_name: Option<String>,
    compute_profile_name: Option<String>,
    kubernetes_profile_name: Option<String>,
    k8s_version: String,
    pks_version: String,
    parameters: Parameters,
    #[serde(default)]
    available_upgrades: Vec<Upgrade>,
}

#[derive(Debug, Deserialize)]
struct Upgrade {
    component: String,
    version: String,
}

#[derive(Debug, Deserialize)]
struct Parameters {
    kubernetes_master_host: String,
    kubernetes_master_port: i32,
    kubernetes_worker_instances: i32,
    #[serde(default)]
    kubernetes_setting_plan_details: Option<Settings>,
    #[serde(default)]
    cluster_tags: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
struct Settings {
    kubelet_drain_timeout: String,
    kubelet_drain_grace_period: String,
    kubelet_drain_force: String,
    kubelet_drain_ignore_daemonsets: String,
    kubelet_drain_delete_local_data: String,
    kubelet_drain_force_node: String,
}

#[derive(Debug, Deserialize)]
struct Tag {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
struct Plan {
    id: String,
    name: String,
    description: String,
    worker_instances: i32,
    master_instances: i32,
    #[serde(rename = "allow-privileged-containers")]
    allow_privileged_containers: bool,
}

#[derive(Debug, Deserialize)]
struct TaskInfo {
    uuid: String,
    #[serde(rename = "type")]
    kind: String,
    status: String,
    clusters: Vec<TaskCluster>,
}

#[derive(Debug, Deserialize)]
struct TaskCluster {
    cluster_name: String,
    last_action: String,
    is_canary: bool,
}

#[derive(Debug, Deserialize)]
struct Profile {
    name: String,
    description: String,
    parameters: String,
}

#[derive(Debug, Deserialize)]
struct KubernetesProfile {
    name: String,
    owner: String,
    created_at: i64,
    customizations: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    owner: String,
    totals: Totals,
    clusters: Vec<ClusterUsage>,
}

#[derive(Debug, Deserialize)]
struct Totals {
    cpu: f64,
    memory: f64,
    cluster: i64,
}

#[derive(Debug, Deserialize)]
struct ClusterUsage {
    name: String,
    cpu: f64,
    memory: f64,
}

/// The old client.
struct Client<'a>(&'a World);

impl Client<'_> {
    async fn call(&self, method: Method, path: &str, body: Value, status: u16) -> Value {
        let answer = self.0.ask(("root", ADMIN), method.clone(), path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {answer:?}");
        answer.body
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let body = self.call(Method::GET, path, Value::Null, 200).await;
        serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("GET {path}: {error}: {body}"))
    }

    /// Polls as its `--wait` did.
    async fn settled(&self, name: &str, action: &str) -> Cluster {
        for _ in 0..1000 {
            let cluster: Cluster = self.get(&format!("/v1/clusters/{name}")).await;
            if cluster.last_action == action && cluster.last_action_state != "in progress" {
                assert_eq!(cluster.last_action_state, "succeeded", "{cluster:?}");
                return cluster;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{name} does not settle after {action}")
    }
}

fn request(name: &str) -> Value {
    json!({
        "name": name, "plan_name": "small", "network_profile_name": null, "compute_profile_name": "", "kubernetes_profile_name": null,
        "parameters": {
            "kubernetes_master_host": format!("{name}.example.com"), "kubernetes_master_port": 8443, "worker_haproxy_ip_addresses": null,
            "kubernetes_worker_instances": 2, "authorization_mode": null, "nsxt_network_profile": "", "nsxt_network_details": null,
            "compute_profile": "", "kubernetes_setting_plan_details": null, "kubernetes_setting_cluster_details": null,
            "k8s_customization_parameters": null, "custom_ca_certs": null, "cluster_tags": [{"name": "team", "value": "blue", "category": ""}],
        },
    })
}

#[tokio::test]
async fn a_client_of_pks_drives_everything() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    let client = Client(&world);

    let plans: Vec<Plan> = client.get("/v1/plans").await;
    assert_eq!(plans[0].id, "8A0E21A8-8072-4D80-B365-D1F502085560");
    assert_eq!((plans[0].name.as_str(), plans[0].master_instances), ("small", 1));
    assert!(
        plans[0].worker_instances > 0
            && !plans[0].description.is_empty()
            && !plans[0].allow_privileged_containers
    );

    let body = client
        .call(Method::POST, "/v1/clusters", request("blue"), 202)
        .await;
    let created: Cluster = serde_json::from_value(body).expect("a cluster");
    assert_eq!(
        (created.last_action.as_str(), created.last_action_state.as_str()),
        ("CREATE", "in progress")
    );
    assert_eq!(created.kubernetes_master_ips, ["In Progress"]);
    assert_eq!(created.last_action_description, "Creating cluster");
    let blue = client.settled("blue", "CREATE").await;
    assert_eq!(blue.uuid, created.uuid);
    assert_eq!(blue.last_action_description, "Instance provisioning completed");
    assert_eq!(
        (
            blue.plan_name.as_str(),
            blue.parameters.kubernetes_worker_instances
        ),
        ("small", 2)
    );
    assert_eq!(
        (
            blue.parameters.kubernetes_master_host.as_str(),
            blue.parameters.kubernetes_master_port
        ),
        ("blue.example.com", 8443)
    );
    assert_eq!(
        (
            blue.parameters.cluster_tags[0].name.as_str(),
            blue.parameters.cluster_tags[0].value.as_str()
        ),
        ("team", "blue")
    );
    assert_eq!(
        (
            blue.network_profile_name,
            blue.compute_profile_name,
            blue.kubernetes_profile_name
        ),
        (None, None, None)
    );
    assert!(blue.k8s_version.starts_with("1.") && !blue.pks_version.is_empty());
    let upgrades: Vec<String> = blue
        .available_upgrades
        .iter()
        .map(|one| format!("{} {}", one.component, one.version))
        .collect();
    assert_eq!(upgrades, Vec::<String>::new());

    let body = client
        .call(Method::POST, "/v1/clusters/blue/binds", Value::Null, 201)
        .await;
    assert_eq!(body["kind"], "Config");
    client
        .call(
            Method::GET,
            "/v1/clusters/blue/binds/alice?suppress_cluster_role_binding=false",
            Value::Null,
            200,
        )
        .await;

    // What 1.3 sent, and what 1.7 sends.
    client
        .call(
            Method::PATCH,
            "/v1/clusters/blue",
            json!({"kubernetes_worker_instances": 3}),
            202,
        )
        .await;
    client.settled("blue", "UPDATE").await;
    let change = json!({"kubernetes_worker_instances": 4, "kubernetes_profile_name": null, "network_profile_name": null, "kubelet_drain_timeout": "5",
        "kubelet_drain_grace_period": null, "kubelet_drain_force": null, "kubelet_drain_ignore_daemonsets": null,
        "kubelet_drain_delete_local_data": null, "kubelet_drain_force_node": null, "insecure_registries": null, "custom_ca_certs": null,
        "cluster_tags": null, "delete_all_tags": null});
    client.call(Method::PATCH, "/v1/clusters/blue", change, 202).await;
    let blue = client.settled("blue", "UPDATE").await;
    assert_eq!(blue.parameters.kubernetes_worker_instances, 4);
    let details: Cluster = client.get("/v1/clusterdetails/blue").await;
    let plan = details
        .parameters
        .kubernetes_setting_plan_details
        .expect("the plan's settings");
    let said = [
        plan.kubelet_drain_timeout,
        plan.kubelet_drain_grace_period,
        plan.kubelet_drain_force,
        plan.kubelet_drain_ignore_daemonsets,
        plan.kubelet_drain_delete_local_data,
        plan.kubelet_drain_force_node,
    ];
    assert_eq!(said, ["10", "10", "true", "true", "true", "false"]);

    let clusters: Vec<Cluster> = client.get("/v1/clusters").await;
    assert_eq!(
        clusters
            .iter()
            .map(|cluster| cluster.name.as_str())
            .collect::<Vec<_>>(),
        ["blue"]
    );
    let usages: Vec<Usage> = client.get("/v1/usages").await;
    assert_eq!(
        (
            usages[0].owner.as_str(),
            usages[0].totals.cluster,
            usages[0].totals.cpu,
            usages[0].totals.memory
        ),
        ("root", 1, 10.0, 10.0)
    );
    let one = &usages[0].clusters[0];
    assert_eq!((one.name.as_str(), one.cpu, one.memory), ("blue", 10.0, 10.0));

    let network = json!({"name": "net", "description": "d", "parameters": "{\"lb_size\": \"medium\", \"nodes_dns\": [\"10.0.0.2\"]}"});
    let made: Profile = serde_json::from_value(
        client
            .call(Method::POST, "/v1/network-profiles", network, 201)
            .await,
    )
    .expect("a profile");
    assert_eq!((made.name.as_str(), made.description.as_str()), ("net", "d"));
    let parameters: Value = serde_json::from_str(&made.parameters).expect("JSON in a text");
    assert_eq!(parameters["lb_size"], "medium");
    let kubernetes = json!({"name": "k", "description": "", "customizations": [{"component": "kube-apiserver", "arguments": {"service-node-port-range": "30000-32000"}}],
                            "experimental_customizations": []});
    client
        .call(Method::POST, "/v1/kubernetes-profiles", kubernetes, 201)
        .await;
    let made: KubernetesProfile = client.get("/v1/kubernetes-profiles/k").await;
    assert_eq!(
        (made.name.as_str(), made.owner.as_str(), made.customizations.len()),
        ("k", "root", 1)
    );
    assert!(made.created_at > 1_700_000_000);
    client
        .call(Method::DELETE, "/v1/kubernetes-profiles/k", Value::Null, 204)
        .await;
    client
        .call(Method::DELETE, "/v1/network-profiles/net", Value::Null, 204)
        .await;

    let refused = client
        .call(
            Method::PATCH,
            "/v1/clusters",
            json!({"clusters": ["blue"], "canaries": null, "max_in_flight": 1}),
            409,
        )
        .await;
    assert!(
        refused["body"]
            .as_str()
            .is_some_and(|text| text.contains("up to date"))
    );
    let tasks: Vec<TaskInfo> = client.get("/v1/tasks?limit=3").await;
    for task in &tasks {
        assert!(task.kind == "UPGRADE" && !task.uuid.is_empty() && !task.status.is_empty());
        assert!(
            task.clusters
                .iter()
                .all(|one| one.last_action == "UPGRADE" && !one.is_canary && !one.cluster_name.is_empty())
        );
    }
    let _: String = client.get("/v1/upgradable").await;

    client
        .call(Method::DELETE, "/v1/clusters/blue", Value::Null, 204)
        .await;
    let gone = async || {
        let answer = world
            .ask(("root", ADMIN), Method::GET, "/v1/clusters/blue", &Value::Null)
            .await;
        (answer.status == StatusCode::NOT_FOUND).then(|| answer.error().to_owned())
    };
    let mut words = gone().await;
    for _ in 0..4000 {
        if words.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        words = gone().await;
    }
    assert_eq!(words.as_deref(), Some("Cluster blue not found"));
    world.stop().await;
}
