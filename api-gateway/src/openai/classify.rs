//! The bodies of `/v1/classify`, in vLLM's shape.

use muster_shared::problem::Problem;
use muster_shared::text::{ClassifyInput, ClassifyRequest, ClassifyResponse};
use serde::Serialize;
use serde_json::Value;

use super::ReplyHead;
use super::endpoint::Endpoint;
use super::fields::{self, Fields, empty, tokens, wrong};
use super::texts::{TextUsage, end, items, not_empty, raw_scores, refuse, truncate};
use crate::observe::Route;

/// What only models that find entities can do.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("aggregation", "it is for models that find entities, and this one tells classes"),
    ("aggregation_strategy", "it is for models that find entities, and this one tells classes"),
    ("truncate_prompt_tokens", "leave it out, and set 'truncate' to cut texts to what the model takes"),
];

/// The endpoint, for models that tell classes.
pub(crate) struct ClassifyBody;

impl Endpoint for ClassifyBody {
    const ROUTE: Route = Route::Classify;
    const PREFIX: &'static str = "classify";
    type Call = ClassifyRequest;
    type Form = ();
    type Reply = ClassifyReply;

    fn parse(body: &[u8]) -> Result<(ClassifyRequest, ()), Problem> {
        let mut fields = fields::object(body)?;
        let model = fields.required_string("model")?;
        refuse(&mut fields, UNSUPPORTED)?;
        let classify = ClassifyRequest {
            request_id: String::new(),
            model,
            inputs: inputs(&mut fields)?,
            raw_scores: raw_scores(&mut fields)?,
            truncate: truncate(&mut fields)?,
            timeout_ms: None,
        };
        end(fields)?;
        Ok((classify, ()))
    }

    fn reply(head: ReplyHead, _: &ClassifyRequest, (): (), answer: ClassifyResponse) -> Result<ClassifyReply, Problem> {
        let ClassifyResponse { labels, scores, multi_label, prompt_tokens } = answer;
        let data = scores.into_iter().enumerate().map(|(index, probs)| Classified {
            index,
            label: best(&labels, &probs),
            num_classes: probs.len(),
            probs,
        });
        Ok(ClassifyReply {
            id: head.id,
            object: "list",
            created: head.created,
            model: head.model,
            data: data.collect(),
            labels,
            multi_label,
            usage: TextUsage::of(prompt_tokens),
        })
    }
}

/// The name of the largest number, the first of equals.
fn best(labels: &[String], numbers: &[f32]) -> Option<String> {
    let all = labels.iter().zip(numbers);
    all.reduce(|best, next| if next.1.total_cmp(best.1).is_gt() { next } else { best }).map(|(label, _)| label.clone())
}

/// A string, token ids, or an array whose items are strings, pairs of strings, and lists of token ids.
///
/// Two strings in an array of their own, `[["a", "b"]]`, are judged together.
fn inputs(fields: &mut Fields) -> Result<Vec<ClassifyInput>, Problem> {
    const NAME: &str = "input";
    const EXPECTED: &str = "a string or an array of strings, of pairs of strings, or of arrays of token ids";
    match fields.required(NAME)? {
        Value::String(text) => Ok(vec![ClassifyInput::Text(not_empty(NAME, text)?)]),
        Value::Array(ids) if ids.first().is_some_and(Value::is_number) => {
            Ok(vec![ClassifyInput::Tokens(tokens(NAME, &ids)?)])
        }
        value => items(NAME, value, EXPECTED, input),
    }
}

fn input(path: &str, item: Value) -> Result<ClassifyInput, Problem> {
    match item {
        Value::String(text) => Ok(ClassifyInput::Text(not_empty(path, text)?)),
        Value::Array(parts) if parts.is_empty() => Err(empty(path)),
        Value::Array(parts) if parts[0].is_string() => pair(path, parts),
        Value::Array(ids) => Ok(ClassifyInput::Tokens(tokens(path, &ids)?)),
        other => Err(wrong(path, "a string, a pair of strings, or an array of token ids", &other)),
    }
}

fn pair(path: &str, parts: Vec<Value>) -> Result<ClassifyInput, Problem> {
    let count = parts.len();
    let Ok([Value::String(first), Value::String(second)]) = <[Value; 2]>::try_from(parts) else {
        let message = format!("'{path}' must be two strings that are judged together; got {count} values");
        return Err(Problem::invalid(path, message));
    };
    Ok(ClassifyInput::Pair(not_empty(path, first)?, not_empty(path, second)?))
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct ClassifyReply {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Classified>,
    /// Names of the classes, in the order of every `probs`.
    labels: Vec<String>,
    /// Whether each probability stands for itself.
    multi_label: bool,
    usage: TextUsage,
}

#[derive(Debug, Serialize)]
struct Classified {
    index: usize,
    label: Option<String>,
    probs: Vec<f32>,
    num_classes: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::texts::{assert_refused, changed};

    fn usual() -> Value {
        json!({ "model": "m", "input": "hi" })
    }

    #[test]
    fn inputs_come_in_many_shapes() {
        let text = |text: &str| ClassifyInput::Text(text.to_owned());
        let pair = ClassifyInput::Pair("a".to_owned(), "b".to_owned());
        for (input, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([["a", "b"]]), vec![pair.clone()]),
            (json!(["a", ["a", "b"]]), vec![text("a"), pair]),
            (json!([1, 2.0]), vec![ClassifyInput::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![ClassifyInput::Tokens(vec![1]), ClassifyInput::Tokens(vec![2, 3])]),
        ] {
            let (request, ()) = ClassifyBody::parse(&changed(usual(), json!({ "input": input }))).unwrap();
            assert_eq!(request.inputs, expected);
        }
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        assert_refused(
            &usual(),
            ClassifyBody::parse,
            [
                ("model", json!(null), "model"),
                ("model", json!(7), "model"),
                ("input", json!(null), "input"),
                ("input", json!(5), "input"),
                ("input", json!(""), "input"),
                ("input", json!([]), "input"),
                ("input", json!([true]), "input[0]"),
                ("input", json!(["a", ""]), "input[1]"),
                ("input", json!(["a", 1]), "input[1]"),
                ("input", json!([1, "a"]), "input"),
                ("input", json!([1, -1]), "input"),
                ("input", json!([[1], []]), "input[1]"),
                ("input", json!([[1, "x"]]), "input[0]"),
                ("input", json!([["a"]]), "input[0]"),
                ("input", json!([["a", "b", "c"]]), "input[0]"),
                ("input", json!([["a", 1]]), "input[0]"),
                ("input", json!([["a", ""]]), "input[0]"),
                ("input", json!(vec!["a"; 2049]), "input"),
                ("raw_scores", json!("no"), "raw_scores"),
                ("use_activation", json!(0), "use_activation"),
                ("truncate", json!("START"), "truncate"),
                ("aggregation", json!("max"), "aggregation"),
                ("aggregation_strategy", json!("max"), "aggregation_strategy"),
                ("truncate_prompt_tokens", json!(9), "truncate_prompt_tokens"),
                ("user", json!([]), "user"),
            ],
        );
    }

    #[test]
    fn every_text_gets_the_class_with_the_largest_number() {
        let (call, ()) = ClassifyBody::parse(usual().to_string().as_bytes()).unwrap();
        let head = ReplyHead { id: "classify-1".to_owned(), created: 7, model: "m".to_owned() };
        let labels = vec!["bad".to_owned(), "good".to_owned()];
        let scores = vec![vec![0.25, 0.75], vec![0.5, 0.5]];
        let answer = ClassifyResponse { labels, scores, multi_label: false, prompt_tokens: 9 };
        let expected = json!({
            "id": "classify-1", "object": "list", "created": 7, "model": "m", "data": [
                { "index": 0, "label": "good", "probs": [0.25, 0.75], "num_classes": 2 },
                { "index": 1, "label": "bad", "probs": [0.5, 0.5], "num_classes": 2 },
            ],
            "labels": ["bad", "good"], "multi_label": false, "usage": { "prompt_tokens": 9, "total_tokens": 9 },
        });
        let reply = ClassifyBody::reply(head, &call, (), answer).unwrap();
        assert_eq!(serde_json::to_value(reply).unwrap(), expected);
    }
}
