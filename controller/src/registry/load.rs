//! What a worker has to do: the controller's own tickets, and traffic that bypassed the controller.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::ModelCard;

use crate::dispatch::Seat;

/// Traffic that bypassed the controller, as far as heartbeats prove it.
///
/// A heartbeat may be overtaken by the release of a request it still counts, so an excess over our tickets counts only
/// when two beats in a row show it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Foreign {
    counted: u32,
    last_excess: u32,
}

impl Foreign {
    /// Load told at a registration, when no ticket of ours can explain it.
    pub(crate) fn told(load: u32) -> Self {
        Self { counted: load, last_excess: load }
    }

    /// Requests that count.
    pub(crate) fn count(self) -> u32 {
        self.counted
    }

    /// One of them turns out to be a request with a ticket.
    fn explain_one(&mut self) {
        self.counted = self.counted.saturating_sub(1);
        self.last_excess = self.last_excess.saturating_sub(1);
    }

    /// Takes one heartbeat's excess. `vouched`: anonymous tickets that end with this beat; the requests they stood for
    /// are from now on seen as an excess, which needs no second beat to be believed.
    pub(crate) fn beat(&mut self, excess: u32, vouched: u32) {
        self.counted = excess.min(self.last_excess.max(vouched));
        self.last_excess = excess;
    }
}

/// Tickets beyond what a worker had at its last beat, though they had time to become requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Missing(u32);

impl Missing {
    /// Takes one heartbeat, and says how many tickets it proves lost: their grant or their release never arrived.
    ///
    /// `settled`: held tickets that had time to become requests of the worker. Those beyond what it has are lost if two
    /// beats in a row miss them.
    pub(crate) fn beat(&mut self, reported: u32, settled: u32) -> u32 {
        let missing = settled.saturating_sub(reported);
        let lost = missing.min(self.0);
        self.0 = missing - lost;
        lost
    }
}

/// One model of a worker, with the requests in flight on it.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The model as the worker states it.
    pub(crate) card: ModelCard,
    /// Where it stands among the workers of the model.
    pub(super) place: Option<Place>,
    /// Number of the last request that it was given; 0: none yet.
    pub(super) turn: u64,
    /// Live tickets that someone holds.
    pub(crate) held: u32,
    /// When each anonymous ticket was given, oldest first.
    anonymous: VecDeque<Instant>,
    /// Traffic that bypassed the controller.
    foreign: Foreign,
    missing: Missing,
}

/// A seat among the workers of a model.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The model's name, as all who speak of it share it.
    pub(super) model: Arc<str>,
    pub(super) seat: Seat,
}

impl Offer {
    /// An offer without load.
    pub(crate) fn new(card: ModelCard) -> Self {
        Self {
            card,
            place: None,
            turn: 0,
            held: 0,
            anonymous: VecDeque::new(),
            foreign: Foreign::default(),
            missing: Missing::default(),
        }
    }

    /// The load of `old` under the card of `self`.
    pub(crate) fn carry_over(&mut self, old: &Self) {
        *self = Self { card: self.card.clone(), place: self.place.take(), ..old.clone() };
    }

    /// Live tickets.
    pub(crate) fn tickets(&self) -> u32 {
        self.held + count(self.anonymous.len())
    }

    /// Live tickets and foreign requests.
    pub(crate) fn load(&self) -> u32 {
        self.tickets().saturating_add(self.foreign.count())
    }

    /// Whether one more request exceeds the stated capacity.
    pub(crate) fn is_full(&self) -> bool {
        self.card.capacity.is_some_and(|capacity| self.load() >= capacity.total())
    }

    /// A request that another run of the controller dispatched, or none, has got a ticket: heartbeats have told of it
    /// perhaps.
    pub(crate) fn explain_one(&mut self) {
        self.foreign.explain_one();
    }

    /// Gives an anonymous ticket.
    pub(crate) fn give_anonymous(&mut self, now: Instant) {
        self.anonymous.push_back(now);
    }

    /// Ends all anonymous tickets and says how many there were.
    pub(crate) fn end_anonymous(&mut self) -> u32 {
        let ended = count(self.anonymous.len());
        self.anonymous.clear();
        ended
    }

    /// Ends anonymous tickets of that age: the worker may never send a heartbeat.
    pub(crate) fn lapse_anonymous(&mut self, age: Duration, now: Instant) {
        while self.anonymous.front().is_some_and(|&given| given + age <= now) {
            self.anonymous.pop_front();
        }
    }

    /// When the next anonymous ticket lapses at that age.
    pub(crate) fn anonymous_lapses_at(&self, age: Duration) -> Option<Instant> {
        self.anonymous.front().map(|&given| given + age)
    }

    /// Anonymous tickets younger than that age.
    pub(crate) fn anonymous_at(&self, age: Duration, now: Instant) -> u32 {
        count(self.anonymous.iter().filter(|&&given| given + age > now).count())
    }

    /// Ends every ticket.
    pub(crate) fn clear(&mut self) {
        self.held = 0;
        self.anonymous.clear();
        self.foreign = Foreign::default();
        self.missing = Missing::default();
    }

    /// Takes the load of a heartbeat, and says how many of the `settled` tickets it proves lost ([`Missing::beat`]).
    pub(crate) fn beat(&mut self, reported: u32, settled: u32) -> u32 {
        let vouched = self.end_anonymous();
        self.foreign.beat(reported.saturating_sub(self.held), vouched);
        self.missing.beat(reported, settled)
    }

    /// Takes a heartbeat of one who cannot know the load: tickets alone count, and none is proved lost. Anonymous ones
    /// end as with any beat.
    pub(crate) fn beat_untold(&mut self) {
        self.end_anonymous();
        self.foreign = Foreign::default();
        self.missing = Missing::default();
    }
}

/// A length as a number of requests.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Capacity;

    use super::*;

    fn offer(capacity: u32) -> Offer {
        Offer::new(ModelCard { capacity: Some(Capacity { running: capacity, waiting: 0 }), ..ModelCard::bare("m") })
    }

    #[test]
    fn foreign_load_counts_when_two_beats_show_it() {
        let mut offer = offer(4);
        offer.beat(3, 0);
        assert_eq!(offer.load(), 0);
        offer.beat(2, 0);
        assert_eq!(offer.load(), 2);
        offer.beat(0, 0);
        assert_eq!(offer.load(), 0);
    }

    #[test]
    fn foreign_load_takes_room() {
        let mut offer = offer(2);
        offer.beat(1, 0);
        offer.beat(1, 0);
        assert!(!offer.is_full());
        offer.held = 1;
        assert!(offer.is_full());
    }

    #[test]
    fn our_own_requests_are_not_foreign() {
        let mut offer = offer(4);
        offer.held = 2;
        offer.beat(2, 2);
        offer.beat(2, 2);
        assert_eq!(offer.load(), 2);
    }

    #[test]
    fn an_anonymous_ticket_ends_with_a_beat_which_then_counts_its_request() {
        let mut offer = offer(4);
        offer.give_anonymous(Instant::now());
        offer.give_anonymous(Instant::now());
        assert_eq!(offer.load(), 2);
        offer.beat(1, 0);
        assert_eq!((offer.tickets(), offer.load()), (0, 1));
    }

    #[test]
    fn a_ticket_is_lost_when_two_beats_miss_it() {
        let mut offer = offer(4);
        offer.held = 3;
        assert_eq!(offer.beat(1, 3), 0);
        assert_eq!(offer.beat(2, 3), 1);
        offer.held = 2;
        assert_eq!(offer.beat(2, 2), 0);
    }

    #[test]
    fn a_beat_without_a_load_proves_nothing() {
        let mut offer = offer(4);
        offer.beat(3, 0);
        offer.beat(3, 0);
        offer.held = 1;
        offer.give_anonymous(Instant::now());
        assert_eq!((offer.beat(0, 1), offer.load()), (0, 1));
        offer.beat_untold();
        assert_eq!((offer.beat(0, 1), offer.load()), (0, 1), "what was seen before it does not count on");
    }
}
