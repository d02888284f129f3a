//! `POST /v1/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use hyper::Response;
use muster_shared::generate::{Event, GenerateRequest, Usage};
use muster_shared::problem::{Kind, Problem};

use crate::body::parse;
use crate::chat::{affinity, head, usage};
use crate::observe::Route;
use crate::openai::ReplyHead;
use crate::openai::completion::{CompletionChunks, CompletionReply, CompletionRequest};
use crate::openai::peek::Peek;
use crate::outgoing::{Outgoing, event_stream, json};
use crate::state::{Caller, State};
use crate::upstream::answer::Answer;
use crate::upstream::passthrough::Raw;
use crate::upstream::{Begun, Question, Whole};

/// Prompts of one request that run at once: the others wait here, not in the room that other clients want.
const AT_ONCE: usize = 8;

/// Continues texts.
///
/// # Errors
/// In words for the client.
pub(crate) async fn create(
    state: &State,
    caller: &Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let mut question = Texts { id: Arc::clone(&caller.id.0), body: body.clone(), raw: None, read: None };
    let peek = Peek::parse(&body);
    if let Some(peek) = &peek {
        state.upstream.check(&peek.model, Route::Completions)?;
    }
    let peek = peek.filter(|peek| state.upstream.may_pass(&peek.model));
    let (model, priority, whole) = match &peek {
        Some(peek) => {
            question.raw = Some(Raw::new(Route::Completions.passed_to(), headers, body.clone(), peek.stream()));
            (peek.model.to_string(), peek.priority(), !peek.stream())
        }
        None => {
            question.read().await?;
            let Some(read) = &question.read else { return Err(unread()) };
            (read.request.model.clone(), read.request.priority, !read.request.stream)
        }
    };
    let mut job = state.upstream.job(caller, &model)?;
    (job.priority, job.whole) = (priority, whole);
    job.affinity = question.read.as_ref().and_then(|read| affinity(&read.first));
    let mut first = match state.upstream.generate(&mut question, job).await? {
        Begun::Passed(response) => return Ok(response),
        Begun::Ours(answer) => answer,
    };
    let Some(Parts { request, others, .. }) = question.read else { return Err(unread()) };
    let model = Arc::clone(first.model());
    let head = head("cmpl", &model);
    if !others.is_empty() {
        first.stay(); // one model answers all prompts of a request
    }
    let prompts = Prompts { state: state.clone(), caller: caller.clone(), model, priority, whole };
    if request.stream {
        let chunks = CompletionChunks::new(head, &request);
        return Ok(event_stream(chunked(prompts.events(first, others), chunks), &caller.account));
    }
    let answers = Box::pin(prompts.whole(first, others)).await?;
    let model = answers.first().map_or(head.model, |(_, answer)| answer.model.to_string());
    let (mut reply, mut total) = (CompletionReply::new(ReplyHead { model, ..head }, &request), Usage::default());
    for (index, Whole { answer: events, .. }) in answers {
        add(&mut total, &usage(&events));
        events.iter().for_each(|event| reply.push(index, event));
    }
    Ok(json(StatusCode::OK, &reply.finish(total)))
}

fn unread() -> Problem {
    Problem::new(Kind::Bug, "an answer came to a request that was not read")
}

/// Texts to be continued, as a client sent them; read when a worker wants the first of them in our words.
struct Texts {
    id: Arc<str>,
    body: Bytes,
    raw: Option<Raw>,
    read: Option<Parts>,
}

/// A request for each prompt of one request.
struct Parts {
    request: CompletionRequest,
    first: Arc<GenerateRequest>,
    others: Vec<GenerateRequest>,
}

impl Question for Texts {
    type Ours = GenerateRequest;

    fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    async fn read(&mut self) -> Result<Arc<GenerateRequest>, Problem> {
        if let Some(read) = &self.read {
            return Ok(Arc::clone(&read.first));
        }
        let request = parse(self.body.clone(), CompletionRequest::parse).await?;
        let mut others = request.requests(&self.id);
        let first = Arc::new(others.remove(0)); // there is at least one
        self.read = Some(Parts { request, first: Arc::clone(&first), others });
        Ok(first)
    }
}

/// A whole answer, with the number of its prompt.
type Numbered = (usize, Whole<Vec<Event>>);

/// What the prompts of one request have in common.
#[derive(Clone)]
struct Prompts {
    state: State,
    caller: Caller,
    /// The model that answers the first.
    model: Arc<str>,
    priority: i8,
    /// Whether no answer is sent before all are here.
    whole: bool,
}

impl Prompts {
    /// Finds a worker for a prompt beyond the first.
    ///
    /// The first is refused when the fleet is full, as any request is. The others then wait for room, which may be
    /// their own siblings': half an answer is worth nothing.
    async fn start(&self, request: GenerateRequest) -> Result<Answer, Problem> {
        let mut job = self.state.upstream.job(&self.caller, &request.model)?;
        job.stay(Arc::clone(&self.model));
        job.priority = self.priority;
        job.patient = true;
        job.affinity = affinity(&request);
        job.whole = self.whole;
        self.state.upstream.generate_read(request, job).await
    }

    /// Every answer as a whole, in any order, each with the number of its prompt.
    async fn whole(&self, first: Answer, others: Vec<GenerateRequest>) -> Result<Vec<Numbered>, Problem> {
        let mut answers: Vec<BoxFuture<'static, Result<Numbered, Problem>>> =
            vec![Box::pin(async { Ok((0, first.whole().await?)) })];
        for (index, request) in (1..).zip(others) {
            let prompts = self.clone();
            answers.push(Box::pin(async move { Ok((index, prompts.start(request).await?.whole().await?)) }));
        }
        stream::iter(answers).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// The events of all answers as they come.
    fn events(self, first: Answer, others: Vec<GenerateRequest>) -> impl Stream<Item = Piece> + Send + Unpin + use<> {
        let others = others.into_iter().zip(1..).map(move |(request, index)| {
            let prompts = self.clone();
            stream::once(async move { prompts.start(request).await })
                .flat_map(move |answer| match answer {
                    Ok(answer) => events_of(index, answer),
                    Err(problem) => {
                        let event = Event::Failed { problem };
                        stream::iter([Piece { prompt: index, event, model: None }]).boxed()
                    }
                })
                .boxed()
        });
        stream::iter(std::iter::once(events_of(0, first)).chain(others)).flatten_unordered(AT_ONCE)
    }
}

/// An event of the answer to one prompt.
struct Piece {
    /// The prompt's number.
    prompt: usize,
    event: Event,
    /// The model that answers, where one begins to.
    model: Option<Arc<str>>,
}

fn events_of(prompt: usize, answer: Answer) -> BoxStream<'static, Piece> {
    stream::unfold(answer, move |mut answer| async move {
        let event = answer.next().await?.unwrap_or_else(|problem| Event::Failed { problem });
        let model = matches!(event, Event::Started { .. }).then(|| Arc::clone(answer.model()));
        Some((Piece { prompt, event, model }, answer))
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
    events: impl Stream<Item = Piece> + Send + Unpin,
    chunks: CompletionChunks,
) -> impl Stream<Item = Bytes> + Send {
    let merged = Merged { events, chunks, ready: VecDeque::new(), usage: Usage::default(), ended: false };
    stream::unfold(merged, Merged::next)
}

impl<S: Stream<Item = Piece> + Unpin> Merged<S> {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some((chunk, self));
            }
            if self.ended {
                return None;
            }
            match self.events.next().await {
                Some(Piece { event: Event::Done { usage }, .. }) => add(&mut self.usage, &usage),
                Some(Piece { prompt, event, model }) => {
                    model.iter().for_each(|model| self.chunks.answered_by(model));
                    // One prompt that fails ends them all: the stream has no other way to say so.
                    self.ended = matches!(event, Event::Failed { .. });
                    self.ready.extend(self.chunks.event(prompt, &event));
                }
                None => {
                    self.ended = true;
                    self.ready.extend(self.chunks.finish(self.usage));
                }
            }
        }
    }
}
