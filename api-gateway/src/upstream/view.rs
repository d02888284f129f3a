//! The last known fleet, for when the controller does not answer or has just begun anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_shared::control::{Fleet, ModelStatus, Outcome, WorkerState, WorkerStatus};
use muster_shared::id::WorkerId;
use rand::seq::IndexedRandom as _;

/// Time that workers get to register with a controller that began anew: its lease, by default.
const GRACE: Duration = Duration::from_secs(15);
/// Age at which a view is no longer good enough to call the gateway ready.
const STALE: Duration = Duration::from_secs(60);
/// Time for which a worker that failed is chosen after all others.
const FAILED: Duration = Duration::from_secs(2);
/// The same for a worker that was full.
const FULL: Duration = Duration::from_millis(250);

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
    /// Workers of controllers that ran before, each with the time when its last one was seen to have gone.
    before: BTreeMap<WorkerId, (WorkerStatus, Instant)>,
    /// Whether the controller answered the last time.
    answers: bool,
    /// Requests that only this gateway counts: references beside this one.
    local: HashMap<WorkerId, Arc<()>>,
    /// Until when workers that failed come last: a dead one has the least requests, and would draw them all.
    suspended: HashMap<WorkerId, Instant>,
}

impl View {
    /// Takes what the controller said.
    pub(crate) fn note(&self, fleet: Fleet, now: Instant) {
        self.memory().note(fleet, now);
    }

    /// The controller did not answer; tells whether it did before.
    pub(crate) fn note_silence(&self) -> bool {
        std::mem::replace(&mut self.memory().answers, false)
    }

    /// Whether the controller did not answer when it was last asked, or never was.
    pub(crate) fn is_silent(&self) -> bool {
        !self.memory().answers
    }

    /// A request has ended on a worker. Only what is chosen from here heeds it: the controller has its own rules.
    pub(crate) fn note_end(&self, worker: &WorkerId, outcome: Outcome, now: Instant) {
        self.memory().note_end(worker, outcome, now);
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

    /// The known worker with the fewest requests from here, one that has just failed only where no other is left, and
    /// the count that its request holds.
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
            let alive = |worker: &WorkerStatus| !matches!(worker.state, WorkerState::Draining | WorkerState::Gone);
            let workers = old.workers.into_iter().filter(alive);
            // Two restarts within the grace: what only the one before the last knew keeps its own time.
            self.before.extend(workers.map(|worker| (worker.id.clone(), (worker, now))));
        }
        for worker in &fleet.workers {
            self.before.remove(&worker.id); // what this one knows counts
        }
        self.before.retain(|_, (_, since)| now.duration_since(*since) < GRACE);
        self.fleet = Some((fleet, now));
    }

    /// Workers of the controllers before this one that this one does not know yet, within the grace.
    fn before(&self, now: Instant) -> impl Iterator<Item = &WorkerStatus> {
        let fresh = self.before.values().filter(move |(_, since)| now.duration_since(*since) < GRACE);
        fresh.map(|(worker, _)| worker)
    }

    fn note_end(&mut self, worker: &WorkerId, outcome: Outcome, now: Instant) {
        let pause = match outcome {
            Outcome::Unreachable | Outcome::Failed => FAILED,
            Outcome::Overloaded => FULL,
            Outcome::Done | Outcome::Cancelled => return,
        };
        self.suspended.retain(|_, until| *until > now);
        let until = self.suspended.entry(worker.clone()).or_insert(now);
        *until = (*until).max(now + pause);
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
        let place = |worker: &WorkerStatus| {
            let is_suspended = self.suspended.get(&worker.id).is_some_and(|until| *until > now);
            (is_suspended, self.local.get(&worker.id).map_or(0, |count| Arc::strong_count(count) - 1))
        };
        let first = candidates.iter().map(|worker| place(worker)).min()?;
        let best: Vec<&WorkerStatus> = candidates.into_iter().filter(|worker| place(worker) == first).collect();
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
    #[test]
    fn a_worker_that_failed_comes_last_for_a_while() {
        let (view, now) = (View::default(), Instant::now());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        for (outcome, pause) in [(Outcome::Unreachable, FAILED), (Outcome::Failed, FAILED), (Outcome::Overloaded, FULL)]
        {
            view.note_end(&WorkerId::new("a"), outcome, now);
            let held: Vec<_> = (0..8).filter_map(|_| view.choose("m", &[], Trust::Always, now)).collect();
            assert!(held.iter().all(|(worker, _)| worker.id == WorkerId::new("b")), "{outcome:?}");
            assert_eq!(chosen(&view, &["b"], Trust::Always, now).as_deref(), Some("a"), "there is no other");
            assert_eq!(chosen(&view, &[], Trust::Always, now + pause).as_deref(), Some("a"), "{outcome:?}");
            view.0.lock().unwrap().suspended.clear();
        }
        view.note_end(&WorkerId::new("a"), Outcome::Failed, now);
        view.note_end(&WorkerId::new("a"), Outcome::Overloaded, now);
        view.note_end(&WorkerId::new("b"), Outcome::Cancelled, now);
        assert_eq!(chosen(&view, &[], Trust::Always, now + FULL).as_deref(), Some("b"), "the longer pause counts");
    }

    #[test]
    fn restarts_in_a_row_neither_double_workers_nor_renew_their_grace() {
        let (view, now) = (View::default(), Instant::now());
        let third = GRACE / 3;
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        view.note(fleet(Epoch::new(), vec![worker("b", WorkerState::Ready)]), now);
        for restart in 1..3 {
            view.note(fleet(Epoch::new(), vec![worker("b", WorkerState::Ready)]), now + third * restart);
            assert_eq!(view.0.lock().unwrap().before.len(), 1, "only `a` is not known to the new one");
        }
        view.note(fleet(Epoch::new(), vec![]), now + third * 2);
        assert_eq!(chosen(&view, &["b"], Trust::AfterRestart, now + third * 2).as_deref(), Some("a"));
        assert_eq!(chosen(&view, &["b"], Trust::AfterRestart, now + GRACE), None, "its own time is over");
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now + GRACE).as_deref(), Some("b"));
        view.note(fleet(Epoch::new(), vec![]), now + GRACE * 3);
        assert!(view.0.lock().unwrap().before.is_empty());
    }
}
