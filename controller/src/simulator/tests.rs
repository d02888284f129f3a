//! What must hold of a run, whatever the policy.

use super::*;

/// What one policy makes of ten thousand requests.
fn of(policy: &str, scenario: &str) -> Figures {
    let scenario: Scenario = scenario.parse().expect("it is listed");
    simulate(&scenario, policy.parse().expect("it is listed"), 10_000, 1).expect("the fleet is taken")
}

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

#[test]
fn unequal_workers_answer_in_less_than_half_the_time_of_a_round_robin_and_are_used_more() {
    let (best, baseline) = (of("shortest_queue", "heterogeneous"), of("round_robin", "heterogeneous"));
    assert!(baseline.mean / best.mean >= 2.14, "{best:?} beside {baseline:?}");
    assert!(best.utilisation - baseline.utilisation >= 0.18, "{best:?} beside {baseline:?}");
    assert!(best.failures <= 0.013, "{best:?}");
}

#[test]
fn a_slow_and_a_failing_worker_cost_less_than_with_a_round_robin() {
    let (best, baseline) = (of("shortest_queue", "slow-and-failing"), of("round_robin", "slow-and-failing"));
    assert!(baseline.mean / best.mean >= 1.63, "{best:?} beside {baseline:?}");
    assert!(
        best.failures <= 0.007 && best.retries > 0.01,
        "requests break off, and are answered all the same: {best:?}"
    );
}

#[test]
fn prompts_that_begin_alike_are_answered_sooner_where_their_beginning_is_kept() {
    let (affine, shortest) = (of("prefix_affinity", "prefixes"), of("shortest_queue", "prefixes"));
    assert!(shortest.mean / affine.mean >= 1.05, "{affine:?} beside {shortest:?}");
}
