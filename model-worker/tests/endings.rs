//! Sequences that are cancelled or break off, run by run: what they leave to the others.

use std::sync::mpsc::{Receiver as Turns, Sender, channel};

use muster_shared::generate::FinishReason;
use muster_worker::engine::sequence::{SequenceEvent, SequenceRequest};
use muster_worker::engine::{EngineCapacity, EngineError, EngineHandle, EngineSettings};
use muster_worker::model::fake::{FakeModel, FakeOptions};
use muster_worker::model::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use tokio::sync::mpsc::Receiver;

const SLOTS: usize = 16;
const WAITING: usize = 32;
/// A sequence that holds so many tokens gets logits that are no numbers.
const ILL: usize = 300;

/// What the model is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// So many tokens of a prompt.
    Read(usize),
    /// A token for each of so many sequences.
    Decode(usize),
}

/// A fake model that tells each run before it begins, and waits until it may.
struct Stepped {
    fake: FakeModel,
    runs: Sender<Run>,
    turns: Turns<()>,
}

impl Stepped {
    fn wait(&self, run: Run) {
        // The test may have let go of it: then it runs freely.
        if self.runs.send(run).is_ok() {
            let _ = self.turns.recv();
        }
    }
}

impl CausalModel for Stepped {
    fn shape(&self) -> CausalShape {
        self.fake.shape()
    }

    fn read(&mut self, row: Row, tokens: &[u32], past: usize, wanted: Positions) -> Result<&mut [f32], ModelError> {
        self.wait(Run::Read(tokens.len()));
        self.fake.read(row, tokens, past, wanted)
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        self.wait(Run::Decode(next.len()));
        let logits = self.fake.decode(next)?;
        let width = logits.len() / next.len();
        for (next, logits) in next.iter().zip(logits.chunks_exact_mut(width)) {
            if next.past == ILL {
                logits.fill(f32::NAN);
            }
        }
        Ok(logits)
    }

    fn swap(&mut self, a: (Row, usize), b: (Row, usize)) {
        self.fake.swap(a, b);
    }

    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError> {
        self.fake.copy(from, to, tokens)
    }

    fn release(&mut self, row: Row) {
        self.fake.release(row);
    }
}

/// An engine whose model runs when the test says so.
struct Bench {
    engine: EngineHandle,
    thread: std::thread::JoinHandle<()>,
    runs: Turns<Run>,
    turns: Sender<()>,
}

impl Bench {
    fn new(slots: usize) -> Self {
        let (runs_sender, runs) = channel();
        let (turns, turns_receiver) = channel();
        let fake = FakeModel::new(FakeOptions { answer: 1_000_000, ..FakeOptions::default() }, slots);
        let model = Stepped { fake, runs: runs_sender, turns: turns_receiver };
        let tokenizer = FakeModel::tokenizer().expect("the fake's tokenizer");
        let settings = EngineSettings {
            capacity: EngineCapacity { slots, waiting: WAITING },
            prefixes: false,
            speculation: false,
            ..EngineSettings::default()
        };
        let (engine, thread) = EngineHandle::start("test", Box::new(model), tokenizer, settings).expect("a thread");
        Self { engine, thread, runs, turns }
    }

    fn submit(&self, prompt: usize, max_tokens: usize) -> Receiver<SequenceEvent> {
        let prompt = vec![u32::from(b'x'); prompt];
        self.engine.submit(vec![SequenceRequest::new(prompt.into(), max_tokens)]).expect("there is room").remove(0)
    }

    /// The run that the model is held before.
    fn held(&self) -> Run {
        self.runs.recv().expect("the engine runs")
    }

    /// Lets the held run go; gives the next, before which the model is held then.
    fn next(&self) -> Run {
        self.turns.send(()).expect("the model waits");
        self.held()
    }

    /// Lets runs go until this one comes.
    fn until(&self, wanted: Run) {
        while self.next() != wanted {}
    }

    /// Lets everything run to its end.
    fn close(self) {
        let Self { engine, thread, runs, turns } = self;
        drop((runs, turns, engine));
        thread.join().expect("it ends with its last handle");
    }
}

/// How an answer ended, and of how many tokens it was.
fn end(mut events: Receiver<SequenceEvent>) -> Result<(FinishReason, usize), EngineError> {
    loop {
        match events.blocking_recv().expect("an end before the channel closes") {
            SequenceEvent::Delta { .. } => {}
            SequenceEvent::Finished { reason, tokens, .. } => return Ok((reason, tokens)),
            SequenceEvent::Failed(error) => return Err(error),
        }
    }
}

#[test]
fn rows_of_fifteen_cancelled_streams_of_sixteen_are_free_before_the_next_step() {
    let bench = Bench::new(SLOTS);
    let mut streams: Vec<_> = (0..SLOTS).map(|_| bench.submit(4, 2000)).collect();
    assert_eq!(bench.held(), Run::Read(4));
    bench.until(Run::Decode(SLOTS));
    let stays = streams.swap_remove(7);
    drop(streams);
    let new: Vec<_> = (1..SLOTS).map(|_| bench.submit(8, 2000)).collect();
    assert_eq!(bench.next(), Run::Decode(1), "the very next step runs the one that is left");
    assert_eq!(bench.next(), Run::Read(8), "and takes in the next ones");
    let mut steps = 1;
    loop {
        match bench.next() {
            Run::Decode(SLOTS) => break,
            Run::Decode(_) => steps += 1,
            Run::Read(length) => assert_eq!(length, 8),
        }
    }
    assert!(steps < SLOTS, "several prompts are read in a step: {steps} for {}", SLOTS - 1);
    assert_eq!(bench.engine.load(), (SLOTS, 0));
    drop((stays, new));
    bench.close();
}

#[test]
fn a_request_can_be_cancelled_while_it_waits_is_read_decodes_and_at_its_last_token() {
    let bench = Bench::new(1);
    let first = bench.submit(4, 3);
    let waits = bench.submit(5, 3);
    let is_read = bench.submit(600, 3);
    let decodes = bench.submit(6, 100);
    let ends = bench.submit(7, 3);
    let last = bench.submit(8, 2);
    assert_eq!(bench.held(), Run::Read(4));
    drop(waits);
    assert_eq!([bench.next(), bench.next()], [Run::Decode(1); 2]);
    assert_eq!(bench.next(), Run::Read(256), "the one that waited is passed over");
    drop(is_read);
    assert_eq!(bench.next(), Run::Read(6), "the rest of a prompt that nobody wants is not read");
    assert_eq!([bench.next(), bench.next()], [Run::Decode(1); 2]);
    drop(decodes);
    assert_eq!(bench.next(), Run::Read(7), "an answer that nobody wants does not go on");
    assert_eq!([bench.next(), bench.next()], [Run::Decode(1); 2]);
    drop(ends); // during the run that gives its last token
    assert_eq!(bench.next(), Run::Read(8));
    assert_eq!(bench.next(), Run::Decode(1));
    assert_eq!(bench.engine.load(), (1, 0), "all others have given their places back");
    bench.turns.send(()).expect("the model waits");
    assert!(matches!(end(first), Ok((FinishReason::Length, 3))));
    assert!(matches!(end(last), Ok((FinishReason::Length, 2))));
    bench.close();
}

#[test]
fn logits_that_are_no_numbers_end_their_sequence_and_no_other_of_the_same_run() {
    let bench = Bench::new(SLOTS);
    let well: Vec<_> = [4, 100, 120].into_iter().map(|prompt| bench.submit(prompt, 40)).collect();
    let ill = bench.submit(ILL - 10, 40);
    let more = bench.submit(5, 40);
    let Bench { engine, thread, runs, turns } = bench;
    drop((runs, turns)); // nothing is to be held here
    let broken = end(ill).expect_err("it breaks off");
    assert!(matches!(broken, EngineError::Sample(_)), "{broken:?}");
    for events in well.into_iter().chain([more]) {
        assert_eq!(end(events).expect("an end"), (FinishReason::Length, 40));
    }
    drop(engine);
    thread.join().expect("it ends with its last handle");
}

#[test]
fn whoever_ends_an_answer_among_ten_thousand_stop_strings_ends_it_there() {
    use muster_worker::engine::stop::StopFilter;
    let bench = Bench::new(2);
    let stops: Vec<String> = (0..9_999).map(|number| format!("never {number}")).chain(["wrong".to_owned()]).collect();
    let prompt: Vec<u32> = vec![u32::from(b'x'); 4];
    let request = SequenceRequest { stop: StopFilter::new(stops), ..SequenceRequest::new(prompt.into(), 200) };
    let stopped = bench.engine.submit(vec![request]).expect("there is room").remove(0);
    let Bench { engine, thread, runs, turns } = bench;
    drop((runs, turns));
    assert_eq!(end(stopped).expect("an end"), (FinishReason::Stop, "All models are wrong".len()));
    drop(engine);
    thread.join().expect("it ends with its last handle");
}
