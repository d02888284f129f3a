//! What chat and completions have in common besides the prompt.

use muster_shared::generate::{GenerateRequest, Prompt, Sampling};
use muster_shared::problem::Problem;
use serde_json::Value;

use super::fields::{Fields, empty, too_many, wrong};
use super::sampling::sampling;

/// Most answers to one prompt.
const CHOICES: u32 = 128;
/// Most stop strings.
const STOPS: usize = 16;
/// Longest stop string in bytes: it is compared after every token.
const STOP_LENGTH: usize = 1024;
/// Most stop tokens.
const STOP_TOKENS: usize = 1024;

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
            stop_token_ids: fields.token_ids("stop_token_ids", STOP_TOKENS)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        })
    }

    /// What the worker is asked, still without a request id.
    pub(crate) fn generate(&mut self, prompt: Prompt) -> GenerateRequest {
        GenerateRequest {
            request_id: String::new(),
            model: self.model.clone(),
            prompt,
            sampling: std::mem::take(&mut self.sampling),
            choices: self.choices,
            max_tokens: None,
            stop: std::mem::take(&mut self.stop),
            stop_token_ids: std::mem::take(&mut self.stop_token_ids),
            ignore_eos: self.ignore_eos,
            logprobs: None,
            echo: false,
        }
    }
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
    stops.into_iter().map(|stop| stop_string(NAME, stop)).collect()
}

fn stop_string(name: &str, stop: Value) -> Result<String, Problem> {
    match stop {
        Value::String(text) if text.is_empty() => Err(empty(name)),
        Value::String(text) if text.len() > STOP_LENGTH => {
            let message = format!("'{name}' must be at most {STOP_LENGTH} bytes long; got {}", text.len());
            Err(Problem::invalid(name, message))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong(name, "a string or an array of strings", &other)),
    }
}
