//! What becomes of a worker whose machine is short of memory.
#![cfg(target_os = "linux")] // where a worker measures it

mod common;

use std::time::Duration;

use common::{Process, chat_body, eventually, gateway, is_ready, run, worker};
use serde_json::{Value, json};

/// A model that answers for longer than a test takes, one request at a time.
const SLOW: [&str; 8] = ["--model", "fake", "--fake-token-time", "10ms", "--fake-answer", "100000", "--slots", "1"];

/// A worker as the controller knows it.
async fn known(controller: &Process, id: &str) -> Value {
    let fleet = controller.get("/fleet").await;
    let workers = fleet["workers"].as_array().expect("workers");
    workers.iter().find(|worker| worker["id"] == id).cloned().unwrap_or_default()
}

/// Registers a worker that does not do so itself, and beats for it; it tells nothing of its machine.
async fn vouch_for(controller: &Process, worker: &Process) -> ! {
    let model = json!({ "name": "fake", "kind": "generate", "capacity": { "running": 1, "waiting": 4 } });
    let registration = json!({
        "id": "other", "address": worker.address, "incarnation": 1, "transport": "http", "models": [model],
    });
    let (status, reply) = controller.post("/register", &registration).await;
    assert_eq!(status, 200, "{reply}");
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        controller.post("/heartbeat", &json!({ "id": "other", "incarnation": 1 })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_at_a_worker_short_of_memory_is_answered_by_another_and_what_runs_goes_on() {
    // Every machine uses a thousandth of its memory.
    let marks = ["--pause-memory", "0.1%", "--resume-memory", "0.05%", "--heartbeat", "300ms"];
    let controller = Process::start(&[&["controller", "--port", "0"][..], &marks].concat());
    let short = worker(&controller.address, &SLOW);
    let gateway = gateway(&controller.address, &[]);
    let is_paused = async || known(&controller, &short.address).await["state"] == "paused";
    eventually("the worker is paused", is_paused).await;
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;

    // It is all there is, so it serves nevertheless.
    let mut body = chat_body("fake", "hello");
    body["stream"] = json!(true);
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address)).json(&body);
    let mut running = request.send().await.expect("an answer");
    assert_eq!(running.status(), 200);
    eventually("it runs", async || short.running().await == 1).await;

    let mut brief = chat_body("fake", "hello");
    brief["max_tokens"] = json!(3);
    let waiting = gateway.post("/v1/chat/completions", &brief);
    let help = async {
        let waits = async || short.metric("muster_worker_sequences_waiting{").await == 1.0;
        eventually("it waits", waits).await;
        let before = known(&controller, &short.address).await["resources"].clone();
        let has_beaten = async || known(&controller, &short.address).await["resources"] != before;
        eventually("a heartbeat tells of it", has_beaten).await;
        assert_eq!(short.metric("muster_worker_shed_total{").await, 0.0, "there is nobody to take it");
        let other = worker(&controller.address, &[&SLOW[..], &["--no-register"]].concat());
        eventually("the other is ready", async || is_ready(&other.address).await).await;
        vouch_for(&controller, &other).await
    };
    let (status, answer) = tokio::select! {
        answer = waiting => answer,
        never = help => never,
    };
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("All")), "{answer}");
    assert_eq!(short.metric("muster_worker_shed_total{").await, 1.0);
    assert!(short.errors().contains("short of memory"), "{}", short.errors());
    assert_eq!(short.running().await, 1, "what runs goes on");
    assert!(running.chunk().await.expect("no error").is_some());

    let status = known(&controller, &short.address).await;
    assert!(status["paused"].as_str().is_some_and(|reason| reason.contains("is above 0.1 %")), "{status}");
    for resource in ["cpu", "model_cpu", "memory", "kv_cache"] {
        let share = status["resources"][resource].as_f64().unwrap_or(-1.0);
        assert!((0.0..=1.0).contains(&share), "{resource} in {status}");
        let gauge = short.metric(&format!("muster_worker_resource_ratio{{resource=\"{resource}\"}}")).await;
        assert!((0.0..=1.0).contains(&gauge), "{resource}");
    }
    assert!(status["tokens_per_second"].as_f64().is_some_and(|tokens| tokens > 0.0), "{status}");
    assert!(status["ttft_ms"].as_f64().is_some_and(|time| time > 0.0), "{status}");
    assert!(controller.errors().contains("a worker is paused"), "{}", controller.errors());
    let (exit, printed, _) = run(&["status", "--controller-address", &controller.address]);
    assert!(exit.success() && printed.contains("paused: memory"), "{printed}");
}
