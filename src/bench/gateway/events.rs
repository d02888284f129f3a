//! Counts the events of a stream as they come, and reads only those that must be read.

use std::borrow::Cow;

use memchr::memchr;
use memchr::memmem::Finder;
use muster_shared::sse::DONE;
use serde::Deserialize;
use serde_json::Value;

/// What an event contains that tells of an error; so may others, which are read then.
const ERROR: &[u8] = b"\"error";

/// A stream of which more may come.
#[derive(Debug)]
pub(super) struct Events {
    /// A line that has not ended.
    line: Vec<u8>,
    errors: Finder<'static>,
    /// Events since they were last taken; that which ends the stream does not count.
    fresh: u64,
    /// Whether one has brought text.
    pub(super) text: bool,
    /// Whether the stream has ended as it should.
    pub(super) done: bool,
    /// The first error that an event has told.
    pub(super) error: Option<String>,
}

impl Events {
    pub(super) fn new() -> Self {
        let errors = Finder::new(ERROR);
        Self { line: Vec::new(), errors, fresh: 0, text: false, done: false, error: None }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.line.clear();
        (self.fresh, self.text, self.done, self.error) = (0, false, false, None);
    }

    /// Takes more bytes, split anywhere.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr(b'\n', bytes) {
            if self.line.is_empty() {
                self.end_line(&bytes[..end]);
            } else {
                self.line.extend_from_slice(&bytes[..end]);
                let line = std::mem::take(&mut self.line);
                self.end_line(&line);
                self.line = line;
                self.line.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
    }

    /// How many events have come since the last look.
    pub(super) fn take_fresh(&mut self) -> u64 {
        std::mem::take(&mut self.fresh)
    }

    fn end_line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return };
        if data == DONE.as_bytes() {
            self.done = true;
            return;
        }
        self.fresh += 1;
        self.text = self.text || has_text(data);
        if self.error.is_none() && self.errors.find(data).is_some() {
            self.error = error_of(data);
        }
    }
}

/// As much of a chunk as tells whether it brings text.
#[derive(Debug, Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
}

/// Whether an event brings text; the one that only names the assistant's role does not.
fn has_text(data: &[u8]) -> bool {
    let chunk = serde_json::from_slice::<Chunk<'_>>(data).ok();
    let choice = chunk.and_then(|chunk| chunk.choices.into_iter().next());
    choice.and_then(|choice| choice.delta).is_some_and(|delta| {
        let texts = [delta.content, delta.reasoning_content];
        texts.into_iter().flatten().any(|text| !text.is_empty())
    })
}

/// The error that an event or a body tells of: OpenAI's or FastChat's.
pub(super) fn error_of(data: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let error = &value["error"];
    let message = match error {
        Value::Null => return fastchat_error(&value),
        Value::String(text) => text.clone(),
        error => error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned),
    };
    Some(message)
}

/// What the body of a refusal says where it names no error: FastChat's and muster's own services do not.
pub(super) fn message_of(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value["message"].as_str().map(str::to_owned)
}

fn fastchat_error(value: &Value) -> Option<String> {
    let is_error = value["error_code"].as_u64().is_some_and(|code| code != 0);
    let text = value["text"].as_str().or(value["message"].as_str()).unwrap_or("no reason given");
    is_error.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        : a comment\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"error\\\"\"}}]}\r\n\r\n\
        data:{\"choices\":[],\"error\":null}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn events_are_counted_wherever_the_stream_is_split() {
        for size in [1, 2, 7, 40, STREAM.len()] {
            let mut events = Events::new();
            let mut counts = 0;
            for piece in STREAM.as_bytes().chunks(size) {
                events.push(piece);
                counts += events.take_fresh();
            }
            assert_eq!((counts, events.text, events.done, events.error.as_deref()), (3, true, true, None), "{size}");
            events.clear();
            assert!(!events.done && !events.text);
        }
    }

    #[test]
    fn an_event_with_the_role_alone_brings_no_text() {
        let mut events = Events::new();
        let (role, rest) = STREAM.split_once('\n').expect("lines");
        events.push(format!("{role}\n").as_bytes());
        assert!(!events.text);
        events.push(rest.as_bytes());
        assert!(events.text);
        assert!(has_text(br#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#));
        assert!(!has_text(br#"{"choices":[{"delta":{"content":null}}]}"#));
    }

    #[test]
    fn errors_are_found_in_the_words_of_several_servers() {
        for (data, message) in [
            (r#"{"error":{"message":"out of room","code":1}}"#, Some("out of room")),
            (r#"{"error": "lost"}"#, Some("lost")),
            (r#"{"error":{"code":7}}"#, Some(r#"{"code":7}"#)),
            (r#"{"text":"too long","error_code":40303}"#, Some("too long")),
            (r#"{"text":"fine","error_code":0}"#, None),
            (r#"{"choices":[{"delta":{"content":"\"error\""}}]}"#, None),
        ] {
            let mut events = Events::new();
            events.push(format!("data: {data}\n\n").as_bytes());
            assert_eq!(events.error.as_deref(), message, "{data}");
        }
    }
}
