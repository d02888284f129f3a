//! Protocol Buffers at the level of the wire: which field stands where, and how to put another in its place.
//!
//! Nothing is decoded that is not asked for, so what this program does not know stays as it was, byte for byte.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::ops::Range;

/// The bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    /// Where it lies in the message, its tag included.
    pub(super) range: Range<usize>,
    pub(super) value: Value<'a>,
}

/// A field's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number of variable length.
    Number(u64),
    /// Text, bytes, a message or packed numbers.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which nothing here asks for.
    Fixed,
}

impl<'a> Value<'a> {
    /// The content as bytes; empty for numbers.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) | Self::Fixed => &[],
        }
    }

    /// The signed numbers of a repeated field, packed or not.
    pub(super) fn push_numbers(self, into: &mut Vec<i64>) -> Result<(), Malformed> {
        match self {
            Self::Number(number) => into.push(number as i64),
            Self::Bytes(mut packed) => {
                while !packed.is_empty() {
                    let (number, length) = varint(packed)?;
                    into.push(number as i64);
                    packed = &packed[length..];
                }
            }
            Self::Fixed => return Err(Malformed),
        }
        Ok(())
    }
}

/// All fields of a message, in their order.
pub(super) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let field = field(message, at)?;
        at = field.range.end;
        fields.push(field);
    }
    Ok(fields)
}

fn field(message: &[u8], start: usize) -> Result<Field<'_>, Malformed> {
    let (tag, length) = varint(&message[start..])?;
    let at = start + length;
    let rest = &message[at..];
    let (value, length) = match tag & 7 {
        0 => varint(rest).map(|(number, length)| (Value::Number(number), length))?,
        1 => (Value::Fixed, 8),
        5 => (Value::Fixed, 4),
        2 => {
            let (size, length) = varint(rest)?;
            let end = usize::try_from(size).ok().and_then(|size| length.checked_add(size)).ok_or(Malformed)?;
            (Value::Bytes(rest.get(length..end).ok_or(Malformed)?), end)
        }
        // Groups were given up before ONNX was made.
        _ => return Err(Malformed),
    };
    if length > rest.len() || tag >> 3 == 0 {
        return Err(Malformed);
    }
    Ok(Field { number: tag >> 3, range: start..at + length, value })
}

/// A number of variable length, and the bytes that it takes.
fn varint(bytes: &[u8]) -> Result<(u64, usize), Malformed> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((number, index + 1));
        }
    }
    Err(Malformed)
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a field that is a number.
pub(super) fn push_number(out: &mut Vec<u8>, field: u64, number: u64) {
    push_varint(out, field << 3);
    push_varint(out, number);
}

/// Appends a field of text, bytes or a message.
pub(super) fn push_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    push_varint(out, field << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A field of text, bytes or a message, alone.
pub(super) fn message(field: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    push_bytes(&mut out, field, bytes);
    out
}

/// The message with other bytes at some places, which must not overlap.
pub(super) fn splice(message: &[u8], mut edits: Vec<(Range<usize>, Vec<u8>)>) -> Vec<u8> {
    edits.sort_by_key(|(range, _)| range.start);
    let added: usize = edits.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut out = Vec::with_capacity(message.len() + added);
    let mut at = 0;
    for (range, bytes) in edits {
        out.extend_from_slice(&message[at..range.start]);
        out.extend_from_slice(&bytes);
        at = range.end;
    }
    out.extend_from_slice(&message[at..]);
    out
}

/// The message with its `nth` field of a number changed by `change`; `None` when there is none, or `change` says so.
pub(super) fn change_field(
    message: &[u8],
    number: u64,
    nth: usize,
    change: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let fields = fields(message).ok()?;
    let field = fields.into_iter().filter(|field| field.number == number).nth(nth)?;
    let Value::Bytes(content) = field.value else { return None };
    Some(splice(message, vec![(field.range, self::message(number, &change(content)?))]))
}
