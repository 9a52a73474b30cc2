//! The service in this process, with everything below it simulated; asked over HTTP as its clients ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use futures::future::{BoxFuture, ready};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use stolos_api::pks;
use stolos_api::token::{Key, KeySet, Verifier};
use stolos_base::ids::ClusterId;
use stolos_base::pki::{Authority, KeyKind, Leaf, Usage};
use stolos_base::{Clock, IdSource};
use stolos_clusters::db::ClusterRow;
use stolos_clusters::deps::{AdminCredential, Director, Instance, Kubernetes, Network, TaskState, Vault};
use stolos_clusters::plans::{Drain, MachineSize, Plan, Plans};
use stolos_clusters::render::{Artifacts, NetworkLease};
use stolos_clusters::{Capacity, Config, Deps, Result, SCHEMA, Service};
use stolos_store::testing::Place;
use tower::ServiceExt as _;

const ISSUER: &str = "https://identity.test/oauth/token";
pub(crate) const ADMIN: &str = "pks.clusters.admin";
pub(crate) const MANAGE: &str = "pks.clusters.manage";
pub(crate) const READ: &str = "pks.clusters.admin.read";

/// What is simulated below the service, and what it was asked.
#[derive(Default)]
pub(crate) struct Below {
    leases: Mutex<BTreeMap<String, NetworkLease>>,
    /// Manifests by deployment.
    pub(crate) deployed: Mutex<BTreeMap<String, Value>>,
    tasks: Mutex<BTreeMap<u64, TaskState>>,
    by_context: Mutex<BTreeMap<String, u64>>,
    next_task: AtomicU64,
    /// While this is set, tasks do not end.
    pub(crate) hold: AtomicBool,
    /// While this is set, deploys fail.
    pub(crate) fail: AtomicBool,
    pub(crate) settings: Mutex<Vec<(Drain, u32)>>,
    pub(crate) kept_nodes: Mutex<BTreeSet<String>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Below {
    fn task(&self, context: &str, state: TaskState) -> u64 {
        let mut known = lock(&self.by_context);
        if let Some(id) = known.get(context) {
            return *id;
        }
        let id = self.next_task.fetch_add(1, Ordering::Relaxed) + 1;
        known.insert(context.to_owned(), id);
        lock(&self.tasks).insert(id, state);
        id
    }

    pub(crate) fn instances_of(&self, deployment: &str) -> Vec<Instance> {
        let deployed = lock(&self.deployed);
        let Some(manifest) = deployed.get(deployment) else {
            return Vec::new();
        };
        let mut instances = Vec::new();
        let mut address = u32::from(Ipv4Addr::new(10, 117, 1, 2));
        for group in manifest["instance_groups"].as_array().into_iter().flatten() {
            for index in 0..group["instances"].as_u64().unwrap_or(0) {
                instances.push(Instance {
                    group: group["name"].as_str().unwrap_or_default().to_owned(),
                    index: u32::try_from(index).unwrap_or_default(),
                    address: Some(address.into()),
                });
                address += 1;
            }
        }
        instances
    }
}

impl Network for Below {
    fn lease(&self, cluster: ClusterId) -> BoxFuture<'_, Result<NetworkLease>> {
        let mut leases = lock(&self.leases);
        let number = u8::try_from(leases.len() + 1).expect("a few clusters");
        let lease = leases.entry(cluster.to_string()).or_insert_with(|| NetworkLease {
            segment: format!("c{number}"),
            range: format!("10.117.{number}.0/24").parse().expect("a range"),
            virtual_address: Ipv4Addr::new(10, 117, 0, 9 + number),
        });
        Box::pin(ready(Ok(lease.clone())))
    }
    fn find(&self, cluster: ClusterId) -> BoxFuture<'_, Result<Option<NetworkLease>>> {
        Box::pin(ready(Ok(lock(&self.leases).get(&cluster.to_string()).cloned())))
    }
    fn release(&self, cluster: ClusterId) -> BoxFuture<'_, Result<()>> {
        lock(&self.leases).remove(&cluster.to_string());
        Box::pin(ready(Ok(())))
    }
    fn publish(&self, _: ClusterId, _: Ipv4Addr, _: Vec<Ipv4Addr>) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
    fn withdraw(&self, _: Ipv4Addr) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

impl Vault for Below {
    fn admin(&self, _: &str) -> BoxFuture<'_, Result<AdminCredential>> {
        Box::pin(ready(Ok(AdminCredential {
            ca: "ca".into(),
            certificate: "certificate".into(),
            private_key: "key".into(),
        })))
    }
    fn forget(&self, _: &str) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

impl Director for Below {
    fn set_cloud_config<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
    fn delete_cloud_config<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
    fn deploy<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
    ) -> BoxFuture<'a, Result<u64>> {
        let manifest = serde_saphyr::from_str(manifest).expect("YAML");
        lock(&self.deployed).insert(deployment.to_owned(), manifest);
        let state = if self.fail.load(Ordering::Relaxed) {
            TaskState::Failed("no more machines".to_owned())
        } else {
            TaskState::Done
        };
        Box::pin(ready(Ok(self.task(context, state))))
    }
    fn delete<'a>(&'a self, deployment: &'a str, context: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        let there = lock(&self.deployed).remove(deployment).is_some();
        Box::pin(ready(Ok(there.then(|| self.task(context, TaskState::Done)))))
    }
    fn task<'a>(&'a self, id: u64, _: &'a str) -> BoxFuture<'a, Result<TaskState>> {
        Box::pin(async move {
            if self.hold.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                return Ok(TaskState::Running("at it".to_owned()));
            }
            Ok(lock(&self.tasks).get(&id).cloned().expect("a task"))
        })
    }
    fn cancel(&self, id: u64) -> BoxFuture<'_, Result<()>> {
        lock(&self.tasks).insert(id, TaskState::Failed("cancelled".to_owned()));
        self.hold.store(false, Ordering::Relaxed);
        Box::pin(ready(Ok(())))
    }
    fn instances<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<Instance>>> {
        Box::pin(ready(Ok(self.instances_of(deployment))))
    }
}

impl Kubernetes for Below {
    fn smoke_test<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
    fn apply_settings<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        drain: Drain,
        dns_replicas: u32,
    ) -> BoxFuture<'a, Result<()>> {
        lock(&self.settings).push((drain, dns_replicas));
        Box::pin(ready(Ok(())))
    }
    fn forget_nodes<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        keep: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        lock(&self.kept_nodes).clone_from(keep);
        Box::pin(ready(Ok(Vec::new())))
    }
    fn bind<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        user: &'a str,
    ) -> BoxFuture<'a, Result<Value>> {
        let config = json!({"kind": "Config", "current-context": cluster.name.to_string(), "user": user});
        Box::pin(ready(Ok(config)))
    }
}

/// The service and who may ask it.
pub(crate) struct World {
    pub(crate) below: Arc<Below>,
    service: Service,
    signing: EncodingKey,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) operation: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    /// The text of an error, under PKS's name.
    pub(crate) fn error(&self) -> &str {
        self.body["body"].as_str().unwrap_or_default()
    }
}

pub(crate) fn plans() -> Plans {
    let size = MachineSize {
        cpu: 2,
        ram: 2048,
        ephemeral_disk: 8192,
        persistent_disk: 1024,
    };
    Plans::new(vec![Plan {
        name: "small".to_owned(),
        description: "for tests".to_owned(),
        kubernetes_version: "1.37.1".to_owned(),
        master: size,
        worker_instances: 1,
        max_worker_instances: 5,
        worker: size,
        allow_privileged_containers: true,
        drain: Drain::default(),
        worker_max_in_flight: 1,
    }])
    .expect("valid plans")
}

impl World {
    pub(crate) async fn new(place: &Place) -> Self {
        stolos_base::tls::install_provider();
        let now = Clock::system().now();
        let authority = Authority::root("test", Duration::from_secs(3600), now).expect("a CA");
        let mut leaf = Leaf::new("tokens", Usage::Server);
        leaf.key = KeyKind::Rsa;
        let key = authority.issue(&leaf, now).expect("an RSA key").key;
        let signing = EncodingKey::from_rsa_pem(key.expose().as_bytes()).expect("a signing key");
        let jwk = Jwk::from_encoding_key(&signing, Algorithm::RS256).expect("a JWK");
        let AlgorithmParameters::RSA(numbers) = &jwk.algorithm else {
            panic!("it is RSA")
        };
        let key = Key {
            kty: "RSA".into(),
            kid: "k".into(),
            alg: "RS256".into(),
            n: numbers.n.clone(),
            e: numbers.e.clone(),
            ..Key::default()
        };
        let verifier =
            Verifier::fixed(ISSUER, &KeySet { keys: vec![key] }, Clock::system()).expect("a verifier");
        let below: Arc<Below> = Arc::default();
        let artifacts = Artifacts {
            release: "kubernetes".into(),
            release_version: "1".into(),
            stemcell_os: "stolos-trixie".into(),
            stemcell_version: "1".into(),
            image_seed: String::new(),
        };
        let config = Config {
            plans: plans(),
            capacity: Some(Capacity {
                memory_mib: 24 * 1024,
                cpus: 2,
            }),
            info: pks::Info {
                version: "0".into(),
                identity: "https://identity.test".into(),
                director: "https://director.test".into(),
                kubernetes_versions: vec!["1.37.1".into()],
            },
            artifacts: [("1.37.1".to_owned(), artifacts)].into_iter().collect(),
            holder: "test".into(),
        };
        let deps = Deps {
            db: place.open(&SCHEMA).await,
            verifier,
            network: below.clone(),
            vault: below.clone(),
            director: below.clone(),
            kubernetes: below.clone(),
            clock: Clock::system(),
            ids: IdSource::random(),
        };
        Self {
            below,
            service: Service::start(config, deps),
            signing,
        }
    }

    pub(crate) fn token(&self, user: &str, scopes: &[&str], lives_for: i64) -> String {
        let now = Clock::system().now().as_second();
        let claims = json!({"iss": ISSUER, "exp": now + lives_for, "iat": now - 700, "client_id": "pks_cli", "user_name": user,
                            "scope": scopes, "jti": "j"});
        let header = Header {
            kid: Some("k".into()),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, &claims, &self.signing).expect("a token")
    }

    /// Asks with a token, or without one.
    pub(crate) async fn ask_with(
        &self,
        token: Option<&str>,
        method: &Method,
        path: &str,
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.service.router().oneshot(request).await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("a body");
        Answer {
            status,
            operation: headers
                .get("x-stolos-operation")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    pub(crate) async fn ask(
        &self,
        (user, scope): (&str, &str),
        method: Method,
        path: &str,
        body: &Value,
    ) -> Answer {
        let token = self.token(user, &[scope], 600);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask_with(Some(&token), &method, path, &body).await
    }

    /// Waits until an operation has ended, and gives its state.
    pub(crate) async fn ended(&self, answer: &Answer) -> String {
        let id = answer.operation.as_deref().expect("an operation");
        let path = format!("/stolos/v1/operations/{id}?wait_ms=1000");
        let mut last = Value::Null;
        for _ in 0..20 {
            let shown = self.ask(("root", ADMIN), Method::GET, &path, &Value::Null).await;
            let state = shown.body["state"].as_str().unwrap_or_default().to_owned();
            last = shown.body;
            if matches!(state.as_str(), "succeeded" | "failed" | "cancelled") {
                return state;
            }
        }
        panic!("the operation does not end: {last}")
    }

    pub(crate) async fn create(&self, who: (&str, &str), name: &str, workers: u32) -> Answer {
        let body = json!({"name": name, "plan_name": "small", "parameters":
            {"kubernetes_master_host": format!("{name}.test"), "kubernetes_worker_instances": workers}});
        self.ask(who, Method::POST, "/v1/clusters", &body).await
    }

    pub(crate) async fn stop(&self) {
        self.service.stop().await;
    }
}
