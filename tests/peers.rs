//! Workers that are written down: real controllers, workers and gateways, and a file that changes.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{CHAT, Process, eventually, facts};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A worker that registers nowhere.
const ALONE: [&str; 6] = ["worker", "--no-register", "--port", "0", "--model", CHAT];
/// What the log says of a peer that is down.
const DOWN: &str = "a peer is down";

/// The same, when its models are loaded: a worker that still loads them counts as down.
async fn alone() -> Process {
    let worker = Process::start(&ALONE);
    eventually("its models are loaded", async || common::is_ready(&worker.address).await).await;
    worker
}

/// A peers file in a folder of its own.
struct Peers {
    folder: tempfile::TempDir,
}

impl Peers {
    fn of(peers: &[(&str, &str)]) -> Self {
        let file = Self { folder: tempfile::tempdir().expect("a folder") };
        file.write(&yaml(peers));
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("peers.yaml")
    }

    /// Replaces it, as careful writers do.
    fn write(&self, text: &str) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, text).expect("a file");
        std::fs::rename(next, self.path()).expect("it is replaced");
    }
}

fn yaml(peers: &[(&str, &str)]) -> String {
    let peer = |(id, address): &(&str, &str)| {
        let capabilities = "capabilities: {memory_gb: 64000, gpu: true}";
        format!("  - id: {id}\n    address: {address}\n    {capabilities}\n")
    };
    let peers: String = peers.iter().map(peer).collect();
    if peers.is_empty() { "peers: []\n".to_owned() } else { format!("peers:\n{peers}") }
}

fn controller(peers: &Path, interval: &str) -> Process {
    let path = peers.to_str().expect("a path");
    // These tests may keep the machine busy, which is no reason to spare a worker here.
    let flags = ["--pause-cpu", "off", "--pause-memory", "off", "--probe-interval", interval, "--peers", path];
    Process::start(&[&["controller", "--port", "0"], &flags[..]].concat())
}

/// A gateway that knows what is served.
async fn gateway(controller: &Process) -> Process {
    let gateway = common::gateway(&controller.address, &[]);
    eventually("the gateway is ready", async || common::is_ready(&gateway.address).await).await;
    gateway
}

/// The state of a worker, or `unknown`.
async fn state(controller: &Process, id: &str) -> String {
    let fleet = controller.get("/fleet").await;
    let workers = fleet["workers"].as_array().expect("workers");
    let worker = workers.iter().find(|worker| worker["id"] == id);
    worker.map_or("unknown", |worker| worker["state"].as_str().expect("a state")).to_owned()
}

async fn becomes(controller: &Process, id: &str, wanted: &str) {
    eventually(&format!("{id} is {wanted}"), async || state(controller, id).await == wanted).await;
}

/// How often the log has said that.
fn said(process: &Process, words: &str) -> usize {
    process.errors().matches(words).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_as_they_are_written_down_serve() {
    let workers = [alone().await, alone().await];
    let bare = workers[1].address.trim_start_matches("http://");
    let file = Peers::of(&[("bench-1", &workers[0].address), ("bench-2", bare)]);
    let controller = controller(&file.path(), "1s");
    for id in ["bench-1", "bench-2"] {
        becomes(&controller, id, "ready").await;
    }
    let fleet = controller.get("/fleet").await;
    for (worker, process) in fleet["workers"].as_array().expect("workers").iter().zip(&workers) {
        assert_eq!((&worker["source"], &worker["address"]), (&json!("static"), &json!(process.address)));
        assert_eq!((&worker["models"][0]["name"], &worker["lease_ms"]), (&json!(CHAT), &Value::Null));
        assert!(worker["models"][0]["capacity"]["running"].as_u64() > Some(0), "it tells its room: {worker}");
    }
    let gateway = gateway(&controller).await;
    let (question, right) = facts::capital(0);
    assert_eq!(common::ask(&gateway.address, CHAT, &question).await, right);
    assert!(said(&controller, "gpu true is declared, and the peer reports false") == 2, "{}", controller.errors());
    assert_eq!(controller.metric("muster_controller_peers{state=\"ready\"}").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_killed_is_down_before_a_second_interval_is_over_and_comes_back() {
    let (mut victim, other) = (alone().await, alone().await);
    let file = Peers::of(&[("victim", &victim.address), ("other", &other.address)]);
    let path = file.path();
    let interval = Duration::from_secs(4);
    let controller = controller(&path, "4s");
    for id in ["victim", "other"] {
        becomes(&controller, id, "ready").await;
    }
    let port = victim.address.rsplit(':').next().expect("a port").to_owned();
    victim.kill();
    let died = Instant::now();
    becomes(&controller, "victim", "down").await;
    // A busy machine makes everything late. That one interval is enough where nothing is late, the rules' own tests prove
    // (`controller/src/peers/pulse.rs`).
    assert!(died.elapsed() < interval * 2, "{:?}", died.elapsed());
    assert_eq!(state(&controller, "other").await, "ready");
    let gateway = gateway(&controller).await;
    let (question, right) = facts::capital(1);
    assert_eq!(common::ask(&gateway.address, CHAT, &question).await, right, "the other one serves");
    let _back = Process::start(&["worker", "--no-register", "--port", &port, "--model", CHAT]);
    let returned = Instant::now();
    becomes(&controller, "victim", "ready").await;
    assert!(returned.elapsed() < interval * 3, "{:?}", returned.elapsed());
    assert_eq!((said(&controller, DOWN), said(&controller, "a peer is back")), (1, 1), "{}", controller.errors());
    let warning = controller.errors().lines().find(|line| line.contains(DOWN)).expect("a line").to_owned();
    assert!(warning.contains("WARN") && warning.contains("victim") && warning.contains("refused"), "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_has_the_peer_probed_at_once() {
    let mut worker = alone().await;
    let file = Peers::of(&[("a", &worker.address)]);
    let controller = controller(&file.path(), "1h");
    becomes(&controller, "a", "ready").await;
    let gateway = gateway(&controller).await;
    worker.kill();
    let body = common::chat_body(CHAT, "Hello");
    let (status, answer) = gateway.post("/v1/chat/completions", &body).await;
    assert!(status >= 500, "{status} {answer}");
    becomes(&controller, "a", "down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_rewritten_again_and_again_under_load_fails_no_request() {
    let workers = [alone().await, alone().await, alone().await];
    let all: Vec<(String, &str)> =
        workers.iter().enumerate().map(|(number, worker)| (format!("w{number}"), worker.address.as_str())).collect();
    let some = |which: &[usize]| {
        let peers: Vec<(&str, &str)> = which.iter().map(|&number| (all[number].0.as_str(), all[number].1)).collect();
        yaml(&peers)
    };
    let file = Peers::of(&[]);
    file.write(&some(&[0, 1]));
    let controller = controller(&file.path(), "1s");
    let gateway = gateway(&controller).await;
    becomes(&controller, "w0", "ready").await;
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = futures_util::future::join_all((0..8).map(|client| {
        let (gateway, stop, answered) = (&gateway.address, &stop, &answered);
        async move {
            while !stop.load(Ordering::Relaxed) {
                let (question, right) = facts::capital(client);
                assert_eq!(common::ask(gateway, CHAT, &question).await, right);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }));
    let writer = async {
        let sets: [&[usize]; 6] = [&[1, 2], &[0, 2], &[0, 1, 2], &[2, 1], &[0], &[0, 1]];
        for (round, set) in sets.into_iter().cycle().take(12).enumerate() {
            if round == 5 {
                std::fs::remove_file(file.path()).expect("it is there");
                eventually("its loss is said", async || said(&controller, "cannot be used") > 0).await;
            }
            let before = controller.metric("muster_controller_peers_reloads_total{result=\"applied\"}").await;
            file.write(&some(set));
            let applied =
                async || controller.metric("muster_controller_peers_reloads_total{result=\"applied\"}").await > before;
            eventually("it is in force", applied).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(clients, writer);
    assert!(answered.load(Ordering::Relaxed) > 24, "there was load");
    becomes(&controller, "w2", "unknown").await;
    becomes(&controller, "w1", "ready").await;
    assert_eq!(said(&controller, DOWN), 0, "{}", controller.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_has_become_wrong_changes_nothing_and_is_said_once() {
    let worker = alone().await;
    let file = Peers::of(&[("a", &worker.address)]);
    let controller = controller(&file.path(), "1s");
    becomes(&controller, "a", "ready").await;
    file.write("peers:\n  - id: b\n    address: 10.0.0.7:70000\n");
    let words = "peers.yaml:3:14: port 70000, expected a port from 1 to 65535";
    eventually("the mistake is said", async || said(&controller, words) > 0).await;
    assert_eq!((state(&controller, "a").await.as_str(), state(&controller, "b").await.as_str()), ("ready", "unknown"));
    std::fs::remove_file(file.path()).expect("it is there");
    eventually("its loss is said", async || said(&controller, "cannot read") > 0).await;
    assert_eq!(state(&controller, "a").await, "ready");
    file.write(&yaml(&[("a", &worker.address)]));
    eventually("it is back", async || said(&controller, "again as it is in force") > 0).await;
    assert_eq!((said(&controller, words), said(&controller, "cannot read")), (1, 1), "{}", controller.errors());
    let added = format!("{}  - id: b\n    address: 127.0.0.1:1\n", yaml(&[("a", &worker.address)]));
    file.write(&added);
    becomes(&controller, "b", "down").await;
    assert_eq!(state(&controller, "a").await, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_registers_as_a_peer_hears_what_to_do() {
    let worker = alone().await;
    let file = Peers::of(&[("a", &worker.address)]);
    let controller = controller(&file.path(), "1s");
    becomes(&controller, "a", "ready").await;
    let registration = json!({
        "id": "another", "address": worker.address, "incarnation": 7, "transport": "http", "models": [],
    });
    let (status, problem) = controller.post("/register", &registration).await;
    assert_eq!((status, &problem["param"]), (400, &json!("address")), "{problem}");
    assert!(problem["message"].as_str().is_some_and(|message| message.contains("--no-register")), "{problem}");
    let body = json!({ "worker_name": worker.address, "check_heart_beat": true,
        "worker_status": { "model_names": ["m"], "speed": 1, "queue_length": 0 } });
    let (status, problem) = controller.post("/register_worker", &body).await;
    assert_eq!(status, 400, "{problem}");
    assert_eq!(state(&controller, "a").await, "ready");
}

/// Answers every connection with those bytes, or with nothing, for ever; as SSH does, without being asked.
async fn stranger(answer: Option<&'static [u8]>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Some(answer) = answer {
                if !answer.starts_with(b"SSH") {
                    let _ = stream.read(&mut [0; 1024]).await;
                }
                let _ = stream.write_all(answer).await; // who asked may have gone
            }
            held.push(stream);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_and_is_no_worker_is_down_with_the_reason_in_words() {
    let page = b"HTTP/1.1 404 Not Found\r\nServer: nginx/1.24\r\nContent-Length: 14\r\n\r\n<html>no</html>";
    let other = common::Process::start(&["controller", "--port", "0"]);
    let peers = [
        ("page", stranger(Some(page)).await, "a web page instead of a worker's words (nginx/1.24)"),
        ("ssh", stranger(Some(b"SSH-2.0-OpenSSH_9.6\r\n")).await, "speaks no HTTP"),
        ("tls", stranger(Some(b"\x15\x03\x01\0\x02\x02\x46")).await, "speaks no HTTP"),
        ("mute", stranger(None).await, "within 2 s"),
        ("controller", other.address.clone(), "but no worker (a controller?)"),
        ("nobody", "127.0.0.1:1".to_owned(), "refused"),
        ("nowhere", "no-such-host.invalid:1".to_owned(), "cannot reach"),
    ];
    let written: Vec<(&str, &str)> = peers.iter().map(|(id, address, _)| (*id, address.as_str())).collect();
    let file = Peers::of(&written);
    let controller = controller(&file.path(), "1s");
    for (id, _, reason) in &peers {
        becomes(&controller, id, "down").await;
        let errors = controller.errors();
        let of_it = |line: &&str| line.contains(DOWN) && line.contains(&format!("worker={id} "));
        let line = errors.lines().find(of_it).unwrap_or_else(|| panic!("nothing is said of {id}: {errors}"));
        assert!(line.contains(reason), "{id}: {line}");
    }
    assert_eq!(said(&controller, DOWN), peers.len(), "{}", controller.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_other_protocols_are_asked_in_their_words() {
    let native = Process::start(&["worker", "--no-register", "--port", "0", "--grpc-port", "0", "--model", CHAT]);
    let grpc = native.grpc_address().await;
    let fleet = Process::start(&["controller", "--port", "0"]);
    let registered = common::worker(&fleet.address, &["--model", CHAT]);
    let server = gateway(&fleet).await;
    let hung = stranger(None).await;
    let text = format!(
        "peers:\n  - {{id: fastchat, address: {}, transport: fastchat}}\n  - {{id: openai, address: {}, transport: openai, \
         models: [{CHAT}]}}\n  - {{id: grpc, address: {grpc}, transport: grpc, models: [{CHAT}]}}\n  \
         - {{id: hung, address: {hung}, transport: grpc, models: [{CHAT}]}}\n",
        registered.address, server.address
    );
    let file = Peers::of(&[]);
    file.write(&text);
    let controller = controller(&file.path(), "1s");
    for id in ["fastchat", "openai", "grpc"] {
        becomes(&controller, id, "ready").await;
    }
    becomes(&controller, "hung", "down").await; // it accepts, and says nothing
    let front = gateway(&controller).await;
    for fact in 0..6 {
        let (question, right) = facts::capital(fact);
        let body = common::chat_body(CHAT, &question);
        let (status, answer) = front.post("/v1/chat/completions", &body).await;
        assert_eq!(
            (status, answer["choices"][0]["message"]["content"].as_str()),
            (200, Some(right.as_str())),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reports_itself_to_its_fleet_alone() {
    let worker = Process::start(&[&ALONE[..], &["--fleet-token", "secret"]].concat());
    eventually("its models are loaded", async || common::is_ready(&worker.address).await).await;
    let ask = |token: &str| reqwest::Client::new().get(format!("{}/report", worker.address)).bearer_auth(token).send();
    assert_eq!(ask("wrong").await.expect("an answer").status().as_u16(), 401);
    let report: Value = ask("secret").await.expect("an answer").json().await.expect("JSON");
    let (registration, beat) = (&report["registration"], &report["heartbeat"]);
    assert_eq!((&registration["id"], &registration["address"]), (&json!(worker.address), &json!(worker.address)));
    assert_eq!((&registration["models"][0]["name"], &beat["load"]), (&json!(CHAT), &json!([])));
    assert_eq!(registration["incarnation"], beat["incarnation"]);
    let capabilities = &registration["capabilities"];
    assert!(capabilities["cpus"].as_u64() > Some(0) && capabilities["memory_gb"].as_f64() > Some(0.1), "{report}");
    assert!(!capabilities["gpu"].is_null(), "{report}");
}

#[test]
fn a_peers_file_is_checked_with_an_exit_code_for_scripts() {
    let file = Peers::of(&[("bench-1", "10.0.0.7:21002"), ("bench-2", "10.0.0.8:21002")]);
    let path = file.path();
    let path = path.to_str().expect("a path");
    let (status, output, errors) = common::run(&["peers", "check", path]);
    assert!(status.success(), "{errors}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], format!("{path}: 2 peers"));
    assert!(lines[1].starts_with("ID       ADDRESS"), "{output}");
    assert!(
        lines[3].starts_with("bench-2  http://10.0.0.8:21002  http") && lines[3].ends_with("64000 GB, gpu true"),
        "{output}"
    );
    file.write("peers:\n  - id: bench-1\n    address: 10.0.0.7:70000\n");
    let said = format!("{path}:3:14: port 70000, expected a port from 1 to 65535\n");
    for arguments in [&["peers", "check", path][..], &["controller", "--port", "0", "--peers", path]] {
        let (status, _, errors) = common::run(arguments);
        assert_eq!(status.code(), Some(1));
        assert!(errors.contains(&format!("\n{said}  3 |     address: 10.0.0.7:70000\n")), "{errors}");
    }
}

#[test]
fn a_controller_does_not_start_with_a_peers_file_that_is_not_there_or_names_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.yaml");
    let missing = missing.to_str().expect("a path");
    for verb in [&["controller", "--port", "0", "--peers", missing][..], &["peers", "check", missing]] {
        let (status, _, errors) = common::run(verb);
        assert_eq!(status.code(), Some(1));
        assert!(errors.contains(missing) && errors.contains("No such file"), "{errors}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    drop(listener);
    let file = Peers::of(&[("me", &format!("localhost:{port}"))]);
    let path = file.path();
    let arguments = ["controller", "--port", &port, "--peers", path.to_str().expect("a path")];
    let (status, _, errors) = common::run(&arguments);
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("is this controller itself"), "{errors}");
    let (status, _, errors) = common::run(&[&["peers", "check"], &arguments[4..]].concat());
    assert!(status.success(), "nobody knows whose it is: {errors}");
}
