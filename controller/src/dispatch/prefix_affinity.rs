//! `prefix_affinity`: prompts that begin alike go to the same worker, which keeps the beginning, unless it has too much.
//!
//! Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016, arXiv:1608.01350). Each worker has points
//! on a ring, which depend on its name alone; a prompt belongs to the worker whose point follows its hash. With load `L` and
//! speed `S` of all candidates together, a worker of speed `s` takes at most
//!
//! ```text
//!   ceil(1.25 × (L + 1) × s / S)
//! ```
//!
//! requests; above that, or without room, the next point on the ring has the prompt. So a worker that goes takes nobody's
//! prompts along but its own, and no beginning, however beloved, drowns its worker. A prompt without a hash goes to the
//! shortest queue.

use std::collections::BTreeSet;

use rand::Rng;

use super::ring::mix;
use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat, Summary};

/// How much more than its fair share a worker may have: the `c` of the paper. Nearer to 1, prompts wander more.
const MOST: f64 = 1.25;

/// Picks the first candidate on the ring, from the prompt's hash on, that has not more than its share.
#[derive(Debug, Clone, Copy)]
pub struct PrefixAffinity;

/// Points of candidates that are looked at: a fleet in which so many are above their bound has no place for likes anyway.
const STEPS: usize = 1000;

impl Policy for PrefixAffinity {
    fn name(&self) -> &'static str {
        "prefix_affinity"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.queue()
    }

    fn pick(&self, candidates: &Candidates<'_>, request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        let fits = |candidate: &Candidate| f64::from(candidate.load) < bound(candidate, candidates.summary());
        let owner = request.affinity.and_then(|hash| {
            // A hash that is poor in high bits would crowd the ring's beginning.
            candidates.after(mix(hash)).take(STEPS).find(|(_, candidate)| fits(candidate)).map(|(seat, _)| seat)
        });
        owner.or_else(|| candidates.least(rng))
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        let (own, all) = (picked.candidate(), picked.candidates.summary());
        let least = || picked.had_the_least(&format!("least load ÷ speed, {:.2}", own.queue()));
        let Some(hash) = picked.request.affinity else {
            return format!("{}: the prompt came without a hash", least());
        };
        let (load, bound) = (own.load, bound(own, all));
        if f64::from(load) >= bound {
            return format!("{}: nobody near on the ring is below its share", least());
        }
        // Each has many points; those before it are counted once.
        let before = picked.candidates.after(mix(hash)).take(STEPS).map(|(seat, _)| seat);
        let before: BTreeSet<Seat> = before.take_while(|&seat| seat != picked.seat).collect();
        let order = match before.len() {
            0 => "is the first on the ring from the prompt's hash on".to_owned(),
            more => format!("follows the prompt's hash on the ring after {more} that had their share"),
        };
        format!("{order}, and was below its own (load {load}, at most {bound:.0})")
    }

    /// It is no draw, unless the prompt has no hash.
    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, request: &PolicyRequest<'_>) -> Option<f64> {
        request.affinity.is_none().then(|| candidates.chance_of_least(self.key(candidate)))
    }

    fn wants_ring(&self) -> bool {
        true
    }
}

/// The most requests that a candidate may have. The bounds of all are more than all have, so one is below its own.
fn bound(candidate: &Candidate, all: &Summary) -> f64 {
    (MOST * (all.load + 1) as f64 * candidate.speed / all.speed).ceil()
}

#[cfg(test)]
mod tests {
    use muster_shared::id::WorkerId;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::tests::{candidate, picks};
    use super::super::{LANES, Ranking, Ring, dice};
    use super::*;

    /// Workers by number: those that are candidates, on a ring of all.
    struct Fleet {
        ranking: Ranking,
        ring: Ring,
    }

    impl Fleet {
        fn new(workers: &[Option<Candidate>]) -> Self {
            let mut fleet = Self { ranking: Ranking::default(), ring: Ring::default() };
            for (place, candidate) in workers.iter().enumerate() {
                fleet.ring.add(&WorkerId::new(format!("http://w{place}")), seat(place));
                fleet.set(place, *candidate);
            }
            fleet
        }

        fn set(&mut self, place: usize, candidate: Option<Candidate>) {
            self.ranking.set(place, candidate.map(|candidate| (candidate, PrefixAffinity.key(&candidate))));
        }

        fn pick(&self, prompt: u64) -> Option<usize> {
            let mut lanes = [None; LANES];
            lanes[0] = Some(&self.ranking);
            let request = PolicyRequest { model: "m", affinity: Some(prompt) };
            let view = Candidates::new(lanes, Some(&self.ring));
            let picked = PrefixAffinity.pick(&view, &request, &mut StdRng::seed_from_u64(prompt));
            picked.map(|seat| seat.place as usize)
        }

        /// Gives a prompt to whom it belongs.
        fn give(&mut self, prompt: u64) -> usize {
            let place = self.pick(prompt).expect("there are candidates");
            let mut candidate = *self.ranking.get(place).expect("a candidate was picked");
            candidate.load += 1;
            self.set(place, Some(candidate));
            place
        }
    }

    fn seat(place: usize) -> Seat {
        Seat { lane: 0, place: place as u32 }
    }

    #[test]
    fn it_tells_whose_prompt_it_was_and_who_had_too_much() {
        let mut fleet = Fleet::new(&[Some(candidate(1.0, 4)); 4]);
        let owner = fleet.give(7);
        let told = |fleet: &Fleet, prompt: Option<u64>| {
            let view = Candidates::new([Some(&fleet.ranking), None, None, None], Some(&fleet.ring));
            let request = PolicyRequest { model: "m", affinity: prompt };
            let picked = PrefixAffinity.pick(&view, &request, &mut dice(1)).expect("someone");
            let name = |seat: Seat| format!("w{}", seat.place);
            let picked = Picked { seat: picked, candidates: &view, request: &request, seed: 1, name: &name };
            PrefixAffinity.reason(&picked)
        };
        let first = "is the first on the ring from the prompt's hash on, and was below its own (load 5, at most 6)";
        assert_eq!(told(&fleet, Some(7)), first);
        fleet.give(7);
        let second = "follows the prompt's hash on the ring after 1 that had their share, \
            and was below its own (load 4, at most 6)";
        assert_eq!(told(&fleet, Some(7)), second);
        fleet.set(owner, None);
        assert!(told(&fleet, Some(7)).starts_with("is the first on the ring"), "one without room is no candidate");
        assert!(told(&fleet, None).ends_with(": the prompt came without a hash"));
    }

    #[test]
    fn the_same_prompt_goes_to_the_same_worker_in_every_build() {
        let fleet = Fleet::new(&[Some(candidate(1.0, 0)); 8]);
        let owners: Vec<_> = (0..10).map(|prompt| fleet.pick(prompt).expect("there are candidates")).collect();
        assert_eq!(owners, GOLDEN);
    }

    /// Computed apart from this code; another list would mean that a new version of the controller forgets what all workers keep.
    const GOLDEN: [usize; 10] = [6, 7, 5, 1, 7, 7, 6, 4, 4, 4];

    #[test]
    fn one_prompt_alone_stays_while_its_worker_has_its_share_only() {
        let mut fleet = Fleet::new(&[Some(candidate(1.0, 4)); 4]);
        // Of 17 requests a worker may have ceil(1.25 × 17 / 4) = 6.
        let owner = fleet.give(7);
        assert_eq!(fleet.give(7), owner);
        assert_ne!(fleet.give(7), owner, "of 19 it may have 6, and has them");
    }

    #[test]
    fn without_a_hash_the_shortest_queue_is_picked() {
        assert_eq!(picks(&PrefixAffinity, vec![candidate(1.0, 1), candidate(4.0, 3)], 50, false), [0, 50]);
    }

    proptest! {
        #[test]
        fn loads_stay_within_their_bounds(
            speeds in proptest::collection::vec(0.5..8.0_f64, 1..20),
            prompts in proptest::collection::vec(0..6_u64, 1..200),
        ) {
            let mut fleet = Fleet::new(&speeds.iter().map(|&speed| Some(candidate(speed, 0))).collect::<Vec<_>>());
            let total: f64 = speeds.iter().sum();
            for (given, prompt) in prompts.into_iter().enumerate() {
                let place = fleet.give(prompt);
                let load = fleet.ranking.get(place).expect("it is there").load;
                let bound = (1.25 * (given + 1) as f64 * speeds[place] / total).ceil();
                prop_assert!(f64::from(load) <= bound, "{load} above {bound}");
            }
        }

        #[test]
        fn a_worker_that_goes_moves_only_its_own_prompts(gone in 0..12_usize) {
            let mut fleet = Fleet::new(&[Some(candidate(1.0, 0)); 12]);
            let before: Vec<_> = (0..500).map(|prompt| fleet.pick(prompt)).collect();
            fleet.set(gone, None);
            for (prompt, before) in before.into_iter().enumerate() {
                let after = fleet.pick(prompt as u64);
                prop_assert_eq!(after == before, before != Some(gone), "prompt {}", prompt);
            }
            fleet.ring.remove(&WorkerId::new(format!("http://w{gone}")), seat(gone));
            prop_assert!((0..500).all(|prompt| fleet.pick(prompt) != Some(gone)));
        }
    }
}
