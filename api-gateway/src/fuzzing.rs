//! What fuzz targets call: readers of foreign bytes that are otherwise nobody's business. No part of the interface.
//!
//! Each checks what must hold whatever the bytes are, and panics where it does not.

use bytes::Bytes;
use muster_shared::fastchat::Frame;
use muster_shared::problem::{Kind, Problem};

use crate::encoding;
use crate::openai::chat::ChatRequest;
use crate::openai::classify::ClassifyBody;
use crate::openai::completion::CompletionRequest;
use crate::openai::embedding::EmbeddingBody;
use crate::openai::endpoint::Endpoint;
use crate::openai::entities::EntitiesBody;
use crate::openai::moderation::ModerationBody;
use crate::openai::peek::{self, Peek};
use crate::openai::rerank::RerankBody;
use crate::openai::tokenize::{DetokenizeBody, TokenizeBody};
use crate::upstream::fastchat::frames::{self, Transcript};
use crate::upstream::relay::check::{Check, End};

/// Longest message of an error: one repeats little of what it was sent.
const MESSAGE: usize = 2048;
/// Most bytes that a coded body may become here.
const DECODED: usize = 64 << 10;

/// A body of a conversation.
pub fn chat(body: &[u8]) {
    let read = sound(ChatRequest::parse(body));
    if let Some(request) = &read {
        check_peek(body, &request.generate.model, request.stream);
        let _ = crate::chat::affinity(&request.generate);
    }
}

/// A body of a completion.
pub fn completion(body: &[u8]) {
    if let Some(request) = sound(CompletionRequest::parse(body)) {
        check_peek(body, &request.model, request.stream);
        assert!(!request.prompts.is_empty(), "a request without a prompt");
        assert_eq!(request.requests("r").len(), request.prompts.len());
    }
}

/// A body for models of texts; the first byte says for which endpoint.
pub fn texts(bytes: &[u8]) {
    let Some((&which, body)) = bytes.split_first() else { return };
    match which % 7 {
        0 => endpoint::<EmbeddingBody>(body),
        1 => endpoint::<RerankBody>(body),
        2 => endpoint::<ClassifyBody>(body),
        3 => endpoint::<EntitiesBody>(body),
        4 => endpoint::<ModerationBody>(body),
        5 => endpoint::<TokenizeBody>(body),
        _ => endpoint::<DetokenizeBody>(body),
    }
}

fn endpoint<E: Endpoint>(body: &[u8]) {
    let _ = sound(E::parse(body));
}

/// What was read; an error must be the client's, short, and say something.
fn sound<T>(read: Result<T, Problem>) -> Option<T> {
    read.map_err(|problem| {
        assert_eq!(problem.kind, Kind::Invalid, "{problem}");
        assert!(!problem.message.is_empty() && problem.message.len() <= MESSAGE, "{problem}");
    })
    .ok()
}

/// What is read of a body by looking for a few fields is what the whole reading finds.
fn check_peek(body: &[u8], model: &str, stream: bool) {
    // The whole reading takes the last of two fields of one name; a look gives up.
    if let Some(peek) = Peek::parse(body) {
        assert_eq!((&*peek.model, peek.stream()), (model, stream));
        let other = peek::with_model(body, "other").expect("it names a model");
        assert_eq!(peek::model(&other).as_deref(), Some("other"));
    }
}

/// A compressed body; the first byte says how.
pub fn coded_body(bytes: &[u8]) {
    let Some((&which, body)) = bytes.split_first() else { return };
    let coding = ["zstd", "gzip", "deflate", "gzip, zstd"][usize::from(which % 4)];
    let mut headers = axum::http::HeaderMap::new();
    headers.insert(axum::http::header::CONTENT_ENCODING, coding.parse().expect("a header"));
    match encoding::decompress(&headers, Bytes::copy_from_slice(body), DECODED) {
        Ok(body) => assert!(body.len() <= DECODED, "more than was allowed"),
        Err(problem) => assert!(matches!(problem.kind, Kind::Invalid | Kind::TooLarge), "{problem}"),
    }
}

/// The answer of a worker of the transport `openai`, cut into pieces of a length that the first byte says: what goes on
/// does not depend on the cuts, is the beginning of what came, and is text.
pub fn passed_stream(bytes: &[u8]) {
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let (whole, pieces) = (passed(stream, stream.len()), passed(stream, piece.into()));
    for (passed, _) in [&whole, &pieces] {
        assert!(std::str::from_utf8(passed).is_ok(), "no text");
        let common = passed.trim_ascii_end();
        assert!(stream.starts_with(common), "what goes on is not what came");
    }
    if let ((whole, Some(end)), (pieces, Some(other))) = (whole, pieces) {
        assert_eq!((whole, end), (pieces, other));
    }
}

/// What goes on, and how it ended where nothing was wrong with it.
fn passed(stream: &[u8], piece: usize) -> (Vec<u8>, Option<End>) {
    let (mut check, mut passed) = (Check::new(), Vec::new());
    for piece in stream.chunks(piece.max(1)) {
        match check.push(Bytes::copy_from_slice(piece)) {
            Ok(more) => passed.extend_from_slice(&more),
            Err(_) => return (passed, None),
        }
    }
    match check.finish() {
        Ok(more) => passed.extend_from_slice(&more),
        Err(_) => return (passed, None),
    }
    (passed, Some(check.end))
}

/// The answer of a FastChat worker, cut as in [`passed_stream`]: the same frames come out wherever it is cut, and what
/// their texts make is never longer than the longest of them.
pub fn fastchat_answer(bytes: &[u8]) {
    const LIMIT: usize = 512;
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let cut = |piece: usize| {
        let mut decoder = frames::Decoder::new(LIMIT);
        let pieces: Result<Vec<_>, _> = stream.chunks(piece.max(1)).map(|piece| decoder.push(piece)).collect();
        pieces.map(|frames| frames.into_iter().flatten().collect::<Vec<_>>())
    };
    let whole = cut(stream.len());
    assert_eq!(whole, cut(piece.into()));
    let frames = whole.unwrap_or_default();
    let (mut transcript, mut told, mut longest) = (Transcript::default(), 0, 0);
    for frame in frames.iter().filter_map(|frame| serde_json::from_slice::<Frame>(frame).ok()) {
        told += transcript.new_text(&frame.text, frame.finish_reason.is_some()).chars().count();
        longest = longest.max(frame.text.chars().count());
        assert!(told <= longest, "more was told than there is");
        if let Some(logprobs) = &frame.logprobs {
            transcript.new_logprobs(logprobs);
        }
    }
}
