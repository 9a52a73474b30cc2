//! The API as BOSH's clients and strangers see it.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_api::director::{Client, ConfigUpdate, DeployOptions, Error, OutputKind, TaskState, Upload};
use stolos_base::Secret;
use stolos_base::http::PeerAddress;
use stolos_flow::faults::Faults;
use stolos_store::testing::Place;
use tower::ServiceExt as _;

use crate::machines::files;
use crate::world::{AGENT_KEY, CLOUD, Life, PASSWORD, Site, World};

/// Every route but `/info`, with whether `bosh.read` is enough.
const ROUTES: &[(&str, &str, bool)] = &[
    ("GET", "/tasks", true),
    ("GET", "/tasks/1", true),
    ("GET", "/tasks/1/output?type=event", true),
    ("GET", "/tasks/1/output?type=result", true),
    ("GET", "/tasks/1/output?type=debug", false),
    ("DELETE", "/task/1", false),
    ("POST", "/tasks/cancel", false),
    ("GET", "/deployments", true),
    ("POST", "/deployments", false),
    ("GET", "/deployments/site", true),
    ("DELETE", "/deployments/site", false),
    ("POST", "/deployments/site/diff", false),
    ("GET", "/deployments/site/instances", true),
    ("GET", "/deployments/site/vms", true),
    ("GET", "/deployments/site/variables", true),
    ("GET", "/configs", true),
    ("POST", "/configs", false),
    ("DELETE", "/configs?type=cloud&name=default", false),
    ("GET", "/configs/1", true),
    ("DELETE", "/configs/1", false),
    ("GET", "/locks", true),
    ("GET", "/events", true),
    ("GET", "/events/1", true),
    ("GET", "/metrics", true),
    ("GET", "/health/problems", true),
    ("GET", "/resurrection", true),
    ("PUT", "/resurrection", false),
    ("GET", "/disks", true),
    ("DELETE", "/disks/x", false),
    ("GET", "/orphan_disks", true),
    ("DELETE", "/orphan_disks/x", false),
    ("GET", "/unknown_machines", true),
    ("GET", "/resources/x", false),
    ("GET", "/releases", true),
    ("POST", "/releases", false),
    ("GET", "/releases/site", true),
    ("DELETE", "/releases/site", false),
    ("GET", "/stemcells", true),
    ("POST", "/stemcells", false),
    ("DELETE", "/stemcells/tiny/1", false),
    ("POST", "/stemcell_uploads", true),
    // new routes go above this line
];

pub(crate) fn http(life: &Life) -> reqwest::Client {
    let tls = stolos_base::tls::client(&life.ca, None).expect("TLS");
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client")
}

async fn call(life: &Life, method: &str, path: &str, token: Option<&str>) -> reqwest::Response {
    let method: Method = method.parse().expect("a method");
    let mut request = http(life).request(method.clone(), format!("{}{path}", life.url));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method == Method::POST {
        request = request.header("content-type", "application/json").body("{}");
    }
    request.send().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_asks_who_it_is() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.start(&place, Faults::default()).await;
    let (nobody, reader) = (world.token(&["pks.clusters.admin"]), world.token(&["bosh.read"]));
    for (method, path, readable) in ROUTES {
        for token in [None, Some("garbage"), Some(nobody.as_str())] {
            let answer = call(&life, method, path, token).await;
            assert_eq!(
                answer.status(),
                StatusCode::UNAUTHORIZED,
                "{method} {path} {token:?}"
            );
            assert!(
                answer.headers().contains_key("www-authenticate"),
                "{method} {path}"
            );
        }
        let denied = call(&life, method, path, Some(&reader)).await.status() == StatusCode::UNAUTHORIZED;
        assert_eq!(denied, !readable, "{method} {path} with bosh.read");
    }
    let answer = call(&life, "GET", "/info", None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let info: Value = answer.json().await.expect("JSON");
    assert_eq!(
        (&info["user"], &info["user_authentication"]["type"]),
        (&Value::Null, &json!("uaa"))
    );
    let info: Value = call(&life, "GET", "/info", Some(&reader))
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!(info["user"], "tester");
    let answer = call(&life, "GET", "/nowhere", Some(&reader)).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        answer.text().await.expect("text"),
        "Endpoint '/nowhere' not found."
    );
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_boshs_codes() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let token = world.token(&["bosh.admin"]);
    for (method, path, status, code) in [
        ("GET", "/tasks/77", 404, 10_000),
        ("DELETE", "/task/1", 400, 10_002),
        ("GET", "/deployments/none", 404, 70_000),
        ("DELETE", "/deployments/none", 404, 70_000),
        ("GET", "/deployments/none/instances", 404, 70_000),
        ("GET", "/configs/77", 404, 440_012),
        ("GET", "/releases/none", 404, 30_005),
        ("DELETE", "/stemcells/none/1", 404, 50_003),
    ] {
        let answer = call(&life, method, path, Some(&token)).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["code"], code, "{method} {path}: {body}");
    }
    let bad = life
        .client
        .deploy("name: [", &DeployOptions::default())
        .await
        .expect_err("no YAML");
    assert_eq!(bad.code(), Some(710_000));
    let bad = life
        .client
        .deploy("name: x\nupdate: {}\n", &DeployOptions::default())
        .await
        .expect_err("no manifest");
    assert!(bad.to_string().contains("line 2, column"), "{bad}");
    // What only the world can tell is the task's to say, with its place.
    let unknown = Site::default()
        .manifest()
        .replace("vm_type: small", "vm_type: huge");
    let task = life
        .client
        .deploy(unknown, &DeployOptions::default())
        .await
        .expect("a task");
    let (_, error) = life.failed(task).await;
    assert!(
        error.message.contains("huge") && error.message.contains("line"),
        "{}",
        error.message
    );
    let unknown = Site::default().manifest().replace("((password))", "((nobody))");
    let task = life
        .client
        .deploy(unknown, &DeployOptions::default())
        .await
        .expect("a task");
    let (_, error) = life.failed(task).await;
    assert!(
        error.message.contains("nobody") && error.message.contains("line"),
        "{}",
        error.message
    );
    assert!(world.outside.books().vms.is_empty());
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_comes_in_ranges_and_can_be_waited_for() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    world.outside.state().hanging.push("web/0 pre-start".into());
    let site = Site {
        instances: 1,
        ..Site::default()
    };
    let task = life
        .client
        .deploy(site.manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    // Follow until the script hangs.
    let mut text = String::new();
    while !text.contains("executing pre-start") {
        let more = life.client.output(
            task,
            OutputKind::Event,
            text.len() as u64,
            Some(Duration::from_secs(10)),
        );
        let more = more.await.expect("output");
        assert!(!more.state.is_some_and(TaskState::is_final), "{text}");
        text.push_str(&more.text);
    }
    let from = text.len() as u64;
    let nothing = life
        .client
        .output(task, OutputKind::Event, from, None)
        .await
        .expect("an answer");
    assert_eq!((nothing.text.as_str(), nothing.next), ("", from));
    let locks = life.client.locks().await.expect("locks");
    assert_eq!(
        (locks[0].resource[0].as_str(), locks[0].task_id.as_str()),
        ("site", task.to_string().as_str())
    );
    // A second one waits for the first.
    let second = life
        .client
        .deploy(site.manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    assert_eq!(
        life.client.task(second).await.expect("a task").state,
        TaskState::Queued
    );
    let client = life.client.clone();
    let waiting = async move {
        client
            .output(task, OutputKind::Event, from, Some(Duration::from_secs(20)))
            .await
    };
    let (news, ()) = tokio::join!(waiting, async {
        life.client.cancel_task(task).await.expect("a cancel");
    });
    assert!(!news.expect("news").text.is_empty());
    let whole = async |kind| life.client.whole_output(task, kind).await.expect("output");
    let _ = life.client.follow(task, |_| {}).await;
    let all = whole(OutputKind::Event).await;
    assert!(all.starts_with(&text));
    assert!(
        all.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    assert!(
        all.lines()
            .last()
            .is_some_and(|line| line.contains("\"code\":10001")),
        "{all}"
    );
    world.outside.state().hanging.clear();
    life.done(second).await;
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_makes_nothing() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let options = DeployOptions {
        dry_run: true,
        ..DeployOptions::default()
    };
    let task = life
        .client
        .deploy(Site::default().manifest(), &options)
        .await
        .expect("a task");
    life.done(task).await;
    let plan = life
        .client
        .whole_output(task, OutputKind::Result)
        .await
        .expect("a plan");
    assert!(plan.contains("web/"), "{plan}");
    assert!(life.client.deployments().await.expect("deployments").is_empty());
    assert!(world.outside.books().vms.is_empty());
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_shown_or_kept() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let site = Site {
        instances: 2,
        ..Site::default()
    };
    life.deploy(&site.manifest()).await;
    // A script that tells what it should not.
    let known = world.vault.generated();
    assert!(known.contains_key("/test/site/password"));
    let leak = {
        let state = world.outside.state();
        let machine = state.machines.values().next().expect("a machine");
        let config = String::from_utf8_lossy(&files(machine)["web/config/config.yml"]).into_owned();
        config
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("password: "))
            .expect("a password")
            .to_owned()
    };
    let agent = *world.outside.state().machines.keys().next().expect("a machine");
    world
        .outside
        .state()
        .failing
        .insert("web/0 pre-start".into(), format!("cannot log in with {leak}"));
    world
        .outside
        .state()
        .failing
        .insert("web/1 pre-start".into(), format!("cannot log in with {leak}"));
    let changed = Site {
        greeting: "changed".into(),
        ..site
    };
    let task = life
        .client
        .deploy(changed.manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    let (task, error) = life.failed(task).await;
    assert!(
        error.message.contains("cannot log in with <redacted>"),
        "{}",
        error.message
    );
    let diff = life
        .client
        .diff("site", changed.manifest())
        .await
        .expect("a diff");
    assert!(
        diff.diff.iter().any(|(line, _)| line.contains("<redacted>")),
        "{diff:?}"
    );
    let mut texts = vec![serde_json::to_string(&task).expect("JSON")];
    for id in 1..=task.id {
        for kind in [OutputKind::Event, OutputKind::Debug, OutputKind::Result] {
            texts.push(life.client.whole_output(id, kind).await.expect("output"));
        }
    }
    texts.push(format!("{:?}", life.client.instances("site").await));
    texts.push(format!("{:?}", life.client.variables("site").await));
    for text in &texts {
        assert!(!text.contains(PASSWORD) && !text.contains(AGENT_KEY), "{text}");
    }
    assert!(!agent.to_string().is_empty());
    let url = place.url().to_string();
    life.stop().await;
    let directory = url.trim_start_matches("sqlite:").to_owned();
    let mut seen = 0;
    for entry in fs_err::read_dir(directory)
        .expect("the database")
        .flatten()
        .filter(|entry| entry.path().is_file())
    {
        let bytes = fs_err::read(entry.path()).expect("a file");
        seen += bytes.len();
        for secret in [PASSWORD, AGENT_KEY] {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {:?}", entry.path());
        }
    }
    assert!(seen > 10_000, "the database was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_states_come_from_agents() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    life.deploy(
        &Site {
            instances: 2,
            ..Site::default()
        }
        .manifest(),
    )
    .await;
    let states = life.client.instance_states("site").await.expect("states");
    assert_eq!(states.len(), 2);
    for state in &states {
        assert_eq!(state.job_state.as_deref(), Some("running"));
        assert_eq!(state.processes.as_ref().map(Vec::len), Some(1));
        assert_eq!((state.state.as_str(), state.disk_cids.len()), ("started", 1));
    }
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_are_taken_in_whole_or_not_at_all() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let release = world.dir.path().join("release-1.tgz");
    // Unpacked for machines, read-only, under the digest of its archive.
    let packages = world.instance().packages();
    let names: Vec<_> = fs_err::read_dir(&packages)
        .expect("packages")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names.len(), 1);
    let program = packages.join(names[0].to_str().expect("a name")).join("bin/prog");
    assert_eq!(fs_err::read(&program).expect("the program"), b"prog");
    assert_eq!(
        fs_err::metadata(&program).expect("metadata").permissions().mode() & 0o777,
        0o555
    );
    // Again: nothing happens, and nothing of the upload stays.
    let task = life
        .client
        .upload_release(Upload::File(&release))
        .await
        .expect("an upload");
    life.done(task).await;
    let task = life.client.task(task).await.expect("a task");
    assert_eq!(task.result.as_deref(), Some("Created release 'site/1'"));
    assert_eq!(
        fs_err::read_dir(world.instance().uploads())
            .expect("uploads")
            .count(),
        0
    );
    // What lies there was lost: it comes back.
    fs_err::remove_dir_all(&packages).expect("gone");
    let task = life
        .client
        .upload_release(Upload::File(&release))
        .await
        .expect("an upload");
    life.done(task).await;
    assert!(program.exists());
    // Damaged: refused, and nothing of it is there.
    let mut bytes = fs_err::read(world.release("3", b"x\n")).expect("a release");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let damaged = world.dir.path().join("damaged.tgz");
    fs_err::write(&damaged, bytes).expect("written");
    let task = life
        .client
        .upload_release(Upload::File(&damaged))
        .await
        .expect("an upload");
    life.failed(task).await;
    let releases = life.client.releases().await.expect("releases");
    assert_eq!(releases[0].release_versions.len(), 1);
    // Cut off: of a release that is there, whose manifest at the beginning is whole, it ended "done".
    let whole = fs_err::read(&release).expect("a release");
    for missing in [1, 8, whole.len() / 3] {
        let cut = world.dir.path().join("cut.tgz");
        fs_err::write(&cut, &whole[..whole.len() - missing]).expect("written");
        let upload = life.client.upload_release(Upload::File(&cut)).await;
        let (_, error) = life.failed(upload.expect("an upload")).await;
        let text = &error.message;
        assert!(text.contains("ends in the middle"), "{missing} bytes: {text}");
    }
    // A file of this host is for administrators.
    let uploader = Secret::from(world.token(&["bosh.releases.upload"]));
    let client = Client::new(&life.url, &life.ca, Arc::new(uploader)).expect("a client");
    let refused = client
        .upload_release(Upload::Location(&release))
        .await
        .expect_err("not for uploaders");
    assert!(
        matches!(refused, Error::Refused { status: 403, .. }),
        "{refused:?}"
    );
    // … who are on it. Elsewhere nobody, not even they, learns which files there are.
    let from_elsewhere = async |location: String| {
        let token = world.token(&["bosh.admin"]);
        let mut request = axum::http::Request::post("/releases")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(axum::body::Body::from(json!({"location": location}).to_string()))
            .expect("a request");
        let peer = PeerAddress(([192, 0, 2, 7], 50_000).into());
        request.extensions_mut().insert(peer);
        let Ok(answer) = life.handle.router().oneshot(request).await;
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 10_000)
            .await
            .expect("a body");
        (status.as_u16(), body)
    };
    let absent = from_elsewhere("file:///nonexistent".to_owned()).await;
    assert_eq!(absent.0, 400);
    for location in [
        "file:///etc/shadow",
        &format!("file://{release}"),
        "https://example.com/x",
    ] {
        assert_eq!(from_elsewhere(location.to_owned()).await, absent, "{location}");
    }
    let task = client
        .upload_release(Upload::File(&release))
        .await
        .expect("an upload");
    life.done(task).await;
    // In use: it stays.
    life.deploy(
        &Site {
            instances: 1,
            ..Site::default()
        }
        .manifest(),
    )
    .await;
    let token = world.token(&["bosh.admin"]);
    for path in ["/releases/site?version=1", "/stemcells/tiny/1"] {
        let answer = call(&life, "DELETE", path, Some(&token)).await;
        assert_eq!(answer.status(), StatusCode::FOUND);
        let location = answer.headers()["location"].to_str().expect("text").to_owned();
        let task = location.trim_start_matches("/tasks/").parse().expect("a number");
        let (_, error) = life.failed(task).await;
        assert!(
            error.message.contains("still in use by: site"),
            "{}",
            error.message
        );
    }
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_have_versions() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.start(&place, Faults::default()).await;
    let update = |content: &str, expected: Option<&str>| ConfigUpdate {
        kind: "cloud".into(),
        name: "default".into(),
        content: content.into(),
        expected_latest_id: expected.map(str::to_owned),
    };
    let first = life
        .client
        .update_config(&update(CLOUD, Some("0")))
        .await
        .expect("a config");
    let same = life
        .client
        .update_config(&update(CLOUD, None))
        .await
        .expect("the same");
    assert_eq!(first, same);
    let error = life
        .client
        .update_config(&update("azs: []", Some("0")))
        .await
        .expect_err("too late");
    assert!(matches!(error, Error::Refused { status: 412, .. }), "{error:?}");
    let second = life
        .client
        .update_config(&update(&format!("{CLOUD}disk_types: []\n"), Some(&first.id)))
        .await;
    assert_ne!(second.expect("a config").id, first.id);
    let bad = life
        .client
        .update_config(&update("azs: {}", None))
        .await
        .expect_err("not a list");
    assert!(bad.to_string().contains("azs"), "{bad}");
    assert_eq!(life.client.configs("cloud").await.expect("configs").len(), 1);
    // Two configs are one document: names that are in both are refused.
    let mut other = update(CLOUD, None);
    other.name = "other".into();
    let twice = life
        .client
        .update_config(&other)
        .await
        .expect_err("defined twice");
    assert!(twice.to_string().contains("z1"), "{twice}");
    life.client.delete_config("cloud", "default").await.expect("gone");
    let gone = life
        .client
        .delete_config("cloud", "default")
        .await
        .expect_err("gone already");
    assert_eq!(gone.code(), Some(440_012));
    life.stop().await;
}

/// A caller without rights was told that it is not authenticated, so people logged in again and again.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_and_has_no_right_is_not_sent_to_log_in() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.start(&place, Faults::default()).await;
    let client =
        |token: String| Client::new(&life.url, &life.ca, Arc::new(Secret::from(token))).expect("a client");
    let denied = client(world.token(&["bosh.read"]))
        .set_resurrection(false)
        .await
        .expect_err("not for readers");
    assert_eq!(stolos_base::Classify::class(&denied), stolos_base::Class::Denied);
    assert!(
        denied
            .to_string()
            .contains("Not authorized: one of these scopes is needed: bosh.admin"),
        "{denied}"
    );
    let unknown = client("garbage".to_owned())
        .deployments()
        .await
        .expect_err("nobody known");
    assert_eq!(
        stolos_base::Classify::class(&unknown),
        stolos_base::Class::Unauthenticated
    );
    assert!(
        !unknown
            .to_string()
            .to_lowercase()
            .contains("not authorized: not authorized"),
        "{unknown}"
    );
    // Both are BOSH's 401.
    let answer = call(&life, "PUT", "/resurrection", Some(&world.token(&["bosh.read"]))).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_filtered_and_a_filter_that_is_not_understood_is_refused() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.start(&place, Faults::default()).await;
    life.client.set_resurrection(false).await.expect("off");
    life.client.set_resurrection(true).await.expect("on");
    let token = world.token(&["bosh.admin"]);
    for (query, good) in [
        ("before_time=yesterday", false),
        ("after_time=2026-13-01T00:00:00Z", false),
        ("before_id=x", false),
        ("task=x", false),
        ("before_time=1440318199", true),
        ("after_time=2020-01-02T03:04:05Z", true),
        ("after_time=2020-01-02%2003:04:05%20UTC&user=tester", true),
    ] {
        let answer = call(&life, "GET", &format!("/events?{query}"), Some(&token)).await;
        if good {
            assert_eq!(answer.status(), StatusCode::OK, "{query}");
            let events: Vec<Value> = answer.json().await.expect("JSON");
            let wanted = if query.starts_with("before") { 0 } else { 2 };
            assert_eq!(events.len(), wanted, "{query}: {events:?}");
        } else {
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
            let body: Value = answer.json().await.expect("JSON");
            let name = query.split('=').next().expect("a name");
            let said = body["description"].as_str().expect("a text");
            assert!(said.contains(&format!("invalid parameter '{name}'")), "{said}");
        }
    }
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancelled_a_task_is_known() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    world.outside.state().hanging = vec!["web/0 pre-start".into()];
    let options = stolos_api::director::DeployOptions::default();
    let task = life
        .client
        .deploy(&Site::default().manifest(), &options)
        .await
        .expect("a task");
    life.client.cancel_task(task).await.expect("it is asked to end");
    let _ = life.client.follow(task, |_| {}).await;
    let ended = life.client.task(task).await.expect("the task");
    assert_eq!(ended.cancelled_by.as_deref(), Some("tester"), "{ended:?}");
    let events = life.client.events(Some("site"), None).await.expect("events");
    let told = events
        .iter()
        .find(|event| event.action == "cancel")
        .expect("an event");
    assert_eq!(
        (told.user.as_str(), told.object_name.clone()),
        ("tester", task.to_string())
    );
    world.outside.state().hanging.clear();
    life.stop().await;
}

/// A deploy on the second of two overlapping networks tried the first one's addresses every two seconds, for ever, and held its lock.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_networks_are_refused_and_older_ones_never_share_an_address() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let second = |reserved: &str| ConfigUpdate {
        kind: "cloud".into(),
        name: "second".into(),
        content: format!(
            "networks:\n- name: second\n  type: manual\n  subnets:\n  - {{range: 10.1.0.0/25, gateway: 10.1.0.1, dns: [], azs: [z1], \
             reserved: [{reserved}], cloud_properties: {{segment: c2}}}}\n"
        ),
        expected_latest_id: None,
    };
    let refused = life
        .client
        .update_config(&second(""))
        .await
        .expect_err("they overlap")
        .to_string();
    for word in ["'default' (10.1.0.0/24)", "'second' (10.1.0.0/25)", "10.1.0.2"] {
        assert!(refused.contains(word), "{refused}");
    }
    life.client
        .update_config(&second("10.1.0.2-10.1.0.126"))
        .await
        .expect("one that hands out nothing of the other's");
    life.client.delete_config("cloud", "second").await.expect("gone");
    // One from before this was refused.
    let mut tx = life.db.begin("an old config").await.expect("a transaction");
    stolos_store::query(
        "INSERT INTO configs (id, kind, name, content, created_at) VALUES (1000, 'cloud', 'second', $1, 0)",
    )
    .bind(second("").content)
    .execute(tx.conn())
    .await
    .expect("a row");
    tx.commit().await.expect("written");
    life.deploy(&Site::default().manifest()).await;
    let manifest = Site::default().manifest();
    let other = manifest
        .replace("name: site\nreleases", "name: other\nreleases")
        .replace("networks: [{name: default}]", "networks: [{name: second}]");
    life.deploy(&other).await;
    let mut addresses: Vec<String> = Vec::new();
    for deployment in ["site", "other"] {
        let instances = life.client.instances(deployment).await.expect("instances");
        addresses.extend(instances.into_iter().flat_map(|instance| instance.ips));
    }
    addresses.sort();
    let all = addresses.len();
    addresses.dedup();
    assert_eq!((all, addresses.len()), (6, 6), "{addresses:?}");
    life.stop().await;
}
