//! Workers whose machines are short.

use super::*;

/// A heartbeat of `id` whose machine is in use so far, in percent.
fn pressed(id: &str, cpu: u32, memory: u32) -> Heartbeat {
    let share = |percent: u32| Some(f64::from(percent) / 100.0);
    let resources = muster_shared::control::Resources {
        cpu: share(cpu),
        memory: share(memory),
        ..muster_shared::control::Resources::default()
    };
    Heartbeat { resources: Some(resources), ..beat(id, 0) }
}

impl Fixture {
    /// With workers `a` and `b` of the model `m`.
    fn with_two(capacity: u32) -> Self {
        let mut f = Self::new();
        f.register(worker("a", capacity));
        f.register(worker("b", capacity));
        f
    }

    /// Sends a heartbeat; says whether the worker is asked to shed.
    fn press(&mut self, beat: &Heartbeat) -> bool {
        match self.registry.heartbeat(beat, self.now).expect("it is not stale") {
            HeartbeatReply::Renewed(renewal) => renewal.shed,
            HeartbeatReply::Unknown => panic!("{} is not known", beat.id),
        }
    }

    fn states(&self) -> Vec<WorkerState> {
        self.registry.workers(self.now).iter().map(|worker| worker.state).collect()
    }

    /// Who gets that many requests.
    fn chosen(&mut self, requests: usize) -> Vec<String> {
        (0..requests).map(|_| self.grant().expect("there is room").worker.to_string()).collect()
    }
}

#[test]
fn a_worker_short_of_processors_gets_nothing_while_another_is_not() {
    let mut f = Fixture::with_two(2);
    assert!(!f.press(&pressed("a", 90, 10)), "what waits there is only slow");
    assert_eq!(f.states(), [WorkerState::Paused, WorkerState::Ready]);
    let status = f.status();
    assert_eq!(status.paused.as_deref(), Some("processors taken by others 90 % is above 85 %, resumes below 75 %"));
    assert_eq!(status.resources.and_then(|resources| resources.cpu), Some(0.9));
    assert_eq!(f.chosen(2), ["b", "b"]);
    assert_eq!(f.grant(), Err(Denial::NoRoom { full: 1, open: 0, paused: 1 }), "rather wait for the other");
    f.press(&pressed("a", 80, 10));
    assert!(f.grant().is_err(), "between the marks it stays as it was");
    f.press(&pressed("a", 70, 10));
    assert_eq!((f.states(), f.status().paused), (vec![WorkerState::Ready; 2], None));
    assert_eq!(f.chosen(2), ["a", "a"]);
    assert_eq!(f.grant(), Err(Denial::NoRoom { full: 2, open: 0, paused: 0 }));
}

#[test]
fn what_the_models_compute_themselves_pauses_nobody() {
    let mut f = Fixture::with_two(1);
    let mut busy = pressed("a", 100, 10);
    busy.resources.as_mut().expect("they are told").model_cpu = Some(0.95);
    f.press(&busy);
    assert_eq!(f.states(), [WorkerState::Ready; 2]);
}

#[test]
fn when_all_are_paused_the_pause_is_ignored() {
    let mut f = Fixture::with_two(1);
    f.press(&pressed("a", 90, 10));
    assert!(!f.press(&pressed("b", 10, 95)), "there is nobody to take what waits");
    let mut chosen = f.chosen(2);
    chosen.sort();
    assert_eq!(chosen, ["a", "b"]);
    assert_eq!(f.grant(), Err(Denial::NoRoom { full: 2, open: 0, paused: 0 }));
    assert_eq!(
        f.lookup().map(|address| address.len()),
        Some("http://a".len()),
        "FastChat's gateways are named one, be it full"
    );
}

#[test]
fn a_request_that_has_only_paused_workers_left_gets_one() {
    let mut f = Fixture::with_two(1);
    f.press(&pressed("a", 90, 10));
    let mut asker = asker(f.gateway);
    asker.request.exclude = vec![WorkerId::new("b")];
    assert_eq!(f.grant_to(&asker).expect("there is room").worker, WorkerId::new("a"));
    assert_eq!(f.grant_to(&asker), Err(FULL));
}

#[test]
fn a_worker_that_fails_keeps_nobody_from_one_that_is_paused() {
    let mut f = Fixture::with_two(2);
    f.press(&pressed("a", 90, 10));
    let ticket = f.granted();
    f.release(ticket, Outcome::Unreachable);
    assert_eq!(f.states(), [WorkerState::Paused, WorkerState::Open]);
    assert_eq!(f.chosen(1), ["a"]);
    f.press(&pressed("b", 10, 10));
    assert_eq!(f.states(), [WorkerState::Paused, WorkerState::Suspect]);
    assert_eq!(f.chosen(1), ["b"], "a trial is given to who is doubtful before one that is paused is used");
}

#[test]
fn a_paused_worker_that_fails_is_tried_once_at_a_time() {
    let mut f = Fixture::new();
    f.register(worker("w", 4));
    f.press(&pressed("w", 90, 10));
    let ticket = f.granted();
    f.release(ticket, Outcome::Unreachable);
    assert_eq!((f.states(), f.grant()), (vec![WorkerState::Open], Err(OPEN)));
    f.press(&pressed("w", 90, 10));
    assert_eq!(f.states(), [WorkerState::Paused]);
    f.granted();
    assert_eq!(f.grant(), Err(FULL), "half open");
}

#[test]
fn a_worker_short_of_memory_hands_over_what_waits_where_another_takes_it() {
    let mut f = Fixture::with_two(2);
    let mut beat = pressed("a", 10, 95);
    assert!(f.press(&beat));
    let waits = |model: &str| muster_shared::control::ModelLoad { model: model.to_owned(), running: 1, waiting: 1 };
    beat.load = Some(vec![waits("m")]);
    assert!(f.press(&beat));
    beat.load = Some(vec![waits("m"), waits("n")]);
    assert!(!f.press(&beat), "nobody else serves one of its models, for which requests wait");
    beat.load = None;
    assert!(f.press(&beat), "it does not say what waits");
    let mut eased = pressed("a", 10, 87);
    assert!(f.press(&eased), "until it is below the other mark");
    eased.resources.as_mut().expect("they are told").memory = Some(0.8);
    assert!(!f.press(&eased));
    f.press(&pressed("b", 90, 10));
    assert!(!f.press(&pressed("a", 10, 95)), "the other is paused, too");
}

#[test]
fn a_pause_survives_a_registration_of_the_same_process_and_no_other() {
    let mut f = Fixture::with_two(1);
    f.press(&pressed("a", 90, 10));
    f.register(worker("a", 2));
    assert_eq!(f.states(), [WorkerState::Paused, WorkerState::Ready]);
    f.register(Registration { incarnation: 2, ..worker("a", 2) });
    assert_eq!(f.states(), [WorkerState::Ready; 2]);
}

#[test]
fn a_worker_that_leaves_or_is_gone_is_not_paused() {
    let mut f = Fixture::with_two(1);
    f.press(&pressed("a", 90, 10));
    f.press(&pressed("b", 90, 10));
    f.registry.drain(&leave("a"), f.now).expect("it is known");
    assert_eq!((f.states()[0], f.status().paused), (WorkerState::Draining, None));
    f.pass(secs(15));
    assert_eq!((f.states(), f.status().paused), (vec![WorkerState::Gone; 2], None));
}

#[test]
fn one_who_waits_gets_a_worker_when_its_pause_ends_and_when_the_only_other_leaves() {
    let mut f = Fixture::with_two(1);
    f.press(&pressed("a", 90, 10));
    assert_eq!(f.chosen(1), ["b"]);
    f.registry.take_changed();
    f.press(&pressed("a", 70, 10));
    assert_eq!(f.registry.take_changed().len(), 1, "those who wait are looked at");
    f.press(&pressed("a", 90, 10));
    f.registry.take_changed();
    f.registry.drain(&leave("b"), f.now).expect("it is known");
    assert_eq!(f.registry.take_changed().len(), 1, "a pause is ignored from now on");
    assert_eq!(f.chosen(1), ["a"]);
}
