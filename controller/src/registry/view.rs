//! What the registry shows. Nothing here changes anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use muster_shared::control::{ModelStatus, Source, WorkerState, WorkerStatus};
use muster_shared::fastchat;
use muster_shared::id::WorkerId;

use super::pool::Pool;
use super::tickets::SPEAK_FASTCHAT;
use super::worker::Worker;
use super::{Origin, Registry, millis};

impl Registry {
    /// Every worker, by id.
    pub(crate) fn workers(&self, now: Instant) -> Vec<WorkerStatus> {
        self.all().map(|worker| self.status(worker, now)).collect()
    }

    /// Every model of a live worker, by name.
    pub(crate) fn models(&self, now: Instant) -> Vec<ModelStatus> {
        let mut models: BTreeMap<&str, ModelStatus> = BTreeMap::new();
        for worker in self.all().filter(|worker| worker.state(now) != WorkerState::Gone) {
            let takes_requests = u32::from(worker.is_live(now));
            for card in worker.offers.iter().map(|offer| &offer.card) {
                let model = models.entry(&card.name).or_insert_with(|| ModelStatus {
                    kind: card.kind,
                    context_length: card.context_length,
                    ..ModelStatus::bare(&card.name, 0)
                });
                model.workers += takes_requests;
                model.kind = model.kind.or(card.kind);
                // A request must fit whichever worker it gets.
                model.context_length = [model.context_length, card.context_length].into_iter().flatten().min();
            }
        }
        models.into_values().collect()
    }

    /// Whether someone would take a request for a model.
    pub(crate) fn is_served(&self, model: &str) -> bool {
        self.pools.get(model).is_some_and(Pool::is_served)
    }

    /// Names of the models that someone would take a request for.
    pub(crate) fn served(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.pools.served().cloned().collect();
        names.sort_unstable();
        names
    }

    /// The same as FastChat lists them: those of workers that speak its protocol. `multimodal`: only those of workers
    /// that take images, or that do not.
    pub(crate) fn model_names(&self, multimodal: Option<bool>, now: Instant) -> Vec<String> {
        names(self.live_fastchat(now).filter(|worker| multimodal.is_none_or(|wanted| takes_images(worker) == wanted)))
    }

    fn live_fastchat(&self, now: Instant) -> impl Iterator<Item = &Worker> {
        let speaks = |worker: &&Worker| SPEAK_FASTCHAT.contains(&worker.transport);
        self.all().filter(speaks).filter(move |worker| worker.is_live(now))
    }

    /// All workers that speak FastChat's protocol as if they were one.
    pub(crate) fn as_one_worker(&self, now: Instant) -> fastchat::WorkerStatus {
        let live = || self.live_fastchat(now);
        fastchat::WorkerStatus {
            model_names: self.model_names(None, now),
            // From 0.0, since an empty sum of floats is -0.0.
            speed: live().fold(0.0, |sum, worker| sum + worker.speed),
            queue_length: live().map(|worker| worker.reported_total().max(worker.tickets().into())).sum(),
        }
    }

    /// Live workers that registered through FastChat's interface.
    pub(crate) fn fastchat_workers(&self, now: Instant) -> Vec<WorkerId> {
        let workers = self.all().filter(|worker| matches!(worker.origin, Origin::FastChat { .. }));
        workers.filter(|worker| worker.state(now) != WorkerState::Gone).map(|worker| worker.id.clone()).collect()
    }

    /// Number of workers in each state.
    pub(crate) fn count_by_state(&self, now: Instant) -> HashMap<WorkerState, u32> {
        let mut counts = HashMap::new();
        for worker in self.all() {
            *counts.entry(worker.state(now)).or_default() += 1;
        }
        counts
    }

    /// Number of static peers in each state.
    pub(crate) fn count_peers(&self, now: Instant) -> HashMap<WorkerState, u32> {
        let mut counts = HashMap::new();
        for worker in self.all().filter(|worker| worker.origin == Origin::Static) {
            *counts.entry(worker.state(now)).or_default() += 1;
        }
        counts
    }

    /// Every worker, by id.
    pub(super) fn all(&self) -> impl Iterator<Item = &Worker> {
        self.by_id.values().map(|&slot| &self.workers[slot])
    }

    pub(super) fn status(&self, worker: &Worker, now: Instant) -> WorkerStatus {
        let state = worker.state(now);
        let age = worker.anonymous_age(&self.rules.lease);
        let held = worker.tickets.iter().filter(|(_, id)| self.is_held_at(&self.tickets[id], now)).count();
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        let anonymous: u32 = worker.offers.iter().map(|offer| offer.anonymous_at(age, now)).sum();
        WorkerStatus {
            id: worker.id.clone(),
            address: worker.address.clone(),
            transport: worker.transport,
            source: if worker.origin == Origin::Static { Source::Static } else { Source::Registered },
            state,
            models: worker.offers.iter().map(|offer| offer.card.clone()).collect(),
            speed: worker.speed,
            tickets: if state == WorkerState::Gone { 0 } else { held + anonymous },
            reported: worker.reported(),
            resources: worker.resources,
            paused: worker.pressure.reason().filter(|_| state == WorkerState::Paused),
            tokens_per_second: worker.tokens_per_second,
            ttft_ms: worker.ttft_ms,
            response_ms: worker.response_ms,
            lease_ms: worker.lease_end().map(|end| match state {
                WorkerState::Gone => 0,
                _ => millis(end.saturating_duration_since(now)),
            }),
            incarnation: worker.incarnation,
            version: worker.version.clone(),
        }
    }
}

/// Names of what workers offer, in order, each once.
fn names<'a>(workers: impl Iterator<Item = &'a Worker>) -> Vec<String> {
    let mut names: Vec<_> = workers.flat_map(|worker| &worker.offers).map(|offer| offer.card.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn takes_images(worker: &Worker) -> bool {
    matches!(worker.origin, Origin::FastChat { multimodal: true, .. })
}
