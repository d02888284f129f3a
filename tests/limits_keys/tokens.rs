//! Tokens of keys where their requests do not say what they may cost, or do not say it clearly.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::common::{Process, chat_body, eventually};
use super::{CHATS, Keyed, short, total};

/// A server of OpenAI's API beside the fleet, and what attaches it: of one model `openai`.
async fn attached(fleet: &Keyed, key: &str, more: &[&str]) -> (Process, Process) {
    let server = Process::start(&[&["up", "--port", "0", "--model", "openai=fake"], more].concat());
    let attached = attach(fleet, key, &server.address).await;
    (server, attached)
}

async fn attach(fleet: &Keyed, key: &str, address: &str) -> Process {
    let attached = Process::start(&["attach", "--controller-address", &fleet.cluster.controller.address, address]);
    let known = async || fleet.get(key, "/v1/models").await.text().await.expect("text").contains("\"openai\"");
    eventually("the server is known", known).await;
    attached
}

/// A server that heeds no end and tells no usage: so many events, whatever it is asked.
async fn talkative(events: usize) -> String {
    let event = "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    let stream = event.repeat(events) + "data: [DONE]\n\n";
    let models = r#"{"object":"list","data":[{"id":"openai","object":"model"}]}"#;
    let router = Router::new()
        .route("/v1/models", get(async move || ([(CONTENT_TYPE, "application/json")], models)))
        .route(CHATS, post(async move || ([(CONTENT_TYPE, "text/event-stream")], stream.clone())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_heeds_no_end_and_tells_no_usage_costs_what_has_come() {
    let keys = "keys:\n  - {name: a, key: key one, tpm: 100000, rate: off}\n";
    let fleet = Keyed::start(keys, &[&["--model", "fake"]]).await;
    let _attached = attach(&fleet, "key one", &talkative(60).await).await;
    let mut sum = 0;
    for (max_tokens, cost) in [(10, 2 + 60), (90, 2 + 90)] {
        let mut body = chat_body("openai", "hi");
        (body["stream"], body["max_tokens"]) = (json!(true), json!(max_tokens));
        let text = fleet.send("key one", CHATS, &body).await.text().await.expect("a stream");
        assert!(text.ends_with("[DONE]\n\n"), "{text}");
        sum += cost; // `user` and `hi` are six letters, and every event is a token at least
        eventually("it is settled", async || fleet.charged().await == sum).await;
    }
}

/// A whole answer, however many come at once: its choices' finish reasons, and what it has cost.
fn finished(answer: &Value) -> (Vec<&str>, u64) {
    let choices = answer["choices"].as_array().expect("choices").iter();
    let reasons = choices.map(|choice| choice["finish_reason"].as_str().expect("a reason"));
    (reasons.collect(), total(&answer["usage"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_an_end_never_cost_more_together_than_a_minute_has() {
    const LIMIT: u64 = 3200;
    let keys = ["a", "b", "c"].map(|name| format!("  - {{name: {name}, key: key {name}, tpm: {LIMIT}, rate: off}}\n"));
    let long = ["--fake-answer", "100000", "--slots", "64", "--waiting", "200"];
    let mut worker = vec!["--model", "fake"];
    worker.extend(long);
    let fleet = Keyed::start(&format!("keys:\n{}", keys.concat()), &[&worker]).await;
    let _attached = attached(&fleet, "key a", &long).await;

    for (key, model, more, answers, longest) in [
        ("key a", "fake", json!({}), 3, 1024),
        ("key b", "openai", json!({ "max_tokens": null }), 3, 1024),
        ("key c", "openai", json!({ "n_predict": 1500, "n": 2 }), 1, 1500),
    ] {
        let mut body = chat_body(model, "hi");
        body.as_object_mut().expect("an object").remove("max_tokens");
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let all = join_all((0..40).map(|_| fleet.ask(key, CHATS, &body))).await;
        let given: Vec<_> =
            all.iter().filter(|(status, _)| *status == 200).map(|(_, answer)| finished(answer)).collect();
        assert!(all.iter().all(|(status, _)| [200, 429].contains(status)), "{key}: {all:?}");
        assert_eq!(given.len(), answers, "{key}");
        assert!(given.iter().all(|(reasons, _)| reasons.iter().all(|reason| *reason == "length")), "{key}: {given:?}");
        let sum: u64 = given.iter().map(|(_, cost)| cost).sum();
        let texts: u64 = given.iter().map(|(reasons, _)| reasons.len() as u64).sum();
        assert!((texts * longest..=LIMIT).contains(&sum), "{key}: {sum}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_model_has_less_room_than_is_reserved_its_context_is_the_end() {
    let keys = "keys:\n  - {name: a, key: key one, tpm: 100000, rate: off}\n";
    let long = ["--fake-answer", "100000"];
    let mut worker = vec!["--model", "fake"];
    worker.extend(long);
    let fleet = Keyed::start(keys, &[&worker]).await;
    let _attached = attached(&fleet, "key one", &long).await;
    for model in ["fake", "openai"] {
        let mut body = chat_body(model, &"x".repeat(3600)); // a token each
        body.as_object_mut().expect("an object").remove("max_tokens");
        let (status, answer) = fleet.ask("key one", CHATS, &body).await;
        assert_eq!(status, 200, "{answer}");
        let (reasons, cost) = finished(&answer);
        assert_eq!((reasons.as_slice(), cost), (&["length"][..], 4096), "{}", answer["usage"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_cost_nobody_can_tell_is_refused_to_a_key_with_limited_tokens() {
    let keys = "keys:\n  - {name: a, key: key one, tpm: 5000, rate: off}\n";
    let fleet = Keyed::start(keys, &[&["--model", "fake"]]).await;
    let _attached = attached(&fleet, "key one", &[]).await;
    let many = format!("\"n\":[{}0]", "0,".repeat(2 << 20));
    for (more, param) in [
        (r#""max_tokens":"100000""#, json!("max_tokens")),
        (r#""max_tokens":-1"#, json!("max_tokens")),
        (r#""max_tokens":1,"max_tokens":null"#, json!("max_tokens")),
        (r#""max_tokens":1e999"#, Value::Null),
        (r#""user":"\ud800","suffix":"\ud800""#, Value::Null),
        (many.as_str(), json!("n")),
    ] {
        let body = format!(r#"{{"model":"openai","messages":[{{"role":"user","content":"hi"}}],{more}}}"#);
        let request = fleet.client.post(format!("{}{CHATS}", fleet.gateway.address)).bearer_auth("key one").body(body);
        let answer = request.send().await.expect("an answer");
        let (status, begin) = (answer.status(), more.get(..40).unwrap_or(more));
        let error = answer.json::<Value>().await.expect("JSON");
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &param), "{begin}: {error}");
    }
    assert_eq!(fleet.charged().await, 0);
    assert_eq!(fleet.ask("key one", CHATS, &short("openai")).await.0, 200);
}
