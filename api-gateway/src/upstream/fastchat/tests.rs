//! Whole calls against a scripted worker.

mod scripted;

use std::time::Duration;

use futures_util::StreamExt as _;
use muster_shared::embed::EmbedInput;
use muster_shared::generate::{Chat, FinishReason, Message, Sampling, TokenLogprob, TopLogprob, Usage};
use muster_shared::problem::{Kind, Problem};
use serde_json::{Value, json};

use super::*;
use scripted::{Reply, Running};

/// A template of the given style.
pub(super) fn template(sep_style: u32) -> Conversation {
    Conversation {
        name: "test".to_owned(),
        system_template: "<{system_message}>".to_owned(),
        system_message: String::new(),
        roles: ["U".to_owned(), "A".to_owned()],
        messages: Vec::new(),
        offset: 0,
        sep_style,
        sep: "|".to_owned(),
        sep2: Some("^".to_owned()),
        stop_str: None,
        stop_token_ids: None,
    }
}

pub(super) fn message(role: &str, text: &str) -> Message {
    Message { role: role.to_owned(), content: Some(text.to_owned()), more: serde_json::Map::default() }
}

fn request(prompt: Prompt) -> GenerateRequest {
    GenerateRequest { stop: vec!["end".to_owned()], stop_token_ids: vec![7], ..GenerateRequest::new("m", prompt) }
}

fn text_request() -> GenerateRequest {
    request(Prompt::Text("Hi".to_owned()))
}

fn frame(text: &str, tokens: u32, reason: Option<&str>) -> Value {
    let usage = json!({ "prompt_tokens": 6, "completion_tokens": tokens, "total_tokens": 6 + tokens });
    json!({ "text": text, "error_code": 0, "usage": usage, "finish_reason": reason })
}

fn error(code: u32) -> Value {
    json!({ "text": "words", "error_code": code })
}

fn delta(choice: u32, text: &str) -> Event {
    Event::Delta { choice, text: text.to_owned(), tokens: Vec::new(), logprobs: Vec::new() }
}

fn good(events: Vec<Result<Event, ClientError>>) -> Vec<Event> {
    events.into_iter().map(|event| event.expect("an event")).collect()
}

fn refusal(error: ClientError) -> Problem {
    match error {
        ClientError::Refused { problem, .. } => problem,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_chat_is_rendered_and_answered_however_the_frames_are_split() {
    let frames = [frame("", 0, None), frame("H\u{FFFD}", 1, None), frame("Hé", 2, None), frame("Hé!", 3, Some("stop"))];
    for size in [1, 2, 7, 50, 1000] {
        let running = Running::start(vec![Reply::frames(&frames, size)]).await;
        let chat = Chat { messages: vec![message("user", "Hi")], ..Chat::default() };
        let events = good(running.events(&request(Prompt::Chat(chat))).await.expect("it starts"));
        let usage = Usage { prompt_tokens: 6, completion_tokens: 3, cached_tokens: 0 };
        let expected = [
            Event::Started { prompt_tokens: 6, vocabulary: None },
            delta(0, "H"),
            delta(0, "é"),
            delta(0, "!"),
            Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 0 },
            Event::Done { usage },
        ];
        assert_eq!(events, expected, "chunks of {size} bytes");
        let asked = &running.bodies("/worker_generate_stream")[0];
        assert_eq!(asked["prompt"], "<>|U: Hi|A:");
        assert_eq!(running.bodies("/count_token")[0]["prompt"], "<>|U: Hi|A:");
    }
}

#[tokio::test]
async fn parameters_are_translated() {
    let end = [frame("", 0, Some("length"))];
    let running = Running::start(vec![Reply::frames(&end, 9), Reply::frames(&end, 9)]).await;
    let sampling = Sampling { temperature: 0.5, top_p: 0.25, top_k: 3, presence_penalty: 1.5, ..Sampling::default() };
    let first = GenerateRequest { sampling, max_tokens: Some(95), logprobs: Some(0), echo: true, ..text_request() };
    running.events(&first).await.expect("it starts");
    running.events(&text_request()).await.expect("it starts");
    let asked = running.bodies("/worker_generate_stream");
    let expected = json!({
        "model": "m", "prompt": "Hi", "temperature": 0.5, "top_p": 0.25, "top_k": 3, "repetition_penalty": 1.0,
        "presence_penalty": 1.5, "frequency_penalty": 0.0, "max_new_tokens": 94, "echo": true,
        "stop": ["end", "###"], "stop_token_ids": [7, 2], "logprobs": 1,
    });
    assert_eq!(asked[0], expected);
    assert_eq!((&asked[1]["top_k"], &asked[1]["max_new_tokens"]), (&json!(-1), &json!(94)));
    assert_eq!((&asked[1]["echo"], &asked[1]["logprobs"]), (&json!(false), &Value::Null));
    assert_eq!(running.bodies("/worker_get_conv_template").len(), 1, "the template is asked for once");
}

#[tokio::test]
async fn choices_are_merged_and_the_prompt_counted_once() {
    let answer = |text| Reply::frames(&[frame(text, 2, None), frame(text, 2, Some("length"))], 20);
    let running = Running::start(vec![answer("x"), answer("x"), answer("x")]).await;
    let events = good(running.events(&GenerateRequest { choices: 3, ..text_request() }).await.expect("it starts"));
    assert_eq!(events.first(), Some(&Event::Started { prompt_tokens: 6, vocabulary: None }));
    for choice in 0..3 {
        let finished = Event::Finished { choice, reason: FinishReason::Length, tokens: 0 };
        let place = |wanted: &Event| events.iter().position(|event| event == wanted).expect("it is there");
        assert!(place(&delta(choice, "x")) < place(&finished));
    }
    let usage = Usage { prompt_tokens: 6, completion_tokens: 6, cached_tokens: 0 };
    assert_eq!((events.len(), events.last()), (8, Some(&Event::Done { usage })));
}

#[tokio::test]
async fn log_probabilities_come_along() {
    let mut last = frame("ab", 2, Some("stop"));
    last["logprobs"] = json!({ "text_offset": [0, 1], "tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0], "top_logprobs": [{}, {}] });
    let running = Running::start(vec![Reply::frames(&[last], 30)]).await;
    let request = GenerateRequest { logprobs: Some(0), ..text_request() };
    let events = good(running.events(&request).await.expect("it starts"));
    let entry = |token: &str, logprob| TokenLogprob {
        chosen: TopLogprob { id: 0, token: token.to_owned(), bytes: Some(token.as_bytes().to_vec()), logprob },
        top: Vec::new(),
    };
    let logprobs = vec![entry("a", -0.5), entry("b", -1.0)];
    assert_eq!(events[1], Event::Delta { choice: 0, text: "ab".to_owned(), tokens: Vec::new(), logprobs });
}

#[tokio::test]
async fn an_error_in_the_first_frame_is_a_refusal() {
    let codes = [
        (40303, Kind::PromptTooLong),
        (40301, Kind::UnknownModel),
        (40001, Kind::Invalid),
        (40302, Kind::Invalid),
        (42901, Kind::Overloaded),
        (42903, Kind::Overloaded),
        (50001, Kind::Upstream),
        (50002, Kind::Upstream),
        (50005, Kind::NoWorker),
        (50006, Kind::Upstream),
    ];
    let replies = codes.iter().map(|(code, _)| Reply::frames(&[error(*code)], 11)).collect();
    let running = Running::start(replies).await;
    for (code, kind) in codes {
        let problem = refusal(running.events(&text_request()).await.expect_err("an error frame"));
        assert_eq!((problem.kind, problem.message.as_str()), (kind, "words"), "code {code}");
        assert_eq!(problem.retry_after_ms, (kind == Kind::Overloaded).then_some(1000));
    }
}

#[tokio::test]
async fn a_later_error_ends_the_stream_with_an_event() {
    let abort = frame("a", 1, Some("abort"));
    for (last, words) in [(error(50001), "words"), (abort, "the worker ended the answer with `abort`")] {
        let running = Running::start(vec![Reply::frames(&[frame("a", 1, None), last], 1000)]).await;
        let events = good(running.events(&text_request()).await.expect("it starts"));
        let failed = Event::Failed { problem: Problem::new(Kind::Upstream, words) };
        assert_eq!(events, [Event::Started { prompt_tokens: 6, vocabulary: None }, delta(0, "a"), failed]);
    }
}

#[tokio::test]
async fn a_stream_without_an_end_is_broken() {
    let running = Running::start(vec![Reply::frames(&[frame("a", 1, None)], 1000), Reply::cut("", 1)]).await;
    let mut events = running.events(&text_request()).await.expect("it starts");
    assert!(matches!(events.pop(), Some(Err(ClientError::Broken { source: None, .. }))), "{events:?}");
    assert_eq!(good(events), [Event::Started { prompt_tokens: 6, vocabulary: None }, delta(0, "a")]);
    let error = running.events(&text_request()).await.expect_err("nothing came");
    assert!(matches!(error, ClientError::Broken { source: None, .. }), "{error:?}");
}

#[tokio::test]
async fn junk_is_unexpected() {
    let failure = Reply { status: 500, ..Reply::cut("Internal Server Error", 99) };
    let running = Running::start(vec![failure, Reply::cut("<html>\0", 3)]).await;
    for status in [500, 200] {
        let error = running.events(&text_request()).await.expect_err("junk");
        assert!(matches!(error, ClientError::Unexpected { status: got, .. } if got == status), "{error:?}");
    }
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let endless = Reply { ends: false, ..Reply::frames(&[frame("a", 1, None)], 1000) };
    let mut running = Running::start(vec![endless]).await;
    let mut events = running.client.generate(&running.address, &text_request()).await.expect("it starts");
    assert!(events.next().await.is_some());
    assert!(running.dropped.try_recv().is_err(), "the worker still writes");
    drop(events);
    let gone = tokio::time::timeout(Duration::from_secs(10), running.dropped.recv()).await;
    assert_eq!(gone, Ok(Some(())), "the worker sees that the client left");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_numbers() {
    let running = Running::start(Vec::new()).await;
    let long = GenerateRequest { max_tokens: Some(96), ..text_request() };
    let problem = refusal(running.events(&long).await.expect_err("5 + 96 > 100"));
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::PromptTooLong, Some("max_tokens")));
    assert!(problem.message.contains("5 tokens") && problem.message.contains("96"), "{problem}");
    let chat = request(Prompt::Chat(Chat::default()));
    for (prompt, context) in [(100, 100), (101, 100), (99, 100)] {
        for (request, param) in [(&text_request(), "prompt"), (&chat, "messages")] {
            let problem = request::room(request, prompt, context).expect_err("no room for an answer");
            assert_eq!((problem.kind, problem.param.as_deref()), (Kind::PromptTooLong, Some(param)));
        }
    }
    assert_eq!(request::room(&text_request(), 98, 100), Ok(1));
    assert_eq!(request::room(&text_request(), 0, 100).map_err(|problem| problem.kind), Err(Kind::Invalid));
}

#[test]
fn what_fastchat_cannot_do_is_refused_by_name() {
    let sampling = |sampling| GenerateRequest { sampling, ..text_request() };
    let chat = request(Prompt::Chat(Chat::default()));
    let cases = [
        (sampling(Sampling { min_p: 0.1, ..Sampling::default() }), "min_p"),
        (sampling(Sampling { typical_p: 0.9, ..Sampling::default() }), "typical_p"),
        (GenerateRequest { min_tokens: 1, ..text_request() }, "min_tokens"),
        (GenerateRequest { allowed_token_ids: Some(vec![1]), ..text_request() }, "allowed_token_ids"),
        (GenerateRequest { cache_salt: Some("s".to_owned()), ..text_request() }, "cache_salt"),
        (sampling(Sampling { logit_bias: vec![(1, 1.0)], ..Sampling::default() }), "logit_bias"),
        (sampling(Sampling { seed: Some(1), ..Sampling::default() }), "seed"),
        (GenerateRequest { ignore_eos: true, ..text_request() }, "ignore_eos"),
        (GenerateRequest { logprobs: Some(2), ..text_request() }, "logprobs"),
        (GenerateRequest { logprobs: Some(1), ..chat }, "top_logprobs"),
        (GenerateRequest { max_tokens: Some(0), ..text_request() }, "max_tokens"),
        (request(Prompt::Tokens(vec![1])), "prompt"),
    ];
    for (request, param) in cases {
        let problem = request::check(&request).expect_err("it cannot be done");
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)));
    }
    assert_eq!(request::check(&text_request()), Ok(()));
}

fn embed_request(texts: &[&str]) -> EmbedRequest {
    let inputs = texts.iter().map(|&text| EmbedInput::Text(text.to_owned())).collect();
    EmbedRequest { model: "m".to_owned(), inputs, ..EmbedRequest::default() }
}

#[tokio::test]
async fn embeddings_go_out_in_batches_and_come_back_in_order() {
    let base64 = |number| Vector(vec![number, 0.5]).to_base64();
    let first = json!({ "embedding": [base64(1.0), base64(2.0)], "token_num": 4 }).to_string();
    let second = json!({ "embedding": [[3.0, 0.5]], "token_num": 1 }).to_string();
    let running = Running::start(vec![Reply::cut(first, 5), Reply::cut(second, 5)]).await;
    let response = running.client.embed(&running.address, &embed_request(&["a", "b", "c"])).await.expect("vectors");
    let vectors = [1.0, 2.0, 3.0].map(|number| Vector(vec![number, 0.5])).to_vec();
    assert_eq!(response, EmbedResponse { vectors, prompt_tokens: 5, ..EmbedResponse::default() });
    let asked = running.bodies("/worker_get_embeddings");
    assert_eq!(asked[0], json!({ "model": "m", "input": ["a", "b"], "encoding_format": "base64" }));
    assert_eq!(asked[1]["input"], json!(["c"]));
}

#[tokio::test]
async fn embeddings_that_fail_say_why() {
    let junk = json!({ "embedding": [[1.0]], "token_num": 1 }).to_string();
    let missing = Reply { status: 404, ..Reply::cut("{\"detail\":\"Not Found\"}", 99) };
    let replies = vec![Reply::cut(error(50002).to_string(), 9), Reply::cut(junk, 9), missing];
    let running = Running::start(replies).await;
    let embed = async |request| running.client.embed(&running.address, &request).await.expect_err("a failure");
    assert_eq!(refusal(embed(embed_request(&["a"])).await).kind, Kind::Upstream);
    assert!(matches!(embed(embed_request(&["a", "b"])).await, ClientError::Unexpected { status: 200, .. }));
    assert!(matches!(embed(embed_request(&["a"])).await, ClientError::Unexpected { status: 404, .. }));
    let shorter = EmbedRequest { dimensions: Some(1), ..embed_request(&["a"]) };
    assert_eq!(refusal(embed(shorter).await).param.as_deref(), Some("dimensions"));
    let tokens = EmbedRequest { inputs: vec![EmbedInput::Tokens(vec![1])], ..embed_request(&[]) };
    assert_eq!(refusal(embed(tokens).await).param.as_deref(), Some("input"));
}
