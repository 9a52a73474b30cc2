//! The service in this process, with everything below it simulated; asked over HTTP as its clients ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use futures::future::{BoxFuture, ready};
use serde_json::{Value, json};
use stolos_api::pks;
use stolos_api::token::testing::Mint;
use stolos_base::ids::ClusterId;
use stolos_base::pki::Identity;
use stolos_base::{Clock, IdSource, Secret};
use stolos_clusters::db::ClusterRow;
use stolos_clusters::deps::{
    AdminCredential, Certificate, Director, Grant, Instance, Kubernetes, MachineHealth, Network, People,
    StateChange, TaskState, Told, Vault,
};
use stolos_clusters::oidc::{Claims, Oidc};
use stolos_clusters::plans::{MachineSize, Plan, Plans};
use stolos_clusters::render::{Artifacts, Catalogue, NetworkLease};
use stolos_clusters::who::Person;
use stolos_clusters::{BackupSettings, Capacity, Config, Deps, Result, SCHEMA, Service};
use stolos_kubernetes::access::{Binding, Holder};
use stolos_kubernetes::losses::LocalVolume;
use stolos_kubernetes::running::PodRun;
use stolos_store::testing::Place;
use tower::ServiceExt as _;

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
    pub(crate) settings: Mutex<Vec<Told>>,
    pub(crate) kept_nodes: Mutex<BTreeSet<String>>,
    /// What the last published address is balanced over.
    pub(crate) published: Mutex<Option<Vec<Ipv4Addr>>>,
    /// `SUBJECT in CLUSTER` of everybody who was made an administrator by name.
    pub(crate) admitted: Mutex<Vec<String>>,
    /// Deployments whose certificates were renewed.
    pub(crate) renewed: Mutex<Vec<String>>,
    /// What groups were told to do, in that order.
    pub(crate) switched: Mutex<Vec<StateChange>>,
    /// Secrets by whole name.
    pub(crate) secrets: Mutex<BTreeMap<String, String>>,
    /// People who are otherwise than [`usual`] ones, by id; none for those who are gone.
    pub(crate) people: Mutex<BTreeMap<String, Option<Person>>>,
    /// Volumes in use on nodes' disks.
    pub(crate) volumes: Mutex<Vec<LocalVolume>>,
    /// What was given, with the address of the cluster.
    pub(crate) bindings: Mutex<Vec<(Ipv4Addr, Binding)>>,
}

/// Whom the token service knows by a name, unless the test says otherwise: everybody may have clusters.
pub(crate) fn usual(name: &str) -> Person {
    let group = if name == "root" { ADMIN } else { MANAGE };
    Person {
        id: format!("id-of-{name}"),
        name: name.to_owned(),
        groups: vec![group.to_owned()],
    }
}

impl Below {
    /// The person with an id is gone.
    pub(crate) fn delete_person(&self, id: &str) {
        lock(&self.people).insert(id.to_owned(), None);
    }

    /// There is somebody.
    pub(crate) fn add_person(&self, person: Person) {
        lock(&self.people).insert(person.id.clone(), Some(person));
    }

    fn person(&self, id: &str) -> Option<Person> {
        match lock(&self.people).get(id) {
            Some(known) => known.clone(),
            None => id.strip_prefix("id-of-").map(usual),
        }
    }
}

impl People for Below {
    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Person>>> {
        let known = lock(&self.people)
            .values()
            .flatten()
            .find(|person| person.name == name)
            .cloned();
        let found = known.or_else(|| self.person(&format!("id-of-{name}")));
        Box::pin(ready(Ok(found.filter(|_| name != "nobody"))))
    }
    fn by_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Person>>> {
        Box::pin(ready(Ok(self.person(id))))
    }
    fn all(&self) -> BoxFuture<'_, Result<Vec<Person>>> {
        let all = lock(&self.people).values().flatten().cloned().collect();
        Box::pin(ready(Ok(all)))
    }
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
                    zone: Some(ZONES[0].to_owned()),
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
    fn publish(&self, _: ClusterId, _: Ipv4Addr, masters: Vec<Ipv4Addr>) -> BoxFuture<'_, Result<()>> {
        *lock(&self.published) = Some(masters);
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
    fn client<'a>(&'a self, deployment: &'a str, _: &'a str) -> BoxFuture<'a, Result<AdminCredential>> {
        self.admin(deployment)
    }
    fn forget(&self, deployment: &str) -> BoxFuture<'_, Result<()>> {
        self.forget_below(deployment)
    }
    fn name(&self, deployment: &str, variable: &str) -> Result<String> {
        Ok(format!("{deployment}/{variable}"))
    }
    fn put(&self, name: &str, text: Secret<String>) -> BoxFuture<'_, Result<()>> {
        lock(&self.secrets).insert(name.to_owned(), text.expose().clone());
        Box::pin(ready(Ok(())))
    }
    fn copy<'a>(
        &'a self,
        name: &'a str,
        deployment: &'a str,
        variable: &'a str,
    ) -> BoxFuture<'a, Result<()>> {
        let mut secrets = lock(&self.secrets);
        let text = secrets.get(name).cloned().expect("the text that is copied");
        secrets.entry(format!("{deployment}/{variable}")).or_insert(text);
        Box::pin(ready(Ok(())))
    }
    fn put_authority(&self, deployment: &str, authority: Identity) -> BoxFuture<'_, Result<()>> {
        let name = format!("{deployment}/kubernetes_ca");
        lock(&self.secrets).insert(name, authority.certificate);
        Box::pin(ready(Ok(())))
    }
    fn certificates<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<Certificate>>> {
        let now = Clock::system().now();
        let one = |name: &str, is_root, days: i64| Certificate {
            name: format!("/{deployment}/{name}"),
            is_root,
            valid_until: now + jiff::SignedDuration::from_hours(24 * days + 1),
        };
        // What is deleted has none.
        let there = if lock(&self.deployed).contains_key(deployment) {
            vec![one("ca", true, 3650), one("leaf", false, 90)]
        } else {
            Vec::new()
        };
        Box::pin(ready(Ok(there)))
    }
    fn renew<'a>(&'a self, deployment: &'a str, _: jiff::Timestamp) -> BoxFuture<'a, Result<Vec<String>>> {
        lock(&self.renewed).push(deployment.to_owned());
        Box::pin(ready(Ok(vec![format!("/{deployment}/leaf")])))
    }
    fn forget_certificate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(Ok(())))
    }
    fn forget_below(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        lock(&self.secrets).retain(|kept, _| !kept.starts_with(name));
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
        let manifest = stolos_document::from_yaml(manifest).expect("YAML");
        lock(&self.deployed).insert(deployment.to_owned(), manifest);
        let state = if self.fail.load(Ordering::Relaxed) {
            TaskState::Failed("no more machines".to_owned())
        } else {
            TaskState::Done
        };
        Box::pin(ready(Ok(self.task(context, state))))
    }
    fn deploy_abruptly<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<u64>> {
        self.deploy(deployment, manifest, context)
    }
    fn change_state<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        change: &'a StateChange,
    ) -> BoxFuture<'a, Result<u64>> {
        lock(&self.switched).push(change.clone());
        self.deploy(deployment, manifest, context)
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
    fn health<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<MachineHealth>>> {
        let machines = self
            .instances_of(deployment)
            .into_iter()
            .map(|instance| MachineHealth {
                name: format!("{}/{}", instance.group, instance.index),
                state: if self.fail.load(Ordering::Relaxed) {
                    "failing"
                } else {
                    "running"
                }
                .to_owned(),
                not_running: Vec::new(),
                disks: Vec::new(),
            });
        Box::pin(ready(Ok(machines.collect())))
    }
    fn deployments(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(ready(Ok(lock(&self.deployed).keys().cloned().collect())))
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
        settings: &'a Told,
    ) -> BoxFuture<'a, Result<()>> {
        lock(&self.settings).push(settings.clone());
        Box::pin(ready(Ok(())))
    }
    fn pod_runs<'a>(&'a self, _: Ipv4Addr, _: &'a AdminCredential) -> BoxFuture<'a, Result<Vec<PodRun>>> {
        Box::pin(ready(Ok(Vec::new())))
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
    fn renew_inherited<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        _: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<String>> {
        Box::pin(ready(Ok(String::new())))
    }

    fn bind<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        address: Ipv4Addr,
        _: &'a AdminCredential,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<Value>> {
        let name = format!("{} in {}", grant.of.key, cluster.name);
        let mut bindings = lock(&self.bindings);
        bindings.retain(|(_, binding)| binding.name != name);
        let binding = Binding {
            name,
            kind: stolos_kubernetes::access::Kind::ServiceAccount,
            holder: Some(grant.holder()),
            ends: grant.at.checked_add(grant.lives).ok(),
            made_at: grant.at,
        };
        bindings.push((address, binding));
        let config =
            json!({"kind": "Config", "current-context": cluster.name.to_string(), "user": grant.of.name});
        Box::pin(ready(Ok(config)))
    }
    fn admit<'a>(
        &'a self,
        cluster: &'a ClusterRow,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        subject: &'a str,
        _: &'a Grant,
    ) -> BoxFuture<'a, Result<()>> {
        lock(&self.admitted).push(format!("{subject} in {}", cluster.name));
        Box::pin(ready(Ok(())))
    }
    fn bindings<'a>(
        &'a self,
        address: Ipv4Addr,
        _: &'a AdminCredential,
    ) -> BoxFuture<'a, Result<Vec<Binding>>> {
        let bindings = lock(&self.bindings);
        let own = bindings.iter().filter(|(of, _)| *of == address);
        Box::pin(ready(Ok(own.map(|(_, binding)| binding.clone()).collect())))
    }
    fn local_volumes<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        nodes: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<LocalVolume>>> {
        let volumes = lock(&self.volumes);
        let there = volumes.iter().filter(|volume| nodes.contains(&volume.node));
        Box::pin(ready(Ok(there.cloned().collect())))
    }
    fn adopt<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        binding: &'a Binding,
        holder: &'a Holder,
        ends: jiff::Timestamp,
    ) -> BoxFuture<'a, Result<()>> {
        for (_, kept) in lock(&self.bindings).iter_mut() {
            if kept.name == binding.name {
                (kept.holder, kept.ends) = (Some(holder.clone()), Some(ends));
            }
        }
        Box::pin(ready(Ok(())))
    }
    fn unbind<'a>(
        &'a self,
        _: Ipv4Addr,
        _: &'a AdminCredential,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<()>> {
        lock(&self.bindings).retain(|(_, kept)| kept.name != binding.name);
        Box::pin(ready(Ok(())))
    }
}

/// The service and who may ask it.
pub(crate) struct World {
    pub(crate) below: Arc<Below>,
    service: Service,
    mint: Mint,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) operation: Option<String>,
    pub(crate) body: Value,
    /// The same as it came.
    pub(crate) text: String,
}

impl Answer {
    /// The text of an error, under PKS's name.
    pub(crate) fn error(&self) -> &str {
        self.body["body"].as_str().unwrap_or_default()
    }
}

pub(crate) const ZONES: [&str; 2] = ["z1", "z2"];

pub(crate) fn size() -> MachineSize {
    MachineSize {
        cpu: 2,
        ram: 2048,
        ephemeral_disk: 8192,
        persistent_disk: 1024,
    }
}

pub(crate) fn plan(name: &str, kubernetes_version: &str) -> Plan {
    let plan = json!({"name": name, "description": "for tests", "kubernetes_version": kubernetes_version, "master": size(),
                      "worker": size(), "worker_instances": 1, "max_worker_instances": 5});
    serde_json::from_value(plan).expect("a plan")
}

/// `small`, `three` with three masters, and `retired`, which is not active.
pub(crate) fn plans() -> Vec<Plan> {
    vec![
        plan("small", "1.37.1"),
        Plan {
            master_instances: 3,
            ..plan("three", "1.37.1")
        },
        Plan {
            active: false,
            ..plan("retired", "1.36.3")
        },
    ]
}

/// What machines are made of, of a release that has this number.
pub(crate) fn catalogue(release: &str) -> Catalogue {
    let artifacts = |version: &str| Artifacts {
        release: "kubernetes".into(),
        release_version: format!("{version}+{release}"),
        stemcell_os: "stolos-trixie".into(),
        stemcell_version: "1".into(),
        image_seed: String::new(),
    };
    ["1.36.3", "1.37.1"]
        .map(|version| (version.to_owned(), artifacts(version)))
        .into_iter()
        .collect()
}

impl World {
    pub(crate) async fn new(place: &Place) -> Self {
        Self::with(place, plans(), catalogue("1"), Arc::default()).await
    }

    /// A service with other plans and artefacts, over what was there before.
    pub(crate) async fn with(
        place: &Place,
        plans: Vec<Plan>,
        artifacts: Catalogue,
        below: Arc<Below>,
    ) -> Self {
        Self::configured(place, plans, artifacts, below, |_| {}).await
    }

    /// The same of an operator who has changed something else.
    pub(crate) async fn configured(
        place: &Place,
        plans: Vec<Plan>,
        artifacts: Catalogue,
        below: Arc<Below>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mint = Mint::new();
        let mut config = Config {
            plans: Plans::new(plans, ZONES.map(str::to_owned).to_vec()).expect("valid plans"),
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
            artifacts,
            oidc: Some(Oidc {
                issuer: "https://identity.test/oauth/token".into(),
                ca: "PEM".into(),
                claims: Claims::default(),
                audience: None,
            }),
            audience_per_cluster: true,
            personal_credentials: false,
            credentials_live: Duration::from_secs(3600),
            look_at_access: Duration::from_millis(50),
            holder: "test".into(),
            backups: BackupSettings::default(),
        };
        change(&mut config);
        let deps = Deps {
            db: place.open(&SCHEMA).await,
            verifier: mint.verifier(),
            network: below.clone(),
            vault: below.clone(),
            director: below.clone(),
            kubernetes: below.clone(),
            people: below.clone(),
            backups: None,
            clock: Clock::system(),
            ids: IdSource::random(),
        };
        Self {
            below,
            service: Service::start(config, deps),
            mint,
        }
    }

    pub(crate) fn token(&self, user: &str, scopes: &[&str], lives_for: i64) -> String {
        self.mint.token(user, scopes, lives_for)
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
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// Asks as the person with an id that others of the name do not have.
    pub(crate) async fn ask_as(&self, person: &Person, method: Method, path: &str, body: &Value) -> Answer {
        let scopes: Vec<&str> = person.groups.iter().map(String::as_str).collect();
        let token = self.mint.token_of(&person.name, &person.id, &scopes, 600);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask_with(Some(&token), &method, path, &body).await
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
