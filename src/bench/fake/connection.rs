//! One connection of a client: request after request, each answered in as few writes as its pace allows.

use std::io::{self, Write as _};
use std::sync::Arc;

use anyhow::ensure;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::route::Route;
use super::wire::{Reply, Script};
use super::worker::Worker;
use crate::bench::http::request_head;
use crate::cli::FakeTransport;

/// Room for what one read brings.
const ROOM: usize = 16 << 10;
/// Longest body of a request.
const BODY_LIMIT: usize = 64 << 20;
/// Bytes after which a stream that does not pause is written out.
const FLUSH: usize = 64 << 10;

/// Answers until the client leaves, or the worker is closed and the running request has ended.
pub(super) async fn serve(stream: TcpStream, worker: Arc<Worker>, closed: CancellationToken) {
    // Small pieces must leave at once; a failure here costs latency only.
    let _ = stream.set_nodelay(true);
    let mut connection = Connection { stream, inbox: Vec::new(), body: Vec::new(), outbox: Vec::new() };
    let served = async {
        let mut closing = std::pin::pin!(closed.cancelled());
        loop {
            let request = tokio::select! {
                biased;
                request = connection.request(worker.transport) => request?,
                () = &mut closing => return Ok(()),
            };
            let Some(request) = request else { return Ok(()) };
            let (reply, _running) = worker.answer(request.route, &connection.body);
            connection.outbox.clear();
            match reply {
                Reply::Whole { status, body, wait } => {
                    if !wait.is_zero() {
                        sleep(wait).await;
                    }
                    whole(&mut connection.outbox, status, &body, request.keep_alive);
                    connection.flush().await?;
                }
                Reply::Stream(script) => connection.stream(script, request.keep_alive).await?,
            }
            if !request.keep_alive {
                return Ok(());
            }
        }
    };
    let served: anyhow::Result<()> = served.await;
    if let Err(error) = served {
        tracing::debug!(error = format!("{error:#}"), "a connection broke off");
    }
}

/// A request whose body has been read.
#[derive(Debug, Clone, Copy)]
struct Request {
    route: Route,
    keep_alive: bool,
}

struct Connection {
    stream: TcpStream,
    /// What has come and has not been read.
    inbox: Vec<u8>,
    /// Of the request that is answered.
    body: Vec<u8>,
    /// What is to be written.
    outbox: Vec<u8>,
}

impl Connection {
    /// Reads the next request; nothing when the client has left.
    async fn request(&mut self, transport: FakeTransport) -> anyhow::Result<Option<Request>> {
        let (length, mut framing, waits, request) = loop {
            if let Some(head) = request_head(&self.inbox)? {
                let request = Request { route: Route::of(transport, head.path), keep_alive: head.keep_alive };
                break (head.length, head.framing, head.waits, request);
            }
            if self.more().await? == 0 {
                return Ok(None);
            }
        };
        self.inbox.drain(..length);
        if waits {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        self.body.clear();
        loop {
            let taken = framing.take(&self.inbox, |bytes| self.body.extend_from_slice(bytes))?;
            self.inbox.drain(..taken);
            if framing.ended() {
                return Ok(Some(request));
            }
            ensure!(self.body.len() <= BODY_LIMIT, "a request is longer than {BODY_LIMIT} bytes");
            ensure!(self.more().await? > 0, "a request broke off");
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.inbox.reserve(ROOM);
        self.stream.read_buf(&mut self.inbox).await
    }

    /// Writes a stream: each token at its time, all at once where there is no time between them.
    async fn stream(&mut self, mut script: Script<'_>, keep_alive: bool) -> io::Result<()> {
        let _ = write!(
            self.outbox,
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n{}\r\n",
            script.media,
            connection_header(keep_alive),
        );
        self.outbox.extend_from_slice(&script.opening);
        let (begin, pause) = (Instant::now(), script.length.pause);
        for number in 0..script.length.tokens {
            if number > 0 && !pause.is_zero() {
                self.flush().await?;
                // Counted from the beginning, so that late tokens do not add up.
                sleep_until(begin + pause.saturating_mul(number)).await;
            }
            script.token(number, &mut self.outbox);
            if self.outbox.len() >= FLUSH {
                self.flush().await?;
            }
        }
        self.outbox.extend_from_slice(&script.closing);
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }
}

/// An answer in one piece.
fn whole(out: &mut Vec<u8>, status: u16, body: &[u8], keep_alive: bool) {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\r\n",
        body.len(),
        connection_header(keep_alive),
    );
    out.extend_from_slice(body);
}

fn connection_header(keep_alive: bool) -> &'static str {
    if keep_alive { "" } else { "connection: close\r\n" }
}
