//! What happened: the last steps, to be read after a failure, and a hash over all of them.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::Actor;

/// Notes that are kept: those of some fifty events and more.
const KEPT: usize = 120;

/// One step.
#[derive(Debug, Clone, Copy)]
struct Note {
    event: u64,
    at: Duration,
    who: Actor,
    what: &'static str,
    with: [u64; 2],
}

/// The steps of a simulation.
#[derive(Debug)]
pub(super) struct Trace {
    /// By which it is replayed.
    pub(super) seed: u64,
    /// Events so far.
    pub(super) events: u64,
    hash: u64,
    last: VecDeque<Note>,
}

impl Trace {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, events: 0, hash: 0xcbf2_9ce4_8422_2325, last: VecDeque::with_capacity(KEPT) }
    }

    /// Adds a step.
    pub(super) fn note(&mut self, at: Duration, who: Actor, what: &'static str, with: [u64; 2]) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Note { event: self.events, at, who, what, with });
        let (kind, index) = who.numbers();
        let micros = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let length = what.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        for word in [micros, kind, index, length, with[0], with[1]] {
            // FNV-1a, a word at a time: whether two runs are the same is all it shall tell.
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
        }
    }

    /// Tells two runs apart.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, event {}; the last steps:", self.seed, self.events)?;
        for Note { event, at, who, what, with: [one, other] } in &self.last {
            writeln!(f, "  {event:>7} {:>12.6} s  {who:<11} {what} {one} {other}", at.as_secs_f64())?;
        }
        writeln!(f, "replay: MUSTER_SIM_SEED={} cargo nextest run -p muster-controller simulation", self.seed)
    }
}
