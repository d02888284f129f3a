//! The messages of a chat request.

use muster_shared::generate::Message;
use muster_shared::problem::Problem;
use serde_json::{Map, Value};

use crate::openai::fields::{Fields, empty, missing, shown, too_many, wrong};

/// Most messages of one request: more than any model's context holds, and few enough to be looked at.
const MESSAGES: usize = 1 << 16;

/// Reads `messages`.
pub(in crate::openai) fn parse(messages: Value) -> Result<Vec<Message>, Problem> {
    const NAME: &str = "messages";
    match messages {
        Value::Array(messages) if messages.is_empty() => Err(empty(NAME)),
        Value::Array(messages) if messages.len() > MESSAGES => {
            Err(too_many(NAME, MESSAGES, "messages", messages.len()))
        }
        Value::Array(messages) => {
            messages.into_iter().enumerate().map(|(index, turn)| message(&format!("{NAME}[{index}]"), turn)).collect()
        }
        other => Err(wrong(NAME, "an array of messages", &other)),
    }
}

fn message(path: &str, value: Value) -> Result<Message, Problem> {
    let mut fields = Fields::nested(path, value)?;
    let role = role(&mut fields)?;
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => Some(joined(&content_path, parts)?),
        Some(other) => return Err(wrong(&content_path, "a string or an array of parts", &other)),
        None => None,
    };
    let more = fields.rest();
    if content.is_none() && !(role == "assistant" && calls_a_tool(&more)) {
        return Err(missing(&content_path));
    }
    Ok(Message { role, content, more })
}

fn role(fields: &mut Fields) -> Result<String, Problem> {
    let role = fields.required_string("role")?;
    match role.as_str() {
        // The newer name of the same thing, which chat templates do not know.
        "developer" => Ok("system".to_owned()),
        "system" | "user" | "assistant" | "tool" | "function" => Ok(role),
        _ => {
            let expected = "one of system, developer, user, assistant, tool and function";
            Err(wrong(&fields.path("role"), expected, &Value::String(role)))
        }
    }
}

fn calls_a_tool(more: &Map<String, Value>) -> bool {
    let calls = more.get("tool_calls").and_then(Value::as_array);
    calls.is_some_and(|calls| !calls.is_empty()) || more.contains_key("function_call")
}

/// Text parts follow one another without anything between them.
fn joined(path: &str, parts: Vec<Value>) -> Result<String, Problem> {
    if parts.is_empty() {
        return Err(empty(path));
    }
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::nested(&format!("{path}[{index}]"), part)?;
        let kind = part.required_string("type")?;
        if kind != "text" {
            let message = format!(
                "'{path}' has a part of type {}, which is not supported by this gateway; send parts of type \"text\"",
                shown(&Value::String(kind))
            );
            return Err(Problem::invalid(path, message));
        }
        let piece = part.string("text")?.ok_or_else(|| missing(&part.path("text")))?;
        text.push_str(&piece);
    }
    Ok(text)
}
