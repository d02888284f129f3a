//! A gateway: asks for workers, sends requests to them, says how they ended; over a link, or over HTTP.
//!
//! It does what `api-gateway/src/upstream/` does, less all that has no bearing on the controller.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::control::{Dispatch, Grant, Held, Outcome, Release, Releases, Renew};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::link::{Ask, Tell};
use muster_shared::problem::{Kind, Problem};
use rand::RngExt as _;

use super::job::{Job, Stage};
use super::network::End;
use super::sim::Sim;
use super::view::{Trust, View};
use super::wire::{Run, Wire, Word, Work};
use super::{Actor, Event, Timer};

/// Longest wait for room that a gateway asks for.
pub(super) const DISPATCH_WAIT: Duration = Duration::from_secs(10);
/// Time to connect; twice that may pass without a word.
const CONNECT: Duration = Duration::from_secs(2);
/// Time between two words of life.
const SYNC: Duration = Duration::from_secs(2);
/// How long the end of a request waits for company.
const LINGER: Duration = Duration::from_millis(1);
/// Time in which a worker must begin to answer.
const FIRST_WORD: Duration = Duration::from_secs(8);
/// Time between two looks whether an answer still flows.
pub(super) const WATCH: Duration = Duration::from_secs(5);

/// The way to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Down,
    Opening(u64),
    Up(u64),
}

/// One gateway, in all its lives.
#[derive(Debug)]
pub(super) struct Gateway {
    index: usize,
    pub(super) life: u64,
    pub(super) is_alive: bool,
    pub(super) id: GatewayId,
    by_http: bool,
    line: Line,
    next: u32,
    /// Jobs by their question.
    asked: BTreeMap<u32, u64>,
    outgoing: Vec<Ask>,
    ended: Vec<Release>,
    flushes_at: Option<Instant>,
    looks: bool,
    waiting_since: Option<Instant>,
    unclaimed: Vec<TicketId>,
    /// Requests in flight, by attempt.
    held: BTreeMap<u64, Holding>,
    jobs: BTreeMap<u64, Job>,
    view: View,
}

#[derive(Debug)]
struct Holding {
    ticket: TicketId,
    worker: WorkerId,
    model: &'static str,
    job: u64,
    /// When the worker has got the request.
    arrives: Instant,
}

impl Gateway {
    pub(super) fn new(index: usize, by_http: bool) -> Self {
        Self {
            index,
            life: 0,
            is_alive: false,
            id: GatewayId::from_random(0),
            by_http,
            line: Line::Down,
            next: 0,
            asked: BTreeMap::new(),
            outgoing: Vec::new(),
            ended: Vec::new(),
            flushes_at: None,
            looks: false,
            waiting_since: None,
            unclaimed: Vec::new(),
            held: BTreeMap::new(),
            jobs: BTreeMap::new(),
            view: View::default(),
        }
    }

    pub(super) fn actor(&self) -> Actor {
        Actor::Gateway(self.index)
    }

    fn run(&self) -> Run {
        Run { index: self.index, life: self.life }
    }

    fn timer(&self, timer: Timer) -> Event {
        Event::Timer(self.actor(), timer)
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.held.len()
    }

    /// The attempt that a job makes, and its worker.
    pub(super) fn attempt(&self, job: u64) -> Option<(u64, &WorkerId)> {
        match self.jobs.get(&job)?.stage {
            Stage::Runs { attempt, .. } => Some((attempt, &self.held.get(&attempt)?.worker)),
            Stage::Pauses | Stage::Asks(_) => None,
        }
    }

    /// A process starts, under a new name.
    pub(super) fn start(&mut self, sim: &mut Sim) {
        if self.is_alive {
            return;
        }
        let (life, by_http) = (self.life + 1, self.by_http);
        let id = GatewayId::from_random(sim.rng.random());
        *self = Self { life, id, is_alive: true, ..Self::new(self.index, by_http) };
        sim.note(self.actor(), "starts", [life, 0]);
        sim.after(SYNC, self.timer(Timer::Sync(life)));
        self.connect(life, sim);
    }

    /// The process dies; its clients and its workers see their connections end.
    pub(super) fn crash(&mut self, sim: &mut Sim) {
        if !self.is_alive {
            return;
        }
        sim.note(self.actor(), "dies with requests", [self.held.len() as u64, self.jobs.len() as u64]);
        self.is_alive = false;
        if let Line::Opening(link) | Line::Up(link) = self.line {
            sim.close_link(link, End::Gateway);
        }
        for (attempt, holding) in std::mem::take(&mut self.held) {
            self.cancel(attempt, &holding, sim);
        }
        for &job in std::mem::take(&mut self.jobs).keys() {
            let ended = sim.clients.end(job, false);
            sim.claim(ended);
        }
    }

    // The link.

    /// Seeks the controller.
    pub(super) fn connect(&mut self, life: u64, sim: &mut Sim) -> bool {
        if life != self.life || !self.is_alive || self.by_http || self.line != Line::Down {
            return false;
        }
        if sim.network.is_cut(self.actor(), Actor::Controller) {
            let pause = sim.millis(50, 1000);
            sim.after(pause, self.timer(Timer::Connect(life)));
            return true;
        }
        let link = sim.open_link(self.index);
        self.line = Line::Opening(link);
        sim.note(self.actor(), "opens link", [link, 0]);
        sim.say(link, End::Gateway, Wire::Open { link });
        sim.after(CONNECT * 2, self.timer(Timer::GiveUpOpening(link)));
        true
    }

    pub(super) fn give_up_opening(&mut self, link: u64, sim: &mut Sim) -> bool {
        let gives_up = self.line == Line::Opening(link);
        if gives_up {
            self.hang_up(sim);
        }
        gives_up
    }

    pub(super) fn on_opened(&mut self, link: u64, sim: &mut Sim) {
        if self.line != Line::Opening(link) {
            return;
        }
        self.line = Line::Up(link);
        self.outgoing.clear();
        self.unclaimed.clear();
        let held = self.held.values().map(Holding::told).collect();
        sim.note(self.actor(), "says hello with requests", [self.held.len() as u64, link]);
        self.waiting_since = Some(sim.now);
        sim.say(link, End::Gateway, Wire::Asks { link, asks: vec![Ask::Hello { gateway: self.id, held }] });
    }

    /// The link's other end is gone.
    pub(super) fn on_link_end(&mut self, link: u64, sim: &mut Sim) {
        if matches!(self.line, Line::Opening(open) | Line::Up(open) if open == link) {
            self.hang_up(sim);
        }
    }

    fn hang_up(&mut self, sim: &mut Sim) {
        let (Line::Opening(link) | Line::Up(link)) = self.line else { return };
        sim.note(self.actor(), "hangs up", [link, 0]);
        sim.close_link(link, End::Gateway);
        self.line = Line::Down;
        self.waiting_since = None;
        self.outgoing.clear();
        self.view.note_silence();
        let pause = sim.millis(25, 1000);
        sim.after(pause, self.timer(Timer::Connect(self.life)));
        for job in std::mem::take(&mut self.asked).into_values() {
            self.choose_from_view(job, Trust::Always, no_controller(), sim);
        }
    }

    fn say(&mut self, ask: Ask, is_urgent: bool, sim: &mut Sim) {
        self.outgoing.push(ask);
        self.flush_after(if is_urgent { Duration::ZERO } else { LINGER }, sim);
    }

    fn flush_after(&mut self, delay: Duration, sim: &mut Sim) {
        let at = sim.now + delay;
        if self.flushes_at.is_none_or(|other| at < other) {
            self.flushes_at = Some(at);
            sim.at(at, self.timer(Timer::Flush(self.life)));
        }
    }

    /// Sends what there is to say.
    pub(super) fn flush(&mut self, life: u64, sim: &mut Sim) -> bool {
        if life != self.life || !self.is_alive || self.flushes_at.is_none_or(|at| at > sim.now) {
            return false;
        }
        self.flushes_at = None;
        if self.by_http {
            let releases = std::mem::take(&mut self.ended);
            sim.post(self.actor(), Actor::Controller, Wire::Releases(Releases { gateway: self.id, releases }));
        } else if let Line::Up(link) = self.line
            && !self.outgoing.is_empty()
        {
            let asks = std::mem::take(&mut self.outgoing);
            sim.say(link, End::Gateway, Wire::Asks { link, asks });
        }
        true
    }

    /// Tells that it lives, what it has besides, and wants to hear how the fleet is.
    pub(super) fn sync(&mut self, life: u64, sim: &mut Sim) -> bool {
        if life != self.life || !self.is_alive {
            return false;
        }
        sim.after(SYNC, self.timer(Timer::Sync(life)));
        if self.by_http {
            sim.post(self.actor(), Actor::Controller, Wire::Renew(Renew { gateway: self.id }));
            return true;
        }
        self.looks = true;
        if self.waiting_since.is_some_and(|since| sim.now - since > CONNECT * 2) {
            self.hang_up(sim);
        } else {
            self.look(sim);
        }
        true
    }

    fn look(&mut self, sim: &mut Sim) {
        if self.looks && self.waiting_since.is_none() && matches!(self.line, Line::Up(_)) {
            self.looks = false;
            self.waiting_since = Some(sim.now);
            let unclaimed = std::mem::take(&mut self.unclaimed);
            let claims = self.held.values().filter(|holding| unclaimed.contains(&holding.ticket));
            let claims: Vec<_> = claims.map(Holding::told).collect();
            self.say(Ask::Sync { claims }, true, sim);
        }
    }

    pub(super) fn on_tell(&mut self, link: u64, tell: Tell, sim: &mut Sim) {
        if self.line != Line::Up(link) {
            return;
        }
        match tell {
            Tell::Grant { id, grant } => match self.asked.remove(&id) {
                Some(job) => self.send(job, grant, sim),
                None => self.release(grant.ticket, Outcome::Cancelled, sim), // nobody waits for it any more
            },
            Tell::Refusal { id, problem } => {
                if let Some(job) = self.asked.remove(&id) {
                    self.on_refusal(job, problem, sim);
                }
            }
            Tell::Fleet { fleet, unknown } => {
                self.waiting_since = None;
                self.view.note(*fleet, sim.now);
                self.unclaimed.extend(unknown);
                self.look(sim);
            }
        }
    }

    pub(super) fn on_answer(&mut self, to: Run, call: u32, answer: Result<Grant, Problem>, sim: &mut Sim) {
        if to != self.run() || !self.is_alive {
            return;
        }
        let Some(job) = self.asked.remove(&call) else { return }; // the connection is closed
        match answer {
            Ok(grant) => self.send(job, grant, sim),
            Err(problem) => self.on_refusal(job, problem, sim),
        }
    }

    // Requests of clients.

    /// A client's request arrives.
    pub(super) fn accept(&mut self, number: u64, job: Job, sim: &mut Sim) {
        sim.note(self.actor(), "accepts", [number, job.model.len() as u64]);
        sim.clients.begin(number, job.deadline);
        sim.at(job.deadline, self.timer(Timer::Deadline(number)));
        if let Some(leaves) = job.leaves {
            sim.at(leaves, self.timer(Timer::ClientLeaves(number)));
        }
        self.jobs.insert(number, job);
        self.seek(number, sim);
    }

    fn seek(&mut self, number: u64, sim: &mut Sim) {
        if !self.by_http && self.view.is_silent() && self.try_view(number, Trust::Always, sim) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let left = job.deadline - sim.now;
        if !self.by_http && !matches!(self.line, Line::Up(_)) {
            return self.choose_from_view(number, Trust::Always, no_controller(), sim);
        }
        self.next += 1;
        let id = self.next;
        job.stage = Stage::Asks(id);
        let limit = (DISPATCH_WAIT + CONNECT * 2).min(left / 2);
        let dispatch = job.dispatch(self.id, DISPATCH_WAIT.min(left * 3 / 8), left);
        self.asked.insert(id, number);
        sim.note(self.actor(), "asks", [number, id.into()]);
        sim.after(limit, self.timer(Timer::AskLimit(number, id)));
        if self.by_http {
            let wire = Wire::Dispatch { from: self.run(), call: id, dispatch };
            sim.post(self.actor(), Actor::Controller, wire);
        } else {
            self.say(Ask::Dispatch { id, dispatch }, true, sim);
        }
    }

    /// The controller has not answered in time.
    pub(super) fn ask_limit(&mut self, number: u64, id: u32, sim: &mut Sim) -> bool {
        if self.asked.get(&id) != Some(&number) {
            return false;
        }
        self.abandon(id, sim);
        self.view.note_silence();
        self.choose_from_view(number, Trust::Always, no_controller(), sim);
        true
    }

    fn abandon(&mut self, id: u32, sim: &mut Sim) {
        self.asked.remove(&id);
        sim.note(self.actor(), "abandons", [id.into(), 0]);
        if self.by_http {
            sim.post(self.actor(), Actor::Controller, Wire::HangUp { from: self.run(), call: id });
        } else if matches!(self.line, Line::Up(_)) {
            self.say(Ask::Abandon { id }, true, sim);
        }
    }

    fn on_refusal(&mut self, number: u64, problem: Problem, sim: &mut Sim) {
        if matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) && !self.by_http {
            return self.choose_from_view(number, Trust::AfterRestart, problem, sim);
        }
        self.refuse(number, problem, sim);
    }

    /// A patient request comes back to a full fleet; any other ends.
    fn refuse(&mut self, number: u64, problem: Problem, sim: &mut Sim) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let pause = Duration::from_millis(problem.retry_after_ms.unwrap_or(0).clamp(20, 1000));
        if job.is_patient && problem.kind == Kind::Overloaded && sim.now + pause < job.deadline {
            job.stage = Stage::Pauses;
            sim.after(pause, self.timer(Timer::Again(number)));
        } else {
            self.end(number, false, sim);
        }
    }

    fn try_view(&mut self, number: u64, trust: Trust, sim: &mut Sim) -> bool {
        let Some(job) = self.jobs.get(&number) else { return false };
        let Some((worker, address)) = self.view.choose(job.model, &job.tried, trust, sim) else { return false };
        let ticket = TicketId::from_random(sim.rng.random());
        self.unclaimed.push(ticket);
        sim.note(self.actor(), "dispatches by itself", [number, 0]);
        let transport = muster_shared::transport::Transport::Http;
        self.send(number, Grant { ticket, worker, address, transport, model: None }, sim);
        true
    }

    fn choose_from_view(&mut self, number: u64, trust: Trust, problem: Problem, sim: &mut Sim) {
        if self.by_http || !self.try_view(number, trust, sim) {
            self.refuse(number, problem, sim);
        }
    }

    /// Sends a request to its worker.
    fn send(&mut self, number: u64, grant: Grant, sim: &mut Sim) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return self.release(grant.ticket, Outcome::Cancelled, sim);
        };
        let attempt = sim.serial();
        let delay = sim.millis(0, 2);
        let arrives = sim.now + delay;
        job.stage = Stage::Runs { attempt, flows: false };
        let model = job.model;
        let work = Work {
            attempt,
            from: Some(Run { index: self.index, life: self.life }),
            address: grant.address,
            model: model.to_owned(),
            takes: job.takes,
            fails: job.fails,
        };
        let to = Actor::Worker(number_of(&grant.worker));
        let holding = Holding { ticket: grant.ticket, worker: grant.worker, model, job: number, arrives };
        self.held.insert(attempt, holding);
        sim.note(self.actor(), "sends to worker", [attempt, to.numbers().1]);
        if sim.network.is_cut(self.actor(), to) {
            let said = Wire::Said { to: self.run(), attempt, word: Word::Unreachable };
            sim.after(CONNECT, Event::Deliver(self.actor(), said));
        } else {
            sim.at(arrives, Event::Deliver(to, Wire::Work(work)));
        }
        sim.after(FIRST_WORD, self.timer(Timer::AttemptLimit(number, attempt)));
    }

    pub(super) fn on_said(&mut self, to: Run, attempt: u64, word: Word, sim: &mut Sim) {
        let Some(holding) = self.held.get(&attempt).filter(|_| to == self.run() && self.is_alive) else { return };
        let number = holding.job;
        match word {
            Word::Began => {
                if let Some(job) = self.jobs.get_mut(&number) {
                    job.stage = Stage::Runs { attempt, flows: true };
                }
                sim.clients.flow(number);
                sim.after(WATCH, self.timer(Timer::Watch(number, attempt)));
            }
            Word::Done => {
                self.give_back(attempt, Outcome::Done, sim);
                self.end(number, true, sim);
            }
            Word::Failed => self.fail(number, attempt, Outcome::Failed, sim),
            Word::Unreachable => self.fail(number, attempt, Outcome::Unreachable, sim),
            Word::Full => self.fail(number, attempt, Outcome::Overloaded, sim),
            Word::Unknown => self.fail(number, attempt, Outcome::Done, sim),
        }
    }

    /// The worker has not begun in time.
    pub(super) fn attempt_limit(&mut self, number: u64, attempt: u64, sim: &mut Sim) -> bool {
        let waits = Stage::Runs { attempt, flows: false };
        if self.jobs.get(&number).is_none_or(|job| job.stage != waits) {
            return false;
        }
        self.break_off(attempt, sim);
        self.fail(number, attempt, Outcome::Failed, sim);
        true
    }

    /// Sees whether an answer still flows.
    pub(super) fn watch(&mut self, number: u64, attempt: u64, flows: bool, sim: &mut Sim) -> bool {
        if !self.held.contains_key(&attempt) {
            return false;
        }
        if flows {
            sim.after(WATCH, self.timer(Timer::Watch(number, attempt)));
        } else {
            self.break_off(attempt, sim);
            self.fail(number, attempt, Outcome::Failed, sim);
        }
        true
    }

    /// An attempt has failed: another worker may do better, unless the client has seen the beginning.
    fn fail(&mut self, number: u64, attempt: u64, outcome: Outcome, sim: &mut Sim) {
        let worker = self.held.get(&attempt).map(|holding| holding.worker.clone());
        self.give_back(attempt, outcome, sim);
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&number), worker) else { return };
        let flows = matches!(job.stage, Stage::Runs { flows: true, .. });
        job.attempts -= 1;
        if flows || job.attempts == 0 {
            return self.end(number, false, sim);
        }
        if outcome != Outcome::Overloaded {
            job.tried.push(worker);
        }
        job.stage = Stage::Pauses;
        let pause = sim.millis(0, 100);
        sim.after(pause, self.timer(Timer::Again(number)));
    }

    pub(super) fn again(&mut self, number: u64, sim: &mut Sim) -> bool {
        let pauses = self.jobs.get(&number).is_some_and(|job| job.stage == Stage::Pauses);
        if pauses {
            self.seek(number, sim);
        }
        pauses
    }

    /// The client has waited long enough for a beginning.
    pub(super) fn deadline(&mut self, number: u64, sim: &mut Sim) -> bool {
        let waits = self.jobs.get(&number).is_some_and(|job| !matches!(job.stage, Stage::Runs { flows: true, .. }));
        if waits {
            self.let_go(number, Outcome::Failed, sim);
        }
        waits
    }

    /// The client goes away.
    pub(super) fn client_leaves(&mut self, number: u64, sim: &mut Sim) -> bool {
        let is_there = self.jobs.contains_key(&number);
        if is_there {
            sim.note(self.actor(), "loses the client of", [number, 0]);
            self.let_go(number, Outcome::Cancelled, sim);
        }
        is_there
    }

    /// All clients go away.
    pub(super) fn all_clients_leave(&mut self, sim: &mut Sim) {
        for number in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.client_leaves(number, sim);
        }
    }

    fn let_go(&mut self, number: u64, outcome: Outcome, sim: &mut Sim) {
        match self.jobs.get(&number).map(|job| job.stage) {
            Some(Stage::Asks(id)) => self.abandon(id, sim),
            Some(Stage::Runs { attempt, .. }) => {
                self.break_off(attempt, sim);
                self.give_back(attempt, outcome, sim);
            }
            Some(Stage::Pauses) | None => {}
        }
        self.end(number, false, sim);
    }

    fn break_off(&self, attempt: u64, sim: &mut Sim) {
        if let Some(holding) = self.held.get(&attempt) {
            self.cancel(attempt, holding, sim);
        }
    }

    /// Closes the connection to a worker, after what was sent over it.
    fn cancel(&self, attempt: u64, holding: &Holding, sim: &mut Sim) {
        let delay = sim.millis(0, 2);
        let at = holding.arrives.max(sim.now) + delay;
        let to = Actor::Worker(number_of(&holding.worker));
        sim.at(at, Event::Deliver(to, Wire::Cancel { attempt, from: Some(self.run()) }));
    }

    fn give_back(&mut self, attempt: u64, outcome: Outcome, sim: &mut Sim) {
        if let Some(holding) = self.held.remove(&attempt) {
            self.release(holding.ticket, outcome, sim);
        }
    }

    fn release(&mut self, ticket: TicketId, outcome: Outcome, sim: &mut Sim) {
        let release = Release { ticket, outcome, ttft_ms: None, tokens: None };
        if self.by_http {
            self.ended.push(release);
            self.flush_after(Duration::from_millis(50), sim);
        } else if matches!(self.line, Line::Up(_)) {
            self.say(Ask::Release(release), false, sim);
        }
    }

    fn end(&mut self, number: u64, answered: bool, sim: &mut Sim) {
        if self.jobs.remove(&number).is_some() {
            sim.note(self.actor(), "ends", [number, answered.into()]);
            let ended = sim.clients.end(number, answered);
            sim.claim(ended);
        }
    }
}

impl Holding {
    fn told(&self) -> Held {
        Held { ticket: self.ticket, worker: self.worker.clone(), model: self.model.to_owned(), key: None }
    }
}

impl Job {
    fn dispatch(&self, gateway: GatewayId, wait: Duration, left: Duration) -> Dispatch {
        Dispatch {
            priority: self.priority,
            wait_ms: millis(wait),
            deadline_ms: Some(millis(left)),
            key: self.key.map(str::to_owned),
            key_priority: self.key_priority,
            exclude: self.tried.clone(),
            affinity: self.affinity,
            ..Dispatch::new(gateway, self.model)
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("it is short")
}

fn no_controller() -> Problem {
    Problem::new(Kind::NoWorker, "the controller does not answer")
}

/// The index of a worker, from its name.
pub(super) fn number_of(worker: &WorkerId) -> usize {
    worker.as_str()[1..].parse().expect("all are called so")
}
