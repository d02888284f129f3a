//! Clients with different keys in front of a fleet that is full.

mod common;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Cluster, chat_body, eventually, gateway, is_ready};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Requests of the flood that may wait.
const FLOOD: usize = 20;

/// Asks for a short answer; gives the status and the body.
async fn ask(gateway: &str, key: &str) -> (u16, Value) {
    let mut body = chat_body("fake", "hi");
    body["max_tokens"] = json!(2);
    let request = reqwest::Client::new().post(format!("{gateway}/v1/chat/completions")).bearer_auth(key).json(&body);
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// The same, beside the test; `answered` counts it when it is there.
fn begin(gateway: &str, key: &'static str, answered: &Arc<AtomicUsize>) -> JoinHandle<u16> {
    let (gateway, answered) = (gateway.to_owned(), Arc::clone(answered));
    tokio::spawn(async move {
        let (status, _) = ask(&gateway, key).await;
        answered.fetch_add(1, Ordering::SeqCst);
        status
    })
}

async fn waiting(cluster: &Cluster, count: usize) {
    let so_many = async || cluster.controller.get("/fleet").await["waiting"] == count;
    eventually("so many wait", so_many).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_key_does_not_hold_up_another() {
    let bounded = ["--heartbeat", "1s", "--queue-limit-per-key", &FLOOD.to_string()];
    let one =
        ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000", "--slots", "1", "--waiting", "0"];
    let cluster = Cluster::with_controller(&bounded, &[&one]).await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"keys:\n  - {name: greedy, key: key one}\n  - {name: modest, key: key two}\n")
        .expect("it is written");
    let path = file.path().to_str().expect("a path");
    let flags = ["--api-key-file", path, "--dispatch-wait", "60s", "--log", "muster_gateway=debug"];
    let gateway = gateway(&cluster.controller.address, &flags);
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;

    let mut endless = chat_body("fake", "hi");
    endless["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", gateway.address);
    let running = reqwest::Client::new().post(url).bearer_auth("key one").json(&endless);
    let mut running = running.send().await.expect("an answer");
    running.chunk().await.expect("a first chunk");

    let (flooded, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let flood: Vec<_> = (0..FLOOD).map(|_| begin(&gateway.address, "key one", &flooded)).collect();
    waiting(&cluster, FLOOD).await;
    let (status, body) = ask(&gateway.address, "key one").await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")), "{body}");
    let message = body["error"]["message"].as_str().expect("a text");
    assert_eq!(message, "the key `greedy` has 20 requests waiting, the most that one key may have");

    let modest = begin(&gateway.address, "key two", &served);
    waiting(&cluster, FLOOD + 1).await;
    drop(running);
    assert_eq!(modest.await.expect("no panic"), 200);
    let before = flooded.load(Ordering::SeqCst);
    assert!(before <= 1, "{before} of the flood were answered before");
    for asked in flood {
        assert_eq!(asked.await.expect("no panic"), 200, "it is served, too");
    }
    let log = gateway.errors();
    assert!(log.contains("greedy") && log.contains("modest"), "the log names the keys: {log}");
    assert!(!log.contains("key one") && !log.contains("key two"), "and shows none");
}
