//! When a sequence came to what, for its trace.

use std::time::Instant;

use muster_shared::trace::{Clock, Context};

/// The times of a sequence; where it is traced, they become spans when it is dropped, however it ended.
#[derive(Debug)]
pub(super) struct Phases {
    trace: Option<Context>,
    arrived: Instant,
    /// When it got a row.
    admitted: Option<Instant>,
    /// When its first token was chosen.
    first: Option<Instant>,
    tokens: i64,
}

impl Phases {
    /// Of one that arrives now.
    pub(super) fn new(trace: Option<Context>) -> Self {
        Self { trace, arrived: Instant::now(), admitted: None, first: None, tokens: 0 }
    }

    /// When it arrived.
    pub(super) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// It has a row.
    pub(super) fn admit(&mut self) {
        self.admitted.get_or_insert_with(Instant::now);
    }

    /// A token was chosen.
    pub(super) fn token(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.tokens += 1;
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        let Some(trace) = &self.trace else { return };
        let (now, clock) = (Instant::now(), Clock::now());
        clock.past("queue", trace, (self.arrived, self.admitted.unwrap_or(now)), &[]);
        let Some(admitted) = self.admitted else { return };
        clock.past("prefill", trace, (admitted, self.first.unwrap_or(now)), &[]);
        let Some(first) = self.first else { return };
        clock.past("decode", trace, (first, now), &[("muster.tokens", self.tokens)]);
    }
}
