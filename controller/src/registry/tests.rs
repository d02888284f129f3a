//! The registry's rules, with made-up clocks.

use muster_shared::control::{Grant, Held, Outcome, WorkerState, WorkerStatus};
use muster_shared::id::GatewayId;
use muster_shared::transport::Transport;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::fixtures::{FASTCHAT, asker, beat, fastchat_worker, leave, release, rules, secs, silent_beat, worker};

mod fastchat;
mod identity;
mod pauses;
mod peers;

struct Fixture {
    registry: Registry,
    gateway: GatewayId,
    rng: StdRng,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let registry = Registry::new(rules());
        Self { registry, gateway: GatewayId::new(), rng: StdRng::seed_from_u64(1), now: Instant::now() }
    }

    /// With one worker `w` of the model `m`.
    fn with_worker(capacity: u32) -> Self {
        let mut f = Self::new();
        f.register(worker("w", capacity));
        f
    }

    fn register(&mut self, registration: Registration) {
        self.registry.register(registration, Origin::Native, self.now).expect("it is not stale");
    }

    fn grant(&mut self) -> Result<Grant, Denial> {
        self.grant_to(&asker(self.gateway))
    }

    fn grant_to(&mut self, asker: &Asker) -> Result<Grant, Denial> {
        let grant = self.registry.grant(asker, &mut self.rng, self.now);
        grant.map_err(|lack| {
            let denial = self.registry.denial(&asker.request).expect("it was denied");
            assert_eq!(lack == Lack::Room, matches!(denial, Denial::NoRoom { .. }), "{denial:?}");
            denial
        })
    }

    fn lookup(&mut self) -> Option<String> {
        self.registry.lookup("m", &mut self.rng, self.now)
    }

    fn granted(&mut self) -> TicketId {
        self.grant().expect("there is room").ticket
    }

    fn release(&mut self, ticket: TicketId, outcome: Outcome) {
        self.registry.release(Holder::Gateway(self.gateway), &release(ticket, outcome), self.now);
    }

    fn beat(&mut self, running: u32) -> HeartbeatReply {
        self.registry.heartbeat(&beat("w", running), self.now).expect("it is not stale")
    }

    fn status(&self) -> WorkerStatus {
        self.registry.workers(self.now).remove(0)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

const FULL: Denial = Denial::NoRoom { full: 1, open: 0, paused: 0 };
const OPEN: Denial = Denial::NoRoom { full: 0, open: 1, paused: 0 };
const ABSENT: Denial = Denial::NoWorker { excluded: 0 };

#[test]
fn a_lease_ends_when_no_heartbeat_renews_it() {
    let mut f = Fixture::with_worker(1);
    f.pass(secs(14));
    f.beat(0);
    f.pass(secs(14));
    assert_eq!(f.status().state, WorkerState::Ready);
    f.pass(secs(1));
    assert_eq!(f.status().state, WorkerState::Gone);
    assert_eq!(f.grant(), Err(ABSENT));
    assert_eq!(f.beat(0), HeartbeatReply::Unknown);
}

#[test]
fn a_gone_worker_is_remembered_for_a_while() {
    let mut f = Fixture::with_worker(1);
    f.pass(secs(15));
    f.registry.sweep(f.now);
    f.pass(secs(599));
    f.registry.sweep(f.now);
    assert_eq!(f.grant(), Err(ABSENT));
    f.pass(secs(1));
    f.registry.sweep(f.now);
    assert_eq!(f.grant(), Err(Denial::UnknownModel));
    assert!(f.registry.workers(f.now).is_empty());
}

#[test]
fn tickets_never_exceed_the_capacity() {
    let mut f = Fixture::with_worker(2);
    let first = f.granted();
    f.granted();
    assert_eq!(f.grant(), Err(FULL));
    f.release(first, Outcome::Done);
    f.granted();
    assert_eq!(f.status().tickets, 2);
}

#[test]
fn a_ticket_ends_once_and_only_by_its_holder() {
    let mut f = Fixture::with_worker(2);
    let (first, _second) = (f.granted(), f.granted());
    f.registry.release(Holder::Gateway(GatewayId::new()), &release(first, Outcome::Done), f.now);
    assert_eq!(f.status().tickets, 2);
    f.release(first, Outcome::Done);
    f.release(first, Outcome::Done);
    assert_eq!(f.status().tickets, 1);
}

#[test]
fn tickets_of_a_silent_gateway_lapse_with_its_lease() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    f.pass(secs(10));
    f.beat(1);
    f.registry.renew(f.gateway, f.now);
    f.pass(secs(14));
    f.beat(1);
    assert_eq!(f.status().tickets, 1);
    f.pass(secs(1));
    assert_eq!(f.status().tickets, 0);
    f.granted();
}

#[test]
fn tickets_end_with_their_worker() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    f.registry.deregister(&leave("w"), f.now).expect("it is known");
    assert_eq!((f.status().state, f.status().tickets, f.registry.held()), (WorkerState::Gone, 0, 0));
}

#[test]
fn an_older_incarnation_is_refused() {
    let mut f = Fixture::new();
    f.register(Registration { incarnation: 2, ..worker("w", 1) });
    let stale = f.registry.register(worker("w", 1), Origin::Native, f.now).expect_err("it is older");
    assert_eq!(stale.kind, Kind::Stale);
    assert_eq!(f.registry.heartbeat(&beat("w", 0), f.now).expect_err("it is older").kind, Kind::Stale);
    let old = Leave { incarnation: Some(1), ..leave("w") };
    assert_eq!(f.registry.deregister(&old, f.now).expect_err("it is older").kind, Kind::Stale);
    assert_eq!((f.status().incarnation, f.status().state), (2, WorkerState::Ready));
}

#[test]
fn a_clock_that_stepped_back_does_not_keep_a_worker_out_for_good() {
    let mut f = Fixture::new();
    f.register(Registration { incarnation: 2, ..worker("w", 1) });
    f.registry.deregister(&leave("w"), f.now).expect("it is known");
    f.register(worker("w", 1));
    assert_eq!((f.status().incarnation, f.status().state), (1, WorkerState::Ready));
}

#[test]
fn a_newer_incarnation_replaces_the_worker_and_ends_its_tickets() {
    let mut f = Fixture::with_worker(1);
    let old = f.granted();
    f.register(Registration { incarnation: 2, ..worker("w", 1) });
    assert_eq!((f.status().tickets, f.registry.held()), (0, 0));
    f.granted();
    f.release(old, Outcome::Unreachable);
    assert_eq!((f.status().tickets, f.status().state), (1, WorkerState::Ready));
}

#[test]
fn the_same_incarnation_again_keeps_its_tickets_and_goes_on_draining() {
    let mut f = Fixture::with_worker(2);
    f.granted();
    f.registry.drain(&leave("w"), f.now).expect("it is known");
    f.register(worker("w", 2));
    assert_eq!((f.status().tickets, f.status().state), (1, WorkerState::Draining));
}

#[test]
fn a_heartbeat_of_an_unknown_incarnation_asks_for_a_registration() {
    let mut f = Fixture::with_worker(1);
    let newer = Heartbeat { incarnation: 2, ..beat("w", 0) };
    assert_eq!(f.registry.heartbeat(&newer, f.now), Ok(HeartbeatReply::Unknown));
}

#[test]
fn an_older_process_may_register_when_the_younger_one_has_left() {
    let mut f = Fixture::new();
    f.register(Registration { incarnation: 2, ..worker("w", 1) });
    assert_eq!(f.registry.heartbeat(&beat("w", 0), f.now).expect_err("it is older").kind, Kind::Stale);
    f.registry.deregister(&leave("w"), f.now).expect("it is known");
    assert_eq!(f.beat(0), HeartbeatReply::Unknown);
    f.register(worker("w", 1));
    assert!(matches!(f.beat(0), HeartbeatReply::Renewed(_)));
}

#[test]
fn a_draining_worker_finishes_and_gets_nothing() {
    let mut f = Fixture::with_worker(2);
    let ticket = f.granted();
    f.registry.drain(&leave("w"), f.now).expect("it is known");
    f.beat(1);
    assert_eq!((f.status().state, f.status().tickets), (WorkerState::Draining, 1));
    assert_eq!(f.grant(), Err(ABSENT));
    f.release(ticket, Outcome::Done);
    assert_eq!(f.status().tickets, 0);
}

#[test]
fn an_unknown_worker_cannot_leave() {
    let mut f = Fixture::new();
    assert_eq!(f.registry.drain(&leave("w"), f.now).expect_err("nobody is there").kind, Kind::NotFound);
}

#[test]
fn a_suspect_worker_is_tried_with_one_request() {
    let mut f = Fixture::with_worker(4);
    let ticket = f.granted();
    f.release(ticket, Outcome::Unreachable);
    assert_eq!((f.status().state, f.grant()), (WorkerState::Open, Err(OPEN)));
    f.pass(BreakerConfig::default().pause);
    let trial = f.granted();
    assert_eq!((f.status().state, f.grant()), (WorkerState::Suspect, Err(FULL)));
    f.release(trial, Outcome::Done);
    assert_eq!(f.status().state, WorkerState::Ready);
    f.granted();
    f.granted();
}

#[test]
fn a_heartbeat_makes_an_open_worker_suspect() {
    let mut f = Fixture::with_worker(4);
    let ticket = f.granted();
    f.release(ticket, Outcome::Unreachable);
    f.beat(0);
    assert_eq!(f.status().state, WorkerState::Suspect);
}

#[test]
fn a_worker_that_says_it_is_full_is_spared_until_it_beats() {
    let mut f = Fixture::with_worker(4);
    let ticket = f.granted();
    f.release(ticket, Outcome::Overloaded);
    assert_eq!(f.grant(), Err(FULL));
    assert_eq!(f.registry.next_change(), Some(f.now + Duration::from_millis(250)));
    f.beat(0);
    let ticket = f.granted();
    f.release(ticket, Outcome::Overloaded);
    f.pass(Duration::from_millis(250));
    f.granted();
}

#[test]
fn excluded_workers_are_not_chosen() {
    let mut f = Fixture::with_worker(4);
    let mut picky = asker(f.gateway);
    picky.request.exclude.push(WorkerId::new("w"));
    assert_eq!(f.grant_to(&picky), Err(Denial::NoWorker { excluded: 1 }));
}

#[test]
fn traffic_past_the_controller_takes_room_once_two_beats_show_it() {
    let mut f = Fixture::with_worker(2);
    f.beat(2);
    let ticket = f.granted();
    f.release(ticket, Outcome::Done);
    f.beat(2);
    assert_eq!(f.grant(), Err(FULL));
    f.beat(0);
    f.granted();
}

#[test]
fn a_ticket_whose_grant_was_lost_ends_after_beats_that_do_not_know_it() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    for _ in 0..2 {
        f.pass(secs(5));
        f.registry.renew(f.gateway, f.now);
        f.beat(0);
        assert_eq!(f.status().tickets, 1);
    }
    f.pass(secs(5));
    f.beat(0);
    assert_eq!((f.status().tickets, f.registry.held()), (0, 0));
}

#[test]
fn a_ticket_outlives_any_number_of_beats_that_tell_no_load() {
    let mut f = Fixture::with_worker(1);
    let ticket = f.granted();
    for _ in 0..10 {
        f.pass(secs(5));
        f.registry.renew(f.gateway, f.now);
        let reply = f.registry.heartbeat(&silent_beat("w"), f.now).expect("it is not stale");
        assert!(matches!(reply, HeartbeatReply::Renewed(_)));
        assert_eq!((f.status().tickets, f.status().reported, f.grant()), (1, Vec::new(), Err(FULL)));
    }
    f.release(ticket, Outcome::Done);
    f.granted();
}

#[test]
fn a_ticket_of_a_worker_that_tells_no_load_ends_with_its_gateway() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    for _ in 0..3 {
        f.pass(secs(5));
        f.registry.heartbeat(&silent_beat("w"), f.now).expect("it is not stale");
    }
    assert_eq!((f.status().tickets, f.registry.held()), (0, 0));
}

#[test]
fn a_worker_that_no_longer_tells_its_load_has_only_our_tickets() {
    let mut f = Fixture::with_worker(2);
    f.beat(2);
    f.beat(2);
    assert_eq!(f.grant(), Err(FULL));
    f.registry.heartbeat(&silent_beat("w"), f.now).expect("it is not stale");
    f.granted();
    f.granted();
}

#[test]
fn a_measured_speed_replaces_the_stated_one_if_it_is_one() {
    let mut f = Fixture::with_worker(1);
    for (told, kept) in [(7.5, 7.5), (0.0, 7.5), (f64::NAN, 7.5), (-1.0, 7.5)] {
        f.registry.heartbeat(&Heartbeat { speed: Some(told), ..beat("w", 0) }, f.now).expect("it is known");
        assert_eq!(f.status().speed, kept);
    }
}

/// A request that a gateway has in flight on that worker.
fn held(worker: &str, ticket: TicketId) -> Held {
    Held { ticket, worker: WorkerId::new(worker), model: "m".to_owned(), key: None }
}

#[test]
fn tickets_that_a_gateway_does_not_name_end_and_no_others() {
    let mut f = Fixture::with_worker(4);
    let (kept, lost) = (f.granted(), f.granted());
    let gateway = std::mem::replace(&mut f.gateway, GatewayId::new());
    f.granted(); // another gateway's
    assert_eq!(f.registry.reconcile(gateway, &[held("w", kept)], f.now), []);
    assert_eq!((f.status().tickets, f.registry.held()), (2, 2));
    f.registry.release(Holder::Gateway(gateway), &release(lost, Outcome::Done), f.now);
    assert_eq!(f.status().tickets, 2, "what has ended is not ended again");
    f.registry.release(Holder::Gateway(gateway), &release(kept, Outcome::Done), f.now);
    assert_eq!(f.status().tickets, 1);
}

#[test]
fn a_request_of_a_known_worker_is_adopted_once_and_ends_by_its_release() {
    let mut f = Fixture::with_worker(1);
    let ticket = TicketId::new();
    for _ in 0..2 {
        assert_eq!(f.registry.adopt(f.gateway, &[held("w", ticket)], f.now), []);
    }
    assert_eq!((f.status().tickets, f.grant()), (1, Err(FULL)));
    f.release(ticket, Outcome::Done);
    assert_eq!(f.status().tickets, 0);
    f.granted();
}

#[test]
fn a_request_is_not_adopted_where_its_worker_or_its_model_is_not_known() {
    let mut f = Fixture::with_worker(2);
    let [first, second, third] = std::array::from_fn(|_| TicketId::new());
    let of_another_model = Held { model: "n".to_owned(), ..held("w", second) };
    let claims = [held("nobody", first), of_another_model, held("w", third)];
    assert_eq!(f.registry.adopt(f.gateway, &claims, f.now), [first, second]);
    assert_eq!((f.status().tickets, f.registry.held()), (1, 1));
    f.pass(secs(15));
    let fourth = TicketId::new();
    assert_eq!(f.registry.adopt(f.gateway, &[held("w", fourth)], f.now), [fourth], "its lease is over");
    assert_eq!((f.status().tickets, f.registry.held()), (0, 0));
}

#[test]
fn an_adopted_request_lapses_with_its_gateway() {
    let mut f = Fixture::with_worker(1);
    f.registry.adopt(f.gateway, &[held("w", TicketId::new())], f.now);
    f.pass(secs(14));
    f.beat(1);
    assert_eq!(f.status().tickets, 1);
    f.pass(secs(1));
    f.beat(0);
    assert_eq!((f.status().tickets, f.registry.held()), (0, 0));
}

#[test]
fn heartbeats_that_told_of_an_adopted_request_do_not_count_it_twice() {
    for beats_before in 0..4 {
        let mut f = Fixture::with_worker(2);
        for _ in 0..beats_before {
            f.beat(1);
        }
        let ticket = TicketId::new();
        f.registry.adopt(f.gateway, &[held("w", ticket)], f.now);
        let more = f.granted();
        assert_eq!(f.grant(), Err(FULL), "after {beats_before} beats");
        f.beat(2);
        f.beat(2);
        assert_eq!(f.grant(), Err(FULL), "after {beats_before} beats");
        f.release(ticket, Outcome::Done);
        f.release(more, Outcome::Done);
        f.beat(0);
        f.granted();
        f.granted();
    }
}

#[test]
fn an_adopted_request_that_the_worker_does_not_know_ends_after_two_beats() {
    let mut f = Fixture::with_worker(1);
    f.registry.adopt(f.gateway, &[held("w", TicketId::new())], f.now);
    for _ in 0..3 {
        f.pass(secs(5));
        f.registry.renew(f.gateway, f.now);
        f.beat(0);
    }
    assert_eq!(f.status().tickets, 0);
}

#[test]
fn a_request_goes_only_to_workers_that_speak_one_of_its_transports() {
    let mut f = Fixture::new();
    f.register(worker("http", 1));
    f.register(Registration { transport: Transport::OpenAi, ..worker("openai", 1) });
    let ask = |f: &mut Fixture, transports: &[Transport]| {
        let mut asker = asker(f.gateway);
        asker.request.transports = transports.to_vec();
        f.grant_to(&asker).map(|grant| grant.transport)
    };
    let ours = [Transport::Http, Transport::Grpc];
    assert_eq!(ask(&mut f, &ours), Ok(Transport::Http));
    assert_eq!(ask(&mut f, &ours), Err(FULL), "another transport has room");
    assert_eq!(ask(&mut f, &[]), Ok(Transport::OpenAi), "none named: any will do");
    assert_eq!(ask(&mut f, &[Transport::FastChat]), Err(ABSENT), "the model is known all the same");
}

#[test]
fn a_refusal_counts_the_workers_by_what_is_wrong_with_them() {
    let mut f = Fixture::new();
    for id in ["full", "open", "excluded", "draining"] {
        f.register(worker(id, 1));
    }
    f.registry.drain(&leave("draining"), f.now).expect("it is known");
    let mut picky = asker(f.gateway);
    picky.request.exclude = ["excluded", "draining", "unheard of", "excluded"].map(WorkerId::new).to_vec();
    let grants: Vec<_> = (0..2).map(|_| f.grant_to(&picky).expect("there is room")).collect();
    let of_open = grants.iter().find(|grant| grant.worker.as_str() == "open").expect("one of the two");
    f.release(of_open.ticket, Outcome::Unreachable);
    assert_eq!(f.grant_to(&picky), Err(Denial::NoRoom { full: 1, open: 1, paused: 0 }));
    f.now += secs(14);
    f.registry.heartbeat(&beat("excluded", 0), f.now).expect("it is known");
    f.now += secs(1);
    assert_eq!(f.grant_to(&picky), Err(Denial::NoWorker { excluded: 1 }));
}

#[test]
fn a_worker_that_never_beats_is_not_held_to_what_it_was_given_long_ago() {
    let mut f = Fixture::new();
    let silent = Origin::FastChat { beats: false, multimodal: false, queue_length: 0 };
    f.registry.register(fastchat_worker("w"), silent, f.now).expect("it is not stale");
    for _ in 0..3 {
        let ticket = f.granted();
        f.release(ticket, Outcome::Done);
    }
    let slot = f.registry.by_id[&WorkerId::new("w")];
    let worker = &f.registry.workers[slot];
    assert_eq!(worker.about(f.now).candidate(&worker.offers[0]).given, 0);
}

#[test]
fn lost_tickets_are_those_of_the_gateway_that_fell_silent() {
    let mut f = Fixture::with_worker(9);
    let kept = f.granted();
    let alive = f.gateway;
    let dead = GatewayId::new();
    f.gateway = dead;
    for _ in 0..3 {
        f.granted();
    }
    // It dies, and its requests with it; the one that came before them goes on. Two beats miss them before they lapse.
    for pause in [11, 2, 3] {
        f.now += secs(pause);
        f.registry.renew(alive, f.now);
        f.beat(1);
    }
    assert_eq!(f.status().tickets, 1, "theirs have ended or lapsed");
    let held: Vec<TicketId> = f.registry.gateways.tickets(alive).collect();
    assert_eq!(held, [kept]);
}
