//! From token events to FastChat's frames of cumulative text.

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use muster_shared::fastchat::{Frame, FrameLogprobs, FrameUsage};
use muster_shared::generate::{Event, FinishReason, TokenLogprob};
use muster_shared::problem::{Kind, Problem};

use super::error_frame;

/// An answer on its way.
pub(super) struct Frames {
    events: BoxStream<'static, Event>,
    /// The whole answer so far, after the prompt if that is echoed.
    text: String,
    prompt_tokens: u32,
    completion_tokens: u32,
    logprobs: Option<FrameLogprobs>,
    reason: Option<FinishReason>,
    ended: bool,
}

impl Frames {
    pub(super) fn new(events: BoxStream<'static, Event>, echo: String, logprobs: bool) -> Self {
        Self {
            events,
            text: echo,
            prompt_tokens: 0,
            completion_tokens: 0,
            logprobs: logprobs.then(FrameLogprobs::default),
            reason: None,
            ended: false,
        }
    }

    /// The frames. The last two hold the same text: one without a reason, then one with it, since FastChat's
    /// gateway would send a reason that comes with new text on a content delta.
    pub(super) fn into_stream(self) -> impl Stream<Item = Frame> + Send {
        stream::unfold(self, |mut frames| async move { frames.next().await.map(|frame| (frame, frames)) })
    }

    /// The last frame alone.
    pub(super) async fn last(mut self) -> Frame {
        let died = Problem::new(Kind::Bug, "the answer broke off");
        let mut last = None;
        while let Some(frame) = self.next().await {
            last = Some(frame);
        }
        last.unwrap_or_else(|| error_frame(&died))
    }

    async fn next(&mut self) -> Option<Frame> {
        while !self.ended {
            match self.events.next().await? {
                Event::Started { prompt_tokens, .. } => self.prompt_tokens = prompt_tokens,
                Event::Delta { text, tokens, logprobs, .. } => {
                    self.completion_tokens += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                    self.note_logprobs(&logprobs);
                    self.text.push_str(&text);
                    if !text.is_empty() {
                        return Some(self.frame(None));
                    }
                }
                Event::Finished { reason, .. } => self.reason = Some(reason),
                Event::Done { usage } => {
                    self.ended = true;
                    self.completion_tokens = usage.completion_tokens; // an end token counts, though it was never sent
                    return Some(self.frame(self.reason));
                }
                Event::Failed { problem } => {
                    self.ended = true;
                    return Some(error_frame(&problem));
                }
            }
        }
        None
    }

    fn frame(&self, reason: Option<FinishReason>) -> Frame {
        let reason = reason.map(|reason| match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        });
        Frame {
            text: self.text.clone(),
            error_code: 0,
            usage: Some(FrameUsage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                total_tokens: self.prompt_tokens + self.completion_tokens,
            }),
            finish_reason: reason.map(str::to_owned),
            logprobs: self.logprobs.clone(),
        }
    }

    fn note_logprobs(&mut self, tokens: &[TokenLogprob]) {
        let Some(logprobs) = &mut self.logprobs else { return };
        for token in tokens {
            let before: usize = logprobs.tokens.last().map_or(0, |text| text.chars().count());
            let offset = logprobs.text_offset.last().map_or(0, |last| last + before as u32);
            logprobs.text_offset.push(offset);
            logprobs.tokens.push(token.chosen.token.clone());
            logprobs.token_logprobs.push(Some(token.chosen.logprob));
            logprobs.top_logprobs.push(Some(serde_json::Map::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::generate::Usage;

    use super::*;

    fn delta(text: &str) -> Event {
        Event::Delta { choice: 0, text: text.to_owned(), tokens: vec![1], logprobs: vec![] }
    }

    #[tokio::test]
    async fn text_is_cumulative_and_the_reason_comes_alone() {
        let events = vec![
            Event::Started { prompt_tokens: 3, vocabulary: None },
            delta("Hel"),
            delta(""),
            delta("lo"),
            Event::Finished { choice: 0, reason: FinishReason::Stop, tokens: 0 },
            Event::Done { usage: Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: 0 } },
        ];
        let frames = Frames::new(stream::iter(events).boxed(), "> ".to_owned(), false);
        let frames: Vec<Frame> = frames.into_stream().collect().await;
        let seen: Vec<_> = frames.iter().map(|frame| (frame.text.as_str(), frame.finish_reason.as_deref())).collect();
        assert_eq!(seen, [("> Hel", None), ("> Hello", None), ("> Hello", Some("stop"))]);
        let usage = frames[2].usage.expect("usage in every frame");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (3, 4, 7));
    }

    #[tokio::test]
    async fn an_error_is_the_last_frame() {
        let problem = Problem::new(Kind::Bug, "broken");
        let events = vec![delta("a"), Event::Failed { problem }, delta("b")];
        let frames: Vec<Frame> =
            Frames::new(stream::iter(events).boxed(), String::new(), false).into_stream().collect().await;
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[1].error_code, frames[1].text.as_str()), (50001, "broken"));
    }
}
