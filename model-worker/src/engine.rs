//! The engine of one language model: a thread that alone owns the model, and a handle to it.
//!
//! Sequences go in over a bounded channel, events come out over one bounded channel a sequence. A step drops
//! abandoned sequences, admits waiting ones, reads a piece of one prompt, and adds a token to every other sequence.
//!
//! * [`scheduler`]: who waits, who holds a row, what a step does.
//! * [`sequence`]: from chosen tokens to text and its end.
//! * [`sampler`]: from logits to a token.
//! * [`mask`]: which tokens may be chosen at all.
//! * [`stop`]: stop strings that never leak.

pub mod mask;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::metrics::EngineMetrics;
use crate::model::{CausalModel, CausalShape, ModelError, Positions, Row};
use crate::tokenizer::Tokenizer;
use mask::MaskError;
use sampler::{SampleError, Sampled};
use scheduler::Scheduler;
use sequence::{Sequence, SequenceEvent, SequenceRequest, event_capacity};

/// Tokens of a prompt read in one step while other sequences add tokens: some 0.1 to 0.4 s of one core for a small
/// model, which is the longest pause the others see.
const CHUNK_BESIDE_OTHERS: usize = 64;
/// Tokens of a prompt read in one step when nobody waits for it.
const CHUNK_ALONE: usize = 256;
/// Weight of the newest step in the moving average of tokens per second.
const SPEED_WEIGHT: f64 = 0.05;

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
    /// The model failed.
    #[error(transparent)]
    Step(#[from] ModelError),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// It cannot be said which tokens are allowed.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
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
pub struct Gauges {
    running: AtomicUsize,
    /// Bits of a moving average of tokens chosen per second of the model's time.
    tokens_per_second: AtomicU64,
}

/// A handle to an engine. The engine ends when every handle is gone and the last sequence has ended.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Sequence>,
    room: Arc<Semaphore>,
    capacity: EngineCapacity,
    shape: CausalShape,
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
        capacity: EngineCapacity,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let total = capacity.slots + capacity.waiting;
        // A sequence needs a permit before it is sent, so the channel never holds more than there are permits.
        let (commands, received) = mpsc::channel(total);
        let handle = Self {
            commands,
            room: Arc::new(Semaphore::new(total)),
            capacity,
            shape: model.shape(),
            tokenizer: tokenizer.clone(),
            gauges: Arc::default(),
        };
        let engine = Engine {
            // Ids beyond the tokenizer are padding of the vocabulary and must not be chosen.
            vocab: model.shape().vocab.min(tokenizer.vocab_size() as usize),
            scheduler: Scheduler::new(model.shape().rows),
            model,
            gauges: Arc::clone(&handle.gauges),
            metrics: EngineMetrics::new(name),
        };
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
        requests.into_iter().map(|request| self.send(request, &mut permits)).collect()
    }

    fn send(
        &self,
        request: SequenceRequest,
        permits: &mut OwnedSemaphorePermit,
    ) -> Result<mpsc::Receiver<SequenceEvent>, EngineError> {
        let permit = permits.split(1).expect("one permit was taken for each request");
        let (events, receiver) = mpsc::channel(event_capacity(&request));
        let sequence = Sequence::new(request, &self.tokenizer, events, permit);
        self.commands.try_send(sequence).map_err(|_| EngineError::Stopped)?;
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

    /// Tokens chosen per second of the model's time, once any were.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let speed = f64::from_bits(self.gauges.tokens_per_second.load(Ordering::Relaxed));
        (speed > 0.0).then_some(speed)
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

struct Engine {
    model: Box<dyn CausalModel>,
    scheduler: Scheduler<Sequence>,
    /// Ids that may be chosen.
    vocab: usize,
    gauges: Arc<Gauges>,
    metrics: EngineMetrics,
}

impl Engine {
    /// Runs until every handle is gone and the last sequence has ended.
    fn run(mut self, mut commands: mpsc::Receiver<Sequence>) {
        loop {
            if self.scheduler.is_idle() {
                match commands.blocking_recv() {
                    Some(sequence) => self.scheduler.enqueue(sequence), // idle: sleep here
                    None => return,
                }
            }
            while let Ok(sequence) = commands.try_recv() {
                self.scheduler.enqueue(sequence); // busy: look, never wait
            }
            self.step();
        }
    }

    fn step(&mut self) {
        for row in self.scheduler.drop_abandoned() {
            self.model.release(row);
        }
        self.scheduler.admit();
        self.publish();
        let plan = self.scheduler.plan();
        for row in &plan.decode {
            self.decode(*row);
        }
        if let Some(row) = plan.prefill {
            self.prefill(row, if plan.decode.is_empty() { CHUNK_ALONE } else { CHUNK_BESIDE_OTHERS });
        }
        self.publish();
    }

    /// Reads the next piece of a prompt; the last piece also gives the first token of the answer.
    fn prefill(&mut self, row: Row, chunk: usize) {
        let sequence = self.scheduler.sequence(row);
        let (past, total) = (sequence.in_cache, sequence.tokens.len());
        let read = total.min(past + chunk);
        let (chunk, last) = (&sequence.tokens[past..read], read == total);
        let started = Instant::now();
        let sampled = match self.model.read(row, chunk, past, if last { Positions::Last } else { Positions::None }) {
            Ok(logits) if last => choose(sequence, &mut logits[..self.vocab]).map(Some),
            Ok(_) => Ok(None),
            Err(error) => Err(error.into()),
        };
        sequence.in_cache = read;
        self.metrics.prefill(read - past, started.elapsed());
        self.conclude(row, sampled);
    }

    /// Adds a token.
    fn decode(&mut self, row: Row) {
        let sequence = self.scheduler.sequence(row);
        let (past, total) = (sequence.in_cache, sequence.tokens.len());
        let started = Instant::now();
        let sampled = match self.model.read(row, sequence.unread(), past, Positions::Last) {
            Ok(logits) => choose(sequence, &mut logits[..self.vocab]).map(Some),
            Err(error) => Err(error.into()),
        };
        sequence.in_cache = total;
        self.note_speed(started.elapsed());
        self.conclude(row, sampled);
    }

    /// Hands a chosen token on; a sequence that has ended gives its row back.
    fn conclude(&mut self, row: Row, sampled: Result<Option<Sampled>, EngineError>) {
        let sequence = self.scheduler.sequence(row);
        let ended = match sampled {
            Ok(None) => false,
            Ok(Some(sampled)) => {
                self.metrics.token(sequence.arrived, sequence.last_token.replace(Instant::now()));
                sequence.accept(&sampled)
            }
            Err(error) => {
                tracing::error!(%error, "a sequence broke off");
                sequence.fail(error);
                true
            }
        };
        if ended {
            self.scheduler.finish(row);
            self.model.release(row);
        }
    }

    fn note_speed(&self, step: Duration) {
        let newest = 1.0 / step.as_secs_f64().max(1e-9);
        let held = f64::from_bits(self.gauges.tokens_per_second.load(Ordering::Relaxed));
        let average = if held > 0.0 { held + SPEED_WEIGHT * (newest - held) } else { newest };
        self.gauges.tokens_per_second.store(average.to_bits(), Ordering::Relaxed);
        self.metrics.decode(step);
    }

    fn publish(&self) {
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        self.gauges.running.store(running, Ordering::Relaxed);
        self.metrics.load(running, waiting);
    }
}

/// Chooses a sequence's next token. The position of the token seeds the choice, so that an answer resumed elsewhere
/// goes on as it would have.
fn choose(sequence: &mut Sequence, logits: &mut [f32]) -> Result<Sampled, EngineError> {
    let position = sequence.tokens.len() as u64;
    let Some(mask) = &mut sequence.mask else { return Ok(sequence.sampler.sample(logits, position)?) };
    mask.compute()?;
    let sampled = sequence.sampler.sample_masked(logits, position, Some(mask.words()))?;
    mask.accept(sampled.token)?;
    Ok(sampled)
}

#[cfg(test)]
mod tests;
