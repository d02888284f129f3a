//! The texts that wait, and which of them run next. Pure: no threads, no clock.
//!
//! Requests take turns, so that one with thousands of texts is not in the way of one with a single text; whose turn it
//! is gives the text that a run is built around. Its company may come from any request, the nearest in length first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use super::batch::{BatchLimits, Filling};
use super::head::Tokens;

/// A text on its way into a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<R> {
    /// What it belongs to.
    pub request: R,
    /// Its place among the texts of its request.
    pub index: usize,
    /// The text.
    pub tokens: Tokens,
}

/// Where a text stands among all that wait: by length first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    length: usize,
    request: u64,
    index: usize,
}

/// The texts of one request that wait; at least one.
#[derive(Debug)]
struct Waiting<R> {
    request: R,
    /// By length and index.
    texts: BTreeMap<(usize, usize), Tokens>,
    /// Its place in the order of turns.
    turn: u64,
}

/// The texts that wait.
///
/// `R` stands for a request; each of its texts gets a copy.
#[derive(Debug)]
pub struct Queue<R> {
    waiting: HashMap<u64, Waiting<R>>,
    by_length: BTreeSet<Place>,
    /// The number of a request for each turn to come.
    turns: BTreeMap<u64, u64>,
    /// Had the last turn. It gets its next one when the next run is built, and so behind all that came meanwhile.
    last: Option<u64>,
    /// The next number of a request, and of a turn.
    next: u64,
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), by_length: BTreeSet::new(), turns: BTreeMap::new(), last: None, next: 0 }
    }
}

impl<R: Clone> Queue<R> {
    /// Adds a request with its texts.
    pub fn push(&mut self, request: R, texts: Vec<Tokens>) {
        if texts.is_empty() {
            return;
        }
        let number = self.number();
        let texts = texts.into_iter().enumerate().map(|(index, tokens)| ((tokens.len(), index), tokens));
        let texts: BTreeMap<_, _> = texts.collect();
        self.by_length.extend(texts.keys().map(|&(length, index)| Place { length, request: number, index }));
        self.turns.insert(number, number);
        self.waiting.insert(number, Waiting { request, texts, turn: number });
    }

    /// Takes the texts of the next run: the longest of the request whose turn it is, and others of its length. Empty
    /// when nothing waits.
    ///
    /// The longest first: what is left at the end of a large request are short texts, which end at about the same time
    /// on all threads.
    pub fn take(&mut self, limits: BatchLimits) -> Vec<Text<R>> {
        if let Some(number) = self.last.take() {
            let turn = self.number();
            if let Some(waiting) = self.waiting.get_mut(&number) {
                waiting.turn = turn;
                self.turns.insert(turn, number);
            }
        }
        let seed = self.turns.pop_first().and_then(|(_, request)| {
            self.last = Some(request);
            let (&(length, index), _) = self.waiting.get(&request)?.texts.last_key_value()?;
            Some(Place { length, request, index })
        });
        let places = seed.map(|seed| self.company(seed, limits)).unwrap_or_default();
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// A text and those that run with it. Looks at two more texts than it takes, however many wait.
    fn company(&self, seed: Place, limits: BatchLimits) -> Vec<Place> {
        let mut run = Filling::new(limits, seed.length);
        let mut places = vec![seed];
        let mut shorter = self.by_length.range(..seed).rev();
        let mut longer = self.by_length.range((Excluded(seed), Unbounded));
        let (mut below, mut above) = (shorter.next(), longer.next());
        loop {
            let place = match (below, above) {
                (Some(below), Some(above)) if above.length - seed.length < seed.length - below.length => above,
                (Some(place), _) | (None, Some(place)) => place,
                (None, None) => return places,
            };
            let fits = run.add(place.length);
            if fits {
                places.push(*place);
            }
            // What lies beyond one that does not fit is less alike still.
            if Some(place) == below {
                below = shorter.next().filter(|_| fits);
            } else {
                above = longer.next().filter(|_| fits);
            }
        }
    }

    fn remove(&mut self, place: Place) -> Option<Text<R>> {
        let Place { length, request: number, index } = place;
        self.by_length.remove(&place);
        let waiting = self.waiting.get_mut(&number)?;
        let tokens = waiting.texts.remove(&(length, index))?;
        let request = waiting.request.clone();
        if waiting.texts.is_empty() {
            self.turns.remove(&waiting.turn);
            self.waiting.remove(&number);
        }
        Some(Text { request, index, tokens })
    }

    /// Drops the texts of all requests but those that are wanted.
    pub fn retain(&mut self, wanted: impl Fn(&R) -> bool) {
        let (by_length, turns) = (&mut self.by_length, &mut self.turns);
        self.waiting.retain(|&number, Waiting { request, texts, turn }| {
            let keep = wanted(request);
            if !keep {
                turns.remove(turn);
                for &(length, index) in texts.keys() {
                    by_length.remove(&Place { length, request: number, index });
                }
            }
            keep
        });
    }

    /// Texts that wait.
    pub fn len(&self) -> usize {
        self.by_length.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.by_length.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests;
