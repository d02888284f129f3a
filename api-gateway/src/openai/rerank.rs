//! The bodies of `/v1/rerank`, in the shape that Cohere, Jina and vLLM share.

use muster_shared::problem::Problem;
use muster_shared::text::{RerankRequest, RerankResponse};
use serde::Serialize;
use serde_json::Value;

use super::ReplyHead;
use super::endpoint::Endpoint;
use super::fields::{self, Fields, missing, wrong};
use super::texts::{TextUsage, end, items, not_empty, raw_scores, refuse, truncate};
use crate::observe::Route;

/// What Cohere and vLLM know besides, and a worker does not.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("max_tokens_per_doc", "leave it out, and set 'truncate' to cut documents to what the model takes"),
    ("max_chunks_per_doc", "leave it out, and set 'truncate' to cut documents to what the model takes"),
    ("truncate_prompt_tokens", "leave it out, and set 'truncate' to cut documents to what the model takes"),
];

/// The endpoint.
pub(crate) struct RerankBody;

/// What is told of the documents.
#[derive(Debug)]
pub(crate) struct Form {
    /// Of so many of the best; absent: of all.
    top_n: Option<usize>,
    /// With their texts.
    return_documents: bool,
}

impl Endpoint for RerankBody {
    const ROUTE: Route = Route::Rerank;
    const PREFIX: &'static str = "rerank";
    type Call = RerankRequest;
    type Form = Form;
    type Reply = RerankReply;

    fn parse(body: &[u8]) -> Result<(RerankRequest, Form), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        refuse(&mut fields, UNSUPPORTED)?;
        let rerank = RerankRequest {
            request_id: String::new(),
            model,
            query: query(&mut fields)?,
            documents: documents(&mut fields)?,
            raw_scores: raw_scores(&mut fields)?,
            truncate: truncate(&mut fields)?,
            timeout_ms: None,
        };
        let form =
            Form { top_n: top_n(&mut fields)?, return_documents: fields.boolean("return_documents")?.unwrap_or(false) };
        rank_fields(&mut fields)?;
        end(fields)?;
        Ok((rerank, form))
    }

    fn reply(
        head: ReplyHead,
        call: &RerankRequest,
        form: Form,
        answer: RerankResponse,
    ) -> Result<RerankReply, Problem> {
        let mut ranked: Vec<(usize, f32)> = answer.scores.into_iter().enumerate().collect();
        ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one)); // the first of equals stays the first
        ranked.truncate(form.top_n.unwrap_or(ranked.len()));
        let document = |index: usize| Document { text: call.documents[index].clone() };
        let result = |(index, relevance_score)| Ranked {
            index,
            relevance_score,
            document: form.return_documents.then(|| document(index)),
        };
        let tokens = answer.prompt_tokens;
        Ok(RerankReply {
            id: head.id,
            model: head.model,
            results: ranked.into_iter().map(result).collect(),
            usage: TextUsage::of(tokens),
            meta: Meta { billed_units: BilledUnits { search_units: 1 }, tokens: Tokens { input_tokens: tokens } },
        })
    }
}

/// A text, or an object that has one, as Jina takes it.
fn query(fields: &mut Fields) -> Result<String, Problem> {
    text("query", fields.required("query")?)
}

fn documents(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let value = fields.required("documents")?;
    items("documents", value, "an array of strings, or of objects with a `text`", text)
}

fn text(path: &str, value: Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => not_empty(path, text),
        Value::Object(_) => {
            let mut fields = Fields::nested(path, value)?;
            let path = fields.path("text");
            let text = fields.string("text")?.ok_or_else(|| missing(&path))?;
            not_empty(&path, text)
        }
        other => Err(wrong(path, "a string or an object with a `text`", &other)),
    }
}

/// vLLM's way to ask for all is 0.
fn top_n(fields: &mut Fields) -> Result<Option<usize>, Problem> {
    let most = fields.at_least("top_n", 0)?.and_then(|most| usize::try_from(most).ok());
    Ok(most.filter(|most| *most > 0))
}

/// Cohere's older way to say which fields of a document count; here it is `text`.
fn rank_fields(fields: &mut Fields) -> Result<(), Problem> {
    const NAME: &str = "rank_fields";
    match fields.take(NAME) {
        Some(value) if value != serde_json::json!(["text"]) => {
            let message = "'rank_fields' is not supported here: a document's `text` is what counts; leave it out";
            Err(Problem::invalid(NAME, message))
        }
        _ => Ok(()),
    }
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct RerankReply {
    id: String,
    model: String,
    /// The best first.
    results: Vec<Ranked>,
    usage: TextUsage,
    /// What Cohere's clients look for.
    meta: Meta,
}

#[derive(Debug, Serialize)]
struct Ranked {
    /// Its place among the documents of the request.
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Debug, Serialize)]
struct Document {
    text: String,
}

#[derive(Debug, Serialize)]
struct Meta {
    billed_units: BilledUnits,
    tokens: Tokens,
}

#[derive(Debug, Serialize)]
struct BilledUnits {
    search_units: u32,
}

#[derive(Debug, Serialize)]
struct Tokens {
    input_tokens: u32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::texts::{assert_refused, changed};

    fn usual() -> Value {
        json!({ "model": "m", "query": "q", "documents": ["a", "b", "c", "d"] })
    }

    fn parse(more: Value) -> (RerankRequest, Form) {
        RerankBody::parse(&changed(usual(), more)).unwrap()
    }

    fn reply(more: Value, scores: &[f32]) -> Value {
        let (call, form) = parse(more);
        let head = ReplyHead { id: "rerank-1".to_owned(), created: 7, model: "m".to_owned() };
        let answer = RerankResponse { scores: scores.to_vec(), prompt_tokens: 12 };
        serde_json::to_value(RerankBody::reply(head, &call, form, answer).unwrap()).unwrap()
    }

    #[test]
    fn documents_are_texts_or_have_one() {
        let (rerank, form) = parse(json!({
            "documents": ["a", { "text": "b", "title": "x" }], "query": { "text": "q" }, "top_n": 1, "truncate": true,
            "rank_fields": ["text"], "unknown": 1, "user": "u",
        }));
        assert_eq!((rerank.query.as_str(), rerank.documents), ("q", vec!["a".to_owned(), "b".to_owned()]));
        assert!(rerank.truncate && !rerank.raw_scores && !form.return_documents);
        assert_eq!(form.top_n, Some(1));
        assert_eq!(parse(json!({ "top_n": 0 })).1.top_n, None);
    }

    #[test]
    fn the_best_comes_first_and_of_equals_the_first() {
        let body = reply(json!({}), &[0.5, 0.75, 0.25, 0.75]);
        let expected = json!({
            "id": "rerank-1", "model": "m", "results": [
                { "index": 1, "relevance_score": 0.75 },
                { "index": 3, "relevance_score": 0.75 },
                { "index": 0, "relevance_score": 0.5 },
                { "index": 2, "relevance_score": 0.25 },
            ],
            "usage": { "prompt_tokens": 12, "total_tokens": 12 },
            "meta": { "billed_units": { "search_units": 1 }, "tokens": { "input_tokens": 12 } },
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn only_as_many_as_are_wanted_are_told_with_their_texts_if_wanted() {
        let body = reply(json!({ "top_n": 2, "return_documents": true }), &[-1.0, 0.5, 2.0, -3.0]);
        let expected = json!([
            { "index": 2, "relevance_score": 2.0, "document": { "text": "c" } },
            { "index": 1, "relevance_score": 0.5, "document": { "text": "b" } },
        ]);
        assert_eq!(body["results"], expected);
        assert_eq!(reply(json!({ "top_n": 9 }), &[0.0; 4])["results"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        assert_refused(
            &usual(),
            RerankBody::parse,
            [
                ("model", json!(null), "model"),
                ("model", json!(""), "model"),
                ("query", json!(null), "query"),
                ("query", json!(""), "query"),
                ("query", json!(["q"]), "query"),
                ("query", json!({ "text": 1 }), "query.text"),
                ("documents", json!(null), "documents"),
                ("documents", json!("a"), "documents"),
                ("documents", json!([]), "documents"),
                ("documents", json!(["a", ""]), "documents[1]"),
                ("documents", json!(["a", 1]), "documents[1]"),
                ("documents", json!([{ "title": "a" }]), "documents[0].text"),
                ("documents", json!([{ "text": "" }]), "documents[0].text"),
                ("documents", json!(vec!["a"; 100_000]), "documents"),
                ("top_n", json!(-1), "top_n"),
                ("top_n", json!("2"), "top_n"),
                ("return_documents", json!("yes"), "return_documents"),
                ("raw_scores", json!(1), "raw_scores"),
                ("activation", json!("sigmoid"), "activation"),
                ("truncate", json!("START"), "truncate"),
                ("max_tokens_per_doc", json!(100), "max_tokens_per_doc"),
                ("max_chunks_per_doc", json!(1), "max_chunks_per_doc"),
                ("truncate_prompt_tokens", json!(1), "truncate_prompt_tokens"),
                ("rank_fields", json!(["title"]), "rank_fields"),
                ("user", json!(1), "user"),
            ],
        );
    }
}
