//! Who is answered, when, and with what.

use muster_shared::control::Registration;
use muster_shared::id::{GatewayId, WorkerId};
use rand::SeedableRng;

use super::*;
use crate::fixtures::{asker, leave, release, rules, secs, worker};
use crate::registry::Origin;

struct Fixture {
    desk: Desk<&'static str>,
    gateway: GatewayId,
    now: Instant,
}

impl Fixture {
    /// A desk with one worker `w` for one request, and room for two who wait.
    fn new() -> Self {
        let now = Instant::now();
        let setup = Setup {
            queue: QueueConfig { limit: 2, max_wait: secs(10) },
            heartbeat: secs(5),
            rng: StdRng::seed_from_u64(1),
        };
        let registry = Registry::new(rules());
        let mut f = Self { desk: Desk::new(registry, setup, now), gateway: GatewayId::new(), now };
        f.register(worker("w", 1));
        f
    }

    fn register(&mut self, registration: Registration) {
        let now = self.now;
        self.desk
            .change(now, |registry| registry.register(registration, Origin::Native, now))
            .expect("it is not stale");
    }

    fn ask(&mut self, name: &'static str, wait: Duration) -> Option<Place> {
        self.ask_as(asker(self.gateway), name, Patience::usual(wait))
    }

    fn ask_as(&mut self, asker: Asker, name: &'static str, patience: Patience) -> Option<Place> {
        self.desk.ask(asker, patience, name, self.now)
    }

    fn release(&mut self, ticket: TicketId, outcome: Outcome) {
        let (holder, now) = (Holder::Gateway(self.gateway), self.now);
        self.desk.change(now, |registry| registry.release(holder, &release(ticket, outcome), now));
    }

    /// The one answer there is.
    fn answer(&mut self) -> (&'static str, Answer) {
        let mut answers = self.desk.take_answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    fn granted(&mut self, name: &'static str) -> TicketId {
        let (answered, answer) = self.answer();
        assert_eq!(answered, name);
        answer.expect("it is granted").ticket
    }

    fn refused(&mut self, name: &'static str) -> Problem {
        let (answered, answer) = self.answer();
        assert_eq!(answered, name);
        answer.expect_err("it is refused")
    }

    /// Takes the only room.
    fn fill(&mut self) -> TicketId {
        self.ask("filler", Duration::ZERO);
        self.granted("filler")
    }
}

#[test]
fn who_will_not_wait_is_refused_with_numbers() {
    let mut f = Fixture::new();
    f.fill();
    assert!(f.ask("a", Duration::ZERO).is_none());
    let problem = f.refused("a");
    assert_eq!(problem.kind, Kind::Overloaded);
    assert_eq!(problem.message, "no worker of the model `m` has room: 1 full, 0 suspended after failures");
    assert_eq!(problem.retry_after_ms, Some(1000));
}

#[test]
fn who_waits_gets_the_room_that_a_release_makes() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.ask("a", secs(1)).expect("it waits");
    f.ask("b", secs(1)).expect("it waits");
    f.release(ticket, Outcome::Done);
    let ticket = f.granted("a");
    f.release(ticket, Outcome::Done);
    f.granted("b");
}

#[test]
fn a_new_worker_serves_those_who_wait() {
    let mut f = Fixture::new();
    f.fill();
    f.ask("a", secs(1)).expect("it waits");
    f.register(worker("v", 1));
    f.granted("a");
}

#[test]
fn the_queue_is_bounded() {
    let mut f = Fixture::new();
    f.fill();
    f.ask("a", secs(1)).expect("it waits");
    f.ask("b", secs(1)).expect("it waits");
    assert!(f.ask("c", secs(1)).is_none());
    let problem = f.refused("c");
    assert_eq!(problem.kind, Kind::Overloaded);
    assert!(problem.message.ends_with("2 requests wait already, the most there may be"), "{problem}");
}

#[test]
fn a_wait_ends_at_its_deadline_and_at_the_bound() {
    let mut f = Fixture::new();
    f.fill();
    f.ask("short", secs(1)).expect("it waits");
    f.ask("long", secs(100)).expect("it waits");
    f.now += secs(1);
    assert_eq!(f.desk.next_tick(f.now - secs(1)), Some(f.now));
    f.desk.tick(f.now);
    assert!(f.refused("short").message.ends_with("the request waited 1000 ms"));
    f.now += secs(9);
    f.desk.tick(f.now);
    assert_eq!(f.refused("long").kind, Kind::Overloaded);
}

#[test]
fn a_higher_priority_goes_first() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.ask("usual", secs(1)).expect("it waits");
    let urgent = asker(f.gateway);
    f.ask_as(urgent, "urgent", Patience { priority: 1, ..Patience::usual(secs(1)) }).expect("it waits");
    f.release(ticket, Outcome::Done);
    f.granted("urgent");
}

#[test]
fn who_excludes_the_free_worker_lets_others_pass() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.register(worker("v", 1));
    f.ask("filler of v", Duration::ZERO);
    f.granted("filler of v");
    let mut picky = asker(f.gateway);
    picky.request.exclude.push(WorkerId::new("w"));
    f.ask_as(picky, "picky", Patience::usual(secs(1))).expect("it waits");
    f.ask("easy", secs(1)).expect("it waits");
    f.release(ticket, Outcome::Done);
    f.granted("easy");
    assert_eq!(f.desk.waiting(), 1);
}

#[test]
fn one_who_went_away_takes_no_ticket() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    let place = f.ask("a", secs(1)).expect("it waits");
    f.ask("b", secs(1)).expect("it waits");
    f.desk.abandon(&place);
    f.release(ticket, Outcome::Done);
    f.granted("b");
}

#[test]
fn a_grant_that_cannot_be_delivered_goes_to_the_next() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.ask("a", secs(1)).expect("it waits");
    f.release(ticket, Outcome::Done);
    let undelivered = f.granted("a");
    f.ask("b", secs(1)).expect("it waits");
    f.desk.take_back(Holder::Gateway(f.gateway), undelivered, f.now);
    f.granted("b");
}

#[test]
fn when_the_last_worker_leaves_all_who_wait_hear_it_at_once() {
    let mut f = Fixture::new();
    f.fill();
    f.ask("a", secs(1)).expect("it waits");
    let now = f.now;
    f.desk.change(now, |registry| registry.drain(&leave("w"), now)).expect("it is known");
    let problem = f.refused("a");
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::NoWorker, Some(5000)));
}

#[test]
fn who_waits_for_a_suspended_worker_gets_it_when_the_pause_is_over() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.release(ticket, Outcome::Unreachable);
    f.ask("a", secs(5)).expect("it waits");
    let over = f.desk.next_tick(f.now).expect("the pause ends");
    assert_eq!(over, f.now + crate::config::BreakerConfig::default().pause);
    f.now = over;
    f.desk.tick(over);
    f.granted("a");
}

#[test]
fn an_unknown_model_is_named_with_some_that_are_known() {
    let mut f = Fixture::new();
    let mut wrong = asker(f.gateway);
    wrong.request.model = "n".to_owned();
    f.ask_as(wrong, "a", Patience::usual(secs(1)));
    let problem = f.refused("a");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::UnknownModel, Some("model")));
    assert_eq!(problem.message, "no worker has offered the model `n`; served are: m");
}

#[test]
fn a_desk_that_closes_answers_all_and_lets_nobody_wait() {
    let mut f = Fixture::new();
    f.fill();
    f.ask("a", secs(1)).expect("it waits");
    f.desk.close();
    assert_eq!(f.refused("a").kind, Kind::NoWorker);
    assert!(f.ask("b", secs(1)).is_none());
    assert_eq!(f.refused("b").kind, Kind::NoWorker);
}

#[test]
fn the_silence_of_a_desk_that_stood_still_is_nobodys_else() {
    let mut f = Fixture::new();
    let ticket = f.fill();
    f.now += secs(60);
    f.desk.look_at_clock(f.now);
    f.desk.tick(f.now);
    f.release(ticket, Outcome::Done);
    assert_eq!(f.desk.registry().held(), 0, "the ticket was held until now, and the gateway's silence excused");
    f.ask("a", Duration::ZERO);
    f.granted("a");
    // One that runs on notices who is silent.
    for _ in 0..60 {
        f.now += secs(1);
        f.desk.look_at_clock(f.now);
        f.desk.tick(f.now);
    }
    f.ask("b", Duration::ZERO);
    assert_eq!(f.refused("b").kind, Kind::NoWorker);
}
