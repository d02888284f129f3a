//! The bodies of `/v1/moderations`.

use muster_shared::control::ModelKind;
use muster_shared::problem::Problem;
use muster_shared::text::{ClassifyInput, ClassifyRequest, ClassifyResponse};
use serde::Serialize;
use serde_json::{Map, Value};

use super::ReplyHead;
use super::endpoint::Endpoint;
use super::fields::{self, Fields, missing, shown, wrong};
use super::texts::{end, items, not_empty, texts, truncate};
use crate::observe::Route;

/// From which number on a text is of a category.
const FLAGGED: f32 = 0.5;

/// The endpoint.
pub(crate) struct ModerationBody;

/// How the texts belong together.
#[derive(Debug)]
pub(crate) struct Form {
    /// They are parts of one input, and have one result.
    parts: bool,
    /// The fleet says that the model is for this.
    known: bool,
}

impl Endpoint for ModerationBody {
    const ROUTE: Route = Route::Moderations;
    const PREFIX: &'static str = "modr";
    type Call = ClassifyRequest;
    type Form = Form;
    type Reply = ModerationReply;

    fn parse(body: &[u8]) -> Result<(ClassifyRequest, Form), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        let (texts, parts) = inputs(&mut fields)?;
        let inputs = texts.into_iter().map(ClassifyInput::Text).collect();
        let truncate = truncate(&mut fields)?;
        let classify =
            ClassifyRequest { request_id: String::new(), model, inputs, raw_scores: false, truncate, timeout_ms: None };
        end(fields)?;
        Ok((classify, Form { parts, known: false }))
    }

    fn suit(form: &mut Form, kind: ModelKind) -> Result<(), Problem> {
        form.known = kind == ModelKind::Moderate;
        Ok(())
    }

    fn reply(
        head: ReplyHead,
        _: &ClassifyRequest,
        form: Form,
        answer: ClassifyResponse,
    ) -> Result<ModerationReply, Problem> {
        if !form.known && !answer.multi_label {
            let message = format!(
                "the model `{}` tells one class of several, and no categories that a text may not hold; ask it at {}",
                head.model,
                Route::Classify.path()
            );
            return Err(Problem::invalid("model", message));
        }
        let ClassifyResponse { labels, mut scores, .. } = answer;
        if form.parts {
            scores = scores.into_iter().reduce(larger).into_iter().collect();
        }
        let results = scores.iter().map(|scores| result(&labels, scores)).collect();
        Ok(ModerationReply { id: head.id, model: head.model, results })
    }
}

/// The name of a model in a body, whatever it is.
///
/// # Errors
/// When the body is no JSON object.
pub(crate) fn named(body: &[u8]) -> Result<Option<Value>, Problem> {
    Ok(fields::object(body)?.take("model"))
}

/// The texts, and whether they are parts of one input.
fn inputs(fields: &mut Fields) -> Result<(Vec<String>, bool), Problem> {
    const NAME: &str = "input";
    match fields.required(NAME)? {
        Value::Array(parts) if parts.first().is_some_and(Value::is_object) => {
            Ok((items(NAME, Value::Array(parts), "an array of parts", part)?, true))
        }
        value => Ok((texts(NAME, value)?, false)),
    }
}

/// The text of one part.
fn part(path: &str, value: Value) -> Result<String, Problem> {
    let mut fields = Fields::nested(path, value)?;
    let (kind_path, text_path) = (fields.path("type"), fields.path("text"));
    match fields.required("type")? {
        kind if kind == "text" => {
            let text = fields.string("text")?.ok_or_else(|| missing(&text_path))?;
            not_empty(&text_path, text)
        }
        Value::String(kind) => {
            let message = format!(
                "'{path}' is a part of the type {}; models of this gateway judge parts of the type \"text\" only",
                shown(&Value::String(kind))
            );
            Err(Problem::invalid(path, message))
        }
        other => Err(wrong(&kind_path, "\"text\"", &other)),
    }
}

/// The larger number of each place: an input is as bad as its worst part.
fn larger(one: Vec<f32>, other: Vec<f32>) -> Vec<f32> {
    one.into_iter().zip(other).map(|(one, other)| one.max(other)).collect()
}

fn result(labels: &[String], scores: &[f32]) -> ModerationResult {
    let each = |value: fn(f32) -> Value| -> Map<String, Value> {
        labels.iter().zip(scores).map(|(label, score)| (label.clone(), value(*score))).collect()
    };
    ModerationResult {
        flagged: scores.iter().any(|score| *score >= FLAGGED),
        categories: each(|score| Value::Bool(score >= FLAGGED)),
        category_scores: each(Value::from),
        category_applied_input_types: each(|_| Value::from(vec!["text"])),
    }
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct ModerationReply {
    id: String,
    model: String,
    results: Vec<ModerationResult>,
}

/// What one input holds; by category.
#[derive(Debug, Serialize)]
struct ModerationResult {
    flagged: bool,
    categories: Map<String, Value>,
    category_scores: Map<String, Value>,
    category_applied_input_types: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::texts::{assert_refused, changed};

    fn usual() -> Value {
        json!({ "model": "m", "input": "hi" })
    }

    fn reply(input: Value, answer: ClassifyResponse, kind: Option<ModelKind>) -> Result<Value, Problem> {
        let (call, mut form) = ModerationBody::parse(&changed(usual(), json!({ "input": input })))?;
        kind.map_or(Ok(()), |kind| ModerationBody::suit(&mut form, kind))?;
        let head = ReplyHead { id: "modr-1".to_owned(), created: 7, model: "m".to_owned() };
        Ok(serde_json::to_value(ModerationBody::reply(head, &call, form, answer)?).unwrap())
    }

    fn answer(scores: &[[f32; 2]], multi_label: bool) -> ClassifyResponse {
        let labels = vec!["hate".to_owned(), "self-harm".to_owned()];
        ClassifyResponse { labels, scores: scores.iter().map(|s| s.to_vec()).collect(), multi_label, prompt_tokens: 1 }
    }

    #[test]
    fn a_text_is_flagged_from_a_half_on() {
        let body = reply(json!(["a", "b"]), answer(&[[0.5, 0.25], [0.25, 0.0]], true), None).unwrap();
        let types = json!({ "hate": ["text"], "self-harm": ["text"] });
        let expected = json!({ "id": "modr-1", "model": "m", "results": [
            { "flagged": true, "categories": { "hate": true, "self-harm": false },
              "category_scores": { "hate": 0.5, "self-harm": 0.25 }, "category_applied_input_types": types },
            { "flagged": false, "categories": { "hate": false, "self-harm": false },
              "category_scores": { "hate": 0.25, "self-harm": 0.0 }, "category_applied_input_types": types },
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn parts_have_one_result_which_is_that_of_the_worst() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let body = reply(parts, answer(&[[0.25, 0.0], [0.0, 0.75]], true), None).unwrap();
        assert_eq!(body["results"].as_array().unwrap().len(), 1);
        assert_eq!(body["results"][0]["category_scores"], json!({ "hate": 0.25, "self-harm": 0.75 }));
    }

    #[test]
    fn a_model_that_turns_out_to_tell_one_class_is_refused() {
        let problem = reply(json!("a"), answer(&[[0.5, 0.5]], false), None).unwrap_err();
        assert_eq!(problem.param.as_deref(), Some("model"));
        assert!(problem.message.contains("/v1/classify"), "{problem}");
        assert!(reply(json!("a"), answer(&[[0.5, 0.5]], false), Some(ModelKind::Moderate)).is_ok());
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        let image = json!({ "type": "image_url", "image_url": { "url": "x" } });
        let text = json!({ "type": "text", "text": "a" });
        assert_refused(
            &usual(),
            ModerationBody::parse,
            [
                ("model", json!(""), "model"),
                ("model", json!(1), "model"),
                ("input", json!(null), "input"),
                ("input", json!(1), "input"),
                ("input", json!({}), "input"),
                ("input", json!(""), "input"),
                ("input", json!([]), "input"),
                ("input", json!(["a", ""]), "input[1]"),
                ("input", json!(["a", 1]), "input[1]"),
                ("input", json!(["a", text]), "input[1]"),
                ("input", json!([text, "a"]), "input[1]"),
                ("input", json!([image]), "input[0]"),
                ("input", json!([text, image]), "input[1]"),
                ("input", json!([{ "type": "text" }]), "input[0].text"),
                ("input", json!([{ "type": "text", "text": "" }]), "input[0].text"),
                ("input", json!([{ "text": "a" }]), "input[0].type"),
                ("input", json!([{ "type": 1 }]), "input[0].type"),
                ("input", json!(vec!["a"; 2049]), "input"),
                ("truncate", json!("START"), "truncate"),
                ("user", json!(1), "user"),
            ],
        );
        let problem = ModerationBody::parse(&changed(usual(), json!({ "input": [image] }))).unwrap_err();
        assert!(problem.message.contains("image_url"), "{problem}");
    }
}
