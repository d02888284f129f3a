//! Compressed bodies, both ways.

mod peers;

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;
use peers::raw::{Act, END, Raw, json, send, stream};
use peers::{Controller, Deed, Gateway, header, in_time, worker};
use serde_json::{Value, json as value};

const LIMIT: usize = 1 << 20;
const CHAT: &str = "/v1/chat/completions";

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(body, 1).expect("memory takes it")
}

/// The body behind a coding.
fn plain(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    match coding {
        "gzip" => drop(GzDecoder::new(body).read_to_end(&mut text).expect("gzip")),
        "zstd" => text = zstd::stream::decode_all(body).expect("zstd"),
        _ => text = body.to_vec(),
    }
    text
}

/// A gateway in front of one worker that always does so.
async fn fleet(acts: Vec<Act>, transport: Transport) -> (Gateway, Raw, Controller) {
    let worker = Raw::always(acts).await;
    let turns = (0..16).map(|_| Ok::<_, Problem>(worker.named(transport)));
    let controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |config| config.body_limit = LIMIT).await;
    (gateway, worker, controller)
}

async fn post(gateway: &Gateway, headers: &[(&str, &str)], body: Vec<u8>) -> reqwest::Response {
    let mut request = reqwest::Client::new().post(format!("{}{CHAT}", gateway.address)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    in_time(request.send()).await.expect("an answer")
}

fn question(stream: bool, length: usize) -> Vec<u8> {
    let text = "hi ".repeat(length / 3);
    value!({ "model": "m", "stream": stream, "messages": [{ "role": "user", "content": text }] })
        .to_string()
        .into_bytes()
}

fn long_answer(length: usize) -> String {
    value!({ "object": "chat.completion", "text": "all models are wrong ".repeat(length / 21) }).to_string()
}

#[tokio::test]
async fn compressed_requests_arrive_as_they_were() {
    let (gateway, worker, _controller) = fleet(vec![send(json("200 OK", "{}"))], Transport::OpenAi).await;
    for length in [10, 400_000] {
        let body = question(false, length);
        for (coding, coded) in [
            ("gzip", gzip(&body)),
            ("zstd", zstd(&body)),
            ("deflate", deflate(&body)),
            ("gzip, zstd", zstd(&gzip(&body))),
        ] {
            let response = post(&gateway, &[("content-encoding", coding)], coded).await;
            assert_eq!(response.status(), 200, "{coding} {length}");
            let asked = worker.asked().pop().expect("a request");
            assert!(asked.body == body, "{coding} {length}");
            assert_eq!(asked.header("content-encoding"), None);
        }
    }
}

#[tokio::test]
async fn a_bomb_is_too_large_and_an_unknown_coding_is_refused() {
    let (gateway, worker, _controller) = fleet(vec![send(json("200 OK", "{}"))], Transport::OpenAi).await;
    let zeros = vec![b' '; 32 << 20];
    for (coding, bomb) in [("gzip", gzip(&zeros)), ("deflate", deflate(&zeros)), ("zstd", zstd(&zeros))] {
        let response = post(&gateway, &[("content-encoding", coding)], bomb).await;
        assert_eq!(response.status(), 413, "{coding}");
    }
    let response = post(&gateway, &[("content-encoding", "br")], question(false, 10)).await;
    assert_eq!(
        (response.status().as_u16(), header(&response, "accept-encoding")),
        (415, "zstd, gzip, deflate, identity")
    );
    let response = post(&gateway, &[("content-encoding", "gzip")], question(false, 10)).await;
    assert_eq!(response.status(), 400, "it is no gzip");
    let bare = deflate(&question(false, 10))[2..].to_vec();
    let response = post(&gateway, &[("content-encoding", "deflate")], bare).await;
    assert_eq!(response.status(), 400, "what HTTP calls deflate has zlib's head");
    assert!(worker.asked().is_empty());
}

#[tokio::test]
async fn whole_answers_are_compressed_for_those_who_ask() {
    for length in [2_000, 200_000] {
        let text = long_answer(length);
        let (gateway, _worker, _controller) = fleet(vec![send(json("200 OK", &text))], Transport::OpenAi).await;
        for (asked, coding) in [("gzip", "gzip"), ("gzip, zstd", "zstd"), ("br", ""), ("deflate", ""), ("gzip;q=0", "")]
        {
            let response = post(&gateway, &[("accept-encoding", asked)], question(false, 10)).await;
            assert_eq!(header(&response, "content-encoding"), coding, "{asked}");
            assert_eq!(header(&response, "vary"), if coding.is_empty() { "" } else { "accept-encoding" }, "{asked}");
            assert_eq!(header(&response, "content-type"), "application/json");
            let body = response.bytes().await.expect("a body");
            assert!(coding.is_empty() || body.len() < text.len() / 2, "{asked}");
            assert!(plain(coding, &body) == text.as_bytes(), "{asked}");
        }
        let response = post(&gateway, &[], question(false, 10)).await;
        assert_eq!((header(&response, "content-encoding"), header(&response, "vary")), ("", ""));
        assert_eq!(response.text().await.expect("a body"), text);
    }
}

#[tokio::test]
async fn answers_made_here_are_compressed_too_and_short_ones_are_not() {
    for (words, coding) in [(&["a model's many words "; 200][..], "gzip"), (&["short"], "")] {
        let (address, _gone) = worker(Deed::Answer(words)).await;
        let controller = Controller::start([Ok(address)]).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let response = post(&gateway, &[("accept-encoding", "gzip")], question(false, 10)).await;
        assert_eq!(header(&response, "content-encoding"), coding);
        let body = plain(coding, &response.bytes().await.expect("a body"));
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["choices"][0]["message"]["content"], words.concat());
    }
}

#[tokio::test]
async fn streams_are_never_compressed() {
    let event = value!({ "text": "word ".repeat(1000) }).to_string();
    let acts = vec![send(stream(&[&event, "[DONE]"])), send(END)];
    let (gateway, _worker, _controller) = fleet(acts, Transport::OpenAi).await;
    let response = post(&gateway, &[("accept-encoding", "gzip, zstd")], question(true, 10)).await;
    assert_eq!((response.status().as_u16(), header(&response, "content-encoding")), (200, ""));
    assert!(response.text().await.expect("a stream").contains(&event));
}
