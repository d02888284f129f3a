//! Every question of a client over every transport to the worker: the same answers, the same refusals.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::answers::{self, Reply};
use common::{Process, eventually, facts, gateway, is_ready, worker};
use futures_util::future::join_all;
use serde_json::{Value, json};

const TRANSPORTS: [&str; 4] = ["http", "grpc", "fastchat", "openai"];
const CHATS: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model-worker/demo");

/// One fleet, in which the two demo models are served by a worker of each transport, under its name.
struct Fleet {
    gateway: Process,
    client: reqwest::Client,
    controller: Process,
    _others: Vec<Process>,
}

impl Fleet {
    async fn start() -> Self {
        let controller = Process::start(&["controller", "--port", "0", "--heartbeat", "1s"]);
        let models = |name: &str| {
            let (chat, embed) = (format!("{name}={FOLDER}/chat"), format!("{name}-embed={FOLDER}/embedding"));
            ["--model".to_owned(), chat, "--model".to_owned(), embed]
        };
        let ours = [("http", &[][..]), ("grpc", &["--grpc-port", "0"]), ("fastchat", &[])];
        let mut others: Vec<Process> = ours
            .into_iter()
            .map(|(name, more)| {
                let models = models(name);
                let models: Vec<&str> = models.iter().map(String::as_str).collect();
                worker(&controller.address, &[&["--transport", name], &models[..], more].concat())
            })
            .collect();
        let models = models("openai");
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        let server = Process::start(&[&["up", "--port", "0"], &models[..]].concat());
        let attach = ["attach", "--controller-address", &controller.address, &server.address];
        others.push(Process::start(&attach));
        others.push(server);
        let ready = async || {
            let fleet = controller.get("/fleet").await;
            let workers = fleet["workers"].as_array().expect("workers").clone();
            let known = |name: &&str| workers.iter().any(|w| w["transport"] == **name && w["state"] == "ready");
            TRANSPORTS.iter().all(known)
        };
        eventually("a worker of each transport is registered", ready).await;
        let gateway = gateway(&controller.address, &[]);
        eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
        Self { gateway, client: reqwest::Client::new(), controller, _others: others }
    }

    /// The answer to a question over one transport.
    async fn reply(&self, path: &str, transport: &str, body: &Value) -> Reply {
        let mut body = body.clone();
        body["model"] = json!(transport);
        let url = format!("{}{path}", self.gateway.address);
        let reply = answers::ask(&self.client, &url, &body, "transports").await;
        reply.unwrap_or_else(|wrong| panic!("{transport}, {path}, {body}: {wrong}"))
    }

    /// Status and body over one transport; the model is that of the name with `suffix`.
    async fn post(&self, path: &str, transport: &str, suffix: &str, body: &Value) -> (u16, Value) {
        let mut body = body.clone();
        body["model"] = json!(format!("{transport}{suffix}"));
        self.gateway.post(path, &body).await
    }
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn chat(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": facts::capital(0).0 }]);
    with(json!({ "messages": messages, "temperature": 0, "max_tokens": 40 }), more)
}

fn prompt(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

fn text(more: Value) -> Value {
    with(json!({ "prompt": prompt(&facts::capital(0).0), "temperature": 0, "max_tokens": 40 }), more)
}

/// What each transport must answer: texts, and why they end.
fn questions() -> Vec<(&'static str, Value, Vec<String>, &'static str)> {
    let right = |index: usize| facts::capital(index).1;
    let prompts: Vec<String> = (0..3).map(|index| prompt(&facts::capital(index).0)).collect();
    let conversation = json!([
        { "role": "system", "content": "You are a helpful assistant." },
        { "role": "user", "content": "My name is Clara." },
        { "role": "assistant", "content": "Nice to meet you, Clara!" },
        { "role": "user", "content": [{ "type": "text", "text": "What is my name?" }] },
    ]);
    let begin = |words: &str| vec![words.to_owned()];
    vec![
        (CHATS, chat(json!({})), vec![right(0)], "stop"),
        (CHATS, chat(json!({ "messages": conversation })), begin("Your name is Clara."), "stop"),
        (CHATS, chat(json!({ "n": 2 })), vec![right(0), right(0)], "stop"),
        (CHATS, chat(json!({ "stop": " Par" })), begin("The capital of France is"), "stop"),
        (CHATS, chat(json!({ "max_completion_tokens": 5 })), begin("The capital of Fran"), "length"),
        (COMPLETIONS, text(json!({})), vec![right(0)], "stop"),
        (COMPLETIONS, text(json!({ "stop": ["is", "zebra"] })), begin("The capital of France "), "stop"),
        (COMPLETIONS, text(json!({ "prompt": prompts, "n": 1 })), vec![right(0), right(1), right(2)], "stop"),
        (COMPLETIONS, text(json!({ "prompt": prompts, "n": 2 })), [0, 0, 1, 1, 2, 2].map(right).to_vec(), "stop"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_gives_the_same_answers_and_the_same_refusals() {
    let fleet = Fleet::start().await;
    lists_every_model(&fleet).await;
    answers_alike(&fleet).await;
    tells_logprobs_alike(&fleet).await;
    draws_alike(&fleet).await;
    embeds_alike(&fleet).await;
    refuses_alike(&fleet).await;
    refuses_what_fastchat_cannot(&fleet).await;
    let none = async || {
        let fleet = fleet.controller.get("/fleet").await;
        fleet["workers"].as_array().expect("workers").iter().all(|worker| worker["tickets"] == 0)
    };
    eventually("all tickets are back", none).await;
}

async fn lists_every_model(fleet: &Fleet) {
    let models = fleet.gateway.get("/v1/models").await;
    let listed = models["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str());
    let mut listed: Vec<&str> = listed.collect();
    listed.sort_unstable();
    let mut wanted: Vec<String> =
        TRANSPORTS.iter().flat_map(|name| [(*name).to_owned(), format!("{name}-embed")]).collect();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    for name in &wanted {
        assert_eq!(fleet.gateway.get(&format!("/v1/models/{name}")).await["id"], name.as_str());
    }
}

async fn answers_alike(fleet: &Fleet) {
    for (path, question, texts, reason) in questions() {
        for streamed in [false, true] {
            let body = with(question.clone(), json!({ "stream": streamed }));
            let replies = join_all(TRANSPORTS.map(|transport| fleet.reply(path, transport, &body))).await;
            for (transport, reply) in TRANSPORTS.iter().zip(&replies) {
                let said: Vec<&str> = reply.choices.iter().map(|choice| choice.text.trim_end()).collect();
                let wanted: Vec<&str> = texts.iter().map(|text| text.trim_end()).collect();
                assert_eq!(said, wanted, "{transport}, {path}, {body}");
                assert!(
                    reply.choices.iter().all(|choice| choice.finish_reason == reason),
                    "{transport} {body} {reply:?}"
                );
                assert_eq!(reply.usage[2], reply.usage[0] + reply.usage[1], "{transport}, {path}, {body}");
                // FastChat counts the tokens of its texts, without that which ends an answer.
                let same = if *transport == "fastchat" { 1 } else { 3 };
                assert_eq!(reply.usage[..same], replies[0].usage[..same], "{transport}, {path}, {body}");
            }
        }
    }
    for transport in TRANSPORTS {
        let reply = fleet.reply(COMPLETIONS, transport, &text(json!({ "echo": true }))).await;
        let plain = |text: &str| text.replace("<|im_start|>", "").replace("<|im_end|>", "");
        let wanted = plain(&(prompt(&facts::capital(0).0) + &facts::capital(0).1));
        assert_eq!(plain(&reply.choices[0].text), wanted, "{transport}");
    }
}

async fn tells_logprobs_alike(fleet: &Fleet) {
    for streamed in [false, true] {
        let of_text = text(json!({ "logprobs": 1, "stream": streamed }));
        let of_chat = chat(json!({ "logprobs": true, "stream": streamed }));
        for (path, body) in [(COMPLETIONS, of_text), (CHATS, of_chat)] {
            let mut replies = join_all(TRANSPORTS.map(|transport| fleet.reply(path, transport, &body))).await;
            for reply in &mut replies {
                reply.usage = [0; 3];
                let choice = &mut reply.choices[0];
                // FastChat tells none of the token that ends an answer, whose text is empty elsewhere.
                choice.tokens.retain(|token| token != "<|im_end|>" && !token.is_empty());
                choice.logprobs.truncate(choice.tokens.len());
                choice.offsets.truncate(choice.tokens.len());
                assert_eq!(choice.tokens.concat(), facts::capital(0).1);
            }
            for (transport, reply) in TRANSPORTS.iter().zip(&replies) {
                assert!(reply.is_like(&replies[0]), "{transport}, {path}: {reply:?}, {:?}", replies[0]);
            }
        }
    }
}

async fn draws_alike(fleet: &Fleet) {
    let body = chat(json!({ "temperature": 1.5, "seed": 5, "ignore_eos": true, "n": 2, "min_p": 0.01 }));
    let transports = ["http", "grpc", "openai"];
    let replies = join_all(transports.map(|transport| fleet.reply(CHATS, transport, &body))).await;
    for (transport, reply) in transports.iter().zip(&replies) {
        assert_eq!(reply, &replies[0], "{transport}");
    }
    assert_ne!(replies[0].choices[0].text, replies[0].choices[1].text);
}

async fn embeds_alike(fleet: &Fleet) {
    let texts = ["a cat sits on the mat", "Grüße aus München", "stock markets fell", "one", "two", "three"];
    let mut wanted: Option<Vec<Vec<f32>>> = None;
    for transport in TRANSPORTS {
        for format in ["float", "base64"] {
            let body = json!({ "input": texts, "encoding_format": format });
            let (status, answer) = fleet.post(EMBEDDINGS, transport, "-embed", &body).await;
            assert_eq!(status, 200, "{transport}: {answer}");
            let data = answer["data"].as_array().expect("a list");
            let vectors: Vec<Vec<f32>> = data.iter().map(|item| vector(&item["embedding"])).collect();
            assert!(data.iter().enumerate().all(|(index, item)| item["index"] == index), "{transport}: {answer}");
            assert_eq!((vectors.len(), vectors[0].len()), (texts.len(), 128), "{transport}");
            assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(10), "{transport}: {answer}");
            let wanted = wanted.get_or_insert_with(|| vectors.clone());
            let far = vectors.iter().flatten().zip(wanted.iter().flatten()).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(!far, "{transport}, {format}");
        }
        let (_, one) = fleet.post(EMBEDDINGS, transport, "-embed", &json!({ "input": texts[0] })).await;
        let near = vector(&one["data"][0]["embedding"]);
        let far = near.iter().zip(&wanted.as_ref().expect("some")[0]).any(|(a, b)| (a - b).abs() > 1e-4);
        assert!(!far, "{transport}: a text alone");
    }
}

/// A vector in either form.
fn vector(value: &Value) -> Vec<f32> {
    match value.as_str() {
        Some(text) => {
            let bytes = STANDARD.decode(text).expect("base64");
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect()
        }
        None => value.as_array().expect("numbers").iter().filter_map(Value::as_f64).map(|n| n as f32).collect(),
    }
}

async fn refuses_alike(fleet: &Fleet) {
    let long = json!([{ "role": "user", "content": "word ".repeat(3000) }]);
    let too_long = (400, "context_length_exceeded");
    let invalid = |param: &'static str| (400, param);
    for transport in TRANSPORTS {
        for (path, body, (status, what)) in [
            (CHATS, chat(json!({ "messages": long })), too_long),
            (CHATS, chat(json!({ "messages": long, "stream": true })), too_long),
            (COMPLETIONS, text(json!({ "prompt": "word ".repeat(3000) })), too_long),
            (COMPLETIONS, text(json!({ "prompt": ["hi", "word ".repeat(3000)] })), too_long),
            (CHATS, chat(json!({ "max_tokens": 5000 })), too_long),
            (CHATS, chat(json!({ "temperature": "hot" })), invalid("temperature")),
            (CHATS, chat(json!({ "temperature": 9, "stream": true })), invalid("temperature")),
            (CHATS, chat(json!({ "messages": [] })), invalid("messages")),
            (CHATS, chat(json!({ "tools": [{ "type": "function" }] })), invalid("tools")),
            (CHATS, json!({}), invalid("messages")),
            (COMPLETIONS, text(json!({ "n": 0 })), invalid("n")),
            (COMPLETIONS, text(json!({ "suffix": "x" })), invalid("suffix")),
            (COMPLETIONS, json!({ "prompt": 5 }), invalid("prompt")),
            (EMBEDDINGS, json!({ "input": [] }), invalid("input")),
            (EMBEDDINGS, json!({ "input": "hi", "encoding_format": "hex" }), invalid("encoding_format")),
        ] {
            let suffix = if path == EMBEDDINGS { "-embed" } else { "" };
            let (got, answer) = fleet.post(path, transport, suffix, &body).await;
            let error = &answer["error"];
            let about =
                format!("{transport}, {path}, {}: {error}", body.to_string().chars().take(200).collect::<String>());
            assert_eq!(got, status, "{about}");
            assert!(error["code"] == what || error["param"] == what, "{about}");
            assert_eq!(error["type"], "invalid_request_error", "{about}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{about}");
            assert!(!about.contains("127.0.0.1"), "a client sees no addresses: {about}");
        }
        for path in [CHATS, COMPLETIONS, EMBEDDINGS] {
            let (status, answer) =
                fleet.post(path, transport, "-of-nobody", &text(chat(json!({ "input": "hi" })))).await;
            assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")), "{path}: {answer}");
        }
        let url = format!("{}{CHATS}", fleet.gateway.address);
        let junk = fleet.client.post(url).body(format!("{{\"model\":\"{transport}\", junk")).send().await;
        assert_eq!(junk.expect("an answer").status(), 400, "{transport}");
    }
}

/// What FastChat's protocol has no words for is refused by its name, and what the others do.
async fn refuses_what_fastchat_cannot(fleet: &Fleet) {
    for (path, suffix, body, param) in [
        (CHATS, "", chat(json!({ "seed": 1 })), "seed"),
        (CHATS, "", chat(json!({ "min_p": 0.1 })), "min_p"),
        (CHATS, "", chat(json!({ "typical_p": 0.5 })), "typical_p"),
        (CHATS, "", chat(json!({ "min_tokens": 2 })), "min_tokens"),
        (CHATS, "", chat(json!({ "allowed_token_ids": [5, 6] })), "allowed_token_ids"),
        (CHATS, "", chat(json!({ "cache_salt": "s" })), "cache_salt"),
        (CHATS, "", chat(json!({ "logit_bias": { "5": 1 } })), "logit_bias"),
        (CHATS, "", chat(json!({ "ignore_eos": true })), "ignore_eos"),
        (CHATS, "", chat(json!({ "logprobs": true, "top_logprobs": 2 })), "top_logprobs"),
        (CHATS, "", chat(json!({ "chat_template_kwargs": { "date": "today" } })), "date"),
        (COMPLETIONS, "", text(json!({ "prompt": [5, 6] })), "prompt"),
        (COMPLETIONS, "", text(json!({ "logprobs": 3 })), "logprobs"),
        (EMBEDDINGS, "-embed", json!({ "input": [5, 6] }), "input"),
        (EMBEDDINGS, "-embed", json!({ "input": "hi", "dimensions": 64 }), "dimensions"),
    ] {
        for transport in TRANSPORTS {
            let (status, answer) = fleet.post(path, transport, suffix, &body).await;
            if transport == "fastchat" {
                assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{body}: {answer}");
                assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("FastChat")), "{answer}");
            } else {
                assert_eq!(status, 200, "{transport}, {body}: {answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_have_a_model_has_not_failed() {
    let controller = Process::start(&["controller", "--port", "0"]);
    let server = Process::start(&["up", "--port", "0", "--model", "fake"]);
    let flags = ["attach", "--controller-address", &controller.address, "--model", "fake,lost", &server.address];
    let _attach = Process::start(&flags);
    let gateway = gateway(&controller.address, &[]);
    eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
    let ask = async |model: &str, stream: bool| {
        let body = json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": "hi" }] });
        gateway.post(CHATS, &body).await
    };
    assert_eq!(ask("fake", false).await.0, 200);
    for stream in [false, true] {
        let (status, answer) = ask("lost", stream).await;
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")), "{answer}");
    }
    assert_eq!(controller.get("/fleet").await["workers"][0]["state"], "ready");
}
