//! Connections to workers: one to each, which carries all its requests.
//!
//! Not tonic's channels: theirs make those who wait for a connection fail one after the other, each after a timeout of
//! its own, and do not tell whether a request that failed has been sent. Here all who wait for one attempt to connect
//! share its end, and only what has never left is called unreachable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, Uri};
use tonic::codegen::{BoxFuture as Answer, Service};

use crate::problem::BoxError;
use crate::tls::{Connector, MaybeTls, Tls};

/// Most workers to which connections are kept; the one that was used the longest ago makes room.
const WORKERS: usize = 1024;
/// Silence on a connection with requests after which the other side is asked whether it lives, and time it has to say
/// so: a machine that vanished must not hold requests for ever.
const PING: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(20)];
/// Time for a connection that broke off a call to end.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Bytes of one answer that may wait for its reader.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all answers of a connection: without a bound of their own, or a few clients that do not read would hold
/// up all others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// An attempt to connect, for all who wait for it; and what came of it.
type Attempt = Shared<BoxFuture<'static, Result<Connection, Unreached>>>;

/// Connections to workers that speak gRPC. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GrpcPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Time to make a connection.
    timeout: Duration,
    connector: Connector,
    attempts: Mutex<HashMap<Uri, Entry>>,
}

#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    used: Instant,
}

impl GrpcPool {
    /// A pool without connections, which gives one so much time to be made.
    pub fn new(timeout: Duration) -> Self {
        Self::of_fleet(&Tls::default(), timeout)
    }

    /// The same with a fleet's own authorities and certificate.
    pub fn of_fleet(tls: &Tls, timeout: Duration) -> Self {
        Self(Arc::new(Inner { timeout, connector: tls.grpc_connector(), attempts: Mutex::default() }))
    }

    /// The connection to a worker, made if there is none that lives.
    pub(super) async fn connection(&self, address: &Uri) -> Result<Connection, Unreached> {
        self.attempt(address).await
    }

    fn attempt(&self, address: &Uri) -> Attempt {
        let now = Instant::now();
        let mut attempts = self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = attempts.get_mut(address).filter(|entry| entry.is_of_use()) {
            entry.used = now;
            return entry.attempt.clone();
        }
        if attempts.len() >= WORKERS {
            make_room(&mut attempts);
        }
        let attempt = attempt(address.clone(), self.0.connector.clone(), self.0.timeout);
        attempts.insert(address.clone(), Entry { attempt: attempt.clone(), used: now });
        attempt
    }
}

impl Entry {
    /// Whether it is a connection that lives, or may become one.
    fn is_of_use(&self) -> bool {
        match self.attempt.peek() {
            None => true,
            Some(Ok(connection)) => !connection.sender.is_closed(),
            Some(Err(_)) => false,
        }
    }
}

fn make_room(attempts: &mut HashMap<Uri, Entry>) {
    attempts.retain(|_, entry| entry.is_of_use());
    if attempts.len() >= WORKERS
        && let Some(oldest) = attempts.iter().min_by_key(|(_, entry)| entry.used).map(|(address, _)| address.clone())
    {
        attempts.remove(&oldest); // requests that run on it keep it
    }
}

/// Begins to connect. Goes on when all who wait have left: the next one finds it done.
fn attempt(address: Uri, connector: Connector, timeout: Duration) -> Attempt {
    let connecting = tokio::spawn(async move {
        let late = || format!("no connection within {timeout:?}").into();
        tokio::time::timeout(timeout, connect(&address, &connector)).await.unwrap_or_else(|_| Err(late()))
    });
    let shared = async move {
        let connected = connecting.await.map_err(BoxError::from).flatten();
        connected.map_err(|error| Unreached(error.into()))
    };
    shared.boxed().shared()
}

async fn connect(address: &Uri, connector: &Connector) -> Result<Connection, BoxError> {
    let (Some(scheme @ ("http" | "https")), Some(host)) = (address.scheme_str(), address.host()) else {
        return Err("its address must be http://HOST:PORT or https://HOST:PORT".into());
    };
    let is_secure = scheme == "https";
    let host = host.trim_matches(['[', ']']); // of an IPv6 address
    let stream = TcpStream::connect((host, address.port_u16().unwrap_or(if is_secure { 443 } else { 80 }))).await?;
    stream.set_nodelay(true)?; // small events must leave at once
    let stream = if is_secure { connector.connect(host, stream).await? } else { MaybeTls::Plain(stream) };
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING[0])
        .keep_alive_timeout(PING[1])
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await?;
    let address = address.clone();
    let driver = tokio::spawn(async move {
        let error = Arc::new(connection.await.err()?);
        tracing::debug!(%address, error = crate::problem::chain(&*error), "a connection broke");
        Some(error)
    });
    let end = async move { driver.await.ok().flatten() };
    Ok(Connection { sender, end: end.boxed().shared() })
}

/// Why there is no connection, for each who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub(super) struct Unreached(Arc<dyn std::error::Error + Send + Sync>);

/// A connection, as the generated client wants it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// Why it has ended, when it has.
    end: Shared<BoxFuture<'static, Option<Arc<hyper::Error>>>>,
}

/// What a call hears whose connection has ended is that it was cancelled; this is why.
#[derive(Debug, thiserror::Error)]
#[error("the connection ended: {}", crate::problem::chain(&**.0))]
struct Ended(Arc<hyper::Error>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Answer<Self::Response, Self::Error>;

    /// Always ready: a connection that is closed says so when it is asked to send.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (answer, sender, end) = (self.sender.send_request(request), self.sender.clone(), self.end.clone());
        Box::pin(async move {
            let error = match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !error.is_canceled() && !sender.is_closed() {
                return Err(error.into()); // the other side gave up this call alone, and said so
            }
            // The connection ends in this moment, if it has not yet.
            let end = tokio::time::timeout(LAST_WORDS, end).await;
            Err(end.ok().flatten().map_or_else(|| BoxError::from(error), |reason| Ended(reason).into()))
        })
    }
}
