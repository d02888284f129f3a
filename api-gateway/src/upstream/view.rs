//! The last known fleet, for when the controller does not answer or has just begun anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::control::{Fleet, ModelStatus, WorkerState, WorkerStatus};
use muster_shared::id::WorkerId;
use rand::seq::IndexedRandom as _;

/// Time that workers get to register with a controller that began anew: its lease, by default.
const GRACE: Duration = Duration::from_secs(15);
/// Age at which a view is no longer good enough to call the gateway ready.
const STALE: Duration = Duration::from_secs(60);

/// When workers of the last known fleet may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The controller does not answer: always.
    Always,
    /// The controller answers that it knows none: only those known to the one before it.
    AfterRestart,
}

/// The last known fleet.
#[derive(Debug, Default)]
pub(crate) struct View(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    fleet: Option<(Fleet, Instant)>,
    /// Workers of a controller that ran before, and when it was seen that it had gone.
    before: Option<(Vec<WorkerStatus>, Instant)>,
    /// Whether the controller answered the last time.
    answers: bool,
    /// Requests that only this gateway counts: references beside this one.
    local: HashMap<WorkerId, Arc<()>>,
}

impl View {
    /// Takes what the controller said.
    pub(crate) fn note(&self, fleet: Fleet, now: Instant) {
        self.memory().note(fleet, now);
    }

    /// The controller did not answer.
    pub(crate) fn note_silence(&self) {
        self.memory().answers = false;
    }

    /// Whether requests can be dispatched, by the controller or from here.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn ready(&self, now: Instant) -> Result<(), &'static str> {
        let memory = self.memory();
        match &memory.fleet {
            None => Err("the controller has not answered yet"),
            Some((_, at)) if !memory.answers && now.duration_since(*at) > STALE => {
                Err("the controller has not answered for a minute")
            }
            Some(_) => Ok(()),
        }
    }

    /// Every model that a known worker serves, by name.
    pub(crate) fn models(&self, now: Instant) -> Vec<ModelStatus> {
        let memory = self.memory();
        let mut models: BTreeMap<String, ModelStatus> = BTreeMap::new();
        for worker in memory.before(now) {
            for card in &worker.models {
                let status = ModelStatus {
                    name: card.name.clone(),
                    kind: card.kind,
                    context_length: card.context_length,
                    workers: 1,
                };
                models.entry(card.name.clone()).or_insert(status);
            }
        }
        let current = memory.fleet.iter().flat_map(|(fleet, _)| &fleet.models);
        models.extend(current.map(|model| (model.name.clone(), model.clone())));
        models.into_values().collect()
    }

    /// Whether a worker is known.
    pub(crate) fn knows_worker(&self, id: &WorkerId) -> bool {
        let memory = self.memory();
        memory.fleet.as_ref().is_some_and(|(fleet, _)| fleet.workers.iter().any(|worker| worker.id == *id))
    }

    /// Whether a name is that of a known model: only such names become labels of metrics.
    pub(crate) fn knows(&self, model: &str) -> bool {
        let memory = self.memory();
        let fleet = memory.fleet.as_ref();
        fleet.is_some_and(|(fleet, _)| fleet.models.iter().any(|known| known.name == model))
    }

    /// The known worker with the fewest requests from here, and the count that its request holds.
    pub(crate) fn choose(
        &self,
        model: &str,
        exclude: &[WorkerId],
        trust: Trust,
        now: Instant,
    ) -> Option<(WorkerStatus, Arc<()>)> {
        self.memory().choose(model, exclude, trust, now)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn note(&mut self, fleet: Fleet, now: Instant) {
        self.answers = true;
        if let Some((old, _)) = self.fleet.take()
            && old.epoch != fleet.epoch
        {
            tracing::warn!("the controller began anew; workers it does not know yet are used for a while");
            // Two restarts within the grace: what was known before the first is still worth a try.
            let mut workers = old.workers;
            workers.extend(self.before(now).cloned().collect::<Vec<_>>());
            self.before = Some((workers, now));
        }
        self.fleet = Some((fleet, now));
    }

    /// Workers of the controller before this one that this one does not know yet, within the grace.
    fn before(&self, now: Instant) -> impl Iterator<Item = &WorkerStatus> {
        let fresh = self.before.as_ref().filter(|(_, since)| now.duration_since(*since) < GRACE);
        let known = |id: &WorkerId| {
            self.fleet.as_ref().is_some_and(|(fleet, _)| fleet.workers.iter().any(|worker| worker.id == *id))
        };
        fresh.into_iter().flat_map(|(workers, _)| workers).filter(move |worker| !known(&worker.id))
    }

    fn choose(
        &mut self,
        model: &str,
        exclude: &[WorkerId],
        trust: Trust,
        now: Instant,
    ) -> Option<(WorkerStatus, Arc<()>)> {
        let current = self.fleet.iter().filter(|_| trust == Trust::Always).flat_map(|(fleet, _)| &fleet.workers);
        let usable = |worker: &&WorkerStatus| {
            matches!(worker.state, WorkerState::Ready | WorkerState::Suspect)
                && worker.models.iter().any(|card| card.name == model)
                && !exclude.contains(&worker.id)
        };
        let candidates: Vec<&WorkerStatus> = current.chain(self.before(now)).filter(usable).collect();
        let load = |worker: &WorkerStatus| self.local.get(&worker.id).map_or(0, |count| Arc::strong_count(count) - 1);
        let least = candidates.iter().map(|worker| load(worker)).min()?;
        let best: Vec<&WorkerStatus> = candidates.into_iter().filter(|worker| load(worker) == least).collect();
        let chosen = (*best.choose(&mut rand::rng())?).clone();
        self.local.retain(|_, count| Arc::strong_count(count) > 1);
        let count = self.local.entry(chosen.id.clone()).or_default();
        Some((chosen, Arc::clone(count)))
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::control::{ModelCard, Source};
    use muster_shared::id::Epoch;
    use muster_shared::transport::Transport;

    use super::*;

    fn worker(id: &str, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            id: WorkerId::new(id),
            address: format!("http://{id}"),
            transport: Transport::Http,
            source: Source::Registered,
            state,
            models: vec![ModelCard { name: "m".to_owned(), kind: None, context_length: None, capacity: None }],
            speed: 1.0,
            tickets: 0,
            reported: Vec::new(),
            lease_ms: None,
            incarnation: 1,
            version: String::new(),
        }
    }

    fn fleet(epoch: Epoch, workers: Vec<WorkerStatus>) -> Fleet {
        let models = if workers.is_empty() {
            Vec::new()
        } else {
            vec![ModelStatus { name: "m".to_owned(), kind: None, context_length: None, workers: 1 }]
        };
        Fleet { epoch, version: String::new(), uptime_ms: 0, policy: String::new(), waiting: 0, workers, models }
    }

    fn chosen(view: &View, exclude: &[&str], trust: Trust, now: Instant) -> Option<String> {
        let exclude: Vec<WorkerId> = exclude.iter().map(|id| WorkerId::new(*id)).collect();
        view.choose("m", &exclude, trust, now).map(|(worker, _)| worker.id.to_string())
    }

    #[test]
    fn the_last_known_workers_serve_while_the_controller_is_silent() {
        let (view, now) = (View::default(), Instant::now());
        assert!(view.ready(now).is_err());
        assert_eq!(chosen(&view, &[], Trust::Always, now), None);
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Draining)]), now);
        view.note_silence();
        assert!(view.ready(now).is_ok());
        assert_eq!(chosen(&view, &[], Trust::Always, now).as_deref(), Some("a"));
        assert_eq!(chosen(&view, &["a"], Trust::Always, now), None, "draining workers get nothing");
        assert!(view.ready(now + STALE * 2).is_err());
    }

    #[test]
    fn workers_of_the_controller_before_serve_until_the_grace_is_over() {
        let (view, now) = (View::default(), Instant::now());
        let first = Epoch::new();
        view.note(fleet(first, vec![worker("a", WorkerState::Ready)]), now);
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now), None, "the same run knows best");
        let second = Epoch::new();
        view.note(fleet(second, Vec::new()), now);
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now).as_deref(), Some("a"));
        assert_eq!(view.models(now).len(), 1);
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now + GRACE), None);
        assert!(view.models(now + GRACE).is_empty());
        view.note(fleet(second, vec![worker("a", WorkerState::Gone)]), now);
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now), None, "what the new one knows counts");
    }

    #[test]
    fn requests_spread_by_what_this_gateway_has_in_flight() {
        let (view, now) = (View::default(), Instant::now());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        let (first, held) = view.choose("m", &[], Trust::Always, now).expect("a worker");
        let (second, _also) = view.choose("m", &[], Trust::Always, now).expect("a worker");
        assert_ne!(first.id, second.id);
        drop(held);
        let (third, _) = view.choose("m", &[], Trust::Always, now).expect("a worker");
        assert_eq!(first.id, third.id);
    }
}
