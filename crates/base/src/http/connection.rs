//! One connection: what its peer is waited for, and for how long.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use axum::response::IntoResponse as _;
use axum::{BoxError, Router};
use futures::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::PeerAddress;
use super::gate::Peer;
use super::limits::Limits;

/// A request whose body has been waited for so long may have to give way to others if nobody has signed in.
const SLOW_BODY: Duration = Duration::from_secs(1);

/// What is known about a connection that is open.
pub(super) struct State {
    pub(super) limits: Arc<Limits>,
    times: Mutex<Times>,
    cut: CancellationToken,
}

struct Times {
    /// Since when no request is under way; when there is one, since when there was none before.
    quiet_since: Instant,
    /// Whether there has been a request.
    served: bool,
    /// Its frames say nothing about whether a request begins.
    is_http2: bool,
    requests: usize,
    /// The first byte of a request whose header is not whole.
    begun: Option<Instant>,
    /// A handler waits for the rest of a request.
    body_awaited: Option<Instant>,
    /// The socket takes no more.
    blocked: Option<Instant>,
    patience: Patience,
    /// Until when the peer has to have taken what it was given last, by answer.
    answers: HashMap<u64, Instant>,
    last_answer: u64,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stays,
    /// It is told to end: nobody uses it.
    Ends,
    /// It is cut off.
    Cut(&'static str),
}

/// The time for which a peer may still be waited for.
#[derive(Clone, Copy)]
struct Patience(Duration);

impl Patience {
    fn spend(&mut self, waited: Duration) {
        self.0 = self.0.saturating_sub(waited);
    }

    fn earn(&mut self, bytes: usize, limits: &Limits) {
        self.0 = self.0.saturating_add(limits.time_of(bytes)).min(limits.stall);
    }
}

impl State {
    pub(super) fn new(limits: Arc<Limits>) -> Arc<Self> {
        let times = Times {
            quiet_since: Instant::now(),
            served: false,
            is_http2: false,
            requests: 0,
            begun: None,
            body_awaited: None,
            blocked: None,
            patience: Patience(limits.stall),
            answers: HashMap::new(),
            last_answer: 0,
        };
        Arc::new(Self {
            limits,
            times: Mutex::new(times),
            cut: CancellationToken::new(),
        })
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for others.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    pub(super) async fn until_cut(&self) {
        self.cut.cancelled().await;
    }

    /// The handshake is over.
    pub(super) fn opened(&self) {
        self.times().quiet_since = Instant::now();
    }

    /// Since when the connection is held without being used; `None` when it is used.
    pub(super) fn only_held_since(&self, now: Instant, signed_in: bool) -> Option<Instant> {
        let times = self.times();
        match times.body_awaited {
            _ if times.requests == 0 => Some(times.quiet_since),
            Some(since) if !signed_in && now.duration_since(since) > SLOW_BODY => Some(since),
            _ => None,
        }
    }

    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        let (times, limits) = (self.times(), &self.limits);
        let longer = |since: Option<Instant>, limit: Duration| {
            since.is_some_and(|since| now.duration_since(since) > limit)
        };
        if longer(times.blocked, times.patience.0) || times.answers.values().any(|until| now > *until) {
            return Verdict::Cut("the peer does not take its answer");
        }
        if times.requests > 0 || times.blocked.is_some() {
            return Verdict::Stays;
        }
        let unfinished = match (times.served, times.is_http2) {
            (false, _) => Some(times.quiet_since),
            (true, true) => None,
            (true, false) => times.begun,
        };
        if longer(unfinished, limits.header) {
            return Verdict::Cut("the peer does not finish its request's header");
        }
        if longer(Some(times.quiet_since), limits.idle) {
            return Verdict::Ends;
        }
        Verdict::Stays
    }

    fn read(&self) {
        let mut times = self.times();
        if times.requests == 0 && times.begun.is_none() {
            times.begun = Some(Instant::now());
        }
    }

    fn blocked(&self) {
        self.times().blocked.get_or_insert_with(Instant::now);
    }

    fn wrote(&self, bytes: usize) {
        let mut times = self.times();
        if let Some(since) = times.blocked.take() {
            times.patience.spend(since.elapsed());
        }
        times.patience.earn(bytes, &self.limits);
    }

    fn begin(self: &Arc<Self>, version: Version) -> Flight {
        let mut times = self.times();
        times.served = true;
        times.is_http2 = version == Version::HTTP_2;
        times.requests += 1;
        times.begun = None;
        times.last_answer += 1;
        Flight {
            number: times.last_answer,
            state: self.clone(),
        }
    }
}

/// A request from its header to the last byte of its answer.
struct Flight {
    number: u64,
    state: Arc<State>,
}

impl Flight {
    /// The peer was given so many bytes, and takes them from now on.
    fn gave(&self, bytes: usize) {
        let limits = &self.state.limits;
        let until = Instant::now() + limits.stall + limits.time_of(bytes);
        self.state.times().answers.insert(self.number, until);
    }

    /// The peer has taken everything.
    fn taken(&self) {
        self.state.times().answers.remove(&self.number);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut times = self.state.times();
        times.answers.remove(&self.number);
        times.requests -= 1;
        if times.requests == 0 {
            (times.quiet_since, times.begun) = (Instant::now(), None);
        }
    }
}

/// The stream of a connection, seen by its [`State`].
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) state: Arc<State>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.read();
        }
        polled
    }
}

impl<S: Unpin> Watched<S> {
    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Pending => self.state.blocked(),
            Poll::Ready(Ok(bytes)) => self.state.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn flushed(&self, polled: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match &polled {
            Poll::Pending => self.state.blocked(),
            Poll::Ready(_) => self.state.wrote(0),
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The router, seen by the [`State`] of one connection.
pub(super) struct Served {
    pub(super) router: Router,
    pub(super) state: Arc<State>,
    pub(super) peer: Peer,
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response<Answer>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let version = request.version();
        let flight = self.state.begin(version);
        let is_slow = Arc::new(AtomicBool::new(false));
        let mut request = request.map(|body| {
            Body::new(Received {
                body,
                state: self.state.clone(),
                patience: Patience(self.state.limits.stall),
                awaited: None,
                alarm: None,
                is_slow: is_slow.clone(),
            })
        });
        if let Some(address) = self.peer.address {
            request.extensions_mut().insert(PeerAddress(address));
        }
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.router.clone().oneshot(request);
        Box::pin(async move {
            let Ok(answer) = answer.await;
            let answer = if is_slow.load(Ordering::Relaxed) {
                too_slow(version)
            } else {
                answer
            };
            Ok(answer.map(|body| Answer { body, flight }))
        })
    }
}

/// In place of whatever the handler makes of a body that broke off.
fn too_slow(version: Version) -> Response<Body> {
    let text = "the request's body comes too slowly\n";
    let mut answer = (StatusCode::REQUEST_TIMEOUT, text).into_response();
    if version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

/// The body of a request. While a handler waits for it, it has to come.
struct Received {
    body: Incoming,
    state: Arc<State>,
    patience: Patience,
    awaited: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    is_slow: Arc<AtomicBool>,
}

impl Received {
    fn arrived(&mut self) {
        if let Some(since) = self.awaited.take() {
            self.patience.spend(since.elapsed());
            self.state.times().body_awaited = None;
        }
    }

    /// Ready when the peer was waited for long enough.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.awaited.is_none() {
            let now = Instant::now();
            let end = now + self.patience.0;
            self.awaited = Some(now);
            self.state.times().body_awaited.get_or_insert(now);
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(end),
                None => self.alarm = Some(Box::pin(tokio::time::sleep_until(end))),
            }
        }
        match &mut self.alarm {
            Some(alarm) => alarm.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.arrived();
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    let limits = self.state.limits.clone();
                    self.patience.earn(data.len(), &limits);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => match self.wait(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    self.is_slow.store(true, Ordering::Relaxed);
                    Poll::Ready(Some(Err("it comes too slowly".into())))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.arrived();
    }
}

/// The body of an answer. What the peer was given it has to take.
pub(super) struct Answer {
    body: Body,
    flight: Flight,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.flight.taken();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.flight.gave(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
