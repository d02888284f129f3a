//! Log-probabilities in OpenAI's two forms: that of chat, and the older one of completions.

use std::borrow::Cow;

use muster_shared::generate::{TokenLogprob, TopLogprob};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// What OpenAI writes for a token that cannot be; JSON has no minus infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// `{"content": […], "refusal": null}`.
#[derive(Debug)]
pub(crate) struct ChatLogprobs<'a>(pub(crate) Cow<'a, [TokenLogprob]>);

impl<'a> ChatLogprobs<'a> {
    /// Absent where there are none.
    pub(crate) fn some(entries: impl Into<Cow<'a, [TokenLogprob]>>) -> Option<Self> {
        Some(entries.into()).filter(|entries| !entries.is_empty()).map(Self)
    }
}

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            content: Vec<ChatToken<'a>>,
            refusal: Option<()>,
        }
        let content = self.0.iter().map(ChatToken::new).collect();
        Body { content, refusal: None }.serialize(serializer)
    }
}

#[derive(Serialize)]
struct ChatToken<'a> {
    #[serde(flatten)]
    chosen: Candidate<'a>,
    top_logprobs: Vec<Candidate<'a>>,
}

impl<'a> ChatToken<'a> {
    fn new(entry: &'a TokenLogprob) -> Self {
        Self { chosen: Candidate::new(&entry.chosen), top_logprobs: entry.top.iter().map(Candidate::new).collect() }
    }
}

#[derive(Serialize)]
struct Candidate<'a> {
    token: &'a str,
    logprob: f32,
    bytes: Option<&'a [u8]>,
}

impl<'a> Candidate<'a> {
    fn new(candidate: &'a TopLogprob) -> Self {
        Self { token: &candidate.token, logprob: finite(candidate.logprob), bytes: candidate.bytes.as_deref() }
    }
}

/// `{"tokens": […], "token_logprobs": […], "top_logprobs": […], "text_offset": […]}`.
#[derive(Debug)]
pub(crate) struct CompletionLogprobs<'a> {
    entries: Cow<'a, [TokenLogprob]>,
    /// Where the first of the tokens stands in the text, in characters.
    offset: usize,
}

impl<'a> CompletionLogprobs<'a> {
    /// Absent where there are none.
    pub(crate) fn some(entries: impl Into<Cow<'a, [TokenLogprob]>>, offset: usize) -> Option<Self> {
        Some(entries.into()).filter(|entries| !entries.is_empty()).map(|entries| Self { entries, offset })
    }

    /// Where the token after the last of these stands in the text.
    pub(crate) fn end(&self) -> usize {
        self.offset + self.entries.iter().map(length).sum::<usize>()
    }
}

fn length(entry: &TokenLogprob) -> usize {
    entry.chosen.token.chars().count()
}

impl Serialize for CompletionLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            tokens: Vec<&'a str>,
            token_logprobs: Vec<f32>,
            top_logprobs: Vec<ByToken<'a>>,
            text_offset: Vec<usize>,
        }
        let mut next = self.offset;
        let offset = |entry| {
            let offset = next;
            next += length(entry);
            offset
        };
        Body {
            tokens: self.entries.iter().map(|entry| entry.chosen.token.as_str()).collect(),
            token_logprobs: self.entries.iter().map(|entry| finite(entry.chosen.logprob)).collect(),
            top_logprobs: self.entries.iter().map(ByToken).collect(),
            text_offset: self.entries.iter().map(offset).collect(),
        }
        .serialize(serializer)
    }
}

/// From texts to log-probabilities, likeliest first. The chosen token is always there, so there may be one more than
/// asked for. Of tokens with the same text only the likeliest is there: the keys of an object differ.
struct ByToken<'a>(&'a TokenLogprob);

impl Serialize for ByToken<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TokenLogprob { chosen, top } = self.0;
        let mut seen: Vec<&str> = Vec::with_capacity(top.len() + 1);
        let mut map = serializer.serialize_map(None)?;
        for candidate in top.iter().chain([chosen]) {
            if !seen.contains(&candidate.token.as_str()) {
                seen.push(&candidate.token);
                map.serialize_entry(&candidate.token, &finite(candidate.logprob))?;
            }
        }
        map.end()
    }
}

fn finite(logprob: f32) -> f32 {
    // `max` also replaces NaN.
    logprob.max(IMPOSSIBLE)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A chosen token and its rivals, by text and log-probability.
    pub(crate) fn entry(chosen: (&str, f32), top: &[(&str, f32)]) -> TokenLogprob {
        let one = |&(token, logprob): &(&str, f32)| TopLogprob {
            id: 1,
            token: token.to_owned(),
            bytes: Some(token.as_bytes().to_vec()),
            logprob,
        };
        TokenLogprob { chosen: one(&chosen), top: top.iter().map(one).collect() }
    }

    #[test]
    fn chat_has_bytes_and_rivals() {
        let mut entries = vec![entry(("é", -0.5), &[("é", -0.5), ("x", f32::NEG_INFINITY)])];
        entries[0].top[1].bytes = None;
        let expected = json!({ "content": [{ "token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
            { "token": "é", "logprob": -0.5, "bytes": [195, 169] },
            { "token": "x", "logprob": -9999.0, "bytes": null },
        ]}], "refusal": null });
        assert_eq!(serde_json::to_value(ChatLogprobs(entries.into())).unwrap(), expected);
    }

    #[test]
    fn completions_count_offsets_in_characters_and_always_have_the_chosen_token() {
        let entries = vec![entry(("né", -1.5), &[("a", -0.5), ("a", -1.0)]), entry(("e", -0.25), &[])];
        let logprobs = CompletionLogprobs::some(entries, 3).unwrap();
        assert_eq!(logprobs.end(), 6);
        let expected = json!({
            "tokens": ["né", "e"], "token_logprobs": [-1.5, -0.25],
            "top_logprobs": [{ "a": -0.5, "né": -1.5 }, { "e": -0.25 }], "text_offset": [3, 5],
        });
        assert_eq!(serde_json::to_value(logprobs).unwrap(), expected);
    }
}
