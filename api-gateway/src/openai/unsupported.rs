//! What clients of OpenAI-like services ask for and this gateway cannot do.
//!
//! A field that would change the answer is refused by its name: an answer that silently lacks what was asked for is
//! worse than none. A value that asks for what happens anyway is let through.

use muster_shared::problem::Problem;
use serde_json::Value;

use super::fields::Fields;

/// A field, and whether a value of it asks for nothing.
type Refusal = (&'static str, fn(&Value) -> bool);

/// What chat cannot do.
const CHAT: &[Refusal] = &[
    ("tools", is_empty),
    ("tool_choice", is_no_choice),
    ("functions", is_empty),
    ("function_call", is_no_choice),
    ("audio", never),
    ("modalities", is_text_only),
    ("prediction", never),
    ("web_search_options", never),
    ("continue_final_message", is_false),
];

/// What a completion cannot do.
const COMPLETION: &[Refusal] = &[("suffix", is_empty)];

/// What a tokenizer that renders a conversation cannot do.
const TEMPLATE: &[Refusal] = &[("tools", is_empty), ("continue_final_message", is_false)];

/// What neither can do.
const BOTH: &[Refusal] = &[
    ("response_format", is_text_format),
    ("logits_processors", is_empty),
    ("use_beam_search", is_false),
    ("bad_words", is_empty),
    ("prompt_logprobs", never),
    ("structured_outputs", never),
    ("guided_json", never),
    ("guided_regex", never),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("grammar", is_empty),
    ("json_schema", never),
];

/// Refuses a chat request that asks for what cannot be done.
pub(crate) fn refuse_in_chat(fields: &mut Fields) -> Result<(), Problem> {
    refuse(fields, CHAT)?;
    refuse(fields, BOTH)
}

/// Refuses a completion request that asks for what cannot be done.
pub(crate) fn refuse_in_completion(fields: &mut Fields) -> Result<(), Problem> {
    refuse(fields, COMPLETION)?;
    refuse(fields, BOTH)
}

/// Refuses what would change how a conversation is rendered, and cannot be done.
pub(crate) fn refuse_in_template(fields: &mut Fields) -> Result<(), Problem> {
    refuse(fields, TEMPLATE)
}

fn refuse(fields: &mut Fields, table: &[Refusal]) -> Result<(), Problem> {
    for (name, is_harmless) in table {
        if fields.take(name).is_some_and(|value| !is_harmless(&value)) {
            let message = format!("'{name}' is not supported by this gateway yet; leave it out");
            return Err(Problem::invalid(*name, message));
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    *value == false
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Without tools both mean the same.
fn is_no_choice(value: &Value) -> bool {
    *value == "none" || *value == "auto"
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

fn is_text_format(value: &Value) -> bool {
    value["type"] == "text"
}
