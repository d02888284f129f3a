//! Server-sent events: cut anywhere, the stream gives the same events, and none beyond the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_shared::sse::Decoder;

const LIMIT: usize = 256;

fuzz_target!(|input: (&[u8], u8)| {
    let (bytes, piece) = input;
    let whole = Decoder::new(LIMIT).push(bytes);
    let mut decoder = Decoder::new(LIMIT);
    let pieces: Result<Vec<_>, _> = bytes.chunks(usize::from(piece).max(1)).map(|piece| decoder.push(piece)).collect();
    if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
        let pieces: Vec<String> = pieces.into_iter().flatten().collect();
        assert_eq!(whole, pieces);
        assert!(whole.iter().all(|event| event.len() <= 3 * LIMIT), "U+FFFD takes three bytes for one");
    }
});
