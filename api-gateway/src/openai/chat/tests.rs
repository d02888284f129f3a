//! Chat bodies in, and replies and chunks out.

use muster_shared::generate::TokenLogprob;
use muster_shared::problem::Kind;
use muster_shared::sse::Decoder;
use serde_json::json;

use super::*;
use crate::openai::logprobs::tests::entry;

fn parse(more: Value) -> Result<ChatRequest, Problem> {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    ChatRequest::parse(body.to_string().as_bytes())
}

fn messages(request: ChatRequest) -> Value {
    let Prompt::Chat(chat) = request.generate.prompt else { panic!("a chat") };
    serde_json::to_value(chat.messages).unwrap()
}

fn head() -> ReplyHead {
    ReplyHead { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() }
}

fn delta(choice: u32, text: &str, logprobs: Vec<TokenLogprob>) -> Event {
    Event::Delta { choice, text: text.to_owned(), tokens: vec![1], logprobs }
}

fn finished(choice: u32, reason: FinishReason) -> Event {
    Event::Finished { choice, reason, tokens: 0 }
}

const USAGE: Usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };

fn usage() -> Value {
    json!({ "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
        "prompt_tokens_details": { "cached_tokens": 1 } })
}

/// The data of all server-sent events, `[DONE]` as a string.
fn streamed(request: Value, events: &[Event]) -> Vec<Value> {
    let mut chunks = ChatChunks::new(head(), &parse(request).unwrap());
    let mut decoder = Decoder::new(1 << 20);
    let bytes = events.iter().flat_map(|event| chunks.event(event));
    let data = bytes.flat_map(|bytes| decoder.push(&bytes).unwrap());
    data.map(|data| serde_json::from_str(&data).unwrap_or(json!(data))).collect()
}

fn chunk(choice: Value) -> Value {
    json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice] })
}

#[test]
fn defaults_are_openais() {
    let request = parse(json!({ "stop": null, "n": null, "tools": [], "unheard_of": 1 })).unwrap();
    assert_eq!(request.generate.model, "m");
    assert!(!request.stream && !request.include_usage);
    assert_eq!(request.priority, 0);
    let generate = request.generate;
    assert_eq!((generate.choices, generate.max_tokens, generate.logprobs), (1, None, None));
    assert_eq!(generate.sampling, Default::default());
    assert_eq!(generate.request_id, "");
}

#[test]
fn every_option_reaches_the_worker() {
    let request = parse(json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "typical_p": 0.75, "n": 3, "presence_penalty": -2,
        "frequency_penalty": 2, "repetition_penalty": 1.5, "logprobs": true, "top_logprobs": 4, "stop": ["a", "b"],
        "max_tokens": 5, "max_completion_tokens": 6.0, "seed": -1, "logit_bias": { "7": -100, "8": 1.5 },
        "stream": true, "stream_options": { "include_usage": true }, "user": "u", "ignore_eos": true,
        "chat_template_kwargs": { "enable_thinking": false }, "priority": 1000, "stop_token_ids": [2],
        "tool_choice": "none", "response_format": { "type": "text" }, "modalities": ["text"],
        "min_tokens": 6, "allowed_token_ids": [3, 4], "cache_salt": "tenant",
    }))
    .unwrap();
    assert!(request.stream && request.include_usage);
    assert_eq!(request.priority, 127);
    let expected = json!({
        "request_id": "", "model": "m", "choices": 3, "max_tokens": 6, "stop": ["a", "b"], "stop_token_ids": [2],
        "ignore_eos": true, "logprobs": 4, "echo": false, "min_tokens": 6, "allowed_token_ids": [3, 4],
        "cache_salt": "tenant", "priority": 127,
        "prompt": { "chat": { "messages": [{ "role": "user", "content": "hi" }],
            "template_arguments": { "enable_thinking": false } } },
        "sampling": { "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "typical_p": 0.75, "presence_penalty": -2.0,
            "frequency_penalty": 2.0, "repetition_penalty": 1.5, "logit_bias": [[7, -100.0], [8, 1.5]],
            "seed": u64::MAX },
    });
    assert_eq!(serde_json::to_value(request.generate).unwrap(), expected);
}

#[test]
fn values_at_the_edge_mean_what_others_mean_by_them() {
    let sampling = |more| parse(more).unwrap().generate.sampling;
    assert_eq!(sampling(json!({ "top_k": -1 })).top_k, 0);
    assert_eq!(sampling(json!({ "top_k": 1e12 })).top_k, u32::MAX);
    assert_eq!(sampling(json!({ "seed": u64::MAX })).seed, Some(u64::MAX));
    let likeliest = sampling(json!({ "top_p": 0, "top_k": 50 }));
    assert_eq!((likeliest.top_p, likeliest.top_k), (1.0, 1));
    assert_eq!(parse(json!({ "max_tokens": 1e12 })).unwrap().generate.max_tokens, Some(u32::MAX));
    assert_eq!(parse(json!({ "logprobs": true })).unwrap().generate.logprobs, Some(0));
    assert_eq!(parse(json!({ "stop": "x" })).unwrap().generate.stop, ["x"]);
}

#[test]
fn a_bad_value_is_refused_by_the_name_of_its_field() {
    let bad = [
        ("model", vec![json!(null), json!(5), json!("")]),
        ("messages", vec![json!(null), json!([]), json!("hi"), json!({})]),
        ("temperature", vec![json!("hot"), json!(3), json!(-0.1), json!(true), json!([])]),
        ("top_p", vec![json!(-0.1), json!(1.1)]),
        ("top_k", vec![json!(1.5), json!(-2), json!("x")]),
        ("min_p", vec![json!(2)]),
        ("typical_p", vec![json!(0), json!(1.1), json!("x")]),
        ("min_tokens", vec![json!(-1), json!(1.5), json!("x")]),
        ("allowed_token_ids", vec![json!([]), json!(1), json!(["a"]), json!([-1])]),
        ("cache_salt", vec![json!(""), json!(1), json!("x".repeat(257))]),
        ("n", vec![json!(0), json!(129), json!(1.5), json!(-1)]),
        ("presence_penalty", vec![json!(9)]),
        ("frequency_penalty", vec![json!([]), json!(-2.5)]),
        ("repetition_penalty", vec![json!(0), json!(2.5), json!("x")]),
        ("logprobs", vec![json!(1), json!("yes")]),
        ("top_logprobs", vec![json!(5), json!(21), json!(-1)]),
        (
            "stop",
            vec![
                json!(7),
                json!(""),
                json!([""]),
                json!([1]),
                json!(vec!["x"; 10_001]),
                json!("x".repeat(2000)),
                json!(vec!["x".repeat(1000); 600]),
            ],
        ),
        ("stop_token_ids", vec![json!(1), json!(["a"]), json!([-1]), json!(vec![1; 10_001])]),
        ("max_tokens", vec![json!(0), json!("many"), json!(-1), json!(0.5)]),
        ("max_completion_tokens", vec![json!(0)]),
        ("seed", vec![json!("x"), json!(1.5), json!(1e300)]),
        (
            "logit_bias",
            vec![json!({ "x": 1 }), json!({ "1": 101 }), json!({ "1": "a" }), json!([]), json!({ "-1": 1 })],
        ),
        ("stream", vec![json!("yes"), json!(1)]),
        ("stream_options", vec![json!({ "include_usage": true })]),
        ("user", vec![json!(5)]),
        ("ignore_eos", vec![json!("x")]),
        ("chat_template_kwargs", vec![json!([])]),
        ("priority", vec![json!("high"), json!(0.5)]),
    ];
    for (field, value) in bad.iter().flat_map(|(field, values)| values.iter().map(move |value| (field, value))) {
        let problem = parse(json!({ *field: value })).unwrap_err();
        assert_eq!(problem.kind, Kind::Invalid);
        assert_eq!(problem.param.as_deref(), Some(*field), "{value}: {problem}");
        assert!(problem.message.contains(field), "{value}: {problem}");
        assert!(problem.message.len() < 200, "{value}: {problem}");
    }
}

#[test]
fn an_answer_that_must_be_longer_than_it_may_is_refused_with_both_numbers() {
    let problem = parse(json!({ "min_tokens": 6, "max_tokens": 5 })).unwrap_err();
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some("min_tokens")));
    assert_eq!(problem.message, "'min_tokens' must be at most 'max_tokens', which is 5; got 6");
    for fine in [json!({ "min_tokens": 6 }), json!({ "min_tokens": 6, "max_tokens": 6 })] {
        assert_eq!(parse(fine).unwrap().generate.min_tokens, 6);
    }
}

#[test]
fn ten_thousand_stop_strings_and_tokens_are_taken() {
    let stops: Vec<String> = (0..10_000).map(|n| format!("stop {n}")).collect();
    let tokens: Vec<u32> = (0..10_000).collect();
    let generate = parse(json!({ "stop": stops, "stop_token_ids": tokens })).unwrap().generate;
    assert_eq!((generate.stop, generate.stop_token_ids), (stops, tokens));
}

#[test]
fn errors_say_what_is_expected_and_what_was_there() {
    let message = |more| parse(more).unwrap_err().message;
    assert_eq!(
        message(json!({ "temperature": "hot" })),
        r#"'temperature' must be a number between 0 and 2; got "hot""#
    );
    assert_eq!(message(json!({ "top_k": 1.5 })), "'top_k' must be an integer of at least -1; got 1.5");
    assert_eq!(message(json!({ "n": 0 })), "'n' must be an integer between 1 and 128; got 0");
    assert_eq!(message(json!({ "stream": [1, 2] })), "'stream' must be true or false; got an array");
    assert_eq!(message(json!({ "model": null })), "'model' is required");
    let stream_options = json!({ "stream": true, "stream_options": { "include_usage": 1 } });
    assert_eq!(message(stream_options), "'stream_options.include_usage' must be true or false; got 1");
    let long = message(json!({ "seed": "é".repeat(1000) }));
    assert_eq!(long, format!("'seed' must be an integer of at most 64 bits; got \"{}\"…", "é".repeat(40)));
}

#[test]
fn a_body_that_is_no_object_is_refused_with_its_place() {
    let message = |body: &str| ChatRequest::parse(body.as_bytes()).unwrap_err().message;
    assert_eq!(message("{not json"), "the body is not valid JSON: key must be a string at line 1 column 2");
    assert_eq!(message("[]"), "the body must be a JSON object; got an array");
    assert!(message("").contains("line 1 column 0"));
    assert!(message(&"[".repeat(10_000)).contains("recursion limit"));
}

#[test]
fn what_cannot_be_done_is_refused_by_its_name() {
    for (field, value) in [
        ("tools", json!([{ "type": "function", "function": { "name": "f" } }])),
        ("functions", json!([{}])),
        ("tool_choice", json!("required")),
        ("function_call", json!({ "name": "f" })),
        ("response_format", json!({ "type": "json_object" })),
        ("audio", json!({})),
        ("modalities", json!(["text", "audio"])),
        ("prediction", json!({})),
        ("web_search_options", json!({})),
        ("guided_json", json!({})),
        ("use_beam_search", json!(true)),
    ] {
        let problem = parse(json!({ field: value })).unwrap_err();
        assert_eq!(problem.param.as_deref(), Some(field));
        assert_eq!(problem.message, format!("'{field}' is not supported by this gateway yet; leave it out"));
    }
    parse(json!({ "tools": null, "functions": [], "tool_choice": "auto", "reasoning_effort": "low" })).unwrap();
}

#[test]
fn messages_keep_what_the_chat_template_may_use() {
    let request = parse(json!({ "messages": [
        { "role": "developer", "content": "be brief" },
        { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "name": "u" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }], "refusal": null },
        { "role": "tool", "content": "4", "tool_call_id": "1" },
        { "role": "assistant", "content": "" },
    ]}))
    .unwrap();
    let expected = json!([
        { "role": "system", "content": "be brief" },
        { "role": "user", "content": "ab", "name": "u" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] },
        { "role": "tool", "content": "4", "tool_call_id": "1" },
        { "role": "assistant", "content": "" },
    ]);
    assert_eq!(messages(request), expected);
}

#[test]
fn a_bad_message_is_refused_by_its_place() {
    for (message, param) in [
        (json!("hi"), "messages[0]"),
        (json!({ "content": "hi" }), "messages[0].role"),
        (json!({ "role": "robot", "content": "hi" }), "messages[0].role"),
        (json!({ "role": "user" }), "messages[0].content"),
        (json!({ "role": "user", "content": null }), "messages[0].content"),
        (json!({ "role": "assistant", "content": null, "tool_calls": [] }), "messages[0].content"),
        (json!({ "role": "user", "content": 5 }), "messages[0].content"),
        (json!({ "role": "user", "content": [] }), "messages[0].content"),
        (json!({ "role": "user", "content": ["hi"] }), "messages[0].content[0]"),
        (json!({ "role": "user", "content": [{ "text": "hi" }] }), "messages[0].content[0].type"),
        (json!({ "role": "user", "content": [{ "type": "text" }] }), "messages[0].content[0].text"),
    ] {
        let problem = parse(json!({ "messages": [message] })).unwrap_err();
        assert_eq!(problem.param.as_deref(), Some(param), "{problem}");
        assert!(problem.message.contains(param), "{problem}");
    }
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }]);
    let problem = parse(json!({ "messages": image })).unwrap_err();
    assert_eq!(problem.param.as_deref(), Some("messages[0].content"));
    assert!(problem.message.contains("\"image_url\""), "{problem}");
}

#[test]
fn a_whole_reply_has_all_choices_and_the_usage() {
    let mut reply = ChatReply::new(head(), 2);
    for event in [
        Event::Started { prompt_tokens: 3, vocabulary: None },
        delta(0, "a", vec![entry(("a", -0.5), &[])]),
        delta(1, "b", vec![]),
        delta(0, "c", vec![entry(("c", -1.0), &[])]),
        finished(1, FinishReason::Length),
        finished(0, FinishReason::Stop),
        delta(2, "a choice that nobody asked for", vec![]),
    ] {
        reply.push(&event);
    }
    fn token(token: &str, byte: u8, logprob: f32) -> Value {
        json!({ "token": token, "logprob": logprob, "bytes": [byte], "top_logprobs": [] })
    }
    let expected = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m", "usage": usage(), "choices": [
            { "index": 0, "message": { "role": "assistant", "content": "ac", "refusal": null }, "finish_reason": "stop",
              "logprobs": { "content": [token("a", 97, -0.5), token("c", 99, -1.0)], "refusal": null } },
            { "index": 1, "message": { "role": "assistant", "content": "b", "refusal": null }, "logprobs": null,
              "finish_reason": "length" },
        ],
    });
    assert_eq!(serde_json::to_value(reply.finish(USAGE)).unwrap(), expected);
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let events = [
        Event::Started { prompt_tokens: 3, vocabulary: None },
        delta(0, "", vec![]),
        delta(0, "a", vec![]),
        finished(0, FinishReason::Stop),
        Event::Done { usage: USAGE },
        delta(0, "after the end", vec![]),
    ];
    let choice =
        |delta: Value, reason: Value| json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason });
    let mut expected = vec![
        chunk(choice(json!({ "role": "assistant", "content": "" }), json!(null))),
        chunk(choice(json!({ "content": "a" }), json!(null))),
        chunk(choice(json!({}), json!("stop"))),
        json!("[DONE]"),
    ];
    assert_eq!(streamed(json!({ "stream": true }), &events), expected);

    for chunk in &mut expected[..3] {
        chunk["usage"] = json!(null);
    }
    let mut last = expected[0].clone();
    last["choices"] = json!([]);
    last["usage"] = usage();
    expected.insert(3, last);
    let with_usage = json!({ "stream": true, "stream_options": { "include_usage": true } });
    assert_eq!(streamed(with_usage, &events), expected);
}

#[test]
fn each_choice_of_a_stream_has_its_own_role_and_logprobs_come_without_text_too() {
    let events = [
        delta(1, "", vec![entry(("a", -0.5), &[])]),
        finished(0, FinishReason::Length),
        delta(9, "a choice that nobody asked for", vec![]),
    ];
    let choice = |index: u32, delta: Value, logprobs: Value, reason: Value| {
        chunk(json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason }))
    };
    let role = json!({ "role": "assistant", "content": "" });
    let token = json!({ "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [] });
    let logprobs = json!({ "content": [token], "refusal": null });
    let expected = [
        choice(1, role.clone(), json!(null), json!(null)),
        choice(1, json!({ "content": "" }), logprobs, json!(null)),
        choice(0, role, json!(null), json!(null)),
        choice(0, json!({}), json!(null), json!("length")),
    ];
    assert_eq!(streamed(json!({ "n": 2 }), &events), expected);
}

#[test]
fn a_stream_that_fails_ends_with_the_error_and_not_with_done() {
    let problem = Problem::new(Kind::Upstream, "the worker broke off");
    let events = [delta(0, "a", vec![]), Event::Failed { problem }, Event::Done { usage: USAGE }];
    let streamed = streamed(json!({}), &events);
    let error = json!({ "error": { "message": "the worker broke off", "type": "server_error", "param": null,
        "code": "upstream_error" } });
    assert_eq!(streamed.len(), 3);
    assert_eq!(streamed[2], error);
}
