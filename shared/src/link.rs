//! The link between a gateway and its controller: one connection over which dispatches, grants and releases travel, as
//! many in one write as are ready.
//!
//! `GET /link` with `Upgrade: muster-link-4` is answered with `101 Switching Protocols`; then both sides send messages, in
//! any order, each after its length as a little-endian `u32`. The gateway's first message is [`Ask::Hello`]. A call over
//! HTTP for every dispatch would be a second request beside every request.
//!
//! A message is JSON, but for those that come by the thousand (dispatches, grants, releases), which are in
//! [postcard](https://docs.rs/postcard)'s form ([`brief`]): a third of the cost.

pub mod brief;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::{Dispatch, Fleet, Grant, Held, Release};
use crate::id::{GatewayId, TicketId};
use crate::problem::{BoxError, Problem};

/// The value of `Upgrade`. Its number grows when what is said changes, for both sides have one form of it only.
pub const PROTOCOL: &str = "muster-link-4";
/// Longest message that is read, in bytes: a fleet of ten thousand workers, twice over.
const LONGEST: usize = 16 << 20;
/// Bytes of a message's length.
const LENGTH: usize = 4;
/// Room made for each read, in bytes.
const READ: usize = 16 << 10;

/// What a gateway says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The first message: who speaks, and every request it has in flight. Other tickets of this gateway are lost.
    Hello {
        /// Who will hold the tickets.
        gateway: GatewayId,
        /// The process that it is a thread of.
        process: Process,
        /// What it holds already, from a time before this link.
        held: Vec<Held>,
    },
    /// Which worker shall answer? Answered with [`Tell::Grant`] or [`Tell::Refusal`] of the same number.
    Dispatch {
        /// Numbers the question; unique among those without an answer.
        id: u32,
        /// The question.
        dispatch: Dispatch,
    },
    /// Whoever wanted that dispatch has gone.
    Abandon {
        /// Its number.
        id: u32,
    },
    /// A request has ended.
    Release(Release),
    /// The gateway lives, and so do its tickets. Answered with [`Tell::Fleet`].
    Sync {
        /// Requests in flight that the controller did not know when it was last told.
        claims: Vec<Held>,
    },
}

/// A gateway's process, whose threads have links of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The same for all its threads, and for no other process.
    pub id: GatewayId,
    /// Base URL at which it listens, as it knows it.
    pub address: String,
    /// Its version.
    pub version: String,
}

/// What the controller says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    /// A worker, by its ticket.
    Grant {
        /// The dispatch that it answers.
        id: u32,
        /// The worker.
        grant: Grant,
    },
    /// No worker.
    Refusal {
        /// The dispatch that it answers.
        id: u32,
        /// Why.
        problem: Problem,
    },
    /// The answer to [`Ask::Hello`] and [`Ask::Sync`].
    Fleet {
        /// Every worker and every model.
        fleet: Box<Fleet>,
        /// Of the requests told, those whose workers the controller does not know yet: tell them again.
        unknown: Vec<TicketId>,
    },
}

/// One end of a link.
#[derive(Debug)]
pub struct Link<S> {
    stream: S,
    incoming: BytesMut,
    outgoing: BytesMut,
}

/// What can be said over a link.
pub trait Message: Sized {
    /// Appends it.
    fn write(&self, to: &mut BytesMut);

    /// Reads what [`Message::write`] wrote.
    ///
    /// # Errors
    /// Why it is none.
    fn read(bytes: &[u8]) -> Result<Self, BoxError>;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Speaks over a connection.
    pub fn new(stream: S) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// Queues a message; [`Link::exchange`] sends it.
    pub fn queue(&mut self, message: &impl Message) {
        let begin = self.outgoing.len();
        self.outgoing.extend_from_slice(&[0; LENGTH]);
        message.write(&mut self.outgoing);
        let length = u32::try_from(self.outgoing.len() - begin - LENGTH).unwrap_or(u32::MAX);
        self.outgoing[begin..begin + LENGTH].copy_from_slice(&length.to_le_bytes());
    }

    /// Whether everything queued has been sent.
    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Sends what is queued, and resolves when more has come: [`Link::take`] has it. Nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// When the connection breaks or ends.
    pub async fn exchange(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_exchange(cx)).await
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// The next message of those that have come.
    ///
    /// # Errors
    /// When it is none, or too long.
    pub fn take<M: Message>(&mut self) -> io::Result<Option<M>> {
        let Some(length) = self.incoming.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > LONGEST {
            return Err(invalid(format!("a message of {length} bytes is longer than {LONGEST}")));
        }
        if self.incoming.len() < LENGTH + length {
            return Ok(None);
        }
        let message = M::read(&self.incoming[LENGTH..LENGTH + length]).map_err(invalid)?;
        self.incoming.advance(LENGTH + length);
        Ok(Some(message))
    }

    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sending never waits for receiving, nor the other way round: two ends that both send much do not block.
        if let Poll::Ready(sent) = self.poll_send(cx) {
            sent?;
        }
        self.incoming.reserve(READ);
        match ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.incoming))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(sent);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

fn invalid(why: impl Into<BoxError>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn abandon(id: u32) -> Ask {
        Ask::Abandon { id }
    }

    #[tokio::test]
    async fn messages_arrive_in_order_however_the_bytes_are_cut() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut link = Link::new(near);
        let mut sent = Link::new(tokio::io::duplex(1).0);
        (0..50).for_each(|id| sent.queue(&abandon(id)));
        let bytes = sent.outgoing.clone();
        let mut got = Vec::new();
        for piece in bytes.chunks(7) {
            far.write_all(piece).await.expect("there is room");
            link.exchange().await.expect("it goes on");
            while let Some(message) = link.take::<Ask>().expect("a message") {
                got.push(message);
            }
        }
        assert_eq!(got, (0..50).map(abandon).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn two_ends_that_both_send_more_than_fits_do_not_block() {
        let (near, far) = tokio::io::duplex(64);
        let (mut near, mut far) = (Link::new(near), Link::new(far));
        for link in [&mut near, &mut far] {
            (0..100).for_each(|id| link.queue(&abandon(id)));
        }
        async fn all(mut link: Link<tokio::io::DuplexStream>) -> usize {
            let mut got = 0;
            while got < 100 || !link.is_flushed() {
                if got == 100 {
                    link.flush().await.expect("it goes on");
                    continue;
                }
                link.exchange().await.expect("it goes on");
                while link.take::<Ask>().expect("a message").is_some() {
                    got += 1;
                }
            }
            link.flush().await.expect("it goes on");
            got
        }
        assert_eq!(tokio::join!(all(near), all(far)), (100, 100));
    }

    #[tokio::test]
    async fn garbage_and_the_end_are_errors() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut link = Link::new(near);
        far.write_all(b"\x0a\0\0\0{\"what\":1}").await.expect("there is room");
        link.exchange().await.expect("it goes on");
        assert_eq!(link.take::<Ask>().expect_err("no message").kind(), io::ErrorKind::InvalidData);
        drop(far);
        assert_eq!(link.exchange().await.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }
}
