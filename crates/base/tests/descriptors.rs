//! A process of its own, since the limit of open files is the whole process's.

use std::convert::Infallible;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stolos_base::http::{Limits, Server};
use stolos_base::pki::{Authority, Leaf, Usage};
use stolos_base::process;
use stolos_base::task::{self, Kind};
use stolos_base::tls::{self, Clients};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// No descriptors are left for a while: who comes then is served afterwards, and nothing has to be started again.
#[tokio::test]
async fn a_server_without_descriptors_recovers() {
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(100),
        ..limit
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let now = jiff::Timestamp::now();
    let ca = Authority::root("test", Duration::from_secs(3600), now).unwrap();
    let mut leaf = Leaf::new("here", Usage::Server);
    leaf.dns = vec!["here".to_owned()];
    let leaf = ca.issue(&leaf, now).unwrap();
    let server = tls::server(&leaf, Clients::Any).unwrap();
    let connector = TlsConnector::from(Arc::new(tls::client(ca.certificate(), None).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let until = stop.clone();
    task::spawn(Kind::Service, "server", async move {
        let router = Router::new().route("/", get(async || "here"));
        Server::new(Limits::default())
            .serve_tls(listener, server, router, until)
            .await;
        Ok::<(), Infallible>(())
    });
    // One descriptor is ours already, all others are taken.
    let socket = TcpSocket::new_v4().unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    let tcp = socket.connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("here").unwrap();
    let handshake = connector.connect(name, tcp);
    tokio::pin!(handshake);
    let early = tokio::time::timeout(Duration::from_millis(200), handshake.as_mut()).await;
    assert!(early.is_err(), "there was a descriptor after all");
    drop(taken);
    let mut stream = tokio::time::timeout(Duration::from_secs(60), handshake)
        .await
        .unwrap()
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("here"), "{answer}");
    stop.cancel();

    // And from the beginning there are as many as there may be.
    let raised = process::raise_open_files();
    let now = getrlimit(Resource::Nofile);
    assert!(raised > 100 || limit.maximum.is_some_and(|most| most <= 100));
    assert_eq!(now.current, Some(raised));
}
