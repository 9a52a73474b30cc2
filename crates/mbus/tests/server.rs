//! The real server: who gets in, and what happens when either it or we die.

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use common::{LIMIT, TICK, World, authority, simulated_agent};
use rustix::process::Signal;
use stolos_base::{Class, Classify as _, poll};
use stolos_mbus::rights::Peer;
use stolos_mbus::{Bus, NatsServer, NatsTransport, Transport, server};

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
