//! A request on its way through the pool: its texts may be on several threads at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Answer;
use super::head::Encoded;
use crate::engine::EngineError;

/// A request whose texts wait or run.
#[derive(Debug)]
pub(super) struct Pending {
    open: Mutex<Option<Open>>,
    /// Whether a text of it runs or has run.
    begun: AtomicBool,
}

/// What is left to do for it.
#[derive(Debug)]
struct Open {
    reply: oneshot::Sender<Answer>,
    /// One for each text, once it is encoded.
    encoded: Vec<Option<Encoded>>,
    missing: usize,
    /// Its room among the requests and among the tokens.
    room: [OwnedSemaphorePermit; 2],
}

impl Pending {
    pub(super) fn new(texts: usize, reply: oneshot::Sender<Answer>, room: [OwnedSemaphorePermit; 2]) -> Self {
        let open = Open { reply, encoded: vec![None; texts], missing: texts, room };
        Self { open: Mutex::new(Some(open)), begun: AtomicBool::new(false) }
    }

    /// Whether anybody waits for its answer.
    pub(super) fn is_wanted(&self) -> bool {
        self.open(|open| open.as_ref().is_some_and(|open| !open.reply.is_closed()))
    }

    /// One of its texts is about to run.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether one of its texts runs or has run.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// One of its texts is encoded; the last one answers.
    pub(super) fn deliver(&self, index: usize, encoded: Encoded) {
        let finished = self.open(|slot| {
            let open = slot.as_mut()?;
            open.encoded[index] = Some(encoded);
            open.missing -= 1;
            if open.missing == 0 { slot.take() } else { None }
        });
        if let Some(mut open) = finished {
            let encoded = std::mem::take(&mut open.encoded);
            open.answer(Ok(encoded.into_iter().flatten().collect()));
        }
    }

    /// One of its texts cannot be encoded, which is the answer to all of it.
    pub(super) fn fail(&self, error: EngineError) {
        if let Some(open) = self.open(Option::take) {
            open.answer(Err(error));
        }
    }

    fn open<T>(&self, change: impl FnOnce(&mut Option<Open>) -> T) -> T {
        // Nothing in here leaves it half changed, so a thread that panicked has done no harm.
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Open {
    fn answer(self, answer: Answer) {
        drop(self.room); // whoever has the answer may ask again at once
        let _ = self.reply.send(answer); // the client may have gone away meanwhile
    }
}
