//! The last known fleet, for when the controller does not answer or has just begun anew.

mod model;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use muster_shared::control::{Fleet, ModelCard, ModelStatus, Outcome, WorkerState, WorkerStatus};
use muster_shared::id::WorkerId;
use muster_shared::transport::Transport;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use super::peer::{Peer, Peers};
pub(crate) use model::Model;
use model::answers_alike;

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
pub(crate) struct View {
    /// Whether the controller answered the last time.
    answers: AtomicBool,
    /// What every request asks of the fleet, made ready.
    models: RwLock<HashMap<String, Arc<Model>>>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    fleet: Option<(Fleet, Instant)>,
    /// Workers of controllers that ran before, each with the time when its last one was seen to have gone.
    before: BTreeMap<WorkerId, (WorkerStatus, Instant)>,
    /// What stood behind names at the last of them, and when it was seen to have gone.
    names_before: Option<(Vec<ModelStatus>, Instant)>,
    /// Until when workers that failed come last: a dead one has the least requests, and would draw them all.
    suspended: HashMap<WorkerId, Instant>,
}

impl View {
    /// Takes what the controller said.
    pub(crate) fn note(&self, fleet: Fleet, now: Instant) {
        self.note_models(&fleet);
        self.memory().note(fleet, now);
        self.answers.store(true, Ordering::Relaxed);
    }

    /// The controller does not answer.
    pub(crate) fn note_silence(&self) {
        self.answers.store(false, Ordering::Relaxed);
    }

    /// Whether the controller did not answer when it was last asked, or never was.
    pub(crate) fn is_silent(&self) -> bool {
        !self.answers.load(Ordering::Relaxed)
    }

    /// A request has ended on a worker. Only what is chosen from here heeds it: the controller has its own rules.
    pub(crate) fn note_end(&self, worker: &WorkerId, outcome: Outcome, now: Instant) {
        if !matches!(outcome, Outcome::Done | Outcome::Cancelled) {
            self.memory().note_end(worker, outcome, now);
        }
    }

    /// Whether requests can be dispatched, by the controller or from here.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn ready(&self, now: Instant) -> Result<(), &'static str> {
        match &self.memory().fleet {
            None => Err("the controller has not answered yet"),
            Some((_, at)) if self.is_silent() && now.duration_since(*at) > STALE => {
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
                let ModelCard { kind, context_length, .. } = *card;
                let status = ModelStatus { kind, context_length, ..ModelStatus::bare(&card.name, 1) };
                models.entry(card.name.clone()).or_insert(status);
            }
        }
        for model in memory.names_before(now) {
            models.entry(model.name.clone()).or_insert_with(|| model.clone());
        }
        let current = memory.fleet.iter().flat_map(|(fleet, _)| &fleet.models);
        models.extend(current.map(|model| (model.name.clone(), model.clone())));
        models.into_values().collect()
    }

    /// Whether a worker is known.
    pub(crate) fn knows_worker(&self, id: &WorkerId) -> bool {
        let memory = self.memory();
        // Ordered by id, as the controller tells them.
        memory
            .fleet
            .as_ref()
            .is_some_and(|(fleet, _)| fleet.workers.binary_search_by(|worker| worker.id.cmp(id)).is_ok())
    }

    /// A model that is served. Only such names become labels of metrics.
    pub(crate) fn model(&self, name: &str) -> Option<Arc<Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The models that a name stands for, if it is an alias.
    pub(crate) fn stands_for(&self, name: &str) -> Option<Vec<String>> {
        let memory = self.memory();
        let status = memory.status(name, Instant::now())?;
        Some(status.stands_for.clone()).filter(|models| !models.is_empty())
    }

    /// A known worker of a model, and the model's name where it is not the one that is wanted: of two drawn at random the one with the fewer requests from here, one that has just
    /// failed only where no other is left (Mitzenmacher 2001, "The power of two choices in randomized load balancing").
    ///
    /// The weights of an alias are not known here: each of its models gets an equal share.
    pub(crate) fn choose(
        &self,
        wanted: &Wanted<'_>,
        peers: &Peers,
        now: Instant,
    ) -> Option<(Arc<Peer>, Option<String>)> {
        self.memory().choose(wanted, peers, now)
    }

    /// Live workers that speak one of these protocols, and serve the model, where one is named.
    pub(crate) fn speaking(&self, transports: &[Transport], model: Option<&str>, peers: &Peers) -> Vec<Arc<Peer>> {
        let memory = self.memory();
        let known = memory.fleet.iter().flat_map(|(fleet, _)| &fleet.workers);
        let speaks = |worker: &&WorkerStatus| {
            !matches!(worker.state, WorkerState::Draining | WorkerState::Gone)
                && transports.contains(&worker.transport)
                && model.is_none_or(|model| worker.models.iter().any(|card| card.name == model))
        };
        known.filter(speaks).map(|worker| peers.get(&worker.id, &worker.address, worker.transport)).collect()
    }

    fn note_models(&self, fleet: &Fleet) {
        let mut spoken: HashMap<&str, HashSet<Transport>> = HashMap::new();
        let mut revisions: HashMap<&str, Option<&ModelCard>> = HashMap::new();
        for worker in fleet.workers.iter().filter(|worker| worker.state != WorkerState::Gone) {
            for card in &worker.models {
                spoken.entry(&card.name).or_default().insert(worker.transport);
                let told = Some(card).filter(|card| card.revision.is_some());
                let all = revisions.entry(&card.name).or_insert(told);
                *all = all.filter(|first| answers_alike(first, card));
            }
        }
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.retain(|name, _| fleet.models.iter().any(|model| model.name == *name));
        for model in &fleet.models {
            let ModelStatus { name, kind, .. } = model;
            let spoken: HashSet<Transport> =
                behind(model, fleet).filter_map(|name| spoken.get(name)).flatten().copied().collect();
            let passes_through = spoken.contains(&Transport::OpenAi);
            let only_fastchat = spoken.contains(&Transport::FastChat) && spoken.len() == 1;
            let revision = revisions.get(name.as_str()).copied().flatten();
            let revision = revision.and_then(|card| Some((card.revision.clone()?, card.context_length)));
            let model = Model::new(name, *kind, (passes_through, only_fastchat), revision);
            if models.get(name).is_none_or(|known| !known.is_like(&model)) {
                models.insert(name.clone(), Arc::new(model));
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of all models that may answer a request for that one, itself among them unless it is an alias.
fn behind<'a>(model: &'a ModelStatus, fleet: &'a Fleet) -> impl Iterator<Item = &'a str> {
    let itself = std::slice::from_ref(&model.name);
    let targets = if model.stands_for.is_empty() { itself } else { &model.stands_for };
    let fallbacks = |target: &String| {
        let status = fleet.models.binary_search_by(|status| status.name.cmp(target));
        status.map_or(&[][..], |index| &fleet.models[index].fallbacks)
    };
    targets.iter().chain(targets.iter().flat_map(fallbacks)).map(String::as_str)
}

/// What is asked of the last known fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The model's name.
    pub(crate) model: &'a str,
    /// Whether no other model will do.
    pub(crate) exact: bool,
    /// Workers that have failed the request.
    pub(crate) exclude: &'a [WorkerId],
    /// Protocols in which it can be said; empty: in any.
    pub(crate) transports: &'a [Transport],
    /// Which workers may be used.
    pub(crate) trust: Trust,
}

impl Memory {
    fn note(&mut self, fleet: Fleet, now: Instant) {
        if let Some((old, _)) = self.fleet.take()
            && old.epoch != fleet.epoch
        {
            tracing::warn!("the controller began anew; workers it does not know yet are used for a while");
            let alive = |worker: &WorkerStatus| !matches!(worker.state, WorkerState::Draining | WorkerState::Gone);
            let workers = old.workers.into_iter().filter(alive);
            // Two restarts within the grace: what only the one before the last knew keeps its own time.
            self.before.extend(workers.map(|worker| (worker.id.clone(), (worker, now))));
            let named = |model: &ModelStatus| !(model.stands_for.is_empty() && model.fallbacks.is_empty());
            let names: Vec<_> = old.models.into_iter().filter(named).collect();
            if !names.is_empty() {
                self.names_before = Some((names, now));
            }
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

    /// What stood behind names before this controller, within the grace: it lists names while someone serves them.
    fn names_before(&self, now: Instant) -> &[ModelStatus] {
        let fresh = self.names_before.as_ref().filter(|(_, since)| now.duration_since(*since) < GRACE);
        fresh.map_or(&[], |(names, _)| names)
    }

    /// What is known of a name.
    fn status(&self, name: &str, now: Instant) -> Option<&ModelStatus> {
        let current = self.fleet.iter().flat_map(|(fleet, _)| &fleet.models);
        current.chain(self.names_before(now)).find(|model| model.name == name)
    }

    /// The models that may answer, in the order in which they are tried.
    fn targets<'a>(&'a self, wanted: &Wanted<'a>, now: Instant) -> Vec<&'a str> {
        let Some(status) = self.status(wanted.model, now).filter(|_| !wanted.exact) else { return vec![wanted.model] };
        let mut targets: Vec<&str> = status.stands_for.iter().map(String::as_str).collect();
        if targets.is_empty() {
            targets.push(wanted.model);
        }
        targets.shuffle(&mut rand::rng());
        let fallbacks = targets.iter().filter_map(|target| Some(&self.status(target, now)?.fallbacks));
        let fallbacks: Vec<&str> = fallbacks.flatten().map(String::as_str).collect();
        targets.extend(fallbacks);
        targets
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

    fn choose(&self, wanted: &Wanted<'_>, peers: &Peers, now: Instant) -> Option<(Arc<Peer>, Option<String>)> {
        let targets = self.targets(wanted, now);
        let candidates = |model| (model, self.candidates(&Wanted { model, ..*wanted }, now));
        let known: Vec<(&str, Vec<&WorkerStatus>)> =
            targets.into_iter().map(candidates).filter(|(_, workers)| !workers.is_empty()).collect();
        let is_sound = |worker: &&&WorkerStatus| self.suspended.get(&worker.id).is_none_or(|until| *until <= now);
        let sound = known.iter().find_map(|(model, workers)| {
            let sound: Vec<&WorkerStatus> = workers.iter().filter(is_sound).copied().collect();
            (!sound.is_empty()).then_some((*model, sound))
        });
        let (model, workers) = sound.or_else(|| known.into_iter().next())?;
        let unpaused: Vec<&WorkerStatus> =
            workers.iter().filter(|worker| worker.state != WorkerState::Paused).copied().collect();
        let workers = if unpaused.is_empty() { workers } else { unpaused };
        let two = workers.sample(&mut rand::rng(), 2);
        let two = two.map(|worker| peers.get(&worker.id, &worker.address, worker.transport));
        let peer = two.min_by_key(|peer| peer.in_flight())?;
        Some((peer, (model != wanted.model).then(|| model.to_owned())))
    }

    /// Known workers of a model that may be used.
    fn candidates(&self, wanted: &Wanted<'_>, now: Instant) -> Vec<&WorkerStatus> {
        let current = self.fleet.iter().filter(|_| wanted.trust == Trust::Always);
        let current = current.flat_map(|(fleet, _)| &fleet.workers);
        let usable = |worker: &&WorkerStatus| {
            matches!(worker.state, WorkerState::Ready | WorkerState::Suspect | WorkerState::Paused)
                && worker.models.iter().any(|card| card.name == wanted.model)
                && (wanted.transports.is_empty() || wanted.transports.contains(&worker.transport))
                && !wanted.exclude.contains(&worker.id)
        };
        current.chain(self.before(now)).filter(usable).collect()
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Source;
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
            models: vec![ModelCard::bare("m")],
            speed: 1.0,
            tickets: 0,
            reported: Vec::new(),
            resources: None,
            paused: None,
            tokens_per_second: None,
            ttft_ms: None,
            response_ms: None,
            lease_ms: None,
            incarnation: 1,
            version: String::new(),
        }
    }

    fn fleet(epoch: Epoch, workers: Vec<WorkerStatus>) -> Fleet {
        let models = if workers.is_empty() { Vec::new() } else { vec![ModelStatus::bare("m", 1)] };
        Fleet { epoch, version: String::new(), uptime_ms: 0, policy: String::new(), waiting: 0, workers, models }
    }

    fn chosen(view: &View, exclude: &[&str], trust: Trust, now: Instant) -> Option<String> {
        let exclude: Vec<WorkerId> = exclude.iter().map(|id| WorkerId::new(*id)).collect();
        let wanted = Wanted { exclude: &exclude, ..any(trust) };
        view.choose(&wanted, &peers(), now).map(|(peer, _)| peer.id.to_string())
    }

    fn any(trust: Trust) -> Wanted<'static> {
        Wanted { model: "m", exact: false, exclude: &[], transports: &[], trust }
    }

    fn peers() -> Peers {
        Peers::new(Duration::from_secs(1))
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
        let (view, now, peers) = (View::default(), Instant::now(), peers());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        let choose = || view.choose(&any(Trust::Always), &peers, now).expect("a worker").0;
        let (first, second) = (choose(), {
            choose().begin();
            choose()
        });
        second.begin();
        let third = choose();
        assert!(first.in_flight() <= 1 && third.in_flight() == 1, "two requests, one on each");
    }

    #[test]
    fn only_workers_that_speak_a_wanted_protocol_are_chosen() {
        let (view, now) = (View::default(), Instant::now());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready)]), now);
        let wanted = |transports| Wanted { transports, ..any(Trust::Always) };
        assert!(view.choose(&wanted(&[Transport::Http]), &peers(), now).is_some());
        assert!(view.choose(&wanted(&[Transport::OpenAi]), &peers(), now).is_none());
    }

    #[test]
    fn a_worker_that_failed_comes_last_for_a_while() {
        let (view, now) = (View::default(), Instant::now());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        for (outcome, pause) in [(Outcome::Unreachable, FAILED), (Outcome::Failed, FAILED), (Outcome::Overloaded, FULL)]
        {
            view.note_end(&WorkerId::new("a"), outcome, now);
            let others: Vec<_> = (0..8).filter_map(|_| chosen(&view, &[], Trust::Always, now)).collect();
            assert!(others.iter().all(|id| id == "b"), "{outcome:?}");
            assert_eq!(chosen(&view, &["b"], Trust::Always, now).as_deref(), Some("a"), "there is no other");
            let later: Vec<_> = (0..64).filter_map(|_| chosen(&view, &[], Trust::Always, now + pause)).collect();
            assert!(later.iter().any(|id| id == "a"), "{outcome:?}");
            view.memory().suspended.clear();
        }
        view.note_end(&WorkerId::new("a"), Outcome::Failed, now);
        view.note_end(&WorkerId::new("a"), Outcome::Overloaded, now);
        view.note_end(&WorkerId::new("b"), Outcome::Cancelled, now);
        assert_eq!(chosen(&view, &[], Trust::Always, now + FULL).as_deref(), Some("b"), "the longer pause counts");
    }

    #[test]
    fn a_paused_worker_comes_after_all_that_are_not_but_before_one_that_failed() {
        let (view, now) = (View::default(), Instant::now());
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Paused), worker("b", WorkerState::Ready)]), now);
        let chosen_often = || (0..8).filter_map(|_| chosen(&view, &[], Trust::Always, now)).collect::<Vec<_>>();
        assert!(chosen_often().iter().all(|id| id == "b"));
        assert_eq!(chosen(&view, &["b"], Trust::Always, now).as_deref(), Some("a"));
        view.note_end(&WorkerId::new("b"), Outcome::Failed, now);
        assert!(chosen_often().iter().all(|id| id == "a"));
    }

    #[test]
    fn restarts_in_a_row_neither_double_workers_nor_renew_their_grace() {
        let (view, now) = (View::default(), Instant::now());
        let third = GRACE / 3;
        view.note(fleet(Epoch::new(), vec![worker("a", WorkerState::Ready), worker("b", WorkerState::Ready)]), now);
        view.note(fleet(Epoch::new(), vec![worker("b", WorkerState::Ready)]), now);
        for restart in 1..3 {
            view.note(fleet(Epoch::new(), vec![worker("b", WorkerState::Ready)]), now + third * restart);
            assert_eq!(view.memory().before.len(), 1, "only `a` is not known to the new one");
        }
        view.note(fleet(Epoch::new(), vec![]), now + third * 2);
        assert_eq!(chosen(&view, &["b"], Trust::AfterRestart, now + third * 2).as_deref(), Some("a"));
        assert_eq!(chosen(&view, &["b"], Trust::AfterRestart, now + GRACE), None, "its own time is over");
        assert_eq!(chosen(&view, &[], Trust::AfterRestart, now + GRACE).as_deref(), Some("b"));
        view.note(fleet(Epoch::new(), vec![]), now + GRACE * 3);
        assert!(view.memory().before.is_empty());
    }

    /// A worker of that model alone.
    fn serving(id: &str, model: &str) -> WorkerStatus {
        let models = vec![ModelCard::bare(model.to_owned())];
        WorkerStatus { models, ..worker(id, WorkerState::Ready) }
    }

    /// A fleet in which `chat` stands for `a` and `b`, and `c` takes the requests of `b`.
    fn named(epoch: Epoch, workers: Vec<WorkerStatus>) -> Fleet {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let models = vec![
            ModelStatus::bare("a", 1),
            ModelStatus { fallbacks: names(&["c"]), ..ModelStatus::bare("b", 1) },
            ModelStatus::bare("c", 1),
            ModelStatus { stands_for: names(&["a", "b"]), ..ModelStatus::bare("chat", 2) },
        ];
        Fleet { models, ..fleet(epoch, workers) }
    }

    /// Who is chosen for a name in 64 draws, and the model that it is to be asked for.
    fn draws(view: &View, wanted: Wanted<'_>, now: Instant) -> Vec<(String, Option<String>)> {
        let draw = |_| view.choose(&wanted, &peers(), now).map(|(peer, model)| (peer.id.to_string(), model));
        let mut drawn: Vec<_> = (0..64).filter_map(draw).collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    #[test]
    fn an_alias_leads_to_each_of_its_models_that_has_a_worker() {
        let (view, now) = (View::default(), Instant::now());
        let epoch = Epoch::new();
        let (a, b, c) = (serving("wa", "a"), serving("wb", "b"), serving("wc", "c"));
        let chat = Wanted { model: "chat", ..any(Trust::Always) };
        let drawn = |id: &str, model: &str| (id.to_owned(), Some(model.to_owned()));
        view.note(named(epoch, vec![a.clone(), b.clone(), c.clone()]), now);
        assert_eq!(draws(&view, chat, now), [drawn("wa", "a"), drawn("wb", "b")]);
        view.note(named(epoch, vec![a.clone(), c.clone()]), now);
        assert_eq!(draws(&view, chat, now), [drawn("wa", "a")], "a fallback comes after every model it stands for");
        view.note(named(epoch, vec![c]), now);
        assert_eq!(draws(&view, chat, now), [drawn("wc", "c")]);
        assert_eq!(draws(&view, Wanted { model: "b", ..chat }, now), [drawn("wc", "c")]);
        assert_eq!(draws(&view, Wanted { model: "b", exact: true, ..chat }, now), []);
        assert_eq!(draws(&view, Wanted { model: "c", exact: true, ..chat }, now), [("wc".to_owned(), None)]);
        assert_eq!(view.stands_for("chat"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(view.stands_for("a"), None);
    }

    #[test]
    fn a_model_whose_workers_have_all_failed_comes_after_those_behind_the_same_name() {
        let (view, now) = (View::default(), Instant::now());
        view.note(named(Epoch::new(), vec![serving("wa", "a"), serving("wb", "b")]), now);
        view.note_end(&WorkerId::new("wa"), Outcome::Unreachable, now);
        let chat = Wanted { model: "chat", ..any(Trust::Always) };
        assert_eq!(draws(&view, chat, now), [("wb".to_owned(), Some("b".to_owned()))]);
        view.note_end(&WorkerId::new("wb"), Outcome::Unreachable, now);
        assert_eq!(draws(&view, chat, now).len(), 2, "there is no other");
    }

    #[test]
    fn names_outlive_the_controller_as_its_workers_do() {
        let (view, now) = (View::default(), Instant::now());
        view.note(named(Epoch::new(), vec![serving("wa", "a")]), now);
        for _ in 0..2 {
            view.note(fleet(Epoch::new(), Vec::new()), now); // one that has heard of nobody yet, twice in a row
        }
        let chat = Wanted { model: "chat", ..any(Trust::AfterRestart) };
        assert_eq!(draws(&view, chat, now), [("wa".to_owned(), Some("a".to_owned()))]);
        assert!(view.models(now).iter().any(|model| model.name == "chat"));
        assert_eq!(draws(&view, chat, now + GRACE), []);
    }

    #[test]
    fn a_name_passes_requests_on_where_anything_behind_it_does() {
        let (view, now) = (View::default(), Instant::now());
        let openai = |worker| WorkerStatus { transport: Transport::OpenAi, ..worker };
        let fastchat = |worker| WorkerStatus { transport: Transport::FastChat, ..worker };
        let known = |name: &str| view.model(name).map(|model| (model.passes_through, model.only_fastchat));
        view.note(
            named(
                Epoch::new(),
                vec![fastchat(serving("wa", "a")), fastchat(serving("wb", "b")), openai(serving("wc", "c"))],
            ),
            now,
        );
        assert_eq!(known("a"), Some((false, true)));
        assert_eq!(known("b"), Some((true, false)), "its fallback does");
        assert_eq!(known("chat"), Some((true, false)));
    }
}
