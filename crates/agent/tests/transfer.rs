//! Blobs over HTTPS: packages in, logs out.

mod common;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use common::{Machine, job};
use jiff::Timestamp;
use serde_json::{Value, json};
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::{http, task, tls};
use stolos_mbus::Call;
use stolos_release::MultiDigest;
use stolos_release::tarball::{Level, Packer};
use tokio_util::sync::CancellationToken;

#[test]
fn init_program() {
    common::be_init_if_asked();
}

/// A blob store that has what it is given, and notes who asked for what.
#[derive(Default)]
struct Store {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    requests: Mutex<Vec<String>>,
}

impl Store {
    fn put(&self, path: &str, bytes: &[u8]) {
        self.blobs
            .lock()
            .expect("not poisoned")
            .insert(path.to_owned(), bytes.to_vec());
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().expect("not poisoned"))
    }
}

async fn serve(
    State(store): State<Arc<Store>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    let authorization = headers
        .get("authorization")
        .map_or("-", |value| value.to_str().expect("text"));
    store
        .requests
        .lock()
        .expect("not poisoned")
        .push(format!("{method} {uri} {authorization}"));
    let mut blobs = store.blobs.lock().expect("not poisoned");
    if method == Method::PUT {
        blobs.insert(uri.path().to_owned(), body.to_vec());
        return (StatusCode::CREATED, Vec::new());
    }
    match blobs.get(uri.path()) {
        Some(bytes) => (StatusCode::OK, bytes.clone()),
        None => (StatusCode::NOT_FOUND, b"no such blob".to_vec()),
    }
}

/// Starts a store; gives its address, the settings that name it, and what ends it.
async fn start() -> (Arc<Store>, String, Value, CancellationToken) {
    let now = Timestamp::now();
    let authority = Authority::root("test CA", Duration::from_secs(3600), now).expect("a CA");
    let mut leaf = Leaf::new("blobs", Usage::Server);
    leaf.addresses.push(Ipv4Addr::LOCALHOST.into());
    let identity = authority.issue(&leaf, now).expect("a certificate");
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let address = format!("https://{}", listener.local_addr().expect("an address"));
    let store = Arc::new(Store::default());
    let router = Router::new().fallback(serve).with_state(store.clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let config = tls::server(&identity, tls::Clients::Any).expect("TLS");
    task::spawn(task::Kind::Service, "blobs", async move {
        http::serve_tls(listener, config, router, stopped).await;
        Ok::<(), std::convert::Infallible>(())
    });
    let blobstore = json!({"provider": "dav", "options": {
        "endpoint": address, "user": "agent", "password": "pw", "tls": {"cert": {"ca": authority.certificate()}},
    }});
    (
        store,
        address,
        json!({"env": {"bosh": {"blobstores": [blobstore]}}}),
        stop,
    )
}

fn package(content: &str) -> (Vec<u8>, String) {
    let mut packer = Packer::new(Vec::new(), Level::Fast);
    packer.directory("./bin", 0o755).expect("packed");
    packer
        .bytes("./bin/tool", 0o755, content.as_bytes())
        .expect("packed");
    packer.symlink("./bin/alias", "tool").expect("packed");
    let bytes = packer.finish().expect("packed");
    let digest = MultiDigest::sha256(&bytes).to_string();
    (bytes, digest)
}

fn with_package(spec: &mut stolos_mbus::spec::ApplySpec, name: &str, digest: &str, url: Option<String>) {
    let package = json!({"name": name, "version": "1.0", "sha1": digest, "blobstore_id": format!("{name}-blob"), "signed_url": url});
    spec.packages.insert(
        name.to_owned(),
        serde_json::from_value(package).expect("a package"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_fetched_verified_and_linked() {
    let (store, address, settings, _stop) = start().await;
    let machine = Machine::boot_with(settings).await;
    let (bytes, digest) = package("#!/bin/sh\necho tool\n");
    store.put("/signed/ab/tool", &bytes);
    let url = format!("{address}/signed/ab/tool?st=SIGNATURE");

    // Wrong content, then none at all: refused without a trace, and without the signature in the text.
    let (_, other) = package("something else");
    for (digest, url) in [
        (&other, url.clone()),
        (&digest, format!("{address}/nothing?st=SIGNATURE")),
    ] {
        let mut spec = machine.spec(1, &[job("a")]).await;
        with_package(&mut spec, "tool", digest, Some(url));
        let error = machine
            .call(Call::Apply(Box::new(spec)))
            .await
            .expect_err("refused");
        assert!(
            error.contains("failed to fetch package `tool`") && !error.contains("SIGNATURE"),
            "{error}"
        );
        let left =
            |path: camino::Utf8PathBuf| path.read_dir_utf8().map(|entries| entries.count()).unwrap_or(0);
        assert_eq!(
            (
                left(machine.paths.data_tmp()),
                left(machine.paths.data_packages())
            ),
            (0, 0)
        );
        assert!(!machine.paths.packages().join("tool").exists());
    }

    let mut spec = machine.spec(1, &[job("a")]).await;
    with_package(
        &mut spec,
        "tool",
        &format!("{};{digest}", "a".repeat(40)),
        Some(url.clone()),
    );
    // One that every machine of the host shares is not fetched.
    let shared = machine.paths.shared_packages().join("b".repeat(64));
    fs_err::create_dir_all(&shared).expect("a shared package");
    with_package(&mut spec, "shared", &format!("sha256:{}", "b".repeat(64)), None);
    store.requests();
    machine.agent().apply(spec.clone()).await.expect("applied");
    assert_eq!(store.requests(), ["GET /signed/ab/tool?st=SIGNATURE -"]);
    let tool = machine.paths.packages().join("tool/bin/alias");
    let output = std::process::Command::new(&tool)
        .output()
        .expect("it is executable");
    assert_eq!(output.stdout, b"tool\n");
    assert_eq!(
        fs_err::read_link(machine.paths.packages().join("shared")).expect("a link"),
        shared.as_std_path()
    );
    assert!(!machine.read("vcap/bosh/spec.json").contains("SIGNATURE"));

    // Again: nothing is fetched. Without a URL: from the store itself, with our name.
    machine.agent().apply(spec.clone()).await.expect("applied");
    assert_eq!(store.requests(), Vec::<String>::new());
    let (bytes, digest) = package("#!/bin/sh\necho new\n");
    store.put("/54/tool-blob", &bytes);
    let prefix = &stolos_release::digest::Algorithm::Sha1.hex(b"tool-blob")[..2];
    store.put(&format!("/{prefix}/tool-blob"), &bytes);
    spec.packages.shift_remove("shared");
    with_package(&mut spec, "tool", &digest, None);
    machine.agent().apply(spec).await.expect("applied");
    assert_eq!(
        store.requests(),
        [format!("GET /{prefix}/tool-blob Basic YWdlbnQ6cHc=")]
    );
    assert_eq!(
        std::process::Command::new(&tool)
            .output()
            .expect("it runs")
            .stdout,
        b"new\n"
    );
    assert!(!machine.paths.packages().join("shared").exists());
    let versions = machine
        .paths
        .data_packages()
        .join("tool")
        .read_dir_utf8()
        .expect("a directory")
        .count();
    assert_eq!(versions, 1, "the old one is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn rendered_jobs_that_are_too_large_for_a_message_come_by_url() {
    let (store, address, settings, _stop) = start().await;
    let machine = Machine::boot_with(settings).await;
    let mut spec = machine.spec(1, &[job("a").file("config/x", "small")]).await;
    let mut packer = Packer::new(Vec::new(), Level::Store);
    packer
        .bytes("./a/config/x", 0o644, &vec![b'x'; 2 << 20])
        .expect("packed");
    let bytes = packer.finish().expect("packed");
    store.put("/signed/cd/jobs", &bytes);
    let archive = spec.rendered_templates_archive.as_mut().expect("an archive");
    archive.sha1 = MultiDigest::sha256(&bytes).to_string();
    archive.blobstore_id = "jobs".into();
    archive.signed_url = Some(format!("{address}/signed/cd/jobs").into());
    machine.agent().apply(spec).await.expect("applied");
    let size = fs_err::metadata(machine.paths.jobs().join("a/config/x"))
        .expect("the file")
        .len();
    assert_eq!(size, 2 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_to_the_blob_store() {
    let (store, _, settings, _stop) = start().await;
    let machine = Machine::boot_with(settings).await;
    machine
        .deploy(
            1,
            &[
                job("a").script("pre-start", "echo hello"),
                job("b").script("pre-start", "echo other"),
            ],
        )
        .await;
    machine
        .agent()
        .run_script("pre-start", indexmap::IndexMap::new())
        .await
        .expect("it ran");
    let result = machine
        .agent()
        .fetch_logs("job", vec!["a/*.stdout.log".into()])
        .await
        .expect("logs");
    let put = store.requests();
    let [put] = put.as_slice() else { panic!("{put:?}") };
    let (path, authorization) = put.trim_start_matches("PUT ").split_once(' ').expect("two words");
    assert_eq!(authorization, "Basic YWdlbnQ6cHc=");
    assert!(path.ends_with(&format!("/{}", result.blobstore_id)), "{path}");
    let bytes = store.blobs.lock().expect("not poisoned")[path].clone();
    let digest: MultiDigest = result.sha1.parse().expect("a digest");
    digest.check("the logs", &bytes).expect("the digest of what came");
    let mut names = Vec::new();
    let limits = stolos_release::tarball::Limits::JOB;
    stolos_release::tarball::walk("logs", bytes.as_slice(), limits, |entry| {
        names.push(entry.path.to_string());
        Ok::<_, stolos_release::Error>(stolos_release::tarball::Next::Continue)
    })
    .expect("an archive");
    assert_eq!(names, ["a/pre-start.stdout.log"]);
    let left = machine
        .paths
        .data_tmp()
        .read_dir_utf8()
        .expect("a directory")
        .count();
    assert_eq!(left, 0);
}
