//! What a gateway asks of an embedding model.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedInput {
    /// Text, tokenized as the model wants it.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// `POST /embed`: one vector for each input. Answered with an [`EmbedResponse`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// Name for logs.
    #[serde(default)]
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// What to embed, at least one.
    pub inputs: Vec<EmbedInput>,
    /// Keeps the first so many numbers of each vector, and normalises again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Name of what the model's own configuration puts before each text: `query`, `document`; absent: what it puts there
    /// by default, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_name: Option<String>,
    /// What the vectors are for. A model that has its own words for that gets them before each text, any other nothing;
    /// `prompt_name` goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_type: Option<InputType>,
    /// Cuts an input that is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
    /// Milliseconds from its arrival at the worker after which it fails, whether it waits or runs; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What vectors are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    /// To seek with.
    Query,
    /// To be found.
    Document,
}

/// The vectors, in the order of the inputs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EmbedResponse {
    /// One for each input; none where the model gives sparse ones.
    pub vectors: Vec<Vector>,
    /// One for each input, of a model that gives such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse: Vec<SparseVector>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

/// A vector of which most numbers are 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SparseVector {
    /// Places of the others, ascending: token ids of the model's vocabulary.
    pub indices: Vec<u32>,
    /// The numbers at these places, above 0.
    pub values: Vec<f32>,
}

/// One embedding. Travels as the base64 of its little-endian 32-bit floats: a third of the size of decimal
/// digits, exact, and the form in which OpenAI's clients ask for it anyway.
#[derive(Debug, Clone, PartialEq)]
pub struct Vector(pub Vec<f32>);

impl Vector {
    /// The base64 of the little-endian 32-bit floats.
    pub fn to_base64(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        BASE64_STANDARD.encode(bytes)
    }

    /// Reads what [`Vector::to_base64`] wrote; `None` when it is not base64 or not a whole number of floats.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        let (floats, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| Self(floats.iter().copied().map(f32::from_le_bytes).collect()))
    }
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_base64(&text)
            .ok_or_else(|| serde::de::Error::custom("expected the base64 of little-endian 32-bit floats"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_vector_survives_the_wire(numbers in proptest::collection::vec(any::<f32>(), 0..50)) {
            let back = Vector::from_base64(&Vector(numbers.clone()).to_base64()).expect("our own encoding");
            let bits = |v: &[f32]| v.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back.0), bits(&numbers));
        }
    }

    #[test]
    fn a_broken_vector_is_refused() {
        assert_eq!(Vector::from_base64("AAA="), None, "two bytes are no float");
        assert_eq!(Vector::from_base64("?"), None);
    }
}
