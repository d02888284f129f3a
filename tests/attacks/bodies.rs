//! Bodies.

use std::io::Write as _;

use serde_json::{Value, json};

use super::case::Expected::{Bare, Good, Refused};
use super::case::{Case, Piece, post};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// So deep that a reader without a limit would overflow its stack.
const DEEP: usize = 1_000_000;

/// Longest body that a gateway takes.
const LIMIT: usize = 8 << 20;

/// Everything that a body can be.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    [deep(model), lengths(model), texts(model), numbers(model), many(model), coded(model)]
        .into_iter()
        .flatten()
        .collect()
}

fn completion(name: &'static str, body: impl AsRef<[u8]>) -> Case {
    Case::new(name, post(COMPLETIONS, "", body), Refused(&[400]))
}

fn chat(name: &'static str, body: &Value) -> Case {
    Case::new(name, post(CHAT, "", body.to_string()), Refused(&[400]))
}

fn deep(model: &str) -> Vec<Case> {
    let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(DEEP), close.repeat(DEEP));
    let field = |field: &str, value: &str| format!(r#"{{"model":"{model}","prompt":"x","{field}":{value}}}"#);
    let arrays = nested("[", "]");
    let objects = nested(r#"{"a":"#, "}");
    vec![
        completion("a million arrays", &arrays).says("recursion"),
        completion("a million arrays that do not end", "[".repeat(DEEP)),
        completion("a million objects", &objects).says("recursion"),
        completion("a million arrays in an unknown field", field("x", &arrays)).says("recursion"),
        completion("a million objects in an unknown field", field("x", &objects)).says("recursion"),
        completion("a million arrays in metadata", field("metadata", &arrays)),
        completion("a million objects in response_format", field("response_format", &objects)),
        completion("a million arrays in tools", field("tools", &arrays)),
        completion("a million arrays in chat_template_kwargs", field("chat_template_kwargs", &arrays)),
        Case::new(
            "a million arrays for tensors",
            post("/v2/models/m/infer", "", format!(r#"{{"inputs":[{{"name":"x","data":{arrays}}}]}}"#)),
            Bare(&[400, 404]), // in that protocol's words
        ),
    ]
}

fn lengths(model: &str) -> Vec<Case> {
    let head = |more: &str| format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: muster\r\n{more}\r\n");
    let told = |length: &str| head(&format!("content-length: {length}\r\n"));
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x1_0000], b"\r\n".to_vec()].concat();
    let good = format!(r#"{{"model":"{model}","prompt":"x","max_tokens":1}}"#);
    vec![
        Case::new("a gigabyte that is announced", told("1073741824"), Refused(&[413])).grows(4),
        // It is read, since a client that sends hears nothing, but not kept.
        Case::new("a body of the limit and a byte, announced", told(&(LIMIT + 1).to_string()), Refused(&[413]))
            .then(Piece::Repeat(vec![b' '; 1 << 20], LIMIT >> 20))
            .then(Piece::Bytes(b" ".to_vec()))
            .grows(4),
        Case::new("a gigabyte in chunks", head("transfer-encoding: chunked\r\n"), Refused(&[413]))
            .then(Piece::Repeat(chunk, 16 << 10))
            .grows(64),
        completion("two million zeros", good.replace('{', &format!(r#"{{"x":[{}0],"#, "0,".repeat(2_000_000))))
            .says("values"),
        completion("two million empty objects", format!("[{}0]", "{},".repeat(2_000_000))).says("values"),
        Case::new(
            "a million signs in a text",
            post(COMPLETIONS, "", good.replace(r#""x""#, &format!(r#""{}""#, ",[{".repeat(700_000)))),
            Refused(&[400]),
        )
        .says("context_length_exceeded")
        .grows(400), // tokens are made of it
        Case::new(
            "a body that is asked for before it is sent",
            head("expect: 100-continue\r\ncontent-length: 2\r\n"),
            Refused(&[400]),
        )
        .then(Piece::Bytes(b"{}".to_vec())),
    ]
}

fn texts(model: &str) -> Vec<Case> {
    let prompt = |prompt: &str| format!(r#"{{"model":"{model}","prompt":"{prompt}","max_tokens":1}}"#);
    let good = |name, body: String| Case::new(name, post(COMPLETIONS, "", body), Good);
    vec![
        good("a byte 0 in a text, escaped", prompt("a\\u0000b")),
        completion("a byte 0 in a text", prompt("a\0b")),
        completion("a byte 0 before the body", format!("\0{}", prompt("x"))),
        completion("a byte 0 after the body", format!("{}\0", prompt("x"))),
        completion("a model with a byte 0", r#"{"model":"a\u0000b","prompt":"x"}"#).refused(&[404]),
        completion(
            "invalid UTF-8 in a text",
            [prompt("").trim_end_matches("\",\"max_tokens\":1}").as_bytes(), b"\xff\xfe\"}"].concat(),
        ),
        completion("invalid UTF-8 everywhere", vec![0xff; 1000]),
        completion("half a surrogate", prompt("\\ud800")),
        completion("surrogates the wrong way round", prompt("\\udc00\\ud800")),
        completion("half a surrogate in a name", r#"{"\ud800":1}"#),
        completion("no body", ""),
        completion("a byte order mark", format!("\u{feff}{}", prompt("x"))),
        completion("UTF-16", prompt("x").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()),
    ]
}

fn numbers(model: &str) -> Vec<Case> {
    let with = |field: &str, value: &str| format!(r#"{{"model":"{model}","prompt":"x","{field}":{value}}}"#);
    let mut cases: Vec<Case> = [
        ("n of 10^9", "1000000000"),
        ("n of 10^20", "100000000000000000000"),
        ("n of 10^400", "1e400"),
        ("n of -1", "-1"),
        ("n of 1.5", "1.5"),
        ("n of 0", "0"),
        ("n of a million digits", "DIGITS"),
    ]
    .into_iter()
    .map(|(name, value)| completion(name, with("n", &value.replace("DIGITS", &"9".repeat(DEEP)))))
    .collect();
    cases.push(completion("a temperature that is no number", with("temperature", "NaN")));
    cases.push(completion("max_tokens of -1", with("max_tokens", "-1")));
    cases.push(completion("best_of of 10^9", with("best_of", "1000000000")));
    cases.push(completion("logprobs of 10^9", with("logprobs", "1000000000")));
    cases.push(completion("a seed of 10^30", with("seed", "1000000000000000000000000000000")));
    cases
}

fn many(model: &str) -> Vec<Case> {
    let with = |field: &str, value: Value| json!({ "model": model, "prompt": "x", "max_tokens": 1, field: value });
    let turn = json!({ "role": "user", "content": "x" });
    let conversation = |field: &str, value: Value| {
        let mut body = json!({ "model": model, "messages": [turn], "max_tokens": 1 });
        body[field] = value;
        body
    };
    let completion = |name, body: &Value| completion(name, body.to_string());
    let biases: serde_json::Map<String, Value> = (0..1_000_000 / 2).map(|id| (id.to_string(), json!(1))).collect();
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    vec![
        completion("10^5 stop strings", &with("stop", json!(vec!["x"; 100_000]))).says("stop"),
        completion("a stop string of 4 MB", &with("stop", json!("x".repeat(4 << 20)))).says("stop"),
        completion("10^4 stop strings of 1 kB", &with("stop", json!(vec!["x".repeat(500); 10_000]))).says("stop"),
        completion("10^5 stop tokens", &with("stop_token_ids", json!(vec![1; 100_000]))).says("stop_token_ids"),
        completion("half a million biases", &with("logit_bias", Value::Object(biases))).says("logit_bias").grows(160),
        completion("10^5 prompts", &with("prompt", json!(vec!["x"; 100_000]))).says("prompt"),
        completion("10^6 token ids", &with("prompt", json!(vec![1; 1_000_000]))).grows(250).says("context"),
        // Tokens are made of all of it before its length is known: this is the dearest request that there is.
        completion("a prompt of 7 MB", &with("prompt", json!("x ".repeat(3_500_000))))
            .grows(500)
            .says("context")
            .within(60),
        chat("10^5 messages", &conversation("messages", json!(vec![turn.clone(); 100_000])))
            .says("messages")
            .grows(160),
        chat("6 * 10^4 messages", &conversation("messages", json!(vec![turn.clone(); 60_000]))).grows(160),
        chat(
            "10^5 parts",
            &conversation(
                "messages",
                json!([{ "role": "user", "content": vec![json!({ "type": "text", "text": "x " }); 100_000] }]),
            ),
        )
        .grows(160),
        chat("10^5 tools", &conversation("tools", json!(vec![tool; 100_000]))).says("tools").grows(160),
        chat("a role of 1 MB", &conversation("messages", json!([{ "role": "x".repeat(1 << 20), "content": "x" }])))
            .says("role"),
        completion("a model of 1 MB", &with("model", json!("x".repeat(1 << 20)))).refused(&[400, 404]),
        completion(
            "10^5 fields",
            &json!((0..100_000).map(|n| (n.to_string(), json!(n))).collect::<serde_json::Map<_, _>>()),
        ),
    ]
}

fn coded(model: &str) -> Vec<Case> {
    let good = format!(r#"{{"model":"{model}","prompt":"x","max_tokens":1}}"#);
    let coded = |coding: &str, body: &[u8]| post(COMPLETIONS, &format!("content-encoding: {coding}\r\n"), body);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    };
    let whole = gzip(good.as_bytes());
    let bomb = gzip(&vec![b' '; 1 << 30]);
    let twice = gzip(&bomb);
    vec![
        Case::new("a good body in gzip", coded("gzip", &whole), Good),
        Case::new("a body that is no gzip", coded("gzip", good.as_bytes()), Refused(&[400])),
        Case::new("a body that is no zstd", coded("zstd", good.as_bytes()), Refused(&[400])),
        Case::new("half a gzip", coded("gzip", &whole[..whole.len() / 2]), Refused(&[400])),
        Case::new("a gzip bomb of a gigabyte", coded("gzip", &bomb), Refused(&[413])),
        Case::new("a gzip bomb in gzip", coded("gzip, gzip", &twice), Refused(&[413])),
        Case::new("a hundred codings", coded(&"gzip, ".repeat(100), &whole), Refused(&[400, 415])),
        Case::new("a coding that is none", coded("x\u{7f}y", &whole), Bare(&[400, 415])),
    ]
}

impl Case {
    fn refused(self, statuses: &'static [u16]) -> Self {
        Self { expected: Refused(statuses), ..self }
    }
}
