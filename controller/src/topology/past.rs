//! The last minutes, a sample each second.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use muster_shared::topology::{Sample, Topology};

use super::Clock;
use crate::registry::Tally;

/// What was, and how moments are counted.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) clock: Clock,
    /// Grows by one whenever the clock is set.
    pub(super) era: u64,
    /// Oldest first.
    pub(super) history: VecDeque<Sample>,
    /// How many there have been.
    pub(super) samples: u64,
}

impl Past {
    pub(super) fn new(now: Instant) -> Self {
        let clock = Clock::new(now, SystemTime::now());
        Self { clock, era: 0, history: VecDeque::new(), samples: 0 }
    }

    /// Takes what ended in the second that is over.
    pub(super) fn add(&mut self, tally: &Tally, tickets: u32, waiting: u32, now: Instant) {
        self.era += u64::from(self.clock.is_set(now, SystemTime::now()));
        if self.history.len() == Topology::HISTORY {
            self.history.pop_front();
        }
        self.samples += 1;
        self.history.push_back(Sample {
            at_ms: self.clock.at(now),
            requests: tally.requests,
            failures: tally.failures,
            tokens: tally.tokens,
            ttft_ms: tally.median_ttft(),
            tickets,
            waiting,
        });
    }
}
