//! What hostile clients send to the ports that speak gRPC, of gateways and workers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use muster_shared::client::ClientError;
use muster_shared::generate::{GenerateRequest, Prompt};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient, STREAMED};
use muster_shared::problem::Kind;
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use reqwest::Method;
use serde_json::json;

use super::authority::{Authority, HERE};
use super::case::Target;
use super::common::{PATIENCE, Process, eventually, gateway, is_ready};
use super::http2::{END_HEADERS, END_STREAM, HEADERS, PREFACE, RESET, SETTINGS, field, frame};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const GENERATE: &str = "/muster.v1.Worker/Generate";
/// The beginning of a message of 8 MB, of which the rest does not come.
const BEGUN: &[u8] = &[0, 0, 0x7f, 0xff, 0xff, 7, 7, 7];
/// Most memory that a case may cost, in KiB.
const GROWS: u64 = 96 << 10;
const KEY: &str = "the key";

/// The head of a call.
fn head(path: &str, key: Option<&str>) -> Vec<u8> {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let key = bearer.iter().map(|bearer| ("authorization", &**bearer));
    fields.into_iter().chain(key).flat_map(|(name, value)| field(name, value)).collect()
}

/// A call whose message begins and does not end.
fn unfinished(id: u32, path: &str, key: Option<&str>) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, id, &head(path, key)), frame(0, 0, id, BEGUN)].concat()
}

/// What came, and after which time, up to a head that ends its stream or to the end of the connection.
struct Heard {
    answered: bool,
    closed: bool,
    taken: Duration,
}

/// Connects, says that, and listens.
fn say(host: &str, words: &[u8]) -> Heard {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(host).expect("it takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut writer = stream.try_clone().expect("a socket");
    let words = words.to_vec();
    let sending = std::thread::spawn(move || writer.write_all(&words));
    let (mut answered, mut closed) = (false, false);
    let mut frame = [0; 9];
    while !answered && !closed {
        closed = match stream.read_exact(&mut frame) {
            Ok(()) => {
                let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
                std::io::copy(&mut (&mut stream).take(length.into()), &mut std::io::sink()).is_err()
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                break;
            }
            Err(_) => true,
        };
        answered = !closed && (frame[3], frame[4] & END_STREAM) == (HEADERS, END_STREAM);
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = sending.join();
    Heard { answered, closed, taken: begun.elapsed() }
}

/// A connection over HTTP/2 that says that.
fn speak(host: &str, frames: &[u8]) -> Heard {
    say(host, &[PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat())
}

async fn target(process: &Process) -> Target {
    Target { address: process.grpc_address().await, process: process.id(), path: "" }
}

/// Does it beside the runtime.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it is as it should be")
}

fn client(address: &str, key: Option<&str>, tls: Option<&Tls>) -> GrpcWorkerClient {
    let pool = tls.map_or_else(|| GrpcPool::new(PATIENCE), |tls| GrpcPool::of_fleet(tls, PATIENCE));
    GrpcWorkerClient::new(pool, address, key.map(Secret::new).as_ref(), PATIENCE)
}

fn kind<T>(result: Result<T, ClientError>) -> Option<Kind> {
    match result {
        Ok(_) => None,
        Err(ClientError::Refused { problem, .. }) => Some(problem.kind),
        Err(error) => panic!("{error:?}"),
    }
}

/// What both services must bear without a key, and quickly: nothing that comes after a head is waited for.
fn strangers(target: &Target, path: &str) {
    let host = target.host();
    for key in [None, Some("another key")] {
        let heard = speak(host, &unfinished(1, path, key));
        assert!(heard.answered, "a stranger is told at once, whatever it has not sent");
        assert!(heard.taken < Duration::from_secs(5), "{:?}", heard.taken);
    }
    let heard = say(host, &[0xff; 1 << 16]);
    assert!(heard.closed && heard.taken < Duration::from_secs(5), "what is no HTTP/2 is not listened to");
    let (heard, text) = old(host, path);
    assert!(text.starts_with("HTTP/1.1 505 ") && text.ends_with("this port speaks gRPC, over HTTP/2\n"), "{text}");
    assert!(heard < Duration::from_secs(5), "{heard:?}");
    let before = target.memory("VmRSS");
    let floods: [Vec<u8>; 2] = [
        (0..10_000).flat_map(|id| unfinished(2 * id + 1, path, None)).collect(),
        (0..10_000)
            .flat_map(|id| {
                let reset = frame(RESET, 0, 2 * id + 1, &8u32.to_be_bytes());
                [frame(HEADERS, END_HEADERS, 2 * id + 1, &head(path, None)), reset].concat()
            })
            .collect(),
    ];
    for flood in floods {
        let mut stream = TcpStream::connect(host).expect("it takes connections");
        stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let words = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &flood].concat();
        let _ = stream.write_all(&words); // it may have heard enough
        let heard = speak(host, &unfinished(1, path, None));
        assert!(heard.answered && heard.taken < Duration::from_secs(5), "others are served: {:?}", heard.taken);
        let more = target.memory("VmHWM").saturating_sub(before);
        println!("10^4 calls of a stranger to {path}: {more} KiB more");
        assert!(more < GROWS, "{more} KiB more");
    }
}

/// A request of HTTP/1, and what it hears.
fn old(host: &str, path: &str) -> (Duration, String) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(host).expect("it takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text");
    (begun.elapsed(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_reads_no_message_of_a_stranger_over_grpc() {
    let flags = ["--grpc-port", "0", "--api-key", KEY, "--body-timeout", "1h", "--rate-limit", "off"];
    let gateway = gateway("http://127.0.0.1:9", &flags);
    let target = target(&gateway).await;
    let address = target.address.clone();
    beside(move || {
        strangers(&target, INFER);
        strangers(&target, STREAMED);
    })
    .await;
    let refused = gateway.metric("muster_gateway_requests_total{route=\"infer\",status=\"401\"}").await;
    assert!(refused >= 8.0, "what is refused at the door is counted: {refused}");
    assert_eq!(kind(client(&address, None, None).repository_index().await), Some(Kind::BadKey));
    assert!(matches!(kind(client(&address, Some(KEY), None).repository_index().await), Some(Kind::NoWorker) | None));
    let lines = gateway.errors();
    assert!(lines.contains("bad_key"), "what is refused at the door has its line: {lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_no_message_of_a_stranger_over_grpc() {
    let flags = ["worker", "--no-register", "--port", "0", "--grpc-port", "0", "--model", "fake"];
    let worker = Process::start(&[&flags[..], &["--fleet-token", KEY]].concat());
    eventually("it is ready", async || is_ready(&worker.address).await).await;
    let target = target(&worker).await;
    let address = target.address.clone();
    beside(move || strangers(&target, GENERATE)).await;
    let question = GenerateRequest::new("fake", Prompt::Text("hi".to_owned()));
    let events = client(&address, Some(KEY), None).generate(&question).await.expect("accepted");
    assert!(events.collect::<Vec<_>>().await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_waits_for_no_one_over_grpc() {
    let flags = ["--grpc-port", "0", "--api-key", KEY, "--body-timeout", "1s", "--idle-timeout", "2s"];
    let gateway = gateway("http://127.0.0.1:9", &flags);
    let target = target(&gateway).await;
    beside(move || {
        let soon = Duration::from_millis(500)..Duration::from_secs(10);
        for path in [INFER, STREAMED] {
            let heard = speak(target.host(), &unfinished(1, path, Some(KEY)));
            assert!(heard.taken > soon.start && heard.taken < soon.end, "{path}: {:?}", heard.taken);
            assert!(heard.answered, "{path}: its call is ended, and told so");
        }
        let head = frame(HEADERS, END_HEADERS, 1, &head(INFER, Some(KEY)));
        let heard = speak(target.host(), &head);
        assert!(heard.answered && soon.contains(&heard.taken), "a message that does not begin: {:?}", heard.taken);
        for words in [&b""[..], &PREFACE[..9], PREFACE] {
            let heard = say(target.host(), words);
            assert!(heard.closed && soon.contains(&heard.taken), "{words:?}: {:?}", heard.taken);
        }
    })
    .await;
    let slow = gateway.metric("muster_gateway_requests_total{route=\"infer\",status=\"408\"}").await;
    assert!(slow >= 3.0, "{slow} were too slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_end_do_not_shut_the_port_of_grpc() {
    muster_shared::serve::connections(1); // as many files as there may be, for this process
    let ours = Authority::new("ours");
    ours.make("service", &HERE);
    let flags = ours.open_flags("service");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let gateway = Process::start(&[&["gateway", "--port", "0", "--grpc-port", "0"], &flags[..]].concat());
    let address = gateway.grpc_address().await;
    let host = address.strip_prefix("https://").expect("it speaks TLS").to_owned();
    let silent: Vec<TcpStream> = beside(move || {
        let connect = |number: usize| {
            let mut stream = TcpStream::connect(&host).expect("it takes connections");
            // A record of the handshake that has only begun, or not even that.
            stream.write_all(if number.is_multiple_of(2) { &[22, 3, 1, 1, 0] } else { b"" }).expect("it is taken");
            stream
        };
        (0..2000).map(connect).collect()
    })
    .await;
    let begun = Instant::now();
    let tls = ours.client(None);
    let answered = kind(client(&address, None, Some(&tls)).repository_index().await);
    assert!(matches!(answered, None | Some(Kind::NoWorker)), "{answered:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(silent);
}

/// An address of this machine that is not its own alone; none where it has no network. Nothing is sent.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_tried_one_after_the_other() {
    let flags = ["--api-key", KEY, "--host", "0.0.0.0", "--rate-limit", "1/h", "--rate-burst", "3"];
    let gateway = gateway("http://127.0.0.1:9", &[&flags[..], &["--grpc-port", "0"]].concat());
    let Some(outer) = outer_address() else { return eprintln!("this machine has no network: nothing is tried") };
    let port = |address: &str| address.rsplit(':').next().expect("a port").to_owned();
    let [http, grpc] = [&gateway.address, &gateway.grpc_address().await].map(|address| port(address));
    let ask = async |host: &str, key: &str, path: &str| {
        let method = if path == "/v1/models" { Method::GET } else { Method::POST };
        let request = reqwest::Client::new().request(method, format!("http://{host}:{http}{path}"));
        let request = request.bearer_auth(key).json(&json!({}));
        request.send().await.expect("an answer").status().as_u16()
    };
    let outer = outer.to_string();
    for path in ["/v1/completions", "/v1/models"] {
        assert_eq!(ask("127.0.0.1", "wrong", path).await, 401);
    }
    let mut statuses = Vec::new();
    for path in ["/v1/completions", "/v1/models", "/v1/completions", "/v1/models", "/v1/completions"] {
        statuses.push(ask(&outer, "wrong", path).await);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 429], "whoever tries keys is slowed");
    let wrong = client(&format!("http://{outer}:{grpc}"), Some("wrong"), None);
    assert_eq!(kind(wrong.repository_index().await), Some(Kind::RateLimited), "by whichever port");
    assert_eq!(ask(&outer, KEY, "/v1/completions").await, 400, "a good key from there is not held up");
}
