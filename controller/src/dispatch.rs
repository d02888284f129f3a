//! Dispatch policies: the rules that pick one of the live candidates for a request, and do nothing else.
//!
//! A new policy is one file beside `lottery.rs` and one line in the table below.

use std::fmt;

use muster_shared::id::WorkerId;
use rand::Rng;

mod lottery;
mod shortest_queue;

pub use lottery::Lottery;
pub use shortest_queue::ShortestQueue;

/// Every policy there is.
static POLICIES: [&dyn Policy; 2] = [&Lottery, &ShortestQueue];

/// A worker that has room for the request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Its name.
    pub worker: &'a WorkerId,
    /// Tokens per second it produces for one request, relative to its peers; finite, not below zero.
    pub speed: f64,
    /// Requests it has of all its models: the controller's tickets, and traffic that bypassed the controller.
    pub load: u32,
}

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

    /// The index of the candidate that shall take the request. `candidates` is never empty.
    fn pick(&self, candidates: &[Candidate<'_>], request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> usize;
}

/// The names of all policies, in the order in which they are listed to users.
pub fn names() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|policy| policy.name())
}

/// The policy of exactly this name.
pub fn by_name(name: &str) -> Option<&'static dyn Policy> {
    POLICIES.into_iter().find(|policy| policy.name() == name)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// How often each candidate is picked in `rounds`, where a pick adds one to its load if `held`.
    pub(super) fn picks(policy: &dyn Policy, workers: &[(f64, u32)], rounds: usize, held: bool) -> Vec<usize> {
        let id = WorkerId::new("http://worker");
        let mut candidates: Vec<_> =
            workers.iter().map(|&(speed, load)| Candidate { worker: &id, speed, load }).collect();
        let request = PolicyRequest { model: "m", affinity: None };
        let mut rng = StdRng::seed_from_u64(7);
        let mut counts = vec![0; workers.len()];
        for _ in 0..rounds {
            let index = policy.pick(&candidates, &request, &mut rng);
            counts[index] += 1;
            candidates[index].load += u32::from(held);
        }
        counts
    }

    #[test]
    fn every_policy_is_found_by_its_name() {
        for name in names() {
            assert_eq!(by_name(name).expect("it is in the table").name(), name);
        }
        assert!(by_name("coin").is_none());
    }

    #[test]
    fn every_policy_picks_the_only_candidate() {
        for policy in POLICIES {
            assert_eq!(picks(policy, &[(0.0, 9)], 10, true), [10], "{policy:?}");
        }
    }
}
