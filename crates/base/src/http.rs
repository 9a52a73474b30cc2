//! Serving an axum router over TLS or a Unix socket, with an orderly end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::task;

/// A peer that has not finished its TLS handshake after this time is dropped: it holds a socket of ours.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long open requests may take to end once the server is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The pause after a failed `accept` (no more file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The verified certificate of a client, as a request extension; absent when it showed none.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub CertificateDer<'static>);

/// Serves `router` over TLS until `stop`, then lets open requests end for at most five seconds.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => { refused(&error).await; continue }
            },
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        let _ = socket.set_nodelay(true);
        task::spawn(
            task::Kind::Connection,
            "https",
            connections.track_future(async move {
                let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
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
                serve_one(stream, router, stop).await
            }),
        );
    }
    drain(connections).await;
}

/// Serves `router` over a Unix socket; its file mode is the authentication.
pub async fn serve_unix(listener: UnixListener, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => { refused(&error).await; continue }
            },
        };
        let (router, stop) = (router.clone(), stop.clone());
        task::spawn(
            task::Kind::Connection,
            "unix http",
            connections.track_future(serve_one(socket, router, stop)),
        );
    }
    drain(connections).await;
}

async fn serve_one<S>(stream: S, router: Router, stop: CancellationToken) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    result.map_err(io::Error::other)
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "failed to accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
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
