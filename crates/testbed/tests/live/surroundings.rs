//! A cluster in the surroundings of a company: its own authority, a registry of its own with a certificate of its own, a proxy, people who come by
//! their own names, and budgets that hold a drain.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::{range, tls};
use tokio_util::sync::CancellationToken;

use crate::installation::{Installation, eventually};
use crate::workload::{file, image_archive, unpacked};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const PROXY_PASSWORD: &str = "proxy-word-8812";
/// One pod that may not go, on the worker that will. Its image comes from the registry too: a kubelet that has pulled an image under one name
/// does not give it to pods that ask for it under another, even where it is there from the start.
const HELD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: held}
spec:
  selector: {matchLabels: {app: held}}
  template:
    metadata: {labels: {app: held}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: worker-1}
      containers: [{name: held, image: IMAGE, command: [sleep, "86400"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: held}
spec: {minAvailable: 1, selector: {matchLabels: {app: held}}}
"#;

/// Made with a configuration file and private registries, used by a person, shrunk against a budget, deleted.
pub(crate) fn a_cluster_in_a_company(installation: &Installation) {
    let network = range::claim(
        &installation.root.join("network.json"),
        installation.root.as_str(),
    );
    let host = IpAddr::V4(network.expect("the network").host());
    let own = Authority::root("a company", YEAR, Timestamp::now()).expect("an authority");
    let registry = Registry::start(host, &unpacked(installation, &image_archive(installation)));
    let proxy = Proxy::start(host);
    create(installation, &own, &registry, &proxy);
    let shown = installation.stolos(&["cluster", "company", "--details", "--json"]);
    assert!(
        !shown.contains(PROXY_PASSWORD) && !shown.contains("PRIVATE KEY"),
        "{shown}"
    );

    let credentials = installation.json(&["get-credentials", "company", "--json"]);
    let ca = credentials["clusters"][0]["cluster"]["certificate-authority-data"].as_str();
    assert_eq!(ca, Some(STANDARD.encode(own.certificate()).as_str()));
    installation.stolos(&["get-credentials", "company"]);
    let image = format!("--image={}/team/app:1", registry.name());
    let run = |name: &str, image: &str| {
        let pod = [
            "run",
            name,
            image,
            "--restart=Never",
            "--",
            "echo",
            "from the registry",
        ];
        installation.kubectl(&pod).expect("a pod");
    };
    run("app", &image);
    installation.eventually("the image of the registry", &["logs", "app"], |text| {
        text == "from the registry\n"
    });
    run("far", "--image=far.example/app:1");
    let wanted = "CONNECT far.example:443 HTTP/1.1";
    eventually("a pull through the proxy", || {
        let seen = proxy.seen();
        let asked = seen.iter().any(|line| line == wanted);
        let known = format!("Basic {}", STANDARD.encode(format!("us%er:{PROXY_PASSWORD}")));
        match (asked, seen.iter().any(|line| line.contains(&known))) {
            (true, true) => Ok(()),
            _ => Err(format!("the proxy saw {seen:?}")),
        }
    });

    a_person_comes_by_name(installation);
    tokens_are_for_one_cluster(installation);
    access_ends_with_its_owner(installation);
    nodes_say_how_they_are(installation);
    a_budget_holds_a_drain(installation, &format!("{}/team/app:1", registry.name()));
    installation.stolos(&["delete-cluster", "company", "--non-interactive", "--wait"]);
    installation.stolos(&["get-credentials", "live"]);
}

fn create(installation: &Installation, own: &Authority, registry: &Registry, proxy: &Proxy) {
    let identity = own.identity();
    let url = format!("http://{}", proxy.address);
    let proxied = json!({"url": url, "username": "us%er", "password": PROXY_PASSWORD});
    let config = json!({
        "custom_ca": {"certificate": identity.certificate, "private_key": identity.key.expose()},
        "http_proxy": proxied,
        "https_proxy": proxied,
        "no_proxy": registry.address.ip().to_string(),
    });
    let url = format!("https://{}", registry.name());
    let registries = json!({"servers": [{"url": url, "hosts": [
        {"url": url, "capabilities": ["pull", "resolve"], "ca_cert": registry.ca}]}]});
    installation.stolos(&[
        "create-cluster",
        "company",
        "-e",
        "company.test",
        "-p",
        "small",
        "-n",
        "2",
        "--config-file",
        &file(installation, "company.json", &config.to_string()),
        "--private-registries",
        &file(installation, "registries.json", &registries.to_string()),
        "--non-interactive",
        "--wait",
    ]);
}

/// Without rights first, with them afterwards, and with tokens that kubectl renews by itself.
fn a_person_comes_by_name(installation: &Installation) {
    let password = installation.root.join("admin.password");
    installation.stolos(&["get-kubeconfig", "company", "--password-file", password.as_str()]);
    let whoami = installation.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(whoami.as_deref(), Ok("oidc:admin"));
    let refused = installation.kubectl(&["get", "configmaps"]);
    assert!(
        refused
            .as_ref()
            .is_err_and(|why| why.contains("User \"oidc:admin\" cannot list")),
        "{refused:?}"
    );
    installation.stolos(&["get-credentials", "company"]);
    installation
        .kubectl(&[
            "create",
            "rolebinding",
            "person",
            "--clusterrole=view",
            "--user=oidc:admin",
        ])
        .expect("a role binding");
    installation.stolos(&["get-kubeconfig", "company", "--password-file", password.as_str()]);
    installation
        .kubectl(&["get", "configmaps"])
        .expect("what the role allows");
    // A token that has ended: kubectl asks the token service for another, by the refresh token.
    let path = installation.home.path().join("kubeconfig");
    let text = fs_err::read_to_string(&path).expect("the kubeconfig");
    let mut config: Value = stolos_document::from_yaml(&text).expect("YAML");
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let ended = format!(
        "{}.{}.AAAA",
        part(json!({"alg": "RS256"})),
        part(json!({"exp": 1}))
    );
    let users = config["users"].as_array_mut().expect("users");
    let person = users
        .iter_mut()
        .find(|user| user["name"] == "admin")
        .expect("the person");
    person["user"]["auth-provider"]["config"]["id-token"] = json!(ended);
    fs_err::write(&path, config.to_string()).expect("the kubeconfig");
    installation
        .kubectl(&["get", "configmaps"])
        .expect("a renewed token");
    installation.refused(
        &["get-kubeconfig", "company", "-u", "admin", "-p", "wrong"],
        "Credentials were rejected, please try again.",
    );
    installation.stolos(&["get-credentials", "company"]);
}

/// The token that a person shows one cluster is worth nothing at another: whoever controls the one could use it there.
fn tokens_are_for_one_cluster(installation: &Installation) {
    let password = installation.root.join("admin.password");
    let config = installation.json(&[
        "get-kubeconfig",
        "company",
        "--password-file",
        password.as_str(),
        "--json",
    ]);
    let token = config["users"][0]["user"]["auth-provider"]["config"]["id-token"]
        .as_str()
        .expect("a token");
    let whoami = |cluster: &str| {
        let context = format!("--context={cluster}");
        let token = format!("--token={token}");
        installation.kubectl(&[
            &context,
            &token,
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])
    };
    installation.stolos(&["get-credentials", "live"]);
    installation.stolos(&["get-credentials", "company"]);
    assert_eq!(whoami("company").as_deref(), Ok("oidc:admin"));
    let elsewhere = whoami("live");
    assert!(
        elsewhere.as_ref().is_err_and(|why| why.contains("Unauthorized")),
        "{elsewhere:?}"
    );
}

/// A kubeconfig of plain kubectl, until its owner is deleted: within a minute it is worth nothing.
fn access_ends_with_its_owner(installation: &Installation) {
    let password = file(installation, "naomi.password", "a-long-password");
    let admin = installation.root.join("admin.password");
    let log_in = |user: &str, password: &str| {
        let session = installation.home.path().join(".pks/creds.yml");
        let text = fs_err::read_to_string(session).expect("a session");
        let session: Value = stolos_document::from_yaml(&text).expect("YAML");
        let ca = installation.root.join("ca.pem");
        let api = session["api"].as_str().expect("an address");
        installation.stolos(&[
            "login",
            "-a",
            api,
            "-u",
            user,
            "--password-file",
            password,
            "--ca-cert",
            ca.as_str(),
        ]);
    };
    installation.stolos(&[
        "create-user",
        "naomi",
        "--group",
        "pks.clusters.manage",
        "--password-file",
        &password,
    ]);
    installation.stolos(&["transfer-cluster", "company", "--to", "naomi"]);
    log_in("naomi", &password);
    let config = installation.stolos(&["get-credentials", "company", "--json"]);
    let config = format!("--kubeconfig={}", file(installation, "naomi.kubeconfig", &config));
    let nodes = || installation.kubectl(&[&config, "get", "nodes"]);
    nodes().expect("the owner's kubeconfig");
    log_in("admin", admin.as_str());
    installation.refused(
        &["delete-user", "naomi", "--non-interactive"],
        "naomi owns clusters: company",
    );
    installation.stolos(&["delete-user", "naomi", "--keep-clusters", "--non-interactive"]);
    eventually("a deleted user's kubeconfig to be refused", || match nodes() {
        Err(why) if why.contains("Unauthorized") => Ok(()),
        Err(why) => Err(why),
        Ok(_) => Err("it is still accepted".to_owned()),
    });
    installation.stolos(&["transfer-cluster", "company", "--to", "admin"]);
    installation.stolos(&["get-credentials", "company"]);
}

fn nodes_say_how_they_are(installation: &Installation) {
    let conditions = [
        "get",
        "node",
        "worker-0",
        "-o",
        "jsonpath={range .status.conditions[*]}{.type}={.status} {end}",
    ];
    installation.eventually("conditions of a node", &conditions, |text| {
        [
            "ReadonlyFilesystem=False",
            "FrequentKubeletRestart=False",
            "FrequentContainerdRestart=False",
            "Ready=True",
        ]
        .iter()
        .all(|condition| text.contains(condition))
    });
}

/// The operation names the pod; it goes on when the budget is gone.
fn a_budget_holds_a_drain(installation: &Installation, image: &str) {
    let manifest = file(installation, "held.yml", &HELD.replace("IMAGE", image));
    installation
        .kubectl(&["apply", "-f", &manifest])
        .expect("applied");
    let ready = [
        "get",
        "deployment",
        "held",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    installation.eventually("the pod that is held", &ready, |text| text == "1");
    installation.stolos(&["resize", "company", "-n", "1", "--non-interactive"]);
    let newest = || installation.json(&["operations", "--cluster", "company", "--json"])[0].clone();
    eventually("the name of the pod that holds the drain", || {
        let text = newest()["steps"].to_string();
        if text.contains("default/held-") && text.contains("disruption budget") {
            Ok(())
        } else {
            Err(text)
        }
    });
    installation.kubectl(&["delete", "pdb", "held"]).expect("deleted");
    eventually("the end of the drain", || match newest()["state"].as_str() {
        Some("succeeded") => Ok(()),
        _ => Err(newest().to_string()),
    });
    let nodes = ["get", "nodes", "-o", "name"];
    installation.eventually("one worker", &nodes, |text| {
        text.lines().eq(["node/master-0", "node/worker-0"])
    });
}

/// A registry with one image, over TLS that only its own authority verifies.
struct Registry {
    address: SocketAddr,
    ca: String,
    stop: CancellationToken,
}

impl Registry {
    /// `layout`: an OCI image layout.
    fn start(host: IpAddr, layout: &Utf8Path) -> Self {
        let authority = Authority::root("registry", YEAR, Timestamp::now()).expect("an authority");
        let mut leaf = Leaf::new("registry", Usage::Server);
        leaf.addresses = vec![host];
        let identity = authority.issue(&leaf, Timestamp::now()).expect("a certificate");
        tls::install_provider();
        let tls = tls::server(&identity, tls::Clients::Any).expect("TLS");
        let listener = TcpListener::bind((host, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let (stopped, router) = (stop.clone(), router(layout.to_owned()));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                stolos_base::http::serve_tls(listener, tls, router, stopped).await;
            });
        });
        Self {
            address,
            ca: authority.certificate().to_owned(),
            stop,
        }
    }

    /// What names of its images begin with.
    fn name(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What of the distribution protocol a pull needs.
fn router(layout: Utf8PathBuf) -> Router {
    Router::new()
        .route("/v2/", get(async || "{}"))
        .route("/v2/team/app/manifests/{reference}", get(document))
        .route("/v2/team/app/blobs/{digest}", get(document))
        .with_state(Arc::new(layout))
}

async fn document(State(layout): State<Arc<Utf8PathBuf>>, Path(reference): Path<String>) -> Response {
    let digest = if reference == "1" {
        let index = std::fs::read_to_string(layout.join("index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("JSON");
        index["manifests"][0]["digest"]
            .as_str()
            .expect("a digest")
            .to_owned()
    } else {
        reference
    };
    let blob = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let Some(Ok(bytes)) = blob.map(|hex| std::fs::read(layout.join("blobs/sha256").join(hex))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|document| Some(document["mediaType"].as_str()?.to_owned()))
        .unwrap_or_else(|| "application/octet-stream".to_owned());
    let headers = [
        (header::CONTENT_TYPE.as_str(), kind),
        ("docker-content-digest", digest),
    ];
    (headers, bytes).into_response()
}

/// A proxy that notes who wants to go where, and lets nobody.
struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(host: IpAddr) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = Vec::new();
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                    lines.push(line);
                }
                notes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .append(&mut lines);
                let _ = (&stream).write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { address, seen }
    }

    /// The lines of all requests.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
