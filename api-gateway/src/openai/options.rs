//! What chat and completions have in common besides the prompt.

use muster_shared::generate::{GenerateRequest, Prompt, Sampling};
use muster_shared::problem::Problem;
use serde_json::Value;

use super::fields::{Fields, empty, too_many, wrong};
use super::sampling::sampling;

/// Most answers to one prompt.
const CHOICES: u32 = 128;
/// Most stop strings, and the length of one and of all in bytes. A worker looks for any number of them in the same time,
/// with memory of some 40 bytes for each byte of theirs.
const STOPS: usize = 10_000;
const STOP_LENGTH: usize = 1024;
const STOPS_LENGTH: usize = 512 << 10;
/// Most stop tokens.
const STOP_TOKENS: usize = 10_000;
/// Most allowed tokens: more than any vocabulary has.
const ALLOWED_TOKENS: usize = 1 << 20;
/// Longest salt in bytes.
const SALT_LENGTH: usize = 256;

/// Everything but the prompt, the length and the log-probabilities, whose rules differ.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) priority: i8,
    sampling: Sampling,
    choices: u32,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
    min_tokens: u32,
    allowed_token_ids: Option<Vec<u32>>,
    cache_salt: Option<String>,
}

impl Options {
    /// Takes them out of a request.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, Problem> {
        let model = fields.required_string("model")?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        fields.string("user")?;
        Ok(Self {
            model,
            stream,
            include_usage: include_usage(fields, stream)?,
            priority: priority(fields)?,
            sampling: sampling(fields)?,
            choices: fields.count("n", 1..=CHOICES)?.unwrap_or(1),
            stop: stop(fields)?,
            stop_token_ids: fields.token_ids("stop_token_ids", STOP_TOKENS)?.unwrap_or_default(),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            min_tokens: fields.at_least("min_tokens", 0)?.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            allowed_token_ids: allowed_token_ids(fields)?,
            cache_salt: cache_salt(fields)?,
        })
    }

    /// What the worker is asked, still without a request id.
    pub(crate) fn generate(&mut self, prompt: Prompt) -> GenerateRequest {
        GenerateRequest {
            sampling: std::mem::take(&mut self.sampling),
            choices: self.choices,
            stop: std::mem::take(&mut self.stop),
            stop_token_ids: std::mem::take(&mut self.stop_token_ids),
            ignore_eos: self.ignore_eos,
            min_tokens: self.min_tokens,
            allowed_token_ids: self.allowed_token_ids.take(),
            cache_salt: self.cache_salt.take(),
            priority: self.priority.into(),
            ..GenerateRequest::new(self.model.as_str(), prompt)
        }
    }
}

/// Refuses an answer that must be longer than it may be.
pub(crate) fn check_lengths(request: &GenerateRequest) -> Result<(), Problem> {
    match (request.min_tokens, request.max_tokens) {
        (least, Some(most)) if least > most => {
            let message = format!("'min_tokens' must be at most 'max_tokens', which is {most}; got {least}");
            Err(Problem::invalid("min_tokens", message))
        }
        _ => Ok(()),
    }
}

fn allowed_token_ids(fields: &mut Fields) -> Result<Option<Vec<u32>>, Problem> {
    const NAME: &str = "allowed_token_ids";
    match fields.token_ids(NAME, ALLOWED_TOKENS)? {
        Some(ids) if ids.is_empty() => Err(empty(NAME)),
        ids => Ok(ids),
    }
}

fn cache_salt(fields: &mut Fields) -> Result<Option<String>, Problem> {
    const NAME: &str = "cache_salt";
    match fields.string(NAME)? {
        Some(salt) if salt.is_empty() => Err(empty(NAME)),
        Some(salt) if salt.len() > SALT_LENGTH => Err(too_long(NAME, SALT_LENGTH, salt.len())),
        salt => Ok(salt),
    }
}

fn too_long(name: &str, most: usize, got: usize) -> Problem {
    Problem::invalid(name, format!("'{name}' must be at most {most} bytes long; got {got}"))
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Problem> {
    const NAME: &str = "stream_options";
    let Some(value) = fields.take(NAME) else { return Ok(false) };
    if !stream {
        return Err(Problem::invalid(NAME, "'stream_options' is only allowed when 'stream' is true"));
    }
    let mut options = Fields::nested(NAME, value)?;
    Ok(options.boolean("include_usage")?.unwrap_or(false))
}

fn priority(fields: &mut Fields) -> Result<i8, Problem> {
    let priority = fields.integer("priority", i64::MIN..=i64::MAX)?.unwrap_or(0);
    Ok(priority.clamp(i8::MIN.into(), i8::MAX.into()) as i8)
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    const NAME: &str = "stop";
    let stops = match fields.take(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Array(stops)) => stops,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(wrong(NAME, "a string or an array of strings", &other)),
    };
    if stops.len() > STOPS {
        return Err(too_many(NAME, STOPS, "strings", stops.len()));
    }
    let stops: Vec<String> = stops.into_iter().map(|stop| stop_string(NAME, stop)).collect::<Result<_, _>>()?;
    let length: usize = stops.iter().map(String::len).sum();
    if length > STOPS_LENGTH {
        let message = format!("'{NAME}' must be at most {STOPS_LENGTH} bytes long, all strings together; got {length}");
        return Err(Problem::invalid(NAME, message));
    }
    Ok(stops)
}

fn stop_string(name: &str, stop: Value) -> Result<String, Problem> {
    match stop {
        Value::String(text) if text.is_empty() => Err(empty(name)),
        Value::String(text) if text.len() > STOP_LENGTH => Err(too_long(name, STOP_LENGTH, text.len())),
        Value::String(text) => Ok(text),
        other => Err(wrong(name, "a string or an array of strings", &other)),
    }
}
