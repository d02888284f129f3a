//! The registry: workers, their leases and their tickets. Pure: time comes in as an argument, and nothing goes out.
//!
//! ```text
//!              register                 Unreachable, or Failed in a row
//!   (unknown) ──────────▶ Ready ───────────────────────────────▶ Open
//!                          ▲  ▲                                    │ pause over, or heartbeat
//!                          │  └───────────── Done ── Suspect ◀─────┘
//!                          │                            └── Failed ──▶ Open, with a longer pause
//!   Ready, Suspect ── its machine is short of something ──▶ Paused ── no more ──▶ as before
//!   any of them ── drain ──▶ Draining
//!   a static peer ── its probes fail ──▶ Down ── they succeed ──▶ as before
//!   any of them ── lease over, deregister ──▶ Gone ── ten minutes ──▶ (unknown)
//! ```
//!
//! Leases are judged when they are read; a method that takes `&self` changes nothing, a listing least of all.
//!
//! A fleet may have ten thousand workers, so nothing that comes by the thousand looks at all of them: workers of one model
//! are kept in order (`pool`), what time alone changes is put down by its moment (`agenda`), and tickets are known to
//! their worker and to their gateway. Whoever changes a worker calls [`Registry::refresh`], which keeps all that true.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::{Heartbeat, HeartbeatReply, Lease, Leave, ModelCard, Registration, Renewal, WorkerState};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::id::{TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};

use slab::Slab;

use crate::config::{BreakerConfig, LeaseConfig, PressureConfig};
use crate::dispatch::Policies;
use crate::journal::Journal;

mod agenda;
#[cfg(test)]
mod audit;
mod breaker;
mod changes;
mod drain;
mod gateways;
mod hashing;
mod load;
mod peers;
mod picture;
mod pool;
mod pressure;
mod prospects;
mod tally;
mod tickets;
mod view;
mod worker;

#[cfg(test)]
mod tests;

use agenda::Agenda;
pub(crate) use changes::Changed;
use changes::{Cause, Changes};
use gateways::Gateways;
use hashing::ByTicket;
pub(crate) use peers::{Answer, Load, Verdict};
use pool::Pools;
pub(crate) use pool::{Key, Pick, Pool, Standing, lanes_of};
pub(crate) use pressure::check_measures;
pub(crate) use tally::Tally;
use tickets::Ticket;
pub(crate) use tickets::{Asker, Denial, Holder, Lack, Note, Question, Request};
pub(crate) use worker::Origin;
use worker::Worker;

/// How long a gone worker is remembered, so that its models are known to have existed.
const TOMBSTONE: Duration = Duration::from_secs(600);

/// Number of a worker while it is known.
type Slot = usize;

/// Workers, their leases and their tickets.
#[derive(Debug)]
pub(crate) struct Registry {
    rules: Rules,
    workers: Slab<Worker>,
    by_id: BTreeMap<WorkerId, Slot>,
    /// Who registered each address last; it may have gone, or moved.
    by_address: HashMap<String, Slot>,
    pools: Pools,
    agenda: Agenda,
    /// Every held ticket. Anonymous ones are counted in their worker's offers only, since nobody can name them.
    tickets: ByTicket<Ticket>,
    gateways: Gateways,
    /// The last changes of workers' states.
    changes: Changes,
    /// What has ended since somebody last looked.
    tally: Tally,
    /// Static peers at which a request has failed since somebody looked.
    doubtful: Vec<WorkerId>,
    /// Why each was chosen, if that is kept.
    journal: Option<Journal>,
}

/// A process as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name.
    pub(crate) id: WorkerId,
    /// Where it was.
    pub(crate) address: String,
    /// Which run it is.
    pub(crate) incarnation: u64,
}

/// What a registry goes by.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// How long a worker or a gateway may be silent.
    pub(crate) lease: LeaseConfig,
    /// When a failing worker is spared.
    pub(crate) breaker: BreakerConfig,
    /// When a worker is spared whose machine is short of something.
    pub(crate) pressure: PressureConfig,
    /// Who picks.
    pub(crate) policies: Policies,
    /// Decisions that are kept; 0: none.
    pub(crate) journal: usize,
}

impl Registry {
    /// An empty registry.
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            pools: Pools::new(rules.policies.clone(), rules.journal > 0),
            journal: (rules.journal > 0).then(|| Journal::new(rules.journal)),
            gateways: Gateways::new(rules.lease.gateway_term()),
            rules,
            workers: Slab::new(),
            by_id: BTreeMap::new(),
            by_address: HashMap::new(),
            agenda: Agenda::default(),
            tickets: ByTicket::default(),
            changes: Changes::default(),
            tally: Tally::default(),
            doubtful: Vec::new(),
        }
    }

    /// Takes a worker in, in place of what was known under its name.
    ///
    /// The same incarnation again is the same process: it keeps its tickets, and goes on draining if it did. Another
    /// one is a new process, and the tickets of the old one end. FastChat's workers have no incarnation; each of their
    /// registrations counts as new.
    ///
    /// # Errors
    /// [`Kind::Stale`] when a younger process has registered under that name; [`Kind::Invalid`] when another live worker
    /// has that address.
    pub(crate) fn register(
        &mut self,
        registration: Registration,
        origin: Origin,
        now: Instant,
    ) -> Result<Lease, Problem> {
        self.settle(now);
        self.refuse_written(&registration.id, &registration.address)?;
        let term = self.lease_of(origin);
        let mut worker = Worker::new(registration, origin, term, now);
        let slot = self.by_id.get(&worker.id).copied();
        self.refuse_foreign(&worker)?;
        if let Some(known) = slot.map(|slot| &self.workers[slot]).filter(|_| origin == Origin::Native) {
            if known.gone_since.is_none() {
                refuse_stale(known, worker.incarnation)?; // one that has gone may have had a clock that ran ahead
            }
            if known.incarnation == worker.incarnation && !matches!(known.origin, Origin::FastChat { .. }) {
                worker.carry_over(known);
            }
        }
        self.refuse_taken(&worker)?;
        let why = match slot.map(|slot| &self.workers[slot]) {
            Some(known) if known.gone_since.is_none() && known.incarnation != worker.incarnation => {
                "registered: a new process"
            }
            _ => "registered",
        };
        worker.cause = Some(Cause::new(why, &[WorkerState::Ready, WorkerState::Suspect]));
        tracing::info!(worker = %worker.id, address = %worker.address, transport = %worker.transport,
            models = worker.offers.len(), speed = worker.speed, "a worker registered");
        match slot {
            Some(slot) => self.replace(slot, worker, now),
            None => {
                let id = worker.id.clone();
                let slot = self.workers.insert(worker);
                self.by_id.insert(id, slot);
                self.seat(slot, now);
            }
        }
        Ok(self.lease_for(term.unwrap_or(self.rules.lease.fastchat_expiration)))
    }

    /// Refuses to take one of ours, which lives, for FastChat's: it would lose its tickets.
    fn refuse_foreign(&self, worker: &Worker) -> Result<(), Problem> {
        let Some(slot) = self.known(&worker.id) else { return Ok(()) };
        if worker.origin == Origin::Native || self.workers[slot].origin != Origin::Native {
            return Ok(());
        }
        let message =
            format!("`{}` has registered as muster's worker and lives; it need not register twice", worker.id);
        Err(Problem::new(Kind::Stale, message).with_param("worker_name"))
    }

    /// Refuses a worker at the address of another that lives.
    fn refuse_taken(&self, worker: &Worker) -> Result<(), Problem> {
        match self.at_address(&worker.address) {
            Some(other) if self.workers[other].id != worker.id => {
                let other = &self.workers[other].id;
                let message = format!(
                    "the address {} is that of the worker `{other}`, which lives; that one must leave first",
                    worker.address
                );
                Err(Problem::invalid("address", message))
            }
            _ => Ok(()),
        }
    }

    /// Who has that address and has not gone.
    fn at_address(&self, address: &str) -> Option<Slot> {
        let slot = *self.by_address.get(address)?;
        self.workers.get(slot).filter(|worker| worker.address == address && worker.gone_since.is_none()).map(|_| slot)
    }

    /// Where a process is known to live that goes by the name of the one who registers, at another address and not on
    /// its way out.
    pub(crate) fn elsewhere(&self, registration: &Registration, now: Instant) -> Option<Known> {
        let worker = &self.workers[*self.by_id.get(&registration.id)?];
        let is_other = worker.address != registration.address && worker.incarnation != registration.incarnation;
        (is_other && worker.is_live(now)).then(|| Known {
            id: worker.id.clone(),
            address: worker.address.clone(),
            incarnation: worker.incarnation,
        })
    }

    /// Takes the word of the worker at that address for who it is: whoever was known there has gone, be it another, or
    /// an older or younger process of the same name (its clock may have been set back).
    pub(crate) fn believe(&mut self, registration: &Registration, now: Instant) {
        self.settle(now);
        let Some(slot) = self.at_address(&registration.address) else { return };
        let worker = &mut self.workers[slot];
        if worker.is_written() {
            return; // what is written down is not for others to change
        }
        if worker.id == registration.id && worker.incarnation == registration.incarnation {
            return;
        }
        tracing::info!(worker = %worker.id, address = %worker.address, by = %registration.id, "a worker was replaced");
        worker.gone_since = Some(now);
        worker.cause = Some(match worker.id == registration.id {
            true => Cause::gone("replaced by a new process of its name"),
            false => Cause::gone(format!("replaced by `{}`, which answers at its address", registration.id)),
        });
        self.end_tickets_of(slot, now);
    }

    /// Puts a worker in the place of another of its name; tickets that it does not know end.
    fn replace(&mut self, slot: Slot, mut worker: Worker, now: Instant) {
        let places = self.take_places(slot);
        worker.due = self.workers[slot].due;
        worker.told = self.workers[slot].told.clone();
        worker.totals = self.workers[slot].totals;
        for (given, id) in std::mem::take(&mut self.workers[slot].tickets) {
            let model = &self.tickets[&id].model;
            if worker.offer(model).is_some_and(|offer| offer.held > 0) {
                worker.tickets.insert((given, id));
            } else {
                self.forget(id);
            }
        }
        let old = std::mem::replace(&mut self.workers[slot], worker);
        if self.by_address.get(&old.address) == Some(&slot) {
            self.by_address.remove(&old.address);
        }
        self.seat(slot, now);
        self.leave(slot, places);
    }

    /// Takes a worker's heartbeat: its lease goes on, and its load is what it says, if it says any.
    ///
    /// # Errors
    /// [`Kind::Stale`] when a younger process has registered under that name.
    pub(crate) fn heartbeat(&mut self, beat: &Heartbeat, now: Instant) -> Result<HeartbeatReply, Problem> {
        self.settle(now);
        let reply = self.lease_for(self.rules.lease.term());
        let Some(slot) = self.known(&beat.id) else { return Ok(HeartbeatReply::Unknown) };
        let settled = self.settled_tickets(slot, now);
        let worker = &mut self.workers[slot];
        refuse_stale(worker, beat.incarnation)?;
        if worker.origin != Origin::Native || worker.incarnation != beat.incarnation {
            return Ok(HeartbeatReply::Unknown);
        }
        worker.take_sequence(beat.sequence)?;
        worker.renew(now);
        worker.take_measures(beat, &self.rules.pressure);
        for (model, count) in worker.take_load(beat.load.as_deref(), &settled) {
            self.end_lost(slot, Some(&model), count, now);
        }
        self.refresh(slot, now);
        Ok(HeartbeatReply::Renewed(Renewal { lease: reply, shed: self.sheds(slot) }))
    }

    /// Whether a worker shall hand over what waits in it: memory is short there, and those who wait find another.
    fn sheds(&self, slot: Slot) -> bool {
        let worker = &self.workers[slot];
        let has_other = |model: &str| self.pools.get(model).is_some_and(Pool::has_ready);
        let mut waiting = worker.reported_by_model().iter().filter(|load| load.waiting > 0).peekable();
        worker.pressure.sheds()
            && match waiting.peek() {
                Some(_) => waiting.all(|load| has_other(&load.model)),
                // None waits, or it does not say.
                None => worker.offers.iter().any(|offer| has_other(&offer.card.name)),
            }
    }

    /// The slot of a worker that has not gone.
    fn known(&self, id: &WorkerId) -> Option<Slot> {
        // An older process may take over from a younger one that left, so what has gone is as good as unknown.
        self.by_id.get(id).copied().filter(|&slot| self.workers[slot].gone_since.is_none())
    }

    /// Takes a FastChat worker's heartbeat, and says whether the worker is known.
    pub(crate) fn fastchat_beat(&mut self, id: &WorkerId, queue_length: u32, now: Instant) -> bool {
        self.settle(now);
        let is_fastchat = |worker: &Worker| matches!(worker.origin, Origin::FastChat { .. });
        let Some(slot) = self.known(id).filter(|&slot| is_fastchat(&self.workers[slot])) else { return false };
        let settled = self.settled_tickets(slot, now).values().sum();
        let worker = &mut self.workers[slot];
        worker.renew(now);
        let lost = worker.take_total(queue_length, settled);
        if lost > 0 {
            self.end_lost(slot, None, lost, now);
        }
        self.refresh(slot, now);
        true
    }

    /// Takes what a FastChat worker answered when it was asked; it may have left meanwhile.
    pub(crate) fn update_fastchat(&mut self, id: &WorkerId, status: WorkerStatus, now: Instant) {
        if !self.fastchat_beat(id, clamp(status.queue_length), now) {
            return;
        }
        let Some(slot) = self.known(id) else { return };
        let places = self.take_places(slot);
        let worker = &mut self.workers[slot];
        worker.speed = status.speed;
        let old = std::mem::take(&mut worker.offers);
        for card in status.model_names.into_iter().map(ModelCard::bare) {
            let known = old.iter().find(|offer| offer.card.name == card.name);
            worker.offers.push(known.cloned().unwrap_or_else(|| load::Offer::new(card)));
        }
        let tickets: Vec<TicketId> = worker.tickets.iter().map(|&(_, id)| id).collect();
        for id in tickets {
            if self.workers[slot].offer(&self.tickets[&id].model).is_none() {
                self.end(id, now);
            }
        }
        self.seat(slot, now);
        self.leave(slot, places);
    }

    /// Ends a worker's lease, and its tickets with it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not known, [`Kind::Stale`] when the caller means an older process.
    pub(crate) fn deregister(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        let slot = self.leaving(leave, now)?;
        let worker = &mut self.workers[slot];
        if worker.is_written() {
            return Err(peers::written(&leave.id, "id"));
        }
        if worker.gone_since.is_none() {
            tracing::info!(worker = %leave.id, "a worker deregistered");
            worker.gone_since = Some(now);
            worker.cause = Some(Cause::gone("deregistered"));
        }
        (worker.draining, worker.stopping) = (false, false);
        self.end_tickets_of(slot, now);
        Ok(())
    }

    /// Ends what has lapsed by `now`: leases of workers, and tickets of gateways that fell silent.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.lapse_gateways(now);
        while let Some((at, slot)) = self.agenda.pop_due(now) {
            if self.workers.get(slot).is_some_and(|worker| worker.due == Some(at)) {
                self.workers[slot].due = None;
                self.look_at(slot, now);
            }
        }
    }

    /// Does what time has brought about for a worker.
    fn look_at(&mut self, slot: Slot, now: Instant) {
        let worker = &mut self.workers[slot];
        if worker.gone_since.is_some() {
            return;
        }
        let age = worker.anonymous_age(&self.rules.lease);
        for offer in &mut worker.offers {
            offer.lapse_anonymous(age, now);
        }
        if let Some(end) = worker.lease_end().filter(|&end| end <= now) {
            tracing::warn!(worker = %worker.id, "a worker's lease is over: no heartbeat came");
            worker.gone_since = Some(end);
            self.end_tickets_of(slot, now);
        } else {
            self.refresh(slot, now);
        }
    }

    /// Lets leases go on by so long: nobody could be heard.
    pub(crate) fn excuse_silence(&mut self, silence: Duration) {
        let live = self.workers.iter_mut().map(|(_, worker)| worker).filter(|worker| worker.gone_since.is_none());
        live.for_each(|worker| worker.excuse_silence(silence));
        self.gateways.excuse_silence(silence);
    }

    /// Forgets workers that have been gone for long. Tidies memory; no answer about a live worker depends on it.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.settle(now);
        let workers = self.workers.iter();
        let is_old = |worker: &Worker| worker.gone_since.is_some_and(|since| now >= since + TOMBSTONE);
        let old = workers.filter(|(_, worker)| is_old(worker) || worker.is_removed() && worker.tickets() == 0);
        let old: Vec<Slot> = old.map(|(slot, _)| slot).collect();
        for slot in old {
            let places = self.take_places(slot);
            self.leave(slot, places);
            let worker = self.workers.remove(slot);
            self.changes.forgotten(&worker, now);
            self.by_id.remove(&worker.id);
            if self.by_address.get(&worker.address) == Some(&slot) {
                self.by_address.remove(&worker.address);
            }
        }
    }

    /// A moment before which the passing of time alone neither makes room nor ends a lease. After [`Registry::settle`] it
    /// lies in the future.
    pub(crate) fn next_change(&self) -> Option<Instant> {
        [self.agenda.next(), self.gateways.next()].into_iter().flatten().min()
    }

    /// What has ended since the last call.
    pub(crate) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Models of which a worker has got room, or is no more there, since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<Arc<str>> {
        self.pools.take_changed()
    }

    /// Gives a worker a seat among those of each of its models.
    fn seat(&mut self, slot: Slot, now: Instant) {
        let worker = &mut self.workers[slot];
        self.by_address.insert(worker.address.clone(), slot);
        for offer in &mut worker.offers {
            let (model, seat) = self.pools.join(&offer.card.name, slot, &worker.id, worker.transport);
            offer.place = Some(load::Place { model, seat });
        }
        self.refresh(slot, now);
    }

    /// Takes a worker's places from its offers. They are given up last ([`Registry::leave`]): a model of which it is the
    /// only worker would be forgotten in between, and who holds its tickets with it.
    fn take_places(&mut self, slot: Slot) -> Vec<load::Place> {
        self.workers[slot].offers.iter_mut().filter_map(|offer| offer.place.take()).collect()
    }

    fn leave(&mut self, slot: Slot, places: Vec<load::Place>) {
        let worker = &self.workers[slot].id;
        let ended = places.iter().filter_map(|place| self.pools.leave(&place.model, worker, place.seat));
        ended.for_each(|stream| self.journal.iter_mut().for_each(|journal| journal.bury(stream)));
    }

    /// Tells all who depend on a worker how it is now. Ends every change of a worker.
    fn refresh(&mut self, slot: Slot, now: Instant) {
        let worker = &mut self.workers[slot];
        worker.forget_past(now);
        self.changes.note(worker, now);
        let about = worker.about(now);
        for offer in &worker.offers {
            if let Some(place) = &offer.place {
                self.pools.update(&place.model, place.seat, about.standing(offer));
            }
        }
        let next = worker.next_change(worker.anonymous_age(&self.rules.lease), now);
        self.agenda.put(slot, next, &mut worker.due);
    }

    fn lease_of(&self, origin: Origin) -> Option<Duration> {
        match origin {
            Origin::Native => Some(self.rules.lease.term()),
            Origin::FastChat { beats: true, .. } => Some(self.rules.lease.fastchat_expiration),
            Origin::FastChat { beats: false, .. } | Origin::Static => None,
        }
    }

    fn lease_for(&self, term: Duration) -> Lease {
        Lease { lease_ms: millis(term), heartbeat_ms: millis(self.rules.lease.heartbeat) }
    }
}

fn refuse_stale(known: &Worker, incarnation: u64) -> Result<(), Problem> {
    if incarnation >= known.incarnation {
        return Ok(());
    }
    let message = format!(
        "incarnation {incarnation} of worker `{}` is older than {}, which has registered",
        known.id, known.incarnation
    );
    Err(Problem::new(Kind::Stale, message).with_param("incarnation"))
}

/// A duration as it travels.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A FastChat queue length as a number of requests.
pub(crate) fn clamp(queue_length: u64) -> u32 {
    u32::try_from(queue_length).unwrap_or(u32::MAX)
}
