//! The last changes of workers' states, with words of why. Pure.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Instant;

use muster_shared::control::WorkerState;
use muster_shared::id::WorkerId;
use muster_shared::topology::Topology;

use super::worker::Worker;

/// Why something is so.
pub(crate) type Words = Cow<'static, str>;

/// Why a worker comes into another state, in the words of whoever brings that about.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    words: Words,
    /// The states that are meant. Another may follow, for a reason of its own: whoever is resumed may be short of memory.
    states: &'static [WorkerState],
}

impl Cause {
    pub(super) fn new(words: impl Into<Words>, states: &'static [WorkerState]) -> Self {
        Self { words: words.into(), states }
    }

    pub(super) fn gone(words: impl Into<Words>) -> Self {
        Self::new(words, &[WorkerState::Gone])
    }
}

/// A worker came into another state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Grows by one with each change.
    pub(crate) number: u64,
    /// When.
    pub(crate) at: Instant,
    /// The worker's name.
    pub(crate) worker: WorkerId,
    /// How it was before; `None`: not known.
    pub(crate) from: Option<WorkerState>,
    /// How it is since; `None`: it is forgotten.
    pub(crate) to: Option<WorkerState>,
    /// Why.
    pub(crate) reason: Words,
}

/// How a worker was when it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Its state; `None`: it was not known.
    pub(crate) state: Option<WorkerState>,
    /// Since when.
    pub(crate) since: Instant,
    /// Why.
    pub(crate) reason: Words,
}

impl Told {
    /// Of a worker that nobody knew before.
    pub(super) fn nothing(now: Instant) -> Self {
        Self { state: None, since: now, reason: Words::default() }
    }
}

/// The last changes, oldest first. Bounded: a fleet that flaps does not fill the memory.
#[derive(Debug, Default)]
pub(super) struct Changes {
    last: VecDeque<Changed>,
    count: u64,
}

impl Changes {
    /// Takes note of how a worker is now, if it is another way than when it was last looked at.
    pub(super) fn note(&mut self, worker: &mut Worker, now: Instant) {
        let state = worker.state(now);
        let cause = worker.cause.take();
        if worker.told.state == Some(state) {
            return;
        }
        let cause = cause.filter(|cause| cause.states.contains(&state));
        let reason = cause.map_or_else(|| usual(worker, state), |cause| cause.words);
        let at = worker.gone_since.filter(|_| state == WorkerState::Gone).unwrap_or(now);
        let told = Told { state: Some(state), since: at, reason: reason.clone() };
        let from = std::mem::replace(&mut worker.told, told).state;
        self.push(Changed { number: 0, at, worker: worker.id.clone(), from, to: Some(state), reason });
    }

    /// Takes note that a worker is known no more.
    pub(super) fn forgotten(&mut self, worker: &Worker, now: Instant) {
        let reason = Words::Borrowed(match worker.told.state {
            Some(WorkerState::Gone) => "forgotten: it has been gone for ten minutes",
            _ => "forgotten: it is written down no more",
        });
        self.push(Changed { number: 0, at: now, worker: worker.id.clone(), from: worker.told.state, to: None, reason });
    }

    /// The last ones, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Changed> {
        self.last.iter().rev()
    }

    fn push(&mut self, changed: Changed) {
        self.count += 1;
        if self.last.len() == Topology::CHANGES {
            self.last.pop_front();
        }
        self.last.push_back(Changed { number: self.count, ..changed });
    }
}

/// Why a worker is in a state, where whoever brought it about did not say: time did, or a heartbeat.
fn usual(worker: &Worker, state: WorkerState) -> Words {
    match state {
        WorkerState::Paused => worker.pressure.reason().map_or(Words::Borrowed("its machine is short"), Words::Owned),
        WorkerState::Suspect => Words::Borrowed("its pause is over, or it beat: one request at a time tries it"),
        WorkerState::Gone => Words::Borrowed("its lease is over: no heartbeat came"),
        WorkerState::Ready => Words::Borrowed(match worker.told.state {
            Some(WorkerState::Paused) => "recovered: its machine is short of nothing any more",
            Some(WorkerState::Suspect | WorkerState::Open) => "recovered: a request succeeded",
            Some(WorkerState::Down) => "recovered: it answers its probes",
            _ => "it takes requests",
        }),
        WorkerState::Open if worker.told.state.is_none() => Words::Borrowed("it has not answered yet"),
        WorkerState::Open => Words::Borrowed("its requests failed"),
        WorkerState::Draining if worker.is_removed() => Words::Borrowed("it is written down no more"),
        WorkerState::Draining => Words::Borrowed("it drains"),
        WorkerState::Down => worker.down_reason().map_or(Words::default(), |why| Words::Owned(why.to_owned())),
    }
}
