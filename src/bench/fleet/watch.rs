//! Reads the controller's view of the fleet again and again, and compares it with the truth.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::client::ControllerClient;
use muster_shared::control::WorkerState;
use muster_shared::id::WorkerId;
use muster_shared::problem::chain;
use tokio_util::sync::CancellationToken;

use super::member::Member;

/// The watch.
pub(super) struct Watch {
    controller: ControllerClient,
    members: Arc<[Arc<Member>]>,
    pause: Duration,
    seen: Watched,
}

/// What it saw.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Looks at the fleet.
    pub(super) looks: u64,
    /// Workers that were called gone though their lease ran.
    pub(super) false_expiries: u64,
    /// When each silent worker was first called gone.
    pub(super) gone: HashMap<WorkerId, Instant>,
    pub(super) failed: u64,
    pub(super) failure: Option<String>,
}

impl Watch {
    pub(super) fn new(controller: ControllerClient, members: Arc<[Arc<Member>]>, heartbeat: Duration) -> Self {
        Self { controller, members, pause: heartbeat / 4, seen: Watched::default() }
    }

    /// Looks until all is over.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Watched {
        let mut looks = tokio::time::interval(self.pause);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.seen,
                _ = looks.tick() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        // Read before the question: whatever the controller says after it, these leases run at least so long.
        let least: HashMap<&WorkerId, (&Member, Instant)> = self
            .members
            .iter()
            .map(|member| (&member.registration.id, (&**member, member.beats().renewed + member.lease)))
            .collect();
        let fleet = match self.controller.fleet().await {
            Ok(fleet) => fleet,
            Err(error) => {
                self.seen.failed += 1;
                self.seen.failure.get_or_insert_with(|| chain(&error));
                return;
            }
        };
        let now = Instant::now();
        self.seen.looks += 1;
        for worker in fleet.workers.iter().filter(|worker| worker.state == WorkerState::Gone) {
            let Some((member, end)) = least.get(&worker.id) else { continue };
            if now < *end {
                self.seen.false_expiries += 1;
            }
            if member.is_silent() {
                self.seen.gone.entry(worker.id.clone()).or_insert(now);
            }
        }
    }
}
