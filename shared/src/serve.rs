//! Serving requests, draining them, and the few answers every service gives alike.

use std::convert::Infallible;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper::body::{Body as HttpBody, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::problem::{BoxError, Kind, Problem};
use crate::secret::Secret;
use crate::telemetry;
use crate::tls::{Acceptor, MaybeTls};

/// Time in which a request's head must have come, counted from the end of the request before it.
const HEAD: Duration = Duration::from_secs(75);
/// Longest head of a request, and bytes of an answer that are kept for a client that does not read them.
const BUFFER: usize = 64 << 10;
/// Pause after the system gave no more connections, for want of file descriptors say.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time that running requests get after a shutdown was asked for.
    pub drain: Duration,
    /// Longest time for which a peer may read nothing of what is sent to it; then the connection is closed, and with it
    /// whatever it was answered from.
    pub stalled: Duration,
}

impl Patience {
    /// The usual patience with a peer, and so much time to drain.
    pub fn draining(drain: Duration) -> Self {
        Self { drain, stalled: Duration::from_secs(60) }
    }
}

/// Where connections come from.
pub trait Accept: Send {
    /// The next connection.
    ///
    /// # Errors
    /// When there is none for the moment.
    fn accept(&mut self) -> impl Future<Output = std::io::Result<TcpStream>> + Send;

    /// A count that is lowered by one when a connection has ended.
    fn count(&self) -> Arc<AtomicUsize> {
        Arc::default()
    }

    /// What meets the clients: with TLS or without.
    fn acceptor(&self) -> Acceptor {
        Acceptor::default()
    }
}

/// Connections that are met in their own way.
#[derive(Debug)]
pub struct Met<A> {
    /// Where they come from.
    pub door: A,
    /// How they are met.
    pub acceptor: Acceptor,
}

impl<A: Accept> Accept for Met<A> {
    fn accept(&mut self) -> impl Future<Output = std::io::Result<TcpStream>> + Send {
        self.door.accept()
    }

    fn count(&self) -> Arc<AtomicUsize> {
        self.door.count()
    }

    fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> std::io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// Connections that another thread accepts and hands on.
impl Accept for mpsc::Receiver<std::net::TcpStream> {
    async fn accept(&mut self) -> std::io::Result<TcpStream> {
        match self.recv().await {
            Some(stream) => TcpStream::from_std(stream),
            None => std::future::pending().await, // whoever accepts has ended, and so will this
        }
    }
}

/// Serves `router` until `shutdown`; then takes no more connections, and gives those that run `drain` to end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: impl Accept,
    router: Router,
    shutdown: CancellationToken,
    drain: Duration,
) -> std::io::Result<()> {
    let service =
        tower::util::MapRequest::new(router, |request: hyper::Request<Incoming>| request.map(axum::body::Body::new));
    serve_requests(listener, move |_| service.clone(), shutdown, Patience::draining(drain)).await;
    Ok(())
}

/// Serves requests until `shutdown`; then takes no more connections, and gives those that run time to end. `serving`: what
/// answers those of a connection from an address.
///
/// Small events leave at once, heads are bounded in size and time, and a peer that does not read is not waited for.
///
/// What fails for one connection, or for a moment, is no reason to end.
pub async fn serve_requests<S, B>(
    mut door: impl Accept,
    serving: impl Fn(Option<SocketAddr>) -> S,
    shutdown: CancellationToken,
    patience: Patience,
) where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (graceful, mut running) = (GracefulShutdown::new(), JoinSet::new());
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = accept(&mut door, serving, patience.stalled, &graceful, &mut running) => match never {},
        () = telemetry::metrics_upkeep() => {}
    }
    drop(door);
    if tokio::time::timeout(patience.drain, graceful.shutdown()).await.is_err() {
        let drain = patience.drain;
        tracing::warn!(?drain, "requests still ran when the time to drain was over; they are cut off");
    }
    running.shutdown().await;
}

/// Takes connections, for ever, each on a task of its own.
async fn accept<S, B>(
    door: &mut impl Accept,
    serving: impl Fn(Option<SocketAddr>) -> S,
    stalled: Duration,
    graceful: &GracefulShutdown,
    running: &mut JoinSet<()>,
) -> Infallible
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    loop {
        let accepted = tokio::select! {
            accepted = Accept::accept(door) => accepted,
            Some(_) = running.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                let service = serving(stream.peer_addr().ok());
                let count = door.count();
                let served = connection((stream, door.acceptor()), service, stalled, graceful.watcher());
                running.spawn(async move {
                    served.await;
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; the open-files limit may be too low");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection<S, B>((stream, acceptor): (TcpStream, Acceptor), service: S, stalled: Duration, watcher: Watcher)
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let _ = stream.set_nodelay(true); // small events must leave at once; a failure here costs latency only
    let Some(stream) = acceptor.accept(stream).await else { return };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(BUFFER as u32);
    let io = TokioIo::new(Impatient { stream, patience: stalled, stalled: None });
    let serving = builder.serve_connection_with_upgrades(io, TowerToHyperService::new(service)).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(error = crate::problem::chain(&*error), "a connection ended early");
    }
}

/// A connection whose peer must read what is sent to it, within a time.
struct Impatient {
    stream: MaybeTls,
    patience: Duration,
    /// Runs while the peer reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    /// What becomes of a write: one that must wait is watched.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if stalled.as_mut().poll(cx).is_ready() {
            let message = format!("the peer read nothing for {} seconds", patience.as_secs_f32());
            return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, message)));
        }
        Poll::Pending
    }
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // Bytes that were written wait for the peer here only where they are encrypted first.
        if self.stream.is_secure() { self.watch(cx, flushed) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// SIGTERM and Ctrl-C, as they come.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Panics
    /// When the process cannot install signal handlers.
    pub fn install() -> Self {
        let install = |kind| signal(kind).expect("signal handlers can be installed");
        Self { terminate: install(SignalKind::terminate()), interrupt: install(SignalKind::interrupt()) }
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_seconds();
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON body, whatever its `Content-Type` says, as FastChat's peers expect; a bad one is a [`Problem`].
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                Problem::new(Kind::TooLarge, "the body is too large for this service")
            } else {
                Problem::new(Kind::Invalid, format!("cannot read the body: {rejection}"))
            }
        })?;
        serde_json::from_slice(&bytes).map(Body).map_err(|_| unexpected::<T>(&bytes))
    }
}

/// Why a body is none, with the field at fault: a second look, which what is well pays nothing for.
fn unexpected<T: DeserializeOwned>(bytes: &[u8]) -> Problem {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read: Result<T, _> = serde_path_to_error::deserialize(&mut json);
    let (field, error) = match read {
        Ok(_) => (None, json.end().err()), // what is wrong comes after it
        Err(error) => (Some(error.path().to_string()), Some(error.into_inner())),
    };
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    match field.filter(|field| field != ".") {
        Some(field) => Problem::invalid(&*field, format!("the body is not what this path expects: {field}: {error}")),
        None => Problem::new(Kind::Invalid, format!("the body is not what this path expects: {error}")),
    }
}

/// Answers a path that does not exist.
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(Kind::NotFound, format!("there is nothing at {}", uri.path()))
}

/// Answers a method that a path does not take.
pub async fn method_not_allowed(method: axum::http::Method, uri: Uri) -> Problem {
    Problem::new(Kind::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

/// The key of a request: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
pub fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// Middleware: lets a request pass only with the fleet's token, where there is one.
///
/// # Errors
/// [`Kind::BadKey`] without the token.
pub async fn require_token(
    State(token): State<Option<Secret>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    check_token(token.as_ref(), request.headers())?;
    Ok(next.run(request).await)
}

/// Whether a request shows the fleet's token, where there is one.
///
/// # Errors
/// [`Kind::BadKey`] without the token.
pub fn check_token(token: Option<&Secret>, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    match presented_key(headers) {
        Some(given) if token.matches(given) => Ok(()),
        Some(_) => Err(Problem::new(Kind::BadKey, "the fleet token is wrong")),
        None => {
            Err(Problem::new(Kind::BadKey, "this service wants the fleet token: send `Authorization: Bearer TOKEN`"))
        }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render_metrics())
}

/// `GET /version`.
pub async fn version() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "name": "muster", "version": env!("CARGO_PKG_VERSION") }))
}
