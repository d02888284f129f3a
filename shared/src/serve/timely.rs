//! A body that must come in time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::problem::BoxError;

/// Bytes a second that a body must bring on the whole; so little is no line, but somebody who holds a request open.
pub const RATE: u32 = 1024;

/// Why a body was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooSlow {
    /// Nothing came.
    #[error("nothing came of the rest of the body for {} seconds; send it without such pauses", .0.as_secs_f32())]
    Silent(Duration),
    /// Something came, but it took too long.
    #[error("the body comes at less than {RATE} bytes a second; {received} bytes came in {} seconds", .taken.as_secs())]
    Dripping {
        /// How much came.
        received: u64,
        /// In that time.
        taken: Duration,
    },
}

/// A body whose sender may pause for so long, and must send a kibibyte a second on the whole, of which one such pause is
/// forgiven. What is there already is not looked at: a body that came with its head costs no clock.
#[derive(Debug)]
pub struct Timely<B> {
    body: B,
    pause: Duration,
    received: u64,
    /// Since somebody first had to wait.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    begun: Instant,
    /// When something came last.
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<B> Timely<B> {
    /// The same body, which may pause for so long.
    pub fn new(body: B, pause: Duration) -> Self {
        Self { body, pause, received: 0, waiting: None }
    }

    /// Ready when the time is over.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<TooSlow> {
        let (pause, received) = (self.pause, self.received);
        let waiting = self.waiting.get_or_insert_with(|| Waiting::new(pause));
        let owed = Duration::from_secs(received) / RATE;
        loop {
            let until = (waiting.last + pause).min(waiting.begun + pause + owed);
            if waiting.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending; // it may go off too early, which is seen then
            }
            let now = Instant::now();
            if until > now {
                waiting.timer.as_mut().reset(until);
                continue;
            }
            return Poll::Ready(match now - waiting.last < pause {
                true => TooSlow::Dripping { received, taken: now - waiting.begun },
                false => TooSlow::Silent(pause),
            });
        }
    }
}

impl Waiting {
    fn new(pause: Duration) -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, timer: Box::pin(tokio::time::sleep_until(now + pause)) }
    }
}

impl<B> Body for Timely<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return self.poll_late(cx).map(|slow| Some(Err(slow.into())));
        };
        if let Some(Ok(frame)) = &frame {
            self.received += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            if let Some(waiting) = &mut self.waiting {
                waiting.last = Instant::now();
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether reading a body failed because it came too slowly.
pub fn too_slow(error: &(dyn std::error::Error + 'static)) -> Option<TooSlow> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(slow) = error.downcast_ref::<TooSlow>() {
            return Some(*slow);
        }
        cause = error.source();
    }
    None
}
