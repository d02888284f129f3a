//! One request of a client on its way through several attempts.

use std::time::Instant;

use muster_shared::id::WorkerId;
use rand::RngExt as _;

use super::MODELS;
use super::sim::Sim;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before another attempt.
    Pauses,
    /// At the controller, by its question.
    Asks(u32),
    /// At a worker; `flows` when it has begun.
    Runs { attempt: u64, flows: bool },
}

/// One request.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) model: &'static str,
    pub(super) key: Option<&'static str>,
    pub(super) key_priority: i8,
    pub(super) priority: i8,
    pub(super) affinity: Option<u64>,
    /// Comes back to a full fleet, up to its deadline.
    pub(super) is_patient: bool,
    /// When it must have begun.
    pub(super) deadline: Instant,
    /// When its client goes away.
    pub(super) leaves: Option<Instant>,
    /// How long a worker takes for it, in milliseconds; `None`: until the client leaves.
    pub(super) takes: Option<u64>,
    /// Whether workers fail it.
    pub(super) fails: bool,
    pub(super) attempts: u32,
    pub(super) tried: Vec<WorkerId>,
    pub(super) stage: Stage,
}

impl Job {
    /// Any request.
    pub(super) fn any(sim: &mut Sim) -> Self {
        let is_endless = sim.chance(0.008);
        let leaves = if is_endless {
            Some(sim.millis(20_000, 400_000))
        } else if sim.chance(0.1) {
            Some(sim.millis(1, 6000))
        } else {
            None
        };
        let key = sim.index(4);
        Self {
            model: MODELS[sim.index(MODELS.len())],
            key: [None, Some("one"), Some("two"), Some("three")][key],
            key_priority: [0, 0, 0, 1][key],
            priority: [0, 0, 0, 0, 0, 1, 3, -2][sim.index(8)],
            affinity: sim.chance(0.5).then(|| sim.rng.random_range(0..20)),
            is_patient: sim.chance(0.1),
            deadline: sim.now + sim.millis(2000, 30_000),
            leaves: leaves.map(|after| sim.now + after),
            takes: (!is_endless).then(|| sim.rng.random_range(20..1500)),
            fails: sim.chance(0.03),
            attempts: 3,
            tried: Vec::new(),
            stage: Stage::Pauses,
        }
    }
}
