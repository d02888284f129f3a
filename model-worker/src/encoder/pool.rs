//! The threads of one encoder: each alone owns a session, all take from one queue.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::EncoderSettings;
use super::head::{Encoded, Given, Tokens};
use super::pending::Pending;
use super::queue::{self, Queue};
use crate::engine::EngineError;
use crate::metrics::EncoderMetrics;
use crate::model::{EncoderBatch, EncoderModel, EncoderOutput, ModelError};

/// A text on its way into a run.
type Text = queue::Text<Arc<Pending>>;

/// What the threads have not seen yet.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A request.
    Request {
        /// The request.
        pending: Arc<Pending>,
        /// Its texts.
        texts: Vec<Tokens>,
    },
    /// Requests that have not begun are to be refused.
    Shed,
}

/// What all threads take from, one at a time.
struct Shared {
    queue: Queue<Arc<Pending>>,
    arrivals: mpsc::Receiver<Arrival>,
    /// Whether what waits is refused once the next run has its texts.
    sheds: bool,
}

/// Starts a thread for each session. They end when nobody can send arrivals any more and the queue is empty.
///
/// # Errors
/// When the system gives no thread; those that run already end then.
pub(super) fn start(
    name: &str,
    sessions: Vec<Box<dyn EncoderModel>>,
    settings: &EncoderSettings,
    arrivals: mpsc::Receiver<Arrival>,
    stopped: &CancellationToken,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let shared = Arc::new(Mutex::new(Shared { queue: Queue::default(), arrivals, sheds: false }));
    let start = |(number, session)| {
        let runner = Runner {
            session,
            settings: settings.clone(),
            metrics: EncoderMetrics::new(name),
            shared: Arc::clone(&shared),
            _stopped: stopped.clone().drop_guard(),
        };
        std::thread::Builder::new().name(format!("encoder {number} {name}")).spawn(move || runner.run())
    };
    sessions.into_iter().enumerate().map(start).collect()
}

/// One thread.
struct Runner {
    session: Box<dyn EncoderModel>,
    settings: EncoderSettings,
    metrics: EncoderMetrics,
    shared: Arc<Mutex<Shared>>,
    /// Tells of this thread's end, by a panic too.
    _stopped: DropGuard,
}

impl Runner {
    fn run(mut self) {
        while let Some(texts) = self.next() {
            self.serve(&texts);
        }
    }

    /// The texts of the next run; sleeps while there are none.
    fn next(&self) -> Option<Vec<Text>> {
        let mut shared = self.lock();
        loop {
            while let Ok(arrival) = shared.arrivals.try_recv() {
                shared.accept(arrival);
            }
            shared.queue.retain(|pending| pending.is_wanted());
            let texts = shared.queue.take(self.settings.limits);
            texts.iter().for_each(|text| text.request.begin());
            self.metrics.shed(shared.shed());
            self.metrics.waiting(shared.queue.len());
            if !texts.is_empty() {
                return Some(texts);
            }
            // With the lock held: while nothing waits, the other threads have nothing to look for either.
            let arrival = shared.arrivals.blocking_recv()?;
            shared.accept(arrival);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // The queue calls nothing that could panic between two changes that belong together.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&mut self, texts: &[Text]) {
        match self.encode(texts) {
            Ok(encoded) => texts.iter().zip(encoded).for_each(|(text, encoded)| deliver(text, encoded)),
            Err(error) if texts.len() == 1 => fail(&texts[0], &error),
            Err(error) => {
                tracing::warn!(%error, texts = texts.len(), "texts that ran together failed; trying each alone");
                texts.chunks(1).for_each(|text| self.serve(text));
            }
        }
    }

    fn encode(&mut self, texts: &[Text]) -> Result<Vec<Encoded>, ModelError> {
        let columns = texts.iter().map(|text| text.tokens.len()).max().unwrap_or(0);
        let tokens = texts.iter().map(|text| text.tokens.len()).sum();
        self.metrics.run(texts.len(), tokens, columns * texts.len() - tokens);
        let output = self.session.encode(&padded(texts, columns, self.settings.padding))?;
        let head = &self.settings.head;
        let encoded: Vec<Encoded> = match &output {
            EncoderOutput::Pooled { values, width } => {
                values.chunks_exact(*width).map(|row| head.finish(Given::Text(row))).collect()
            }
            EncoderOutput::Tokens { values, width } => {
                let rows = values.chunks_exact(columns * width).zip(texts);
                let given = |(row, text): (&'_ [f32], &Text)| {
                    head.finish(Given::Tokens { values: &row[..text.tokens.len() * width], width: *width })
                };
                rows.map(given).collect()
            }
        };
        if encoded.len() == texts.len() {
            return Ok(encoded);
        }
        Err(ModelError::Run(format!("it gave {} answers to {} texts", encoded.len(), texts.len())))
    }
}

impl Shared {
    fn accept(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Request { pending, texts } => self.queue.push(pending, texts),
            Arrival::Shed => self.sheds = true,
        }
    }

    /// If it is asked for, refuses what has not begun; gives how many requests that were.
    fn shed(&mut self) -> usize {
        if !std::mem::take(&mut self.sheds) {
            return 0;
        }
        let shed = Cell::new(0);
        self.queue.retain(|pending| {
            let begun = pending.has_begun();
            if !begun {
                pending.fail(EngineError::Shed);
                shed.set(shed.get() + 1);
            }
            begun
        });
        if shed.get() > 0 {
            tracing::warn!(
                requests = shed.get(),
                "the machine is short of memory; what waited is left to other workers"
            );
        }
        shed.get()
    }
}

fn deliver(text: &Text, encoded: Encoded) {
    text.request.deliver(text.index, encoded);
}

fn fail(text: &Text, error: &ModelError) {
    tracing::error!(%error, index = text.index, tokens = text.tokens.len(), "a text failed");
    text.request.fail(EngineError::Step(ModelError::Run(match error {
        ModelError::Run(reason) => reason.clone(),
        other => other.to_string(),
    })));
}

fn padded(texts: &[Text], columns: usize, padding: u32) -> EncoderBatch {
    let fill = |fill: i64, value: &dyn Fn(&Tokens, usize) -> i64| -> Vec<i64> {
        let rows = texts.iter().flat_map(|Text { tokens, .. }| (0..columns).map(move |place| (tokens, place)));
        rows.map(|(tokens, place)| if place < tokens.len() { value(tokens, place) } else { fill }).collect()
    };
    EncoderBatch {
        rows: texts.len(),
        columns,
        ids: fill(i64::from(padding), &|tokens, place| i64::from(tokens.ids[place])),
        mask: fill(0, &|_, _| 1),
        types: fill(0, &|tokens, place| i64::from(place >= tokens.second)),
    }
}
