//! Who is answered, when, and with what.

use muster_shared::control::Registration;
use muster_shared::id::{GatewayId, WorkerId};
use rand::SeedableRng;

use super::*;
use crate::fixtures::{asker, leave, release, rules, secs, worker};
use crate::registry::Origin;

/// Room for many who wait ten seconds.
const OPEN: QueueConfig =
    QueueConfig { limit: 1000, per_model: None, per_key: None, max_wait: Duration::from_secs(10) };

struct Fixture {
    desk: Desk<&'static str>,
    gateway: GatewayId,
    now: Instant,
}

impl Fixture {
    /// A desk with one worker `w` for one request, and room for two who wait.
    fn new() -> Self {
        Self::bounded(QueueConfig { limit: 2, ..OPEN })
    }

    /// The same with other bounds.
    fn bounded(queue: QueueConfig) -> Self {
        let now = Instant::now();
        let setup = Setup { queue, heartbeat: secs(5), rng: StdRng::seed_from_u64(1) };
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
        self.desk.release(holder, &release(ticket, outcome), now);
    }

    /// Asks on behalf of a key, and waits for up to ten seconds.
    fn ask_of(&mut self, key: &str, name: &'static str, change: impl FnOnce(Patience) -> Patience) -> Option<Place> {
        let asker = Asker { key: Some(key.into()), ..asker(self.gateway) };
        self.ask_as(asker, name, change(Patience::usual(secs(10))))
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
    assert_eq!(
        problem.message,
        "no worker of the model `m` has room: 1 full, 0 suspended after failures or yet to answer"
    );
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

#[test]
fn a_modest_key_is_served_before_a_flood() {
    let mut f = Fixture::bounded(OPEN);
    f.ask_of("greedy", "greedy", |patience| patience);
    let mut running = f.granted("greedy");
    for _ in 0..200 {
        f.ask_of("greedy", "greedy", |patience| Patience { priority: 127, ..patience }).expect("it waits");
    }
    f.now += secs(9);
    f.ask_of("modest", "modest", |patience| patience).expect("it waits");
    f.ask("nobody's", secs(10)).expect("it waits");
    for next in ["modest", "nobody's", "greedy"] {
        f.release(running, Outcome::Done);
        running = f.granted(next); // of three that have nothing in flight the one that has gone without longest
    }
}

#[test]
fn what_runs_of_a_key_counts_and_not_what_has_ended() {
    let mut f = Fixture::bounded(OPEN);
    f.register(worker("v", 2));
    let mut running: Vec<TicketId> = Vec::new();
    for key in ["a", "a", "b"] {
        f.ask_of(key, "filler", |patience| patience);
        running.push(f.granted("filler"));
    }
    f.ask_of("a", "a", |patience| patience).expect("it waits");
    f.ask_of("b", "b", |patience| patience).expect("it waits");
    f.release(running[2], Outcome::Done);
    f.granted("b"); // two of a run, and none of b
    f.release(running[0], Outcome::Done);
    f.granted("a");
}

#[test]
fn an_operator_may_put_a_key_ahead_and_a_client_its_own_requests_behind() {
    let mut f = Fixture::bounded(OPEN);
    let mut running = f.fill();
    f.ask_of("a", "modest", |patience| Patience { priority: -5, ..patience }).expect("it waits");
    f.ask_of("b", "usual", |patience| patience).expect("it waits");
    f.ask_of("c", "pushing", |patience| Patience { priority: 5, ..patience }).expect("it waits");
    f.ask_of("vip", "vip", |patience| Patience { key_priority: 5, ..patience }).expect("it waits");
    for next in ["vip", "usual", "pushing", "modest"] {
        f.release(running, Outcome::Done);
        running = f.granted(next);
    }
}

#[test]
fn each_bound_is_named_in_the_refusal() {
    let mut f = Fixture::bounded(QueueConfig { limit: 4, per_model: Some(3), per_key: Some(2), ..OPEN });
    f.fill();
    f.ask_of("alice", "a", |patience| patience).expect("it waits");
    f.ask_of("alice", "b", |patience| patience).expect("it waits");
    assert!(f.ask_of("alice", "c", |patience| patience).is_none());
    let problem = f.refused("c");
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::RateLimited, Some(1000)));
    assert_eq!(problem.message, "the key `alice` has 2 requests waiting, the most that one key may have");
    f.ask_of("bob", "d", |patience| patience).expect("it waits");
    assert!(f.ask_of("bob", "e", |patience| patience).is_none());
    let problem = f.refused("e");
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::Overloaded, Some(1000)));
    assert!(problem.message.ends_with("3 requests wait for it already, the most that may wait for one model"));
}

#[test]
fn a_request_without_time_is_refused_even_where_there_is_room() {
    let mut f = Fixture::new();
    assert!(f.ask_of("a", "a", |patience| Patience { deadline: Some(Duration::ZERO), ..patience }).is_none());
    let problem = f.refused("a");
    assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Timeout, Some("deadline_ms")));
    f.fill();
}

#[test]
fn a_wait_ends_when_the_time_of_the_request_is_over() {
    let mut f = Fixture::new();
    f.fill();
    f.ask_of("a", "a", |patience| Patience { deadline: Some(secs(2)), ..patience }).expect("it waits");
    f.ask_of("a", "b", |patience| Patience { deadline: Some(secs(20)), ..patience }).expect("it waits");
    f.now += secs(2);
    f.desk.tick(f.now);
    let problem = f.refused("a");
    assert_eq!(problem.kind, Kind::Timeout);
    assert!(problem.message.contains("it waited 2000 ms"), "{problem}");
    f.now += secs(8);
    f.desk.tick(f.now);
    assert_eq!(f.refused("b").kind, Kind::Overloaded, "the longest wait was shorter than its time");
}

#[test]
fn a_request_that_cannot_make_it_is_refused_at_once() {
    let mut f = Fixture::bounded(OPEN);
    f.ask_of("a", "a", |patience| patience);
    let mut running = f.granted("a");
    // One leaves the queue every 100 ms, and another comes.
    for _ in 0..40 {
        f.ask_of("a", "a", |patience| patience).expect("it waits");
    }
    for _ in 0..38 {
        f.now += Duration::from_millis(100);
        f.release(running, Outcome::Done);
        f.ask_of("a", "a", |patience| patience);
        running = f.granted("a");
    }
    let hurry = |left| move |patience| Patience { deadline: Some(left), ..patience };
    assert_eq!(f.desk.waiting(), 40);
    assert!(f.ask_of("a", "hopeless", hurry(secs(3))).is_none());
    let problem = f.refused("hopeless");
    assert_eq!(problem.kind, Kind::Overloaded);
    assert!(problem.message.contains("has 3000 ms left") && problem.message.contains("40 requests"), "{problem}");
    let retry = problem.retry_after_ms.expect("a time");
    assert!((3_900..=4_000).contains(&retry) && problem.message.contains(&format!("for {retry} ms")), "{problem}");
    f.ask_of("a", "in time", hurry(secs(4))).expect("it waits");
    f.ask_of("b", "of another key", hurry(secs(3))).expect("those of a need not go before it");
    let ahead = f.ask_of("a", "more urgent", |patience| Patience { priority: 127, ..hurry(secs(3))(patience) });
    ahead.expect("those of its own key do not go before it");
}

#[test]
fn while_no_queue_has_moved_the_usual_time_of_requests_tells_how_fast_it_will() {
    let mut f = Fixture::bounded(OPEN);
    for _ in 0..40 {
        let running = f.fill();
        f.now += Duration::from_millis(200);
        f.release(running, Outcome::Done);
    }
    f.fill();
    for _ in 0..5 {
        f.ask_of("a", "a", |patience| patience).expect("it waits");
    }
    let hurry = |left| move |patience| Patience { deadline: Some(left), ..patience };
    assert!(f.ask_of("a", "hopeless", hurry(Duration::from_millis(990))).is_none());
    assert!(f.refused("hopeless").message.contains("for 999 ms: 5 requests of the same key"));
    f.ask_of("a", "in time", hurry(secs(1))).expect("it waits");
}

#[test]
fn a_request_larger_than_any_need_be_is_refused_by_its_field() {
    let mut f = Fixture::new();
    let mut long = asker(f.gateway);
    long.request.model = "x".repeat(513);
    let mut keyed = asker(f.gateway);
    keyed.key = Some("k".repeat(513).into());
    let mut picky = asker(f.gateway);
    picky.request.exclude = vec![WorkerId::new("w"); 257];
    for (number, (asker, param)) in [(long, "model"), (keyed, "key"), (picky, "exclude")].into_iter().enumerate() {
        let name = ["long", "keyed", "picky"][number];
        assert!(f.ask_as(asker, name, Patience::usual(secs(1))).is_none());
        let answers = f.desk.take_answers();
        let problem = answers[0].1.as_ref().expect_err("it is too large");
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)));
    }
}
