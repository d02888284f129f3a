//! Workers that send whatever bytes a test wants, whether they are HTTP or not.

use std::future::pending;
use std::sync::{Arc, Mutex};

use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

use super::{Named, in_time};

/// The head of a stream of server-sent events, whose chunks follow.
pub(crate) const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
/// The end of a body in chunks.
pub(crate) const END: &str = "0\r\n\r\n";

/// What a server does next.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes again and again, until the other side closes the connection.
    Flood(Vec<u8>),
    /// Waits until this is rung.
    Await(Arc<Notify>),
    /// Closes the connection.
    Close,
    /// Does nothing, until the other side closes the connection.
    Hang,
}

/// Sends text.
pub(crate) fn send(text: impl Into<Vec<u8>>) -> Act {
    Act::Send(text.into())
}

/// A whole answer.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A whole answer in JSON.
pub(crate) fn json(status: &str, body: &str) -> Vec<u8> {
    answer(status, "content-type: application/json\r\n", body)
}

/// One chunk of a body.
pub(crate) fn chunk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A stream of OpenAI's events, each in a chunk of its own, without its end.
pub(crate) fn stream(data: &[&str]) -> Vec<u8> {
    let chunks = data.iter().flat_map(|data| chunk(format!("data: {data}\n\n")));
    STREAM.bytes().chain(chunks).collect()
}

/// A stream of our own events, each in a chunk of its own, without its end.
pub(crate) fn events(events: &[Event]) -> Vec<u8> {
    STREAM.bytes().chain(events.iter().flat_map(|event| chunk(json_event(event)))).collect()
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The body of a request in our own words.
    pub(crate) fn generate(&self) -> GenerateRequest {
        serde_json::from_slice(&self.body).expect("a request to generate")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A server that does with its nth request what the nth script says, and with all after the last script the same.
pub(crate) struct Raw {
    pub(crate) address: String,
    /// Told whenever the other side has closed a connection over which there was more to say.
    closed: mpsc::Receiver<()>,
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Vec<Vec<Act>>,
    asked: Mutex<Vec<Asked>>,
    connections: Mutex<usize>,
    closed: mpsc::Sender<()>,
}

impl Raw {
    /// One script for each request.
    pub(crate) async fn start(scripts: impl IntoIterator<Item = Vec<Act>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, closed) = mpsc::channel(64);
        let shared = Arc::new(Shared {
            scripts: scripts.into_iter().collect(),
            asked: Mutex::default(),
            connections: Mutex::default(),
            closed: sender,
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *serving.connections.lock().expect("no panic while holding it") += 1;
                let serving = Arc::clone(&serving);
                tokio::spawn(async move { serving.serve(stream).await });
            }
        });
        Self { address, closed, shared }
    }

    /// The same with every request.
    pub(crate) async fn always(acts: impl IntoIterator<Item = Act>) -> Self {
        Self::start([acts.into_iter().collect()]).await
    }

    /// As a controller names it.
    pub(crate) fn named(&self, transport: Transport) -> Named {
        Named { address: self.address.clone(), transport }
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("no panic while holding it").clone()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().expect("no panic while holding it")
    }

    /// Waits until the other side closes a connection over which there was more to say.
    pub(crate) async fn hung_up(&mut self) {
        in_time(self.closed.recv()).await.expect("it runs");
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut unread = Vec::new();
        loop {
            let asked = read_request(&mut stream, &mut unread).await?;
            let nth = {
                let mut all = self.asked.lock().expect("no panic while holding it");
                all.push(asked);
                all.len() - 1
            };
            let script = self.scripts.get(nth).or(self.scripts.last()).cloned().unwrap_or_default();
            for act in script {
                match act {
                    Act::Send(bytes) => {
                        if stream.write_all(&bytes).await.is_err() {
                            self.hear_close().await;
                        }
                    }
                    Act::Flood(bytes) => {
                        while stream.write_all(&bytes).await.is_ok() {}
                        self.hear_close().await;
                    }
                    Act::Await(bell) => bell.notified().await,
                    Act::Close => return None,
                    Act::Hang => {
                        while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
                        self.hear_close().await;
                    }
                }
            }
        }
    }

    async fn hear_close(&self) {
        let _ = self.closed.send(()).await; // the test may be over
        pending::<()>().await;
    }
}

/// One request with its body; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<Asked> {
    let head = loop {
        if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, unread).await?;
    };
    let mut asked = Asked { head: String::from_utf8_lossy(&unread[..head]).into_owned(), body: Vec::new() };
    let length = asked.header("content-length").map_or(0, |length| length.parse().expect("a number"));
    while unread.len() < head + length {
        more(stream, unread).await?;
    }
    asked.body = unread[head..head + length].to_vec();
    unread.drain(..head + length);
    Some(asked)
}

async fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(unread).await.ok()?;
    (read > 0).then_some(())
}
