//! Completion bodies in, and replies and chunks out.

use muster_shared::generate::TokenLogprob;
use muster_shared::problem::Kind;
use muster_shared::sse::Decoder;
use serde_json::{Value, json};

use super::*;
use crate::openai::logprobs::tests::entry;

fn parse(more: Value) -> Result<CompletionRequest, Problem> {
    let mut body = json!({ "model": "m", "prompt": "hi" });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    CompletionRequest::parse(body.to_string().as_bytes())
}

fn head() -> ReplyHead {
    ReplyHead { id: "cmpl-1".to_owned(), created: 7, model: "m".to_owned() }
}

fn delta(choice: u32, text: &str, tokens: Vec<u32>, logprobs: Vec<TokenLogprob>) -> Event {
    Event::Delta { choice, text: text.to_owned(), tokens, logprobs }
}

fn finished(choice: u32) -> Event {
    Event::Finished { choice, reason: FinishReason::Stop, tokens: 0 }
}

fn frame(choices: Value) -> Value {
    json!({ "id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m", "choices": choices })
}

fn choice(index: usize, text: &str, logprobs: Value, reason: Value) -> Value {
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
}

const USAGE: Usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };

fn usage() -> Value {
    json!({ "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
        "prompt_tokens_details": { "cached_tokens": 1 } })
}

/// The data of all server-sent events, `[DONE]` as a string.
fn streamed(request: Value, events: &[(usize, Event)]) -> Vec<Value> {
    let mut chunks = CompletionChunks::new(head(), &parse(request).unwrap());
    let mut decoder = Decoder::new(1 << 20);
    let mut bytes: Vec<_> = events.iter().flat_map(|(prompt, event)| chunks.event(*prompt, event)).collect();
    bytes.extend(chunks.finish(USAGE));
    let data = bytes.iter().flat_map(|bytes| decoder.push(bytes).unwrap());
    data.map(|data| serde_json::from_str(&data).unwrap_or(json!(data))).collect()
}

/// An echoed prompt, two tokens of which the first brings no text yet, and the end.
fn echo() -> Vec<(usize, Event)> {
    vec![
        (0, Event::Started { prompt_tokens: 3, vocabulary: None }),
        (0, delta(0, "né", vec![], vec![])),
        (0, delta(0, "", vec![1], vec![entry(("a", -0.5), &[("a", -0.5)])])),
        (0, delta(0, "ab", vec![2], vec![entry(("b", -1.0), &[("c", -0.25)])])),
        (0, finished(0)),
        (0, Event::Done { usage: USAGE }),
    ]
}

#[test]
fn defaults_are_openais() {
    let request = parse(json!({ "suffix": null, "best_of": 1, "echo": null })).unwrap();
    let expected = json!({
        "request_id": "", "model": "m", "prompt": { "text": "hi" }, "choices": 1, "max_tokens": 16,
        "ignore_eos": false, "min_tokens": 0, "echo": false, "priority": 0,
        "sampling": { "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0 },
    });
    assert!(!request.stream);
    assert_eq!(serde_json::to_value(request.requests("")).unwrap(), json!([expected]));
}

#[test]
fn each_prompt_is_a_request_of_its_own() {
    let prompts = |prompt| {
        let request = parse(json!({ "prompt": prompt, "echo": true, "best_of": 2, "n": 2 })).unwrap();
        let requests = request.requests("");
        assert!(requests.iter().all(|request| request.echo && request.choices == 2));
        requests.into_iter().map(|request| request.prompt).collect::<Vec<_>>()
    };
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(json!("")), [text("")]);
    assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2])]);
}

#[test]
fn a_bad_value_is_refused_by_the_name_of_its_field() {
    for (field, value, param) in [
        ("prompt", json!(null), "prompt"),
        ("prompt", json!([]), "prompt"),
        ("prompt", json!({}), "prompt"),
        ("prompt", json!([1, "a"]), "prompt"),
        ("prompt", json!(["a", [1]]), "prompt"),
        ("prompt", json!([[1], []]), "prompt[1]"),
        ("prompt", json!(vec!["a"; 129]), "prompt"),
        ("prompt", json!([1_i64 << 40]), "prompt"),
        ("max_tokens", json!(0), "max_tokens"),
        ("logprobs", json!(true), "logprobs"),
        ("logprobs", json!(21), "logprobs"),
        ("min_tokens", json!(17), "min_tokens"), // beyond the usual `max_tokens`
        ("allowed_token_ids", json!([]), "allowed_token_ids"),
        ("cache_salt", json!(""), "cache_salt"),
        ("echo", json!(1), "echo"),
        ("suffix", json!("x"), "suffix"),
        ("best_of", json!(3), "best_of"),
        ("temperature", json!("hot"), "temperature"),
        ("response_format", json!({ "type": "json_schema" }), "response_format"),
    ] {
        let problem = parse(json!({ field: value })).unwrap_err();
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)), "{problem}");
        assert!(problem.message.contains(param), "{problem}");
    }
}

#[test]
fn logprobs_of_an_echoed_prompt_are_refused_by_name() {
    let problem = parse(json!({ "echo": true, "logprobs": 0 })).unwrap_err();
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("logprobs")));
    for fine in [json!({ "echo": false, "logprobs": 1 }), json!({ "echo": true, "logprobs": null })] {
        assert!(parse(fine).is_ok());
    }
}

#[test]
fn the_choices_of_all_prompts_share_one_reply() {
    let request = parse(json!({ "prompt": ["a", "b"], "n": 2 })).unwrap();
    let mut reply = CompletionReply::new(head(), &request);
    for (prompt, one) in [(1, 1), (0, 0), (1, 0), (0, 1)] {
        reply.push(prompt, &delta(one, &format!("{prompt}{one}"), vec![1], vec![]));
        reply.push(prompt, &finished(one));
        reply.push(0, &delta(2, "a choice that nobody asked for", vec![1], vec![]));
    }
    let texts = ["00", "01", "10", "11"];
    let choices: Vec<Value> =
        texts.iter().enumerate().map(|(index, text)| choice(index, text, json!(null), json!("stop"))).collect();
    let mut expected = frame(json!(choices));
    expected["usage"] = usage();
    assert_eq!(serde_json::to_value(reply.finish(USAGE)).unwrap(), expected);
}

#[test]
fn logprobs_of_a_reply_begin_after_the_echo() {
    let mut reply = CompletionReply::new(head(), &parse(json!({ "logprobs": 1 })).unwrap());
    for (prompt, event) in echo() {
        reply.push(prompt, &event);
    }
    let logprobs = json!({ "tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{ "a": -0.5 }, { "c": -0.25, "b": -1.0 }], "text_offset": [2, 3] });
    let reply = serde_json::to_value(reply.finish(USAGE)).unwrap();
    assert_eq!(reply["choices"], json!([choice(0, "néab", logprobs, json!("stop"))]));
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    fn one(token: &str, logprob: f32, top: Value, offset: usize) -> Value {
        json!({ "tokens": [token], "token_logprobs": [logprob], "top_logprobs": [top], "text_offset": [offset] })
    }
    let mut expected = vec![
        frame(json!([choice(0, "né", json!(null), json!(null))])),
        frame(json!([choice(0, "", one("a", -0.5, json!({ "a": -0.5 }), 2), json!(null))])),
        frame(json!([choice(0, "ab", one("b", -1.0, json!({ "c": -0.25, "b": -1.0 }), 3), json!(null))])),
        frame(json!([choice(0, "", json!(null), json!("stop"))])),
        json!("[DONE]"),
    ];
    assert_eq!(streamed(json!({ "stream": true }), &echo()), expected);

    for chunk in &mut expected[..4] {
        chunk["usage"] = json!(null);
    }
    let mut last = frame(json!([]));
    last["usage"] = usage();
    expected.insert(4, last);
    let with_usage = json!({ "stream": true, "stream_options": { "include_usage": true } });
    assert_eq!(streamed(with_usage, &echo()), expected);
}

#[test]
fn a_stream_of_several_prompts_ends_once() {
    let request = json!({ "prompt": ["a", "b"], "n": 2 });
    let events = [
        (1, delta(1, "x", vec![1], vec![])),
        (0, delta(2, "a choice that nobody asked for", vec![1], vec![])),
        (0, finished(2)),
        (2, finished(0)),
        (1, Event::Done { usage: USAGE }),
        (0, delta(1, "y", vec![1], vec![])),
    ];
    let expected = [
        frame(json!([choice(3, "x", json!(null), json!(null))])),
        frame(json!([choice(1, "y", json!(null), json!(null))])),
        json!("[DONE]"),
    ];
    assert_eq!(streamed(request, &events), expected);
}

#[test]
fn a_stream_that_fails_ends_with_the_error_and_not_with_done() {
    let problem = Problem::new(Kind::Timeout, "too slow");
    let events = [(0, Event::Failed { problem }), (1, delta(0, "x", vec![1], vec![]))];
    let expected =
        json!({ "error": { "message": "too slow", "type": "server_error", "param": null, "code": "timeout" } });
    assert_eq!(streamed(json!({ "prompt": ["a", "b"] }), &events), [expected]);
}
