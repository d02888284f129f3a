//! What an embedding model is asked, and its vectors.

use super::proto::embed_input::Input;
use super::{Malformed, proto};
use crate::embed::{EmbedInput, EmbedRequest, EmbedResponse, SparseVector, Vector};

impl From<EmbedRequest> for proto::EmbedRequest {
    fn from(request: EmbedRequest) -> Self {
        let EmbedRequest { request_id, model, inputs, dimensions, prompt_name, truncate } = request;
        let inputs = inputs.into_iter().map(Into::into).collect();
        Self { request_id, model, inputs, dimensions, truncate, prompt_name }
    }
}

impl TryFrom<proto::EmbedRequest> for EmbedRequest {
    type Error = Malformed;

    fn try_from(request: proto::EmbedRequest) -> Result<Self, Malformed> {
        let proto::EmbedRequest { request_id, model, inputs, dimensions, truncate, prompt_name } = request;
        let inputs = inputs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { request_id, model, inputs, dimensions, prompt_name, truncate })
    }
}

impl From<EmbedInput> for proto::EmbedInput {
    fn from(input: EmbedInput) -> Self {
        let input = match input {
            EmbedInput::Text(text) => Input::Text(text),
            EmbedInput::Tokens(ids) => Input::Tokens(proto::TokenIds { ids }),
        };
        Self { input: Some(input) }
    }
}

impl TryFrom<proto::EmbedInput> for EmbedInput {
    type Error = Malformed;

    fn try_from(input: proto::EmbedInput) -> Result<Self, Malformed> {
        match input.input {
            Some(Input::Text(text)) => Ok(Self::Text(text)),
            Some(Input::Tokens(tokens)) => Ok(Self::Tokens(tokens.ids)),
            None => Err(Malformed::missing("input")),
        }
    }
}

impl From<EmbedResponse> for proto::EmbedResponse {
    fn from(response: EmbedResponse) -> Self {
        let vectors = response.vectors.into_iter().map(|Vector(numbers)| proto::Vector { numbers }).collect();
        let sparse = response.sparse.into_iter();
        let sparse = sparse.map(|SparseVector { indices, values }| proto::SparseVector { indices, values }).collect();
        Self { vectors, sparse, prompt_tokens: response.prompt_tokens }
    }
}

impl From<proto::EmbedResponse> for EmbedResponse {
    fn from(response: proto::EmbedResponse) -> Self {
        let vectors = response.vectors.into_iter().map(|vector| Vector(vector.numbers)).collect();
        let sparse = response.sparse.into_iter();
        let sparse = sparse.map(|proto::SparseVector { indices, values }| SparseVector { indices, values }).collect();
        Self { vectors, sparse, prompt_tokens: response.prompt_tokens }
    }
}
