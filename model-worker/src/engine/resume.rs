//! Goes on with an answer that another engine has begun.
//!
//! The next token depends on the tokens before it, the seed, and on what sampler and mask made of those tokens; what is
//! shown of it, on the text so far. So the tokens are replayed through all four, as if they had been chosen here. What
//! the model holds of them is read with the prompt, as for a sequence that had to give its row back.

use std::sync::Arc;

use muster_shared::generate::FinishReason;

use super::mask::{MaskError, TokenMask};
use super::sampler::Sampler;
use super::sequence::SequenceRequest;
use super::stop::Filtered;
use super::text::AnswerText;
use crate::tokenizer::Tokenizer;

/// An answer as far as it has come, and all that its next token depends on besides the model.
#[derive(Debug, Clone)]
pub struct Begun {
    pub(super) tokens: Arc<[u32]>,
    pub(super) sampler: Sampler,
    pub(super) mask: Option<Box<dyn TokenMask>>,
    pub(super) text: AnswerText,
}

/// What the tokens of a begun answer come to.
#[derive(Debug)]
pub enum Resumed {
    /// It goes on.
    GoesOn {
        /// The rest of the answer, for an engine.
        request: Box<SequenceRequest>,
        /// Text that the tokens give.
        text: String,
    },
    /// With the last of them it has ended.
    Ended {
        /// Its whole text.
        text: String,
        /// Why.
        reason: FinishReason,
    },
}

/// Why tokens cannot be those of an answer to a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// There are too many.
    #[error("it has {tokens} tokens, and the answer may have {limit} by max_tokens and the context; send no more")]
    TooLong {
        /// How many there are.
        tokens: usize,
        /// How many there may be.
        limit: usize,
    },
    /// One of them ends the answer.
    #[error("token {token} ends an answer to this request; leave it out, or say that the answer has finished")]
    EndToken {
        /// That token.
        token: u32,
    },
    /// A stop string ends the answer before the last of them.
    #[error("a stop string ends it after {stopped} of its {tokens} tokens; send no more than those")]
    Stopped {
        /// Tokens up to the stop string's end.
        stopped: usize,
        /// How many there are.
        tokens: usize,
    },
    /// One of them is not allowed where it stands.
    #[error("token {token} is not allowed as its token {index}; send the tokens as they came, with the same request")]
    NotAllowed {
        /// That token.
        token: u32,
        /// Its index in the answer.
        index: usize,
        /// What the mask says.
        #[source]
        source: MaskError,
    },
}

impl Begun {
    /// An answer without tokens yet. Takes the request's mask.
    pub(super) fn new(request: &mut SequenceRequest, tokenizer: &Tokenizer) -> Self {
        Self {
            tokens: Arc::default(),
            sampler: request.sampler(),
            mask: request.mask.take(),
            text: AnswerText::new(tokenizer, &request.prompt, request.stop.clone()),
        }
    }

    /// Takes one token as if it had been chosen.
    fn replay(&mut self, token: u32) -> Result<Filtered, MaskError> {
        self.sampler.accept(token);
        if let Some(mask) = &mut self.mask {
            mask.accept(token)?;
        }
        Ok(self.text.push(token))
    }
}

impl SequenceRequest {
    /// The same answer after `tokens`, which another engine has chosen for it. Takes time in proportion to them.
    ///
    /// # Errors
    /// [`ResumeError`] for tokens that no engine can have chosen, or that it would not have gone on after.
    pub fn resume(mut self, tokens: Vec<u32>, tokenizer: &Tokenizer) -> Result<Resumed, ResumeError> {
        let (count, limit) = (tokens.len(), self.max_tokens);
        if count > limit {
            return Err(ResumeError::TooLong { tokens: count, limit });
        }
        if let Some(token) = tokens.iter().copied().find(|token| self.end_tokens.binary_search(token).is_ok()) {
            return Err(ResumeError::EndToken { token });
        }
        let mut begun = Begun::new(&mut self, tokenizer);
        let mut text = String::new();
        for (index, token) in tokens.iter().copied().enumerate() {
            let replayed = begun.replay(token).map_err(|source| ResumeError::NotAllowed { token, index, source })?;
            text.push_str(&replayed.text);
            if replayed.stopped {
                let stopped = index + 1;
                return if stopped == count {
                    Ok(Resumed::Ended { text, reason: FinishReason::Stop })
                } else {
                    Err(ResumeError::Stopped { stopped, tokens: count })
                };
            }
        }
        if count == limit {
            let (tail, reason) = begun.text.finish(FinishReason::Length);
            return Ok(Resumed::Ended { text: text + &tail, reason });
        }
        begun.tokens = tokens.into();
        Ok(Resumed::GoesOn { request: Box::new(Self { begun: Some(begun), ..self }), text })
    }
}
