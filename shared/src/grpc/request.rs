//! What a language model is asked.

use serde_json::{Map, Value};

use super::proto::generate_request::Prompt as ProtoPrompt;
use super::{Malformed, proto};
use crate::generate::{Chat, GenerateRequest, Message, Prompt, Resume, ResumedChoice, Sampling};

impl From<GenerateRequest> for proto::GenerateRequest {
    fn from(request: GenerateRequest) -> Self {
        Self {
            request_id: request.request_id,
            model: request.model,
            prompt: Some(request.prompt.into()),
            sampling: Some(request.sampling.into()),
            choices: Some(request.choices),
            max_tokens: request.max_tokens,
            stop: request.stop,
            stop_token_ids: request.stop_token_ids,
            ignore_eos: request.ignore_eos,
            min_tokens: request.min_tokens,
            allowed_token_ids: request.allowed_token_ids.map(|ids| proto::TokenIds { ids }),
            logprobs: request.logprobs,
            echo: request.echo,
            cache_salt: request.cache_salt,
            priority: request.priority,
            timeout_ms: request.timeout_ms,
            resume: request.resume.map(Into::into),
        }
    }
}

impl TryFrom<proto::GenerateRequest> for GenerateRequest {
    type Error = Malformed;

    fn try_from(request: proto::GenerateRequest) -> Result<Self, Malformed> {
        let prompt = request.prompt.ok_or_else(|| Malformed::missing("prompt"))?;
        let usual = Self::new(request.model, prompt.try_into()?);
        Ok(Self {
            request_id: request.request_id,
            sampling: request.sampling.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            choices: request.choices.unwrap_or(usual.choices),
            max_tokens: request.max_tokens,
            stop: request.stop,
            stop_token_ids: request.stop_token_ids,
            ignore_eos: request.ignore_eos,
            min_tokens: request.min_tokens,
            allowed_token_ids: request.allowed_token_ids.map(|allowed| allowed.ids),
            logprobs: request.logprobs,
            echo: request.echo,
            cache_salt: request.cache_salt,
            priority: request.priority,
            timeout_ms: request.timeout_ms,
            resume: request.resume.map(Into::into),
            ..usual
        })
    }
}

impl From<Prompt> for ProtoPrompt {
    fn from(prompt: Prompt) -> Self {
        match prompt {
            Prompt::Chat(chat) => Self::Chat(chat.into()),
            Prompt::Text(text) => Self::Text(text),
            Prompt::Tokens(ids) => Self::Tokens(proto::TokenIds { ids }),
        }
    }
}

impl TryFrom<ProtoPrompt> for Prompt {
    type Error = Malformed;

    fn try_from(prompt: ProtoPrompt) -> Result<Self, Malformed> {
        Ok(match prompt {
            ProtoPrompt::Chat(chat) => Self::Chat(chat.try_into()?),
            ProtoPrompt::Text(text) => Self::Text(text),
            ProtoPrompt::Tokens(tokens) => Self::Tokens(tokens.ids),
        })
    }
}

impl From<Chat> for proto::Chat {
    fn from(chat: Chat) -> Self {
        Self {
            messages: chat.messages.into_iter().map(Into::into).collect(),
            template_arguments_json: to_json(chat.template_arguments),
        }
    }
}

impl TryFrom<proto::Chat> for Chat {
    type Error = Malformed;

    fn try_from(chat: proto::Chat) -> Result<Self, Malformed> {
        Ok(Self {
            messages: chat.messages.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            template_arguments: from_json("template_arguments_json", &chat.template_arguments_json)?,
        })
    }
}

impl From<Message> for proto::Message {
    fn from(message: Message) -> Self {
        Self { role: message.role, content: message.content, more_json: to_json(message.more) }
    }
}

impl TryFrom<proto::Message> for Message {
    type Error = Malformed;

    fn try_from(message: proto::Message) -> Result<Self, Malformed> {
        let more = from_json("more_json", &message.more_json)?;
        Ok(Self { role: message.role, content: message.content, more })
    }
}

/// The text of an object; empty for an empty one.
fn to_json(fields: Map<String, Value>) -> String {
    if fields.is_empty() { String::new() } else { Value::Object(fields).to_string() }
}

fn from_json(field: &'static str, text: &str) -> Result<Map<String, Value>, Malformed> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text)
        .map_err(|error| Malformed::new(field, format!("is not the text of a JSON object: {error}")))
}

impl From<Sampling> for proto::Sampling {
    fn from(sampling: Sampling) -> Self {
        Self {
            temperature: Some(sampling.temperature),
            top_p: Some(sampling.top_p),
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            typical_p: Some(sampling.typical_p),
            repetition_penalty: Some(sampling.repetition_penalty),
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.into_iter().map(|(id, bias)| proto::LogitBias { id, bias }).collect(),
            seed: sampling.seed,
        }
    }
}

impl TryFrom<proto::Sampling> for Sampling {
    type Error = Malformed;

    fn try_from(sampling: proto::Sampling) -> Result<Self, Malformed> {
        let usual = Self::default();
        let sampling = Self {
            temperature: sampling.temperature.unwrap_or(usual.temperature),
            top_p: sampling.top_p.unwrap_or(usual.top_p),
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p.unwrap_or(usual.typical_p),
            repetition_penalty: sampling.repetition_penalty.unwrap_or(usual.repetition_penalty),
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.into_iter().map(|entry| (entry.id, entry.bias)).collect(),
            seed: sampling.seed,
        };
        check_numbers(&sampling)?;
        Ok(sampling)
    }
}

/// Refuses what JSON cannot say either, so that the sampler never meets it.
fn check_numbers(sampling: &Sampling) -> Result<(), Malformed> {
    let named = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("typical_p", sampling.typical_p),
        ("repetition_penalty", sampling.repetition_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ];
    let biases = sampling.logit_bias.iter().map(|(_, bias)| ("logit_bias", *bias));
    match named.into_iter().chain(biases).find(|(_, number)| !number.is_finite()) {
        Some((field, number)) => Err(Malformed::new(field, format!("is {number}; it must be a finite number"))),
        None => Ok(()),
    }
}

impl From<Resume> for proto::Resume {
    fn from(resume: Resume) -> Self {
        let choice =
            |ResumedChoice { tokens, text_bytes, finished }| proto::ResumedChoice { tokens, text_bytes, finished };
        Self { vocabulary: resume.vocabulary, choices: resume.choices.into_iter().map(choice).collect() }
    }
}

impl From<proto::Resume> for Resume {
    fn from(resume: proto::Resume) -> Self {
        let choice =
            |proto::ResumedChoice { tokens, text_bytes, finished }| ResumedChoice { tokens, text_bytes, finished };
        Self { vocabulary: resume.vocabulary, choices: resume.choices.into_iter().map(choice).collect() }
    }
}
