//! On whose behalf a request is made, and how long its client waits, as the controller hears it.

mod peers;

use std::num::NonZeroU32;
use std::time::Duration;

use muster_gateway::{ApiKey, KeyLimits};
use muster_shared::control::Dispatch;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use peers::{Controller, Deed, Gateway, in_time, slow_embedder, worker};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn keys() -> Vec<ApiKey> {
    let bob = ApiKey::named("bob", Secret::new("key of bob"), -3).expect("a name");
    vec![ApiKey::unnamed(Secret::new("hunter2"), 1), bob]
}

async fn keyed(controller: &Controller) -> Gateway {
    Gateway::start(&controller.address, |config| config.keys = keys()).await
}

fn chat(stream: bool) -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": stream })
}

/// Asks with a key, and some headers; gives the response with its body unread.
async fn ask(gateway: &Gateway, key: &str, path: &str, body: &Value, headers: &[(&str, &str)]) -> reqwest::Response {
    let request = reqwest::Client::new().post(format!("{}{path}", gateway.address)).bearer_auth(key).json(body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    in_time(request.send()).await.expect("an answer")
}

fn told(dispatch: &Dispatch) -> (Option<&str>, i8, Option<u64>) {
    (dispatch.key.as_deref(), dispatch.key_priority, dispatch.deadline_ms)
}

#[tokio::test]
async fn every_attempt_names_the_key_and_the_time_that_is_left() {
    let (broken, whole) = (worker(Deed::Break(&[])).await.0, worker(Deed::Answer(&["hi"])).await.0);
    let controller = Controller::start([Ok(broken), Ok(whole)]).await;
    let gateway = keyed(&controller).await;
    let response = ask(&gateway, "key of bob", CHAT, &chat(true), &[("x-stainless-read-timeout", "300.0")]).await;
    assert!(response.text().await.expect("an answer").ends_with("[DONE]\n\n"));
    let mut last = 300_000;
    for attempt in 0..2 {
        let dispatch = controller.dispatch(attempt);
        let (key, priority, left) = told(&dispatch);
        assert_eq!((key, priority), (Some("bob"), -3));
        let left = left.expect("the client has said it");
        assert!(left <= last && left > 200_000, "{left}");
        last = left;
    }
}

#[tokio::test]
async fn attempts_of_which_nothing_came_cost_nothing() {
    let broken = worker(Deed::Break(&[])).await.0;
    let controller = Controller::start(vec![Ok::<_, Problem>(broken); 8]).await;
    let limits = KeyLimits { tokens_per_minute: NonZeroU32::new(5000), ..KeyLimits::default() };
    let key = ApiKey::named("bob", Secret::new("key of bob"), 0).expect("a name").with_limits(limits);
    let gateway = Gateway::start(&controller.address, |config| config.keys = vec![key]).await;
    for stream in [false, true] {
        let response = ask(&gateway, "key of bob", CHAT, &chat(stream), &[]).await;
        let text = response.text().await.expect("an answer");
        assert!(text.contains("the worker that ran this request failed"), "{text}");
        let url = format!("{}/v1/models", gateway.address);
        let left = async || {
            let response = reqwest::Client::new().get(&url).bearer_auth("key of bob").send().await.expect("an answer");
            response.headers()["x-ratelimit-remaining-tokens"].to_str().expect("a number").to_owned()
        };
        in_time(async { while left().await != "5000" {} }).await;
    }
}

#[tokio::test]
async fn a_key_without_a_name_is_told_by_its_place_and_requests_without_keys_by_nothing() {
    let embedder = slow_embedder(Duration::ZERO).await;
    let controller = Controller::start(vec![Ok(embedder); 2]).await;
    let body = json!({ "model": "m", "input": "hi" });
    let response = ask(&keyed(&controller).await, "hunter2", "/v1/embeddings", &body, &[]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(told(&controller.dispatch(0)), (Some("key-1"), 0, None));
    let open = Gateway::start(&controller.address, |_| {}).await;
    let response = ask(&open, "hunter2", "/v1/embeddings", &body, &[("x-stainless-timeout", "soon")]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(told(&controller.dispatch(1)), (None, 0, None));
}

#[tokio::test]
async fn each_prompt_of_a_request_comes_with_its_key() {
    let answers = worker(Deed::Answer(&["hi"])).await.0;
    let controller = Controller::start(vec![Ok(answers); 3]).await;
    let gateway = keyed(&controller).await;
    let body = json!({ "model": "m", "prompt": ["a", "b", "c"] });
    let response = ask(&gateway, "key of bob", "/v1/completions", &body, &[("x-stainless-timeout", "300")]).await;
    assert_eq!(response.status(), 200);
    for prompt in 0..3 {
        let dispatch = controller.dispatch(prompt);
        assert!(dispatch.key.as_deref() == Some("bob") && dispatch.deadline_ms.is_some(), "{dispatch:?}");
    }
}

#[tokio::test]
async fn a_controller_that_comes_back_hears_on_whose_behalf_requests_run() {
    let hangs = worker(Deed::Hang).await.0;
    let mut controller = Controller::start(vec![Ok(hangs); 2]).await;
    let gateway = keyed(&controller).await;
    assert!(controller.greeted().await.is_empty());
    let mut granted = ask(&gateway, "key of bob", CHAT, &chat(true), &[]).await;
    in_time(granted.chunk()).await.expect("a word");
    controller.go_away();
    let mut taken = ask(&gateway, "hunter2", CHAT, &chat(true), &[]).await;
    in_time(taken.chunk()).await.expect("a word");
    controller.come_back();
    let mut keys: Vec<_> = controller.greeted().await.into_iter().map(|held| held.key).collect();
    keys.sort();
    assert_eq!(keys, [Some("bob".to_owned()), Some("key-1".to_owned())], "one by the controller, one without it");
}

#[tokio::test]
async fn what_the_controller_says_of_keys_and_deadlines_goes_to_the_client() {
    let message = "the key `bob` has 2 requests waiting, the most that one key may have";
    let full = Problem::new(Kind::RateLimited, message).with_retry_after_ms(1500);
    let late = Problem::new(Kind::Timeout, "the time that was given for the request is over");
    let controller = Controller::start::<String>([Err(full), Err(late)]).await;
    let gateway = keyed(&controller).await;
    let response = ask(&gateway, "key of bob", CHAT, &chat(false), &[]).await;
    assert_eq!((response.status().as_u16(), peers::header(&response, "retry-after")), (429, "2"));
    let error = response.json::<Value>().await.expect("JSON")["error"].clone();
    assert_eq!((&error["code"], &error["message"]), (&json!("rate_limit_exceeded"), &json!(message)));
    let response = ask(&gateway, "key of bob", CHAT, &chat(false), &[]).await;
    assert_eq!(response.status(), 504);
}

#[tokio::test]
async fn a_request_without_time_asks_for_no_worker() {
    let controller = Controller::start::<String>([]).await;
    let gateway = keyed(&controller).await;
    let response = ask(&gateway, "key of bob", CHAT, &chat(false), &[("x-stainless-read-timeout", "0")]).await;
    assert_eq!(response.status(), 504);
    assert_eq!(controller.asked(), 0);
}
