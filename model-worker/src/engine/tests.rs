//! The engine with models that need no files.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use muster_shared::generate::FinishReason;

use super::resume::{ResumeError, Resumed};
use super::stop::StopFilter;
use super::*;
use crate::model::fake::{END, FakeModel, FakeOptions};
use crate::model::{Next, Positions, Row};

const CAPACITY: EngineCapacity = EngineCapacity { slots: 2, waiting: 2 };
const SETTINGS: EngineSettings = EngineSettings {
    capacity: CAPACITY,
    tokens: usize::MAX,
    threads: std::num::NonZeroUsize::MIN,
    prefixes: true,
    speculation: true,
    itl_budget: Duration::from_millis(100),
};

/// A token on which the model panics.
const PANIC: u32 = 255;

/// A fake model that can be held before its next run, and broken in one row.
struct Gated {
    fake: FakeModel,
    open: Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>,
    broken: Option<u32>,
    nan: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
}

impl CausalModel for Gated {
    fn shape(&self) -> CausalShape {
        self.fake.shape()
    }

    fn read(&mut self, row: Row, tokens: &[u32], past: usize, wanted: Positions) -> Result<&mut [f32], ModelError> {
        self.wait_and_check(tokens)?;
        let nan = self.nan.load(Ordering::Relaxed);
        let logits = self.fake.read(row, tokens, past, wanted)?;
        if nan {
            logits.fill(f32::NAN);
        }
        Ok(logits)
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        let tokens: Vec<u32> = next.iter().map(|next| next.token).collect();
        self.wait_and_check(&tokens)?;
        let nan = self.nan.load(Ordering::Relaxed);
        let logits = self.fake.decode(next)?;
        if nan {
            logits.fill(f32::NAN);
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

impl Gated {
    fn wait_and_check(&self, tokens: &[u32]) -> Result<(), ModelError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let (open, changed) = &*self.open;
        let guard = open.lock().expect("no panic while holding it");
        drop(changed.wait_while(guard, |open| !*open).expect("no panic while holding it"));
        assert!(!tokens.contains(&PANIC), "a model that crashes");
        if self.broken.is_some_and(|token| tokens.contains(&token)) {
            return Err(ModelError::Run("broken".to_owned()));
        }
        Ok(())
    }
}

struct Bench {
    engine: EngineHandle,
    thread: JoinHandle<()>,
    open: Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>,
    nan: Arc<AtomicBool>,
    /// Runs of the model so far.
    runs: Arc<AtomicUsize>,
}

impl Bench {
    fn new(answer: usize, broken: Option<u32>) -> Self {
        Self::with(FakeOptions { answer, ..FakeOptions::default() }, broken)
    }

    fn with(options: FakeOptions, broken: Option<u32>) -> Self {
        let (open, nan) = (Arc::new((std::sync::Mutex::new(true), std::sync::Condvar::new())), Arc::default());
        let runs: Arc<AtomicUsize> = Arc::default();
        let fake = FakeModel::new(options, CAPACITY.slots + 2);
        let model = Gated { fake, open: Arc::clone(&open), broken, nan: Arc::clone(&nan), runs: Arc::clone(&runs) };
        let tokenizer = FakeModel::tokenizer().expect("the fake's tokenizer");
        let (engine, thread) = EngineHandle::start("test", Box::new(model), tokenizer, SETTINGS).expect("a thread");
        Self { engine, thread, open, nan, runs }
    }

    fn gate(&self, open: bool) {
        *self.open.0.lock().expect("no panic while holding it") = open;
        self.open.1.notify_all();
    }

    fn submit(&self, request: SequenceRequest) -> mpsc::Receiver<SequenceEvent> {
        self.engine.submit(vec![request]).expect("there is room").remove(0)
    }

    fn close(self) {
        drop(self.engine);
        self.thread.join().expect("the engine ends with its last handle");
    }
}

fn request(prompt: &str, max_tokens: usize) -> SequenceRequest {
    let prompt: Vec<u32> = prompt.bytes().map(u32::from).collect();
    SequenceRequest { end_tokens: vec![END].into(), ..SequenceRequest::new(prompt.into(), max_tokens) }
}

/// The text of an answer, and how it ended.
async fn read(mut events: mpsc::Receiver<SequenceEvent>) -> (String, Result<(FinishReason, usize), EngineError>) {
    let mut text = String::new();
    loop {
        match events.recv().await.expect("an end before the channel closes") {
            SequenceEvent::Delta { text: more, .. } => text.push_str(&more),
            SequenceEvent::Finished { reason, tokens, .. } => return (text, Ok((reason, tokens))),
            SequenceEvent::Failed(error) => return (text, Err(error)),
        }
    }
}

#[tokio::test]
async fn an_answer_ends_by_itself_or_at_its_limit() {
    let bench = Bench::new(10, None);
    let (text, end) = read(bench.submit(request("hello", 50))).await;
    assert_eq!((text.as_str(), end.expect("an end")), ("All models", (FinishReason::Stop, 11)));
    let (text, end) = read(bench.submit(request("hello", 3))).await;
    assert_eq!((text.as_str(), end.expect("an end")), ("All", (FinishReason::Length, 3)));
    bench.close();
}

#[tokio::test]
async fn a_prompt_longer_than_a_chunk_is_read_in_pieces_and_answered_alike() {
    let bench = Bench::new(10, None);
    let (long, short) = (bench.submit(request(&"x".repeat(700), 50)), bench.submit(request("x", 50)));
    let (long, short) = tokio::join!(read(long), read(short));
    assert_eq!((long.0.as_str(), short.0.as_str()), ("All models", "All models"));
    bench.close();
}

#[tokio::test]
async fn a_stop_string_ends_an_answer_and_is_not_shown() {
    let bench = Bench::new(40, None);
    let stop = SequenceRequest { stop: StopFilter::new(vec!["del".to_owned()]), ..request("hello", 50) };
    let (text, end) = read(bench.submit(stop)).await;
    assert_eq!((text.as_str(), end.expect("an end").0), ("All mo", FinishReason::Stop));
    // What might have become a stop string is shown when the answer ends without it.
    let held = SequenceRequest { stop: StopFilter::new(vec!["models!".to_owned()]), ..request("hello", 9) };
    assert_eq!(read(bench.submit(held)).await.0, "All model");
    bench.close();
}

#[tokio::test]
async fn an_answer_does_not_end_before_its_least_length() {
    let bench = Bench::new(0, None); // it would end at once
    for least in [0, 1, 5, 8] {
        let (_, end) = read(bench.submit(SequenceRequest { min_tokens: least, ..request("hello", 8) })).await;
        let right = if least < 8 { (FinishReason::Stop, least + 1) } else { (FinishReason::Length, 8) };
        assert_eq!(end.expect("an end"), right);
    }
    bench.close();
}

#[tokio::test]
async fn an_answer_consists_of_allowed_tokens_only() {
    let bench = Bench::new(10, None);
    let allowed: Vec<u32> = b"Aldo ".iter().copied().map(u32::from).collect();
    let mask: Box<dyn mask::TokenMask> = Box::new(mask::AllowedTokens::new(&allowed));
    let (text, end) = read(bench.submit(SequenceRequest { mask: Some(mask), ..request("hello", 20) })).await;
    assert_eq!(end.expect("an end"), (FinishReason::Length, 20), "the end is not among them");
    assert!(text.starts_with("All ") && text.bytes().all(|byte| allowed.contains(&u32::from(byte))), "{text:?}");
    let nothing: Box<dyn mask::TokenMask> = Box::new(mask::AllowedTokens::new(&[]));
    let (_, end) = read(bench.submit(SequenceRequest { mask: Some(nothing), ..request("hello", 20) })).await;
    assert!(matches!(end, Err(EngineError::Sample(SampleError::NothingAllowed))), "{end:?}");
    bench.close();
}

/// Allows the same few tokens in turn.
#[derive(Debug, Clone)]
struct InTurn {
    words: [[u32; 8]; 3],
    accepted: usize,
}

impl InTurn {
    const TURNS: [u32; 3] = [b'A' as u32, b'm' as u32, b'w' as u32];

    fn new() -> Self {
        let words = Self::TURNS.map(|token| {
            let mut words = [0; 8];
            words[token as usize / 32] = 1 << (token % 32);
            words
        });
        Self { words, accepted: 0 }
    }
}

impl mask::TokenMask for InTurn {
    fn compute(&mut self) -> Result<(), MaskError> {
        Ok(())
    }

    fn words(&self) -> &[u32] {
        &self.words[self.accepted % 3]
    }

    fn accept(&mut self, token: u32) -> Result<(), MaskError> {
        if token != Self::TURNS[self.accepted % 3] {
            return Err(MaskError(format!("token {token} is out of turn")));
        }
        self.accepted += 1;
        Ok(())
    }

    fn boxed_clone(&self) -> Box<dyn mask::TokenMask> {
        Box::new(self.clone())
    }
}

#[tokio::test]
async fn a_restricted_answer_that_is_resumed_stands_where_its_tokens_have_brought_it() {
    let bench = Bench::new(10, None);
    let tokenizer = FakeModel::tokenizer().expect("the fake's tokenizer");
    let request = || SequenceRequest { mask: Some(Box::new(InTurn::new())), ..request("hello", 8) };
    assert_eq!(read(bench.submit(request())).await.0, "AmwAmwAm");
    for come in 0..8 {
        let tokens: Vec<u32> = InTurn::TURNS.into_iter().cycle().take(come).collect();
        let Ok(Resumed::GoesOn { request, text }) = request().resume(tokens, &tokenizer) else { panic!("it goes on") };
        let (rest, end) = read(bench.submit(*request)).await;
        assert_eq!((text + &rest, end.expect("an end")), ("AmwAmwAm".to_owned(), (FinishReason::Length, 8)));
    }
    let wrong = request().resume(vec![65, 65], &tokenizer);
    assert!(matches!(wrong, Err(ResumeError::NotAllowed { token: 65, index: 1, .. })), "{wrong:?}");
    bench.close();
}

#[tokio::test]
async fn a_full_engine_refuses_at_once_and_takes_more_when_there_is_room() {
    let bench = Bench::new(4, None);
    bench.gate(false);
    let held: Vec<_> = (0..4).map(|_| bench.submit(request("hello", 8))).collect();
    let refused = bench.engine.submit(vec![request("hello", 8)]);
    assert!(matches!(refused, Err(EngineError::Overloaded { slots: 2, waiting: 2 })), "{refused:?}");
    let never = bench.engine.submit(vec![request("hello", 8); 5]);
    assert!(matches!(never, Err(EngineError::TooMany { wanted: 5, limit: 4 })), "{never:?}");
    bench.gate(true);
    for events in held {
        assert_eq!(read(events).await.0, "All ");
    }
    assert_eq!(read(bench.submit(request("hello", 8))).await.0, "All ");
    bench.close();
}

#[tokio::test]
async fn an_abandoned_sequence_gives_its_row_back_before_the_next_step() {
    let bench = Bench::new(1_000_000, None);
    let mut endless: Vec<_> = (0..2).map(|_| bench.submit(request("hello", 4000))).collect();
    for events in &mut endless {
        events.recv().await.expect("a token");
    }
    drop(endless);
    let (text, _) = read(bench.submit(request("hello", 3))).await;
    assert_eq!(text, "All");
    let room = Arc::clone(&bench.engine.room);
    bench.close();
    assert_eq!(room.available_permits(), CAPACITY.slots + CAPACITY.waiting);
}

#[tokio::test]
async fn a_failed_step_ends_its_sequence_and_no_other() {
    let bench = Bench::new(10, Some(u32::from(b'!')));
    let (bad, good) = (bench.submit(request("oh!", 50)), bench.submit(request("hello", 50)));
    let ((_, bad), (text, good)) = tokio::join!(read(bad), read(good));
    assert!(matches!(bad, Err(EngineError::Step(_))), "{bad:?}");
    assert_eq!((text.as_str(), good.expect("an end").0), ("All models", FinishReason::Stop));
    bench.close();
}

#[tokio::test]
async fn logits_that_are_no_numbers_end_a_sequence_with_an_error() {
    let bench = Bench::new(10, None);
    bench.nan.store(true, Ordering::Relaxed);
    let (_, end) = read(bench.submit(request("hello", 50))).await;
    assert!(matches!(end, Err(EngineError::Sample(_))), "{end:?}");
    bench.nan.store(false, Ordering::Relaxed);
    assert_eq!(read(bench.submit(request("hello", 50))).await.0, "All models");
    bench.close();
}

#[tokio::test]
async fn a_crash_of_the_model_is_noticed_and_ends_what_ran() {
    let bench = Bench::new(1_000_000, None);
    let mut running = bench.submit(request("hello", 4000));
    running.recv().await.expect("a token");
    let crashing = SequenceRequest { prompt: vec![PANIC].into(), ..request("", 8) };
    let mut crashing = bench.submit(crashing);
    bench.engine.died().await;
    assert!(crashing.recv().await.is_none(), "no end is told that was none");
    while running.recv().await.is_some() {}
    assert!(!bench.engine.is_alive());
    assert!(matches!(bench.engine.submit(vec![request("hello", 8)]), Err(EngineError::Stopped)));
}

#[tokio::test]
async fn answers_that_run_together_take_one_run_for_a_token_of_each() {
    let bench = Bench::new(1000, None);
    bench.gate(false);
    let both = [bench.submit(request("one", 100)), bench.submit(request("two", 100))];
    bench.gate(true);
    for events in both {
        assert_eq!(read(events).await.0.len(), 100);
    }
    let runs = bench.runs.load(Ordering::Relaxed);
    assert!(runs < 150, "{runs} runs for 200 tokens");
    bench.close();
}

#[tokio::test]
async fn a_text_that_foretells_itself_takes_fewer_runs_and_is_the_same() {
    // A run takes a millisecond whatever it reads, so that proposals pay.
    let options = FakeOptions { answer: 300, token_time: Duration::from_millis(1), ..FakeOptions::default() };
    let bench = Bench::with(options, None);
    let (text, end) = read(bench.submit(request("hello", 400))).await;
    assert_eq!((text.as_str(), end.expect("an end")), (&SAID[..300], (FinishReason::Stop, 301)));
    let runs = bench.runs.load(Ordering::Relaxed);
    assert!(runs < 250, "{runs} runs for 301 tokens");
    let (text, _) = read(bench.submit(request("hello", 150))).await;
    assert_eq!(text, SAID[..150], "a proposal never leads beyond the limit");
    bench.close();
}

/// What the fake says, again and again.
const SAID: &str = concat!(
    "All models are wrong, but some are useful. All models are wrong, but some are useful. ",
    "All models are wrong, but some are useful. All models are wrong, but some are useful. ",
    "All models are wrong, but some are useful. All models are wrong, but some are useful. ",
    "All models are wrong, but some are useful. All models are wrong, but some are useful. ",
);

#[tokio::test]
async fn what_a_prompt_shares_with_an_earlier_one_is_told() {
    let bench = Bench::new(10, None);
    for expected in [0, 4] {
        let mut events = bench.submit(request("hello", 50));
        let cached = loop {
            match events.recv().await.expect("an end") {
                SequenceEvent::Finished { cached, .. } => break cached,
                SequenceEvent::Failed(error) => panic!("{error}"),
                SequenceEvent::Delta { .. } => {}
            }
        };
        assert_eq!(cached, expected);
    }
    bench.close();
}

#[tokio::test]
async fn an_answer_that_is_late_ends_with_an_error_whether_it_waits_or_runs() {
    let bench = Bench::new(1_000_000, None);
    bench.gate(false);
    let deadline = Some(std::time::Instant::now());
    let late = (0..4).map(|_| bench.submit(SequenceRequest { deadline, ..request("hello", 4000) }));
    let late: Vec<_> = late.collect();
    bench.gate(true);
    for events in late {
        assert!(matches!(read(events).await.1, Err(EngineError::Late)));
    }
    bench.close();
}

#[tokio::test]
async fn what_waits_is_shed_and_what_has_begun_goes_on() {
    let bench = Bench::new(10, None);
    bench.engine.shed();
    assert_eq!(read(bench.submit(request("hello", 50))).await.0, "All models", "nothing waited");
    bench.gate(false);
    let running: Vec<_> = (0..2).map(|_| bench.submit(request("hello", 4))).collect();
    let waiting: Vec<_> = (0..2).map(|_| bench.submit(request("hello", 4))).collect();
    bench.engine.shed();
    bench.engine.shed(); // it need not be said twice
    bench.gate(true);
    for events in waiting {
        let (text, end) = read(events).await;
        assert!(text.is_empty() && matches!(end, Err(EngineError::Shed)), "{text:?} {end:?}");
    }
    for events in running {
        assert_eq!(read(events).await.1.expect("an end"), (FinishReason::Length, 4));
    }
    assert_eq!(bench.engine.load(), (0, 0));
    assert_eq!(read(bench.submit(request("hello", 50))).await.0, "All models", "what comes later is served");
    bench.close();
}

#[tokio::test]
async fn an_engine_tells_how_full_and_how_fast_it_is() {
    // Slow enough to be looked at while it answers.
    let options = FakeOptions { answer: 1_000_000, token_time: Duration::from_millis(1), ..FakeOptions::default() };
    let bench = Bench::with(options, None);
    assert_eq!((bench.engine.tokens_chosen(), bench.engine.first_token(), bench.engine.fill()), (0, None, 0.0));
    let context = bench.engine.shape().context;
    let mut running = bench.submit(request(&"x".repeat(context / 2), context / 2 - 1));
    running.recv().await.expect("a token");
    assert!(bench.engine.first_token().is_some_and(|time| time > Duration::ZERO));
    while bench.engine.fill() == 0.0 {
        running.recv().await.expect("a token"); // told after each step
    }
    let fill = bench.engine.fill();
    assert!((0.25..0.5).contains(&fill), "{fill}: of two slots, one is half full, or more");
    let chosen = bench.engine.tokens_chosen();
    drop(running);
    let (_, end) = read(bench.submit(request("hello", 3))).await;
    assert_eq!(end.expect("an end").1, 3);
    assert!(bench.engine.tokens_chosen() >= chosen + 3);
    while bench.engine.fill() > 0.0 {
        tokio::task::yield_now().await; // told after the last step
    }
    bench.close();
}
