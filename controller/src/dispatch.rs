//! Dispatch policies: the rules that pick one of the candidates for a request, and do nothing else.
//!
//! A new policy is one file beside `lottery.rs` and one line in the table below.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng as _};

mod candidates;
mod latency_feedback;
mod load_score;
mod lottery;
mod power_of_two;
mod prefix_affinity;
mod ranking;
mod resource_score;
mod ring;
mod round_robin;
mod shortest_queue;
mod usage;

pub(crate) use candidates::LANES;
pub use candidates::{Candidate, Candidates, Seat};
pub use latency_feedback::{LatencyFeedback, LatencyFeedbackLinear};
pub use load_score::LoadScore;
pub use lottery::Lottery;
pub use power_of_two::PowerOfTwo;
pub use prefix_affinity::PrefixAffinity;
pub(crate) use ranking::Ranking;
pub use ranking::Summary;
pub use resource_score::ResourceScore;
pub(crate) use ring::{Ring, mix};
pub use round_robin::RoundRobin;
pub use shortest_queue::ShortestQueue;

/// Every policy there is.
static POLICIES: [&dyn Policy; 9] = [
    &Lottery,
    &ShortestQueue,
    &RoundRobin,
    &PowerOfTwo,
    &PrefixAffinity,
    &ResourceScore,
    &LoadScore,
    &LatencyFeedback,
    &LatencyFeedbackLinear,
];

/// What a policy may know of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRequest<'a> {
    /// The model it is for.
    pub model: &'a str,
    /// Hash of the start of its prompt, where the gateway gave one.
    pub affinity: Option<u64>,
}

/// A rule that picks a worker. It keeps nothing: the same arguments and random numbers give the same pick.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Its name in configuration files and flags: lower case, words joined by `_`.
    fn name(&self) -> &'static str;

    /// The number by which candidates are compared ([`Candidates::least`]) or drawn ([`Candidates::drawn`]). It depends
    /// on nothing but the candidate, since it is computed when that changes.
    fn key(&self, candidate: &Candidate) -> f64;

    /// The candidate that shall take the request; `None` where there is no candidate, and only then.
    fn pick(&self, candidates: &Candidates<'_>, request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat>;

    /// Whether it asks for candidates in the order of a ring ([`Candidates::after`]).
    fn wants_ring(&self) -> bool {
        false
    }

    /// Why it picked whom it picked, for people: the rest of a sentence that begins with the worker.
    fn reason(&self, picked: &Picked<'_>) -> String;

    /// The chance that a candidate had, where that can be told from the candidates alone.
    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, request: &PolicyRequest<'_>) -> Option<f64>;

    /// The key of a candidate as it is shown to people.
    fn score(&self, candidate: &Candidate) -> f64 {
        self.key(candidate)
    }
}

/// A pick that is to be explained.
#[derive(Clone, Copy)]
pub struct Picked<'a> {
    /// Who was picked.
    pub(crate) seat: Seat,
    /// From whom.
    pub(crate) candidates: &'a Candidates<'a>,
    /// For what.
    pub(crate) request: &'a PolicyRequest<'a>,
    /// Where the random numbers began from which it was drawn.
    pub(crate) seed: u64,
    /// What a seat's worker is called.
    pub(crate) name: &'a dyn Fn(Seat) -> String,
}

impl Picked<'_> {
    /// Who was picked.
    fn candidate(&self) -> &Candidate {
        self.candidates.get(self.seat).unwrap_or(&Candidate::IDLE)
    }

    /// That it had the least key, in the words for it.
    fn had_the_least(&self, what: &str) -> String {
        let Summary { count, .. } = *self.candidates.summary();
        match self.candidates.count_least() {
            1 if count == 1 => format!("had the {what}, and was the only candidate"),
            1 => format!("had the {what}, of {count} candidates"),
            ties if ties == count => format!("had the {what}, as all {count} candidates had, and was drawn"),
            ties => format!("had the {what}, as {ties} of {count} candidates had, and was drawn from these"),
        }
    }

    /// That it was drawn with a chance.
    fn was_drawn(&self, policy: &dyn Policy) -> String {
        let chance = policy.chance(self.candidate(), self.candidates, self.request).unwrap_or(0.0);
        format!("was drawn with a chance of {:.1} %", chance * 100.0)
    }
}

impl fmt::Debug for Picked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picked").field("seat", &self.seat).field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// The names of all policies, in the order in which they are listed to users.
pub fn names() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|policy| policy.name())
}

/// The policy of exactly this name.
pub fn by_name(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|policy| policy.name() == name)
}

/// The random numbers of one decision. The generator is one whose numbers are the same on every machine and in every later
/// version of its library, so that a decision can be made again from its seed.
pub(crate) fn dice(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// Which policy picks for which model.
#[derive(Debug, Clone)]
pub(crate) struct Policies {
    usual: &'static dyn Policy,
    by_model: BTreeMap<String, &'static dyn Policy>,
}

impl Policies {
    /// One for all models but those that have their own.
    pub(crate) fn new(usual: &'static dyn Policy, by_model: BTreeMap<String, &'static dyn Policy>) -> Self {
        Self { usual, by_model }
    }

    /// That of a model.
    pub(crate) fn of(&self, model: &str) -> &'static dyn Policy {
        self.by_model.get(model).copied().unwrap_or(self.usual)
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Resources;
    use muster_shared::id::WorkerId;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// How often each candidate is picked in `rounds`, where a pick adds one to its load if `held`.
    pub(super) fn picks(policy: &dyn Policy, mut candidates: Vec<Candidate>, rounds: usize, held: bool) -> Vec<usize> {
        let mut ranking = Ranking::default();
        let put =
            |ranking: &mut Ranking, place, candidate| ranking.set(place, Some((candidate, policy.key(&candidate))));
        candidates.iter().enumerate().for_each(|(place, &candidate)| put(&mut ranking, place, candidate));
        let request = PolicyRequest { model: "m", affinity: None };
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = vec![0; candidates.len()];
        for round in 1..=rounds {
            let view = Candidates::new([Some(&ranking), None, None, None], None);
            let place = policy.pick(&view, &request, &mut rng).expect("there are candidates").place as usize;
            counts[place] += 1;
            candidates[place].load += u32::from(held);
            candidates[place].turn = round as u64;
            put(&mut ranking, place, candidates[place]);
        }
        counts
    }

    /// A candidate of that speed and load.
    pub(super) fn candidate(speed: f64, load: u32) -> Candidate {
        Candidate { speed, load, ..Candidate::IDLE }
    }

    /// Why the policy picks for that seed, and the chance of each candidate.
    pub(super) fn explained(policy: &dyn Policy, candidates: &[Candidate], seed: u64) -> (String, Vec<Option<f64>>) {
        let mut ranking = Ranking::default();
        for (place, candidate) in candidates.iter().enumerate() {
            ranking.set(place, Some((*candidate, policy.key(candidate))));
        }
        let view = Candidates::new([Some(&ranking), None, None, None], None);
        let request = PolicyRequest { model: "m", affinity: None };
        let seat = policy.pick(&view, &request, &mut dice(seed)).expect("there are candidates");
        let name = |seat: Seat| format!("w{}", seat.place);
        let picked = Picked { seat, candidates: &view, request: &request, seed, name: &name };
        let chances = candidates.iter().map(|candidate| policy.chance(candidate, &view, &request)).collect();
        (format!("w{} {}", seat.place, policy.reason(&picked)), chances)
    }

    #[test]
    fn chances_that_are_told_add_up_and_come_true() {
        let resources = |cpu| Resources { cpu: Some(cpu), memory: Some(cpu), ..Resources::default() };
        let busy = |speed, load, response_ms, turn| Candidate { speed, load, response_ms, turn, ..Candidate::IDLE };
        let candidates = vec![
            Candidate { resources: resources(0.5), ..busy(1.0, 2, Some(100.0), 3) },
            Candidate { resources: resources(0.2), ..busy(3.0, 3, Some(300.0), 1) },
            Candidate { resources: resources(0.2), ..busy(4.0, 4, None, 1) },
        ];
        for policy in POLICIES {
            let chances = explained(policy, &candidates, 1).1;
            let told: Vec<f64> = chances.into_iter().flatten().collect();
            if told.is_empty() {
                assert_eq!(policy.name(), "power_of_two");
                continue;
            }
            assert!((told.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{policy:?}: {told:?}");
            let mut counts = [0_u32; 3];
            for seed in 0..4000 {
                let place: usize = explained(policy, &candidates, seed).0[1..2].parse().expect("a place");
                counts[place] += 1;
            }
            let near = counts.iter().zip(&told).all(|(&count, told)| (f64::from(count) / 4000.0 - told).abs() < 0.03);
            assert!(near, "{policy:?}: {counts:?} of 4000, but {told:?} were told");
        }
    }

    #[test]
    fn every_policy_is_found_by_its_name() {
        for name in names() {
            assert_eq!(by_name(name).expect("it is in the table").name(), name);
        }
        assert!(by_name("coin").is_none());
    }

    #[test]
    fn every_policy_picks_the_only_candidate_and_none_where_there_is_none() {
        let request = PolicyRequest { model: "m", affinity: Some(1) };
        for policy in POLICIES {
            assert_eq!(picks(policy, vec![candidate(0.1, 9)], 10, true), [10], "{policy:?}");
            let nobody = Candidates::new([None; LANES], None);
            assert_eq!(policy.pick(&nobody, &request, &mut StdRng::seed_from_u64(7)), None, "{policy:?}");
        }
    }

    #[test]
    fn every_policy_picks_from_any_kind_of_candidates() {
        let request = PolicyRequest { model: "m", affinity: None };
        for policy in POLICIES {
            let mut ranking = Ranking::default();
            ranking.set(5, Some((candidate(1.0, 0), policy.key(&candidate(1.0, 0)))));
            let empty = Ranking::default();
            let view = Candidates::new([Some(&empty), None, Some(&ranking), Some(&empty)], None);
            let picked = policy.pick(&view, &request, &mut StdRng::seed_from_u64(7));
            assert_eq!(picked, Some(Seat { lane: 2, place: 5 }), "{policy:?}");
        }
    }

    prop_compose! {
        /// A candidate of any kind.
        fn any_candidate()(
            (speed, load, given) in (0.1..100.0_f64, 0..100_u32, 0..100_u32),
            capacity in proptest::option::of(0..200_u32),
            fractions in proptest::array::uniform4(proptest::option::of(0.0..=1.0_f64)),
            response_ms in proptest::option::of(0.0..1e6_f64),
            turn in 0..50_u64,
        ) -> Candidate {
            let [cpu, memory, network, gpu] = fractions;
            let resources = Resources { cpu, memory, network, gpu, ..Resources::default() };
            Candidate { speed, load, capacity, given, resources, response_ms, turn }
        }
    }

    /// Up to eight workers of each kind, of which some are no candidates.
    fn any_lanes() -> impl Strategy<Value = [Vec<Option<Candidate>>; LANES]> {
        proptest::array::uniform4(proptest::collection::vec(proptest::option::of(any_candidate()), 0..8))
    }

    proptest! {
        #[test]
        fn every_policy_picks_a_candidate_where_there_is_one_and_the_same_one_again(
            lanes in any_lanes(),
            affinity in proptest::option::of(any::<u64>()),
            seed in any::<u64>(),
        ) {
            let mut ring = Ring::default();
            for (lane, members) in (0..).zip(&lanes) {
                for place in (0..).take(members.len()) {
                    ring.add(&WorkerId::new(format!("http://w{lane}-{place}")), Seat { lane, place });
                }
            }
            for policy in POLICIES {
                let rankings = lanes.each_ref().map(|members| {
                    let mut ranking = Ranking::default();
                    for (place, candidate) in members.iter().enumerate() {
                        ranking.set(place, candidate.map(|candidate| (candidate, policy.key(&candidate))));
                    }
                    ranking
                });
                let view = Candidates::new(rankings.each_ref().map(Some), policy.wants_ring().then_some(&ring));
                let request = PolicyRequest { model: "m", affinity };
                let picked = policy.pick(&view, &request, &mut StdRng::seed_from_u64(seed));
                prop_assert_eq!(picked.is_none(), view.is_empty(), "{:?}", policy);
                prop_assert!(picked.is_none_or(|seat| view.get(seat).is_some()), "{:?}", policy);
                prop_assert_eq!(policy.pick(&view, &request, &mut StdRng::seed_from_u64(seed)), picked, "{:?}", policy);
            }
        }
    }
}
