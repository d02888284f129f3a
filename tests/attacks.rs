//! What hostile clients send, from raw sockets to real processes: each case gets its answer in its time, costs no more
//! memory than it may, and the next good request succeeds.
//!
//! `cargo nextest run --test attacks --no-capture` prints what each case got, took and cost.

#[path = "tls/authority.rs"]
#[allow(dead_code, reason = "the tests of TLS use more of it")]
mod authority;
#[path = "attacks/bodies.rs"]
mod bodies;
#[path = "attacks/case.rs"]
mod case;
mod common;
#[path = "attacks/grpc.rs"]
mod grpc;
#[path = "attacks/http1.rs"]
mod http1;
#[path = "attacks/http2.rs"]
mod http2;
#[path = "attacks/services.rs"]
mod services;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use case::{Case, Expected, Target};
use common::{CHAT, Cluster, Process, eventually, gateway, is_ready};
use serde_json::{Value, json};

/// A gateway that loses its patience soon, before a real fleet.
async fn impatient(cluster: &Cluster, more: &[&str]) -> Process {
    let flags = ["--head-timeout", "1s", "--body-timeout", "1s", "--client-timeout", "2s"];
    let gateway = gateway(&cluster.controller.address, &[&flags[..], more].concat());
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
    gateway
}

/// Does what the cases say, one after the other.
async fn suffer(target: &Process, path: &'static str, cases: Vec<Case>) {
    let target = Target { address: target.address.clone(), process: target.id(), path };
    tokio::task::spawn_blocking(move || target.suffer_all(cases)).await.expect("every case is as it should be");
}

fn good_body() -> Value {
    json!({ "model": CHAT, "prompt": "x", "max_tokens": 1, "temperature": 0 })
}

/// A request that must succeed.
async fn good(gateway: &Process) {
    let (status, answer) = gateway.post("/v1/completions", &good_body()).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_survives_bodies() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = impatient(&cluster, &["--idle-timeout", "2s"]).await;
    good(&gateway).await;
    suffer(&gateway, "/v1/completions", bodies::cases(CHAT)).await;
    good(&gateway).await;
}

/// What a key may use is told from a body before anybody else looks at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_limits_survives_bodies() {
    const KEY: &str = "a-key-of-a-test";
    let cluster = Cluster::start(&[&[]]).await;
    let mut keys = tempfile::NamedTempFile::new().expect("a file");
    let limits = format!("models: [{CHAT}], tokens_per_minute: 1000000000, max_streams: 4, rate: off");
    write!(keys, "keys:\n  - {{name: tester, key: {KEY}, {limits}}}\n").expect("it is written");
    let file = keys.path().to_str().expect("a path of letters");
    let gateway = impatient(&cluster, &["--idle-timeout", "2s", "--api-key-file", file]).await;
    let keyed = bodies::cases(CHAT).into_iter().map(|case| case.with_key(KEY)).collect();
    suffer(&gateway, "/v1/completions", keyed).await;
    let last = Case::new("a good one", case::post("/v1/completions", "", good_body().to_string()), Expected::Good);
    suffer(&gateway, "/v1/completions", vec![last.with_key(KEY)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes_keep_nobody_out_of_a_gateway_nor_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("it is written");
        path.to_str().expect("a path of letters").to_owned()
    };
    let (cert, key) = (file("cert", &made.cert.pem()), file("key", &made.signing_key.serialize_pem()));
    let cluster = Cluster::start(&[&[]]).await;
    let flags = ["--max-connections", "100", "--tls-cert", &cert, "--tls-key", &key];
    let mut gateway = gateway(&cluster.controller.address, &flags);
    let address = gateway.address.strip_prefix("https://").expect("an address with TLS").to_owned();
    let client = || {
        let builder = reqwest::Client::builder().danger_accept_invalid_certs(true);
        builder.build().expect("a client").get(format!("https://{address}/v1/models"))
    };
    eventually("the gateway has models", async || {
        client().send().await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    let half: Vec<TcpStream> = (0..2000)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).expect("it takes connections");
            let _ = stream.write_all(&[22, 3, 1, 2, 0]); // it may be closed already
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(client().send().await.expect("an answer").status(), 200);
    }
    gateway.signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(8), gateway.ended()).await;
    assert!(ended.expect("half a handshake is not waited for").success());
    drop(half);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_survives_requests_that_are_hardly_any() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = impatient(&cluster, &["--idle-timeout", "2s"]).await;
    suffer(&gateway, "/v1/completions", http1::cases(CHAT)).await;
    good(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_survives_floods_of_frames() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = impatient(&cluster, &["--idle-timeout", "2s"]).await;
    http2::wait_for_bodies(&gateway).await;
    http2::suffer(&gateway).await;
    good(&gateway).await;
    eventually("no ticket is left", async || cluster.tickets().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_and_workers_survive_what_reaches_them() {
    let cluster = Cluster::start(&[&[]]).await;
    suffer(&cluster.controller, "/register", services::of_a_controller()).await;
    suffer(&cluster.workers[0], "/generate", services::of_a_worker()).await;
    good(&cluster.gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_for_new_ones() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = impatient(&cluster, &["--idle-timeout", "1h", "--max-connections", "20"]).await;
    let address = gateway.address.strip_prefix("http://").expect("an address").to_owned();
    let mut idle: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(&address).expect("it takes connections")).collect();
    let open = |idle: &mut Vec<TcpStream>| {
        idle.retain_mut(|stream| {
            stream.set_nonblocking(true).expect("a socket");
            !matches!(stream.read(&mut [0]), Ok(0))
        });
        idle.len()
    };
    eventually("no more are open than may be", async || open(&mut idle) <= 20).await;
    for _ in 0..50 {
        good(&gateway).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = impatient(&cluster, &["--idle-timeout", "2s"]).await;
    let address = gateway.address.strip_prefix("http://").expect("an address").to_owned();
    let closed = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("it takes connections");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let begun = Instant::now();
        (stream.read(&mut [0]).expect("it is closed"), begun.elapsed())
    });
    let (read, taken) = closed.await.expect("no panic");
    assert_eq!(read, 0);
    assert!(taken > Duration::from_secs(1), "it had two seconds, and was closed after {taken:?}");
}
