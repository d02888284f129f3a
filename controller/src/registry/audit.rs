//! Whether all that is kept in order agrees with a look at every worker. For tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use muster_shared::id::{TicketId, WorkerId};

use super::Registry;

impl Registry {
    /// Every worker with all that is known of it: a slab tells its entries only when it is printed at length.
    pub(crate) fn portrait(&self) -> String {
        format!("{:?}", self.workers.iter().collect::<Vec<_>>())
    }

    /// Whether a ticket lives.
    pub(crate) fn knows(&self, ticket: TicketId) -> bool {
        self.tickets.contains_key(&ticket)
    }

    /// Requests that are counted for a worker's model; 0 where it is not offered.
    pub(crate) fn load_of(&self, worker: &WorkerId, model: &str) -> u32 {
        let worker = self.by_id.get(worker).map(|&slot| &self.workers[slot]);
        worker.and_then(|worker| worker.offer(model)).map_or(0, super::load::Offer::load)
    }

    /// Panics where the journal says something else than what was, or a decision cannot be made again.
    pub(crate) fn audit_journal(&self) {
        self.journal.as_ref().expect("a journal is kept").audit();
    }

    /// Panics where the journal as it is saved makes another decision than the one that was made.
    pub(crate) fn audit_replay(&self) {
        self.journal.as_ref().expect("a journal is kept").audit_replay();
    }

    /// Lets the journal take so many bytes.
    pub(crate) fn bound_journal(&mut self, bytes: usize) {
        self.journal.as_mut().expect("a journal is kept").most = bytes;
    }

    /// Panics where an index says something else than the workers themselves.
    pub(crate) fn audit(&self, now: Instant) {
        let mut seats = BTreeMap::new();
        for (slot, worker) in &self.workers {
            assert_eq!(self.by_id.get(&worker.id), Some(&slot));
            let about = worker.about(now);
            for offer in &worker.offers {
                let place = offer.place.as_ref().expect("every offer has its place");
                let pool = self.pools.get(&place.model).expect("a model with a member has a pool");
                assert_eq!(pool.standing(place.seat), about.standing(offer), "{} of {worker:?}", place.model);
                assert!(seats.insert((place.model.clone(), place.seat), slot).is_none(), "two on one seat");
                let held = worker.tickets.iter().filter(|(_, id)| self.tickets[id].model == place.model).count();
                assert_eq!(offer.held as usize, held, "tickets of {} of {worker:?}", place.model);
            }
            let next = worker.next_change(worker.anonymous_age(&self.rules.lease), now);
            assert!(
                next.is_none() || worker.due.is_some_and(|due| Some(due) <= next),
                "nobody will look at {worker:?}"
            );
        }
        self.pools.audit(seats.len());
        let of_workers: BTreeSet<_> =
            self.workers.iter().flat_map(|(_, worker)| worker.tickets.iter().map(|&(_, id)| id)).collect();
        let all: BTreeSet<_> = self.tickets.keys().copied().collect();
        assert_eq!(of_workers, all, "tickets of workers, and all tickets");
        assert!(self.tickets.iter().all(|(&id, ticket)| match ticket.holder {
            super::Holder::Relay => true,
            super::Holder::Gateway(gateway) => self.gateways.tickets(gateway).any(|held| held == id),
        }));
    }
}
