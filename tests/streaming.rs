//! Streams: their shape, stop strings, and clients that leave them.

mod common;

use common::{CHAT, Cluster, chat_body, stream, text_of};
use serde_json::{Value, json};

/// A model that takes its time, so that a test can act in the middle of an answer.
const SLOW: [&str; 6] = ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000"];

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_the_shape_that_clients_expect() {
    let cluster = Cluster::start(&[&[]]).await;
    let mut body = chat_body(CHAT, "What is the capital of France?");
    body["stream_options"] = json!({ "include_usage": true });
    let events = stream(&cluster.gateway.address, body).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert_eq!(text_of(&events), "The capital of France is Paris.");

    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for same in ["id", "created", "model"] {
            assert_eq!(chunk[same], chunks[0][same]);
        }
    }
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["prompt_tokens"], 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_never_leaks() {
    let cluster = Cluster::start(&[&[]]).await;
    for (stop, shown) in [(" is Par", "The capital of France"), ("The", ""), ("nce", "The capital of Fra")] {
        let mut body = chat_body(CHAT, "What is the capital of France?");
        body["stop"] = json!([stop]);
        let events = stream(&cluster.gateway.address, body.clone()).await;
        assert_eq!(text_of(&events), shown, "streamed, stop {stop:?}");
        let (_, whole) = cluster.gateway.post("/v1/chat/completions", &body).await;
        assert_eq!(whole["choices"][0]["message"]["content"], shown, "whole, stop {stop:?}");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place_streamed_or_not() {
    let cluster = Cluster::start(&[&SLOW]).await;
    for streamed in [true, false] {
        let mut body = chat_body("fake", "hello");
        body["stream"] = json!(streamed);
        let url = format!("{}/v1/chat/completions", cluster.gateway.address);
        let request = reqwest::Client::new().post(url).json(&body);
        let asked = tokio::spawn(async move {
            let mut response = request.send().await?;
            while response.chunk().await?.is_some() {}
            reqwest::Result::Ok(())
        });
        common::eventually("the worker runs it", async || cluster.workers[0].running().await == 1).await;
        asked.abort();
        common::eventually("the row is free", async || cluster.workers[0].running().await == 0).await;
        common::eventually("the ticket is back", async || cluster.tickets().await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifteen_of_sixteen_clients_that_leave_free_their_places_and_the_last_goes_on() {
    let cluster = Cluster::start(&[&[&SLOW[..], &["--slots", "16"]].concat()]).await;
    let open = async || {
        let mut body = chat_body("fake", "hello");
        body["stream"] = json!(true);
        let url = format!("{}/v1/chat/completions", cluster.gateway.address);
        let mut response = reqwest::Client::new().post(url).json(&body).send().await.expect("an answer");
        response.chunk().await.expect("a chunk").expect("a chunk");
        response
    };
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(open().await);
    }
    common::eventually("all run", async || cluster.workers[0].running().await == 16).await;
    let mut last = streams.swap_remove(5);
    drop(streams);
    common::eventually("one is left", async || cluster.workers[0].running().await == 1).await;
    last.chunk().await.expect("it goes on").expect("a chunk");
    let new = [open().await, open().await]; // taken in at once, beside it
    common::eventually("three run", async || cluster.workers[0].running().await == 3).await;
    drop((last, new));
    common::eventually("all tickets are back", async || cluster.tickets().await == 0).await;
}
