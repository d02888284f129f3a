//! The events of an answer.

use super::proto::event::Event as ProtoEvent;
use super::{Malformed, proto};
use crate::generate::{Event, FinishReason, TokenLogprob, TopLogprob, Usage};

impl From<Event> for proto::Event {
    fn from(event: Event) -> Self {
        let event = match event {
            Event::Started { prompt_tokens, vocabulary } => {
                ProtoEvent::Started(proto::Started { prompt_tokens, vocabulary })
            }
            Event::Delta { choice, text, tokens, logprobs } => {
                let logprobs = logprobs.into_iter().map(Into::into).collect();
                ProtoEvent::Delta(proto::Delta { choice, text, tokens, logprobs })
            }
            Event::Finished { choice, reason, tokens } => ProtoEvent::Finished(proto::Finished {
                choice,
                reason: proto::FinishReason::from(reason).into(),
                tokens,
            }),
            Event::Done { usage } => ProtoEvent::Done(proto::Done { usage: Some(usage.into()) }),
            Event::Failed { problem } => ProtoEvent::Failed(problem.into()),
        };
        Self { event: Some(event) }
    }
}

impl proto::Event {
    /// Says that the worker is there and has nothing to say.
    pub fn alive() -> Self {
        Self { event: Some(ProtoEvent::Alive(proto::Alive {})) }
    }

    /// The event itself; `None` for a sign of life.
    ///
    /// # Errors
    /// With the field that is not as it must be.
    pub fn into_event(self) -> Result<Option<Event>, Malformed> {
        Ok(Some(match self.event.ok_or_else(|| Malformed::missing("event"))? {
            ProtoEvent::Started(proto::Started { prompt_tokens, vocabulary }) => {
                Event::Started { prompt_tokens, vocabulary }
            }
            ProtoEvent::Delta(proto::Delta { choice, text, tokens, logprobs }) => {
                let logprobs = logprobs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
                Event::Delta { choice, text, tokens, logprobs }
            }
            ProtoEvent::Finished(finished) => {
                Event::Finished { choice: finished.choice, reason: reason(finished.reason)?, tokens: finished.tokens }
            }
            ProtoEvent::Done(done) => Event::Done { usage: done.usage.unwrap_or_default().into() },
            ProtoEvent::Failed(problem) => Event::Failed { problem: problem.try_into()? },
            ProtoEvent::Alive(_) => return Ok(None),
        }))
    }
}

impl From<FinishReason> for proto::FinishReason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

fn reason(number: i32) -> Result<FinishReason, Malformed> {
    match proto::FinishReason::try_from(number) {
        Ok(proto::FinishReason::Stop) => Ok(FinishReason::Stop),
        Ok(proto::FinishReason::Length) => Ok(FinishReason::Length),
        Ok(proto::FinishReason::Unspecified) | Err(_) => Err(Malformed::unknown("reason", number)),
    }
}

impl From<TokenLogprob> for proto::TokenLogprob {
    fn from(logprob: TokenLogprob) -> Self {
        Self { chosen: Some(logprob.chosen.into()), top: logprob.top.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<proto::TokenLogprob> for TokenLogprob {
    type Error = Malformed;

    fn try_from(logprob: proto::TokenLogprob) -> Result<Self, Malformed> {
        let chosen = logprob.chosen.ok_or_else(|| Malformed::missing("chosen"))?;
        Ok(Self { chosen: chosen.into(), top: logprob.top.into_iter().map(Into::into).collect() })
    }
}

impl From<TopLogprob> for proto::TopLogprob {
    fn from(TopLogprob { id, token, bytes, logprob }: TopLogprob) -> Self {
        Self { id, token, bytes, logprob }
    }
}

impl From<proto::TopLogprob> for TopLogprob {
    fn from(proto::TopLogprob { id, token, bytes, logprob }: proto::TopLogprob) -> Self {
        Self { id, token, bytes, logprob }
    }
}

impl From<Usage> for proto::Usage {
    fn from(Usage { prompt_tokens, completion_tokens, cached_tokens }: Usage) -> Self {
        Self { prompt_tokens, completion_tokens, cached_tokens }
    }
}

impl From<proto::Usage> for Usage {
    fn from(proto::Usage { prompt_tokens, completion_tokens, cached_tokens }: proto::Usage) -> Self {
        Self { prompt_tokens, completion_tokens, cached_tokens }
    }
}
