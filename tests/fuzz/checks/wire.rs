//! What comes over other wires, and the controller's files.

use bytes::{Bytes, BytesMut};
use muster_controller::journal::replay;
use muster_controller::peers::file::parse;
use muster_shared::control::{Heartbeat, Registration};
use muster_shared::embed::EmbedRequest;
use muster_shared::fastchat::{Frame, HeartBeat, RegisterWorker, WorkerStatus};
use muster_shared::generate::{Event, GenerateRequest};
use muster_shared::link::{Ask, Message, Tell};
use muster_shared::problem::Problem;
use muster_shared::sse::Decoder;
use muster_shared::tensor::http::{Form, Wanted, read_request, read_response, write_request, write_response};
use muster_shared::text::{ClassifyRequest, EntitiesRequest, RerankRequest, TokenizeRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bodies of the Open Inference Protocol, after two bytes that say how much of it is JSON, where they are not 0: no bytes
/// break the reader, and what is read survives in binary form.
pub(super) fn infer_body(bytes: &[u8]) {
    let Some((&length, bytes)) = bytes.split_first_chunk() else { return };
    let length = Some(usize::from(u16::from_le_bytes(length))).filter(|length| *length > 0);
    let body = Bytes::copy_from_slice(bytes);
    if let Ok((request, _)) = read_request("m", None, body.clone(), length) {
        let written = write_request(&request, Form::Binary).expect("binary data can say everything");
        let length = written.header_length();
        let (read, wanted) = read_request("m", None, written.into_bytes(), length).expect("our own words");
        assert_eq!(read, request);
        assert!(wanted.outputs.is_empty(), "all outputs are wanted in one form");
        let _ = write_request(&request, Form::Json);
    }
    if let Ok(response) = read_response(body, length) {
        let written = write_response(&response, &Wanted::all(Form::Binary)).expect("binary data can say everything");
        let length = written.header_length();
        assert_eq!(read_response(written.into_bytes(), length).expect("our own words"), response);
        let _ = write_response(&response, &Wanted::default());
    }
}

/// A saved journal of decisions: no bytes break the reader or the replay, and an error names its line.
pub(super) fn journal(bytes: &[u8]) {
    match replay(bytes, None) {
        Ok(replayed) => assert_eq!(replayed.decisions, replayed.same + replayed.differences.len() as u64),
        Err(error) => assert!(error.line > 0 && !error.message.is_empty()),
    }
}

/// What a gateway or a controller says over a link: no bytes break the reader, and what is read is written alike.
pub(super) fn link_message(bytes: &[u8]) {
    said::<Ask>(bytes);
    said::<Tell>(bytes);
}

fn said<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::read(bytes) else { return };
    let mut written = BytesMut::new();
    message.write(&mut written);
    assert_eq!(M::read(&written).expect("our own words"), message);
}

/// A controller's peers file: no text breaks the reader, and every mistake is told with its place.
pub(super) fn peers_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let own = "127.0.0.1:21001".parse().ok();
    if let Err(mistakes) = parse("peers.yaml", text, own) {
        assert!(mistakes.to_string().starts_with("peers.yaml:"));
    }
}

/// Server-sent events: cut anywhere, the stream gives the same events, and none beyond the limit. The first byte says
/// how long the pieces are.
pub(super) fn sse_decoder(bytes: &[u8]) {
    const LIMIT: usize = 256;
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    let whole = Decoder::new(LIMIT).push(bytes);
    let mut decoder = Decoder::new(LIMIT);
    let pieces: Result<Vec<_>, _> = bytes.chunks(usize::from(piece).max(1)).map(|piece| decoder.push(piece)).collect();
    if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
        let pieces: Vec<String> = pieces.into_iter().flatten().collect();
        assert_eq!(whole, pieces);
        assert!(whole.iter().all(|event| event.len() <= 3 * LIMIT), "U+FFFD takes three bytes for one");
    }
}

/// A JSON body between our own processes, of the kind that the first byte says: no bytes break the reader, and what is
/// read is written and read alike.
pub(super) fn json(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    match which % 14 {
        0 => alike::<GenerateRequest>(bytes),
        1 => alike::<Event>(bytes),
        2 => alike::<EmbedRequest>(bytes),
        3 => alike::<RerankRequest>(bytes),
        4 => alike::<ClassifyRequest>(bytes),
        5 => alike::<EntitiesRequest>(bytes),
        6 => alike::<TokenizeRequest>(bytes),
        7 => alike::<Registration>(bytes),
        8 => alike::<Heartbeat>(bytes),
        9 => alike::<Problem>(bytes),
        10 => alike::<RegisterWorker>(bytes),
        11 => alike::<HeartBeat>(bytes),
        12 => alike::<WorkerStatus>(bytes),
        _ => alike::<Frame>(bytes),
    }
}

fn alike<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    // Numbers beyond f32 are infinite once they are read, and JSON has none: they are written as null.
    let written = serde_json::to_vec(&read).expect("JSON can say it");
    let Ok(again) = serde_json::from_slice::<T>(&written) else {
        assert!(written.windows(4).any(|four| four == b"null"), "our own words are not read");
        return;
    };
    assert_eq!(serde_json::to_vec(&again).expect("JSON can say it"), written);
}
