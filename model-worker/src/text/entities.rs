//! Which parts of texts are names of something.

mod aggregate;

use std::sync::Arc;

use muster_shared::problem::Problem;
use muster_shared::text::{Aggregation, EntitiesRequest, EntitiesResponse, Entity};

use super::prepare::Place;
use super::{TextModel, classify, count, deadline, prepare, total, unlike};
use crate::calls::blocking;
use crate::encoder::head::{Encoded, Tokens};
use crate::model::manifest::Task;
use crate::tokenizer::{Encoded as Encoding, Span};
use aggregate::{Found, Piece, aggregate};

/// A text's token that stands for a part of the text.
struct Part {
    /// Which of the tokens.
    index: usize,
    span: Span,
    is_inner: bool,
}

/// A text on its way.
struct Prepared {
    text: String,
    parts: Vec<Part>,
}

impl TextModel {
    /// Finds the entities in the texts of a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an empty text; [`Kind::PromptTooLong`] for a text that is too long, unless the request wants
    /// it cut; [`Kind::Overloaded`] at once when there is no room.
    ///
    /// [`Kind::Invalid`]: muster_shared::problem::Kind::Invalid
    /// [`Kind::PromptTooLong`]: muster_shared::problem::Kind::PromptTooLong
    /// [`Kind::Overloaded`]: muster_shared::problem::Kind::Overloaded
    pub async fn entities(self: Arc<Self>, request: EntitiesRequest) -> Result<EntitiesResponse, Problem> {
        let deadline = deadline(request.timeout_ms);
        let aggregation = request.aggregation;
        let (model, prepared) = blocking(move || {
            let prepared = prepare::each("input", &request.inputs, String::len, |place, text| {
                prepare::not_empty(place, text)?;
                self.entity_text(place, text, request.truncate)
            })?;
            Ok((self, prepared))
        })
        .await?;
        let (tokens, texts): (Vec<Tokens>, Vec<Prepared>) = prepared.into_iter().unzip();
        let prompt_tokens = total(&tokens);
        let encoded = model.run("entities", tokens, deadline).await?;
        let entities = blocking(move || {
            let texts = texts.iter().zip(encoded);
            texts.map(|(text, encoded)| model.entities_of(text, encoded, aggregation)).collect::<Result<_, _>>()
        })
        .await?;
        Ok(EntitiesResponse { entities, prompt_tokens })
    }

    fn entity_text(&self, place: Place, text: &str, truncate: bool) -> Result<(Tokens, Prepared), Problem> {
        let encoding = self.whole(place, text, truncate)?;
        let parts = self.parts(text, &encoding);
        Ok((Tokens::one(encoding.ids), Prepared { text: text.to_owned(), parts }))
    }

    fn parts(&self, text: &str, encoding: &Encoding) -> Vec<Part> {
        let unknown = self.rules.unknown.as_deref().and_then(|token| self.tokenizer.id_of(token));
        let marked = self.tokenizer.marks_inner_pieces();
        let characters: Vec<char> = text.chars().collect();
        let part = |(index, span): (usize, &Span)| {
            let id = encoding.ids[index];
            let is_inner = match marked {
                _ if Some(id) == unknown => false,
                // A piece inside of a word is longer than its text by its mark.
                true => self.tokenizer.piece(id).is_some_and(|piece| piece.chars().count() != span.end - span.start),
                false => follows_closely(&characters, span),
            };
            Part { index, span: *span, is_inner }
        };
        encoding.spans.iter().enumerate().filter(|(_, span)| span.text.is_some()).map(part).collect()
    }

    fn entities_of(&self, prepared: &Prepared, encoded: Encoded, how: Aggregation) -> Result<Vec<Entity>, Problem> {
        let (Encoded::Tokens { values, width }, Task::Entities { labels }) = (encoded, &self.task) else {
            return Err(unlike("numbers for each token"));
        };
        let pieces = prepared.parts.iter().map(|part| {
            let mut scores = values[part.index * width..][..width].to_vec();
            classify::softmax(&mut scores);
            Piece { start: part.span.start, end: part.span.end, is_inner: part.is_inner, scores }
        });
        let found = aggregate(&pieces.collect::<Vec<_>>(), labels, how).into_iter();
        Ok(found.map(|found| entity(&prepared.text, found)).collect())
    }
}

/// Whether a token stands behind another one without a space, where the vocabulary does not tell: the guess of
/// transformers.
fn follows_closely(text: &[char], span: &Span) -> bool {
    span.start > 0 && !text[span.start - 1..(span.start + 1).min(text.len())].contains(&' ')
}

fn entity(text: &str, found: Found) -> Entity {
    let part = text.chars().skip(found.start).take(found.end.saturating_sub(found.start)).collect();
    Entity { label: found.label, score: found.score, text: part, start: count(found.start), end: count(found.end) }
}
