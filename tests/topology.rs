//! The fleet as it is seen: `/topology`, `/events`, and the verbs that ask for them, with real processes.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use common::{Cluster, PATIENCE, Process, chat_body, eventually, muster, run, tick, worker};
use muster_shared::control::WorkerState;
use muster_shared::sse::Decoder;
use muster_shared::topology::{Event, LinkKind, Node, Topology, WorkerNode};
use serde_json::{Value, json};

const FAKE: &[&str] = &["--model", "fake"];

/// Workers on a busy machine are not paused, or a test would see what it does not ask for.
const CALM: [&str; 4] = ["--pause-cpu", "off", "--pause-memory", "off"];

async fn fleet(workers: &[&[&str]]) -> Cluster {
    Cluster::with_controller(&[&["--heartbeat", "1s"], &CALM[..]].concat(), workers).await
}

/// A controller by itself.
fn calm(flags: &[&str]) -> Process {
    Process::start(&[&["controller"], &CALM[..], flags].concat())
}

async fn topology(controller: &Process) -> Topology {
    serde_json::from_value(controller.get("/topology").await).expect("a topology")
}

fn known(topology: &Topology, id: &str) -> Option<WorkerNode> {
    topology.nodes.iter().find_map(|node| match node {
        Node::Worker(worker) if worker.id == id => Some((**worker).clone()),
        _ => None,
    })
}

async fn state(controller: &Process, id: &str) -> Option<WorkerState> {
    known(&topology(controller).await, id).map(|worker| worker.state)
}

/// Runs a verb that asks the controller; gives whether it ended well, and what it wrote.
fn verb(words: &[&str], controller: &str) -> (bool, String, String) {
    let (status, out, errors) = run(&[words, &["--controller-address", controller]].concat());
    (status.success(), out, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_tells_of_a_worker_that_is_killed() {
    let mut cluster = fleet(&[FAKE, FAKE]).await;
    let ids: Vec<String> = cluster.workers.iter().map(|worker| worker.address.clone()).collect();
    cluster.ask("fake", "hi").await;
    let ended = |topology: &Topology| -> u64 {
        ids.iter().filter_map(|id| known(topology, id)).map(|worker| worker.totals.requests).sum()
    };
    let told = async || {
        let topology = topology(&cluster.controller).await;
        topology.links.len() == 3 && ended(&topology) == 1 // a gateway tells of an end in company
    };
    eventually("gateway and workers have their links, and the end of the request is told", told).await;
    let before = topology(&cluster.controller).await;
    let gateways = before.nodes.iter().filter_map(|node| match node {
        Node::Gateway(gateway) => Some(gateway),
        _ => None,
    });
    let gateways: Vec<_> = gateways.collect();
    assert_eq!((gateways.len(), &gateways[0].address), (1, &cluster.gateway.address), "its threads are one");
    assert!(before.links.iter().any(|link| link.kind == LinkKind::Dispatch && link.from == gateways[0].id));
    for id in &ids {
        assert_eq!(known(&before, id).map(|worker| worker.state), Some(WorkerState::Ready));
    }

    let mut stream = reqwest::get(format!("{}/events", cluster.controller.address)).await.expect("an answer");
    let (mut decoder, mut copy) = (Decoder::new(16 << 20), None::<Topology>);
    cluster.workers[0].kill();
    let deadline = Instant::now() + PATIENCE;
    while copy.as_ref().and_then(|copy| known(copy, &ids[0])).is_none_or(|worker| worker.state != WorkerState::Gone) {
        assert!(Instant::now() < deadline, "it is never told");
        let chunk = stream.chunk().await.expect("the stream goes on").expect("it does not end");
        for event in decoder.push(&chunk).expect("short events") {
            match (serde_json::from_str(&event).expect("an event"), &mut copy) {
                (Event::Topology(all), copy) => *copy = Some(*all),
                (Event::Update(update), Some(copy)) => copy.apply(*update),
                (Event::Update(_), None) => panic!("the first event is the topology"),
            }
        }
    }
    let (copy, after) = (copy.expect("it was told"), topology(&cluster.controller).await);
    assert_eq!((&copy.changes, &copy.links, &copy.sites), (&after.changes, &after.links, &after.sites));
    let gone = known(&after, &ids[0]).expect("it is remembered");
    assert_eq!(gone.reason.as_deref(), Some("its lease is over: no heartbeat came"));
    assert_eq!((after.changes[0].worker.as_str(), after.changes[0].to), (ids[0].as_str(), Some(WorkerState::Gone)));
    assert_eq!((after.links.len(), gone.since_ms), (2, after.changes[0].at_ms));
}

/// Asks until it is stopped; gives how many were answered.
async fn load(gateway: String, stop: tokio_util::sync::CancellationToken) -> usize {
    let http = reqwest::Client::new();
    let mut answered = 0;
    while !stop.is_cancelled() {
        let request = http.post(format!("{gateway}/v1/chat/completions")).json(&chat_body("fake", "hi"));
        let response = request.send().await.expect("an answer");
        let (status, body) = (response.status(), response.text().await.expect("a whole answer"));
        assert!(status.is_success(), "{status} {body}");
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_drained_and_resumed_under_load_and_no_request_fails() {
    let slow: &[&str] = &["--model", "fake", "--fake-token-time", "2ms"];
    let cluster = fleet(&[slow, slow]).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(load(cluster.gateway.address.clone(), stop.clone()))).collect();
    let (id, controller) = (cluster.workers[0].address.clone(), cluster.controller.address.clone());
    for _ in 0..3 {
        let (is_well, out, errors) = verb(&["drain", &id, "--wait"], &controller);
        assert!(is_well && out.ends_with("drains; no request runs\n"), "{out} {errors}");
        let drained = known(&topology(&cluster.controller).await, &id).expect("it is known");
        assert_eq!((drained.state, drained.tickets), (WorkerState::Draining, 0));
        let (is_well, out, errors) = verb(&["resume", &id], &controller);
        assert!(is_well && out == format!("worker `{id}` is ready\n"), "{out} {errors}");
        let busy = async || known(&topology(&cluster.controller).await, &id).is_some_and(|worker| worker.tickets > 0);
        eventually("it has requests again", busy).await;
    }
    stop.cancel();
    for client in clients {
        assert!(client.await.expect("no request failed") > 0);
    }
    let reasons: Vec<String> = topology(&cluster.controller).await.changes.into_iter().map(|it| it.reason).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "drained by an operator").count(), 3, "{reasons:?}");
    assert_eq!(reasons.iter().filter(|reason| *reason == "resumed by an operator").count(), 3, "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_show_the_admin_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    std::fs::write(&key, "# of operators\nhunter2\n").expect("it is written");
    let key = key.to_str().expect("UTF-8");
    let controller = calm(&["--port", "0", "--fleet-token", "fleet", "--admin-key-file", key]);
    let _worker = worker(&controller.address, &["--model", "fake", "--worker-id", "w", "--fleet-token", "fleet"]);
    let words = |words: &[&str]| verb(words, &controller.address);
    eventually("it is registered", async || {
        words(&["status", "--fleet-token", "fleet"])
            .1
            .lines()
            .any(|line| line.starts_with("w  ") && line.contains("ready"))
    })
    .await;
    for (asks, part) in [
        (&["drain", "w"][..], "show it with --fleet-token-file or --admin-key-file"),
        (&["drain", "w", "--fleet-token", "fleet"], "the fleet token is not enough"),
        (&["resume", "w", "--admin-key", "x"], "wrong"),
        (&["drain", "v", "--admin-key-file", key], "no worker `v` is known; known are `w`"),
        (&["status", "--fleet-token", "x"], "the fleet token is wrong; show it with --fleet-token-file"),
        (&["models"], "this service wants the fleet token"),
    ] {
        let (is_well, out, errors) = words(asks);
        assert!(!is_well && out.is_empty() && errors.contains(part), "{asks:?}: {out} {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    for (asks, part) in [
        (&["drain", "w", "--admin-key", "hunter2"][..], "worker `w` drains"),
        (&["status", "--fleet-token", "hunter2"], "w is draining: drained by an operator"),
        (&["resume", "w", "--admin-key-file", key], "worker `w` is ready"),
        (&["models", "--fleet-token", "fleet"], "MODEL"),
    ] {
        let (is_well, out, errors) = words(asks);
        assert!(is_well && out.contains(part), "{asks:?}: {out} {errors}");
    }
    // A worker may say that it stops, with the fleet token and its own incarnation; nobody else may say so for it.
    for (path, incarnation, expected) in [("drain", u64::MAX, 409), ("deregister", u64::MAX, 409), ("resume", 1, 401)] {
        let call = reqwest::Client::new().post(format!("{}/{path}", controller.address)).bearer_auth("fleet");
        let answer = call.json(&json!({ "id": "w", "incarnation": incarnation })).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), expected, "{path}");
    }
    let (status, printed, _) = run(&["controller", "--admin-key", "hunter2", "--print-config"]);
    let masked = ["admin_key: '***'", "admin_key: \"***\""].iter().any(|line| printed.contains(line));
    assert!(status.success() && masked, "{printed}");
    assert!(!printed.contains("hunter2") && printed.contains("site: local"), "{printed}");
}

/// Answers each connection with these bytes, after it has read something, and closes it; or never, without bytes.
fn stranger(answer: Option<&'static [u8]>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            match answer {
                None => open.push(stream),
                Some(answer) => {
                    let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer));
                }
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_controller_is_told_apart_in_one_line() {
    let cluster = fleet(&[FAKE]).await;
    let (gateway, its_worker) = (cluster.gateway.address.clone(), cluster.workers[0].address.clone());
    let page: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\n<h1>It works!\x1b\n";
    let absent: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let tls: &[u8] = b"\x15\x03\x01\x00\x02\x02\x46"; // an alert: a hello was expected
    let hint = "is a controller running there?";
    for (address, parts) in [
        ("http://127.0.0.1:1".to_owned(), ["cannot reach http://127.0.0.1:1", hint]),
        ("http://no-such-host.invalid:1".to_owned(), ["cannot reach http://no-such-host.invalid:1", hint]),
        (stranger(Some(page)), ["is no muster controller; it answered 200", "--controller-address"]),
        (stranger(Some(absent)), ["is no muster controller; it answered 404", "--controller-address"]),
        (stranger(Some(tls)), ["does not speak HTTP", "--controller-address"]),
        (stranger(None), ["does not answer", hint]),
        (gateway, ["is a muster gateway", "the controller's port is 21001 unless told otherwise"]),
        (its_worker, ["is a muster worker", "the controller's port is 21001 unless told otherwise"]),
        ("https://127.0.0.1:1".to_owned(), ["cannot reach https://127.0.0.1:1", hint]),
        ("ftp://127.0.0.1:1".to_owned(), ["controller_address `ftp://127.0.0.1:1`", "https://HOST"]),
        ("127.0.0.1:21001".to_owned(), ["controller_address `127.0.0.1:21001`", "http://HOST"]),
    ] {
        for words in [&["status"][..], &["status", "--watch"], &["explain", "x"], &["journal"]] {
            if address.contains("invalid") || (words != ["status"] && parts[0] == "does not answer") {
                continue; // a name server may take its time, and so does silence
            }
            let (status, out, errors) = run(&[words, &["--controller-address", &address]].concat());
            assert_eq!((status.code(), out.as_str(), errors.lines().count()), (Some(1), "", 1), "{address}: {errors}");
            for part in parts {
                assert!(errors.contains(part), "{address}: no `{part}` in {errors}");
            }
            assert!(!errors.contains('\x1b'), "{errors:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_drains_was_not_drained() {
    let slow = ["--model", "fake", "--fake-token-time", "100ms", "--worker-id", "w"];
    let mut cluster = fleet(&[&slow]).await;
    let body = json!({ "model": "fake", "messages": [{ "role": "user", "content": "hi" }], "stream": true });
    let asked = reqwest::Client::new().post(format!("{}/v1/chat/completions", cluster.gateway.address)).json(&body);
    let stream = asked.send().await.expect("it begins");
    let controller = cluster.controller.address.clone();
    let waits = std::thread::spawn(move || verb(&["drain", "w", "--wait"], &controller));
    eventually("it drains", async || state(&cluster.controller, "w").await == Some(WorkerState::Draining)).await;
    cluster.workers[0].kill();
    let (is_well, out, errors) = waits.join().expect("no panic");
    assert!(!is_well && errors.contains("failed 1 request while it drained"), "{out} {errors}");
    drop(stream);
}

/// A `muster status --watch` whose output is read line by line.
struct Watching {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Watching {
    fn start(words: &[&str], controller: &str) -> Self {
        let words = [&["status", "--watch", "--controller-address", controller], words].concat();
        let mut child =
            muster(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let lines = read(child.stdout.take().expect("piped"));
        let errors = read(child.stderr.take().expect("piped"));
        Self { child, lines, errors }
    }

    /// Reads until a line has that part.
    fn until(&self, part: &str) -> String {
        await_line(&self.lines, part)
    }

    async fn interrupted(mut self) -> ExitStatus {
        let status = std::process::Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs");
            tick().await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

fn await_line(lines: &Receiver<String>, part: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if line.contains(part) => return line,
            Ok(_) => {}
            Err(_) => panic!("no line has `{part}`"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_fleet_is_shown_again_and_again_and_survives_its_controller() {
    let mut controller = calm(&["--port", "0", "--heartbeat", "1s"]);
    let port = controller.address.rsplit(':').next().expect("a port").to_owned();
    let address = controller.address.clone();
    let (table, json) = (Watching::start(&[], &address), Watching::start(&["--json"], &address));
    table.until("no worker has registered");
    let _worker = worker(&address, &["--model", "fake", "--worker-id", "w"]);
    table.until("w       ready");
    table.until("unknown → ready");
    let line = json.until("\"id\":\"w\"");
    assert_eq!(
        known(&serde_json::from_str(&line).expect("a topology"), "w").map(|it| it.state),
        Some(WorkerState::Ready)
    );
    controller.kill();
    await_line(&table.errors, "trying again");
    let again = calm(&["--port", &port, "--heartbeat", "1s"]);
    await_line(&table.errors, "is back");
    eventually("the worker is back", async || state(&again, "w").await == Some(WorkerState::Ready)).await;
    table.until("w       ready");
    for watching in [table, json] {
        assert_eq!(watching.interrupted().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_full_of_commands_is_shown_and_not_obeyed() {
    let controller = calm(&["--port", "0"]);
    let name = "<img src=x>\u{202e}"; // control characters do not get so far
    let _worker = worker(&controller.address, &["--model", "fake", "--worker-id", name]);
    eventually("it is registered", async || state(&controller, name).await.is_some()).await;
    let (is_well, out, errors) = verb(&["status"], &controller.address);
    assert!(is_well && out.contains("<img src=x>\\u{202e}"), "{out} {errors}");
    assert!(!out.contains(['\u{1b}', '\u{202e}']), "{out:?}");
    let (is_well, out, errors) = verb(&["drain", name], &controller.address);
    assert!(is_well && !out.contains("\u{202e}"), "{out:?} {errors}");
    let (is_well, _, errors) = verb(&["resume", "\u{1b}[2J"], &controller.address);
    assert!(!is_well && errors.contains("is known") && !errors.contains('\u{1b}'), "{errors:?}");
}

/// Something that says it lives, at as many addresses of this machine as are wanted.
async fn many() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let router =
        axum::Router::new().route("/health", axum::routing::get(async || axum::Json(json!({ "status": "alive" }))));
    (port, tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_workers_are_told_at_once() {
    let controller = calm(&["--port", "0", "--heartbeat", "1h"]);
    let (port, server) = many().await;
    for number in 0..1000 {
        let registration = json!({
            "id": format!("worker-{number:04}"), "incarnation": 1, "transport": "http",
            "address": format!("http://127.0.{}.{}:{port}", number / 250, number % 250 + 1),
            "models": [{ "name": "m", "kind": "generate", "context_length": 4096 }],
        });
        let (status, answer) = controller.post("/register", &registration).await;
        assert_eq!(status, 200, "{answer}");
    }
    let began = Instant::now();
    let response = reqwest::get(format!("{}/topology", controller.address)).await.expect("an answer");
    let bytes = response.bytes().await.expect("a whole answer");
    let took = began.elapsed();
    let topology: Topology = serde_json::from_slice(&bytes).expect("a topology");
    eprintln!("1,000 workers: {} bytes in {took:?}", bytes.len());
    assert_eq!((topology.nodes.len(), topology.links.len(), topology.models[0].status.workers), (1001, 1000, 1000));
    assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());

    // An idle fleet has next to nothing to tell.
    let mut stream = reqwest::get(format!("{}/events", controller.address)).await.expect("an answer");
    let (mut decoder, mut updates) = (Decoder::new(16 << 20), Vec::<String>::new());
    while updates.len() < 3 {
        let chunk = stream.chunk().await.expect("the stream goes on").expect("it does not end");
        updates.extend(decoder.push(&chunk).expect("short events"));
    }
    let update: Value = serde_json::from_str(&updates[2]).expect("an update");
    assert!(updates[2].len() < 300 && update["nodes"] == json!([]), "{}", updates[2]);
    let (is_well, out, errors) = verb(&["status"], &controller.address);
    assert!(is_well && out.lines().filter(|line| line.contains("  ready  ")).count() == 1000, "{errors}");
    server.abort();
}
