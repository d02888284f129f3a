//! The desk: registry, policy and waiting queue together. Pure.
//!
//! Whoever asks leaves a reply `R`, and gets it back in [`Desk::take_answers`] with the answer, exactly once: at once, or
//! when room is made, or when the wait is over. Every change ends with a look through the queue, so nobody waits while
//! there is room, and nobody who comes later takes room from one who waits.

mod refusal;
mod wish;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_shared::control::{Grant, ModelCard, Outcome, Release};
use muster_shared::id::{TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};
use rand::rngs::StdRng;

use crate::config::QueueConfig;
use crate::estimate::Estimates;
use crate::names::Names;
use crate::queue::{Newcomer, Place, Queue, Turn};
use crate::registry::{Asker, Denial, Holder, Lack, Registry, millis};
use refusal::Crowd;
use wish::{Likeness, Wish};

/// Time between two looks for what may be forgotten, if not a shorter heartbeat. A controller that runs looks at the clock
/// as often.
pub(crate) const SWEEP: Duration = Duration::from_secs(1);
/// When to ask again after every worker was full.
const RETRY_FULL: Duration = Duration::from_secs(1);
/// Models named to one who asks for an unknown one.
const MODELS_NAMED: usize = 5;

/// The answer to one who asked.
pub(crate) type Answer = Result<Grant, Problem>;

/// Registry, policy and waiting queue.
#[derive(Debug)]
pub(crate) struct Desk<R> {
    /// Workers and tickets, to be read; changes go through [`Desk::change`].
    registry: Registry,
    queue: Queue<Arc<Likeness>, Waiting<R>>,
    estimates: Estimates,
    names: Arc<Names>,
    rng: StdRng,
    max_wait: Duration,
    /// When one without a live worker shall ask again: a heartbeat, in which workers come back.
    retry_absent: Duration,
    /// The last look at the clock.
    seen: Instant,
    closed: bool,
    answers: Vec<(R, Answer)>,
}

/// How a desk is set up.
#[derive(Debug)]
pub(crate) struct Setup {
    /// How many may wait, and how long.
    pub(crate) queue: QueueConfig,
    /// Time between two heartbeats.
    pub(crate) heartbeat: Duration,
    /// Random numbers for those who choose.
    pub(crate) rng: StdRng,
}

/// One who waits.
#[derive(Debug)]
struct Waiting<R> {
    wish: Wish,
    reply: R,
    /// Whether its own time ends its wait.
    hurried: bool,
}

/// How patient one who asks is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Longest wait; zero asks for an answer at once.
    pub(crate) wait: Duration,
    /// Time left until the answer is of no more use.
    pub(crate) deadline: Option<Duration>,
    /// Higher goes first among the requests of one key.
    pub(crate) priority: i8,
    /// The same among keys.
    pub(crate) key_priority: i8,
}

impl Patience {
    /// That of a request like every other.
    pub(crate) fn usual(wait: Duration) -> Self {
        Self { wait, deadline: None, priority: 0, key_priority: 0 }
    }
}

impl<R> Desk<R> {
    /// A desk in front of an empty registry.
    pub(crate) fn new(registry: Registry, setup: Setup, now: Instant) -> Self {
        Self {
            registry,
            queue: Queue::new(setup.queue, now),
            estimates: Estimates::default(),
            names: Arc::default(),
            rng: setup.rng,
            max_wait: setup.queue.max_wait,
            retry_absent: setup.heartbeat,
            seen: now,
            closed: false,
            answers: Vec::new(),
        }
    }

    /// The same desk, at which these names can be asked for.
    pub(crate) fn with_names(self, names: Names) -> Self {
        Self { names: Arc::new(names), ..self }
    }

    /// What stands behind names.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Says in the log which of a worker's models nobody can ask for, since an alias has the name.
    pub(crate) fn warn_of_hidden(&self, worker: &WorkerId, models: &[ModelCard]) {
        for card in models.iter().filter(|card| self.names.stands_for(&card.name).is_some()) {
            tracing::warn!(%worker, model = card.name, "an alias hides a model of the same name");
        }
    }

    /// Notes that the controller runs. After it stood still, as a process or its machine may, the silence of all others
    /// was its own.
    pub(crate) fn look_at_clock(&mut self, now: Instant) {
        let away = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        if away > SWEEP.min(self.retry_absent) * 2 {
            tracing::warn!(?away, "the controller stood still; leases go on by as much");
            self.registry.excuse_silence(away);
        }
    }

    /// Static peers at which requests have failed since the last call.
    pub(crate) fn take_doubtful(&mut self) -> Vec<WorkerId> {
        self.registry.take_doubtful()
    }

    /// The registry, to be read.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that wait for a model.
    pub(crate) fn waiting_for(&self, model: &str) -> usize {
        self.queue.len_of(model)
    }

    /// The answers since the last call.
    pub(crate) fn take_answers(&mut self) -> Vec<(R, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Asks for a worker. A place is given to one who has to wait.
    pub(crate) fn ask(&mut self, mut asker: Asker, patience: Patience, reply: R, now: Instant) -> Option<Place> {
        asker.note.since = Some(now);
        if let Holder::Gateway(gateway) = asker.holder {
            self.registry.renew(gateway, now);
        }
        self.serve_waiting(now);
        if let Some(problem) = refusal::outsized(&asker) {
            self.answers.push((reply, Err(problem))); // not for the journal, which would hold what is too large
            return None;
        }
        if patience.deadline.is_some_and(|left| left.is_zero()) {
            self.refuse(&asker, reply, refusal::late(), now);
            return None;
        }
        let wish = self.wish(asker);
        let lack = match self.grant(&wish, now) {
            Ok(grant) => {
                self.answers.push((reply, Ok(grant)));
                return None;
            }
            Err(lack) => lack,
        };
        let patience = Patience { wait: patience.wait.min(self.max_wait), ..patience };
        if self.closed || patience.wait.is_zero() || lack == Lack::Worker {
            let problem = if self.closed { closing() } else { self.problem(&wish, Duration::ZERO) };
            self.refuse(&wish.asker, reply, problem, now);
            return None;
        }
        self.queue_up(wish, patience, reply, now)
    }

    /// Lets a request wait, if that is not in vain.
    fn queue_up(&mut self, wish: Wish, patience: Patience, reply: R, now: Instant) -> Option<Place> {
        let (model, key) = (wish.asker.request.model.clone(), wish.asker.key.clone());
        let hurried = patience.deadline.is_some_and(|left| left <= patience.wait);
        let newcomer = Newcomer {
            model: &model,
            key: &key,
            key_priority: patience.key_priority,
            priority: patience.priority,
            since: now,
            deadline: now + patience.deadline.map_or(patience.wait, |left| left.min(patience.wait)),
        };
        if let Some(problem) = self.hopeless(&wish, &newcomer, patience, now) {
            self.refuse(&wish.asker, reply, problem, now);
            return None;
        }
        if self.queue.len_of(&model) == 0 {
            self.estimates.begun(&model);
        }
        let kind = Arc::new(wish.likeness());
        match self.queue.push(&newcomer, kind, Waiting { wish, reply, hurried }) {
            Ok(place) => Some(place),
            Err((full, Waiting { wish, reply, .. })) => {
                let problem = refusal::bounded(full, &wish.asker, self.problem(&wish, Duration::ZERO));
                self.refuse(&wish.asker, reply, problem, now);
                None
            }
        }
    }

    /// Why a newcomer would wait in vain, if that is certain.
    fn hopeless(&self, wish: &Wish, newcomer: &Newcomer<'_>, patience: Patience, now: Instant) -> Option<Problem> {
        let left = patience.deadline?;
        if !wish.waits_for_one(&self.names) {
            return None; // another model may have room at any moment
        }
        let (model, ahead) = (newcomer.model, self.queue.ahead(newcomer));
        let expected = self.estimates.least(model, ahead, self.registry.held_of(model), now)?;
        (expected.total() > left).then(|| refusal::hopeless(&wish.asker, ahead, expected, left))
    }

    /// Forgets one who waits and has gone away.
    pub(crate) fn abandon(&mut self, place: &Place) {
        self.queue.remove(place);
    }

    /// Ends a ticket.
    pub(crate) fn release(&mut self, holder: Holder, release: &Release, now: Instant) {
        if let Some(ended) = self.registry.release(holder, release, now) {
            self.queue.note_end(&ended.model, &ended.key, now);
            if release.outcome == Outcome::Done {
                let first_token = release.ttft_ms.map(Duration::from_millis);
                self.estimates.ended(&ended.model, first_token, ended.took, now);
            }
        }
        self.serve_waiting(now);
    }

    /// Takes back a grant that could not be delivered, without blame for the worker.
    pub(crate) fn take_back(&mut self, holder: Holder, ticket: TicketId, now: Instant) {
        let release = Release { ticket, outcome: Outcome::Cancelled, ttft_ms: None, tokens: None };
        self.release(holder, &release, now);
    }

    /// Names a worker's address to one who will not say how the request ended.
    pub(crate) fn lookup(&mut self, model: &str, now: Instant) -> Option<String> {
        self.serve_waiting(now);
        self.registry.lookup(model, &mut self.rng, now)
    }

    /// Changes the registry, and serves those for whom the change makes room.
    pub(crate) fn change<T>(&mut self, now: Instant, change: impl FnOnce(&mut Registry) -> T) -> T {
        let result = change(&mut self.registry);
        self.serve_waiting(now);
        result
    }

    /// Forgets what is long gone. Tidies memory; no answer depends on it.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.estimates.sweep(now);
        self.queue.sweep(now);
        self.change(now, |registry| registry.sweep(now));
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.serve_waiting(now);
    }

    /// The next moment at which time alone changes something for those who wait.
    pub(crate) fn next_tick(&self, now: Instant) -> Option<Instant> {
        let deadline = self.queue.next_deadline()?;
        // What the registry has put down may turn out to be no change, so the moment may be too early, but not past.
        Some(self.registry.next_change().map_or(deadline, |change| change.min(deadline)).max(now))
    }

    /// Answers all who wait, and lets nobody wait any more: the controller stops.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        while let Some(waiter) = self.queue.pop() {
            self.answers.push((waiter.item.reply, Err(closing())));
        }
    }

    /// Answers those for whom there is room, in their order, then those whose wait is over.
    fn serve_waiting(&mut self, now: Instant) {
        self.registry.settle(now);
        let names = Arc::clone(&self.names);
        for model in self.registry.take_changed() {
            self.serve_model(&model, now);
            names.relieves(&model).iter().for_each(|relieved| self.serve_model(relieved, now));
        }
        while let Some(waiter) = self.queue.pop_expired(now) {
            let Waiting { wish, reply, hurried } = waiter.item;
            let waited = now.saturating_duration_since(waiter.since);
            let problem = match hurried {
                true => refusal::waited_in_vain(&wish.asker, waited),
                false => self.problem(&wish, waited),
            };
            self.refuse(&wish.asker, reply, problem, now);
        }
    }

    /// Refuses a request, and writes down why.
    fn refuse(&mut self, asker: &Asker, reply: R, problem: Problem, now: Instant) {
        self.registry.note_refusal(asker, &problem, now);
        self.answers.push((reply, Err(problem)));
    }

    fn serve_model(&mut self, model: &str, now: Instant) {
        // The kinds that need not wait. Whoever is served takes room and makes none, so they only become fewer.
        let mut open: BTreeSet<Arc<Likeness>> = self.queue.kinds(model).cloned().collect();
        loop {
            open.retain(|kind| kind.lack(model, &self.registry, &self.names) != Some(Lack::Room));
            if open.is_empty() {
                return;
            }
            let in_flight = |key: &_| self.registry.held_by(model, key);
            let turn = Turn { now, in_flight: &in_flight, fits: &|kind| open.contains(kind) };
            let Some((place, waiter)) = self.queue.next(model, &turn) else { return };
            let wish = &waiter.item.wish;
            let (waiter, answer) = match wish.grant(&mut self.registry, &self.names, &mut self.rng, now) {
                Ok(grant) => {
                    self.estimates.departed(model, now);
                    (self.queue.serve(&place, now), Ok(grant))
                }
                // A policy may leave a worker alone that has room.
                Err(Lack::Room) => {
                    open.remove(&waiter.kind);
                    continue;
                }
                Err(Lack::Worker) => {
                    let problem = self.problem(wish, now.saturating_duration_since(waiter.since));
                    self.registry.note_refusal(&wish.asker, &problem, now);
                    (self.queue.remove(&place), Err(problem))
                }
            };
            self.answers.push((waiter.expect("it was found a moment ago").item.reply, answer));
        }
    }

    /// Why a request for one model is refused, in words.
    fn problem_of_one(&self, asker: &Asker, waited: Duration) -> Problem {
        let model = &asker.request.model;
        match self.registry.denial(&asker.request).expect("whoever could be served has been") {
            Denial::UnknownModel => self.unknown_model(model),
            Denial::NoWorker { excluded: 0 } => {
                let message = format!("no live worker serves the model `{model}` at the moment");
                Problem::new(Kind::NoWorker, message).with_retry_after_ms(millis(self.retry_absent))
            }
            Denial::NoWorker { excluded } => {
                let message = format!("every live worker of the model `{model}` ({excluded}) has failed this request");
                Problem::new(Kind::NoWorker, message).with_retry_after_ms(millis(self.retry_absent))
            }
            Denial::NoRoom { full, open, paused } => {
                refusal::overloaded(&format!("the model `{model}`"), Crowd { full, open, paused }, waited)
            }
        }
    }

    fn unknown_model(&self, model: &str) -> Problem {
        let aliases = self.names.aliases_of(|model| self.registry.is_served(model));
        let mut known: Vec<Arc<str>> = self.registry.served().into_iter().chain(aliases.map(Arc::from)).collect();
        known.sort_unstable();
        known.dedup();
        let mut message = format!("no worker has offered the model `{model}`; ");
        match known.len() {
            0 => message += "no models are served at the moment",
            count => {
                message += &format!("served are: {}", known[..count.min(MODELS_NAMED)].join(", "));
                if count > MODELS_NAMED {
                    message += &format!(" and {} more", count - MODELS_NAMED);
                }
            }
        }
        Problem::new(Kind::UnknownModel, message).with_param("model")
    }
}

fn closing() -> Problem {
    Problem::new(Kind::NoWorker, "the controller is stopping").with_retry_after_ms(millis(RETRY_FULL))
}
