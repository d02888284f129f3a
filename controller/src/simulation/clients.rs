//! What clients are owed: an end, once, in time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// Every request of a client that has no end yet.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Until when each must have begun or ended; `None`: its answer has begun, and takes as long as it takes.
    open: BTreeMap<u64, Option<Instant>>,
    /// Answers in full.
    pub(super) answered: u64,
    /// Requests that ended, with an answer or without.
    pub(super) ended: u64,
}

impl Clients {
    /// A request is accepted.
    pub(super) fn begin(&mut self, request: u64, until: Instant) {
        self.open.insert(request, Some(until));
    }

    /// Its answer begins.
    pub(super) fn flow(&mut self, request: u64) {
        if let Some(until) = self.open.get_mut(&request) {
            *until = None;
        }
    }

    /// It ends.
    pub(super) fn end(&mut self, request: u64, answered: bool) -> Result<(), String> {
        self.ended += 1;
        self.answered += u64::from(answered);
        match self.open.remove(&request) {
            Some(_) => Ok(()),
            None => Err(format!("request {request} of a client ends twice")),
        }
    }

    /// Nobody is kept waiting beyond the bound.
    pub(super) fn check(&self, now: Instant) -> Result<(), String> {
        match self.open.iter().find(|(_, until)| until.is_some_and(|until| until < now)) {
            Some((request, _)) => Err(format!("request {request} of a client has no end in its time")),
            None => Ok(()),
        }
    }

    /// Requests whose answers have not begun.
    pub(super) fn kept_waiting(&self) -> usize {
        self.open.values().filter(|until| until.is_some()).count()
    }

    /// Requests whose answers flow.
    pub(super) fn flowing(&self) -> usize {
        self.open.values().filter(|until| until.is_none()).count()
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} requests answered", self.answered, self.ended)
    }
}

#[test]
fn an_end_that_comes_twice_or_too_late_is_seen() {
    let now = Instant::now();
    let later = now + std::time::Duration::from_secs(1);
    let mut clients = Clients::default();
    (0..2).for_each(|request| clients.begin(request, now));
    clients.flow(0);
    clients.end(0, true).expect("once");
    clients.end(0, true).expect_err("twice");
    clients.check(now).expect("it is not late yet");
    clients.check(later).expect_err("nobody has heard of the other");
}
