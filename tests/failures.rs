//! What fails, and what must not fail with it: workers killed, controllers restarted, workers drained.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::{Cluster, Process, chat_body, facts, is_ready, worker};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// A model whose answers take a while: 40 tokens of 3 ms, one after another for every request.
const STEADY: [&str; 6] = ["--model", "fake", "--fake-token-time", "3ms", "--fake-answer", "40"];
/// The chat model in the binary, alone.
const DEMO: [&str; 2] = ["--model", "muster-demo-chat"];
const CLIENTS: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn killing_one_of_two_workers_loses_no_whole_answer() {
    let mut cluster = Cluster::start(&[&DEMO, &DEMO]).await;
    let (address, answered) = (cluster.gateway.address.clone(), AtomicUsize::new(0));
    let clients = join_all((0..CLIENTS).map(|client| {
        let (address, answered) = (&address, &answered);
        async move {
            for round in 0..4 {
                let (question, right) = facts::capital(client + round);
                assert_eq!(common::ask(address, "muster-demo-chat", &question).await, right);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }));
    let killer = async {
        let some = async || answered.load(Ordering::Relaxed) >= CLIENTS / 2;
        common::eventually("a part is answered", some).await;
        cluster.workers[0].kill();
    };
    tokio::join!(clients, killer);
    assert_eq!(answered.load(Ordering::Relaxed), CLIENTS * 4);
    common::eventually("all tickets are back", async || cluster.tickets().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_one_of_two_workers_ends_no_stream_begun_or_not() {
    let mut cluster = Cluster::start(&[&STEADY, &STEADY]).await;
    let (address, begun) = (cluster.gateway.address.clone(), AtomicUsize::new(0));
    let clients = join_all((0..CLIENTS).map(|_| follow(&address, &begun)));
    let killer = async {
        common::eventually("some streams have begun", async || begun.load(Ordering::Relaxed) >= 8).await;
        cluster.workers[0].kill();
    };
    let (ends, ()) = tokio::join!(clients, killer);
    let right: String = "All models are wrong, but some are useful. ".chars().take(40).collect();
    for end in &ends {
        assert_eq!((end.text.as_str(), &end.error), (right.as_str(), &None));
    }
    common::eventually("all tickets are back", async || cluster.tickets().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_all_workers_but_one_ends_no_stream() {
    let long = ["--model", "fake", "--fake-token-time", "5ms", "--fake-answer", "200"];
    let mut cluster = Cluster::start(&[&long[..]; 6]).await;
    let (address, begun) = (cluster.gateway.address.clone(), AtomicUsize::new(0));
    let clients = join_all((0..CLIENTS).map(|_| follow(&address, &begun)));
    let killer = async {
        common::eventually("all have begun", async || begun.load(Ordering::Relaxed) == CLIENTS).await;
        cluster.workers[1..].iter_mut().for_each(Process::kill);
    };
    let (ends, ()) = tokio::join!(clients, killer);
    let right: String = "All models are wrong, but some are useful. ".chars().cycle().take(200).collect();
    for end in &ends {
        assert_eq!((end.text.as_str(), &end.error), (right.as_str(), &None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_workers_that_tell_no_tokens_say_that_they_broke_off() {
    let slow = ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000"];
    for transport in ["fastchat", "openai"] {
        let cluster = Cluster::start(&[]).await;
        let controller = &cluster.controller.address;
        let (mut dies, _attach) = if transport == "openai" {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let text = "models:\n  model: [fake]\n  fake_token_time: 20ms\n  fake_answer: 100000\n";
            std::fs::write(file.path(), text).expect("a file");
            let path = file.path().display().to_string();
            let server = Process::start(&["--config", &path, "up", "--port", "0"]);
            let attach = Process::start(&["attach", "--controller-address", controller, &server.address]);
            (server, Some(attach))
        } else {
            (worker(controller, &[&slow[..], &["--transport", transport]].concat()), None)
        };
        cluster.registered(1).await;
        let begun = AtomicUsize::new(0);
        let killer = async {
            common::eventually("the stream has begun", async || begun.load(Ordering::Relaxed) == 1).await;
            dies.kill();
        };
        let (end, ()) = tokio::join!(follow(&cluster.gateway.address, &begun), killer);
        let error = end.error.unwrap_or_else(|| panic!("{transport}: nothing tells of it: {}", end.text));
        assert!(end.text.starts_with('A') && !error.to_string().contains(&dies.address), "{transport}: {error}");
        assert_eq!(
            (&error["type"], error["message"].is_string()),
            (&json!("server_error"), true),
            "{transport}: {error}"
        );
    }
}

/// How a stream ended.
struct End {
    text: String,
    /// What its last event tells, where it did not end whole.
    error: Option<Value>,
}

/// Reads one stream to its end, whatever that is.
async fn follow(gateway: &str, begun: &AtomicUsize) -> End {
    let mut body = chat_body("fake", "hello");
    body["stream"] = json!(true);
    let request = reqwest::Client::new().post(format!("{gateway}/v1/chat/completions")).json(&body);
    let mut response = request.send().await.expect("an answer");
    let status = response.status();
    assert!(status.is_success(), "{status}: {}", response.text().await.unwrap_or_default());
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.expect("the gateway ends the stream itself") {
        let had = text.contains("\"content\":\"A\"");
        text.push_str(&String::from_utf8_lossy(&chunk));
        if !had && text.contains("\"content\":\"A\"") {
            begun.fetch_add(1, Ordering::Relaxed);
        }
    }
    let events: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
    let last = events.last().expect("an event");
    let error = (last != "[DONE]").then(|| serde_json::from_str::<Value>(last).expect("JSON")["error"].clone());
    assert_eq!(events.iter().filter(|event| *event == "[DONE]").count(), usize::from(error.is_none()), "{text}");
    End { text: common::text_of(&events), error: error.filter(|error| !error.is_null()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_controller_under_load_fails_no_request() {
    let mut cluster = Cluster::start(&[&DEMO, &DEMO]).await;
    let port = cluster.controller.address.rsplit(':').next().expect("a port").to_owned();
    let (address, answered) = (cluster.gateway.address.clone(), AtomicUsize::new(0));
    let clients = join_all((0..16).map(|client| {
        let (address, answered) = (&address, &answered);
        async move {
            for round in 0..20 {
                let (question, right) = facts::capital(client + round);
                assert_eq!(common::ask(address, "muster-demo-chat", &question).await, right);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }));
    let restart = async {
        common::eventually("a part is answered", async || answered.load(Ordering::Relaxed) >= 40).await;
        cluster.controller.kill();
        let before = answered.load(Ordering::Relaxed);
        // The gateway's last view serves while there is no controller at all.
        common::eventually("answers go on", async || answered.load(Ordering::Relaxed) > before + 20).await;
        cluster.controller = Process::start(&["controller", "--port", &port, "--heartbeat", "1s"]);
    };
    tokio::join!(clients, restart);
    cluster.registered(2).await;
    let (question, right) = facts::capital(3);
    assert_eq!(cluster.ask("muster-demo-chat", &question).await, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_finishes_what_it_runs_and_gets_nothing_new() {
    let mut cluster = Cluster::start(&[&STEADY]).await;
    let body = chat_body("fake", "hello");
    let running = common::stream(&cluster.gateway.address, body);
    let stopping = async {
        common::eventually("the request runs", async || cluster.workers[0].running().await == 1).await;
        cluster.workers[0].signal("TERM");
        let fleet = async || cluster.controller.get("/fleet").await["workers"][0]["state"] == "draining";
        common::eventually("the worker drains", fleet).await;
        // A second worker takes what comes now.
        let second = worker(&cluster.controller.address, &STEADY);
        cluster.registered(1).await;
        second
    };
    let (events, _second) = tokio::join!(running, stopping);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "the running stream ends whole");
    assert!(cluster.workers[0].ended().await.success(), "a drained worker ends with success");
    let gone = async || {
        let fleet = cluster.controller.get("/fleet").await;
        let workers = fleet["workers"].as_array().expect("workers").clone();
        workers.iter().any(|worker| worker["state"] == "gone")
            && workers.iter().any(|worker| worker["state"] == "ready")
    };
    common::eventually("the lease has ended", gone).await;
    assert_eq!(cluster.ask("fake", "hello").await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_keeps_its_lease_until_its_last_request_has_ended() {
    let long = ["--model", "fake", "--fake-token-time", "10ms", "--fake-answer", "300"];
    let mut cluster = Cluster::with_controller(&["--heartbeat", "200ms"], &[&long]).await;
    let running = async {
        let events = common::stream(&cluster.gateway.address, chat_body("fake", "hello")).await;
        (events, Instant::now())
    };
    let watching = async {
        common::eventually("the request runs", async || cluster.workers[0].running().await == 1).await;
        cluster.workers[0].signal("TERM");
        let state = async || cluster.controller.get("/fleet").await["workers"][0]["state"].clone();
        common::eventually("the worker drains", async || state().await == "draining").await;
        common::eventually("the worker has left", async || state().await == "gone").await;
        Instant::now()
    };
    let ((events, ended), left) = tokio::join!(running, watching);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(ended <= left, "an answer of three seconds outlasts a lease of 0.6 s, and the worker stays as long");
    assert!(cluster.workers[0].ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_come_before_its_controller() {
    let first = Process::start(&["controller", "--port", "0"]);
    let (address, port) = (first.address.clone(), first.address.rsplit(':').next().expect("a port").to_owned());
    drop(first);
    let worker = worker(&address, &["--model", "fake"]);
    common::eventually("the worker is ready", async || is_ready(&worker.address).await).await;
    let controller = Process::start(&["controller", "--port", &port]);
    let known = async || controller.get("/fleet").await["workers"][0]["state"] == "ready";
    common::eventually("the worker has registered", known).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_gone_after_its_lease() {
    let mut cluster = Cluster::start(&[&["--model", "fake"]]).await;
    cluster.workers[0].kill();
    let gone = async || cluster.controller.get("/fleet").await["workers"][0]["state"] == "gone";
    common::eventually("the lease ends", gone).await;
    let (status, body) = cluster.gateway.post("/v1/chat/completions", &chat_body("fake", "hi")).await;
    assert_eq!(status, 503, "{body}");
}
