//! Foreign bytes of all kinds.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::chat::ChatRequest;
use super::classify::ClassifyBody;
use super::completion::CompletionRequest;
use super::embedding::EmbeddingBody;
use super::endpoint::Endpoint as _;
use super::entities::EntitiesBody;
use super::moderation::ModerationBody;
use super::rerank::RerankBody;
use super::tokenize::{DetokenizeBody, TokenizeBody};

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["user", "text", "assistant", "1"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec!["role", "content", "type", "text", "tool_calls", "7"]).prop_map(str::to_owned),
            "\\PC{0,6}",
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(key, inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const NAMES: [&str; 19] = [
    "model",
    "messages",
    "prompt",
    "input",
    "temperature",
    "stop",
    "logit_bias",
    "seed",
    "n",
    "stream_options",
    "stream",
    "tools",
    "logprobs",
    "top_k",
    "query",
    "documents",
    "tokens",
    "aggregation",
    "truncate",
];

proptest! {
    #[test]
    fn any_json_is_either_understood_or_refused(
        fields in proptest::collection::vec((prop::sample::select(NAMES.to_vec()), any_json()), 0..6),
    ) {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let mut body = json!({ "model": "m", "messages": messages, "prompt": "hi", "input": "hi", "query": "q" });
        for (name, value) in fields {
            body[name] = value;
        }
        let body = body.to_string();
        let _ = ChatRequest::parse(body.as_bytes());
        let _ = CompletionRequest::parse(body.as_bytes()).map(|request| request.requests(""));
        let _ = EmbeddingBody::parse(body.as_bytes());
        let _ = RerankBody::parse(body.as_bytes());
        let _ = ClassifyBody::parse(body.as_bytes());
        let _ = EntitiesBody::parse(body.as_bytes());
        let _ = ModerationBody::parse(body.as_bytes());
        let _ = TokenizeBody::parse(body.as_bytes());
        let _ = TokenizeBody::parse(body.replace("\"prompt\"", "\"other\"").as_bytes());
        let _ = DetokenizeBody::parse(body.as_bytes());
    }

    #[test]
    fn any_bytes_are_either_understood_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = ChatRequest::parse(&bytes);
    }
}
