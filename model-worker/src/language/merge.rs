//! The events of all answers to a request in one stream, closed with what they cost.

use std::collections::BTreeMap;

use futures_util::stream::{self, Stream, StreamExt as _};
use muster_shared::generate::{Event, Usage};
use tokio::sync::mpsc::Receiver;
use tokio_stream::wrappers::ReceiverStream;

use super::choice::Had;
use super::problem;
use crate::engine::EngineError;
use crate::engine::sequence::SequenceEvent;

/// An answer that the engine works on.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) choice: u32,
    pub(super) events: Receiver<SequenceEvent>,
    /// What the client has of the text to come.
    pub(super) had: Had,
}

/// Merges the events of all answers, and closes with what they cost; `usage` is what they have cost so far.
pub(super) fn answers(running: Vec<Running>, usage: Usage) -> impl Stream<Item = Event> + Send + use<> {
    let mut open = BTreeMap::new();
    let mut each = Vec::with_capacity(running.len());
    for Running { choice, events, had } in running {
        open.insert(choice, had);
        let closed = stream::once(std::future::ready(None));
        each.push(ReceiverStream::new(events).map(Some).chain(closed).map(move |event| (choice, event)));
    }
    let first = open.keys().next().copied();
    stream::unfold(Merge { events: stream::select_all(each), first, open, usage, ended: false }, Merge::next)
}

/// Answers in progress.
struct Merge<S> {
    /// Events with the choice they belong to; `None` when its channel is closed.
    events: stream::SelectAll<S>,
    /// The first of the choices, which reads the prompt for the others.
    first: Option<u32>,
    /// Choices that have not finished.
    open: BTreeMap<u32, Had>,
    usage: Usage,
    ended: bool,
}

impl<S: Stream<Item = (u32, Option<SequenceEvent>)> + Unpin> Merge<S> {
    /// The next event, or `None` after the last.
    async fn next(mut self) -> Option<(Event, Self)> {
        while !self.ended {
            if self.open.is_empty() {
                self.ended = true;
                return Some((Event::Done { usage: self.usage }, self));
            }
            let (choice, event) = self.events.next().await?;
            // A channel closes after the end of its answer, or when the engine has died before it.
            let Some(had) = self.open.get_mut(&choice) else { continue };
            match event {
                None => return Some(self.fail(EngineError::Stopped)),
                Some(SequenceEvent::Failed(error)) => return Some(self.fail(error)),
                Some(SequenceEvent::Delta { text, tokens, logprobs }) => {
                    let text = had.cut(text);
                    if text.is_empty() && tokens.is_empty() {
                        continue; // the client has it all
                    }
                    return Some((Event::Delta { choice, text, tokens, logprobs }, self));
                }
                Some(SequenceEvent::Finished { reason, tokens, cached }) => {
                    self.open.remove(&choice);
                    if self.first == Some(choice) {
                        // The others found the prompt that the first has read.
                        self.usage.cached_tokens = u32::try_from(cached).unwrap_or(u32::MAX);
                    }
                    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                    self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(tokens);
                    return Some((Event::Finished { choice, reason, tokens }, self));
                }
            }
        }
        None
    }

    fn fail(mut self, error: EngineError) -> (Event, Self) {
        self.ended = true;
        (Event::Failed { problem: problem(error) }, self)
    }
}
