//! A gateway: asks for workers, sends requests to them, says how they ended; over a link, or over HTTP.
//!
//! It does what `api-gateway/src/upstream/` does, less all that has no bearing on the controller.

mod jobs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::control::{Grant, Held, Outcome, Release, Releases, Renew};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::link::{Ask, Process, Tell};
use muster_shared::problem::{Kind, Problem};
use rand::RngExt as _;

use super::job::{Job, Stage};
use super::network::End;
use super::sim::Sim;
use super::view::{Trust, View};
use super::wire::{Run, Wire};
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
        sim.say(
            link,
            End::Gateway,
            Wire::Asks { link, asks: vec![Ask::Hello { gateway: self.id, process: process(self.id), held }] },
        );
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
}

impl Holding {
    fn told(&self) -> Held {
        Held { ticket: self.ticket, worker: self.worker.clone(), model: self.model.to_owned(), key: None }
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

/// What a gateway says of its process.
fn process(id: GatewayId) -> Process {
    Process { id, address: "http://gateway".to_owned(), version: "0".to_owned() }
}
