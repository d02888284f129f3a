//! What becomes of a request that tells of answers begun elsewhere; `tests/resume.rs` has what they go on with.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use muster_shared::generate::{Event, FinishReason, Prompt, Sampling, Usage};

use super::*;
use crate::language::Excess;
use crate::language::tests::model_with;
use crate::model::fake::{END, FakeOptions};

fn model() -> LanguageModel {
    model_with(FakeOptions::default())
}

/// At most ten tokens after a prompt of three.
fn request(choices: &[ResumedChoice]) -> GenerateRequest {
    let vocabulary = Some(model().tokenizer.fingerprint().to_owned());
    GenerateRequest {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(10),
        choices: choices.len() as u32,
        resume: Some(Resume { vocabulary, choices: choices.to_vec() }),
        ..GenerateRequest::new("fake", Prompt::Tokens(vec![1, 2, 3]))
    }
}

fn begun(text: &str) -> ResumedChoice {
    ResumedChoice { tokens: text.bytes().map(u32::from).collect(), text_bytes: text.len() as u64, finished: None }
}

fn over(tokens: u32) -> ResumedChoice {
    ResumedChoice { tokens: vec![], text_bytes: 0, finished: Some(tokens) }
}

fn with_tokens(tokens: &[u32]) -> ResumedChoice {
    ResumedChoice { tokens: tokens.to_vec(), ..ResumedChoice::default() }
}

#[test]
fn what_cannot_be_the_beginning_of_an_answer_is_refused_with_what_is_wrong() {
    let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
    let unnamed = Resume { vocabulary: None, choices: vec![begun("All")] };
    for (request, wrong) in [
        (GenerateRequest { choices: 2, ..request(&[begun("All")]) }, "answers told: 1, asked for: 2"),
        (GenerateRequest { choices: 1, ..request(&[]) }, "answers told: 0, asked for: 1"),
        (GenerateRequest { sampling: sampled, ..request(&[begun("All")]) }, "needs the seed"),
        (GenerateRequest { resume: Some(unnamed), ..request(&[begun("All")]) }, "does not name their vocabulary"),
        (request(&[begun("All"), with_tokens(&[65, 257])]), "token id 257 in resume is out of range"),
        (
            request(&[begun("All models ")]),
            "answer 0 in resume cannot go on: it has 11 tokens, and the answer may have 10",
        ),
        (
            GenerateRequest { max_tokens: None, ..request(&[begun(&"x".repeat(30))]) },
            "it has 30 tokens, and the answer may have 29",
        ),
        (request(&[over(11)]), "answer 0 in resume has finished with 11 tokens, and max_tokens is 10"),
        (request(&[begun("A"), with_tokens(&[65, END])]), "answer 1 in resume cannot go on: token 256 ends an answer"),
        (GenerateRequest { stop_token_ids: vec![108], ..request(&[begun("All")]) }, "token 108 ends an answer"),
        (
            GenerateRequest { stop: vec!["l".to_owned()], ..request(&[begun("All")]) },
            "a stop string ends it after 2 of its 3 tokens",
        ),
        (
            GenerateRequest { allowed_token_ids: Some(vec![65]), ..request(&[begun("Al")]) },
            "token 108 is not allowed as its token 1",
        ),
    ] {
        let problem = model().prepare(&request, Excess::Refuse).expect_err(wrong);
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("resume")), "{problem}");
        assert!(problem.message.contains(wrong), "{problem}");
    }
}

#[test]
fn a_vocabulary_that_this_worker_does_not_have_is_for_another_one() {
    let own = model().tokenizer.fingerprint().to_owned();
    let resume = Resume { vocabulary: Some("other".to_owned()), choices: vec![with_tokens(&[9999])] };
    // Neither may the prompt's tokens, which are of that vocabulary too, be called wrong.
    let prompt = Prompt::Tokens(vec![9999]);
    let request = GenerateRequest { resume: Some(resume), prompt, ..request(&[begun("All")]) };
    let problem = model().prepare(&request, Excess::Refuse).expect_err("it cannot be gone on with");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::UnknownModel, Some("resume")));
    assert!(problem.message.contains("`other`") && problem.message.contains(&own), "{problem}");
}

#[test]
fn what_needs_no_seed_or_no_vocabulary_goes_on_without() {
    let sampled = || Sampling { temperature: 1.0, ..Sampling::default() };
    let nothing = Resume { vocabulary: None, choices: vec![ResumedChoice::default()] };
    for request in [
        GenerateRequest { sampling: sampled(), ..request(&[over(3)]) },
        GenerateRequest { sampling: Sampling { seed: Some(1), ..sampled() }, ..request(&[begun("All")]) },
        GenerateRequest { resume: Some(nothing), ..request(&[begun("All")]) },
        GenerateRequest { ignore_eos: true, ..request(&[with_tokens(&[65, END])]) },
    ] {
        model().prepare(&request, Excess::Refuse).expect("it can be");
    }
}

/// What a worker sends at once, without a step of the engine.
fn at_once(model: &LanguageModel, request: &GenerateRequest) -> Vec<Event> {
    let prepared = model.prepare(request, Excess::Refuse).expect("it can be");
    let events = model.generate(prepared).expect("it needs no room").skip(1); // the start
    events.collect().now_or_never().expect("all is known")
}

fn delta(choice: u32, text: &str) -> Event {
    Event::Delta { choice, text: text.to_owned(), tokens: vec![], logprobs: vec![] }
}

fn done(completion_tokens: u32) -> Event {
    Event::Done { usage: Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 0 } }
}

#[tokio::test]
async fn answers_that_need_no_step_end_at_once_even_where_the_engine_is_full() {
    let model = model_with(FakeOptions { token_time: Duration::from_secs(1), ..FakeOptions::default() });
    let busy = GenerateRequest { choices: 4, resume: None, ..request(&[begun("All")]) };
    let busy = model.generate(model.prepare(&busy, Excess::Refuse).expect("it fits")).expect("there is room");
    assert_eq!(model.check_room().map_err(|problem| problem.kind), Err(Kind::Overloaded));

    assert_eq!(at_once(&model, &request(&[over(4), over(3)])), [done(7)]);
    let full = ResumedChoice { text_bytes: 4, ..begun("All models") };
    let length = Event::Finished { choice: 1, reason: FinishReason::Length, tokens: 10 };
    assert_eq!(at_once(&model, &request(&[over(4), full])), [delta(1, "models"), length, done(14)]);
    let stopped = GenerateRequest { stop: vec!["mo".to_owned()], ..request(&[begun("All mo")]) };
    let stop = Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 6 };
    assert_eq!(at_once(&model, &stopped), [stop, done(6)], "the client has more text than there is, and keeps it");

    let more = model.prepare(&request(&[over(4), begun("All")]), Excess::Refuse).expect("it can be");
    let refused = model.generate(more).map(drop).map_err(|problem| problem.kind);
    assert_eq!(refused, Err(Kind::Overloaded), "what goes on needs room as any other");
    drop(busy);
}

#[test]
fn only_answers_that_go_on_count_against_what_the_engine_holds() {
    let five = [over(1), over(1), over(1), over(1), begun("A")];
    model().prepare(&request(&five), Excess::Refuse).expect("one is to be computed");
    let problem = model().prepare(&request(&vec![begun("A"); 5]), Excess::Refuse).expect_err("too many");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("n")));
}
