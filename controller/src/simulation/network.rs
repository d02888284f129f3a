//! The network: what is lost, late, doubled, out of order, or cut off.
//!
//! HTTP has all of these faults. A link is a connection: in order and without loss until it breaks, and its two ends
//! hear of that at different times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::sim::Sim;
use super::wire::Wire;
use super::{Actor, Event};

/// How bad it is: probabilities for each message.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) loss: f64,
    pub(super) duplication: f64,
    /// Of a delay up to eight seconds.
    pub(super) delay: f64,
}

/// An end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Gateway,
    Controller,
}

/// Connections and cuts.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) weather: Weather,
    cuts: BTreeSet<(Actor, Actor)>,
    links: BTreeMap<u64, Connection>,
}

/// A gateway's connection. Arrays have the gateway's end first.
#[derive(Debug)]
struct Connection {
    gateway: usize,
    open: [bool; 2],
    /// When the last message arrives at each end.
    last: [Instant; 2],
    /// What waits for the end of a cut on its way to each end.
    held: [Vec<Wire>; 2],
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Gateway => Self::Controller,
            Self::Controller => Self::Gateway,
        }
    }
}

impl Network {
    /// Whether two hear nothing of each other.
    pub(super) fn is_cut(&self, one: Actor, other: Actor) -> bool {
        self.cuts.contains(&(one.min(other), one.max(other)))
    }

    /// Whether an end of a link still listens.
    pub(super) fn is_open(&self, link: u64, end: End) -> bool {
        self.links.get(&link).is_some_and(|connection| connection.open[end as usize])
    }

    /// Links that are open at that end.
    pub(super) fn open_links(&self, end: End) -> Vec<u64> {
        self.links.iter().filter(|(_, link)| link.open[end as usize]).map(|(&number, _)| number).collect()
    }
}

impl Sim {
    /// Sends over HTTP.
    pub(super) fn post(&mut self, from: Actor, to: Actor, wire: Wire) {
        let weather = self.network.weather;
        if self.network.is_cut(from, to) || self.chance(weather.loss) {
            return self.note(to, "lost", [0, 0]);
        }
        if self.chance(weather.duplication) {
            let delay = self.delay();
            self.after(delay, Event::Deliver(to, wire.clone()));
        }
        let delay = self.delay();
        self.after(delay, Event::Deliver(to, wire));
    }

    /// Time on the way.
    pub(super) fn delay(&mut self) -> Duration {
        let late = self.network.weather.delay;
        if self.chance(late) { self.millis(100, 8000) } else { self.millis(0, 4) }
    }

    /// Opens a link.
    pub(super) fn open_link(&mut self, gateway: usize) -> u64 {
        let link = self.serial();
        let now = self.now;
        let connection = Connection { gateway, open: [true; 2], last: [now; 2], held: Default::default() };
        self.network.links.insert(link, connection);
        link
    }

    /// Sends over a link.
    pub(super) fn say(&mut self, link: u64, from: End, wire: Wire) {
        let to = from.other();
        let delay = self.delay();
        let arrival = self.now + delay;
        let Some(connection) = self.network.links.get_mut(&link) else { return };
        if !connection.open[from as usize] {
            return;
        }
        let gateway = connection.gateway;
        let is_cut = self.network.cuts.contains(&(Actor::Controller, Actor::Gateway(gateway)));
        let held = &mut connection.held[to as usize];
        if is_cut || !held.is_empty() {
            return held.push(wire);
        }
        let arrival = arrival.max(connection.last[to as usize]);
        connection.last[to as usize] = arrival;
        let to = if to == End::Gateway { Actor::Gateway(gateway) } else { Actor::Controller };
        self.at(arrival, Event::Deliver(to, wire));
    }

    /// One end closes a link; the other hears of it later, and until then of what was said before.
    pub(super) fn close_link(&mut self, link: u64, end: End) {
        let Some(connection) = self.network.links.get_mut(&link) else { return };
        connection.open[end as usize] = false;
        if connection.open == [false; 2] {
            self.network.links.remove(&link);
            return;
        }
        let gateway = Actor::Gateway(connection.gateway);
        let is_cut = self.network.is_cut(Actor::Controller, gateway);
        let delay = if is_cut { self.millis(1000, 40_000) } else { self.millis(0, 2000) };
        self.after(delay, Event::LinkEnds(link, end.other()));
    }

    /// A link breaks: each end hears of it some time.
    pub(super) fn break_link(&mut self, link: u64) {
        for end in [End::Gateway, End::Controller] {
            let delay = self.millis(0, 3000);
            self.after(delay, Event::LinkEnds(link, end));
        }
    }

    /// Cuts two off from each other.
    pub(super) fn cut(&mut self, one: Actor, other: Actor) {
        self.network.cuts.insert((one.min(other), one.max(other)));
    }

    /// Ends a cut; what links have kept goes on its way.
    pub(super) fn heal(&mut self, one: Actor, other: Actor) {
        self.network.cuts.remove(&(one.min(other), one.max(other)));
        let (Actor::Controller, Actor::Gateway(gateway)) = (one.min(other), one.max(other)) else { return };
        let links = self.network.links.iter_mut().filter(|(_, link)| link.gateway == gateway);
        let held: Vec<_> = links.map(|(&number, link)| (number, std::mem::take(&mut link.held))).collect();
        for (link, [to_gateway, to_controller]) in held {
            to_gateway.into_iter().for_each(|wire| self.say(link, End::Controller, wire));
            to_controller.into_iter().for_each(|wire| self.say(link, End::Gateway, wire));
        }
    }

    /// Ends every cut.
    pub(super) fn heal_all(&mut self) {
        for (one, other) in self.network.cuts.clone() {
            self.heal(one, other);
        }
    }
}
