//! Clients that do not read, do not finish, or do not stay.

use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_shared::control::Outcome::{Cancelled, Done};
use muster_shared::generate::Event;
use muster_shared::problem::Problem;
use muster_shared::sse::json_event;
use muster_shared::transport::Transport;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::peers::raw::{Act, END, Raw, STREAM, chunk, events, json, send, stream};
use crate::peers::{Controller, Gateway, in_time};

/// A chat as a client sends it.
fn chat(is_stream: bool, headers: &str) -> String {
    let body =
        json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": is_stream }).to_string();
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

async fn connect(gateway: &Gateway) -> TcpStream {
    let address = gateway.address.strip_prefix("http://").expect("an address");
    TcpStream::connect(address).await.expect("the gateway listens")
}

/// Everything that comes up to the end of the connection.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = in_time(stream.read_to_end(&mut bytes)).await; // a reset ends it as well
    String::from_utf8(bytes).expect("text")
}

fn delta() -> Event {
    Event::Delta { choice: 0, text: "x".repeat(4096), tokens: vec![1], logprobs: vec![] }
}

fn started() -> Event {
    Event::Started { prompt_tokens: 1, vocabulary: Some("v".to_owned()) }
}

/// A gateway and its one worker, which does the same with every request.
async fn fleet(
    transport: Transport,
    acts: impl IntoIterator<Item = Act>,
    change: impl FnOnce(&mut muster_gateway::Config),
) -> (Gateway, Controller, Raw) {
    let worker = Raw::always(acts).await;
    let turns = (0..8).map(|_| Ok::<_, Problem>(worker.named(transport)));
    let controller = Controller::start(turns).await;
    (Gateway::start(&controller.address, change).await, controller, worker)
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_its_request_cancelled() {
    let openai = [send(STREAM), Act::Flood(chunk(format!("data: {{\"a\":\"{}\"}}\n\n", "x".repeat(4096))))];
    let ours = [send(events(&[started()])), Act::Flood(chunk(json_event(&delta())))];
    for (transport, acts) in [(Transport::OpenAi, openai), (Transport::Http, ours)] {
        let patience = Duration::from_millis(200);
        let (gateway, mut controller, mut worker) =
            fleet(transport, acts, |config| config.client_timeout = patience).await;
        let mut client = connect(&gateway).await;
        client.write_all(chat(true, "").as_bytes()).await.expect("the gateway reads");
        let mut head = [0; 15];
        in_time(client.read_exact(&mut head)).await.expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        worker.hung_up().await;
        assert_eq!(controller.outcomes(1).await, [Cancelled], "{transport}");
        drop(client);
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_at_the_worker() {
    let silent = [vec![Act::Hang], vec![send(STREAM), Act::Hang], vec![send(events(&[started()])), Act::Hang]];
    for (transport, scripts) in [(Transport::OpenAi, &silent[..2]), (Transport::Http, &silent[..])] {
        for acts in scripts {
            for is_stream in [false, true] {
                let (gateway, mut controller, mut worker) = fleet(transport, acts.clone(), |_| {}).await;
                let mut client = connect(&gateway).await;
                client.write_all(chat(is_stream, "").as_bytes()).await.expect("the gateway reads");
                in_time(async {
                    while worker.asked().is_empty() {
                        tokio::task::yield_now().await
                    }
                })
                .await;
                drop(client);
                worker.hung_up().await;
                assert_eq!(controller.outcomes(1).await, [Cancelled], "{transport} {acts:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_request_waits_for_room_gives_up_its_place() {
    let worker = Raw::always([send(json("200 OK", "{}"))]).await;
    let controller = Controller::with_room([Ok(worker.named(Transport::OpenAi))], 0).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let mut client = connect(&gateway).await;
    client.write_all(chat(false, "").as_bytes()).await.expect("the gateway reads");
    let until = async |done: &dyn Fn() -> bool| {
        in_time(async {
            while !done() {
                tokio::task::yield_now().await
            }
        })
        .await
    };
    until(&|| controller.asked() == 1).await;
    drop(client);
    until(&|| controller.abandoned.load(Ordering::Relaxed) == 1).await;
    assert!(worker.asked().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_midway_cancels_at_the_worker() {
    let openai = vec![send(stream(&["{}"])), Act::Hang];
    let ours = vec![send(events(&[started(), delta()])), Act::Hang];
    for (transport, acts) in [(Transport::OpenAi, openai), (Transport::Http, ours)] {
        let (gateway, mut controller, mut worker) = fleet(transport, acts, |_| {}).await;
        let mut response = gateway.chat(true).await;
        in_time(response.chunk()).await.expect("a chunk").expect("a chunk");
        drop(response);
        worker.hung_up().await;
        assert_eq!(controller.outcomes(1).await, [Cancelled], "{transport}");
    }
}

#[tokio::test]
async fn half_a_body_reaches_no_worker() {
    let (gateway, controller, _worker) = fleet(Transport::OpenAi, [send(json("200 OK", "{}"))], |_| {}).await;
    let request = chat(false, "");
    for length in [request.len() - 1, request.len() - 40] {
        let mut client = connect(&gateway).await;
        client.write_all(&request.as_bytes()[..length]).await.expect("the gateway reads");
        client.shutdown().await.expect("it is open");
        let text = read_all(&mut client).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{text}");
    }
    assert_eq!(controller.asked(), 0);
    assert_eq!(gateway.chat(false).await.status(), 200);
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_their_order() {
    let whole = |nth: &str| vec![send(json("200 OK", &format!("{{\"nth\":\"{nth}\"}}")))];
    let streamed = vec![send(stream(&["{\"nth\":\"second\"}", "[DONE]"])), send(END)];
    let worker = Raw::start([whole("first"), streamed, whole("third")]).await;
    let turns = (0..3).map(|_| Ok::<_, Problem>(worker.named(Transport::OpenAi)));
    let mut controller = Controller::start(turns).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let mut client = connect(&gateway).await;
    let together = [chat(false, ""), chat(true, ""), chat(false, "connection: close\r\n")].concat();
    client.write_all(together.as_bytes()).await.expect("the gateway reads");
    let text = read_all(&mut client).await;
    let places =
        ["first", "second", "[DONE]", "third"].map(|nth| text.find(nth).unwrap_or_else(|| panic!("{nth}: {text}")));
    assert!(places.is_sorted(), "{text}");
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{text}");
    assert_eq!(controller.outcomes(3).await, [Done; 3]);
}

#[tokio::test]
async fn a_head_of_a_megabyte_is_refused() {
    let (gateway, controller, _worker) = fleet(Transport::OpenAi, [send(json("200 OK", "{}"))], |_| {}).await;
    let long = format!("x-long: {}\r\n", "x".repeat(1 << 20));
    let many = "x-many: 1\r\n".repeat(100_000);
    for headers in [long, many] {
        let (mut reader, mut writer) = connect(&gateway).await.into_split();
        let request = chat(false, &headers);
        // The gateway need not read all of it before it answers.
        let writing = tokio::spawn(async move { drop(writer.write_all(request.as_bytes()).await) });
        let mut head = [0; 13];
        in_time(reader.read_exact(&mut head)).await.expect("an answer");
        assert_eq!(String::from_utf8_lossy(&head), "HTTP/1.1 431 ");
        drop(reader);
        in_time(writing).await.expect("no panic");
    }
    assert_eq!(controller.asked(), 0);
    assert_eq!(gateway.chat(false).await.status(), 200);
}

#[tokio::test]
async fn what_is_not_http_is_answered_and_forgotten() {
    let (gateway, controller, _worker) = fleet(Transport::OpenAi, [send(json("200 OK", "{}"))], |_| {}).await;
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"\0\0\0\0"]
    {
        let mut client = connect(&gateway).await;
        client.write_all(bytes).await.expect("the gateway reads");
        client.shutdown().await.expect("it is open");
        let text = read_all(&mut client).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{text}");
    }
    assert_eq!(controller.asked(), 0);
    assert_eq!(gateway.chat(false).await.status(), 200);
}
