//! Elements of a tensor in JSON: read from the text into bytes, and written from bytes, one after the other.

use std::str::FromStr;

use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};

use super::fields::shown;
use crate::problem::Problem;
use crate::tensor::head::{Head, Place};
use crate::tensor::layout::{push_string, strings};
use crate::tensor::{Datatype, Tensor};

/// What is not finite, as protobuf's JSON has it.
const NAN: &str = "NaN";
const INFINITY: &str = "Infinity";
const MINUS_INFINITY: &str = "-Infinity";

/// Reads `data`: a list in row-major order, flat or nested. As with Triton only the order counts, not the nesting; and
/// a scalar may stand alone.
pub(super) fn read(head: &Head, text: &str) -> Result<Vec<u8>, Problem> {
    let list = List { head, text };
    match head.datatype {
        Datatype::Bool => list.read(|text| text.parse().ok().map(|yes: bool| [u8::from(yes)])),
        Datatype::Uint8 => list.read(|text| number(text).map(u8::to_le_bytes)),
        Datatype::Uint16 => list.read(|text| number(text).map(u16::to_le_bytes)),
        Datatype::Uint32 => list.read(|text| number(text).map(u32::to_le_bytes)),
        Datatype::Uint64 => list.read(|text| number(text).map(u64::to_le_bytes)),
        Datatype::Int8 => list.read(|text| number(text).map(i8::to_le_bytes)),
        Datatype::Int16 => list.read(|text| number(text).map(i16::to_le_bytes)),
        Datatype::Int32 => list.read(|text| number(text).map(i32::to_le_bytes)),
        Datatype::Int64 => list.read(|text| number(text).map(i64::to_le_bytes)),
        Datatype::Fp32 => list.read(|text| float(text, f32::is_finite).map(f32::to_le_bytes)),
        Datatype::Fp64 => list.read(|text| float(text, f64::is_finite).map(f64::to_le_bytes)),
        Datatype::Bytes => list.read_strings(),
        Datatype::Fp16 | Datatype::Bf16 => Err(head.problem("data", no_json(head.datatype, "send it"))),
    }
}

fn no_json(datatype: Datatype, advice: &str) -> String {
    format!("{datatype} has no form in JSON; {advice} as binary data")
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// A number that the type can hold, or one of the three names.
fn float<T: FromStr + Copy>(text: &str, is_finite: fn(T) -> bool) -> Option<T> {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(name @ (NAN | INFINITY | MINUS_INFINITY)) => name.parse().ok(),
        Some(_) => None,
        None => text.parse().ok().filter(|number| is_finite(*number)),
    }
}

struct List<'a> {
    head: &'a Head,
    text: &'a str,
}

impl List<'_> {
    fn read<const N: usize>(&self, element: impl Fn(&str) -> Option<[u8; N]>) -> Result<Vec<u8>, Problem> {
        // An element takes two characters at least: no shape makes more room than the text is long.
        let mut data = Vec::with_capacity(self.head.count.min(self.text.len() / 2 + 1) * N);
        let mut count = 0;
        for text in scalars(self.text) {
            let bytes = element(text).ok_or_else(|| self.wrong(count, text))?;
            data.extend_from_slice(&bytes);
            count += 1;
        }
        self.complete(data, count)
    }

    fn read_strings(&self) -> Result<Vec<u8>, Problem> {
        let mut data = Vec::with_capacity(self.text.len());
        let mut count = 0;
        for text in scalars(self.text) {
            let element = if text.contains('\\') {
                serde_json::from_str(text).ok()
            } else {
                text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned)
            };
            let fits = element.is_some_and(|element: String| push_string(&mut data, element.as_bytes()));
            if !fits {
                return Err(self.wrong(count, text));
            }
            count += 1;
        }
        self.complete(data, count)
    }

    fn complete(&self, data: Vec<u8>, count: usize) -> Result<Vec<u8>, Problem> {
        let Head { shape, count: expected, .. } = self.head;
        if count == *expected {
            return Ok(data);
        }
        let reason = format!("shape {shape:?} has {expected} elements, and `data` has {count}");
        Err(self.head.problem("data", reason))
    }

    fn wrong(&self, index: usize, text: &str) -> Problem {
        let datatype = self.head.datatype;
        let expected = match datatype {
            Datatype::Bool => "true or false",
            Datatype::Bytes => "a text",
            Datatype::Fp32 | Datatype::Fp64 => "a number that it can hold, or \"NaN\", \"Infinity\", \"-Infinity\"",
            _ => "a whole number that it can hold",
        };
        let reason = format!("element {index} is {}; an element of {datatype} is {expected}", shown(text));
        self.head.problem("data", reason)
    }
}

/// The values in a list of JSON, as they stand there. The text is known to be JSON.
fn scalars(text: &str) -> impl Iterator<Item = &str> {
    let between = |byte: u8| matches!(byte, b'[' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r');
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.bytes().position(|byte| !between(byte))?..];
        let end = match rest.as_bytes()[0] {
            b'"' => end_of_string(rest),
            b'{' => rest.len(), // no element is an object, so whoever reads it stops here
            _ => rest.bytes().position(between).unwrap_or(rest.len()),
        };
        let value;
        (value, rest) = rest.split_at(end);
        Some(value)
    })
}

/// Where a text ends that begins here, its quotes included.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether JSON can say a tensor's elements.
pub(super) fn check_writable(tensor: &Tensor, place: Place) -> Result<(), Problem> {
    let reason = match tensor.datatype {
        Datatype::Fp16 | Datatype::Bf16 => no_json(tensor.datatype, "ask for it"),
        Datatype::Bytes => match first_that_is_no_text(tensor) {
            Some(index) => format!("element {index} is not UTF-8, and so no text of JSON; ask for it as binary data"),
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    let advice = match place {
        Place::Input(_) => "",
        Place::Output(_) => ": `binary_data` in its parameters, or `binary_data_output` in those of the request",
    };
    Err(Problem::invalid(place.field("data"), format!("{} `{}`: {reason}{advice}", place.noun(), tensor.name)))
}

fn first_that_is_no_text(tensor: &Tensor) -> Option<usize> {
    strings(&tensor.data).position(|element| element.is_ok_and(|element| std::str::from_utf8(element).is_err()))
}

/// A tensor's elements as a flat list of JSON.
#[derive(Debug)]
pub(super) struct Elements<'a>(pub(super) &'a Tensor);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data = &self.0.data;
        match self.0.datatype {
            Datatype::Bool => list(serializer, data, |[byte]: [u8; 1]| byte != 0),
            Datatype::Uint8 => list(serializer, data, u8::from_le_bytes),
            Datatype::Uint16 => list(serializer, data, u16::from_le_bytes),
            Datatype::Uint32 => list(serializer, data, u32::from_le_bytes),
            Datatype::Uint64 => list(serializer, data, u64::from_le_bytes),
            Datatype::Int8 => list(serializer, data, i8::from_le_bytes),
            Datatype::Int16 => list(serializer, data, i16::from_le_bytes),
            Datatype::Int32 => list(serializer, data, i32::from_le_bytes),
            Datatype::Int64 => list(serializer, data, i64::from_le_bytes),
            Datatype::Fp32 => list(serializer, data, |bytes| Float::from(f32::from_le_bytes(bytes))),
            Datatype::Fp64 => list(serializer, data, |bytes| Float::from(f64::from_le_bytes(bytes))),
            Datatype::Bytes => texts(serializer, data),
            other @ (Datatype::Fp16 | Datatype::Bf16) => Err(S::Error::custom(no_json(other, "ask for it"))),
        }
    }
}

fn list<S: Serializer, T: Serialize, const N: usize>(
    serializer: S,
    data: &[u8],
    element: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let (elements, _) = data.as_chunks::<N>();
    serializer.collect_seq(elements.iter().map(|bytes| element(*bytes)))
}

fn texts<S: Serializer>(serializer: S, data: &[u8]) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(None)?;
    for element in strings(data) {
        let element = element.map_err(S::Error::custom)?;
        list.serialize_element(std::str::from_utf8(element).map_err(S::Error::custom)?)?;
    }
    list.end()
}

/// A float that JSON can say.
#[derive(Serialize)]
#[serde(untagged)]
enum Float<T> {
    Number(T),
    Name(&'static str),
}

impl From<f32> for Float<f32> {
    fn from(number: f32) -> Self {
        name(f64::from(number)).map_or(Self::Number(number), Self::Name)
    }
}

impl From<f64> for Float<f64> {
    fn from(number: f64) -> Self {
        name(number).map_or(Self::Number(number), Self::Name)
    }
}

fn name(number: f64) -> Option<&'static str> {
    match number {
        _ if number.is_nan() => Some(NAN),
        f64::INFINITY => Some(INFINITY),
        f64::NEG_INFINITY => Some(MINUS_INFINITY),
        _ => None,
    }
}
