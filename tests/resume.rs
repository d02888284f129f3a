//! Answers whose worker dies: another one goes on, and the client cannot tell.

mod common;

use std::collections::BTreeSet;

use common::answers::{self, Reply};
use common::relay::{self, Cut, Plans, Wire};
use common::{CHAT, Cluster, Process, chat_body, eventually, is_ready, worker};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

const STORY: &str = "Tell me a story about a fox.";
/// Tokens of an answer that is broken off.
const TOKENS: u64 = 40;
/// Requests that run at once: batches change no answer.
const AT_ONCE: usize = 8;
const CHATS: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// One worker, known to its gateway under three addresses; on each, answers break off as planned.
struct Fleet {
    gateway: Process,
    plans: Plans,
    client: reqwest::Client,
    _others: [Process; 3],
}

/// A question, and the answer when nothing breaks off.
struct Case {
    about: &'static str,
    path: &'static str,
    body: Value,
    calm: Reply,
}

impl Fleet {
    async fn start(wire: Wire) -> Self {
        // Failures in a row are what is tested here; nobody shall be spared because of them.
        let flags = ["controller", "--port", "0", "--heartbeat", "1s", "--breaker-failures", "1000000"];
        let controller = Process::start(&flags);
        // Without speculation, so that each token is an event.
        let flags = ["--model", CHAT, "--slots", "32", "--waiting", "64", "--speculation", "false", "--grpc-port", "0"];
        let worker = Process::start(&[&["worker", "--no-register", "--port", "0"], &flags[..]].concat());
        eventually("the worker is ready", async || is_ready(&worker.address).await).await;
        let (address, transport) = match wire {
            Wire::Http => (worker.address.clone(), "http"),
            Wire::Grpc => (worker.grpc_address().await, "grpc"),
        };
        let plans = Plans::default();
        let mut relays = Vec::new();
        for _ in 0..3 {
            relays.push(relay::start(&address, wire, &plans).await);
        }
        let flags = ["attach", "--controller-address", &controller.address, "--transport", transport, "--model", CHAT];
        let addresses: Vec<&str> = relays.iter().map(String::as_str).collect();
        let attached = Process::start(&[&flags[..], &addresses].concat());
        let known = async || {
            let fleet = controller.get("/fleet").await;
            fleet["workers"].as_array().expect("workers").len() == relays.len()
        };
        eventually("all addresses are known", known).await;
        let gateway = common::gateway(&controller.address, &["--log", "error"]);
        eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
        Self { gateway, plans, client: reqwest::Client::new(), _others: [controller, worker, attached] }
    }

    async fn ask(&self, path: &str, body: &Value, name: &str) -> Result<Reply, String> {
        answers::ask(&self.client, &format!("{}{path}", self.gateway.address), body, name).await
    }

    async fn case(&self, about: &'static str, path: &'static str, body: Value) -> Case {
        let calm = self.ask(path, &body, about).await.unwrap_or_else(|wrong| panic!("{about}: {wrong}"));
        Case { about, path, body, calm }
    }

    /// Asks with the answer broken off as said, however often; it must be the same.
    async fn cut(&self, case: &Case, cuts: &[Cut]) {
        let name = self.plans.make(&format!("{}/{cuts:?}", case.about).replace(' ', ""), cuts);
        let reply = self.ask(case.path, &case.body, &name).await.unwrap_or_else(|wrong| panic!("{name} {wrong}"));
        assert!(reply.is_like(&case.calm), "{name}\n{reply:?}\ninstead of\n{:?}", case.calm);
    }

    /// Breaks the answer off after every event, and within every third. Gives how many tokens there were each time.
    async fn cut_everywhere(&self, case: &Case) -> BTreeSet<usize> {
        // Those that begin and end it, the ends of its choices, an echoed prompt.
        let events = usize::try_from(case.calm.usage[1]).expect("a few") + case.calm.choices.len() + 3;
        let cuts = (0..events).map(Cut::After).chain((0..events).step_by(3).map(Cut::Within));
        stream::iter(cuts).for_each_concurrent(AT_ONCE, async |cut| self.cut(case, &[cut]).await).await;
        let resumed = (0..events).flat_map(|event| {
            let name = format!("relay:{}/{:?};", case.about, [Cut::After(event)]).replace(' ', "");
            self.plans.asked(&name)
        });
        resumed.filter_map(|body| Some(body["resume"]["choices"][0]["tokens"].as_array()?.len())).collect()
    }
}

/// A question with more fields.
fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn story(more: Value) -> Value {
    let body = with(chat_body(CHAT, STORY), json!({ "max_tokens": TOKENS, "ignore_eos": true, "stream": true }));
    with(body, more)
}

fn text(more: Value) -> Value {
    let prompt = format!("<|im_start|>user\n{STORY}<|im_end|>\n<|im_start|>assistant\n");
    let body = json!({ "model": CHAT, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": true });
    with(with(body, json!({ "stream": true })), more)
}

/// A piece of the text behind so many characters that begins and ends within a word, and stands nowhere before.
fn stop_string(text: &str, behind: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    let pieces = (behind..characters.len() - 3).filter(|&at| characters[at] == ' ');
    let mut pieces = pieces.map(|at| characters[at - 2..at + 3].iter().collect::<String>());
    let is_new = |piece: &String| text.find(piece.as_str()).is_some_and(|at| text[..at].chars().count() + 2 >= behind);
    pieces.find(is_new).expect("two words that have not met before")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_anywhere_goes_on_as_if_it_had_not() {
    let fleet = Fleet::start(Wire::Http).await;
    let longer = fleet.case("longer", CHATS, story(json!({ "max_tokens": 70 }))).await;
    let stop = stop_string(&longer.calm.choices[0].text, longer.calm.choices[0].text.len() * 3 / 4);
    let drawn = json!({ "temperature": 1.3, "seed": 11, "presence_penalty": 0.6, "repetition_penalty": 1.1 });
    for (about, path, body) in [
        ("greedy", CHATS, story(json!({}))),
        ("drawn", CHATS, story(drawn.clone())),
        ("stop", CHATS, story(json!({ "max_tokens": 70, "stop": [stop, "never said"] }))),
        ("logprobs", CHATS, story(json!({ "logprobs": true, "top_logprobs": 2 }))),
        ("echo", COMPLETIONS, text(json!({ "echo": true }))),
        ("logprobs of a completion", COMPLETIONS, text(with(drawn.clone(), json!({ "logprobs": 1 })))),
    ] {
        let case = fleet.case(about, path, body).await;
        let tokens = fleet.cut_everywhere(&case).await;
        assert!(case.calm.usage[1] >= TOKENS, "{about} is too short: {:?}", case.calm);
        let wanted: BTreeSet<usize> = (1..usize::try_from(case.calm.usage[1]).expect("a few")).collect();
        assert!(tokens.is_superset(&wanted), "{about}: never broken off after {:?}", &wanted - &tokens);
    }
    // Of two answers one may have ended.
    for (about, more) in [("two", json!({ "n": 2 })), ("two that stop", json!({ "n": 2, "stop": "."}))] {
        let case = fleet.case(about, CHATS, story(with(drawn.clone(), more))).await;
        fleet.cut_everywhere(&case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_that_breaks_off_anywhere_is_the_same() {
    let fleet = Fleet::start(Wire::Http).await;
    let drawn = json!({ "temperature": 1.3, "seed": 12, "n": 2, "stream": false, "logprobs": true });
    for (about, path, body) in [
        ("whole", CHATS, story(json!({ "stream": false }))),
        ("two whole", CHATS, story(drawn)),
        ("whole text", COMPLETIONS, text(json!({ "stream": false, "echo": true, "stop": "." , "max_tokens": 80 }))),
    ] {
        let case = fleet.case(about, path, body).await;
        fleet.cut_everywhere(&case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_break_off_again_and_again() {
    let fleet = Fleet::start(Wire::Http).await;
    let case = fleet.case("greedy", CHATS, story(json!({}))).await;
    for event in 0..TOKENS as usize {
        // Twice before a token comes: the third worker is the last that is tried.
        fleet.cut(&case, &[Cut::After(event), Cut::Within(0), Cut::After(3)]).await;
        fleet.cut(&case, &[Cut::Within(event), Cut::After(2), Cut::After(1), Cut::After(2), Cut::Within(4)]).await;
    }
    let every: Vec<Cut> = (0..TOKENS).map(|_| Cut::After(2)).collect();
    fleet.cut(&case, &every).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_seed_keeps_the_one_it_got() {
    let fleet = Fleet::start(Wire::Http).await;
    let body = story(json!({ "temperature": 1.3 }));
    let mut seeds = BTreeSet::new();
    for event in [0, 1, 2, 11, 30, 41] {
        let name = fleet.plans.make(&format!("seed/{event}"), &[Cut::After(event), Cut::After(3)]);
        let reply = fleet.ask(CHATS, &body, &name).await.unwrap_or_else(|wrong| panic!("{name} {wrong}"));
        let asked = fleet.plans.asked(&name);
        let seed = asked[0]["sampling"]["seed"].as_u64().expect("the gateway draws one");
        assert!(asked.len() > 1 && asked.iter().all(|body| body["sampling"]["seed"] == seed), "{asked:?}");
        let calm = fleet.ask(CHATS, &with(body.clone(), json!({ "seed": seed })), "calm").await.expect("an answer");
        assert!(reply.is_like(&calm), "{name}\n{reply:?}\ninstead of\n{calm:?}");
        seeds.insert(seed);
    }
    assert_eq!(seeds.len(), 6, "each request has its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_on_over_grpc_too() {
    let fleet = Fleet::start(Wire::Grpc).await;
    let drawn = json!({ "temperature": 1.3, "seed": 13, "n": 2, "logprobs": true });
    for (about, path, body) in [
        ("greedy", CHATS, story(json!({}))),
        ("drawn", CHATS, story(drawn)),
        ("whole", CHATS, story(json!({ "stream": false }))),
        ("echo", COMPLETIONS, text(json!({ "echo": true }))),
    ] {
        let case = fleet.case(about, path, body).await;
        let before = fleet.gateway.metric("muster_gateway_resumptions_total").await;
        // One after the other: they share the connection that breaks.
        for event in (0..8).chain([13, 20, 33, 39]) {
            fleet.cut(&case, &[Cut::After(event)]).await;
            fleet.cut(&case, &[Cut::Within(event), Cut::After(2)]).await;
        }
        let resumed = fleet.gateway.metric("muster_gateway_resumptions_total").await - before;
        assert!(resumed >= 20.0, "{about}: only {resumed} answers went on elsewhere");
    }
}

/// The first letters that the fake model says.
fn said(letters: usize) -> String {
    "All models are wrong, but some are useful. ".chars().cycle().take(letters).collect()
}

/// A stream of the fake model, and what has come of it.
struct Following {
    response: reqwest::Response,
    text: String,
}

impl Following {
    async fn begin(gateway: &Process) -> Self {
        let body = with(chat_body("fake", "hello"), json!({ "stream": true, "temperature": 1 }));
        let request = reqwest::Client::new().post(format!("{}{CHATS}", gateway.address)).json(&body);
        let response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{response:?}");
        Self { response, text: String::new() }
    }

    fn letters(&self) -> String {
        let events = self.text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let chunks = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    }

    /// Reads on until there are so many letters, or the end.
    async fn until(&mut self, letters: usize) {
        while self.letters().len() < letters
            && let Some(piece) = self.response.chunk().await.expect("the gateway ends the stream itself")
        {
            self.text.push_str(&String::from_utf8_lossy(&piece));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_process_that_answers_leaves_no_gap() {
    let steady = ["--model", "fake", "--fake-token-time", "10ms", "--fake-answer", "40"];
    let mut cluster = Cluster::start(&[&steady, &steady]).await;
    for letters in [0, 1, 2, 13, 30, 38] {
        let mut stream = Following::begin(&cluster.gateway).await;
        stream.until(letters).await;
        let busy = async || {
            let fleet = cluster.controller.get("/fleet").await;
            let busy = fleet["workers"].as_array()?.iter().find(|worker| worker["tickets"] == 1)?;
            busy["id"].as_str().map(str::to_owned)
        };
        let busy = busy().await.expect("it runs somewhere");
        let victim = cluster.workers.iter().position(|worker| worker.address == busy).expect("one of ours");
        cluster.workers[victim].kill();
        stream.until(usize::MAX).await;
        assert_eq!(stream.letters(), said(40), "killed after {letters}");
        assert_eq!(stream.text.matches("data: [DONE]\n\n").count(), 1);
        assert_eq!(stream.text.matches("\"finish_reason\":\"stop\"").count(), 1);
        cluster.restart(victim, &steady).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_only_worker_is_killed_waits_for_another() {
    let steady = ["--model", "fake", "--fake-token-time", "10ms", "--fake-answer", "60"];
    let mut cluster = Cluster::start(&[&steady]).await;
    let mut stream = Following::begin(&cluster.gateway).await;
    stream.until(5).await;
    cluster.workers[0].kill();
    let gone = async || cluster.controller.get("/fleet").await["workers"][0]["state"] == "gone";
    eventually("its lease is over", gone).await;
    let _another = worker(&cluster.controller.address, &steady);
    stream.until(usize::MAX).await;
    assert_eq!(stream.letters(), said(60));
    assert!(stream.text.ends_with("data: [DONE]\n\n"), "{}", stream.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_finds_no_other_worker_in_time_says_so() {
    let slow = ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000"];
    let mut cluster = Cluster::start(&[&slow]).await;
    let impatient = common::gateway(&cluster.controller.address, &["--resume-timeout", "300ms"]);
    eventually("the gateway is ready", async || is_ready(&impatient.address).await).await;
    let mut stream = Following::begin(&impatient).await;
    stream.until(3).await;
    cluster.workers[0].kill();
    stream.until(usize::MAX).await;
    let (letters, text) = (stream.letters(), &stream.text);
    assert_eq!(letters, said(letters.len()), "what came is right");
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    assert!(!text.contains(&cluster.workers[0].address), "a client sees no addresses: {text}");
}
