//! A language model as requests see it: messages to prompt, prompt to tokens, tokens to events.

mod choice;
mod merge;
mod resume;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream, StreamExt as _};
use muster_shared::control::{Capacity, ModelCard, ModelKind};
use muster_shared::generate::{Chat, Event, GenerateRequest, Prompt, Usage};
use muster_shared::problem::{Kind, Problem};
use muster_shared::trace::Context;

use crate::chat_template::{ChatTemplate, TemplateError};
use crate::engine::mask::{AllowedTokens, TokenMask};
use crate::engine::sequence::SequenceRequest;
use crate::engine::stop::StopFilter;
use crate::engine::{EngineError, EngineHandle};
use crate::tokenizer::Tokenizer;
use choice::{Choice, Had, State};
use merge::Running;

/// When to come back after an overload, in milliseconds.
const RETRY_AFTER_MS: u64 = 1000;

/// A loaded language model.
#[derive(Debug)]
pub struct LanguageModel {
    /// The name clients ask for.
    pub name: String,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's own chat template; absent in base models.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokens that end an answer.
    pub end_tokens: Arc<[u32]>,
    /// The engine.
    pub engine: EngineHandle,
}

/// What becomes of an answer that is longer than the context has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// The request is refused, with numbers.
    Refuse,
    /// The answer is cut, as FastChat's peers expect.
    Cut,
}

/// A request that fits the model, ready for the engine.
#[derive(Debug)]
pub struct Prepared {
    /// One for each answer.
    choices: Vec<Choice>,
    prompt_tokens: u32,
}

impl Prepared {
    /// The same, whose answers are parts of that span.
    #[must_use]
    pub fn traced(mut self, trace: Option<&Context>) -> Self {
        self.choices.iter_mut().for_each(|choice| choice.trace(trace));
        self
    }
}

impl LanguageModel {
    /// What the controller is told.
    pub fn card(&self) -> ModelCard {
        let capacity = self.engine.capacity();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ModelCard {
            name: self.name.clone(),
            kind: Some(ModelKind::Generate),
            context_length: Some(count(self.context())),
            capacity: Some(Capacity { running: count(capacity.slots), waiting: count(capacity.waiting) }),
            revision: None,
        }
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.engine.shape().context
    }

    /// Refuses at once when the engine is full, before any work is done for a request.
    ///
    /// # Errors
    /// [`Kind::Overloaded`].
    pub fn check_room(&self) -> Result<(), Problem> {
        if self.engine.is_full() { Err(problem(self.engine.overloaded())) } else { Ok(()) }
    }

    /// Renders and tokenizes a prompt, and checks everything. Takes time in proportion to the request: not for a
    /// thread of the runtime.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for what cannot be, [`Kind::PromptTooLong`] when the prompt leaves no room for an answer,
    /// [`Kind::UnknownModel`] when another worker has begun the answer with another vocabulary.
    pub fn prepare(&self, request: &GenerateRequest, excess: Excess) -> Result<Prepared, Problem> {
        let arrived = Instant::now();
        if let Some(resume) = &request.resume {
            self.check_resume(request, resume)?;
        }
        let tokens = self.prompt_tokens(&request.prompt, true)?;
        let param = param_of(&request.prompt);
        if tokens.is_empty() {
            return Err(Problem::invalid(param, "the prompt is empty; it must hold at least one token"));
        }
        let (length, context) = (tokens.len(), self.context());
        if length >= context {
            let message = format!(
                "the prompt has {length} tokens, and the context of this model is {context} tokens, answer included; \
                 shorten the prompt"
            );
            return Err(Problem::new(Kind::PromptTooLong, message).with_param(param));
        }
        let echo = request.echo.then(|| match &request.prompt {
            Prompt::Text(text) => text.clone(),
            _ => self.decode(&tokens),
        });
        self.check_count(request)?;
        let max_tokens = self.max_tokens(request, length, excess)?;
        let sequence = SequenceRequest {
            deadline: request.timeout_ms.and_then(|ms| arrived.checked_add(Duration::from_millis(ms))),
            ..self.sequence(request, tokens.into(), max_tokens)?
        };
        Ok(Prepared {
            choices: self.choices(request, sequence, &echo.unwrap_or_default())?,
            prompt_tokens: u32::try_from(length).unwrap_or(u32::MAX),
        })
    }

    /// Refuses more answers at once than the engine ever holds.
    fn check_count(&self, request: &GenerateRequest) -> Result<(), Problem> {
        let capacity = self.engine.capacity();
        let limit = capacity.slots + capacity.waiting;
        let wanted = match &request.resume {
            Some(resume) => resume.choices.iter().filter(|choice| choice.finished.is_none()).count(),
            None => request.choices as usize,
        };
        if wanted > limit { Err(problem(EngineError::TooMany { wanted, limit })) } else { Ok(()) }
    }

    /// Length of a prompt in tokens, whether it fits or not.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it cannot be rendered or tokenized.
    pub fn count(&self, prompt: &Prompt) -> Result<u32, Problem> {
        let tokens = self.prompt_tokens(prompt, true)?;
        Ok(u32::try_from(tokens.len()).unwrap_or(u32::MAX))
    }

    /// Tokens of a prompt, whether it fits or not; `add_special_tokens` is for a text, since a conversation's template has
    /// its own.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it cannot be rendered or tokenized.
    pub fn prompt_tokens(&self, prompt: &Prompt, add_special_tokens: bool) -> Result<Vec<u32>, Problem> {
        let tokens = match prompt {
            Prompt::Chat(chat) => self.encode(&self.render(chat)?, false)?,
            Prompt::Text(text) => self.encode(text, add_special_tokens)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        // A tokenizer may have been given tokens that the model never was.
        self.check_ids(param_of(prompt), tokens.iter().copied())?;
        Ok(tokens)
    }

    /// The text of a conversation, by the model's own template.
    fn render(&self, chat: &Chat) -> Result<String, Problem> {
        let template = self.template.as_ref().ok_or_else(|| {
            Problem::invalid("messages", format!("model `{}` has no chat template; use /v1/completions", self.name))
        })?;
        template.render(chat).map_err(|error| match error {
            TemplateError::Raised(message) => {
                Problem::invalid("messages", format!("the model's chat template refuses these messages: {message}"))
            }
            other => Problem::invalid(
                "messages",
                format!(
                    "the model's chat template cannot render these messages: {}",
                    muster_shared::problem::chain(&other)
                ),
            ),
        })
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Problem> {
        self.tokenizer
            .encode(text, add_special_tokens)
            .map_err(|error| Problem::invalid("prompt", format!("the prompt cannot be tokenized: {error}")))
    }

    fn decode(&self, tokens: &[u32]) -> String {
        let mut stream = self.tokenizer.stream();
        let mut text: String = tokens.iter().map(|&token| stream.push(token)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Refuses ids, by the name of the field that has them, which the model does not know.
    fn check_ids(&self, param: &str, ids: impl IntoIterator<Item = u32>) -> Result<(), Problem> {
        let size = self.vocab();
        match ids.into_iter().find(|id| *id >= size) {
            Some(id) => Err(Problem::invalid(
                param,
                format!(
                    "token id {id} in {param} is out of range; the vocabulary has {size} tokens, so ids end at {}",
                    size.saturating_sub(1)
                ),
            )),
            None => Ok(()),
        }
    }

    /// Tokens that both the tokenizer and the model know.
    pub(crate) fn vocab(&self) -> u32 {
        self.tokenizer.vocab_size().min(u32::try_from(self.engine.shape().vocab).unwrap_or(u32::MAX))
    }

    /// Begins the answers to a prepared request. Dropping the stream cancels it.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] at once when there is no room, [`Kind::Invalid`] for more answers than the engine holds.
    pub fn generate(&self, prepared: Prepared) -> Result<impl Stream<Item = Event> + Send + use<>, Problem> {
        crate::metrics::request(&self.name, "generate");
        let Prepared { choices, prompt_tokens } = prepared;
        let vocabulary = Some(self.tokenizer.fingerprint().to_owned());
        let started = Event::Started { prompt_tokens, vocabulary };
        let known = (0..).zip(&choices).flat_map(|(index, choice)| choice.events(index));
        let head: Vec<Event> = std::iter::once(started).chain(known).collect();
        let completion_tokens = choices.iter().map(Choice::tokens).fold(0, u32::saturating_add);
        let work = (0..).zip(choices).filter_map(|(index, choice)| Some((index, choice.work()?)));
        let (places, requests): (Vec<_>, Vec<_>) = work.map(|(index, (request, had))| ((index, had), request)).unzip();
        let receivers = self.engine.submit(requests).map_err(problem)?;
        let running = places.into_iter().zip(receivers).map(|((choice, had), events)| Running { choice, events, had });
        let usage = Usage { prompt_tokens, completion_tokens, ..Usage::default() };
        Ok(stream::iter(head).chain(merge::answers(running.collect(), usage)))
    }

    /// The first answer to a request, still without a deadline.
    fn sequence(
        &self,
        request: &GenerateRequest,
        prompt: Arc<[u32]>,
        max_tokens: usize,
    ) -> Result<SequenceRequest, Problem> {
        self.check_ids("logit_bias", request.sampling.logit_bias.iter().map(|(id, _)| *id))?;
        let end_tokens = self.end_tokens(request)?;
        let allowed = self.allowed(request)?;
        let min_tokens = min_tokens(request, max_tokens)?;
        if min_tokens > 0 && !self.can_go_on(allowed, &end_tokens) {
            let message = "min_tokens is above 0, and every token that may be chosen ends the answer; lower it to 0, or \
                           allow a token that is no end";
            return Err(Problem::invalid("min_tokens", message));
        }
        Ok(SequenceRequest {
            sampling: request.sampling.clone(),
            seed: request.sampling.seed.unwrap_or_else(rand::random),
            stop: StopFilter::new(request.stop.clone()),
            end_tokens: end_tokens.into(),
            min_tokens,
            mask: allowed.map(|allowed| Box::new(AllowedTokens::new(allowed)) as Box<dyn TokenMask>),
            logprobs: request.logprobs,
            priority: request.priority,
            salt: request.cache_salt.as_deref().map(Arc::from),
            ..SequenceRequest::new(prompt, max_tokens)
        })
    }

    /// Each answer, drawn with a seed of its own; one that another worker has begun is brought to where it stood.
    fn choices(&self, request: &GenerateRequest, first: SequenceRequest, echo: &str) -> Result<Vec<Choice>, Problem> {
        let seed = first.seed;
        let choice = |index: u32| {
            let sequence = SequenceRequest { seed: seed.wrapping_add(u64::from(index)), ..first.clone() };
            match &request.resume {
                None => Ok(Choice { text: echo.to_owned(), state: State::Runs(Box::new(sequence), Had::default()) }),
                Some(resume) => self.resume(index as usize, &resume.choices[index as usize], sequence, echo),
            }
        };
        (0..request.choices.max(1)).map(choice).collect()
    }

    /// The model's own end and the request's, in ascending order.
    fn end_tokens(&self, request: &GenerateRequest) -> Result<Vec<u32>, Problem> {
        self.check_ids("stop_token_ids", request.stop_token_ids.iter().copied())?;
        let mut end_tokens = request.stop_token_ids.clone();
        if !request.ignore_eos {
            end_tokens.extend_from_slice(&self.end_tokens);
        }
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(end_tokens)
    }

    fn allowed<'a>(&self, request: &'a GenerateRequest) -> Result<Option<&'a [u32]>, Problem> {
        const NAME: &str = "allowed_token_ids";
        let Some(allowed) = request.allowed_token_ids.as_deref() else { return Ok(None) };
        if allowed.is_empty() {
            return Err(Problem::invalid(
                NAME,
                format!("{NAME} is empty; name at least one token id, or leave it out"),
            ));
        }
        self.check_ids(NAME, allowed.iter().copied())?;
        Ok(Some(allowed))
    }

    /// Whether some token may be chosen that does not end the answer.
    fn can_go_on(&self, allowed: Option<&[u32]>, end_tokens: &[u32]) -> bool {
        let is_end = |token: u32| end_tokens.binary_search(&token).is_ok();
        match allowed {
            Some(allowed) => allowed.iter().any(|token| !is_end(*token)),
            None => (0..self.vocab()).any(|token| !is_end(token)),
        }
    }

    fn max_tokens(&self, request: &GenerateRequest, prompt: usize, excess: Excess) -> Result<usize, Problem> {
        let (context, room) = (self.context(), self.context() - prompt);
        match request.max_tokens.map(|wanted| wanted as usize) {
            None => Ok(room),
            Some(0) => Err(Problem::invalid("max_tokens", "max_tokens is 0; it must be at least 1")),
            Some(wanted) if wanted > room && excess == Excess::Cut => Ok(room),
            Some(wanted) if wanted > room => {
                let message = format!(
                    "the prompt has {prompt} tokens and {wanted} more are asked for, and the context of this model is \
                     {context} tokens; lower max_tokens to {room}, or shorten the prompt"
                );
                Err(Problem::new(Kind::PromptTooLong, message).with_param("max_tokens"))
            }
            Some(wanted) => Ok(wanted),
        }
    }
}

/// The field of a request that holds the prompt.
fn param_of(prompt: &Prompt) -> &'static str {
    if matches!(prompt, Prompt::Chat(_)) { "messages" } else { "prompt" }
}

/// `max_tokens`: the longest answer there is room for, or that was asked for.
fn min_tokens(request: &GenerateRequest, max_tokens: usize) -> Result<usize, Problem> {
    let min_tokens = request.min_tokens as usize;
    if min_tokens <= max_tokens {
        return Ok(min_tokens);
    }
    let message = format!(
        "min_tokens is {min_tokens}, and the answer can have at most {max_tokens} tokens; lower min_tokens to that"
    );
    Err(Problem::invalid("min_tokens", message))
}

/// What a caller is told of an engine's error.
pub(crate) fn problem(error: EngineError) -> Problem {
    match &error {
        EngineError::Overloaded { .. } | EngineError::QueueFull { .. } | EngineError::Shed => {
            Problem::new(Kind::Overloaded, error.to_string()).with_retry_after_ms(RETRY_AFTER_MS)
        }
        EngineError::TooMany { .. } => Problem::invalid("n", error.to_string()),
        EngineError::TooManyTokens { .. } => Problem::invalid("input", error.to_string()),
        EngineError::Late => Problem::new(Kind::Timeout, error.to_string()),
        EngineError::Step(_) | EngineError::Sample(_) | EngineError::Mask(_) | EngineError::Stopped => {
            Problem::new(Kind::Bug, muster_shared::problem::chain(&error))
        }
    }
}

#[cfg(test)]
mod tests;
