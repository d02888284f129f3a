//! The bodies of `/v1/embeddings`.

use muster_shared::control::ModelKind;
use muster_shared::embed::{EmbedInput, EmbedRequest, EmbedResponse, InputType, SparseVector, Vector};
use muster_shared::problem::Problem;
use serde::Serialize;
use serde_json::Value;

use super::ReplyHead;
use super::endpoint::Endpoint;
use super::fields::{self, Fields, empty};
use super::texts::{INPUTS, TextUsage, end, truncate};
use crate::observe::Route;

/// The endpoint.
pub(crate) struct EmbeddingBody;

/// Whether vectors go out as base64 instead of as numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AsBase64(bool);

impl Endpoint for EmbeddingBody {
    const ROUTE: Route = Route::Embeddings;
    const PREFIX: &'static str = "embd";
    type Call = EmbedRequest;
    type Form = AsBase64;
    type Reply = EmbeddingReply;

    fn parse(body: &[u8]) -> Result<(EmbedRequest, AsBase64), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        let inputs = fields.inputs("input", INPUTS)?;
        if let Some(index) = inputs.iter().position(|input| matches!(input, EmbedInput::Text(text) if text.is_empty()))
        {
            return Err(empty(&if inputs.len() == 1 { "input".to_owned() } else { format!("input[{index}]") }));
        }
        let (prompt_name, input_type) = prompt(&mut fields)?;
        let embed = EmbedRequest {
            request_id: String::new(),
            model,
            inputs,
            dimensions: fields.positive("dimensions")?,
            prompt_name,
            input_type,
            truncate: truncate(&mut fields)?,
            timeout_ms: None,
        };
        let base64 = is_base64(&mut fields)?;
        end(fields)?;
        Ok((embed, AsBase64(base64)))
    }

    fn suit(form: &mut AsBase64, kind: ModelKind) -> Result<(), Problem> {
        match kind {
            ModelKind::SparseEmbed => only_numbers(*form),
            _ => Ok(()),
        }
    }

    fn reply(
        head: ReplyHead,
        _: &EmbedRequest,
        form: AsBase64,
        answer: EmbedResponse,
    ) -> Result<EmbeddingReply, Problem> {
        let EmbedResponse { vectors, sparse, prompt_tokens } = answer;
        if !sparse.is_empty() {
            only_numbers(form)?;
        }
        let AsBase64(base64) = form;
        let dense = |(index, vector)| Item::dense(index, vector, base64);
        let data = match sparse.is_empty() {
            true => vectors.into_iter().enumerate().map(dense).collect(),
            false => sparse.into_iter().enumerate().map(|(index, vector)| Item::sparse(index, vector)).collect(),
        };
        Ok(EmbeddingReply { object: "list", data, model: head.model, usage: TextUsage::of(prompt_tokens) })
    }
}

/// Sparse vectors have no form in base64.
fn only_numbers(AsBase64(base64): AsBase64) -> Result<(), Problem> {
    if !base64 {
        return Ok(());
    }
    let message = "'encoding_format' must be \"float\" for a model with sparse vectors; OpenAI's own clients ask for \
                   \"base64\" unless they are told otherwise";
    Err(Problem::invalid("encoding_format", message))
}

/// Which of the model's own prompts stands before each text: by its name, which there must be, or by what the vectors
/// are for. Clients of Cohere and NVIDIA say the latter to every model, also to those that have no prompts.
fn prompt(fields: &mut Fields) -> Result<(Option<String>, Option<InputType>), Problem> {
    const USE: &str = "input_type";
    let name = fields.string("prompt_name")?;
    let of_use = match fields.take(USE) {
        None => return Ok((name, None)),
        Some(Value::String(word)) => match word.as_str() {
            "query" | "search_query" => InputType::Query,
            "passage" | "document" | "search_document" => InputType::Document,
            _ => return Err(wrong_use(&Value::String(word))),
        },
        Some(other) => return Err(wrong_use(&other)),
    };
    let agrees = |name: &String| match of_use {
        InputType::Query => name == "query",
        InputType::Document => name == "document" || name == "passage",
    };
    if name.as_ref().is_some_and(|name| !agrees(name)) {
        let message = "'input_type' says another thing than 'prompt_name'; send one of them";
        return Err(Problem::invalid(USE, message));
    }
    Ok((name, Some(of_use)))
}

fn wrong_use(value: &Value) -> Problem {
    let expected = "one of query, passage, document, search_query and search_document";
    fields::wrong("input_type", expected, value)
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
    usage: TextUsage,
}

/// One vector. A sparse one has the names that Pinecone's records have.
#[derive(Debug, Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    #[serde(flatten)]
    embedding: Embedding,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Embedding {
    /// As numbers.
    Float { embedding: Vec<f32> },
    /// A [`Vector`] is base64 by itself.
    Base64 { embedding: Vector },
    /// Only what is not 0.
    Sparse(SparseVector),
}

impl Item {
    fn dense(index: usize, vector: Vector, base64: bool) -> Self {
        let embedding = match base64 {
            true => Embedding::Base64 { embedding: vector },
            false => Embedding::Float { embedding: vector.0 },
        };
        Self { object: "embedding", index, embedding }
    }

    fn sparse(index: usize, vector: SparseVector) -> Self {
        Self { object: "sparse_embedding", index, embedding: Embedding::Sparse(vector) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::texts::{assert_refused, changed};

    fn usual() -> Value {
        json!({ "model": "m", "input": "hi" })
    }

    fn parse(more: Value) -> Result<(EmbedRequest, AsBase64), Problem> {
        EmbeddingBody::parse(&changed(usual(), more))
    }

    fn reply(answer: &EmbedResponse, base64: bool) -> Result<Value, Problem> {
        let head = ReplyHead { id: String::new(), created: 7, model: "m".to_owned() };
        let (call, _) = parse(json!({})).unwrap();
        let reply = EmbeddingBody::reply(head, &call, AsBase64(base64), answer.clone())?;
        Ok(serde_json::to_value(reply).unwrap())
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
            let (request, AsBase64(base64)) = parse(json!({ "input": input })).unwrap();
            assert_eq!(request.inputs, expected);
            assert!(!base64);
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        assert_refused(
            &usual(),
            EmbeddingBody::parse,
            [
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
                ("user", json!(1), "user"),
                ("truncate", json!("START"), "truncate"),
                ("truncate", json!(1), "truncate"),
                ("prompt_name", json!(1), "prompt_name"),
                ("input_type", json!("classification"), "input_type"),
                ("input_type", json!(1), "input_type"),
                ("input", json!(vec!["a"; 100_000]), "input"),
            ],
        );
        let problem = parse(json!({ "prompt_name": "query", "input_type": "passage" })).unwrap_err();
        assert_eq!(problem.param.as_deref(), Some("input_type"));
    }

    #[test]
    fn a_prompt_is_named_by_itself_or_by_its_use() {
        use InputType::{Document, Query};
        for (more, name, input_type) in [
            (json!({}), None, None),
            (json!({ "prompt_name": "code" }), Some("code"), None),
            (json!({ "input_type": "query" }), None, Some(Query)),
            (json!({ "input_type": "search_query", "prompt_name": "query" }), Some("query"), Some(Query)),
            (json!({ "input_type": "passage" }), None, Some(Document)),
            (json!({ "input_type": "passage", "prompt_name": "passage" }), Some("passage"), Some(Document)),
            (json!({ "input_type": "search_document" }), None, Some(Document)),
        ] {
            let (request, _) = parse(more).unwrap();
            assert_eq!((request.prompt_name.as_deref(), request.input_type), (name, input_type));
        }
    }

    #[test]
    fn sparse_vectors_go_out_as_places_and_numbers_and_in_no_other_form() {
        let vector = SparseVector { indices: vec![7, 9], values: vec![0.5, 2.0] };
        let answer = EmbedResponse { vectors: vec![], sparse: vec![vector], prompt_tokens: 3 };
        let expected = json!([{ "object": "sparse_embedding", "index": 0, "indices": [7, 9], "values": [0.5, 2.0] }]);
        assert_eq!(reply(&answer, false).unwrap()["data"], expected);
        let problem = reply(&answer, true).unwrap_err();
        assert_eq!(problem.param.as_deref(), Some("encoding_format"));
        assert!(EmbeddingBody::suit(&mut AsBase64(true), ModelKind::SparseEmbed).is_err());
        assert!(EmbeddingBody::suit(&mut AsBase64(false), ModelKind::SparseEmbed).is_ok());
        assert!(EmbeddingBody::suit(&mut AsBase64(true), ModelKind::Embed).is_ok());
    }

    #[test]
    fn vectors_go_out_as_numbers_or_base64() {
        let response =
            EmbedResponse { vectors: vec![Vector(vec![0.5, -1.0]), Vector(vec![])], sparse: vec![], prompt_tokens: 3 };
        let body = |base64| reply(&response, base64).unwrap();
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
