//! Static peers in the registry: known because they are written down, and believed to live because they answer probes.

use std::collections::HashSet;
use std::time::Instant;

use muster_shared::control::{Capabilities, Heartbeat, ModelCard, Registration, WorkerState};
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};

use super::changes::Cause;
use super::load::Offer;
use super::worker::Worker;
use super::{Origin, Registry, Slot};
use crate::peers::{Peer, merged};

/// What is known of a static peer beyond what is known of any worker.
#[derive(Debug)]
pub(super) struct Peering {
    peer: Peer,
    /// What it told last.
    told: Option<Told>,
    /// Whether it has ever answered; it gets nothing before.
    proven: bool,
    /// Why it is down.
    down: Option<String>,
    /// Whether it is written down no more: it finishes what it runs.
    removed: bool,
    /// What it tells that is not as it is written down.
    warnings: Vec<String>,
}

#[derive(Debug, Clone)]
struct Told {
    models: Option<Vec<ModelCard>>,
    speed: Option<f64>,
    capabilities: Option<Capabilities>,
}

/// What a peer has answered to a probe.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// The models that it tells; `None`: its protocol has no word for them.
    pub(crate) models: Option<Vec<ModelCard>>,
    /// Tokens per second, where it tells them.
    pub(crate) speed: Option<f64>,
    /// Its version, where it tells one.
    pub(crate) version: String,
    /// Which run of it this is; 0: it does not say.
    pub(crate) incarnation: u64,
    /// What its machine has, where it tells that.
    pub(crate) capabilities: Option<Capabilities>,
    /// What it has to do.
    pub(crate) load: Load,
}

/// What a peer has to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Load {
    /// It does not say.
    Unknown,
    /// One number for all its models, as FastChat's workers tell.
    Total(u32),
    /// As a heartbeat of muster's workers.
    Beat(Box<Heartbeat>),
}

/// What follows for a peer from its last probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It answers.
    Up,
    /// It does not, for that reason.
    Down(String),
}

impl Worker {
    /// Whether it stands in the peers file.
    pub(super) fn is_written(&self) -> bool {
        self.peering.as_ref().is_some_and(|peering| !peering.removed)
    }

    /// Whether it has been taken out of the peers file.
    pub(super) fn is_removed(&self) -> bool {
        self.peering.as_ref().is_some_and(|peering| peering.removed)
    }

    /// Whether it is a static peer that has never answered.
    pub(super) fn is_unproven(&self) -> bool {
        self.peering.as_ref().is_some_and(|peering| !peering.proven)
    }

    /// Why it does not answer, where it is a static peer that is down.
    pub(crate) fn down_reason(&self) -> Option<&str> {
        self.peering.as_ref()?.down.as_deref()
    }

    /// In words, what of it is not as it is written down.
    pub(crate) fn warnings(&self) -> &[String] {
        self.peering.as_ref().map_or(&[], |peering| &peering.warnings)
    }

    fn of_peer(peer: &Peer, now: Instant) -> Self {
        let registration = Registration {
            id: peer.id.clone(),
            address: peer.address.clone(),
            incarnation: 0,
            transport: peer.transport,
            models: peer.models.clone(),
            speed: peer.speed.unwrap_or(1.0),
            version: String::new(),
            capabilities: None,
        };
        let mut worker = Self::new(registration, Origin::Static, None, now);
        let (peer, told, warnings) = (peer.clone(), None, Vec::new());
        worker.peering = Some(Box::new(Peering { peer, told, proven: false, down: None, removed: false, warnings }));
        worker.describe();
        worker
    }

    /// Takes over from the same process as it had registered.
    fn carry_over_registered(&mut self, old: &Self) {
        self.carry_over(old);
        self.incarnation = old.incarnation;
        self.version.clone_from(&old.version);
        let Some(peering) = &mut self.peering else { return };
        let models = old.offers.iter().map(|offer| offer.card.clone()).collect();
        let told = Told { models: Some(models), speed: Some(old.speed), capabilities: old.capabilities.clone() };
        peering.told = Some(told);
        peering.proven = true;
        let cards = self.describe();
        self.offers = cards.into_iter().map(|card| known_or_new(&old.offers, card)).collect();
    }

    /// Puts what is written down and what was told together. Gives the models that it shall offer.
    fn describe(&mut self) -> Vec<ModelCard> {
        let Some(peering) = &mut self.peering else { return Vec::new() };
        let Peering { peer, told, .. } = &**peering;
        let (cards, mut warnings) = merged::models(peer, told.as_ref().and_then(|told| told.models.as_deref()));
        let reported = told.as_ref().and_then(|told| told.capabilities.as_ref());
        if let (Some(declared), Some(reported)) = (&peer.capabilities, reported) {
            warnings.extend(merged::differences(declared, reported));
        }
        self.site.clone_from(&peer.site);
        self.declared.clone_from(&peer.capabilities);
        self.capabilities = merged::capabilities(peer.capabilities.as_ref(), reported);
        self.speed = peer.speed.or(told.as_ref().and_then(|told| told.speed)).unwrap_or(1.0);
        if !warnings.is_empty() && warnings != peering.warnings {
            tracing::warn!(worker = %self.id, warnings = warnings.join("; "), "a peer is not as it is written down");
        }
        peering.warnings = warnings;
        cards
    }
}

fn known_or_new(known: &[Offer], card: ModelCard) -> Offer {
    match known.iter().find(|offer| offer.card.name == card.name) {
        Some(offer) => {
            let mut offer = offer.clone();
            (offer.card, offer.place) = (card, None);
            offer
        }
        None => Offer::new(card),
    }
}

impl Registry {
    /// Makes these the peers that are written down, all at once. Those that were before and are not among them finish
    /// what they run, and are forgotten then.
    pub(crate) fn set_peers(&mut self, peers: &[Peer], now: Instant) {
        self.settle(now);
        let named: HashSet<&WorkerId> = peers.iter().map(|peer| &peer.id).collect();
        let others = self.workers.iter().filter(|(_, worker)| worker.is_written() && !named.contains(&worker.id));
        let removed: Vec<Slot> = others.map(|(slot, _)| slot).collect();
        for slot in removed {
            let worker = &mut self.workers[slot];
            tracing::info!(worker = %worker.id, "a peer is written down no more; it finishes what it runs");
            if let Some(peering) = &mut worker.peering {
                peering.removed = true;
            }
            self.refresh(slot, now);
        }
        peers.iter().for_each(|peer| self.set_peer(peer, now));
    }

    fn set_peer(&mut self, peer: &Peer, now: Instant) {
        self.make_way(peer, now);
        let slot = self.by_id.get(&peer.id).copied();
        let mut fresh = Worker::of_peer(peer, now);
        let Some(slot) = slot else {
            tracing::info!(worker = %peer.id, address = %peer.address, "a peer is written down");
            let slot = self.workers.insert(fresh);
            self.by_id.insert(peer.id.clone(), slot);
            self.seat(slot, now);
            return;
        };
        let known = &mut self.workers[slot];
        let is_same_place = known.address == peer.address && known.gone_since.is_none();
        match &mut known.peering {
            Some(peering) if is_same_place => {
                let same_words = peering.peer.transport == peer.transport;
                let changed = std::mem::replace(&mut peering.peer, peer.clone()) != *peer;
                let returned = std::mem::replace(&mut peering.removed, false);
                if !same_words {
                    (peering.told, peering.proven) = (None, false);
                }
                if changed || returned {
                    tracing::info!(worker = %peer.id, "a peer is written down otherwise than before");
                    self.redo(slot, now);
                }
            }
            None if is_same_place => {
                fresh.carry_over_registered(known);
                self.replace(slot, fresh, now);
            }
            _ => {
                tracing::info!(worker = %peer.id, address = %peer.address, "a peer is written down at another address");
                self.replace(slot, fresh, now);
            }
        }
    }

    /// Whoever registered under a peer's address is that peer, or has gone.
    fn make_way(&mut self, peer: &Peer, now: Instant) {
        let Some(slot) = self.at_address(&peer.address) else { return };
        let other = &mut self.workers[slot];
        if other.id == peer.id || other.peering.is_some() {
            return;
        }
        tracing::info!(worker = %other.id, address = %other.address, by = %peer.id, "a worker was replaced by a peer");
        other.gone_since = Some(now);
        other.cause = Some(Cause::gone(format!("written down as `{}`", peer.id)));
        self.end_tickets_of(slot, now);
    }

    /// Offers what a peer shall offer by what is known of it now.
    fn redo(&mut self, slot: Slot, now: Instant) {
        let worker = &mut self.workers[slot];
        let cards = worker.describe();
        let transport = worker.peering.as_ref().map_or(worker.transport, |peering| peering.peer.transport);
        let same = worker.transport == transport && worker.offers.iter().map(|offer| &offer.card).eq(&cards);
        if same {
            self.refresh(slot, now);
            return;
        }
        // Seats are given anew: they depend on the transport, and on which models there are.
        let places = self.take_places(slot);
        let worker = &mut self.workers[slot];
        let old = std::mem::take(&mut worker.offers);
        worker.offers = cards.into_iter().map(|card| known_or_new(&old, card)).collect();
        let tickets: Vec<_> = worker.tickets.iter().map(|&(_, id)| id).collect();
        for id in tickets {
            if self.workers[slot].offer(&self.tickets[&id].model).is_none() {
                self.forget(id);
            }
        }
        self.workers[slot].transport = transport;
        self.seat(slot, now);
        self.leave(slot, places);
    }

    /// Takes a peer's answer to a probe: like a registration and a heartbeat at once. Whether other models are offered
    /// now than before.
    pub(crate) fn peer_answered(&mut self, id: &WorkerId, answer: Answer, now: Instant) -> bool {
        self.settle(now);
        let Some(slot) = self.known(id).filter(|&slot| self.workers[slot].is_written()) else { return false };
        let names =
            |worker: &Worker| -> Vec<String> { worker.offers.iter().map(|offer| offer.card.name.clone()).collect() };
        let worker = &mut self.workers[slot];
        let before = names(worker);
        let known = std::mem::replace(&mut worker.incarnation, answer.incarnation);
        if known != answer.incarnation && known != 0 {
            tracing::info!(worker = %worker.id, "a peer has started anew");
            worker.start_anew();
            self.end_tickets_of(slot, now);
        }
        let settled = self.settled_tickets(slot, now);
        let worker = &mut self.workers[slot];
        let Answer { models, speed, capabilities, version, load, .. } = answer;
        worker.version = version;
        if let Some(peering) = &mut worker.peering {
            peering.told = Some(Told { models, speed, capabilities });
        }
        worker.renew(now);
        match load {
            Load::Unknown => {
                worker.take_load(None, &settled);
            }
            Load::Total(length) => {
                let lost = worker.take_total(length, settled.values().sum());
                if lost > 0 {
                    self.end_lost(slot, None, lost, now);
                }
            }
            Load::Beat(beat) => {
                worker.take_measures(&beat, &self.rules.pressure);
                for (model, count) in worker.take_load(beat.load.as_deref(), &settled) {
                    self.end_lost(slot, Some(&model), count, now);
                }
            }
        }
        self.redo(slot, now);
        names(&self.workers[slot]) != before
    }

    /// Takes what follows from a peer's probes.
    pub(crate) fn judge_peer(&mut self, id: &WorkerId, verdict: Verdict, now: Instant) {
        self.settle(now);
        let Some(slot) = self.known(id).filter(|&slot| self.workers[slot].is_written()) else { return };
        let Worker { peering: Some(peering), cause, .. } = &mut self.workers[slot] else { return };
        match verdict {
            Verdict::Up => {
                if peering.down.take().is_some() {
                    tracing::info!(worker = %id, "a peer is back: it answers its probes");
                } else if !peering.proven {
                    *cause = Some(Cause::new("it answers its probes", &[WorkerState::Ready]));
                    tracing::info!(worker = %id, "a peer answers");
                }
                peering.proven = true;
            }
            Verdict::Down(reason) => {
                if peering.down.is_none() {
                    tracing::warn!(worker = %id, reason, "a peer is down: it does not answer its probes as a worker does");
                }
                peering.down = Some(reason);
            }
        }
        self.refresh(slot, now);
    }

    /// Static peers at which requests have failed since the last call.
    pub(crate) fn take_doubtful(&mut self) -> Vec<WorkerId> {
        std::mem::take(&mut self.doubtful)
    }

    /// Refuses one who registers under the name or the address of a peer that is written down.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the field at fault.
    pub(crate) fn refuse_written(&self, id: &WorkerId, address: &str) -> Result<(), Problem> {
        if self.by_id.get(id).is_some_and(|&slot| self.workers[slot].is_written()) {
            return Err(written(id, "id"));
        }
        let normal = crate::peers::file::normal(address);
        let addresses = [Some(address), normal.as_deref()];
        let slot = addresses.into_iter().flatten().find_map(|address| self.at_address(address));
        match slot.map(|slot| &self.workers[slot]).filter(|worker| worker.is_written()) {
            Some(peer) => Err(written(&peer.id, "address")),
            None => Ok(()),
        }
    }
}

/// What one hears who wants to change by a call what is written down.
pub(super) fn written(id: &WorkerId, param: &str) -> Problem {
    let message = format!(
        "the worker `{id}` stands in the controller's peers file, and so need not register: start it with --no-register, \
         or take it out of the file"
    );
    Problem::new(Kind::Invalid, message).with_param(param)
}
