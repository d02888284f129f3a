//! Answers that another worker has begun: what a request tells of them is checked, and replayed up to where they stood.

use muster_shared::generate::{GenerateRequest, Resume, ResumedChoice};
use muster_shared::problem::{Kind, Problem};

use super::LanguageModel;
use super::choice::{Choice, Had, State};
use crate::engine::resume::Resumed;
use crate::engine::sampler;
use crate::engine::sequence::SequenceRequest;

/// The field that tells of them.
const NAME: &str = "resume";

impl LanguageModel {
    /// Checks what can be checked before the prompt is read.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] when the answers are of another vocabulary, for another worker may have that;
    /// [`Kind::Invalid`] for what no worker can go on with.
    pub(super) fn check_resume(&self, request: &GenerateRequest, resume: &Resume) -> Result<(), Problem> {
        self.check_vocabulary(resume)?;
        let (told, asked) = (resume.choices.len(), request.choices.max(1));
        if told != asked as usize {
            let message =
                format!("resume must tell of each answer asked for; answers told: {told}, asked for: {asked}");
            return Err(Problem::invalid(NAME, message));
        }
        let goes_on = resume.choices.iter().any(|choice| choice.finished.is_none());
        if goes_on && request.sampling.seed.is_none() && !sampler::is_greedy(&request.sampling) {
            let message = "resume needs the seed of the answers it tells of, for they are sampled; send the seed that they \
                           were begun with";
            return Err(Problem::invalid(NAME, message));
        }
        resume.choices.iter().enumerate().try_for_each(|(index, choice)| self.check_choice(request, index, choice))
    }

    fn check_vocabulary(&self, resume: &Resume) -> Result<(), Problem> {
        let own = self.tokenizer.fingerprint();
        match resume.vocabulary.as_deref() {
            Some(other) if other != own => {
                let message = format!(
                    "the answer in resume was begun with the vocabulary `{other}`, and model `{}` of this worker has \
                     `{own}`; resume it on a worker with the same vocabulary, or ask anew",
                    self.name
                );
                Err(Problem::new(Kind::UnknownModel, message).with_param(NAME))
            }
            None if resume.choices.iter().any(|choice| choice.finished.is_none() && !choice.tokens.is_empty()) => {
                let message = "resume has tokens and does not name their vocabulary; send the one that the first worker \
                               named, or ask anew";
                Err(Problem::invalid(NAME, message))
            }
            _ => Ok(()),
        }
    }

    fn check_choice(&self, request: &GenerateRequest, index: usize, choice: &ResumedChoice) -> Result<(), Problem> {
        match (choice.finished, request.max_tokens) {
            (Some(tokens), Some(limit)) if tokens > limit => {
                let message = format!(
                    "answer {index} in resume has finished with {tokens} tokens, and max_tokens is {limit}; send the \
                     number that its end was told with"
                );
                Err(Problem::invalid(NAME, message))
            }
            (Some(_), _) => Ok(()),
            (None, _) => self.check_ids(NAME, choice.tokens.iter().copied()),
        }
    }

    /// Brings an answer to where it stood. `echo` is the prompt, where the request wants it back.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for tokens that cannot be the beginning of this answer.
    pub(super) fn resume(
        &self,
        index: usize,
        choice: &ResumedChoice,
        request: SequenceRequest,
        echo: &str,
    ) -> Result<Choice, Problem> {
        if let Some(tokens) = choice.finished {
            return Ok(Choice { text: String::new(), state: State::Over(tokens) });
        }
        let resumed = request
            .resume(choice.tokens.clone(), &self.tokenizer)
            .map_err(|error| Problem::invalid(NAME, format!("answer {index} in resume cannot go on: {error}")))?;
        let mut had = Had(choice.text_bytes);
        let mut unsent = |text: String| had.cut(format!("{echo}{text}"));
        Ok(match resumed {
            Resumed::GoesOn { request, text } => Choice { text: unsent(text), state: State::Runs(request, had) },
            Resumed::Ended { text, reason } => {
                let tokens = u32::try_from(choice.tokens.len()).unwrap_or(u32::MAX);
                Choice { text: unsent(text), state: State::Ends(reason, tokens) }
            }
        })
    }
}

#[cfg(test)]
mod tests;
