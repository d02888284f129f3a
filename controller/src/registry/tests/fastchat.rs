//! Workers that speak FastChat's protocol, and those who look for them in its words.

use muster_shared::control::ModelLoad;

use super::*;

#[test]
fn an_address_given_away_counts_until_the_next_beat() {
    let mut f = Fixture::new();
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it is not stale");
    assert_eq!(f.lookup().as_deref(), Some("http://w"));
    assert_eq!(f.status().tickets, 1);
    assert!(f.registry.fastchat_beat(&WorkerId::new("w"), 1, f.now));
    assert_eq!((f.status().tickets, f.registry.as_one_worker(f.now).queue_length), (0, 1));
}

#[test]
fn a_ticket_that_a_fastchat_worker_never_saw_is_lost_after_two_beats() {
    let mut f = Fixture::new();
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it is not stale");
    f.granted();
    let seen = f.granted();
    let beat = |f: &mut Fixture, queue_length| {
        f.registry.renew(f.gateway, f.now);
        assert!(f.registry.fastchat_beat(&WorkerId::new("w"), queue_length, f.now));
        f.status().tickets
    };
    f.pass(secs(9));
    assert_eq!(beat(&mut f, 1), 2, "the request may still be on its way");
    f.pass(secs(9));
    assert_eq!(beat(&mut f, 1), 2, "one beat may have been overtaken");
    f.pass(secs(9));
    assert_eq!(beat(&mut f, 1), 1);
    f.pass(secs(9));
    assert_eq!(beat(&mut f, 1), 1, "the other one is real");
    f.release(seen, Outcome::Done);
}

#[test]
fn an_address_is_given_though_all_are_full_but_then_counts_nothing() {
    let mut f = Fixture::with_worker(1);
    f.granted();
    assert_eq!(f.lookup().as_deref(), Some("http://w"));
    assert_eq!(f.status().tickets, 1);
}

#[test]
fn a_fastchat_worker_that_need_not_beat_never_expires() {
    let mut f = Fixture::new();
    let origin = Origin::FastChat { beats: false, multimodal: false, queue_length: 0 };
    f.registry.register(fastchat_worker("w"), origin, f.now).expect("it is not stale");
    f.lookup().expect("it lives");
    f.pass(secs(90));
    assert_eq!((f.status().state, f.status().tickets), (WorkerState::Ready, 0));
    f.pass(secs(100_000));
    f.registry.sweep(f.now);
    assert_eq!((f.status().state, f.status().lease_ms), (WorkerState::Ready, None));
}

#[test]
fn a_fastchat_lease_lasts_a_minute_and_a_half() {
    let mut f = Fixture::new();
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it is not stale");
    f.pass(secs(89));
    assert!(f.registry.fastchat_beat(&WorkerId::new("w"), 0, f.now));
    f.pass(secs(90));
    assert!(!f.registry.fastchat_beat(&WorkerId::new("w"), 0, f.now));
    assert!(f.registry.model_names(None, f.now).is_empty());
}

#[test]
fn a_fastchat_worker_told_anew_changes_its_models_and_keeps_its_tickets() {
    let mut f = Fixture::new();
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it is not stale");
    f.granted();
    let names = ["m", "n"].map(str::to_owned).to_vec();
    let status = muster_shared::fastchat::WorkerStatus { model_names: names, speed: 2.0, queue_length: 1 };
    f.registry.update_fastchat(&WorkerId::new("w"), status, f.now);
    assert_eq!(f.registry.model_names(None, f.now), ["m", "n"]);
    assert_eq!((f.status().tickets, f.status().speed), (1, 2.0));
}

#[test]
fn the_one_number_of_a_fastchat_worker_is_shown_as_that_of_all_its_models() {
    let mut f = Fixture::new();
    f.registry.register(fastchat_worker("w"), FASTCHAT, f.now).expect("it is not stale");
    let told = |f: &mut Fixture, names: &[&str], queue_length| {
        let model_names = names.iter().map(|&name| name.to_owned()).collect();
        let status = muster_shared::fastchat::WorkerStatus { model_names, speed: 1.0, queue_length };
        f.registry.update_fastchat(&WorkerId::new("w"), status, f.now);
        f.status().reported
    };
    let load = |model: &str, running| vec![ModelLoad { model: model.to_owned(), running, waiting: 0 }];
    assert_eq!(told(&mut f, &["m"], 2), load("m", 2));
    assert_eq!(told(&mut f, &["m", "n"], 3), load("m, n", 3), "also of a model that came with the number");
    assert_eq!(told(&mut f, &["m", "n"], 0), []);
}

#[test]
fn the_load_of_the_whole_fleet_is_summed() {
    let mut f = Fixture::new();
    let told = |queue_length| Origin::FastChat { beats: true, multimodal: queue_length == 3, queue_length };
    f.registry.register(fastchat_worker("v"), told(2), f.now).expect("it is not stale");
    f.registry.register(fastchat_worker("w"), told(3), f.now).expect("it is not stale");
    let one = f.registry.as_one_worker(f.now);
    assert_eq!((one.speed, one.queue_length, one.model_names.len()), (2.0, 5, 1));
    assert_eq!(f.registry.model_names(Some(true), f.now), ["m"]);
}
