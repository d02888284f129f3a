//! Floods of HTTP/2 frames, written by hand: a client's library would not.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::case::Target;
use crate::common::{CHAT, Process};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// What the last ping of a case says.
const LAST: &[u8; 8] = b"the last";
/// Longest wait for what comes of a case.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most memory that a case may cost, in KiB.
const GROWS: u64 = 64 << 10;

/// `:status: 408`, in HPACK: a known name, and the digits in Huffman's code.
const LATE: [u8; 5] = [0x48, 0x83, 0x68, 0x0f, 0x7f];

/// Bodies that do not come, beside one that does: each is refused in its time, and the connection lives.
pub(crate) async fn wait_for_bodies(gateway: &Process) {
    let host = gateway.address.strip_prefix("http://").expect("an address").to_owned();
    let waited = tokio::task::spawn_blocking(move || {
        let begun = |id| frame(HEADERS, END_HEADERS, id, &head("POST", "/v1/completions"));
        for (name, frames) in [
            ("no body where one is announced", begun(1)),
            ("half a body, then silence", [begun(1), frame(DATA, 0, 1, br#"{"model":"#)].concat()),
        ] {
            let mut stream = TcpStream::connect(&host).expect("it takes connections");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let sent = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames].concat();
            stream.write_all(&sent).expect("it takes frames");
            let since = Instant::now();
            let answer = first_answer(&mut stream);
            let taken = since.elapsed();
            println!("{name:<52} {:>7} {:>8}", "408", taken.as_millis());
            assert!(answer.starts_with(&LATE), "{name}: {answer:x?}");
            let (least, most) = (Duration::from_millis(900), Duration::from_secs(10));
            assert!((least..most).contains(&taken), "{name}: it had a second, and took {taken:?}");
            stream.write_all(&frame(PING, 0, 0, LAST)).expect("it takes frames");
            assert_eq!(listen(&mut stream), End::Lives, "{name}");
        }
    });
    waited.await.expect("every body is refused in time");
}

/// The head of the first answer.
fn first_answer(stream: &mut TcpStream) -> Vec<u8> {
    loop {
        let (kind, _, payload) = read_frame(stream).expect("an answer");
        if kind == HEADERS {
            return payload;
        }
    }
}

/// The kind of the next frame, its flags, and what it says.
fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok((head[3], head[4], payload))
}

/// One flood, and whether the connection must not outlive it.
struct Flood {
    name: &'static str,
    frames: Vec<u8>,
    closed: bool,
}

/// Sends every flood to a gateway.
pub(crate) async fn suffer(gateway: &Process) {
    let target = Target { address: gateway.address.clone(), process: gateway.id(), path: "/v1/models" };
    let suffered = tokio::task::spawn_blocking(move || {
        let wrong: Vec<String> = floods().into_iter().filter_map(|flood| one(&target, flood).err()).collect();
        assert!(wrong.is_empty(), "{} floods are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    });
    suffered.await.expect("every flood is as it should be");
}

/// Sends one; what is not as it should be is an error.
fn one(target: &Target, flood: Flood) -> Result<(), String> {
    let Flood { name, frames, closed } = flood;
    std::fs::write(format!("/proc/{}/clear_refs", target.process), "5").expect("a process of ours");
    let (before, begun) = (target.memory("VmRSS"), Instant::now());
    let end = talk(target.host(), frames);
    let (taken, more) = (begun.elapsed(), target.memory("VmHWM").saturating_sub(before));
    println!("{name:<52} {:>7} {:>8} {more:>9}", format!("{end:?}"), taken.as_millis());
    if end == End::Silent || closed && end != End::Closed {
        return Err(format!("{name}: the connection is {end:?}"));
    }
    if taken > PATIENCE || more > GROWS {
        return Err(format!("{name}: {taken:?} and {more} KiB"));
    }
    Ok(())
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It is closed.
    Closed,
    /// It answers as ever.
    Lives,
    /// Neither.
    Silent,
}

/// Sends the frames, and a ping after them, and reads whatever comes.
fn talk(host: &str, frames: Vec<u8>) -> End {
    let mut stream = TcpStream::connect(host).expect("it takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut writer = stream.try_clone().expect("a socket");
    let sending = std::thread::spawn(move || {
        let sent = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames, &frame(PING, 0, 0, LAST)].concat();
        let _ = writer.write_all(&sent); // the other side may have enough
    });
    let end = listen(&mut stream);
    let _ = stream.shutdown(std::net::Shutdown::Both); // the sender may wait
    sending.join().expect("it only sends");
    end
}

fn listen(stream: &mut TcpStream) -> End {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match read_frame(stream) {
            Ok((PING, ACK, said)) if said == LAST => return End::Lives,
            Ok(_) => {}
            Err(error) => {
                let late = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                return if late { End::Silent } else { End::Closed };
            }
        }
    }
    End::Silent
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that is in no table.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("a short text");
        assert!(length < 127, "a length of one byte");
        [&[length], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

/// The head of a request, in HPACK.
fn head(method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path)];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

fn floods() -> Vec<Flood> {
    let ask = head("GET", "/v1/models");
    let whole = END_HEADERS | END_STREAM;
    let ids = |count: u32| (0..count).map(|number| 2 * number + 1);
    let continued = |pieces: usize, piece: &[u8]| {
        let begun = frame(HEADERS, END_STREAM, 1, &ask);
        [begun, frame(CONTINUATION, 0, 1, piece).repeat(pieces)].concat()
    };
    let reset = |id| [frame(HEADERS, whole, id, &ask), frame(RESET, 0, id, &8u32.to_be_bytes())].concat();
    let body = format!(r#"{{"model":"{CHAT}","prompt":"x","max_tokens":500,"ignore_eos":true}}"#);
    let completed = |id| {
        let begun = frame(HEADERS, END_HEADERS, id, &head("POST", "/v1/completions"));
        [begun, frame(DATA, END_STREAM, id, body.as_bytes()), frame(RESET, 0, id, &8u32.to_be_bytes())].concat()
    };
    let flood = |name, frames, closed| Flood { name, frames, closed };
    vec![
        flood("10^4 requests that are reset at once", ids(10_000).flat_map(reset).collect(), false),
        flood("10^4 completions that are reset at once", ids(10_000).flat_map(completed).collect(), false),
        flood("10^5 SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(100_000), false),
        flood("10^5 PINGs", frame(PING, 0, 0, &[0; 8]).repeat(100_000), false),
        flood("10^5 CONTINUATIONs of nothing", continued(100_000, &[]), true),
        flood("10^5 CONTINUATIONs of a header", continued(100_000, &field("x", "y")), true),
        flood("a header list of 1 MB", continued(64, &field("x", &"y".repeat(120)).repeat(130)), true),
        flood("10^4 requests at once", ids(10_000).flat_map(|id| frame(HEADERS, whole, id, &ask)).collect(), false),
        flood(
            "10^4 bodies that never come",
            ids(10_000).flat_map(|id| frame(HEADERS, END_HEADERS, id, &head("POST", "/v1/completions"))).collect(),
            false,
        ),
        flood("10^5 WINDOW_UPDATEs", frame(WINDOW, 0, 0, &1u32.to_be_bytes()).repeat(100_000), false),
        flood("a window that overflows", frame(WINDOW, 0, 0, &0x7fff_ffffu32.to_be_bytes()), true),
        flood(
            "a frame of 16 MB that is announced",
            [&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0; 100][..]].concat(),
            true,
        ),
        flood("frames that are none", vec![0xff; 1 << 20], true),
        flood("an answer without a window", unread(), true),
    ]
}

/// A request for a long stream, of which not a byte may be sent. The ping after it is answered, so it is left out by
/// asking for it with bytes that are missing.
fn unread() -> Vec<u8> {
    let body = format!(r#"{{"model":"{CHAT}","prompt":"x","stream":true,"max_tokens":500,"ignore_eos":true}}"#);
    [
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), // INITIAL_WINDOW_SIZE: 0
        frame(HEADERS, END_HEADERS, 1, &head("POST", "/v1/completions")),
        frame(DATA, END_STREAM, 1, body.as_bytes()),
        // A frame of which one byte never comes swallows the ping.
        vec![0, 0, 18, 0x77, 0, 0, 0, 0, 0],
    ]
    .concat()
}
