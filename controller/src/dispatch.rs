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
