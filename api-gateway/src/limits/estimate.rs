//! What a request may cost, before it is asked: enough to reserve it.
//!
//! Only workers know tokens. A prompt is taken for a token in every four letters of its texts, and one for each of another
//! script; its answers for as long as the request lets them be, and where it says nothing, they are given an end. So what
//! may exceed a reservation is a prompt alone, by three tokens for each token of it at most: a token is a byte at least.
//! That is charged when it has ended.

use std::borrow::Cow;
use std::fmt;

use muster_shared::problem::{Kind, Problem};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::KeyLimits;
use crate::observe::Route;
use crate::openai::peek::Peek;

/// Bytes of text for one token.
const BYTES: u64 = 4;
/// Tokens that an answer may have of which nobody has said how long it may be: as many as are reserved for it.
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
    /// Whether it is said in words that every server knows.
    is_said: bool,
    /// Whether the answer is wanted piece by piece.
    pub(super) stream: bool,
    /// A field whose number servers might understand in different ways, and what it is.
    unclear: Option<(&'static str, &'static str)>,
}

/// What is reserved for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reserved {
    /// For all of it.
    pub(super) tokens: u64,
    /// For its prompts.
    pub(super) prompt: u64,
    /// For each of its answers, which ends there; 0 where it has none.
    pub(super) longest: u64,
    /// Whether its client says where they end.
    pub(super) is_said: bool,
}

impl Estimate {
    /// What matters of a body for a key with such limits; `None` where no model runs for it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where tokens are limited and it is not sure how many it may cost.
    pub(super) fn of(limits: &KeyLimits, route: Route, body: &[u8]) -> Result<Option<Self>, Problem> {
        if !Route::BUSY.contains(&route) {
            return Ok((route == Route::Infer).then(Self::default));
        }
        if limits.tokens_per_minute.is_some() {
            return Self::read(route, body).map(Some);
        }
        if limits.max_streams.is_none() {
            return Ok(Some(Self::default()));
        }
        let stream = || Peek::parse(body).is_some_and(|peek| peek.stream());
        Ok(Some(Self::read(route, body).unwrap_or_else(|_| Self { stream: stream(), ..Self::default() })))
    }

    /// Reads a body of a route.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it cannot be read, though a server that is less strict might, and where it is not clear how
    /// much it asks for.
    fn read(route: Route, body: &[u8]) -> Result<Self, Problem> {
        if matches!(route, Route::Tokenize | Route::Detokenize) {
            return Ok(Self::default()); // no model reads it
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = json.deserialize_map(Body { route }).and_then(|read| json.end().map(|()| read));
        let mut read = read.map_err(|error| {
            Problem::new(Kind::Invalid, format!("the body is not a JSON object that can be read: {error}"))
        })?;
        if !matches!(route, Route::Chat | Route::Completions) {
            return Ok(Self { bytes: read.bytes, ..Self::default() });
        }
        if let Some((field, got)) = read.unclear {
            let message = format!("'{field}' must be an integer, and be given once, or be left out; got {got}");
            return Err(Problem::invalid(field, message));
        }
        (read.prompts, read.choices) = (read.prompts.max(1), read.choices.max(1));
        Ok(read)
    }

    /// What to reserve of a minute's budget. Where the request does not say how long its answers may be, they are made to
    /// fit.
    pub(super) fn reserve(&self, limit: u64) -> Reserved {
        let prompt = self.bytes.div_ceil(BYTES);
        let answers = self.prompts.saturating_mul(self.choices);
        let fitting = || limit.saturating_sub(prompt).checked_div(answers).map_or(0, |room| room.clamp(1, ANSWER));
        let longest = self.longest.unwrap_or_else(fitting);
        let tokens = prompt.saturating_add(answers.saturating_mul(longest));
        Reserved { tokens, prompt, longest, is_said: self.is_said }
    }

    /// Notes a number; what it says, if anything.
    fn number(&mut self, field: &'static str, number: Number) -> Option<u64> {
        match number {
            Number::Absent => None,
            Number::Given(number) => Some(number),
            Number::Other(got) => {
                self.unclear = Some((field, got));
                None
            }
        }
    }
}

/// Reads the fields of a body, whichever of them are there. What they hold beside texts and numbers is passed over.
struct Body {
    route: Route,
}

impl<'de> Visitor<'de> for Body {
    type Value = Estimate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Estimate, A::Error> {
        let (mut read, mut lengths) = (Estimate::default(), Vec::new());
        while let Some(Key(key)) = map.next_key()? {
            if let Some(&name) = LENGTHS.iter().find(|name| ***name == *key) {
                let given = read.number(name, map.next_value()?);
                read.is_said |= given.is_some() && is_known(name, self.route);
                read.longest = read.longest.max(given); // should several be there
                if lengths.contains(&name) {
                    read.unclear = Some((name, "it twice"));
                }
                lengths.push(name);
                continue;
            }
            match &*key {
                "messages" | "tools" | "input" | "query" | "documents" | "text" | "suffix" => {
                    read.bytes += map.next_value_seed(Weight)?.bytes;
                }
                "prompt" => {
                    let weight = map.next_value_seed(Weight)?;
                    read.bytes += weight.bytes;
                    read.prompts += weight.prompts.max(1);
                }
                name @ ("n" | "best_of") => {
                    let name = if name == "n" { "n" } else { "best_of" };
                    read.choices = read.choices.max(read.number(name, map.next_value()?).unwrap_or(1));
                }
                "stream" => read.stream |= map.next_value::<Switch>()?.0,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(read)
    }
}

/// What the longest answer is called: by OpenAI, and by llama.cpp, where it comes before OpenAI's.
const LENGTHS: [&str; 3] = ["max_tokens", "max_completion_tokens", "n_predict"];

/// Whether every server heeds that name at that route.
fn is_known(length: &str, route: Route) -> bool {
    length == "max_tokens" || length == "max_completion_tokens" && route == Route::Chat
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
    /// A letter that is not one of ASCII's is often a token of its own.
    fn text(text: &str) -> Self {
        let plain = text.bytes().filter(u8::is_ascii).count() as u64;
        let others = text.bytes().filter(|byte| *byte >= 0xC0).count() as u64; // what a letter begins with
        Self { bytes: plain + BYTES * others, prompts: 1, is_number: false }
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
        Ok(Weighed::text(text))
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

/// What stands where a whole number should.
enum Number {
    Absent,
    Given(u64),
    /// Upon which whoever reads the request decides, as it likes.
    Other(&'static str),
}

impl<'de> serde::Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar).map(|scalar| match scalar {
            Some(Ok(number)) => Self::Given(number),
            Some(Err(got)) => Self::Other(got),
            None => Self::Absent,
        })
    }
}

/// A switch, which nothing but `true` turns on.
struct Switch(bool);

impl<'de> serde::Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar).map(|scalar| Self(scalar == Some(Err(TRUE))))
    }
}

/// The name of what turns a switch on.
const TRUE: &str = "true";

/// A whole number, or else what it is; `None` for `null`. Lists and objects are passed over: built, they would take many
/// times their length in memory.
struct Scalar;

impl<'de> Visitor<'de> for Scalar {
    type Value = Option<Result<u64, &'static str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Ok(number)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(u64::try_from(number).map_err(|_| "a negative number")))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        let is_whole = number >= 0.0 && number.fract() == 0.0;
        Ok(Some(if is_whole { Ok(number as u64) } else { Err("a fraction or a negative number") }))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Err(if value { TRUE } else { "false" })))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Some(Err("a string")))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while let Some(IgnoredAny) = list.next_element()? {}
        Ok(Some(Err("a list")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while let Some((IgnoredAny, IgnoredAny)) = map.next_entry()? {}
        Ok(Some(Err("an object")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 10_000;

    fn reserved(route: Route, body: &str) -> Reserved {
        Estimate::read(route, body.as_bytes()).expect(body).reserve(LIMIT)
    }

    fn tokens(route: Route, body: &str) -> u64 {
        reserved(route, body).tokens
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
            (r#"{"prompt":"","max_tokens":10,"n_predict":30}"#, 30),
            (r#"{"prompt":"1234"}"#, 1025),
            (r#"{"prompt":"1234","max_tokens":null,"n":null}"#, 1025),
            (r#"{"prompt":"漢字éa","max_tokens":1}"#, 5),
            (r#"{"max_tokens":1e300}"#, u64::MAX),
        ] {
            assert_eq!(tokens(Route::Completions, body), expected, "{body}");
        }
        let chat = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"12345678"}]}],"max_tokens":5}"#;
        assert_eq!(tokens(Route::Chat, chat), 9, "roles count, too");
    }

    #[test]
    fn an_answer_without_an_end_is_given_one_that_fits() {
        let chat = |body| reserved(Route::Chat, body);
        assert_eq!(chat(r#"{"messages":"1234"}"#), Reserved { tokens: 1025, prompt: 1, longest: 1024, is_said: false });
        let many = chat(r#"{"messages":"1234","n":100}"#);
        assert_eq!((many.longest, many.tokens), (99, 9901));
        assert!(chat(r#"{"messages":"","max_completion_tokens":7}"#).is_said);
        let other = r#"{"messages":"","n_predict":7}"#;
        assert_eq!(
            chat(other),
            Reserved { tokens: 7, prompt: 0, longest: 7, is_said: false },
            "not all servers know it"
        );
    }

    #[test]
    fn what_gives_no_text_reserves_its_prompt_alone() {
        assert_eq!(tokens(Route::Embeddings, r#"{"input":["12345678","1234"],"max_tokens":99}"#), 3);
        assert_eq!(tokens(Route::Rerank, r#"{"query":"1234","documents":["12345678",{"text":"1234"}]}"#), 4);
        assert_eq!(tokens(Route::Tokenize, r#"{"prompt":"12345678"}"#), 0);
    }

    #[test]
    fn what_servers_might_understand_in_different_ways_is_refused() {
        for (body, param, words) in [
            (r#"{"messages":[],"max_tokens":"100000"}"#, Some("max_tokens"), "got a string"),
            (r#"{"messages":[],"max_tokens":-1}"#, Some("max_tokens"), "got a negative number"),
            (r#"{"messages":[],"max_tokens":1.5}"#, Some("max_tokens"), "got a fraction"),
            (r#"{"messages":[],"max_tokens":5,"max_tokens":null}"#, Some("max_tokens"), "got it twice"),
            (r#"{"messages":[],"n_predict":-1,"max_tokens":1}"#, Some("n_predict"), "got a negative number"),
            (r#"{"messages":[],"n":"7"}"#, Some("n"), "got a string"),
            (r#"{"messages":[],"n":[[0],{"a":0}]}"#, Some("n"), "got a list"),
            (r#"{"messages":[],"best_of":{"a":[0]}}"#, Some("best_of"), "got an object"),
            (r#"{"messages":[],"max_tokens":1e999}"#, None, "out of range"),
            (r#"{"messages":"\ud800"}"#, None, "hex escape"),
            ("not JSON", None, "line 1"),
            ("[]", None, "expected a JSON object"),
        ] {
            let problem = Estimate::read(Route::Chat, body.as_bytes()).expect_err(body);
            assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, param), "{problem}");
            assert!(problem.message.contains(words), "{problem}");
        }
    }

    #[test]
    fn a_stream_is_known_also_in_what_cannot_be_read() {
        let limits = KeyLimits { max_streams: std::num::NonZeroU32::new(1), ..KeyLimits::default() };
        let stream = |body: &str| {
            let read = Estimate::of(&limits, Route::Chat, body.as_bytes()).expect("tokens are not limited");
            read.expect("a model runs").stream
        };
        assert!(stream(r#"{"stream":true}"#) && stream(r#"{"stream":true,"stream":false}"#));
        assert!(!stream(r#"{"stream":false}"#) && !stream(r#"{"stream":"yes"}"#) && !stream("{"));
        let deep = format!(r#"{{"model":"m","stream":true,"messages":{}{}}}"#, "[".repeat(500), "]".repeat(500));
        assert!(stream(&deep));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for route in Route::ALL {
                let _ = Estimate::read(route, &body).map(|read| read.reserve(LIMIT));
            }
        }

        #[test]
        fn unsaid_answers_never_ask_for_more_than_there_is(prompt in "[a-z]{0,400}", n in 0..100_u32, limit in 200..5_000_u64) {
            let body = format!(r#"{{"prompt":"{prompt}","n":{n}}}"#);
            let reserved = Estimate::read(Route::Completions, body.as_bytes()).expect("JSON").reserve(limit);
            prop_assert!(reserved.tokens <= limit && (1..=1024).contains(&reserved.longest));
        }
    }
}
