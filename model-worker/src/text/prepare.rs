//! Texts and token ids to tokens that fit the model. Takes time in proportion to their length: not for a thread of the
//! runtime.

use std::borrow::Cow;

use muster_shared::problem::{Kind, Problem};
use rayon::prelude::*;

use super::TextModel;
use crate::encoder::head::Tokens;
use crate::tokenizer::{Cut, Encoded, Tokenizer};

/// Bytes of text from which on several threads tokenize it: about a millisecond of work, and less is not worth waking them.
const SHARED_WORK: usize = 8 << 10;

/// Where in a request a text stands, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The field by the name that clients give it.
    pub(super) field: &'static str,
    /// Its place in a list.
    pub(super) index: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", self.field, self.index)
    }
}

impl Place {
    pub(super) fn invalid(self, message: &str) -> Problem {
        Problem::invalid(self.field, format!("{self} {message}"))
    }
}

/// Prepares each item of a list, on several threads where that pays. The error is that of the first which has one.
///
/// # Errors
/// An empty list, and whatever `prepare` says.
pub(super) fn each<T: Sync, R: Send>(
    field: &'static str,
    items: &[T],
    bytes: impl Fn(&T) -> usize,
    prepare: impl Fn(Place, &T) -> Result<R, Problem> + Sync,
) -> Result<Vec<R>, Problem> {
    if items.is_empty() {
        return Err(Problem::invalid(field, format!("{field} is empty; it must hold at least one text")));
    }
    let one = |(index, item)| prepare(Place { field, index }, item);
    if items.len() == 1 || items.iter().map(bytes).sum::<usize>() < SHARED_WORK {
        return items.iter().enumerate().map(one).collect();
    }
    let prepared: Vec<Result<R, Problem>> = items.par_iter().enumerate().map(one).collect();
    prepared.into_iter().collect()
}

/// Refuses an empty text.
pub(super) fn not_empty(place: Place, text: &str) -> Result<(), Problem> {
    if text.is_empty() { Err(place.invalid("is empty; it must hold some text")) } else { Ok(()) }
}

/// Refuses ids that the vocabulary does not have.
pub(crate) fn check_ids(param: &str, size: u32, tokens: &[u32], name: impl Fn(usize) -> String) -> Result<(), Problem> {
    match tokens.iter().position(|&token| token >= size) {
        Some(index) => Err(Problem::invalid(
            param,
            format!(
                "token id {} in {} is out of range; the vocabulary has {size} tokens, so ids end at {}",
                tokens[index],
                name(index),
                size.saturating_sub(1)
            ),
        )),
        None => Ok(()),
    }
}

impl TextModel {
    /// What the model's configuration does to a text, with `prompt` before it.
    pub(super) fn dressed<'a>(&self, prompt: &str, text: &'a str) -> Cow<'a, str> {
        let mut dressed = if prompt.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{prompt}{text}")) };
        if self.rules.trim {
            dressed = match dressed {
                Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
                Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
            };
        }
        if self.rules.lower_case { Cow::Owned(dressed.to_lowercase()) } else { dressed }
    }

    /// The tokens of one text.
    pub(super) fn text(&self, place: Place, text: &str, truncate: bool) -> Result<Tokens, Problem> {
        let ids = self.tokenizer.encode(text, true).map_err(|error| untokenizable(place, &error))?;
        if ids.len() <= self.max_tokens {
            return self.some(place, Tokens::one(ids));
        }
        if !truncate {
            return Err(self.too_long(place, ids.len()));
        }
        self.whole(place, text, truncate).map(|encoded| Tokens::one(encoded.ids))
    }

    /// The tokens of one text with the places where they stand.
    pub(super) fn whole(&self, place: Place, text: &str, truncate: bool) -> Result<Encoded, Problem> {
        let mut encoded = self.tokenizer.encode_all(text, None).map_err(|error| untokenizable(place, &error))?;
        let length = encoded.len();
        if length == 0 {
            return Err(place.invalid("holds no token of this model's vocabulary"));
        }
        if length > self.max_tokens && !(truncate && encoded.cut(self.max_tokens, Cut::Last)) {
            return Err(self.too_long(place, length));
        }
        Ok(encoded)
    }

    /// The tokens of two texts that are judged together.
    pub(super) fn pair(&self, place: Place, texts: [&str; 2], truncate: Option<Cut>) -> Result<Tokens, Problem> {
        let encoded = self.tokenizer.encode_all(texts[0], Some(texts[1]));
        let mut encoded = encoded.map_err(|error| untokenizable(place, &error))?;
        let length = encoded.len();
        if length > self.max_tokens && !truncate.is_some_and(|cut| encoded.cut(self.max_tokens, cut)) {
            return Err(self.too_long(place, length));
        }
        // Types that a model cannot take are found out when it is loaded.
        let second = if self.segments { encoded.second().unwrap_or(encoded.len()) } else { encoded.len() };
        self.some(place, Tokens { ids: encoded.ids, second })
    }

    /// Ids that a client gives. They are taken as they are, with whatever stands around a text.
    pub(super) fn ids(&self, place: Place, tokens: &[u32], truncate: bool) -> Result<Tokens, Problem> {
        check_ids(place.field, self.tokenizer.vocab_size(), tokens, |index| format!("{place}[{index}]"))?;
        let (length, limit) = (tokens.len(), self.max_tokens);
        if length > limit && !truncate {
            return Err(self.too_long(place, length));
        }
        let mut ids = tokens[..length.min(limit)].to_vec();
        if length > limit && self.tokenizer.is_special(tokens[length - 1]) {
            // A text ends with a special token that the model looks for; what is cut comes before it.
            ids[limit - 1] = tokens[length - 1];
        }
        self.some(place, Tokens::one(ids))
    }

    fn some(&self, place: Place, tokens: Tokens) -> Result<Tokens, Problem> {
        if tokens.is_empty() { Err(place.invalid("is empty; it must hold at least one token")) } else { Ok(tokens) }
    }

    fn too_long(&self, place: Place, length: usize) -> Problem {
        let limit = self.max_tokens;
        let message = format!(
            "{place} has {length} tokens, and this model takes {limit}; shorten the text, or let it be cut with `truncate`"
        );
        Problem::new(Kind::PromptTooLong, message).with_param(place.field)
    }
}

/// Tokens that the tokenizer adds to two texts, and those of one text without them.
pub(super) fn lengths(tokenizer: &Tokenizer, text: &str) -> Result<(usize, usize), crate::tokenizer::TokenizerError> {
    let with = tokenizer.encode_all(text, Some(text))?;
    let own = with.spans.iter().filter(|span| span.text == Some(0)).count();
    Ok((with.spans.iter().filter(|span| span.text.is_none()).count(), own))
}

fn untokenizable(place: Place, error: &crate::tokenizer::TokenizerError) -> Problem {
    place.invalid(&format!("cannot be tokenized: {error}"))
}
