//! The bodies of `/v1/completions`.
//!
//! A request may hold several prompts, each of which is a request of its own to a worker. The choices of all prompts
//! share one answer: choice `c` of prompt `p` has the index `p * n + c`.

mod stream;
#[cfg(test)]
mod tests;

use muster_shared::embed::EmbedInput;
use muster_shared::generate::{Event, FinishReason, GenerateRequest, Prompt, Usage};
use muster_shared::problem::Problem;
use serde::Serialize;

use super::answer::{self, Answer};
use super::fields::{self, Fields};
use super::logprobs::CompletionLogprobs;
use super::options::{Options, check_lengths};
use super::reply::{Frame, ReplyHead};
use super::unsupported;

pub(crate) use stream::CompletionChunks;

/// Most prompts of one request.
const PROMPTS: usize = 128;
/// Longest answer where the request does not say, in tokens; OpenAI's.
const MAX_TOKENS: u32 = 16;
const OBJECT: &str = "text_completion";

/// A checked request.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) model: String,
    /// At least one.
    pub(crate) prompts: Vec<Prompt>,
    /// What a worker is asked for each prompt, still without that and without a request id.
    pub(crate) generate: GenerateRequest,
    pub(crate) stream: bool,
    /// Whether a stream ends with what it has cost.
    pub(crate) include_usage: bool,
    pub(crate) priority: i8,
}

impl CompletionRequest {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// An invalid request, by the name of the field.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = fields::object(body)?;
        let mut options = Options::take(&mut fields)?;
        unsupported::refuse_in_completion(&mut fields)?;
        let prompts: Vec<Prompt> = fields.inputs("prompt", PROMPTS)?.into_iter().map(prompt).collect();
        let generate = GenerateRequest {
            max_tokens: Some(fields.positive("max_tokens")?.unwrap_or(MAX_TOKENS)),
            logprobs: fields.count("logprobs", 0..=20)?,
            echo: fields.boolean("echo")?.unwrap_or(false),
            ..options.generate(Prompt::Text(String::new()))
        };
        if generate.echo && generate.logprobs.is_some() {
            let message = "'logprobs' together with 'echo' is not supported by this gateway yet: the prompt's tokens \
                           would lack theirs; leave one of them out";
            return Err(Problem::invalid("logprobs", message));
        }
        check_lengths(&generate)?;
        check_best_of(&mut fields, generate.choices)?;
        fields.unknown();
        let Options { model, stream, include_usage, priority, .. } = options;
        Ok(Self { model, prompts, generate, stream, include_usage, priority })
    }

    /// What the workers are asked: one request for each prompt, in their order.
    pub(crate) fn requests(&self, request_id: &str) -> Vec<GenerateRequest> {
        let request = |prompt: &Prompt| GenerateRequest {
            prompt: prompt.clone(),
            request_id: request_id.to_owned(),
            ..self.generate.clone()
        };
        self.prompts.iter().map(request).collect()
    }

    fn choices(&self) -> usize {
        self.prompts.len() * self.generate.choices as usize
    }
}

fn prompt(input: EmbedInput) -> Prompt {
    match input {
        EmbedInput::Text(text) => Prompt::Text(text),
        EmbedInput::Tokens(tokens) => Prompt::Tokens(tokens),
    }
}

/// `best_of` makes more answers than it shows; as many as are shown is the same as none.
fn check_best_of(fields: &mut Fields, choices: u32) -> Result<(), Problem> {
    match fields.positive("best_of")? {
        Some(best_of) if best_of != choices => {
            let message = format!(
                "'best_of' is not supported by this gateway yet, unless it equals 'n' ({choices}); leave it out"
            );
            Err(Problem::invalid("best_of", message))
        }
        _ => Ok(()),
    }
}

/// Collects a whole answer.
#[derive(Debug)]
pub(crate) struct CompletionReply {
    head: ReplyHead,
    /// Choices of one prompt.
    choices: usize,
    answers: Vec<Answer>,
}

impl CompletionReply {
    pub(crate) fn new(head: ReplyHead, request: &CompletionRequest) -> Self {
        let answers = answer::answers(request.choices());
        Self { head, choices: request.generate.choices as usize, answers }
    }

    /// Adds what an event of one prompt brings.
    pub(crate) fn push(&mut self, prompt: usize, event: &Event) {
        let first = prompt * self.choices;
        if let Some(answers) = self.answers.get_mut(first..first + self.choices) {
            answer::push(answers, event);
        }
    }

    /// The body, with what all prompts have cost together.
    pub(crate) fn finish(self, usage: Usage) -> Frame<'static, Vec<CompletionChoice<'static>>> {
        let choices = self.answers.into_iter().zip(0..).map(|(answer, index)| CompletionChoice {
            index,
            text: answer.text.into(),
            logprobs: CompletionLogprobs::some(answer.logprobs, answer.offset),
            finish_reason: answer.finish_reason,
        });
        self.head.whole(OBJECT, choices.collect(), usage)
    }
}

/// One choice, or a piece of it.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionChoice<'a> {
    index: usize,
    text: std::borrow::Cow<'a, str>,
    logprobs: Option<CompletionLogprobs<'a>>,
    finish_reason: Option<FinishReason>,
}
