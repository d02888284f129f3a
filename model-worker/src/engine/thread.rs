//! The thread of an engine: one step after another, until every handle is gone and the last sequence has ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::mpsc;

use super::draft::{self, Speculation};
use super::pace::{self, Pace};
use super::sampler::Sampled;
use super::scheduler::{Limits, Reaped, Scheduler};
use super::sequence::Sequence;
use super::{Command, EngineError, EngineSettings, Gauges};
use crate::metrics::EngineMetrics;
use crate::model::{CausalModel, ModelError, Next, Positions, Row};

/// Weight of the newest step in the moving average of tokens per second.
const SPEED_WEIGHT: f64 = 0.05;
/// Weight of the newest sequence in the moving average of the time to the first token.
const FIRST_TOKEN_WEIGHT: f64 = 0.2;

/// What the thread owns.
pub(super) struct Engine {
    model: Box<dyn CausalModel>,
    scheduler: Scheduler<Sequence>,
    pace: Pace,
    /// Absent where it is switched off, or the model cannot tell what it says after each token.
    speculation: Option<Speculation>,
    /// Length of the logits of one position.
    width: usize,
    /// Ids that may be chosen.
    vocab: usize,
    /// Threads that choose tokens while the model rests; none where one is enough, or the system gives no more.
    helpers: Option<ThreadPool>,
    tally: Tally,
    /// Tokens that running sequences may have together, at least one.
    room: usize,
    /// Whether what waits is refused once this step has taken in what it can.
    sheds: bool,
}

impl Engine {
    pub(super) fn new(
        model: Box<dyn CausalModel>,
        vocab: usize,
        settings: EngineSettings,
        metrics: EngineMetrics,
        gauges: Arc<Gauges>,
    ) -> Self {
        let shape = model.shape();
        let limits = Limits {
            slots: settings.capacity.slots,
            rows: shape.rows,
            tokens: settings.tokens.max(shape.context),
            prefixes: settings.prefixes,
        };
        Self {
            scheduler: Scheduler::new(limits),
            pace: Pace::new(settings.itl_budget),
            speculation: (settings.speculation && shape.all_positions).then(Speculation::new),
            width: shape.vocab,
            vocab,
            helpers: helpers(settings.threads.get()),
            model,
            tally: Tally { gauges, metrics },
            room: settings.tokens.max(shape.context).min(settings.capacity.slots.saturating_mul(shape.context)).max(1),
            sheds: false,
        }
    }

    /// Runs until every handle is gone and the last sequence has ended.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            if self.scheduler.is_idle() {
                match commands.blocking_recv() {
                    Some(command) => self.accept(command), // idle: sleep here
                    None => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.accept(command); // busy: look, never wait
            }
            self.step();
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Take(sequence) => self.scheduler.enqueue(*sequence),
            Command::Shed => self.sheds = true,
        }
    }

    fn step(&mut self) {
        self.reap();
        let preempted = self.scheduler.make_room(self.model.as_mut());
        self.tally.metrics.preempted(preempted);
        self.publish();
        match self.proposal() {
            Some(proposal) => self.verify(&proposal),
            None => self.decode(),
        }
        self.read();
        if std::mem::take(&mut self.sheds) {
            self.shed();
        }
        self.publish();
    }

    /// Lets go of the sequences that nobody wants any more, and of those whose time is over.
    fn reap(&mut self) {
        for (mut sequence, why) in self.scheduler.reap(Instant::now(), self.model.as_mut()) {
            self.tally.metrics.aborted(sequence.phases.arrived());
            if why == Reaped::Late {
                sequence.fail(EngineError::Late);
            }
        }
    }

    /// Refuses what waits still and has not begun.
    fn shed(&mut self) {
        let mut shed = self.scheduler.shed();
        if shed.is_empty() {
            return;
        }
        tracing::warn!(sequences = shed.len(), "the machine is short of memory; what waited is left to other workers");
        self.tally.metrics.shed(shed.len());
        for sequence in &mut shed {
            self.tally.metrics.aborted(sequence.phases.arrived());
            sequence.fail(EngineError::Shed);
        }
    }

    /// Adds a token to every sequence that decodes, in one run.
    fn decode(&mut self) {
        let next: Vec<Next> = (0..self.scheduler.decoding()).map(|row| self.next(Row(row))).collect();
        if next.is_empty() {
            return;
        }
        let started = Instant::now();
        let chosen: Vec<_> = match run_beside_masks(self.model.as_mut(), &next, &mut self.scheduler) {
            Ok(logits) => {
                let took = started.elapsed();
                self.pace.note_decode(took);
                if let Some(speculation) = self.speculation.as_mut().filter(|_| next.len() == 1) {
                    speculation.note_run(1, took);
                }
                let logits = logits.chunks_exact_mut(self.width).map(|logits| &mut logits[..self.vocab]);
                choose_all(self.scheduler.decoding_mut().zip(logits).collect(), self.helpers.as_ref())
            }
            Err(error) => self.decode_each(&next, error),
        };
        self.note_speed(1, next.len(), started.elapsed());
        // From the last row down: a gap is closed by sequences that have been dealt with.
        for (row, chosen) in chosen.into_iter().enumerate().rev() {
            self.conclude(Row(row), chosen);
        }
    }

    fn next(&mut self, row: Row) -> Next {
        let sequence = self.scheduler.sequence(row);
        Next { token: sequence.last(), past: sequence.in_cache }
    }

    /// After a run over several rows has failed: each alone, so that only those fail that must.
    fn decode_each(&mut self, next: &[Next], error: ModelError) -> Vec<Result<Sampled, EngineError>> {
        if next.len() == 1 {
            return vec![Err(error.into())];
        }
        tracing::warn!(%error, rows = next.len(), "a run over several sequences failed; each is run alone");
        let alone = next.iter().enumerate().map(|(row, next)| {
            let logits = self.model.read(Row(row), &[next.token], next.past, Positions::Last)?;
            let sequence = self.scheduler.sequence(Row(row));
            sequence.in_cache += 1;
            sequence.choose(&mut logits[..self.vocab])
        });
        alone.collect()
    }

    /// What the only sequence might say next, where trying that promises to pay.
    fn proposal(&mut self) -> Option<Vec<u32>> {
        let speculation = self.speculation.as_ref()?;
        if self.scheduler.decoding() != 1 {
            return None; // a run takes several tokens of one row, or one of several
        }
        let sequence = self.scheduler.sequence(Row(0));
        let longest = speculation.length().min(sequence.tokens_left().saturating_sub(1));
        let proposal = draft::propose(&sequence.tokens, longest);
        (!proposal.is_empty()).then(|| proposal.to_vec())
    }

    /// Reads a proposal after the only sequence's last token; adds as much of it as the model agrees with, and the token
    /// that the model says then.
    fn verify(&mut self, proposal: &[u32]) {
        let row = Row(0);
        let Next { token, past } = self.next(row);
        let tokens: Vec<u32> = std::iter::once(token).chain(proposal.iter().copied()).collect();
        let started = Instant::now();
        let logits = match self.model.read(row, &tokens, past, Positions::All) {
            Ok(logits) => logits,
            Err(error) => {
                tracing::warn!(%error, "several tokens cannot be confirmed in one run; answers go on one by one");
                self.speculation = None;
                return self.decode();
            }
        };
        let took = started.elapsed();
        let sequence = self.scheduler.sequence(row);
        let (mut added, mut outcome) = (0, Outcome::GoesOn);
        for logits in logits.chunks_exact_mut(self.width) {
            sequence.in_cache += 1;
            let chosen = sequence.choose(&mut logits[..self.vocab]);
            let agreed = matches!(&chosen, Ok(chosen) if proposal.get(added) == Some(&chosen.token));
            outcome = take(sequence, chosen, &self.tally);
            added += 1;
            if !agreed || outcome != Outcome::GoesOn {
                break;
            }
        }
        self.pace.note_decode(took);
        if let Some(speculation) = &mut self.speculation {
            speculation.note_run(tokens.len(), took);
            speculation.note_agreement(proposal.len(), added - 1);
        }
        self.tally.metrics.proposed(proposal.len(), added - 1);
        self.note_speed(added, 1, took);
        self.settle(row, outcome);
    }

    /// Reads pieces of the prompts that wait, as many tokens as the pace allows.
    fn read(&mut self) {
        let mut left = self.pace.chunk(self.scheduler.decoding());
        while left > 0 {
            let Some((row, shared)) = self.scheduler.admit(self.model.as_mut()) else { return };
            self.note_shared(row, shared);
            // A short piece takes as long as the least that a run is worth.
            left = left.saturating_sub(self.read_piece(row, left).max(pace::LEAST));
            // The first of them decodes now, and waits for its next token.
            left = left.min(self.pace.chunk(self.scheduler.decoding()));
        }
    }

    /// Notes what a fresh sequence found in other rows; one that comes back after it had to leave finds its own.
    fn note_shared(&mut self, row: Row, shared: usize) {
        let sequence = self.scheduler.sequence(row);
        if sequence.cached.is_none() {
            sequence.note_cached(shared);
            let prompt = sequence.tokens.len();
            self.tally.metrics.shared(shared, prompt);
        }
    }

    /// Reads a piece of a prompt, of at most so many tokens; the last piece also gives the next token of the answer.
    /// Gives the length of the piece.
    fn read_piece(&mut self, row: Row, longest: usize) -> usize {
        let sequence = self.scheduler.sequence(row);
        let (past, total) = (sequence.in_cache, sequence.tokens.len());
        let read = total.min(past + longest);
        let last = read == total;
        let wanted = if last { Positions::Last } else { Positions::None };
        let started = Instant::now();
        let result = self.model.read(row, &sequence.tokens[past..read], past, wanted);
        let took = started.elapsed();
        self.pace.note_prefill(read - past, took);
        self.tally.metrics.prefill(read - past, took);
        match result {
            Ok(_) if !last => sequence.in_cache = read,
            Ok(logits) => {
                sequence.in_cache = read;
                let chosen = sequence.choose(&mut logits[..self.vocab]);
                self.scheduler.begin_decoding();
                self.conclude(row, chosen);
            }
            Err(error) => self.conclude(row, Err(error.into())),
        }
        read - past
    }

    /// Hands a chosen token on; a sequence that has ended gives its row back.
    fn conclude(&mut self, row: Row, chosen: Result<Sampled, EngineError>) {
        let outcome = take(self.scheduler.sequence(row), chosen, &self.tally);
        self.settle(row, outcome);
    }

    fn settle(&mut self, row: Row, outcome: Outcome) {
        if outcome != Outcome::GoesOn {
            // What a failed run or a broken model has left is of no use to others.
            let sequence = self.scheduler.finish(row, outcome == Outcome::Ended, self.model.as_mut());
            self.tally.metrics.finished(sequence.reason, sequence.phases.arrived());
        }
    }

    /// Notes a step that has added so many tokens to each of so many sequences. The speed is that of one of them: that of
    /// all would make a worker look the faster the busier it is.
    fn note_speed(&mut self, tokens: usize, sequences: usize, step: Duration) {
        let newest = tokens as f64 / step.as_secs_f64().max(1e-9);
        self.tally.gauges.tokens_per_second.add(newest, SPEED_WEIGHT);
        self.tally.metrics.decode(tokens * sequences, step);
    }

    fn publish(&self) {
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        let Tally { gauges, metrics } = &self.tally;
        gauges.running.store(running, Ordering::Relaxed);
        gauges.held.store(self.scheduler.tokens_running(), Ordering::Relaxed);
        let fill = self.scheduler.tokens_running() as f64 / self.room as f64;
        metrics.load(running, waiting, self.scheduler.tokens_held(), fill.min(1.0));
    }
}

/// Counts of what the engine does, for whoever holds a handle and for operators.
struct Tally {
    gauges: Arc<Gauges>,
    metrics: EngineMetrics,
}

impl Tally {
    /// A token was chosen, for a sequence that arrived then and chose its last token then.
    fn token(&self, arrived: Instant, last: Option<Instant>) {
        self.gauges.chosen.fetch_add(1, Ordering::Relaxed);
        if last.is_none() {
            self.gauges.first_token.add(arrived.elapsed().as_secs_f64(), FIRST_TOKEN_WEIGHT);
        }
        self.metrics.token(arrived, last);
    }
}

fn helpers(threads: usize) -> Option<ThreadPool> {
    let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("sampler {index}"));
    (threads > 1).then(|| builder.build().ok()).flatten()
}

/// Decodes; meanwhile another thread finds out what restricted answers may go on with.
fn run_beside_masks<'a>(
    model: &'a mut dyn CausalModel,
    next: &[Next],
    scheduler: &mut Scheduler<Sequence>,
) -> Result<&'a mut [f32], ModelError> {
    let mut masked: Vec<&mut Sequence> = scheduler.decoding_mut().filter(|sequence| sequence.is_masked()).collect();
    if masked.is_empty() {
        return model.decode(next);
    }
    std::thread::scope(|scope| {
        let masks = move || masked.iter_mut().for_each(|sequence| sequence.compute_mask());
        // Where the system gives no thread, each is computed when it is needed.
        let _ = std::thread::Builder::new().spawn_scoped(scope, masks);
        model.decode(next)
    })
}

/// Chooses the next token of each sequence from its logits; by the helpers, where that is costly.
fn choose_all(
    work: Vec<(&mut Sequence, &mut [f32])>,
    helpers: Option<&ThreadPool>,
) -> Vec<Result<Sampled, EngineError>> {
    let choose = |(sequence, logits): (&mut Sequence, &mut [f32])| {
        sequence.in_cache += 1;
        sequence.choose(logits)
    };
    let costly = work.iter().filter(|(sequence, _)| sequence.sampler.is_costly()).count();
    match helpers {
        Some(helpers) if costly > 1 => helpers.install(|| work.into_par_iter().map(choose).collect()),
        _ => work.into_iter().map(choose).collect(),
    }
}

/// What a chosen token means for its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    GoesOn,
    Ended,
    Failed,
}

/// Adds a chosen token to its sequence.
fn take(sequence: &mut Sequence, chosen: Result<Sampled, EngineError>, tally: &Tally) -> Outcome {
    match chosen {
        Ok(sampled) => {
            tally.token(sequence.phases.arrived(), sequence.last_token);
            let now = Instant::now();
            sequence.phases.token(now);
            sequence.last_token = Some(now);
            if sequence.accept(&sampled) { Outcome::Ended } else { Outcome::GoesOn }
        }
        Err(error) => {
            tracing::error!(%error, "a sequence broke off");
            sequence.fail(error);
            Outcome::Failed
        }
    }
}
