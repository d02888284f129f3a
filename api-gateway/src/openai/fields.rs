//! Reads a JSON object field by field, with errors that name the field, what it must be, and what it was.
//!
//! A field that is `null` counts as absent, as with OpenAI.

use std::ops::RangeInclusive;

use muster_shared::embed::EmbedInput;
use muster_shared::problem::{Kind, Problem};
use serde_json::{Map, Value};

/// Longest piece of a bad value that an error repeats, in characters.
const SHOWN: usize = 40;

/// Most values in a body, all that it nests counted. One takes some eighty bytes while it is read, and two of the body:
/// eight megabytes of zeros would take three hundred.
const VALUES: usize = 1 << 20;

/// The fields of an object that have not been read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    /// What stands before a field's name in errors: `messages[0].`, or nothing.
    prefix: String,
    map: Map<String, Value>,
}

/// Reads a body.
///
/// # Errors
/// [`Kind::Invalid`] with line and column where it is not JSON, where it is not an object, and where it holds too many
/// values.
pub(crate) fn object(bytes: &[u8]) -> Result<Fields, Problem> {
    // A value needs a byte, and another one from the next.
    if bytes.len() / 2 > VALUES && values(bytes) > VALUES {
        let message =
            format!("the body must hold at most {VALUES} JSON values, nested ones counted; send less at once");
        return Err(Problem::new(Kind::Invalid, message));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(Fields { prefix: String::new(), map }),
        Ok(other) => Err(Problem::new(Kind::Invalid, format!("the body must be a JSON object; got {}", shown(&other)))),
        Err(error) => Err(Problem::new(Kind::Invalid, format!("the body is not valid JSON: {error}"))),
    }
}

/// At most so many values are in a text, if it is JSON: each but the first comes after one of these signs.
fn values(bytes: &[u8]) -> usize {
    let (mut signs, mut quoted, mut escaped) = (1, false, false);
    for &byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => signs += 1,
            _ => {}
        }
    }
    signs
}

impl Fields {
    /// The object in `value`, whose fields errors will call `<name>.<field>`.
    pub(crate) fn nested(name: &str, value: Value) -> Result<Self, Problem> {
        match value {
            Value::Object(map) => Ok(Self { prefix: format!("{name}."), map }),
            other => Err(wrong(name, "an object", &other)),
        }
    }

    /// The full name of a field, for errors.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Any value but `null`.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(name), "a string", &other)),
        }
    }

    /// A string that is there and not empty.
    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, Problem> {
        let text = self.string(name)?.ok_or_else(|| missing(&self.path(name)))?;
        if text.is_empty() {
            return Err(empty(&self.path(name)));
        }
        Ok(text)
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value, Problem> {
        self.take(name).ok_or_else(|| missing(&self.path(name)))
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(&self.path(name), "true or false", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().map(|number| number as f32) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let expected = format!("a number between {} and {}", range.start(), range.end());
                Err(wrong(&self.path(name), &expected, &value))
            }
        }
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ if range == (i64::MIN..=i64::MAX) => Err(wrong(&self.path(name), "an integer", &value)),
            _ => {
                let expected = format!("an integer between {} and {}", range.start(), range.end());
                Err(wrong(&self.path(name), &expected, &value))
            }
        }
    }

    /// An integer in a range of small numbers.
    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Problem> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        Ok(self.integer(name, range)?.and_then(|number| u32::try_from(number).ok()))
    }

    /// An integer without an upper bound of its own; more than fits is as good as the most that fits.
    pub(crate) fn at_least(&mut self, name: &str, least: i64) -> Result<Option<i64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if number >= least => Ok(Some(number.min(u32::MAX.into()))),
            _ => Err(wrong(&self.path(name), &format!("an integer of at least {least}"), &value)),
        }
    }

    /// As [`Fields::at_least`] 1.
    pub(crate) fn positive(&mut self, name: &str) -> Result<Option<u32>, Problem> {
        Ok(self.at_least(name, 1)?.and_then(|number| u32::try_from(number).ok()))
    }

    /// A list of token ids, at most `most`.
    pub(crate) fn token_ids(&mut self, name: &str, most: usize) -> Result<Option<Vec<u32>>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path(name);
        match &value {
            Value::Array(ids) if ids.len() > most => Err(too_many(&path, most, "token ids", ids.len())),
            Value::Array(ids) => Ok(Some(tokens(&path, ids)?)),
            other => Err(wrong(&path, "an array of token ids", other)),
        }
    }

    /// What prompts and embedding inputs have in common: a string, strings, token ids, or lists of token ids.
    /// Gives at least one and at most `most`; a list of token ids holds at least one.
    pub(crate) fn inputs(&mut self, name: &str, most: usize) -> Result<Vec<EmbedInput>, Problem> {
        let path = self.path(name);
        let items = match self.required(name)? {
            Value::String(text) => return Ok(vec![EmbedInput::Text(text)]),
            Value::Array(items) => items,
            other => return Err(wrong(&path, "a string or an array", &other)),
        };
        let all_are = |is: fn(&Value) -> bool| items.iter().all(is);
        match items.first() {
            None => Err(empty(&path)),
            Some(Value::Number(_)) => Ok(vec![EmbedInput::Tokens(tokens(&path, &items)?)]),
            Some(_) if items.len() > most => Err(too_many(&path, most, "entries", items.len())),
            Some(Value::String(_) | Value::Array(_)) if all_are(Value::is_string) || all_are(Value::is_array) => {
                items.into_iter().enumerate().map(|(index, item)| input(&format!("{path}[{index}]"), item)).collect()
            }
            Some(_) => {
                let message = format!(
                    "'{path}' must be a string, or an array of strings, of token ids, or of arrays of token ids, \
                     all of one type"
                );
                Err(Problem::invalid(path, message))
            }
        }
    }

    /// The fields that nobody has asked for, `null`s left out.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    /// Ends the reading. What is left over is ignored, as OpenAI does.
    pub(crate) fn unknown(self) {
        for name in self.map.keys() {
            // The client chooses the name, so only its start goes into the log.
            tracing::debug!(field = %name.chars().take(SHOWN).collect::<String>(), "field ignored");
        }
    }
}

fn input(path: &str, item: Value) -> Result<EmbedInput, Problem> {
    match item {
        Value::String(text) => Ok(EmbedInput::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err(empty(path)),
        Value::Array(ids) => Ok(EmbedInput::Tokens(tokens(path, &ids)?)),
        other => Err(wrong(path, "a string or an array of token ids", &other)),
    }
}

/// Token ids.
pub(crate) fn tokens(path: &str, ids: &[Value]) -> Result<Vec<u32>, Problem> {
    ids.iter().map(|id| token_id(path, id)).collect()
}

fn token_id(path: &str, id: &Value) -> Result<u32, Problem> {
    let number = whole(id).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| wrong(path, "an array of token ids (integers of at least 0)", id))
}

/// An integer, also in the form `16.0` that some clients write.
fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_u64() {
        return Some(i64::try_from(number).unwrap_or(i64::MAX));
    }
    value.as_i64().or_else(|| value.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64))
}

/// `'temperature' must be a number between 0 and 2; got "hot"`.
pub(crate) fn wrong(path: &str, expected: &str, got: &Value) -> Problem {
    Problem::invalid(path, format!("'{path}' must be {expected}; got {}", shown(got)))
}

pub(crate) fn missing(path: &str) -> Problem {
    Problem::invalid(path, format!("'{path}' is required"))
}

pub(crate) fn empty(path: &str) -> Problem {
    Problem::invalid(path, format!("'{path}' must not be empty"))
}

pub(crate) fn too_many(path: &str, most: usize, what: &str, got: usize) -> Problem {
    Problem::invalid(path, format!("'{path}' must have at most {most} {what}; got {got}"))
}

/// A value as an error repeats it: short, whatever the client sent.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().nth(SHOWN).is_some() => {
            let start: String = text.chars().take(SHOWN).collect();
            format!("{:?}…", start)
        }
        other => other.to_string(),
    }
}
