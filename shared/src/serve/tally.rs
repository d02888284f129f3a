//! What a connection does, as far as it matters for how long it may stay.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Connections that are looked at for one that can be closed, when there are as many as there may be.
const LOOKS: usize = 64;

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
    /// When somebody last wanted more of each answer over HTTP/2, in milliseconds since the beginning.
    answers: Mutex<Vec<Weak<AtomicU64>>>,
}

impl Tally {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            running: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            upgraded: AtomicBool::new(false),
            answers: Mutex::default(),
        })
    }

    /// Whether bytes that come belong to requests that have begun, or to no request at all.
    pub(super) fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0 || self.upgraded.load(Ordering::Relaxed)
    }

    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running { tally: Arc::clone(self), wanted: None }
    }

    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until there is an answer over HTTP/2 that nobody has wanted for so long. Such a client leaves no byte
    /// unread: it gives the answer no window.
    pub(super) async fn stalled(&self, patience: Duration) {
        let most = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let mut looks = tokio::time::interval(patience / 4 + Duration::from_millis(1));
        loop {
            looks.tick().await;
            let now = self.now();
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.retain(|answer| answer.strong_count() > 0);
            let late = |wanted: Arc<AtomicU64>| now.saturating_sub(wanted.load(Ordering::Relaxed)) >= most;
            if answers.iter().filter_map(Weak::upgrade).any(late) {
                return;
            }
        }
    }
}

/// A request that is being answered, up to the end of its answer's body.
#[derive(Debug)]
pub(super) struct Running {
    tally: Arc<Tally>,
    wanted: Option<Arc<AtomicU64>>,
}

impl Running {
    /// From now on somebody must want more of the answer, now and then.
    pub(super) fn watch(&mut self) {
        let wanted = Arc::new(AtomicU64::new(self.tally.now()));
        self.tally.answers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&wanted));
        self.wanted = Some(wanted);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tally.running.fetch_sub(1, Ordering::Relaxed);
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
        if let Some(wanted) = &self.running.wanted {
            wanted.store(self.running.tally.now(), Ordering::Relaxed);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connections of one listener, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Crowd(VecDeque<(Arc<Tally>, AbortHandle)>);

impl Crowd {
    pub(super) fn join(&mut self, tally: Arc<Tally>, task: AbortHandle, running: usize) {
        if self.0.len() > 2 * running + LOOKS {
            self.0.retain(|(_, task)| !task.is_finished());
        }
        self.0.push_back((tally, task));
    }

    /// Closes a connection on which no request runs, one of the older ones; `false` where every one is busy.
    pub(super) fn close_one(&mut self) -> bool {
        for _ in 0..self.0.len().min(LOOKS) {
            let Some((tally, task)) = self.0.pop_front() else { return false };
            if task.is_finished() {
                continue; // it ended by itself, and is counted no more
            }
            if !tally.is_busy() {
                task.abort();
                return true;
            }
            self.0.push_back((tally, task));
        }
        false
    }
}
