//! The candidates of one request, as a policy sees them.

use muster_shared::control::Resources;
use rand::{Rng, RngExt as _};

use super::ranking::{Ranking, Summary, below};
use super::ring::Ring;

/// Kinds of candidates that may be told apart by a request: transports, of which it may understand some only.
pub(crate) const LANES: usize = muster_shared::transport::Transport::ALL.len();

/// A worker that has room for the request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Tokens per second it produces for one request, relative to its peers; finite, above zero.
    pub speed: f64,
    /// Requests it has of all its models: the controller's tickets, and traffic that bypassed the controller.
    pub load: u32,
    /// Requests of this model that it takes at once, running and waiting; `None`: no limit is known.
    pub capacity: Option<u32>,
    /// Requests it was given since its last heartbeat, of which the heartbeat says nothing yet.
    pub given: u32,
    /// How much of its machine was in use at its last heartbeat.
    pub resources: Resources,
    /// Time from a grant to its release, in milliseconds: a moving average over requests that succeeded.
    pub response_ms: Option<f64>,
    /// Number of the last request for this model that it got; 0: none yet.
    pub turn: u64,
}

impl Candidate {
    /// One that has nothing to do and of which nothing is known.
    pub const IDLE: Self = Self {
        speed: 1.0,
        load: 0,
        capacity: None,
        given: 0,
        resources: Resources {
            cpu: None,
            model_cpu: None,
            memory: None,
            network: None,
            gpu: None,
            gpu_memory: None,
            kv_cache: None,
        },
        response_ms: None,
        turn: 0,
    };

    /// Time that its load takes, in requests at speed 1; nothing where there is none.
    pub fn queue(&self) -> f64 {
        if self.load == 0 { 0.0 } else { f64::from(self.load) / self.speed }
    }
}

/// Where a candidate sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// Its kind.
    pub(crate) lane: u8,
    /// Its number among those of its kind.
    pub(crate) place: u32,
}

/// Every candidate of one request. There may be ten thousand: what a policy asks most is found without a look at all.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    lanes: [Option<&'a Ranking>; LANES],
    ring: Option<&'a Ring>,
    summary: Summary,
}

impl<'a> Candidates<'a> {
    /// Those of the given kinds. `ring`: where the seats of all workers lie, candidates or not.
    pub(crate) fn new(lanes: [Option<&'a Ranking>; LANES], ring: Option<&'a Ring>) -> Self {
        let summary =
            lanes.iter().flatten().map(|lane| lane.summary()).fold(Summary::NONE, |sum, next| sum.with(&next));
        Self { lanes, ring, summary }
    }

    /// What they are like together.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.summary.count == 0
    }

    /// How many have the least key.
    pub fn count_least(&self) -> u32 {
        self.summary.ties_at(self.summary.least)
    }

    /// The chance of one of that key to be picked by [`Candidates::least`].
    pub fn chance_of_least(&self, key: f64) -> f64 {
        if key == self.summary.least { 1.0 / f64::from(self.count_least()) } else { 0.0 }
    }

    /// The chance of one to be picked by [`Candidates::drawn_by`], of that weight.
    pub fn chance_of_drawn(&self, own: f64, weight: &dyn Fn(&Summary) -> f64) -> f64 {
        let total = weight(&self.summary);
        if total > 0.0 && total.is_finite() { own / total } else { 1.0 / f64::from(self.summary.count.max(1)) }
    }

    /// Who sits there, if it is a candidate.
    pub fn get(&self, seat: Seat) -> Option<&'a Candidate> {
        self.lanes[usize::from(seat.lane)]?.get(seat.place as usize)
    }

    /// All of them; a look at each.
    pub fn iter(&self) -> impl Iterator<Item = (Seat, &'a Candidate)> {
        self.lanes()
            .flat_map(|(lane, ranking)| ranking.iter().map(move |(place, candidate)| (seat(lane, place), candidate)))
    }

    /// Any of those with the least key; each with the same chance.
    pub fn least(&self, rng: &mut dyn Rng) -> Option<Seat> {
        let least = self.summary.least;
        self.nth_by(
            self.summary.ties_at(least),
            rng,
            |lane| lane.ties_at(least),
            |ranking, nth| ranking.nth_least(least, nth),
        )
    }

    /// Any of them; each with the same chance.
    pub fn any(&self, rng: &mut dyn Rng) -> Option<Seat> {
        self.nth_by(self.summary.count, rng, |lane| lane.count, Ranking::nth)
    }

    /// One of them, each with a chance proportional to its key; where all keys are 0, or their sum is no number, any.
    pub fn drawn(&self, rng: &mut dyn Rng) -> Option<Seat> {
        self.drawn_by(rng, &|summary| summary.sum)
    }

    /// One of them, each with a chance proportional to its weight. `weight` must be additive: that of several candidates
    /// is the sum of theirs, computed from their number and the sum of their keys.
    pub fn drawn_by(&self, rng: &mut dyn Rng, weight: &dyn Fn(&Summary) -> f64) -> Option<Seat> {
        if self.is_empty() {
            return None;
        }
        let total = weight(&self.summary);
        if !(total > 0.0 && total.is_finite()) {
            return self.any(rng);
        }
        let mut draw = rng.random_range(0.0..total);
        let mut last = None;
        for (lane, ranking) in self.lanes() {
            let summary = ranking.summary();
            let below = if summary.count == 0 { 0.0 } else { weight(&summary) };
            if below > 0.0 {
                last = Some((lane, ranking));
                if draw < below {
                    break;
                }
                draw -= below;
            }
        }
        // Rounding may have carried the draw past the end; the last one with any chance takes it.
        last.map(|(lane, ranking)| seat(lane, ranking.drawn(draw, weight)))
    }

    /// The candidates in the order in which their points follow `hash` on the ring, where the policy wants a ring; each as
    /// often as it has points.
    pub fn after(&self, hash: u64) -> impl Iterator<Item = (Seat, &'a Candidate)> {
        let seats = self.ring.into_iter().flat_map(move |ring| ring.after(hash));
        let candidates = *self;
        seats.filter_map(move |seat| candidates.get(seat).map(|candidate| (seat, candidate)))
    }

    fn lanes(&self) -> impl Iterator<Item = (usize, &'a Ranking)> + use<'a> {
        self.lanes.into_iter().enumerate().filter_map(|(lane, ranking)| ranking.map(|ranking| (lane, ranking)))
    }

    /// One of `total`, counted through the lanes.
    fn nth_by(
        &self,
        total: u32,
        rng: &mut dyn Rng,
        count: impl Fn(&Summary) -> u32,
        find: impl Fn(&Ranking, u32) -> usize,
    ) -> Option<Seat> {
        if total == 0 {
            return None;
        }
        let mut nth = below(total, rng);
        for (lane, ranking) in self.lanes() {
            let here = count(&ranking.summary());
            if nth < here {
                return Some(seat(lane, find(ranking, nth)));
            }
            nth -= here;
        }
        None
    }
}

fn seat(lane: usize, place: usize) -> Seat {
    Seat { lane: lane as u8, place: place as u32 }
}
