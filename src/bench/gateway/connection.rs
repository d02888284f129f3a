//! One connection that is kept, and the answers that come over it.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::events::{Events, error_of, message_of};
use crate::bench::http::{Framing, ResponseHead, response_head};

/// Room for what one read brings.
const ROOM: usize = 16 << 10;
/// Bytes of a body that are kept to tell errors by.
const KEPT: usize = 2 << 10;
/// Letters of an answer that an error shows.
const SHOWN: usize = 200;

/// An answer on its way; made once for a client and used again.
#[derive(Debug)]
pub(in crate::bench) struct Answer {
    pub(in crate::bench) status: u16,
    /// The beginning of the body.
    pub(in crate::bench) start: Vec<u8>,
    /// How much of it is kept.
    kept: usize,
    /// Of an answer that comes in pieces.
    pub(in crate::bench::gateway) events: Option<Events>,
}

impl Answer {
    /// Of which only a beginning is kept.
    pub(in crate::bench) fn new(streamed: bool) -> Self {
        Self { status: 0, start: Vec::new(), kept: KEPT, events: streamed.then(Events::new) }
    }

    /// Of which so many bytes are kept.
    pub(in crate::bench) fn keeping(self, kept: usize) -> Self {
        Self { kept, ..self }
    }

    fn clear(&mut self) {
        self.status = 0;
        self.start.clear();
        if let Some(events) = &mut self.events {
            events.clear();
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(self.kept - self.start.len());
        self.start.extend_from_slice(&bytes[..kept]);
        if let Some(events) = &mut self.events {
            events.push(bytes);
        }
    }

    /// Why it is no success, by its status.
    pub(in crate::bench) fn refusal(&self) -> Option<String> {
        if self.status == 200 {
            return None;
        }
        let status = StatusCode::from_u16(self.status).map_or(self.status.to_string(), |status| status.to_string());
        let reason = error_of(&self.start).or_else(|| message_of(&self.start)).unwrap_or_else(|| self.shown());
        Some(format!("the server answered {status}: {}", if reason.is_empty() { "no reason given" } else { &reason }))
    }

    /// Its beginning, in one line.
    pub(in crate::bench) fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.start);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect()
    }
}

/// Why an answer did not come to its end.
#[derive(Debug)]
pub(in crate::bench) struct Broken {
    /// Nothing of it had come. A server may close a connection it has kept at any time, so a client must try another.
    pub(in crate::bench) early: bool,
    pub(in crate::bench) reason: anyhow::Error,
}

/// A connection to the server.
#[derive(Debug)]
pub(in crate::bench) struct Connection {
    stream: TcpStream,
    /// What has come and has not been read.
    inbox: Vec<u8>,
}

impl Connection {
    pub(in crate::bench) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, inbox: Vec::with_capacity(ROOM) })
    }

    /// Sends a request and reads the answer to its end; calls `arrived` after each read. Tells whether another request
    /// may follow on this connection.
    pub(in crate::bench) async fn exchange(
        &mut self,
        request: &[u8],
        answer: &mut Answer,
        mut arrived: impl FnMut(&mut Answer),
    ) -> Result<bool, Broken> {
        answer.clear();
        let head = match self.begin(request).await {
            Ok(head) => head,
            Err(reason) => return Err(Broken { early: self.inbox.is_empty(), reason }),
        };
        answer.status = head.status;
        self.body(head.framing, answer, &mut arrived).await.map_err(|reason| Broken { early: false, reason })?;
        Ok(head.keep_alive)
    }

    /// Sends the request; the head of the answer is taken from the inbox.
    async fn begin(&mut self, request: &[u8]) -> anyhow::Result<ResponseHead> {
        self.stream.write_all(request).await.context("the server closed the connection")?;
        loop {
            match response_head(&self.inbox).context("the server does not speak HTTP")? {
                Some(head) => {
                    self.inbox.drain(..head.length);
                    // What comes before the answer (100 Continue, 103 Early Hints) is none.
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                None if self.more().await? == 0 => {
                    return Err(anyhow!("the server closed the connection without an answer"));
                }
                None => {}
            }
        }
    }

    async fn body(
        &mut self,
        mut framing: Framing,
        answer: &mut Answer,
        arrived: &mut impl FnMut(&mut Answer),
    ) -> anyhow::Result<()> {
        loop {
            let taken = framing.take(&self.inbox, |bytes| answer.data(bytes))?;
            self.inbox.drain(..taken);
            arrived(answer);
            if framing.ended() {
                return Ok(());
            }
            if self.more().await? == 0 {
                let whole = framing == Framing::Close;
                return if whole { Ok(()) } else { Err(anyhow!("the server broke the answer off")) };
            }
        }
    }

    async fn more(&mut self) -> anyhow::Result<usize> {
        self.inbox.reserve(ROOM);
        self.stream.read_buf(&mut self.inbox).await.context("the server broke the connection off")
    }
}
