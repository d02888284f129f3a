//! A simulated worker: it registers, and beats as a real one does, until it falls silent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use muster_shared::client::ControllerClient;
use muster_shared::control::{Heartbeat, HeartbeatReply, Lease, ModelLoad, Registration};
use muster_shared::problem::chain;
use tokio_util::sync::CancellationToken;

use crate::bench::standins::{MODEL, StandIns};

/// Requests that it takes at the same time.
const ROOM: u32 = 8;

/// A worker.
#[derive(Debug)]
pub(super) struct Member {
    controller: ControllerClient,
    pub(super) registration: Registration,
    pub(super) lease: Duration,
    heartbeat: Duration,
    /// Requests that run on it.
    running: AtomicU32,
    /// Cancelled when it falls silent.
    silent: CancellationToken,
    beats: Mutex<Beats>,
}

/// What became of its heartbeats.
#[derive(Debug, Clone)]
pub(super) struct Beats {
    pub(super) sent: u64,
    /// Those that got no answer.
    pub(super) failed: u64,
    /// Why, of the first.
    pub(super) failure: Option<String>,
    /// When the last one that was answered had been sent: its lease ends a term later at the earliest.
    pub(super) renewed: Instant,
    /// When the last one was over, answered or not: after that, the controller has heard nothing of it.
    pub(super) last: Instant,
    /// Longest time from one that was answered to the next.
    pub(super) longest_gap: Duration,
    /// Times that the controller did not know it though its lease ran.
    pub(super) forgotten: u64,
    /// Times that its lease had ended by this process's own fault: it had beaten too late.
    pub(super) too_late: u64,
}

impl Member {
    /// Registers the worker of that number.
    ///
    /// # Errors
    /// When the controller refuses it.
    pub(super) async fn register(
        controller: ControllerClient,
        standins: &StandIns,
        number: u32,
    ) -> anyhow::Result<Self> {
        let registration = standins.registration(number, ROOM);
        let sent = Instant::now();
        let Lease { lease_ms, heartbeat_ms } =
            controller.register(&registration).await.context("cannot register a worker")?;
        let beats = Beats {
            sent: 0,
            failed: 0,
            failure: None,
            renewed: sent,
            last: Instant::now(),
            longest_gap: Duration::ZERO,
            forgotten: 0,
            too_late: 0,
        };
        Ok(Self {
            controller,
            registration,
            lease: Duration::from_millis(lease_ms),
            heartbeat: Duration::from_millis(heartbeat_ms),
            running: AtomicU32::new(0),
            silent: CancellationToken::new(),
            beats: Mutex::new(beats),
        })
    }

    /// Beats until it falls silent, or all is over.
    pub(super) async fn live(self: std::sync::Arc<Self>, stop: CancellationToken) {
        // The first one at any time within a beat, as in a fleet that has run for long.
        let mut pause = self.heartbeat.mul_f64(rand::random_range(0.0..=1.0));
        loop {
            tokio::select! {
                () = self.silent.cancelled() => return,
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.beat().await;
            // As real workers do, so that those started together do not beat together.
            pause = self.heartbeat.mul_f64(rand::random_range(0.9..=1.0));
        }
    }

    async fn beat(&self) {
        let Registration { id, incarnation, .. } = self.registration.clone();
        let number = self.beats().sent + 1;
        let beat = Heartbeat { load: Some(self.load()), sequence: Some(number), ..Heartbeat::bare(id, incarnation) };
        let sent = Instant::now();
        let reply = self.controller.heartbeat(&beat).await;
        let unknown = self.beats().note(sent, self.lease, reply.map_err(|error| chain(&error)));
        if unknown {
            let again = Instant::now();
            let registered = self.controller.register(&self.registration).await;
            self.beats().registered(again, registered.map_err(|error| chain(&error)).map(drop));
        }
    }

    /// The truth.
    fn load(&self) -> Vec<ModelLoad> {
        let running = self.running.load(Ordering::Relaxed);
        if running == 0 { Vec::new() } else { vec![ModelLoad { model: MODEL.to_owned(), running, waiting: 0 }] }
    }

    /// A request has come.
    pub(super) fn begin(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// No more beats, and no word about it, as of a machine whose power is cut. One that is on its way still arrives.
    pub(super) fn fall_silent(&self) {
        self.silent.cancel();
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent.is_cancelled()
    }

    pub(super) fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beats {
    /// Takes what became of a beat; says whether the worker must register again.
    fn note(&mut self, sent: Instant, lease: Duration, reply: Result<HeartbeatReply, String>) -> bool {
        let now = Instant::now();
        self.sent += 1;
        self.last = now;
        match reply {
            Ok(HeartbeatReply::Renewed(_)) => {
                self.longest_gap = self.longest_gap.max(sent - self.renewed);
                self.renewed = sent;
                false
            }
            Ok(HeartbeatReply::Unknown) => {
                let ran = now < self.renewed + lease;
                *(if ran { &mut self.forgotten } else { &mut self.too_late }) += 1;
                true
            }
            Err(reason) => {
                self.failed(reason);
                false
            }
        }
    }

    fn registered(&mut self, sent: Instant, result: Result<(), String>) {
        self.last = Instant::now();
        match result {
            Ok(()) => self.renewed = sent,
            Err(reason) => self.failed(reason),
        }
    }

    fn failed(&mut self, reason: String) {
        self.failed += 1;
        self.failure.get_or_insert(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_unknown_was_forgotten_only_while_its_lease_ran() {
        let now = Instant::now();
        let mut beats = Beats {
            sent: 0,
            failed: 0,
            failure: None,
            renewed: now,
            last: now,
            longest_gap: Duration::ZERO,
            forgotten: 0,
            too_late: 0,
        };
        assert!(beats.note(now, Duration::from_secs(3600), Ok(HeartbeatReply::Unknown)));
        assert_eq!((beats.forgotten, beats.too_late), (1, 0));
        assert!(beats.note(now, Duration::ZERO, Ok(HeartbeatReply::Unknown)));
        assert_eq!((beats.forgotten, beats.too_late), (1, 1));
        assert!(!beats.note(now, Duration::ZERO, Err("gone".to_owned())));
        assert_eq!((beats.sent, beats.failed, beats.failure.as_deref()), (3, 1, Some("gone")));
    }
}
