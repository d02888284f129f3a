//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::Response;
use muster_shared::generate::{Event, GenerateRequest, Prompt, Usage};
use muster_shared::problem::{Kind, Problem};
use uuid::Uuid;

use crate::body::parse;
use crate::observe::Route;
use crate::openai::ReplyHead;
use crate::openai::chat::{ChatChunks, ChatReply, ChatRequest};
use crate::openai::peek::Peek;
use crate::outgoing::{Outgoing, event_stream, json};
use crate::state::{Caller, State, now_seconds};
use crate::upstream::answer::Answer;
use crate::upstream::passthrough::Raw;
use crate::upstream::{Begun, Question, Whole};

/// Characters of a prompt's start that say which worker may have it in a cache.
const AFFINITY: usize = 256;

/// Answers a conversation.
///
/// # Errors
/// In words for the client.
pub(crate) async fn create(
    state: &State,
    caller: &Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let mut question = Conversation { id: Arc::clone(&caller.id.0), body: body.clone(), raw: None, read: None };
    let peek = Peek::parse(&body);
    if let Some(peek) = &peek {
        state.upstream.check(&peek.model, Route::Chat)?;
    }
    let peek = peek.filter(|peek| state.upstream.may_pass(&peek.model));
    let mut job = match &peek {
        Some(peek) => {
            question.raw = Some(Raw::new(Route::Chat.passed_to(), headers, body.clone(), peek.stream()));
            let mut job = state.upstream.job(caller, &peek.model)?;
            job.priority = peek.priority();
            job.whole = !peek.stream();
            job
        }
        None => {
            let generate = question.read().await?;
            let mut job = state.upstream.job(caller, &generate.model)?;
            if let Some((request, _)) = &question.read {
                (job.priority, job.whole) = (request.priority, !request.stream);
            }
            job
        }
    };
    job.affinity = question.read.as_ref().and_then(|(_, generate)| affinity(generate));
    let answer = match state.upstream.generate(&mut question, job).await? {
        Begun::Passed(response) => return Ok(response),
        Begun::Ours(answer) => answer,
    };
    let Some((request, _)) = question.read else {
        return Err(Problem::new(Kind::Bug, "an answer came to a request that was not read"));
    };
    let head = head("chatcmpl", answer.model());
    if request.stream {
        return Ok(event_stream(chunked(answer, ChatChunks::new(head, &request)), &caller.account));
    }
    let Whole { model, answer: events } = Box::pin(answer.whole()).await?;
    let mut reply = ChatReply::new(ReplyHead { model: model.to_string(), ..head }, request.generate.choices);
    for event in &events {
        reply.push(event);
    }
    Ok(json(StatusCode::OK, &reply.finish(usage(&events))))
}

/// A conversation as a client sent it, read when a worker wants it in our words.
struct Conversation {
    id: Arc<str>,
    body: Bytes,
    raw: Option<Raw>,
    read: Option<(ChatRequest, Arc<GenerateRequest>)>,
}

impl Question for Conversation {
    type Ours = GenerateRequest;

    fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    async fn read(&mut self) -> Result<Arc<GenerateRequest>, Problem> {
        if let Some((_, generate)) = &self.read {
            return Ok(Arc::clone(generate));
        }
        let request = parse(self.body.clone(), ChatRequest::parse).await?;
        let mut generate = request.generate.clone();
        generate.request_id = self.id.to_string();
        let generate = Arc::new(generate);
        self.read = Some((request, Arc::clone(&generate)));
        Ok(generate)
    }
}

/// The events of an answer as OpenAI's chunks.
fn chunked(answer: Answer, chunks: ChatChunks) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((answer, chunks, VecDeque::new()), |(mut answer, mut chunks, mut ready)| async move {
        loop {
            if let Some(chunk) = ready.pop_front() {
                return Some((chunk, (answer, chunks, ready)));
            }
            let event = answer.next().await?.unwrap_or_else(|problem| Event::Failed { problem });
            if matches!(event, Event::Started { .. }) {
                chunks.answered_by(answer.model());
            }
            ready.extend(chunks.event(&event));
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
