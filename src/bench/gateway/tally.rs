//! What the clients of a level have seen.

use std::time::Duration;

use serde::Serialize;

use crate::bench::histogram::Histogram;

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another status than 200.
    Status,
    /// No connection, or it ended before the answer did.
    Connection,
    /// A stream that ended without `[DONE]`.
    WithoutDone,
    /// A stream with an event that tells of an error.
    ErrorEvent,
}

/// Requests that failed, by cause, in warm-up and measurement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Failures {
    pub(super) total: u64,
    pub(super) status: u64,
    pub(super) connection: u64,
    pub(super) without_done: u64,
    pub(super) error_event: u64,
    /// What the first one was told.
    pub(super) first: Option<String>,
}

impl Failures {
    pub(super) fn add(&mut self, cause: Cause, text: String) {
        self.total += 1;
        *match cause {
            Cause::Status => &mut self.status,
            Cause::Connection => &mut self.connection,
            Cause::WithoutDone => &mut self.without_done,
            Cause::ErrorEvent => &mut self.error_event,
        } += 1;
        self.first.get_or_insert(text);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.total += other.total;
        self.status += other.status;
        self.connection += other.connection;
        self.without_done += other.without_done;
        self.error_event += other.error_event;
        self.first = self.first.take().or(other.first);
    }
}

/// Everything counted; what the fields do not say otherwise, in the measurement alone.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Requests sent, those of warm-up and end included.
    pub(super) sent: u64,
    /// Answers, those of warm-up and end included.
    pub(super) answered: u64,
    pub(super) failures: Failures,
    /// Times that a connection could not be used again.
    pub(super) reconnects: u64,
    pub(super) latency: Histogram,
    /// From sending a request to its first text.
    pub(super) ttft: Histogram,
    /// From one chunk to the next of its stream; nothing between chunks that one read brought.
    pub(super) gaps: Histogram,
    pub(super) chunks: u64,
}

impl Tally {
    pub(super) fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.failures.merge(other.failures);
        self.reconnects += other.reconnects;
        self.latency.merge(&other.latency);
        self.ttft.merge(&other.ttft);
        self.gaps.merge(&other.gaps);
        self.chunks += other.chunks;
    }

    /// A read has brought chunks; `gap` is the time since the one before, if there was one.
    pub(super) fn add_chunks(&mut self, chunks: u64, gap: Option<Duration>) {
        self.chunks += chunks;
        self.gaps.add(Duration::ZERO, chunks.saturating_sub(1));
        if let Some(gap) = gap {
            self.gaps.add(gap, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_cause_and_the_first_is_told() {
        let (mut one, mut other) = (Failures::default(), Failures::default());
        other.add(Cause::WithoutDone, "cut".to_owned());
        other.add(Cause::Status, "502".to_owned());
        other.add(Cause::Status, "503".to_owned());
        one.merge(other);
        one.add(Cause::Connection, "gone".to_owned());
        one.add(Cause::ErrorEvent, "lost".to_owned());
        let expected = Failures {
            total: 5,
            status: 2,
            connection: 1,
            without_done: 1,
            error_event: 1,
            first: Some("cut".to_owned()),
        };
        assert_eq!(one, expected);
    }

    #[test]
    fn chunks_of_one_read_have_no_time_between_them() {
        let mut tally = Tally::default();
        tally.add_chunks(2, None);
        tally.add_chunks(3, Some(Duration::from_millis(20)));
        let gaps = tally.gaps.percentiles();
        assert_eq!((tally.chunks, gaps.count, gaps.p50, gaps.max), (5, 4, Some(0.0), Some(20.0)));
    }
}
