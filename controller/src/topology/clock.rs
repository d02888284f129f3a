//! Moments since 1970.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So far the two clocks of a machine may part before moments are counted anew.
const APART: Duration = Duration::from_secs(1);

/// Tells when a moment was, the same each time it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    base: Instant,
    base_ms: u64,
}

impl Clock {
    /// One for which it is `time` now.
    pub(crate) fn new(now: Instant, time: SystemTime) -> Self {
        Self { base: now, base_ms: millis(time) }
    }

    /// When that was, in milliseconds since 1970.
    pub(crate) fn at(&self, moment: Instant) -> u64 {
        match moment.checked_duration_since(self.base) {
            Some(since) => self.base_ms.saturating_add(crate::registry::millis(since)),
            None => self.base_ms.saturating_sub(crate::registry::millis(self.base - moment)),
        }
    }

    /// Goes by `time` from now on if it is another than expected: somebody has set the clock, or the machine has slept.
    pub(crate) fn is_set(&mut self, now: Instant, time: SystemTime) -> bool {
        let apart = self.at(now).abs_diff(millis(time));
        let is_set = apart > crate::registry::millis(APART);
        if is_set {
            *self = Self::new(now, time);
        }
        is_set
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, crate::registry::millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_are_told_until_the_clock_is_set() {
        let now = Instant::now() + Duration::from_secs(60);
        let time = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let mut clock = Clock::new(now, time(100_000));
        let later = now + Duration::from_millis(250);
        assert_eq!((clock.at(later), clock.at(now - Duration::from_millis(250))), (100_250, 99_750));
        assert!(!clock.is_set(later, time(101_000)), "clocks are not that exact");
        assert_eq!(clock.at(later), 100_250);
        assert!(clock.is_set(later, time(7_000_000)));
        assert_eq!((clock.at(later), clock.at(now)), (7_000_000, 6_999_750));
    }
}
