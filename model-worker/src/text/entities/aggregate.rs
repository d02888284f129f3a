//! From the classes of tokens to entities: the rules of transformers' token classification pipeline.

use muster_shared::text::Aggregation;

/// The class of what is no entity.
const OUTSIDE: &str = "O";

/// One token of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// Its first character.
    pub(super) start: usize,
    /// The first character behind it.
    pub(super) end: usize,
    /// Whether it goes on with the word of the token before it.
    pub(super) is_inner: bool,
    /// A probability for each class.
    pub(super) scores: Vec<f32>,
}

/// A part of a text and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) label: String,
    pub(super) score: f32,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The entities in a text, in their order.
pub(super) fn aggregate(pieces: &[Piece], labels: &[String], how: Aggregation) -> Vec<Found> {
    let found: Vec<Found> = match how {
        Aggregation::None | Aggregation::Simple => {
            pieces.iter().map(|piece| of_scores(std::slice::from_ref(piece), &piece.scores, labels)).collect()
        }
        Aggregation::First | Aggregation::Average | Aggregation::Max => words(pieces)
            .map(|word| match how {
                Aggregation::Average => of_scores(word, &average(word), labels),
                Aggregation::Max => of_scores(word, &surest(word).scores, labels),
                _ => of_scores(word, &word[0].scores, labels),
            })
            .collect(),
    };
    let mut found = if how == Aggregation::None { found } else { grouped(&found) };
    found.retain(|found| found.label != OUTSIDE);
    found
}

/// The pieces of each word; none is empty.
fn words(pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    pieces.chunk_by(|_, next| next.is_inner)
}

fn of_scores(pieces: &[Piece], scores: &[f32], labels: &[String]) -> Found {
    let class = best(scores);
    Found {
        label: labels[class].clone(),
        score: scores[class],
        start: pieces[0].start,
        end: pieces[pieces.len() - 1].end,
    }
}

fn average(word: &[Piece]) -> Vec<f32> {
    let mut sum = vec![0.0; word[0].scores.len()];
    word.iter().for_each(|piece| sum.iter_mut().zip(&piece.scores).for_each(|(sum, score)| *sum += score));
    sum.iter_mut().for_each(|sum| *sum /= word.len() as f32);
    sum
}

/// The piece that is surest of its class; of several the first.
fn surest(word: &[Piece]) -> &Piece {
    let sureness = |piece: &Piece| piece.scores[best(&piece.scores)];
    word.iter().skip(1).fold(&word[0], |surest, piece| if sureness(piece) > sureness(surest) { piece } else { surest })
}

/// The first of the largest.
fn best(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, class| if scores[class] > scores[best] { class } else { best })
}

/// Puts neighbours of one class together, unless a `B-` begins anew.
fn grouped(found: &[Found]) -> Vec<Found> {
    let same = |before: &Found, next: &Found| {
        let ((_, before), (begins, next)) = (tag(&before.label), tag(&next.label));
        before == next && !begins
    };
    found.chunk_by(same).map(group).collect()
}

fn group(parts: &[Found]) -> Found {
    let (first, last) = (&parts[0], &parts[parts.len() - 1]);
    // Whatever stands before a hyphen is left out of the name, be it `B`, `I` or something else.
    let label = first.label.split_once('-').map_or(first.label.as_str(), |(_, name)| name);
    let score = parts.iter().map(|part| part.score).sum::<f32>() / parts.len() as f32;
    Found { label: label.to_owned(), score, start: first.start, end: last.end }
}

/// Whether a class begins an entity, and of which kind.
fn tag(label: &str) -> (bool, &str) {
    match label.strip_prefix("B-") {
        Some(kind) => (true, kind),
        None => (false, label.strip_prefix("I-").unwrap_or(label)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["O", "B-PER", "I-PER", "MISC"].map(str::to_owned).to_vec()
    }

    /// A token of three characters, surest of one class.
    fn piece(place: usize, is_inner: bool, class: usize, score: f32) -> Piece {
        let mut scores = vec![(1.0 - score) / 3.0; 4];
        scores[class] = score;
        Piece { start: place * 3, end: place * 3 + 3, is_inner, scores }
    }

    fn found(pieces: &[Piece], how: Aggregation) -> Vec<(String, usize, usize)> {
        let found = aggregate(pieces, &labels(), how);
        found.into_iter().map(|found| (found.label, found.start, found.end)).collect()
    }

    fn is(label: &str, start: usize, end: usize) -> (String, usize, usize) {
        (label.to_owned(), start, end)
    }

    #[test]
    fn neighbours_are_put_together_until_another_begins() {
        let pieces = [1, 2, 0, 3, 3, 1, 1, 2].iter().enumerate().map(|(place, &class)| piece(place, false, class, 0.7));
        let pieces: Vec<Piece> = pieces.collect();
        let together = [is("PER", 0, 6), is("MISC", 9, 15), is("PER", 15, 18), is("PER", 18, 24)];
        assert_eq!(found(&pieces, Aggregation::Simple), together);
        let alone = found(&pieces, Aggregation::None);
        assert_eq!(alone[..2], [is("B-PER", 0, 3), is("I-PER", 3, 6)]);
        assert_eq!(alone.len(), 7, "what is no entity is left out");
    }

    #[test]
    fn a_word_is_what_its_first_its_surest_or_all_of_its_pieces_say() {
        let word = [piece(0, false, 1, 0.4), piece(1, true, 3, 0.9), piece(2, true, 0, 0.8), piece(3, true, 0, 0.8)];
        assert_eq!(found(&word, Aggregation::First), [is("PER", 0, 12)]);
        assert_eq!(found(&word, Aggregation::Max), [is("MISC", 0, 12)]);
        assert_eq!(found(&word, Aggregation::Average), [], "two of four say that it is nothing");
        assert_eq!(found(&[], Aggregation::Max), []);
    }
}
