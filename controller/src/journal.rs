//! The journal: why each of the last workers was chosen. Pure.
//!
//! ```text
//!   base of each pool ──changes──▶ decision ──changes──▶ decision ──▶ …
//! ```
//!
//! A decision among ten thousand workers must not copy them. So what is kept is how each pool stood before the oldest
//! decision, and with each decision what has changed since the one before: who was told a request or ended one, or beat.
//! How things stood at any decision is its base with all changes up to it (`past`). When the oldest decisions are
//! forgotten, their changes become part of the base.
//!
//! Each decision has a random seed of its own, from which the policy draws. So a decision is a function of the
//! candidates, the request and the seed, and can be made again ([`replay()`]).
//!
//! `explain` tells of one request, `told` puts all of it in words, `reader` and `replay` take these and make the decisions
//! again; `answers` has the routes.
//!
//! Decisions are kept in blocks, so that a look at all of them (`Journal::snapshot`) copies one block and counts the
//! references of the others.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::Release;
use muster_shared::id::WorkerId;
use muster_shared::problem::Problem;

use crate::dispatch::{LANES, Policy};
use crate::registry::{Pick, Pool, Question, lanes_of, millis};

mod answers;
mod entry;
mod explain;
mod past;
mod reader;
mod replay;
#[cfg(test)]
mod tests;
mod told;

pub(crate) use answers::{READERS, routes};
pub(crate) use entry::{Change, Machine};
use entry::{Ending, Entry, Refusal, Verdict};
use past::Past;
pub use reader::JournalError;
pub use replay::{Difference, Replay, Tally, replay};
pub(crate) use told::Clock;

/// Decisions of a block.
const BLOCK: usize = 64;
/// Changes that end a block early.
const CHANGES: usize = 4096;
/// The most that decisions may take, in bytes; then fewer are kept than were asked for. Ten thousand take far less, unless
/// many workers beat between any two.
const MOST: usize = 128 << 20;

/// The last decisions.
pub(crate) struct Journal {
    /// Decisions that are kept at least.
    limit: usize,
    /// The most that they may take, in bytes.
    pub(crate) most: usize,
    blocks: VecDeque<Arc<Block>>,
    open: Block,
    /// How each ended, from the oldest on.
    endings: VecDeque<Ending>,
    streams: HashMap<u32, Arc<Stream>>,
    /// Pools that are no more, each with the number of the first decision after its end.
    buried: VecDeque<(u64, u32)>,
    /// What all blocks but the open one take.
    bytes: usize,
    /// Who sat where at each decision, as a look at all of them says.
    #[cfg(test)]
    seen: VecDeque<Vec<tests::Seen>>,
}

/// Decisions one after another.
#[derive(Debug, Clone, Default)]
struct Block {
    /// Number of the first.
    first: u64,
    entries: Vec<Entry>,
    changes: Vec<Change>,
    /// What they hold besides themselves.
    bytes: usize,
}

/// The workers of a model as they were before the oldest decision.
#[derive(Debug, Clone)]
struct Stream {
    model: Arc<str>,
    policy: &'static dyn Policy,
    seats: [Vec<Option<Change>>; LANES],
}

/// The journal at one moment, to be read in peace.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    blocks: Vec<Arc<Block>>,
    endings: Vec<Ending>,
    streams: HashMap<u32, Arc<Stream>>,
    limit: usize,
}

impl Journal {
    /// An empty journal that keeps at least `limit` decisions, if they are not too large.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            most: MOST,
            blocks: VecDeque::new(),
            open: Block::default(),
            endings: VecDeque::new(),
            streams: HashMap::new(),
            buried: VecDeque::new(),
            bytes: 0,
            #[cfg(test)]
            seen: VecDeque::new(),
        }
    }

    /// Writes down that a worker was picked. Gives the decision's number.
    pub(crate) fn picked(&mut self, pool: &mut Pool, question: &Question<'_>, pick: Pick, now: Instant) -> u64 {
        let Pick { seat, is_paused, seed, .. } = pick;
        self.write(Some(pool), question, Verdict::Picked { seat, is_paused, seed }, now)
    }

    /// Writes down that all were full, and the address of one was told nevertheless.
    pub(crate) fn named(&mut self, pool: &mut Pool, question: &Question<'_>, worker: &WorkerId, now: Instant) {
        self.write(Some(pool), question, Verdict::Named(worker.clone()), now);
    }

    /// Writes down that nobody was.
    pub(crate) fn refused(
        &mut self,
        pool: Option<&mut Pool>,
        question: &Question<'_>,
        problem: &Problem,
        now: Instant,
    ) {
        let refusal =
            Refusal { model: question.request.model.clone(), kind: problem.kind, message: problem.message.clone() };
        self.open.bytes += size_of::<Refusal>() + refusal.model.len() + refusal.message.len();
        self.write(pool, question, Verdict::Refused(Box::new(refusal)), now);
    }

    fn write(&mut self, pool: Option<&mut Pool>, question: &Question<'_>, verdict: Verdict, now: Instant) -> u64 {
        let Question { request, holder, key, note } = *question;
        #[cfg(test)]
        self.seen.push_back(pool.as_ref().map(|pool| pool.seen()).unwrap_or_default());
        let stream = pool.map(|pool| self.tell(pool));
        let exclude = (!request.exclude.is_empty()).then(|| request.exclude.clone().into_boxed_slice());
        let number = self.open.first + self.open.entries.len() as u64;
        let words = [&note.request, &note.asked, key];
        self.open.bytes += words.into_iter().flatten().map(|words| words.len()).sum::<usize>();
        self.open.bytes += exclude.iter().flatten().map(|id| size_of::<WorkerId>() + id.as_str().len()).sum::<usize>();
        self.open.entries.push(Entry {
            at: now,
            request: note.request.clone(),
            asked: note.asked.clone(),
            holder,
            key: key.clone(),
            exclude,
            affinity: request.affinity,
            waited_ms: note.since.map_or(0, |since| short_millis(now.saturating_duration_since(since))),
            changes: u32::try_from(self.open.changes.len()).unwrap_or(u32::MAX),
            stream,
            wanted: lanes_of(&request.transports),
            exact: request.exact,
            verdict,
        });
        self.endings.push_back(Ending::Unknown);
        if self.open.entries.len() >= BLOCK.min(self.limit) || self.open.changes.len() >= CHANGES {
            self.seal();
        }
        number
    }

    /// Takes what has changed in a pool. Gives the pool's number.
    fn tell(&mut self, pool: &mut Pool) -> u32 {
        let told = self.open.changes.len();
        pool.tell(&mut self.open.changes);
        let new = &self.open.changes[told..];
        self.open.bytes += new.iter().map(Change::shared_bytes).sum::<usize>();
        if !pool.is_told {
            pool.is_told = true;
            let stream = Stream { model: Arc::clone(&pool.model), policy: pool.policy, seats: Default::default() };
            self.streams.insert(pool.stream, Arc::new(stream));
        }
        pool.stream
    }

    /// Begins a new block, and forgets those that are too old or too many.
    fn seal(&mut self) {
        let first = self.open.first + self.open.entries.len() as u64;
        let sealed = std::mem::replace(&mut self.open, Block { first, ..Block::default() });
        self.bytes += sealed.size();
        self.blocks.push_back(Arc::new(sealed));
        while self.blocks.front().is_some_and(|oldest| {
            let rest = self.endings.len() - oldest.entries.len();
            rest >= self.limit || (self.bytes > self.most && self.blocks.len() > 1)
        }) {
            self.forget();
        }
    }

    /// Makes the oldest block's changes part of what was before.
    fn forget(&mut self) {
        let Some(oldest) = self.blocks.pop_front() else { return };
        self.bytes -= oldest.size();
        self.endings.drain(..oldest.entries.len());
        #[cfg(test)]
        self.seen.drain(..oldest.entries.len());
        for (entry, changes) in oldest.decisions() {
            if let Some(stream) = entry.stream.and_then(|stream| self.streams.get_mut(&stream)) {
                changes.iter().for_each(|change| Arc::make_mut(stream).apply(change));
            }
        }
        let first = oldest.first + oldest.entries.len() as u64;
        while let Some(&(end, stream)) = self.buried.front()
            && end <= first
        {
            self.buried.pop_front();
            self.streams.remove(&stream);
        }
        if let Ok(mut block) = Arc::try_unwrap(oldest) {
            // Its memory is as large as another block needs.
            block.entries.clear();
            block.changes.clear();
            if self.open.entries.is_empty() && block.changes.capacity() <= CHANGES {
                self.open = Block { first: self.open.first, bytes: 0, ..block };
            }
        }
    }

    /// Takes note that a pool is no more.
    pub(crate) fn bury(&mut self, stream: u32) {
        if self.streams.contains_key(&stream) {
            self.buried.push_back((self.next(), stream));
        }
    }

    /// Takes note of how a request ended.
    pub(crate) fn ended(&mut self, decision: u64, release: &Release, took: Duration) {
        let ttft_ms = release.ttft_ms.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        let (outcome, tokens) = (release.outcome, release.tokens);
        self.end(decision, Ending::Released { outcome, took_ms: short_millis(took), ttft_ms, tokens });
    }

    /// Takes note that a ticket was not given back.
    pub(crate) fn lapsed(&mut self, decision: u64) {
        self.end(decision, Ending::Lapsed);
    }

    fn end(&mut self, decision: u64, ending: Ending) {
        let oldest = self.next() - self.endings.len() as u64;
        let place = decision.checked_sub(oldest).and_then(|place| usize::try_from(place).ok());
        if let Some(kept) = place.and_then(|place| self.endings.get_mut(place)) {
            *kept = ending;
        }
    }

    /// Number of the next decision.
    fn next(&self) -> u64 {
        self.open.first + self.open.entries.len() as u64
    }

    /// All of it as it is now. Copies one block; the others are shared.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut blocks: Vec<_> = self.blocks.iter().map(Arc::clone).collect();
        blocks.push(Arc::new(self.open.clone()));
        let endings = self.endings.iter().copied().collect();
        Snapshot { blocks, endings, streams: self.streams.clone(), limit: self.limit }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Thousands of decisions would drown whatever they are printed with.
        f.debug_struct("Journal").field("next", &self.next()).field("kept", &self.endings.len()).finish_non_exhaustive()
    }
}

impl Block {
    /// Each decision, with what has changed in its pool since the one before.
    fn decisions(&self) -> impl Iterator<Item = (&Entry, &[Change])> {
        let mut told = 0;
        self.entries.iter().map(move |entry| {
            let changes = &self.changes[told..entry.changes as usize];
            told = entry.changes as usize;
            (entry, changes)
        })
    }

    fn size(&self) -> usize {
        let ending = size_of::<Entry>() + size_of::<Ending>();
        self.entries.len() * ending + self.changes.len() * size_of::<Change>() + self.bytes
    }
}

impl Stream {
    /// Its workers, put in order for a policy.
    fn past(&self, policy: &'static dyn Policy) -> Past {
        let mut past = Past::new(policy);
        self.seats.iter().flatten().flatten().for_each(|change| past.apply(change));
        past
    }

    fn apply(&mut self, change: &Change) {
        apply(&mut self.seats[usize::from(change.seat().lane)], change);
    }
}

/// Does a change; one without a machine leaves that which was there.
fn apply(seats: &mut Vec<Option<Change>>, change: &Change) {
    let place = change.seat().place as usize;
    if place >= seats.len() {
        seats.resize(place + 1, None);
    }
    let before = seats[place].take();
    if change.is_gone() {
        return;
    }
    let machine = change.machine.clone().or_else(|| before.and_then(|before| before.machine));
    let mut change = change.clone();
    change.machine = machine;
    seats[place] = Some(change);
}

impl Snapshot {
    /// Each decision, by its number, with its changes and how it ended.
    fn decisions(&self) -> impl Iterator<Item = (u64, &Entry, &[Change], Ending)> {
        let first = self.blocks.first().map_or(0, |block| block.first);
        let all = self.blocks.iter().flat_map(|block| block.decisions());
        all.zip(&self.endings)
            .zip(first..)
            .map(|(((entry, changes), ending), number)| (number, entry, changes, *ending))
    }
}

fn short_millis(duration: Duration) -> u32 {
    u32::try_from(millis(duration)).unwrap_or(u32::MAX)
}
