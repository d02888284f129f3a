//! What must hold of a run, whatever the policy.

use super::*;

fn figures(scenario: &str, requests: usize, seed: u64) -> Vec<(PolicyName, Figures)> {
    let scenario: Scenario = scenario.parse().expect("it is listed");
    let run = |policy| (policy, simulate(&scenario, policy, requests, seed).expect("the fleet is taken"));
    PolicyName::all().map(run).collect()
}

#[test]
fn the_same_seed_gives_the_same_figures_and_another_gives_others() {
    for scenario in Scenario::all() {
        let first = figures(scenario.name, 300, 1);
        assert_eq!(first, figures(scenario.name, 300, 1), "{scenario}");
        assert_ne!(first, figures(scenario.name, 300, 2), "{scenario}");
    }
}

#[test]
fn every_request_ends_once() {
    for scenario in Scenario::all() {
        for (policy, figures) in figures(scenario.name, 500, 3) {
            assert_eq!(figures.requests, 500, "{scenario}, {policy}");
            assert!(figures.p50 <= figures.p99 && figures.wait < figures.mean, "{scenario}, {policy}: {figures:?}");
        }
    }
}

#[test]
fn a_fleet_without_faults_and_overload_fails_nothing() {
    for (policy, figures) in figures("uniform", 2000, 5) {
        assert_eq!((figures.failures, figures.retries), (0.0, 0.0), "{policy}");
    }
}

#[test]
fn the_controller_counts_nothing_when_all_have_ended() {
    let scenario: Scenario = "slow-and-failing".parse().expect("it is listed");
    let mut simulation = Simulation::new(&scenario, PolicyName::default(), 1500, 9).expect("the fleet is taken");
    while !simulation.is_over() {
        simulation.advance().expect("no beat is refused");
    }
    assert!(simulation.tally.ended() == 1500 && simulation.controller.waiting() == 0);
    let workers = simulation.controller.workers(simulation.clock());
    assert!(workers.iter().all(|worker| worker.tickets == 0), "{workers:?}");
}
