//! How long connections may stay, over real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Patience, serve_requests};

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(30);

/// Serves answers of two bytes; ends when the guard is dropped.
async fn served(patience: Patience) -> (SocketAddr, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, shutdown) = (listener.local_addr().expect("an address"), CancellationToken::new());
    let answer = tower::service_fn(|_: hyper::Request<Incoming>| async {
        Ok::<_, Infallible>(hyper::Response::new(axum::body::Body::from("ok")))
    });
    tokio::spawn(serve_requests(listener, move |_| answer, shutdown.clone(), patience));
    (address, shutdown.drop_guard())
}

fn patience() -> Patience {
    Patience { head: LONG, idle: LONG, ..Patience::draining(Duration::ZERO) }
}

/// All that comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(LONG / 2, stream.read_to_end(&mut text)).await.expect("it is closed");
    read.expect("a clean end");
    String::from_utf8(text).expect("a text")
}

/// Asks, and reads the answer.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it takes a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let read = tokio::time::timeout(LONG, stream.read_buf(&mut answer)).await.expect("an answer");
        assert!(read.expect("an answer") > 0, "it is closed");
    }
}

#[tokio::test]
async fn who_asks_nothing_is_left_after_a_while_before_and_between_requests() {
    let (address, _guard) = served(Patience { idle: Duration::from_millis(50), ..patience() }).await;
    let mut silent = TcpStream::connect(address).await.expect("it listens");
    assert_eq!(rest(&mut silent).await, "");
    let mut done = TcpStream::connect(address).await.expect("it listens");
    ask(&mut done).await;
    assert_eq!(rest(&mut done).await, "");
}

#[tokio::test]
async fn who_does_not_end_a_head_is_told_so() {
    let patience = Patience { head: Duration::from_millis(50), late: "late", ..patience() };
    let (address, _guard) = served(patience).await;
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    ask(&mut stream).await;
    stream.write_all(b"GET / HT").await.expect("it takes more");
    let told = rest(&mut stream).await;
    assert!(told.starts_with("HTTP/1.1 408 ") && told.ends_with("\r\n\r\nlate"), "{told}");
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room() {
    let (address, _guard) = served(Patience { connections: 2, ..patience() }).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        ask(&mut stream).await;
        streams.push(stream);
    }
    assert_eq!(rest(&mut streams[0]).await, "");
    assert_eq!(rest(&mut streams[1]).await, "");
    ask(&mut streams[3]).await;
}
