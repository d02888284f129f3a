//! One thing that a client does, and what must come of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest answer that is read.
const ANSWER: usize = 1 << 20;

/// What a client sends.
pub(crate) enum Piece {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The same bytes so many times.
    Repeat(Vec<u8>, usize),
    /// A byte now and then, until the other side has had enough.
    Drip(u8, Duration),
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One of these statuses, with an error in OpenAI's shape.
    Refused(&'static [u16]),
    /// One of these statuses; hyper answers by itself and says no more.
    Bare(&'static [u16]),
    /// A good answer.
    Good,
    /// Nothing, and the connection is closed.
    Closed,
    /// One of these statuses with a problem of ours.
    Problem(&'static [u16]),
}

impl Expected {
    fn is_met(self, status: Option<u16>, answer: &str) -> bool {
        let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(answer);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let one_of = |statuses: &[u16]| status.is_some_and(|status| statuses.contains(&status));
        let error = &body["error"];
        match self {
            Self::Refused(statuses) => one_of(statuses) && error["message"].is_string() && error["type"].is_string(),
            Self::Problem(statuses) => one_of(statuses) && body["kind"].is_string() && body["message"].is_string(),
            Self::Bare(statuses) => one_of(statuses),
            Self::Good => one_of(&[200]),
            Self::Closed => status.is_none(),
        }
    }
}

/// One case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) send: Vec<Piece>,
    pub(crate) expected: Expected,
    /// From the first byte to the answer.
    pub(crate) within: Duration,
    /// Most memory that the process may take more meanwhile, in MiB.
    pub(crate) grows: u64,
    /// Words that the answer must hold.
    pub(crate) says: &'static str,
}

impl Case {
    pub(crate) fn new(name: &'static str, send: impl Into<Vec<u8>>, expected: Expected) -> Self {
        let (within, grows) = (Duration::from_secs(15), 64);
        Self { name, send: vec![Piece::Bytes(send.into())], expected, within, grows, says: "" }
    }

    /// Then this.
    pub(crate) fn then(mut self, piece: Piece) -> Self {
        self.send.push(piece);
        self
    }

    /// The same from a client with a key, whose limits may refuse it before anybody else does.
    pub(crate) fn with_key(mut self, key: &str) -> Self {
        if let Some(Piece::Bytes(head)) = self.send.first_mut() {
            let line = head.windows(2).position(|two| two == b"\r\n").map_or(0, |end| end + 2);
            head.splice(line..line, format!("authorization: Bearer {key}\r\n").into_bytes());
        }
        if let Expected::Refused(_) = self.expected {
            (self.expected, self.says) = (Expected::Refused(&[400, 403, 404, 413, 429]), "");
        }
        self
    }

    pub(crate) fn says(self, says: &'static str) -> Self {
        Self { says, ..self }
    }

    /// In seconds.
    pub(crate) fn within(self, seconds: u64) -> Self {
        Self { within: Duration::from_secs(seconds), ..self }
    }

    pub(crate) fn grows(self, grows: u64) -> Self {
        Self { grows, ..self }
    }
}

/// A process that suffers.
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) process: u32,
    /// What cases are about.
    pub(crate) path: &'static str,
}

impl Target {
    pub(crate) fn suffer_all(&self, cases: Vec<Case>) {
        println!("{:<52} {:>7} {:>8} {:>9}   to {}", "case", "answer", "ms", "KiB more", self.path);
        let wrong: Vec<String> = cases.into_iter().filter_map(|case| self.suffer(case).err()).collect();
        assert!(wrong.is_empty(), "{} cases are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// Does it; what is not as it should be is an error.
    fn suffer(&self, case: Case) -> Result<(), String> {
        let Case { name, send, expected, within, grows, says } = case;
        self.forget_peak();
        let (before, begun) = (self.memory("VmRSS"), Instant::now());
        let mut stream = TcpStream::connect(self.host()).expect("it takes connections");
        let mut answer = Vec::new();
        let deadline = begun + within * 2;
        let sent = send.into_iter().try_for_each(|piece| send_piece(&mut stream, piece, &mut answer, deadline));
        if sent.is_ok() {
            read(&mut stream, &mut answer, deadline);
        }
        let (taken, more) = (begun.elapsed(), self.memory("VmHWM").saturating_sub(before));
        let status = status(&answer);
        println!("{name:<52} {:>7} {:>8} {more:>9}", told(status), taken.as_millis());
        let text = String::from_utf8_lossy(&answer);
        let shown: String = text.chars().take(600).collect();
        if !expected.is_met(status, &text) || !text.contains(says) {
            return Err(format!("{name}: expected {expected:?} that says {says:?}, got {status:?} {shown:?}"));
        }
        if taken > within || more > grows << 10 {
            return Err(format!("{name}: {taken:?} and {more} KiB, of {within:?} and {} KiB", grows << 10));
        }
        Ok(())
    }

    pub(crate) fn host(&self) -> &str {
        self.address.strip_prefix("http://").expect("an address")
    }

    /// Lets the next peak begin here.
    fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.process), "5").expect("a process of ours");
    }

    /// In KiB.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process)).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(what)).expect("it says so");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }
}

/// Sends a piece; an error means that the other side wants no more.
fn send_piece(stream: &mut TcpStream, piece: Piece, answer: &mut Vec<u8>, deadline: Instant) -> std::io::Result<()> {
    let sent = match piece {
        Piece::Bytes(bytes) => stream.write_all(&bytes),
        Piece::Repeat(bytes, times) => (0..times).try_for_each(|_| stream.write_all(&bytes)),
        Piece::Drip(byte, pause) => {
            drip(stream, byte, pause, answer, deadline);
            return Ok(());
        }
    };
    sent.inspect_err(|_| read(stream, answer, deadline))
}

/// Sends a byte now and then, until an answer or the end comes.
fn drip(stream: &mut TcpStream, byte: u8, pause: Duration, answer: &mut Vec<u8>, deadline: Instant) {
    let mut piece = [0; 4096];
    stream.set_read_timeout(Some(pause)).expect("a socket");
    while Instant::now() < deadline && stream.write_all(&[byte]).is_ok() {
        match stream.read(&mut piece) {
            Ok(length @ 1..) => {
                answer.extend_from_slice(&piece[..length]);
                return;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

/// Reads one whole answer, or up to the end.
fn read(stream: &mut TcpStream, answer: &mut Vec<u8>, deadline: Instant) {
    let mut piece = [0; 16 << 10];
    while !is_whole(answer) && answer.len() < ANSWER {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).expect("a socket");
        match stream.read(&mut piece) {
            Ok(length @ 1..) => answer.extend_from_slice(&piece[..length]),
            _ => return,
        }
    }
}

/// Whether an answer is there to its last byte; one to `100-continue` is none.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

/// The status of the last answer.
fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().find(|line| line.starts_with("HTTP/1.") && !line.contains(" 100 "))?;
    line.split(' ').nth(1)?.parse().ok()
}

fn told(status: Option<u16>) -> String {
    status.map_or("closed".to_owned(), |status| status.to_string())
}

/// A whole request.
pub(crate) fn post(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
