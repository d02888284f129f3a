//! Undoes the codings of a request's body, within bounds.

use std::io::{self, Read};

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use muster_shared::problem::{Kind, Problem};

use super::zlib::ZlibReader;
use super::{Coding, LEGAL};

/// Codings of one body: nobody means more, and each costs a decoder.
const MOST: usize = 2;
/// What is read at a time, in bytes.
const BUFFER: usize = 16 << 10;
/// Logarithm of the largest window of zstd, and so of its decoder's memory: 8 MiB, the most that a content coding may
/// ask for (RFC 9659).
const WINDOW_LOG: u32 = 23;

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// It, or what it is on the way, exceeds the limit.
    #[error("too large")]
    TooLarge,
    #[error("the body ends before its {} data does; send all of it", .0.name())]
    Cut(Coding),
    #[error("the body cannot be read as {} data (Content-Encoding): {reason}", .coding.name())]
    Broken { coding: Coding, reason: String },
}

/// The body as it was before it was coded. Neither it nor anything on the way to it is ever held beyond `limit` bytes.
///
/// # Errors
/// [`Kind::TooLarge`] beyond the limit, [`Kind::UnsupportedCoding`] for a coding that is not known, and
/// [`Kind::Invalid`] for a body that is not what its headers say.
pub(crate) fn decompress(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, Problem> {
    let codings = codings(headers)?;
    if codings.is_empty() {
        return Ok(body);
    }
    let read = undo(&codings, &body, limit).and_then(|source| collect(source, limit));
    read.map(Bytes::from).map_err(|error| problem(&error, limit))
}

/// The codings of a body in the order in which they were applied.
fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, Problem> {
    let mut codings = Vec::new();
    for line in headers.get_all(CONTENT_ENCODING) {
        let line = String::from_utf8_lossy(line.as_bytes());
        let names = line.split(',').map(str::trim).filter(|name| !name.is_empty());
        for name in names.filter(|name| !name.eq_ignore_ascii_case("identity")) {
            codings.push(Coding::of(name).ok_or_else(|| unknown(name))?);
        }
    }
    if codings.len() > MOST {
        let message = format!("the body has {} codings (Content-Encoding); send it with {MOST} at most", codings.len());
        return Err(Problem::new(Kind::Invalid, message));
    }
    Ok(codings)
}

fn unknown(name: &str) -> Problem {
    let name: String = name.chars().take(40).collect();
    let message = format!("the coding `{name}` is not known (Content-Encoding); send the body as one of: {LEGAL}");
    Problem::new(Kind::UnsupportedCoding, message)
}

/// A reader of the body as it was before those codings.
fn undo<'a>(codings: &[Coding], body: &'a [u8], limit: usize) -> io::Result<Box<dyn Read + 'a>> {
    let mut source: Box<dyn Read + 'a> = Box::new(body);
    for &coding in codings.iter().rev() {
        source = Box::new(Layer { coding, decoder: decoder(coding, source)?, left: limit });
    }
    Ok(source)
}

fn decoder<'a>(coding: Coding, source: Box<dyn Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match coding {
        Coding::Gzip => Box::new(MultiGzDecoder::new(source)),
        Coding::Deflate => Box::new(ZlibReader::new(source)),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(source)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// Undoes one coding. Counts what comes out, also where it is only on the way: much may come of little at each.
struct Layer<'a> {
    coding: Coding,
    decoder: Box<dyn Read + 'a>,
    left: usize,
}

impl Read for Layer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer).map_err(|error| fault(self.coding, error))?;
        self.left = self.left.checked_sub(read).ok_or_else(|| io::Error::other(Fault::TooLarge))?;
        Ok(read)
    }
}

/// What an error of a decoder means. One of the layer below keeps its words.
fn fault(coding: Coding, error: io::Error) -> io::Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Fault>()) {
        return error;
    }
    io::Error::other(match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Cut(coding),
        _ => Fault::Broken { coding, reason: reason(&error) },
    })
}

fn reason(error: &io::Error) -> String {
    let words = error.to_string();
    // Zstd's words for a window beyond ours; a client must learn what it may have.
    if words.contains("too much memory") {
        return "its window is larger than the 8 MiB that RFC 9659 allows".to_owned();
    }
    words
}

/// Reads to the end. Doubling stops at the limit, beyond which nothing comes.
fn collect(mut source: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let (mut body, mut buffer) = (Vec::new(), [0; BUFFER]);
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            return Ok(body);
        }
        if body.capacity() - body.len() < read {
            let wanted = (2 * body.capacity()).min(limit).max(body.len() + read);
            body.reserve_exact(wanted - body.len());
        }
        body.extend_from_slice(&buffer[..read]);
    }
}

fn problem(error: &io::Error, limit: usize) -> Problem {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Fault::TooLarge) => Problem::new(
            Kind::TooLarge,
            format!("the body, decompressed, is larger than the {limit} bytes this gateway takes; send less at once"),
        ),
        Some(fault) => Problem::new(Kind::Invalid, fault.to_string()),
        None => Problem::new(Kind::Bug, format!("cannot decompress: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::super::compress;
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_ENCODING, HeaderValue::from_str(line).expect("a header"));
        }
        headers
    }

    fn undone(lines: &[&str], body: &[u8]) -> Result<Bytes, Problem> {
        decompress(&headers(lines), Bytes::copy_from_slice(body), LIMIT)
    }

    fn refused(lines: &[&str], body: &[u8]) -> (Kind, String) {
        let problem = undone(lines, body).expect_err("it is refused");
        (problem.kind, problem.message)
    }

    #[test]
    fn a_body_without_a_coding_is_left_as_it_is() {
        for lines in [&[][..], &["identity"], &["Identity, identity", ""], &[" , "]] {
            assert_eq!(undone(lines, b"a body").as_deref(), Ok(&b"a body"[..]));
        }
    }

    #[test]
    fn codings_are_undone_in_reverse() {
        let [zstd, gzip, deflate] = Coding::READ.map(|coding| compress(coding, b"a body"));
        let both = compress(Coding::Zstd, &gzip);
        for (lines, body) in [
            (&["gzip"][..], &gzip),
            (&["X-Gzip"], &gzip),
            (&["ZSTD, identity"], &zstd),
            (&["Deflate"], &deflate),
            (&["gzip, zstd"], &both),
            (&["gzip", "zstd"], &both),
        ] {
            assert_eq!(undone(lines, body).as_deref(), Ok(&b"a body"[..]), "{lines:?}");
        }
        let (kind, message) = refused(&["zstd, gzip"], &both);
        assert!(kind == Kind::Invalid && message.contains("read as gzip"), "{message}");
    }

    #[test]
    fn unknown_codings_are_refused_with_the_legal_ones() {
        for name in ["br", "x-deflate", "compress", "*", "gzip;q=1", "\u{e9}"] {
            let (kind, message) = refused(&[name], b"x");
            assert_eq!(kind, Kind::UnsupportedCoding, "{name}");
            assert!(message.contains(name) && message.contains("zstd, gzip, deflate, identity"), "{message}");
        }
        let (kind, message) = refused(&["gzip, gzip", "gzip"], b"x");
        assert!(kind == Kind::Invalid && message.contains("3 codings") && message.contains("2 at most"), "{message}");
    }

    #[test]
    fn a_body_of_the_limit_passes_and_takes_no_more_memory() {
        for coding in Coding::READ {
            let body =
                undo(&[coding], &compress(coding, &vec![7; LIMIT]), LIMIT).and_then(|source| collect(source, LIMIT));
            let body = body.expect("it fits");
            assert_eq!((body.len(), body.capacity()), (LIMIT, LIMIT), "{coding:?}");
            let (kind, message) = refused(&[coding.name()], &compress(coding, &vec![7; LIMIT + 1]));
            assert!(kind == Kind::TooLarge && message.contains("1048576"), "{message}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; 64 << 20];
        for coding in Coding::READ {
            let bomb = compress(coding, &zeros);
            assert_eq!(refused(&[coding.name()], &bomb).0, Kind::TooLarge, "{} bytes of {coding:?}", bomb.len());
            let twice = compress(Coding::Zstd, &bomb);
            let lines = format!("{}, zstd", coding.name());
            assert_eq!(refused(&[&lines], &twice).0, Kind::TooLarge, "{} bytes of {lines}", twice.len());
        }
        // Nothing comes of it, but much lies on the way.
        let nothing = compress(Coding::Gzip, b"").repeat(LIMIT / 20 + 1);
        assert_eq!(refused(&["gzip, zstd"], &compress(Coding::Zstd, &nothing)).0, Kind::TooLarge);
    }

    #[test]
    fn a_window_that_no_content_coding_may_have_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.window_log(WINDOW_LOG + 1).expect("a legal window");
        io::Write::write_all(&mut encoder, b"a body").expect("it is written");
        let (kind, message) = refused(&["zstd"], &encoder.finish().expect("it is written"));
        assert!(kind == Kind::Invalid && message.contains("8 MiB"), "{message}");
    }

    #[test]
    fn garbage_is_refused() {
        for coding in Coding::READ {
            for body in [
                &b"{\"model\": \"m\"}"[..],
                &[0; 100],
                b"\x1f\x8bgarbage that began well",
                b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff",
            ] {
                let (kind, message) = refused(&[coding.name()], body);
                assert!(kind == Kind::Invalid && message.contains(coding.name()), "{message}");
            }
            let trailing = [&compress(coding, b"a body")[..], b"and more"].concat();
            assert_eq!(refused(&[coding.name()], &trailing).0, Kind::Invalid);
        }
    }

    fn coded() -> impl Strategy<Value = (Vec<Coding>, Vec<u8>)> {
        let codings = proptest::collection::vec(proptest::sample::select(Coding::READ.to_vec()), 1..=MOST);
        (codings, proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'a')], 0..5000))
    }

    fn apply(codings: &[Coding], body: &[u8]) -> Bytes {
        codings.iter().fold(Bytes::copy_from_slice(body), |body, &coding| compress(coding, &body))
    }

    fn line(codings: &[Coding]) -> String {
        codings.iter().map(|coding| coding.name()).collect::<Vec<_>>().join(",")
    }

    proptest! {
        #[test]
        fn what_was_coded_comes_back((codings, body) in coded()) {
            let undone = undone(&[&line(&codings)], &apply(&codings, &body));
            prop_assert_eq!(undone.as_deref(), Ok(&body[..]));
        }

        #[test]
        fn what_was_cut_is_refused((codings, body) in coded(), cut in any::<proptest::sample::Index>()) {
            let whole = apply(&codings, &body);
            let (kind, message) = refused(&[&line(&codings)], &whole[..cut.index(whole.len())]);
            prop_assert!(kind == Kind::Invalid && message.contains("ends before"), "{}", message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(codings in coded(), at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            let (codings, body) = codings;
            let mut bytes = apply(&codings, &body).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
            match undone(&[&line(&codings)], &bytes) {
                Ok(body) => prop_assert!(body.len() <= LIMIT),
                Err(problem) => prop_assert!(matches!(problem.kind, Kind::Invalid | Kind::TooLarge)),
            }
        }
    }
}
