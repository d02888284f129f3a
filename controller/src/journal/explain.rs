//! Decisions with what they were made of.

use std::collections::HashMap;

use muster_shared::id::WorkerId;
use muster_shared::journal::{Decision, Explained, Explanation, Kept, Other, Weighed, Why};
use muster_shared::problem::{Kind, Problem};

use super::entry::{Entry, Verdict};
use super::past::{Asked, Past};
use super::told::{AllNames, Clock};
use super::{Snapshot, Stream};
use crate::dispatch::{Candidates, Picked, PolicyRequest, Seat};
use crate::registry::Standing;

/// Decisions of one request that are explained, the last ones: as many as a request is usually tried, and some.
const MOST: usize = 8;

impl Snapshot {
    /// Why the workers of a request were chosen.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when no decision that is kept is about it.
    pub(crate) fn explain(&self, request: &str, clock: Clock) -> Result<Explanation, Problem> {
        let all: Vec<u64> = self
            .decisions()
            .filter(|(_, entry, ..)| entry.request.as_deref() == Some(request))
            .map(|(number, ..)| number)
            .collect();
        // Clients choose ids, and may give many requests the same one.
        let earlier = all.len().saturating_sub(MOST);
        let meant = &all[earlier..];
        let is_meant = |number: u64| meant.binary_search(&number).is_ok();
        // Only pools that are asked about are rebuilt; a large one takes a while.
        let decisions = self.decisions().filter(|(number, ..)| is_meant(*number));
        let pools = decisions.filter_map(|(_, entry, ..)| entry.stream);
        let pasts = pools.filter_map(|id| self.streams.get(&id).map(|stream| (id, stream.past(stream.policy))));
        let mut pasts: HashMap<u32, Past> = pasts.collect();
        let (mut names, mut decisions) = (AllNames::default(), Vec::new());
        for (number, entry, changes, ending) in self.decisions() {
            let past = entry.stream.and_then(|id| Some((self.streams.get(&id)?, pasts.get_mut(&id)?)));
            let named = names.follow(self, entry, changes);
            if past.is_none() && !is_meant(number) {
                continue;
            }
            let past = past.map(|(stream, past)| {
                changes.iter().for_each(|change| past.apply(change));
                (stream.as_ref(), past)
            });
            if is_meant(number) {
                let decision = self.decision(number, entry, ending, named, clock);
                decisions.push(explained(decision, entry, past));
            }
        }
        let kept = self.kept(clock);
        if decisions.is_empty() {
            return Err(unknown(request, &kept, clock));
        }
        let earlier = u32::try_from(earlier).unwrap_or(u32::MAX);
        Ok(Explanation { request: request.to_owned(), decisions, earlier, kept })
    }
}

fn unknown(request: &str, kept: &Kept, clock: Clock) -> Problem {
    let shown: String = request.chars().take(128).collect();
    let since = match kept.since_ms {
        Some(ms) => {
            let ago = clock.unix_ms.saturating_sub(ms) / 1000;
            format!("the last {} decisions are kept, and the oldest was made {ago} s ago", kept.decisions)
        }
        None => "no decision has been made yet".to_owned(),
    };
    let message = format!(
        "no decision about a request `{shown}` is known: {since}. An id is the `x-request-id` of an answer; a request \
         that still waits for room has no decision yet"
    );
    Problem::new(Kind::NotFound, message).with_param("request")
}

/// A decision with those it was made from.
fn explained(decision: Decision, entry: &Entry, past: Option<(&Stream, &mut Past)>) -> Explained {
    let Some((stream, past)) = past else {
        return Explained { decision, reason: None, candidates: Vec::new(), others: Vec::new() };
    };
    let exclude = entry.exclude.as_deref().unwrap_or_default();
    let (mut candidates, mut reason) = (Vec::new(), None);
    let mut is_paused = None;
    if let Verdict::Picked { seat, is_paused: side, seed } = entry.verdict {
        is_paused = Some(side);
        let Entry { affinity, wanted, .. } = *entry;
        let asked = Asked { model: &stream.model, affinity, wanted, is_paused: side, exclude, seed };
        (candidates, reason) = weighed(past, &asked, seat);
    }
    let side = is_paused.unwrap_or_else(|| !past.workers().any(|(_, _, it)| it.live && !it.paused));
    let others = past.workers().filter_map(|(seat, worker, standing)| {
        let why = if !entry.wanted[usize::from(seat.lane)] {
            Why::Protocol
        } else if exclude.iter().any(|id| id.as_str() == worker) && standing.live {
            Why::Excluded
        } else {
            why(&standing, side)
        };
        (why != Why::Room || is_paused.is_none()).then(|| Other { worker: WorkerId::new(worker), why })
    });
    let others = others.collect();
    Explained { decision, reason, candidates, others }
}

/// Why a worker is no candidate. `is_paused`: whether those are asked that are spared.
fn why(standing: &Standing, is_paused: bool) -> Why {
    match standing {
        Standing { live: false, .. } => Why::Leaving,
        Standing { open: true, .. } => Why::Open,
        Standing { paused, .. } if *paused != is_paused => Why::Spared,
        Standing { candidate: None, .. } => Why::Full,
        _ => Why::Room,
    }
}

/// The candidates of a decision, and why one of them was picked.
fn weighed(past: &mut Past, asked: &Asked<'_>, seat: Seat) -> (Vec<Weighed>, Option<String>) {
    let policy = past.policy;
    let names: HashMap<Seat, WorkerId> =
        past.workers().map(|(seat, worker, _)| (seat, WorkerId::new(worker))).collect();
    let name = |seat: Seat| names.get(&seat).map(ToString::to_string).unwrap_or_default();
    past.ask(asked, |candidates: &Candidates<'_>, request: &PolicyRequest<'_>, _| {
        let weighed = candidates.iter().filter_map(|(place, candidate)| {
            Some(Weighed {
                worker: names.get(&place)?.clone(),
                picked: place == seat,
                score: policy.score(candidate),
                chance: policy.chance(candidate, candidates, request),
                load: candidate.load,
                capacity: candidate.capacity,
                given: candidate.given,
                speed: candidate.speed,
                response_ms: candidate.response_ms,
                resources: candidate.resources,
            })
        });
        let weighed = weighed.collect();
        let picked = Picked { seat, candidates, request, seed: asked.seed, name: &name };
        (weighed, Some(policy.reason(&picked)))
    })
}
