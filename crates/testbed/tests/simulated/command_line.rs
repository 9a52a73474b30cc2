//! How the command line behaves, beside what it says: through proxies, when it is interrupted.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use camino_tempfile::Utf8TempDir;
use rustix::process::{Pid, Signal, kill_process};
use stolos_store::testing::Place;
use stolos_testbed::programs;
use stolos_testbed::simulated::Simulation;
use tokio_util::sync::CancellationToken;

/// Somebody's machine, from which an installation is used.
struct Desk {
    home: Utf8TempDir,
    proxy: Option<String>,
}

impl Desk {
    fn new(simulation: &Simulation) -> Self {
        let home = camino_tempfile::tempdir().expect("a home directory");
        let access = simulation.access();
        fs_err::write(home.path().join("ca.pem"), &access.ca).expect("a file");
        fs_err::write(home.path().join("password"), &access.password).expect("a file");
        Self { home, proxy: None }
    }

    fn starts(&self, line: &str) -> Child {
        let mut command = Command::new(programs::ours("stolos"));
        command
            .args(line.split_whitespace())
            .current_dir(self.home.path())
            .env_clear()
            .env("HOME", self.home.path())
            .envs(self.proxy.iter().map(|proxy| ("https_proxy", proxy)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("the program runs")
    }

    async fn runs(&self, line: &str) -> Output {
        let child = self.starts(line);
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = ended.await.expect("it was waited for").expect("its output");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {said}");
        output
    }
}

impl Desk {
    async fn logs_in(&self, simulation: &Simulation) {
        let api = &simulation.access().api;
        self.runs(&format!(
            "login -a {api} -u admin --password-file password --ca-cert ca.pem"
        ))
        .await;
    }

    async fn reads(&self, line: &str) -> serde_json::Value {
        serde_json::from_slice(&self.runs(line).await.stdout).expect("JSON")
    }
}

async fn world() -> (Simulation, (Utf8TempDir, Place)) {
    let directory = camino_tempfile::tempdir().expect("a directory");
    let place = Place::sqlite();
    let simulation = Simulation::start(directory.path(), place.url().clone())
        .await
        .expect("an installation");
    (simulation, (directory, place))
}

/// PKS's command line went through the proxy of the environment, and ours tried to go past it. What is on this host, here the token service,
/// is never reached through one.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_reached_through_a_proxy() {
    let (simulation, _directories) = world().await;
    let mut desk = Desk::new(&simulation);
    let api: SocketAddr = simulation
        .access()
        .api
        .trim_start_matches("https://")
        .parse()
        .expect("an address");
    // A name that nobody but the proxy knows.
    let name = format!("api.stolos.test:{}", api.port());
    let proxy = Proxy::start(api);
    desk.proxy = Some(format!("http://{}", proxy.address));
    desk.runs(&format!("login -a {name} -u admin --password-file password -k"))
        .await;
    let plans = desk.runs("plans").await;
    assert!(String::from_utf8_lossy(&plans.stdout).contains("small"));
    assert_eq!(proxy.asked(), BTreeSet::from([name]));
    simulation.stop().await;
}

/// Who pressed Ctrl-C during a long creation got the whole cluster printed, and scripts took it for the made one.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_prints_how_to_go_on_and_nothing_else() {
    let (simulation, _directories) = world().await;
    let stuck = CancellationToken::new();
    simulation
        .machines
        .state()
        .stuck
        .insert("stuck".to_owned(), stuck.clone());
    let desk = Desk::new(&simulation);
    let api = simulation.access().api.clone();
    desk.runs(&format!(
        "login -a {api} -u admin --password-file password --ca-cert ca.pem"
    ))
    .await;
    let mut child = desk.starts("create-cluster demo -e demo.test -p small --tags kind:stuck --wait");
    let followed = tokio::task::spawn_blocking(move || {
        let mut said = BufReader::new(child.stderr.take().expect("its words"));
        let mut text = String::new();
        // From its first step on, it is being followed.
        while !text.contains("Lease network") {
            assert_ne!(said.read_line(&mut text).expect("a line"), 0, "{text}");
        }
        kill_process(Pid::from_child(&child), Signal::INT).expect("a signal");
        said.read_to_string(&mut text).expect("the rest");
        let output = child.wait_with_output().expect("its end");
        (text, output)
    });
    let (said, output) = followed.await.expect("it was followed");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{said}");
    assert!(
        said.contains("the operation goes on") && said.contains("--follow"),
        "{said}"
    );
    stuck.cancel();
    simulation.stop().await;
}

/// What the first lines of `examples/etcd` say works, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_deploys_the_example() {
    let (simulation, _directories) = world().await;
    let desk = Desk::new(&simulation);
    desk.logs_in(&simulation).await;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/etcd");
    desk.runs(&format!(
        "deploy {examples}/manifest.yml --cloud-config {examples}/cloud-config.yml --non-interactive"
    ))
    .await;
    let instances = desk.reads("instances etcd --json").await;
    let states = instances.as_array().into_iter().flatten();
    assert_eq!(
        states.filter(|one| one["job_name"] == "member").count(),
        3,
        "{instances}"
    );
    desk.runs("delete-deployment etcd --non-interactive --wait").await;
    assert_eq!(desk.reads("deployments --json").await, serde_json::json!([]));
    simulation.stop().await;
}

/// Certificates of workers that a resize had removed were listed, and renewed, until they ended.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_removed_worker_are_gone() {
    let (simulation, _directories) = world().await;
    let desk = Desk::new(&simulation);
    desk.logs_in(&simulation).await;
    desk.runs("create-cluster demo -e demo.test -p small -n 2 --wait --non-interactive")
        .await;
    let of = async |node: &str| {
        let listed = desk.reads("certificates demo --days 100000 --json").await;
        let names = listed
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["name"].as_str());
        names.filter(|name| name.ends_with(node)).count()
    };
    let (of_first, of_second) = (of("worker-0").await, of("worker-1").await);
    assert!(
        of_first > 0 && of_first == of_second,
        "{of_first} and {of_second}"
    );
    desk.runs("resize demo -n 1 --wait --non-interactive").await;
    assert_eq!((of("worker-0").await, of("worker-1").await), (of_first, 0));
    simulation.stop().await;
}

/// A proxy that connects to one address, whatever it is asked for.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Proxy {
    fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&asked);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                thread::spawn(move || {
                    // A connection that breaks is the business of the two ends.
                    let _ = tunnel(client, target, &noted);
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tunnel(client: TcpStream, target: SocketAddr, noted: &Mutex<BTreeSet<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let name = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    noted
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(name.unwrap_or(&head).to_owned());
    let server = TcpStream::connect(target)?;
    let mut to_client = client.try_clone()?;
    to_client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_server) = (server.try_clone()?, server);
    let back = thread::spawn(move || {
        let copied = std::io::copy(&mut from_server, &mut to_client);
        // The other side hears of the end, if it is still there.
        let _ = to_client.shutdown(Shutdown::Write);
        copied
    });
    std::io::copy(&mut reader, &mut to_server)?;
    // As above.
    let _ = to_server.shutdown(Shutdown::Write);
    back.join().ok();
    Ok(())
}
