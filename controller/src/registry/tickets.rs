//! Tickets: who is given which worker, and what the end of a request tells about it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::{Grant, Held, Outcome, Release, WorkerState};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;
use rand::{Rng, RngExt as _};

use super::changes::Cause;
use super::pool::{Choice, Key, Pool};
use super::worker::Worker;
use super::{Registry, Slot, tally};
use crate::dispatch::Seat;
use crate::journal::{Journal, Snapshot};

/// How long a worker that refused for want of room is spared, unless a heartbeat comes sooner.
const FULL: Duration = Duration::from_millis(250);

/// Workers that are compared when all are full.
const SAMPLE: usize = 64;

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
    pub(super) worker: Slot,
    pub(super) model: Arc<str>,
    key: Key,
    pub(super) holder: Holder,
    given: Instant,
    /// Number of the decision that gave it, where there is a journal.
    decision: Option<u64>,
}

/// What is asked for: any live worker of a model that has not failed this request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The model's name.
    pub(crate) model: String,
    /// Whether no other model will do.
    pub(crate) exact: bool,
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
        Self { model, exact: false, affinity: None, exclude: Vec::new(), transports: SPEAK_FASTCHAT.to_vec() }
    }

    /// Whether it can be said to that worker.
    pub(super) fn is_spoken_by(&self, worker: &Worker) -> bool {
        self.transports.is_empty() || self.transports.contains(&worker.transport)
    }
}

/// A request with the one who will hold its ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Who will hold the ticket.
    pub(crate) holder: Holder,
    /// On whose behalf.
    pub(crate) key: Key,
    /// What is asked for.
    pub(crate) request: Request,
    /// What the journal says of it besides.
    pub(crate) note: Note,
}

/// What a journal says of a request, and no choice depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// The request's id.
    pub(crate) request: Option<Arc<str>>,
    /// The name that was asked for, where it is not the model's.
    pub(crate) asked: Option<Arc<str>>,
    /// When it was asked.
    pub(crate) since: Option<Instant>,
}

/// What is asked, by whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) request: &'a Request,
    /// `None`: someone who will never say how the request ended.
    pub(crate) holder: Option<Holder>,
    pub(crate) key: &'a Key,
    pub(crate) note: &'a Note,
}

impl<'a> Question<'a> {
    /// That of one who will hold a ticket.
    pub(crate) fn of(asker: &'a Asker) -> Self {
        let Asker { holder, key, request, note } = asker;
        Self { request, holder: Some(*holder), key, note }
    }
}

/// A worker that was chosen.
struct Chosen {
    slot: Slot,
    /// Number of the decision, where there is a journal.
    decision: Option<u64>,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The model's name.
    pub(crate) model: Arc<str>,
    /// On whose behalf it was made.
    pub(crate) key: Key,
    /// From its ticket to its end.
    pub(crate) took: Duration,
}

/// What there is none of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Live workers would take the request, and none can now.
    Room,
    /// No live worker would.
    Worker,
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
        /// Workers with room, spared while their machines are short of something.
        paused: u32,
    },
}

impl Registry {
    /// Gives a ticket of a worker that has room. What there is none of is known at once; [`Registry::denial`] has the
    /// details.
    pub(crate) fn grant(&mut self, asker: &Asker, rng: &mut dyn Rng, now: Instant) -> Result<Grant, Lack> {
        self.settle(now);
        let Chosen { slot, decision } = self.choose(&Question::of(asker), rng, now)?;
        let ticket = TicketId::from_random(rng.random());
        let grant = self.workers[slot].grant(ticket);
        self.workers[slot].given += 1;
        self.hold(slot, &asker.request.model, ticket, asker.holder, &asker.key, now);
        self.tickets.get_mut(&ticket).expect("it is held").decision = decision;
        self.take_turn(slot, &asker.request.model);
        self.refresh(slot, now);
        Ok(grant)
    }

    /// Names a worker's address to someone who will never say how the request ended, and counts it as in flight until
    /// the worker's next heartbeat.
    ///
    /// When all are full, the least loaded is named without a ticket: FastChat's gateways look addresses up for every
    /// little call, and their own workers decide what to do with a request too many.
    pub(crate) fn lookup(&mut self, model: &str, rng: &mut dyn Rng, now: Instant) -> Option<String> {
        self.settle(now);
        let request = Request::of_fastchat(model.to_owned());
        let question = Question { request: &request, holder: None, key: &None, note: &Note::default() };
        match self.choose(&question, rng, now) {
            Ok(Chosen { slot, .. }) => {
                let worker = &mut self.workers[slot];
                worker.given += 1;
                worker.offer_mut(model).expect("a candidate offers the model").give_anonymous(now);
                self.take_turn(slot, model);
                self.refresh(slot, now);
                Some(self.workers[slot].address.clone())
            }
            Err(Lack::Room) => self.choose_full(&question, rng, now),
            Err(Lack::Worker) => None,
        }
    }

    /// Notes that a request is refused.
    pub(crate) fn note_refusal(&mut self, asker: &Asker, problem: &Problem, now: Instant) {
        if let Some(journal) = &mut self.journal {
            journal.refused(self.pools.get_mut(&asker.request.model), &Question::of(asker), problem, now);
        }
    }

    /// The last decisions, to be looked at without the registry; `None`: no journal is kept.
    pub(crate) fn journal(&self) -> Option<Snapshot> {
        self.journal.as_ref().map(Journal::snapshot)
    }

    /// Counts a ticket everywhere; [`Registry::refresh`] must follow.
    fn hold(&mut self, slot: Slot, model: &str, id: TicketId, holder: Holder, key: &Key, now: Instant) {
        let pool = self.pools.get_mut(model).expect("a model with a member has a pool");
        pool.hold(key);
        let model = Arc::clone(&pool.model);
        let worker = &mut self.workers[slot];
        worker.offer_mut(&model).expect("it offers the model").held += 1;
        worker.tickets.insert((now, id));
        if let Holder::Gateway(gateway) = holder {
            // A request that has waited is answered over a connection that is open: a sign of life.
            self.gateways.hold(gateway, id, now);
        }
        self.tickets.insert(id, Ticket { worker: slot, model, key: key.clone(), holder, given: now, decision: None });
    }

    fn take_turn(&mut self, slot: Slot, model: &str) {
        let pool = self.pools.get_mut(model).expect("a model with a member has a pool");
        pool.turn += 1;
        let offer = self.workers[slot].offer_mut(model).expect("it offers the model");
        offer.turn = pool.turn;
    }

    /// Ends a ticket, and learns about its worker. An unknown ticket is no error: its lease may have lapsed. Tells which
    /// request has ended.
    pub(crate) fn release(&mut self, holder: Holder, release: &Release, now: Instant) -> Option<Ended> {
        self.settle(now);
        if self.tickets.get(&release.ticket).is_none_or(|ticket| ticket.holder != holder) {
            return None;
        }
        let ticket = self.forget(release.ticket)?;
        let worker = &mut self.workers[ticket.worker];
        if release.outcome == Outcome::Overloaded {
            worker.full_until = Some(now + FULL);
        }
        let took = now.saturating_duration_since(ticket.given);
        if release.outcome == Outcome::Done {
            worker.take_response(took);
        }
        if matches!(release.outcome, Outcome::Unreachable | Outcome::Failed) && worker.is_written() {
            self.doubtful.push(worker.id.clone());
        }
        let before = worker.state(now);
        worker.breaker.record(release.outcome, &self.rules.breaker, now);
        let after = worker.state(now);
        if before != after {
            tracing::warn!(worker = %worker.id, ?before, ?after, outcome = ?release.outcome, "a worker's state changed");
            worker.cause = cause(release.outcome, before);
        }
        tally::count(&mut worker.totals, release);
        self.tally.count(release);
        self.refresh(ticket.worker, now);
        if let Some((journal, decision)) = self.journal.as_mut().zip(ticket.decision) {
            journal.ended(decision, release, took);
        }
        Some(Ended { model: ticket.model, key: ticket.key, took })
    }

    /// Takes a sign of life from a gateway: its tickets live on.
    pub(crate) fn renew(&mut self, gateway: GatewayId, now: Instant) {
        self.settle(now);
        self.gateways.renew(gateway, now);
    }

    /// Takes a gateway's word for every request it has in flight: what it does not name never reached it, or has ended
    /// unheard. Gives those whose workers are not known.
    pub(crate) fn reconcile(&mut self, gateway: GatewayId, held: &[Held], now: Instant) -> Vec<TicketId> {
        self.settle(now);
        let named: HashSet<TicketId> = held.iter().map(|held| held.ticket).collect();
        let lost: Vec<TicketId> = self.gateways.tickets(gateway).filter(|id| !named.contains(id)).collect();
        if !lost.is_empty() {
            tracing::info!(%gateway, tickets = lost.len(), "a gateway came back without some of its tickets; they end");
        }
        lost.into_iter().for_each(|id| self.end(id, now));
        self.adopt(gateway, held, now)
    }

    /// Counts requests that a gateway has in flight and this controller did not dispatch. Gives those whose workers are
    /// not known.
    pub(crate) fn adopt(&mut self, gateway: GatewayId, held: &[Held], now: Instant) -> Vec<TicketId> {
        self.settle(now);
        self.gateways.hear(gateway, now);
        let unknown = held.iter().filter(|held| !self.adopt_one(gateway, held, now));
        unknown.map(|held| held.ticket).collect()
    }

    fn adopt_one(&mut self, gateway: GatewayId, held: &Held, now: Instant) -> bool {
        if self.tickets.contains_key(&held.ticket) {
            return true;
        }
        let Some(slot) = self.known(&held.worker) else { return false };
        let Some(offer) = self.workers[slot].offer_mut(&held.model) else { return false };
        offer.explain_one();
        let key = held.key.as_deref().map(Arc::from);
        self.hold(slot, &held.model, held.ticket, Holder::Gateway(gateway), &key, now);
        self.refresh(slot, now);
        true
    }

    /// Held tickets, without the anonymous ones.
    pub(crate) fn held(&self) -> usize {
        self.tickets.len()
    }

    /// Held tickets of a key, of one model.
    pub(crate) fn held_by(&self, model: &str, key: &Key) -> u32 {
        self.pools.get(model).map_or(0, |pool| pool.held_by(key))
    }

    /// Held tickets of a model.
    pub(crate) fn held_of(&self, model: &str) -> u32 {
        self.pools.get(model).map_or(0, Pool::held)
    }

    fn choose(&mut self, question: &Question<'_>, rng: &mut dyn Rng, now: Instant) -> Result<Chosen, Lack> {
        let request = question.request;
        let exclude = self.seats(request);
        let pool = self.pools.get_mut(&request.model).ok_or(Lack::Worker)?;
        match pool.choose(&exclude, &request.transports, request.affinity, rng) {
            Choice::Picked(pick) => {
                let decision = self.journal.as_mut().map(|journal| journal.picked(pool, question, pick, now));
                Ok(Chosen { slot: pick.slot, decision })
            }
            Choice::NoRoom => Err(Lack::Room),
            Choice::Nobody => Err(Lack::Worker),
        }
    }

    /// Where those sit that the request excludes, each once.
    pub(super) fn seats(&self, request: &Request) -> Vec<Seat> {
        self.seats_of(&request.model, &request.exclude)
    }

    /// Where those workers sit among those of a model, each once.
    pub(super) fn seats_of(&self, model: &str, workers: &[WorkerId]) -> Vec<Seat> {
        let slots = workers.iter().filter_map(|id| self.by_id.get(id));
        let offers = slots.filter_map(|&slot| self.workers[slot].offer(model));
        let mut seats: Vec<Seat> = offers.filter_map(|offer| offer.place.as_ref().map(|place| place.seat)).collect();
        seats.sort_unstable();
        seats.dedup();
        seats
    }

    /// The address of a worker that is alive, be it full.
    fn choose_full(&mut self, question: &Question<'_>, rng: &mut dyn Rng, now: Instant) -> Option<String> {
        let request = question.request;
        let pool = self.pools.get_mut(&request.model)?;
        // When thousands are full, one of some is as good.
        let workers = pool.sample(SAMPLE, rng).into_iter().map(|slot| (slot, &self.workers[slot]));
        let live: Vec<_> = workers
            .filter(|(_, worker)| request.is_spoken_by(worker))
            .filter_map(|(slot, worker)| {
                let candidate = worker.about(now).candidate(worker.offer(&request.model)?);
                Some((worker.state(now), (slot, candidate)))
            })
            .collect();
        let of = |states: &[WorkerState]| -> Vec<_> {
            live.iter().filter(|(state, _)| states.contains(state)).map(|(_, it)| *it).collect()
        };
        let ready = of(&[WorkerState::Ready, WorkerState::Suspect]);
        let those = if ready.is_empty() { of(&[WorkerState::Paused]) } else { ready };
        let slot = pool.pick_of(&those, request.affinity, rng)?;
        let worker = &self.workers[slot];
        if let Some(journal) = &mut self.journal {
            journal.named(pool, question, &worker.id, now);
        }
        Some(worker.address.clone())
    }

    pub(super) fn end_tickets_of(&mut self, slot: Slot, now: Instant) {
        let tickets: Vec<TicketId> = self.workers[slot].tickets.iter().map(|&(_, id)| id).collect();
        for id in tickets {
            self.forget(id);
        }
        self.workers[slot].offers.iter_mut().for_each(super::load::Offer::clear);
        self.refresh(slot, now);
    }

    /// Held tickets of a worker, by model, that had time to become requests: two heartbeats.
    pub(super) fn settled_tickets(&self, slot: Slot, now: Instant) -> HashMap<String, u32> {
        let mut counts = HashMap::new();
        // Oldest first.
        for (_, id) in self.workers[slot].tickets.iter().take_while(|(given, _)| self.is_settled(*given, now)) {
            *counts.entry(self.tickets[id].model.to_string()).or_default() += 1;
        }
        counts
    }

    /// Ends tickets that stand for no request of the worker. Which ones cannot be known, but their number is right; should
    /// the release of one come after all, it is unknown, and no error.
    ///
    /// Those of the gateway that has been silent for longest go first, and of these the oldest: when a gateway dies, its
    /// requests are gone before its tickets lapse, and those of the others are not to pay for it.
    ///
    /// `model`: theirs, or `None` where the worker does not tell its models apart.
    pub(super) fn end_lost(&mut self, slot: Slot, model: Option<&str>, count: u32, now: Instant) {
        let worker = &self.workers[slot];
        tracing::warn!(worker = %worker.id, ?model, count, "tickets are lost: two heartbeats do not know their requests");
        let settled = worker.tickets.iter().take_while(|(given, _)| self.is_settled(*given, now));
        let is_meant = |id: &TicketId| model.is_none_or(|model| *self.tickets[id].model == *model);
        let mut ids: Vec<_> = settled.map(|&(_, id)| id).filter(is_meant).map(|id| (self.heard_of(id), id)).collect();
        ids.sort_by_key(|&(heard, _)| heard); // stable: the oldest stay in front
        ids.into_iter().take(count as usize).for_each(|(_, id)| self.end(id, now));
    }

    /// Whether a ticket given then had time to become a request.
    fn is_settled(&self, given: Instant, now: Instant) -> bool {
        given + 2 * self.rules.lease.heartbeat <= now
    }

    /// When the holder of a ticket was last heard of; the controller itself is always there.
    fn heard_of(&self, id: TicketId) -> (bool, Option<Instant>) {
        match self.tickets[&id].holder {
            Holder::Relay => (true, None),
            Holder::Gateway(gateway) => (false, self.gateways.heard(gateway)),
        }
    }

    pub(super) fn lapse_gateways(&mut self, now: Instant) {
        for (gateway, tickets) in self.gateways.take_silent(now) {
            if !tickets.is_empty() {
                tracing::warn!(%gateway, tickets = tickets.len(), "a gateway fell silent; its tickets lapse");
            }
            tickets.into_iter().for_each(|id| self.end(id, now));
        }
    }

    /// Whether a ticket's holder still counts as alive.
    pub(super) fn is_held_at(&self, ticket: &Ticket, now: Instant) -> bool {
        match ticket.holder {
            Holder::Relay => true,
            Holder::Gateway(gateway) => self.gateways.is_alive(gateway, now),
        }
    }

    pub(super) fn end(&mut self, id: TicketId, now: Instant) {
        if let Some(ticket) = self.forget(id) {
            self.refresh(ticket.worker, now);
        }
    }

    /// Counts a ticket nowhere any more; [`Registry::refresh`] must follow.
    pub(super) fn forget(&mut self, id: TicketId) -> Option<Ticket> {
        let ticket = self.tickets.remove(&id)?;
        let worker = &mut self.workers[ticket.worker];
        worker.tickets.remove(&(ticket.given, id));
        worker.totals.requests += 1;
        if let Some(offer) = worker.offer_mut(&ticket.model) {
            offer.held -= 1;
        }
        if let Some(pool) = self.pools.get_mut(&ticket.model) {
            pool.let_go(&ticket.key);
        }
        if let Holder::Gateway(gateway) = ticket.holder {
            self.gateways.let_go(gateway, id);
        }
        if let Some((journal, decision)) = self.journal.as_mut().zip(ticket.decision) {
            journal.lapsed(decision); // unless a release is what ends it, and says so
        }
        Some(ticket)
    }
}

/// Why the end of a request changed its worker's state.
fn cause(outcome: Outcome, before: WorkerState) -> Option<Cause> {
    let words = match outcome {
        Outcome::Unreachable => "a gateway could not connect to it",
        Outcome::Failed if before == WorkerState::Suspect => "it failed the request that tried it",
        Outcome::Failed => "it failed too many requests in a row",
        Outcome::Done | Outcome::Cancelled | Outcome::Overloaded => return None,
    };
    Some(Cause::new(words, &[WorkerState::Open]))
}
