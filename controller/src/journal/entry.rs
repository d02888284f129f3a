//! What is written down of a decision.

use std::sync::Arc;
use std::time::Instant;

use muster_shared::control::{Outcome, Resources};
use muster_shared::id::WorkerId;
use muster_shared::journal::Busy;
use muster_shared::problem::Kind;

use crate::dispatch::{Candidate, LANES, Seat};
use crate::registry::{Holder, Key, Standing};

/// How the worker at a seat stands from now on, or that the seat is empty.
///
/// What changes with every request stands here; what changes with a heartbeat at most is shared between changes.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// With the marks beside it, the place fills eight bytes.
    place: u32,
    lane: u8,
    marks: Marks,
    load: u32,
    given: u32,
    turn: u64,
    /// Not a number where it is not known.
    response_ms: f64,
    /// `None`: as before.
    pub(super) machine: Option<Arc<Machine>>,
}

/// Yes or no, eight times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks(u8);

impl Marks {
    const LIVE: u8 = 1;
    const PAUSED: u8 = 2;
    const OPEN: u8 = 4;
    const ROOM: u8 = 8;
    const GONE: u8 = 16;

    fn of(standing: &Standing) -> Self {
        let mark = |is_set: bool, mark| if is_set { mark } else { 0 };
        Self(
            mark(standing.live, Self::LIVE)
                | mark(standing.paused, Self::PAUSED)
                | mark(standing.open, Self::OPEN)
                | mark(standing.candidate.is_some(), Self::ROOM),
        )
    }

    fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }
}

/// A worker's name and machine, as policies see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub(super) worker: Arc<str>,
    speed: f64,
    capacity: Option<u32>,
    /// In the order of [`Resources::fractions`]; not a number where it is not told, which takes half the room.
    resources: [f64; 7],
}

impl Machine {
    fn new(worker: &Arc<str>, candidate: &Candidate) -> Self {
        let resources = candidate.resources.fractions().map(|(_, share)| share.unwrap_or(f64::NAN));
        Self { worker: Arc::clone(worker), speed: candidate.speed, capacity: candidate.capacity, resources }
    }

    /// Whether it still is that of a worker, where it is a candidate.
    fn is_of(&self, worker: &Arc<str>, candidate: Option<&Candidate>) -> bool {
        (Arc::ptr_eq(&self.worker, worker) || self.worker == *worker)
            && candidate.is_none_or(|candidate| self.is_like(candidate))
    }

    fn is_like(&self, candidate: &Candidate) -> bool {
        let told = candidate.resources.fractions();
        let mut resources = self.resources.iter().zip(told);
        self.speed.to_bits() == candidate.speed.to_bits()
            && self.capacity == candidate.capacity
            && resources.all(|(share, (_, told))| told.map_or(share.is_nan(), |told| told.to_bits() == share.to_bits()))
    }

    /// Speed, capacity and resources.
    pub(super) fn parts(&self) -> (f64, Option<u32>, Resources) {
        (self.speed, self.capacity, self.resources())
    }

    /// That of these.
    pub(super) fn of_parts(worker: Arc<str>, (speed, capacity, resources): (f64, Option<u32>, Resources)) -> Self {
        Self::new(&worker, &Candidate { speed, capacity, resources, ..Candidate::IDLE })
    }

    fn resources(&self) -> Resources {
        let [cpu, model_cpu, memory, network, gpu, gpu_memory, kv_cache] =
            self.resources.map(|share| (!share.is_nan()).then_some(share));
        Resources { cpu, model_cpu, memory, network, gpu, gpu_memory, kv_cache }
    }
}

impl Change {
    /// How a worker stands. `told`: its machine as it was told last.
    pub(crate) fn of(seat: Seat, standing: &Standing, worker: &Arc<str>, told: &mut Option<Arc<Machine>>) -> Self {
        let candidate = standing.candidate.as_ref();
        let is_told = told.as_ref().is_some_and(|told| told.is_of(worker, candidate));
        let candidate = candidate.copied().unwrap_or(Candidate::IDLE);
        let machine = (!is_told).then(|| Arc::new(Machine::new(worker, &candidate)));
        if machine.is_some() {
            told.clone_from(&machine);
        }
        let Candidate { load, given, turn, response_ms, .. } = candidate;
        let response_ms = response_ms.unwrap_or(f64::NAN);
        let Seat { lane, place } = seat;
        Self { place, lane, marks: Marks::of(standing), load, given, turn, response_ms, machine }
    }

    /// How a worker stands that is live, paused and open as told.
    pub(super) fn of_parts(
        seat: Seat,
        [live, paused, open]: [bool; 3],
        busy: Option<Busy>,
        machine: Option<Arc<Machine>>,
    ) -> Self {
        let candidate = busy.map(|Busy { load, given, turn, response_ms }| Candidate {
            load,
            given,
            turn,
            response_ms,
            ..Candidate::IDLE
        });
        let (nobody, mut told) = (Arc::from(""), machine.clone());
        Self { machine, ..Self::of(seat, &Standing { live, paused, open, candidate }, &nobody, &mut told) }
    }

    /// What it has to do, where it has room.
    pub(super) fn busy(&self) -> Option<Busy> {
        let response_ms = (!self.response_ms.is_nan()).then_some(self.response_ms);
        self.marks.has(Marks::ROOM).then_some(Busy { load: self.load, given: self.given, turn: self.turn, response_ms })
    }

    /// The seat is empty.
    pub(crate) fn gone(seat: Seat) -> Self {
        let Seat { lane, place } = seat;
        Self {
            place,
            lane,
            marks: Marks(Marks::GONE),
            load: 0,
            given: 0,
            turn: 0,
            response_ms: f64::NAN,
            machine: None,
        }
    }

    /// Which seat.
    pub(super) fn seat(&self) -> Seat {
        Seat { lane: self.lane, place: self.place }
    }

    /// Whether the seat is empty.
    pub(super) fn is_gone(&self) -> bool {
        self.marks.has(Marks::GONE)
    }

    /// How the worker stands, once its machine is known.
    pub(super) fn standing(&self) -> Standing {
        let machine = self.machine.as_ref().filter(|_| self.marks.has(Marks::ROOM));
        let candidate = machine.map(|machine| Candidate {
            speed: machine.speed,
            load: self.load,
            capacity: machine.capacity,
            given: self.given,
            resources: machine.resources(),
            response_ms: (!self.response_ms.is_nan()).then_some(self.response_ms),
            turn: self.turn,
        });
        Standing {
            live: self.marks.has(Marks::LIVE),
            paused: self.marks.has(Marks::PAUSED),
            open: self.marks.has(Marks::OPEN),
            candidate,
        }
    }

    /// What it holds in memory besides itself.
    pub(super) fn shared_bytes(&self) -> usize {
        self.machine.as_ref().map_or(0, |_| size_of::<Machine>() + 2 * size_of::<usize>())
    }
}

/// One decision.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) at: Instant,
    pub(super) request: Option<Arc<str>>,
    pub(super) asked: Option<Arc<str>>,
    pub(super) holder: Option<Holder>,
    pub(super) key: Key,
    pub(super) exclude: Option<Box<[WorkerId]>>,
    pub(super) affinity: Option<u64>,
    pub(super) waited_ms: u32,
    /// Where its changes end in its block.
    pub(super) changes: u32,
    /// The model's pool; `None`: nobody serves the model.
    pub(super) stream: Option<u32>,
    pub(super) wanted: [bool; LANES],
    pub(super) exact: bool,
    pub(super) verdict: Verdict,
}

/// What a decision came to.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    Picked {
        seat: Seat,
        is_paused: bool,
        seed: u64,
    },
    /// All were full, and the address of this one was told nevertheless.
    Named(WorkerId),
    Refused(Box<Refusal>),
}

#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) model: String,
    pub(super) kind: Kind,
    pub(super) message: String,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Ending {
    /// It runs, or nothing will ever be told of it.
    #[default]
    Unknown,
    /// Its ticket was not given back: its worker or its gateway went, or did not know it.
    Lapsed,
    Released {
        outcome: Outcome,
        took_ms: u32,
        ttft_ms: Option<u32>,
        tokens: Option<u32>,
    },
}
