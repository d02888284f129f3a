//! What a request becomes before it reaches the engine.

use muster_shared::generate::Sampling;

use super::*;
use crate::engine::{EngineCapacity, EngineSettings};
use crate::model::fake::{END, FakeModel, FakeOptions};

/// Tokens of the fake model: every byte, and the end.
const VOCAB: u32 = END + 1;

fn model() -> LanguageModel {
    model_with(FakeOptions::default())
}

/// A fake with room for four answers in a context of 32 tokens.
pub(super) fn model_with(options: FakeOptions) -> LanguageModel {
    let tokenizer = FakeModel::tokenizer().expect("the fake's tokenizer");
    let capacity = EngineCapacity { slots: 2, waiting: 2 };
    let fake = FakeModel::new(FakeOptions { context: 32, ..options }, capacity.slots);
    let settings = EngineSettings { capacity, ..EngineSettings::default() };
    let (engine, _) = EngineHandle::start("fake", Box::new(fake), tokenizer.clone(), settings).expect("a thread");
    LanguageModel { name: "fake".to_owned(), tokenizer, template: None, end_tokens: vec![END].into(), engine }
}

fn request() -> GenerateRequest {
    GenerateRequest::new("fake", Prompt::Tokens(vec![1, 2, 3]))
}

fn prepared(request: GenerateRequest) -> Vec<SequenceRequest> {
    let choices = model().prepare(&request, Excess::Refuse).expect("it fits").choices;
    choices.into_iter().map(|choice| choice.work().expect("it is to be computed").0).collect()
}

fn refused(request: GenerateRequest) -> Problem {
    model().prepare(&request, Excess::Refuse).expect_err("it cannot be")
}

#[test]
fn what_a_request_says_reaches_every_answer() {
    let began = Instant::now();
    let sequences = prepared(GenerateRequest {
        choices: 2,
        min_tokens: 4,
        allowed_token_ids: Some(vec![33, 1]),
        stop_token_ids: vec![200, 7, 7],
        cache_salt: Some("tenant".to_owned()),
        priority: -3,
        timeout_ms: Some(60_000),
        sampling: Sampling { seed: Some(u64::MAX), ..Sampling::default() },
        ..request()
    });
    assert_eq!(sequences.iter().map(|sequence| sequence.seed).collect::<Vec<_>>(), [u64::MAX, 0]);
    for sequence in sequences {
        assert_eq!((&*sequence.end_tokens, sequence.min_tokens), (&[7, 200, END][..], 4));
        assert_eq!((sequence.salt.as_deref(), sequence.priority), (Some("tenant"), -3));
        let left = sequence.deadline.expect("a deadline").duration_since(began);
        assert!((Duration::from_secs(60)..Duration::from_secs(90)).contains(&left), "{left:?}");
        assert_eq!(sequence.mask.expect("a mask").words(), [1 << 1, 1 << 1]);
    }
}

#[test]
fn a_request_that_says_nothing_is_bound_by_nothing() {
    let [sequence] = prepared(request()).try_into().expect("one answer");
    assert_eq!((sequence.min_tokens, sequence.priority, sequence.max_tokens), (0, 0, 29));
    assert!(sequence.deadline.is_none() && sequence.salt.is_none() && sequence.mask.is_none());
    let [endless] = prepared(GenerateRequest { timeout_ms: Some(u64::MAX), ..request() }).try_into().expect("one");
    assert!(endless.deadline.is_none_or(|deadline| deadline > Instant::now() + Duration::from_secs(1 << 30)));
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused_by_its_field_with_the_size() {
    let beyond = vec![0, VOCAB];
    let biased = Sampling { logit_bias: vec![(0, 1.0), (VOCAB, 1.0)], ..Sampling::default() };
    for (request, param) in [
        (GenerateRequest { prompt: Prompt::Tokens(beyond.clone()), ..request() }, "prompt"),
        (GenerateRequest { stop_token_ids: beyond.clone(), ..request() }, "stop_token_ids"),
        (GenerateRequest { allowed_token_ids: Some(beyond), ..request() }, "allowed_token_ids"),
        (GenerateRequest { sampling: biased, ..request() }, "logit_bias"),
    ] {
        let problem = refused(request);
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)));
        let right = "is out of range; the vocabulary has 257 tokens, so ids end at 256";
        assert_eq!(problem.message, format!("token id 257 in {param} {right}"));
    }
}

#[test]
fn a_least_length_that_cannot_be_is_refused() {
    let all: Vec<u32> = (0..VOCAB).collect();
    for request in [
        GenerateRequest { min_tokens: 6, max_tokens: Some(5), ..request() },
        GenerateRequest { min_tokens: 30, ..request() },
        GenerateRequest { min_tokens: 1, allowed_token_ids: Some(vec![END]), ..request() },
        GenerateRequest { min_tokens: 1, stop_token_ids: all.clone(), ..request() },
    ] {
        let problem = refused(request);
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("min_tokens")), "{problem}");
    }
    prepared(GenerateRequest { min_tokens: 29, ..request() });
    prepared(GenerateRequest { stop_token_ids: all, ..request() });
}

#[test]
fn no_allowed_token_at_all_is_refused() {
    let problem = refused(GenerateRequest { allowed_token_ids: Some(Vec::new()), ..request() });
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("allowed_token_ids")));
}
