//! Grants of another model than the one that was asked for: an alias' model, or a fallback.

mod peers;

use muster_shared::control::Outcome::{Done, Failed};
use muster_shared::embed::{EmbedResponse, Vector};
use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;
use peers::raw::{Act, END, Raw, events, json, send, stream};
use peers::{Controller, Gateway, in_time};
use serde_json::{Value, json};

/// The events of an answer to a prompt of three tokens.
fn said(words: &[(&str, u32)]) -> Vec<Event> {
    let delta = |&(text, token): &(&str, u32)| Event::Delta {
        choice: 0,
        text: text.to_owned(),
        tokens: vec![token],
        logprobs: vec![],
    };
    let started = Event::Started { prompt_tokens: 3, vocabulary: Some("bytes".to_owned()) };
    std::iter::once(started).chain(words.iter().map(delta)).collect()
}

/// The same with its end.
fn whole(words: &[(&str, u32)]) -> Vec<Event> {
    let completion_tokens = words.len() as u32;
    let mut events = said(words);
    events.push(Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: completion_tokens });
    events.push(Event::Done { usage: Usage { prompt_tokens: 3, completion_tokens, cached_tokens: 0 } });
    events
}

fn answers() -> Vec<Act> {
    vec![send(events(&whole(&[("Hel", 1), ("lo", 2)]))), send(END)]
}

fn breaks(events_sent: &[Event]) -> Vec<Act> {
    vec![send(events(events_sent)), Act::Close]
}

/// A gateway in front of workers that are granted in turn, under the names of these models.
async fn fleet(scripts: Vec<Vec<Act>>, transport: Transport, models: &[&str]) -> (Gateway, Controller, Vec<Raw>) {
    let mut workers = Vec::new();
    for script in scripts {
        workers.push(Raw::always(script).await);
    }
    let named: Vec<_> = workers.iter().map(|worker| Ok::<_, Problem>(worker.named(transport))).collect();
    let controller = Controller::start(named).await;
    controller.grant_models(models);
    (Gateway::start(&controller.address, |_| {}).await, controller, workers)
}

/// The models that the parts of an answer name.
async fn models_told(response: reqwest::Response) -> Vec<String> {
    let text = in_time(response.text()).await.expect("a whole answer");
    let parts: Vec<&str> = match text.starts_with("data: ") {
        true => text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect(),
        false => vec![&text],
    };
    let parts = parts.into_iter().filter(|part| *part != "[DONE]");
    parts
        .map(|part| serde_json::from_str::<Value>(part).expect("JSON")["model"].as_str().expect(part).to_owned())
        .collect()
}

#[tokio::test]
async fn the_worker_is_asked_for_the_granted_model_and_the_client_reads_which() {
    for is_stream in [false, true] {
        let (gateway, mut controller, workers) = fleet(vec![answers()], Transport::Http, &["other"]).await;
        let models = models_told(gateway.chat(is_stream).await).await;
        assert!(!models.is_empty() && models.iter().all(|model| model == "other"), "{models:?}");
        assert_eq!(workers[0].asked()[0].generate().model, "other");
        assert_eq!((controller.dispatch(0).model.as_str(), controller.dispatch(0).exact), ("m", false));
        assert_eq!(controller.outcomes(1).await, [Done]);
    }
}

#[tokio::test]
async fn what_is_answered_in_one_message_is_asked_of_the_granted_model() {
    let vector = EmbedResponse { vectors: vec![Vector(vec![0.5])], sparse: vec![], prompt_tokens: 1 };
    let body = serde_json::to_string(&vector).expect("JSON");
    let (gateway, _controller, workers) =
        fleet(vec![vec![send(json("200 OK", &body))]], Transport::Http, &["other"]).await;
    let response = gateway.post("/v1/embeddings", &json!({ "model": "m", "input": "hi" })).await;
    assert_eq!(models_told(response).await, ["other"]);
    assert_eq!(workers[0].asked()[0].json()["model"], "other");
}

#[tokio::test]
async fn tensors_go_to_the_granted_model() {
    let answer = r#"{"model_name":"other","model_version":"1","outputs":[{"name":"y","datatype":"INT32","shape":[1],"data":[7]}]}"#;
    let (gateway, _controller, workers) =
        fleet(vec![vec![send(json("200 OK", answer))]], Transport::Http, &["other"]).await;
    let input = json!({ "inputs": [{ "name": "x", "datatype": "INT32", "shape": [1], "data": [7] }] });
    let response = gateway.post("/v2/models/m/infer", &input).await;
    let answer: Value = in_time(response.json()).await.expect("JSON");
    assert_eq!((&answer["model_name"], &answer["outputs"][0]["data"]), (&json!("other"), &json!([7])));
    assert!(workers[0].asked()[0].head.starts_with("POST /v2/models/other/infer "), "{}", workers[0].asked()[0].head);
}

#[tokio::test]
async fn a_request_that_is_passed_on_has_its_model_replaced_and_nothing_else() {
    const CHUNK: &str = r#"{"object":"chat.completion.chunk","model":"theirs","choices":[]}"#;
    let good = vec![send(stream(&[CHUNK, "[DONE]"])), send(END)];
    for (granted, told) in [(&["other"][..], "other"), (&[], "m")] {
        let (gateway, _controller, workers) = fleet(vec![good.clone()], Transport::OpenAi, granted).await;
        let body = |model: &str| {
            format!("{{\"stream\" : true,\"x\":{{\"model\":\"m\"}}, \"model\":\"{model}\",\"messages\":[],\"y\":1.50}}")
        };
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address));
        let response = in_time(request.body(body("m")).send()).await.expect("an answer");
        assert_eq!(models_told(response).await, ["theirs"], "the answer is the worker's own");
        let asked = workers[0].asked();
        assert_eq!(String::from_utf8_lossy(&asked[0].body), body(told));
        assert_eq!(asked[0].header("content-length"), Some(body(told).len().to_string().as_str()));
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_goes_on_at_its_model_only() {
    let rest = vec![send(events(&whole(&[("lo", 2)]))), send(END)];
    let scripts = vec![breaks(&said(&[("Hel", 1)])), rest];
    let (gateway, mut controller, workers) = fleet(scripts, Transport::Http, &["other"]).await;
    let models = models_told(gateway.chat(true).await).await;
    assert!(models.iter().all(|model| model == "other"), "{models:?}");
    assert_eq!((controller.dispatch(1).model.as_str(), controller.dispatch(1).exact), ("other", true));
    assert_eq!(workers[1].asked()[0].generate().model, "other");
    assert_eq!(controller.outcomes(2).await, [Failed, Done]);
}

#[tokio::test]
async fn an_answer_of_which_nothing_has_come_is_sought_anew() {
    for is_stream in [false, true] {
        let scripts = vec![breaks(&said(&[])), answers()];
        let (gateway, mut controller, workers) = fleet(scripts, Transport::Http, &["one", "two"]).await;
        let models = models_told(gateway.chat(is_stream).await).await;
        assert!(!models.is_empty() && models.iter().all(|model| model == "two"), "{models:?}");
        assert_eq!((controller.dispatch(1).model.as_str(), controller.dispatch(1).exact), ("m", false));
        assert_eq!(workers[1].asked()[0].generate().model, "two");
        assert_eq!(controller.outcomes(2).await, [Failed, Done]);
    }
}

#[tokio::test]
async fn all_prompts_of_a_request_go_to_one_model() {
    for is_stream in [false, true] {
        let scripts = vec![answers(), answers(), answers()];
        let (gateway, controller, _workers) = fleet(scripts, Transport::Http, &["other"]).await;
        let body = json!({ "model": "m", "prompt": ["a", "b", "c"], "stream": is_stream });
        let models = models_told(gateway.post("/v1/completions", &body).await).await;
        assert!(!models.is_empty() && models.iter().all(|model| model == "other"), "{models:?}");
        let asked: Vec<_> =
            (0..3).map(|nth| (controller.dispatch(nth).model, controller.dispatch(nth).exact)).collect();
        let exactly = |model: &str, exact| (model.to_owned(), exact);
        assert_eq!(asked, [exactly("m", false), exactly("other", true), exactly("other", true)]);
    }
}

#[tokio::test]
async fn a_controller_that_comes_back_is_told_the_model_that_the_worker_knows() {
    let hanging = vec![send(events(&said(&[("Hel", 1)]))), Act::Hang];
    let (gateway, mut controller, _workers) = fleet(vec![hanging], Transport::Http, &["other"]).await;
    assert!(controller.greeted().await.is_empty());
    let mut response = gateway.chat(true).await;
    response.chunk().await.expect("a chunk").expect("a chunk");
    controller.go_away();
    controller.come_back();
    let held = controller.greeted().await;
    assert_eq!(held.iter().map(|held| held.model.as_str()).collect::<Vec<_>>(), ["other"]);
}
