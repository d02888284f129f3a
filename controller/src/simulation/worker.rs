//! A worker: registers, beats with the truth, serves, refuses, fails, dies.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_shared::control::{Capacity, Heartbeat, HeartbeatReply, Lease, Leave, ModelCard, ModelLoad, Registration};
use muster_shared::id::WorkerId;
use muster_shared::problem::Problem;
use muster_shared::transport::Transport;

use super::sim::Sim;
use super::wire::{Run, Wire, Word, Work};
use super::{Actor, Event, HEARTBEAT, Timer};

/// First and longest pause between two attempts to register.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// When an attempt to register is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// One worker, in all its lives.
#[derive(Debug)]
pub(super) struct Worker {
    index: usize,
    pub(super) id: WorkerId,
    pub(super) life: u64,
    pub(super) is_alive: bool,
    pub(super) address: String,
    pub(super) incarnation: u64,
    pub(super) models: Vec<ModelCard>,
    pub(super) drains: bool,
    /// What it has in hand, by attempt.
    requests: BTreeMap<u64, Request>,
    joined: bool,
    sequence: u64,
    /// Numbers the loops of registering and beating, of which one runs.
    turn: u64,
    pause: Duration,
    /// Says less than it has, in its heartbeats. Only where the checks shall be seen to fail.
    pub(super) lies: bool,
    /// Requests that it had no room for.
    pub(super) refusals: u64,
}

#[derive(Debug)]
struct Request {
    model: String,
    from: Option<Run>,
    takes: Option<u64>,
    fails: bool,
    runs: bool,
}

impl Worker {
    pub(super) fn new(index: usize, models: Vec<ModelCard>) -> Self {
        Self {
            index,
            id: WorkerId::new(format!("w{index}")),
            life: 0,
            is_alive: false,
            address: format!("http://w{index}"),
            incarnation: 0,
            models,
            drains: false,
            requests: BTreeMap::new(),
            joined: false,
            sequence: 0,
            turn: 0,
            pause: BACKOFF[0],
            lies: false,
            refusals: 0,
        }
    }

    pub(super) fn actor(&self) -> Actor {
        Actor::Worker(self.index)
    }

    fn run(&self) -> Run {
        Run { index: self.index, life: self.life }
    }

    /// Requests of a model, or of all.
    pub(super) fn load(&self, model: Option<&str>) -> u32 {
        let of_model = |request: &&Request| model.is_none_or(|model| request.model == model);
        u32::try_from(self.requests.values().filter(of_model).count()).expect("there are few")
    }

    /// Whether it works on that.
    pub(super) fn has(&self, attempt: u64) -> bool {
        self.requests.contains_key(&attempt)
    }

    /// A process starts. Its machine's clock may have been set back meanwhile, or it may have got another address.
    pub(super) fn start(&mut self, sim: &mut Sim) {
        if self.is_alive {
            return;
        }
        self.life += 1;
        self.is_alive = true;
        self.drains = false;
        self.sequence = 0;
        let clock = sim.wall_clock();
        self.incarnation = if sim.chance(0.2) { clock - 90_000 } else { clock };
        if sim.chance(0.3) {
            self.address = format!("http://w{}:{}", self.index, self.life);
        }
        sim.note(self.actor(), "starts, incarnation", [self.incarnation, self.life]);
        self.join(sim);
    }

    /// The process dies, and its connections with it.
    pub(super) fn crash(&mut self, sim: &mut Sim) {
        if !self.is_alive {
            return;
        }
        sim.note(self.actor(), "dies with requests", [self.load(None).into(), self.life]);
        self.stop();
        for (attempt, request) in std::mem::take(&mut self.requests) {
            self.tell(sim, attempt, request.from, Word::Failed);
        }
    }

    fn stop(&mut self) {
        self.is_alive = false;
        self.joined = false;
        self.turn += 1;
    }

    /// Takes no more, and leaves after the last request.
    pub(super) fn drain(&mut self, sim: &mut Sim) {
        if !self.is_alive || self.drains {
            return;
        }
        sim.note(self.actor(), "drains with requests", [self.load(None).into(), 0]);
        self.drains = true;
        sim.post(self.actor(), Actor::Controller, Wire::Drain(self.farewell()));
        self.leave_if_idle(sim);
    }

    fn leave_if_idle(&mut self, sim: &mut Sim) {
        if self.is_alive && self.drains && self.requests.is_empty() {
            sim.note(self.actor(), "leaves", [self.life, 0]);
            sim.post(self.actor(), Actor::Controller, Wire::Deregister(self.farewell()));
            self.stop();
            let pause = if sim.chance(0.5) { sim.millis(20, 1000) } else { sim.millis(1000, 20_000) };
            sim.after(pause, Event::Timer(self.actor(), Timer::Start));
        }
    }

    fn farewell(&self) -> Leave {
        Leave { id: self.id.clone(), incarnation: Some(self.incarnation) }
    }

    /// Other models from now on.
    pub(super) fn change_models(&mut self, models: Vec<ModelCard>, sim: &mut Sim) {
        if !self.is_alive || self.drains {
            return;
        }
        sim.note(self.actor(), "changes its models", [models.len() as u64, 0]);
        self.models = models;
        self.join(sim);
    }

    /// Registers, and begins the loop that tries it again.
    fn join(&mut self, sim: &mut Sim) {
        self.joined = false;
        self.pause = BACKOFF[0];
        self.turn += 1;
        self.register(sim);
    }

    fn register(&mut self, sim: &mut Sim) {
        let registration = Registration {
            id: self.id.clone(),
            address: self.address.clone(),
            incarnation: self.incarnation,
            transport: Transport::Http,
            models: self.models.clone(),
            speed: 1.0 + self.index as f64 / 4.0,
            version: String::new(),
            capabilities: None,
        };
        sim.post(self.actor(), Actor::Controller, Wire::Register { from: self.run(), registration });
        sim.after(PATIENCE, Event::Timer(self.actor(), Timer::Join(self.turn)));
    }

    /// No answer came, or none that was liked.
    pub(super) fn join_again(&mut self, turn: u64, sim: &mut Sim) -> bool {
        if turn != self.turn || !self.is_alive || self.joined {
            return false;
        }
        self.turn += 1;
        self.register(sim);
        true
    }

    pub(super) fn on_lease(&mut self, to: Run, answer: &Result<Lease, Problem>, sim: &mut Sim) {
        if to != self.run() || !self.is_alive || self.joined {
            return;
        }
        sim.note(self.actor(), "may join", [answer.is_ok().into(), 0]);
        self.turn += 1;
        match answer {
            Ok(_) => {
                self.joined = true;
                self.beat_later(sim);
            }
            Err(_) => {
                sim.after(self.pause, Event::Timer(self.actor(), Timer::Join(self.turn)));
                self.pause = (self.pause * 2).min(BACKOFF[1]);
            }
        }
    }

    fn beat_later(&mut self, sim: &mut Sim) {
        let millis = u64::try_from(HEARTBEAT.as_millis()).expect("it is short");
        let pause = sim.millis(millis * 9 / 10, millis);
        sim.after(pause, Event::Timer(self.actor(), Timer::Beat(self.turn)));
    }

    /// Tells the truth about its load.
    pub(super) fn beat(&mut self, turn: u64, sim: &mut Sim) -> bool {
        if turn != self.turn || !self.is_alive || !self.joined {
            return false;
        }
        self.sequence += 1;
        let load: Vec<ModelLoad> = self.models.iter().map(|card| self.load_of(&card.name)).collect();
        let beat = Heartbeat {
            load: Some(load),
            sequence: Some(self.sequence),
            ..Heartbeat::bare(self.id.clone(), self.incarnation)
        };
        sim.note(self.actor(), "beats", [self.sequence, self.load(None).into()]);
        sim.post(self.actor(), Actor::Controller, Wire::Beat { from: self.run(), beat });
        self.beat_later(sim);
        true
    }

    fn load_of(&self, model: &str) -> ModelLoad {
        let running = self.requests.values().filter(|request| request.model == model && request.runs).count();
        let running = u32::try_from(running).expect("there are few");
        let waiting = self.load(Some(model)) - running;
        let running = if self.lies { running.saturating_sub(1) } else { running };
        ModelLoad { model: model.to_owned(), running, waiting }
    }

    pub(super) fn on_beaten(&mut self, to: Run, answer: &Result<HeartbeatReply, Problem>, sim: &mut Sim) {
        if to == self.run() && self.is_alive && self.joined && matches!(answer, Ok(HeartbeatReply::Unknown)) {
            sim.note(self.actor(), "is not known", [0, 0]);
            self.join(sim);
        }
    }

    /// A request arrives, at whatever process has the address.
    pub(super) fn on_work(&mut self, work: Work, sim: &mut Sim) {
        let Work { attempt, from, address, model, takes, fails } = work;
        sim.note(self.actor(), "is asked", [attempt, self.load(None).into()]);
        if !self.is_alive || address != self.address {
            return self.tell(sim, attempt, from, Word::Unreachable);
        }
        let Some(card) = self.models.iter().find(|card| card.name == model) else {
            return self.tell(sim, attempt, from, Word::Unknown);
        };
        if self.drains || card.capacity.is_some_and(|capacity| self.load(Some(&model)) >= capacity.total()) {
            self.refusals += 1;
            return self.tell(sim, attempt, from, Word::Full);
        }
        let request = Request { model: model.clone(), from, takes, fails, runs: false };
        self.requests.insert(attempt, request);
        self.run_next(&model, sim);
    }

    /// Begins with those that have waited longest, as far as there is room.
    fn run_next(&mut self, model: &str, sim: &mut Sim) {
        let capacity = self.models.iter().find(|card| card.name == model).and_then(|card| card.capacity);
        let most = capacity.map_or(usize::MAX, |Capacity { running, .. }| running as usize);
        let of_model = |request: &Request| request.model == model;
        let running = self.requests.values().filter(|request| of_model(request) && request.runs).count();
        let waiting = self.requests.iter_mut().filter(|(_, request)| of_model(request) && !request.runs);
        let mut begun = Vec::new();
        for (&attempt, request) in waiting.take(most.saturating_sub(running)) {
            request.runs = true;
            begun.push((attempt, request.from, request.takes));
        }
        for (attempt, from, takes) in begun {
            self.tell(sim, attempt, from, Word::Began);
            if let Some(millis) = takes {
                let finish = Timer::Finish { life: self.life, attempt };
                sim.after(Duration::from_millis(millis), Event::Timer(self.actor(), finish));
            }
        }
    }

    pub(super) fn finish(&mut self, life: u64, attempt: u64, sim: &mut Sim) -> bool {
        if life != self.life || !self.is_alive {
            return false;
        }
        let Some(request) = self.requests.remove(&attempt) else { return false };
        sim.note(self.actor(), "finishes", [attempt, request.fails.into()]);
        self.tell(sim, attempt, request.from, if request.fails { Word::Failed } else { Word::Done });
        self.run_next(&request.model, sim);
        self.leave_if_idle(sim);
        true
    }

    /// The client's connection is closed.
    pub(super) fn on_cancel(&mut self, attempt: u64, sim: &mut Sim) {
        if let Some(request) = self.requests.remove(&attempt) {
            sim.note(self.actor(), "cancels", [attempt, 0]);
            self.run_next(&request.model, sim);
            self.leave_if_idle(sim);
        }
    }

    fn tell(&self, sim: &mut Sim, attempt: u64, from: Option<Run>, word: Word) {
        let Some(to) = from else { return };
        let gateway = Actor::Gateway(to.index);
        if sim.network.is_cut(self.actor(), gateway) {
            return sim.note(gateway, "hears nothing of", [attempt, 0]);
        }
        let delay = sim.millis(0, 2);
        sim.after(delay, Event::Deliver(gateway, Wire::Said { to, attempt, word }));
    }
}
