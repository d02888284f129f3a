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

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use case::{Case, Target};
use common::{CHAT, Cluster, Process, eventually, gateway, is_ready};
use serde_json::json;

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

/// A request that must succeed.
async fn good(gateway: &Process) {
    let body = json!({ "model": CHAT, "prompt": "x", "max_tokens": 1, "temperature": 0 });
    let (status, answer) = gateway.post("/v1/completions", &body).await;
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
