//! A server on a real socket, and peers that do what nobody should.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::routing::{get, post};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::DropGuard;

use super::*;
use crate::pki::{Authority, Leaf, Usage};
use crate::tls::{self, Clients};

/// Within which a server has to do what it does by its own limits, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Limits of which one is short; the others do not count.
fn limits() -> Limits {
    Limits {
        handshake: PATIENCE * 2,
        header: PATIENCE * 2,
        idle: PATIENCE * 2,
        stall: PATIENCE * 2,
        least_rate: 1000,
        ..Limits::default()
    }
}

struct World {
    address: SocketAddr,
    connector: TlsConnector,
    /// Lets `/later` answer.
    release: watch::Sender<bool>,
    /// Says that `/later` was asked.
    asked: mpsc::UnboundedReceiver<()>,
    /// Says that nobody takes `/much` any more.
    given_up: mpsc::UnboundedReceiver<()>,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Handles {
    release: watch::Receiver<bool>,
    asked: mpsc::UnboundedSender<()>,
    given_up: mpsc::UnboundedSender<()>,
}

struct GivenUp(mpsc::UnboundedSender<()>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

async fn later(State(handles): State<Handles>) -> &'static str {
    let _ = handles.asked.send(());
    let _ = handles.release.clone().wait_for(|released| *released).await;
    "later"
}

async fn much(State(handles): State<Handles>) -> Body {
    let guard = GivenUp(handles.given_up);
    Body::from_stream(futures::stream::repeat_with(move || {
        let _ = &guard;
        Ok::<_, io::Error>(Bytes::from_static(&[0; 16 * 1024]))
    }))
}

async fn enter(request: Request) -> &'static str {
    signed_in(request.extensions());
    "in"
}

async fn world(limits: Limits) -> World {
    let now = jiff::Timestamp::now();
    let ca = Authority::root("test", Duration::from_secs(3600), now).expect("a CA");
    let mut leaf = Leaf::new("here", Usage::Server);
    leaf.dns = vec!["here".to_owned()];
    let leaf = ca.issue(&leaf, now).expect("a certificate");
    let server = tls::server(&leaf, Clients::Any).expect("a server's TLS");
    let client = tls::client(ca.certificate(), None).expect("a client's TLS");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (release, released) = watch::channel(false);
    let (sender, given_up) = mpsc::unbounded_channel();
    let (asks, asked) = mpsc::unbounded_channel();
    let router = Router::new()
        .route("/out", get(async || "out"))
        .route("/in", get(enter))
        .route("/later", get(later))
        .route("/much", get(much))
        .route("/count", post(async |body: Bytes| body.len().to_string()))
        .with_state(Handles {
            release: released,
            asked: asks,
            given_up: sender,
        });
    let stop = CancellationToken::new();
    let until = stop.clone();
    task::spawn(task::Kind::Service, "a test's server", async move {
        Server::new(limits)
            .serve_tls(listener, server, router, until)
            .await;
        Ok::<(), std::convert::Infallible>(())
    });
    World {
        address,
        connector: TlsConnector::from(Arc::new(client)),
        release,
        asked,
        given_up,
        _stop: stop.drop_guard(),
    }
}

impl World {
    async fn tcp(&self, from: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind((Ipv4Addr::new(127, 0, 0, from), 0).into())
            .expect("an address");
        socket.connect(self.address).await.expect("a connection")
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_from(1).await.expect("a handshake")
    }

    async fn connect_from(&self, from: u8) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("here").expect("a name");
        self.connector.connect(name, self.tcp(from).await).await
    }
}

/// Sends a request and reads its answer, whose length is announced.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    answer(stream).await
}

async fn answer(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    let mut text = String::new();
    loop {
        let byte = stream.read_u8().await?;
        text.push(char::from(byte));
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if body.len() == length {
            return Ok(text);
        }
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")
}

/// Waits until the server ends the connection, whichever way.
async fn until_ended<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is open still");
}

/// 1,500 connections with unfinished headers were all open after 45 s: no limit of time was in force, since none was given a timer.
#[tokio::test]
async fn whoever_does_not_finish_a_header_is_cut_off() {
    let world = world(Limits {
        header: Duration::from_millis(300),
        handshake: Duration::from_millis(300),
        ..limits()
    })
    .await;
    let mut silent = world.tcp(1).await;
    until_ended(&mut silent).await;
    let mut nothing = world.connect().await;
    until_ended(&mut nothing).await;
    let mut preface = world.connect().await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    preface.write_all(http2).await.expect("sent");
    until_ended(&mut preface).await;
    // After a whole request, too; a byte now and then changes nothing.
    let mut slow = world.connect().await;
    let answer = ask(&mut slow, &request("/out")).await.expect("an answer");
    assert!(answer.ends_with("out"), "{answer}");
    let (mut reader, mut writer) = tokio::io::split(slow);
    let trickle = async {
        while writer.write_all(b"GET").await.is_ok() && writer.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = until_ended(&mut reader) => {}
        () = trickle => {}
        () = tokio::time::sleep(PATIENCE) => panic!("it is open still"),
    }
}

#[tokio::test]
async fn a_body_has_a_least_rate_and_no_limit_of_time() {
    let world = world(Limits {
        stall: Duration::from_secs(2),
        ..limits()
    })
    .await;
    let head = "POST /count HTTP/1.1\r\nHost: here\r\nContent-Length: 6000\r\n";
    // Slow, but fast enough: longer than the pause that is allowed.
    let mut steady = world.connect().await;
    steady
        .write_all(format!("{head}\r\n").as_bytes())
        .await
        .expect("sent");
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        steady.write_all(&[b'x'; 200]).await.expect("sent");
        steady.flush().await.expect("sent");
    }
    let counted = answer(&mut steady).await.expect("an answer");
    assert!(counted.ends_with("6000"), "{counted}");
    // A byte now and then is too little.
    let mut slow = world.connect().await;
    slow.write_all(format!("{head}\r\n").as_bytes())
        .await
        .expect("sent");
    let (mut reader, mut writer) = tokio::io::split(slow);
    let mut refused = Vec::new();
    let trickle = async {
        while writer.write_all(b"x").await.is_ok() && writer.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut refused)) => drop(read.expect("in time")),
        () = trickle => {}
    }
    let refused = String::from_utf8_lossy(&refused);
    assert!(refused.starts_with("HTTP/1.1 408"), "{refused}");
    // Those who ask first are told to go on.
    let mut polite = world.connect().await;
    let go_on = ask(&mut polite, &format!("{head}Expect: 100-continue\r\n\r\n")).await;
    assert!(go_on.expect("an answer").starts_with("HTTP/1.1 100"));
    polite.write_all(&[b'x'; 6000]).await.expect("sent");
    let counted = answer(&mut polite).await.expect("an answer");
    assert!(counted.ends_with("6000"), "{counted}");
}

#[tokio::test]
async fn whoever_does_not_take_an_answer_is_cut_off() {
    let mut world = world(Limits {
        stall: Duration::from_millis(300),
        ..limits()
    })
    .await;
    let mut deaf = world.connect().await;
    deaf.write_all(request("/much").as_bytes()).await.expect("sent");
    let given_up = tokio::time::timeout(PATIENCE, world.given_up.recv()).await;
    given_up
        .expect("in time")
        .expect("the handler's body was dropped");
}

/// A long-poll is quiet for longer than any limit: it is we who make it wait.
#[tokio::test]
async fn idle_connections_end_and_long_polls_do_not() {
    let quick = Duration::from_millis(200);
    let world = world(Limits {
        header: quick,
        idle: quick,
        stall: quick,
        ..limits()
    })
    .await;
    let mut polling = world.connect().await;
    polling
        .write_all(request("/later").as_bytes())
        .await
        .expect("sent");
    for _ in 0..3 {
        let mut idle = world.connect().await;
        ask(&mut idle, &request("/out")).await.expect("an answer");
        until_ended(&mut idle).await;
    }
    world.release.send_replace(true);
    let answer = answer(&mut polling).await.expect("an answer");
    assert!(answer.ends_with("later"), "{answer}");
}

/// How many of these connections are open: the server has said nothing on them.
async fn open(connections: &mut [TlsStream<TcpStream>]) -> usize {
    let mut open = 0;
    for connection in connections {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(5), connection.read(&mut byte));
        open += usize::from(read.await.is_err());
    }
    open
}

async fn until_open(connections: &mut [TlsStream<TcpStream>], wanted: usize) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while open(connections).await > wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("the others are cut off");
}

#[tokio::test]
async fn a_flood_shuts_out_nobody_who_comes_for_a_moment_or_has_signed_in() {
    let world = world(Limits {
        total: 24,
        anonymous: 12,
        per_address: 8,
        ..limits()
    })
    .await;
    let mut known = world.connect_from(9).await.expect("a handshake");
    let answer = ask(&mut known, &request("/in")).await.expect("an answer");
    assert!(answer.ends_with("in"), "{answer}");
    // From one address …
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(world.connect_from(1).await.expect("a handshake"));
    }
    until_open(&mut held, 8).await;
    assert!(open(&mut held).await > 0, "no more than necessary");
    // … and from many.
    for from in 10..40 {
        if let Ok(one) = world.connect_from(from).await {
            held.push(one);
        }
    }
    until_open(&mut held, 12).await;
    for _ in 0..3 {
        let answer = ask(&mut known, &request("/out")).await.expect("it is signed in");
        assert!(answer.ends_with("out"), "{answer}");
        let mut newcomer = world.connect_from(50).await.expect("there is room");
        let answer = ask(&mut newcomer, &request("/in")).await.expect("an answer");
        assert!(answer.ends_with("in"), "{answer}");
    }
}

/// Where everybody is in the middle of something, nobody is cut off for a newcomer.
#[tokio::test]
async fn what_is_used_is_not_cut_off_for_others() {
    let mut world = world(Limits {
        total: 8,
        anonymous: 4,
        per_address: 8,
        ..limits()
    })
    .await;
    let mut polling = Vec::new();
    for _ in 0..4 {
        let mut one = world.connect().await;
        ask(&mut one, &request("/out")).await.expect("an answer");
        one.write_all(request("/later").as_bytes()).await.expect("sent");
        polling.push(one);
    }
    for _ in 0..4 {
        let asked = tokio::time::timeout(PATIENCE, world.asked.recv()).await;
        asked.expect("in time").expect("it is being answered");
    }
    world.connect_from(2).await.expect_err("there is no room");
    world.release.send_replace(true);
    for one in &mut polling {
        let answer = answer(one).await.expect("an answer");
        assert!(answer.ends_with("later"), "{answer}");
    }
    let mut newcomer = world.connect_from(2).await.expect("there is room");
    ask(&mut newcomer, &request("/out")).await.expect("an answer");
}

#[test]
fn caps_fit_the_descriptors_of_the_process() {
    let fitting = Limits::default().fitting(1024);
    assert_eq!(
        (fitting.total, fitting.anonymous, fitting.per_address),
        (512, 256, 256)
    );
    let fitting = Limits::default().fitting(65_536);
    assert_eq!(fitting, Limits::default());
    let fitting = Limits {
        total: 0,
        anonymous: 0,
        per_address: 0,
        ..Limits::default()
    }
    .fitting(0);
    assert_eq!((fitting.total, fitting.anonymous, fitting.per_address), (2, 1, 1));
}
