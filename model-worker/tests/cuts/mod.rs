//! Answers that break off after any event and go on elsewhere, against the same answers undisturbed.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use muster_shared::generate::{Event, FinishReason, GenerateRequest, TokenLogprob, TopLogprob, Usage};
use muster_shared::resume::Progress;
use muster_worker::language::{Excess, LanguageModel};

/// Largest difference of a log-probability: a prompt read in other pieces changes logits by some 1e-6.
const TOLERANCE: f32 = 1e-3;
/// A resumed answer breaks off once more after every so many events.
const SECOND_CUT: usize = 5;

/// What a client has of one answer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    /// How it ended, and after how many tokens: once, or it is a fault.
    pub(crate) ends: Vec<(FinishReason, u32)>,
}

/// What a client has of a request.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) answers: Vec<Answer>,
    pub(crate) usage: Vec<Usage>,
}

impl Seen {
    pub(crate) fn of<'a>(choices: u32, events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut seen = Self { answers: vec![Answer::default(); choices as usize], usage: Vec::new() };
        for event in events {
            assert!(seen.usage.is_empty(), "nothing follows the end, not {event:?}");
            seen.note(event);
        }
        seen
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Started { .. } => {}
            Event::Delta { choice, text, tokens, logprobs } => {
                let answer = &mut self.answers[*choice as usize];
                assert!(answer.ends.is_empty(), "nothing follows the end of an answer, not {event:?}");
                answer.text.push_str(text);
                answer.tokens.extend_from_slice(tokens);
                answer.logprobs.extend_from_slice(logprobs);
            }
            Event::Finished { choice, reason, tokens } => self.answers[*choice as usize].ends.push((*reason, *tokens)),
            Event::Done { usage } => self.usage.push(*usage),
            Event::Failed { problem } => panic!("{problem}"),
        }
    }

    /// That both are the same, log-probabilities nearly so.
    fn assert_is(&self, right: &Self, context: &str) {
        let without = |seen: &Self| {
            let mut seen = seen.clone();
            seen.answers.iter_mut().for_each(|answer| answer.logprobs.clear());
            seen
        };
        assert_eq!(without(self), without(right), "{context}");
        for (own, right) in self.answers.iter().zip(&right.answers) {
            assert_eq!(own.logprobs.len(), right.logprobs.len(), "{context}");
            for (own, right) in own.logprobs.iter().zip(&right.logprobs) {
                assert_eq!(own.top.len(), right.top.len(), "{context}");
                let rivals = own.top.iter().zip(&right.top).all(|(a, b)| near(a, b));
                assert!(own.chosen.id == right.chosen.id && near(&own.chosen, &right.chosen) && rivals, "{context}");
            }
        }
    }
}

fn near(a: &TopLogprob, b: &TopLogprob) -> bool {
    (a.logprob - b.logprob).abs() < TOLERANCE
}

/// The whole of what a worker sends.
pub(crate) async fn events(model: &LanguageModel, request: &GenerateRequest) -> Vec<Event> {
    let prepared = model.prepare(request, Excess::Refuse).expect("it fits");
    model.generate(prepared).expect("there is room").collect().await
}

/// The same, sharing nothing with any other request, so that what is told of the prefix cache is the same each time.
async fn events_alone(model: &LanguageModel, request: &GenerateRequest) -> Vec<Event> {
    static SALT: AtomicUsize = AtomicUsize::new(0);
    let salt = SALT.fetch_add(1, Ordering::Relaxed).to_string();
    events(model, &GenerateRequest { cache_salt: Some(salt), ..request.clone() }).await
}

/// What is noted after these events.
pub(crate) fn progress(choices: u32, events: &[Event]) -> Progress {
    let mut progress = Progress::new(choices);
    events.iter().for_each(|event| progress.note(event));
    progress
}

/// Breaks an answer off after each of its events; whoever goes on must give what is left of it and nothing else. Gives
/// the undisturbed events.
pub(crate) async fn check(model: &LanguageModel, request: &GenerateRequest) -> Vec<Event> {
    check_with(model, request, None).await
}

/// The same; besides, whoever goes on breaks off too, and a third goes on.
pub(crate) async fn check_twice(model: &LanguageModel, request: &GenerateRequest) -> Vec<Event> {
    check_with(model, request, Some(SECOND_CUT)).await
}

async fn check_with(model: &LanguageModel, request: &GenerateRequest, second: Option<usize>) -> Vec<Event> {
    let whole = events_alone(model, request).await;
    let right = Seen::of(request.choices, &whole);
    assert_eq!(right.usage.len(), 1, "{whole:?}");
    for cut in 0..whole.len() {
        let before = &whole[..cut];
        let rest = go_on(model, request, before, &right).await;
        for again in second.into_iter().flat_map(|every| (1..rest.len()).step_by(every)) {
            let before = [before, &rest[..again]].concat();
            go_on(model, request, &before, &right).await;
        }
    }
    whole
}

/// Goes on after these events; gives what came then.
async fn go_on(model: &LanguageModel, request: &GenerateRequest, before: &[Event], right: &Seen) -> Vec<Event> {
    let progress = progress(request.choices, before);
    let resumed = GenerateRequest { resume: Some(progress.resume()), ..request.clone() };
    let rest = events_alone(model, &resumed).await;
    let context = format!("resumed with {:?}\nbefore: {before:?}\nrest: {rest:?}", resumed.resume);
    assert!(progress.is_resumable() && progress.is_continued_by(&rest[0]), "{context}");
    assert!(rest[1..].iter().all(|event| !matches!(event, Event::Started { .. })), "{context}");
    Seen::of(request.choices, before.iter().chain(&rest)).assert_is(right, &context);
    rest
}
