//! The world: its actors, and what happens to them next.
//!
//! Storms and calms take turns. In a storm clients ask and everything goes wrong; then it all heals, nobody asks any
//! more, and when leases and a few heartbeats have passed the controller must count what is true.

use std::time::{Duration, Instant};

use muster_shared::control::{Capacity, ModelCard};
use rand::RngExt as _;

use super::controller::Controller;
use super::faults::{self, Fault};
use super::gateway::Gateway;
use super::job::Job;
use super::network::{End, Weather};
use super::sim::Sim;
use super::wire::{Wire, Work};
use super::worker::Worker;
use super::{Actor, Event, MODELS, Timer};
use crate::config::{Config, PolicyName};

/// Time after a storm in which everything becomes true again: requests end, leases of the dead end, three heartbeats.
const HEALING: Duration = Duration::from_secs(110);
/// For so long after a storm clients may still leave by themselves.
const RESTLESS: Duration = Duration::from_secs(30);
/// Mean time that a worker takes for a request, in milliseconds.
const MEAN: u64 = 760;
/// One of so many events is followed by a look whether a client is kept waiting.
const SAMPLE: u64 = 64;

/// All actors, and how they fare.
#[derive(Debug)]
pub(super) struct World {
    pub(super) sim: Sim,
    config: Config,
    pub(super) controller: Option<Controller>,
    controllers: u64,
    /// Until when the controller stands still.
    pub(super) stands_until: Instant,
    pub(super) workers: Vec<Worker>,
    pub(super) gateways: Vec<Gateway>,
    /// Since when it is calm.
    pub(super) calm_since: Option<Instant>,
    /// Numbers the storms.
    pub(super) storm: u64,
    /// Mean time between two requests of a gateway's clients, in milliseconds.
    arrivals: u64,
    /// Without faults, from the beginning to the end.
    is_fair: bool,
    /// How often the controller was found to count what is true.
    pub(super) confirmed: u64,
}

/// A broken rule, with what led to it.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

impl World {
    /// A world that follows from its seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut sim = Sim::new(seed);
        let policies: Vec<PolicyName> = PolicyName::all().collect();
        let policy = policies[sim.index(policies.len())];
        let mut config = Config { policy, ..Config::default() };
        config.queue.limit = [4, 16, 64][sim.index(3)];
        config.queue.max_wait = Duration::from_secs(8);
        let workers = 3 + sim.index(5);
        let workers = (0..workers).map(|index| Worker::new(index, models(index, &mut sim))).collect();
        let gateways = 2 + sim.index(3);
        let gateways = (0..gateways).map(|index| Gateway::new(index, index > 0 && sim.chance(0.4))).collect();
        let (stands_until, is_fair) = (sim.now, false);
        let mut world = Self {
            sim,
            config,
            controller: None,
            controllers: 0,
            stands_until,
            workers,
            gateways,
            calm_since: None,
            storm: 0,
            arrivals: 100,
            is_fair,
            confirmed: 0,
        };
        world.begin();
        world
    }

    /// One in which nothing goes wrong, and nobody goes past the controller or leaves.
    pub(super) fn fair(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.is_fair = true;
        world.calm();
        world.rise();
        world
    }

    fn begin(&mut self) {
        self.start_controller();
        for index in 0..self.workers.len() {
            let delay = self.sim.millis(0, 3000);
            self.sim.after(delay, Event::Timer(Actor::Worker(index), Timer::Start));
        }
        for index in 0..self.gateways.len() {
            self.sim.after(Duration::ZERO, Event::Timer(Actor::Gateway(index), Timer::Start));
        }
        self.rise();
    }

    /// Lets so many events happen.
    pub(super) fn run(&mut self, events: u64) -> Result<(), Violation> {
        let last = self.sim.trace.events + events;
        while self.sim.trace.events < last {
            self.step()?;
        }
        Ok(())
    }

    /// Lets all clients leave, and everything come to rest.
    pub(super) fn end(&mut self) -> Result<(), Violation> {
        self.calm();
        self.gateways.iter_mut().for_each(|gateway| gateway.all_clients_leave(&mut self.sim));
        let confirmed = self.confirmed;
        while self.confirmed == confirmed {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        let event = self.sim.next();
        self.sim.trace.events += u64::from(self.happen(event));
        if self.sim.trace.events.is_multiple_of(SAMPLE) {
            let checked = self.sim.clients.check(self.sim.now);
            self.sim.claim(checked);
        }
        match self.sim.violation.take() {
            Some(why) => Err(Violation(format!("{why}\n{}", self.sim.trace))),
            None => Ok(()),
        }
    }

    /// Tells whether it was an event at all, and not the timer of something that is over.
    fn happen(&mut self, event: Event) -> bool {
        if self.sim.now < self.stands_until && event.is_for_the_controller() {
            self.sim.at(self.stands_until, event);
            return false;
        }
        match event {
            Event::Deliver(to, wire) => self.deliver(to, wire),
            Event::LinkEnds(link, end) => self.on_link_end(link, end),
            Event::Timer(Actor::Controller, timer) => self.controller_timer(timer),
            Event::Timer(Actor::Worker(index), timer) => self.worker_timer(index, timer),
            Event::Timer(Actor::Gateway(index), timer) => self.gateway_timer(index, timer),
            Event::Timer(Actor::World, timer) => unreachable!("the world has no timer: {timer:?}"),
            Event::Arrive { gateway, storm } => self.arrive(gateway, storm),
            Event::Strike(fault, storm) => storm == self.storm && faults::strike(self, fault),
            Event::Heal(one, other) => {
                self.sim.heal(one, other);
                true
            }
            Event::BypassLeaves { worker, attempt } => {
                if self.is_resting() {
                    self.sim.after(HEALING, Event::BypassLeaves { worker, attempt });
                    return false;
                }
                self.workers[worker].on_cancel(attempt, &mut self.sim);
                true
            }
            Event::Calm(storm) => {
                let is_due = storm == self.storm && self.calm_since.is_none();
                if is_due {
                    self.calm();
                }
                is_due
            }
            Event::Confirm(storm) => {
                let is_due = storm == self.storm;
                if is_due {
                    self.confirm();
                    self.rise();
                }
                is_due
            }
        }
    }

    fn deliver(&mut self, to: Actor, wire: Wire) -> bool {
        let sim = &mut self.sim;
        match (to, wire) {
            (Actor::Controller, wire) => {
                let link = match &wire {
                    Wire::Open { link } | Wire::Asks { link, .. } => Some(*link),
                    _ => None,
                };
                let is_vouched = vouches(&self.workers, &wire, sim);
                match &mut self.controller {
                    Some(controller) if link.is_none_or(|link| sim.network.is_open(link, End::Controller)) => {
                        controller.is_vouched = is_vouched;
                        controller.hear(wire, sim);
                    }
                    Some(_) => return false,
                    None => {
                        if let Some(link) = link.filter(|&link| sim.network.is_open(link, End::Controller)) {
                            sim.close_link(link, End::Controller);
                        }
                    }
                }
            }
            (Actor::Worker(index), Wire::Lease { to, answer }) => self.workers[index].on_lease(to, &answer, sim),
            (Actor::Worker(index), Wire::Beaten { to, answer }) => self.workers[index].on_beaten(to, &answer, sim),
            (Actor::Worker(index), Wire::Work(work)) => self.workers[index].on_work(work, sim),
            (Actor::Worker(index), Wire::Cancel { attempt, from }) => {
                let cut = from.is_some_and(|from| sim.network.is_cut(Actor::Gateway(from.index), to));
                if cut {
                    sim.after(Duration::from_secs(1), Event::Deliver(to, Wire::Cancel { attempt, from }));
                    return false;
                }
                self.workers[index].on_cancel(attempt, sim);
            }
            (Actor::Gateway(index), Wire::Opened { link }) if sim.network.is_open(link, End::Gateway) => {
                self.gateways[index].on_opened(link, sim);
            }
            (Actor::Gateway(index), Wire::Tells { link, tells }) if sim.network.is_open(link, End::Gateway) => {
                tells.into_iter().for_each(|tell| self.gateways[index].on_tell(link, tell, sim));
            }
            (Actor::Gateway(index), Wire::Answer { to, call, answer }) => {
                self.gateways[index].on_answer(to, call, answer, sim);
            }
            (Actor::Gateway(index), Wire::Said { to, attempt, word }) => {
                self.gateways[index].on_said(to, attempt, word, sim);
            }
            _ => return false, // over a link that is closed, or of no more interest
        }
        true
    }

    fn on_link_end(&mut self, link: u64, end: End) -> bool {
        if !self.sim.network.is_open(link, end) {
            return false;
        }
        match (end, &mut self.controller) {
            (End::Gateway, _) => {
                self.gateways.iter_mut().for_each(|gateway| gateway.on_link_end(link, &mut self.sim));
            }
            (End::Controller, Some(controller)) => controller.on_link_end(link, &mut self.sim),
            (End::Controller, None) => self.sim.close_link(link, End::Controller),
        }
        true
    }

    fn controller_timer(&mut self, timer: Timer) -> bool {
        let life = self.controller.as_ref().map_or(0, |controller| controller.life);
        match (timer, &mut self.controller) {
            (Timer::Start, None) => self.start_controller(),
            (Timer::Tick(of, at), Some(controller)) if of == life => return controller.tick(at, &mut self.sim),
            (Timer::Sweep(of), Some(controller)) if of == life => controller.sweep(&mut self.sim),
            _ => return false,
        }
        true
    }

    fn worker_timer(&mut self, index: usize, timer: Timer) -> bool {
        let (worker, sim) = (&mut self.workers[index], &mut self.sim);
        match timer {
            Timer::Start => worker.start(sim),
            Timer::Join(turn) => return worker.join_again(turn, sim),
            Timer::Beat(turn) => return worker.beat(turn, sim),
            Timer::Finish { life, attempt } => return worker.finish(life, attempt, sim),
            other => unreachable!("no timer of a worker: {other:?}"),
        }
        true
    }

    fn gateway_timer(&mut self, index: usize, timer: Timer) -> bool {
        if matches!(timer, Timer::ClientLeaves(_)) && self.is_resting() {
            self.sim.after(HEALING, Event::Timer(Actor::Gateway(index), timer));
            return false;
        }
        let (gateway, sim) = (&mut self.gateways[index], &mut self.sim);
        match timer {
            Timer::Start => gateway.start(sim),
            Timer::Connect(life) => return gateway.connect(life, sim),
            Timer::GiveUpOpening(link) => return gateway.give_up_opening(link, sim),
            Timer::Flush(life) => return gateway.flush(life, sim),
            Timer::Sync(life) => return gateway.sync(life, sim),
            Timer::AskLimit(job, id) => return gateway.ask_limit(job, id, sim),
            Timer::AttemptLimit(job, attempt) => return gateway.attempt_limit(job, attempt, sim),
            Timer::Again(job) => return gateway.again(job, sim),
            Timer::Deadline(job) => return gateway.deadline(job, sim),
            Timer::ClientLeaves(job) => return gateway.client_leaves(job, sim),
            Timer::Watch(job, attempt) => {
                let flows = gateway.attempt(job).is_some_and(|(made, worker)| {
                    let worker = &self.workers[super::gateway::number_of(worker)];
                    made == attempt && worker.has(attempt) && !sim.network.is_cut(worker.actor(), gateway.actor())
                });
                return gateway.watch(job, attempt, flows, sim);
            }
            other => unreachable!("no timer of a gateway: {other:?}"),
        }
        true
    }

    /// A client asks, and then another.
    fn arrive(&mut self, gateway: usize, storm: u64) -> bool {
        if storm != self.storm || self.calm_since.is_some() {
            return false;
        }
        let pause = self.sim.millis(1, self.arrivals * 2);
        self.sim.after(pause, Event::Arrive { gateway, storm });
        if !self.gateways[gateway].is_alive {
            return false;
        }
        let mut job = Job::any(&mut self.sim);
        if self.is_fair {
            job.leaves = None;
            job.takes = Some(job.takes.unwrap_or(2000));
            job.deadline = self.sim.now + Duration::from_secs(30);
        }
        let number = self.sim.serial();
        self.gateways[gateway].accept(number, job, &mut self.sim);
        true
    }

    /// A request goes straight to a worker, or to one that FastChat's interface names.
    pub(super) fn bypass(&mut self, index: usize, address: String, model: &str) {
        let attempt = self.sim.serial();
        let is_endless = self.sim.chance(0.05);
        let takes = (!is_endless).then(|| self.sim.rng.random_range(50..4000));
        let work = Work { attempt, from: None, address, model: model.to_owned(), takes, fails: false };
        self.sim.after(Duration::from_millis(1), Event::Deliver(Actor::Worker(index), Wire::Work(work)));
        let leaves = self.sim.millis(20_000, 300_000);
        self.sim.after(leaves, Event::BypassLeaves { worker: index, attempt });
    }

    pub(super) fn start_controller(&mut self) {
        if self.controller.is_none() {
            self.controllers += 1;
            self.controller = Some(Controller::new(&self.config, self.controllers, &mut self.sim));
        }
    }

    /// Whether everything shall come to rest.
    fn is_resting(&self) -> bool {
        self.calm_since.is_some_and(|since| self.sim.now - since > RESTLESS)
    }

    /// A storm rises; now and then only clients come.
    fn rise(&mut self) {
        self.storm += 1;
        self.calm_since = None;
        let storm = self.storm;
        // Of what the fleet can do, in per cent.
        let wanted = [40, 80, 110, 160][self.sim.index(4)];
        let slots = self.workers.iter().flat_map(|worker| &worker.models).filter_map(|card| card.capacity);
        let slots: u64 = slots.map(|capacity| u64::from(capacity.running)).sum();
        self.arrivals = MEAN * self.gateways.len() as u64 * 100 / (slots.max(1) * wanted);
        for gateway in 0..self.gateways.len() {
            let pause = self.sim.millis(0, 200);
            self.sim.after(pause, Event::Arrive { gateway, storm });
        }
        let lasts = self.sim.millis(20_000, 150_000);
        self.sim.after(lasts, Event::Calm(storm));
        self.sim.note(Actor::World, "storm", [storm, self.arrivals]);
        if self.is_fair || self.sim.chance(0.15) {
            return;
        }
        self.sim.network.weather = Weather {
            loss: [0.0, 0.02, 0.15][self.sim.index(3)],
            duplication: [0.0, 0.02, 0.15][self.sim.index(3)],
            delay: [0.0, 0.02, 0.1][self.sim.index(3)],
        };
        for fault in Fault::ALL {
            faults::strike_later(self, fault);
        }
    }

    /// The storm is over: everyone is back, and hears of everyone.
    fn calm(&mut self) {
        self.calm_since = Some(self.sim.now);
        self.storm += 1;
        self.sim.note(Actor::World, "calm", [self.storm, 0]);
        self.sim.network.weather = Weather::default();
        self.sim.heal_all();
        let soon = Duration::from_millis(500);
        self.sim.after(soon, Event::Timer(Actor::Controller, Timer::Start));
        for index in 0..self.workers.len() {
            self.sim.after(soon, Event::Timer(Actor::Worker(index), Timer::Start));
        }
        for index in 0..self.gateways.len() {
            self.sim.after(soon, Event::Timer(Actor::Gateway(index), Timer::Start));
        }
        self.sim.after(HEALING, Event::Confirm(self.storm));
    }
}

/// Whether the process at the address of a registration says that it is the one; some cannot be asked.
fn vouches(workers: &[Worker], wire: &Wire, sim: &mut Sim) -> bool {
    let Wire::Register { from, registration } = wire else { return false };
    let worker = &workers[from.index];
    worker.is_alive
        && worker.incarnation == registration.incarnation
        && worker.address == registration.address
        && !sim.network.is_cut(worker.actor(), Actor::Controller)
        && sim.chance(0.7)
}

/// Models with room of their own each, as a worker may offer them.
pub(super) fn models(index: usize, sim: &mut Sim) -> Vec<ModelCard> {
    let both = sim.chance(0.5);
    let offered = MODELS.iter().enumerate().filter(|(nth, _)| both || nth % MODELS.len() == index % MODELS.len());
    let names: Vec<&str> = offered.map(|(_, &name)| name).collect();
    let card = |name: &str, sim: &mut Sim| {
        let capacity = Capacity { running: sim.rng.random_range(1..4), waiting: sim.rng.random_range(0..2) };
        let is_unlimited = sim.chance(0.03);
        ModelCard { capacity: (!is_unlimited).then_some(capacity), ..ModelCard::bare(name.to_owned()) }
    };
    names.into_iter().map(|name| card(name, sim)).collect()
}
