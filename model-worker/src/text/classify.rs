//! Of which classes texts are.

use std::sync::Arc;

use muster_shared::problem::Problem;
use muster_shared::text::{ClassifyInput, ClassifyRequest, ClassifyResponse};

use super::{TextModel, deadline, dense, prepare, total, unlike};
use crate::calls::blocking;
use crate::encoder::head::Tokens;
use crate::model::manifest::Task;
use crate::tokenizer::Cut;

impl TextModel {
    /// Classifies the texts of a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an empty text or a token out of range; [`Kind::PromptTooLong`] for a text that is too long,
    /// unless the request wants it cut; [`Kind::Overloaded`] at once when there is no room.
    ///
    /// [`Kind::Invalid`]: muster_shared::problem::Kind::Invalid
    /// [`Kind::PromptTooLong`]: muster_shared::problem::Kind::PromptTooLong
    /// [`Kind::Overloaded`]: muster_shared::problem::Kind::Overloaded
    pub async fn classify(self: Arc<Self>, request: ClassifyRequest) -> Result<ClassifyResponse, Problem> {
        let deadline = deadline(request.timeout_ms);
        let raw_scores = request.raw_scores;
        let (model, texts) = blocking(move || {
            let texts = self.classify_texts(&request)?;
            Ok((self, texts))
        })
        .await?;
        let Task::Classify { labels, multi_label } = &model.task else { return Err(unlike("numbers of classes")) };
        let prompt_tokens = total(&texts);
        let scores = |mut logits: Vec<f32>| {
            match raw_scores {
                true => {}
                false if *multi_label => logits.iter_mut().for_each(|logit| *logit = logistic(*logit)),
                false => softmax(&mut logits),
            }
            logits
        };
        let encoded = model.run("classify", texts, deadline).await?.into_iter();
        let scores = encoded.map(|encoded| dense(encoded).map(scores)).collect::<Result<_, _>>()?;
        Ok(ClassifyResponse { labels: labels.clone(), scores, multi_label: *multi_label, prompt_tokens })
    }

    fn classify_texts(&self, request: &ClassifyRequest) -> Result<Vec<Tokens>, Problem> {
        let bytes = |input: &ClassifyInput| match input {
            ClassifyInput::Text(text) => text.len(),
            ClassifyInput::Pair(first, second) => first.len() + second.len(),
            ClassifyInput::Tokens(_) => 0,
        };
        prepare::each("input", &request.inputs, bytes, |place, input| match input {
            ClassifyInput::Text(text) => {
                prepare::not_empty(place, text)?;
                self.text(place, text, request.truncate)
            }
            ClassifyInput::Pair(first, second) => {
                prepare::not_empty(place, first)?;
                prepare::not_empty(place, second)?;
                self.pair(place, [first, second], request.truncate.then_some(Cut::Longest))
            }
            ClassifyInput::Tokens(tokens) => self.ids(place, tokens, request.truncate),
        })
    }
}

/// `1 / (1 + e⁻ˣ)`.
pub(super) fn logistic(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Turns numbers into probabilities that sum to 1.
pub(super) fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|share| *share /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_probabilities_however_large_they_are() {
        let mut logits = [1000.0, 1000.0, -1000.0];
        softmax(&mut logits);
        assert_eq!(logits, [0.5, 0.5, 0.0]);
        assert_eq!([logistic(0.0), logistic(1000.0), logistic(-1000.0)], [0.5, 1.0, 0.0]);
    }
}
