//! Answers over HTTP/2, each of which can be ended alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::rt::Executor;
use tokio::sync::Notify;

/// What stands for a time at which nobody began to wait.
const NEVER: u64 = u64::MAX;

tokio::task_local! {
    /// The one that the task answers.
    static STREAM: Arc<Stream>;
}

/// One request over HTTP/2 and its answer.
#[derive(Debug)]
pub(super) struct Stream {
    /// When the client was last given a piece for which it has no room yet, in milliseconds since its connection began.
    waits: AtomicU64,
    given_up: Notify,
}

impl Stream {
    /// Since when the client is waited for.
    pub(super) fn waits(&self) -> Option<u64> {
        Some(self.waits.load(Ordering::Relaxed)).filter(|since| *since != NEVER)
    }

    pub(super) fn wait(&self, since: Option<u64>) {
        self.waits.store(since.unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// Ends it; its client is told by a RST_STREAM.
    pub(super) fn give_up(&self) {
        self.given_up.notify_one();
    }
}

/// The one that this task answers, where it is one over HTTP/2.
pub(super) fn current() -> Option<Arc<Stream>> {
    STREAM.try_with(Arc::clone).ok()
}

/// Answers every stream of a connection on a task of its own. When such a task lets its stream go before the end, hyper
/// resets it, and lets go what waits to be sent on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, answering: F) {
        let stream = Arc::new(Stream { waits: AtomicU64::new(NEVER), given_up: Notify::new() });
        let given_up = Arc::clone(&stream);
        tokio::spawn(STREAM.scope(stream, async move {
            tokio::select! {
                biased;
                () = answering => {}
                () = given_up.given_up.notified() => {}
            }
        }));
    }
}
