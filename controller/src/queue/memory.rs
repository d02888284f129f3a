//! How long keys have waited for their turn whose requests have all given up.
//!
//! A key of a low class rises while it waits. It may have to rise further than any of its requests will wait, so what it
//! has risen is kept when the last of them goes, and the next one goes on from there. The time between them does not
//! count: nobody rises by doing nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::CLASS;
use super::line::{Moment, Times};
use crate::registry::Key;

/// For how long a key is remembered after the last of its requests, in nanoseconds: five minutes.
const KEPT: i64 = 300 * CLASS;
/// So many are remembered at most. More keys than that would have to wait in vain within [`KEPT`].
const MOST: usize = 100_000;

/// Keys that have waited in vain, by model.
#[derive(Debug, Default)]
pub(super) struct Memory {
    rests: BTreeMap<(Arc<str>, Key), Rest>,
}

/// What is remembered of a key.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// When the last of its requests gave up.
    from: i64,
    /// For how long it had waited for its turn.
    waited: i64,
    end: Option<Moment>,
}

impl Memory {
    /// The last request of a key is gone at `now`.
    pub(super) fn keep(&mut self, model: &Arc<str>, key: &Key, times: Times, now: i64) {
        let waited = now.saturating_sub(times.since.at);
        // Who has just had its turn has nothing to be remembered.
        if waited > 0 && self.rests.len() < MOST {
            let rest = Rest { from: now, waited, end: times.end };
            self.rests.insert((Arc::clone(model), key.clone()), rest);
        }
    }

    /// The times of a key of which one comes again.
    pub(super) fn resume(&mut self, model: &Arc<str>, key: &Key, came: Moment) -> Times {
        match self.rests.remove(&(Arc::clone(model), key.clone())) {
            Some(rest) if rest.is_fresh(came.at) => {
                Times { since: Moment { at: came.at.saturating_sub(rest.waited), ..came }, end: rest.end }
            }
            _ => Times { since: came, end: None },
        }
    }

    /// Forgets what counts no more.
    pub(super) fn sweep(&mut self, now: i64) {
        self.rests.retain(|_, rest| rest.is_fresh(now));
    }
}

impl Rest {
    fn is_fresh(&self, now: i64) -> bool {
        now.saturating_sub(self.from) <= KEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_as_old_as_it_was_when_it_comes_again_within_five_minutes_and_no_older() {
        let model: Arc<str> = "m".into();
        let at = |at| Moment { at, number: 1 };
        let age_after = |pause: i64| {
            let mut memory = Memory::default();
            memory.keep(&model, &None, Times { since: at(0), end: None }, 7 * CLASS);
            memory.sweep(7 * CLASS + pause);
            let now = 7 * CLASS + pause;
            let first = now - memory.resume(&model, &None, at(now)).since.at;
            let second = now - memory.resume(&model, &None, at(now)).since.at;
            assert_eq!(second, 0, "it is remembered once");
            first
        };
        assert_eq!(age_after(KEPT), 7 * CLASS, "the pause itself does not count");
        assert_eq!(age_after(KEPT + 1), 0);
    }
}
