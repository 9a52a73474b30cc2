//! The real server: who gets in, and what happens when either it or we die.

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use common::{LIMIT, TICK, World, authority, simulated_agent};
use rustix::process::Signal;
use stolos_base::{Class, Classify as _, Clock, poll};
use stolos_mbus::rights::Peer;
use stolos_mbus::{AgentDirectory, AuthCallout, Bus, NatsServer, NatsTransport, Transport, server};

/// The connection is turned away: after a line of the server's log says so, the link is still down.
async fn assert_refused(world: &World, config: &stolos_mbus::nats::Config, log_line: &str) {
    let before = lines(world, log_line);
    let transport = NatsTransport::connect(config).await.expect("a transport");
    poll::until("the refusal", TICK, LIMIT, || async {
        // Twice: the client has come back after the first refusal, and has not got in.
        if lines(world, log_line) >= before + 2 {
            Ok(())
        } else {
            Err(format!("no `{log_line}` in the log"))
        }
    })
    .await
    .expect("the server says so");
    let link = *transport.link().borrow();
    assert!(!link.up && link.epoch == 0, "{link:?}");
}

fn lines(world: &World, text: &str) -> usize {
    let log = fs_err::read_to_string(world.directory.path().join("nats.log")).unwrap_or_default();
    log.lines().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn only_known_peers_with_our_certificate_get_in() {
    let Some(mut world) = World::new() else { return };
    let server = world.server().await;
    let callout = world.callout().await;
    let mut presence = callout.presence();

    let agent = world.agent_id();
    let name = Peer::Agent(agent).to_string();
    let config = world.client_config(&world.ca, &name);
    assert_refused(&world, &config, "is not a known agent").await;
    let config = world.client_config(&world.ca, "somebody");
    assert_refused(&world, &config, "belongs to nobody on the bus").await;
    let stranger = authority();
    let config = world.client_config(&stranger, "default.director.bosh-internal");
    assert_refused(&world, &config, "TLS handshake error").await;

    // Without a certificate.
    let mut config = stolos_base::tls::client(world.ca.certificate(), None).expect("a configuration");
    config.alpn_protocols.clear();
    let before = lines(&world, "TLS handshake error");
    let options = async_nats::ConnectOptions::new()
        .require_tls(true)
        .tls_client_config(config);
    options
        .connect(server.url())
        .await
        .expect_err("no certificate, no connection");
    poll::until("the refusal", TICK, LIMIT, || async {
        if lines(&world, "TLS handshake error") > before {
            Ok(())
        } else {
            Err("not logged".to_owned())
        }
    })
    .await
    .expect("the server says so");

    // A server of another CA is not believed.
    let mut config = world.client_config(&world.ca, &name);
    config.ca = stranger.certificate().to_owned();
    assert_refused(&world, &config, "TLS handshake error").await;

    // What was refused gets in once it is known, by itself; and its end is noticed.
    let waiting = world.begin(Peer::Agent(agent)).await;
    world.known.0.lock().expect("not poisoned").insert(agent);
    tokio::time::timeout(LIMIT, waiting.ready())
        .await
        .expect("in time")
        .expect("connected");
    drop(waiting);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let change = tokio::time::timeout(LIMIT, presence.recv())
            .await
            .expect("in time")
            .expect("a change");
        if change.peer == Peer::Agent(agent) {
            seen.push(change.connected);
        }
    }
    assert_eq!(seen, [true, false]);
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_killed_server_comes_back_and_everybody_with_it() {
    let Some(mut world) = World::new() else { return };
    let server = world.server().await;
    let _callout = world.callout().await;
    let agent = world.agent_id();
    let bus = Bus::start(world.connect(Peer::Director).await, world.ids.clone())
        .await
        .expect("a bus");
    let script = simulated_agent(world.connect(Peer::Agent(agent)).await, agent).await;
    let client = bus.agent(agent, "worker/1");
    client.ping().await.expect("pong");

    let killed = server.process();
    killed.signal(Signal::KILL).expect("killed");
    // Asked while there is no server: answered when there is one.
    client.ping().await.expect("pong after the restart");
    let asked = script.count("start");
    client.start_jobs().await.expect("started");
    assert_eq!(script.count("start"), asked + 1);
    assert_ne!(server.process(), killed);
    let second = server.process();
    server.stop().await.expect("stopped");
    assert!(!second.is_alive());
}

#[tokio::test]
async fn a_restarted_owner_adopts_the_server() {
    let Some(mut world) = World::new() else { return };
    let server = world.server().await;
    let callout = world.callout().await;
    let agent = world.agent_id();
    let director = world.connect(Peer::Director).await;
    let _script = simulated_agent(world.connect(Peer::Agent(agent)).await, agent).await;
    let bus = Bus::start(director, world.ids.clone()).await.expect("a bus");
    let client = bus.agent(agent, "worker/1");
    client.ping().await.expect("pong");

    // Our part goes: connections that stand go on, new ones wait.
    let first = server.process();
    drop((server, callout));
    client.ping().await.expect("pong without us");
    let late = world.agent_id();
    world.known.0.lock().expect("not poisoned").insert(late);
    let waiting = Arc::new(world.begin(Peer::Agent(late)).await);
    client.ping().await.expect("pong without us");
    assert!(!waiting.link().borrow().up);

    // The record is lost, as when we are killed right after the start: the process is found all the same.
    fs_err::remove_file(world.directory.path().join("nats/nats-server.pid.json")).expect("the record");
    let server = world.server().await;
    assert_eq!(server.process(), first);
    let _callout = world.callout().await;
    tokio::time::timeout(LIMIT, waiting.ready())
        .await
        .expect("in time")
        .expect("connected");
    let _late = simulated_agent(waiting, late).await;
    bus.agent(late, "worker/2").ping().await.expect("pong");

    // Another configuration makes another process, and the clients follow.
    let mut config = world.server_config();
    config.log = world.directory.path().join("other.log");
    drop(server);
    let server = NatsServer::start(config).await.expect("restarted");
    assert_ne!(server.process(), first);
    assert!(!first.is_alive());
    client.ping().await.expect("pong from the new one");

    // Nobody supervises it, and still it can be ended.
    let last = server.process();
    drop(server);
    let directory = world.directory.path().join("nats");
    assert!(server::stop_leftover(&directory).await.expect("stopped"));
    assert!(!last.is_alive());
    assert!(!server::stop_leftover(&directory).await.expect("nothing to stop"));
}

#[tokio::test]
async fn a_start_that_cannot_work_says_why() {
    let Some(world) = World::new() else { return };
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut config = world.server_config();
    config.listen = taken.local_addr().expect("an address");
    let error = NatsServer::start(config).await.expect_err("the port is taken");
    assert!(matches!(error, server::Error::Listen { .. }), "{error}");
    assert_eq!(error.class(), Class::User);
    assert!(error.hints()[0].contains("Something else listens"), "{error}");

    let mut config = world.server_config();
    config.program = "/nonexistent/nats-server".into();
    let error = NatsServer::start(config).await.expect_err("no such program");
    assert!(matches!(error, server::Error::Start { .. }), "{error}");

    let mut config = world.server_config();
    config.keys.issuer = "nonsense".into();
    let started = tokio::time::timeout(Duration::from_secs(60), NatsServer::start(config)).await;
    let error = started.expect("no long wait").expect_err("a bad configuration");
    assert!(error.to_string().contains("public account nkey"), "{error}");
}

/// Each of three servers is killed under traffic; every request is answered, and each is worked on once.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loses_no_request_when_one_of_its_servers_dies() {
    let Some(world) = World::new() else { return };
    let mut servers = Vec::new();
    for config in world.cluster(3) {
        servers.push(NatsServer::start(config).await.expect("a server of the cluster"));
    }
    let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
    let connect = async |peer: Peer, urls: &[String]| {
        if let Some(agent) = peer.agent() {
            world.known.0.lock().expect("not poisoned").insert(agent);
        }
        let mut config = world.client_config(&world.ca, &peer.to_string());
        config.servers = urls.to_vec();
        let transport = NatsTransport::connect(&config).await.expect("a transport");
        tokio::time::timeout(LIMIT, transport.ready())
            .await
            .expect("connected in time")
            .expect("connected");
        let transport: Arc<dyn Transport> = Arc::new(transport);
        transport
    };
    // Two members answer for all three servers.
    let mut callouts = Vec::new();
    for _ in 0..2 {
        let mut config = world.client_config(&world.ca, "default.callout.stolos-internal");
        config.servers = urls.clone();
        let known: Arc<dyn AgentDirectory> = world.known.clone();
        let callout = AuthCallout::start(&config, &world.keys, known, Clock::system()).await;
        let callout = callout.expect("an admission service");
        callout.ready().await.expect("the servers let it in");
        callouts.push(callout);
    }
    let bus = Bus::start(connect(Peer::Director, &urls).await, world.ids.clone())
        .await
        .expect("a bus");
    // One agent begins at each server.
    let mut agents = Vec::new();
    for n in 0..servers.len() {
        let agent = world.agent_id();
        let mut order = urls.clone();
        order.rotate_left(n);
        let script = simulated_agent(connect(Peer::Agent(agent), &order).await, agent).await;
        agents.push((bus.agent(agent, format!("worker/{n}")), script));
    }
    for (client, _) in &agents {
        client.ping().await.expect("pong through the cluster");
    }

    let mut asked = 0;
    for (n, server) in servers.iter().enumerate() {
        let killed = server.process();
        let traffic = async {
            for round in 0..20 {
                if round == 3 {
                    killed.signal(Signal::KILL).expect("killed");
                }
                for (client, _) in &agents {
                    client.start_jobs().await.expect("started, whoever died");
                }
            }
        };
        tokio::time::timeout(LIMIT, traffic).await.expect("in time");
        asked += 20;
        for (_, script) in &agents {
            assert_eq!(script.count("start"), asked, "after the death of server {n}");
        }
        poll::until("the restart", TICK, LIMIT, || async {
            let process = server.process();
            if process != killed && process.is_alive() {
                Ok(())
            } else {
                Err(format!("{process:?}"))
            }
        })
        .await
        .expect("it is started again");
        // It admits, too: its own question goes through the cluster to whoever answers.
        let late = world.agent_id();
        let only = [server.url()];
        let _late = simulated_agent(connect(Peer::Agent(late), &only).await, late).await;
        bus.agent(late, "late/0")
            .ping()
            .await
            .expect("pong by the new one");
    }
    for server in servers {
        server.stop().await.expect("stopped");
    }
}

/// An agent's certificate makes nobody a server of the cluster: its peers would hear everything.
#[tokio::test]
async fn clients_certificates_are_no_use_between_servers() {
    let Some(world) = World::new() else { return };
    let config = world.cluster(2).remove(0);
    let cluster = config.cluster.clone().expect("a cluster");
    let server = NatsServer::start(config).await.expect("a server");
    let leaf = stolos_base::pki::Leaf::new("stranger", stolos_base::pki::Usage::ServerAndClient);
    let stranger = world
        .ca
        .issue(&leaf, jiff::Timestamp::now())
        .expect("a certificate");
    let introduced = async |identity: &stolos_base::pki::Identity| -> std::io::Result<String> {
        let tls = stolos_base::tls::client(&cluster.ca, Some(identity)).expect("a configuration");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let tcp = tokio::net::TcpStream::connect(cluster.listen).await?;
        let mut stream = connector.connect(rustls_name(cluster.listen), tcp).await?;
        // With TLS 1.3 the refusal of a client's certificate comes with the first read.
        read_line(&mut stream).await
    };
    let line = introduced(&cluster.identity).await.expect("one of its own");
    assert!(line.starts_with("INFO "), "{line}");
    introduced(&stranger)
        .await
        .expect_err("a certificate of the clients' CA is refused");
    server.stop().await.expect("stopped");
}

async fn read_line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<String> {
    use tokio::io::AsyncReadExt as _;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn rustls_name(address: std::net::SocketAddr) -> rustls_pki_types::ServerName<'static> {
    address.ip().into()
}

/// Two processes of ours see to one server: one does, the other goes on when that is gone. There are never two servers.
#[tokio::test]
async fn who_stands_by_goes_on_when_the_supervisor_is_gone() {
    let Some(mut world) = World::new() else { return };
    let first = world.server().await;
    let second = NatsServer::start(world.server_config())
        .await
        .expect("it stands by");
    assert_eq!(first.process(), second.process());
    let killed = first.process();
    killed.signal(Signal::KILL).expect("killed");
    let again = poll::until("the restart", TICK, LIMIT, || async {
        let process = first.process();
        if process != killed {
            Ok(process)
        } else {
            Err("the old one".to_owned())
        }
    })
    .await
    .expect("the first one starts it again");
    assert!(again.is_alive());

    drop(first);
    poll::until("the takeover", TICK, LIMIT, || async {
        let process = second.process();
        if process == again {
            Ok(())
        } else {
            Err(format!("{process:?}"))
        }
    })
    .await
    .expect("the second one has adopted it");
    again.signal(Signal::KILL).expect("killed");
    poll::until("the restart", TICK, LIMIT, || async {
        let process = second.process();
        if process != again && process.is_alive() {
            Ok(())
        } else {
            Err(format!("{process:?}"))
        }
    })
    .await
    .expect("the second one starts it again");
    second.stop().await.expect("stopped");
}
