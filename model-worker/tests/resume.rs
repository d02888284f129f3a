//! An answer that breaks off anywhere is gone on with as if nothing had happened.

mod cuts;
mod trial;

use std::num::NonZeroUsize;
use std::path::Path;

use cuts::{Seen, check, check_twice, events, progress};
use muster_shared::generate::{Event, FinishReason, GenerateRequest, Prompt, Resume, ResumedChoice, Sampling};
use muster_worker::engine::{EngineCapacity, EngineHandle, EngineSettings};
use muster_worker::language::LanguageModel;
use muster_worker::model::CausalModel;
use muster_worker::model::fake::{END, FakeModel, FakeOptions};
use muster_worker::model::files::ModelFiles;
use muster_worker::model::manifest::Manifest;
use muster_worker::model::onnx;
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::spin::Spin;
use muster_worker::tokenizer::Tokenizer;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const SLOTS: usize = 4;
const SETTINGS: EngineSettings = EngineSettings {
    capacity: EngineCapacity { slots: SLOTS, waiting: 4 },
    tokens: usize::MAX,
    threads: NonZeroUsize::MIN,
    prefixes: true,
    speculation: true,
    itl_budget: std::time::Duration::from_millis(100),
};

fn language(model: Box<dyn CausalModel>, tokenizer: Tokenizer, end: u32) -> LanguageModel {
    let (engine, _) = EngineHandle::start("test", model, tokenizer.clone(), SETTINGS).expect("a thread");
    LanguageModel { name: "test".to_owned(), tokenizer, template: None, end_tokens: vec![end].into(), engine }
}

/// Says "All models are wrong", one token a byte, and ends.
fn fake() -> LanguageModel {
    let options = FakeOptions { answer: 20, context: 64, ..FakeOptions::default() };
    let tokenizer = FakeModel::tokenizer().expect("the fake's tokenizer");
    language(Box::new(FakeModel::new(options, SLOTS + 2)), tokenizer, END)
}

fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: Some(max_tokens),
        ..GenerateRequest::new("test", Prompt::Text("hello".to_owned()))
    }
}

/// So hot that the fake says anything.
fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 6.0, seed: Some(seed), ..Sampling::default() }
}

fn bytes(text: &str) -> Option<Vec<u32>> {
    Some(text.bytes().map(u32::from).collect())
}

fn stop(stops: &[&str]) -> Vec<String> {
    stops.iter().map(|stop| (*stop).to_owned()).collect()
}

/// Whether an answer's last text came without tokens.
fn has_tail(events: &[Event]) -> bool {
    events
        .iter()
        .any(|event| matches!(event, Event::Delta { text, tokens, .. } if tokens.is_empty() && !text.is_empty()))
}

#[tokio::test]
async fn the_likeliest_answer_goes_on_to_its_own_end_and_to_its_limit() {
    let model = fake();
    for (request, text, end) in [
        (request(40), "All models are wrong", (FinishReason::Stop, 21)),
        (request(9), "All model", (FinishReason::Length, 9)),
        (
            GenerateRequest { stop_token_ids: vec![u32::from(b'w')], ..request(40) },
            "All models are ",
            (FinishReason::Stop, 16),
        ),
        (GenerateRequest { logprobs: Some(2), ..request(12) }, "All models a", (FinishReason::Length, 12)),
        (GenerateRequest { logprobs: Some(0), ..request(1) }, "A", (FinishReason::Length, 1)),
    ] {
        let seen = Seen::of(1, &check_twice(&model, &request).await);
        assert_eq!((seen.answers[0].text.as_str(), &seen.answers[0].ends[..]), (text, &[end][..]));
    }
    let endless = GenerateRequest { ignore_eos: true, max_tokens: None, ..request(1) };
    let seen = Seen::of(1, &check_twice(&model, &endless).await);
    assert_eq!(seen.answers[0].ends, [(FinishReason::Length, 64 - 5)], "up to the end of the context");
}

#[tokio::test]
async fn a_stop_string_ends_an_answer_where_it_would_have_wherever_that_broke_off() {
    let model = fake();
    for (stops, max_tokens, text, reason, tail) in [
        (&["del"][..], 40, "All mo", FinishReason::Stop, false),
        (&["s ar"], 13, "All model", FinishReason::Stop, false), // complete with the last token there may be
        (&["models!"], 9, "All model", FinishReason::Length, true),
        (&["wrong!", "are wrong?"], 40, "All models are wrong", FinishReason::Stop, true),
        (&["models!", "delx", "lls", "els are"], 40, "All mod", FinishReason::Stop, false),
        (&["A"], 40, "", FinishReason::Stop, false),
    ] {
        let events = check_twice(&model, &GenerateRequest { stop: stop(stops), ..request(max_tokens) }).await;
        assert_eq!(has_tail(&events), tail, "{events:?}");
        let seen = Seen::of(1, &events);
        assert_eq!((seen.answers[0].text.as_str(), seen.answers[0].ends[0].0), (text, reason));
    }
}

#[tokio::test]
async fn stop_strings_among_sampled_tokens_end_an_answer_alike() {
    let model = fake();
    let mut ends = [0; 2];
    for seed in 0..12 {
        let request = GenerateRequest {
            sampling: sampled(seed),
            allowed_token_ids: bytes("ab"),
            stop: stop(&["abba", "bbbb", "aaab"]),
            choices: 2,
            ..request(10)
        };
        for answer in Seen::of(2, &check_twice(&model, &request).await).answers {
            ends[usize::from(answer.ends[0].0 == FinishReason::Stop)] += 1;
        }
    }
    assert!(ends.iter().all(|ends| *ends > 2), "{ends:?}");
}

#[tokio::test]
async fn several_sampled_answers_go_on_each_from_where_it_stood() {
    let model = fake();
    for (seed, choices) in [(7, 2), (u64::MAX, 3)] {
        let request = GenerateRequest { sampling: sampled(seed), choices, logprobs: Some(1), ..request(16) };
        let seen = Seen::of(choices, &check_twice(&model, &request).await);
        assert_ne!(seen.answers[0].tokens, seen.answers[1].tokens, "each draws numbers of its own");
    }
    let filtered = Sampling { top_k: 40, top_p: 0.9, min_p: 0.01, typical_p: 0.95, ..sampled(3) };
    check_twice(&model, &GenerateRequest { sampling: filtered, ..request(30) }).await;
}

#[tokio::test]
async fn penalties_count_the_tokens_that_came_before() {
    let model = fake();
    let likeliest = Sampling { frequency_penalty: 0.5, temperature: 0.0, ..Sampling::default() };
    let request = |sampling| GenerateRequest { sampling, allowed_token_ids: bytes("abcd"), ..request(20) };
    let seen = Seen::of(1, &check_twice(&model, &request(likeliest)).await);
    assert_eq!(seen.answers[0].text, "abcd".repeat(5), "whoever has come least is next");
    for penalised in [
        Sampling { repetition_penalty: 1.5, logit_bias: vec![(97, 4.0), (98, 4.0)], ..sampled(5) },
        Sampling { presence_penalty: 2.0, temperature: 1.0, ..sampled(6) },
        Sampling { frequency_penalty: 2.0, temperature: 1.0, ..sampled(7) },
    ] {
        check_twice(&model, &request(penalised)).await;
    }
}

#[tokio::test]
async fn a_least_length_counts_the_tokens_that_came_before() {
    let model = fake();
    let late = GenerateRequest { min_tokens: 24, ..request(40) };
    assert_eq!(
        Seen::of(1, &check_twice(&model, &late).await).answers[0].ends[0].1,
        40,
        "it would end after 20 tokens only"
    );
    for seed in 0..4 {
        // Every other token would be the end.
        let request = GenerateRequest {
            sampling: sampled(seed),
            allowed_token_ids: Some(vec![97, END]),
            min_tokens: 6,
            choices: 2,
            ..request(20)
        };
        for answer in Seen::of(2, &check_twice(&model, &request).await).answers {
            assert!(answer.ends[0].1 > 6, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_echoed_prompt_comes_once() {
    let model = fake();
    let crab = || Prompt::Text("a 🦀: é".to_owned());
    let request = || GenerateRequest { echo: true, prompt: crab(), ..request(8) };
    assert_eq!(Seen::of(1, &check_twice(&model, &request()).await).answers[0].text, "a 🦀: éAll mode");
    check_twice(&model, &GenerateRequest { choices: 3, sampling: sampled(1), ..request() }).await;
    let tokens = Prompt::Tokens(vec![104, 105, 0xF0, 0x9F]); // shown with a character that is broken, and so counted
    check_twice(&model, &GenerateRequest { prompt: tokens, ..request() }).await;
    let held = GenerateRequest { stop: stop(&["models"]), ..request() };
    assert!(has_tail(&check_twice(&model, &held).await));
}

#[tokio::test]
async fn a_character_that_several_tokens_make_is_neither_lost_nor_doubled() {
    let model = fake();
    let mut tails = 0;
    for seed in 0..12 {
        let request = GenerateRequest {
            sampling: sampled(seed),
            allowed_token_ids: Some(vec![0xF0, 0x9F, 0xA6, 0x80, 0xC3, 0xA9, 97]),
            stop: if seed % 3 == 0 { stop(&["\u{FFFD}\u{FFFD}a", "é\u{FFFD}"]) } else { Vec::new() },
            choices: 1 + (seed % 2) as u32,
            ..request(14)
        };
        tails += usize::from(has_tail(&check_twice(&model, &request).await));
    }
    assert!(tails > 2, "some end within a character: {tails}");
    // The answer finishes what the prompt has begun, each byte as the penalty wants it.
    let crab = GenerateRequest {
        prompt: Prompt::Tokens(vec![97, 0xF0, 0x9F]),
        sampling: Sampling { temperature: 0.0, frequency_penalty: 1.0, ..Sampling::default() },
        allowed_token_ids: Some(vec![0x80, 0xA6]),
        ..request(6)
    };
    check_twice(&model, &crab).await;
}

#[tokio::test]
async fn answers_to_requests_of_all_kinds_go_on_as_they_would_have() {
    let model = fake();
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..60 {
        check_twice(&model, &any_request(&mut random)).await;
    }
}

/// A request that asks for anything at once.
fn any_request(random: &mut StdRng) -> GenerateRequest {
    let sampling = Sampling {
        temperature: [0.0, 1.0, 3.0, 8.0][random.random_range(0..4)],
        top_k: [0, 0, 3][random.random_range(0..3)],
        top_p: [1.0, 0.8][random.random_range(0..2)],
        repetition_penalty: [1.0, 1.3][random.random_range(0..2)],
        presence_penalty: [0.0, 0.4][random.random_range(0..2)],
        frequency_penalty: [0.0, -0.3, 1.5][random.random_range(0..3)],
        seed: Some(random.random()),
        ..Sampling::default()
    };
    let alphabet: Vec<u32> = "Al mod.é🦀".bytes().map(u32::from).chain([END]).collect();
    let allowed = random.random_bool(0.7).then(|| {
        let count = random.random_range(2..alphabet.len());
        alphabet.sample(random, count).copied().collect()
    });
    let stops = ["l", "ll", "mo", " m", "\u{FFFD}", "é", "del", "dd", "models "];
    let count = random.random_range(0..3);
    let max_tokens = random.random_range(1..20);
    GenerateRequest {
        sampling,
        choices: random.random_range(1..4),
        stop: stops.sample(random, count).map(|stop| (*stop).to_owned()).collect(),
        min_tokens: if random.random_bool(0.3) { random.random_range(0..=max_tokens) } else { 0 },
        ignore_eos: random.random_bool(0.2),
        allowed_token_ids: allowed,
        logprobs: [None, Some(0), Some(3)][random.random_range(0..3)],
        echo: random.random_bool(0.3),
        ..request(max_tokens)
    }
}

#[tokio::test]
async fn exactly_the_text_that_the_client_has_is_left_out() {
    let model = fake();
    let request = GenerateRequest { echo: true, prompt: Prompt::Text("é:".to_owned()), ..request(9) };
    let whole = events(&model, &request).await;
    let text = Seen::of(1, &whole).answers.remove(0).text;
    for cut in 0..whole.len() - 2 {
        let resume = progress(1, &whole[..cut]).resume();
        for text_bytes in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            let choices = vec![ResumedChoice { text_bytes: text_bytes as u64, ..resume.choices[0].clone() }];
            let resume = Some(Resume { choices, ..resume.clone() });
            let rest = events(&model, &GenerateRequest { resume, ..request.clone() }).await;
            assert_eq!(Seen::of(1, &rest).answers[0].text, text[text_bytes..], "after {cut} events");
        }
    }
}

#[tokio::test]
async fn of_what_was_found_in_the_cache_only_the_prompt_is_told() {
    let model = fake();
    let whole = events(&model, &request(9)).await;
    let resume = Some(progress(1, &whole[..7]).resume());
    let rest = events(&model, &GenerateRequest { resume, ..request(9) }).await;
    let usage = Seen::of(1, &rest).usage[0];
    assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (5, 5, 9));
}

/// A language model on ONNX Runtime, from a folder named from this crate's.
fn onnx(folder: &str) -> LanguageModel {
    let files = ModelFiles::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("it is there");
    let Manifest::Causal(manifest) = Manifest::read(&files).expect("a model") else { panic!("a language model") };
    let options = SessionOptions { threads: NonZeroUsize::MIN, spin: Spin::Off, optimised: None };
    let model = onnx::load_causal(trial::runtime(), &options, manifest, (SLOTS + 2, usize::MAX)).expect("it loads");
    let tokenizer = Tokenizer::from_json(&files.read("tokenizer.json").expect("readable").expect("there"));
    let tokenizer = tokenizer.expect("a tokenizer");
    let end = tokenizer.id_of("<|im_end|>").expect("it ends turns");
    language(model, tokenizer, end)
}

/// Forty tokens, broken off after each.
async fn a_real_answer_goes_on(folder: &str) {
    let model = onnx(folder);
    let long = |sampling| GenerateRequest {
        sampling,
        ignore_eos: true,
        ..GenerateRequest { prompt: Prompt::Text("The quick brown fox".to_owned()), ..request(40) }
    };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let seen = Seen::of(1, &check(&model, &long(greedy.clone())).await);
    assert_eq!(seen.answers[0].tokens.len(), 40);
    // Few tokens to draw from, so that a number seldom falls on the border of two.
    let drawn = Sampling { temperature: 1.0, top_k: 20, seed: Some(11), ..Sampling::default() };
    let two = GenerateRequest { choices: 2, logprobs: Some(2), ..long(drawn.clone()) };
    let seen = Seen::of(2, &check(&model, &two).await);
    assert_ne!(seen.answers[0].tokens, seen.answers[1].tokens);
    let penalised = Sampling { repetition_penalty: 1.2, frequency_penalty: 0.8, ..drawn };
    check(&model, &long(penalised)).await;
    // A stop string from the middle of the answer, over the border of two tokens.
    let text = Seen::of(1, &events(&model, &long(greedy.clone())).await).answers.remove(0).text;
    let middle = text.ceil_char_boundary(text.len() / 2);
    let stop = vec![text[middle..].chars().take(7).collect()];
    let stopped = Seen::of(1, &check(&model, &GenerateRequest { stop, ..long(greedy) }).await);
    assert_eq!(stopped.answers[0].ends[0].0, FinishReason::Stop);
}

#[tokio::test]
async fn an_answer_of_a_real_model_goes_on_as_it_would_have_in_place() {
    a_real_answer_goes_on("demo/chat").await;
}

#[tokio::test]
async fn an_answer_of_a_real_model_goes_on_as_it_would_have_by_concatenation() {
    a_real_answer_goes_on("../tests/models/demo-concat").await;
}
