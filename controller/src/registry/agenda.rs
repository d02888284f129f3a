//! What the passing of time alone will change, soonest first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::Slot;

/// Workers by the moment at which they must be looked at again.
///
/// A moment that moves on, as the end of a lease does with every heartbeat, leaves its entry: the worker is looked at too
/// early, and put down anew. One that comes nearer is put down again; the old entry is passed over.
#[derive(Debug, Default)]
pub(super) struct Agenda(BinaryHeap<Reverse<(Instant, Slot)>>);

impl Agenda {
    /// Has the worker looked at by `next`. `put_down`: the moment for which it is put down already.
    pub(super) fn put(&mut self, slot: Slot, next: Option<Instant>, put_down: &mut Option<Instant>) {
        let Some(next) = next else { return };
        if put_down.is_none_or(|at| next < at) {
            self.0.push(Reverse((next, slot)));
            *put_down = Some(next);
        }
    }

    /// The next who is due, with the moment for which it was put down.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Slot)> {
        self.0.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.0.pop().map(|Reverse(due)| due)
    }

    /// No change comes before.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }
}
