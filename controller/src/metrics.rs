//! The controller's metrics. Labels take values from fixed lists only.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use muster_shared::control::{Outcome, WorkerState};
use muster_shared::problem::Kind;

use crate::desk::Answer;

const WORKERS: &str = "muster_controller_workers";
const PEERS: &str = "muster_controller_peers";
const PEERS_RELOADS: &str = "muster_controller_peers_reloads_total";
const TICKETS: &str = "muster_controller_tickets";
const WAITING: &str = "muster_controller_waiting";
const DISPATCHES: &str = "muster_controller_dispatches_total";
const DISPATCH_WAIT: &str = "muster_controller_dispatch_wait_seconds";
const RELEASES: &str = "muster_controller_releases_total";
const HEARTBEATS: &str = "muster_controller_heartbeats_total";
const REGISTRATIONS: &str = "muster_controller_registrations_total";

// What every request touches is looked up once.
static GRANTED: LazyLock<Counter> = LazyLock::new(|| counter!(DISPATCHES, "outcome" => "granted"));
static WAITED: LazyLock<Histogram> = LazyLock::new(|| histogram!(DISPATCH_WAIT));
static ADDRESS: LazyLock<Counter> = LazyLock::new(|| counter!(DISPATCHES, "outcome" => "address"));
static RENEWED: LazyLock<Counter> = LazyLock::new(|| counter!(HEARTBEATS, "result" => "renewed"));
static DONE: LazyLock<Counter> = LazyLock::new(|| counter!(RELEASES, "outcome" => "done"));

/// States with their label; every one is told each time, so that none sticks at an old value.
const STATES: [(WorkerState, &str); 7] = [
    (WorkerState::Ready, "ready"),
    (WorkerState::Suspect, "suspect"),
    (WorkerState::Open, "open"),
    (WorkerState::Paused, "paused"),
    (WorkerState::Draining, "draining"),
    (WorkerState::Down, "down"),
    (WorkerState::Gone, "gone"),
];

/// Says what each metric means.
pub(crate) fn describe() {
    describe_gauge!(WORKERS, Unit::Count, "Workers, by state");
    describe_gauge!(PEERS, Unit::Count, "Workers of the peers file, by state");
    describe_counter!(PEERS_RELOADS, Unit::Count, "Changes of the peers file, by whether they are in force");
    describe_gauge!(TICKETS, Unit::Count, "Requests in flight whose end will be told, on all workers");
    describe_gauge!(WAITING, Unit::Count, "Requests that wait for room");
    describe_counter!(DISPATCHES, Unit::Count, "Requests for a worker, by outcome");
    describe_histogram!(DISPATCH_WAIT, Unit::Seconds, "Time from a request for a worker to its answer");
    describe_counter!(RELEASES, Unit::Count, "Tickets given back, by how the request ended");
    describe_counter!(HEARTBEATS, Unit::Count, "Heartbeats of workers, by result");
    describe_counter!(REGISTRATIONS, Unit::Count, "Registrations of workers, by result");
}

/// Sets the gauges.
pub(crate) fn gauge(workers: &HashMap<WorkerState, u32>, tickets: usize, waiting: usize) {
    for (state, label) in STATES {
        gauge!(WORKERS, "state" => label).set(workers.get(&state).copied().unwrap_or(0));
    }
    gauge!(TICKETS).set(tickets as f64);
    gauge!(WAITING).set(waiting as f64);
}

/// Sets the gauge of static peers; where there have never been any, there is nothing to tell.
pub(crate) fn gauge_peers(peers: &HashMap<WorkerState, u32>) {
    if peers.is_empty() {
        return;
    }
    for (state, label) in STATES {
        gauge!(PEERS, "state" => label).set(peers.get(&state).copied().unwrap_or(0));
    }
}

/// Counts one change of the peers file.
pub(crate) fn reloaded(applied: bool) {
    counter!(PEERS_RELOADS, "result" => if applied { "applied" } else { "refused" }).increment(1);
}

/// Counts one answered request for a worker.
pub(crate) fn dispatched(answer: &Answer, wait: Duration) {
    let outcome = match answer.as_ref().map_err(|problem| problem.kind) {
        Ok(_) => "granted",
        Err(Kind::UnknownModel) => "unknown_model",
        Err(Kind::NoWorker) => "no_worker",
        Err(Kind::Overloaded) => "overloaded",
        Err(Kind::RateLimited) => "rate_limited",
        Err(Kind::Timeout) => "late",
        Err(_) => "error",
    };
    match outcome {
        "granted" => GRANTED.increment(1),
        _ => counter!(DISPATCHES, "outcome" => outcome).increment(1),
    }
    WAITED.record(wait);
}

/// Counts one request for a worker whose sender went away.
pub(crate) fn dispatch_cancelled() {
    counter!(DISPATCHES, "outcome" => "cancelled").increment(1);
}

/// Counts one lookup through FastChat's interface.
pub(crate) fn looked_up(found: bool) {
    if found {
        ADDRESS.increment(1);
    } else {
        counter!(DISPATCHES, "outcome" => "no_worker").increment(1);
    }
}

/// Counts one ticket given back.
pub(crate) fn released(outcome: Outcome) {
    let outcome = match outcome {
        Outcome::Done => "done",
        Outcome::Cancelled => "cancelled",
        Outcome::Unreachable => "unreachable",
        Outcome::Failed => "failed",
        Outcome::Overloaded => "overloaded",
    };
    match outcome {
        "done" => DONE.increment(1),
        _ => counter!(RELEASES, "outcome" => outcome).increment(1),
    }
}

/// Counts one heartbeat.
pub(crate) fn beaten(result: &'static str) {
    match result {
        "renewed" => RENEWED.increment(1),
        _ => counter!(HEARTBEATS, "result" => result).increment(1),
    }
}

/// Counts one registration.
pub(crate) fn registered(accepted: bool) {
    counter!(REGISTRATIONS, "result" => if accepted { "accepted" } else { "refused" }).increment(1);
}
