//! Workers that take a request and stand still.

use std::sync::Arc;
use std::time::Duration;

use muster_shared::control::Outcome::{Cancelled, Done, Failed, Unreachable};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

use crate::peers::raw::{Act, END, Raw, STREAM, events, json, send, stream};
use crate::peers::{Controller, Gateway, Named, in_time};

const SHORT: Duration = Duration::from_millis(300);

fn started() -> Event {
    Event::Started { prompt_tokens: 3, vocabulary: Some("v".to_owned()) }
}

fn delta(text: &str, tokens: &[u32]) -> Event {
    Event::Delta { choice: 0, text: text.to_owned(), tokens: tokens.to_vec(), logprobs: vec![] }
}

fn ended() -> [Event; 2] {
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 0 };
    [Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 2 }, Event::Done { usage }]
}

/// What a good worker of that transport does.
fn good(transport: Transport, is_stream: bool) -> Vec<Act> {
    match (transport, is_stream) {
        (Transport::OpenAi, true) => vec![send(stream(&["{\"text\":\"good\"}", "[DONE]"])), send(END)],
        (Transport::OpenAi, false) => vec![send(json("200 OK", "{\"text\":\"good\"}"))],
        _ => {
            let [finished, done] = ended();
            vec![send(events(&[started(), delta("good", &[1]), finished, done])), send(END)]
        }
    }
}

async fn fleet(transport: Transport, bad: Vec<Act>, good: Vec<Act>) -> (Gateway, Controller, [Raw; 2]) {
    let workers = [Raw::always(bad).await, Raw::always(good).await];
    let named: Vec<_> = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(transport))).collect();
    let controller = Controller::start(named).await;
    let gateway = Gateway::start(&controller.address, |config| {
        (config.first_token_timeout, config.inter_token_timeout) = (SHORT, SHORT);
    })
    .await;
    (gateway, controller, workers)
}

#[tokio::test]
async fn a_worker_without_a_first_token_is_left_for_another() {
    let silent = [vec![Act::Hang], vec![send(STREAM), Act::Hang], vec![send(events(&[started()])), Act::Hang]];
    for (transport, scripts) in [(Transport::OpenAi, &silent[..2]), (Transport::Http, &silent[..])] {
        for acts in scripts {
            // OpenAI's whole answers have no first token: all of them comes at once, and has the request's own deadline.
            for is_stream in [false, true].into_iter().filter(|is_stream| *is_stream || transport == Transport::Http) {
                let (gateway, mut controller, mut workers) =
                    fleet(transport, acts.clone(), good(transport, is_stream)).await;
                let response = gateway.chat(is_stream).await;
                assert_eq!(response.status(), 200, "{transport} {acts:?}");
                let text = in_time(response.text()).await.expect("a whole answer");
                assert!(text.contains("good") && !text.contains("error"), "{transport} {acts:?}: {text}");
                assert_eq!(text.contains("[DONE]"), is_stream);
                workers[0].hung_up().await;
                assert_eq!(controller.outcomes(2).await, [Failed, Done], "{transport} {acts:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_of_openais_that_stands_still_ends_with_an_error() {
    let (gateway, mut controller, mut workers) =
        fleet(Transport::OpenAi, vec![send(stream(&["{\"a\":1}"])), Act::Hang], good(Transport::OpenAi, true)).await;
    let text = in_time(gateway.chat(true).await.text()).await.expect("the gateway ends it");
    assert!(text.starts_with("data: {\"a\":1}\n\ndata: {\"error\":"), "{text}");
    assert!(text.contains("upstream_error") && !text.contains("[DONE]"), "{text}");
    workers[0].hung_up().await;
    assert_eq!(controller.outcomes(1).await, [Failed]);
}

#[tokio::test]
async fn an_answer_of_ours_that_stands_still_goes_on_at_another_worker() {
    for is_stream in [false, true] {
        let [finished, done] = ended();
        let first = vec![send(events(&[started(), delta("Hel", &[7])])), Act::Hang];
        let second = vec![send(events(&[started(), delta("lo", &[8]), finished, done])), send(END)];
        let (gateway, mut controller, mut workers) = fleet(Transport::Http, first, second).await;
        let text = in_time(gateway.chat(is_stream).await.text()).await.expect("a whole answer");
        assert!(!text.contains("error") && text.contains(if is_stream { "\"lo\"" } else { "\"Hello\"" }), "{text}");
        workers[0].hung_up().await;
        assert_eq!(controller.outcomes(2).await, [Failed, Done]);
        let resume = workers[1].asked()[0].generate().resume.expect("it goes on");
        assert_eq!((resume.vocabulary.as_deref(), &resume.choices[0].tokens[..]), (Some("v"), &[7][..]));
        assert_eq!((resume.choices[0].text_bytes, resume.choices[0].finished), (3, None));
    }
}

#[tokio::test]
async fn a_worker_that_does_not_take_connections_is_left_for_another() {
    // The system takes as many connections as its queue holds, and answers no more until they are accepted.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(connected) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        queued.push(connected.expect("a place in the queue"));
    }
    let worker = Raw::always(good(Transport::OpenAi, false)).await;
    let deaf = Named { address: format!("http://{address}"), transport: Transport::OpenAi };
    let mut controller = Controller::start([Ok(deaf), Ok(worker.named(Transport::OpenAi))]).await;
    let gateway = Gateway::start(&controller.address, |config| config.connect_timeout = SHORT * 2).await;
    assert_eq!(gateway.chat(false).await.status(), 200);
    assert_eq!(controller.outcomes(2).await, [Unreachable, Done]);
}

#[tokio::test]
async fn a_second_worker_is_asked_beside_a_slow_one_only_where_that_is_wanted() {
    let slow = [vec![Act::Hang], vec![send(STREAM), Act::Hang], vec![send(events(&[started()])), Act::Hang]];
    for (transport, scripts) in [(Transport::OpenAi, &slow[..2]), (Transport::Http, &slow[..])] {
        for is_stream in [false, true] {
            for slow in scripts.iter().cloned() {
                let workers = [Raw::always(slow).await, Raw::always(good(transport, is_stream)).await];
                let named: Vec<_> = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(transport))).collect();
                let mut controller = Controller::start(named).await;
                let gateway = Gateway::start(&controller.address, |config| config.hedge_after = Some(SHORT / 10)).await;
                let response = in_time(gateway.chat(is_stream)).await;
                let text = in_time(response.text()).await.expect("a whole answer");
                assert!(text.contains("good") && !text.contains("error"), "{transport}: {text}");
                let mut outcomes = controller.outcomes(2).await;
                outcomes.sort_by_key(|outcome| *outcome == Done);
                assert_eq!(outcomes, [Cancelled, Done], "{transport}: the slow one is let go, and not blamed");
            }
        }
    }
}

#[tokio::test]
async fn a_slow_worker_answers_where_the_one_asked_beside_it_fails() {
    for is_stream in [false, true] {
        let bell = Arc::new(Notify::new());
        let mut slow = vec![Act::Await(Arc::clone(&bell))];
        slow.extend(good(Transport::Http, is_stream));
        let (slow, bad) = (Raw::always(slow).await, Raw::always(vec![Act::Close]).await);
        let named = [&slow, &bad, &bad, &bad].map(|worker| Ok::<_, Problem>(worker.named(Transport::Http)));
        let mut controller = Controller::start(named).await;
        let gateway = Gateway::start(&controller.address, |config| config.hedge_after = Some(SHORT / 10)).await;
        let ringing = async {
            assert_eq!(controller.outcomes(1).await, [Failed]);
            bell.notify_one();
        };
        let (response, ()) = tokio::join!(in_time(gateway.chat(is_stream)), ringing);
        let text = in_time(response.text()).await.expect("a whole answer");
        assert!(text.contains("good") && !text.contains("error"), "{text}");
    }
}
