//! Server-sent events, encoded and decoded: the part of the format that JSON event streams use.
//!
//! Source: WHATWG HTML, "Server-sent events", section 9.2.6. Event names, ids and retry times are skipped.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

/// The data with which OpenAI ends a successful stream.
pub const DONE: &str = "[DONE]";

/// One event with a JSON value as its data.
///
/// # Panics
/// When the value cannot be JSON (a map with keys that are no strings, say): a fault in muster.
pub fn json_event<T: Serialize>(value: &T) -> Bytes {
    encoded(BytesMut::with_capacity(256), value)
}

/// The same with a name, which must not contain a line break.
///
/// # Panics
/// As [`json_event`].
pub fn named_event<T: Serialize>(name: &str, value: &T) -> Bytes {
    debug_assert!(!name.contains(['\r', '\n']), "a line break would end the name");
    let mut event = BytesMut::with_capacity(256);
    event.put_slice(b"event: ");
    event.put_slice(name.as_bytes());
    event.put_slice(b"\n");
    encoded(event, value)
}

fn encoded<T: Serialize>(mut event: BytesMut, value: &T) -> Bytes {
    event.put_slice(b"data: ");
    serde_json::to_writer((&mut event).writer(), value).expect("our own types are JSON");
    event.put_slice(b"\n\n");
    event.freeze()
}

/// One event with the given text, which must not contain a line break.
pub fn text_event(text: &str) -> Bytes {
    debug_assert!(!text.contains(['\r', '\n']), "a line break would end the event");
    Bytes::from(format!("data: {text}\n\n"))
}

/// An event longer than the reader allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {limit} bytes")]
pub struct EventTooLong {
    /// The longest event allowed, in bytes.
    pub limit: usize,
}

/// Cuts a byte stream into the data of its events, wherever the stream is split.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// Bytes of the line that has not ended.
    line: Vec<u8>,
    /// Data lines of the event that has not ended.
    data: Option<String>,
    after_carriage_return: bool,
}

impl Decoder {
    /// A decoder that refuses events longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, line: Vec::new(), data: None, after_carriage_return: false }
    }

    /// Takes more bytes; gives the data of each event that they complete.
    ///
    /// # Errors
    /// [`EventTooLong`] when an event exceeds the limit; the decoder is of no more use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, EventTooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r') {
            let (line, ending) = rest.split_at(at);
            let ended_by = ending[0];
            rest = &ending[1..];
            if ended_by == b'\n' && self.after_carriage_return && line.is_empty() {
                self.after_carriage_return = false; // the second half of a CRLF
                continue;
            }
            self.after_carriage_return = ended_by == b'\r';
            self.line.extend_from_slice(line);
            self.end_line(&mut events)?;
        }
        if !rest.is_empty() {
            self.after_carriage_return = false;
            self.line.extend_from_slice(rest);
        }
        self.check_length()?;
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), EventTooLong> {
        if self.line.is_empty() {
            events.extend(self.data.take());
            return Ok(());
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
                None => self.data = Some(value.into_owned()),
            }
        }
        self.line.clear();
        self.check_length()
    }

    fn check_length(&self) -> Result<(), EventTooLong> {
        let length = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if length > self.limit { Err(EventTooLong { limit: self.limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::new(1 << 20);
        pieces.iter().flat_map(|piece| decoder.push(piece).expect("short events")).collect()
    }

    #[test]
    fn comments_and_other_fields_are_skipped() {
        assert_eq!(decode(&[b": ping\n\nevent: x\nid: 1\ndata: a\n\n"]), ["a"]);
    }

    #[test]
    fn data_lines_of_one_event_are_joined() {
        assert_eq!(decode(&[b"data: a\ndata:b\n\n"]), ["a\nb"]);
    }

    #[test]
    fn an_event_that_is_too_long_is_refused() {
        let mut decoder = Decoder::new(8);
        assert_eq!(decoder.push(b"data: 123456789"), Err(EventTooLong { limit: 8 }));
    }

    proptest! {
        #[test]
        fn splitting_the_stream_changes_nothing(
            texts in proptest::collection::vec("[^\r\n]{0,12}", 0..8),
            ending in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: String = texts.iter().map(|text| format!("data: {text}{ending}{ending}")).collect();
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), texts);
        }
    }
}
