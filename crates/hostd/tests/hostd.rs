//! `stolos-hostd` as a process on this host: needs root, the host's programs and the probe of `cpi-host`'s tests, else it says
//! why it skips.
#![allow(clippy::print_stderr, reason = "skips are told on stderr")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use rustix::process::{Pid, Signal, kill_process};
use stolos_base::ids::{AgentId, random_hex};
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::{Clock, IdSource, Instance, poll};
use stolos_cpi::{CloudProperties, CreateVm, Network, Networks, StemcellCid, VmCid};
use stolos_cpi_host::{Config, Host};
use stolos_network::hostd_client::{HostNetwork, HostdClient, Managers, VirtualAddress};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Bench {
    dir: Utf8TempDir,
    host: Host,
    subnet: [u8; 2],
    hostd: Option<Child>,
}

fn probe() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_BIN_EXE_stolos-hostd")).with_file_name("stolos-machine-probe")
}

fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    if !probe().exists() {
        return Some("`stolos-machine-probe` is not built: `cargo build -p stolos-cpi-host`".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let is_missing = |program: &&str| {
        !path
            .split(':')
            .any(|dir| Utf8Path::new(dir).join(program).exists())
    };
    let missing: Vec<&str> = ["runc", "nft", "losetup", "tar"]
        .into_iter()
        .filter(is_missing)
        .collect();
    (!missing.is_empty()).then(|| format!("missing programs: {}", missing.join(", ")))
}

impl Bench {
    fn new() -> Option<Self> {
        if let Some(why) = why_not() {
            eprintln!("skipped: {why}");
            return None;
        }
        let dir = camino_tempfile::tempdir().expect("a directory");
        let random = random_hex(3);
        let second = u8::from_str_radix(&random[..2], 16).expect("hex") % 50 + 140;
        let instance = Instance {
            name: format!("h{random}").parse().expect("a name"),
            root: dir.path().join("instance"),
        };
        let config = Config::new(instance);
        stolos_base::files::write_json(&dir.path().join("config.json"), &config, 0o600)
            .expect("a configuration");
        let third = u8::from_str_radix(&random[2..4], 16).expect("hex");
        Some(Self {
            dir,
            host: Host::new(config, IdSource::random()),
            subnet: [second, third],
            hostd: None,
        })
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet[0], self.subnet[1], last)
    }

    fn start(&mut self) -> HostdClient {
        let child = Command::new(env!("CARGO_BIN_EXE_stolos-hostd"))
            .args(["--config", self.dir.path().join("config.json").as_str()])
            .stdin(Stdio::null())
            .spawn()
            .expect("stolos-hostd");
        self.hostd = Some(child);
        let client = HostdClient::new(&self.host.instance().hostd_socket()).expect("a client");
        until("the socket", || async {
            client
                .machines()
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        });
        client
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.hostd.take() {
            child.kill().expect("killed");
            child.wait().expect("its end");
        }
    }

    fn stemcell(&self) -> StemcellCid {
        let root = self.dir.path().join("root");
        for dir in ["sbin", "etc", "var"] {
            fs_err::create_dir_all(root.join(dir)).expect("a directory");
        }
        fs_err::copy(probe(), root.join("sbin/init")).expect("init");
        fs_err::set_permissions(root.join("sbin/init"), std::fs::Permissions::from_mode(0o755))
            .expect("a mode");
        let image = self.dir.path().join("image");
        let made = Command::new("tar")
            .args(["-C", root.as_str(), "-cf", image.as_str(), "."])
            .status()
            .expect("tar");
        assert!(made.success());
        self.host.create_stemcell(&image).expect("a stemcell")
    }

    fn machine(&self, stemcell: &StemcellCid, last: u8) -> VmCid {
        let mut properties = CloudProperties::new();
        properties.insert("cpu".to_owned(), 1.into());
        properties.insert("ram".to_owned(), 128.into());
        let mut segment = CloudProperties::new();
        segment.insert("segment".to_owned(), "c1".into());
        let network = Network {
            kind: Some("manual".to_owned()),
            ip: Some(self.address(last).to_string()),
            netmask: Some("255.255.255.0".to_owned()),
            gateway: Some(self.address(1).to_string()),
            cloud_properties: segment,
            ..Network::default()
        };
        let request = CreateVm {
            agent_id: AgentId::new(&IdSource::random()),
            stemcell: stemcell.clone(),
            cloud_properties: properties,
            networks: Networks::from_iter([("default".to_owned(), network)]),
            disks: vec![],
            env: Default::default(),
        };
        self.host.create_vm(&request).expect("a machine").0
    }

    fn pids(&self, machines: &[VmCid]) -> Vec<Option<i32>> {
        machines
            .iter()
            .map(|cid| self.host.init(cid).expect("a record").map(|init| init.pid))
            .collect()
    }

    fn end_all(&self, machines: &[VmCid]) -> Vec<Option<i32>> {
        let before = self.pids(machines);
        for pid in before.iter().flatten() {
            kill_process(Pid::from_raw(*pid).expect("a pid"), Signal::KILL).expect("killed");
        }
        before
    }

    fn all_back(&self, machines: &[VmCid], before: &[Option<i32>]) {
        until("all machines", || async {
            let now = self.pids(machines);
            let are_new = now
                .iter()
                .zip(before)
                .all(|(now, before)| now.is_some() && now != before);
            if are_new { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut child) = self.hostd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = self.host.destroy_all() {
            eprintln!("failed to clean up: {}", stolos_base::chain(&error));
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(future)
}

fn until<F: Future<Output = Result<(), String>>>(what: &str, condition: impl FnMut() -> F) {
    block_on(poll::until(
        what,
        Duration::from_millis(20),
        Duration::from_secs(60),
        condition,
    ))
    .expect("in time");
}

fn ask(address: Ipv4Addr, command: &str) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let to = std::net::SocketAddr::from((address, 7));
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn machines_come_back_with_their_disks() {
    let Some(mut bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    let client = bench.start();
    let machines: Vec<VmCid> = (2..=4).map(|last| bench.machine(&stemcell, last)).collect();
    let disk = bench
        .host
        .create_disk(16, &CloudProperties::new(), None)
        .expect("a disk");
    bench.host.attach_disk(&machines[0], &disk).expect("attached");
    until("the watch", || async {
        let seen = client.machines().await.map_err(|error| error.to_string())?;
        if seen.len() == 3 && seen.iter().all(|m| m.pid.is_some()) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });

    let before = bench.end_all(&machines);
    bench.all_back(&machines, &before);
    until("the disk", || async {
        match ask(bench.address(2), &format!("exists /dev/stolos/{disk}")) {
            Ok(answer) if answer == "true" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // It has started these itself, so it watches them.
    let told = block_on(client.events(0, Duration::ZERO))
        .expect("events")
        .last()
        .map_or(0, |event| event.number);
    let before = bench.end_all(&machines);
    bench.all_back(&machines, &before);
    let events = block_on(client.events(told, Duration::ZERO)).expect("events");
    for cid in &machines {
        assert!(
            events
                .iter()
                .any(|e| e.what == "exited" && e.cid == cid.to_string()),
            "{events:?}"
        );
    }

    // As after a reboot of the host: nobody is there, then stolos-hostd is started.
    bench.kill();
    let before = bench.end_all(&machines);
    bench.start();
    bench.all_back(&machines, &before);

    // What was switched off stays off.
    bench.host.power_off(&machines[2]).expect("off");
    let before = bench.end_all(&machines[..2]);
    bench.all_back(&machines[..2], &before);
    assert_eq!(bench.pids(&machines[2..]), [None]);
}

#[test]
fn an_address_leads_to_machines_also_from_their_own_segment() {
    let Some(mut bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    let client = bench.start();
    bench.machine(&stemcell, 2);
    bench.machine(&stemcell, 3);
    // The host's own network next to the machines' one; both are this test's.
    let [second, third] = bench.subnet;
    let host = Ipv4Addr::new(10, second, third ^ 1, 1);
    let virtual_address = Ipv4Addr::new(10, second, third ^ 1, 10);
    let network = HostNetwork {
        address: format!("{host}/24").parse().expect("a network"),
    };
    let wanted = VirtualAddress {
        cluster: "c".to_owned(),
        port: 7,
        backends: vec![SocketAddrV4::new(bench.address(2), 7)],
        ca: None,
    };
    block_on(client.put_host_network(&network)).expect("the host's network");
    block_on(client.put_virtual_address(virtual_address, &wanted)).expect("an address");
    until("the address", || async {
        ask(virtual_address, "report")
            .map(drop)
            .map_err(|error| error.to_string())
    });
    for (from, who) in [(3, "a neighbour"), (2, "the machine itself")] {
        let answer = ask(bench.address(from), &format!("connect {virtual_address}:7"));
        assert_eq!(
            answer.map_err(|error| error.to_string()),
            Ok("ok".to_owned()),
            "from {who}"
        );
    }
    // It works on after its death and without being told again.
    bench.kill();
    assert!(
        ask(virtual_address, "report").is_ok(),
        "rules outlive the process"
    );
    let client = bench.start();
    assert!(ask(virtual_address, "report").is_ok());
    block_on(client.delete_virtual_address(virtual_address)).expect("deleted");
    assert!(
        ask(virtual_address, "report").is_err(),
        "a deleted address leads nowhere"
    );
    assert_eq!(block_on(client.virtual_addresses()).expect("addresses"), []);
}

#[test]
fn a_dead_backend_gets_no_connections() {
    let Some(mut bench) = Bench::new() else { return };
    let client = bench.start();
    let network = HostNetwork {
        address: format!("{}/24", bench.address(1)).parse().expect("a network"),
    };
    block_on(client.put_host_network(&network)).expect("the host's network");
    let virtual_address = bench.address(10);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for last in [2, 3] {
        bench
            .host
            .add_host_address(bench.address(last))
            .expect("an address");
    }
    let wanted = VirtualAddress {
        cluster: "c".to_owned(),
        port: 8443,
        backends: [2, 3]
            .map(|last| SocketAddrV4::new(bench.address(last), 8443))
            .into(),
        ca: None,
    };
    block_on(client.put_virtual_address(virtual_address, &wanted)).expect("an address");
    let active = |expect: &[u8]| {
        let expect: Vec<SocketAddrV4> = expect
            .iter()
            .map(|last| SocketAddrV4::new(bench.address(*last), 8443))
            .collect();
        until("the backends", || async {
            let all = client
                .virtual_addresses()
                .await
                .map_err(|error| error.to_string())?;
            if all[0].active == expect {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
    };
    // One after the other, so that each state is one that probes have found.
    let first = runtime.block_on(serve(bench.address(2), 8443));
    active(&[2]);
    let _second = runtime.block_on(serve(bench.address(3), 8443));
    active(&[2, 3]);
    first.cancel();
    active(&[3]);
    let tls = stolos_base::tls::client_without_verification().expect("TLS");
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .pool_max_idle_per_host(0)
        .no_proxy();
    let http = http.timeout(Duration::from_secs(5)).build().expect("a client");
    let call = || async {
        let url = format!("https://{virtual_address}:8443/readyz");
        http.get(url).send().await?.text().await
    };
    // The list is ahead of the rules for as long as `nft` takes; with the old ones every other call would meet the dead one.
    let living = bench.address(3).to_string();
    until("the rules", || async {
        for _ in 0..10 {
            match call().await {
                Ok(answer) if answer == living => {}
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    });
}

/// Several managers behind the host's own address: at each of their ports it leads to one that answers, also after a restart of
/// `stolos-hostd`, and to the host itself when there are none any more.
#[test]
fn the_host_s_address_leads_to_a_manager_that_answers() {
    const PORTS: [u16; 2] = [9021, 8443];
    let Some(mut bench) = Bench::new() else { return };
    let client = bench.start();
    let (host, subnet) = (bench.address(1), bench.subnet);
    let wanted = Managers {
        ports: PORTS.to_vec(),
        addresses: vec![bench.address(2), bench.address(3)],
    };
    let early = block_on(client.put_managers(&wanted)).expect_err("there is no network yet");
    assert!(early.to_string().contains("network"), "{early}");
    let network = HostNetwork {
        address: format!("{host}/24").parse().expect("a network"),
    };
    block_on(client.put_host_network(&network)).expect("the host's network");
    let foreign = Managers {
        addresses: vec![host],
        ..wanted.clone()
    };
    assert!(
        block_on(client.put_managers(&foreign)).is_err(),
        "its own address"
    );
    for _ in 0..2 {
        block_on(client.put_managers(&wanted)).expect("managers");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let both = |last: u8| -> Vec<CancellationToken> {
        // The port that is asked comes last, as in a manager.
        let (address, ports) = (Ipv4Addr::new(10, subnet[0], subnet[1], last), PORTS.iter().rev());
        ports
            .map(|port| runtime.block_on(serve(address, *port)))
            .collect()
    };
    let active = |client: &HostdClient, expect: &[Ipv4Addr]| {
        until("the managers", || async {
            let status = client.managers().await.map_err(|error| error.to_string())?;
            if status.active == expect {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        });
    };
    let first = both(2);
    active(&client, &wanted.addresses[..1]);
    let _second = both(3);
    active(&client, &wanted.addresses);
    let began = std::time::Instant::now();
    first.iter().for_each(CancellationToken::cancel);
    active(&client, &wanted.addresses[1..]);
    eprintln!("a manager that is gone was out after {:?}", began.elapsed());
    let tls = stolos_base::tls::client_without_verification().expect("TLS");
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .pool_max_idle_per_host(0)
        .no_proxy();
    let http = http.timeout(Duration::from_secs(5)).build().expect("a client");
    let call = |port: u16| {
        let http = http.clone();
        async move {
            http.get(format!("https://{host}:{port}/readyz"))
                .send()
                .await?
                .text()
                .await
        }
    };
    let other = wanted.addresses[1].to_string();
    let leads_there = || {
        // The list is ahead of the rules for as long as `nft` takes.
        until("the rules", || async {
            for port in PORTS.repeat(5) {
                match call(port).await {
                    Ok(answer) if answer == other => {}
                    wrong => return Err(format!("{wrong:?}")),
                }
            }
            Ok(())
        });
    };
    leads_there();
    // It remembers.
    bench.kill();
    leads_there();
    let client = bench.start();
    active(&client, &wanted.addresses[1..]);
    leads_there();
    assert_eq!(
        block_on(client.managers()).expect("managers").wanted,
        Some(wanted)
    );

    for _ in 0..2 {
        block_on(client.delete_managers()).expect("deleted");
    }
    assert_eq!(block_on(client.managers()).expect("none").wanted, None);
    let own = runtime.block_on(serve(host, PORTS[0]));
    let answer = runtime
        .block_on(call(PORTS[0]))
        .expect("an answer of the host's own");
    assert_eq!(answer, host.to_string());
    own.cancel();
}

/// An API server, as far as a probe sees it: answers with its own address.
async fn serve(address: Ipv4Addr, port: u16) -> CancellationToken {
    let now = Clock::system().now();
    let authority = Authority::root("test", Duration::from_secs(3600), now).expect("an authority");
    let identity = authority
        .issue(&Leaf::new("test", Usage::Server), now)
        .expect("an identity");
    let tls = stolos_base::tls::server(&identity, stolos_base::tls::Clients::Any).expect("TLS");
    let listener = TcpListener::bind((address, port)).await.expect("a socket");
    let router = Router::new().route("/readyz", get(move || async move { address.to_string() }));
    let stop = CancellationToken::new();
    let until = stop.clone();
    stolos_base::task::spawn(stolos_base::task::Kind::Service, "backend", async move {
        stolos_base::http::serve_tls(listener, tls, router, until).await;
        Ok::<(), std::convert::Infallible>(())
    });
    stop
}
