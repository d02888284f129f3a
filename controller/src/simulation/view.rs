//! A gateway's last known fleet, for when the controller is away or has begun anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::control::{Fleet, WorkerState, WorkerStatus};
use muster_shared::id::WorkerId;

use super::sim::Sim;

/// Time that workers get to register with a controller that began anew.
const GRACE: Duration = Duration::from_secs(15);

/// Which workers may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// All: the controller does not answer.
    Always,
    /// Those that the controller before this one knew.
    AfterRestart,
}

/// The last known fleet.
#[derive(Debug, Default)]
pub(super) struct View {
    answers: bool,
    fleet: Option<Fleet>,
    before: BTreeMap<WorkerId, (WorkerStatus, Instant)>,
}

impl View {
    pub(super) fn note(&mut self, fleet: Fleet, now: Instant) {
        self.answers = true;
        if let Some(old) = self.fleet.take().filter(|old| old.epoch != fleet.epoch) {
            let alive = |worker: &WorkerStatus| !matches!(worker.state, WorkerState::Draining | WorkerState::Gone);
            let workers = old.workers.into_iter().filter(alive);
            self.before.extend(workers.map(|worker| (worker.id.clone(), (worker, now))));
        }
        for worker in &fleet.workers {
            self.before.remove(&worker.id);
        }
        self.before.retain(|_, (_, since)| now - *since < GRACE);
        self.fleet = Some(fleet);
    }

    pub(super) fn note_silence(&mut self) {
        self.answers = false;
    }

    pub(super) fn is_silent(&self) -> bool {
        !self.answers
    }

    /// Any usable worker, with its address.
    pub(super) fn choose(
        &self,
        model: &str,
        exclude: &[WorkerId],
        trust: Trust,
        sim: &mut Sim,
    ) -> Option<(WorkerId, String)> {
        let current = self.fleet.iter().filter(|_| trust == Trust::Always).flat_map(|fleet| &fleet.workers);
        let now = sim.now;
        let before = self.before.values().filter(|(_, since)| now - *since < GRACE).map(|(worker, _)| worker);
        let usable = |worker: &&WorkerStatus| {
            matches!(worker.state, WorkerState::Ready | WorkerState::Suspect)
                && worker.models.iter().any(|card| card.name == model)
                && !exclude.contains(&worker.id)
        };
        let candidates: Vec<_> = current.chain(before).filter(usable).collect();
        if candidates.is_empty() {
            return None;
        }
        let worker = candidates[sim.index(candidates.len())];
        Some((worker.id.clone(), worker.address.clone()))
    }
}
