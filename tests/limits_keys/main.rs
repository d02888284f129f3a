//! Limits of keys, with real processes and several threads of one gateway: exact, whatever comes at once.

#[path = "../common/mod.rs"]
mod common;
mod tokens;

use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{CHAT, Cluster, EMBEDDING, Process, chat_body, eventually, gateway, is_ready};
use futures_util::future::join_all;
use muster_shared::client::ClientError;
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::Kind;
use muster_shared::secret::Secret;
use muster_shared::tensor::InferRequest;
use reqwest::{Client, Response};
use serde_json::{Value, json};

const CHATS: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// Budget of tokens that no test uses up.
const PLENTY: u64 = 1_000_000;

/// A file of keys, a gateway that reads it, and a fleet behind them.
struct Keyed {
    cluster: Cluster,
    gateway: Process,
    file: tempfile::NamedTempFile,
    client: Client,
}

impl Keyed {
    /// A gateway of four threads with such keys in front of workers with these flags.
    async fn start(keys: &str, workers: &[&[&str]]) -> Self {
        let cluster = Cluster::start(workers).await;
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(keys.as_bytes()).expect("it is written");
        let flags = ["--api-key-file", path(file.path()), "--threads", "4", "--grpc-port", "0"];
        let gateway = gateway(&cluster.controller.address, &flags);
        eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
        Self { cluster, gateway, file, client: Client::new() }
    }

    async fn send(&self, key: &str, path: &str, body: &Value) -> Response {
        let request = self.client.post(format!("{}{path}", self.gateway.address)).bearer_auth(key).json(body);
        request.send().await.expect("an answer")
    }

    async fn ask(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        let response = self.send(key, path, body).await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn get(&self, key: &str, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.gateway.address)).bearer_auth(key);
        request.send().await.expect("an answer")
    }

    /// Tokens that the key `a` was charged since the start, of requests that have ended.
    async fn charged(&self) -> u64 {
        self.gateway.metric("muster_gateway_key_tokens_total{key=\"a\"").await as u64
    }

    /// Tokens of the budget that a key has used in the last minute, as a header tells; the request that asks takes none.
    async fn used(&self, key: &str) -> u64 {
        let response = self.get(key, "/v1/models").await;
        assert_eq!(response.status(), 200);
        number(&response, "x-ratelimit-limit-tokens") - number(&response, "x-ratelimit-remaining-tokens")
    }

    /// Puts other keys into the file, at once.
    fn write(&self, keys: &str) {
        let folder = self.file.path().parent().expect("a folder");
        let mut new = tempfile::NamedTempFile::new_in(folder).expect("a file");
        new.write_all(keys.as_bytes()).expect("it is written");
        new.persist(self.file.path()).expect("it is replaced");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("text"))
}

fn number(response: &Response, name: &str) -> u64 {
    header(response, name).unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// Seconds in a duration as OpenAI writes it: `1m0.5s`, `20ms`.
fn seconds(text: &str) -> f64 {
    let number = |text: &str| text.parse::<f64>().unwrap_or_else(|_| panic!("{text} is no number"));
    match text.strip_suffix("ms") {
        Some(millis) => number(millis) / 1000.0,
        None => {
            let text = text.strip_suffix('s').unwrap_or_else(|| panic!("{text} is no time"));
            text.split_once('m').map_or_else(|| number(text), |(minutes, rest)| number(minutes) * 60.0 + number(rest))
        }
    }
}

fn short(model: &str) -> Value {
    let mut body = chat_body(model, "hi");
    body["max_tokens"] = json!(2);
    body
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    body
}

fn total(usage: &Value) -> u64 {
    usage["total_tokens"].as_u64().unwrap_or_else(|| panic!("no usage: {usage}"))
}

/// The `usage` of a stream, which is in the last of its events.
async fn total_of_stream(response: Response) -> u64 {
    let text = response.text().await.expect("a whole stream");
    assert!(text.ends_with("[DONE]\n\n"), "{text}");
    let events = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    let usage = events.map(|event: Value| event["usage"].clone()).find(|usage| !usage.is_null());
    total(&usage.expect("usage"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_let_exactly_a_hundred_through() {
    let keys = "keys:\n  - {name: many, key: key one, requests_per_minute: 100, rate: off}\n  \
                - {name: tokens, key: key two, tokens_per_minute: 1000, rate: off}\n";
    let fast = ["--model", "fake", "--slots", "64", "--waiting", "2000"];
    let still = ["--model", "still=fake", "--fake-token-time", "600s", "--slots", "128"];
    let fleet = Keyed::start(keys, &[&fast, &still]).await;
    let asked = |key: &'static str, path: &'static str, body: Value| {
        // A connection for each, so that all threads have some.
        let requests = (0..1000).map(|_| {
            let request = Client::builder().pool_max_idle_per_host(0).build().expect("a client");
            let request = request.post(format!("{}{path}", fleet.gateway.address)).bearer_auth(key).json(&body);
            async move { request.send().await.expect("an answer") }
        });
        join_all(requests.collect::<Vec<_>>())
    };
    let answers = asked("key one", CHATS, short("fake")).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((count(200), count(429)), (100, 900));
    let refused = answers.iter().find(|answer| answer.status() == 429).expect("there are 900");
    assert_eq!(
        (number(refused, "x-ratelimit-limit-requests"), number(refused, "x-ratelimit-remaining-requests")),
        (100, 0)
    );
    assert!(header(refused, "x-ratelimit-limit-tokens").is_none());
    assert!((1..=61).contains(&number(refused, "retry-after")) && number(refused, "retry-after-ms") <= 61_000);
    assert_eq!(fleet.gateway.metric("muster_gateway_limited_total{limit=\"requests\"").await, 900.0);

    // Each reserves 10 of 1000, and none has ended before all have asked.
    let endless = json!({ "model": "still", "prompt": "hi", "max_tokens": 9, "stream": true });
    let answers = asked("key two", COMPLETIONS, endless).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((count(200), count(429)), (100, 900));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_charged_is_what_usage_says_to_the_token() {
    let keys = format!("keys:\n  - {{name: a, key: key one, tpm: {PLENTY}, rate: off}}\n");
    let demo = ["--fake-token-time", "5ms", "--fake-answer", "200", "--slots", "16", "--waiting", "200"];
    let fleet =
        Keyed::start(&keys, &[&[&["--model", "fake"][..], &demo].concat(), &["--model", CHAT, "--model", EMBEDDING]])
            .await;
    let mut sum = 0;
    let several = json!({ "model": CHAT, "prompt": ["Once upon", "a time there was", "x"], "max_tokens": 7, "n": 2 });
    let texts = json!({ "model": EMBEDDING, "input": ["one text", "another text, somewhat longer"] });
    for _ in 0..3 {
        for (path, body) in [
            (CHATS, short(CHAT)),
            (CHATS, short("fake")),
            (COMPLETIONS, several.clone()),
            ("/v1/embeddings", texts.clone()),
        ] {
            let (status, answer) = fleet.ask("key one", path, &body).await;
            assert_eq!(status, 200, "{answer}");
            sum += total(&answer["usage"]);
            assert_eq!(fleet.charged().await, sum, "{path}");
        }
        for (path, body) in [(CHATS, short(CHAT)), (CHATS, short("fake")), (COMPLETIONS, several.clone())] {
            sum += total_of_stream(fleet.send("key one", path, &streamed(body)).await).await;
            eventually("it is settled", async || fleet.charged().await == sum).await;
        }
        for (status, body) in [
            (404, short("nobody")),
            (400, json!({ "model": CHAT, "messages": 7 })),
            (400, json!({ "model": CHAT, "prompt": 7.5 })),
        ] {
            let path = if body.get("prompt").is_some() { COMPLETIONS } else { CHATS };
            let (got, answer) = fleet.ask("key one", path, &body).await;
            assert_eq!(got, status, "{answer}");
            assert_eq!(fleet.charged().await, sum, "what is refused costs nothing");
        }
    }
    let at_once = join_all((0..40).map(|number| {
        let (fleet, several) = (&fleet, several.clone());
        async move {
            match number % 3 {
                0 => total(&fleet.ask("key one", CHATS, &short("fake")).await.1["usage"]),
                1 => total_of_stream(fleet.send("key one", CHATS, &streamed(short("fake"))).await).await,
                _ => total(&fleet.ask("key one", COMPLETIONS, &several).await.1["usage"]),
            }
        }
    }));
    sum += at_once.await.into_iter().sum::<u64>();
    eventually("all is settled", async || fleet.charged().await == sum).await;

    // One whose client leaves pays its prompt and what came.
    let (_, whole) = fleet.ask("key one", CHATS, &short("fake")).await;
    sum += total(&whole["usage"]);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().expect("a number");
    let mut body = streamed(chat_body("fake", "hi"));
    body["max_tokens"] = json!(150);
    let mut response = fleet.send("key one", CHATS, &body).await;
    let mut text = String::new();
    while text.matches("\"content\"").count() < 4 {
        text += std::str::from_utf8(&response.chunk().await.expect("more").expect("more")).expect("text");
    }
    assert!(fleet.used("key one").await >= prompt + 150, "what it may use is reserved while it runs");
    drop(response);
    eventually("it is settled", async || fleet.charged().await > sum).await;
    let paid = fleet.charged().await - sum;
    assert!(paid < prompt + 150, "{paid} for a prompt of {prompt} and less than its answer");
    assert!(paid >= prompt + 3, "{paid} for a prompt of {prompt} and three tokens at least");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_key_are_counted_and_give_their_place_back() {
    let keys = "keys:\n  - {name: a, key: key one, max_streams: 3, rate: off}\n";
    let slow = ["--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000", "--slots", "16"];
    let fleet = Keyed::start(keys, &[&slow]).await;
    let endless = streamed(chat_body("fake", "hi"));
    let mut running: Vec<Response> = Vec::new();
    let answers = join_all((0..20).map(|_| fleet.send("key one", CHATS, &endless))).await;
    for answer in answers {
        match answer.status().as_u16() {
            200 => running.push(answer),
            status => {
                assert_eq!((status, header(&answer, "retry-after")), (429, Some("1")));
                let error = answer.json::<Value>().await.expect("JSON");
                assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("3 streamed")), "{error}");
            }
        }
    }
    assert_eq!(running.len(), 3);
    assert_eq!(fleet.ask("key one", CHATS, &short("fake")).await.0, 200, "a whole answer is no stream");
    let place = async || {
        let mut body = streamed(short("fake"));
        body["max_tokens"] = json!(1);
        let answer = fleet.send("key one", CHATS, &body).await;
        let passed = answer.status() == 200;
        if passed {
            total_of_stream(answer).await;
        }
        passed
    };
    assert!(!place().await);
    running.pop();
    eventually("whose client leaves gives its place back", place).await;
    eventually("so does one that ends", place).await;
    let (status, answer) =
        fleet.ask("key one", CHATS, &json!({ "model": "fake", "stream": true, "messages": [] })).await;
    assert_eq!(status, 400, "{answer}");
    eventually("so does one that is refused", place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_sees_and_uses_its_own_models_only() {
    let keys = "keys:\n  - {name: some, key: key one, models: [fake, 'org/*']}\n  - {name: all, key: key two}\n";
    let models = ["--model", "fake", "--model", "org/a=fake", "--model", "hidden=fake", "--model", EMBEDDING];
    let fleet = Keyed::start(keys, &[&models]).await;
    let listed = async |key| {
        let list: Value = fleet.get(key, "/v1/models").await.json().await.expect("JSON");
        let names = list["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|model| model["id"].as_str().expect("a name").to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    assert_eq!(listed("key one").await, ["fake", "org/a"]);
    assert_eq!(listed("key two").await.len(), 4);
    for (model, status) in
        [("fake", 200), ("org/a", 200), ("hidden", 404), (EMBEDDING, 404), ("org", 404), ("nobody", 404)]
    {
        let (got, answer) = fleet.ask("key one", CHATS, &short(model)).await;
        assert_eq!(got, status, "{model}: {answer}");
        assert_eq!(fleet.get("key one", &format!("/v1/models/{model}")).await.status(), status, "{model}");
        if status == 404 {
            let error = &answer["error"];
            assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
            assert!(error["message"].as_str().is_some_and(|text| text.contains("may not use it")), "{error}");
            assert_eq!(fleet.get("key one", &format!("/v2/models/{model}")).await.status(), 404);
            assert_eq!(fleet.get("key one", &format!("/v2/models/{model}/stats")).await.status(), 404);
        }
    }
    // The last of two names is the one that is read.
    let twice = r#"{"model":"fake","messages":[{"role":"user","content":"hi"}],"max_tokens":1,"model":"hidden"}"#;
    let request = fleet.client.post(format!("{}{CHATS}", fleet.gateway.address)).bearer_auth("key one").body(twice);
    assert!([400, 404].contains(&request.send().await.expect("an answer").status().as_u16()));
    for (path, body) in [
        (COMPLETIONS, json!({ "model": "hidden", "prompt": "x" })),
        ("/v1/embeddings", json!({ "model": EMBEDDING, "input": "x" })),
        ("/tokenize", json!({ "model": "hidden", "prompt": "x" })),
    ] {
        assert_eq!(fleet.ask("key one", path, &body).await.0, 404, "{path}");
        assert_eq!(fleet.ask("key two", path, &body).await.0, 200, "{path}");
    }
    let index = fleet.send("key one", "/v2/repository/index", &json!({})).await;
    assert_eq!(index.json::<Value>().await.expect("JSON"), json!([]), "none of its own is one of tensors");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_in_force_without_a_request_that_fails() {
    let keys = |stays: &str, other: &str| format!("keys:\n  - {{name: stays, key: key one{stays}}}\n{other}");
    let first = keys(", rate: off, rpm: 1000000", "  - {name: goes, key: key two}\n");
    let slow = [
        "--model",
        "fake",
        "--fake-token-time",
        "10ms",
        "--fake-answer",
        "100000",
        "--slots",
        "64",
        "--waiting",
        "500",
    ];
    let fleet = Keyed::start(&first, &[&slow]).await;
    let status = async |key: &str| fleet.ask(key, CHATS, &short("fake")).await.0;
    let mut running = fleet.send("key two", CHATS, &streamed(chat_body("fake", "hi"))).await;
    running.chunk().await.expect("a first chunk");
    assert_eq!((status("key two").await, status("key three").await), (200, 401));

    let stop = Arc::new(AtomicBool::new(false));
    let load = || {
        let (client, stop, url) =
            (fleet.client.clone(), Arc::clone(&stop), format!("{}{CHATS}", fleet.gateway.address));
        tokio::spawn(async move {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                let request = client.post(&url).bearer_auth("key one").json(&short("fake"));
                assert_eq!(request.send().await.expect("an answer").status(), 200);
                asked += 1;
            }
            asked
        })
    };
    let load: Vec<_> = (0..4).map(|_| load()).collect();

    fleet.write(&keys(", rate: off, rpm: 2000000", "  - {name: comes, key: key three}\n"));
    eventually("the new key is let in", async || status("key three").await == 200).await;
    assert_eq!(status("key two").await, 401, "one that is gone is refused");
    assert!(running.chunk().await.expect("more").is_some(), "what it has begun goes on");
    let answer = fleet.send("key one", CHATS, &short("fake")).await;
    assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 2_000_000, "limits change");
    assert!(number(&answer, "x-ratelimit-remaining-requests") < 1_999_999, "what was used was used");
    eventually("it is told", async || fleet.gateway.errors().contains("keys read again")).await;

    for (text, words) in [
        ("", "holds no key"),
        ("keys: []\n", "holds no key"),
        ("# nobody\n", "holds no key"),
        ("keys:\n  - {name: stays, key: key four, rpm: 0}\n", "line 2, column 5: requests_per_minute is 0"),
        ("keys:\n  - {name: a, key: }\n", "line 2"),
    ] {
        let before = fleet.gateway.errors().matches("stay as they were").count();
        fleet.write(text);
        let told = async || fleet.gateway.errors().matches("stay as they were").count() > before;
        eventually(words, told).await;
        let errors = fleet.gateway.errors();
        let line = errors.lines().rfind(|line| line.contains("stay as they were")).expect("it was told");
        assert!(line.contains(words) && !line.contains("key four"), "{text:?}: {line}");
        assert_eq!((status("key three").await, status("key four").await), (200, 401));
        let open = Client::new().post(format!("{}{CHATS}", fleet.gateway.address)).json(&short("fake")).send().await;
        assert_eq!(open.expect("an answer").status(), 401, "it is not open");
    }
    assert!(fleet.gateway.metric("muster_gateway_keys_reloads_total{result=\"ok\"").await >= 1.0);
    assert!(fleet.gateway.metric("muster_gateway_keys_reloads_total{result=\"failed\"").await >= 3.0);
    stop.store(true, Ordering::Relaxed);
    let asked: usize = join_all(load).await.into_iter().map(|asked| asked.expect("none failed")).sum();
    assert!(asked > 0);
    assert_eq!(fleet.cluster.workers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_told_with_numbers_and_a_time_to_come_back() {
    let keys = "keys:\n  - {name: little, key: key one, rpm: 3, tpm: 500, rate: off}\n  \
                - {name: fast, key: key two, rate: 1/h, burst: 2}\n";
    let fleet = Keyed::start(keys, &[&["--model", "fake"]]).await;
    let answer = fleet.send("key one", CHATS, &short("fake")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        (number(&answer, "x-ratelimit-limit-requests"), number(&answer, "x-ratelimit-remaining-requests")),
        (3, 2)
    );
    assert_eq!(number(&answer, "x-ratelimit-limit-tokens"), 500);
    for name in ["x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"] {
        let reset = seconds(header(&answer, name).expect("a time"));
        assert!((30.0..=61.0).contains(&reset), "{name}: {reset}");
    }
    let list = fleet.get("key one", "/v1/models").await;
    assert_eq!(
        (list.status().as_u16(), number(&list, "x-ratelimit-remaining-requests")),
        (200, 2),
        "a list takes none"
    );

    let mut long = short("fake");
    long["max_tokens"] = json!(501);
    let (status, error) = fleet.ask("key one", CHATS, &long).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("max_tokens")), "{error}");
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("500 per minute")), "{error}");
    long["max_tokens"] = json!(490);
    let (status, error) = fleet.ask("key one", CHATS, &long).await;
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(
        (status, &error["error"]["code"], &error["error"]["type"]),
        (429, &json!("rate_limit_exceeded"), &json!("rate_limit_error"))
    );
    assert!(
        message.contains("`little` may use 500 tokens per minute") && message.contains("try again in "),
        "{message}"
    );

    for expected in [200, 200, 429] {
        let answer = fleet.send("key two", CHATS, &short("fake")).await;
        assert_eq!(answer.status(), expected);
        if expected == 429 {
            assert!((3000..=3600).contains(&number(&answer, "retry-after")));
            assert!(header(&answer, "x-ratelimit-limit-requests").is_none(), "it has no budget");
            let error = answer.json::<Value>().await.expect("JSON");
            let message = "rate limit exceeded: the key `fast` may make 1/h requests, and 2 at once; try again in ";
            assert!(error["error"]["message"].as_str().is_some_and(|text| text.starts_with(message)), "{error}");
        }
    }
    assert_eq!(fleet.get("key two", "/v1/models").await.status(), 429, "whatever it asks");
    assert_eq!(fleet.get("key two", "/health").await.status(), 200, "but whether it lives");
    let refused = fleet.gateway.metric("muster_gateway_limited_total{limit=\"rate\"").await;
    assert_eq!(refused, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_servers_tell_is_charged_and_where_they_do_not_what_was_reserved() {
    let keys = format!("keys:\n  - {{name: a, key: key one, tpm: {PLENTY}, rate: off}}\n");
    let fastchat =
        ["--transport", "fastchat", "--model", "fastchat=fake", "--fake-token-time", "10ms", "--fake-answer", "5000"];
    let fleet = Keyed::start(&keys, &[&fastchat]).await;
    let embed = format!("embed={}/model-worker/demo/embedding", env!("CARGO_MANIFEST_DIR"));
    let server = Process::start(&["up", "--port", "0", "--model", "openai=fake", "--model", &embed]);
    let attached = ["attach", "--controller-address", &fleet.cluster.controller.address, &server.address];
    let _attached = Process::start(&attached);
    let known = async || fleet.get("key one", "/v1/models").await.text().await.expect("text").contains("\"openai\"");
    eventually("the server is known", known).await;

    let mut sum = 0;
    let several = json!({ "model": "openai", "prompt": ["Once upon", "x"], "max_tokens": 7, "n": 2 });
    let texts = json!({ "model": "embed", "input": ["one text", "another text"] });
    for (path, body) in [
        (CHATS, short("fastchat")),
        (CHATS, short("openai")),
        (COMPLETIONS, several.clone()),
        ("/v1/embeddings", texts),
    ] {
        let (status, answer) = fleet.ask("key one", path, &body).await;
        assert_eq!(status, 200, "{answer}");
        sum += total(&answer["usage"]);
        assert_eq!(fleet.charged().await, sum, "{path} {body}");
    }
    for (path, body) in [(CHATS, short("fastchat")), (CHATS, short("openai")), (COMPLETIONS, several)] {
        sum += total_of_stream(fleet.send("key one", path, &streamed(body)).await).await;
        eventually("it is settled", async || fleet.charged().await == sum).await;
    }
    let mut silent = short("openai");
    silent["stream"] = json!(true);
    silent["max_tokens"] = json!(50);
    let text = fleet.send("key one", CHATS, &silent).await.text().await.expect("a stream");
    assert!(text.ends_with("[DONE]\n\n") && !text.contains("\"usage\":{"), "{text}");
    // What was reserved, where `user` and `hi` are six bytes, or as much as events have come: a few tell no token.
    let reserved = 50 + 2;
    eventually("it is settled", async || fleet.charged().await >= sum + reserved).await;
    let charged = fleet.charged().await;
    assert!(charged <= sum + reserved + 4, "{charged} after {sum}");
    sum = charged;
    let refused = json!({ "model": "openai", "messages": [{ "role": "user", "content": "hi" }], "temperature": 99 });
    assert_eq!(fleet.ask("key one", CHATS, &refused).await.0, 400);
    assert_eq!(fleet.charged().await, sum, "what it refuses costs nothing");

    // FastChat's words do not tell tokens apart: one that is cancelled keeps its reservation.
    let mut endless = streamed(chat_body("fastchat", "hi"));
    endless["max_tokens"] = json!(200);
    let mut response = fleet.send("key one", CHATS, &endless).await;
    let mut text = String::new();
    while text.matches("\"content\"").count() < 3 {
        text += std::str::from_utf8(&response.chunk().await.expect("more").expect("more")).expect("text");
    }
    drop(response);
    eventually("it is settled", async || fleet.charged().await > sum).await;
    let paid = fleet.charged().await - sum;
    assert!(paid >= 202, "{paid}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_the_same_keys_have_the_same_budget_and_models() {
    let keys = "keys:\n  - {name: a, key: key one, rpm: 3, models: [identity], max_streams: 1}\n  \
                - {name: b, key: key two, rate: 1/h, burst: 1}\n";
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tensors");
    let fleet = Keyed::start(keys, &[&["--model-repository", folder]]).await;
    let address = fleet.gateway.grpc_address().await;
    let client = |key: &str| {
        let pool = GrpcPool::new(common::PATIENCE);
        GrpcWorkerClient::new(pool, &address, Some(&Secret::new(key)), common::PATIENCE)
    };
    let (one, two) = (client("key one"), client("key two"));
    let kind = |result: Result<_, ClientError>| match result {
        Ok(_) => None,
        Err(ClientError::Refused { problem, .. }) => Some(problem.kind),
        Err(error) => panic!("{error:?}"),
    };
    let index = fleet.send("key one", "/v2/repository/index", &json!({})).await.json::<Value>().await.expect("JSON");
    let names = index.as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name"));
    assert_eq!(names.collect::<Vec<_>>(), ["identity"]);
    let listed = one.repository_index().await.expect("an index");
    assert_eq!(listed.into_iter().map(|entry| entry.name).collect::<Vec<_>>(), ["identity"]);
    assert!(one.model_metadata("identity", None).await.is_ok());
    assert_eq!(kind(one.model_metadata("add", None).await.map(drop)), Some(Kind::UnknownModel));
    assert_eq!(kind(one.model_statistics(Some("add"), None).await.map(drop)), Some(Kind::UnknownModel));
    let statistics = one.model_statistics(None, None).await.expect("statistics");
    assert!(statistics.iter().all(|model| model.name == "identity"), "{statistics:?}");
    let infer = |model: &str| InferRequest { model: model.to_owned(), ..InferRequest::default() };
    for expected in [Kind::Invalid, Kind::UnknownModel, Kind::Invalid, Kind::RateLimited] {
        let model = if expected == Kind::UnknownModel { "add" } else { "identity" };
        assert_eq!(
            kind(one.infer(&infer(model)).await.map(drop)),
            Some(expected),
            "runs count, whatever comes of them"
        );
    }
    let (status, answer) = fleet.ask("key one", "/v2/models/identity/infer", &json!({ "inputs": [] })).await;
    assert_eq!(status, 429, "{answer}");
    assert!(answer["error"].as_str().is_some_and(|text| text.contains("3 requests per minute")), "{answer}");
    assert!(two.repository_index().await.is_ok());
    assert_eq!(kind(two.repository_index().await.map(drop)), Some(Kind::RateLimited));
}

/// An address of this machine that is not its own alone; none where it has no network. Nothing is sent.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_addresses_are_limited_and_this_machines_own_are_not() {
    let up = Process::start(&[
        "up",
        "--port",
        "0",
        "--host",
        "0.0.0.0",
        "--insecure",
        "--model",
        "fake",
        "--rate-limit",
        "1/h",
        "--rate-burst",
        "3",
    ]);
    let port = up.address.rsplit(':').next().expect("a port").to_owned();
    let ask = async |address: &str| {
        let url = format!("http://{address}:{port}{CHATS}");
        reqwest::Client::new().post(url).json(&short("fake")).send().await.expect("an answer").status().as_u16()
    };
    for _ in 0..6 {
        assert_eq!(ask("127.0.0.1").await, 200);
    }
    let Some(outer) = outer_address() else { return eprintln!("this machine has no network: only its own is tried") };
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(ask(&outer.to_string()).await);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(ask("127.0.0.1").await, 200);
}
