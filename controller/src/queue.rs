//! The waiting queue: bounded, by priority with ageing, first come first served within a class. Pure.
//!
//! A second of waiting lifts a request by one priority class. That is the same as an order by time of arrival in which
//! a class is worth a second's start, so a rank is fixed when the request comes and never changes while it waits.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;

/// Nanoseconds that one priority class is worth.
const CLASS: i64 = 1_000_000_000;

/// Requests that wait for room; `T` is what the caller keeps of each.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    limit: usize,
    /// From which ranks are counted.
    start: Instant,
    arrivals: u64,
    models: BTreeMap<String, BTreeMap<Rank, Waiter<T>>>,
    /// The same waiters by the time at which they give up.
    deadlines: BTreeMap<(Instant, u64), Place>,
}

/// A place in the order; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Time of arrival less the start that the priority gives, in nanoseconds.
    head_start: i64,
    arrival: u64,
}

/// Where a waiter stands. A place is never given twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    model: String,
    rank: Rank,
}

/// One request that waits.
#[derive(Debug)]
pub(crate) struct Waiter<T> {
    /// When it gives up.
    pub(crate) deadline: Instant,
    /// When it came.
    pub(crate) since: Instant,
    /// What the caller keeps of it.
    pub(crate) item: T,
}

impl<T> Queue<T> {
    /// An empty queue for at most `limit` waiters.
    pub(crate) fn new(limit: usize, start: Instant) -> Self {
        Self { limit, start, arrivals: 0, models: BTreeMap::new(), deadlines: BTreeMap::new() }
    }

    /// Waiters, of all models.
    pub(crate) fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// The most waiters there may be.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Lets a request wait; gives it back when the queue is full.
    pub(crate) fn push(&mut self, model: &str, priority: i8, waiter: Waiter<T>) -> Result<Place, T> {
        if self.len() >= self.limit {
            return Err(waiter.item);
        }
        let age = waiter.since.saturating_duration_since(self.start).as_nanos();
        let arrived = i64::try_from(age).unwrap_or(i64::MAX);
        let rank = Rank { head_start: arrived - i64::from(priority) * CLASS, arrival: self.arrivals };
        self.arrivals += 1;
        let place = Place { model: model.to_owned(), rank };
        self.deadlines.insert((waiter.deadline, rank.arrival), place.clone());
        self.models.entry(place.model.clone()).or_default().insert(rank, waiter);
        Ok(place)
    }

    /// Takes a waiter out, if it still waits.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<Waiter<T>> {
        let waiters = self.models.get_mut(&place.model)?;
        let waiter = waiters.remove(&place.rank)?;
        if waiters.is_empty() {
            self.models.remove(&place.model);
        }
        self.deadlines.remove(&(waiter.deadline, place.rank.arrival));
        Some(waiter)
    }

    /// Takes out the waiter whose deadline passed first, if one has passed.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<(String, Waiter<T>)> {
        let place = self.deadlines.first_key_value().filter(|((deadline, _), _)| *deadline <= now)?.1.clone();
        let waiter = self.remove(&place).expect("deadlines and waiters come and go together");
        Some((place.model, waiter))
    }

    /// Takes out any waiter.
    pub(crate) fn pop(&mut self) -> Option<(String, Waiter<T>)> {
        let place = self.deadlines.first_key_value()?.1.clone();
        let waiter = self.remove(&place).expect("deadlines and waiters come and go together");
        Some((place.model, waiter))
    }

    /// The next deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Models for which someone waits.
    pub(crate) fn models(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    /// The next waiter of a model, or the next after `after`.
    pub(crate) fn next(&self, model: &str, after: Option<&Place>) -> Option<(Place, &Waiter<T>)> {
        let from = after.map_or(Bound::Unbounded, |place| Bound::Excluded(place.rank));
        let (&rank, waiter) = self.models.get(model)?.range((from, Bound::Unbounded)).next()?;
        Some((Place { model: model.to_owned(), rank }, waiter))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Fixture {
        queue: Queue<&'static str>,
        start: Instant,
    }

    impl Fixture {
        fn new(limit: usize) -> Self {
            let start = Instant::now();
            Self { queue: Queue::new(limit, start), start }
        }

        /// Comes after `at` milliseconds and waits ten seconds.
        fn push(&mut self, name: &'static str, priority: i8, at: u64) -> Result<Place, &'static str> {
            let since = self.start + Duration::from_millis(at);
            let deadline = since + Duration::from_secs(10);
            self.queue.push("m", priority, Waiter { deadline, since, item: name })
        }

        fn order(&mut self) -> Vec<&'static str> {
            std::iter::from_fn(|| {
                let (place, _) = self.queue.next("m", None)?;
                self.queue.remove(&place).map(|waiter| waiter.item)
            })
            .collect()
        }
    }

    #[test]
    fn within_a_class_the_first_goes_first() {
        let mut f = Fixture::new(9);
        for name in ["a", "b", "c"] {
            f.push(name, 0, 0).expect("there is room");
        }
        assert_eq!(f.order(), ["a", "b", "c"]);
    }

    #[test]
    fn a_higher_class_goes_first_until_the_lower_has_aged() {
        let mut f = Fixture::new(9);
        f.push("low", 0, 0).expect("there is room");
        f.push("high at once", 1, 500).expect("there is room");
        f.push("high later", 1, 1500).expect("there is room");
        f.push("highest", 127, 2000).expect("there is room");
        f.push("lowest", -128, 0).expect("there is room");
        assert_eq!(f.order(), ["highest", "high at once", "low", "high later", "lowest"]);
    }

    #[test]
    fn a_full_queue_gives_the_request_back() {
        let mut f = Fixture::new(1);
        let place = f.push("a", 0, 0).expect("there is room");
        assert_eq!(f.push("b", 100, 0), Err("b"));
        assert!(f.queue.remove(&place).is_some());
        assert!(f.queue.remove(&place).is_none());
        assert!(f.push("b", 0, 0).is_ok());
    }

    #[test]
    fn who_has_waited_to_the_deadline_is_taken_out() {
        let mut f = Fixture::new(9);
        f.push("late", 0, 5).expect("there is room");
        f.push("early", 0, 0).expect("there is room");
        let deadline = f.queue.next_deadline().expect("two wait");
        assert!(f.queue.pop_expired(deadline - Duration::from_millis(1)).is_none());
        assert_eq!(f.queue.pop_expired(deadline).map(|(_, waiter)| waiter.item), Some("early"));
        assert!(f.queue.pop_expired(deadline).is_none());
        assert_eq!(f.order(), ["late"]);
    }
}
