//! The line of one model: a row of waiters for each key, and whose turn it is.
//!
//! 1. A key's class is its priority, less what its first request has stepped back. The keys of the highest class come
//!    first. A key that waits for its turn rises by one class a second, up to the highest there is and no further: so
//!    it gets its turn, and time alone never lifts it above its equals.
//! 2. Of these, the key with the fewest requests in flight: a long request counts as long as it runs.
//! 3. Of these, the key that has gone without longest: since its first request came, since it had its last turn, or since
//!    the last of its requests ended. So in a fleet of one place keys take turns, too.
//!
//! So a key of the highest class with nothing in flight is passed over by every other key once at most.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{CLASS, Turn, Waiter};
use crate::registry::Key;

/// A point in time. No two are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    /// Nanoseconds since the queue began.
    pub(super) at: i64,
    pub(super) number: u64,
}

/// A place in a row; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Time of arrival less the start that the priority gives.
    head_start: i64,
    number: u64,
}

impl Rank {
    pub(super) fn new(came: Moment, priority: i8) -> Self {
        Self { head_start: came.at.saturating_sub(i64::from(priority) * CLASS), number: came.number }
    }
}

/// Those who wait for one model.
#[derive(Debug)]
pub(super) struct Line<T> {
    /// By key. No row is empty.
    rows: BTreeMap<Key, Row<T>>,
    len: usize,
}

/// Those of one key.
#[derive(Debug)]
struct Row<T> {
    waiters: BTreeMap<Rank, Waiter<T>>,
    /// When the key had its last turn, if it has had one since the row began.
    turn: Option<Moment>,
    /// When the last of its requests ended, the same.
    end: Option<Moment>,
}

/// The first of a row that may find room.
struct Head<'a, T> {
    key: &'a Key,
    rank: Rank,
    waiter: &'a Waiter<T>,
    /// Since when the key waits for its turn.
    since: Moment,
    /// Since when it has gone without.
    without: Moment,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), len: 0 }
    }
}

impl<T> Line<T> {
    /// Waiters of all keys.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, key: &Key, rank: Rank, waiter: Waiter<T>) {
        let row =
            self.rows.entry(key.clone()).or_insert_with(|| Row { waiters: BTreeMap::new(), turn: None, end: None });
        row.waiters.insert(rank, waiter);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, key: &Key, rank: &Rank) -> Option<Waiter<T>> {
        let row = self.rows.get_mut(key)?;
        let waiter = row.waiters.remove(rank)?;
        if row.waiters.is_empty() {
            self.rows.remove(key);
        }
        self.len -= 1;
        Some(waiter)
    }

    /// Notes that a key has its turn.
    pub(super) fn note_turn(&mut self, key: &Key, turn: Moment) {
        if let Some(row) = self.rows.get_mut(key) {
            row.turn = Some(turn);
        }
    }

    /// Notes that a request of a key has ended.
    pub(super) fn note_end(&mut self, key: &Key, end: Moment) {
        if let Some(row) = self.rows.get_mut(key) {
            row.end = Some(end);
        }
    }

    /// Those of a key that rank before.
    pub(super) fn ahead(&self, key: &Key, rank: &Rank) -> usize {
        // Who has come last stands last, as a rule.
        let behind = |row: &Row<T>| row.waiters.range((Bound::Excluded(*rank), Bound::Unbounded)).count();
        self.rows.get(key).map_or(0, |row| row.waiters.len() - behind(row))
    }

    /// Whose turn it is at `now`.
    pub(super) fn next(&self, turn: &Turn<'_, T>, now: i64) -> Option<(&Key, Rank, &Waiter<T>)> {
        let heads: Vec<Head<'_, T>> = self.rows.iter().filter_map(|(key, row)| row.head(key, turn.fits)).collect();
        let highest = heads.iter().map(|head| head.waiter.class).max()?;
        let highest = heads.into_iter().filter(|head| head.class_at(now) >= highest);
        let next = highest.min_by_key(|head| ((turn.in_flight)(head.key), head.without))?;
        Some((next.key, next.rank, next.waiter))
    }
}

impl<T> Row<T> {
    fn head<'a>(&'a self, key: &'a Key, fits: &dyn Fn(&T) -> bool) -> Option<Head<'a, T>> {
        let (&rank, waiter) = self.waiters.iter().find(|(_, waiter)| fits(&waiter.item))?;
        let since = self.turn.map_or(waiter.came, |turn| turn.max(waiter.came));
        let without = self.end.map_or(since, |end| end.max(since));
        Some(Head { key, rank, waiter, since, without })
    }
}

impl<T> Head<'_, T> {
    fn class_at(&self, now: i64) -> i64 {
        self.waiter.class + now.saturating_sub(self.since.at) / CLASS
    }
}
