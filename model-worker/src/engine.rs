//! The engine of one language model: a thread that alone owns the model, and a handle to it.
//!
//! Sequences go in over a bounded channel, events come out over one bounded channel a sequence. A step drops
//! abandoned sequences, adds a token to every sequence that decodes, in one run of the model, and reads pieces of the
//! prompts that wait.
//!
//! * `thread`: one step after another.
//! * [`scheduler`]: who waits, who holds a row, and who has to give it back.
//! * [`rows`]: what lies in which row, and prefixes that prompts share.
//! * `pace`: how much of a prompt one step reads.
//! * `draft`: tokens proposed from the text itself, several of which one run confirms.
//! * `phases`: when it came to what, for its trace.
//! * [`sequence`]: from chosen tokens to an answer and its end.
//! * [`resume`]: an answer that another engine has begun.
//! * `text`: what may be shown of it.
//! * [`sampler`]: from logits to a token.
//! * [`mask`]: which tokens may be chosen at all.
//! * [`stop`]: stop strings that never leak.

mod draft;
pub mod mask;
mod pace;
mod phases;
pub mod resume;
pub mod rows;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod stop;
mod text;
mod thread;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::metrics::EngineMetrics;
use crate::model::{CausalModel, CausalShape, ModelError};
use crate::tokenizer::Tokenizer;
use mask::MaskError;
use sampler::SampleError;
use sequence::{Sequence, SequenceEvent, SequenceRequest, event_capacity};
use thread::Engine;

/// Why the engine could not take or go on with a sequence.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Everything is full.
    #[error("all {slots} slots are busy and {waiting} requests wait")]
    Overloaded {
        /// Sequences that run together.
        slots: usize,
        /// Sequences that may wait.
        waiting: usize,
    },
    /// A request wants more sequences than the engine ever holds.
    #[error("{wanted} answers at once are more than the {limit} this worker can hold")]
    TooMany {
        /// Sequences wanted.
        wanted: usize,
        /// Sequences the engine holds, running and waiting.
        limit: usize,
    },
    /// An encoder holds as much as it may.
    #[error("the model's queue is full: it holds at most {limit} {what} at once")]
    QueueFull {
        /// What it holds: requests, or tokens.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// The texts of a request are more than an encoder ever holds.
    #[error(
        "the texts have {tokens} tokens together, and this worker takes at most {limit} in one request; send fewer texts"
    )]
    TooManyTokens {
        /// Their tokens.
        tokens: usize,
        /// Tokens that the encoder holds.
        limit: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Step(#[from] ModelError),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The request's time was over before its answer.
    #[error("the answer was not ready within the time that the request allows")]
    Late,
    /// It cannot be said which tokens are allowed.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// It waited when the machine ran short of memory.
    #[error(
        "this worker's machine is short of memory, and it gives up the requests that wait in it, so that another takes them"
    )]
    Shed,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// What an engine is told besides its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// How many sequences it holds.
    pub capacity: EngineCapacity,
    /// Tokens that the model may hold keys and values of, prefixes included; at least its context.
    pub tokens: usize,
    /// Threads that may choose tokens while the model rests.
    pub threads: NonZeroUsize,
    /// Whether prompts that begin alike share what was read.
    pub prefixes: bool,
    /// Whether tokens are proposed from the text and confirmed several at a time, where that pays.
    pub speculation: bool,
    /// The longest pause between two tokens of an answer that reading other prompts may cause.
    pub itl_budget: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            capacity: EngineCapacity { slots: 16, waiting: 48 },
            tokens: usize::MAX,
            threads: NonZeroUsize::MIN,
            prefixes: true,
            speculation: true,
            itl_budget: Duration::from_millis(400),
        }
    }
}

/// How many sequences an engine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineCapacity {
    /// Sequences that run together.
    pub slots: usize,
    /// Sequences that may wait besides.
    pub waiting: usize,
}

/// What an engine does at the moment.
#[derive(Debug, Default)]
struct Gauges {
    running: AtomicUsize,
    /// Tokens of the sequences that run.
    held: AtomicUsize,
    /// Tokens chosen since the start.
    chosen: AtomicU64,
    /// Tokens per second of the model's time that a sequence gets.
    tokens_per_second: Average,
    /// Seconds from a sequence's arrival to its first token.
    first_token: Average,
}

/// A moving average of something above zero. One thread moves it, others read it.
#[derive(Debug, Default)]
struct Average(AtomicU64);

impl Average {
    /// `weight`: how much of the newest value goes into the average; the first is taken as it is.
    fn add(&self, newest: f64, weight: f64) {
        let average = self.get().map_or(newest, |held| held + weight * (newest - held));
        self.0.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Once there was a value.
    fn get(&self) -> Option<f64> {
        let average = f64::from_bits(self.0.load(Ordering::Relaxed));
        (average > 0.0).then_some(average)
    }
}

/// What the engine's thread is told.
#[derive(Debug)]
enum Command {
    /// Take this one.
    Take(Box<Sequence>),
    /// Refuse what waits and has not begun.
    Shed,
}

/// A handle to an engine. The engine ends when every handle is gone and the last sequence has ended.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    capacity: EngineCapacity,
    shape: CausalShape,
    /// Tokens that running sequences may have together.
    tokens: usize,
    tokenizer: Tokenizer,
    gauges: Arc<Gauges>,
}

impl EngineHandle {
    /// Starts an engine on a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        model: Box<dyn CausalModel>,
        tokenizer: Tokenizer,
        settings: EngineSettings,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let capacity = settings.capacity;
        let total = capacity.slots + capacity.waiting;
        // A sequence needs a permit before it is sent, so the channel never holds more of them than there are permits; one
        // place more is for what else the thread is told.
        let (commands, received) = mpsc::channel(total + 1);
        let shape = model.shape();
        let handle = Self {
            commands,
            room: Arc::new(Semaphore::new(total)),
            capacity,
            shape,
            tokens: settings.tokens.max(shape.context).min(capacity.slots.saturating_mul(shape.context)),
            tokenizer: tokenizer.clone(),
            gauges: Arc::default(),
        };
        // Ids beyond the tokenizer are padding of the vocabulary and must not be chosen.
        let vocab = shape.vocab.min(tokenizer.vocab_size() as usize);
        let engine = Engine::new(model, vocab, settings, EngineMetrics::new(name), Arc::clone(&handle.gauges));
        let thread = std::thread::Builder::new().name(format!("engine {name}")).spawn(move || engine.run(received))?;
        Ok((handle, thread))
    }

    /// Hands over sequences, all or none; gives a receiver of events for each.
    ///
    /// Dropping a receiver cancels its sequence before the engine's next step.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] at once when there is no room for all of them.
    pub fn submit(&self, requests: Vec<SequenceRequest>) -> Result<Vec<mpsc::Receiver<SequenceEvent>>, EngineError> {
        let EngineCapacity { slots, waiting } = self.capacity;
        if requests.len() > slots + waiting {
            return Err(EngineError::TooMany { wanted: requests.len(), limit: slots + waiting });
        }
        let wanted = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        let mut permits = Arc::clone(&self.room).try_acquire_many_owned(wanted).map_err(|_| self.overloaded())?;
        let begun = Arc::default();
        requests.into_iter().map(|request| self.send(request, &mut permits, &begun)).collect()
    }

    fn send(
        &self,
        request: SequenceRequest,
        permits: &mut OwnedSemaphorePermit,
        begun: &Arc<AtomicBool>,
    ) -> Result<mpsc::Receiver<SequenceEvent>, EngineError> {
        let permit = permits.split(1).expect("one permit was taken for each request");
        let (events, receiver) = mpsc::channel(event_capacity(&request));
        let sequence = Sequence::new(request, &self.tokenizer, events, permit, Arc::clone(begun));
        self.commands.try_send(Command::Take(Box::new(sequence))).map_err(|_| EngineError::Stopped)?;
        Ok(receiver)
    }

    /// What the model is like.
    pub fn shape(&self) -> CausalShape {
        self.shape
    }

    /// How many sequences fit.
    pub fn capacity(&self) -> EngineCapacity {
        self.capacity
    }

    /// Sequences that run, and sequences that wait.
    pub fn load(&self) -> (usize, usize) {
        let held = self.capacity.slots + self.capacity.waiting - self.room.available_permits();
        let running = self.gauges.running.load(Ordering::Relaxed).min(held);
        (running, held - running)
    }

    /// Tokens per second of the model's time that a sequence gets, once any did.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.gauges.tokens_per_second.get()
    }

    /// Tokens chosen since the start, for all sequences together.
    pub fn tokens_chosen(&self) -> u64 {
        self.gauges.chosen.load(Ordering::Relaxed)
    }

    /// Time from a sequence's arrival to its first token, as a moving average, once there was one.
    pub fn first_token(&self) -> Option<Duration> {
        self.gauges.first_token.get().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// How much of its room for keys and values running sequences take, from 0 to 1. Kept prefixes do not count: they
    /// give way.
    pub fn fill(&self) -> f64 {
        let held = self.gauges.held.load(Ordering::Relaxed) as f64;
        (held / self.tokens.max(1) as f64).min(1.0)
    }

    /// Refuses the sequences that wait, soon, so that another worker takes them; what has begun goes on, and so does what
    /// finds a place before.
    pub fn shed(&self) {
        // Where there is no place in the channel, it has been told already.
        let _ = self.commands.try_send(Command::Shed);
    }

    /// Whether there is no room for one more sequence.
    pub fn is_full(&self) -> bool {
        self.room.available_permits() == 0
    }

    /// What a caller hears when there is no room.
    pub fn overloaded(&self) -> EngineError {
        let EngineCapacity { slots, waiting } = self.capacity;
        EngineError::Overloaded { slots, waiting }
    }

    /// Whether the engine's thread still takes sequences.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Resolves when the engine's thread has died.
    pub async fn died(&self) {
        self.commands.closed().await;
    }
}

#[cfg(test)]
mod tests;
