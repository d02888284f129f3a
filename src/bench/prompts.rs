//! Made-up prompts: random, so that nothing can be known of them beforehand, and the same for the same seed.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use crate::cli::PromptKind;

/// Words that make a prompt of text; with a digit behind, each is about two tokens.
const WORDS: [&str; 12] =
    ["river", "stone", "light", "under", "seven", "green", "house", "table", "winter", "paper", "music", "bread"];
/// Tokens of one such word.
const TOKENS_OF_WORD: usize = 2;

/// Random tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    random: StdRng,
    /// Where the ids lie; not empty.
    pub(super) range: Range<u32>,
}

impl Tokens {
    pub(super) fn new(seed: u64, range: Range<u32>) -> Self {
        Self { random: StdRng::seed_from_u64(seed), range }
    }

    pub(super) fn take(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.random.random_range(self.range.clone())).collect()
    }
}

/// A prompt as a server takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// Makes prompts, no two alike.
#[derive(Debug)]
pub(super) struct Prompts {
    tokens: Tokens,
    kind: PromptKind,
}

impl Prompts {
    /// Ids are below `vocab`; a tenth of it, where special tokens lie, is left out.
    pub(super) fn new(kind: PromptKind, vocab: u32, seed: u64) -> Self {
        Self { tokens: Tokens::new(seed, vocab / 10..vocab), kind }
    }

    /// A prompt of so many tokens; of about so many, if it is text.
    pub(super) fn take(&mut self, tokens: usize) -> Prompt {
        self.after(None, tokens)
    }

    /// A prompt that begins with another, and goes on for so many tokens.
    pub(super) fn after(&mut self, start: Option<&Prompt>, tokens: usize) -> Prompt {
        match start {
            Some(Prompt::Ids(start)) => Prompt::Ids([&start[..], &self.tokens.take(tokens)].concat()),
            Some(Prompt::Text(start)) => Prompt::Text(format!("{start}{}", self.text(tokens))),
            None if self.kind == PromptKind::Ids => Prompt::Ids(self.tokens.take(tokens)),
            None => Prompt::Text(self.text(tokens)),
        }
    }

    fn text(&mut self, tokens: usize) -> String {
        let random = &mut self.tokens.random;
        let words = (0..tokens.div_ceil(TOKENS_OF_WORD)).map(|_| {
            let word = WORDS.choose(random).copied().unwrap_or_default();
            format!("{word}{} ", random.random_range(0..10))
        });
        words.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_prompts_and_no_two_are_alike() {
        for kind in [PromptKind::Ids, PromptKind::Text] {
            let [mut one, mut same, mut other] = [1, 1, 2].map(|seed| Prompts::new(kind, 4000, seed));
            let first = one.take(32);
            assert_eq!(first, same.take(32));
            assert_ne!(first, other.take(32));
            assert_ne!(first, one.take(32));
        }
    }

    #[test]
    fn ids_stay_in_the_vocabulary_and_off_its_start() {
        let Prompt::Ids(ids) = Prompts::new(PromptKind::Ids, 257, 0).take(1000) else { panic!("ids") };
        assert!(ids.len() == 1000 && ids.iter().all(|id| (25..257).contains(id)));
        assert_eq!(Prompts::new(PromptKind::Ids, 1, 0).take(2), Prompt::Ids(vec![0, 0]));
    }

    #[test]
    fn prompts_can_begin_alike() {
        for kind in [PromptKind::Ids, PromptKind::Text] {
            let mut prompts = Prompts::new(kind, 4000, 0);
            let start = prompts.take(10);
            let [a, b] = [prompts.after(Some(&start), 6), prompts.after(Some(&start), 6)];
            assert_ne!(a, b);
            match (start, a) {
                (Prompt::Ids(start), Prompt::Ids(a)) => assert!(a.starts_with(&start) && a.len() == 16),
                (Prompt::Text(start), Prompt::Text(a)) => assert!(a.starts_with(&start) && a.split(' ').count() == 9),
                _ => panic!("prompts of one kind"),
            }
        }
    }
}
