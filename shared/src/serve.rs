//! Serving requests, draining them, and the few answers every service gives alike.
//!
//! Nobody is waited for without an end: not for a head, not for a body ([`Timely`]), not for a client that does not read,
//! and of idle connections there are so many and no more (`crowd`).

mod crowd;
mod impatient;
mod streams;
mod tally;
mod timely;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use crate::problem::{BoxError, Kind, Problem};
use crate::secret::Secret;
use crate::telemetry;
use crate::tls::Acceptor;
use crowd::{Crowd, Member};
use impatient::Impatient;
use streams::Streams;
use tally::{Answer, Left, Tally};
pub use timely::{RATE, Timely, TooSlow, too_slow};

/// Longest head of a request, and bytes of an answer that are kept for a client that does not read them.
const BUFFER: usize = 64 << 10;
/// Most bytes of a path or a method that an error repeats.
const SHOWN: usize = 200;
/// Pause after the system gave no more connections, for want of file descriptors say.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// Time after which a client that speaks HTTP/2 is asked whether it is still there; it has twenty seconds to say so.
const PING: Duration = Duration::from_secs(20);
/// Requests that a client of HTTP/2 may usually have under way on one connection.
pub const STREAMS: u32 = 200;
/// Requests that such a client may have given up before they were looked at: hyper's own limit of 20 breaks the
/// connection of a gateway or a proxy whose clients leave in a crowd.
const GIVEN_UP: usize = 1024;

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time that running requests get after a shutdown was asked for.
    pub drain: Duration,
    /// Longest time for which a peer may read nothing of what is sent to it; then the connection is closed, and with it
    /// whatever it was answered from.
    pub stalled: Duration,
    /// Longest time between the first byte of a request's head and its last.
    pub head: Duration,
    /// Longest time for which a connection may stay without a request.
    pub idle: Duration,
    /// Longest pause of a request's body; see [`Timely`].
    pub body: Duration,
    /// Most connections. One more closes an older one on which no request runs, and is closed itself where there is none.
    pub connections: usize,
    /// Most requests that may run at once on a connection that speaks HTTP/2.
    pub streams: u32,
    /// What a client hears whose head was too slow: the body of a 408, in JSON.
    pub late: &'static str,
}

impl Patience {
    /// The usual patience with a peer, and so much time to drain.
    pub fn draining(drain: Duration) -> Self {
        Self {
            drain,
            stalled: Duration::from_secs(60),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(30),
            connections: connections(10_000),
            streams: STREAMS,
            late: r#"{"kind":"too_slow","message":"the request's head did not come in time"}"#,
        }
    }
}

/// So many connections, or fewer where the system gives no files for them: half of those that there can be, since whoever
/// is asked asks others. The process is given as many as it may have.
pub fn connections(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit); // as many as there are, then
    let files =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    wanted.min(files / 2).max(1)
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
    let patience = Patience::draining(drain);
    let timely = move |request: hyper::Request<Incoming>| {
        request.map(|body| axum::body::Body::new(Timely::new(body, patience.body)))
    };
    let service = tower::util::MapRequest::new(router, timely);
    serve_requests(listener, move |_| service.clone(), shutdown, patience).await;
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
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut running = JoinSet::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = accept(&mut door, serving, patience, &shutdown, &mut running) => match never {},
        () = telemetry::metrics_upkeep() => {}
    }
    drop(door);
    let ended = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(patience.drain, ended).await.is_err() {
        let drain = patience.drain;
        tracing::warn!(?drain, "requests still ran when the time to drain was over; they are cut off");
    }
    running.shutdown().await;
}

/// Takes connections, for ever, each on a task of its own.
async fn accept<S, B>(
    door: &mut impl Accept,
    serving: impl Fn(Option<SocketAddr>) -> S,
    patience: Patience,
    shutdown: &CancellationToken,
    running: &mut JoinSet<()>,
) -> Infallible
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let mut crowd = Crowd::default();
    loop {
        let accepted = tokio::select! {
            accepted = Accept::accept(door) => accepted,
            Some(_) = running.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                let counted = Counted(door.count());
                if !crowd.has_room(patience.connections) {
                    tracing::warn!(most = patience.connections, "a connection is refused: every other one is busy");
                    refused("crowded");
                    continue;
                }
                let tally = crowd.tally();
                let member = Member(Arc::clone(&tally));
                let service = serving(stream.peer_addr().ok());
                let met = (stream, door.acceptor());
                let served = connection(met, service, patience, Arc::clone(&tally), shutdown.clone());
                let task = running.spawn(async move {
                    let _until_it_ends = (counted, member);
                    served.await;
                });
                crowd.join(tally, task);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; the open-files limit may be too low");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// A connection in a count, until it ends however it ends.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection to its end.
async fn connection<S, B>(
    (stream, acceptor): (TcpStream, Acceptor),
    service: S,
    patience: Patience,
    tally: Arc<Tally>,
    shutdown: CancellationToken,
) where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let _ = stream.set_nodelay(true); // small events must leave at once; a failure here costs latency only
    let met = tokio::select! {
        met = acceptor.accept(stream) => met,
        () = shutdown.cancelled() => None, // who has not agreed with us yet has asked nothing
    };
    let Some(stream) = met else { return };
    let mut builder = auto::Builder::new(Streams);
    // `Impatient` looks after heads: this timer would run from the end of the request before.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(BUFFER as u32).keep_alive_interval(PING);
    builder.http2().max_concurrent_streams(patience.streams).max_pending_accept_reset_streams(GIVEN_UP);
    let io = TokioIo::new(Impatient::new(stream, patience, Arc::clone(&tally)));
    let counted = {
        let tally = Arc::clone(&tally);
        service_fn(move |request| counted(Arc::clone(&tally), request, service.clone()))
    };
    let mut serving = pin!(builder.serve_connection_with_upgrades(io, counted));
    // A client that speaks HTTP/2 is told that no more of its requests will be taken, and then has time to go.
    let (mut ends, mut told, mut idle) = (false, false, patience.idle);
    loop {
        tokio::select! {
            served = serving.as_mut() => {
                if let Err(error) = served {
                    refused_by_hyper(&*error);
                    tracing::debug!(error = crate::problem::chain(&*error), "a connection ended early");
                }
                return;
            }
            () = shutdown.cancelled(), if !ends => {
                ends = true;
                serving.as_mut().graceful_shutdown();
            }
            left = tally.look_after(patience.stalled, idle) => match left {
                Left::Idle if !told => {
                    (told, idle) = (true, patience.head);
                    serving.as_mut().graceful_shutdown();
                }
                Left::Idle | Left::Unread => {
                    tracing::debug!(?left, "a connection is given up");
                    return;
                }
            },
        }
    }
}

/// Counts a connection, or an answer on it, that is given up before a request was heard to its end.
fn refused(reason: &'static str) {
    metrics::counter!("muster_refused_connections_total", "reason" => reason).increment(1);
}

/// Counts what hyper answers by itself, or with nothing.
fn refused_by_hyper(error: &(dyn std::error::Error + 'static)) {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return };
    if error.is_parse_too_large() {
        refused("head_too_large");
    } else if error.is_parse() {
        refused("no_http");
    }
}

/// Describes the metrics of connections.
pub fn describe() {
    metrics::describe_counter!(
        "muster_refused_connections_total",
        "Connections, and answers that nobody reads, given up without a request to tell of, by reason"
    );
}

/// Answers a request, which counts as running until its answer has ended.
fn counted<S, B>(
    tally: Arc<Tally>,
    request: hyper::Request<Incoming>,
    service: S,
) -> impl Future<Output = Result<hyper::Response<Answer<B>>, Infallible>> + Send
where
    S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>, Error = Infallible> + Send,
    S::Future: Send,
{
    let mut running = tally.begin(request.version() == hyper::Version::HTTP_2);
    async move {
        let response = service.oneshot(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            tally.upgrade();
        }
        running.watch();
        Ok(response.map(|body| Answer { body, running }))
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
            } else if let Some(slow) = too_slow(&rejection) {
                Problem::new(Kind::TooSlow, slow.to_string())
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

/// The beginning of what a client sent, as an answer repeats it.
pub fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(SHOWN)]
}

/// Answers a path that does not exist.
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(Kind::NotFound, format!("there is nothing at {}", shown(uri.path())))
}

/// Answers a method that a path does not take.
pub async fn method_not_allowed(method: axum::http::Method, uri: Uri) -> Problem {
    Problem::new(Kind::MethodNotAllowed, format!("{} does not take {}", shown(uri.path()), shown(method.as_str())))
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
