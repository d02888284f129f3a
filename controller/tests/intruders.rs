//! Registrations and heartbeats that are not what they seem: refused with a reason, the registry unchanged.

mod common;

use muster_shared::client::ClientError;
use muster_shared::control::{Heartbeat, Registration, WorkerState};
use muster_shared::problem::{Kind, Problem};
use serde_json::{Value, json};

use common::{Controller, Worker};

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Problem {
    match result {
        Err(ClientError::Refused { problem, .. }) => problem,
        other => panic!("it is not refused: {other:?}"),
    }
}

/// Registers that, and expects a refusal that names `param` and changes nothing.
async fn refused(controller: &Controller, registration: &Registration, param: &str) -> Problem {
    let before = controller.fleet().await;
    let problem = refusal(controller.client.register(registration).await);
    assert_eq!(problem.param.as_deref(), Some(param), "{problem:?}");
    assert_eq!(controller.fleet().await, before);
    problem
}

#[tokio::test]
async fn nobody_registers_the_address_of_another() {
    let (controller, owner) = (Controller::start().await, Worker::start().await);
    controller.client.register(&owner.registration_as("owner", 1)).await.expect("it is reachable");
    let problem = refused(&controller, &owner.registration_as("thief", 9), "address").await;
    assert!(problem.message.contains("is that of the worker `owner`, which lives"), "{problem}");

    owner.says("owner", 1);
    let problem = refused(&controller, &owner.registration_as("thief", 9), "address").await;
    assert!(problem.message.ends_with("says that it is `owner`, not `thief`"), "{problem}");
    refused(&controller, &owner.registration_as("owner", 2), "incarnation").await;
    controller.client.register(&owner.registration_as("owner", 1)).await.expect("it is the owner");
}

#[tokio::test]
async fn a_worker_that_started_again_under_another_name_takes_its_address_over_at_once() {
    let (controller, server) = (Controller::start().await, Worker::start().await);
    controller.client.register(&server.registration_as("pod-1", 5)).await.expect("it is reachable");
    server.says("pod-2", 3); // its clock was set back besides
    controller.client.register(&server.registration_as("pod-2", 3)).await.expect("the worker itself says so");
    let fleet = controller.fleet().await;
    let states: Vec<_> = fleet.workers.iter().map(|worker| (worker.id.as_str(), worker.state)).collect();
    assert_eq!(states, [("pod-1", WorkerState::Gone), ("pod-2", WorkerState::Ready)]);
}

#[tokio::test]
async fn a_restart_with_an_older_clock_is_believed_when_the_worker_itself_says_so() {
    let (controller, server) = (Controller::start().await, Worker::start().await);
    controller.client.register(&server.registration_as("w", 1000)).await.expect("it is reachable");
    let problem = refused(&controller, &server.registration_as("w", 10), "incarnation").await;
    assert_eq!(problem.kind, Kind::Stale);
    server.says("w", 10);
    controller.client.register(&server.registration_as("w", 10)).await.expect("the worker itself says so");
}

#[tokio::test]
async fn two_processes_of_one_name_are_one_too_many() {
    let (controller, first) = (Controller::start().await, Worker::start().await);
    let second = Worker::start().await;
    first.says("w", 1);
    second.says("w", 2);
    controller.client.register(&first.registration_as("w", 1)).await.expect("it is reachable");
    let problem = refused(&controller, &second.registration_as("w", 2), "id").await;
    assert_eq!(problem.kind, Kind::Stale);
    assert!(problem.message.contains(&first.address), "it says where the other is: {problem}");
    first.stop().await;
    controller.client.register(&second.registration_as("w", 2)).await.expect("the first one has gone");
    assert_eq!(controller.fleet().await.workers[0].address, second.address);
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(1)).await.expect("it is reachable");
    let before = controller.fleet().await;
    let registration = serde_json::to_value(worker.registration(1)).expect("it is JSON");
    let with = |pointer: &str, value: Value| {
        let mut body = registration.clone();
        *body.pointer_mut(pointer).expect("it is there") = value;
        body
    };
    let models: Vec<_> = (0..5000).map(|number| json!({ "name": format!("m{number}") })).collect();
    for (body, param) in [
        (with("/models/0/capacity/running", json!(-1)), "models[0].capacity.running"),
        (with("/models/0/capacity/running", json!(1.5)), "models[0].capacity.running"),
        (with("/models/0/capacity", json!({ "running": 0, "waiting": 0 })), "models"),
        (with("/speed", json!("NaN")), "speed"),
        (with("/speed", json!(-0.5)), "speed"),
        (with("/incarnation", json!(-1)), "incarnation"),
        (with("/transport", json!("pigeon")), "transport"),
        (with("/models", json!(models)), "models"),
        (with("/id", json!("")), "id"),
        (with("/id", json!("a\0b")), "id"),
        (with("/address", json!("ftp://w")), "address"),
    ] {
        let (status, problem) = controller.post("/register", body).await;
        assert_eq!((status, problem["param"].as_str()), (400, Some(param)), "{problem}");
    }
    let million: Vec<_> = (0..1_000_000).map(|number| json!({ "name": number.to_string() })).collect();
    let (status, problem) = controller.post("/register", with("/models", json!(million))).await;
    assert_eq!((status, problem["kind"].as_str()), (413, Some("too_large")), "{problem}");
    assert_eq!(controller.fleet().await, before);
}

#[tokio::test]
async fn a_heartbeat_that_cannot_be_is_refused_by_its_field() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(1)).await.expect("it is reachable");
    let good = Heartbeat { sequence: Some(5), ..Heartbeat::bare(worker.id(), 1) };
    controller.client.heartbeat(&good).await.expect("it is registered");
    let before = controller.fleet().await;
    let beat = |field: &str, value: Value| {
        let mut body = serde_json::to_value(&good).expect("it is JSON");
        body["sequence"] = json!(6);
        body[field] = value;
        body
    };
    for (body, status, param) in [
        (beat("speed", json!(-1)), 400, "speed"),
        (beat("ttft_ms", json!(-1)), 400, "ttft_ms"),
        (beat("load", json!([{ "model": "m", "running": -1, "waiting": 0 }])), 400, "load[0].running"),
        (beat("incarnation", json!(0)), 409, "incarnation"),
        (beat("sequence", json!(5)), 409, "sequence"),
        (beat("sequence", json!(4)), 409, "sequence"),
    ] {
        let (answered, problem) = controller.post("/heartbeat", body).await;
        assert_eq!((answered, problem["param"].as_str()), (status, Some(param)), "{problem}");
    }
    assert_eq!(controller.fleet().await, before);
}
