//! What a connection does, as far as it matters for how long it may stay.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::crowd::Counts;
use super::streams::{self, Stream};

/// Answers that are remembered before those that have ended are forgotten.
const FEW: usize = 64;

/// One connection.
#[derive(Debug)]
pub(super) struct Tally {
    since: Instant,
    /// Requests that are being answered.
    running: AtomicUsize,
    /// Requests that have come.
    begun: AtomicUsize,
    /// It has become something else, whose bytes are no requests.
    upgraded: AtomicBool,
    /// It speaks HTTP/2.
    many: AtomicBool,
    /// What is answered over HTTP/2.
    answers: Mutex<Vec<Weak<Stream>>>,
    /// Those of which it is one.
    counts: Arc<Counts>,
    /// It is counted there no more.
    gone: AtomicBool,
}

/// Why a connection should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nobody reads the only answers on it.
    Unread,
    /// It speaks HTTP/2, and has asked nothing for long.
    Idle,
}

impl Tally {
    pub(super) fn new(counts: &Arc<Counts>) -> Arc<Self> {
        counts.come();
        Arc::new(Self {
            since: Instant::now(),
            running: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            upgraded: AtomicBool::new(false),
            many: AtomicBool::new(false),
            answers: Mutex::default(),
            counts: Arc::clone(counts),
            gone: AtomicBool::new(false),
        })
    }

    /// Whether bytes that come belong to requests that have begun, or to no request at all.
    pub(super) fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0 || self.upgraded.load(Ordering::Relaxed)
    }

    /// Whether it has been seen to speak HTTP/2.
    pub(super) fn is_many(&self) -> bool {
        self.many.load(Ordering::Relaxed)
    }

    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// A request has come, over HTTP/2 if `many`.
    pub(super) fn begin(self: &Arc<Self>, many: bool) -> Running {
        if many {
            self.many.store(true, Ordering::Relaxed);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        if self.running.fetch_add(1, Ordering::Relaxed) == 0 {
            self.counts.begin();
        }
        Running { tally: Arc::clone(self), stream: None }
    }

    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// It counts no more among those of its listener. Further calls do nothing.
    pub(super) fn leave(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            self.counts.go();
        }
    }

    fn now(&self) -> u64 {
        millis(self.since.elapsed())
    }

    /// Ends answers over HTTP/2 that nobody has read for `stalled`, and waits until the connection should end as well:
    /// nothing else lives on it, or nothing has lived on it for `idle`.
    ///
    /// Over HTTP/1 all of that is seen by its reads and writes.
    pub(super) async fn look_after(&self, stalled: Duration, idle: Duration) -> Left {
        let mut looks = tokio::time::interval(stalled.min(idle) / 4 + Duration::from_millis(1));
        let mut quiet: Option<(usize, Instant)> = None;
        loop {
            looks.tick().await;
            if !self.is_many() {
                continue;
            }
            let late = self.end_unread(stalled);
            if late > 0 && self.running.load(Ordering::Relaxed) <= late {
                return Left::Unread;
            }
            let begun = self.begun();
            match quiet {
                _ if self.is_busy() => quiet = None,
                Some((before, since)) if before == begun => {
                    if since.elapsed() >= idle {
                        return Left::Idle;
                    }
                }
                _ => quiet = Some((begun, Instant::now())),
            }
        }
    }

    /// Ends the answers of which nobody wanted more for so long, and counts them. Such a client leaves no byte unread: it
    /// gives the answer no window.
    fn end_unread(&self, stalled: Duration) -> usize {
        let (now, most, mut late) = (self.now(), millis(stalled), 0);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|answer| {
            let Some(stream) = answer.upgrade() else { return false };
            let is_late = stream.waits().is_some_and(|since| now.saturating_sub(since) >= most);
            if is_late {
                tracing::debug!("an answer is given up: its client wanted nothing of it for too long");
                super::refused("unread");
                stream.give_up();
                late += 1;
            }
            !is_late
        });
        late
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A request that is being answered, up to the end of its answer's body.
#[derive(Debug)]
pub(super) struct Running {
    tally: Arc<Tally>,
    stream: Option<Arc<Stream>>,
}

impl Running {
    /// From now on somebody must read the answer, if it is one over HTTP/2: over HTTP/1 a client that wants nothing reads
    /// nothing, which is seen without.
    pub(super) fn watch(&mut self) {
        let Some(stream) = streams::current() else { return };
        let most = 2 * self.tally.running.load(Ordering::Relaxed) + FEW;
        let mut answers = self.tally.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() > most {
            answers.retain(|answer| answer.strong_count() > 0);
        }
        answers.push(Arc::downgrade(&stream));
        drop(answers);
        self.stream = Some(stream);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.tally.running.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.tally.counts.end();
        }
    }
}

/// The body of an answer, until whose end its request runs.
pub(super) struct Answer<B> {
    pub(super) body: B,
    pub(super) running: Running,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(stream) = &self.running.stream {
            // The next one is asked for when this one has found room. Where there is none to give, it is not the
            // client that is waited for.
            let given = matches!(frame, Poll::Ready(Some(Ok(_))));
            stream.wait(given.then(|| self.running.tally.now()));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
