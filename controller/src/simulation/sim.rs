//! Virtual time, chance and what is to come.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::clients::Clients;
use super::network::Network;
use super::trace::Trace;
use super::{Actor, Event};

/// What all actors share.
#[derive(Debug)]
pub(super) struct Sim {
    /// The virtual time.
    pub(super) now: Instant,
    start: Instant,
    /// All chance comes from here.
    pub(super) rng: StdRng,
    agenda: BTreeMap<(Instant, u64), Event>,
    serial: u64,
    pub(super) network: Network,
    pub(super) trace: Trace,
    /// The clients, who want an end.
    pub(super) clients: Clients,
    /// The first rule that was broken.
    pub(super) violation: Option<String>,
}

impl Sim {
    pub(super) fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            rng: StdRng::seed_from_u64(seed),
            agenda: BTreeMap::new(),
            serial: 0,
            network: Network::default(),
            trace: Trace::new(seed),
            clients: Clients::default(),
            violation: None,
        }
    }

    /// A number that is given once.
    pub(super) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Has something happen later.
    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Has something happen at a moment. What is told earlier happens first, of two at the same.
    pub(super) fn at(&mut self, moment: Instant, event: Event) {
        let serial = self.serial();
        self.agenda.insert((moment, serial), event);
    }

    /// The next thing to happen; the time is then that of it.
    pub(super) fn next(&mut self) -> Event {
        let ((moment, _), event) = self.agenda.pop_first().expect("the controller's sweep is always ahead");
        self.now = moment;
        event
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    /// Any duration from `least` to `most`, in milliseconds, down to the microsecond.
    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(least * 1000..=most * 1000))
    }

    /// Any index below `count`.
    pub(super) fn index(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    /// Adds a step to the trace.
    pub(super) fn note(&mut self, who: Actor, what: &'static str, with: [u64; 2]) {
        self.trace.note(self.now - self.start, who, what, with);
    }

    /// Notes a broken rule; only the first counts.
    pub(super) fn claim(&mut self, holds: Result<(), String>) {
        if let Err(why) = holds
            && self.violation.is_none()
        {
            self.violation = Some(why);
        }
    }

    /// The virtual time in milliseconds, as clocks on the walls of all machines show it.
    pub(super) fn wall_clock(&self) -> u64 {
        1_700_000_000_000 + u64::try_from((self.now - self.start).as_millis()).unwrap_or(u64::MAX)
    }
}
