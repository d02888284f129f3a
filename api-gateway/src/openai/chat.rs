//! The bodies of `/v1/chat/completions`.

pub(super) mod messages;
mod stream;
#[cfg(test)]
mod tests;

use muster_shared::generate::{Chat, Event, FinishReason, GenerateRequest, Prompt, Usage};
use muster_shared::problem::Problem;
use serde::Serialize;
use serde_json::{Map, Value};

use super::answer::{self, Answer};
use super::fields::{self, Fields};
use super::logprobs::ChatLogprobs;
use super::options::{Options, check_lengths};
use super::reply::{Frame, ReplyHead};
use super::unsupported;

pub(crate) use stream::ChatChunks;

/// A checked request.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// What the worker is asked, still without a request id.
    pub(crate) generate: GenerateRequest,
    pub(crate) stream: bool,
    /// Whether a stream ends with what it has cost.
    pub(crate) include_usage: bool,
    pub(crate) priority: i8,
}

impl ChatRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// An invalid request, by the name of the field.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = fields::object(body)?;
        let mut options = Options::take(&mut fields)?;
        unsupported::refuse_in_chat(&mut fields)?;
        let messages = messages::parse(fields.required("messages")?)?;
        let chat = Chat { messages, template_arguments: template_arguments(&mut fields)? };
        let generate = GenerateRequest {
            max_tokens: max_tokens(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            ..options.generate(Prompt::Chat(chat))
        };
        check_lengths(&generate)?;
        fields.unknown();
        let Options { stream, include_usage, priority, .. } = options;
        Ok(Self { generate, stream, include_usage, priority })
    }
}

/// The newer name wins.
fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, Problem> {
    let newer = fields.positive("max_completion_tokens")?;
    let older = fields.positive("max_tokens")?;
    Ok(newer.or(older))
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Problem> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            Err(Problem::invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true"))
        }
    }
}

pub(super) fn template_arguments(fields: &mut Fields) -> Result<Map<String, Value>, Problem> {
    const NAME: &str = "chat_template_kwargs";
    match fields.take(NAME) {
        None => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments),
        Some(other) => Err(fields::wrong(NAME, "an object", &other)),
    }
}

/// Collects a whole answer.
#[derive(Debug)]
pub(crate) struct ChatReply {
    head: ReplyHead,
    answers: Vec<Answer>,
}

impl ChatReply {
    pub(crate) fn new(head: ReplyHead, choices: u32) -> Self {
        Self { head, answers: answer::answers(choices as usize) }
    }

    /// Adds what an event brings.
    pub(crate) fn push(&mut self, event: &Event) {
        answer::push(&mut self.answers, event);
    }

    /// The body.
    pub(crate) fn finish(self, usage: Usage) -> Frame<'static, Vec<ChatChoice>> {
        let choices = self.answers.into_iter().zip(0..).map(|(answer, index)| ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
            logprobs: ChatLogprobs::some(answer.logprobs),
            finish_reason: answer.finish_reason,
        });
        self.head.whole("chat.completion", choices.collect(), usage)
    }
}

/// One whole choice.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    index: u32,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs<'static>>,
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Serialize)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}
