//! The encoder of one text model: a pool of threads, each of which alone owns a session, and a handle to it.
//!
//! A request's texts go into one queue, run on whichever threads are free, in company that suits them, and come back
//! in their order.
//!
//! * `pool`: the threads; `pending`: a request whose texts are on several of them.
//! * [`queue`]: what waits, and whose turn it is; [`batch`]: how much runs together.
//! * [`head`]: what becomes of the graph's numbers; [`pooling`]: from the vectors of a text's tokens to one.

pub mod batch;
pub mod head;
mod pending;
mod pool;
pub mod pooling;
pub mod queue;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use muster_shared::control::Capacity;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::engine::EngineError;
use crate::model::EncoderModel;
use batch::BatchLimits;
use head::{Encoded, Head, Tokens};
use pending::Pending;
use pool::Arrival;

/// How texts go through a graph.
#[derive(Clone)]
pub struct EncoderSettings {
    /// What becomes of the graph's numbers.
    pub head: Arc<dyn Head>,
    /// The token that fills up shorter texts of a batch.
    pub padding: u32,
    /// How much runs together.
    pub limits: BatchLimits,
    /// Requests that may be in the encoder at once.
    pub requests: NonZeroUsize,
    /// Tokens that they may have together.
    pub tokens: NonZeroUsize,
}

/// A handle to an encoder. The encoder ends when every handle is gone.
#[derive(Debug, Clone)]
pub struct EncoderHandle {
    arrivals: mpsc::Sender<Arrival>,
    requests: Room,
    tokens: Room,
    threads: usize,
    /// Set when a thread has ended.
    stopped: CancellationToken,
}

/// What a request's texts became, or why nothing did.
type Answer = Result<Vec<Encoded>, EngineError>;

impl EncoderHandle {
    /// Starts an encoder with one thread for each session, of which there is at least one.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        sessions: Vec<Box<dyn EncoderModel>>,
        settings: EncoderSettings,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let requests = Room::new("requests", settings.requests);
        // A request needs a permit before it is sent, so the channel never holds more of them than there are permits; one
        // place more is for what else the threads are told.
        let (arrivals, received) = mpsc::channel(requests.size + 1);
        let (threads, stopped) = (sessions.len(), CancellationToken::new());
        let joins = pool::start(name, sessions, &settings, received, &stopped)?;
        let tokens = Room::new("tokens", settings.tokens);
        Ok((Self { arrivals, requests, tokens, threads, stopped }, joins))
    }

    /// Encodes texts, each of at least one token; gives what became of them in the same order. Dropping the future
    /// takes the texts back before the next run.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] at once when there is no room, [`EngineError::TooManyTokens`] when there could never be
    /// enough, [`EngineError::Late`] when the deadline has come.
    pub async fn encode(&self, texts: Vec<Tokens>, deadline: Option<Instant>) -> Answer {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(EngineError::Late);
        }
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.send(texts)?;
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| EngineError::Late)?,
        };
        answer.unwrap_or(Err(EngineError::Stopped))
    }

    fn send(&self, texts: Vec<Tokens>) -> Result<oneshot::Receiver<Answer>, EngineError> {
        let tokens = texts.iter().map(Tokens::len).sum();
        if tokens > self.tokens.size {
            return Err(EngineError::TooManyTokens { tokens, limit: self.tokens.size });
        }
        let room = [self.requests.take(1)?, self.tokens.take(tokens)?];
        let (reply, answer) = oneshot::channel();
        let pending = Arc::new(Pending::new(texts.len(), reply, room));
        if self.stopped.is_cancelled() {
            return Err(EngineError::Stopped);
        }
        self.arrivals.try_send(Arrival::Request { pending, texts }).map_err(|_| EngineError::Stopped)?;
        Ok(answer)
    }

    /// Refuses the requests of which no text has run or runs, soon, so that another worker takes them.
    pub fn shed(&self) {
        // Where there is no place in the channel, they have been told already.
        let _ = self.arrivals.try_send(Arrival::Shed);
    }

    /// What the controller is told: a thread runs a request, and all others wait, though they may share a run.
    pub fn capacity(&self) -> Capacity {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Capacity { running: count(self.running_at_most()), waiting: count(self.requests.size - self.running_at_most()) }
    }

    /// Requests that run, and requests that wait, counted as its capacity is.
    pub fn load(&self) -> (usize, usize) {
        let held = self.requests.held();
        let running = held.min(self.running_at_most());
        (running, held - running)
    }

    fn running_at_most(&self) -> usize {
        self.threads.min(self.requests.size)
    }

    /// Resolves when a thread of the encoder has died.
    pub async fn died(&self) {
        self.stopped.cancelled().await;
    }

    /// Whether all threads of the encoder live.
    pub fn is_alive(&self) -> bool {
        !self.stopped.is_cancelled()
    }
}

/// A bound on what the encoder holds.
#[derive(Debug, Clone)]
struct Room {
    /// What there is room for.
    what: &'static str,
    size: usize,
    free: Arc<Semaphore>,
}

impl Room {
    fn new(what: &'static str, size: NonZeroUsize) -> Self {
        let size = size.get().min(u32::MAX as usize); // permits are counted in 32 bits
        Self { what, size, free: Arc::new(Semaphore::new(size)) }
    }

    fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, EngineError> {
        let full = || EngineError::QueueFull { limit: self.size, what: self.what };
        let count = u32::try_from(count).map_err(|_| full())?;
        Arc::clone(&self.free).try_acquire_many_owned(count).map_err(|_| full())
    }

    fn held(&self) -> usize {
        self.size - self.free.available_permits()
    }
}

#[cfg(test)]
mod tests;
