//! Who holds tickets, and when each was last heard of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::id::{GatewayId, TicketId};

use super::hashing::Tickets;

/// The gateways that have tickets, or had some lately.
#[derive(Debug)]
pub(super) struct Gateways {
    /// How long one may be silent.
    term: Duration,
    known: BTreeMap<GatewayId, Gateway>,
    /// Nobody's silence is too long before. Signs of life only move that on, so it need not follow them.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Gateway {
    heard: Instant,
    tickets: Tickets,
}

impl Gateways {
    pub(super) fn new(term: Duration) -> Self {
        Self { term, known: BTreeMap::new(), next: None }
    }

    /// Takes a sign of life of one that is known.
    pub(super) fn renew(&mut self, gateway: GatewayId, now: Instant) {
        if let Some(known) = self.known.get_mut(&gateway) {
            known.heard = known.heard.max(now);
        }
    }

    /// Takes a sign of life of anyone.
    pub(super) fn hear(&mut self, gateway: GatewayId, now: Instant) {
        let end = now + self.term;
        self.next = Some(self.next.map_or(end, |next| next.min(end)));
        let known = self.known.entry(gateway).or_insert_with(|| Gateway { heard: now, tickets: Tickets::default() });
        known.heard = known.heard.max(now);
    }

    /// Notes that it holds a ticket.
    pub(super) fn hold(&mut self, gateway: GatewayId, ticket: TicketId, now: Instant) {
        self.hear(gateway, now);
        if let Some(known) = self.known.get_mut(&gateway) {
            known.tickets.insert(ticket);
        }
    }

    /// Notes that it holds a ticket no more.
    pub(super) fn let_go(&mut self, gateway: GatewayId, ticket: TicketId) {
        if let Some(known) = self.known.get_mut(&gateway) {
            known.tickets.remove(&ticket);
        }
    }

    /// When it was last heard of.
    pub(super) fn heard(&self, gateway: GatewayId) -> Option<Instant> {
        self.known.get(&gateway).map(|known| known.heard)
    }

    /// Its tickets.
    pub(super) fn tickets(&self, gateway: GatewayId) -> impl Iterator<Item = TicketId> {
        self.known.get(&gateway).into_iter().flat_map(|known| known.tickets.iter().copied())
    }

    /// How many tickets each has.
    pub(super) fn held(&self) -> impl Iterator<Item = (GatewayId, usize)> {
        self.known.iter().map(|(&id, known)| (id, known.tickets.len()))
    }

    /// Takes out those that have been silent for too long, with their tickets.
    pub(super) fn take_silent(&mut self, now: Instant) -> Vec<(GatewayId, Tickets)> {
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let term = self.term;
        let silent: Vec<GatewayId> =
            self.known.iter().filter(|(_, known)| known.heard + term <= now).map(|(&id, _)| id).collect();
        let taken = silent.into_iter().filter_map(|id| self.known.remove(&id).map(|known| (id, known.tickets)));
        let taken = taken.collect();
        self.next = self.known.values().map(|known| known.heard + term).min();
        taken
    }

    /// Whether it still counts as alive.
    pub(super) fn is_alive(&self, gateway: GatewayId, now: Instant) -> bool {
        self.known.get(&gateway).is_some_and(|known| known.heard + self.term > now)
    }

    /// No silence is too long before.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Lets terms go on by so long.
    pub(super) fn excuse_silence(&mut self, silence: Duration) {
        self.known.values_mut().for_each(|known| known.heard += silence);
    }
}
