//! The bytes that single tokens stand for, as told by the decoder in a `tokenizer.json`.

use std::sync::LazyLock;

use serde_json::Value;

/// How a token of the vocabulary becomes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pieces {
    /// Each character of a token is one byte, by GPT-2's table.
    ByteLevel,
    /// Tokens are text in which some characters stand for others (`▁` for a space), or one byte written `<0xAB>`.
    Spelled { replace: Vec<(String, String)>, byte_fallback: bool, strip_first_space: bool },
    /// A token's text depends on its neighbours, or this decoder is unknown to us.
    Unknown,
}

impl Pieces {
    /// Reads the `decoder` of a `tokenizer.json`.
    pub(super) fn of(decoder: &Value) -> Self {
        match decoder["type"].as_str() {
            Some("ByteLevel") => Self::ByteLevel,
            Some("Sequence") => match decoder["decoders"].as_array().map(Vec::as_slice) {
                Some([only]) => Self::of(only),
                Some(steps) => Self::of_sequence(steps).unwrap_or(Self::Unknown),
                None => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// Llama's, Mistral's, Phi-3's and Gemma's: `Replace`, `ByteFallback`, `Fuse`, and perhaps `Strip`, in this order.
    fn of_sequence(steps: &[Value]) -> Option<Self> {
        let (mut replace, mut byte_fallback, mut fused, mut strip_first_space) = (Vec::new(), false, false, false);
        for step in steps {
            match step["type"].as_str()? {
                "Replace" if !byte_fallback && !fused => {
                    replace
                        .push((step["pattern"]["String"].as_str()?.to_owned(), step["content"].as_str()?.to_owned()));
                }
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                // Before Fuse it would strip every token.
                "Strip" if fused && !strip_first_space && step["content"] == " " && step["stop"] == 0 => {
                    match step["start"].as_u64()? {
                        0 => {}
                        1 => strip_first_space = true,
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
        Some(Self::Spelled { replace, byte_fallback, strip_first_space })
    }

    /// The bytes of one token; `None` where they cannot be told from the token alone.
    pub(super) fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel => {
                let mapped: Option<Vec<u8>> = token.chars().map(gpt2_byte).collect();
                // A token added to the vocabulary may be plain text, with spaces and all.
                Some(mapped.unwrap_or_else(|| token.as_bytes().to_vec()))
            }
            Self::Spelled { replace, byte_fallback, .. } => {
                if let Some(byte) = byte_token(token).filter(|_| *byte_fallback) {
                    return Some(vec![byte]);
                }
                let text = replace.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to));
                Some(text.into_bytes())
            }
            Self::Unknown => None,
        }
    }

    /// Whether a space at the very beginning of a text is an artefact.
    pub(super) fn strips_first_space(&self) -> bool {
        matches!(self, Self::Spelled { strip_first_space: true, .. })
    }
}

/// The byte of a token like `<0xAB>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character stands for in GPT-2's vocabulary (`bytes_to_unicode` in its `encoder.py`).
fn gpt2_byte(character: char) -> Option<u8> {
    BYTES.get(character as usize).copied().flatten()
}

/// Printable bytes stand for themselves; the other 68 follow from U+0100 on, in order.
static BYTES: LazyLock<[Option<u8>; 256 + 68]> = LazyLock::new(|| {
    let mut table = [None; 256 + 68];
    let mut next = 256;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { usize::from(byte) } else { next };
        next += usize::from(!printable);
        table[code] = Some(byte);
    }
    table
});

/// Takes the text at the beginning of `bytes` and leaves an unfinished character. A broken one becomes U+FFFD, as in
/// [`String::from_utf8_lossy`].
pub(super) fn take_whole_text(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let at_end = taken + chunk.invalid().len() == bytes.len();
        if at_end && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none()) {
            break;
        }
        taken += chunk.invalid().len();
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    bytes.drain(..taken);
    text
}
