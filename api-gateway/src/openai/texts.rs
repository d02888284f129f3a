//! What the endpoints of text models have in common.

use muster_shared::problem::Problem;
use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, empty, too_many, wrong};

/// Most texts of one request.
pub(crate) const INPUTS: usize = 2048;

/// A string, or an array of strings: at least one, at most [`INPUTS`], none of them empty.
pub(crate) fn texts(path: &str, value: Value) -> Result<Vec<String>, Problem> {
    match value {
        Value::String(text) => Ok(vec![not_empty(path, text)?]),
        value => items(path, value, "a string or an array of strings", |path, item| match item {
            Value::String(text) => not_empty(path, text),
            other => Err(wrong(path, "a string", &other)),
        }),
    }
}

/// An array of at least one and at most [`INPUTS`] items. `read` gets the name of each.
pub(crate) fn items<T>(
    path: &str,
    value: Value,
    expected: &str,
    read: impl Fn(&str, Value) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    match value {
        Value::Array(items) if items.is_empty() => Err(empty(path)),
        Value::Array(items) if items.len() > INPUTS => Err(too_many(path, INPUTS, "entries", items.len())),
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(index, item)| read(&format!("{path}[{index}]"), item)).collect()
        }
        other => Err(wrong(path, expected, &other)),
    }
}

/// A text in which something stands.
pub(crate) fn not_empty(path: &str, text: String) -> Result<String, Problem> {
    if text.is_empty() { Err(empty(path)) } else { Ok(text) }
}

/// Whether a text that is too long is cut: `truncate` as true or false, or in the words of Cohere and NVIDIA.
pub(crate) fn truncate(fields: &mut Fields) -> Result<bool, Problem> {
    const NAME: &str = "truncate";
    let Some(value) = fields.take(NAME) else { return Ok(false) };
    match &value {
        Value::Bool(truncate) => Ok(*truncate),
        Value::String(word) => match word.to_ascii_uppercase().as_str() {
            "NONE" => Ok(false),
            "END" => Ok(true),
            "START" => {
                let message = "'truncate' cannot be \"START\": texts are cut at their end only; use \"END\"";
                Err(Problem::invalid(NAME, message))
            }
            _ => Err(wrong(NAME, "true, false, \"END\" or \"NONE\"", &value)),
        },
        other => Err(wrong(NAME, "true, false, \"END\" or \"NONE\"", other)),
    }
}

/// Whether a model's own numbers are wanted: `raw_scores`, or the opposite under the names that vLLM has had for it.
pub(crate) fn raw_scores(fields: &mut Fields) -> Result<bool, Problem> {
    let raw = fields.boolean("raw_scores")?;
    let (newer, older) = (fields.boolean("use_activation")?, fields.boolean("activation")?);
    Ok(raw.or(newer.or(older).map(|activation| !activation)).unwrap_or(false))
}

/// Refuses fields that would change the answer and cannot be heeded.
pub(crate) fn refuse(fields: &mut Fields, unsupported: &[(&str, &str)]) -> Result<(), Problem> {
    for (name, instead) in unsupported {
        if fields.take(name).is_some() {
            return Err(Problem::invalid(*name, format!("'{name}' is not supported here; {instead}")));
        }
    }
    Ok(())
}

/// Ends the reading of a request: checks what every endpoint takes and none uses.
pub(crate) fn end(mut fields: Fields) -> Result<(), Problem> {
    fields.string("user")?;
    fields.unknown();
    Ok(())
}

/// What an answer without an answer's tokens has cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct TextUsage {
    prompt_tokens: u32,
    total_tokens: u32,
}

impl TextUsage {
    /// Of so many tokens read.
    pub(crate) fn of(tokens: u32) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

/// The object of a body, for tests of one field at a time.
#[cfg(test)]
pub(super) fn changed(mut body: Value, more: Value) -> Vec<u8> {
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body.to_string().into_bytes()
}

/// Checks that each of the values is refused by the name of its field.
#[cfg(test)]
pub(super) fn assert_refused<T: std::fmt::Debug>(
    usual: &Value,
    parse: fn(&[u8]) -> Result<T, Problem>,
    table: impl IntoIterator<Item = (&'static str, Value, &'static str)>,
) {
    parse(usual.to_string().as_bytes()).expect("what is changed is sound before");
    for (field, value, param) in table {
        let problem = parse(&changed(usual.clone(), serde_json::json!({ field: value }))).expect_err(field);
        assert_eq!(problem.param.as_deref(), Some(param), "{problem}");
        assert!(problem.message.contains(param), "{problem}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::fields;

    fn of<T>(body: Value, read: fn(&mut Fields) -> Result<T, Problem>) -> Result<T, Problem> {
        read(&mut fields::object(body.to_string().as_bytes())?)
    }

    #[test]
    fn truncation_is_said_in_many_ways() {
        for (value, expected) in [
            (json!(null), false),
            (json!(false), false),
            (json!(true), true),
            (json!("NONE"), false),
            (json!("END"), true),
            (json!("end"), true),
        ] {
            assert_eq!(of(json!({ "truncate": value }), truncate), Ok(expected));
        }
        let problem = of(json!({ "truncate": "START" }), truncate).unwrap_err();
        assert!(problem.message.contains("START") && problem.message.contains("END"), "{problem}");
        for value in [json!("MIDDLE"), json!(1), json!([])] {
            let problem = of(json!({ "truncate": value }), truncate).unwrap_err();
            assert!(problem.message.contains("true, false"), "{problem}");
        }
    }

    #[test]
    fn raw_scores_are_asked_for_in_three_ways() {
        for (body, expected) in [
            (json!({}), false),
            (json!({ "raw_scores": true }), true),
            (json!({ "activation": false }), true),
            (json!({ "use_activation": false, "activation": true }), true),
            (json!({ "raw_scores": false, "activation": false }), false),
        ] {
            assert_eq!(of(body.clone(), raw_scores), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_hundred_thousand_texts_are_refused_with_the_bound() {
        let problem = texts("input", json!(vec!["a"; 100_000])).unwrap_err();
        assert_eq!(problem.message, "'input' must have at most 2048 entries; got 100000");
    }
}
