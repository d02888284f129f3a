//! As much of a request as an answer of nothing needs, whichever transport's words it is in.

use std::borrow::Cow;
use std::time::Duration;

use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;

/// What a prompt contains to say how it is to be answered: `fake:n=50,d=20000;`.
const WISH: &[u8] = b"fake:";
/// Longest such wish in bytes.
const WISH_LIMIT: usize = 64;
/// Bytes of a prompt that count as a token.
const BYTES_OF_TOKEN: usize = 4;

/// A request's fields; those of one transport are absent in the others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked<'a> {
    #[serde(borrow)]
    pub(super) model: Cow<'a, str>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_new_tokens: Option<u32>,
    n: Option<u32>,
    choices: Option<u32>,
    input: Option<Value>,
    inputs: Option<Value>,
    encoding_format: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Asked<'_> {
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage) == Some(true)
    }

    pub(super) fn wants_base64(&self) -> bool {
        self.encoding_format.as_deref() == Some("base64")
    }

    /// How many answers are wanted.
    pub(super) fn answers(&self) -> u32 {
        self.n.or(self.choices).unwrap_or(1)
    }

    /// How many texts are to be embedded. A list of numbers is one text, given as its tokens.
    pub(super) fn inputs(&self) -> usize {
        match self.input.as_ref().or(self.inputs.as_ref()) {
            Some(Value::Array(items)) if !items.iter().any(Value::is_number) => items.len(),
            _ => 1,
        }
    }

    fn limit(&self) -> Option<u32> {
        self.max_tokens.or(self.max_completion_tokens).or(self.max_new_tokens)
    }
}

/// How long an answer is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) prompt_tokens: u32,
    pub(super) tokens: u32,
    /// Whether it would be longer if it might.
    pub(super) cut: bool,
    /// Time between two tokens.
    pub(super) pause: Duration,
}

impl Length {
    /// Of the answer to a request: as the prompt says, else as usual; never longer than it may be.
    pub(super) fn of(asked: &Asked<'_>, body: &[u8], usual: (u32, Duration)) -> Self {
        let (tokens, pause) = wish(body);
        let tokens = tokens.unwrap_or(usual.0);
        let limit = asked.limit().unwrap_or(u32::MAX);
        Self {
            prompt_tokens: u32::try_from(body.len() / BYTES_OF_TOKEN).unwrap_or(u32::MAX).max(1),
            tokens: tokens.min(limit),
            cut: limit < tokens,
            pause: pause.unwrap_or(usual.1),
        }
    }

    /// Time that the whole answer takes. The first token comes at once.
    pub(super) fn time(self) -> Duration {
        self.pause.saturating_mul(self.tokens.saturating_sub(1))
    }

    /// Why it ends.
    pub(super) fn reason(self) -> &'static str {
        if self.cut { "length" } else { "stop" }
    }
}

/// The tokens and the time between them that a prompt asks for. In the prompt it passes through every gateway.
fn wish(body: &[u8]) -> (Option<u32>, Option<Duration>) {
    let text = memmem::find(body, WISH).and_then(|at| {
        let rest = &body[at + WISH.len()..];
        let end = rest.iter().take(WISH_LIMIT).position(|&byte| byte == b';')?;
        std::str::from_utf8(&rest[..end]).ok()
    });
    let (mut tokens, mut pause) = (None, None);
    for (name, value) in text.unwrap_or_default().split(',').filter_map(|part| part.split_once('=')) {
        match name.trim() {
            "n" => tokens = value.parse().ok(),
            "d" => pause = value.parse().ok().map(Duration::from_micros),
            _ => {}
        }
    }
    (tokens, pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: (u32, Duration) = (20, Duration::ZERO);

    fn length(body: &str) -> Length {
        let asked = serde_json::from_str(body).expect("a request");
        Length::of(&asked, body.as_bytes(), USUAL)
    }

    #[test]
    fn a_prompt_says_how_it_is_answered_and_the_limit_holds() {
        for (body, tokens, cut, pause) in [
            (r#"{"prompt":"hi"}"#, 20, false, 0),
            (r#"{"prompt":"fake:n=50,d=20000; hi"}"#, 50, false, 20_000),
            (r#"{"prompt":"fake:d=7;","max_tokens":3}"#, 3, true, 7),
            (r#"{"prompt":"fake:n=2;","max_completion_tokens":3,"max_tokens":null}"#, 2, false, 0),
            (r#"{"prompt":"fake:n=x,y;","max_new_tokens":20}"#, 20, false, 0),
            (r#"{"prompt":"fake: no end"}"#, 20, false, 0),
        ] {
            let found = length(body);
            let expected = (tokens, cut, Duration::from_micros(pause));
            assert_eq!((found.tokens, found.cut, found.pause), expected, "{body}");
        }
        assert_eq!(length(r#"{"prompt":"fake:n=3,d=1000;"}"#).time(), Duration::from_millis(2));
    }

    #[test]
    fn inputs_are_counted_in_every_form() {
        for (body, count) in [
            (r#"{"input":"a"}"#, 1),
            (r#"{"input":["a","b"]}"#, 2),
            (r#"{"input":[1,2,3]}"#, 1),
            (r#"{"input":[[1,2],[3]]}"#, 2),
            (r#"{"inputs":[{"text":"a"},{"tokens":[1]},{"text":"b"}]}"#, 3),
        ] {
            assert_eq!(serde_json::from_str::<Asked<'_>>(body).expect("a request").inputs(), count, "{body}");
        }
    }
}
