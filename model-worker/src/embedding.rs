//! An embedding model as requests see it: texts to tokens, tokens to vectors.

use muster_shared::control::{Capacity, ModelCard, ModelKind};
use muster_shared::embed::{EmbedInput, EmbedRequest, EmbedResponse, Vector};
use muster_shared::problem::{Kind, Problem};

use crate::encoder::EncoderHandle;
use crate::encoder::head::{Encoded, Tokens};
use crate::encoder::pooling::normalise;
use crate::language::problem;
use crate::tokenizer::Tokenizer;

/// A loaded embedding model.
#[derive(Debug, Clone)]
pub struct EmbeddingModel {
    /// The name clients ask for.
    pub name: String,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// Requests it takes at once.
    pub requests: usize,
    /// The encoder.
    pub encoder: EncoderHandle,
}

impl EmbeddingModel {
    /// What the controller is told.
    pub fn card(&self) -> ModelCard {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ModelCard {
            name: self.name.clone(),
            kind: Some(ModelKind::Embed),
            context_length: Some(count(self.max_tokens)),
            capacity: Some(Capacity { running: 1, waiting: count(self.requests - 1) }),
        }
    }

    /// Tokenizes the texts of a request. Takes time in proportion to their length: not for a thread of the runtime.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an empty text or a token out of range, [`Kind::PromptTooLong`] for a text that is too
    /// long, unless the request wants it cut.
    pub fn prepare(&self, request: &EmbedRequest) -> Result<Vec<Vec<u32>>, Problem> {
        if request.inputs.is_empty() {
            return Err(Problem::invalid("input", "input is empty; it must hold at least one text"));
        }
        let texts = request.inputs.iter().enumerate();
        texts.map(|(index, input)| self.tokens(index, input, request.truncate)).collect()
    }

    fn tokens(&self, index: usize, input: &EmbedInput, truncate: bool) -> Result<Vec<u32>, Problem> {
        let mut tokens = match input {
            EmbedInput::Tokens(tokens) => self.check_ids(index, tokens)?,
            EmbedInput::Text(text) => self
                .tokenizer
                .encode(text, true)
                .map_err(|error| Problem::invalid("input", format!("input[{index}] cannot be tokenized: {error}")))?,
        };
        let (length, limit) = (tokens.len(), self.max_tokens);
        if length == 0 {
            return Err(Problem::invalid("input", format!("input[{index}] is empty")));
        }
        if length > limit && !truncate {
            let message = format!("input[{index}] has {length} tokens, and this model takes {limit}; shorten the text");
            return Err(Problem::new(Kind::PromptTooLong, message).with_param("input"));
        }
        if length > limit {
            // A text ends with a special token that the model looks for; what is cut comes before it.
            let end = tokens[length - 1];
            tokens.truncate(limit);
            if self.tokenizer.is_special(end) {
                tokens[limit - 1] = end;
            }
        }
        Ok(tokens)
    }

    fn check_ids(&self, index: usize, tokens: &[u32]) -> Result<Vec<u32>, Problem> {
        let size = self.tokenizer.vocab_size();
        match tokens.iter().find(|&&token| token >= size) {
            Some(token) => Err(Problem::invalid(
                "input",
                format!("token id {token} in input[{index}] is out of range; the vocabulary has {size}"),
            )),
            None => Ok(tokens.to_vec()),
        }
    }

    /// Embeds tokenized texts.
    ///
    /// # Errors
    /// [`Kind::Overloaded`] at once when there is no room, [`Kind::Invalid`] for more dimensions than there are.
    pub async fn embed(&self, texts: Vec<Vec<u32>>, dimensions: Option<u32>) -> Result<EmbedResponse, Problem> {
        crate::metrics::request(&self.name, "embed");
        let prompt_tokens = texts.iter().map(Vec::len).sum::<usize>();
        let encoded = self.encoder.encode(texts.into_iter().map(Tokens::one).collect(), None).await.map_err(problem)?;
        let vectors = encoded.into_iter().filter_map(|encoded| match encoded {
            Encoded::Dense(vector) => Some(shorten(vector, dimensions).map(Vector)),
            Encoded::Sparse(_) | Encoded::Tokens { .. } => None,
        });
        Ok(EmbedResponse {
            vectors: vectors.collect::<Result<_, _>>()?,
            sparse: Vec::new(),
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
        })
    }
}

/// Keeps the first numbers of a vector and scales them to length 1 (Kusupati et al. 2022, arXiv:2205.13147).
fn shorten(mut vector: Vec<f32>, dimensions: Option<u32>) -> Result<Vec<f32>, Problem> {
    let Some(wanted) = dimensions.map(|wanted| wanted as usize) else { return Ok(vector) };
    if wanted == 0 || wanted > vector.len() {
        let message =
            format!("dimensions is {wanted}; this model's vectors have {}, so ask for 1 to {0}", vector.len());
        return Err(Problem::invalid("dimensions", message));
    }
    if wanted < vector.len() {
        vector.truncate(wanted);
        normalise(&mut vector);
    }
    Ok(vector)
}
