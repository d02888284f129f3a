//! HTTP/1.1 as far as a benchmark needs it, for both of its sides: heads by `httparse`, bodies here (RFC 9112).
//!
//! A client library would do more, and cost more than the gateway that is measured with it.

use anyhow::{bail, ensure};
use httparse::{Header, Status};
use memchr::memchr;

/// Longest head of a message, and longest line between two chunks, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// Most headers of a message.
const HEADERS: usize = 64;

/// How the end of a body is known, and how far away it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are missing.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// At the end of the connection.
    Close,
}

/// What comes next in a body of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk.
    Data(u64),
    /// The line break behind a chunk.
    Break,
    /// A line behind the last chunk; the empty one ends the body.
    Trailer,
    /// Nothing.
    End,
}

impl Framing {
    /// Whether the body is known to be whole.
    pub(super) fn ended(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::End))
    }

    /// Takes what it can from the front of `bytes`, and gives the data in it to `data`; returns how many bytes were
    /// taken. The others are to be given again, with more behind them.
    ///
    /// # Errors
    /// When these are no chunks.
    pub(super) fn take(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> anyhow::Result<usize> {
        let mut taken = 0;
        while !self.ended() {
            let rest = &bytes[taken..];
            let step = match self {
                Self::Length(left) => {
                    let step = give(rest, *left, &mut data);
                    *left -= step as u64;
                    step
                }
                Self::Chunked(chunk) => chunk.take(rest, &mut data)?,
                Self::Close => give(rest, u64::MAX, &mut data),
            };
            if step == 0 {
                ensure!(rest.len() <= HEAD_LIMIT, "the line between two chunks is too long");
                break;
            }
            taken += step;
        }
        Ok(taken)
    }
}

impl Chunk {
    fn take(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> anyhow::Result<usize> {
        match self {
            Self::Size => match httparse::parse_chunk_size(bytes) {
                Ok(Status::Complete((length, size))) => {
                    *self = if size == 0 { Self::Trailer } else { Self::Data(size) };
                    Ok(length)
                }
                Ok(Status::Partial) => Ok(0),
                Err(_) => bail!("a chunk has no size"),
            },
            Self::Data(left) => {
                let taken = give(bytes, *left, data);
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Break;
                }
                Ok(taken)
            }
            Self::Break => match bytes {
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    Ok(2)
                }
                [] | [b'\r'] => Ok(0),
                _ => bail!("a chunk is longer than its size"),
            },
            Self::Trailer => {
                let Some(end) = memchr(b'\n', bytes) else { return Ok(0) };
                if bytes[..end].trim_ascii().is_empty() {
                    *self = Self::End;
                }
                Ok(end + 1)
            }
            Self::End => Ok(0),
        }
    }
}

/// Gives the first bytes to `data`, at most so many; returns how many.
fn give(bytes: &[u8], most: u64, data: &mut impl FnMut(&[u8])) -> usize {
    let given = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    if given > 0 {
        data(&bytes[..given]);
    }
    given
}

/// The head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseHead {
    /// Its own length in bytes.
    pub(super) length: usize,
    pub(super) status: u16,
    pub(super) framing: Framing,
    /// Whether another request may follow.
    pub(super) keep_alive: bool,
}

/// Reads the head that `bytes` begin with; nothing when it is not whole yet.
///
/// # Errors
/// When this is no HTTP.
pub(super) fn response_head(bytes: &[u8]) -> anyhow::Result<Option<ResponseHead>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Status::Complete(length) = response.parse(bytes)? else { return partial(bytes) };
    let (status, fields) = (response.code.unwrap_or(0), Fields::of(response.headers)?);
    let framing = match (status, fields.framing) {
        (100..200 | 204 | 304, _) => Framing::Length(0),
        (_, Some(framing)) => framing,
        (_, None) => Framing::Close,
    };
    let keep_alive = fields.keep_alive.unwrap_or(response.version == Some(1)) && framing != Framing::Close;
    Ok(Some(ResponseHead { length, status, framing, keep_alive }))
}

/// The head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHead<'a> {
    /// Its own length in bytes.
    pub(super) length: usize,
    /// Without a query.
    pub(super) path: &'a str,
    pub(super) framing: Framing,
    /// Whether another request may follow.
    pub(super) keep_alive: bool,
    /// Whether the client sends the body only when it is told to go on.
    pub(super) waits: bool,
}

/// Reads the head that `bytes` begin with; nothing when it is not whole yet.
///
/// # Errors
/// When this is no HTTP.
pub(super) fn request_head(bytes: &[u8]) -> anyhow::Result<Option<RequestHead<'_>>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Status::Complete(length) = request.parse(bytes)? else { return partial(bytes) };
    let fields = Fields::of(request.headers)?;
    let target = request.path.unwrap_or_default();
    Ok(Some(RequestHead {
        length,
        path: target.split_once('?').map_or(target, |(path, _)| path),
        framing: fields.framing.unwrap_or(Framing::Length(0)),
        keep_alive: fields.keep_alive.unwrap_or(request.version == Some(1)),
        waits: fields.waits,
    }))
}

fn partial<T>(bytes: &[u8]) -> anyhow::Result<Option<T>> {
    ensure!(bytes.len() <= HEAD_LIMIT, "the head of a message is longer than {HEAD_LIMIT} bytes");
    Ok(None)
}

/// What headers say of the message and its connection.
#[derive(Debug, Default)]
struct Fields {
    framing: Option<Framing>,
    keep_alive: Option<bool>,
    waits: bool,
}

impl Fields {
    fn of(headers: &[Header<'_>]) -> anyhow::Result<Self> {
        let mut fields = Self::default();
        for Header { name, value } in headers {
            if name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(value)?.trim().parse()?;
                // A chunked body's length is no matter.
                fields.framing = fields.framing.or(Some(Framing::Length(length)));
            } else if name.eq_ignore_ascii_case("transfer-encoding") && has_word(value, b"chunked") {
                fields.framing = Some(Framing::Chunked(Chunk::Size));
            } else if name.eq_ignore_ascii_case("connection") && has_word(value, b"close") {
                fields.keep_alive = Some(false);
            } else if name.eq_ignore_ascii_case("connection") && has_word(value, b"keep-alive") {
                fields.keep_alive = Some(true);
            } else if name.eq_ignore_ascii_case("expect") && has_word(value, b"100-continue") {
                fields.waits = true;
            }
        }
        Ok(fields)
    }
}

/// Whether a list of words holds one of them.
fn has_word(list: &[u8], word: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data of a body that comes in pieces, and whether it is whole.
    fn read(mut framing: Framing, pieces: &[&[u8]]) -> anyhow::Result<(Vec<u8>, bool)> {
        let (mut inbox, mut data) = (Vec::new(), Vec::new());
        for piece in pieces {
            inbox.extend_from_slice(piece);
            let taken = framing.take(&inbox, |bytes| data.extend_from_slice(bytes))?;
            inbox.drain(..taken);
        }
        Ok((data, framing.ended()))
    }

    #[test]
    fn bodies_of_every_framing_are_read() {
        let chunked = Framing::Chunked(Chunk::Size);
        for (framing, bytes, data, ended) in [
            (Framing::Length(3), &b"abcnext"[..], &b"abc"[..], true),
            (Framing::Length(4), b"abc", b"abc", false),
            (Framing::Length(0), b"next", b"", true),
            (Framing::Close, b"abc", b"abc", false),
            (chunked, b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\nnext", b"abcd", true),
            (chunked, b"0\r\nTrailer: x\r\n\r\n", b"", true),
            (chunked, b"3\r\nabc\r\n0\r\n", b"abc", false),
        ] {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(read(framing, &[bytes]).expect("a body"), (data.to_vec(), ended), "{text}");
        }
        for broken in [&b"x\r\n"[..], b"1\r\nab\r\n"] {
            assert!(read(chunked, &[broken]).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn heads_tell_how_their_bodies_end() {
        let head = |text: &str| response_head(text.as_bytes()).expect("a head");
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Le"), None);
        let with = |length, status, framing, keep_alive| Some(ResponseHead { length, status, framing, keep_alive });
        for (text, status, framing, keep_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n", 200, Framing::Length(12), true),
            ("HTTP/1.1 502 No\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", 502, Framing::Length(0), false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", 200, Framing::Chunked(Chunk::Size), true),
            ("HTTP/1.1 200 OK\r\n\r\n", 200, Framing::Close, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", 200, Framing::Length(1), false),
            ("HTTP/1.1 204 None\r\n\r\n", 204, Framing::Length(0), true),
        ] {
            assert_eq!(head(text), with(text.len(), status, framing, keep_alive), "{text}");
        }
        assert!(response_head(b"SSH-2.0-OpenSSH\r\n").is_err());
        let text = "POST /v1/x?y=z HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        let head = request_head(text.as_bytes()).expect("a head").expect("a whole one");
        assert_eq!((head.path, head.framing, head.keep_alive, head.waits), ("/v1/x", Framing::Length(5), true, true));
    }

    proptest! {
        #[test]
        fn chunks_split_anywhere_are_the_same(
            chunks in proptest::collection::vec("[a-z]{1,20}", 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let body: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
            let body = format!("{body}0\r\n\r\n").into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            let (data, ended) = read(Framing::Chunked(Chunk::Size), &pieces).expect("chunks");
            prop_assert!(ended);
            prop_assert_eq!(data, chunks.concat().into_bytes());
        }
    }
}
