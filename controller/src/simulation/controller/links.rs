//! The ends of gateways' links, as `link.rs` of the controller has them.

use std::collections::BTreeMap;

use muster_shared::control::Held;
use muster_shared::id::{GatewayId, TicketId};
use muster_shared::link::{Ask, Tell};

use super::super::Actor;
use super::super::network::End;
use super::super::sim::Sim;
use super::super::wire;
use super::{Controller, Session, Way};
use crate::http::question;
use crate::queue::Place;
use crate::registry::Holder;

impl Controller {
    /// What one read of a link brings.
    pub(super) fn asks(&mut self, link: u64, asks: Vec<Ask>, sim: &mut Sim) {
        let asks: Vec<Ask> = asks.into_iter().map(|ask| self.spell(ask, wire::through_link, sim)).collect();
        if let [Ask::Hello { gateway, held, .. }] = &asks[..] {
            return self.hello(link, *gateway, held, sim);
        }
        let Some(session) = self.sessions.get(&link) else { return };
        let gateway = session.gateway;
        self.books.renew(gateway, sim.now);
        self.change(sim, |registry, now| registry.renew(gateway, now));
        for ask in asks {
            self.take(link, gateway, ask, sim);
        }
    }

    fn take(&mut self, link: u64, gateway: GatewayId, ask: Ask, sim: &mut Sim) {
        match ask {
            Ask::Dispatch { id, dispatch } => {
                let serial = sim.serial();
                let (asker, patience) = question(dispatch);
                let place = self.ask(serial, asker, patience, Way::Link { link, id }, sim);
                if let (Some(place), Some(session)) = (place, self.sessions.get_mut(&link)) {
                    session.waiting.insert(id, (place, serial));
                }
            }
            Ask::Abandon { id } => {
                let waiting = self.sessions.get_mut(&link).and_then(|session| session.waiting.remove(&id));
                if let Some((place, ask)) = waiting {
                    self.abandon(&place, ask);
                }
            }
            Ask::Release(release) => self.release(Holder::Gateway(gateway), release, sim),
            Ask::Sync { claims } => {
                self.books.adopt(gateway, &claims, sim.now);
                let unknown = self.change(sim, |registry, now| registry.adopt(gateway, &claims, now));
                self.tell_fleet(link, unknown, sim);
            }
            Ask::Hello { .. } => {}
        }
    }

    /// A gateway's new link begins, after the end of the one before.
    fn hello(&mut self, link: u64, gateway: GatewayId, held: &[Held], sim: &mut Sim) {
        let before: Vec<u64> =
            self.sessions.iter().filter(|(_, session)| session.gateway == gateway).map(|(&link, _)| link).collect();
        for link in before {
            self.end_session(link);
            sim.close_link(link, End::Controller);
        }
        sim.note(Actor::Controller, "hears hello, tickets", [held.len() as u64, link]);
        self.sessions.insert(link, Session { gateway, waiting: BTreeMap::new() });
        self.books.reconcile(gateway, held, sim.now);
        let unknown = self.change(sim, |registry, now| registry.reconcile(gateway, held, now));
        self.tell_fleet(link, unknown, sim);
    }

    fn tell_fleet(&mut self, link: u64, unknown: Vec<TicketId>, sim: &mut Sim) {
        let fleet = Box::new(self.fleet(sim.now));
        // Not compared: reading JSON may round a measured number otherwise.
        let through = |tell: &Tell| wire::read_again(tell);
        let tell = self.spell(Tell::Fleet { fleet, unknown }, through, sim);
        self.tells.entry(link).or_default().push(tell);
    }

    /// A link has ended; those who waited for its sake are gone with it.
    pub(in crate::simulation) fn on_link_end(&mut self, link: u64, sim: &mut Sim) {
        self.begin(sim);
        sim.note(Actor::Controller, "loses link", [link, 0]);
        sim.close_link(link, End::Controller);
        self.end_session(link);
        self.finish(sim);
    }

    fn end_session(&mut self, link: u64) {
        let Some(session) = self.sessions.remove(&link) else { return };
        for (place, ask) in session.waiting.into_values() {
            self.abandon(&place, ask);
        }
    }

    /// Gives up a place. What the same read has brought before may have made the answer already, which then goes out.
    pub(super) fn abandon(&mut self, place: &Place, ask: u64) {
        self.books.asks.abandon(ask);
        self.desk.abandon(place);
    }
}
