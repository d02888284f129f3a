//! The controller goes away under load, or hangs, and comes back: no request fails, and its count of them is right again.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Cluster, Process, chat_body, eventually, gateway, is_ready};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Two models: one whose answers are short by `max_tokens`, one whose streams last as long as they are read.
const WORKER: [&str; 12] = [
    "--model",
    "quick=fake",
    "--model",
    "endless=fake",
    "--fake-token-time",
    "10ms",
    "--fake-answer",
    "100000",
    "--slots",
    "64",
    "--waiting",
    "64",
];
/// Clients that ask again and again.
const CLIENTS: usize = 64;
/// Streams that run through, before the outage and begun in it.
const STREAMS: usize = 8;

/// Clients under way: how many answers there were, and whether they shall ask no more.
#[derive(Default)]
struct Load {
    answers: AtomicUsize,
    ends: AtomicBool,
}

impl Load {
    /// Asks until it ends; every answer must be right.
    async fn run(&self, gateway: &str) {
        let client = reqwest::Client::new();
        let url = format!("{gateway}/v1/chat/completions");
        join_all((0..CLIENTS).map(async |number| {
            let mut body = chat_body("quick", "hello");
            (body["max_tokens"], body["stream"]) = (json!(10), json!(number % 2 == 0));
            while !self.ends.load(Ordering::Relaxed) {
                let response = client.post(&url).json(&body).send().await.expect("an answer");
                let (status, text) = (response.status(), response.text().await.expect("a whole one"));
                assert!(status.is_success(), "{status}: {text}");
                assert_eq!(text_of(&text), "All models", "{text}");
                self.answers.fetch_add(1, Ordering::Relaxed);
            }
        }))
        .await;
    }

    /// Waits until all clients have got so many more answers each.
    async fn goes_on(&self, rounds: usize) {
        let wanted = self.answers.load(Ordering::Relaxed) + rounds * CLIENTS;
        eventually("answers go on", async || self.answers.load(Ordering::Relaxed) >= wanted).await;
    }
}

/// The text of an answer, whole or streamed to its end.
fn text_of(answer: &str) -> String {
    if let Ok(whole) = serde_json::from_str::<Value>(answer) {
        return whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    }
    assert!(answer.ends_with("data: [DONE]\n\n"), "{answer}");
    let events: Vec<String> =
        answer.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
    common::text_of(&events)
}

/// Streams that have begun and are held open.
async fn hold(gateway: &str, count: usize) -> Vec<reqwest::Response> {
    let mut body = chat_body("endless", "hello");
    body["stream"] = json!(true);
    join_all((0..count).map(async |_| {
        let request = reqwest::Client::new().post(format!("{gateway}/v1/chat/completions")).json(&body);
        let mut response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{response:?}");
        response.chunk().await.expect("it goes on").expect("a chunk");
        response
    }))
    .await
}

/// Reads what has come of streams meanwhile, and a little more: they must not have ended.
async fn still_run(streams: &mut [reqwest::Response]) {
    for stream in streams {
        let chunk = stream.chunk().await.expect("it goes on").expect("a chunk");
        assert!(!String::from_utf8_lossy(&chunk).contains("error"), "{chunk:?}");
    }
}

async fn count_is(cluster: &Cluster, tickets: usize) {
    let what = format!("{tickets} tickets are known");
    eventually(&what, async || cluster.tickets().await == tickets as u64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_and_comes_back_fails_no_request_and_counts_what_runs() {
    let mut cluster = Cluster::start(&[&WORKER, &WORKER]).await;
    let address = cluster.gateway.address.clone();
    let port = cluster.controller.address.rsplit(':').next().expect("a port").to_owned();
    let load = Load::default();
    let outage = async {
        let mut streams = hold(&address, STREAMS).await;
        load.goes_on(2).await;
        cluster.controller.kill();
        load.goes_on(4).await;
        streams.extend(hold(&address, STREAMS).await);
        let ended = streams.split_off(STREAMS / 2 * 3); // some of those begun in the outage also end in it
        drop(ended);
        load.goes_on(2).await;
        cluster.controller = Process::start(&["controller", "--port", &port, "--heartbeat", "1s"]);
        load.goes_on(4).await;
        cluster.registered(2).await;
        load.goes_on(2).await;
        load.ends.store(true, Ordering::Relaxed);
        streams
    };
    let (mut streams, ()) = tokio::join!(outage, load.run(&address));
    count_is(&cluster, streams.len()).await;
    still_run(&mut streams).await;
    drop(streams);
    count_is(&cluster, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_hangs_and_goes_on_fails_no_request_and_counts_what_runs() {
    // A lease would be over sooner than the controller goes on.
    let cluster = Cluster::with_controller(&["--heartbeat", "300ms"], &[&WORKER, &WORKER]).await;
    // A gateway that finds out before a client would mind.
    let flags = ["--connect-timeout", "200ms", "--sync-interval", "200ms"];
    let gateway = gateway(&cluster.controller.address, &flags);
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
    let (address, load) = (gateway.address.clone(), Load::default());
    let outage = async {
        let mut streams = hold(&address, STREAMS).await;
        load.goes_on(2).await;
        cluster.controller.signal("STOP");
        load.goes_on(12).await; // each takes 100 ms at least
        streams.extend(hold(&address, STREAMS).await);
        drop(streams.split_off(STREAMS / 2 * 3));
        cluster.controller.signal("CONT");
        load.goes_on(6).await;
        cluster.registered(2).await;
        load.ends.store(true, Ordering::Relaxed);
        streams
    };
    let (mut streams, ()) = tokio::join!(outage, load.run(&address));
    count_is(&cluster, streams.len()).await;
    still_run(&mut streams).await;
    drop(streams);
    count_is(&cluster, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_the_controller_is_away_costs_no_stream() {
    let steady = ["--model", "fake", "--fake-token-time", "5ms", "--fake-answer", "200"];
    let mut cluster = Cluster::start(&[&steady, &steady]).await;
    let address = cluster.gateway.address.clone();
    cluster.controller.kill();
    let streams = join_all((0..16).map(async |_| {
        let mut body = chat_body("fake", "hello");
        body["stream"] = json!(true);
        let request = reqwest::Client::new().post(format!("{address}/v1/chat/completions")).json(&body);
        let mut response = request.send().await.expect("an answer");
        let mut text = String::new();
        while text.matches("\"content\"").count() < 10 {
            text.push_str(&String::from_utf8_lossy(&response.chunk().await.expect("it goes on").expect("a chunk")));
        }
        (response, text)
    }))
    .await;
    cluster.workers[0].kill();
    for (mut response, mut text) in streams {
        while let Some(chunk) = response.chunk().await.expect("the gateway ends the stream itself") {
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        let said = text_of(&text);
        let wanted: String = "All models are wrong, but some are useful. ".chars().cycle().take(200).collect();
        assert_eq!(said, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_its_only_worker_though_nobody_tells_of_it() {
    let steady = ["--model", "fake", "--fake-token-time", "10ms", "--fake-answer", "60"];
    let mut cluster = Cluster::start(&[&steady]).await;
    let mut body = chat_body("fake", "hello");
    body["stream"] = json!(true);
    let url = format!("{}/v1/chat/completions", cluster.gateway.address);
    let mut response = reqwest::Client::new().post(url).json(&body).send().await.expect("an answer");
    let mut text = String::new();
    while text.matches("\"content\"").count() < 10 {
        text.push_str(&String::from_utf8_lossy(&response.chunk().await.expect("it goes on").expect("a chunk")));
    }
    cluster.controller.kill();
    cluster.workers[0].kill();
    // Of the last known fleet the worker that died is all there is: a request has three attempts, an answer its time.
    let tries = async || cluster.gateway.metric("muster_gateway_retries_total").await >= 4.0;
    eventually("it was tried more often than a request is", tries).await;
    let port = cluster.workers[0].address.rsplit(':').next().expect("a port").to_owned();
    let started = ["worker", "--port", &port, "--controller-address", &cluster.controller.address];
    let _worker = Process::start(&[&started[..], &steady].concat());
    while let Some(chunk) = response.chunk().await.expect("the gateway ends the stream itself") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    let wanted: String = "All models are wrong, but some are useful. ".chars().cycle().take(60).collect();
    assert_eq!(text_of(&text), wanted);
}
