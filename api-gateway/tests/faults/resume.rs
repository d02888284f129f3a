//! Answers that break off, and go on at another worker as if nothing had been.

use std::time::Duration;

use axum::body::Body;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use muster_shared::control::Outcome::{self, Done, Failed, Overloaded, Unreachable};
use muster_shared::fastchat::Conversation;
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::problem::{Kind, Problem};
use muster_shared::resume::Progress;
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::{Value, json};

use crate::peers::raw::{Act, END, Raw, chunk, events, json, send};
use crate::peers::{Controller, Gateway, Named, in_time, nobody, serve};

/// Time to find another worker where none will be found.
const SHORT: Duration = Duration::from_millis(200);

fn started() -> Event {
    started_with(3, Some("bytes"))
}

fn started_with(prompt_tokens: u32, vocabulary: Option<&str>) -> Event {
    Event::Started { prompt_tokens, vocabulary: vocabulary.map(str::to_owned) }
}

fn delta(choice: u32, text: &str, tokens: &[u32]) -> Event {
    Event::Delta { choice, text: text.to_owned(), tokens: tokens.to_vec(), logprobs: vec![] }
}

fn finished(choice: u32, tokens: u32) -> Event {
    Event::Finished { choice, reason: FinishReason::Stop, tokens }
}

fn done(completion_tokens: u32) -> Event {
    Event::Done { usage: Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 0 } }
}

/// One answer.
fn one() -> Vec<Event> {
    vec![started(), delta(0, "Hel", &[7]), delta(0, "lo", &[8, 9]), finished(0, 4), done(4)]
}

/// Two answers: text that is whole after several tokens only, tokens without text, and a tail without tokens.
fn two() -> Vec<Event> {
    vec![
        started(),
        delta(0, "He", &[1]),
        delta(1, "W", &[11]),
        delta(0, "", &[2]),
        delta(0, "llo \u{e9}", &[3, 4]),
        delta(1, "orld", &[12]),
        finished(1, 3),
        delta(0, "!", &[]),
        finished(0, 4),
        done(7),
    ]
}

/// A worker that sends these and breaks the connection.
fn breaks(said: &[Event]) -> Vec<Act> {
    vec![send(events(said)), Act::Close]
}

/// A worker that sends all of these and ends well.
fn ends(said: &[Event]) -> Vec<Act> {
    vec![send(events(said)), send(END)]
}

/// What goes on after so many events.
fn rest(all: &[Event], from: usize) -> Vec<Event> {
    std::iter::once(started()).chain(all[from.max(1)..].iter().cloned()).collect()
}

struct Fleet {
    gateway: Gateway,
    controller: Controller,
    workers: Vec<Raw>,
}

/// A gateway in front of workers that are granted in turn.
async fn fleet(scripts: impl IntoIterator<Item = Vec<Act>>) -> Fleet {
    fleet_with(scripts, |_| {}).await
}

async fn fleet_with(
    scripts: impl IntoIterator<Item = Vec<Act>>,
    change: impl FnOnce(&mut muster_gateway::Config),
) -> Fleet {
    let mut workers = Vec::new();
    for script in scripts {
        workers.push(Raw::always(script).await);
    }
    let named: Vec<_> = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(Transport::Http))).collect();
    let controller = Controller::start(named).await;
    let gateway = Gateway::start(&controller.address, change).await;
    Fleet { gateway, controller, workers }
}

/// What a client gets, without what differs between any two answers.
async fn told(gateway: &Gateway, choices: u32, is_stream: bool) -> Vec<Value> {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "n": choices });
    if is_stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
    }
    let response = gateway.post("/v1/chat/completions", &body).await;
    let text = in_time(response.text()).await.expect("the gateway ends it");
    let parts = if is_stream {
        let events = text.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{text}")).to_owned()).collect()
    } else {
        vec![text]
    };
    let value = |part: &String| match part.as_str() {
        "[DONE]" => json!("[DONE]"),
        part => {
            let mut value: Value = serde_json::from_str(part).expect("JSON");
            value["id"].take();
            value["created"].take();
            value
        }
    };
    parts.iter().map(value).collect()
}

/// The text of a stream, and whether it ended well.
fn read(told: &[Value]) -> (String, bool) {
    let text = told.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    (text, told.last() == Some(&json!("[DONE]")))
}

#[tokio::test]
async fn an_answer_goes_on_after_any_of_its_events_as_if_nothing_had_been() {
    for (choices, all) in [(1, one()), (2, two())] {
        for is_stream in [false, true] {
            let undisturbed = {
                let Fleet { gateway, .. } = fleet([ends(&all)]).await;
                told(&gateway, choices, is_stream).await
            };
            if is_stream {
                let usages = undisturbed.iter().filter(|chunk| chunk["usage"].is_object()).count();
                let ends = undisturbed.iter().filter(|chunk| **chunk == "[DONE]").count();
                assert_eq!((usages, ends), (1, 1));
            }
            for at in 0..all.len() {
                let Fleet { gateway, mut controller, workers } =
                    fleet([breaks(&all[..at]), ends(&rest(&all, at))]).await;
                assert_eq!(told(&gateway, choices, is_stream).await, undisturbed, "after {at} of {choices}");
                assert_eq!(controller.outcomes(2).await, [Failed, Done]);
                let (first, second) = (workers[0].asked()[0].generate(), workers[1].asked()[0].generate());
                let mut progress = Progress::new(choices);
                all[..at].iter().for_each(|event| progress.note(event));
                let resume = (!progress.is_empty()).then(|| progress.resume());
                assert_eq!(second.resume, resume, "after {at} of {choices}");
                assert!(first.resume.is_none() && first.sampling.seed.is_some());
                let without = |mut request: muster_shared::generate::GenerateRequest| {
                    (request.resume, request.timeout_ms) = (None, None);
                    request
                };
                assert_eq!(without(second), without(first), "the same is asked, with the same seed");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_may_take_a_worker_for_each_of_its_events() {
    let all = two();
    for is_stream in [false, true] {
        let undisturbed = {
            let Fleet { gateway, .. } = fleet([ends(&all)]).await;
            told(&gateway, 2, is_stream).await
        };
        let scripts = (1..all.len()).map(|at| {
            let one = [started(), all[at].clone()];
            if at + 1 == all.len() { ends(&one) } else { breaks(&one) }
        });
        let Fleet { gateway, mut controller, workers } = fleet(scripts).await;
        assert_eq!(told(&gateway, 2, is_stream).await, undisturbed);
        let ends = controller.outcomes(workers.len()).await;
        assert_eq!((ends.iter().filter(|end| **end == Failed).count(), ends.last()), (workers.len() - 1, Some(&Done)));
    }
}

#[tokio::test]
async fn each_prompt_of_a_request_goes_on_by_itself() {
    let all = one();
    let Fleet { gateway, workers, .. } =
        fleet([breaks(&all[..2]), breaks(&all[..3]), ends(&rest(&all, 2)), ends(&rest(&all, 3))]).await;
    let body = json!({ "model": "m", "prompt": ["a", "b"] });
    let text = in_time(gateway.post("/v1/completions", &body).await.text()).await.expect("a whole answer");
    let reply: Value = serde_json::from_str(&text).expect("JSON");
    let texts: Vec<_> = reply["choices"].as_array().expect("choices").iter().map(|choice| &choice["text"]).collect();
    let resumed = |worker: &Raw| worker.asked()[0].generate().resume.is_some();
    assert_eq!(workers.iter().filter(|worker| resumed(worker)).count(), 2);
    // Whichever prompt went on where, neither worker has sent what was there already.
    let lengths: usize = texts.iter().map(|text| text.as_str().expect("a text").len()).sum();
    assert_eq!((texts.len(), lengths), (2, 2 * "Hello".len()), "{text}");
}

#[tokio::test]
async fn connections_to_our_own_workers_are_used_again() {
    let whole = [events(&one()), END.into()].concat();
    let worker = Raw::always([Act::Send(whole)]).await;
    let turns = (0..4).map(|_| Ok::<_, Problem>(worker.named(Transport::Http)));
    let mut controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for is_stream in [true, false, true, false] {
        told(&gateway, 1, is_stream).await;
        assert_eq!(controller.outcomes(1).await, [Done]);
    }
    assert_eq!(worker.connections(), 1);
}

#[tokio::test]
async fn a_seed_of_the_clients_own_is_kept() {
    let all = one();
    let Fleet { gateway, workers, .. } = fleet([breaks(&all[..2]), ends(&rest(&all, 2))]).await;
    let body = json!({ "model": "m", "prompt": "a", "stream": true, "seed": 42 });
    in_time(gateway.post("/v1/completions", &body).await.text()).await.expect("a whole answer");
    for worker in workers {
        assert_eq!(worker.asked()[0].generate().sampling.seed, Some(42));
    }
}

#[tokio::test]
async fn only_workers_that_can_go_on_are_asked_for() {
    let all = one();
    let Fleet { gateway, controller, workers } = fleet([breaks(&all[..2]), ends(&rest(&all, 2))]).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true));
    let second = controller.dispatch(1);
    assert_eq!(second.transports, [Transport::Http, Transport::Grpc]);
    assert_eq!(second.exclude, [workers[0].named(Transport::Http).id()]);
}

/// Workers that were asked to go on, and do something else.
fn strangers() -> Vec<(&'static str, Vec<Act>, Outcome)> {
    let all = one();
    let anew = |first: Event| [vec![first], all[1..].to_vec()].concat();
    vec![
        ("another vocabulary", ends(&anew(started_with(3, Some("words")))), Done),
        ("no vocabulary, from the start", ends(&anew(started_with(3, None))), Done),
        ("another prompt", ends(&anew(started_with(4, Some("bytes")))), Done),
        ("no beginning", ends(&all[1..]), Done),
        ("a refusal", vec![send(refusal(&Problem::new(Kind::UnknownModel, "another vocabulary")))], Done),
        ("a crash", vec![send(refusal(&Problem::new(Kind::Bug, "crash")))], Failed),
        ("a break at once", vec![Act::Close], Failed),
        ("a break after the start", breaks(&[started()]), Failed),
    ]
}

fn refusal(problem: &Problem) -> Vec<u8> {
    json("500 Internal Server Error", &serde_json::to_string(problem).expect("JSON"))
}

#[tokio::test]
async fn a_worker_that_does_not_go_on_is_left_for_one_that_does() {
    let all = one();
    for is_stream in [false, true] {
        let undisturbed = {
            let Fleet { gateway, .. } = fleet([ends(&all)]).await;
            told(&gateway, 1, is_stream).await
        };
        for (name, acts, outcome) in strangers() {
            let Fleet { gateway, mut controller, workers } =
                fleet([breaks(&all[..2]), acts, ends(&rest(&all, 2))]).await;
            assert_eq!(told(&gateway, 1, is_stream).await, undisturbed, "{name}");
            assert_eq!(controller.outcomes(3).await, [Failed, outcome, Done], "{name}");
            assert_eq!(workers[1].asked()[0].generate().resume, workers[2].asked()[0].generate().resume, "{name}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_nobody_goes_on_with_ends_with_an_error_and_repeats_nothing() {
    for (name, acts, _) in strangers() {
        let Fleet { gateway, controller, .. } =
            fleet_with([breaks(&one()[..2]), acts], |config| config.resume_timeout = SHORT).await;
        let told = told(&gateway, 1, true).await;
        assert_eq!(read(&told), ("Hel".to_owned(), false), "{name}");
        assert!(told.last().is_some_and(|last| last["error"]["code"].is_string()), "{name}: {told:?}");
        assert!(controller.asked() >= 2, "{name}");
    }
}

#[tokio::test]
async fn workers_that_fail_one_after_the_other_are_not_tried_for_ever() {
    let attempts = 3;
    let scripts = std::iter::once(breaks(&one()[..2])).chain((0..8).map(|_| breaks(&[started()])));
    let Fleet { gateway, mut controller, workers } = fleet(scripts).await;
    let told = told(&gateway, 1, true).await;
    assert_eq!(read(&told), ("Hel".to_owned(), false));
    assert_eq!(told.last().expect("an error")["error"]["code"], "upstream_error");
    assert_eq!(controller.outcomes(attempts).await, [Failed; 3]);
    let asked: usize = workers.iter().map(|worker| worker.asked().len()).sum();
    assert_eq!(asked, attempts);
}

#[tokio::test]
async fn a_whole_answer_that_cannot_go_on_is_not_begun_for_ever() {
    let nameless = [started_with(3, None), delta(0, "Hel", &[7])];
    let Fleet { gateway, mut controller, .. } = fleet((0..8).map(|_| breaks(&nameless))).await;
    let response = gateway.chat(false).await;
    assert_eq!(response.status(), 502);
    assert_eq!(controller.outcomes(3).await, [Failed; 3]);
    assert_eq!(controller.asked(), 3);
}

#[tokio::test]
async fn an_answer_waits_for_room_at_the_workers_that_are_left() {
    let all = one();
    let full = || Err(Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1));
    let absent = || Err(Problem::new(Kind::NoWorker, "none").with_retry_after_ms(1));
    let first = Raw::always(breaks(&all[..2])).await;
    let busy = Raw::always([send(refusal(&Problem::new(Kind::Overloaded, "busy")))]).await;
    let last = Raw::always(ends(&rest(&all, 2))).await;
    let named = |worker: &Raw| Ok(worker.named(Transport::Http));
    let turns = [named(&first), full(), absent(), named(&busy), full(), absent(), named(&busy), named(&last)];
    let mut controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true));
    assert_eq!(controller.outcomes(4).await, [Failed, Overloaded, Overloaded, Done]);
}

#[tokio::test]
async fn a_worker_that_is_dead_is_passed_over() {
    let all = one();
    let (first, last) = (Raw::always(breaks(&all[..2])).await, Raw::always(ends(&rest(&all, 2))).await);
    let turns = [first.named(Transport::Http), Named::from(nobody().await), last.named(Transport::Http)];
    let mut controller = Controller::start(turns.map(Ok)).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true));
    assert_eq!(controller.outcomes(3).await, [Failed, Unreachable, Done]);
}

#[tokio::test]
async fn what_a_worker_says_after_its_text_ends_the_answer() {
    let all = one();
    let wrong = Event::Failed { problem: Problem::new(Kind::Upstream, "the model crashed") };
    let first = [&all[..2], &[wrong]].concat();
    let Fleet { gateway, mut controller, .. } = fleet([ends(&first), ends(&rest(&all, 2))]).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true), "another one may do better");
    assert_eq!(controller.outcomes(2).await, [Failed, Done]);
    let long = Event::Failed { problem: Problem::new(Kind::PromptTooLong, "too long") };
    let Fleet { gateway, mut controller, .. } = fleet([ends(&[started(), all[1].clone(), long]), ends(&all)]).await;
    let told = told(&gateway, 1, true).await;
    assert_eq!(told.last().expect("an error")["error"]["code"], "context_length_exceeded", "{told:?}");
    assert_eq!(controller.outcomes(1).await, [Done]);
}

#[tokio::test]
async fn bytes_that_are_no_events_are_a_break() {
    let all = one();
    for junk in ["data: nonsense\n\n", "data: {\"type\":\"strange\"}\n\n", "data: {\"type\":\"delta\"}\n\n"] {
        let first = vec![send(events(&all[..2])), send(chunk(junk)), send(END)];
        let Fleet { gateway, mut controller, .. } = fleet([first, ends(&rest(&all, 2))]).await;
        assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true), "{junk}");
        assert_eq!(controller.outcomes(2).await, [Failed, Done], "{junk}");
    }
    let endless = vec![send(events(&all[..2])), Act::Flood(chunk("x".repeat(64 << 10)))];
    let Fleet { gateway, mut controller, mut workers } = fleet([endless, ends(&rest(&all, 2))]).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true));
    workers[0].hung_up().await;
    assert_eq!(controller.outcomes(2).await, [Failed, Done]);
}

#[tokio::test]
async fn events_that_come_in_pieces_are_whole_to_the_client() {
    let all = two();
    let bytes: Vec<u8> = all.iter().flat_map(|event| json_event(event).to_vec()).collect();
    let pieces = bytes.iter().flat_map(|byte| chunk([*byte]));
    let script = vec![send(events(&[])), Act::Send(pieces.collect()), send(END)];
    let Fleet { gateway, .. } = fleet([script]).await;
    let in_pieces = told(&gateway, 2, true).await;
    let Fleet { gateway, .. } = fleet([ends(&all)]).await;
    assert_eq!(told(&gateway, 2, true).await, in_pieces);
}

/// A worker of FastChat's that streams these frames, and breaks the connection where it shall.
async fn fastchat(frames: &'static [&'static str], breaks: bool) -> Named {
    let template = Conversation {
        name: "test".to_owned(),
        system_template: "{system_message}".to_owned(),
        system_message: String::new(),
        roles: ["U".to_owned(), "A".to_owned()],
        messages: Vec::new(),
        offset: 0,
        sep_style: 1,
        sep: "|".to_owned(),
        sep2: None,
        stop_str: None,
        stop_token_ids: None,
    };
    let answer = move || async move {
        let frames = stream::iter(frames).map(|frame| Ok(format!("{frame}\0")));
        let broken = stream::iter(breaks.then_some(())).then(|()| async {
            tokio::task::yield_now().await; // what was said leaves first
            Err(std::io::Error::other("broken on purpose"))
        });
        Body::from_stream(frames.chain(broken))
    };
    let router = Router::new()
        .route("/worker_get_conv_template", post(move || async move { Json(json!({ "conv": template })) }))
        .route("/count_token", post(|| async { Json(json!({ "count": 3, "error_code": 0 })) }))
        .route("/model_details", post(|| async { Json(json!({ "context_length": 100 })) }))
        .route("/worker_generate_stream", post(answer));
    Named { address: serve(router).await, transport: Transport::FastChat }
}

#[tokio::test]
async fn a_stream_of_fastchats_that_breaks_ends_with_an_error_that_says_why() {
    let broken = fastchat(&[r#"{"text":"Hel","error_code":0}"#], true).await;
    let good = fastchat(&[r#"{"text":"Hello","error_code":0,"finish_reason":"stop"}"#], false).await;
    for is_stream in [true, false] {
        let mut controller = Controller::start([Ok(broken.clone()), Ok(good.clone())]).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let told = told(&gateway, 1, is_stream).await;
        if !is_stream {
            assert_eq!(told[0]["choices"][0]["message"]["content"], "Hello", "a whole answer is begun anew: {told:?}");
            assert_eq!(controller.outcomes(2).await, [Failed, Done]);
            continue;
        }
        assert_eq!(read(&told), ("Hel".to_owned(), false), "{told:?}");
        let error = &told.last().expect("an error")["error"];
        assert_eq!(error["code"], "upstream_error");
        assert!(error["message"].as_str().is_some_and(|words| words.contains("cannot be continued")), "{error}");
        assert_eq!(controller.outcomes(1).await, [Failed]);
        assert_eq!(controller.asked(), 1);
    }
}

#[tokio::test]
async fn an_answer_does_not_go_on_at_a_worker_of_fastchats_though_the_controller_names_one() {
    let all = one();
    let first = Raw::always(breaks(&all[..2])).await;
    let fastchat = fastchat(&[r#"{"text":"Hello","error_code":0,"finish_reason":"stop"}"#], false).await;
    let last = Raw::always(ends(&rest(&all, 2))).await;
    let turns = [first.named(Transport::Http), fastchat, last.named(Transport::Http)];
    let mut controller = Controller::start(turns.map(Ok)).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(read(&told(&gateway, 1, true).await), ("Hello".to_owned(), true));
    assert_eq!(controller.outcomes(3).await, [Failed, Done, Done]);
}
