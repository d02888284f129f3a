//! A connection that is given up when its peer takes too long.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Patience;
use super::tally::Tally;
use crate::tls::MaybeTls;

/// A connection whose peer must send requests and read what is sent to it, within a time.
pub(super) struct Impatient {
    stream: MaybeTls,
    patience: Patience,
    /// Runs while the peer reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    tally: Arc<Tally>,
    /// What it was last seen to do, and of how many requests that was.
    state: (Talk, usize),
    /// When it must have done something else; absent while requests run, which have clocks of their own.
    until: Option<Instant>,
    /// Goes off at that time, or before.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What a peer does on whose requests nobody works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    /// Nothing.
    Idle,
    /// It sends a head.
    Head,
    /// It speaks HTTP/2, and sends frames.
    Frames,
}

impl Impatient {
    pub(super) fn new(stream: MaybeTls, patience: Patience, tally: Arc<Tally>) -> Self {
        Self { stream, patience, stalled: None, tally, state: (Talk::Idle, 0), until: None, timer: None }
    }

    /// What becomes of a write: one that must wait is watched.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience.stalled;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if stalled.as_mut().poll(cx).is_ready() {
            super::refused("unread");
            return Poll::Ready(Err(timed_out("the peer read nothing", patience)));
        }
        Poll::Pending
    }

    /// Takes note of what the peer does.
    fn note(&mut self, came: &[u8]) {
        let begun = self.tally.begun();
        if self.tally.is_busy() || begun != self.state.1 {
            // The words with which it begins may have come in pieces.
            let many = self.state.0 == Talk::Frames || self.tally.is_many();
            let talk = if many { Talk::Frames } else { Talk::Idle };
            (self.state, self.until) = ((talk, begun), None);
        }
        if !came.is_empty() && self.state.0 == Talk::Idle && !self.tally.is_busy() {
            let (talk, patience) = match begun == 0 && came.starts_with(b"PRI ") {
                true => (Talk::Frames, self.patience.idle),
                false => (Talk::Head, self.patience.head),
            };
            (self.state.0, self.until) = (talk, Some(Instant::now() + patience));
        }
    }

    /// Ready when the peer has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Error> {
        // Over HTTP/2 somebody else looks after it from its first request on: see `Tally::look_after`.
        if self.tally.is_busy() || self.state.0 == Talk::Frames && self.state.1 > 0 {
            return Poll::Pending;
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience.idle);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if until <= Instant::now() {
                return Poll::Ready(self.late(cx));
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// Gives the peer up, and tells it so if it speaks HTTP/1 and takes it at once.
    fn late(&mut self, cx: &mut Context<'_>) -> std::io::Error {
        if self.state.0 == Talk::Head {
            super::refused("head_too_slow");
            let body = self.patience.late;
            let answer = format!(
                "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = Pin::new(&mut self.stream).poll_write(cx, answer.as_bytes());
            return timed_out("the head of a request did not end", self.patience.head);
        }
        timed_out("no request came", self.patience.idle)
    }
}

fn timed_out(what: &str, patience: Duration) -> std::io::Error {
    let message = format!("{what} for {} seconds", patience.as_secs_f32());
    std::io::Error::new(std::io::ErrorKind::TimedOut, message)
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.note(&into.filled()[before..]);
        match read {
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending => self.poll_late(cx).map(Err),
        }
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
