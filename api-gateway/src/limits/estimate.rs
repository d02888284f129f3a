//! What a request may cost, before it is asked: enough to reserve it.
//!
//! Only workers know tokens. A prompt is taken for a token in every four bytes of its texts, and its answers for as long as
//! the request lets them be. What it has cost in truth is settled when it has ended.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::observe::Route;
use crate::openai::peek::Peek;

/// Bytes of text for one token.
const BYTES: u64 = 4;
/// Tokens that are reserved for an answer of which nobody has said how long it may be.
const ANSWER: u64 = 1024;

/// What a body says that matters for limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Estimate {
    /// Bytes of all texts; four for each token of a prompt that is given in tokens.
    bytes: u64,
    /// Prompts in one request.
    prompts: u64,
    /// Answers to each.
    choices: u64,
    /// Longest answer in tokens, where said.
    pub(super) longest: Option<u64>,
    /// Whether the answer is wanted piece by piece.
    pub(super) stream: bool,
}

impl Estimate {
    /// Reads a body of a route. What cannot be read, and will be refused most likely, counts by its length.
    pub(super) fn read(route: Route, body: &[u8]) -> Self {
        let answers = matches!(route, Route::Chat | Route::Completions);
        if matches!(route, Route::Tokenize | Route::Detokenize) {
            return Self::default(); // no model reads it
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = json.deserialize_map(Body).and_then(|read| json.end().map(|()| read));
        let mut read = read.unwrap_or_else(|_| Self {
            bytes: body.len() as u64,
            stream: Peek::parse(body).is_some_and(|peek| peek.stream()),
            ..Self::default()
        });
        (read.prompts, read.choices) = if answers { (read.prompts.max(1), read.choices.max(1)) } else { (0, 0) };
        read.stream &= answers;
        read
    }

    /// Tokens to reserve of a minute's budget, which is never more than it has, unless the request says so itself.
    pub(super) fn tokens(&self, limit: u64) -> u64 {
        let prompt = self.bytes.div_ceil(BYTES);
        let answers = self.prompts.saturating_mul(self.choices);
        match self.longest {
            Some(longest) => prompt.saturating_add(answers.saturating_mul(longest)),
            None => prompt.max(prompt.saturating_add(answers.saturating_mul(ANSWER)).min(limit)),
        }
    }
}

/// Reads the fields of a body, whichever of them are there.
struct Body;

impl<'de> Visitor<'de> for Body {
    type Value = Estimate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Estimate, A::Error> {
        let mut read = Estimate::default();
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "messages" | "tools" | "input" | "query" | "documents" | "text" | "suffix" => {
                    read.bytes += map.next_value_seed(Weight)?.bytes;
                }
                "prompt" => {
                    let weight = map.next_value_seed(Weight)?;
                    read.bytes += weight.bytes;
                    read.prompts += weight.prompts.max(1);
                }
                // The larger one counts, should both be there.
                "max_tokens" | "max_completion_tokens" => {
                    let given = map.next_value::<Number>()?.0;
                    read.longest = read.longest.max(given);
                }
                "n" | "best_of" => read.choices = read.choices.max(map.next_value::<Number>()?.0.unwrap_or(1)),
                "stream" => read.stream |= map.next_value::<Switch>()?.0,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(read)
    }
}

#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// The weight of a value: the texts in it, and how many prompts it is.
#[derive(Clone, Copy)]
struct Weight;

#[derive(Default)]
struct Weighed {
    bytes: u64,
    /// Texts or lists at its top; numbers there make one prompt together.
    prompts: u64,
    is_number: bool,
}

impl Weighed {
    fn text(length: usize) -> Self {
        Self { bytes: length as u64, prompts: 1, is_number: false }
    }

    fn number() -> Self {
        Self { bytes: BYTES, prompts: 1, is_number: true }
    }
}

impl<'de> DeserializeSeed<'de> for Weight {
    type Value = Weighed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Weighed, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weight {
    type Value = Weighed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Weighed, E> {
        Ok(Weighed::text(text.len()))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Weighed, E> {
        Ok(Weighed::number())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Weighed, E> {
        Ok(Weighed::number())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Weighed, E> {
        Ok(Weighed::number())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Weighed, E> {
        Ok(Weighed::default())
    }

    fn visit_unit<E>(self) -> Result<Weighed, E> {
        Ok(Weighed::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Weighed, A::Error> {
        let (mut sum, mut numbers) = (Weighed::default(), false);
        while let Some(weighed) = list.next_element_seed(self)? {
            sum.bytes += weighed.bytes;
            numbers |= weighed.is_number;
            sum.prompts += u64::from(!weighed.is_number);
        }
        sum.prompts += u64::from(numbers);
        Ok(sum)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Weighed, A::Error> {
        let mut sum = Weighed { prompts: 1, ..Weighed::default() };
        while let Some(IgnoredAny) = map.next_key()? {
            sum.bytes += map.next_value_seed(self)?.bytes;
        }
        Ok(sum)
    }
}

/// A whole number; `None` where it is something else, upon which whoever reads the request decides.
struct Number(Option<u64>);

impl<'de> serde::Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        // As a float counts by its whole part; one beyond all bounds as the largest.
        Ok(Self(value.as_u64().or_else(|| value.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64))))
    }
}

/// A switch, which nothing but `true` turns on.
struct Switch(bool);

impl<'de> serde::Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(serde_json::Value::deserialize(deserializer)? == true))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 10_000;

    fn tokens(route: Route, body: &str) -> u64 {
        Estimate::read(route, body.as_bytes()).tokens(LIMIT)
    }

    #[test]
    fn prompts_answers_and_choices_are_counted() {
        for (body, expected) in [
            (r#"{"prompt":"12345678","max_tokens":10}"#, 12),
            (r#"{"prompt":"12345678","max_tokens":10,"n":3}"#, 32),
            (r#"{"prompt":"12345678","max_tokens":10,"n":3,"best_of":5}"#, 52),
            (r#"{"prompt":["1234","5678"],"max_tokens":10}"#, 22),
            (r#"{"prompt":[1,2,3],"max_tokens":10}"#, 13),
            (r#"{"prompt":[[1,2,3],[4]],"max_tokens":10,"n":2}"#, 44),
            (r#"{"prompt":"12345","max_tokens":0}"#, 2),
            (r#"{"prompt":"","max_tokens":10,"max_completion_tokens":20}"#, 20),
            (r#"{"prompt":"1234"}"#, 1025),
            (r#"{"prompt":"1234","n":100}"#, LIMIT),
            (r#"{"max_tokens":1e300}"#, u64::MAX),
        ] {
            assert_eq!(tokens(Route::Completions, body), expected, "{body}");
        }
        let chat = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"12345678"}]}],"max_tokens":5}"#;
        assert_eq!(tokens(Route::Chat, chat), 9, "roles count, too");
    }

    #[test]
    fn what_gives_no_text_reserves_its_prompt_alone() {
        assert_eq!(tokens(Route::Embeddings, r#"{"input":["12345678","1234"],"max_tokens":99}"#), 3);
        assert_eq!(tokens(Route::Rerank, r#"{"query":"1234","documents":["12345678",{"text":"1234"}]}"#), 4);
        assert_eq!(tokens(Route::Tokenize, r#"{"prompt":"12345678"}"#), 0);
    }

    #[test]
    fn a_stream_is_known_and_bodies_that_cannot_be_read_count_by_their_length() {
        let stream = |body: &str| Estimate::read(Route::Chat, body.as_bytes()).stream;
        assert!(stream(r#"{"stream":true}"#) && stream(r#"{"stream":true,"stream":false}"#));
        assert!(!stream(r#"{"stream":false}"#) && !stream(r#"{"stream":"yes"}"#) && !stream("{"));
        let deep = format!(r#"{{"model":"m","stream":true,"messages":{}{}}}"#, "[".repeat(500), "]".repeat(500));
        assert!(stream(&deep));
        assert_eq!(tokens(Route::Chat, &deep), deep.len().div_ceil(4) as u64 + 1024);
        assert_eq!(tokens(Route::Chat, "not JSON"), 2 + 1024);
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for route in Route::ALL {
                let _ = Estimate::read(route, &body).tokens(LIMIT);
            }
        }

        #[test]
        fn unsaid_answers_never_ask_for_more_than_there_is(prompt in "[a-z]{0,400}", n in 0..200_u32, limit in 200..5_000_u64) {
            let body = format!(r#"{{"prompt":"{prompt}","n":{n}}}"#);
            prop_assert!(Estimate::read(Route::Completions, body.as_bytes()).tokens(limit) <= limit);
        }
    }
}
