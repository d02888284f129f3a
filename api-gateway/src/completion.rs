//! `POST /v1/completions`.

use std::collections::VecDeque;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State as Shared};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use muster_shared::generate::{Event, Usage};
use muster_shared::problem::Problem;

use crate::body::{Raw, event_stream};
use crate::chat::{affinity, head, usage};
use crate::openai::completion::{CompletionChunks, CompletionReply, CompletionRequest};
use crate::openai::error;
use crate::state::{RequestId, State};
use crate::upstream::answer::Answer;

/// Continues texts.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Extension(RequestId(id)): Extension<RequestId>,
    Raw(body): Raw,
) -> Response {
    match answer(&state, &id, &body).await {
        Ok(response) => response,
        Err(problem) => error::response(&problem),
    }
}

async fn answer(state: &State, id: &str, body: &[u8]) -> Result<Response, Problem> {
    let request = CompletionRequest::parse(body)?;
    let head = head("cmpl", &request.model);
    let answers = start(state, id, &request).await?;
    if request.stream {
        let chunks = CompletionChunks::new(head, &request);
        return Ok(event_stream(chunked(answers, chunks)));
    }
    let whole = answers.into_iter().enumerate().map(async |(index, answer)| Ok((index, answer.whole().await?)));
    let whole: Vec<(usize, Vec<Event>)> = whole.collect::<FuturesUnordered<_>>().try_collect().await?;
    let (mut reply, mut total) = (CompletionReply::new(head, &request), Usage::default());
    for (index, events) in &whole {
        add(&mut total, &usage(events));
        for event in events {
            reply.push(*index, event);
        }
    }
    Ok(Json(reply.finish(total)).into_response())
}

/// One answer for each prompt, in their order, each accepted by a worker.
async fn start(state: &State, id: &str, request: &CompletionRequest) -> Result<Vec<Answer>, Problem> {
    let answers = request.requests().into_iter().map(|mut generate| {
        generate.request_id = id.to_owned();
        let mut job = state.upstream.job(id, &request.model);
        job.priority = request.priority;
        job.affinity = affinity(&generate.prompt);
        state.upstream.generate(generate, job)
    });
    futures_util::future::try_join_all(answers).await
}

fn add(total: &mut Usage, usage: &Usage) {
    total.prompt_tokens += usage.prompt_tokens;
    total.completion_tokens += usage.completion_tokens;
    total.cached_tokens += usage.cached_tokens;
}

/// Answers to several prompts, as one stream.
struct Merged<S> {
    events: S,
    chunks: CompletionChunks,
    ready: VecDeque<Bytes>,
    usage: Usage,
    ended: bool,
}

/// The events of all answers as OpenAI's chunks.
fn chunked(answers: Vec<Answer>, chunks: CompletionChunks) -> impl Stream<Item = Bytes> + Send {
    let each = answers.into_iter().enumerate().map(|(index, answer)| {
        stream::unfold(answer, move |mut answer| async move {
            let event = answer.next().await?.unwrap_or_else(|problem| Event::Failed { problem });
            Some(((index, event), answer))
        })
        .boxed()
    });
    let merged = Merged {
        events: stream::select_all(each),
        chunks,
        ready: VecDeque::new(),
        usage: Usage::default(),
        ended: false,
    };
    stream::unfold(merged, Merged::next)
}

impl<S: Stream<Item = (usize, Event)> + Unpin> Merged<S> {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some((chunk, self));
            }
            if self.ended {
                return None;
            }
            match self.events.next().await {
                Some((_, Event::Done { usage })) => add(&mut self.usage, &usage),
                Some((index, event)) => {
                    // One prompt that fails ends them all: the stream has no other way to say so.
                    self.ended = matches!(event, Event::Failed { .. });
                    self.ready.extend(self.chunks.event(index, &event));
                }
                None => {
                    self.ended = true;
                    self.ready.extend(self.chunks.finish(self.usage));
                }
            }
        }
    }
}
