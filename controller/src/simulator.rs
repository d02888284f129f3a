//! A fleet in virtual time, to see what a policy makes of it: the controller is the one that is shipped, with its
//! registry, queue, breakers and tickets ([`crate::offline`]); workers and gateway are models of ours.
//!
//! ```text
//!   requests (drawn from the seed) ─▶ gateway ── ask, release ──▶ controller
//!                                        │                            ▲
//!                                        └── take, end ──▶ workers ───┘ heartbeats with load, speed and resources
//! ```
//!
//! * A **worker** runs up to 16 requests together and lets 48 wait, as ours do unless told otherwise. Those that run share
//!   it as our engine's do (`worker`): one alone is fastest, sixteen together do five times as much.
//! * The **gateway** waits 10 s for room, tries up to three workers, names those that failed, tells the outcome, and gives
//!   a worker up that has not begun after 120 s. Unlike the shipped one it begins broken answers anew instead of going on
//!   with them, has no budget of retries (a hundred a second always may, and there are fewer), and loses no time itself.
//! * **Heartbeats** come every five seconds, each worker's at its own phase. They tell what the shipped worker tells.
//!
//! Nothing here reads a clock, and all chance comes from the seed: the same seed gives the same figures. Requests are drawn
//! first, so every policy gets the same ones.

mod figures;
mod member;
mod requests;
mod scenario;
mod worker;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use muster_shared::control::{Dispatch, Grant, Outcome, Release};
use muster_shared::id::{GatewayId, TicketId, WorkerId};
use muster_shared::problem::{Kind, Problem};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

pub use figures::Figures;
use figures::Tally;
use member::Member;
use requests::Request;
use scenario::Arrivals;
pub use scenario::{Scenario, UnknownScenario};
use worker::{Attempt, Taken};

use crate::config::{Config, PolicyName};
use crate::dispatch::mix;
use crate::offline::Offline;

/// The only model.
const MODEL: &str = "m";
/// Longest wait for room, workers tried, and time to a worker's first token: the shipped gateway's.
const WAIT_MS: u64 = 10_000;
const ATTEMPTS: u32 = 3;
const FIRST_TOKEN: Duration = Duration::from_secs(120);
/// Longest pause before a second attempt, doubled for a third; drawn between nothing and this.
const BACKOFF: Duration = Duration::from_millis(10);
/// Time between two renewals of the gateway's tickets.
const RENEWAL: Duration = Duration::from_secs(2);

/// Runs so many requests of a scenario to their end.
///
/// # Errors
/// When the controller refuses one of the fleet's workers.
pub fn simulate(scenario: &Scenario, policy: PolicyName, requests: usize, seed: u64) -> Result<Figures, Problem> {
    let mut simulation = Simulation::new(scenario, policy, requests, seed)?;
    while !simulation.is_over() {
        simulation.advance()?;
    }
    Ok(simulation.figures())
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client wants this request answered.
    Arrival(usize),
    /// The gateway asks for a worker for it once more.
    Again(usize),
    /// A request at this worker ends, unless the worker's version has changed.
    End(usize, u64),
    /// The gateway waits no longer for the first token of this attempt.
    Silence(usize, u32),
    /// This worker beats.
    Beat(usize),
    /// The gateway renews its tickets.
    Renewal,
}

/// A request on its way.
#[derive(Debug, Default)]
struct Job {
    /// When its client sent it.
    sent: Duration,
    /// When it was asked for last.
    asked: Duration,
    /// Time in which it did not run: in the controller's queue, in those of workers, between attempts.
    waited: Duration,
    attempts: u32,
    tried: Vec<WorkerId>,
    place: Option<Place>,
}

/// Where a request is.
#[derive(Debug, Clone, Copy)]
struct Place {
    worker: usize,
    ticket: TicketId,
    granted: Duration,
    /// When it began to run.
    ran: Option<Duration>,
}

#[derive(Debug)]
struct Simulation {
    controller: Offline,
    start: Instant,
    now: Duration,
    heartbeat: Duration,
    gateway: GatewayId,
    members: Vec<Member>,
    numbers: HashMap<WorkerId, usize>,
    requests: Vec<Request>,
    jobs: Vec<Job>,
    /// Requests that a client takes when it is done with another.
    later: std::ops::Range<usize>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    scheduled: u64,
    /// Faults, phases and pauses.
    rng: StdRng,
    tally: Tally,
}

impl Simulation {
    fn new(scenario: &Scenario, policy: PolicyName, count: usize, seed: u64) -> Result<Self, Problem> {
        let start = Instant::now();
        let config = Config { policy, ..Config::default() };
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let mut simulation = Self {
            controller: Offline::new(&config, rng.random(), start),
            start,
            now: Duration::ZERO,
            heartbeat: config.lease.heartbeat,
            gateway: GatewayId::from_random(rng.random()),
            members: Vec::new(),
            numbers: HashMap::new(),
            requests: requests::draw(scenario, count, seed),
            jobs: (0..count).map(|_| Job::default()).collect(),
            later: 0..0,
            events: BinaryHeap::new(),
            scheduled: 0,
            rng,
            tally: Tally::default(),
        };
        simulation.enrol(scenario)?;
        let first = match scenario.arrivals {
            Arrivals::Clients(clients) => clients.min(count),
            Arrivals::Steady { .. } | Arrivals::Bursts { .. } => count,
        };
        simulation.later = first..count;
        for number in 0..first {
            simulation.schedule(simulation.requests[number].at, Event::Arrival(number));
        }
        simulation.schedule(RENEWAL, Event::Renewal);
        Ok(simulation)
    }

    /// Registers every worker.
    fn enrol(&mut self, scenario: &Scenario) -> Result<(), Problem> {
        for (number, machine) in scenario.machines.iter().enumerate() {
            let member = Member::new(number, machine);
            self.controller.register(member.registration(), self.start)?;
            self.numbers.insert(member.id.clone(), number);
            self.members.push(member);
            let phase = self.heartbeat.mul_f64(self.rng.random());
            self.schedule(phase, Event::Beat(number));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.tally.ended() == self.requests.len()
    }

    fn figures(mut self) -> Figures {
        self.members.iter_mut().for_each(|member| member.worker.advance(self.now));
        let workers: Vec<_> = self.members.iter().map(|member| &member.worker).collect();
        self.tally.figures(&workers, self.now)
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.scheduled += 1; // of two at the same time, the one scheduled first
        self.events.push(Reverse((at, self.scheduled, event)));
    }

    fn clock(&self) -> Instant {
        self.start + self.now
    }

    /// Lets the next thing happen, be it that someone's wait at the controller is over.
    fn advance(&mut self) -> Result<(), Problem> {
        let tick = self.controller.next_tick(self.clock()).map(|at| at.saturating_duration_since(self.start));
        let next = self.events.peek().map(|Reverse((at, ..))| *at);
        match (tick, next) {
            (Some(tick), next) if next.is_none_or(|next| tick < next) => {
                self.now = self.now.max(tick);
                self.controller.tick(self.clock());
            }
            _ => {
                let Some(Reverse((at, _, event))) = self.events.pop() else { return Ok(()) };
                self.now = at;
                self.happen(event)?;
            }
        }
        self.take_answers();
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Problem> {
        match event {
            Event::Arrival(number) => {
                self.jobs[number].sent = self.now;
                self.ask(number);
            }
            Event::Again(number) => self.ask(number),
            Event::End(worker, version) => self.end(worker, version),
            Event::Silence(number, attempt) => self.give_up(number, attempt),
            Event::Beat(worker) => self.beat(worker)?,
            Event::Renewal => {
                self.controller.renew(self.gateway, self.clock());
                self.schedule(self.now + RENEWAL, Event::Renewal);
            }
        }
        Ok(())
    }

    /// Asks the controller for a worker.
    fn ask(&mut self, number: usize) {
        let job = &mut self.jobs[number];
        job.asked = self.now;
        job.attempts += 1;
        let dispatch = Dispatch {
            affinity: self.requests[number].beginning.map(|(beginning, _)| mix(beginning as u64 + 1)),
            wait_ms: WAIT_MS,
            exclude: job.tried.clone(),
            ..Dispatch::new(self.gateway, MODEL)
        };
        self.controller.ask(number as u64, dispatch, self.clock());
    }

    /// Hears whatever the controller has answered, and acts upon it until it has no more to say.
    fn take_answers(&mut self) {
        loop {
            let answers = self.controller.take_answers();
            if answers.is_empty() {
                return;
            }
            for (number, answer) in answers {
                let number = number as usize;
                match answer {
                    Ok(grant) => self.start(number, &grant),
                    Err(problem) => self.fail(number, problem.kind),
                }
            }
        }
    }

    /// Sends a request to the worker it was given.
    fn start(&mut self, number: usize, grant: &Grant) {
        let Request { answer, beginning, .. } = self.requests[number];
        let worker = self.numbers[&grant.worker];
        let breaks = self.members[worker].breaks(self.now, &mut self.rng);
        self.jobs[number].place = Some(Place { worker, ticket: grant.ticket, granted: self.now, ran: None });
        match self.members[worker].worker.take(Attempt { number, answer, beginning, breaks }, self.now) {
            Taken::Runs => self.note_run(number),
            Taken::Waits => self.schedule(self.now + FIRST_TOKEN, Event::Silence(number, self.jobs[number].attempts)),
            Taken::Refused => self.attempt_failed(number, Outcome::Overloaded),
        }
        self.schedule_end(worker);
    }

    fn note_run(&mut self, number: usize) {
        let job = &mut self.jobs[number];
        job.waited += self.now - job.asked;
        if let Some(place) = &mut job.place {
            place.ran = Some(self.now);
        }
    }

    fn schedule_end(&mut self, worker: usize) {
        let busy = &self.members[worker].worker;
        if let Some(at) = busy.next_end() {
            self.schedule(at, Event::End(worker, busy.version));
        }
    }

    /// A request that ran has ended, well or not.
    fn end(&mut self, worker: usize, version: u64) {
        let busy = &mut self.members[worker].worker;
        if busy.version != version {
            return;
        }
        let Some((ended, next)) = busy.end_next(self.now) else { return };
        self.schedule_end(worker);
        if let Some(next) = next {
            self.note_run(next);
        }
        if ended.breaks.is_some() {
            self.attempt_failed(ended.number, Outcome::Failed);
        } else {
            self.release(ended.number, Outcome::Done);
            let job = &self.jobs[ended.number];
            self.tally.answered(self.now - job.sent, job.waited, self.requests[ended.number].answer);
            self.next_of_client();
        }
    }

    /// The first token of an attempt has not come in time.
    fn give_up(&mut self, number: usize, attempt: u32) {
        let job = &self.jobs[number];
        let Some(place) = job.place.filter(|place| place.ran.is_none() && job.attempts == attempt) else { return };
        if self.members[place.worker].worker.give_up(number) {
            let job = &mut self.jobs[number];
            job.waited += self.now - job.asked;
            self.attempt_failed(number, Outcome::Failed);
        }
    }

    /// Tries another worker, or gives up.
    fn attempt_failed(&mut self, number: usize, outcome: Outcome) {
        let worker = self.release(number, outcome);
        let job = &mut self.jobs[number];
        if let Some(worker) = worker.filter(|_| outcome != Outcome::Overloaded) {
            job.tried.push(self.members[worker].id.clone());
        }
        if job.attempts >= ATTEMPTS {
            self.fail(number, Kind::Upstream);
            return;
        }
        self.tally.retried();
        let pause = (BACKOFF * job.attempts).mul_f64(self.rng.random());
        self.schedule(self.now + pause, Event::Again(number));
    }

    /// Gives the ticket back; the worker it was for.
    fn release(&mut self, number: usize, outcome: Outcome) -> Option<usize> {
        let place = self.jobs[number].place.take()?;
        let ttft = place.ran.map(|ran| ran - place.granted);
        let release = Release {
            ticket: place.ticket,
            outcome,
            ttft_ms: ttft.map(|ttft| ttft.as_millis() as u64),
            tokens: (outcome == Outcome::Done).then_some(self.requests[number].answer as u32),
        };
        self.controller.release(self.gateway, &release, self.clock());
        Some(place.worker)
    }

    /// A client gets an error.
    fn fail(&mut self, number: usize, kind: Kind) {
        tracing::debug!(number, ?kind, "a request got no answer");
        self.tally.failed();
        self.next_of_client();
    }

    /// A client that asks again asks for the next request.
    fn next_of_client(&mut self) {
        if let Some(number) = self.later.next() {
            self.schedule(self.now, Event::Arrival(number));
        }
    }

    fn beat(&mut self, number: usize) -> Result<(), Problem> {
        let beat = self.members[number].beat(self.now);
        self.controller.heartbeat(&beat, self.clock())?;
        self.schedule(self.now + self.heartbeat, Event::Beat(number));
        Ok(())
    }
}
