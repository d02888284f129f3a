//! HTTP/1.1 to workers, without a task between worker and client.
//!
//! A connection is driven by whoever waits for its answer: the task of the client's own connection. So a chunk of an
//! answer wakes one task, a client that leaves closes its worker's connection by a drop, and a client that does not
//! read is not read for. What is ready is handed on together, to be written once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use muster_shared::problem::BoxError;
use muster_shared::tls::{Connector, MaybeTls, Tls};
use tokio::net::TcpStream;

/// Connections kept for one worker, at most.
const KEPT: usize = 512;
/// How long a connection is kept unused; most servers close theirs after 60 s or more, and ours must not be the one that
/// is closing when a request is sent.
const IDLE: Duration = Duration::from_secs(50);
/// Bytes of an answer handed on at once.
const BATCH: usize = 64 << 10;
/// Longest head of an answer, in bytes.
const HEAD: usize = 64 << 10;
/// Most headers of an answer.
const HEADERS: usize = 100;

/// Why an exchange with a worker failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// No connection: nothing of the request has been seen by anyone.
    #[error("no connection")]
    Connect(#[source] BoxError),
    /// The connection broke, or what came over it was not HTTP.
    #[error("the connection broke")]
    Broken(#[source] BoxError),
}

impl WireError {
    fn broken(error: impl Into<BoxError>) -> Self {
        Self::Broken(error.into())
    }
}

/// Where a worker listens, as far as it can be reached over HTTP.
#[derive(Debug, Clone)]
struct Target {
    /// Host and port to connect to.
    authority: String,
    /// The name that its certificate must have, where it speaks TLS.
    name: Option<String>,
    /// Path before every path of ours; empty for most.
    prefix: String,
    host: HeaderValue,
}

/// How connections are made. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    /// Longest time that it may take.
    connect: Duration,
    connector: Connector,
}

impl Dial {
    /// As a fleet's certificates say.
    pub(crate) fn new(tls: &Tls, connect: Duration) -> Self {
        Self { connect, connector: tls.connector() }
    }
}

impl From<Duration> for Dial {
    fn from(connect: Duration) -> Self {
        Self::new(&Tls::default(), connect)
    }
}

/// Connections to one worker.
#[derive(Debug)]
pub(crate) struct Pool {
    target: Result<Target, String>,
    dial: Dial,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// No connections yet, to the worker at a base URL.
    pub(crate) fn new(address: &str, dial: impl Into<Dial>) -> Self {
        Self { target: target(address), dial: dial.into(), idle: Mutex::default() }
    }

    /// Sends a request, and waits for the head of the answer.
    ///
    /// A connection that was kept may have been closed by the worker in the very moment: then the request is sent once
    /// more, over a new one.
    ///
    /// # Errors
    /// See [`WireError`].
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<(Response<()>, Answer), WireError> {
        let target = self.target.as_ref().map_err(|reason| WireError::Connect(reason.as_str().into()))?;
        request.headers_mut().insert(HOST, target.host.clone());
        if !target.prefix.is_empty() {
            let path = format!("{}{}", target.prefix, request.uri());
            *request.uri_mut() =
                path.parse().map_err(|error: hyper::http::uri::InvalidUri| WireError::broken(error))?;
        }
        if let Some(connection) = self.take() {
            match connection.exchange(request.clone()).await {
                Ok(answered) => return Ok(answered),
                Err(error) => tracing::trace!(%error, "a kept connection was of no more use"),
            }
        }
        self.connect(target).await?.exchange(request).await
    }

    /// Takes back a connection whose answer has been read to its end.
    pub(crate) fn give_back(&self, connection: Connection) {
        let mut idle = self.lock();
        if idle.len() < KEPT {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes connections that were not used for long.
    pub(crate) fn tidy(&self) {
        let now = Instant::now();
        let old: Vec<Idle> = {
            let mut idle = self.lock();
            // The last one given back is the first taken: the oldest stand in front.
            let fresh = idle.iter().position(|idle| now - idle.since < IDLE).unwrap_or(idle.len());
            idle.drain(..fresh).collect()
        };
        drop(old); // outside of the lock
    }

    /// A kept connection that is still open, as far as is known here.
    fn take(&self) -> Option<Connection> {
        loop {
            let Idle { mut connection, since } = self.lock().pop()?;
            if since.elapsed() < IDLE && connection.is_usable() {
                return Some(connection);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self, target: &Target) -> Result<Connection, WireError> {
        let connected = tokio::time::timeout(self.dial.connect, self.reach(target)).await;
        let stream = connected.map_err(|late| WireError::Connect(late.into()))?;
        let stream = stream.map_err(|error| WireError::Connect(error.into()))?;
        let handshake =
            http1::Builder::new().max_header_size(HEAD).max_headers(HEADERS).handshake(TokioIo::new(stream));
        let (sender, driver) = handshake.await.map_err(|error| WireError::Connect(error.into()))?;
        Ok(Connection { sender, driver: Box::new(driver) })
    }

    async fn reach(&self, target: &Target) -> std::io::Result<MaybeTls> {
        let stream = TcpStream::connect(&target.authority).await?;
        let _ = stream.set_nodelay(true); // a failure costs latency only
        match &target.name {
            Some(name) => self.dial.connector.connect(name, stream).await,
            None => Ok(MaybeTls::Plain(stream)),
        }
    }
}

fn target(address: &str) -> Result<Target, String> {
    let uri: hyper::Uri = address.parse().map_err(|error| format!("`{address}` is not a URL: {error}"))?;
    let is_secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(format!("`{address}` is reached over neither http nor https, which is all a gateway speaks")),
    };
    let authority = uri.authority().ok_or_else(|| format!("`{address}` has no host"))?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| format!("`{address}`: {error}"))?;
    let name = is_secure.then(|| authority.host().to_owned());
    let authority = match authority.port_u16() {
        Some(_) => authority.as_str().to_owned(),
        None => format!("{authority}:{}", if is_secure { 443 } else { 80 }),
    };
    Ok(Target { authority, name, prefix: uri.path().trim_end_matches('/').to_owned(), host })
}

type Driver = http1::Connection<TokioIo<MaybeTls>, Full<Bytes>>;

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Box<Driver>,
}

impl Connection {
    /// Whether nothing has come over it since its last answer, neither its end nor anything else.
    fn is_usable(&mut self) -> bool {
        let mut unheard = Context::from_waker(Waker::noop());
        Pin::new(&mut self.driver).poll(&mut unheard).is_pending() && self.sender.is_ready()
    }

    async fn exchange(mut self, request: Request<Full<Bytes>>) -> Result<(Response<()>, Answer), WireError> {
        let mut response = std::pin::pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        let response = poll_fn(|cx| {
            let driven = Pin::new(&mut *driver).poll(cx);
            // Only the driver, which has just run here, brings the response: it need not wake this task.
            match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(response) => Poll::Ready(response.map_err(WireError::broken)),
                Poll::Pending => match driven {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(WireError::broken(error))),
                    Poll::Ready(Ok(())) => Poll::Ready(Err(WireError::broken("it was closed without an answer"))),
                    Poll::Pending => Poll::Pending,
                },
            }
        })
        .await?;
        let (head, body) = response.into_parts();
        let answer = Answer { connection: Some(self), body, read: Read::Begun, driver_ended: false };
        Ok((Response::from_parts(head, ()), answer))
    }
}

/// The body of an answer, with the connection that brings it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Absent after the last byte, if it can be used again.
    connection: Option<Connection>,
    body: Incoming,
    read: Read,
    driver_ended: bool,
}

/// How far a body has been read. The body itself tells its end and its error only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Begun,
    Whole,
    Broken,
}

impl Answer {
    /// What has come of the body, as much as is there; `None` after the last byte.
    ///
    /// # Errors
    /// [`WireError::Broken`] when it ends too early, or is not HTTP.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        let mut first: Option<Bytes> = None;
        let mut more: Option<BytesMut> = None;
        loop {
            match self.poll_frame(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    let Some(begun) = &first else {
                        first = Some(data);
                        continue;
                    };
                    let batch = more.get_or_insert_with(|| BytesMut::from(&begun[..]));
                    batch.extend_from_slice(&data);
                    if batch.len() >= BATCH {
                        break;
                    }
                }
                // What came before an error or the end is handed on first; both are found again.
                Poll::Ready(Some(Err(error))) if first.is_none() => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) if first.is_none() => return Poll::Ready(None),
                Poll::Pending if first.is_none() => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => {
                    tracing::trace!(%error, "an answer broke after its last bytes");
                    self.driver_ended = true;
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(more.map(BytesMut::freeze).or(first).map(Ok))
    }

    /// What has come of the body; `None` after the last byte.
    pub(crate) async fn data(&mut self) -> Option<Result<Bytes, WireError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// The connection of an answer that was read to its end, if it can be used again.
    pub(crate) fn into_connection(mut self) -> Option<Connection> {
        if self.driver_ended || self.read != Read::Whole {
            return None;
        }
        let mut connection = self.connection.take()?;
        connection.is_usable().then_some(connection)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        loop {
            if let Poll::Ready(frame) = self.poll_body() {
                return Poll::Ready(frame);
            }
            let Some(connection) = self.connection.as_mut().filter(|_| !self.driver_ended) else {
                return Poll::Ready(Some(Err(WireError::broken("it ended before its last byte"))));
            };
            match Pin::new(&mut connection.driver).poll(cx) {
                Poll::Ready(_) => self.driver_ended = true, // the body knows why
                Poll::Pending => return self.poll_body(),
            }
        }
    }

    /// What the driver has left in the body. It alone fills it, and runs in this task: the body need not wake it.
    fn poll_body(&mut self) -> Poll<Option<Result<Bytes, WireError>>> {
        match self.read {
            Read::Begun => {}
            Read::Whole => return Poll::Ready(None),
            Read::Broken => return Poll::Ready(Some(Err(WireError::broken("it ended before its last byte")))),
        }
        let mut unheard = Context::from_waker(Waker::noop());
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(&mut unheard)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                    _ => {} // trailers tell nothing that is passed on
                },
                Some(Err(error)) => {
                    self.read = Read::Broken;
                    return Poll::Ready(Some(Err(WireError::broken(error))));
                }
                None => {
                    self.read = Read::Whole;
                    return Poll::Ready(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
