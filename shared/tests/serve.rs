//! How long connections may stay, over real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use muster_shared::serve::{Accept, Met, Patience, serve_requests};
use muster_shared::tls::{Files, Protocols, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(30);
/// What clients get no patience for in these tests.
const SHORT: Duration = Duration::from_millis(200);
/// The piece of which long answers are made.
const PIECE: Bytes = Bytes::from_static(&[b'x'; 1024]);

/// An answer in pieces, with a pause before each.
struct Pieces {
    left: usize,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Pieces {
    fn new(left: usize, pause: Duration) -> Self {
        Self { left, pause, timer: Box::pin(sleep(pause)) }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if !self.pause.is_zero() {
            std::task::ready!(self.timer.as_mut().poll(cx));
            self.timer = Box::pin(sleep(self.pause));
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(PIECE))))
    }
}

/// Answers: `/slow` pauses for long, `/drip` for moments, `/long` never, `/hold` says nothing for ever.
async fn answer(request: hyper::Request<Incoming>) -> Result<hyper::Response<axum::body::Body>, Infallible> {
    let body = match request.uri().path() {
        "/slow" => axum::body::Body::new(Pieces::new(2, 5 * SHORT)),
        "/drip" => axum::body::Body::new(Pieces::new(20, SHORT / 4)),
        "/long" => axum::body::Body::new(Pieces::new(1 << 20, Duration::ZERO)),
        "/hold" => std::future::pending().await,
        _ => axum::body::Body::from("ok"),
    };
    Ok(hyper::Response::new(body))
}

/// Serves these answers; ends when the guard is dropped.
async fn served(patience: Patience) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, shutdown) = (listener.local_addr().expect("an address"), CancellationToken::new());
    let serving = |_| tower::service_fn(answer);
    tokio::spawn(serve_requests(listener, serving, shutdown.clone(), patience));
    (address, shutdown.drop_guard())
}

fn patience() -> Patience {
    Patience { head: LONG, idle: LONG, ..Patience::draining(Duration::ZERO) }
}

/// A connection over HTTP/2, of whose answers a kibibyte comes unread.
async fn many(address: SocketAddr) -> (SendRequest<String>, JoinHandle<hyper::Result<()>>) {
    let stream = TokioIo::new(TcpStream::connect(address).await.expect("it listens"));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).initial_stream_window_size(1024);
    let (sender, connection) = builder.handshake(stream).await.expect("it speaks HTTP/2");
    (sender, tokio::spawn(connection))
}

async fn get(sender: &mut SendRequest<String>, path: &str) -> hyper::Result<hyper::Response<Incoming>> {
    let request = hyper::Request::get(format!("http://x{path}")).body(String::new()).expect("a request");
    sender.ready().await?;
    sender.send_request(request).await
}

/// Reads an answer to its end.
async fn length(response: hyper::Response<Incoming>) -> Result<usize, axum::Error> {
    let read = axum::body::to_bytes(axum::body::Body::new(response.into_body()), usize::MAX);
    Ok(timeout(LONG, read).await.expect("an end")?.len())
}

/// All that comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = timeout(LONG / 2, stream.read_to_end(&mut text)).await.expect("it is closed");
    read.expect("a clean end");
    String::from_utf8(text).expect("a text")
}

/// Asks, and reads the answer.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it takes a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let read = timeout(LONG, stream.read_buf(&mut answer)).await.expect("an answer");
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

#[tokio::test]
async fn a_pause_of_an_answer_is_not_the_fault_of_its_client() {
    let (address, _guard) = served(Patience { stalled: SHORT, ..patience() }).await;
    let (mut sender, _connection) = many(address).await;
    let answer = get(&mut sender, "/slow").await.expect("an answer");
    assert_eq!(length(answer).await.expect("a whole answer"), 2 * PIECE.len());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_alone() {
    let (address, _guard) = served(Patience { stalled: 2 * SHORT, ..patience() }).await;
    let (mut sender, _connection) = many(address).await;
    let unread = get(&mut sender, "/long").await.expect("an answer");
    let read = get(&mut sender, "/drip").await.expect("an answer");
    assert_eq!(length(read).await.expect("a whole answer"), 20 * PIECE.len());
    length(unread).await.expect_err("it is cut off");
    let again = get(&mut sender, "/").await.expect("an answer");
    assert_eq!(length(again).await.expect("a whole answer"), 2);
}

#[tokio::test]
async fn a_connection_ends_with_the_only_answer_on_it_that_nobody_reads() {
    let (address, _guard) = served(Patience { stalled: SHORT, ..patience() }).await;
    let (mut sender, connection) = many(address).await;
    let _unread = get(&mut sender, "/long").await.expect("an answer");
    let _ = timeout(LONG / 2, connection).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn who_asks_nothing_more_over_http_2_is_told_to_go() {
    let (address, _guard) = served(Patience { idle: SHORT, ..patience() }).await;
    let (mut sender, connection) = many(address).await;
    let answer = get(&mut sender, "/drip").await.expect("an answer");
    assert_eq!(length(answer).await.expect("a whole answer"), 20 * PIECE.len());
    timeout(LONG / 2, connection).await.expect("it ends").expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn half_a_head_over_http_2_is_not_waited_for() {
    let (address, _guard) = served(Patience { idle: SHORT, head: SHORT, ..patience() }).await;
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // GET, http, `/`, and `x` for the authority.
    let ask: &[u8] = &[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'x'];
    let half: &[u8] = &[0, 0, 100, 1, 5, 0, 0, 0, 3, 0x82];
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings, ask, half].concat();
    stream.write_all(&sent).await.expect("it takes that");
    let mut told = Vec::new();
    let read = timeout(LONG / 2, stream.read_to_end(&mut told)).await.expect("it is closed");
    read.expect("a clean end");
    assert!(told.windows(2).any(|two| two == b"ok"), "the whole request is answered: {told:?}");
}

#[tokio::test]
async fn the_only_idle_connection_among_many_makes_room() {
    const MANY: usize = 150;
    let (address, _guard) = served(Patience { connections: MANY, ..patience() }).await;
    let mut busy = Vec::new();
    for _ in 1..MANY {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // The first answer says that it is there, the second never comes.
        ask(&mut stream).await;
        stream.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it takes a request");
        busy.push(stream);
    }
    for _ in 0..10 {
        let mut idle = TcpStream::connect(address).await.expect("it listens");
        ask(&mut idle).await;
        let mut new = TcpStream::connect(address).await.expect("it listens");
        ask(&mut new).await;
        assert_eq!(rest(&mut idle).await, "");
    }
}

/// Connections, with a sign when one more is waited for.
struct Told(TcpListener, Arc<Notify>);

impl Accept for Told {
    async fn accept(&mut self) -> std::io::Result<TcpStream> {
        self.1.notify_one();
        Accept::accept(&mut self.0).await
    }
}

#[tokio::test]
async fn half_a_handshake_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
    std::fs::write(&cert, made.cert.pem()).expect("it is written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("it is written");
    let tls = Tls::load(Files { cert: Some(cert), key: Some(key), ..Files::default() }).expect("good files");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, waits) = (listener.local_addr().expect("an address"), Arc::new(Notify::new()));
    let door = Met { door: Told(listener, Arc::clone(&waits)), acceptor: tls.acceptor(Protocols::Http) };
    let shutdown = CancellationToken::new();
    let patience = Patience { drain: LONG, ..patience() };
    let serving = serve_requests(door, |_| tower::service_fn(answer), shutdown.clone(), patience);
    let serving = tokio::spawn(serving);
    waits.notified().await;
    let mut half = TcpStream::connect(address).await.expect("it listens");
    half.write_all(&[22, 3, 1, 2, 0]).await.expect("it takes that");
    waits.notified().await; // for the next one: this one is met
    shutdown.cancel();
    timeout(Duration::from_secs(5), serving).await.expect("it ends at once").expect("no panic");
}
