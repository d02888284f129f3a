//! What models that judge texts are asked, and any model's tokenizer.

use super::proto::classify_input::Input;
use super::proto::generate_request::Prompt as GeneratePrompt;
use super::proto::tokenize_request::Prompt as TokenizePrompt;
use super::{Malformed, proto};
use crate::generate::Prompt;
use crate::text::{
    Aggregation, ClassifyInput, ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse,
    EntitiesRequest, EntitiesResponse, Entity, RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};

impl From<RerankRequest> for proto::RerankRequest {
    fn from(request: RerankRequest) -> Self {
        let RerankRequest { request_id, model, query, documents, raw_scores, truncate, timeout_ms } = request;
        Self { request_id, model, query, documents, raw_scores, truncate, timeout_ms }
    }
}

impl From<proto::RerankRequest> for RerankRequest {
    fn from(request: proto::RerankRequest) -> Self {
        let proto::RerankRequest { request_id, model, query, documents, raw_scores, truncate, timeout_ms } = request;
        Self { request_id, model, query, documents, raw_scores, truncate, timeout_ms }
    }
}

impl From<RerankResponse> for proto::RerankResponse {
    fn from(RerankResponse { scores, prompt_tokens }: RerankResponse) -> Self {
        Self { scores, prompt_tokens }
    }
}

impl From<proto::RerankResponse> for RerankResponse {
    fn from(proto::RerankResponse { scores, prompt_tokens }: proto::RerankResponse) -> Self {
        Self { scores, prompt_tokens }
    }
}

impl From<ClassifyRequest> for proto::ClassifyRequest {
    fn from(request: ClassifyRequest) -> Self {
        let ClassifyRequest { request_id, model, inputs, raw_scores, truncate, timeout_ms } = request;
        let inputs = inputs.into_iter().map(Into::into).collect();
        Self { request_id, model, inputs, raw_scores, truncate, timeout_ms }
    }
}

impl TryFrom<proto::ClassifyRequest> for ClassifyRequest {
    type Error = Malformed;

    fn try_from(request: proto::ClassifyRequest) -> Result<Self, Malformed> {
        let proto::ClassifyRequest { request_id, model, inputs, raw_scores, truncate, timeout_ms } = request;
        let inputs = inputs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { request_id, model, inputs, raw_scores, truncate, timeout_ms })
    }
}

impl From<ClassifyInput> for proto::ClassifyInput {
    fn from(input: ClassifyInput) -> Self {
        let input = match input {
            ClassifyInput::Text(text) => Input::Text(text),
            ClassifyInput::Pair(first, second) => Input::Pair(proto::TextPair { first, second }),
            ClassifyInput::Tokens(ids) => Input::Tokens(proto::TokenIds { ids }),
        };
        Self { input: Some(input) }
    }
}

impl TryFrom<proto::ClassifyInput> for ClassifyInput {
    type Error = Malformed;

    fn try_from(input: proto::ClassifyInput) -> Result<Self, Malformed> {
        match input.input {
            Some(Input::Text(text)) => Ok(Self::Text(text)),
            Some(Input::Pair(proto::TextPair { first, second })) => Ok(Self::Pair(first, second)),
            Some(Input::Tokens(tokens)) => Ok(Self::Tokens(tokens.ids)),
            None => Err(Malformed::missing("input")),
        }
    }
}

impl From<ClassifyResponse> for proto::ClassifyResponse {
    fn from(response: ClassifyResponse) -> Self {
        let ClassifyResponse { labels, scores, multi_label, prompt_tokens } = response;
        let scores = scores.into_iter().map(|numbers| proto::ClassScores { numbers }).collect();
        Self { labels, scores, multi_label, prompt_tokens }
    }
}

impl From<proto::ClassifyResponse> for ClassifyResponse {
    fn from(response: proto::ClassifyResponse) -> Self {
        let proto::ClassifyResponse { labels, scores, multi_label, prompt_tokens } = response;
        let scores = scores.into_iter().map(|scores| scores.numbers).collect();
        Self { labels, scores, multi_label, prompt_tokens }
    }
}

impl From<EntitiesRequest> for proto::EntitiesRequest {
    fn from(request: EntitiesRequest) -> Self {
        let EntitiesRequest { request_id, model, inputs, aggregation, truncate, timeout_ms } = request;
        let aggregation = proto::Aggregation::from(aggregation).into();
        Self { request_id, model, inputs, aggregation, truncate, timeout_ms }
    }
}

impl TryFrom<proto::EntitiesRequest> for EntitiesRequest {
    type Error = Malformed;

    fn try_from(request: proto::EntitiesRequest) -> Result<Self, Malformed> {
        let proto::EntitiesRequest { request_id, model, inputs, aggregation, truncate, timeout_ms } = request;
        let known = proto::Aggregation::try_from(aggregation);
        let aggregation = known.map_err(|_| Malformed::unknown("aggregation", aggregation))?.into();
        Ok(Self { request_id, model, inputs, aggregation, truncate, timeout_ms })
    }
}

impl From<Aggregation> for proto::Aggregation {
    fn from(aggregation: Aggregation) -> Self {
        match aggregation {
            Aggregation::None => Self::None,
            Aggregation::Simple => Self::Simple,
            Aggregation::First => Self::First,
            Aggregation::Average => Self::Average,
            Aggregation::Max => Self::Max,
        }
    }
}

impl From<proto::Aggregation> for Aggregation {
    fn from(aggregation: proto::Aggregation) -> Self {
        match aggregation {
            proto::Aggregation::Unspecified => Self::default(),
            proto::Aggregation::None => Self::None,
            proto::Aggregation::Simple => Self::Simple,
            proto::Aggregation::First => Self::First,
            proto::Aggregation::Average => Self::Average,
            proto::Aggregation::Max => Self::Max,
        }
    }
}

impl From<EntitiesResponse> for proto::EntitiesResponse {
    fn from(EntitiesResponse { entities, prompt_tokens }: EntitiesResponse) -> Self {
        let text =
            |entities: Vec<Entity>| proto::TextEntities { entities: entities.into_iter().map(Into::into).collect() };
        Self { texts: entities.into_iter().map(text).collect(), prompt_tokens }
    }
}

impl From<proto::EntitiesResponse> for EntitiesResponse {
    fn from(proto::EntitiesResponse { texts, prompt_tokens }: proto::EntitiesResponse) -> Self {
        let entities = |text: proto::TextEntities| text.entities.into_iter().map(Into::into).collect();
        Self { entities: texts.into_iter().map(entities).collect(), prompt_tokens }
    }
}

impl From<Entity> for proto::Entity {
    fn from(Entity { label, score, text, start, end }: Entity) -> Self {
        Self { label, score, text, start, end }
    }
}

impl From<proto::Entity> for Entity {
    fn from(proto::Entity { label, score, text, start, end }: proto::Entity) -> Self {
        Self { label, score, text, start, end }
    }
}

impl From<TokenizeRequest> for proto::TokenizeRequest {
    fn from(TokenizeRequest { model, prompt, add_special_tokens }: TokenizeRequest) -> Self {
        let prompt = match prompt.into() {
            GeneratePrompt::Chat(chat) => TokenizePrompt::Chat(chat),
            GeneratePrompt::Text(text) => TokenizePrompt::Text(text),
            GeneratePrompt::Tokens(tokens) => TokenizePrompt::Tokens(tokens),
        };
        Self { model, prompt: Some(prompt), add_special_tokens }
    }
}

impl TryFrom<proto::TokenizeRequest> for TokenizeRequest {
    type Error = Malformed;

    fn try_from(request: proto::TokenizeRequest) -> Result<Self, Malformed> {
        let proto::TokenizeRequest { model, prompt, add_special_tokens } = request;
        let prompt = match prompt {
            Some(TokenizePrompt::Chat(chat)) => Prompt::Chat(chat.try_into()?),
            Some(TokenizePrompt::Text(text)) => Prompt::Text(text),
            Some(TokenizePrompt::Tokens(tokens)) => Prompt::Tokens(tokens.ids),
            None => return Err(Malformed::missing("prompt")),
        };
        Ok(Self { model, prompt, add_special_tokens })
    }
}

impl From<TokenizeResponse> for proto::TokenizeResponse {
    fn from(TokenizeResponse { tokens, pieces, max_tokens }: TokenizeResponse) -> Self {
        Self { tokens, pieces, max_tokens }
    }
}

impl From<proto::TokenizeResponse> for TokenizeResponse {
    fn from(proto::TokenizeResponse { tokens, pieces, max_tokens }: proto::TokenizeResponse) -> Self {
        Self { tokens, pieces, max_tokens }
    }
}

impl From<DetokenizeRequest> for proto::DetokenizeRequest {
    fn from(DetokenizeRequest { model, tokens }: DetokenizeRequest) -> Self {
        Self { model, tokens }
    }
}

impl From<proto::DetokenizeRequest> for DetokenizeRequest {
    fn from(proto::DetokenizeRequest { model, tokens }: proto::DetokenizeRequest) -> Self {
        Self { model, tokens }
    }
}

impl From<DetokenizeResponse> for proto::DetokenizeResponse {
    fn from(DetokenizeResponse { text }: DetokenizeResponse) -> Self {
        Self { text }
    }
}

impl From<proto::DetokenizeResponse> for DetokenizeResponse {
    fn from(proto::DetokenizeResponse { text }: proto::DetokenizeResponse) -> Self {
        Self { text }
    }
}
