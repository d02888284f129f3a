//! The workers of a model as they were at a decision, and the same decision made again.

use std::sync::Arc;

use muster_shared::id::WorkerId;
use rand::rngs::Xoshiro256PlusPlus;

use super::entry::Change;
use crate::dispatch::{Candidates, LANES, Policy, PolicyRequest, Ranking, Ring, Seat, dice};
use crate::registry::Standing;

/// The workers of a model, in the order that a policy wants, at the same places as in the registry: sums of fractions
/// depend on the order in which they are added.
#[derive(Debug)]
pub(super) struct Past {
    pub(super) policy: &'static dyn Policy,
    lanes: [Lane; LANES],
    ring: Option<Ring>,
}

#[derive(Debug, Default)]
struct Lane {
    seats: Vec<Option<Change>>,
    ready: Ranking,
    paused: Ranking,
}

/// What a policy was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) model: &'a str,
    pub(super) affinity: Option<u64>,
    /// Kinds of workers that understand the request.
    pub(super) wanted: [bool; LANES],
    /// Whether those are asked that are spared while there are others.
    pub(super) is_paused: bool,
    pub(super) exclude: &'a [WorkerId],
    pub(super) seed: u64,
}

impl Past {
    /// Nobody, to be put in order for `policy`.
    pub(super) fn new(policy: &'static dyn Policy) -> Self {
        let ring = policy.wants_ring().then(Ring::default);
        Self { policy, lanes: std::array::from_fn(|_| Lane::default()), ring }
    }

    /// Does a change.
    pub(super) fn apply(&mut self, change: &Change) {
        let place = change.seat().place as usize;
        let lane = &mut self.lanes[usize::from(change.seat().lane)];
        let before = lane.seats.get(place).and_then(|seat| name(seat.as_ref()));
        super::apply(&mut lane.seats, change);
        let now = &lane.seats[place];
        let after = name(now.as_ref());
        let standing = now.as_ref().map(Change::standing).unwrap_or_default();
        let keyed = standing.candidate.map(|candidate| (candidate, self.policy.key(&candidate)));
        let (here, there) =
            if standing.paused { (&mut lane.paused, &mut lane.ready) } else { (&mut lane.ready, &mut lane.paused) };
        there.set(place, None);
        here.set(place, keyed);
        if let Some(ring) = self.ring.as_mut().filter(|_| before != after) {
            before.iter().for_each(|worker| ring.remove(&WorkerId::new(&**worker), change.seat()));
            after.iter().for_each(|worker| ring.add(&WorkerId::new(&**worker), change.seat()));
        }
    }

    /// Makes a decision.
    pub(super) fn pick(&mut self, asked: &Asked<'_>) -> Option<Seat> {
        let policy = self.policy;
        self.ask(asked, |candidates, request, mut dice| policy.pick(candidates, request, &mut dice))
    }

    /// Shows the candidates of a request to `look`, with the random numbers that its policy drew.
    pub(super) fn ask<T>(
        &mut self,
        asked: &Asked<'_>,
        look: impl FnOnce(&Candidates<'_>, &PolicyRequest<'_>, Xoshiro256PlusPlus) -> T,
    ) -> T {
        let excluded: Vec<(Seat, Standing)> = if asked.exclude.is_empty() {
            Vec::new()
        } else {
            let is_meant = |worker: &str| asked.exclude.iter().any(|id| id.as_str() == worker);
            self.workers()
                .filter(|(_, worker, _)| is_meant(worker))
                .map(|(seat, _, standing)| (seat, standing))
                .collect()
        };
        for (seat, _) in &excluded {
            self.side(*seat, asked.is_paused).set(seat.place as usize, None);
        }
        let lanes = std::array::from_fn(|lane| asked.wanted[lane].then(|| self.lanes[lane].side(asked.is_paused)));
        let candidates = Candidates::new(lanes, self.ring.as_ref());
        let request = PolicyRequest { model: asked.model, affinity: asked.affinity };
        let seen = look(&candidates, &request, dice(asked.seed));
        for (seat, standing) in excluded.into_iter().filter(|(_, standing)| standing.paused == asked.is_paused) {
            let keyed = standing.candidate.map(|candidate| (candidate, self.policy.key(&candidate)));
            self.side(seat, asked.is_paused).set(seat.place as usize, keyed);
        }
        seen
    }

    /// Every worker, with its name and how it stood.
    pub(super) fn workers(&self) -> impl Iterator<Item = (Seat, &str, Standing)> {
        (0..).zip(&self.lanes).flat_map(|(lane, workers)| {
            let seats = (0..).zip(&workers.seats);
            seats.filter_map(move |(place, change)| {
                let change = change.as_ref()?;
                Some((Seat { lane, place }, &*change.machine.as_ref()?.worker, change.standing()))
            })
        })
    }

    /// Who sits there.
    pub(super) fn worker(&self, seat: Seat) -> Option<Arc<str>> {
        name(self.lanes[usize::from(seat.lane)].seats.get(seat.place as usize)?.as_ref())
    }

    fn side(&mut self, seat: Seat, is_paused: bool) -> &mut Ranking {
        let lane = &mut self.lanes[usize::from(seat.lane)];
        if is_paused { &mut lane.paused } else { &mut lane.ready }
    }
}

impl Lane {
    fn side(&self, is_paused: bool) -> &Ranking {
        if is_paused { &self.paused } else { &self.ready }
    }
}

fn name(change: Option<&Change>) -> Option<Arc<str>> {
    change?.machine.as_ref().map(|machine| Arc::clone(&machine.worker))
}
