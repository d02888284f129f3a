//! The line of one model: a row of waiters for each key, and whose turn it is.
//!
//! 1. A key's class is its priority, less what its first request has stepped back. The keys of the highest class come
//!    first. A key that waits for its turn rises by one class a second, up to the highest there is and no further: so
//!    it gets its turn, and time alone never lifts it above its equals.
//! 2. Of these, the key with the fewest requests in flight: a long request counts as long as it runs.
//! 3. Of these, the key that has gone without longest: since it began to wait for its turn, or since the last of its
//!    requests ended. So in a fleet of one place keys take turns, too.
//!
//! A key waits for its turn since it had the last one, or since it has had requests that wait. It does not matter whether
//! these are still the same ones: requests give up, and their key goes on rising.
//!
//! So a key of the highest class with nothing in flight is passed over by every other key once at most.

use std::collections::{BTreeMap, BTreeSet};

use super::{CLASS, COUNTED, Turn, Waiter};
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
pub(super) struct Line<K, T> {
    /// By key. No row is empty.
    rows: BTreeMap<Key, Row<K, T>>,
    /// How many there are of each kind.
    kinds: BTreeMap<K, usize>,
    len: usize,
}

/// Those of one key.
#[derive(Debug)]
struct Row<K, T> {
    waiters: BTreeMap<Rank, Waiter<K, T>>,
    /// The same by kind.
    kinds: BTreeMap<K, BTreeSet<Rank>>,
    /// The first of each kind.
    heads: BTreeMap<Rank, K>,
    times: Times,
}

/// What a key's turn depends on that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// Since when it waits for its turn. Earlier than it can be where it has waited before in vain.
    pub(super) since: Moment,
    /// When the last of its requests ended, if one has.
    pub(super) end: Option<Moment>,
}

/// The first of a row that may find room.
struct Head<'a, K, T> {
    key: &'a Key,
    rank: Rank,
    waiter: &'a Waiter<K, T>,
    times: Times,
}

impl<K, T> Default for Line<K, T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), kinds: BTreeMap::new(), len: 0 }
    }
}

impl<K: Ord + Clone, T> Line<K, T> {
    /// Waiters of all keys.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The kinds of all who wait.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &K> {
        self.kinds.keys()
    }

    /// `times`: where its row begins with it.
    pub(super) fn push(&mut self, key: &Key, rank: Rank, mut waiter: Waiter<K, T>, times: impl FnOnce() -> Times) {
        if let Some((known, _)) = self.kinds.get_key_value(&waiter.kind) {
            waiter.kind = known.clone(); // kinds may be long, and one copy does for all
        }
        *self.kinds.entry(waiter.kind.clone()).or_default() += 1;
        self.rows.entry(key.clone()).or_insert_with(|| Row::new(times())).push(rank, waiter);
        self.len += 1;
    }

    /// Takes a waiter out; with the times of its key, if that has none left.
    pub(super) fn remove(&mut self, key: &Key, rank: &Rank) -> Option<(Waiter<K, T>, Option<Times>)> {
        let row = self.rows.get_mut(key)?;
        let waiter = row.remove(rank)?;
        let times = row.waiters.is_empty().then_some(row.times);
        if times.is_some() {
            self.rows.remove(key);
        }
        let count = self.kinds.get_mut(&waiter.kind).expect("a kind is counted while one of it waits");
        *count -= 1;
        if *count == 0 {
            self.kinds.remove(&waiter.kind);
        }
        self.len -= 1;
        Some((waiter, times))
    }

    /// Notes that a key has its turn.
    pub(super) fn note_turn(&mut self, key: &Key, turn: Moment) {
        if let Some(row) = self.rows.get_mut(key) {
            row.times.since = turn;
        }
    }

    /// Notes that a request of a key has ended.
    pub(super) fn note_end(&mut self, key: &Key, end: Moment) {
        if let Some(row) = self.rows.get_mut(key) {
            row.times.end = Some(end);
        }
    }

    /// Those of a key that rank before, up to [`COUNTED`].
    pub(super) fn ahead(&self, key: &Key, rank: &Rank) -> usize {
        self.rows.get(key).map_or(0, |row| row.waiters.range(..=rank).take(COUNTED).count())
    }

    /// Whose turn it is at `now`.
    pub(super) fn next(&self, turn: &Turn<'_, K>, now: i64) -> Option<(&Key, Rank, &Waiter<K, T>)> {
        let heads: Vec<Head<'_, K, T>> = self.rows.iter().filter_map(|(key, row)| row.head(key, turn.fits)).collect();
        let highest = heads.iter().map(|head| head.waiter.class).max()?;
        let highest = heads.into_iter().filter(|head| head.class_at(now) >= highest);
        let next = highest.min_by_key(|head| ((turn.in_flight)(head.key), head.without()))?;
        Some((next.key, next.rank, next.waiter))
    }
}

impl<K: Ord + Clone, T> Row<K, T> {
    fn new(times: Times) -> Self {
        Self { waiters: BTreeMap::new(), kinds: BTreeMap::new(), heads: BTreeMap::new(), times }
    }

    fn push(&mut self, rank: Rank, waiter: Waiter<K, T>) {
        let ranks = self.kinds.entry(waiter.kind.clone()).or_default();
        let first = ranks.first().copied();
        ranks.insert(rank);
        if first.is_none_or(|first| rank < first) {
            first.and_then(|first| self.heads.remove(&first));
            self.heads.insert(rank, waiter.kind.clone());
        }
        self.waiters.insert(rank, waiter);
    }

    fn remove(&mut self, rank: &Rank) -> Option<Waiter<K, T>> {
        let waiter = self.waiters.remove(rank)?;
        let ranks = self.kinds.get_mut(&waiter.kind).expect("a kind is known while one of it waits");
        ranks.remove(rank);
        if self.heads.remove(rank).is_some()
            && let Some(next) = ranks.first()
        {
            self.heads.insert(*next, waiter.kind.clone());
        }
        if ranks.is_empty() {
            self.kinds.remove(&waiter.kind);
        }
        Some(waiter)
    }

    fn head<'a>(&'a self, key: &'a Key, fits: &dyn Fn(&K) -> bool) -> Option<Head<'a, K, T>> {
        let (&rank, _) = self.heads.iter().find(|(_, kind)| fits(kind))?;
        Some(Head { key, rank, waiter: &self.waiters[&rank], times: self.times })
    }
}

impl<K, T> Head<'_, K, T> {
    fn class_at(&self, now: i64) -> i64 {
        self.waiter.class + now.saturating_sub(self.times.since.at) / CLASS
    }

    /// Since when its key has gone without.
    fn without(&self) -> Moment {
        self.times.end.map_or(self.times.since, |end| end.max(self.times.since))
    }
}
