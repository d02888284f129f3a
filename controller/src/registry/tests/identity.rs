//! Who a worker is, and which of its messages are past.

use super::*;

#[test]
fn an_address_belongs_to_one_worker_until_that_has_gone() {
    let mut f = Fixture::with_worker(1);
    let thief = Registration { address: "http://w".to_owned(), ..worker("thief", 1) };
    let before = f.registry.portrait();
    let refused = f.registry.register(thief.clone(), Origin::Native, f.now).expect_err("it is another's");
    assert_eq!((refused.kind, refused.param.as_deref()), (Kind::Invalid, Some("address")));
    assert!(refused.message.contains("worker `w`"), "{refused}");
    assert_eq!(f.registry.portrait(), before, "a refusal changed something");
    f.now += secs(15);
    f.register(thief);
    assert_eq!(f.registry.served().len(), 1);
}

#[test]
fn a_worker_may_move_and_leaves_its_address_to_others() {
    let mut f = Fixture::with_worker(1);
    f.register(Registration { address: "http://new".to_owned(), ..worker("w", 1) });
    f.register(Registration { address: "http://w".to_owned(), ..worker("other", 1) });
    assert_eq!(f.registry.workers(f.now).len(), 2);
}

#[test]
fn whoever_answers_at_an_address_is_believed_that_nobody_else_lives_there() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    let successor = Registration { address: "http://w".to_owned(), ..worker("successor", 1) };
    f.registry.believe(&successor, f.now);
    f.register(successor.clone());
    let states: Vec<_> = f.registry.workers(f.now).into_iter().map(|worker| (worker.state, worker.tickets)).collect();
    assert_eq!(states, [(WorkerState::Ready, 0), (WorkerState::Gone, 0)]);
    // Its machine's clock is set back, and it starts again.
    let restarted = Registration { incarnation: 0, ..successor };
    let refused = f.registry.register(restarted.clone(), Origin::Native, f.now).expect_err("it looks older");
    assert_eq!(refused.kind, Kind::Stale);
    f.registry.believe(&restarted, f.now);
    f.register(restarted);
}

#[test]
fn another_process_of_the_same_name_is_looked_for_only_while_it_may_live_elsewhere() {
    let mut f = Fixture::with_worker(1);
    let same = worker("w", 1);
    let moved = Registration { incarnation: 2, address: "http://new".to_owned(), ..same.clone() };
    assert_eq!(f.registry.elsewhere(&same, f.now), None);
    let known = f.registry.elsewhere(&moved, f.now).expect("the first one may live");
    assert_eq!((known.address.as_str(), known.incarnation), ("http://w", 1));
    f.registry.drain(&leave("w"), f.now).expect("it is known");
    assert_eq!(f.registry.elsewhere(&moved, f.now), None, "it is on its way out");
}

#[test]
fn a_heartbeat_from_the_past_changes_nothing() {
    let mut f = Fixture::with_worker(4);
    let numbered = |number, running| Heartbeat { sequence: Some(number), ..beat("w", running) };
    f.registry.heartbeat(&numbered(7, 3), f.now).expect("it is the first");
    f.now += secs(1);
    let before = f.registry.portrait();
    for late in [numbered(6, 0), numbered(7, 0)] {
        let refused = f.registry.heartbeat(&late, f.now).expect_err("a later one has come");
        assert_eq!((refused.kind, refused.param.as_deref()), (Kind::Stale, Some("sequence")));
    }
    assert_eq!(f.registry.portrait(), before, "a refusal changed something");
    f.registry.heartbeat(&numbered(9, 0), f.now).expect("it is the next, though one was lost");
}

#[test]
fn a_clock_that_jumps_back_ends_no_lease() {
    let mut f = Fixture::with_worker(1);
    let start = f.now;
    f.now += secs(10);
    f.beat(0);
    f.now = start;
    f.beat(0);
    f.registry.renew(f.gateway, f.now);
    let ticket = f.granted();
    f.release(ticket, Outcome::Done);
    f.now = start + secs(24);
    assert_eq!(f.status().state, WorkerState::Ready);
    f.registry.settle(f.now);
    f.registry.audit(f.now);
}

#[test]
fn a_worker_of_ours_is_not_taken_for_one_of_fastchats() {
    let mut f = Fixture::with_worker(2);
    f.granted();
    let before = f.registry.portrait();
    let refused = f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect_err("it lives");
    assert_eq!((refused.kind, refused.param.as_deref()), (Kind::Stale, Some("worker_name")));
    assert_eq!(f.registry.portrait(), before, "a refusal changed something");
    f.now += secs(15);
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it has gone");
}
