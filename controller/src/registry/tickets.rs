//! Tickets: who is given which worker, and what the end of a request tells about it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use muster_shared::control::{Grant, Held, Outcome, Release, WorkerState};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::transport::Transport;
use rand::Rng;

use super::Registry;
use super::worker::Worker;
use crate::dispatch::{Candidate, Policy, PolicyRequest};

/// How long a worker that refused for want of room is spared, unless a heartbeat comes sooner.
const FULL: Duration = Duration::from_millis(250);

/// Transports of workers that speak FastChat's protocol at their address: muster's own serve it beside their own one.
pub(super) const SPEAK_FASTCHAT: [Transport; 2] = [Transport::Http, Transport::FastChat];

/// Who holds a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A gateway; its tickets lapse when it falls silent.
    Gateway(GatewayId),
    /// The controller itself, while it relays a stream.
    Relay,
}

/// One held ticket.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) worker: WorkerId,
    pub(super) model: String,
    holder: Holder,
    given: Instant,
}

/// What is asked for: any live worker of a model that has not failed this request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The model's name.
    pub(crate) model: String,
    /// Hash of the start of the prompt.
    pub(crate) affinity: Option<u64>,
    /// Workers that must not be chosen.
    pub(crate) exclude: Vec<WorkerId>,
    /// Protocols that the worker must speak one of; empty: any.
    pub(crate) transports: Vec<Transport>,
}

impl Request {
    /// One in FastChat's words, which only workers that speak it at their address understand.
    pub(crate) fn of_fastchat(model: String) -> Self {
        Self { model, affinity: None, exclude: Vec::new(), transports: SPEAK_FASTCHAT.to_vec() }
    }

    /// Whether it can be said to that worker.
    fn is_spoken_by(&self, worker: &Worker) -> bool {
        self.transports.is_empty() || self.transports.contains(&worker.transport)
    }

    /// Whether every worker that will do for another request of the model will do for this one.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let speaks = |transport: &Transport| self.transports.contains(transport);
        let spoken =
            self.transports.is_empty() || (!other.transports.is_empty() && other.transports.iter().all(speaks));
        spoken && self.exclude.iter().all(|worker| other.exclude.contains(worker))
    }
}

/// A request with the one who will hold its ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Who will hold the ticket.
    pub(crate) holder: Holder,
    /// On whose behalf.
    pub(crate) key: Option<String>,
    /// What is asked for.
    pub(crate) request: Request,
}

/// The rule that chooses, with its source of chance.
pub(crate) struct Chooser<'a> {
    /// The rule.
    pub(crate) policy: &'a dyn Policy,
    /// Its random numbers.
    pub(crate) rng: &'a mut dyn Rng,
}

/// Why no worker is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The model has never been served, or not for a long time.
    UnknownModel,
    /// No live worker serves it, but for those that have failed the request.
    NoWorker {
        /// Live workers that the request excludes.
        excluded: u32,
    },
    /// Live workers serve it, and none can take a request now.
    NoRoom {
        /// Workers without room.
        full: u32,
        /// Workers spared after failures.
        open: u32,
    },
}

impl Registry {
    /// Gives a ticket of a worker that has room.
    pub(crate) fn grant(&mut self, asker: &Asker, chooser: &mut Chooser<'_>, now: Instant) -> Result<Grant, Denial> {
        self.settle(now);
        let id = self.choose(&asker.request, chooser, now)?;
        let worker = self.workers.get_mut(&id).expect("candidates come from the map");
        let offer = worker.offer_mut(&asker.request.model).expect("a candidate offers the model");
        offer.held += 1;
        let ticket = TicketId::new();
        let grant = worker.grant(ticket);
        let model = asker.request.model.clone();
        self.tickets.insert(ticket, Ticket { worker: id, model, holder: asker.holder, given: now });
        if let Holder::Gateway(gateway) = asker.holder {
            // A request that has waited is answered over a connection that is open: a sign of life.
            self.gateways.insert(gateway, now);
        }
        Ok(grant)
    }

    /// Names a worker's address to someone who will never say how the request ended, and counts it as in flight until
    /// the worker's next heartbeat.
    ///
    /// When all are full, the least loaded is named without a ticket: FastChat's gateways look addresses up for every
    /// little call, and their own workers decide what to do with a request too many.
    pub(crate) fn lookup(&mut self, model: &str, chooser: &mut Chooser<'_>, now: Instant) -> Option<String> {
        self.settle(now);
        let request = Request::of_fastchat(model.to_owned());
        match self.choose(&request, chooser, now) {
            Ok(id) => {
                let worker = self.workers.get_mut(&id).expect("candidates come from the map");
                worker.offer_mut(model).expect("a candidate offers the model").give_anonymous(now);
                Some(worker.address.clone())
            }
            Err(Denial::NoRoom { .. }) => self.choose_full(&request, chooser, now),
            Err(Denial::UnknownModel | Denial::NoWorker { .. }) => None,
        }
    }

    /// Ends a ticket, and learns about its worker. An unknown ticket is no error: its lease may have lapsed.
    pub(crate) fn release(&mut self, holder: Holder, release: &Release, now: Instant) {
        self.settle(now);
        if self.tickets.get(&release.ticket).is_none_or(|ticket| ticket.holder != holder) {
            return;
        }
        let Some(ticket) = self.tickets.remove(&release.ticket) else { return };
        let Some(worker) = self.workers.get_mut(&ticket.worker) else { return };
        if let Some(offer) = worker.offer_mut(&ticket.model) {
            offer.held -= 1;
        }
        if release.outcome == Outcome::Overloaded {
            worker.full_until = Some(now + FULL);
        }
        let before = worker.state(now);
        worker.breaker.record(release.outcome, &self.breaker, now);
        let after = worker.state(now);
        if before != after {
            tracing::warn!(worker = %worker.id, ?before, ?after, outcome = ?release.outcome, "a worker's state changed");
        }
    }

    /// Takes a sign of life from a gateway: its tickets live on.
    pub(crate) fn renew(&mut self, gateway: GatewayId, now: Instant) {
        self.settle(now);
        if let Some(heard) = self.gateways.get_mut(&gateway) {
            *heard = now;
        }
    }

    /// Takes a gateway's word for every request it has in flight: what it does not name never reached it, or has ended
    /// unheard. Gives those whose workers are not known.
    pub(crate) fn reconcile(&mut self, gateway: GatewayId, held: &[Held], now: Instant) -> Vec<TicketId> {
        self.settle(now);
        let named: HashSet<TicketId> = held.iter().map(|held| held.ticket).collect();
        let holder = Holder::Gateway(gateway);
        let lost = self.tickets.iter().filter(|(id, ticket)| ticket.holder == holder && !named.contains(id));
        let lost: Vec<TicketId> = lost.map(|(&id, _)| id).collect();
        if !lost.is_empty() {
            tracing::info!(%gateway, tickets = lost.len(), "a gateway came back without some of its tickets; they end");
        }
        lost.into_iter().for_each(|id| self.end(id));
        self.adopt(gateway, held, now)
    }

    /// Counts requests that a gateway has in flight and this controller did not dispatch. Gives those whose workers are
    /// not known.
    pub(crate) fn adopt(&mut self, gateway: GatewayId, held: &[Held], now: Instant) -> Vec<TicketId> {
        self.settle(now);
        self.gateways.insert(gateway, now);
        let unknown = held.iter().filter(|held| !self.adopt_one(gateway, held, now));
        unknown.map(|held| held.ticket).collect()
    }

    fn adopt_one(&mut self, gateway: GatewayId, held: &Held, now: Instant) -> bool {
        if self.tickets.contains_key(&held.ticket) {
            return true;
        }
        let worker = self.workers.get_mut(&held.worker).filter(|worker| worker.gone_since.is_none());
        let Some(offer) = worker.and_then(|worker| worker.offer_mut(&held.model)) else { return false };
        offer.adopt();
        let (worker, model) = (held.worker.clone(), held.model.clone());
        self.tickets.insert(held.ticket, Ticket { worker, model, holder: Holder::Gateway(gateway), given: now });
        true
    }

    /// Held tickets, without the anonymous ones.
    pub(crate) fn held(&self) -> usize {
        self.tickets.len()
    }

    fn choose(&self, request: &Request, chooser: &mut Chooser<'_>, now: Instant) -> Result<WorkerId, Denial> {
        let mut candidates = Vec::new();
        let mut seen = Seen::default();
        for worker in self.workers.values() {
            if seen.admits(worker, request, now) {
                candidates.push(candidate(worker));
            }
        }
        if candidates.is_empty() {
            return Err(seen.denial());
        }
        Ok(candidates[pick(&candidates, request, chooser)].worker.clone())
    }

    /// Why a request would be given no worker; `None` when it would be given one.
    pub(crate) fn denial(&self, request: &Request, now: Instant) -> Option<Denial> {
        let mut seen = Seen::default();
        let admitted = self.workers.values().filter(|worker| seen.admits(worker, request, now)).count();
        (admitted == 0).then(|| seen.denial())
    }

    /// The address of a worker that is alive, be it full.
    fn choose_full(&self, request: &Request, chooser: &mut Chooser<'_>, now: Instant) -> Option<String> {
        let live: Vec<_> = self
            .workers
            .values()
            .filter(|worker| worker.offer(&request.model).is_some() && request.is_spoken_by(worker))
            .filter(|worker| matches!(worker.state(now), WorkerState::Ready | WorkerState::Suspect))
            .collect();
        if live.is_empty() {
            return None;
        }
        let candidates: Vec<_> = live.iter().copied().map(candidate).collect();
        Some(live[pick(&candidates, request, chooser)].address.clone())
    }

    pub(super) fn end_tickets_of(&mut self, id: &WorkerId) {
        self.tickets.retain(|_, ticket| ticket.worker != *id);
        let offers = self.workers.get_mut(id).into_iter().flat_map(|worker| &mut worker.offers);
        offers.for_each(super::load::Offer::clear);
    }

    /// Held tickets of a worker, by model, that had time to become requests: two heartbeats.
    pub(super) fn settled_tickets(&self, id: &WorkerId, now: Instant) -> HashMap<String, u32> {
        let mut counts = HashMap::new();
        if self.workers.get(id).is_none_or(|worker| worker.offers.iter().all(|offer| offer.held == 0)) {
            return counts;
        }
        for ticket in self.tickets.values().filter(|ticket| ticket.worker == *id) {
            if ticket.given + 2 * self.lease.heartbeat <= now {
                *counts.entry(ticket.model.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// Ends tickets that stand for no request of the worker. Which ones cannot be known, but their number is right;
    /// should the release of one come after all, it is unknown, and no error.
    ///
    /// `model`: theirs, or `None` where the worker does not tell its models apart.
    pub(super) fn end_lost(&mut self, id: &WorkerId, model: Option<&str>, count: u32) {
        tracing::warn!(worker = %id, ?model, count, "tickets are lost: two heartbeats do not know their requests");
        let mut ids: Vec<_> = self
            .tickets
            .iter()
            .filter(|(_, ticket)| ticket.worker == *id && model.is_none_or(|model| ticket.model == model))
            .map(|(&id, ticket)| (ticket.given, id))
            .collect();
        ids.sort_unstable();
        for (_, lost) in ids.into_iter().take(count as usize) {
            self.end(lost);
        }
    }

    pub(super) fn lapse_gateways(&mut self, now: Instant) {
        let term = self.lease.gateway_term();
        let silent: Vec<_> =
            self.gateways.iter().filter(|(_, heard)| **heard + term <= now).map(|(&id, _)| id).collect();
        for gateway in silent {
            self.gateways.remove(&gateway);
            let holder = Holder::Gateway(gateway);
            let lapsed: Vec<_> =
                self.tickets.iter().filter(|(_, ticket)| ticket.holder == holder).map(|(&id, _)| id).collect();
            if !lapsed.is_empty() {
                tracing::warn!(%gateway, tickets = lapsed.len(), "a gateway fell silent; its tickets lapse");
            }
            lapsed.into_iter().for_each(|id| self.end(id));
        }
    }

    /// Whether a ticket's holder still counts as alive.
    pub(super) fn is_held_at(&self, ticket: &Ticket, now: Instant) -> bool {
        match ticket.holder {
            Holder::Relay => true,
            Holder::Gateway(gateway) => {
                self.gateways.get(&gateway).is_some_and(|&heard| heard + self.lease.gateway_term() > now)
            }
        }
    }

    fn end(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.remove(&id) else { return };
        let worker = self.workers.get_mut(&ticket.worker);
        if let Some(offer) = worker.and_then(|worker| worker.offer_mut(&ticket.model)) {
            offer.held -= 1;
        }
    }
}

fn candidate(worker: &Worker) -> Candidate<'_> {
    Candidate { worker: &worker.id, speed: worker.speed, load: worker.load() }
}

fn pick(candidates: &[Candidate<'_>], request: &Request, chooser: &mut Chooser<'_>) -> usize {
    let about = PolicyRequest { model: &request.model, affinity: request.affinity };
    chooser.policy.pick(candidates, &about, chooser.rng)
}

/// What the workers of a model were like that are no candidates.
#[derive(Debug, Default)]
struct Seen {
    gone: u32,
    excluded: u32,
    full: u32,
    open: u32,
}

impl Seen {
    /// Whether the worker is a candidate; if not, notes why.
    fn admits(&mut self, worker: &Worker, request: &Request, now: Instant) -> bool {
        let Some(offer) = worker.offer(&request.model) else { return false };
        let state = worker.state(now);
        let reason = match state {
            _ if !request.is_spoken_by(worker) => &mut self.gone, // for this request
            WorkerState::Gone | WorkerState::Draining => &mut self.gone,
            _ if request.exclude.contains(&worker.id) => &mut self.excluded,
            WorkerState::Open => &mut self.open,
            WorkerState::Paused => &mut self.full,
            // Half open: one request at a time decides, and those sent before the failure count too.
            WorkerState::Suspect if worker.tickets() > 0 => &mut self.full,
            WorkerState::Suspect | WorkerState::Ready => {
                if !offer.is_full() && worker.full_until.is_none_or(|until| until <= now) {
                    return true;
                }
                &mut self.full
            }
        };
        *reason += 1;
        false
    }

    fn denial(&self) -> Denial {
        match self {
            Self { full: 0, open: 0, excluded: 0, gone: 0 } => Denial::UnknownModel,
            Self { full: 0, open: 0, .. } => Denial::NoWorker { excluded: self.excluded },
            Self { full, open, .. } => Denial::NoRoom { full: *full, open: *open },
        }
    }
}
