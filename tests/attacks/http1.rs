//! Requests that are none, or hardly.

use std::time::Duration;

use super::case::Expected::{Bare, Closed, Good, Refused};
use super::case::{Case, Expected, Piece, post};

const COMPLETIONS: &str = "/v1/completions";

/// Everything that a request can be around its body.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let good = format!(r#"{{"model":"{model}","prompt":"x","max_tokens":1}}"#);
    [slow(&good), heads(), targets(&good), lengths(&good), chunks(&good), smuggled(&good)]
        .into_iter()
        .flatten()
        .collect()
}

fn slow(good: &str) -> Vec<Case> {
    let late = |name, sent: Vec<u8>, drip: Option<u8>| {
        let case = Case::new(name, sent, Refused(&[408])).grows(4);
        match drip {
            Some(byte) => case.then(Piece::Drip(byte, Duration::from_millis(50))),
            None => case,
        }
    };
    let whole = post(COMPLETIONS, "", good);
    let end = whole.len() - good.len();
    let half = whole[..end + good.len() / 2].to_vec();
    let chunked = format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    vec![
        late("half a head, then silence", whole[..30].to_vec(), None),
        late("a head that drips", b"POST ".to_vec(), Some(b'a')),
        late("a head of headers that drips", b"GET / HTTP/1.1\r\nx: ".to_vec(), Some(b'a')),
        late("half a body, then silence", half.clone(), None).says("request_timeout"),
        late("no body where one is announced", whole[..end].to_vec(), None),
        late("a body that drips", [chunked.as_bytes(), b"fff\r\n"].concat(), Some(b' ')),
        late("a chunk's size that drips", chunked.into_bytes(), Some(b'0')),
        Case::new("the beginning of HTTP/2, then silence", "PRI * HTTP/2.0\r\n", Closed).grows(4),
        Case::new("a byte, then silence", "P", Refused(&[408])).grows(4),
        Case::new("an answer's first byte, then silence", "\r\n", Refused(&[408])).grows(4),
    ]
}

fn heads() -> Vec<Case> {
    let get = |headers: &str| format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let many: String = (0..10_000).map(|number| format!("x-{number}: 1\r\n")).collect();
    vec![
        Case::new("10^4 headers", get(&many), Bare(&[431])),
        Case::new("101 headers", get(&"x: 1\r\n".repeat(101)), Bare(&[431])),
        Case::new("a header of 1 MB", get(&format!("x: {}\r\n", "a".repeat(1 << 20))), Bare(&[431])),
        Case::new("a header's name of 1 MB", get(&format!("{}: x\r\n", "a".repeat(1 << 20))), Bare(&[431])),
        Case::new("headers without end", "GET / HTTP/1.1\r\n", Bare(&[431]))
            .then(Piece::Repeat(b"x: 1\r\n".to_vec(), 1 << 20)),
        Case::new("a key of 60 kB", get(&format!("authorization: Bearer {}\r\n", "k".repeat(60_000))), Good).grows(16),
        Case::new("a request id of 60 kB", get(&format!("x-request-id: {}\r\n", "k".repeat(60_000))), Good).grows(16),
        Case::new("empty lines without end", "", Bare(&[431])).then(Piece::Repeat(b"\r\n".to_vec(), 1 << 20)),
        Case::new("bytes that are no text", vec![0xff; 1 << 20], Bare(&[400])),
        Case::new("TLS where there is none", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Bare(&[400])),
        Case::new("a SOCKS greeting", b"\x05\x01\x00".to_vec(), Bare(&[400])),
    ]
}

fn targets(good: &str) -> Vec<Case> {
    let line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n");
    let post_to = |target: &str| post(target, "", good);
    vec![
        Case::new(
            "HTTP/1.0",
            format!("POST {COMPLETIONS} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{good}", good.len()),
            Good,
        ),
        Case::new("HTTP/0.9", "GET /v1/models\r\n\r\n", Bare(&[400])),
        Case::new("HTTP/1.2", line("GET /v1/models HTTP/1.2"), Bare(&[400])),
        Case::new("HTTP/9.9", line("GET /v1/models HTTP/9.9"), Bare(&[400])),
        Case::new("HTTP/2.0 in words", line("GET /v1/models HTTP/2.0"), Bare(&[400, 505])),
        Case::new("an absolute target", post_to(&format!("http://elsewhere{COMPLETIONS}")), Good),
        Case::new("a target of *", line("OPTIONS * HTTP/1.1"), Refused(&[404, 405])),
        Case::new("CONNECT", line("CONNECT example.com:443 HTTP/1.1"), Refused(&[400, 404, 405])),
        Case::new("TRACE", line("TRACE /v1/models HTTP/1.1"), Refused(&[405])),
        Case::new("a method of 10 kB", line(&format!("{} / HTTP/1.1", "A".repeat(10_000))), Refused(&[405])),
        Case::new("a method of 1 MB", line(&format!("{} / HTTP/1.1", "A".repeat(1 << 20))), Bare(&[400, 431])),
        Case::new("a target of 60 kB", line(&format!("GET /{} HTTP/1.1", "a".repeat(60_000))), Refused(&[404])),
        Case::new("a target of 1 MB", line(&format!("GET /{} HTTP/1.1", "a".repeat(1 << 20))), Bare(&[414, 431])),
        Case::new("a target with a byte 0", line("GET /\0 HTTP/1.1"), Bare(&[400])),
        Case::new("a target that leads out", line("GET /../../../etc/passwd HTTP/1.1"), Refused(&[404])),
        Case::new(
            "a target that leads out, escaped",
            line("GET /playground/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1"),
            Refused(&[404]),
        ),
        Case::new(
            "a target in bytes that are no text",
            [b"GET /".as_slice(), &[0xff; 100], b" HTTP/1.1\r\n\r\n"].concat(),
            Bare(&[400, 404]),
        ),
        Case::new(
            "a WebSocket",
            format!(
                "GET {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
            ),
            Refused(&[405]),
        ),
        Case::new(
            "h2c",
            line(
                "GET /v1/models HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
            ),
            Good,
        ),
    ]
}

fn lengths(good: &str) -> Vec<Case> {
    let with = |headers: &str| format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{good}");
    let length = good.len();
    let bare = |name, headers: &str| Case::new(name, with(headers), Bare(&[400]));
    vec![
        bare("two different lengths", &format!("content-length: {length}\r\ncontent-length: 5\r\n")),
        bare("two different lengths in one", &format!("content-length: {length}, 5\r\n")),
        bare("a negative length", "content-length: -1\r\n"),
        bare("a length with a sign", &format!("content-length: +{length}\r\n")),
        bare("a length that is no number", "content-length: ten\r\n"),
        bare("a length beyond 64 bits", "content-length: 99999999999999999999999\r\n"),
        Case::new("the longest length", with("content-length: 18446744073709551600\r\n"), Expected::Bare(&[400, 413])),
        bare("a length in hexadecimal", "content-length: 0x10\r\n"),
    ]
}

fn chunks(good: &str) -> Vec<Case> {
    let chunked =
        |body: &str| format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    let whole = format!("{:x}\r\n{good}\r\n0\r\n\r\n", good.len());
    let refused = |name, body: &str| Case::new(name, chunked(body), Refused(&[400]));
    let single: String = good.bytes().map(|byte| format!("1;x=y\r\n{}\r\n", char::from(byte))).collect();
    vec![
        Case::new("a body in chunks of a byte, with extensions", chunked(&format!("{single}0\r\n\r\n")), Good),
        refused("extensions without end", "")
            .then(Piece::Repeat(b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n \r\n".to_vec(), 1 << 20)),
        refused("an extension of 1 MB", &format!("1;{}\r\n \r\n0\r\n\r\n", "a".repeat(1 << 20))),
        refused("a chunk's size that is none", "xyz\r\n"),
        refused("a chunk's size that is negative", "-5\r\n"),
        refused("a chunk's size beyond 64 bits", "fffffffffffffffff\r\n"),
        Case::new("the largest chunk", chunked("ffffffffffffff0\r\n"), Refused(&[408, 413])),
        refused("a chunk that is longer than it says", "1\r\nabc\r\n0\r\n\r\n"),
        refused("trailers without end", "0\r\n").then(Piece::Repeat(b"x: 1\r\n".to_vec(), 1 << 20)),
        Case::new("trailers", chunked(&whole.replace("0\r\n\r\n", "0\r\nx: 1\r\n\r\n")), Good),
        Case::new("a coding of transfers that is none", chunked(&whole).replace("chunked", "rot13"), Bare(&[400])),
        Case::new("chunked twice", chunked(&whole).replace("chunked", "chunked, chunked"), Bare(&[400, 200])),
        Case::new("chunked, then something", chunked(&whole).replace("chunked", "chunked, gzip"), Bare(&[400])),
    ]
}

fn smuggled(good: &str) -> Vec<Case> {
    let length = good.len();
    let with = |headers: &str| {
        format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{headers}\r\n{good}")
    };
    let bare = |name, sent: String| Case::new(name, sent, Bare(&[400]));
    let whole = String::from_utf8(post(COMPLETIONS, "", good)).expect("a text");
    vec![
        // RFC 9112, section 6.3: the chunks count, or it is refused; here chunks count, and they are none.
        Case::new("a length and chunks", with("transfer-encoding: chunked\r\n"), Refused(&[400])),
        bare("a folded header", with("x: 1\r\n 2\r\n")),
        bare("a blank before a colon", with("x : 1\r\n")),
        bare("a byte 0 in a header", with("x: a\0b\r\n")),
        bare("a byte 0 in a header's name", with("x\0: a\r\n")),
        bare("a bare carriage return in a header", with("x: a\rb: c\r\n")),
        // RFC 9112, section 2.2, lets a bare line feed end a line.
        Case::new("bare line feeds", whole.replace("\r\n", "\n"), Good),
        Case::new("no host", whole.replace("host: 127.0.0.1\r\n", ""), Good),
        Case::new("two hosts", whole.replace("host: 127.0.0.1", "host: a\r\nhost: b"), Bare(&[200, 400])),
        Case::new("a thousand requests at once", whole.repeat(1000), Good).grows(32),
        Case::new("a good request and half a bad one", format!("{whole}GARBAGE"), Good),
    ]
}
