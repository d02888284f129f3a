//! Who waits, who holds a row, and who has to give it back. Knows lengths and prefixes, neither models nor text.
//!
//! Sequences wait by priority, then by arrival. One is admitted when a slot is free and its tokens fit the budget of
//! tokens that the model may hold; kept prefixes give way to it. While sequences decode they grow: when the budget is
//! spent, prefixes go first, and then the sequence of the least priority that came last goes back to wait, to be read
//! anew with all it had.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Instant;

use super::rows::{Mover, Occupant, Rows, Running};
use crate::model::Row;

#[cfg(test)]
mod tests;

/// What the scheduler must know of a sequence.
pub trait Schedulable: Occupant {
    /// Sets how many tokens the model holds.
    fn set_in_cache(&mut self, tokens: usize);
    /// Whether nobody wants its answer any more.
    fn is_abandoned(&self) -> bool;
    /// When it must have ended.
    fn deadline(&self) -> Option<Instant>;
    /// A higher one goes first.
    fn priority(&self) -> i32;
    /// Whether it has had a row, or belongs to one that has.
    fn has_begun(&self) -> bool;
}

/// How much a scheduler lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that hold rows together.
    pub slots: usize,
    /// Rows of the model, at least as many as slots; the others keep prefixes.
    pub rows: usize,
    /// Tokens that the model may hold, at least as many as the longest sequence has.
    pub tokens: usize,
    /// Whether ended sequences leave prefixes for others.
    pub prefixes: bool,
}

/// Why a sequence was taken out before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// Nobody wants its answer.
    Abandoned,
    /// Its time is over.
    Late,
}

/// Sequences that wait, and sequences that hold rows.
#[derive(Debug)]
pub struct Scheduler<S> {
    /// By priority, then by arrival. A sequence that had to give its row back stands where it stood before.
    waiting: BTreeMap<(Reverse<i32>, u64), S>,
    rows: Rows<S>,
    limits: Limits,
    arrivals: u64,
}

impl<S: Schedulable> Scheduler<S> {
    /// A scheduler without sequences.
    pub fn new(limits: Limits) -> Self {
        Self { waiting: BTreeMap::new(), rows: Rows::new(limits.rows), limits, arrivals: 0 }
    }

    /// Lets a sequence wait for a row.
    pub fn enqueue(&mut self, sequence: S) {
        self.wait(Running { sequence, arrival: self.arrivals });
        self.arrivals += 1;
    }

    fn wait(&mut self, Running { sequence, arrival }: Running<S>) {
        self.waiting.insert((Reverse(sequence.priority()), arrival), sequence);
    }

    /// Takes out the sequences that nobody wants any more, and those whose time is over.
    pub fn reap(&mut self, now: Instant, mover: &mut (impl Mover + ?Sized)) -> Vec<(S, Reaped)> {
        let verdict = |sequence: &S| {
            if sequence.is_abandoned() {
                Some(Reaped::Abandoned)
            } else {
                sequence.deadline().is_some_and(|deadline| deadline <= now).then_some(Reaped::Late)
            }
        };
        let waiting = self.waiting.extract_if(.., |_, sequence| verdict(sequence).is_some());
        let mut reaped: Vec<S> = waiting.map(|(_, sequence)| sequence).collect();
        let mut row = self.rows.running();
        while row > 0 {
            row -= 1; // from the last down: the gap is closed by sequences that were looked at already
            if verdict(self.rows.sequence(Row(row))).is_some() {
                reaped.push(self.rows.remove(Row(row), self.limits.prefixes, mover).sequence);
            }
        }
        let judged = reaped.into_iter().filter_map(|sequence| Some((verdict(&sequence)?, sequence)));
        judged.map(|(verdict, sequence)| (sequence, verdict)).collect()
    }

    /// Takes out the sequences that wait and have not begun.
    pub fn shed(&mut self) -> Vec<S> {
        self.waiting.extract_if(.., |_, sequence| !sequence.has_begun()).map(|(_, sequence)| sequence).collect()
    }

    /// The row whose prompt is being read; if there is none, the next sequence that fits is given one. Tells besides
    /// how many tokens of it were found in other rows.
    pub fn admit(&mut self, mover: &mut (impl Mover + ?Sized)) -> Option<(Row, usize)> {
        self.give_way(mover);
        if let Some(row) = self.rows.reading() {
            return Some((row, 0));
        }
        let (_, next) = self.waiting.first_key_value()?;
        if self.rows.decoding() == self.limits.slots {
            return None;
        }
        let prefix = if self.limits.prefixes { self.rows.longest_prefix(next) } else { None };
        // One token more for each that decodes: admitted with less, it would have to leave again at once.
        let wanted = self.tokens_running() + next.tokens().len() + 1 + self.rows.decoding();
        if wanted > self.limits.tokens && self.rows.decoding() > 0 {
            return None;
        }
        // What is taken over from a kept prefix is not held twice.
        let taken = prefix.map_or(0, |(row, shared)| self.rows.adopted(row, shared));
        while wanted + self.rows.kept_tokens() - taken > self.limits.tokens
            && self.rows.evict(prefix.map(|(row, _)| row), mover)
        {}
        let ((_, arrival), sequence) = self.waiting.pop_first()?;
        let shared = self.rows.place(Running { sequence, arrival }, prefix, mover);
        let row = self.rows.reading().expect("placed above");
        self.rows.sequence(row).set_in_cache(shared);
        Some((row, shared))
    }

    /// Sends the sequence whose prompt is being read back to wait when one of a higher priority has come. What was read
    /// of it is kept as a prefix, while there is room.
    fn give_way(&mut self, mover: &mut (impl Mover + ?Sized)) {
        let Some(row) = self.rows.reading() else { return };
        let Some(((Reverse(highest), _), _)) = self.waiting.first_key_value() else { return };
        if *highest > self.rows.sequence(row).priority() {
            let mut running = self.rows.remove(row, self.limits.prefixes, mover);
            running.sequence.set_in_cache(0);
            self.wait(running);
        }
    }

    /// The prompt has been read: its sequence decodes from now on.
    pub fn begin_decoding(&mut self) {
        self.rows.begin_decoding();
    }

    /// Sees to it that every sequence that decodes can add a token; gives how many others had to go back to wait.
    pub fn make_room(&mut self, mover: &mut (impl Mover + ?Sized)) -> usize {
        let mut preempted = 0;
        while self.tokens_held() + self.rows.decoding() > self.limits.tokens {
            if self.rows.evict(None, mover) {
                continue;
            }
            let running = self
                .rows
                .sequences()
                .map(|(row, running)| ((Reverse(running.sequence.priority()), running.arrival), row));
            let Some((_, row)) = running.max().filter(|_| self.rows.running() > 1) else { break };
            let mut running = self.rows.remove(row, false, mover);
            running.sequence.set_in_cache(0);
            self.wait(running);
            preempted += 1;
        }
        preempted
    }

    /// Takes a sequence out at its end. `keep`: what the model holds of it is of use to others.
    pub fn finish(&mut self, row: Row, keep: bool, mover: &mut (impl Mover + ?Sized)) -> S {
        self.rows.remove(row, keep && self.limits.prefixes, mover).sequence
    }

    /// Sequences that decode; they hold the first rows.
    pub fn decoding(&self) -> usize {
        self.rows.decoding()
    }

    /// The sequences that decode.
    pub fn decoding_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.rows.decoding_mut()
    }

    /// The sequence in a row.
    ///
    /// # Panics
    /// When the row has none.
    pub fn sequence(&mut self, row: Row) -> &mut S {
        self.rows.sequence(row)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running() == 0
    }

    /// Sequences that hold a row.
    pub fn running(&self) -> usize {
        self.rows.running()
    }

    /// Sequences that wait for a row.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens that the model holds or is about to: of running sequences and of kept prefixes.
    pub fn tokens_held(&self) -> usize {
        self.tokens_running() + self.rows.kept_tokens()
    }

    /// Tokens that running sequences hold or are about to.
    pub fn tokens_running(&self) -> usize {
        self.rows.sequences().map(|(_, running)| running.sequence.tokens().len()).sum()
    }
}
