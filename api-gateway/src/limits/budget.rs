//! What one key has used, by all threads of the gateway.
//!
//! Whether there is room, and taking it, is one step under one lock: any number of requests at once let exactly as many
//! through as the limits say.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::KeyLimits;
use super::window::Window;

/// What one key has used. It outlives the key's limits, which may change while the gateway runs.
#[derive(Debug)]
pub(crate) struct Budget {
    /// From when times are counted.
    begun: Instant,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    requests: Window,
    tokens: Window,
    /// Streamed answers under way.
    streams: u32,
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wants {
    /// Requests that count.
    pub(crate) requests: u64,
    /// Tokens, prompt and answer.
    pub(crate) tokens: u64,
    /// Whether its answer comes piece by piece.
    pub(crate) stream: bool,
}

/// What a request was given, to be settled when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    /// Tokens.
    pub(crate) tokens: u64,
    /// The second in which they were taken; absent where tokens are not limited.
    slot: Option<u64>,
    /// Whether it holds the place of a stream.
    stream: bool,
}

/// A limit that does not let a request pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// Of requests in a minute.
    Requests(Full),
    /// Of tokens in a minute.
    Tokens(Full),
    /// Of streamed answers at once.
    Streams(u64),
    /// It wants more tokens than any minute has.
    Never(u64),
}

/// How far a limit is used, and when there is room for what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) limit: u64,
    pub(crate) used: u64,
    pub(crate) wait: Duration,
}

/// How one limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until all of it is there again.
    pub(crate) reset: Duration,
}

/// How the limits of a minute stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) requests: Option<Level>,
    pub(crate) tokens: Option<Level>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { begun: Instant::now(), used: Mutex::default() }
    }
}

impl Budget {
    /// Takes what a request wants: all of it, or nothing.
    ///
    /// # Errors
    /// The limit that stands against it.
    pub(crate) fn admit(&self, limits: &KeyLimits, wants: Wants, now: Instant) -> Result<Given, Exceeded> {
        let mut used = self.lock();
        let now = now.saturating_duration_since(self.begun);
        if let Some(limit) = limits.tokens_per_minute() {
            if wants.tokens > limit {
                return Err(Exceeded::Never(limit));
            }
            full(&mut used.tokens, limit, wants.tokens, now).map_or(Ok(()), |full| Err(Exceeded::Tokens(full)))?;
        }
        if let Some(limit) = limits.requests_per_minute() {
            full(&mut used.requests, limit, wants.requests, now)
                .map_or(Ok(()), |full| Err(Exceeded::Requests(full)))?;
        }
        if let Some(limit) = limits.max_streams.filter(|_| wants.stream)
            && used.streams >= limit.get()
        {
            return Err(Exceeded::Streams(limit.get().into()));
        }
        if limits.requests_per_minute.is_some() {
            used.requests.take(wants.requests, now);
        }
        let slot = limits.tokens_per_minute.map(|_| used.tokens.take(wants.tokens, now));
        used.streams += u32::from(wants.stream);
        Ok(Given { tokens: wants.tokens, slot, stream: wants.stream })
    }

    /// A request has ended and has cost so many tokens.
    pub(crate) fn settle(&self, given: Given, tokens: u64, now: Instant) {
        let mut used = self.lock();
        used.streams -= u32::from(given.stream);
        if let Some(slot) = given.slot {
            used.tokens.settle(slot, given.tokens, tokens, now.saturating_duration_since(self.begun));
        }
    }

    /// How the limits stand.
    pub(crate) fn standing(&self, limits: &KeyLimits, now: Instant) -> Standing {
        let mut used = self.lock();
        let now = now.saturating_duration_since(self.begun);
        let level = |window: &mut Window, limit: u64| Level {
            limit,
            remaining: limit.saturating_sub(window.used(now)),
            reset: window.falls_to(0, now),
        };
        Standing {
            requests: limits.requests_per_minute().map(|limit| level(&mut used.requests, limit)),
            tokens: limits.tokens_per_minute().map(|limit| level(&mut used.tokens, limit)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is no room; a window over its limit lets nothing pass, whatever it wants.
fn full(window: &mut Window, limit: u64, wanted: u64, now: Duration) -> Option<Full> {
    let used = window.used(now);
    let fits = used <= limit && wanted <= limit - used;
    (!fits).then(|| Full { limit, used, wait: window.falls_to(limit.saturating_sub(wanted), now) })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;

    fn limits(requests: u32, tokens: u32, streams: u32) -> KeyLimits {
        let (requests_per_minute, tokens_per_minute) = (NonZeroU32::new(requests), NonZeroU32::new(tokens));
        KeyLimits {
            requests_per_minute,
            tokens_per_minute,
            max_streams: NonZeroU32::new(streams),
            ..KeyLimits::default()
        }
    }

    fn wants(tokens: u64, stream: bool) -> Wants {
        Wants { requests: 1, tokens, stream }
    }

    #[test]
    fn threads_at_once_let_exactly_as_many_through_as_the_limits_say() {
        for (limits, tokens, expected) in
            [(limits(100, 0, 0), 5, 100), (limits(0, 1000, 0), 10, 100), (limits(0, 0, 7), 1, 7)]
        {
            let budget = Arc::new(Budget::default());
            let thread = || {
                let (budget, limits) = (Arc::clone(&budget), limits.clone());
                let admit = move || budget.admit(&limits, wants(tokens, true), Instant::now()).is_ok();
                std::thread::spawn(move || (0..250).filter(|_| admit()).count())
            };
            let threads: Vec<_> = (0..4).map(|_| thread()).collect();
            let passed: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
            assert_eq!(passed, expected);
        }
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let (budget, limits, now) = (Budget::default(), limits(2, 100, 1), Instant::now());
        let first = budget.admit(&limits, wants(60, true), now).expect("there is room");
        assert!(matches!(budget.admit(&limits, wants(60, false), now), Err(Exceeded::Tokens(full)) if full.used == 60));
        assert_eq!(budget.admit(&limits, wants(1, true), now), Err(Exceeded::Streams(1)));
        assert_eq!(budget.admit(&limits, wants(101, false), now), Err(Exceeded::Never(100)));
        budget.admit(&limits, wants(40, false), now).expect("the rest is there");
        assert!(
            matches!(budget.admit(&limits, wants(0, false), now), Err(Exceeded::Requests(full)) if full.limit == 2)
        );
        budget.settle(first, 10, now);
        let standing = budget.standing(&limits, now);
        assert_eq!(
            (standing.tokens.map(|level| level.remaining), standing.requests.map(|level| level.remaining)),
            (Some(50), Some(0))
        );
    }

    #[test]
    fn a_window_over_its_limit_lets_nothing_pass_until_it_has_passed() {
        let (budget, limits, now) = (Budget::default(), limits(0, 100, 0), Instant::now());
        let given = budget.admit(&limits, wants(10, false), now).expect("there is room");
        budget.settle(given, 170, now);
        let Err(Exceeded::Tokens(full)) = budget.admit(&limits, wants(0, false), now) else { panic!("it is over") };
        assert_eq!(full.used, 170);
        assert!(full.wait > Duration::from_secs(60) && full.wait <= Duration::from_secs(61), "{full:?}");
        budget.admit(&limits, wants(100, false), now + full.wait).expect("it has passed");
    }

    #[test]
    fn limits_that_change_count_at_once_and_use_stays() {
        let (budget, now) = (Budget::default(), Instant::now());
        for _ in 0..5 {
            budget.admit(&limits(5, 0, 0), wants(0, false), now).expect("there is room");
        }
        budget.admit(&limits(5, 0, 0), wants(0, false), now).expect_err("it is used");
        budget.admit(&limits(6, 0, 0), wants(0, false), now).expect("one more");
        budget.admit(&limits(2, 0, 0), wants(0, false), now).expect_err("far over");
    }
}
