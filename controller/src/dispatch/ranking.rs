//! Candidates in a tree by which the least, one drawn by chance, and any of them are found without a look at all. Pure.
//!
//! A tournament: each inner node holds the least key of the candidates below it, how many have that key, how many there
//! are, and the sum and the greatest of their keys. A change of one candidate is a change of the nodes above it.

use rand::{Rng, RngExt as _};

use super::Candidate;

/// Candidates of one kind, each at a place of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranking {
    /// What is at each place; a power of two of places.
    candidates: Vec<Option<Candidate>>,
    /// `nodes[1]` is the root, the children of `n` are `2n` and `2n + 1`, and the leaves stand last, by place.
    nodes: Vec<Summary>,
}

/// What the candidates below a node are like together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many there are.
    pub count: u32,
    /// How many have the least key.
    ties: u32,
    /// The least key; infinite where there is none.
    pub least: f64,
    /// The greatest key; negative infinity where there is none.
    pub greatest: f64,
    /// The sum of their keys.
    pub sum: f64,
    /// The sum of their loads.
    pub load: u64,
    /// The sum of their speeds.
    pub speed: f64,
}

impl Summary {
    /// That of no candidate.
    pub(super) const NONE: Self =
        Self { count: 0, ties: 0, least: f64::INFINITY, greatest: f64::NEG_INFINITY, sum: 0.0, load: 0, speed: 0.0 };

    pub(super) fn of(key: f64, candidate: &Candidate) -> Self {
        let (load, speed) = (candidate.load.into(), candidate.speed);
        Self { count: 1, ties: 1, least: key, greatest: key, sum: key, load, speed }
    }

    /// How many have that key, if it is the least of all.
    pub(super) fn ties_at(&self, least: f64) -> u32 {
        if self.least == least { self.ties } else { 0 }
    }

    pub(super) fn with(&self, other: &Self) -> Self {
        let least = self.least.min(other.least);
        Self {
            count: self.count + other.count,
            ties: self.ties_at(least) + other.ties_at(least),
            least,
            greatest: self.greatest.max(other.greatest),
            sum: self.sum + other.sum,
            load: self.load + other.load,
            speed: self.speed + other.speed,
        }
    }
}

impl Ranking {
    /// What all its candidates are like together.
    pub(super) fn summary(&self) -> Summary {
        self.nodes.get(1).copied().unwrap_or(Summary::NONE)
    }

    /// How many candidates it has.
    pub(crate) fn count(&self) -> u32 {
        self.summary().count
    }

    /// What is at a place.
    pub(crate) fn get(&self, place: usize) -> Option<&Candidate> {
        self.candidates.get(place)?.as_ref()
    }

    /// Every candidate with its place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Candidate)> {
        let places = self.candidates.iter().enumerate();
        places.filter_map(|(place, candidate)| candidate.as_ref().map(|candidate| (place, candidate)))
    }

    /// Puts a candidate at a place, by its key, or takes what is there away.
    pub(crate) fn set(&mut self, place: usize, candidate: Option<(Candidate, f64)>) {
        if place >= self.candidates.len() {
            if candidate.is_none() {
                return;
            }
            self.grow(place + 1);
        }
        let leaf = match &candidate {
            // A key that is no number can be compared with nothing, and would be taken for the least.
            Some((candidate, key)) => Summary::of(if key.is_nan() { f64::MAX } else { *key }, candidate),
            None => Summary::NONE,
        };
        self.candidates[place] = candidate.map(|(candidate, _)| candidate);
        let mut node = self.candidates.len() + place;
        self.nodes[node] = leaf;
        while node > 1 {
            node /= 2;
            let summary = self.nodes[2 * node].with(&self.nodes[2 * node + 1]);
            if self.nodes[node] == summary {
                return; // nothing above it changes either
            }
            self.nodes[node] = summary;
        }
    }

    fn grow(&mut self, places: usize) {
        let places = places.next_power_of_two();
        self.candidates.resize(places, None);
        let leaves = self.nodes.split_off(self.nodes.len() / 2);
        self.nodes.clear();
        self.nodes.resize(places, Summary::NONE);
        self.nodes.extend(leaves);
        self.nodes.resize(2 * places, Summary::NONE);
        for node in (1..places).rev() {
            self.nodes[node] = self.nodes[2 * node].with(&self.nodes[2 * node + 1]);
        }
    }

    /// The `nth` of those whose key is `least`, in the order of their places.
    pub(super) fn nth_least(&self, least: f64, mut nth: u32) -> usize {
        self.descend(|left, _| {
            let ties = left.ties_at(least);
            let is_left = nth < ties;
            if !is_left {
                nth -= ties;
            }
            is_left
        })
    }

    /// The `nth` of all, in the order of their places.
    pub(super) fn nth(&self, mut nth: u32) -> usize {
        self.descend(|left, _| {
            let is_left = nth < left.count;
            if !is_left {
                nth -= left.count;
            }
            is_left
        })
    }

    /// Where a draw falls, from 0 to the sum of all weights; `weight` of a node is the sum of those below it.
    pub(super) fn drawn(&self, mut draw: f64, weight: &dyn Fn(&Summary) -> f64) -> usize {
        self.descend(|left, right| {
            let below = if left.count == 0 { 0.0 } else { weight(left) };
            // Rounding may carry a draw past the end of what is there.
            let is_left = left.count > 0 && (draw < below || right.count == 0 || weight(right) <= 0.0);
            if !is_left {
                draw -= below;
            }
            is_left
        })
    }

    fn descend(&self, mut is_left: impl FnMut(&Summary, &Summary) -> bool) -> usize {
        let mut node = 1;
        while node < self.candidates.len() {
            let (left, right) = (&self.nodes[2 * node], &self.nodes[2 * node + 1]);
            node = 2 * node + usize::from(!is_left(left, right));
        }
        node - self.candidates.len()
    }
}

/// A number below `count`, which is above zero.
pub(super) fn below(count: u32, rng: &mut dyn Rng) -> u32 {
    if count == 1 { 0 } else { rng.random_range(0..count) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranking(keys: &[Option<f64>]) -> Ranking {
        let mut ranking = Ranking::default();
        for (place, key) in keys.iter().enumerate() {
            ranking.set(place, key.map(|key| (Candidate { load: 2, ..Candidate::IDLE }, key)));
        }
        ranking
    }

    fn keys() -> impl Strategy<Value = Vec<Option<f64>>> {
        let key = proptest::option::weighted(0.7, (0..6_u8).prop_map(f64::from));
        proptest::collection::vec(key, 0..40)
    }

    proptest! {
        #[test]
        fn a_summary_says_what_a_look_at_all_would(keys in keys(), again in keys()) {
            let mut ranking = ranking(&keys);
            let mut all = keys;
            all.resize(all.len().max(again.len()), None);
            for (place, key) in again.iter().enumerate() {
                ranking.set(place, key.map(|key| (Candidate { load: 2, ..Candidate::IDLE }, key)));
                all[place] = *key;
            }
            let there: Vec<f64> = all.iter().flatten().copied().collect();
            let summary = ranking.summary();
            prop_assert_eq!(summary.count as usize, there.len());
            prop_assert_eq!(summary.load, 2 * u64::from(summary.count));
            prop_assert_eq!(summary.least, there.iter().copied().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(summary.greatest, there.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            prop_assert_eq!(summary.sum, there.iter().sum::<f64>());
            let least: Vec<usize> = (0..all.len()).filter(|&place| all[place] == Some(summary.least)).collect();
            let found: Vec<usize> =
                (0..least.len()).map(|nth| ranking.nth_least(summary.least, nth as u32)).collect();
            prop_assert_eq!(found, least);
            let any: Vec<usize> = (0..all.len()).filter(|&place| all[place].is_some()).collect();
            prop_assert_eq!((0..any.len()).map(|nth| ranking.nth(nth as u32)).collect::<Vec<_>>(), any);
        }

        #[test]
        fn a_draw_falls_where_the_weights_say(keys in keys(), share in 0.0..1.0_f64) {
            let ranking = ranking(&keys);
            let total = ranking.summary().sum;
            prop_assume!(total > 0.0);
            let place = ranking.drawn(share * total, &|summary| summary.sum);
            let key = keys[place].expect("someone is there");
            let before: f64 = keys[..place].iter().flatten().sum();
            prop_assert!(key > 0.0 && before <= share * total + 1e-9 && share * total <= before + key + 1e-9);
            let last = ranking.drawn(total * 1.1, &|summary| summary.sum);
            prop_assert!(keys[last].is_some_and(|key| key > 0.0), "a draw past the end: {last}");
        }
    }
}
