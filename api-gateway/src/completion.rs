//! `POST /v1/completions`.

use std::collections::VecDeque;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State as Shared};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use muster_shared::generate::{Event, GenerateRequest, Usage};
use muster_shared::problem::Problem;

use crate::body::{Raw, event_stream, parse};
use crate::chat::{affinity, head, usage};
use crate::openai::completion::{CompletionChunks, CompletionReply, CompletionRequest};
use crate::openai::error::Refusal;
use crate::state::{RequestId, State};
use crate::upstream::answer::Answer;

/// Prompts of one request that run at once: the others wait here, not in the room that other clients want.
const AT_ONCE: usize = 8;

/// Continues texts.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Extension(RequestId(id)): Extension<RequestId>,
    Raw(body): Raw,
) -> Result<Response, Refusal> {
    let request = parse(body, CompletionRequest::parse).await?;
    let head = head("cmpl", &request.model);
    let prompts = Prompts { state, id: id.to_string(), priority: request.priority, whole: !request.stream };
    if request.stream {
        let chunks = CompletionChunks::new(head, &request);
        let events = prompts.events(request.into_requests()).await?;
        return Ok(event_stream(chunked(events, chunks)));
    }
    let (mut reply, mut total) = (CompletionReply::new(head, &request), Usage::default());
    for (index, events) in prompts.whole(request.into_requests()).await? {
        add(&mut total, &usage(&events));
        events.iter().for_each(|event| reply.push(index, event));
    }
    Ok(Json(reply.finish(total)).into_response())
}

/// A whole answer on its way, with the number of its prompt.
type Whole = BoxFuture<'static, Result<(usize, Vec<Event>), Problem>>;

/// What the prompts of one request have in common.
#[derive(Clone)]
struct Prompts {
    state: State,
    id: String,
    priority: i8,
    /// Whether no answer is sent before all are here.
    whole: bool,
}

impl Prompts {
    /// Finds a worker for one prompt.
    ///
    /// The first is refused when the fleet is full, as any request is. The others then wait for room, which may be
    /// their own siblings': half an answer is worth nothing.
    async fn start(&self, index: usize, mut request: GenerateRequest) -> Result<Answer, Problem> {
        request.request_id.clone_from(&self.id);
        let mut job = self.state.upstream.job(&self.id, &request.model);
        job.priority = self.priority;
        job.patient = index > 0;
        job.affinity = affinity(&request);
        job.whole = self.whole;
        self.state.upstream.generate(request, job).await
    }

    /// Every answer as a whole, in any order, each with the number of its prompt.
    async fn whole(&self, requests: Vec<GenerateRequest>) -> Result<Vec<(usize, Vec<Event>)>, Problem> {
        let mut requests = (0..).zip(requests);
        let Some((_, first)) = requests.next() else { return Ok(Vec::new()) };
        let first = self.start(0, first).await?;
        let mut answers: Vec<Whole> = vec![Box::pin(async { Ok((0, first.whole().await?)) })];
        for (index, request) in requests {
            let prompts = self.clone();
            answers.push(Box::pin(async move { Ok((index, prompts.start(index, request).await?.whole().await?)) }));
        }
        stream::iter(answers).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// The events of all answers as they come. Resolves when a worker has accepted the first prompt: until then
    /// a refusal can be a status.
    async fn events(
        self,
        requests: Vec<GenerateRequest>,
    ) -> Result<impl Stream<Item = (usize, Event)> + Send + Unpin + use<>, Problem> {
        let mut requests = requests.into_iter();
        let first = match requests.next() {
            Some(request) => Some(events_of(0, self.start(0, request).await?)),
            None => None,
        };
        let others = requests.zip(1..).map(move |(request, index)| {
            let prompts = self.clone();
            stream::once(async move { prompts.start(index, request).await })
                .flat_map(move |answer| match answer {
                    Ok(answer) => events_of(index, answer),
                    Err(problem) => stream::iter([(index, Event::Failed { problem })]).boxed(),
                })
                .boxed()
        });
        Ok(stream::iter(first.into_iter().chain(others)).flatten_unordered(AT_ONCE))
    }
}

fn events_of(index: usize, answer: Answer) -> BoxStream<'static, (usize, Event)> {
    stream::unfold(answer, move |mut answer| async move {
        let event = answer.next().await?.unwrap_or_else(|problem| Event::Failed { problem });
        Some(((index, event), answer))
    })
    .boxed()
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
fn chunked(
    events: impl Stream<Item = (usize, Event)> + Send + Unpin,
    chunks: CompletionChunks,
) -> impl Stream<Item = Bytes> + Send {
    let merged = Merged { events, chunks, ready: VecDeque::new(), usage: Usage::default(), ended: false };
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
