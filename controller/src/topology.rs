//! The fleet as a picture: `GET /topology`, and what `GET /events` is made of.
//!
//! ```text
//!   each second: what has ended ──▶ history
//!                and while somebody looks: Snapshot ──watch──▶ each stream tells how it differs from what it said last
//! ```
//!
//! Nothing in it changes by the passing of time alone, so that an idle fleet has nearly nothing to tell.

mod clock;
mod compose;
mod difference;
mod past;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use muster_shared::sse;
use muster_shared::topology::{ControllerNode, ModelNode, Topology};
use tokio::sync::{Semaphore, watch};

use crate::desk::Desk;
use crate::http::Shared;
use crate::service::Service;
pub(crate) use clock::Clock;
use compose::{CONTROLLER, Seen};
use past::Past;

/// Time between two looks at the fleet.
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Streams of events that may be open at once: each costs a look through the fleet whenever something has changed.
pub(crate) const VIEWERS: usize = 64;

/// The picture at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) topology: Topology,
    /// When it was made; of two, the later one is true.
    pub(crate) taken: Instant,
    /// Moments are counted by the same clock in all of one era.
    pub(crate) era: u64,
    /// Samples there were until then.
    samples: u64,
}

/// What is kept for those who look.
#[derive(Debug)]
pub(crate) struct Scene {
    site: String,
    past: Mutex<Past>,
    shown: watch::Sender<Option<Arc<Snapshot>>>,
    /// One permit for each stream of events.
    pub(crate) seats: Arc<Semaphore>,
    /// The last difference that was told: most streams are equally far.
    told: Mutex<Option<Told>>,
}

/// How one snapshot differs from another.
#[derive(Debug)]
struct Told {
    from: Instant,
    to: Instant,
    event: Bytes,
}

impl Scene {
    pub(crate) fn new(site: String, now: Instant) -> Self {
        Self {
            site,
            past: Mutex::new(Past::new(now)),
            shown: watch::Sender::new(None),
            seats: Arc::new(Semaphore::new(VIEWERS)),
            told: Mutex::new(None),
        }
    }

    /// Snapshots from now on, one a second.
    pub(crate) fn look(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shown.subscribe()
    }

    /// The event that tells how one snapshot differs from another.
    pub(crate) fn difference(&self, from: &Snapshot, to: &Snapshot) -> Bytes {
        let mut told = lock(&self.told);
        match &*told {
            Some(told) if (told.from, told.to) == (from.taken, to.taken) => told.event.clone(),
            _ => {
                let event = sse::named_event("update", &difference::between(from, to));
                *told = Some(Told { from: from.taken, to: to.taken, event: event.clone() });
                event
            }
        }
    }
}

/// `GET /topology`.
pub(crate) async fn show(State(service): Shared) -> Json<Topology> {
    Json(service.topology().topology)
}

impl Service {
    /// A second has passed: keeps what ended in it, and shows the fleet to those who look.
    pub(crate) fn second(&self) {
        let (tally, tickets, waiting) = self.with(|desk, now| {
            let (tally, tickets) = desk.change(now, |registry| (registry.take_tally(), registry.held()));
            (tally, tickets, desk.waiting())
        });
        lock(&self.scene.past).add(&tally, count(tickets), count(waiting), Instant::now());
        if self.scene.shown.receiver_count() > 0 {
            self.scene.shown.send_replace(Some(Arc::new(self.topology())));
        }
    }

    /// The fleet as it is now.
    pub(crate) fn topology(&self) -> Snapshot {
        let past = lock(&self.scene.past).clone();
        let (clock, era, samples) = (past.clock, past.era, past.samples);
        let (processes, site) = (self.links.processes(), &self.scene.site);
        let (taken, waiting, seen) = self.with(|desk, now| {
            desk.tick(now);
            (now, count(desk.waiting()), see(desk, &clock, site, now))
        });
        let gateways = seen.gateways_of(processes, site);
        let controller = ControllerNode {
            id: CONTROLLER.to_owned(),
            site: site.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: clock.at(self.started),
            policy: self.policy.to_string(),
            waiting,
        };
        let topology = Topology {
            at_ms: clock.at(taken),
            history: past.history.into(),
            ..compose::picture(self.epoch, controller, gateways, seen, self.peers_file())
        };
        Snapshot { topology, taken, era, samples }
    }
}

/// Looks at what the desk's lock guards, and no more than that: everybody else waits meanwhile.
fn see<R>(desk: &Desk<R>, clock: &Clock, site: &str, now: Instant) -> Seen {
    let registry = desk.registry();
    let models = desk.names().list(registry.models(now)).into_iter().map(|status| ModelNode {
        waiting: count(desk.waiting_for(&status.name)),
        tickets: registry.held_of(&status.name),
        status,
    });
    Seen {
        models: models.collect(),
        workers: registry.nodes(clock, site, now),
        changes: registry.changes(clock),
        held: registry.held_by_gateway(),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock is a bug, and has been logged; what is kept here is to be looked at only.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
