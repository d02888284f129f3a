//! Looks over a worker's server-sent events on their way to a client, without reading what they say.
//!
//! Only whole events go on, so that an error can follow whatever a worker did; and only what looks like OpenAI's
//! stream does. An event that came whole in one piece, as most do, is not copied.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use muster_shared::generate::Usage;

use crate::upstream::passthrough::usage_of;

/// Longest event, in bytes.
const EVENT: usize = 4 << 20;

/// Before an event is taken apart for its usage, it must hold the word. A text that holds it holds it with backslashes.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));

/// Why a worker's stream is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbage {
    /// An event that never ends.
    #[error("an event is longer than {EVENT} bytes")]
    TooLong,
    /// Bytes that are no text.
    #[error("an event is not UTF-8")]
    NotText,
    /// A line that server-sent events do not have.
    #[error("a line is neither a field of a server-sent event nor a comment")]
    NotAnEvent,
    /// Data that is no JSON object.
    #[error("the data of an event is not a JSON object")]
    NotJson,
}

/// How a stream ended, or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes on.
    Open,
    /// By OpenAI's last event.
    Done,
    /// By an error event of the worker's own.
    Failed,
}

/// What has come of a stream and not gone on.
#[derive(Debug)]
pub(crate) struct Check {
    /// The beginning of an event.
    rest: BytesMut,
    pub(crate) end: End,
    /// Events with data that have gone on, the last one left out.
    pub(crate) events: u32,
    /// Whether what it has cost is looked for.
    reads_usage: bool,
    /// What it has cost, as was said last.
    pub(crate) usage: Option<Usage>,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self { rest: BytesMut::new(), end: End::Open, events: 0, reads_usage: false, usage: None }
    }

    /// One that reads what the stream says that it has cost.
    pub(crate) fn reading_usage() -> Self {
        Self { reads_usage: true, ..Self::new() }
    }

    /// Takes more of the stream; gives what may go on. Nothing does after the last event.
    pub(crate) fn push(&mut self, data: Bytes) -> Result<Bytes, Garbage> {
        if self.end != End::Open {
            return Ok(Bytes::new());
        }
        let mut whole = if self.rest.is_empty() && ends_an_event(&data) {
            data
        } else {
            self.rest.extend_from_slice(&data);
            let at = last_end(&self.rest);
            if self.rest.len() - at > EVENT {
                return Err(Garbage::TooLong);
            }
            self.rest.split_to(at).freeze()
        };
        whole.truncate(self.look(&whole)?);
        Ok(whole)
    }

    /// The end of the stream; gives what may still go on: a last event whose final line break was left out.
    pub(crate) fn finish(&mut self) -> Result<Bytes, Garbage> {
        let mut rest = std::mem::take(&mut self.rest);
        let text = rest.trim_ascii_end();
        if text.is_empty() || self.end != End::Open || !(text.ends_with(b"}") || text.ends_with(b"[DONE]")) {
            return Ok(Bytes::new()); // nothing, or half an event
        }
        rest.truncate(text.len());
        rest.extend_from_slice(b"\n\n");
        let mut rest = rest.freeze();
        rest.truncate(self.look(&rest)?);
        Ok(rest)
    }

    /// Looks at whole events; gives the length of those that may go on: all up to the last of the stream.
    fn look(&mut self, whole: &[u8]) -> Result<usize, Garbage> {
        let mut rest = whole;
        while !rest.is_empty() {
            let at = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at(at);
            rest = after.get(1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() && self.end != End::Open {
                break;
            }
            self.look_at(line)?;
        }
        let length = whole.len() - rest.len();
        std::str::from_utf8(&whole[..length]).map(|_| length).map_err(|_| Garbage::NotText)
    }

    fn look_at(&mut self, line: &[u8]) -> Result<(), Garbage> {
        const OTHERS: [&[u8]; 4] = [b":", b"event:", b"id:", b"retry:"];
        let Some(data) = line.strip_prefix(b"data:") else {
            let known = line.is_empty() || OTHERS.iter().any(|field| line.starts_with(field));
            return if known { Ok(()) } else { Err(Garbage::NotAnEvent) };
        };
        match data.trim_ascii() {
            b"[DONE]" => self.end = End::Done,
            data if data.starts_with(b"{") && data.ends_with(b"}") => {
                self.events = self.events.saturating_add(1);
                if self.reads_usage && USAGE.find(data).is_some() {
                    self.usage = usage_of(data).or(self.usage);
                }
                if is_error(data) {
                    self.end = End::Failed;
                }
            }
            _ => return Err(Garbage::NotJson),
        }
        Ok(())
    }
}

/// Whether an object begins with an error, as those of vLLM, llama.cpp and OpenAI do.
fn is_error(object: &[u8]) -> bool {
    let inner = object[1..].trim_ascii_start();
    is_told(inner) || inner.starts_with(b"\"object\":\"error\"") || inner.starts_with(b"\"object\": \"error\"")
}

/// Whether an object's inside begins with an error that is not null.
fn is_told(inner: &[u8]) -> bool {
    let value = inner.strip_prefix(b"\"error\"").and_then(|rest| rest.trim_ascii_start().strip_prefix(b":"));
    value.is_some_and(|value| !value.trim_ascii_start().starts_with(b"null"))
}

fn ends_an_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

/// Where the last whole event ends.
fn last_end(bytes: &[u8]) -> usize {
    let mut to = bytes.len();
    while let Some(at) = memchr::memrchr(b'\n', &bytes[..to]) {
        if ends_an_event(&bytes[..=at]) {
            return at + 1;
        }
        to = at;
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ": hello\n\ndata: {\"a\":\"é漢\"}\n\nevent: x\ndata: {\"b\": 1}\r\n\r\ndata: [DONE]\n\n";

    /// What goes on of a stream that comes in pieces.
    fn passed(pieces: &[&[u8]]) -> Result<(String, End), Garbage> {
        let mut check = Check::new();
        let mut passed = Vec::new();
        for piece in pieces {
            passed.extend_from_slice(&check.push(Bytes::copy_from_slice(piece))?);
        }
        passed.extend_from_slice(&check.finish()?);
        Ok((String::from_utf8(passed).expect("it is text"), check.end))
    }

    #[test]
    fn an_ordinary_stream_goes_on_as_it_is() {
        assert_eq!(passed(&[STREAM.as_bytes()]), Ok((STREAM.to_owned(), End::Done)));
    }

    #[test]
    fn half_an_event_stays_behind() {
        assert_eq!(passed(&[b"data: {}\n\ndata: {\"cont"]), Ok(("data: {}\n\n".to_owned(), End::Open)));
        assert_eq!(passed(&[b"data: {\"a\":1}\n\ndata: {\"b\":{}}"]).map(|(_, end)| end), Ok(End::Open));
    }

    #[test]
    fn a_last_line_break_may_be_missing() {
        assert_eq!(passed(&[b"data: {}\n\ndata: [DONE]"]), Ok(("data: {}\n\ndata: [DONE]\n\n".to_owned(), End::Done)));
        assert_eq!(passed(&[b"data: [DONE]\n"]), Ok(("data: [DONE]\n\n".to_owned(), End::Done)));
    }

    #[test]
    fn nothing_goes_on_after_the_end() {
        let (text, end) = passed(&[b"data: [DONE]\n\n", b"data: {}\n\n", b"<html>"]).expect("what follows is not read");
        assert_eq!((text.as_str(), end), ("data: [DONE]\n\n", End::Done));
    }

    #[test]
    fn an_error_is_seen() {
        for error in [r#"{"error":{"message":"x"}}"#, r#"{ "error": 1}"#, r#"{"object":"error","message":"x"}"#] {
            let (_, end) = passed(&[format!("data: {error}\n\n").as_bytes()]).expect("an event");
            assert_eq!(end, End::Failed, "{error}");
        }
        let none = r#"{"error": null,"choices":[]}"#;
        assert_eq!(passed(&[format!("data: {none}\n\n").as_bytes()]).map(|(_, end)| end), Ok(End::Open));
    }

    #[test]
    fn nothing_goes_on_after_an_error_or_the_end_though_it_comes_in_one_piece() {
        for (last, end) in [("{\"error\":{}}", End::Failed), ("[DONE]", End::Done)] {
            let good = format!("data: {{}}\n\ndata: {last}\nid: 1\n\n");
            for more in ["data: [DONE]\n\n", "data: {}\n\n", "<html>\n\n", "\n"] {
                assert_eq!(passed(&[format!("{good}{more}").as_bytes()]), Ok((good.clone(), end)), "{more}");
                assert_eq!(passed(&[good.as_bytes(), more.as_bytes()]), Ok((good.clone(), end)), "{more}");
            }
        }
    }

    #[test]
    fn what_a_stream_has_cost_is_what_it_says_last() {
        let stream = [
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n",
            "data: {\"text\":\"a \\\"usage\\\" \",\"usage\":null}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":3,\"total_tokens\":9}}\n\ndata: {\"usage\":7}\n\ndata: [DONE]\n\n",
        ];
        let said = |mut check: Check| {
            stream.iter().for_each(|piece| drop(check.push(Bytes::from_static(piece.as_bytes())).expect("events")));
            check.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens))
        };
        assert_eq!(said(Check::reading_usage()), Some((3, 6)));
        assert_eq!(said(Check::new()), None, "nobody wants to know");
    }

    #[test]
    fn garbage_is_refused_by_its_kind() {
        assert_eq!(passed(&[b"<html>\n\n"]), Err(Garbage::NotAnEvent));
        assert_eq!(passed(&[b"data: hello\n\n"]), Err(Garbage::NotJson));
        assert_eq!(passed(&[b"data: {\"a\":\"\xFF\"}\n\n"]), Err(Garbage::NotText));
        let mut check = Check::new();
        let endless = Bytes::from(vec![b'x'; 1 << 20]);
        let refused = (0..6).map(|_| check.push(endless.clone())).find_map(Result::err);
        assert_eq!(refused, Some(Garbage::TooLong));
    }

    proptest! {
        #[test]
        fn cutting_a_stream_anywhere_changes_nothing(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            let bytes = STREAM.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(passed(&pieces), Ok((STREAM.to_owned(), End::Done)));
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = passed(&pieces);
        }
    }
}
