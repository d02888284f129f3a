//! The books: what follows for leases and tickets from the messages that the controller got, and from time.
//!
//! They are kept beside the controller and by other means. Whatever it grants is checked against them, and after every
//! event both must count the same tickets: none leaks, and none ends without a reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::control::{Grant, Heartbeat, Held, Leave, ModelCard, Outcome, Registration, Release};
use muster_shared::id::{GatewayId, TicketId, WorkerId};

use super::asks::Asks;
use crate::config::LeaseConfig;
use crate::desk::SWEEP;
use crate::registry::Holder;

/// How long a gone worker's name may mean something.
const TOMBSTONE: Duration = Duration::from_secs(600);
/// Longest time for which a worker is spared after it had no room.
const SPARED: Duration = Duration::from_millis(250);

/// What a controller may know, and must heed.
#[derive(Debug)]
pub(super) struct Books {
    lease: LeaseConfig,
    seen: Instant,
    workers: BTreeMap<WorkerId, Known>,
    tickets: BTreeMap<TicketId, Entry>,
    heard: BTreeMap<GatewayId, Instant>,
    pub(super) asks: Asks,
}

/// A worker as it was last heard of.
#[derive(Debug)]
struct Known {
    incarnation: u64,
    address: String,
    models: Vec<ModelCard>,
    lease_end: Instant,
    drains: bool,
    /// It drains since it said so itself.
    stops: bool,
    gone: Option<Instant>,
    sequence: u64,
    spared_until: Option<Instant>,
    /// Addresses given since the last beat to those who will not say how it ended.
    lookups: u32,
    /// By model, tickets that the last beat did not know.
    missing: BTreeMap<String, u32>,
}

#[derive(Debug)]
struct Entry {
    worker: WorkerId,
    model: String,
    holder: GatewayId,
    given: Instant,
}

/// What shall be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Taken,
    /// The worker shall register.
    Unknown,
    Refused,
}

impl Books {
    pub(super) fn new(lease: LeaseConfig, now: Instant) -> Self {
        let asks = Asks::default();
        Self { lease, seen: now, workers: BTreeMap::new(), tickets: BTreeMap::new(), heard: BTreeMap::new(), asks }
    }

    // Time.

    /// The controller looks at the clock; after it stood still, everybody has as much more time.
    pub(super) fn look_at_clock(&mut self, now: Instant) {
        let away = now - self.seen;
        self.seen = now;
        if away > SWEEP * 2 {
            self.workers
                .values_mut()
                .filter(|worker| worker.gone.is_none())
                .for_each(|worker| worker.lease_end += away);
            self.heard.values_mut().for_each(|heard| *heard += away);
        }
    }

    /// Ends what time ends.
    pub(super) fn pass(&mut self, now: Instant) {
        let term = self.lease.gateway_term();
        self.heard.retain(|_, heard| *heard + term > now);
        for worker in self.workers.values_mut().filter(|worker| worker.lease_end <= now) {
            worker.gone.get_or_insert(worker.lease_end);
        }
        let (workers, heard) = (&self.workers, &self.heard);
        self.tickets.retain(|_, entry| {
            heard.contains_key(&entry.holder) && workers.get(&entry.worker).is_some_and(|worker| worker.gone.is_none())
        });
        let remembered = |worker: &Known| worker.gone.is_none_or(|since| now < since + TOMBSTONE + SWEEP * 2);
        self.workers.retain(|_, worker| remembered(worker));
    }

    // Workers.

    pub(super) fn expect_registration(&self, registration: &Registration) -> Expected {
        match self.workers.get(&registration.id) {
            Some(known) if known.gone.is_none() && registration.incarnation < known.incarnation => Expected::Refused,
            _ => Expected::Taken,
        }
    }

    /// The worker at an address says who it is: whoever was known there is gone.
    pub(super) fn believe(&mut self, registration: &Registration, now: Instant) {
        let Registration { id, address, incarnation, .. } = registration;
        let others = self.workers.iter_mut().filter(|(name, known)| {
            known.address == *address && (*name, known.incarnation) != (id, *incarnation) && known.gone.is_none()
        });
        for (_, known) in others {
            known.gone = Some(now);
            known.missing.clear();
        }
        self.pass(now);
    }

    /// A registration is taken.
    pub(super) fn register(&mut self, registration: Registration, now: Instant) {
        let Registration { id, address, incarnation, models, .. } = registration;
        let known = self.workers.remove(&id).filter(|known| known.incarnation == incarnation);
        let offers = |model: &str| models.iter().any(|card| card.name == model);
        let is_same = known.is_some();
        self.tickets.retain(|_, entry| entry.worker != id || (is_same && offers(&entry.model)));
        let lease_end = now + self.lease.term();
        let (drains, stops) = known.as_ref().map(|known| (known.drains, known.stops)).unwrap_or_default();
        let (sequence, lookups, missing) =
            known.map(|known| (known.sequence, known.lookups, known.missing)).unwrap_or_default();
        let gone = None;
        let spared_until = None;
        let known = Known {
            incarnation,
            address,
            models,
            lease_end,
            drains,
            stops,
            gone,
            sequence,
            spared_until,
            lookups,
            missing,
        };
        self.workers.insert(id, known);
    }

    pub(super) fn expect_beat(&self, beat: &Heartbeat) -> Expected {
        let Some(known) = self.workers.get(&beat.id).filter(|known| known.gone.is_none()) else {
            return Expected::Unknown;
        };
        let is_late = beat.sequence.is_some_and(|sequence| sequence <= known.sequence);
        match beat.incarnation.cmp(&known.incarnation) {
            std::cmp::Ordering::Less => Expected::Refused,
            std::cmp::Ordering::Greater => Expected::Unknown,
            std::cmp::Ordering::Equal if is_late && super::LATE_BEATS_ARE_REFUSED => Expected::Refused,
            std::cmp::Ordering::Equal => Expected::Taken,
        }
    }

    /// A heartbeat is taken; `knows` tells which tickets the controller has after it.
    pub(super) fn beat(
        &mut self,
        beat: &Heartbeat,
        knows: impl Fn(TicketId) -> bool,
        now: Instant,
    ) -> Result<(), String> {
        let known = self.workers.get_mut(&beat.id).expect("it is expected to be taken");
        known.lease_end = now + self.lease.term();
        known.spared_until = None;
        known.lookups = 0;
        known.sequence = beat.sequence.unwrap_or(known.sequence);
        let settled_since = now - self.lease.heartbeat * 2;
        for card in &known.models {
            let of_model = |entry: &Entry| entry.worker == beat.id && entry.model == card.name;
            let loads = beat.load.iter().flatten().filter(|load| load.model == card.name);
            let told: u32 = loads.map(|load| load.running + load.waiting).sum();
            let settled = self.tickets.values().filter(|entry| of_model(entry) && entry.given <= settled_since).count();
            let missing = count(settled).saturating_sub(told);
            let allowed = missing.min(known.missing.get(&card.name).copied().unwrap_or(0));
            let before = self.tickets.len();
            self.tickets.retain(|&id, entry| !of_model(entry) || knows(id));
            let lost = count(before - self.tickets.len());
            if lost > allowed {
                let (worker, model) = (&beat.id, &card.name);
                return Err(format!("a beat of {worker} ends {lost} tickets of `{model}`; two beats miss {allowed}"));
            }
            known.missing.insert(card.name.clone(), missing - lost);
        }
        Ok(())
    }

    pub(super) fn expect_leave(&self, leave: &Leave) -> Expected {
        match (self.workers.get(&leave.id), leave.incarnation) {
            (None, _) => Expected::Refused,
            (Some(known), Some(incarnation)) if incarnation != known.incarnation => Expected::Refused,
            (Some(_), _) => Expected::Taken,
        }
    }

    pub(super) fn drain(&mut self, leave: &Leave) {
        if let Some(known) = self.workers.get_mut(&leave.id).filter(|known| known.gone.is_none()) {
            known.drains = true;
            known.stops |= leave.incarnation.is_some();
        }
    }

    /// Whoever stops by itself, or has gone, is not to be called back.
    pub(super) fn expect_resume(&self, leave: &Leave) -> Expected {
        match self.workers.get(&leave.id) {
            Some(known) if known.gone.is_none() && !known.stops => self.expect_leave(leave),
            _ => Expected::Refused,
        }
    }

    pub(super) fn resume(&mut self, leave: &Leave) {
        if let Some(known) = self.workers.get_mut(&leave.id) {
            known.drains = false;
        }
    }

    pub(super) fn deregister(&mut self, leave: &Leave, now: Instant) {
        if let Some(known) = self.workers.get_mut(&leave.id) {
            known.gone.get_or_insert(now);
            (known.drains, known.stops) = (false, false);
            known.missing.clear();
        }
        self.tickets.retain(|_, entry| entry.worker != leave.id);
    }

    /// Whether exactly that process is registered.
    pub(super) fn is_registered(&self, id: &WorkerId, incarnation: u64) -> bool {
        self.workers.get(id).is_some_and(|known| known.gone.is_none() && known.incarnation == incarnation)
    }

    /// Whether a worker may be spared though it is ready.
    pub(super) fn is_spared(&self, id: &WorkerId, now: Instant) -> bool {
        self.workers.get(id).is_none_or(|known| known.spared_until.is_some_and(|until| now < until))
    }

    // Tickets.

    /// A sign of life.
    pub(super) fn renew(&mut self, gateway: GatewayId, now: Instant) {
        if let Some(heard) = self.heard.get_mut(&gateway) {
            *heard = now;
        }
    }

    /// A ticket is given: is that right?
    pub(super) fn grant(&mut self, ask: u64, grant: &Grant, now: Instant) -> Result<(), String> {
        let asked = self.asks.grant(ask, grant)?;
        let Grant { worker, ticket, .. } = grant;
        let known = self.workers.get(worker).ok_or_else(|| format!("{worker} is handed out and is not known"))?;
        known.check(worker, grant, now)?;
        let model = asked.model;
        let Some(card) = known.models.iter().find(|card| card.name == model) else {
            return Err(format!("{worker} is handed out for `{model}`, which it does not offer"));
        };
        let entry = Entry { worker: worker.clone(), model: model.clone(), holder: asked.gateway, given: now };
        if self.tickets.insert(*ticket, entry).is_some() {
            return Err(format!("the ticket {ticket} is given twice"));
        }
        self.heard.insert(asked.gateway, now);
        let held = self.tickets.values().filter(|entry| entry.worker == *worker && entry.model == model).count();
        match card.capacity {
            Some(capacity) if count(held) > capacity.total() => {
                Err(format!("{worker} takes {} requests of `{model}` and is given {held}", capacity.total()))
            }
            _ => Ok(()),
        }
    }

    /// A ticket is given back; tells whether it was one.
    pub(super) fn release(&mut self, holder: Holder, release: &Release, now: Instant) -> bool {
        let is_held = |entry: &Entry| Holder::Gateway(entry.holder) == holder;
        if !self.tickets.get(&release.ticket).is_some_and(is_held) {
            return false;
        }
        let entry = self.tickets.remove(&release.ticket).expect("it was found");
        if release.outcome == Outcome::Overloaded
            && let Some(known) = self.workers.get_mut(&entry.worker)
        {
            known.spared_until = Some(now + SPARED);
        }
        true
    }

    /// A gateway names all it holds.
    pub(super) fn reconcile(&mut self, gateway: GatewayId, held: &[Held], now: Instant) {
        self.tickets.retain(|id, entry| entry.holder != gateway || held.iter().any(|held| held.ticket == *id));
        self.adopt(gateway, held, now);
    }

    /// A gateway names requests in flight.
    pub(super) fn adopt(&mut self, gateway: GatewayId, held: &[Held], now: Instant) {
        self.heard.insert(gateway, now);
        for held in held {
            let worker = self.workers.get(&held.worker).filter(|known| known.gone.is_none());
            if worker.is_some_and(|known| known.models.iter().any(|card| card.name == held.model)) {
                let (worker, model) = (held.worker.clone(), held.model.clone());
                let entry = Entry { worker, model, holder: gateway, given: now };
                self.tickets.entry(held.ticket).or_insert(entry);
            }
        }
    }

    /// Tickets of a worker.
    pub(super) fn tickets_of(&self, id: &WorkerId) -> u32 {
        count(self.tickets.values().filter(|entry| entry.worker == *id).count())
    }

    /// An address is given to one who will not say how it ended.
    pub(super) fn look_up(&mut self, address: &str) {
        self.workers.values_mut().filter(|known| known.address == address).for_each(|known| known.lookups += 1);
    }

    /// Those of a worker since its last beat.
    pub(super) fn lookups_of(&self, id: &WorkerId) -> u32 {
        self.workers.get(id).map_or(0, |known| known.lookups)
    }

    /// All tickets.
    pub(super) fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Where the controller's tickets are others than these, one of them.
    pub(super) fn difference(&self, knows: impl Fn(TicketId) -> bool) -> String {
        match self.tickets.iter().find(|(id, _)| !knows(**id)) {
            Some((id, entry)) => format!("{id} has ended without a reason: {entry:?}"),
            None => "one has not ended though there is a reason".to_owned(),
        }
    }
}

impl Known {
    /// Whether it may be handed out.
    fn check(&self, worker: &WorkerId, grant: &Grant, now: Instant) -> Result<(), String> {
        if self.gone.is_some() || self.lease_end <= now {
            return Err(format!("{worker} is handed out after its lease ended"));
        }
        if self.drains {
            return Err(format!("{worker} is handed out and drains"));
        }
        if grant.address != self.address {
            return Err(format!("{worker} is handed out at {}, and has registered at {}", grant.address, self.address));
        }
        Ok(())
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("there are few")
}
