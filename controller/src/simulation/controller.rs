//! The shell around the shipped rules, as `service.rs`, `link.rs` and `http.rs` are one, without sockets and threads.

mod checks;
mod links;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_shared::control::{
    Fleet, Heartbeat, HeartbeatReply, Leave, Outcome, Registration, Release, Releases, Renew,
};
use muster_shared::id::{Epoch, GatewayId, TicketId, WorkerId};
use muster_shared::link::Tell;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::books::{Books, Expected};
use super::network::End;
use super::sim::Sim;
use super::wire::{self, Run, Wire};
use super::{Actor, Event, Timer};
use crate::config::Config;
use crate::desk::{Answer, Desk, SWEEP, Setup};
use crate::http::question;
use crate::queue::Place;
use crate::registry::{Asker, Holder, Origin, Registry};

/// One of so many events is followed by the checks that cost more.
const SAMPLE: u64 = 16;
/// One of so many messages is put into bytes and read again.
const SPELL: u64 = 16;

/// One run of the controller.
#[derive(Debug)]
pub(super) struct Controller {
    desk: Desk<Reply>,
    pub(super) books: Books,
    pub(super) life: u64,
    epoch: Epoch,
    max_wait: Duration,
    policy: String,
    sessions: BTreeMap<u64, Session>,
    calls: BTreeMap<u64, Call>,
    tells: BTreeMap<u64, Vec<Tell>>,
    /// Answers on their way out of one change, all of them in the books.
    answers: Vec<(Reply, Answer)>,
    /// When the next tick is due.
    wakes_at: Option<Instant>,
    /// Whether the controller has seen that it is so late.
    is_settled: bool,
    /// Whether the worker at the address of the registration that comes says that it is the one.
    pub(super) is_vouched: bool,
    /// Changes so far.
    changes: u64,
    /// What those heard who ask to see whether the load is right.
    pub(super) heard: Vec<(u64, Answer)>,
}

/// One who asked.
#[derive(Debug)]
struct Reply {
    holder: Holder,
    ask: u64,
    way: Way,
}

/// How an answer travels.
#[derive(Debug)]
enum Way {
    Link { link: u64, id: u32 },
    Call(u64),
    Probe,
}

/// A link whose gateway is known.
#[derive(Debug)]
struct Session {
    gateway: GatewayId,
    /// Those who wait, by the number of their question.
    waiting: BTreeMap<u32, (Place, u64)>,
}

/// A call over HTTP that has no answer.
#[derive(Debug)]
struct Call {
    from: Run,
    call: u32,
    place: Option<Place>,
    ask: u64,
    is_closed: bool,
}

impl Controller {
    pub(super) fn new(config: &Config, life: u64, sim: &mut Sim) -> Self {
        let setup = Setup {
            queue: config.queue,
            heartbeat: config.lease.heartbeat,
            rng: StdRng::seed_from_u64(sim.rng.random()),
        };
        sim.note(Actor::Controller, "starts", [life, 0]);
        sim.after(SWEEP, Event::Timer(Actor::Controller, Timer::Sweep(life)));
        Self {
            desk: Desk::new(Registry::new(config.rules()), setup, sim.now),
            books: Books::new(config.lease, sim.now),
            life,
            epoch: Epoch::new(),
            max_wait: config.queue.max_wait,
            policy: config.policy.to_string(),
            sessions: BTreeMap::new(),
            calls: BTreeMap::new(),
            tells: BTreeMap::new(),
            answers: Vec::new(),
            wakes_at: None,
            is_settled: false,
            is_vouched: false,
            changes: 0,
            heard: Vec::new(),
        }
    }

    /// A message arrives.
    pub(super) fn hear(&mut self, wire: Wire, sim: &mut Sim) {
        self.begin(sim);
        match wire {
            Wire::Register { from, registration } => self.register(from, registration, sim),
            Wire::Beat { from, beat } => self.beat(from, beat, sim),
            Wire::Drain(leave) => self.leave(&leave, false, sim),
            Wire::Resume(leave) => self.resume(&leave, sim),
            Wire::Deregister(leave) => self.leave(&leave, true, sim),
            Wire::Dispatch { from, call, dispatch } => {
                let dispatch = self.spell(dispatch, wire::through_json, sim);
                let serial = sim.serial();
                let (asker, patience) = question(dispatch);
                let call = Call { from, call, place: None, ask: serial, is_closed: false };
                self.calls.insert(serial, call);
                let place = self.ask(serial, asker, patience, Way::Call(serial), sim);
                if let Some(call) = self.calls.get_mut(&serial) {
                    call.place = place;
                }
            }
            Wire::HangUp { from, call } => self.on_hang_up(from, call, sim),
            Wire::Releases(releases) => self.releases(releases, sim),
            Wire::Renew(Renew { gateway }) => {
                self.books.renew(gateway, sim.now);
                self.change(sim, |registry, now| registry.renew(gateway, now));
            }
            Wire::Open { link } => sim.say(link, End::Controller, Wire::Opened { link }),
            Wire::Asks { link, asks } => self.asks(link, asks, sim),
            other => unreachable!("nobody says that to a controller: {other:?}"),
        }
        self.finish(sim);
    }

    /// The look at the clock with which everything begins.
    fn begin(&mut self, sim: &Sim) {
        self.books.look_at_clock(sim.now);
        self.desk.look_at_clock(sim.now);
        self.books.pass(sim.now);
        self.is_settled = false;
    }

    fn change<T>(&mut self, sim: &mut Sim, change: impl FnOnce(&mut Registry, Instant) -> T) -> T {
        let now = sim.now;
        let result = self.desk.change(now, |registry| change(registry, now));
        self.book(sim);
        result
    }

    /// Lets the controller see what time has brought.
    fn settle(&mut self, sim: &mut Sim) {
        self.desk.tick(sim.now);
        self.book(sim);
    }

    /// Enters what the last change has brought, before anything else changes.
    fn book(&mut self, sim: &mut Sim) {
        self.is_settled = true;
        for (reply, answer) in self.desk.take_answers() {
            let checked = match &answer {
                Ok(grant) => self.books.grant(reply.ask, grant, sim.now),
                Err(problem) => self.books.asks.refuse(reply.ask, problem, sim.now),
            };
            sim.claim(checked);
            let worker = answer.as_ref().map_or(u64::MAX, |grant| super::gateway::number_of(&grant.worker) as u64);
            sim.note(Actor::Controller, if answer.is_ok() { "grants" } else { "refuses" }, [reply.ask, worker]);
            self.answers.push((reply, answer));
        }
    }

    /// A message, now and then after it has been bytes.
    fn spell<M>(&self, message: M, through: impl FnOnce(&M) -> Result<M, String>, sim: &mut Sim) -> M {
        if !self.changes.is_multiple_of(SPELL) {
            return message;
        }
        match through(&message) {
            Ok(read) => read,
            Err(why) => {
                sim.claim(Err(why));
                message
            }
        }
    }

    // Workers.

    fn register(&mut self, from: Run, registration: Registration, sim: &mut Sim) {
        let registration = self.spell(registration, wire::through_json, sim);
        let is_vouched = std::mem::take(&mut self.is_vouched);
        if is_vouched {
            self.books.believe(&registration, sim.now);
        }
        let expected = self.books.expect_registration(&registration);
        if expected == Expected::Taken {
            self.books.register(registration.clone(), sim.now);
        }
        let answer = self.refusable(expected, sim, |registry, now| {
            if is_vouched {
                registry.believe(&registration, now);
            }
            registry.register(registration, Origin::Native, now)
        });
        let got = if answer.is_ok() { Expected::Taken } else { Expected::Refused };
        self.compare("a registration", expected, got, sim);
        sim.note(Actor::Controller, "hears a registration of", [from.index as u64, answer.is_ok().into()]);
        sim.post(Actor::Controller, Actor::Worker(from.index), Wire::Lease { to: from, answer });
    }

    fn beat(&mut self, from: Run, beat: Heartbeat, sim: &mut Sim) {
        let beat = self.spell(beat, wire::through_json, sim);
        let expected = self.books.expect_beat(&beat);
        let answer = match expected {
            // Before those are entered who get the room of tickets that the beat has ended.
            Expected::Taken => self.desk.change(sim.now, |registry| registry.heartbeat(&beat, sim.now)),
            _ => self.refusable(expected, sim, |registry, now| registry.heartbeat(&beat, now)),
        };
        let got = match &answer {
            Ok(HeartbeatReply::Renewed(_)) => Expected::Taken,
            Ok(HeartbeatReply::Unknown) => Expected::Unknown,
            Err(_) => Expected::Refused,
        };
        self.compare("a beat", expected, got, sim);
        if got == Expected::Taken && expected == got {
            let registry = self.desk.registry();
            let checked = self.books.beat(&beat, |ticket| registry.knows(ticket), sim.now);
            sim.claim(checked);
        }
        self.book(sim);
        sim.note(Actor::Controller, "hears a beat of", [from.index as u64, got as u64]);
        sim.post(Actor::Controller, Actor::Worker(from.index), Wire::Beaten { to: from, answer });
    }

    fn leave(&mut self, leave: &Leave, is_gone: bool, sim: &mut Sim) {
        let expected = self.books.expect_leave(leave);
        if expected == Expected::Taken && is_gone {
            self.books.deregister(leave, sim.now);
        } else if expected == Expected::Taken {
            self.books.drain(leave);
        }
        let answer = self.refusable(expected, sim, |registry, now| {
            if is_gone { registry.deregister(leave, now) } else { registry.drain(leave, now) }
        });
        let got = if answer.is_ok() { Expected::Taken } else { Expected::Refused };
        self.compare("a leave", expected, got, sim);
        let number = super::gateway::number_of(&leave.id) as u64;
        sim.note(Actor::Controller, if is_gone { "deregisters" } else { "drains" }, [number, answer.is_ok().into()]);
    }

    fn resume(&mut self, leave: &Leave, sim: &mut Sim) {
        let expected = self.books.expect_resume(leave);
        if expected == Expected::Taken {
            self.books.resume(leave);
        }
        let answer = self.refusable(expected, sim, |registry, now| registry.resume(leave, now));
        let got = if answer.is_ok() { Expected::Taken } else { Expected::Refused };
        self.compare("a call back", expected, got, sim);
        let number = super::gateway::number_of(&leave.id) as u64;
        sim.note(Actor::Controller, "resumes", [number, answer.is_ok().into()]);
    }

    /// Makes a change, or sees that what is refused changes nothing.
    fn refusable<T>(
        &mut self,
        expected: Expected,
        sim: &mut Sim,
        change: impl FnOnce(&mut Registry, Instant) -> T,
    ) -> T {
        if expected == Expected::Taken {
            return self.change(sim, change);
        }
        self.settle(sim);
        let before = self.portrait();
        let result = self.change(sim, change);
        if self.portrait() != before {
            sim.claim(Err("a message that is refused has changed something".to_owned()));
        }
        result
    }

    fn compare(&self, what: &str, expected: Expected, got: Expected, sim: &mut Sim) {
        if expected != got {
            sim.claim(Err(format!("{what} should be {expected:?} and is {got:?}")));
        }
    }

    // Gateways.

    fn ask(
        &mut self,
        ask: u64,
        asker: Asker,
        patience: crate::desk::Patience,
        way: Way,
        sim: &mut Sim,
    ) -> Option<Place> {
        if let Holder::Gateway(gateway) = asker.holder {
            self.books.renew(gateway, sim.now);
        }
        self.books.asks.ask(ask, &asker, &patience, self.max_wait, sim.now);
        let holder = asker.holder;
        let place = self.desk.ask(asker, patience, Reply { holder, ask, way }, sim.now);
        self.book(sim);
        place
    }

    fn on_hang_up(&mut self, from: Run, number: u32, sim: &mut Sim) {
        let calls = self.calls.iter().filter(|(_, call)| (call.from, call.call) == (from, number));
        for serial in calls.map(|(&serial, _)| serial).collect::<Vec<_>>() {
            // The end may be seen between an answer and its delivery, which then takes the grant back.
            if sim.chance(0.3) {
                self.calls.get_mut(&serial).expect("it was found").is_closed = true;
                continue;
            }
            let call = self.calls.remove(&serial).expect("it was found");
            if let Some(place) = call.place {
                self.abandon(&place, call.ask);
            }
        }
    }

    fn releases(&mut self, releases: Releases, sim: &mut Sim) {
        let Releases { gateway, releases } = self.spell(releases, wire::through_json, sim);
        self.books.renew(gateway, sim.now);
        self.change(sim, |registry, now| registry.renew(gateway, now));
        for release in releases {
            self.release(Holder::Gateway(gateway), release, sim);
        }
    }

    fn release(&mut self, holder: Holder, release: Release, sim: &mut Sim) {
        let is_ticket = self.books.release(holder, &release, sim.now);
        sim.note(Actor::Controller, "ends a ticket", [release.outcome as u64, is_ticket.into()]);
        let expected = if is_ticket { Expected::Taken } else { Expected::Unknown };
        self.refusable(expected, sim, |registry, now| registry.release(holder, &release, now));
    }

    // Time.

    /// A worker's address for one who says no more. The answer is given at once.
    pub(super) fn lookup(&mut self, model: &str, sim: &mut Sim) -> Option<String> {
        self.begin(sim);
        let address = self.desk.lookup(model, sim.now);
        self.book(sim);
        if let Some(address) = &address {
            self.books.look_up(address);
        }
        self.finish(sim);
        address
    }

    pub(super) fn tick(&mut self, at: Instant, sim: &mut Sim) -> bool {
        if self.wakes_at != Some(at) {
            return false;
        }
        self.wakes_at = None;
        self.begin(sim);
        self.settle(sim);
        self.finish(sim);
        if self.wakes_at.is_some_and(|next| next <= at) {
            sim.claim(Err("time passes, and the controller does not see it".to_owned()));
        }
        true
    }

    pub(super) fn sweep(&mut self, sim: &mut Sim) {
        sim.after(SWEEP, Event::Timer(Actor::Controller, Timer::Sweep(self.life)));
        self.begin(sim);
        self.change(sim, Registry::sweep);
        self.finish(sim);
    }

    /// Answers all who wait: the controller stops.
    pub(super) fn close(&mut self, sim: &mut Sim) {
        self.begin(sim);
        self.desk.close();
        self.book(sim);
        self.finish(sim);
        if self.books.asks.len() > 0 {
            sim.claim(Err("a controller has stopped and has not answered all who wait".to_owned()));
        }
    }

    // After each change.

    /// Delivers answers, checks all that must hold, and sees when time will change something.
    fn finish(&mut self, sim: &mut Sim) {
        self.changes += 1;
        while !self.answers.is_empty() {
            let answers = std::mem::take(&mut self.answers);
            let undelivered: Vec<_> = answers.into_iter().filter_map(|answer| self.deliver(answer, sim)).collect();
            for (holder, ticket) in undelivered {
                sim.note(Actor::Controller, "takes a grant back", [0, 0]);
                let release = Release { ticket, outcome: Outcome::Cancelled, ttft_ms: None, tokens: None };
                self.books.release(holder, &release, sim.now);
                self.desk.take_back(holder, ticket, sim.now);
                self.book(sim);
            }
        }
        for (link, tells) in std::mem::take(&mut self.tells) {
            sim.say(link, End::Controller, Wire::Tells { link, tells });
        }
        self.check(sim);
        self.wake_in_time(sim);
    }

    /// Gives back the ticket of a grant that nobody receives.
    fn deliver(&mut self, (reply, answer): (Reply, Answer), sim: &mut Sim) -> Option<(Holder, TicketId)> {
        match reply.way {
            Way::Link { link, id } => match self.sessions.get_mut(&link) {
                Some(session) => {
                    session.waiting.remove(&id);
                    let tell = match answer {
                        Ok(grant) => Tell::Grant { id, grant },
                        Err(problem) => Tell::Refusal { id, problem },
                    };
                    let tell = self.spell(tell, wire::through_link, sim);
                    self.tells.entry(link).or_default().push(tell);
                    None
                }
                None => Some((reply.holder, answer.ok()?.ticket)),
            },
            Way::Call(serial) => match self.calls.remove(&serial) {
                Some(Call { from, call, is_closed: false, .. }) => {
                    sim.post(Actor::Controller, Actor::Gateway(from.index), Wire::Answer { to: from, call, answer });
                    None
                }
                _ => Some((reply.holder, answer.ok()?.ticket)),
            },
            Way::Probe => {
                self.heard.push((reply.ask, answer));
                None
            }
        }
    }

    fn wake_in_time(&mut self, sim: &mut Sim) {
        let Some(next) = self.desk.next_tick(sim.now) else { return };
        if self.wakes_at.is_none_or(|at| next < at || at <= sim.now) {
            self.wakes_at = Some(next);
            sim.at(next, Event::Timer(Actor::Controller, Timer::Tick(self.life, next)));
        }
    }

    // What it says of itself.

    /// Requests that it counts for a worker's model.
    pub(super) fn load(&self, worker: &WorkerId, model: &str) -> u32 {
        self.desk.registry().load_of(worker, model)
    }

    /// All that it knows.
    fn portrait(&self) -> String {
        format!("{:?} {}", self.desk, self.desk.registry().portrait())
    }

    pub(super) fn fleet(&self, now: Instant) -> Fleet {
        let registry = self.desk.registry();
        Fleet {
            epoch: self.epoch,
            version: String::new(),
            uptime_ms: 0,
            policy: self.policy.clone(),
            waiting: u32::try_from(self.desk.waiting()).expect("there are few"),
            workers: registry.workers(now),
            models: registry.models(now),
        }
    }

    // Asking, to see whether what it counts is what it does.

    /// Asks, and waits at most so long; the answer comes to [`Self::heard`].
    pub(super) fn probe(&mut self, gateway: GatewayId, model: &str, wait: Duration, sim: &mut Sim) -> u64 {
        self.begin(sim);
        let dispatch = muster_shared::control::Dispatch {
            wait_ms: u64::try_from(wait.as_millis()).expect("it is short"),
            ..muster_shared::control::Dispatch::new(gateway, model)
        };
        let (asker, patience) = question(dispatch);
        let ask = sim.serial();
        self.ask(ask, asker, patience, Way::Probe, sim);
        self.finish(sim);
        ask
    }

    /// Gives a probe's ticket back.
    pub(super) fn end_probe(&mut self, gateway: GatewayId, ticket: TicketId, sim: &mut Sim) {
        self.begin(sim);
        let release = Release { ticket, outcome: Outcome::Cancelled, ttft_ms: None, tokens: None };
        self.release(Holder::Gateway(gateway), release, sim);
        self.finish(sim);
    }
}
