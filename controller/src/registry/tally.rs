//! What has ended since somebody last looked. Pure.

use muster_shared::control::{Outcome, Release};
use muster_shared::topology::Totals;

/// Times to first tokens that are kept; of more, each has the same chance to be among them.
const KEPT: usize = 256;

/// Requests that ended, of all workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Requests that ended.
    pub(crate) requests: u32,
    /// Of these, those that their worker failed.
    pub(crate) failures: u32,
    /// Tokens of their answers.
    pub(crate) tokens: u64,
    /// Some of the times to their first tokens, in milliseconds.
    ttfts: Vec<u64>,
    /// How many told it.
    told: u64,
}

/// Whether the worker is to blame for how a request ended.
pub(super) fn is_failure(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed | Outcome::Unreachable)
}

/// Counts the end of a request that its gateway told, among all of its worker.
pub(super) fn count(totals: &mut Totals, release: &Release) {
    totals.failures += u64::from(is_failure(release.outcome));
    totals.tokens = totals.tokens.saturating_add(u64::from(release.tokens.unwrap_or(0)));
}

impl Tally {
    /// Counts the end of a request.
    pub(super) fn count(&mut self, release: &Release) {
        self.requests = self.requests.saturating_add(1);
        self.failures = self.failures.saturating_add(u32::from(is_failure(release.outcome)));
        self.tokens = self.tokens.saturating_add(u64::from(release.tokens.unwrap_or(0)));
        if let Some(ttft) = release.ttft_ms {
            self.keep(ttft);
        }
    }

    /// Vitter's algorithm R (1985). Its random numbers need not be good, and nobody gains by guessing them.
    fn keep(&mut self, ttft: u64) {
        self.told += 1;
        if self.ttfts.len() < KEPT {
            self.ttfts.push(ttft);
            return;
        }
        let place = usize::try_from(mixed(self.told) % self.told).unwrap_or(usize::MAX);
        if let Some(kept) = self.ttfts.get_mut(place) {
            *kept = ttft;
        }
    }

    /// The median time to a first token, in milliseconds.
    pub(crate) fn median_ttft(&self) -> Option<f64> {
        let mut ttfts = self.ttfts.clone();
        ttfts.sort_unstable();
        let high = *ttfts.get(ttfts.len() / 2)?;
        let low = ttfts[(ttfts.len() - 1) / 2];
        Some((low as f64 + high as f64) / 2.0)
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014): numbers in a row come out without a pattern.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use muster_shared::id::TicketId;

    use super::*;

    fn told(ttft_ms: Option<u64>, outcome: Outcome) -> Release {
        Release { ticket: TicketId::new(), outcome, ttft_ms, tokens: Some(5) }
    }

    #[test]
    fn the_median_is_that_of_those_who_told() {
        let mut tally = Tally::default();
        assert_eq!(tally.median_ttft(), None);
        for ttft in [Some(30), None, Some(10), Some(20)] {
            tally.count(&told(ttft, Outcome::Done));
        }
        assert_eq!(tally.median_ttft(), Some(20.0));
        tally.count(&told(Some(40), Outcome::Failed));
        assert_eq!((tally.median_ttft(), tally.requests, tally.failures, tally.tokens), (Some(25.0), 5, 1, 25));
    }

    #[test]
    fn however_many_come_few_are_kept_and_they_stand_for_all() {
        let mut tally = Tally::default();
        (0..100_000).for_each(|ttft| tally.count(&told(Some(ttft), Outcome::Done)));
        assert_eq!(tally.ttfts.len(), KEPT);
        let median = tally.median_ttft().expect("some told");
        assert!((40_000.0..60_000.0).contains(&median), "{median}"); // four standard deviations are 12 500
    }
}
