//! A language model as requests see it: messages to prompt, prompt to tokens, tokens to events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream, StreamExt as _};
use muster_shared::control::{Capacity, ModelCard, ModelKind};
use muster_shared::generate::{Chat, Event, GenerateRequest, Prompt, Usage};
use muster_shared::problem::{Kind, Problem};
use tokio_stream::wrappers::ReceiverStream;

use crate::chat_template::{ChatTemplate, TemplateError};
use crate::engine::mask::{AllowedTokens, TokenMask};
use crate::engine::sequence::{SequenceEvent, SequenceRequest};
use crate::engine::stop::StopFilter;
use crate::engine::{EngineError, EngineHandle};
use crate::tokenizer::Tokenizer;

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
    sequences: Vec<SequenceRequest>,
    prompt_tokens: u32,
    /// The prompt's text, where the request wants it back.
    echo: Option<String>,
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
    /// [`Kind::Invalid`] for what cannot be, [`Kind::PromptTooLong`] when the prompt leaves no room for an answer.
    pub fn prepare(&self, request: &GenerateRequest, excess: Excess) -> Result<Prepared, Problem> {
        let arrived = Instant::now();
        let tokens = self.tokens(&request.prompt)?;
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
        let capacity = self.engine.capacity();
        let (wanted, limit) = (request.choices as usize, capacity.slots + capacity.waiting);
        if wanted > limit {
            return Err(problem(EngineError::TooMany { wanted, limit }));
        }
        let prompt_tokens = u32::try_from(length).unwrap_or(u32::MAX);
        let max_tokens = self.max_tokens(request, length, excess)?;
        let sequence = SequenceRequest {
            deadline: request.timeout_ms.and_then(|ms| arrived.checked_add(Duration::from_millis(ms))),
            ..self.sequence(request, tokens.into(), max_tokens)?
        };
        Ok(Prepared { sequences: choices(sequence, request.choices), prompt_tokens, echo })
    }

    /// Length of a prompt in tokens, whether it fits or not.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it cannot be rendered or tokenized.
    pub fn count(&self, prompt: &Prompt) -> Result<u32, Problem> {
        let tokens = self.tokens(prompt)?;
        Ok(u32::try_from(tokens.len()).unwrap_or(u32::MAX))
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, Problem> {
        let tokens = match prompt {
            Prompt::Chat(chat) => self.encode(&self.render(chat)?, false)?,
            Prompt::Text(text) => self.encode(text, true)?,
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

    fn vocab(&self) -> u32 {
        self.tokenizer.vocab_size().min(u32::try_from(self.engine.shape().vocab).unwrap_or(u32::MAX))
    }

    /// Begins the answers to a prepared request. Dropping the stream cancels it.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] at once when there is no room, [`Kind::Invalid`] for more answers than the engine holds.
    pub fn generate(&self, prepared: Prepared) -> Result<impl Stream<Item = Event> + Send + use<>, Problem> {
        crate::metrics::request(&self.name, "generate");
        let Prepared { sequences, prompt_tokens, echo } = prepared;
        let receivers = self.engine.submit(sequences).map_err(problem)?;
        let choices = receivers.len() as u32;
        let echoes = echo.into_iter().flat_map(move |text| {
            let delta = move |choice| Event::Delta { choice, text: text.clone(), tokens: vec![], logprobs: vec![] };
            (0..choices).map(delta)
        });
        let head = stream::iter(std::iter::once(Event::Started { prompt_tokens, vocabulary: None }).chain(echoes));
        Ok(head.chain(answers(receivers, prompt_tokens)))
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

/// One sequence for each answer, drawn with seeds of their own.
fn choices(first: SequenceRequest, count: u32) -> Vec<SequenceRequest> {
    let seed = first.seed;
    let choice = |index| SequenceRequest { seed: seed.wrapping_add(u64::from(index)), ..first.clone() };
    (0..count.max(1)).map(choice).collect()
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

/// Merges the events of all answers, and closes with what they cost.
fn answers(
    receivers: Vec<tokio::sync::mpsc::Receiver<SequenceEvent>>,
    prompt_tokens: u32,
) -> impl Stream<Item = Event> + Send + use<> {
    let open = (0..receivers.len() as u32).collect();
    let each = receivers.into_iter().zip(0_u32..).map(|(receiver, choice)| {
        let closed = stream::once(std::future::ready(None));
        ReceiverStream::new(receiver).map(Some).chain(closed).map(move |event| (choice, event))
    });
    let usage = Usage { prompt_tokens, ..Usage::default() };
    stream::unfold(Merge { events: stream::select_all(each), open, usage, ended: false }, Merge::next)
}

/// Answers in progress.
struct Merge<S> {
    /// Events with the choice they belong to; `None` when its channel is closed.
    events: stream::SelectAll<S>,
    /// Choices that have not finished.
    open: BTreeSet<u32>,
    usage: Usage,
    ended: bool,
}

impl<S: Stream<Item = (u32, Option<SequenceEvent>)> + Unpin> Merge<S> {
    /// The next event, or `None` after the last.
    async fn next(mut self) -> Option<(Event, Self)> {
        while !self.ended {
            if self.open.is_empty() {
                self.ended = true;
                return Some((Event::Done { usage: self.usage }, self));
            }
            let (choice, event) = self.events.next().await?;
            match event {
                // The channel closes after the end of an answer, or when the engine has died before it.
                None if !self.open.contains(&choice) => {}
                None => return Some(self.fail(EngineError::Stopped)),
                Some(SequenceEvent::Failed(error)) => return Some(self.fail(error)),
                Some(SequenceEvent::Delta { text, tokens, logprobs }) => {
                    return Some((Event::Delta { choice, text, tokens, logprobs }, self));
                }
                Some(SequenceEvent::Finished { reason, tokens, cached }) => {
                    self.open.remove(&choice);
                    if choice == 0 {
                        // The others found the prompt that the first has read.
                        self.usage.cached_tokens = u32::try_from(cached).unwrap_or(u32::MAX);
                    }
                    self.usage.completion_tokens += u32::try_from(tokens).unwrap_or(u32::MAX);
                    return Some((Event::Finished { choice, reason, tokens: 0 }, self));
                }
            }
        }
        None
    }

    fn fail(mut self, error: EngineError) -> (Event, Self) {
        self.ended = true;
        (Event::Failed { problem: problem(error) }, self)
    }
}

/// What a caller is told of an engine's error.
pub(crate) fn problem(error: EngineError) -> Problem {
    match &error {
        EngineError::Overloaded { .. } => {
            Problem::new(Kind::Overloaded, error.to_string()).with_retry_after_ms(RETRY_AFTER_MS)
        }
        EngineError::TooMany { .. } => Problem::invalid("n", error.to_string()),
        EngineError::Late => Problem::new(Kind::Timeout, error.to_string()),
        EngineError::Step(_) | EngineError::Sample(_) | EngineError::Mask(_) | EngineError::Stopped => {
            Problem::new(Kind::Bug, muster_shared::problem::chain(&error))
        }
    }
}

#[cfg(test)]
mod tests;
