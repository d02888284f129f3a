//! Workers that speak OpenAI's API, and fail at it.

use std::sync::Arc;
use std::time::Duration;

use muster_gateway::ApiKey;
use muster_shared::control::Outcome::{self, Cancelled, Done, Failed, Overloaded};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::problem::Problem;
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::peers::raw::{Act, END, Raw, STREAM, answer, chunk, events, json, send, stream};
use crate::peers::{Controller, Gateway, Named, header, in_time};

const EVENT: &str = r#"{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hé"}}]}"#;
const WHOLE: &str = r#"{"id":"1", "object":"chat.completion","choices":[{"message":{"content":"Hé"}}],"x":1.50}"#;
/// What must never reach a client that another worker has answered.
const BAD: &str = "from the bad one";

/// What a good worker does.
fn good(is_stream: bool) -> Vec<Act> {
    match is_stream {
        true => vec![send(stream(&[EVENT, "[DONE]"])), send(END)],
        false => vec![send(json("200 OK", WHOLE))],
    }
}

/// What a client gets from it.
fn good_text(is_stream: bool) -> String {
    if is_stream { format!("data: {EVENT}\n\ndata: [DONE]\n\n") } else { WHOLE.to_owned() }
}

/// A gateway in front of workers of this transport that do so.
async fn fleet(scripts: Vec<Vec<Act>>) -> (Gateway, Controller, Vec<Raw>) {
    let mut workers = Vec::new();
    for script in scripts {
        workers.push(Raw::always(script).await);
    }
    let named: Vec<_> = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(Transport::OpenAi))).collect();
    let controller = Controller::start(named).await;
    (Gateway::start(&controller.address, |_| {}).await, controller, workers)
}

/// A way to fail before the first event.
struct Fault {
    name: &'static str,
    acts: Vec<Act>,
    outcome: Outcome,
    /// What a client hears if there is no other worker.
    status: u16,
    code: &'static str,
}

fn fault(name: &'static str, acts: impl IntoIterator<Item = Act>) -> Fault {
    Fault { name, acts: acts.into_iter().collect(), outcome: Failed, status: 502, code: "upstream_error" }
}

/// Faults that are the same whatever was asked for.
fn faults() -> Vec<Fault> {
    let said = || format!(r#"{{"error":{{"message":"{BAD}","type":"server_error"}}}}"#);
    let status = |status: &str, headers: &str| send(answer(status, headers, BAD));
    let told = |status| send(json(status, &said()));
    let mut faults = vec![
        fault("garbage", [send("SSH-2.0-OpenSSH_9.6\r\n"), Act::Close]),
        fault("bytes", [send([0, 255, 254, 0, 1]), Act::Close]),
        fault("nothing", [Act::Close]),
        fault("half a head", [send("HTTP/1.1 200 OK\r\ncontent-ty"), Act::Close]),
        fault("an endless head", [send("HTTP/1.1 200 OK\r\n"), Act::Flood(b"a: b\r\n".to_vec())]),
        fault("a head alone", [send(STREAM), Act::Close]),
        fault("a page", [send(answer("200 OK", "content-type: text/html\r\n", &format!("<html>{BAD}</html>")))]),
        fault("no content type", [send(answer("200 OK", "", &good_text(true)))]),
        fault("an error with 200", [told("200 OK")]),
        fault("an error of another kind with 200", [send(json("200 OK", r#"{"object":"error","message":"x"}"#))]),
        fault("no content", [send("HTTP/1.1 204 No Content\r\n\r\n")]),
        fault("401", [told("401 Unauthorized")]),
        fault("403", [told("403 Forbidden")]),
        fault("404 of something else", [status("404 Not Found", "content-type: text/html\r\n")]),
        fault("408", [told("408 Request Timeout")]),
        fault("500", [told("500 Internal Server Error")]),
        fault("502", [status("502 Bad Gateway", "")]),
        fault("504", [status("504 Gateway Timeout", "")]),
        fault("302", [status("302 Found", "location: http://127.0.0.1:1/\r\n")]),
        fault("101", [send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")]),
        fault("304", [send("HTTP/1.1 304 Not Modified\r\n\r\n")]),
        fault("half an error", [send("HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\n{"), Act::Close]),
    ];
    faults.extend([
        Fault {
            outcome: Done,
            status: 404,
            code: "model_not_found",
            ..fault("404", [send(json("404 Not Found", r#"{"error":{"message":"no such model"}}"#))])
        },
        Fault {
            outcome: Overloaded,
            status: 429,
            code: "overloaded",
            ..fault("429", [status("429 Too Many Requests", "retry-after: 7\r\n")])
        },
        Fault {
            outcome: Overloaded,
            status: 429,
            code: "overloaded",
            ..fault("503", [told("503 Service Unavailable")])
        },
    ]);
    faults
}

/// Faults where a stream was asked for.
fn stream_faults() -> Vec<Fault> {
    let streamed = |events: &[u8], more: &[Act]| {
        let head = [Act::Send([STREAM.as_bytes(), &chunk(events)].concat())];
        head.into_iter().chain(more.iter().cloned()).collect::<Vec<_>>()
    };
    let end = || send(END);
    vec![
        fault("JSON", [send(json("200 OK", WHOLE))]),
        fault("no events", [send(STREAM), end()]),
        fault("the end alone", streamed(b"data: [DONE]\n\n", &[end()])),
        fault("comments alone", streamed(b": hello\n\n", &[Act::Close])),
        fault("half an event", streamed(b"data: {\"id\":", &[Act::Close])),
        fault("half an event and a good end", streamed(b"data: {\"id\":", &[end()])),
        fault("words", streamed(format!("data: {BAD}\n\n").as_bytes(), &[end()])),
        fault("a page", streamed(format!("<html>{BAD}\n\n").as_bytes(), &[end()])),
        fault("no text", streamed(b"data: {\"a\":\"\xFF\"}\n\n", &[end()])),
        fault("an endless event", [send(STREAM), Act::Flood(chunk([b'x'; 16 << 10]))]),
        fault(
            "an endless line of data",
            [send([STREAM.as_bytes(), &chunk("data: {")].concat()), Act::Flood(chunk("x".repeat(16 << 10)))],
        ),
        fault("a broken chunk", [send(format!("{STREAM}xyz\r\n")), Act::Close]),
    ]
}

/// Faults where a whole answer was asked for.
fn whole_faults() -> Vec<Fault> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let large = format!(r#"{{"a":"{}}}"#, "x".repeat(40 << 10));
    vec![
        fault("a stream", good(true)),
        fault("half a body", [send(format!("{head}content-length: 100\r\n\r\n{{\"a\":1}}")), Act::Close]),
        fault("half a chunk", [send(format!("{head}transfer-encoding: chunked\r\n\r\n64\r\n{{\"a\":1}}")), Act::Close]),
        fault(
            "no last chunk",
            [send(format!("{head}transfer-encoding: chunked\r\n\r\n7\r\n{{\"a\":1}}\r\n")), Act::Close],
        ),
        fault("half of a large body", [send(format!("{head}content-length: 100000\r\n\r\n{large}")), Act::Close]),
        fault("a list", [send(json("200 OK", "[1]"))]),
        fault("words", [send(json("200 OK", BAD))]),
        fault("almost JSON", [send(json("200 OK", r#"{"a":}"#))]),
        fault("nothing at all", [send(json("200 OK", ""))]),
        fault(
            "no text",
            [Act::Send([format!("{head}content-length: 9\r\n\r\n").as_bytes(), b"{\"a\":\"\xFF\"}"].concat())],
        ),
        fault(
            "an endless body",
            [send(format!("{head}transfer-encoding: chunked\r\n\r\n")), Act::Flood(chunk([b' '; 256 << 10]))],
        ),
    ]
}

fn faults_where(is_stream: bool) -> impl Iterator<Item = Fault> {
    faults().into_iter().chain(if is_stream { stream_faults() } else { whole_faults() })
}

#[tokio::test]
async fn a_worker_that_fails_before_its_first_event_is_replaced_and_nothing_of_it_is_seen() {
    for is_stream in [false, true] {
        for Fault { name, acts, outcome, .. } in faults_where(is_stream) {
            let (gateway, mut controller, workers) = fleet(vec![acts, good(is_stream)]).await;
            let response = gateway.chat(is_stream).await;
            let kind = if is_stream { "text/event-stream" } else { "application/json" };
            assert_eq!((response.status().as_u16(), header(&response, "content-type")), (200, kind), "{name}");
            assert_eq!(in_time(response.text()).await.expect("a whole answer"), good_text(is_stream), "{name}");
            assert_eq!(controller.outcomes(2).await, [outcome, Done], "{name}, stream: {is_stream}");
            let excluded = if outcome == Overloaded { vec![] } else { vec![workers[0].named(Transport::OpenAi).id()] };
            assert_eq!(controller.dispatch(1).exclude, excluded, "{name}");
        }
    }
}

#[tokio::test]
async fn a_worker_that_fails_before_its_first_event_becomes_an_error_where_there_is_no_other() {
    for is_stream in [false, true] {
        for Fault { name, acts, outcome, status, code } in faults_where(is_stream) {
            let worker = Raw::always(acts).await;
            let mut controller = Controller::start([Ok(worker.named(Transport::OpenAi))]).await;
            let once = 1.try_into().expect("1 is not 0");
            let gateway = Gateway::start(&controller.address, |config| config.attempts = once).await;
            let response = gateway.chat(is_stream).await;
            let got = response.status().as_u16();
            let retry = response.headers().contains_key("retry-after");
            let text = in_time(response.text()).await.expect("a whole answer");
            let error: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!((got, error["error"]["code"].as_str()), (status, Some(code)), "{name}: {text}");
            assert_eq!(retry, status == 429, "{name}");
            assert!(!text.contains(&worker.address) && (status == 429 || !text.contains(BAD)), "{name}: {text}");
            assert_eq!(controller.outcomes(1).await, [outcome], "{name}, stream: {is_stream}");
        }
    }
}

#[tokio::test]
async fn a_client_hears_when_a_full_worker_wants_to_be_asked_again() {
    for (given, told) in [("7", "7"), ("0", "1"), ("100000", "60"), ("Wed, 21 Oct 2026 07:28:00 GMT", "1")] {
        let headers = format!("content-type: application/json\r\nretry-after: {given}\r\n");
        let worker = Raw::always([send(answer("429 Too Many Requests", &headers, r#"{"error":"busy"}"#))]).await;
        let controller = Controller::start([Ok(worker.named(Transport::OpenAi))]).await;
        let once = 1.try_into().expect("1 is not 0");
        let gateway = Gateway::start(&controller.address, |config| config.attempts = once).await;
        let response = gateway.chat(true).await;
        assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (429, told));
        assert!(response.text().await.expect("a body").contains("busy"));
    }
}

#[tokio::test]
async fn a_stream_that_fails_after_its_first_event_ends_with_an_error() {
    let more = |bytes: &[u8]| Act::Send(chunk(bytes));
    let faults: Vec<(&str, Vec<Act>)> = vec![
        ("a break", vec![Act::Close]),
        ("an end without [DONE]", vec![send(END)]),
        ("half a chunk", vec![send("64\r\ndata: {"), Act::Close]),
        ("half an event", vec![more(b"data: {\"choices\":[{"), send(END)]),
        ("a broken chunk", vec![send("xyz\r\n"), Act::Close]),
        ("words", vec![more(b"data: words\n\n"), send(END)]),
        ("a page", vec![more(b"<html></html>\n\n"), send(END)]),
        ("no text", vec![more(b"data: {\"a\":\"\xC3\"}\n\n"), send(END)]),
        ("an endless event", vec![Act::Flood(chunk("x".repeat(64 << 10)))]),
        ("an endless line of data", vec![more(b"data: {"), Act::Flood(chunk("x".repeat(64 << 10)))]),
    ];
    for (name, acts) in faults {
        let seen = Arc::new(Notify::new());
        let begun = [send(stream(&[EVENT])), Act::Await(Arc::clone(&seen))];
        let (gateway, mut controller, _workers) = fleet(vec![[&begun[..], &acts].concat(), good(true)]).await;
        let mut response = gateway.chat(true).await;
        let first = in_time(response.chunk()).await.expect("a chunk").expect("a chunk");
        seen.notify_one();
        let rest = in_time(response.text()).await.expect("the gateway ends the stream itself");
        let text = format!("{}{rest}", String::from_utf8_lossy(&first));
        let error = text.strip_prefix(&format!("data: {EVENT}\n\n")).unwrap_or_else(|| panic!("{name}: {text}"));
        let error = error.strip_prefix("data: ").and_then(|error| error.strip_suffix("\n\n"));
        let error = error.unwrap_or_else(|| panic!("{name}: {text}"));
        let error: Value = serde_json::from_str(error).unwrap_or_else(|_| panic!("{name}: {text}"));
        assert_eq!(error["error"]["code"], "upstream_error", "{name}: {text}");
        assert_eq!(controller.outcomes(1).await, [Failed], "{name}");
        assert_eq!(controller.asked(), 1, "{name}");
    }
}

#[tokio::test]
async fn an_error_of_the_workers_own_is_the_last_event_though_it_says_done_after_it() {
    let error = r#"{"error":{"message":"out of memory","code":500}}"#;
    let together = format!("data: {EVENT}\n\ndata: {error}\n\ndata: [DONE]\n\n");
    for acts in [
        vec![send(stream(&[EVENT, error, "[DONE]"])), send(END)],
        vec![send(STREAM), send(chunk(&together)), send(END)],
        vec![send(stream(&[EVENT, error])), send(END)],
        vec![send(stream(&[EVENT, error])), Act::Close],
        vec![send(stream(&[EVENT, error])), Act::Hang],
    ] {
        let (gateway, mut controller, _workers) = fleet(vec![acts.clone()]).await;
        let text = in_time(gateway.chat(true).await.text()).await.expect("the stream ends");
        assert_eq!(text, format!("data: {EVENT}\n\ndata: {error}\n\n"), "{acts:?}");
        assert_eq!(controller.outcomes(1).await, [Failed], "{acts:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_done_whether_or_not_the_worker_lets_go() {
    let done = format!("data: {EVENT}\n\ndata: [DONE]\n\n");
    let without_a_break = [STREAM.as_bytes(), &chunk(format!("data: {EVENT}\n\ndata: [DONE]"))].concat();
    for acts in [
        vec![send(stream(&[EVENT, "[DONE]"])), send(END)],
        vec![send(stream(&[EVENT, "[DONE]"])), Act::Close],
        vec![send(stream(&[EVENT, "[DONE]"])), Act::Hang],
        vec![send(stream(&[EVENT, "[DONE]", EVENT, "nonsense"])), send(END)],
        vec![send(without_a_break.clone()), send(END)],
        vec![send([&without_a_break[..], &chunk("\n")].concat()), send(END)],
    ] {
        let (gateway, mut controller, _workers) = fleet(vec![acts.clone()]).await;
        let text = in_time(gateway.chat(true).await.text()).await.expect("the stream ends");
        assert_eq!(text, done, "{acts:?}");
        assert_eq!(controller.outcomes(1).await, [Done], "{acts:?}");
    }
}

#[tokio::test]
async fn a_stream_may_be_cut_at_every_byte() {
    let text = format!(": hello\r\n\r\n{}", good_text(true));
    let cut = |at: usize| {
        let (left, right) = text.as_bytes().split_at(at);
        vec![send(STREAM), Act::Send(chunk(left)), Act::Send([chunk(right), END.into()].concat())]
    };
    let single = text.bytes().flat_map(|byte| chunk([byte]));
    let mut scripts: Vec<Vec<Act>> = (1..text.len()).map(cut).collect();
    scripts.push(vec![Act::Send(STREAM.bytes().chain(single).chain(END.bytes()).collect())]);
    let count = scripts.len();
    let worker = Raw::start(scripts).await;
    let turns = (0..count).map(|_| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
    let controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for nth in 0..count {
        let got = in_time(gateway.chat(true).await.text()).await.expect("the stream ends");
        assert_eq!(got, text, "cut {nth}");
    }
}

#[tokio::test]
async fn a_request_reaches_the_worker_byte_by_byte_as_it_came() {
    let body = "{ \"zeta\": 1e0, \"model\" :\"m\",\"temperature\":1.50, \"n\":1, \"extra\": {\"b\":1,\"a\":[0.10, 1E+2, 9007199254740993]},\
                \"messages\":[{\"role\":\"user\",\"content\":\"h\u{e9}\\u00e9 \u{1F600}\"}], \"zeta\": 2 }\n";
    let worker = Raw::always([send(json("200 OK", WHOLE))]).await;
    let turns = (0..3).map(|_| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
    let controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
        let request = reqwest::Client::new().post(format!("{}{path}", gateway.address)).body(body);
        let response = in_time(request.send()).await.expect("an answer");
        assert_eq!((response.status().as_u16(), response.text().await.expect("a body").as_str()), (200, WHOLE));
        let asked = worker.asked().pop().expect("a request");
        assert_eq!(String::from_utf8(asked.body.clone()).expect("text"), body);
        assert!(asked.head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{}", asked.head);
    }
}

#[tokio::test]
async fn keys_and_cookies_of_a_client_end_at_the_gateway_and_its_other_headers_go_on() {
    let worker = Raw::always([send(json("200 OK", WHOLE))]).await;
    let turns = (0..2).map(|_| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
    let controller = Controller::start(turns).await;
    for key in [None, Some("of the server")] {
        let gateway = Gateway::start(&controller.address, |config| {
            (config.token, config.openai_key) = (Some(Secret::new("of the fleet")), key.map(Secret::new));
            config.keys = vec![ApiKey::unnamed(Secret::new("client key"), 1)];
        })
        .await;
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address));
        let request = request.header("authorization", "Bearer client key").header("x-api-key", "client key");
        let request = request.header("cookie", "a=client key").header("accept-encoding", "gzip");
        let request = request.header("connection", "x-hop").header("x-hop", "client key");
        let request = request.header("x-own", "one").header("openai-organization", "org").header("x-request-id", "r-1");
        let response = in_time(request.json(&json!({ "model": "m" })).send()).await.expect("an answer");
        assert_eq!((response.status().as_u16(), header(&response, "x-request-id")), (200, "r-1"));
        let asked = worker.asked().pop().expect("a request");
        assert!(!asked.head.contains("client key"), "{}", asked.head);
        assert!(!asked.head.contains("of the fleet"), "a stranger is not shown the fleet's token: {}", asked.head);
        assert_eq!(asked.header("authorization"), key.map(|_| "Bearer of the server"));
        assert_eq!(asked.header("accept-encoding"), None, "what comes back is looked at");
        let others = ["x-own", "openai-organization", "x-request-id", "content-type"];
        let others = others.map(|name| asked.header(name).unwrap_or_default());
        assert_eq!(others, ["one", "org", "r-1", "application/json"]);
        assert_eq!(asked.header("host"), worker.address.strip_prefix("http://"));
    }
}

#[tokio::test]
async fn headers_of_a_worker_go_on_but_for_those_of_its_connection() {
    let headers = "content-type: application/json\r\nx-own: one\r\nserver: worker\r\nkeep-alive: timeout=5\r\n\
                   connection: x-hop\r\nx-hop: 1\r\nx-request-id: the-workers\r\n";
    let (gateway, _controller, _workers) = fleet(vec![vec![send(answer("200 OK", headers, WHOLE))]]).await;
    let response = gateway.chat(false).await;
    assert_eq!((header(&response, "x-own"), header(&response, "content-type")), ("one", "application/json"));
    let headers = response.headers();
    for name in ["server", "keep-alive", "x-hop", "connection"] {
        assert!(!headers.contains_key(name), "{name}: {headers:?}");
    }
    assert_eq!(headers.get_all("x-request-id").iter().count(), 1);
}

#[tokio::test]
async fn what_a_worker_says_of_a_bad_request_is_passed_on_word_by_word() {
    let said = r#"{"error": {"message":"'temperature' is 9.0",  "type":"BadRequestError","code":400}}"#;
    for (status, code) in [("400 Bad Request", 400), ("422 Unprocessable Entity", 422), ("413 Payload Too Large", 413)]
    {
        for is_stream in [false, true] {
            let (gateway, mut controller, _) = fleet(vec![vec![send(json(status, said))], good(is_stream)]).await;
            let response = gateway.chat(is_stream).await;
            assert_eq!(response.status().as_u16(), code);
            assert_eq!(response.text().await.expect("a body"), said);
            assert_eq!(controller.outcomes(1).await, [Done], "the worker is not to blame");
        }
    }
}

#[tokio::test]
async fn connections_to_a_worker_are_used_again_after_streams_and_whole_answers() {
    let worker = Raw::start([good(true), good(false), good(true), good(false)]).await;
    let turns = (0..4).map(|_| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
    let mut controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for is_stream in [true, false, true, false] {
        let text = in_time(gateway.chat(is_stream).await.text()).await.expect("a whole answer");
        assert_eq!(text, good_text(is_stream));
        assert_eq!(controller.outcomes(1).await, [Done], "the connection is given back before the ticket");
    }
    assert_eq!(worker.connections(), 1);
}

#[tokio::test]
async fn a_request_goes_from_a_worker_of_one_transport_to_one_of_another() {
    let delta = Event::Delta { choice: 0, text: "ours".to_owned(), tokens: vec![1], logprobs: vec![] };
    let finished = Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 1 };
    let done = Event::Done { usage: Usage::default() };
    let started = Event::Started { prompt_tokens: 1, vocabulary: None };
    let ours = vec![send(events(&[started, delta, finished, done])), send(END)];
    for is_stream in [false, true] {
        for (bad, good, transport) in
            [(Transport::OpenAi, ours.clone(), Transport::Http), (Transport::Http, good(is_stream), Transport::OpenAi)]
        {
            let (bad, good) = ((Raw::always([Act::Close]).await, bad), Raw::always(good).await);
            let turns = [bad.0.named(bad.1), good.named(transport)];
            let mut controller = Controller::start(turns.map(Ok)).await;
            let gateway = Gateway::start(&controller.address, |_| {}).await;
            let response = gateway.chat(is_stream).await;
            assert_eq!(response.status(), 200, "{transport}");
            let text = in_time(response.text()).await.expect("a whole answer");
            match transport {
                Transport::Http => assert!(text.contains("\"ours\"") && text.contains("[DONE]") == is_stream, "{text}"),
                _ => assert_eq!(text, good_text(is_stream)),
            }
            assert_eq!(controller.outcomes(2).await, [Failed, Done]);
        }
    }
}

#[tokio::test]
async fn streams_that_outlive_the_time_to_drain_are_told_so() {
    let (gateway, mut controller, mut workers) = {
        let workers = [Raw::always([send(stream(&[EVENT])), Act::Hang]).await, Raw::always([Act::Hang]).await];
        let named = workers.each_ref().map(|worker| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
        let controller = Controller::start(named).await;
        let soon = Duration::from_millis(100);
        (Gateway::start(&controller.address, |config| config.drain = soon).await, controller, workers)
    };
    let mut begun = gateway.chat(true).await;
    in_time(begun.chunk()).await.expect("a chunk").expect("a chunk");
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address));
    let waits = tokio::spawn(request.json(&json!({ "model": "m", "stream": true })).send());
    in_time(async {
        while workers[1].asked().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stopped = gateway.stop();
    let text = in_time(begun.text()).await.expect("the gateway ends the stream itself");
    assert!(text.contains("the gateway is stopping") && !text.contains("[DONE]"), "{text}");
    assert_eq!(in_time(waits).await.expect("no panic").expect("an answer").status(), 503);
    for worker in &mut workers {
        worker.hung_up().await;
    }
    assert_eq!(controller.outcomes(2).await, [Cancelled; 2]);
    in_time(stopped).await.expect("no panic").expect("it stops well");
}

#[tokio::test]
async fn a_gateway_that_is_attached_to_itself_says_so() {
    for others in [0, 1] {
        // The controllers grant gateways that do not run yet: each listens before the one that asks it.
        let last = Door::open().await;
        let mut gateways = Vec::new();
        let mut next = last.named();
        for _ in 0..others {
            let controller = Controller::start([Ok::<_, Problem>(next)]).await;
            let gateway = Gateway::start(&controller.address, |_| {}).await;
            next = Named { address: gateway.address.clone(), transport: Transport::OpenAi };
            gateways.push((gateway, controller));
        }
        let controller = Controller::start([Ok::<_, Problem>(next)]).await;
        let gateway = Gateway::start(&controller.address, |config| {
            config.threads = 2.try_into().expect("2 is not 0"); // all of one name
        })
        .await;
        last.lead_to(&gateway.address);
        let response = gateway.chat(false).await;
        assert_eq!(response.status(), 400, "{others}");
        let text = response.text().await.expect("a body");
        assert!(text.contains("attached in a circle"), "{text}");
        // A thread whose link is not there yet takes the worker from the last known fleet.
        assert!(controller.asked() <= 1, "{others}: it is not tried again");
    }
}

/// A way to an address that is told later.
struct Door {
    address: String,
    target: watch::Sender<String>,
}

impl Door {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (target, mut told) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let target = told.wait_for(|target| !target.is_empty()).await.expect("the test runs").clone();
                tokio::spawn(async move {
                    let mut there = TcpStream::connect(target).await.expect("it listens");
                    let _ = copy_bidirectional(&mut here, &mut there).await; // it ends with the test
                });
            }
        });
        Self { address, target }
    }

    fn named(&self) -> Named {
        Named { address: self.address.clone(), transport: Transport::OpenAi }
    }

    fn lead_to(&self, address: &str) {
        let address = address.strip_prefix("http://").expect("a base URL");
        self.target.send(address.to_owned()).expect("it waits");
    }
}
