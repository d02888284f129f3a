//! The rows of a model: which sequences hold them, and what ended ones have left there.
//!
//! ```text
//!   [ decoding … | reading? | kept prefixes and free rows … ]
//! ```
//!
//! A model decodes its first rows in one run, so the sequences that decode stand in front, then the one whose prompt is
//! being read. An ended sequence leaves its keys and values behind: a later prompt that begins with the same tokens
//! adopts or copies them instead of reading those tokens again.

use std::sync::Arc;

use crate::model::{CausalModel, ModelError, Row};

/// What the rows must know of a sequence.
pub trait Occupant {
    /// Prompt and answer.
    fn tokens(&self) -> &[u32];
    /// How many of them the model holds keys and values of.
    fn in_cache(&self) -> usize;
    /// Prefixes are shared only between sequences of the same salt.
    fn salt(&self) -> Option<&Arc<str>>;
}

/// What moves between rows: the model, and in tests something simpler.
pub trait Mover {
    /// See [`CausalModel::swap`].
    fn swap(&mut self, a: (Row, usize), b: (Row, usize));
    /// See [`CausalModel::copy`].
    ///
    /// # Errors
    /// As there.
    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError>;
    /// See [`CausalModel::release`].
    fn release(&mut self, row: Row);
}

impl Mover for dyn CausalModel {
    fn swap(&mut self, a: (Row, usize), b: (Row, usize)) {
        CausalModel::swap(self, a, b);
    }

    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError> {
        CausalModel::copy(self, from, to, tokens)
    }

    fn release(&mut self, row: Row) {
        CausalModel::release(self, row);
    }
}

/// A sequence that holds a row.
#[derive(Debug)]
pub(super) struct Running<S> {
    pub(super) sequence: S,
    /// Its place in the order of arrival.
    pub(super) arrival: u64,
}

/// Tokens whose keys and values are in a row without a sequence.
#[derive(Debug)]
struct Prefix {
    tokens: Vec<u32>,
    salt: Option<Arc<str>>,
    /// When it was last of use, counted in uses.
    used: u64,
}

#[derive(Debug)]
enum Content<S> {
    Free,
    Running(Running<S>),
    Kept(Prefix),
}

impl<S: Occupant> Content<S> {
    /// Tokens that the model holds for it.
    fn in_cache(&self) -> usize {
        match self {
            Self::Free => 0,
            Self::Running(running) => running.sequence.in_cache(),
            Self::Kept(prefix) => prefix.tokens.len(),
        }
    }

    /// How many of `tokens`, which start a sequence of this salt, the row holds.
    fn shares(&self, tokens: &[u32], salt: Option<&Arc<str>>) -> usize {
        let (held, held_salt) = match self {
            Self::Free => return 0,
            Self::Running(running) => {
                (&running.sequence.tokens()[..running.sequence.in_cache()], running.sequence.salt())
            }
            Self::Kept(prefix) => (&prefix.tokens[..], prefix.salt.as_ref()),
        };
        if held_salt != salt {
            return 0;
        }
        held.iter().zip(tokens).take_while(|(held, token)| held == token).count()
    }

    /// Last use of a kept prefix.
    fn used(&self) -> Option<u64> {
        match self {
            Self::Kept(prefix) => Some(prefix.used),
            _ => None,
        }
    }
}

/// The rows of a model.
#[derive(Debug)]
pub(super) struct Rows<S> {
    contents: Vec<Content<S>>,
    /// Sequences that decode; they hold the first rows.
    decoding: usize,
    /// Whether a sequence holds the row behind those, its prompt being read.
    reading: bool,
    uses: u64,
}

impl<S: Occupant> Rows<S> {
    pub(super) fn new(rows: usize) -> Self {
        let contents = std::iter::repeat_with(|| Content::Free).take(rows).collect();
        Self { contents, decoding: 0, reading: false, uses: 0 }
    }

    /// Sequences that decode, in the first rows.
    pub(super) fn decoding(&self) -> usize {
        self.decoding
    }

    /// The row whose prompt is being read.
    pub(super) fn reading(&self) -> Option<Row> {
        self.reading.then_some(Row(self.decoding))
    }

    /// Sequences that hold a row.
    pub(super) fn running(&self) -> usize {
        self.decoding + usize::from(self.reading)
    }

    /// The sequences that hold rows, in the rows' order.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (Row, &Running<S>)> {
        self.contents.iter().enumerate().filter_map(|(row, content)| match content {
            Content::Running(running) => Some((Row(row), running)),
            _ => None,
        })
    }

    /// The sequences that decode.
    pub(super) fn decoding_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.contents[..self.decoding].iter_mut().filter_map(|content| match content {
            Content::Running(running) => Some(&mut running.sequence),
            _ => None,
        })
    }

    /// The sequence in a row.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn sequence(&mut self, row: Row) -> &mut S {
        match &mut self.contents[row.0] {
            Content::Running(running) => &mut running.sequence,
            _ => unreachable!("only rows of running sequences are asked for"),
        }
    }

    /// Tokens in the rows without a sequence.
    pub(super) fn kept_tokens(&self) -> usize {
        self.contents.iter().filter(|content| content.used().is_some()).map(Content::in_cache).sum()
    }

    /// The row that holds most of a sequence's first tokens, and how many; at least the last token is left to read,
    /// since only a run gives logits.
    pub(super) fn longest_prefix(&self, sequence: &S) -> Option<(Row, usize)> {
        let tokens = &sequence.tokens()[..sequence.tokens().len() - 1];
        let shared = self.contents.iter().map(|content| content.shares(tokens, sequence.salt()));
        let (row, shared) = shared.enumerate().max_by_key(|&(row, shared)| (shared, std::cmp::Reverse(row)))?;
        (shared > 0).then_some((Row(row), shared))
    }

    /// Gives a sequence the row behind those that decode, together with the prefix it shares with another row; gives
    /// the length of that prefix. The sequence's `in_cache` is to be set to it.
    ///
    /// # Panics
    /// When a prompt is being read already, or all rows hold sequences.
    pub(super) fn place(
        &mut self,
        running: Running<S>,
        prefix: Option<(Row, usize)>,
        mover: &mut (impl Mover + ?Sized),
    ) -> usize {
        assert!(!self.reading, "one prompt is read at a time");
        let place = self.decoding;
        self.uses += 1;
        let shared = match prefix {
            Some((from, shared)) if self.should_adopt(from, shared) => {
                self.swap(place, from.0, mover);
                shared
            }
            Some((from, shared)) => {
                if let Content::Kept(prefix) = &mut self.contents[from.0] {
                    prefix.used = self.uses;
                }
                let spare = self.spare(Some(from.0)).expect("a row is adopted where none is spare");
                self.forget(spare, mover);
                self.swap(place, spare, mover);
                let from = if from.0 == place { spare } else { from.0 };
                match mover.copy(Row(from), Row(place), shared) {
                    Ok(()) => shared,
                    Err(error) => {
                        tracing::warn!(%error, "a shared prefix cannot be copied and is read anew");
                        0
                    }
                }
            }
            None => {
                let spare = self.spare(None).expect("fewer sequences are admitted than there are rows");
                self.forget(spare, mover);
                self.swap(place, spare, mover);
                0
            }
        };
        self.contents[place] = Content::Running(running);
        self.reading = true;
        shared
    }

    /// Whether a prefix is taken over rather than copied: when all of it is shared, so that the sequence itself keeps
    /// it, or when there is no other row to copy it to.
    fn should_adopt(&self, row: Row, shared: usize) -> bool {
        match &self.contents[row.0] {
            Content::Kept(prefix) => prefix.tokens.len() == shared || self.spare(Some(row.0)).is_none(),
            _ => false,
        }
    }

    /// How many kept tokens a sequence takes over that shares so many with a row: all of them, or none where they are
    /// copied.
    pub(super) fn adopted(&self, row: Row, shared: usize) -> usize {
        if self.should_adopt(row, shared) { self.contents[row.0].in_cache() } else { 0 }
    }

    /// The row whose content matters least: a free one, else the prefix that was of use longest ago.
    fn spare(&self, except: Option<usize>) -> Option<usize> {
        let candidates = (0..self.contents.len()).filter(|&row| Some(row) != except);
        let candidates = candidates.filter_map(|row| match &self.contents[row] {
            Content::Free => Some((0, row)),
            Content::Kept(prefix) => Some((prefix.used, row)),
            Content::Running(_) => None,
        });
        candidates.min().map(|(_, row)| row)
    }

    /// The prompt has been read: its sequence decodes from now on.
    pub(super) fn begin_decoding(&mut self) {
        assert!(self.reading, "a sequence decodes after it was read");
        self.reading = false;
        self.decoding += 1;
    }

    /// Takes a sequence out of its row and closes the gap. What the model holds of it is kept as a prefix for others,
    /// unless told to forget it.
    pub(super) fn remove(&mut self, row: Row, keep: bool, mover: &mut (impl Mover + ?Sized)) -> Running<S> {
        let Content::Running(running) = std::mem::replace(&mut self.contents[row.0], Content::Free) else {
            unreachable!("only rows of running sequences are removed")
        };
        let (sequence, held) = (&running.sequence, running.sequence.in_cache());
        if keep && held > 0 && !self.is_kept(&sequence.tokens()[..held], sequence.salt()) {
            self.uses += 1;
            let prefix =
                Prefix { tokens: sequence.tokens()[..held].to_vec(), salt: sequence.salt().cloned(), used: self.uses };
            self.drop_shorter(&prefix, mover);
            self.contents[row.0] = Content::Kept(prefix);
        } else {
            mover.release(row);
        }
        self.close_gap(row.0, mover);
        running
    }

    /// Whether a kept prefix holds all these tokens.
    fn is_kept(&self, tokens: &[u32], salt: Option<&Arc<str>>) -> bool {
        let kept = self.contents.iter().filter(|content| content.used().is_some());
        kept.into_iter().any(|content| content.shares(tokens, salt) == tokens.len())
    }

    /// Drops kept prefixes that a new one makes needless.
    fn drop_shorter(&mut self, new: &Prefix, mover: &mut (impl Mover + ?Sized)) {
        for row in 0..self.contents.len() {
            let needless = matches!(&self.contents[row], Content::Kept(old)
                if old.salt == new.salt && new.tokens.starts_with(&old.tokens));
            if needless {
                self.forget(row, mover);
            }
        }
    }

    /// Moves sequences down into a row that has lost its own, so that those that decode stay in front.
    fn close_gap(&mut self, row: usize, mover: &mut (impl Mover + ?Sized)) {
        if row == self.decoding {
            self.reading = false;
            return;
        }
        let last = self.decoding - 1;
        self.swap(row, last, mover);
        if self.reading {
            self.swap(last, self.decoding, mover);
        }
        self.decoding = last;
    }

    /// Gives up the kept prefix that was of use longest ago; `false` when there is none, or only `except`.
    pub(super) fn evict(&mut self, except: Option<Row>, mover: &mut (impl Mover + ?Sized)) -> bool {
        let kept = self.contents.iter().enumerate().filter(|&(row, _)| Some(Row(row)) != except);
        let oldest = kept.filter_map(|(row, content)| Some((content.used()?, row))).min();
        if let Some((_, row)) = oldest {
            self.forget(row, mover);
        }
        oldest.is_some()
    }

    fn forget(&mut self, row: usize, mover: &mut (impl Mover + ?Sized)) {
        if self.contents[row].used().is_some() {
            self.contents[row] = Content::Free;
            mover.release(Row(row));
        }
    }

    fn swap(&mut self, a: usize, b: usize, mover: &mut (impl Mover + ?Sized)) {
        let held = |row: usize| (Row(row), self.contents[row].in_cache());
        if a != b && held(a).1 + held(b).1 > 0 {
            mover.swap(held(a), held(b));
        }
        self.contents.swap(a, b);
    }
}
