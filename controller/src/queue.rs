//! The waiting queue: bounded, fair between keys, by priority with ageing within a key. Pure.
//!
//! Each model has a line, and in it each key has a row ([`line`] says whose turn it is). Within a row a second of waiting
//! lifts a request by one priority class. That is the same as an order by time of arrival in which a class is worth a
//! second's start, so a rank is fixed when the request comes and never changes while it waits. How long a key has waited
//! for its turn outlasts those who waited on its behalf ([`memory`]): else a key would never rise further than its
//! requests are patient.
//!
//! Requests of one kind `K` find the same room, so of each kind only the first in a row is ever looked at. A push costs
//! the logarithm of those who wait. A turn costs as much as the model has keys, and for each key the kinds that stand
//! before the first one that fits; how many wait does not matter.

mod line;
mod memory;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::config::QueueConfig;
use crate::registry::Key;
use line::{Line, Moment, Rank};
use memory::Memory;

/// Nanoseconds that one priority class is worth.
const CLASS: i64 = 1_000_000_000;
/// So many are counted before a newcomer, and no more: to count all would be the dearest part of a push, and whoever has
/// a thousand before it knows enough.
pub(crate) const COUNTED: usize = 1000;

/// Requests that wait for room: `K` tells which find the same room, `T` is what the caller keeps of each.
#[derive(Debug)]
pub(crate) struct Queue<K, T> {
    bounds: QueueConfig,
    clock: Clock,
    lines: BTreeMap<Arc<str>, Line<K, T>>,
    /// The same waiters by the time at which they give up.
    deadlines: BTreeMap<(Instant, u64), Place>,
    /// How many wait on behalf of each key, over all models. Those of nobody are not counted.
    keys: HashMap<Arc<str>, usize>,
    memory: Memory,
}

/// Numbers what happens, so that no two moments are the same.
#[derive(Debug)]
struct Clock {
    start: Instant,
    number: u64,
    /// The latest time it was told of.
    seen: i64,
}

/// Where a waiter stands. A place is never given twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    model: Arc<str>,
    key: Key,
    rank: Rank,
}

/// One request that waits.
#[derive(Debug)]
pub(crate) struct Waiter<K, T> {
    /// When it gives up.
    pub(crate) deadline: Instant,
    /// When it came.
    pub(crate) since: Instant,
    /// What the caller keeps of it.
    pub(crate) item: T,
    /// Of which kind it is.
    pub(crate) kind: K,
    came: Moment,
    /// The class that it gives its key while it is the first of it.
    class: i64,
}

/// One who wants to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newcomer<'a> {
    /// For which model.
    pub(crate) model: &'a str,
    /// On whose behalf.
    pub(crate) key: &'a Key,
    /// Of the key among other keys.
    pub(crate) key_priority: i8,
    /// Of the request within its key. Among keys it counts where it is below zero only: whoever asks may step back
    /// behind others, and not push ahead of them.
    pub(crate) priority: i8,
    /// When it came.
    pub(crate) since: Instant,
    /// When it gives up.
    pub(crate) deadline: Instant,
}

/// Upon what it depends whose turn it is.
pub(crate) struct Turn<'a, K> {
    /// The time.
    pub(crate) now: Instant,
    /// Requests of a key that run on the model's workers.
    pub(crate) in_flight: &'a dyn Fn(&Key) -> u32,
    /// Whether there may be room for a kind; the others are passed over.
    pub(crate) fits: &'a dyn Fn(&K) -> bool,
}

/// A bound that one more would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// So many wait already, and no more may.
    All(usize),
    /// The same for the model.
    Model(usize),
    /// The same for the key, over all models.
    Key(usize),
}

impl<K: Ord + Clone, T> Queue<K, T> {
    /// An empty queue.
    pub(crate) fn new(bounds: QueueConfig, start: Instant) -> Self {
        Self {
            bounds,
            clock: Clock { start, number: 0, seen: 0 },
            lines: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            keys: HashMap::new(),
            memory: Memory::default(),
        }
    }

    /// Waiters, of all models.
    pub(crate) fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Waiters of one model.
    pub(crate) fn len_of(&self, model: &str) -> usize {
        self.lines.get(model).map_or(0, Line::len)
    }

    /// The kinds of those who wait for a model.
    pub(crate) fn kinds(&self, model: &str) -> impl Iterator<Item = &K> {
        self.lines.get(model).into_iter().flat_map(Line::kinds)
    }

    /// Lets a request wait.
    ///
    /// # Errors
    /// The bound that is in its way, with the request.
    pub(crate) fn push(&mut self, newcomer: &Newcomer<'_>, kind: K, item: T) -> Result<Place, (Full, T)> {
        if let Some(full) = self.full(newcomer) {
            return Err((full, item));
        }
        let came = self.clock.next(newcomer.since);
        let rank = Rank::new(came, newcomer.priority);
        let class = i64::from(newcomer.key_priority) + i64::from(newcomer.priority.min(0));
        let waiter = Waiter { deadline: newcomer.deadline, since: newcomer.since, item, kind, came, class };
        let model = match self.lines.get_key_value(newcomer.model) {
            Some((model, _)) => Arc::clone(model),
            None => Arc::from(newcomer.model),
        };
        let line = self.lines.entry(Arc::clone(&model)).or_default();
        line.push(newcomer.key, rank, waiter, || self.memory.resume(&model, newcomer.key, came));
        if let Some(key) = newcomer.key {
            *self.keys.entry(Arc::clone(key)).or_default() += 1;
        }
        let place = Place { model, key: newcomer.key.clone(), rank };
        self.deadlines.insert((newcomer.deadline, came.number), place.clone());
        Ok(place)
    }

    /// Takes a waiter out, if it still waits.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<Waiter<K, T>> {
        let line = self.lines.get_mut(&place.model)?;
        let (waiter, times) = line.remove(&place.key, &place.rank)?;
        if let Some(times) = times {
            self.memory.keep(&place.model, &place.key, times, self.clock.seen);
        }
        if line.len() == 0 {
            self.lines.remove(&place.model);
        }
        self.deadlines.remove(&(waiter.deadline, waiter.came.number));
        if let Some(key) = &place.key {
            self.uncount(key);
        }
        Some(waiter)
    }

    /// The same for one that is served: its key has had its turn.
    pub(crate) fn serve(&mut self, place: &Place, now: Instant) -> Option<Waiter<K, T>> {
        let turn = self.clock.next(now);
        self.lines.get_mut(&place.model)?.note_turn(&place.key, turn);
        self.remove(place)
    }

    /// A request of a key has ended that ran for a model.
    pub(crate) fn note_end(&mut self, model: &str, key: &Key, now: Instant) {
        if let Some(line) = self.lines.get_mut(model) {
            line.note_end(key, self.clock.next(now));
        }
    }

    /// Forgets how long keys have waited of which nobody has for long. Tidies memory; no turn depends on it.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.memory.sweep(self.clock.nanos(now));
    }

    /// Takes out the waiter whose deadline passed first, if one has passed.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Waiter<K, T>> {
        self.clock.see(now);
        self.next_deadline().filter(|deadline| *deadline <= now)?;
        self.pop()
    }

    /// Takes out the waiter whose deadline is the next.
    pub(crate) fn pop(&mut self) -> Option<Waiter<K, T>> {
        let place = self.deadlines.first_key_value()?.1.clone();
        Some(self.remove(&place).expect("deadlines and waiters come and go together"))
    }

    /// The next deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Whose turn it is among those who wait for a model and may find room.
    pub(crate) fn next(&self, model: &str, turn: &Turn<'_, K>) -> Option<(Place, &Waiter<K, T>)> {
        let (model, line) = self.lines.get_key_value(model)?;
        let (key, rank, waiter) = line.next(turn, self.clock.nanos(turn.now))?;
        Some((Place { model: Arc::clone(model), key: key.clone(), rank }, waiter))
    }

    /// How many will certainly be served before a newcomer, unless they give up: those of its key who came before. Of
    /// other keys none is certain to be. Beyond a thousand it is a thousand.
    pub(crate) fn ahead(&self, newcomer: &Newcomer<'_>) -> usize {
        let came = Moment { at: self.clock.nanos(newcomer.since), number: u64::MAX };
        let rank = Rank::new(came, newcomer.priority);
        self.lines.get(newcomer.model).map_or(0, |line| line.ahead(newcomer.key, &rank))
    }

    /// The bound that is in a newcomer's way.
    fn full(&self, newcomer: &Newcomer<'_>) -> Option<Full> {
        let reached = |count: usize, bound: Option<usize>| bound.filter(|bound| count >= *bound);
        let of_key = newcomer
            .key
            .as_ref()
            .and_then(|key| reached(self.keys.get(key).copied().unwrap_or(0), self.bounds.per_key));
        let of_model = || reached(self.len_of(newcomer.model), self.bounds.per_model);
        // The nearest bound says most to whoever asked.
        of_key
            .map(Full::Key)
            .or_else(|| of_model().map(Full::Model))
            .or_else(|| reached(self.len(), Some(self.bounds.limit)).map(Full::All))
    }

    fn uncount(&mut self, key: &Arc<str>) {
        if let Some(count) = self.keys.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(key);
            }
        }
    }
}

impl Clock {
    /// A moment that comes after all others of its time.
    fn next(&mut self, at: Instant) -> Moment {
        self.see(at);
        self.number += 1;
        Moment { at: self.nanos(at), number: self.number }
    }

    fn see(&mut self, at: Instant) {
        self.seen = self.seen.max(self.nanos(at));
    }

    fn nanos(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(i64::MAX)
    }
}
