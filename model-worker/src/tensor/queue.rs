//! Which waiting requests run next, and which of them together. Pure: time comes in as an argument.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// How requests go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batching {
    /// Most rows that run together.
    pub largest: usize,
    /// Numbers of rows at which nothing more is waited for.
    pub preferred: Vec<usize>,
    /// Longest wait for company.
    pub delay: Duration,
}

/// What makes requests alike: only those with the same run together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Likeness {
    /// Inputs that are given, by their places, with their shapes beyond the first dimension.
    pub inputs: Vec<(usize, Vec<usize>)>,
    /// Places of the outputs that are wanted.
    pub wanted: Vec<usize>,
}

/// A request that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    /// The request.
    pub job: T,
    /// Its rows, where it may run with others.
    pub rows: Option<usize>,
    /// What others must be like.
    pub likeness: Likeness,
    /// 1 goes before 2.
    pub priority: u64,
    /// When it came.
    pub arrived: Instant,
    /// When it is too late for it to begin.
    pub deadline: Option<Instant>,
}

/// What to do now.
#[derive(Debug)]
pub enum Next<T> {
    /// Run these together, or the one alone.
    Run(Vec<Waiting<T>>),
    /// Nothing before that time, unless something comes.
    Wait(Instant),
    /// Nothing waits.
    Idle,
}

/// Requests in the order in which they are served: by priority, then as they came.
#[derive(Debug)]
pub struct Queue<T> {
    batching: Option<Batching>,
    waiting: BTreeMap<Place, Waiting<T>>,
    arrivals: u64,
}

/// Priority, and how many came before.
type Place = (u64, u64);

impl<T> Queue<T> {
    /// An empty queue; without `batching` every request runs alone.
    pub fn new(batching: Option<Batching>) -> Self {
        Self { batching, waiting: BTreeMap::new(), arrivals: 0 }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// From now on every request runs alone.
    pub fn stop_batching(&mut self) {
        self.batching = None;
    }

    /// Adds a request.
    pub fn push(&mut self, request: Waiting<T>) {
        self.waiting.insert((request.priority, self.arrivals), request);
        self.arrivals += 1;
    }

    /// Takes out what is not worth keeping.
    pub fn remove(&mut self, mut unwanted: impl FnMut(&Waiting<T>) -> bool) -> Vec<Waiting<T>> {
        let places: Vec<Place> =
            self.waiting.iter().filter(|(_, request)| unwanted(request)).map(|(place, _)| *place).collect();
        self.take(places)
    }

    /// What to do now. Requests of one likeness never overtake each other within a priority; while some wait for
    /// company, others go on.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        let mut seen = HashSet::new();
        let mut wait: Option<Instant> = None;
        let mut ready = None;
        for (place, first) in &self.waiting {
            let alone = first.rows.is_none() || self.batching.is_none();
            if !alone && !seen.insert(&first.likeness) {
                continue;
            }
            match self.batching.as_ref().filter(|_| !alone) {
                None => ready = Some(vec![*place]),
                Some(batching) => match self.batch(batching, &first.likeness, now) {
                    Ok(places) => ready = Some(places),
                    Err(until) => wait = Some(wait.map_or(until, |wait| wait.min(until))),
                },
            }
            if ready.is_some() {
                break;
            }
        }
        match (ready, wait) {
            (Some(places), _) => Next::Run(self.take(places)),
            (None, Some(until)) => Next::Wait(until),
            (None, None) => Next::Idle,
        }
    }

    /// Requests of one likeness that run together now; else until when more may join them.
    fn batch(&self, batching: &Batching, likeness: &Likeness, now: Instant) -> Result<Vec<Place>, Instant> {
        let (mut places, mut rows) = (Vec::new(), 0usize);
        let (mut preferred, mut full, mut oldest) = (0, false, now);
        let alike = self.waiting.iter().filter(|(_, request)| request.likeness == *likeness);
        for (place, request) in alike {
            let Some(more) = request.rows else { continue };
            let sum = rows.saturating_add(more);
            if sum > batching.largest && !places.is_empty() {
                full = true;
                break;
            }
            rows = sum;
            places.push(*place);
            oldest = oldest.min(request.arrived);
            if batching.preferred.contains(&rows) {
                preferred = places.len();
            }
        }
        if full || rows >= batching.largest || now >= oldest + batching.delay {
            return Ok(places);
        }
        if preferred > 0 {
            places.truncate(preferred);
            return Ok(places);
        }
        Err(oldest + batching.delay)
    }

    fn take(&mut self, places: Vec<Place>) -> Vec<Waiting<T>> {
        places.into_iter().filter_map(|place| self.waiting.remove(&place)).collect()
    }
}

#[cfg(test)]
mod tests;
