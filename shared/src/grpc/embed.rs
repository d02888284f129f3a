//! What an embedding model is asked, and its vectors.

use super::proto::embed_input::Input;
use super::{Malformed, proto};
use crate::embed::{EmbedInput, EmbedRequest, EmbedResponse, InputType, SparseVector, Vector};

impl From<EmbedRequest> for proto::EmbedRequest {
    fn from(request: EmbedRequest) -> Self {
        let EmbedRequest { request_id, model, inputs, dimensions, prompt_name, input_type, truncate, timeout_ms } =
            request;
        let inputs = inputs.into_iter().map(Into::into).collect();
        let input_type = proto::InputType::from(input_type).into();
        Self { request_id, model, inputs, dimensions, truncate, prompt_name, input_type, timeout_ms }
    }
}

impl TryFrom<proto::EmbedRequest> for EmbedRequest {
    type Error = Malformed;

    fn try_from(request: proto::EmbedRequest) -> Result<Self, Malformed> {
        let proto::EmbedRequest {
            request_id,
            model,
            inputs,
            dimensions,
            truncate,
            prompt_name,
            input_type,
            timeout_ms,
        } = request;
        let inputs = inputs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let known = proto::InputType::try_from(input_type);
        let input_type = known.map_err(|_| Malformed::unknown("input_type", input_type))?.into();
        Ok(Self { request_id, model, inputs, dimensions, prompt_name, input_type, truncate, timeout_ms })
    }
}

impl From<Option<InputType>> for proto::InputType {
    fn from(input_type: Option<InputType>) -> Self {
        match input_type {
            None => Self::Unspecified,
            Some(InputType::Query) => Self::Query,
            Some(InputType::Document) => Self::Document,
        }
    }
}

impl From<proto::InputType> for Option<InputType> {
    fn from(input_type: proto::InputType) -> Self {
        match input_type {
            proto::InputType::Unspecified => None,
            proto::InputType::Query => Some(InputType::Query),
            proto::InputType::Document => Some(InputType::Document),
        }
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
