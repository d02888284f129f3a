//! Bad input: every error names what was wrong, what was expected, and what to do.

mod common;

use common::{CHAT, Cluster, EMBEDDING, chat_body, gateway};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// The error of a gateway's answer.
async fn refused(gateway: &common::Process, path: &str, body: &Value) -> (u16, Value) {
    let (status, answer) = gateway.post(path, body).await;
    let error = answer["error"].clone();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{status} {answer}");
    assert!(error["type"].is_string(), "{answer}");
    (status, error)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_served_say_why() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = &cluster.gateway;
    let chat = "/v1/chat/completions";

    let (status, error) = refused(gateway, chat, &chat_body("nobody", "hi")).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")), "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("nobody")), "{error}");

    let (status, error) = refused(gateway, chat, &chat_body(CHAT, &"word ".repeat(3000))).await;
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
    let message = error["message"].as_str().expect("a text");
    assert!(
        message.contains("2048") && message.chars().filter(char::is_ascii_digit).count() > 4,
        "both numbers: {message}"
    );

    for (field, value) in [
        ("temperature", json!("hot")),
        ("temperature", json!(3)),
        ("top_p", json!(-0.1)),
        ("top_k", json!(1.5)),
        ("min_p", json!(2)),
        ("typical_p", json!(0)),
        ("min_tokens", json!(4000)),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([999_999])),
        ("stop_token_ids", json!([999_999])),
        ("cache_salt", json!("")),
        ("n", json!(0)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!("many")),
        ("presence_penalty", json!(9)),
        ("frequency_penalty", json!([])),
        ("logit_bias", json!({ "x": 1 })),
        ("logit_bias", json!({ "999999": 1 })),
        ("seed", json!("x")),
        ("stop", json!(7)),
        ("stream", json!("yes")),
        ("top_logprobs", json!(99)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("model", json!(5)),
        ("tools", json!([{ "type": "function", "function": { "name": "f" } }])),
    ] {
        let mut body = chat_body(CHAT, "hi");
        body["logprobs"] = json!(true);
        body[field] = value.clone();
        let (status, error) = refused(gateway, chat, &body).await;
        assert_eq!(status, 400, "{field}={value}: {error}");
        assert!(error["param"].as_str().is_some_and(|param| param.starts_with(field)), "{field}={value}: {error}");
    }

    let (status, error) = refused(gateway, "/v1/embeddings", &json!({ "model": CHAT, "input": "hi" })).await;
    assert_eq!(status, 400, "a chat model does not embed: {error}");
    let (status, error) = refused(gateway, chat, &chat_body(EMBEDDING, "hi")).await;
    assert_eq!(status, 400, "an embedding model does not chat: {error}");
    let (status, error) = refused(gateway, "/v1/embeddings", &json!({ "model": EMBEDDING, "input": [] })).await;
    assert_eq!((status, &error["param"]), (400, &json!("input")));
    let too_many = json!({ "model": EMBEDDING, "input": "hi", "dimensions": 4096 });
    let (status, error) = refused(gateway, "/v1/embeddings", &too_many).await;
    assert_eq!((status, &error["param"]), (400, &json!("dimensions")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_no_requests_get_openai_bodies_too() {
    let cluster = Cluster::start(&[&["--model", "fake"]]).await;
    let url = |path: &str| format!("{}{path}", cluster.gateway.address);
    let client = reqwest::Client::new();
    let big = vec![b' '; 9 << 20];
    let requests = [
        (client.post(url("/v1/chat/completions")).body("{not json"), StatusCode::BAD_REQUEST),
        (client.post(url("/v1/chat/completions")).body("[]"), StatusCode::BAD_REQUEST),
        (client.post(url("/v1/chat/completions")).body(big), StatusCode::PAYLOAD_TOO_LARGE),
        (client.get(url("/v1/chat/completions")), StatusCode::METHOD_NOT_ALLOWED),
        (client.get(url("/v1/nothing")), StatusCode::NOT_FOUND),
        (client.get(url("/v1/models/nobody")), StatusCode::NOT_FOUND),
    ];
    for (request, expected) in requests {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), expected);
        assert!(response.headers().contains_key("x-request-id"), "{expected}");
        let body: Value = response.json().await.expect("JSON");
        assert!(body["error"]["message"].is_string(), "{expected}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_fleet_and_an_empty_one_are_told_apart() {
    let slow =
        ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000", "--slots", "1", "--waiting", "0"];
    let mut cluster = Cluster::start(&[&slow]).await;
    let impatient = gateway(&cluster.controller.address, &["--dispatch-wait", "100ms"]);
    common::eventually("the gateway is ready", async || common::is_ready(&impatient.address).await).await;

    let mut endless = chat_body("fake", "hi");
    endless["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", impatient.address);
    let mut running = reqwest::Client::new().post(&url).json(&endless).send().await.expect("an answer");
    running.chunk().await.expect("a first chunk");

    let response = reqwest::Client::new().post(&url).json(&chat_body("fake", "hi")).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers().contains_key("retry-after"));

    drop(running);
    cluster.workers[0].kill();
    let gone = async || cluster.controller.get("/fleet").await["workers"][0]["state"] == "gone";
    common::eventually("the lease ends", gone).await;
    let response = reqwest::Client::new().post(&url).json(&chat_body("fake", "hi")).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_wanted_where_they_are_set() {
    let cluster = Cluster::start(&[&["--model", "fake"]]).await;
    let locked = gateway(&cluster.controller.address, &["--api-key", "right,spare"]);
    common::eventually("the gateway is ready", async || common::is_ready(&locked.address).await).await;
    let ask = async |key: Option<&str>| {
        let request = reqwest::Client::new().get(format!("{}/v1/models", locked.address));
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json::<Value>().await.expect("JSON")["error"]["code"].clone())
    };
    assert_eq!(ask(None).await, (401, json!("invalid_api_key")));
    assert_eq!(ask(Some("wrong")).await, (401, json!("invalid_api_key")));
    assert_eq!(ask(Some("right")).await.0, 200);
    assert_eq!(ask(Some("spare")).await.0, 200);
    assert!(!locked.errors().contains("right"), "keys are never logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registrations_leave_the_registry_as_it_is() {
    let cluster = Cluster::start(&[&["--model", "fake"]]).await;
    let before = cluster.controller.get("/fleet").await["workers"].as_array().map(Vec::len);
    let worker = &cluster.workers[0].address;
    let registration = |id: &str, address: &str, incarnation: u64| {
        json!({ "id": id, "address": address, "incarnation": incarnation, "transport": "http",
            "models": [{ "name": "m" }], "speed": 1.0 })
    };
    let mut smoke = registration("w", worker, 1);
    smoke["transport"] = json!("smoke");
    let mut still = registration("w", worker, 1);
    still["speed"] = json!(0);
    for (path, body, expected) in [
        ("/register", json!({}), 400),
        ("/register", smoke, 400),
        ("/register", still, 400),
        ("/register", registration("w", "http://127.0.0.1:1", 1), 400),
        ("/register", registration("w", "nowhere", 1), 400),
        ("/register", registration(worker, worker, 1), 409),
        ("/heartbeat", json!({ "id": worker, "incarnation": 1, "load": [] }), 409),
        ("/register_worker", json!({ "worker_name": 5 }), 400),
        ("/register_worker", json!({ "worker_name": "http://127.0.0.1:1", "check_heart_beat": true }), 400),
    ] {
        let (status, problem) = cluster.controller.post(path, &body).await;
        assert_eq!(status, expected, "{path} {body}: {problem}");
        assert!(problem["message"].as_str().is_some_and(|message| !message.is_empty()), "{path} {body}: {problem}");
    }
    assert_eq!(cluster.controller.get("/fleet").await["workers"].as_array().map(Vec::len), before);
    assert!(cluster.ask("fake", "hi").await.starts_with("All models are wrong"));
}
