//! The bodies of `/v1/embeddings`.

use muster_shared::embed::{EmbedInput, EmbedRequest, EmbedResponse, Vector};
use muster_shared::problem::Problem;
use serde::Serialize;

use super::fields::{self, Fields, empty};

/// Most inputs of one request.
const INPUTS: usize = 2048;

/// A checked request.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    /// Still without a request id.
    pub(crate) embed: EmbedRequest,
    /// Whether vectors go out as base64 instead of as numbers.
    pub(crate) base64: bool,
}

impl EmbeddingRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// An invalid request, by the name of the field.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        let inputs = fields.inputs("input", INPUTS)?;
        if let Some(index) = inputs.iter().position(|input| matches!(input, EmbedInput::Text(text) if text.is_empty()))
        {
            return Err(empty(&if inputs.len() == 1 { "input".to_owned() } else { format!("input[{index}]") }));
        }
        let embed = EmbedRequest {
            request_id: String::new(),
            model,
            inputs,
            dimensions: fields.positive("dimensions")?,
            prompt_name: fields.string("prompt_name")?,
            truncate: fields.boolean("truncate")?.unwrap_or(false),
        };
        let base64 = is_base64(&mut fields)?;
        fields.string("user")?;
        fields.unknown();
        Ok(Self { embed, base64 })
    }
}

fn is_base64(fields: &mut Fields) -> Result<bool, Problem> {
    const NAME: &str = "encoding_format";
    match fields.take(NAME) {
        None => Ok(false),
        Some(value) if value == "float" => Ok(false),
        Some(value) if value == "base64" => Ok(true),
        Some(other) => Err(fields::wrong(NAME, "\"float\" or \"base64\"", &other)),
    }
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingReply {
    object: &'static str,
    data: Vec<Item>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Debug, Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Embedding {
    /// As numbers.
    Float(Vec<f32>),
    /// A [`Vector`] is base64 by itself.
    Base64(Vector),
}

#[derive(Debug, Serialize)]
struct EmbeddingUsage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// The answer for a model's vectors.
pub(crate) fn reply(model: impl Into<String>, response: EmbedResponse, base64: bool) -> EmbeddingReply {
    let form = |vector: Vector| if base64 { Embedding::Base64(vector) } else { Embedding::Float(vector.0) };
    let item = |(index, vector)| Item { object: "embedding", index, embedding: form(vector) };
    let tokens = response.prompt_tokens;
    EmbeddingReply {
        object: "list",
        data: response.vectors.into_iter().enumerate().map(item).collect(),
        model: model.into(),
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(more: Value) -> Result<EmbeddingRequest, Problem> {
        let mut body = json!({ "model": "m", "input": "hi" });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        EmbeddingRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn inputs_come_in_four_shapes() {
        let text = |text: &str| EmbedInput::Text(text.to_owned());
        for (input, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2.0]), vec![EmbedInput::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])]),
        ] {
            let request = parse(json!({ "input": input })).unwrap();
            assert_eq!(request.embed.inputs, expected);
            assert!(!request.base64);
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        for (field, value, param) in [
            ("model", json!(null), "model"),
            ("model", json!(""), "model"),
            ("input", json!(null), "input"),
            ("input", json!(5), "input"),
            ("input", json!(""), "input"),
            ("input", json!([]), "input"),
            ("input", json!([true]), "input"),
            ("input", json!(["a", 1]), "input"),
            ("input", json!(["a", ""]), "input[1]"),
            ("input", json!([[1], []]), "input[1]"),
            ("input", json!([[1], ["x"]]), "input[1]"),
            ("input", json!([1, -1]), "input"),
            ("input", json!(vec!["a"; 2049]), "input"),
            ("dimensions", json!(0), "dimensions"),
            ("encoding_format", json!("hex"), "encoding_format"),
            ("truncate", json!("END"), "truncate"),
            ("user", json!(1), "user"),
        ] {
            let problem = parse(json!({ field: value })).unwrap_err();
            assert_eq!(problem.param.as_deref(), Some(param), "{problem}");
            assert!(problem.message.contains(param), "{problem}");
        }
    }

    #[test]
    fn vectors_go_out_as_numbers_or_base64() {
        let response =
            EmbedResponse { vectors: vec![Vector(vec![0.5, -1.0]), Vector(vec![])], sparse: vec![], prompt_tokens: 3 };
        let body = |base64| serde_json::to_value(reply("m", response.clone(), base64)).unwrap();
        let expected = json!({
            "object": "list", "model": "m", "usage": { "prompt_tokens": 3, "total_tokens": 3 }, "data": [
                { "object": "embedding", "index": 0, "embedding": [0.5, -1.0] },
                { "object": "embedding", "index": 1, "embedding": [] },
            ],
        });
        assert_eq!(body(false), expected);
        assert_eq!(body(true)["data"][0]["embedding"], "AAAAPwAAgL8=");
    }
}
