//! A million events, and proofs that the checks can fail.

use super::world::{Violation, World};

/// Events of each seed.
const EVENTS: u64 = 66_000;
/// Seeds of each test.
const SEEDS: u64 = 4;
/// Tests, which run beside each other.
const TESTS: u64 = 4;
/// Replays this seed, or those `from..to`.
const SEED: &str = "MUSTER_SIM_SEED";

const _: () = assert!(EVENTS * SEEDS * TESTS >= 1_000_000);

/// The seeds of a test: its own, or for the first one those that are wished for.
fn seeds(test: u64) -> std::ops::Range<u64> {
    let Some(wished) = std::env::var_os(SEED) else { return test * SEEDS..(test + 1) * SEEDS };
    let wished = wished.into_string().expect("a number, or two with `..` between");
    let number = |text: &str| text.parse::<u64>().expect("a number, or two with `..` between");
    let wished = match wished.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&wished)..number(&wished) + 1,
    };
    if test == 0 { wished } else { 0..0 }
}

/// Prints what led to a panic in the shipped code.
struct Told(World);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.sim.trace);
        }
    }
}

fn storm(seed: u64, events: u64) -> Result<World, Violation> {
    let mut told = Told(World::new(seed));
    told.0.run(events)?;
    told.0.end()?;
    let world = std::mem::replace(&mut told.0, World::new(0));
    Ok(world)
}

fn storms(test: u64) {
    let (mut ended, mut answered) = (0, 0);
    for seed in seeds(test) {
        let world = storm(seed, EVENTS).unwrap_or_else(|Violation(why)| panic!("{why}"));
        let clients = &world.sim.clients;
        println!("seed {seed}: {clients}, {} times at rest", world.confirmed);
        assert!(world.confirmed > 1, "too little came of seed {seed} to prove anything");
        (ended, answered) = (ended + clients.ended, answered + clients.answered);
    }
    assert!(answered >= ended / 5, "too little came of it to prove anything: {answered} of {ended} are answered");
}

#[test]
fn every_rule_holds_over_a_million_events_first_quarter() {
    storms(0);
}

#[test]
fn every_rule_holds_over_a_million_events_second_quarter() {
    storms(1);
}

#[test]
fn every_rule_holds_over_a_million_events_third_quarter() {
    storms(2);
}

#[test]
fn every_rule_holds_over_a_million_events_fourth_quarter() {
    storms(3);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let hash = |seed| storm(seed, 20_000).map(|world| world.sim.trace.hash()).expect("every rule holds");
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}

#[test]
fn without_faults_no_worker_has_to_refuse() {
    for seed in 0..3 {
        let mut told = Told(World::fair(seed));
        told.0.run(20_000).and_then(|()| told.0.end()).unwrap_or_else(|Violation(why)| panic!("{why}"));
        let refusals: u64 = told.0.workers.iter().map(|worker| worker.refusals).sum();
        assert_eq!(refusals, 0, "seed {seed}");
    }
}

#[test]
fn a_worker_that_tells_less_than_it_has_is_found_out() {
    let found = (0..4).find_map(|seed| {
        let mut told = Told(World::new(seed));
        told.0.workers.iter_mut().for_each(|worker| worker.lies = true);
        told.0.run(EVENTS).and_then(|()| told.0.end()).err()
    });
    let Violation(why) = found.expect("the checks do not see it");
    assert!(why.contains("and the controller counts"), "{why}");
}
