//! What must hold after every event.

use std::time::Duration;

use muster_shared::control::WorkerState;

use super::super::sim::Sim;
use super::{Controller, SAMPLE};

impl Controller {
    pub(super) fn check(&self, sim: &mut Sim) {
        let registry = self.desk.registry();
        let (held, booked) = (registry.held(), self.books.tickets());
        if self.is_settled && held != booked {
            let difference = self.books.difference(|ticket| registry.knows(ticket));
            sim.claim(Err(format!("the controller has {held} tickets and should have {booked}; {difference}")));
        }
        if self.desk.waiting() != self.books.asks.len() {
            let (waiting, asked) = (self.desk.waiting(), self.books.asks.len());
            sim.claim(Err(format!("{waiting} wait at the controller, and {asked} have asked and are not answered")));
        }
        if self.is_settled {
            sim.claim(self.books.asks.check_time(sim.now));
        }
        if self.changes.is_multiple_of(SAMPLE) {
            self.check_listing(sim);
        }
        if self.is_settled && self.changes.is_multiple_of(SAMPLE) {
            registry.audit(sim.now);
        }
    }

    /// The listing tells the truth and changes nothing; nobody waits where there is room.
    fn check_listing(&self, sim: &mut Sim) {
        let before = (self.changes.is_multiple_of(SAMPLE * 8)).then(|| self.portrait());
        let fleet = self.fleet(sim.now);
        let later = sim.now + Duration::from_secs(3600);
        if let Some(before) = before {
            drop((self.fleet(later), self.desk.registry().as_one_worker(later)));
            if self.portrait() != before {
                sim.claim(Err("a listing has changed something".to_owned()));
            }
        }
        for worker in &fleet.workers {
            let booked = self.books.tickets_of(&worker.id);
            let anonymous = self.books.lookups_of(&worker.id);
            if worker.tickets < booked || worker.tickets > booked + anonymous {
                let (id, tickets) = (&worker.id, worker.tickets);
                sim.claim(Err(format!("{id} is listed with {tickets} tickets and should have {booked}")));
            }
            // One that stood still has not served yet those for whom time has made room.
            let is_due = self.is_settled && worker.state == WorkerState::Ready;
            if !is_due || self.books.is_spared(&worker.id, sim.now) {
                continue;
            }
            for card in &worker.models {
                let load = self.load(&worker.id, &card.name);
                if card.capacity.is_none_or(|capacity| load < capacity.total()) {
                    sim.claim(self.books.asks.check_room(&worker.id, &card.name));
                }
            }
        }
    }
}
