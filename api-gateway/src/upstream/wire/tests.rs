//! Workers that keep the protocol, and workers that do not. Each test plays the worker by hand.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// A worker's listener, and the gateway's connections to it.
async fn worker() -> (TcpListener, Pool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, Pool::new(&address, PATIENCE))
}

/// A worker that reads one request over a new connection, sends this, and closes.
async fn worker_that_sends(bytes: impl Into<Vec<u8>>) -> (Pool, JoinHandle<()>) {
    let (listener, pool) = worker().await;
    let bytes = bytes.into();
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        stream.write_all(&bytes).await.expect("the gateway reads");
    });
    (pool, playing)
}

async fn in_time<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it happens in time")
}

async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.expect("a connection").0
}

/// Reads a request without a body; gives its head.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.expect("the gateway lives") > 0, "half a request: {head:?}");
    }
    String::from_utf8(head).expect("text")
}

/// Waits until the gateway closes a connection.
async fn hung_up(mut stream: TcpStream) {
    while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
}

async fn ask(pool: &Pool) -> Result<(Response<()>, Answer), WireError> {
    in_time(pool.send(Request::post("/v1/x").body(Full::default()).expect("a request"))).await
}

/// A body to its end or to an error.
async fn read(answer: &mut Answer) -> (String, Result<(), WireError>) {
    let mut body = String::new();
    loop {
        match in_time(answer.data()).await {
            None => return (body, Ok(())),
            Some(Ok(data)) => body.push_str(std::str::from_utf8(&data).expect("text")),
            Some(Err(error)) => return (body, Err(error)),
        }
    }
}

/// Asks, reads the whole answer, and keeps the connection if it can be used again.
async fn ask_and_keep(pool: &Pool) -> String {
    let (_, mut answer) = ask(pool).await.expect("an answer");
    let (body, end) = read(&mut answer).await;
    end.expect("it is whole");
    if let Some(connection) = answer.into_connection() {
        pool.give_back(connection);
    }
    body
}

fn is_broken<T>(result: Result<T, WireError>) -> bool {
    matches!(result, Err(WireError::Broken(_)))
}

#[tokio::test]
async fn a_kept_connection_is_used_again() {
    let (listener, pool) = worker().await;
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        let chunked = format!("{CHUNKED}2\r\nhi\r\n0\r\n\r\n");
        for answer in [WHOLE, &chunked, &chunked, WHOLE] {
            let head = read_request(&mut stream).await;
            assert!(head.starts_with("POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:"), "{head}");
            stream.write_all(answer.as_bytes()).await.expect("the gateway reads");
        }
        stream
    });
    for _ in 0..4 {
        assert_eq!(ask_and_keep(&pool).await, "hi");
    }
    let _open = in_time(playing).await.expect("four requests over one connection");
}

#[tokio::test]
async fn a_kept_connection_that_the_worker_closes_is_replaced_without_an_error() {
    for closes_on_the_request in [false, true] {
        let (listener, pool) = worker().await;
        let playing = tokio::spawn(async move {
            let mut stream = accept(&listener).await;
            read_request(&mut stream).await;
            stream.write_all(WHOLE.as_bytes()).await.expect("the gateway reads");
            if closes_on_the_request {
                read_request(&mut stream).await;
            }
            drop(stream);
            let mut stream = accept(&listener).await;
            read_request(&mut stream).await;
            stream.write_all(WHOLE.as_bytes()).await.expect("the gateway reads");
        });
        assert_eq!(ask_and_keep(&pool).await, "hi");
        assert_eq!(ask_and_keep(&pool).await, "hi");
        in_time(playing).await.expect("two connections");
    }
}

#[tokio::test]
async fn a_dead_worker_is_told_from_one_that_breaks_off() {
    let (listener, pool) = worker().await;
    drop(listener);
    assert!(matches!(ask(&pool).await, Err(WireError::Connect(_))));
    for address in ["https://127.0.0.1:1", "127.0.0.1:1", "http://", "nonsense"] {
        let refused = ask(&Pool::new(address, PATIENCE)).await;
        assert!(matches!(refused, Err(WireError::Connect(_))), "{address}");
    }
    let (pool, _playing) = worker_that_sends("").await;
    assert!(is_broken(ask(&pool).await), "it was reached, and may have begun");
}

#[tokio::test]
async fn an_answer_that_ends_early_is_broken_whatever_came_before() {
    let cases = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".to_owned(), "hello"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".to_owned(), ""),
        (format!("{CHUNKED}5\r\nhello\r\n"), "hello"),
        (format!("{CHUNKED}5\r\nhello\r\n5\r\nwor"), "hellowor"),
        (format!("{CHUNKED}5\r\nhello\r\nnonsense\r\n"), "hello"),
    ];
    for (bytes, body) in cases {
        let (pool, _playing) = worker_that_sends(bytes.clone()).await;
        let (_, mut answer) = ask(&pool).await.expect("a head");
        let (read, end) = read(&mut answer).await;
        assert!(is_broken(end), "{bytes:?}");
        assert_eq!(read, body, "{bytes:?}");
        assert!(answer.into_connection().is_none(), "{bytes:?}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let (pool, _playing) = worker_that_sends("HTTP/1.0 200 OK\r\n\r\nhello").await;
    let (_, mut answer) = ask(&pool).await.expect("a head");
    let (body, end) = read(&mut answer).await;
    end.expect("it is whole");
    assert_eq!(body, "hello");
    assert!(answer.into_connection().is_none());
}

#[tokio::test]
async fn what_is_not_http_is_broken() {
    for bytes in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "\0\0\0\0\0\0\0\0",
        "HTTP/1.1 two hundred\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: x\r\n\r\n",
    ] {
        let (pool, _playing) = worker_that_sends(bytes).await;
        assert!(is_broken(ask(&pool).await), "{bytes:?}");
    }
}

#[tokio::test]
async fn heads_that_are_too_long_are_refused() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1));
    let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(HEAD));
    for bytes in [many, long] {
        let (pool, _playing) = worker_that_sends(bytes).await;
        assert!(is_broken(ask(&pool).await));
    }
    let (listener, pool) = worker().await;
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.expect("the gateway reads");
        while stream.write_all(b"a: b\r\n").await.is_ok() {}
    });
    assert!(is_broken(ask(&pool).await));
    in_time(playing).await.expect("an endless head ends by the gateway's closing the connection");
}

#[tokio::test]
async fn an_answer_that_is_dropped_midway_closes_the_connection() {
    let (listener, pool) = worker().await;
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        stream.write_all(format!("{CHUNKED}1\r\na\r\n").as_bytes()).await.expect("the gateway reads");
        hung_up(stream).await;
    });
    let (_, mut answer) = ask(&pool).await.expect("a head");
    let first = in_time(answer.data()).await.expect("a piece").expect("it goes on");
    assert_eq!(first, "a");
    drop(answer);
    in_time(playing).await.expect("the worker hears of it");
}

#[tokio::test]
async fn a_request_that_is_dropped_before_its_answer_closes_the_connection() {
    let (listener, pool) = worker().await;
    let (asked, hears) = tokio::sync::oneshot::channel();
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        asked.send(()).expect("the test listens");
        hung_up(stream).await;
    });
    tokio::select! {
        _ = ask(&pool) => panic!("nobody answers"),
        asked = hears => asked.expect("it was asked"),
    }
    in_time(playing).await.expect("the worker hears of it");
}

#[tokio::test]
async fn chunks_that_are_there_together_come_as_one_piece() {
    let (listener, pool) = worker().await;
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_request(&mut stream).await;
        let together = format!("{CHUNKED}1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n");
        stream.write_all(together.as_bytes()).await.expect("the gateway reads");
        stream
    });
    let (_, mut answer) = ask(&pool).await.expect("a head");
    assert_eq!(in_time(answer.data()).await.expect("a piece").expect("it goes on"), "abcd");
    let mut stream = in_time(playing).await.expect("no panic");
    stream.write_all(b"1\r\ne\r\n0\r\n\r\n").await.expect("the gateway reads");
    assert_eq!(in_time(answer.data()).await.expect("a piece").expect("it goes on"), "e");
    assert!(in_time(answer.data()).await.is_none());
    assert!(answer.into_connection().is_some(), "it was read to its end");
}

#[tokio::test]
async fn a_connection_is_kept_only_where_it_can_be_used_again() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        format!("{WHOLE}and more that nobody asked for"),
    ] {
        let (pool, _playing) = worker_that_sends(bytes.clone()).await;
        let (_, mut answer) = ask(&pool).await.expect("a head");
        let (body, _) = read(&mut answer).await;
        if let Some(connection) = answer.into_connection() {
            pool.give_back(connection);
        }
        assert_eq!((body.as_str(), pool.take().is_none()), ("hi", true), "{bytes:?}");
    }
    let (pool, _playing) = worker_that_sends(WHOLE).await;
    let (_, answer) = ask(&pool).await.expect("a head");
    assert!(answer.into_connection().is_none(), "its body was not read");
}

#[tokio::test]
async fn a_path_before_ours_is_kept() {
    let (listener, _) = worker().await;
    let pool = Pool::new(&format!("http://{}/prefix/", listener.local_addr().expect("an address")), PATIENCE);
    let playing = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        let head = read_request(&mut stream).await;
        stream.write_all(WHOLE.as_bytes()).await.expect("the gateway reads");
        head
    });
    assert_eq!(ask_and_keep(&pool).await, "hi");
    let head = in_time(playing).await.expect("no panic");
    assert!(head.starts_with("POST /prefix/v1/x HTTP/1.1\r\n"), "{head}");
}
