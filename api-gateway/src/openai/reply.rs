//! The frame of an answer: what the whole of one and each chunk of a stream have in common.

use std::borrow::Cow;

use muster_shared::generate::Usage;
use serde::Serialize;

/// What stays the same in all chunks of an answer.
#[derive(Debug, Clone)]
pub(crate) struct ReplyHead {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The model that answers.
    pub(crate) model: String,
}

impl ReplyHead {
    /// A whole answer.
    pub(crate) fn whole<L>(self, object: &'static str, choices: L, usage: Usage) -> Frame<'static, L> {
        Frame {
            id: self.id.into(),
            object,
            created: self.created,
            model: self.model.into(),
            choices,
            usage: Some(Some(usage.into())),
        }
    }

    /// One chunk. `usage`: `None` leaves the key out.
    pub(crate) fn chunk<L>(&self, object: &'static str, choices: L, usage: Option<Option<UsageBody>>) -> Frame<'_, L> {
        Frame {
            id: self.id.as_str().into(),
            object,
            created: self.created,
            model: self.model.as_str().into(),
            choices,
            usage,
        }
    }
}

/// An answer, or one chunk of it.
#[derive(Debug, Serialize)]
pub(crate) struct Frame<'a, L> {
    id: Cow<'a, str>,
    object: &'static str,
    created: u64,
    model: Cow<'a, str>,
    choices: L,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

/// What an answer has cost.
#[derive(Debug, Serialize)]
pub(crate) struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}
