//! Serving an axum router over TLS or a Unix socket, with an orderly end. Every HTTP listener of ours is served here, so that
//! nobody can hold a connection for nothing ([`Limits`]).

mod connection;
mod gate;
mod limits;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::gate::{Peer, signed_in};
pub use self::limits::Limits;

use self::connection::{Served, Verdict, Watched};
use self::gate::{Admitted, Gate};
use crate::task;

/// How long open requests may take to end once the server or a connection is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The pause after a failed `accept` (no more file descriptors, mostly); it doubles while that goes on …
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// … up to this: whoever waits in the kernel's queue is not to wait for long once there is room.
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_millis(640);
/// The largest header of a request: a token with many groups has 8 KiB.
const HEADER_SIZE: usize = 64 * 1024;
/// Requests at once on one connection. Our clients have a few long-polls each.
const STREAMS: u32 = 64;
/// What is buffered of one answer for a peer that does not take it.
const ANSWER_BUFFER: usize = 128 * 1024;
/// How long a connection is silent before its peer is asked whether it is there …
const ASK_AFTER: Duration = Duration::from_secs(30);
/// … and how long it has for the answer. A long-poll to a peer that is gone ends so.
const ASK_LIMIT: Duration = Duration::from_secs(20);

/// The verified certificate of a client, as a request extension; absent when it showed none.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub CertificateDer<'static>);

/// Where the connection of a request comes from, as a request extension; absent over Unix sockets. Balancing over several
/// managers does not change it.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Serves routers at one or more listeners, whose connections are counted together. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    limits: Arc<Limits>,
    gate: Gate,
}

/// [`Server::serve_tls`] with the default limits and a count of its own.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    Server::new(Limits::default())
        .serve_tls(listener, tls, router, stop)
        .await;
}

/// [`Server::serve_unix`] with the default limits.
pub async fn serve_unix(listener: UnixListener, router: Router, stop: CancellationToken) {
    Server::new(Limits::default())
        .serve_unix(listener, router, stop)
        .await;
}

impl Server {
    /// A server with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Arc::new(limits);
        Self {
            gate: Gate::new(limits.clone()),
            limits,
        }
    }

    /// Serves `router` over TLS until `stop`, then lets open requests end for at most five seconds. Requests have a [`Peer`]
    /// among their extensions; who verifies a credential calls [`signed_in`].
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        router: Router,
        stop: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        let mut trouble = Trouble::default();
        loop {
            let (socket, address) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => { trouble.wait(&error, &self.gate).await; continue }
                },
            };
            trouble = Trouble::default();
            let Some(admitted) = self.gate.admit(address) else {
                continue;
            };
            set_options(&socket);
            let (server, acceptor, router, stop) =
                (self.clone(), acceptor.clone(), router.clone(), stop.clone());
            task::spawn(
                task::Kind::Connection,
                "https",
                connections.track_future(async move {
                    let stream = tokio::select! {
                        stream = tokio::time::timeout(server.limits.handshake, acceptor.accept(socket)) => {
                            stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                        }
                        () = admitted.state.until_cut() => return Err(made_room()),
                    };
                    let peer = stream
                        .get_ref()
                        .1
                        .peer_certificates()
                        .and_then(|chain| chain.first())
                        .cloned();
                    let router = match peer {
                        Some(der) => router.layer(axum::Extension(PeerCertificate(der.into_owned()))),
                        None => router,
                    };
                    server.serve_one(stream, router, stop, admitted).await
                }),
            );
        }
        drain(connections).await;
    }

    /// Serves `router` over a Unix socket; its file mode is the authentication.
    pub async fn serve_unix(&self, listener: UnixListener, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let mut trouble = Trouble::default();
        loop {
            let socket = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => socket,
                    Err(error) => { trouble.wait(&error, &self.gate).await; continue }
                },
            };
            trouble = Trouble::default();
            let (server, router, stop) = (self.clone(), router.clone(), stop.clone());
            let admitted = self.gate.admit_known();
            task::spawn(
                task::Kind::Connection,
                "unix http",
                connections
                    .track_future(async move { server.serve_one(socket, router, stop, admitted).await }),
            );
        }
        drain(connections).await;
    }

    async fn serve_one<S>(
        &self,
        stream: S,
        router: Router,
        stop: CancellationToken,
        admitted: Admitted,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let state = admitted.state.clone();
        state.opened();
        let builder = self.protocols();
        let stream = Watched {
            stream,
            state: state.clone(),
        };
        let served = Served {
            router,
            state: state.clone(),
            peer: admitted.peer.clone(),
        };
        let connection = builder.serve_connection(TokioIo::new(stream), served);
        tokio::pin!(connection);
        let mut look = tokio::time::interval(self.limits.look());
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut is_stopped, mut told) = (false, None);
        loop {
            tokio::select! {
                result = connection.as_mut() => return result.map_err(io::Error::other),
                () = stop.cancelled(), if !is_stopped => {
                    is_stopped = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = state.until_cut() => return Err(made_room()),
                _ = look.tick() => match (state.verdict(Instant::now()), told) {
                    (Verdict::Stays, _) => {}
                    (Verdict::Ends, None) => {
                        told = Some(Instant::now());
                        connection.as_mut().graceful_shutdown();
                    }
                    (Verdict::Ends, Some(told)) if told.elapsed() <= DRAIN_LIMIT => {}
                    (Verdict::Ends, Some(_)) => return Err(cut("the peer does not end what it does not use")),
                    (Verdict::Cut(why), _) => return Err(cut(why)),
                },
            }
        }
    }

    /// Both versions of HTTP. Limits of time that cannot be had here, or not for both, are kept by [`connection::State`].
    fn protocols(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // It runs between requests, too.
            .header_read_timeout(self.limits.idle.max(self.limits.header))
            .max_buf_size(HEADER_SIZE);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(ASK_AFTER)
            .keep_alive_timeout(ASK_LIMIT)
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(ANSWER_BUFFER)
            .max_header_list_size(HEADER_SIZE as u32);
        builder
    }
}

/// A peer that is gone without a word is noticed on HTTP/1, too, where nothing can be asked in the middle of a request.
fn set_options(socket: &TcpStream) {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, ASK_AFTER)?;
        sockopt::set_tcp_keepintvl(socket, ASK_LIMIT / 4)?;
        sockopt::set_tcp_keepcnt(socket, 4)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "failed to set a socket's options");
    }
}

/// Failures of `accept`, one after the other.
#[derive(Default)]
struct Trouble {
    times: u32,
}

impl Trouble {
    async fn wait(&mut self, error: &io::Error, gate: &Gate) {
        // The peer has gone before it was accepted: nothing is wrong here.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        if self.times == 0 {
            tracing::warn!(%error, "failed to accept a connection");
        }
        // Its descriptor is free when the task that holds it has noticed.
        gate.make_room();
        let pause = ACCEPT_PAUSE.saturating_mul(1 << self.times.min(10));
        self.times += 1;
        tokio::time::sleep(pause.min(LONGEST_ACCEPT_PAUSE)).await;
    }
}

fn cut(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

fn made_room() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "it was only held, and others came",
    )
}

async fn drain(connections: TaskTracker) {
    connections.close();
    if tokio::time::timeout(DRAIN_LIMIT, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(open = connections.len(), "connections were still open at the end");
    }
}
