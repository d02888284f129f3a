//! Answers of a FastChat worker: one connection for each choice, merged into our events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll, StreamExt as _, TryStreamExt as _};
use muster_shared::client::ClientError;
use muster_shared::fastchat::{Frame, FrameUsage, GenerateParams};
use muster_shared::generate::{Event, FinishReason, TokenLogprob, Usage};
use muster_shared::problem::{Kind, Problem};

use super::call::{Worker, problem_of};
use super::frames::{Decoder, FRAME_LIMIT, Transcript};

/// How long the end of a body may take after the last frame. A connection read to its end can be used again, and a
/// worker that ends by itself gives its slot back for sure; no client waits longer than this for either.
const END_OF_BODY: Duration = Duration::from_millis(100);

/// The steps of one choice, up to the last.
type Steps = BoxStream<'static, Result<Step, ClientError>>;

/// What one frame tells of a choice.
#[derive(Debug)]
pub(super) struct Step {
    choice: u32,
    text: String,
    logprobs: Vec<TokenLogprob>,
    usage: Option<FrameUsage>,
    finished: Option<FinishReason>,
}

/// Merges choices into one answer, after waiting for the first frame of any: an error there is the caller's to handle,
/// a later one is an event. `counted` is the prompt's length, should the frames not tell.
pub(super) async fn events(
    worker: &Worker,
    choices: impl Iterator<Item = Steps>,
    counted: u32,
) -> Result<BoxStream<'static, Result<Event, ClientError>>, ClientError> {
    let mut steps = stream::select_all(choices);
    let choices = steps.len();
    let first = steps.next().await.ok_or_else(|| worker.broke_off())??;
    let prompt_tokens = first.usage.map_or(counted, |usage| usage.prompt_tokens);
    let mut answer = Answer {
        worker: worker.clone(),
        steps,
        running: choices,
        completion_tokens: vec![0; choices],
        prompt_tokens,
        ended: false,
    };
    let mut head = vec![Event::Started { prompt_tokens, vocabulary: None }];
    head.append(&mut answer.take(first));
    let tail = stream::unfold(answer, |mut answer| async move {
        if answer.ended {
            return None;
        }
        let batch = answer.next_batch().await;
        Some((stream::iter(batch), answer))
    });
    Ok(stream::iter(head).map(Ok).chain(tail.flatten()).boxed())
}

struct Answer {
    worker: Worker,
    steps: SelectAll<Steps>,
    /// Choices that have not finished.
    running: usize,
    /// Of each choice.
    completion_tokens: Vec<u32>,
    prompt_tokens: u32,
    ended: bool,
}

impl Answer {
    async fn next_batch(&mut self) -> Vec<Result<Event, ClientError>> {
        match self.steps.next().await.unwrap_or_else(|| Err(self.worker.broke_off())) {
            Ok(step) => self.take(step).into_iter().map(Ok).collect(),
            Err(error) => {
                self.ended = true;
                self.steps.clear(); // one choice failed, so the others are in vain
                vec![match error {
                    ClientError::Refused { problem, .. } => Ok(Event::Failed { problem }),
                    error => Err(error),
                }]
            }
        }
    }

    fn take(&mut self, step: Step) -> Vec<Event> {
        let Step { choice, text, logprobs, usage, finished } = step;
        let mut events = Vec::new();
        if !text.is_empty() || !logprobs.is_empty() {
            events.push(Event::Delta { choice, text, tokens: Vec::new(), logprobs });
        }
        if let Some(usage) = usage {
            self.completion_tokens[choice as usize] = usage.completion_tokens;
        }
        if let Some(reason) = finished {
            events.push(Event::Finished { choice, reason, tokens: 0 });
            self.running -= 1;
        }
        if self.running == 0 {
            self.ended = true;
            let completion_tokens =
                self.completion_tokens.iter().fold(0, |sum: u32, &tokens| sum.saturating_add(tokens));
            let usage = Usage { prompt_tokens: self.prompt_tokens, completion_tokens, cached_tokens: 0 };
            events.push(Event::Done { usage });
        }
        events
    }
}

/// Asks for one choice when first polled. A worker sends its headers only when it has a slot, so choices must not
/// wait for each other's headers: a worker with fewer slots than choices would never send them all.
pub(super) fn choice(worker: Worker, params: Arc<GenerateParams>, choice: u32) -> Steps {
    let opened = async move {
        let response = worker.post("/worker_generate_stream", &*params).await?;
        Ok(Reader {
            worker,
            choice,
            response,
            decoder: Decoder::new(FRAME_LIMIT),
            ready: VecDeque::new(),
            transcript: Transcript::default(),
            finished: false,
        })
    };
    stream::once(opened).map_ok(Reader::into_steps).try_flatten().boxed()
}

/// Reads one choice.
struct Reader {
    worker: Worker,
    choice: u32,
    response: reqwest::Response,
    decoder: Decoder,
    /// Frames that arrived together with an earlier one.
    ready: VecDeque<Vec<u8>>,
    transcript: Transcript,
    finished: bool,
}

impl Reader {
    fn into_steps(self) -> Steps {
        stream::try_unfold(self, |mut reader| async move {
            if reader.finished {
                return Ok(None);
            }
            let frame = reader.next_frame().await?;
            let step = reader.step(frame)?;
            if step.finished.is_some() {
                reader.finished = true;
                reader.read_to_end().await;
            }
            Ok(Some((step, reader)))
        })
        .boxed()
    }

    async fn next_frame(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return serde_json::from_slice(&frame).map_err(|error| self.worker.junk(error.to_string()));
            }
            let chunk = self.response.chunk().await.map_err(|source| self.worker.broken(source))?;
            let chunk = chunk.ok_or_else(|| self.worker.broke_off())?;
            let frames = self.decoder.push(&chunk).map_err(|error| self.worker.junk(error.to_string()))?;
            self.ready.extend(frames);
        }
    }

    fn step(&mut self, frame: Frame) -> Result<Step, ClientError> {
        if frame.error_code != 0 {
            return Err(self.worker.refused(problem_of(frame.error_code, frame.text)));
        }
        let finished = match frame.finish_reason.as_deref() {
            None => None,
            Some("stop") => Some(FinishReason::Stop),
            Some("length") => Some(FinishReason::Length),
            Some(other) => {
                let message = format!("the worker ended the answer with `{other}`");
                return Err(self.worker.refused(Problem::new(Kind::Upstream, message)));
            }
        };
        Ok(Step {
            choice: self.choice,
            text: self.transcript.new_text(&frame.text, finished.is_some()),
            logprobs: frame.logprobs.map(|whole| self.transcript.new_logprobs(&whole)).unwrap_or_default(),
            usage: frame.usage,
            finished,
        })
    }

    async fn read_to_end(&mut self) {
        let rest = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        let _ = tokio::time::timeout(END_OF_BODY, rest).await; // late or broken: the answer is whole all the same
    }
}
