//! Aliases, fallbacks and policies of single models: from the command line to what a client reads.

mod common;

use std::collections::BTreeMap;

use common::{Cluster, Process, chat_body, eventually, gateway, is_ready, run, stream};
use futures_util::{StreamExt as _, stream as streams};
use serde_json::{Value, json};

/// Requests by which shares are told. One tenth of them are 40, and it is all but never that fewer than 15 or more than
/// 70 of them go there: more than four standard deviations.
const MANY: usize = 400;
const TENTH: std::ops::RangeInclusive<usize> = 15..=70;
/// Requests that run at once.
const AT_ONCE: usize = 8;
const OLD: [&str; 4] = ["--model", "old=fake", "--fake-answer", "3"];
const NEW: [&str; 4] = ["--model", "new=fake", "--fake-answer", "3"];
const CANARY: [&str; 4] = ["--heartbeat", "1s", "--alias", "chat=old:90,new:10"];

/// How many of so many chats each model has answered; none fails.
async fn shares(gateway: &Process, asked: &str, count: usize) -> BTreeMap<String, usize> {
    let chats = streams::iter(0..count).map(|number| async move {
        let body = chat_body(asked, "hi");
        if number % 2 == 0 {
            let (status, reply) = gateway.post("/v1/chat/completions", &body).await;
            assert_eq!(status, 200, "{reply}");
            return reply["model"].as_str().expect("a model").to_owned();
        }
        let events = stream(&gateway.address, body).await;
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
        let chunk = |event: &String| serde_json::from_str::<Value>(event).ok();
        let mut models: Vec<Value> = events.iter().filter_map(chunk).map(|chunk| chunk["model"].clone()).collect();
        models.dedup();
        assert_eq!(models.len(), 1, "one model gives the whole of an answer: {models:?}");
        models[0].as_str().expect("a model").to_owned()
    });
    let mut shares = BTreeMap::new();
    for model in chats.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
        *shares.entry(model).or_default() += 1;
    }
    shares
}

fn only(model: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(model.to_owned(), count)])
}

async fn listed(gateway: &Process) -> Vec<String> {
    let models = gateway.get("/v1/models").await;
    models["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| model["id"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_and_gives_it_back_when_it_dies() {
    let mut cluster = Cluster::with_controller(&CANARY, &[&OLD, &NEW]).await;
    assert_eq!(listed(&cluster.gateway).await, ["chat", "new", "old"]);
    let chat = cluster.gateway.get("/v1/models/chat").await;
    assert_eq!((&chat["kind"], &chat["object"]), (&json!("generate"), &json!("model")));
    let before = shares(&cluster.gateway, "chat", MANY).await;
    assert!(TENTH.contains(&before["new"]) && before["new"] + before["old"] == MANY, "{before:?}");
    assert_eq!(shares(&cluster.gateway, "new", 10).await, only("new", 10));
    cluster.workers[1].kill();
    assert_eq!(shares(&cluster.gateway, "chat", 60).await, only("old", 60), "and no request has failed");
    let (status, refused) = cluster.gateway.post("/v1/embeddings", &json!({ "model": "chat", "input": "hi" })).await;
    let message = refused["error"]["message"].as_str().expect("a message");
    assert_eq!(status, 400, "{message}");
    assert!(message.starts_with("the model `chat` is a language model"), "{message}");
    cluster.workers[0].kill();
    let gone = async || cluster.gateway.post("/v1/chat/completions", &chat_body("chat", "hi")).await.0 == 503;
    eventually("the last worker is gone", gone).await;
    let (_, refused) = cluster.gateway.post("/v1/chat/completions", &chat_body("chat", "hi")).await;
    let message = refused["error"]["message"].as_str().expect("a message");
    assert!(message.contains("`chat`") && message.contains("`old`") && message.contains("`new`"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_leads_to_servers_that_speak_openais_api_and_to_workers_alike() {
    let controller = Process::start(&[&["controller", "--port", "0"], &CANARY[..]].concat());
    let server = Process::start(&[&["up", "--port", "0"], &OLD[..]].concat());
    let _attach = Process::start(&["attach", "--controller-address", &controller.address, &server.address]);
    let _worker = common::worker(&controller.address, &NEW);
    let known = async || controller.get("/fleet").await["workers"].as_array().is_some_and(|known| known.len() == 2);
    eventually("both are registered", known).await;
    let gateway = gateway(&controller.address, &[]);
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
    gateway.get("/v1/models").await;
    let shares = shares(&gateway, "chat", MANY).await;
    assert!(TENTH.contains(&shares["new"]) && shares["new"] + shares["old"] == MANY, "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_answers_while_a_model_is_full_and_when_it_is_gone() {
    let flags = ["--heartbeat", "1s", "--fallback", "big=small", "--model-policy", "big=lottery"];
    let slow = ["--model", "big=fake", "--fake-token-time", "20ms", "--fake-answer", "100000"];
    let big = [&slow[..], &["--slots", "1", "--waiting", "0"]].concat();
    let mut cluster = Cluster::with_controller(&flags, &[&big, &["--model", "small=fake", "--fake-answer", "3"]]).await;
    let fleet = cluster.controller.get("/fleet").await;
    assert_eq!(
        (&fleet["models"][0]["fallbacks"], &fleet["models"][0]["policy"]),
        (&json!(["small"]), &json!("lottery"))
    );

    let mut body = chat_body("big", "hi");
    body["stream"] = json!(true);
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", cluster.gateway.address)).json(&body);
    let mut running = request.send().await.expect("an answer");
    running.chunk().await.expect("a chunk").expect("a chunk");
    assert_eq!(shares(&cluster.gateway, "big", 10).await, only("small", 10), "`big` has room for one");
    drop(running);
    cluster.workers[0].kill();
    assert_eq!(shares(&cluster.gateway, "big", 10).await, only("small", 10), "`big` is gone");
    assert!(listed(&cluster.gateway).await.contains(&"big".to_owned()), "it can be asked for all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_broke_off_goes_on_at_another_worker_of_its_model() {
    let long = |model: &'static str| ["--model", model, "--fake-token-time", "5ms", "--fake-answer", "200"];
    let (old, new) = (long("old=fake"), long("new=fake"));
    let mut cluster =
        Cluster::with_controller(&["--heartbeat", "1s", "--alias", "chat=old:1"], &[&old, &old, &new]).await;
    let whole = common::text_of(&stream(&cluster.gateway.address, chat_body("chat", "hi")).await);
    let mut body = chat_body("chat", "hi");
    body["stream"] = json!(true);
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", cluster.gateway.address)).json(&body);
    let mut response = request.send().await.expect("an answer");
    let mut text = response.chunk().await.expect("a chunk").expect("a chunk").to_vec();
    let fleet = cluster.controller.get("/fleet").await;
    let busy = fleet["workers"].as_array().expect("workers").iter().find(|worker| worker["tickets"] == 1);
    let address = busy.expect("one has the request")["address"].clone();
    let index = cluster.workers.iter().position(|worker| address == worker.address.as_str()).expect("it is known");
    cluster.workers[index].kill();
    while let Some(chunk) = response.chunk().await.expect("the stream goes on") {
        text.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(text).expect("text");
    let events: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
    assert_eq!(common::text_of(&events), whole);
    let models = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    assert!(models.map(|chunk| chunk["model"].clone()).all(|model| model == "old"), "{text}");
}

#[test]
fn names_that_cannot_be_in_force_are_refused_at_the_start() {
    for (flags, words) in [
        (&["--alias", "chat=a:nan"][..], "aliases: the weight of `a` in `chat` is NaN"),
        (&["--alias", "chat=a:0,b:0"], "aliases: the weights of `chat` sum to 0"),
        (&["--alias", "chat=a:many"], "`many` is no weight; write MODEL:WEIGHT"),
        (&["--alias", "chat"], "`chat` has no `=`; write NAME=MODEL:WEIGHT"),
        (&["--alias", "a=b", "--alias", "b=c"], "aliases: `a` leads to `b`, which is an alias"),
        (&["--alias", "a=b", "--alias", "a=c"], "aliases: `a` is given twice"),
        (&["--fallback", "big=big"], "fallbacks: `big` is a fallback of itself"),
        (&["--fallback", "big="], "fallbacks: a name is empty behind `big`"),
        (&["--model-policy", "big=coin"], "policies: `big`: unknown dispatch policy `coin`; expected one of: lottery"),
    ] {
        let (status, _, errors) = run(&[&["controller", "--port", "0"], flags].concat());
        assert!(!status.success() && errors.contains(words), "{flags:?}: {errors}");
    }
}

#[test]
fn what_is_in_force_is_shown_and_can_be_read_again() {
    let flags = ["--alias", "chat=old:90,new:10", "--alias", "gpt=old", "--fallback", "big=medium,small"];
    let flags = [&flags[..], &["--model-policy", "big=LOTTERY", "--print-config"]].concat();
    let (status, printed, errors) = run(&[&["controller"], &flags[..]].concat());
    assert!(status.success(), "{errors}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &printed).expect("it can be written");
    let path = file.path().to_string_lossy().into_owned();
    let (_, again, errors) = run(&["--config", &path, "controller", "--print-config"]);
    assert_eq!(again, printed, "{errors}");
    let mut command = common::muster(&["controller", "--print-config"]);
    command.env("MUSTER_CONTROLLER_ALIASES", "chat=old:90,new:10;gpt=old");
    command.env("MUSTER_CONTROLLER_FALLBACKS", "big=medium,small").env("MUSTER_CONTROLLER_POLICIES", "big=LOTTERY");
    let output = command.output().expect("the binary runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), printed, "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(file.path(), "controller:\n  aliases: {chat: {a: .nan}}\n").expect("it can be written");
    let (status, _, errors) = run(&["--config", &path, "controller"]);
    assert!(!status.success() && errors.contains("aliases: the weight of `a` in `chat` is NaN"), "{errors}");
}
