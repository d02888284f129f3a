//! Static peers.

use muster_shared::control::{Capabilities, Gpu, ModelCard, Source};
use proptest::prelude::*;

use super::*;
use crate::peers::Peer;

/// A peer of the model `m`.
fn peer(id: &str) -> Peer {
    Peer {
        id: WorkerId::new(id),
        address: format!("http://{id}:1"),
        transport: Transport::Http,
        models: vec![ModelCard::bare("m")],
        site: None,
        speed: None,
        capabilities: None,
    }
}

/// What a worker of these models answers.
fn answer(incarnation: u64, models: &[&str]) -> Answer {
    Answer {
        models: Some(models.iter().map(|&name| ModelCard::bare(name.to_owned())).collect()),
        speed: None,
        version: "1".to_owned(),
        incarnation,
        capabilities: None,
        load: Load::Unknown,
    }
}

impl Fixture {
    fn with_peers(peers: &[Peer]) -> Self {
        let mut f = Self::new();
        f.set(peers);
        f
    }

    fn set(&mut self, peers: &[Peer]) {
        self.registry.set_peers(peers, self.now);
        self.registry.audit(self.now);
    }

    fn answers(&mut self, id: &str, answer: Answer) {
        self.registry.peer_answered(&WorkerId::new(id), answer, self.now);
        self.registry.judge_peer(&WorkerId::new(id), Verdict::Up, self.now);
        self.registry.audit(self.now);
    }

    fn falls(&mut self, id: &str) {
        self.registry.judge_peer(&WorkerId::new(id), Verdict::Down("it is silent".to_owned()), self.now);
        self.registry.audit(self.now);
    }

    /// Why that one is as it is.
    fn why(&self, id: &str) -> String {
        self.peer_named(id).told.reason.clone().into_owned()
    }

    fn peer_named(&self, id: &str) -> &Worker {
        &self.registry.workers[self.registry.by_id[&WorkerId::new(id)]]
    }

    fn all(&self) -> Vec<(String, WorkerState)> {
        self.registry.workers(self.now).into_iter().map(|it| (it.id.as_str().to_owned(), it.state)).collect()
    }
}

#[test]
fn a_peer_is_known_at_once_and_waited_for_until_it_has_answered() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    assert_eq!(f.grant(), Err(Denial::NoRoom { full: 0, open: 1, paused: 0 }), "whoever asks may wait");
    let known = f.registry.workers(f.now).remove(0);
    assert_eq!((known.source, known.state, known.lease_ms), (Source::Static, WorkerState::Open, None));
    f.answers("a", answer(1, &["m"]));
    f.now += secs(100_000);
    f.registry.settle(f.now);
    assert_eq!(f.grant().expect("it has no lease to end").worker.as_str(), "a");
}

#[test]
fn a_peer_that_is_down_gets_nothing_and_is_back_when_it_answers() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    f.answers("a", answer(1, &["m"]));
    let ticket = f.granted();
    f.falls("a");
    assert_eq!(f.grant(), Err(Denial::NoWorker { excluded: 0 }));
    assert_eq!(f.all(), [("a".to_owned(), WorkerState::Down)]);
    assert_eq!(f.peer_named("a").down_reason(), Some("it is silent"));
    assert_eq!(f.registry.held(), 1, "its requests may go on though its probes fail");
    f.answers("a", answer(1, &["m"]));
    assert_eq!((f.all().remove(0).1, f.peer_named("a").down_reason()), (WorkerState::Ready, None));
    f.release(ticket, Outcome::Done);
    f.granted();
}

#[test]
fn a_peer_that_has_started_anew_has_none_of_its_old_requests() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    f.answers("a", answer(1, &["m"]));
    f.granted();
    f.registry.drain(&leave("a"), f.now).expect("it is known");
    f.answers("a", answer(1, &["m"]));
    assert_eq!((f.registry.held(), f.all().remove(0).1), (1, WorkerState::Draining));
    f.answers("a", answer(2, &["m"]));
    assert_eq!((f.registry.held(), f.all().remove(0).1), (0, WorkerState::Ready));
}

#[test]
fn a_removed_peer_finishes_what_it_runs_and_is_forgotten_then() {
    let mut f = Fixture::with_peers(&[peer("a"), peer("b")]);
    f.answers("a", answer(1, &["m"]));
    let ticket = f.granted();
    f.set(&[peer("b")]);
    assert_eq!(f.all(), [("a".to_owned(), WorkerState::Draining), ("b".to_owned(), WorkerState::Open)]);
    assert_eq!(f.grant(), Err(Denial::NoRoom { full: 0, open: 1, paused: 0 }));
    f.registry.sweep(f.now);
    assert_eq!(f.all().len(), 2, "it still runs one");
    f.release(ticket, Outcome::Done);
    f.registry.sweep(f.now);
    f.registry.audit(f.now);
    assert_eq!(f.all(), [("b".to_owned(), WorkerState::Open)]);
}

#[test]
fn a_peer_that_is_changed_where_it_is_keeps_its_tickets_and_elsewhere_it_is_another() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    f.answers("a", answer(1, &["m", "n"]));
    f.granted();
    let changed = Peer { site: Some("here".to_owned()), models: Vec::new(), speed: Some(2.0), ..peer("a") };
    f.set(std::slice::from_ref(&changed));
    assert_eq!(f.registry.held(), 1);
    assert_eq!((f.peer_named("a").site.as_deref(), f.peer_named("a").speed), (Some("here"), 2.0));
    assert_eq!(f.registry.served().len(), 2, "what it told is offered without another probe");
    f.set(&[Peer { transport: Transport::OpenAi, ..peer("a") }]);
    assert_eq!((f.registry.held(), f.all().remove(0).1), (1, WorkerState::Open), "it must answer in other words");
    f.set(&[Peer { address: "http://elsewhere:1".to_owned(), ..peer("a") }]);
    assert_eq!((f.registry.held(), f.all().remove(0).1), (0, WorkerState::Open));
}

#[test]
fn peers_may_change_places_and_come_back_before_they_are_forgotten() {
    let mut f = Fixture::with_peers(&[peer("a"), peer("b")]);
    f.answers("a", answer(1, &["m"]));
    f.granted();
    f.set(&[
        Peer { address: "http://b:1".to_owned(), ..peer("a") },
        Peer { address: "http://a:1".to_owned(), ..peer("b") },
    ]);
    f.set(&[]);
    f.set(&[peer("a"), peer("b")]);
    f.answers("a", answer(1, &["m"]));
    f.answers("b", answer(1, &["m"]));
    assert_eq!(f.all(), [("a".to_owned(), WorkerState::Ready), ("b".to_owned(), WorkerState::Ready)]);
}

#[test]
fn whoever_registers_as_a_peer_is_refused_with_a_way_out() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    let before = f.registry.portrait();
    for (registration, origin, param) in [
        (worker("a", 1), Origin::Native, "id"),
        (Registration { address: "http://a:1".to_owned(), ..worker("x", 1) }, Origin::Native, "address"),
        (Registration { address: "HTTP://A:1/".to_owned(), ..worker("x", 1) }, Origin::Native, "address"),
        (Registration { address: "http://a:1".to_owned(), ..fastchat_worker("x") }, FASTCHAT, "address"),
    ] {
        f.registry.believe(&registration, f.now);
        let refused = f.registry.register(registration, origin, f.now).expect_err("it is written down");
        assert_eq!((refused.kind, refused.param.as_deref()), (Kind::Invalid, Some(param)));
        assert!(refused.message.contains("`a`") && refused.message.contains("--no-register"), "{refused}");
    }
    f.registry.deregister(&leave("a"), f.now).expect_err("the file says that it is there");
    assert!(!f.registry.fastchat_beat(&WorkerId::new("a"), 1, f.now));
    assert_eq!(f.registry.heartbeat(&beat("a", 1), f.now), Ok(HeartbeatReply::Unknown));
    assert_eq!(f.registry.portrait(), before, "a refusal changed something");
}

#[test]
fn a_worker_that_is_written_down_later_or_no_more_keeps_its_requests() {
    let mut f = Fixture::with_worker(4);
    f.granted();
    let written = Peer { address: "http://w".to_owned(), models: Vec::new(), ..peer("w") };
    f.set(std::slice::from_ref(&written));
    assert_eq!((f.registry.held(), f.all().remove(0).1), (1, WorkerState::Ready), "it lives, as is known");
    f.granted();
    f.answers("w", answer(1, &["m"]));
    f.set(&[]);
    f.register(worker("w", 4));
    f.registry.audit(f.now);
    assert_eq!((f.registry.held(), f.all().remove(0).1), (2, WorkerState::Ready));
}

#[test]
fn a_worker_at_the_address_of_a_peer_of_another_name_gives_way() {
    let mut f = Fixture::with_worker(4);
    f.granted();
    f.set(&[Peer { address: "http://w".to_owned(), ..peer("p") }]);
    assert_eq!(f.all(), [("p".to_owned(), WorkerState::Open), ("w".to_owned(), WorkerState::Gone)]);
    assert_eq!(f.why("w"), "written down as `p`");
}

#[test]
fn a_lookup_counts_at_a_peer_for_a_heartbeat_though_it_is_probed_seldom() {
    let capacity = Some(muster_shared::control::Capacity { running: 1, waiting: 0 });
    let models = vec![ModelCard { capacity, ..ModelCard::bare("m") }];
    let mut f = Fixture::with_peers(&[Peer { models, ..peer("a") }]);
    f.answers("a", answer(1, &["m"]));
    assert_eq!(f.lookup().as_deref(), Some("http://a:1"));
    assert_eq!(f.grant().map(drop), Err(FULL));
    f.pass(rules().lease.heartbeat - Duration::from_millis(1));
    assert_eq!(f.grant().map(drop), Err(FULL));
    f.pass(Duration::from_millis(1));
    f.granted();
    f.registry.audit(f.now);
}

#[test]
fn a_cause_is_told_of_the_state_that_its_author_meant_alone() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    assert_eq!(f.why("a"), "it has not answered yet");
    let resources = muster_shared::control::Resources { memory: Some(0.99), ..Default::default() };
    let short = Heartbeat { resources: Some(resources), ..beat("a", 0) };
    f.answers("a", Answer { load: Load::Beat(Box::new(short)), ..answer(1, &["m"]) });
    assert_eq!(f.all()[0].1, WorkerState::Paused);
    assert!(f.why("a").contains("memory"), "{}", f.why("a"));
    f.registry.drain(&leave("a"), f.now).expect("it is known");
    assert_eq!(f.why("a"), "drained by an operator");
    f.registry.resume(&leave("a"), f.now).expect("it drains");
    assert!(f.why("a").contains("memory"), "{}", f.why("a"));
    let resources = muster_shared::control::Resources { memory: Some(0.5), ..Default::default() };
    let well = Heartbeat { resources: Some(resources), ..beat("a", 0) };
    f.answers("a", Answer { load: Load::Beat(Box::new(well)), ..answer(1, &["m"]) });
    f.registry.drain(&leave("a"), f.now).expect("it is known");
    f.registry.resume(&leave("a"), f.now).expect("it drains");
    assert_eq!(f.why("a"), "resumed by an operator");
}

#[test]
fn a_failed_request_at_a_peer_makes_it_doubtful() {
    let mut f = Fixture::with_peers(&[peer("a")]);
    f.answers("a", answer(1, &["m"]));
    f.register(Registration { models: vec![ModelCard::bare("n")], ..worker("w", 4) });
    for (outcome, doubted) in
        [(Outcome::Done, 0), (Outcome::Cancelled, 0), (Outcome::Failed, 1), (Outcome::Unreachable, 1)]
    {
        let ticket = f.granted();
        f.release(ticket, outcome);
        assert_eq!(f.registry.take_doubtful().len(), doubted, "{outcome:?}");
    }
    f.answers("a", answer(1, &["m"]));
    assert_eq!(f.all().remove(0).1, WorkerState::Suspect, "an answer lets the next request try");
}

#[test]
fn what_a_peer_tells_is_its_load_and_its_machine() {
    let declared = Capabilities { memory_gb: Some(64.0), gpu: Some(Gpu::Any(true)), ..Capabilities::default() };
    let mut f = Fixture::with_peers(&[Peer { capabilities: Some(declared.clone()), ..peer("a") }]);
    assert_eq!(f.peer_named("a").capabilities, Some(declared.clone()));
    let told = Capabilities { cpus: Some(4), memory_gb: Some(32.0), gpu: Some(Gpu::Any(true)), gpu_memory_gb: None };
    let load = Load::Beat(Box::new(beat("whatever", 3)));
    let card = ModelCard { context_length: Some(99), ..ModelCard::bare("m") };
    f.answers(
        "a",
        Answer {
            models: Some(vec![card.clone()]),
            capabilities: Some(told.clone()),
            load: load.clone(),
            ..answer(1, &[])
        },
    );
    f.answers("a", Answer { models: Some(vec![card]), capabilities: Some(told.clone()), load, ..answer(1, &[]) });
    let a = f.peer_named("a");
    assert_eq!((a.load(), a.offers[0].card.context_length), (3, Some(99)));
    assert_eq!((&a.declared, &a.capabilities), (&Some(declared), &Some(told)));
    assert_eq!(a.warnings(), ["memory_gb 64 is declared, and the peer reports 32"]);
}

#[test]
fn a_model_that_a_peer_serves_no_more_is_offered_no_more() {
    let mut f = Fixture::with_peers(&[Peer { models: Vec::new(), ..peer("a") }]);
    assert_eq!(f.grant(), Err(Denial::UnknownModel));
    assert!(f.registry.peer_answered(&WorkerId::new("a"), answer(1, &["m"]), f.now), "there are others now");
    f.answers("a", answer(1, &["m"]));
    f.granted();
    f.answers("a", answer(1, &["n"]));
    assert_eq!((f.registry.held(), f.grant()), (0, Err(Denial::UnknownModel)));
}

proptest! {
    #[test]
    fn everything_agrees_after_whatever_happens_to_peers(steps in proptest::collection::vec((0..7_u8, 0..3_usize, 0..8_usize), 1..60)) {
        let mut f = Fixture::new();
        let ids = ["a", "b", "w"];
        let mut tickets = Vec::new();
        for (step, who, how) in steps {
            let id = ids[who];
            match step {
                0 => {
                    let here = (0..3).filter(|bit| how & (1 << bit) != 0).map(|bit| ids[bit]);
                    let peers: Vec<_> = here.map(|id| Peer { address: format!("http://{id}"), ..peer(id) }).collect();
                    f.registry.set_peers(&peers, f.now);
                }
                1 => f.answers(id, answer(how as u64 / 4, &["m", "n"][how % 2..])),
                2 => f.falls(id),
                3 => drop(f.registry.register(worker(id, 2), Origin::Native, f.now)),
                4 => tickets.extend(f.grant().ok().map(|grant| grant.ticket)),
                5 => if let Some(ticket) = tickets.pop() {
                    f.release(ticket, if how > 5 { Outcome::Failed } else { Outcome::Done });
                },
                _ => {
                    f.now += secs(how as u64);
                    f.registry.sweep(f.now);
                }
            }
            f.registry.settle(f.now);
            f.registry.audit(f.now);
        }
    }
}
