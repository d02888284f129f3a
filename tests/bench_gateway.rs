//! `muster bench gateway` and `muster bench fake-worker`: each against the other, and with a fleet between them.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use axum::routing::post;
use axum::{Json, Router};
use common::{Cluster, Process, chat_body, eventually, gateway, is_ready, muster, run, stream, text_of};
use serde_json::{Value, json};

/// What the binary prints with `--json`, and how it ends.
fn bench(arguments: &[&str]) -> (ExitStatus, Value, String) {
    let (status, printed, errors) = run(&[&["bench", "gateway", "--json"], arguments].concat());
    let value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}{errors}"));
    (status, value, errors)
}

/// A short measurement with two levels, none of whose requests may fail.
fn measured(url: &str, model: &str, kind: &str, more: &[&str]) -> Value {
    let short = ["--clients", "1,3", "--seconds", "0.3", "--warm-up", "0.1"];
    let what = ["--url", url, "--model", model, "--kind", kind];
    let (status, value, errors) = bench(&[&what[..], &short, more].concat());
    assert!(status.success(), "{model} {kind}: {errors}");
    value
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn fake_worker(arguments: &[&str]) -> Process {
    Process::start(&[&["bench", "fake-worker"], arguments].concat())
}

/// Every field that a level has, whatever came of it.
fn check_level(level: &Value, clients: u32, streamed: bool) {
    assert_eq!(level["clients"], clients);
    assert_eq!((&level["failures"]["total"], &level["failures"]["first"]), (&0.into(), &Value::Null), "{level}");
    for field in ["requests_per_second", "client_cpu_seconds"] {
        assert!(number(&level[field]) > 0.0, "{field} of {level}");
    }
    assert!(number(&level["sent"]) >= number(&level["requests"]), "{level}");
    assert!(level["unfinished"].is_u64() && level["reconnects"].is_u64(), "{level}");
    let spreads = if streamed { &["latency_ms", "ttft_ms", "chunk_gap_ms"][..] } else { &["latency_ms"] };
    for spread in spreads {
        let [count, p50, p90, p99, p999, max] =
            ["count", "p50", "p90", "p99", "p999", "max"].map(|part| number(&level[spread][part]));
        assert!(count > 0.0 && p50 <= p90 && p90 <= p99 && p99 <= p999 && p999 <= max, "{spread} of {level}");
    }
    assert_eq!(level["chunks"].is_u64() && level["chunks_per_second"].is_f64(), streamed, "{level}");
}

#[test]
fn a_fake_worker_is_measured_in_every_kind() {
    let worker = fake_worker(&["--model", "a,b", "--model", "c"]);
    let pid = worker.id().to_string();
    for (kind, streamed) in [("chat", false), ("stream", true), ("embeddings", false)] {
        let found = measured(&worker.address, "c", kind, &["--pid", &pid, "--threads", "2"]);
        let head = [&found["model"], &found["kind"], &found["seconds"], &found["threads"]];
        assert_eq!(head, [&json!("c"), &json!(kind), &json!(0.3), &json!(2)]);
        let levels = found["levels"].as_array().expect("levels");
        assert_eq!(levels.len(), 2);
        for (level, clients) in levels.iter().zip([1, 3]) {
            check_level(level, clients, streamed);
            let server = &level["server"];
            if cfg!(target_os = "linux") {
                assert!(number(&server["resident_mib"]) > 1.0 && number(&server["cpu_seconds"]) > 0.0, "{level}");
                assert!(number(&server["cpu_seconds_per_1000_requests"]) > 0.0, "{level}");
                assert_eq!(server["cpu_us_per_chunk"].is_f64(), streamed, "{level}");
            }
        }
    }
    let without = measured(&format!("{}/v1/", worker.address), "a", "chat", &["--api-key", "any"]);
    assert!(without["levels"][0]["server"].is_null(), "{without}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_before_fake_workers_is_measured_in_every_kind() {
    let controller = Process::start(&["controller", "--port", "0", "--heartbeat", "1s"]);
    let known = ["--controller-address", &controller.address];
    let workers = ["http", "fastchat"]
        .map(|transport| fake_worker(&[&["--transport", transport, "--model", transport], &known[..]].concat()));
    let gateway = gateway(&controller.address, &[]);
    let mut cluster = Cluster { controller, gateway, workers: workers.into() };
    cluster.registered(2).await;
    eventually("the gateway is ready", async || is_ready(&cluster.gateway.address).await).await;
    let pids = [cluster.gateway.id(), cluster.controller.id()].map(|pid| pid.to_string());
    for transport in ["http", "fastchat"] {
        for (kind, streamed) in [("chat", false), ("stream", true), ("embeddings", false)] {
            let found = measured(&cluster.gateway.address, transport, kind, &["--pid", &pids[0], "--pid", &pids[1]]);
            check_level(&found["levels"][1], 3, streamed);
        }
        // What a prompt asks of the worker passes through the gateway.
        let body = chat_body(transport, "fake:n=3,d=1000; how are you?");
        assert_eq!(text_of(&stream(&cluster.gateway.address, body).await), " token token token");
        let reply = cluster.gateway.post("/v1/chat/completions", &chat_body(transport, "fake:n=2;")).await;
        assert_eq!((reply.0, &reply.1["choices"][0]["message"]["content"]), (200, &json!(" token token")));
    }
    let mut worker = cluster.workers.remove(0);
    worker.signal("TERM");
    assert!(worker.ended().await.success(), "{}", worker.errors());
    let fleet = cluster.controller.get("/fleet").await;
    let states: Vec<(&Value, &Value)> = fleet["workers"]
        .as_array()
        .expect("workers")
        .iter()
        .map(|worker| (&worker["transport"], &worker["state"]))
        .collect();
    assert!(states.contains(&(&json!("http"), &json!("gone"))), "{states:?}");
    assert!(states.contains(&(&json!("fastchat"), &json!("ready"))), "{states:?}");
}

#[tokio::test]
async fn a_fake_worker_speaks_openais_words() {
    let worker = fake_worker(&["--model", "a,b", "--tokens", "4"]);
    let models = worker.get("/v1/models").await;
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("a"), &json!("b")));
    let mut body = chat_body("b", "hi");
    body["stream_options"] = json!({ "include_usage": true });
    let events = stream(&worker.address, body).await;
    assert_eq!((events.len(), text_of(&events)), (1 + 4 + 1 + 1 + 1, " token".repeat(4)));
    let usage: Value = serde_json::from_str(&events[6]).expect("JSON");
    assert_eq!(usage["usage"]["completion_tokens"], 4);
    let cut = json!({ "model": "a", "prompt": "fake:n=9;", "max_tokens": 2 });
    let (_, reply) = worker.post("/v1/completions", &cut).await;
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(" token token"), &json!("length")));
    let (_, reply) = worker.post("/v1/embeddings", &json!({ "model": "a", "input": ["x", "y"] })).await;
    assert_eq!(reply["data"][1]["embedding"].as_array().map(Vec::len), Some(384));
    for (path, body, status, part) in [
        ("/v1/chat/completions", json!({ "model": "x" }), 404, "there is a, b"),
        ("/v1/chat/completions", json!({ "model": "a", "n": 2 }), 400, "one answer"),
        ("/v1/chat/completions", json!("hi"), 400, "not what this path expects"),
        ("/generate", json!({ "model": "a" }), 404, "nothing at this path"),
    ] {
        let (found, reply) = worker.post(path, &body).await;
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(found == status && message.contains(part), "{path} {body}: {found} {reply}");
    }
}

#[tokio::test]
async fn a_fake_worker_registers_with_fastchats_controller_too() {
    let seen = Arc::new(Mutex::new(None));
    let sink = Arc::clone(&seen);
    let register = async move |Json(body): Json<Value>| {
        *sink.lock().expect("no panic while holding it") = Some(body);
        Json(Value::Null)
    };
    let router = Router::new().route("/register_worker", post(register));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let controller = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let worker = fake_worker(&["--transport", "fastchat", "--controller-address", &controller, "--speed", "2.5"]);
    let taken = || seen.lock().expect("no panic while holding it").clone();
    eventually("the worker registers", async || taken().is_some()).await;
    let body = taken().expect("a registration");
    let status = json!({ "model_names": ["fake"], "speed": 2.5, "queue_length": 0 });
    let expected = json!({ "worker_name": worker.address, "check_heart_beat": true, "worker_status": status, "multimodal": false });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn requests_fail_and_are_counted_when_the_server_dies() {
    let mut worker = fake_worker(&[]);
    let arguments = ["bench", "gateway", "--json", "--model", "fake", "--clients", "4", "--seconds", "4"];
    let mut command = muster(&arguments);
    command.args(["--kind", "stream", "--prompt", "fake:n=20,d=2000;", "--url", &worker.address]);
    let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let busy = async || worker.get("/health").await["requests"].as_u64() > Some(8);
    eventually("the load has begun", busy).await;
    worker.kill();
    let output = bench.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let level = &found["levels"][0];
    assert!(number(&level["sent"]) > number(&level["failures"]["total"]), "{level}");
    assert!(number(&level["failures"]["connection"]) > 0.0, "{level}");
    let first = level["failures"]["first"].as_str().expect("a reason");
    assert!(errors.contains("requests failed") && errors.contains(first), "{first}: {errors}");
}

/// A server that answers each request with the next of these; the last one again and again.
fn scripted(answers: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let mut answers = answers.iter().chain(std::iter::repeat(answers.last().expect("an answer")));
        for stream in listener.incoming().map_while(Result::ok) {
            let Some(stream) = read_request(stream) else { continue };
            // The client may have left.
            let _ = { stream }.write_all(answers.next().expect("endless").as_bytes());
        }
    });
    address
}

/// Reads one request; nothing from a client that only looks whether somebody listens.
fn read_request(stream: TcpStream) -> Option<TcpStream> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).ok()? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    (length > 0).then(|| reader.into_inner())
}

#[test]
fn every_way_in_which_a_stream_fails_is_counted() {
    const GOOD: &str =
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let url = scripted(&[
        GOOD,
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 31\r\n\r\n{\"error\":{\"message\":\"so full\"}}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n",
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\n",
        "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"message\":\"lost it\"}}\n\ndata: [DONE]\n\n",
        "",
        GOOD,
    ]);
    let what = ["--url", &url, "--model", "m", "--kind", "stream"];
    let (status, found, errors) = bench(&[&what[..], &["--clients", "1", "--seconds", "2", "--warm-up", "0"]].concat());
    assert_eq!(status.code(), Some(1), "{errors}");
    let failures = &found["levels"][0]["failures"];
    let causes = ["total", "status", "connection", "without_done", "error_event"].map(|cause| &failures[cause]);
    assert_eq!(causes, [&json!(5), &json!(1), &json!(2), &json!(1), &json!(1)], "{failures}");
    let first = failures["first"].as_str().expect("a reason");
    assert!(first.contains("503 Service Unavailable") && first.contains("so full"), "{first}");
    assert!(errors.contains(first), "{errors}");
}

#[test]
fn people_get_a_table() {
    let worker = fake_worker(&[]);
    for (kind, column) in [("chat", "p99.9"), ("stream", "CHUNKS/S")] {
        let what = ["bench", "gateway", "--url", &worker.address, "--model", "fake", "--kind", kind];
        let (status, printed, errors) = run(&[&what[..], &["--clients", "2,5", "--seconds", "0.1"]].concat());
        assert!(status.success(), "{errors}");
        let firsts: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(firsts, ["CLIENTS", "2", "5"], "{printed}");
        assert!(printed.contains(column), "{printed}");
    }
}

#[test]
fn mistakes_are_explained() {
    let worker = fake_worker(&[]);
    let (hello, ssh) = (scripted(&["HTTP/1.1 200 OK\r\n\r\n<p>Hello</p>"]), scripted(&["SSH-2.0-Other\r\n"]));
    let controller = Process::start(&["controller", "--port", "0"]);
    let endless = scripted(&["HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[]}\n\n"]);
    let gateway = |more: &[&'static str]| [&["bench", "gateway", "--model", "fake"], more].concat();
    let at = |url| [&["bench", "gateway", "--model", "fake", "--url"], &[url][..]].concat();
    for (arguments, code, parts) in [
        (vec!["bench", "gateway"], 2, &["--model"][..]),
        (gateway(&["--clients", "0"]), 2, &["--clients", "0", "1..=4096"]),
        (gateway(&["--clients", "1,4097"]), 2, &["--clients", "4097", "1..=4096"]),
        (gateway(&["--kind", "verse"]), 2, &["verse", "chat, stream, embeddings"]),
        (gateway(&["--seconds", "0"]), 2, &["--seconds", "longer than 0"]),
        (gateway(&["--seconds", "nan"]), 2, &["--seconds", "a number of seconds"]),
        (gateway(&["--prompt-bytes", "0"]), 2, &["--prompt-bytes", "0"]),
        (gateway(&["--max-tokens", "0"]), 2, &["--max-tokens", "0"]),
        (gateway(&["--pid", "4294967295"]), 1, &["--pid 4294967295", "no such process"]),
        (at("https://127.0.0.1:1"), 1, &["--url", "https is not supported"]),
        (at("nowhere"), 1, &["--url `nowhere`", "http://HOST:PORT"]),
        (at("http://127.0.0.1:1"), 1, &["cannot reach http://127.0.0.1:1", "--url"]),
        (at(&controller.address), 1, &["404 Not Found: there is nothing at /v1/chat/completions"]),
        (at(&hello), 1, &[&hello, "OpenAI", "<p>Hello</p>"]),
        (at(&ssh), 1, &[&ssh, "does not speak HTTP"]),
        ([&at(&endless)[..], &["--kind", "stream"]].concat(), 1, &[&endless, "[DONE]"]),
        ([&at(&worker.address)[..], &["--model", "other"]].concat(), 2, &["--model"]),
        (vec!["bench", "gateway", "--url", &worker.address, "--model", "x"], 1, &["404", "the model `x` is not here"]),
        (vec!["bench", "fake-worker", "--transport", "grpc"], 2, &["grpc", "openai, http, fastchat"]),
        (vec!["bench", "fake-worker", "--speed", "0"], 2, &["--speed", "above 0"]),
        (vec!["bench", "fake-worker", "--tokens", "0"], 2, &["--tokens", "0"]),
        (vec!["bench", "fake-worker", "--controller-address", "x"], 1, &["--controller-address `x`"]),
        (vec!["bench", "fake-worker", "--fleet-token-file", "/no/such"], 1, &["cannot read keys from /no/such"]),
    ] {
        // A variable that a flag silences: the file's name is the user's last word.
        let output = muster(&arguments).env("MUSTER_FLEET_TOKEN", "other").output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(code), &b""[..]), "{arguments:?}: {errors}");
        assert!(code == 2 || errors.lines().count() == 1, "{arguments:?}: {errors}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: no `{part}` in:\n{errors}");
        }
    }
}
