//! What reaches the other services, which stand on a network of their own, and should not fall when somebody gets there.

use super::case::Expected::{Bare, Problem};
use super::case::{Case, Piece, post};

const DEEP: usize = 1_000_000;

/// What every service must bear at a path that takes JSON.
fn common(path: &str) -> Vec<Case> {
    let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(DEEP), close.repeat(DEEP));
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x1_0000], b"\r\n".to_vec()].concat();
    let body = |name, body: Vec<u8>| Case::new(name, post(path, "", body), Problem(&[400, 413, 422]));
    let head = |headers: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{headers}\r\n")
    };
    vec![
        body("a million arrays", nested("[", "]").into_bytes()),
        body("a million objects in an unknown field", format!(r#"{{"x":{}}}"#, nested(r#"{"a":"#, "}")).into_bytes()),
        body("a byte 0", b"\0".to_vec()),
        body("invalid UTF-8", vec![0xff; 1000]),
        body("half a surrogate", br#"{"model":"\ud800"}"#.to_vec()),
        body("no body", Vec::new()),
        body("another body", b"[]".to_vec()),
        Case::new("a gigabyte in chunks", head("transfer-encoding: chunked\r\n"), Problem(&[413]))
            .then(Piece::Repeat(chunk, 16 << 10)),
        Case::new("10^4 headers", head(&"x: 1\r\n".repeat(10_000)), Bare(&[431])),
        Case::new("a header of 1 MB", head(&format!("x: {}\r\n", "a".repeat(DEEP))), Bare(&[431])),
        Case::new("two lengths", head("content-length: 1\r\ncontent-length: 2\r\n"), Bare(&[400])),
        Case::new("bytes that are no text", vec![0xff; 1 << 20], Bare(&[400])),
        Case::new("half a head", "POST /", Problem(&[408])),
    ]
}

/// Registrations, heartbeats, dispatches, and the link of gateways.
pub(crate) fn of_a_controller() -> Vec<Case> {
    let mut cases = common("/register");
    let body = |name, path: &str, body: String| Case::new(name, post(path, "", body), Problem(&[400, 413, 422]));
    let many = format!(r#"{{"models":[{}{{}}]}}"#, "{},".repeat(100_000));
    cases.extend([
        body("a registration of 10^5 models", "/register", many),
        body("a heartbeat of garbage", "/heartbeat", r#"{"worker":1}"#.to_owned()),
        body("a dispatch of garbage", "/dispatch", "[".repeat(DEEP)),
        body("FastChat's registration of garbage", "/register_worker", r#"{"worker_name":5}"#.to_owned()),
        body("FastChat's heartbeat of garbage", "/receive_heart_beat", "{".to_owned()),
        Case::new("a link of garbage", link(&[0xff; 100_000]), Bare(&[101])),
        Case::new("a link with a message of 4 GB", link(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1]), Bare(&[101])).grows(16),
    ]);
    cases
}

/// An upgrade to a gateway's link, and what is said over it.
fn link(said: &[u8]) -> Vec<u8> {
    let head = "GET /link HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: muster-link-4\r\n\r\n";
    [head.as_bytes(), said].concat()
}

/// Generation, embeddings and tensors over HTTP.
pub(crate) fn of_a_worker() -> Vec<Case> {
    let mut cases = common("/generate");
    for path in ["/embed", "/rerank", "/classify", "/tokenize"] {
        cases.push(Case::new("arrays to another path", post(path, "", "[".repeat(DEEP)), Problem(&[400, 413])));
    }
    cases.push(Case::new("tensors of garbage", post("/v2/models/m/infer", "", "[".repeat(DEEP)), Bare(&[400, 404])));
    cases
}
