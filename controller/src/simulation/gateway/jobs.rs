//! What becomes of each client's request: asked for, sent, tried again, ended once.

use std::time::Duration;

use muster_shared::control::{Dispatch, Grant, Outcome, Release};
use muster_shared::id::{GatewayId, TicketId};
use muster_shared::link::Ask;
use muster_shared::problem::{Kind, Problem};
use rand::RngExt as _;

use super::super::job::{Job, Stage};
use super::super::sim::Sim;
use super::super::view::Trust;
use super::super::wire::{Run, Wire, Word, Work};
use super::super::{Actor, Event, Timer};
use super::{CONNECT, DISPATCH_WAIT, FIRST_WORD, Gateway, Holding, Line, WATCH, millis, no_controller, number_of};

impl Gateway {
    /// A client's request arrives.
    pub(in crate::simulation) fn accept(&mut self, number: u64, job: Job, sim: &mut Sim) {
        sim.note(self.actor(), "accepts", [number, job.model.len() as u64]);
        sim.clients.begin(number, job.deadline);
        sim.at(job.deadline, self.timer(Timer::Deadline(number)));
        if let Some(leaves) = job.leaves {
            sim.at(leaves, self.timer(Timer::ClientLeaves(number)));
        }
        self.jobs.insert(number, job);
        self.seek(number, sim);
    }

    pub(super) fn seek(&mut self, number: u64, sim: &mut Sim) {
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
    pub(in crate::simulation) fn ask_limit(&mut self, number: u64, id: u32, sim: &mut Sim) -> bool {
        if self.asked.get(&id) != Some(&number) {
            return false;
        }
        self.abandon(id, sim);
        self.view.note_silence();
        self.choose_from_view(number, Trust::Always, no_controller(), sim);
        true
    }

    pub(super) fn abandon(&mut self, id: u32, sim: &mut Sim) {
        self.asked.remove(&id);
        sim.note(self.actor(), "abandons", [id.into(), 0]);
        if self.by_http {
            sim.post(self.actor(), Actor::Controller, Wire::HangUp { from: self.run(), call: id });
        } else if matches!(self.line, Line::Up(_)) {
            self.say(Ask::Abandon { id }, true, sim);
        }
    }

    pub(super) fn on_refusal(&mut self, number: u64, problem: Problem, sim: &mut Sim) {
        if matches!(problem.kind, Kind::UnknownModel | Kind::NoWorker) && !self.by_http {
            return self.choose_from_view(number, Trust::AfterRestart, problem, sim);
        }
        self.refuse(number, problem, sim);
    }

    /// A patient request comes back to a full fleet; any other ends.
    pub(super) fn refuse(&mut self, number: u64, problem: Problem, sim: &mut Sim) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let pause = Duration::from_millis(problem.retry_after_ms.unwrap_or(0).clamp(20, 1000));
        if job.is_patient && problem.kind == Kind::Overloaded && sim.now + pause < job.deadline {
            job.stage = Stage::Pauses;
            sim.after(pause, self.timer(Timer::Again(number)));
        } else {
            self.end(number, false, sim);
        }
    }

    pub(super) fn try_view(&mut self, number: u64, trust: Trust, sim: &mut Sim) -> bool {
        let Some(job) = self.jobs.get(&number) else { return false };
        let Some((worker, address)) = self.view.choose(job.model, &job.tried, trust, sim) else { return false };
        let ticket = TicketId::from_random(sim.rng.random());
        self.unclaimed.push(ticket);
        sim.note(self.actor(), "dispatches by itself", [number, 0]);
        let transport = muster_shared::transport::Transport::Http;
        self.send(number, Grant { ticket, worker, address, transport, model: None }, sim);
        true
    }

    pub(super) fn choose_from_view(&mut self, number: u64, trust: Trust, problem: Problem, sim: &mut Sim) {
        if self.by_http || !self.try_view(number, trust, sim) {
            self.refuse(number, problem, sim);
        }
    }

    /// Sends a request to its worker.
    pub(super) fn send(&mut self, number: u64, grant: Grant, sim: &mut Sim) {
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

    pub(in crate::simulation) fn on_said(&mut self, to: Run, attempt: u64, word: Word, sim: &mut Sim) {
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
    pub(in crate::simulation) fn attempt_limit(&mut self, number: u64, attempt: u64, sim: &mut Sim) -> bool {
        let waits = Stage::Runs { attempt, flows: false };
        if self.jobs.get(&number).is_none_or(|job| job.stage != waits) {
            return false;
        }
        self.break_off(attempt, sim);
        self.fail(number, attempt, Outcome::Failed, sim);
        true
    }

    /// Sees whether an answer still flows.
    pub(in crate::simulation) fn watch(&mut self, number: u64, attempt: u64, flows: bool, sim: &mut Sim) -> bool {
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
    pub(super) fn fail(&mut self, number: u64, attempt: u64, outcome: Outcome, sim: &mut Sim) {
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

    pub(in crate::simulation) fn again(&mut self, number: u64, sim: &mut Sim) -> bool {
        let pauses = self.jobs.get(&number).is_some_and(|job| job.stage == Stage::Pauses);
        if pauses {
            self.seek(number, sim);
        }
        pauses
    }

    /// The client has waited long enough for a beginning.
    pub(in crate::simulation) fn deadline(&mut self, number: u64, sim: &mut Sim) -> bool {
        let waits = self.jobs.get(&number).is_some_and(|job| !matches!(job.stage, Stage::Runs { flows: true, .. }));
        if waits {
            self.let_go(number, Outcome::Failed, sim);
        }
        waits
    }

    /// The client goes away.
    pub(in crate::simulation) fn client_leaves(&mut self, number: u64, sim: &mut Sim) -> bool {
        let is_there = self.jobs.contains_key(&number);
        if is_there {
            sim.note(self.actor(), "loses the client of", [number, 0]);
            self.let_go(number, Outcome::Cancelled, sim);
        }
        is_there
    }

    /// All clients go away.
    pub(in crate::simulation) fn all_clients_leave(&mut self, sim: &mut Sim) {
        for number in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.client_leaves(number, sim);
        }
    }

    pub(super) fn let_go(&mut self, number: u64, outcome: Outcome, sim: &mut Sim) {
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

    pub(super) fn break_off(&self, attempt: u64, sim: &mut Sim) {
        if let Some(holding) = self.held.get(&attempt) {
            self.cancel(attempt, holding, sim);
        }
    }

    /// Closes the connection to a worker, after what was sent over it.
    pub(super) fn cancel(&self, attempt: u64, holding: &Holding, sim: &mut Sim) {
        let delay = sim.millis(0, 2);
        let at = holding.arrives.max(sim.now) + delay;
        let to = Actor::Worker(number_of(&holding.worker));
        sim.at(at, Event::Deliver(to, Wire::Cancel { attempt, from: Some(self.run()) }));
    }

    pub(super) fn give_back(&mut self, attempt: u64, outcome: Outcome, sim: &mut Sim) {
        if let Some(holding) = self.held.remove(&attempt) {
            self.release(holding.ticket, outcome, sim);
        }
    }

    pub(super) fn release(&mut self, ticket: TicketId, outcome: Outcome, sim: &mut Sim) {
        let release = Release { ticket, outcome, ttft_ms: None, tokens: None };
        if self.by_http {
            self.ended.push(release);
            self.flush_after(Duration::from_millis(50), sim);
        } else if matches!(self.line, Line::Up(_)) {
            self.say(Ask::Release(release), false, sim);
        }
    }

    pub(super) fn end(&mut self, number: u64, answered: bool, sim: &mut Sim) {
        if self.jobs.remove(&number).is_some() {
            sim.note(self.actor(), "ends", [number, answered.into()]);
            let ended = sim.clients.end(number, answered);
            sim.claim(ended);
        }
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
