//! A cluster's etcd is saved while it runs, and restored: in all members at once, however often it is killed on the way.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use serde_json::json;
use stolos_base::pki::{Authority, Identity, Leaf, Usage};
use stolos_kubernetes::snapshot::{EtcdMember, MemberStatus};
use tokio::io::AsyncReadExt as _;

use crate::world::{JOB, World, built};

/// What is served, for whoever asks.
struct Manager {
    url: String,
    ca: String,
    body: Arc<Mutex<Vec<u8>>>,
}

impl Manager {
    fn start(body: Vec<u8>) -> Self {
        let now = stolos_base::Clock::system().now();
        let ca = Authority::root("manager", Duration::from_secs(3600), now).expect("a CA");
        let mut leaf = Leaf::new("manager", Usage::Server);
        leaf.addresses = vec![[127, 0, 0, 1].into()];
        let identity = ca.issue(&leaf, now).expect("a certificate");
        let tls = stolos_base::tls::server(&identity, stolos_base::tls::Clients::Any).expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let body = Arc::new(Mutex::new(body));
        let served = Arc::clone(&body);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(connection) = rustls::ServerConnection::new(Arc::clone(&tls)) else {
                    return;
                };
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let (mut request, mut part) = (Vec::new(), [0_u8; 4096]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(n) if n > 0 => request.extend_from_slice(&part[..n]),
                        _ => break,
                    }
                }
                let body = served.lock().expect("no panic").clone();
                // A client that was killed in the middle is no business of the others.
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
                let _ = stream.write_all(&body);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Self {
            url: format!("https://{address}/clusters/backup?st=secret"),
            ca: ca.certificate().to_owned(),
            body,
        }
    }
}

impl World {
    fn member(&self, n: usize) -> EtcdMember {
        let read = |name: &str| fs_err::read_to_string(self.path(name)).expect("a file");
        let identity = Identity {
            certificate: read("0.pem"),
            key: read("0.key").into(),
        };
        EtcdMember::new(&self.address(n), &read("ca.pem"), &identity).expect("a client")
    }

    /// What a backup takes.
    fn snapshot(&self, n: usize) -> (MemberStatus, Vec<u8>) {
        stolos_base::tls::install_provider();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let member = self.member(n);
            let status = member.status().await.expect("a state");
            let mut bytes = Vec::new();
            let mut reader = member.snapshot().await.expect("a snapshot");
            reader.read_to_end(&mut bytes).await.expect("all of it");
            (status, bytes)
        })
    }

    fn wish(&self, id: &str, manager: &Manager, bytes: &[u8]) {
        let wish = json!({
            "id": id,
            "seed": "master-0",
            "url": manager.url,
            "ca": manager.ca,
            "sha256": hex::encode(digest::digest(&digest::SHA256, bytes)),
            "size": bytes.len(),
            "bump_revision": 1_000_000_000_u64,
        });
        fs_err::write(self.path("restore.json"), wish.to_string()).expect("a file");
    }

    fn restore_command(&self, n: usize, more: &[&str]) -> Command {
        fs_err::create_dir_all(self.path(&format!("data-{n}"))).expect("a directory");
        let mut command = Command::new(JOB);
        command
            .arg("etcd-restore")
            .args(self.words(n))
            .arg(format!("--from={}", self.path("restore.json")))
            .arg(format!("--etcdutl={}", built("etcdutl").expect("it is built")))
            .args(more)
            .stdin(Stdio::null());
        command
    }

    fn restore(&self, n: usize, more: &[&str]) -> Output {
        self.restore_command(n, more).output().expect("stolos-job runs")
    }

    #[track_caller]
    fn restored(&self, n: usize, more: &[&str]) {
        let output = self.restore(n, more);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn revision(&self, n: usize) -> i64 {
        let text = self
            .ctl(n, &["get", "key", "--write-out=json"])
            .expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        answer["header"]["revision"].as_i64().expect("a number")
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cluster_is_restored_in_place() {
    let Some(mut world) = World::new(11, 3) else {
        return;
    };
    if built("etcdutl").is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: no etcdutl is built");
        return;
    }
    for n in 0..3 {
        world.start(n, 0);
    }
    world.write(0, "first");
    world.whole("first");
    let (status, bytes) = world.snapshot(1);
    assert_eq!(status.voters, 3);
    assert!(
        status.revision > 1 && status.version.starts_with("3."),
        "{status:?}"
    );
    let (database, trailer) = bytes.split_at(bytes.len() - 32);
    assert_eq!(
        digest::digest(&digest::SHA256, database).as_ref(),
        trailer,
        "etcd's own digest is behind its database"
    );
    world.write(0, "second");
    world.ctl(0, &["put", "later", "x"]).expect("a write");
    let before = world.revision(0);

    // What is wrong with the backup is found while the cluster runs, and changes nothing.
    let manager = Manager::start(bytes.clone());
    world.wish("restore-1", &manager, b"something else");
    let error = text(&world.restore(0, &["--prepare", "--patience=0"]));
    assert!(error.contains("is not the backup"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    world.wish("restore-1", &manager, &bytes);
    bytes[..10_000].clone_into(&mut manager.body.lock().expect("no panic"));
    let error = text(&world.restore(0, &["--prepare", "--patience=0"]));
    assert!(error.contains("cut off after 10000 of"), "{error}");
    let mut foreign = bytes.clone();
    foreign[9_000] ^= 1;
    *manager.body.lock().expect("no panic") = foreign.clone();
    let error = text(&world.restore(0, &["--prepare", "--patience=0"]));
    assert!(error.contains("another digest"), "{error}");
    // Whoever vouches for damage is told by etcdutl.
    world.wish("restore-1", &manager, &foreign);
    let error = text(&world.restore(0, &["--prepare", "--patience=0"]));
    assert!(error.contains("etcdutl did not restore"), "{error}");
    world.whole("second");

    // Laid ready beside the running member, all held, then each does its part; killed at whatever moment, again.
    *manager.body.lock().expect("no panic") = bytes.clone();
    world.wish("restore-1", &manager, &bytes);
    for n in 0..3 {
        world.restored(n, &["--prepare"]);
    }
    world.whole("second");
    for n in 0..3 {
        world.kill(n);
    }
    for n in 0..3 {
        world.restored(n, &[]);
        world.restored(n, &[]);
    }
    assert!(world.data(1).join("member.before-restore").exists());
    // Whatever the order of their starts.
    for n in [1, 2, 0] {
        world.start(n, 0);
    }
    world.whole("first");
    assert_eq!(world.ctl(2, &["get", "later"]), Ok(String::new()));
    let after = world.revision(2);
    assert!(after >= before + 900_000_000, "{before} became {after}");
    // Who watched what was is told that it is over, and does not miss anything.
    let from = format!("--rev={}", before + 1);
    let watched = world
        .ctl(1, &["watch", "key", &from])
        .unwrap_or_else(|error| error);
    assert!(watched.contains("compacted"), "{watched}");

    // A machine that is made anew joins the others, whose data is newer than the backup: the seed's, too.
    for n in [1, 0] {
        world.write(2, &format!("written before {n} is lost"));
        world.kill(n);
        world.lose_data(n);
        world.restored(n, &[]);
        world.start(n, 0);
        world.whole(&format!("written before {n} is lost"));
    }
}

#[test]
fn a_restore_that_is_killed_again_and_again_comes_to_its_end() {
    let Some(mut world) = World::new(12, 1) else {
        return;
    };
    if built("etcdutl").is_none() {
        return;
    }
    world.start(0, 0);
    world.write(0, "first");
    world.whole("first");
    let (_, bytes) = world.snapshot(0);
    let manager = Manager::start(bytes.clone());
    for round in 0..3 {
        world.write(0, &format!("second {round}"));
        world.kill(0);
        world.wish(&format!("restore-{round}"), &manager, &bytes);
        let mut wait = 1;
        loop {
            let mut child = world
                .restore_command(0, &[])
                .stderr(Stdio::null())
                .spawn()
                .expect("stolos-job starts");
            std::thread::sleep(Duration::from_millis(wait));
            // Either it has ended, or it is killed; whatever etcdutl is at goes on without it for a moment, as after a crash of the agent.
            let ended = child.try_wait().expect("a child");
            let _ = child.kill();
            let status = child.wait().expect("a child");
            if ended.is_some() && status.success() {
                break;
            }
            wait += 7 + round * 3;
            assert!(wait < 60_000, "it never ends");
        }
        world.start(0, 0);
        world.whole("first");
    }
}
