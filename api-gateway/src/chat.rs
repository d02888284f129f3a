//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State as Shared};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, stream};
use muster_shared::generate::{Event, GenerateRequest, Prompt, Usage};
use uuid::Uuid;

use crate::body::{Raw, event_stream, parse};
use crate::openai::ReplyHead;
use crate::openai::chat::{ChatChunks, ChatReply, ChatRequest};
use crate::openai::error::Refusal;
use crate::state::{RequestId, State, now_seconds};
use crate::upstream::answer::Answer;

/// Characters of a prompt's start that say which worker may have it in a cache.
const AFFINITY: usize = 256;

/// Answers a conversation.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Extension(RequestId(id)): Extension<RequestId>,
    Raw(body): Raw,
) -> Result<Response, Refusal> {
    let mut request = parse(body, ChatRequest::parse).await?;
    request.generate.request_id = id.to_string();
    let mut job = state.upstream.job(&id, &request.model);
    job.priority = request.priority;
    job.affinity = affinity(&request.generate);
    job.whole = !request.stream;
    let head = head("chatcmpl", &request.model);
    if request.stream {
        let chunks = ChatChunks::new(head, &request);
        let answer = state.upstream.generate(request.generate, job).await?;
        return Ok(event_stream(chunked(answer, chunks)));
    }
    let mut reply = ChatReply::new(head, request.generate.choices);
    let events = state.upstream.generate(request.generate, job).await?.whole().await?;
    for event in &events {
        reply.push(event);
    }
    Ok(Json(reply.finish(usage(&events))).into_response())
}

/// The events of an answer as OpenAI's chunks.
fn chunked(answer: Answer, chunks: ChatChunks) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((answer, chunks, VecDeque::new()), |(mut answer, mut chunks, mut ready)| async move {
        loop {
            if let Some(chunk) = ready.pop_front() {
                return Some((chunk, (answer, chunks, ready)));
            }
            let event = answer.next().await?;
            ready.extend(chunks.event(&event.unwrap_or_else(|problem| Event::Failed { problem })));
        }
    })
}

/// What every chunk of a reply has in common.
pub(crate) fn head(prefix: &str, model: &str) -> ReplyHead {
    ReplyHead { id: format!("{prefix}-{}", Uuid::now_v7().simple()), created: now_seconds(), model: model.to_owned() }
}

/// What an answer has cost.
pub(crate) fn usage(events: &[Event]) -> Usage {
    let done = events.iter().rev().find_map(|event| match event {
        Event::Done { usage } => Some(*usage),
        _ => None,
    });
    done.unwrap_or_default()
}

/// A hash of the start of a prompt, and of the salt without which a cache does not give it.
pub(crate) fn affinity(request: &GenerateRequest) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    if let Some(salt) = &request.cache_salt {
        salt.hash(&mut hasher);
    }
    match &request.prompt {
        Prompt::Chat(chat) => {
            let texts = chat.messages.iter().filter_map(|message| message.content.as_deref());
            texts.flat_map(str::chars).take(AFFINITY).for_each(|character| character.hash(&mut hasher));
        }
        Prompt::Text(text) => text.chars().take(AFFINITY).for_each(|character| character.hash(&mut hasher)),
        Prompt::Tokens(tokens) => tokens.iter().take(AFFINITY).for_each(|token| token.hash(&mut hasher)),
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_belong_together_by_the_start_of_their_prompt_and_their_salt() {
        let request = |text: String, salt: Option<&str>| GenerateRequest {
            cache_salt: salt.map(str::to_owned),
            ..GenerateRequest::new("m", Prompt::Text(text))
        };
        let long = |end: &str| "x".repeat(AFFINITY) + end;
        let plain = affinity(&request(long("a"), None));
        assert_eq!(plain, affinity(&request(long("b"), None)));
        assert_ne!(plain, affinity(&request("y".to_owned(), None)));
        let salted = affinity(&request(long("a"), Some("one")));
        assert_eq!(salted, affinity(&request(long("b"), Some("one"))));
        assert!(salted != plain && salted != affinity(&request(long("a"), Some("two"))));
    }
}
