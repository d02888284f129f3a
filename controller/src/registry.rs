//! The registry: workers, their leases and their tickets. Pure: time comes in as an argument, and nothing goes out.
//!
//! ```text
//!              register                 Unreachable, or Failed in a row
//!   (unknown) ──────────▶ Ready ───────────────────────────────▶ Open
//!                          ▲  ▲                                    │ pause over, or heartbeat
//!                          │  └───────────── Done ── Suspect ◀─────┘
//!                          │                            └── Failed ──▶ Open, with a longer pause
//!   any of them ── drain ──▶ Draining
//!   any of them ── lease over, deregister ──▶ Gone ── ten minutes ──▶ (unknown)
//! ```
//!
//! Leases are judged when they are read; a method that takes `&self` changes nothing, a listing least of all.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use muster_shared::control::{Heartbeat, HeartbeatReply, Lease, Leave, Registration, Renewal};
use muster_shared::fastchat::WorkerStatus;
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};

use crate::config::{BreakerConfig, LeaseConfig};

mod breaker;
mod load;
mod tickets;
mod view;
mod worker;

#[cfg(test)]
mod tests;

use tickets::Ticket;
pub(crate) use tickets::{Asker, Chooser, Denial, Holder, Request};
pub(crate) use view::bare_card;
pub(crate) use worker::Origin;
use worker::Worker;

/// How long a gone worker is remembered, so that its models are known to have existed.
const TOMBSTONE: Duration = Duration::from_secs(600);

/// Workers, their leases and their tickets.
#[derive(Debug)]
pub(crate) struct Registry {
    lease: LeaseConfig,
    breaker: BreakerConfig,
    workers: BTreeMap<WorkerId, Worker>,
    /// Every held ticket. Anonymous ones are counted in their worker's offers only, since nobody can name them.
    tickets: HashMap<TicketId, Ticket>,
    /// When each holder of tickets was last heard of.
    gateways: HashMap<GatewayId, Instant>,
}

impl Registry {
    /// An empty registry.
    pub(crate) fn new(lease: LeaseConfig, breaker: BreakerConfig) -> Self {
        Self { lease, breaker, workers: BTreeMap::new(), tickets: HashMap::new(), gateways: HashMap::new() }
    }

    /// Takes a worker in, in place of what was known under its name.
    ///
    /// The same incarnation again is the same process: it keeps its tickets, and goes on draining if it did. Another
    /// one is a new process, and the tickets of the old one end. FastChat's workers have no incarnation; each of their
    /// registrations counts as new.
    ///
    /// # Errors
    /// [`Kind::Stale`] when a younger process has registered under that name.
    pub(crate) fn register(
        &mut self,
        registration: Registration,
        origin: Origin,
        now: Instant,
    ) -> Result<Lease, Problem> {
        self.settle(now);
        let term = self.lease_of(origin);
        let mut worker = Worker::new(registration, origin, term, now);
        let known = self.workers.get(&worker.id).filter(|_| origin == Origin::Native);
        if let Some(known) = known {
            if known.gone_since.is_none() {
                refuse_stale(known, worker.incarnation)?; // one that has gone may have had a clock that ran ahead
            }
            if known.incarnation == worker.incarnation && known.origin == Origin::Native {
                worker.carry_over(known);
            }
        }
        let id = worker.id.clone();
        tracing::info!(worker = %id, address = %worker.address, transport = %worker.transport, models = worker.offers.len(),
            speed = worker.speed, "a worker registered");
        let keeps =
            |ticket: &Ticket| ticket.worker != id || worker.offer(&ticket.model).is_some_and(|offer| offer.held > 0);
        self.tickets.retain(|_, ticket| keeps(ticket));
        self.workers.insert(id, worker);
        Ok(self.lease_for(term.unwrap_or(self.lease.fastchat_expiration)))
    }

    /// Takes a worker's heartbeat: its lease goes on, and its load is what it says, if it says any.
    ///
    /// # Errors
    /// [`Kind::Stale`] when a younger process has registered under that name.
    pub(crate) fn heartbeat(&mut self, beat: &Heartbeat, now: Instant) -> Result<HeartbeatReply, Problem> {
        self.settle(now);
        let reply = self.lease_for(self.lease.term());
        let settled = self.settled_tickets(&beat.id, now);
        let Some(worker) = self.workers.get_mut(&beat.id) else { return Ok(HeartbeatReply::Unknown) };
        if worker.gone_since.is_some() {
            return Ok(HeartbeatReply::Unknown); // an older process may take over from a younger one that left
        }
        refuse_stale(worker, beat.incarnation)?;
        if worker.origin != Origin::Native || worker.incarnation != beat.incarnation {
            return Ok(HeartbeatReply::Unknown);
        }
        worker.renew(now);
        if let Some(speed) = beat.speed.filter(|speed| speed.is_finite() && *speed > 0.0) {
            worker.speed = speed;
        }
        for (model, count) in worker.take_load(beat.load.as_deref(), &settled) {
            self.end_lost(&beat.id, Some(&model), count);
        }
        Ok(HeartbeatReply::Renewed(Renewal { lease: reply, shed: false }))
    }

    /// Takes a FastChat worker's heartbeat, and says whether the worker is known.
    pub(crate) fn fastchat_beat(&mut self, id: &WorkerId, queue_length: u32, now: Instant) -> bool {
        self.settle(now);
        let settled = self.settled_tickets(id, now).values().sum();
        let Some(worker) = self.workers.get_mut(id) else { return false };
        if worker.origin == Origin::Native || worker.gone_since.is_some() {
            return false;
        }
        worker.renew(now);
        let vouched = worker.offers.iter_mut().map(load::Offer::end_anonymous).sum();
        let excess = queue_length.saturating_sub(worker.tickets());
        worker.unattributed.beat(excess, vouched);
        worker.report_total(queue_length);
        let lost = worker.missing.beat(queue_length, settled);
        if lost > 0 {
            self.end_lost(id, None, lost);
        }
        true
    }

    /// Takes what a FastChat worker answered when it was asked; it may have left meanwhile.
    pub(crate) fn update_fastchat(&mut self, id: &WorkerId, status: WorkerStatus, now: Instant) {
        if !self.fastchat_beat(id, clamp(status.queue_length), now) {
            return;
        }
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.speed = status.speed;
        let old = std::mem::take(&mut worker.offers);
        for card in status.model_names.into_iter().map(view::bare_card) {
            let known = old.iter().find(|offer| offer.card.name == card.name);
            worker.offers.push(known.cloned().unwrap_or_else(|| load::Offer::new(card)));
        }
        self.tickets.retain(|_, ticket| ticket.worker != *id || worker.offer(&ticket.model).is_some());
    }

    /// Stops requests to a worker; those that run go on.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not known, [`Kind::Stale`] when the caller means an older process.
    pub(crate) fn drain(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        let worker = self.leaving(leave, now)?;
        if worker.gone_since.is_none() && !worker.draining {
            tracing::info!(worker = %leave.id, "a worker drains");
            worker.draining = true;
        }
        Ok(())
    }

    /// Ends a worker's lease, and its tickets with it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not known, [`Kind::Stale`] when the caller means an older process.
    pub(crate) fn deregister(&mut self, leave: &Leave, now: Instant) -> Result<(), Problem> {
        let worker = self.leaving(leave, now)?;
        if worker.gone_since.is_none() {
            tracing::info!(worker = %leave.id, "a worker deregistered");
            worker.gone_since = Some(now);
        }
        worker.draining = false;
        self.end_tickets_of(&leave.id);
        Ok(())
    }

    /// Ends what has lapsed by `now`: leases of workers, and tickets of gateways that fell silent.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.lapse_gateways(now);
        let mut gone = Vec::new();
        for worker in self.workers.values_mut().filter(|worker| worker.gone_since.is_none()) {
            for offer in &mut worker.offers {
                offer.lapse_anonymous(self.lease.fastchat_expiration, now);
            }
            if let Some(end) = worker.lease_end().filter(|&end| end <= now) {
                worker.gone_since = Some(end);
                gone.push(worker.id.clone());
            }
        }
        for id in gone {
            tracing::warn!(worker = %id, "a worker's lease is over: no heartbeat came");
            self.end_tickets_of(&id);
        }
    }

    /// Lets leases go on by so long: nobody could be heard.
    pub(crate) fn excuse_silence(&mut self, silence: Duration) {
        let live = self.workers.values_mut().filter(|worker| worker.gone_since.is_none());
        live.for_each(|worker| worker.excuse_silence(silence));
        self.gateways.values_mut().for_each(|heard| *heard += silence);
    }

    /// Forgets workers that have been gone for long. Tidies memory; no answer about a live worker depends on it.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.settle(now);
        self.workers.retain(|_, worker| worker.gone_since.is_none_or(|since| now < since + TOMBSTONE));
    }

    /// The next moment after `now` at which the passing of time alone makes room or ends a lease.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let age = self.lease.fastchat_expiration;
        let workers = self.workers.values().filter(|worker| worker.gone_since.is_none()).flat_map(|worker| {
            let anonymous = worker.offers.iter().filter_map(|offer| offer.anonymous_lapses_at(age)).min();
            [worker.lease_end(), worker.breaker.reopens_at(), worker.full_until, anonymous]
        });
        let gateways = self.gateways.values().map(|&heard| Some(heard + self.lease.gateway_term()));
        workers.chain(gateways).flatten().filter(|&at| at > now).min()
    }

    fn leaving(&mut self, leave: &Leave, now: Instant) -> Result<&mut Worker, Problem> {
        self.settle(now);
        let worker = self.workers.get_mut(&leave.id).ok_or_else(|| {
            Problem::new(Kind::NotFound, format!("no worker `{}` is known", leave.id)).with_param("id")
        })?;
        if let Some(incarnation) = leave.incarnation {
            refuse_stale(worker, incarnation)?;
        }
        Ok(worker)
    }

    fn lease_of(&self, origin: Origin) -> Option<Duration> {
        match origin {
            Origin::Native => Some(self.lease.term()),
            Origin::FastChat { beats: true, .. } => Some(self.lease.fastchat_expiration),
            Origin::FastChat { beats: false, .. } => None,
        }
    }

    fn lease_for(&self, term: Duration) -> Lease {
        Lease { lease_ms: millis(term), heartbeat_ms: millis(self.lease.heartbeat) }
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
