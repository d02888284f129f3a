//! The tokens of one text, or of two that are judged together, with all that is known of each.

use tokenizers::models::ModelWrapper;

use super::{Tokenizer, TokenizerError};

/// Tokens as the model wants them around and between its texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// To which text each belongs, as the tokenizer marks it for the model: 0 or 1.
    pub types: Vec<u32>,
    /// Where each stands.
    pub spans: Vec<Span>,
}

/// Where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First character of its part of the text.
    pub start: usize,
    /// First character behind it.
    pub end: usize,
    /// Of which text it is part, counted from 0; `None` for those that the tokenizer adds.
    pub text: Option<usize>,
}

/// Which of two texts loses tokens when both are too long together. The end of a text goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The last alone.
    Last,
    /// The longer one until both are of one length, then both: `longest_first` of transformers.
    Longest,
}

impl Tokenizer {
    /// The tokens of a text, or of two, with those that the model wants around them. Work for a blocking thread.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] as for [`Tokenizer::encode`].
    pub fn encode_all(&self, first: &str, second: Option<&str>) -> Result<Encoded, TokenizerError> {
        let tokenizer = &self.0.tokenizer;
        let encoding = match second {
            Some(second) => tokenizer.encode_char_offsets((first, second), true),
            None => tokenizer.encode_char_offsets(first, true),
        };
        let encoding = encoding.map_err(TokenizerError::Encode)?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let added = encoding.get_special_tokens_mask();
        let texts = encoding.get_sequence_ids();
        let span = |index: usize| Span {
            start: offsets[index].0,
            end: offsets[index].1,
            text: texts[index].filter(|_| added[index] == 0),
        };
        Ok(Encoded {
            ids: ids.to_vec(),
            types: encoding.get_type_ids().to_vec(),
            spans: (0..ids.len()).map(span).collect(),
        })
    }

    /// A token as it stands in the vocabulary.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(id)
    }

    /// Whether pieces inside of words are marked in the vocabulary: `##ing`.
    pub fn marks_inner_pieces(&self) -> bool {
        match self.0.tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => !model.continuing_subword_prefix.is_empty(),
            ModelWrapper::BPE(model) => model.continuing_subword_prefix.as_ref().is_some_and(|mark| !mark.is_empty()),
            _ => false,
        }
    }

    /// The text of tokens, special ones shown.
    pub fn text(&self, ids: &[u32]) -> String {
        self.decode(ids, false)
    }
}

impl Encoded {
    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Where the second text begins, as the types say; the length where they tell no second. `None` when they mark
    /// anything but one beginning and one rest.
    pub fn second(&self) -> Option<usize> {
        let second = self.types.iter().position(|&of| of != 0).unwrap_or(self.len());
        self.types[second..].iter().all(|&of| of == 1).then_some(second)
    }

    /// Takes tokens out of the end of texts until `limit` are left; those that the model wants around texts stay. `false`
    /// when what has to be kept is longer than that by itself, or nothing would be left of a text.
    #[must_use]
    pub fn cut(&mut self, limit: usize, how: Cut) -> bool {
        let Some(excess) = self.len().checked_sub(limit).filter(|&excess| excess > 0) else { return true };
        let count = |text: usize| self.spans.iter().filter(|span| span.text == Some(text)).count();
        let (first, second) = (count(0), count(1));
        let lost = match how {
            _ if second == 0 => [excess, 0],
            Cut::Last => [0, excess],
            Cut::Longest => longest_first(first, second, excess),
        };
        if lost[0] >= first || (second > 0 && lost[1] >= second) {
            return false;
        }
        let keep = [first - lost[0], second - lost[1]];
        let mut seen = [0; 2];
        let kept: Vec<bool> = self.spans.iter().map(|span| is_kept(span, keep, &mut seen)).collect();
        retain(&mut self.ids, &kept);
        retain(&mut self.types, &kept);
        retain(&mut self.spans, &kept);
        true
    }
}

/// How many tokens each of two texts loses.
fn longest_first(first: usize, second: usize, excess: usize) -> [usize; 2] {
    let (shorter, longer) = (first.min(second), first.max(second));
    let left = (first + second).saturating_sub(excess);
    let lost = if shorter <= left / 2 {
        [0, longer - (left - shorter)]
    } else {
        [shorter - left / 2, longer - left.div_ceil(2)]
    };
    if first <= second { lost } else { [lost[1], lost[0]] }
}

fn is_kept(span: &Span, keep: [usize; 2], seen: &mut [usize; 2]) -> bool {
    match span.text {
        Some(text @ (0 | 1)) => {
            seen[text] += 1;
            seen[text] <= keep[text]
        }
        _ => true,
    }
}

fn retain<T>(items: &mut Vec<T>, kept: &[bool]) {
    let mut kept = kept.iter();
    items.retain(|_| kept.next().copied().unwrap_or(false));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens as BERT's tokenizer gives them for texts of so many.
    fn pair(first: usize, second: usize) -> Encoded {
        let span = |text, place| Span { start: place, end: place + 1, text };
        let added = span(None, 0);
        let mut spans = vec![added];
        spans.extend((0..first).map(|place| span(Some(0), place)));
        spans.push(added);
        let begin = spans.len();
        if second > 0 {
            spans.extend((0..second).map(|place| span(Some(1), place)));
            spans.push(added);
        }
        let ids = (0..spans.len() as u32).collect();
        let types = (0..spans.len()).map(|place| u32::from(place >= begin)).collect();
        Encoded { ids, types, spans }
    }

    fn lengths(encoded: &Encoded) -> [usize; 2] {
        [0, 1].map(|text| encoded.spans.iter().filter(|span| span.text == Some(text)).count())
    }

    #[test]
    fn the_end_of_a_text_goes_and_what_stands_around_it_stays() {
        let mut one = pair(10, 0);
        assert!(one.cut(5, Cut::Last));
        assert_eq!(one.ids, [0, 1, 2, 3, 11]);
        assert_eq!((one.second(), one.len()), (Some(5), 5));
        let mut two = pair(4, 10);
        assert!(two.cut(10, Cut::Last));
        assert_eq!((lengths(&two), two.second()), ([4, 3], Some(6)));
        assert!(!pair(8, 10).cut(10, Cut::Last), "the first text leaves no room for the second");
        assert!(!pair(8, 0).cut(2, Cut::Last));
    }

    #[test]
    fn the_longer_text_loses_first() {
        for (first, second, limit, expected) in
            [(10, 4, 13, [6, 4]), (4, 10, 13, [4, 6]), (10, 10, 12, [4, 5]), (10, 9, 12, [5, 4])]
        {
            let mut two = pair(first, second);
            assert!(two.cut(limit, Cut::Longest));
            assert_eq!((lengths(&two), two.len()), (expected, limit), "{first} and {second} in {limit}");
        }
    }

    #[test]
    fn types_that_are_no_beginning_and_rest_are_seen() {
        let strange = Encoded { types: vec![0, 1, 0, 1, 1, 1, 1], ..pair(2, 2) };
        assert_eq!(strange.second(), None);
        assert_eq!(Encoded { types: vec![0, 0, 0, 1, 1, 1, 2], ..pair(2, 2) }.second(), None);
        assert_eq!(Encoded { types: vec![0; 7], ..pair(2, 2) }.second(), Some(7));
    }

    proptest! {
        #[test]
        fn what_is_cut_fits_and_keeps_something_of_each_text(
            first in 1_usize..40, second in 0_usize..40, limit in 0_usize..60, longest in any::<bool>(),
        ) {
            let mut cut = pair(first, second);
            let before = cut.clone();
            if cut.cut(limit, if longest { Cut::Longest } else { Cut::Last }) {
                prop_assert!(cut.len() == limit.min(before.len()));
                let [kept, other] = lengths(&cut);
                prop_assert!(kept > 0 && (second == 0 || other > 0));
            } else {
                prop_assert!(cut == before);
            }
        }
    }
}
