//! A director in this process with everything around it simulated, and what tests ask it for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8PathBuf;
use camino_tempfile::Utf8TempDir;
use futures::future::{BoxFuture, ready};
use serde_json::{Value, json};
use stolos_api::director::{Client, ConfigUpdate, DeployOptions, Error, Event, OutputKind, Task, Upload};
use stolos_api::token::testing::Mint;
use stolos_base::ids::{AgentId, CredentialId};
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::{Clock, IdSource, Instance, Secret, task};
use stolos_blobs::{Blobs, SealKey, Signer};
use stolos_cpi::null::NullCpi;
use stolos_director::{
    AgentTrust, Config, Deps, Director, Failure, GenerateVariable, Handle, HostSign, HostSigns, Hosts,
    Resurrection, SCHEMA, Variables,
};
use stolos_flow::faults::Faults;
use stolos_mbus::Bus;
use stolos_mbus::rights::Peer;
use stolos_mbus::settings::MbusCert;
use stolos_release::{JobArchive, ReleaseWriter, StemcellManifest, write_stemcell};
use stolos_store::testing::Place;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use stolos_director::testing::Outside;

/// In the private key of every agent's certificate.
pub(crate) const AGENT_KEY: &str = "agentkeyagentkeyagentkey";
/// In the value of every generated password.
pub(crate) const PASSWORD: &str = "hunter2hunter2";

/// Everything that outlives a director.
pub(crate) struct World {
    pub(crate) outside: Outside,
    pub(crate) vault: Arc<Vault>,
    pub(crate) dir: Utf8TempDir,
    pub(crate) ids: IdSource,
    pub(crate) host: Arc<Host>,
    mint: Mint,
    pub(crate) authority: Authority,
    /// Who is told of alerts.
    pub(crate) alerts: Option<stolos_director::Webhook>,
    /// How long disks without an instance are kept.
    pub(crate) orphaned_disks_kept: Duration,
}

/// A running director.
pub(crate) struct Life {
    pub(crate) handle: Handle,
    pub(crate) client: Client,
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) db: stolos_store::Db,
    stop: CancellationToken,
}

impl World {
    pub(crate) fn new() -> Self {
        stolos_base::tls::install_provider();
        let dir = camino_tempfile::tempdir().expect("a directory");
        let now = Clock::system().now();
        let authority = Authority::root("test", Duration::from_secs(3600), now).expect("a CA");
        let ids = IdSource::random();
        Self {
            outside: Outside::new(NullCpi::new(ids.clone())),
            vault: Arc::default(),
            dir,
            ids,
            host: Arc::default(),
            alerts: None,
            orphaned_disks_kept: Duration::from_secs(5 * 24 * 3600),
            mint: Mint::new(),
            authority,
        }
    }

    pub(crate) fn token(&self, scopes: &[&str]) -> String {
        self.mint.token("tester", scopes, 600)
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance {
            name: "test".parse().expect("a name"),
            root: self.dir.path().join("instance"),
        }
    }

    /// Starts a director on the database of this place; again for each of its lives.
    pub(crate) async fn start(&self, place: &Place, faults: Faults) -> Life {
        let db = place.open(&SCHEMA).await;
        let blobs =
            Blobs::open(self.dir.path().join("blobs"), stolos_blobs::Options::default()).expect("blobs");
        let bus: Arc<dyn stolos_mbus::Transport> = Arc::new(self.outside.bus().connect(Peer::Director));
        let deps = Deps {
            db: db.clone(),
            blobs,
            seal: SealKey::new([7; 32]),
            signer: Signer::new(&Secret::new(vec![7; 32])),
            cpi: Arc::new(self.outside.clone()),
            bus: Bus::start(bus, self.ids.clone()).await.expect("a bus"),
            monitor: Arc::new(self.outside.bus().connect(Peer::HealthMonitor)),
            hosts: Some(self.host.clone()),
            trust: Arc::new(Trust),
            variables: self.vault.clone(),
            verifier: self.mint.verifier(),
            ids: self.ids.clone(),
            faults,
        };
        let config = Config {
            id: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".parse().expect("an id"),
            name: "test".into(),
            instance: self.instance(),
            cpi: "null".into(),
            token_url: "https://identity.test".into(),
            mbus_urls: vec!["nats://10.0.0.1:4222".into()],
            blobstores: vec![],
            blobs_url: "https://10.0.0.1:25250".into(),
            holder: "stolosd".into(),
            max_cpi_calls: 8,
            agent_limit: Duration::from_secs(10),
            orphaned_disks_kept: self.orphaned_disks_kept,
            alerts: self.alerts.clone(),
            resurrection: Resurrection {
                // So that a test need not wait for half a minute.
                fence_after: Duration::from_secs(11),
                ..Resurrection::default()
            },
        };
        let handle = Director::start(config, deps).await.expect("a director");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let mut leaf = Leaf::new("director", Usage::Server);
        leaf.addresses = vec![[127, 0, 0, 1].into()];
        let identity = self
            .authority
            .issue(&leaf, Clock::system().now())
            .expect("a certificate");
        let tls = stolos_base::tls::server(&identity, stolos_base::tls::Clients::Any).expect("TLS");
        let stop = CancellationToken::new();
        let (router, stopped) = (handle.router(), stop.clone());
        task::spawn(task::Kind::Service, "director https", async move {
            stolos_base::http::serve_tls(listener, tls, router, stopped).await;
            Ok::<(), std::convert::Infallible>(())
        });
        let ca = self.authority.certificate().to_owned();
        let token = Secret::from(self.token(&["bosh.admin"]));
        let client = Client::new(&url, &ca, Arc::new(token)).expect("a client");
        Life {
            handle,
            client,
            url,
            ca,
            db,
            stop,
        }
    }

    /// A director with a stemcell, a release and a cloud config.
    pub(crate) async fn ready(&self, place: &Place) -> Life {
        let life = self.start(place, Faults::default()).await;
        self.upload(&life).await;
        life
    }

    pub(crate) async fn upload(&self, life: &Life) {
        let stemcell = self.stemcell();
        let task = life
            .client
            .upload_stemcell(Upload::File(&stemcell))
            .await
            .expect("an upload");
        life.done(task).await;
        let release = self.release("1", b"#!/bin/sh\necho {{ p(\"greeting\") }}\n");
        let task = life
            .client
            .upload_release(Upload::Location(&release))
            .await
            .expect("an upload");
        life.done(task).await;
        let update = ConfigUpdate {
            kind: "cloud".into(),
            name: "default".into(),
            content: CLOUD.into(),
            expected_latest_id: None,
        };
        life.client.update_config(&update).await.expect("a cloud config");
    }

    fn stemcell(&self) -> Utf8PathBuf {
        let (image, path) = (
            self.dir.path().join("image"),
            self.dir.path().join("stemcell.tgz"),
        );
        if !path.exists() {
            fs_err::write(&image, b"a root file system").expect("an image");
            let manifest = StemcellManifest {
                name: "tiny".into(),
                version: "1".parse().expect("a version"),
                operating_system: Some("trixie".into()),
                sha1: "sha256:0000000000000000000000000000000000000000000000000000000000000000"
                    .parse()
                    .expect("a digest"),
                api_version: 3,
                bosh_protocol: None,
                stemcell_formats: vec!["null".into()],
                cloud_properties: serde_json::Map::new(),
            };
            write_stemcell(manifest, &image, "", &path).expect("a stemcell");
        }
        path
    }

    /// A release with the job `web` (a template with a secret, a link to itself) and a compiled package.
    pub(crate) fn release(&self, version: &str, script: &[u8]) -> Utf8PathBuf {
        let path = self.dir.path().join(format!("release-{version}.tgz"));
        let package = self.dir.path().join(format!("prog-{version}.tgz"));
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, "bin/prog", &b"prog"[..])
            .expect("an entry");
        let bytes = tar.into_inner().expect("a tar").finish().expect("an archive");
        fs_err::write(&package, &bytes).expect("a package");
        let spec =
            b"name: web\ntemplates: {run.j2: bin/run, config.yml.j2: config/config.yml, blob: config/blob}\n\
            packages: [prog]\nproperties: {greeting: {default: hello}, password: {}, own: {}}\n\
            provides: [{name: web, type: web}]\nconsumes: [{name: web, type: web}]\n";
        let templates = BTreeMap::from([
            ("run.j2".to_owned(), script.to_vec()),
            (
                "config.yml.j2".to_owned(),
                b"password: {{ p(\"password\") }}\nown: {{ p(\"own\") }}\npeers: {{ link(\"web\").instances | length }}\n".to_vec(),
            ),
            ("blob".to_owned(), b"small".to_vec()),
        ]);
        let job = JobArchive::from_parts("web", spec.to_vec(), templates, None).expect("a job");
        let mut writer = ReleaseWriter::new("site", version.parse().expect("a version"), "trixie/1");
        writer.job(&job);
        let digest = stolos_blobs::BlobId::of(&bytes).to_string();
        writer
            .compiled_package("prog", &package, &digest, &[])
            .expect("a package");
        writer.write(&path).expect("a release");
        path
    }
}

impl Life {
    /// Follows a task to its good end.
    pub(crate) async fn done(&self, task: i64) -> Vec<Event> {
        let mut events = Vec::new();
        match self.client.follow(task, |event| events.push(event.clone())).await {
            Ok(_) => events,
            Err(error) => {
                let debug = self
                    .client
                    .whole_output(task, OutputKind::Debug)
                    .await
                    .unwrap_or_default();
                panic!("{}\n{debug}", stolos_base::chain(&error));
            }
        }
    }

    /// Follows a task to its bad end.
    pub(crate) async fn failed(&self, task: i64) -> (Task, stolos_api::director::EventError) {
        match self.client.follow(task, |_| {}).await {
            Err(Error::TaskFailed { task, error }) => (*task, error.expect("an error event")),
            other => panic!("the task should have failed: {other:?}"),
        }
    }

    pub(crate) async fn deploy(&self, manifest: &str) -> Vec<Event> {
        let task = self
            .client
            .deploy(manifest, &DeployOptions::default())
            .await
            .expect("a task");
        self.done(task).await
    }

    /// Ends this life in an orderly way.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.handle.stop().await;
        self.db.close().await;
    }

    /// After a simulated crash: nothing of this life acts any more.
    pub(crate) async fn bury(self) {
        self.handle.flows().crashed().await;
        self.stop().await;
    }
}

pub(crate) const CLOUD: &str = "
azs: [{name: z1, cloud_properties: {}}]
vm_types: [{name: small, cloud_properties: {cpu: 1}}, {name: large, cloud_properties: {cpu: 2}}]
networks:
- name: default
  type: manual
  subnets:
  - {range: 10.1.0.0/24, gateway: 10.1.0.1, dns: [], azs: [z1], cloud_properties: {segment: c1}}
";

/// A manifest of one group.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) instances: u32,
    pub(crate) greeting: String,
    pub(crate) disk: u64,
    pub(crate) vm_type: &'static str,
    pub(crate) canaries: u32,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            instances: 3,
            greeting: "hello".into(),
            disk: 1024,
            vm_type: "small",
            canaries: 1,
        }
    }
}

impl Site {
    pub(crate) fn manifest(&self) -> String {
        let Self {
            instances,
            greeting,
            disk,
            vm_type,
            canaries,
        } = self;
        let disk = if *disk > 0 {
            format!("persistent_disk: {disk}")
        } else {
            String::new()
        };
        format!(
            "
name: site
releases: [{{name: site, version: latest}}]
stemcells: [{{alias: default, os: trixie, version: latest}}]
update: {{canaries: {canaries}, max_in_flight: 2, canary_watch_time: 1-2000, update_watch_time: 1-2000, serial: false}}
instance_groups:
- name: web
  instances: {instances}
  azs: [z1]
  vm_type: {vm_type}
  stemcell: default
  networks: [{{name: default}}]
  {disk}
  jobs:
  - name: web
    release: site
    properties:
      greeting: {greeting}
      password: ((password))
      own: ((own_{{instance}}.private_key))
variables:
- name: password
  type: password
- name: ca
  type: certificate
  options: {{is_ca: true, common_name: ca}}
- name: own_{{instance}}
  type: certificate
  update_mode: converge
  options:
    ca: ca
    common_name: '{{instance}}'
    alternative_names: ['{{address}}']
"
        )
    }
}

/// A host that says what a test tells it to.
#[derive(Default)]
pub(crate) struct Host {
    signs: Mutex<Vec<(String, HostSign)>>,
    news: tokio::sync::Notify,
}

impl Host {
    pub(crate) fn say(&self, cid: &str, sign: HostSign) {
        let mut signs = self.signs.lock().expect("no test panics with it");
        signs.push((cid.to_owned(), sign));
        self.news.notify_waiters();
    }
}

impl Hosts for Host {
    fn signs(&self, after: Option<u64>) -> BoxFuture<'_, Result<HostSigns, Failure>> {
        Box::pin(async move {
            let news = self.news.notified();
            let take = || {
                let signs = self.signs.lock().expect("no test panics with it");
                let from = after.and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
                (signs.len() as u64, signs[from.min(signs.len())..].to_vec())
            };
            let (number, signs) = take();
            if signs.is_empty() && after.is_some() {
                let _ = tokio::time::timeout(Duration::from_secs(1), news).await;
                return Ok(take());
            }
            Ok((number, signs))
        })
    }
}

struct Trust;

impl AgentTrust for Trust {
    fn issue(&self, agent: AgentId) -> BoxFuture<'_, Result<MbusCert, Failure>> {
        let cert = MbusCert {
            ca: "CA".into(),
            certificate: agent.to_string(),
            private_key: format!("{AGENT_KEY}-{agent}").into(),
        };
        Box::pin(ready(Ok(cert)))
    }
}

/// Variables in memory.
#[derive(Default)]
pub(crate) struct Vault(Mutex<VaultState>);

#[derive(Default)]
struct VaultState {
    newest: HashMap<String, (CredentialId, GenerateVariable)>,
    values: HashMap<CredentialId, Value>,
}

impl Vault {
    /// Names with their options, as they were last generated.
    pub(crate) fn generated(&self) -> BTreeMap<String, Value> {
        let state = self.0.lock().expect("no test panics with it");
        state
            .newest
            .iter()
            .map(|(name, (_, made))| (name.clone(), made.options.clone()))
            .collect()
    }
}

impl Variables for Vault {
    fn generate<'a>(
        &'a self,
        deployment: &'a str,
        variable: &'a GenerateVariable,
    ) -> BoxFuture<'a, Result<CredentialId, Failure>> {
        let mut state = self.0.lock().expect("no test panics with it");
        let name = self.absolute_name(deployment, &variable.name);
        if let Some((id, made)) = state.newest.get(&name)
            && (variable.mode == "no-overwrite" || made.options == variable.options)
        {
            return Box::pin(ready(Ok(*id)));
        }
        if let Some(ca) = variable.options.get("ca").and_then(Value::as_str) {
            let ca = self.absolute_name(deployment, ca);
            assert!(state.newest.contains_key(&ca), "{ca} comes before {name}");
        }
        let id = CredentialId::new(&IdSource::random());
        let secret = format!("{PASSWORD}-{}-{id}", variable.name);
        let value = match variable.kind.as_str() {
            "certificate" => json!({"ca": "PEM", "certificate": "PEM", "private_key": secret}),
            _ => json!(secret),
        };
        state.values.insert(id, value);
        state.newest.insert(name, (id, variable.clone()));
        Box::pin(ready(Ok(id)))
    }

    fn find<'a>(
        &'a self,
        deployment: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<CredentialId>, Failure>> {
        let state = self.0.lock().expect("no test panics with it");
        let found = state
            .newest
            .get(&self.absolute_name(deployment, name))
            .map(|(id, _)| *id);
        Box::pin(ready(Ok(found)))
    }

    fn value(&self, id: CredentialId) -> BoxFuture<'_, Result<Value, Failure>> {
        let state = self.0.lock().expect("no test panics with it");
        Box::pin(ready(Ok(state
            .values
            .get(&id)
            .cloned()
            .expect("a value that was generated"))))
    }

    fn absolute_name(&self, deployment: &str, name: &str) -> String {
        if name.starts_with('/') {
            name.to_owned()
        } else {
            format!("/test/{deployment}/{name}")
        }
    }
}
