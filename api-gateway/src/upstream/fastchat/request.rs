//! Our request in FastChat's words, and what these cannot say.

use muster_shared::embed::{EmbedInput, EmbedRequest};
use muster_shared::fastchat::{Conversation, GenerateParams, StringOrList};
use muster_shared::generate::{GenerateRequest, Prompt};
use muster_shared::problem::{Kind, Problem};

/// Refuses, by name, what a FastChat worker would not do.
///
/// # Errors
/// [`Kind::Invalid`] with the field.
pub(super) fn check(request: &GenerateRequest) -> Result<(), Problem> {
    let sampling = &request.sampling;
    let unknown = [
        ("min_p", sampling.min_p != 0.0),
        ("typical_p", sampling.typical_p != 1.0),
        ("min_tokens", request.min_tokens != 0),
        ("allowed_token_ids", request.allowed_token_ids.is_some()),
        ("cache_salt", request.cache_salt.is_some()),
        ("logit_bias", !sampling.logit_bias.is_empty()),
        ("seed", sampling.seed.is_some()),
        ("ignore_eos", request.ignore_eos),
    ];
    if let Some((param, _)) = unknown.into_iter().find(|(_, used)| *used) {
        return Err(Problem::invalid(
            param,
            format!("this model is served by a FastChat worker, which does not know {param}; leave it out"),
        ));
    }
    // Clients of FastChat ask for a completion's log-probabilities with 1, and get the chosen token's.
    let (param, most) = if is_chat(request) { ("top_logprobs", 0) } else { ("logprobs", 1) };
    if request.logprobs.is_some_and(|rivals| rivals > most) {
        return Err(Problem::invalid(
            param,
            format!(
                "this model is served by a FastChat worker, which tells the log-probability of the chosen token only; \
                 set {param} to {most}"
            ),
        ));
    }
    match (&request.prompt, request.max_tokens) {
        (Prompt::Tokens(_), _) => Err(no_tokens("prompt")),
        (_, Some(0)) => Err(Problem::invalid("max_tokens", "max_tokens is 0; it must be at least 1")),
        _ => Ok(()),
    }
}

/// Token ids came where FastChat takes text only.
pub(super) fn no_tokens(param: &str) -> Problem {
    let message = "this model is served by a FastChat worker, and FastChat workers take no token ids; send text";
    Problem::invalid(param, message)
}

/// The texts of an embedding request.
///
/// # Errors
/// [`Kind::Invalid`] for what a FastChat worker would not do.
pub(super) fn embedding_texts(request: &EmbedRequest) -> Result<Vec<String>, Problem> {
    if request.dimensions.is_some() {
        return Err(Problem::invalid(
            "dimensions",
            "this model is served by a FastChat worker, which does not shorten vectors; leave dimensions out",
        ));
    }
    if request.prompt_name.is_some() {
        return Err(Problem::invalid(
            "prompt_name",
            "this model is served by a FastChat worker, which puts nothing before texts; leave prompt_name out",
        ));
    }
    let text = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => Ok(text.clone()),
        EmbedInput::Tokens(_) => Err(no_tokens("input")),
    };
    request.inputs.iter().map(text).collect()
}

/// Longest answer to ask for, of a prompt of `prompt` tokens and a context of `context`.
///
/// FastChat's worker silently cuts a prompt to `context - max_new_tokens - 1` tokens: one token of the context stays
/// unused, or the prompt's first token would be lost. An answer is shortened by that one token.
///
/// # Errors
/// [`Kind::PromptTooLong`] with the numbers; [`Kind::Invalid`] for an empty prompt, over which FastChat's worker
/// stumbles and leaks a slot.
pub(super) fn room(request: &GenerateRequest, prompt: u32, context: u32) -> Result<u32, Problem> {
    let param = if is_chat(request) { "messages" } else { "prompt" };
    if prompt == 0 {
        return Err(Problem::invalid(param, "the prompt is empty; it must hold at least one token"));
    }
    let left = context.saturating_sub(prompt);
    let room = left.saturating_sub(1);
    if room == 0 {
        let message = format!(
            "the prompt has {prompt} tokens, and the context of this model is {context} tokens, answer included; \
             shorten the prompt"
        );
        return Err(Problem::new(Kind::PromptTooLong, message).with_param(param));
    }
    match request.max_tokens {
        Some(wanted) if wanted > left => {
            let message = format!(
                "the prompt has {prompt} tokens and {wanted} more are asked for, and the context of this model is \
                 {context} tokens; lower max_tokens to {room}, or shorten the prompt"
            );
            Err(Problem::new(Kind::PromptTooLong, message).with_param("max_tokens"))
        }
        wanted => Ok(wanted.map_or(room, |wanted| wanted.min(room))),
    }
}

/// The request in FastChat's words. Its stops are the client's and the template's, for plain prompts too: that is how
/// FastChat's models learn where to end.
pub(super) fn params(
    request: &GenerateRequest,
    template: &Conversation,
    prompt: String,
    max_new_tokens: u32,
) -> GenerateParams {
    let sampling = &request.sampling;
    let stop = union(&request.stop, template.stop_str.clone().map(StringOrList::into_vec).unwrap_or_default());
    let stop_token_ids = union(&request.stop_token_ids, template.stop_token_ids.clone().unwrap_or_default());
    GenerateParams {
        model: request.model.clone(),
        prompt,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) },
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        max_new_tokens,
        echo: request.echo,
        stop: Some(StringOrList::Many(stop)),
        stop_token_ids: Some(stop_token_ids),
        logprobs: request.logprobs.map(|_| 1), // any number means the same, but not every worker takes 0 for a number
    }
}

fn union<T: Clone + PartialEq>(first: &[T], second: Vec<T>) -> Vec<T> {
    let mut all = first.to_vec();
    all.extend(second.into_iter().filter(|item| !first.contains(item)));
    all
}

fn is_chat(request: &GenerateRequest) -> bool {
    matches!(request.prompt, Prompt::Chat(_))
}
