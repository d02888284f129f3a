//! How far an answer has come, so that another worker can go on with it.
//!
//! Whoever reads a worker's events notes them in a [`Progress`]. When the worker dies, it asks another one the same again,
//! with [`Progress::resume`] and the seed that the first one had, and notes on.

use crate::generate::{Event, Resume, ResumedChoice};

/// What has come of the answers to one request, from however many workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Length of the prompt in tokens, and the name of the vocabulary, as the worker has told them that began.
    begun: Option<(u32, Option<String>)>,
    choices: Vec<ResumedChoice>,
}

impl Progress {
    /// Nothing of so many answers yet.
    pub fn new(choices: u32) -> Self {
        Self { begun: None, choices: vec![ResumedChoice::default(); choices as usize] }
    }

    /// Notes an event that the client has, or is sure to get.
    pub fn note(&mut self, event: &Event) {
        match event {
            // What nothing has come of is begun anew, perhaps with another vocabulary.
            Event::Started { prompt_tokens, vocabulary } if self.is_empty() => {
                self.begun = Some((*prompt_tokens, vocabulary.clone()));
            }
            Event::Delta { choice, text, tokens, .. } => {
                if let Some(choice) = self.choices.get_mut(*choice as usize) {
                    choice.tokens.extend_from_slice(tokens);
                    choice.text_bytes += text.len() as u64;
                }
            }
            Event::Finished { choice, tokens, .. } => {
                if let Some(choice) = self.choices.get_mut(*choice as usize) {
                    // Nothing goes on after them, so only their number is kept.
                    let come = u32::try_from(std::mem::take(&mut choice.tokens).len()).unwrap_or(u32::MAX);
                    choice.finished = Some(come.max(*tokens));
                }
            }
            Event::Started { .. } | Event::Done { .. } | Event::Failed { .. } => {}
        }
    }

    /// Whether nothing of any answer has come: then the request can as well be made anew.
    pub fn is_empty(&self) -> bool {
        self.choices.iter().all(|choice| *choice == ResumedChoice::default())
    }

    /// Whether another worker can go on: not where tokens have come whose vocabulary has no name, or text without tokens.
    pub fn is_resumable(&self) -> bool {
        self.is_empty() || matches!(&self.begun, Some((_, Some(_))))
    }

    /// What the next worker has to be told.
    pub fn resume(&self) -> Resume {
        let vocabulary = self.begun.as_ref().and_then(|(_, vocabulary)| vocabulary.clone());
        Resume { vocabulary, choices: self.choices.clone() }
    }

    /// Whether a worker that was asked to go on, and sends this event first, does go on. One that is too old to know of
    /// resuming begins from the start and names no vocabulary; one with another chat template reads another prompt.
    pub fn is_continued_by(&self, first: &Event) -> bool {
        match (first, &self.begun) {
            (Event::Started { .. }, _) if self.is_empty() => true,
            (Event::Started { prompt_tokens, vocabulary: Some(vocabulary) }, Some((begun_with, Some(of)))) => {
                prompt_tokens == begun_with && vocabulary == of
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{FinishReason, Usage};

    fn started(prompt_tokens: u32, vocabulary: Option<&str>) -> Event {
        Event::Started { prompt_tokens, vocabulary: vocabulary.map(str::to_owned) }
    }

    fn delta(choice: u32, text: &str, tokens: &[u32]) -> Event {
        Event::Delta { choice, text: text.to_owned(), tokens: tokens.to_vec(), logprobs: vec![] }
    }

    fn finished(choice: u32, tokens: u32) -> Event {
        Event::Finished { choice, reason: FinishReason::Stop, tokens }
    }

    fn noted(choices: u32, events: &[Event]) -> Progress {
        let mut progress = Progress::new(choices);
        events.iter().for_each(|event| progress.note(event));
        progress
    }

    #[test]
    fn each_answer_is_as_far_as_its_own_events() {
        let events = [
            started(3, Some("bytes")),
            delta(1, "é", &[7]),
            delta(0, "", &[1]),
            delta(0, "ab", &[2, 3]),
            delta(1, "!", &[]),
            finished(1, 2),
        ];
        let resume = noted(3, &events).resume();
        let going = ResumedChoice { tokens: vec![1, 2, 3], text_bytes: 2, finished: None };
        let ended = ResumedChoice { tokens: vec![], text_bytes: 3, finished: Some(2) };
        assert_eq!(resume.choices, [going, ended, ResumedChoice::default()]);
        assert_eq!(resume.vocabulary.as_deref(), Some("bytes"));
    }

    #[test]
    fn what_several_workers_have_sent_adds_up() {
        let halves = [started(3, Some("bytes")), delta(0, "a", &[1]), started(3, Some("bytes")), delta(0, "b", &[2])];
        let whole = [started(3, Some("bytes")), delta(0, "ab", &[1, 2])];
        assert_eq!(noted(1, &halves), noted(1, &whole));
    }

    #[test]
    fn an_answer_is_empty_until_something_of_it_has_come() {
        let done = Event::Done { usage: Usage::default() };
        assert!(noted(2, &[]).is_empty());
        assert!(noted(2, &[started(3, None), done, delta(2, "no such answer", &[1])]).is_empty());
        for event in [delta(1, "", &[1]), delta(1, "a", &[]), finished(1, 1), finished(1, 0)] {
            assert!(!noted(2, &[started(3, None), event]).is_empty());
        }
    }

    #[test]
    fn tokens_of_a_vocabulary_without_a_name_cannot_be_resumed() {
        assert!(noted(1, &[started(3, None)]).is_resumable());
        assert!(!noted(1, &[started(3, None), delta(0, "a", &[1])]).is_resumable());
        assert!(noted(1, &[started(3, Some("bytes")), delta(0, "a", &[1])]).is_resumable());
        let retried = [started(3, None), started(4, Some("bytes")), delta(0, "a", &[1])];
        assert_eq!(noted(1, &retried).resume().vocabulary.as_deref(), Some("bytes"));
    }

    #[test]
    fn a_worker_goes_on_when_it_has_read_the_same_prompt_in_the_same_vocabulary() {
        let progress = noted(1, &[started(3, Some("bytes")), delta(0, "a", &[1])]);
        assert!(progress.is_continued_by(&started(3, Some("bytes"))));
        for other in [started(3, None), started(3, Some("words")), started(4, Some("bytes")), delta(0, "a", &[1])] {
            assert!(!progress.is_continued_by(&other), "{other:?}");
        }
        assert!(Progress::new(1).is_continued_by(&started(9, None)));
    }

    #[test]
    fn an_end_whose_tokens_are_not_told_has_at_least_those_that_came() {
        let progress = noted(1, &[started(3, Some("bytes")), delta(0, "ab", &[1, 2]), finished(0, 0)]);
        assert_eq!(progress.resume().choices[0].finished, Some(2));
    }
}
