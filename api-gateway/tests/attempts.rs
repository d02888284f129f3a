//! What the gateway does when a worker or the controller fails, at every point of an answer.

mod peers;

use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_shared::control::Outcome;
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};
use peers::{Controller, Deed, Gateway, nobody, worker};
use serde_json::{Value, json};

/// A gateway in front of workers that are granted in turn.
async fn fleet(deeds: Vec<Deed>) -> (Gateway, Controller, Vec<String>) {
    let mut addresses = Vec::new();
    for deed in deeds {
        addresses.push(worker(deed).await.0);
    }
    let controller = Controller::start(addresses.iter().cloned().map(Ok)).await;
    (Gateway::start(&controller.address, |_| {}).await, controller, addresses)
}

/// The text of a whole answer.
async fn whole(gateway: &Gateway) -> Result<String, (u16, Value)> {
    let response = gateway.chat(false).await;
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("JSON");
    match body["choices"][0]["message"]["content"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err((status, body["error"].clone())),
    }
}

#[tokio::test]
async fn an_attempt_that_fails_before_the_first_token_is_made_elsewhere() {
    let full = Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1);
    for (deed, outcome) in [
        (Deed::Break(&[]), Outcome::Failed),
        (Deed::Refuse(full), Outcome::Overloaded),
        (Deed::Refuse(Problem::new(Kind::Bug, "crash")), Outcome::Failed),
        (Deed::Refuse(Problem::new(Kind::UnknownModel, "not here")), Outcome::Done),
    ] {
        for stream in [false, true] {
            let (gateway, mut controller, addresses) = fleet(vec![deed.clone(), Deed::Answer(&["Hel", "lo"])]).await;
            let response = gateway.chat(stream).await;
            assert_eq!(response.status(), 200, "{deed:?}");
            let text = response.text().await.expect("a whole answer");
            assert!(if stream { text.ends_with("[DONE]\n\n") } else { text.contains("Hello") }, "{deed:?}: {text}");
            let mut ends = controller.outcomes(2).await;
            ends.sort_by_key(|end| *end != outcome);
            assert_eq!(ends, [outcome, Outcome::Done], "{deed:?}");
            let excluded = if outcome == Outcome::Overloaded { vec![] } else { vec![WorkerId::new(&addresses[0])] };
            assert_eq!(controller.dispatch(1).exclude, excluded, "{deed:?}");
        }
    }
}

#[tokio::test]
async fn a_refused_connection_is_told_to_the_controller_and_tried_elsewhere() {
    let (good, _) = worker(Deed::Answer(&["Hello"])).await;
    let mut controller = Controller::start([Ok(nobody().await), Ok(good)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(whole(&gateway).await.as_deref(), Ok("Hello"));
    assert_eq!(controller.outcomes(2).await, [Outcome::Unreachable, Outcome::Done]);
}

#[tokio::test]
async fn a_whole_answer_that_breaks_midway_begins_anew_elsewhere() {
    let (gateway, mut controller, _) = fleet(vec![Deed::Break(&["Wro", "ng"]), Deed::Answer(&["Right"])]).await;
    assert_eq!(whole(&gateway).await.as_deref(), Ok("Right"), "nothing of the first attempt is left");
    assert_eq!(controller.outcomes(2).await, [Outcome::Failed, Outcome::Done]);
}

#[tokio::test]
async fn a_stream_that_breaks_after_its_first_token_ends_with_an_error() {
    let (gateway, mut controller, addresses) = fleet(vec![Deed::Break(&["Hel"]), Deed::Answer(&["Hello"])]).await;
    let text = gateway.chat(true).await.text().await.expect("the gateway ends the stream itself");
    assert!(text.contains("\"Hel\"") && text.contains("upstream_error"), "{text}");
    assert!(!text.contains("[DONE]") && !text.contains(&addresses[0]), "{text}");
    assert_eq!(controller.outcomes(1).await, [Outcome::Failed]);
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_not_tried_elsewhere() {
    let wrong = Problem::invalid("temperature", "too hot");
    let (gateway, mut controller, _) = fleet(vec![Deed::Refuse(wrong), Deed::Answer(&["Hello"])]).await;
    let (status, error) = whole(&gateway).await.expect_err("it is refused");
    assert_eq!(
        (status, error["param"].as_str(), error["message"].as_str()),
        (400, Some("temperature"), Some("too hot"))
    );
    assert_eq!(controller.outcomes(1).await, [Outcome::Done], "the worker is not to blame");
}

#[tokio::test]
async fn time_that_a_worker_says_is_over_is_not_sought_elsewhere() {
    let over = Problem::new(Kind::Timeout, "it has waited 1000 ms");
    let (gateway, mut controller, _) = fleet(vec![Deed::Refuse(over), Deed::Answer(&["Hello"])]).await;
    let (status, error) = whole(&gateway).await.expect_err("the time is over");
    assert_eq!((status, error["code"].as_str()), (504, Some("timeout")));
    assert_eq!(controller.outcomes(1).await, [Outcome::Failed]);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let (gateway, mut controller, _) = fleet(vec![Deed::Break(&[]); 5]).await;
    let (status, error) = whole(&gateway).await.expect_err("every worker breaks");
    assert_eq!((status, error["code"].as_str()), (502, Some("upstream_error")));
    assert_eq!(controller.outcomes(3).await, [Outcome::Failed; 3]);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_at_the_worker_and_gives_the_ticket_back() {
    let (hanging, mut gone) = worker(Deed::Hang).await;
    let mut controller = Controller::start([Ok(hanging.clone()), Ok(hanging)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let mut response = gateway.chat(true).await;
    response.chunk().await.expect("a chunk").expect("a chunk");
    drop(response);
    tokio::time::timeout(peers::PATIENCE, gone.recv()).await.expect("the worker hears of it").expect("it runs");
    assert_eq!(controller.outcomes(1).await, [Outcome::Cancelled]);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_with_a_timeout() {
    let (hanging, mut gone) = worker(Deed::Hang).await;
    let mut controller = Controller::start([Ok(hanging)]).await;
    let limit = Duration::from_millis(200);
    let gateway = Gateway::start(&controller.address, |config| config.request_timeout = limit).await;
    let (status, error) = whole(&gateway).await.expect_err("it takes too long");
    assert_eq!((status, error["code"].as_str()), (504, Some("timeout")));
    tokio::time::timeout(peers::PATIENCE, gone.recv()).await.expect("the worker hears of it").expect("it runs");
    assert_eq!(controller.released().await.outcome, Outcome::Failed, "the worker is to blame");
}

#[tokio::test]
async fn refusals_of_the_controller_reach_the_client_with_a_time_to_come_again() {
    let full = Problem::new(Kind::Overloaded, "all are full").with_retry_after_ms(1500);
    let unknown = Problem::new(Kind::UnknownModel, "nobody serves `m`").with_param("model");
    let controller = Controller::start([Err::<String, _>(full), Err(unknown)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let response = gateway.chat(false).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"2".parse().expect("a header"))
    );
    assert_eq!(whole(&gateway).await.expect_err("unknown").0, 404);
    let response = gateway.chat(true).await;
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (503, true));
}

#[tokio::test]
async fn without_a_controller_the_answer_says_so_without_its_address() {
    let gateway = Gateway::start_alone(&nobody().await, |_| {}).await;
    let (status, error) = whole(&gateway).await.expect_err("there is no controller");
    assert_eq!((status, error["code"].as_str()), (503, Some("no_worker")));
    assert!(!error["message"].as_str().expect("a text").contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_failed_attempt_gives_its_room_back_before_the_next_one_is_made() {
    let (breaks, _) = worker(Deed::Break(&["Wro", "ng"])).await;
    let (answers, _) = worker(Deed::Answer(&["Right"])).await;
    let mut controller = Controller::with_room([Ok(breaks), Ok(answers)], 1).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(whole(&gateway).await.as_deref(), Ok("Right"));
    assert_eq!(controller.outcomes(2).await, [Outcome::Failed, Outcome::Done]);
}

#[tokio::test]
async fn a_controller_that_hangs_is_passed_over() {
    let (good, _) = worker(Deed::Answer(&["Hello"])).await;
    let controller = Controller::start([Ok(good.clone()), Ok(good)]).await;
    let gateway = Gateway::start(&controller.address, |config| {
        config.connect_timeout = Duration::from_millis(250);
        config.dispatch_wait = Duration::from_millis(100);
    })
    .await;
    assert_eq!(whole(&gateway).await.as_deref(), Ok("Hello"));
    controller.hangs.cancel();
    for _ in 0..3 {
        assert_eq!(whole(&gateway).await.as_deref(), Ok("Hello"), "from the last known fleet");
    }
    let models = reqwest::get(format!("{}/v1/models", gateway.address)).await.expect("an answer");
    assert!(models.text().await.expect("a body").contains("\"m\""));
    let ignored = controller.ignored.load(Ordering::Relaxed);
    assert!(ignored <= 1, "once is enough to know that it hangs; it was asked {ignored} times");
}

#[tokio::test]
async fn requests_that_outlive_the_time_to_drain_are_told_so() {
    let (hanging, _gone) = worker(Deed::Hang).await;
    let mut controller = Controller::start([Ok(hanging.clone()), Ok(hanging)]).await;
    let gateway = Gateway::start(&controller.address, |config| config.drain = Duration::from_millis(100)).await;
    let mut stream = gateway.chat(true).await;
    stream.chunk().await.expect("a chunk").expect("a chunk");
    let address = gateway.address.clone();
    let other = tokio::spawn(async move {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        reqwest::Client::new().post(format!("{address}/v1/chat/completions")).json(&body).send().await
    });
    while controller.asked() < 2 {
        tokio::task::yield_now().await;
    }
    let stopped = gateway.stop();
    let text = stream.text().await.expect("the gateway ends the stream itself");
    assert!(text.contains("the gateway is stopping") && !text.contains("[DONE]"), "{text}");
    let response = other.await.expect("no panic").expect("an answer");
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (503, true));
    assert_eq!(controller.outcomes(2).await, [Outcome::Cancelled; 2]);
    let stopped = tokio::time::timeout(peers::PATIENCE, stopped).await.expect("it ends").expect("no panic");
    assert!(stopped.is_ok());
}

#[tokio::test]
async fn prompts_of_one_request_wait_for_each_other() {
    for stream in [false, true] {
        let (slow, _) = worker(Deed::Answer(&["Hello"])).await;
        let full = || Err(Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1));
        let turns = [Ok(slow.clone()), full(), full(), Ok(slow.clone()), full(), full(), Ok(slow)];
        let controller = Controller::start(turns).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let body = json!({ "model": "m", "prompt": ["a", "b", "c"], "stream": stream });
        let response = gateway.post("/v1/completions", &body).await;
        assert_eq!(response.status(), 200);
        let text = response.text().await.expect("a body");
        assert_eq!((text.matches("Hello").count(), text.contains("\"error\"")), (3, false), "{text}");
    }
}

#[tokio::test]
async fn three_prompts_share_one_slot() {
    let (good, _) = worker(Deed::Answer(&["Hello"])).await;
    let controller = Controller::with_room([Ok(good.clone()), Ok(good.clone()), Ok(good)], 1).await;
    let wait = Duration::from_millis(100);
    let gateway = Gateway::start(&controller.address, |config| config.dispatch_wait = wait).await;
    let body = json!({ "model": "m", "prompt": ["a", "b", "c"] });
    assert_eq!(gateway.post("/v1/completions", &body).await.status(), 200);
}

#[tokio::test]
async fn a_full_fleet_refuses_the_first_prompt_at_once() {
    let controller =
        Controller::start([Err::<String, _>(Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1))]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let body = json!({ "model": "m", "prompt": ["a", "b", "c"] });
    assert_eq!(gateway.post("/v1/completions", &body).await.status(), 429);
}

#[tokio::test]
async fn embedding_may_take_longer_than_a_silence() {
    let embedder = peers::slow_embedder(Duration::from_millis(300)).await;
    let controller = Controller::start([Ok(embedder)]).await;
    let silence = Duration::from_millis(50);
    let gateway = Gateway::start(&controller.address, |config| {
        (config.first_token_timeout, config.inter_token_timeout) = (silence, silence);
    })
    .await;
    let body = json!({ "model": "m", "input": "a" });
    assert_eq!(gateway.post("/v1/embeddings", &body).await.status(), 200);
}

#[tokio::test]
async fn a_worker_that_does_not_embed_in_time_is_to_blame() {
    let embedder = peers::slow_embedder(peers::PATIENCE).await;
    let mut controller = Controller::start([Ok(embedder)]).await;
    let limit = Duration::from_millis(100);
    let gateway = Gateway::start(&controller.address, |config| config.request_timeout = limit).await;
    let body = json!({ "model": "m", "input": "a" });
    assert_eq!(gateway.post("/v1/embeddings", &body).await.status(), 504);
    assert_eq!(controller.outcomes(1).await, [Outcome::Failed]);
}
