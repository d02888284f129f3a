//! Vectors of texts.

use std::sync::Arc;

use muster_shared::embed::{EmbedInput, EmbedRequest, EmbedResponse, InputType, Vector};
use muster_shared::problem::Problem;

use super::prepare::{self, Place};
use super::{TextModel, deadline, dense, total};
use crate::calls::blocking;
use crate::encoder::head::{Encoded, Tokens};
use crate::encoder::pooling::normalise;
use crate::model::manifest::Task;

impl TextModel {
    /// Embeds the texts of a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an empty text, a token out of range, an unknown prompt, or more dimensions than there are;
    /// [`Kind::PromptTooLong`] for a text that is too long, unless the request wants it cut; [`Kind::Overloaded`] at once
    /// when there is no room.
    ///
    /// [`Kind::Invalid`]: muster_shared::problem::Kind::Invalid
    /// [`Kind::PromptTooLong`]: muster_shared::problem::Kind::PromptTooLong
    /// [`Kind::Overloaded`]: muster_shared::problem::Kind::Overloaded
    pub async fn embed(self: Arc<Self>, request: EmbedRequest) -> Result<EmbedResponse, Problem> {
        let deadline = deadline(request.timeout_ms);
        let dimensions = request.dimensions;
        let (model, texts) = blocking(move || {
            let texts = self.embed_texts(&request)?;
            Ok((self, texts))
        })
        .await?;
        let prompt_tokens = total(&texts);
        let encoded = model.run("embed", texts, deadline).await?;
        let mut response = EmbedResponse { prompt_tokens, ..EmbedResponse::default() };
        for encoded in encoded {
            match encoded {
                Encoded::Sparse(vector) => response.sparse.push(vector),
                other => response.vectors.push(Vector(shorten(dense(other)?, dimensions)?)),
            }
        }
        Ok(response)
    }

    fn embed_texts(&self, request: &EmbedRequest) -> Result<Vec<Tokens>, Problem> {
        if let (Task::Sparse(_), Some(_)) = (&self.task, request.dimensions) {
            let message = "dimensions shortens dense vectors, and this model gives sparse ones; leave it out";
            return Err(Problem::invalid("dimensions", message));
        }
        let prompt = self.prompt(request)?;
        let bytes = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => text.len(),
            EmbedInput::Tokens(_) => 0,
        };
        prepare::each("input", &request.inputs, bytes, |place, input| match input {
            EmbedInput::Text(text) => {
                prepare::not_empty(place, text)?;
                self.text(place, &self.dressed(prompt, text), request.truncate)
            }
            EmbedInput::Tokens(tokens) => self.embed_ids(place, tokens, prompt, request),
        })
    }

    fn embed_ids(&self, place: Place, tokens: &[u32], prompt: &str, request: &EmbedRequest) -> Result<Tokens, Problem> {
        let asks = match (&request.prompt_name, request.input_type) {
            (Some(_), _) => Some("prompt_name"),
            (None, Some(_)) if !prompt.is_empty() => Some("input_type"),
            (None, _) => None,
        };
        if let Some(field) = asks {
            let message = format!("{field} puts text before a text, and {place} is token ids; leave one of them out");
            return Err(Problem::invalid(field, message));
        }
        self.ids(place, tokens, request.truncate)
    }

    /// What is put before each text: the prompt of that name, which there must be; else the one for that use, if there
    /// is one; where neither is said, the usual one.
    fn prompt(&self, request: &EmbedRequest) -> Result<&str, Problem> {
        let prompts = &self.rules.prompts;
        let name = match (request.prompt_name.as_deref(), request.input_type) {
            (Some(name), _) => name,
            (None, Some(input_type)) => {
                let names = names(input_type).iter();
                let mut there = names.filter_map(|name| prompts.by_name.get(*name));
                return Ok(there.next().map_or("", String::as_str));
            }
            (None, None) => match prompts.default.as_deref() {
                Some(name) => name,
                None => return Ok(""),
            },
        };
        prompts.by_name.get(name).map(String::as_str).ok_or_else(|| {
            let there = prompts.by_name.keys().cloned().collect::<Vec<_>>().join(", ");
            let known = if there.is_empty() { "none; leave it out".to_owned() } else { there };
            Problem::invalid("prompt_name", format!("prompt_name is `{name}`, and this model's prompts are {known}"))
        })
    }
}

/// What prompts for such vectors are called, the more usual first.
fn names(input_type: InputType) -> &'static [&'static str] {
    match input_type {
        InputType::Query => &["query"],
        InputType::Document => &["document", "passage"],
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
