//! Content codings: which one a client takes, compressing answers, and undoing the codings of requests.
//!
//! An answer that depends on `Accept-Encoding` must say `Vary: Accept-Encoding`. Work here takes time in proportion to
//! a body's length; large bodies belong off the threads that serve.

mod answer;
mod decompress;
mod negotiate;
mod zlib;

use std::io::Write as _;

use axum::http::HeaderValue;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

pub(crate) use {answer::compressed, decompress::decompress, negotiate::negotiate};

/// The codings that a request may have, as a refusal names them (`Accept-Encoding` of a 415).
pub(crate) const LEGAL: &str = "zstd, gzip, deflate, identity";

/// Bodies shorter than this gain nothing: they fill one packet as they are.
const WORTHWHILE: usize = 1024;
/// The fastest level that zstd has in its usual range; text shrinks to about a third.
const ZSTD_LEVEL: i32 = 1;

/// A way to write a body in fewer bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// RFC 1950, the wrapping of zlib around RFC 1951. Only undone: some call the bare stream by this name, so that no
    /// client can be sure of an answer in it.
    Deflate,
}

impl Coding {
    /// Every coding of requests.
    const READ: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Deflate];
    /// Every coding of answers, the better first.
    pub(crate) const WRITTEN: [Self; 2] = [Self::Zstd, Self::Gzip];

    /// The name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// The value of `Content-Encoding`.
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }

    /// Reads a name in any case; `x-gzip` is an old one (RFC 9110, section 8.4.1.3).
    fn of(name: &str) -> Option<Self> {
        let name = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
        Self::READ.into_iter().find(|coding| coding.name().eq_ignore_ascii_case(name))
    }
}

/// Writes a body in that coding, at its fastest.
pub(crate) fn compress(coding: Coding, body: &[u8]) -> Bytes {
    const CANNOT_FAIL: &str = "memory takes whatever is written";
    match coding {
        Coding::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL).expect(CANNOT_FAIL).into(),
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).expect(CANNOT_FAIL);
            encoder.finish().expect(CANNOT_FAIL).into()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).expect(CANNOT_FAIL);
            encoder.finish().expect(CANNOT_FAIL).into()
        }
    }
}

/// Whether compressing a whole body pays: it is long enough, and text. Event streams are none: their events must leave
/// one by one.
pub(crate) fn worth(length: usize, content_type: Option<&HeaderValue>) -> bool {
    let Some(content_type) = content_type.and_then(|value| value.to_str().ok()) else { return false };
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let text = match media.split_once('/') {
        Some(("text", kind)) => kind != "event-stream",
        Some(("application", kind)) => kind == "json" || kind.ends_with("+json"),
        _ => false,
    };
    text && length >= WORTHWHILE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_worth_compressing() {
        let worth = |length, media: &'static str| worth(length, Some(&HeaderValue::from_static(media)));
        for media in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json", "text/plain"] {
            assert!(worth(1024, media) && !worth(1023, media), "{media}");
        }
        for media in ["text/event-stream", "application/octet-stream", "image/png", "json", ""] {
            assert!(!worth(1 << 20, media), "{media}");
        }
        assert!(!super::worth(1 << 20, None));
    }

    #[test]
    fn text_shrinks() {
        let text = r#"{"index":0,"delta":{"content":"All models are wrong, some are useful."}}"#.repeat(1000);
        for coding in Coding::READ {
            assert!(compress(coding, text.as_bytes()).len() < text.len() / 20, "{coding:?}");
            assert_eq!(coding.header(), coding.name());
        }
    }
}
