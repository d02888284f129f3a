//! The Open Inference Protocol over HTTP: JSON, and the binary-data extension, in which the bytes of tensors follow the
//! JSON of a body.
//!
//! ```text
//!   POST /v2/models/{model}[/versions/{version}]/infer
//!   Inference-Header-Content-Length: 154      length of the JSON; without it, the whole body is JSON
//!
//!   {"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"parameters":{"binary_data_size":24}}, …], …}‖24 bytes‖…
//! ```
//!
//! What JSON cannot say is refused with the advice to send or ask for binary data: FP16 and BF16, which the protocol
//! gives no JSON form, and BYTES that are not UTF-8. Of floats, which JSON knows only where they are finite, the rest
//! are the texts `"NaN"`, `"Infinity"` and `"-Infinity"`, as protobuf's JSON has them: nothing is lost but the payload
//! of a NaN, and numpy reads them. Whole numbers never pass through a float.
//!
//! * [`read_request`] and [`write_response`]: a server's side.
//! * [`write_request`] and [`read_response`]: a client's side.

mod elements;
mod fields;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

pub use request::{read_request, write_request};
pub use response::{read_response, write_response};

use crate::problem::Problem;

/// Name of the header with the length of a body's JSON, where bytes of tensors follow it.
pub const HEADER_LENGTH: &str = "Inference-Header-Content-Length";
/// Media type of a body with bytes of tensors; one without is JSON.
pub const BINARY_TYPE: &str = "application/octet-stream";

/// How the elements of a tensor travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Within the JSON.
    #[default]
    Json,
    /// Behind it, as they are.
    Binary,
}

impl From<bool> for Form {
    fn from(binary: bool) -> Self {
        if binary { Self::Binary } else { Self::Json }
    }
}

/// How a client wants the outputs of its request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Those of which it says nothing: the request's parameter `binary_data_output`.
    pub default: Form,
    /// The others, by name: the output's parameter `binary_data`.
    pub outputs: BTreeMap<String, Form>,
}

impl Wanted {
    /// All in one form.
    pub fn all(form: Form) -> Self {
        Self { default: form, outputs: BTreeMap::new() }
    }

    /// How an output is wanted.
    pub fn form(&self, output: &str) -> Form {
        self.outputs.get(output).copied().unwrap_or(self.default)
    }
}

/// A body to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Its beginning.
    pub json: Bytes,
    /// Bytes of tensors, which follow; `None` where all are within the JSON. They are shared with the tensors.
    pub binary: Option<Vec<Bytes>>,
}

impl Body {
    /// The value of [`HEADER_LENGTH`], which must go with it.
    pub fn header_length(&self) -> Option<usize> {
        self.binary.is_some().then_some(self.json.len())
    }

    /// Its media type.
    pub fn content_type(&self) -> &'static str {
        if self.binary.is_some() { BINARY_TYPE } else { "application/json" }
    }

    /// Length of the whole.
    pub fn size(&self) -> usize {
        self.json.len() + self.binary.iter().flatten().map(Bytes::len).sum::<usize>()
    }

    /// Its pieces, in order, none of them copied.
    pub fn into_pieces(self) -> impl Iterator<Item = Bytes> {
        std::iter::once(self.json).chain(self.binary.into_iter().flatten())
    }

    /// The whole in one piece: a copy, unless it is JSON.
    pub fn into_bytes(self) -> Bytes {
        if self.binary.is_none() {
            return self.json;
        }
        let mut whole = BytesMut::with_capacity(self.size());
        self.into_pieces().for_each(|piece| whole.extend_from_slice(&piece));
        whole.freeze()
    }
}

/// Reads the value of [`HEADER_LENGTH`].
///
/// # Errors
/// A [`Problem`] where it is no length, or 0: a body without JSON is Triton's raw request, which says nothing of what
/// it is.
pub fn header_length(value: &[u8]) -> Result<usize, Problem> {
    let text = String::from_utf8_lossy(value);
    match text.trim().parse() {
        Ok(0) => Err(Problem::invalid(
            HEADER_LENGTH,
            format!("{HEADER_LENGTH} is 0, and a body without JSON is not supported; describe its tensors in JSON"),
        )),
        Ok(length) => Ok(length),
        Err(_) => Err(Problem::invalid(
            HEADER_LENGTH,
            format!("{HEADER_LENGTH} is `{text}`; it must be the length of the body's JSON in bytes"),
        )),
    }
}

/// Splits a body into its JSON and what follows.
fn split(mut body: Bytes, header_length: Option<usize>) -> Result<(Bytes, Bytes), Problem> {
    let length = header_length.unwrap_or(body.len());
    if length > body.len() {
        let message = format!("{HEADER_LENGTH} is {length}, and the whole body has {} bytes", body.len());
        return Err(Problem::invalid(HEADER_LENGTH, message));
    }
    let json = body.split_to(length);
    Ok((json, body))
}
