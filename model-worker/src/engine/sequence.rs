//! One prompt with its answer: from chosen tokens to text, and the end of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use muster_shared::generate::{FinishReason, Sampling, TokenLogprob, TopLogprob};
use muster_shared::trace::Context;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::EngineError;
use super::mask::{MaskError, TokenMask};
use super::phases::Phases;
use super::resume::Begun;
use super::rows::Occupant;
use super::sampler::{Logprobs, Sampled, Sampler};
use super::scheduler::Schedulable;
use super::stop::StopFilter;
use super::text::AnswerText;
use crate::tokenizer::Tokenizer;

/// What to continue, and how.
#[derive(Debug, Clone)]
pub struct SequenceRequest {
    /// Tokens of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the choice, already resolved.
    pub seed: u64,
    /// Longest answer in tokens, at least one; prompt and answer together fit the context.
    pub max_tokens: usize,
    /// The answer ends before the first of these.
    pub stop: StopFilter,
    /// The answer ends at the first of these; in ascending order.
    pub end_tokens: Arc<[u32]>,
    /// None of these comes before so many other tokens.
    pub min_tokens: usize,
    /// Restricts the choice of tokens.
    pub mask: Option<Box<dyn TokenMask>>,
    /// Log-probabilities wanted: of the token itself, and of so many of its rivals.
    pub logprobs: Option<u32>,
    /// Higher runs first.
    pub priority: i32,
    /// When it ends with an error, should it still wait or run.
    pub deadline: Option<Instant>,
    /// Keys and values are shared only with sequences of the same salt.
    pub salt: Option<Arc<str>>,
    /// What another engine has answered; see [`SequenceRequest::resume`].
    pub begun: Option<Begun>,
    /// The span that it is a part of, where the request is traced.
    pub trace: Option<Context>,
}

impl SequenceRequest {
    /// The likeliest answer, which nothing but its length ends.
    pub fn new(prompt: Arc<[u32]>, max_tokens: usize) -> Self {
        Self {
            prompt,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            seed: 0,
            max_tokens,
            stop: StopFilter::new(Vec::new()),
            end_tokens: Arc::default(),
            min_tokens: 0,
            mask: None,
            logprobs: None,
            priority: 0,
            deadline: None,
            salt: None,
            begun: None,
            trace: None,
        }
    }

    /// The sampler of this answer, before its first token.
    pub(super) fn sampler(&self) -> Sampler {
        let sampler = Sampler::new(&self.sampling, self.logprobs, &self.prompt, self.seed);
        let first_end = (self.prompt.len() + self.min_tokens) as u64;
        sampler.forbidding(Arc::clone(&self.end_tokens), first_end)
    }
}

/// What becomes of a sequence.
#[derive(Debug)]
pub enum SequenceEvent {
    /// A token was chosen.
    Delta {
        /// Text that is whole now; may be empty.
        text: String,
        /// The token, unless it is an end token.
        tokens: Vec<u32>,
        /// Its log-probabilities, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The answer has ended.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Tokens chosen, an end token included.
        tokens: usize,
        /// Tokens of the prompt that had been read before, for another sequence.
        cached: usize,
    },
    /// The sequence broke off.
    Failed(EngineError),
}

/// What restricts an answer, and for which length of the sequence that was found out last.
#[derive(Debug)]
struct Masked {
    mask: Box<dyn TokenMask>,
    computed: Option<(usize, Result<(), MaskError>)>,
}

/// A sequence in the engine.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values the model holds.
    pub(super) in_cache: usize,
    /// Tokens of the prompt that were found in another row; `None` before the first admission.
    pub(super) cached: Option<usize>,
    pub(super) sampler: Sampler,
    mask: Option<Masked>,
    pub(super) phases: Phases,
    /// When the last token was chosen.
    pub(super) last_token: Option<Instant>,
    prompt: usize,
    priority: i32,
    deadline: Option<Instant>,
    salt: Option<Arc<str>>,
    max_tokens: usize,
    end_tokens: Arc<[u32]>,
    text: AnswerText,
    tokenizer: Tokenizer,
    events: mpsc::Sender<SequenceEvent>,
    /// Room in the engine, given back when the sequence ends.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether any answer to the same request has begun.
    begun: Arc<AtomicBool>,
    /// Why it ended, once the whole answer is there.
    pub(super) reason: Option<FinishReason>,
}

impl Sequence {
    pub(super) fn new(
        mut request: SequenceRequest,
        tokenizer: &Tokenizer,
        events: mpsc::Sender<SequenceEvent>,
        permit: OwnedSemaphorePermit,
        begun: Arc<AtomicBool>,
    ) -> Self {
        let known = request.begun.take().unwrap_or_else(|| Begun::new(&mut request, tokenizer));
        Self {
            tokens: [&request.prompt[..], &known.tokens[..]].concat(),
            in_cache: 0,
            cached: None,
            sampler: known.sampler,
            mask: known.mask.map(|mask| Masked { mask, computed: None }),
            phases: Phases::new(request.trace.take()),
            last_token: None,
            prompt: request.prompt.len(),
            priority: request.priority,
            deadline: request.deadline,
            salt: request.salt,
            max_tokens: request.max_tokens,
            end_tokens: request.end_tokens,
            text: known.text,
            tokenizer: tokenizer.clone(),
            events,
            permit: Some(permit),
            begun,
            reason: None,
        }
    }

    /// The last token, which no run has read yet while the sequence decodes.
    pub(super) fn last(&self) -> u32 {
        *self.tokens.last().expect("a prompt has at least one token")
    }

    /// Whether something restricts the choice of tokens.
    pub(super) fn is_masked(&self) -> bool {
        self.mask.is_some()
    }

    /// Finds out which tokens may come next. Needs no logits, so it can be done while the model runs; it is done once
    /// for each token.
    pub(super) fn compute_mask(&mut self) {
        let length = self.tokens.len();
        if let Some(Masked { mask, computed }) = &mut self.mask
            && computed.as_ref().is_none_or(|(at, _)| *at != length)
        {
            *computed = Some((length, mask.compute()));
        }
    }

    /// Chooses the next token. Its position seeds the choice, so that an answer resumed elsewhere goes on as it would
    /// have.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Result<Sampled, EngineError> {
        self.compute_mask();
        let position = self.tokens.len() as u64;
        let Some(Masked { mask, computed }) = &mut self.mask else {
            return Ok(self.sampler.sample(logits, position)?);
        };
        if let Some((_, Err(error))) = computed {
            return Err(error.clone().into());
        }
        let sampled = self.sampler.sample_masked(logits, position, Some(mask.words()))?;
        mask.accept(sampled.token)?;
        Ok(sampled)
    }

    /// Takes a chosen token and sends what follows from it; `true` when the answer has ended.
    pub(super) fn accept(&mut self, sampled: &Sampled) -> bool {
        self.tokens.push(sampled.token);
        let end = if self.end_tokens.binary_search(&sampled.token).is_ok() {
            self.send_tail(FinishReason::Stop)
        } else {
            self.send_token(sampled)
        };
        if let Some(reason) = end {
            self.reason = Some(reason);
            self.permit = None; // whoever has the answer may ask again at once
            let cached = self.cached.unwrap_or_default();
            self.send(SequenceEvent::Finished { reason, tokens: self.answered(), cached });
        }
        end.is_some()
    }

    /// Notes that it has a row, and how many tokens were found in other rows; of a resumed answer's, only those of the prompt are told.
    pub(super) fn note_cached(&mut self, tokens: usize) {
        self.begun.store(true, Ordering::Relaxed);
        self.phases.admit();
        self.cached = Some(tokens.min(self.prompt));
    }

    /// Breaks the sequence off.
    pub(super) fn fail(&mut self, error: EngineError) {
        self.permit = None;
        self.send(SequenceEvent::Failed(error));
    }

    /// Tokens that the answer may still have.
    pub(super) fn tokens_left(&self) -> usize {
        self.max_tokens - self.answered()
    }

    fn answered(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    fn send_token(&mut self, sampled: &Sampled) -> Option<FinishReason> {
        let filtered = self.text.push(sampled.token);
        let (tokens, logprobs) = (vec![sampled.token], self.logprobs(sampled.logprobs.as_ref()));
        self.send(SequenceEvent::Delta { text: filtered.text, tokens, logprobs });
        if filtered.stopped {
            Some(FinishReason::Stop)
        } else if self.answered() >= self.max_tokens {
            self.send_tail(FinishReason::Length)
        } else {
            None
        }
    }

    /// Sends the text that was held back; a stop string may come to light in it.
    fn send_tail(&mut self, reason: FinishReason) -> Option<FinishReason> {
        let (text, reason) = self.text.finish(reason);
        if !text.is_empty() {
            self.send(SequenceEvent::Delta { text, tokens: Vec::new(), logprobs: Vec::new() });
        }
        Some(reason)
    }

    fn logprobs(&self, logprobs: Option<&Logprobs>) -> Vec<TokenLogprob> {
        let describe = |&(id, logprob): &(u32, f32)| TopLogprob {
            id,
            token: self.tokenizer.token_text(id),
            bytes: self.tokenizer.token_bytes(id),
            logprob,
        };
        let describe_all = |logprobs: &Logprobs| TokenLogprob {
            chosen: describe(&logprobs.chosen),
            top: logprobs.top.iter().map(describe).collect(),
        };
        logprobs.map(describe_all).into_iter().collect()
    }

    fn send(&self, event: SequenceEvent) {
        // The channel holds an event for each token and the end, so it is never full;
        // it may be closed, and then the next step drops the sequence.
        let _ = self.events.try_send(event);
    }
}

/// Room for every event of an answer: one a token, the tail, the end.
pub(super) fn event_capacity(request: &SequenceRequest) -> usize {
    request.max_tokens + 2
}

impl Occupant for Sequence {
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn in_cache(&self) -> usize {
        self.in_cache
    }

    fn salt(&self) -> Option<&Arc<str>> {
        self.salt.as_ref()
    }
}

impl Schedulable for Sequence {
    fn set_in_cache(&mut self, tokens: usize) {
        self.in_cache = tokens;
    }

    fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}
