//! Our own interface, through the real router on real sockets.

mod common;

use common::{Controller, Worker, nobody, within};
use muster_controller::Config;
use muster_shared::client::ClientError;
use muster_shared::control::{HeartbeatReply, Leave, ModelCard, Outcome, Registration, Renew, Renewal, WorkerState};
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// The problem of a refused call.
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Problem {
    match result {
        Err(ClientError::Refused { problem, .. }) => problem,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// A controller with one worker of that capacity.
async fn fleet_of_one(capacity: u32) -> (Controller, Worker) {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    controller.client.register(&worker.registration(capacity)).await.expect("it is reachable");
    (controller, worker)
}

#[tokio::test]
async fn a_request_is_in_flight_from_its_dispatch_to_its_release() {
    let (controller, worker) = fleet_of_one(2).await;
    let grant = controller.granted().await;
    assert_eq!((grant.worker, grant.address), (worker.id(), worker.address.clone()));
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    controller.release(grant.ticket, Outcome::Done).await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 0);
}

#[tokio::test]
async fn a_lease_says_how_long_it_lasts() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    let lease = controller.client.register(&worker.registration(1)).await.expect("it is reachable");
    assert_eq!((lease.lease_ms, lease.heartbeat_ms), (15_000, 5_000));
    let beat = json!({ "id": "nobody", "incarnation": 1, "load": [] });
    assert_eq!(controller.post("/heartbeat", beat).await, (200, json!({ "lease": "unknown" })));
    let beat = json!({ "id": worker.address, "incarnation": 1, "load": [] });
    let (status, reply) = controller.post("/heartbeat", beat).await;
    let reply: HeartbeatReply = serde_json::from_value(reply).expect("it is a reply");
    assert_eq!((status, reply), (200, HeartbeatReply::Renewed(Renewal { lease, shed: false })));
}

#[tokio::test]
async fn a_registration_that_cannot_be_is_refused_and_changes_nothing() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    let good = worker.registration(1);
    let card = good.models[0].clone();
    let twice = vec![card.clone(), card.clone()];
    let bad = [
        ("speed", Registration { speed: 0.0, ..good.clone() }),
        ("speed", Registration { speed: -1.0, ..good.clone() }),
        ("models", Registration { models: twice, ..good.clone() }),
        ("models", Registration { models: vec![ModelCard { name: String::new(), ..card }], ..good.clone() }),
        ("address", Registration { address: "localhost:21002".to_owned(), ..good.clone() }),
        ("address", Registration { address: nobody().await, ..good.clone() }),
    ];
    for (param, registration) in bad {
        let problem = refusal(controller.client.register(&registration).await);
        assert_eq!((problem.kind, problem.param.as_deref()), (Kind::Invalid, Some(param)), "{registration:?}");
    }
    assert!(controller.fleet().await.workers.is_empty());
}

#[tokio::test]
async fn a_worker_may_offer_its_first_model_later_and_its_last_no_more() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    let usual = worker.registration(1);
    let none = Registration { models: Vec::new(), ..usual.clone() };
    for (registration, models) in [(&none, 0), (&usual, 1), (&none, 0)] {
        controller.client.register(registration).await.expect("it is taken");
        let fleet = controller.fleet().await;
        assert_eq!((fleet.workers.len(), fleet.models.len()), (1, models));
        assert_eq!(fleet.workers[0].state, WorkerState::Ready);
    }
}

#[tokio::test]
async fn an_unreachable_registration_does_not_replace_a_reachable_one() {
    let (controller, worker) = fleet_of_one(1).await;
    let before = controller.fleet().await;
    let moved = Registration { address: nobody().await, incarnation: 2, ..worker.registration(1) };
    let problem = refusal(controller.client.register(&moved).await);
    assert!(problem.message.contains("cannot reach"), "{problem}");
    assert_eq!(controller.fleet().await, before);
}

#[tokio::test]
async fn a_stale_incarnation_is_refused() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    let younger = Registration { incarnation: 2, ..worker.registration(1) };
    controller.client.register(&younger).await.expect("it is reachable");
    let before = controller.fleet().await;
    assert_eq!(refusal(controller.client.register(&worker.registration(1)).await).kind, Kind::Stale);
    let beat = json!({ "id": worker.address, "incarnation": 1, "load": [] });
    assert_eq!(controller.post("/heartbeat", beat).await.0, 409);
    assert_eq!(controller.fleet().await, before);
}

#[tokio::test]
async fn a_bad_body_is_refused_with_a_reason() {
    let controller = Controller::start().await;
    for path in ["/register", "/heartbeat", "/drain", "/deregister", "/dispatch", "/release", "/renew"] {
        for body in ["", "nonsense", "{}", "[]"] {
            let (status, problem) = controller.post_text(path, body).await;
            assert_eq!((status, &problem["kind"]), (400, &json!("invalid")), "{path} {body}");
        }
    }
    let (status, problem) = controller.post_text("/register", " ".repeat(2 << 20)).await;
    assert_eq!((status, &problem["kind"]), (413, &json!("too_large")));
}

#[tokio::test]
async fn nobody_and_unknown_are_told_apart() {
    let (controller, worker) = fleet_of_one(1).await;
    let mut unknown = controller.dispatch(1000);
    unknown.model = "n".to_owned();
    let problem = refusal(controller.client.dispatch(&unknown).await);
    assert_eq!(problem.kind, Kind::UnknownModel);
    assert!(problem.message.contains("`n`") && problem.message.contains("served are: m"), "{problem}");
    let leave = Leave { id: worker.id(), incarnation: Some(1) };
    controller.client.deregister(&leave).await.expect("it is known");
    let problem = refusal(controller.client.dispatch(&controller.dispatch(10_000)).await);
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::NoWorker, Some(5000)));
    assert_eq!(controller.fleet().await.workers[0].state, WorkerState::Gone);
}

#[tokio::test]
async fn a_full_fleet_says_when_to_come_again() {
    let (controller, _worker) = fleet_of_one(1).await;
    controller.granted().await;
    let problem = refusal(controller.client.dispatch(&controller.dispatch(0)).await);
    assert_eq!((problem.kind, problem.retry_after_ms), (Kind::Overloaded, Some(1000)));
    let problem = refusal(within(controller.client.dispatch(&controller.dispatch(50))).await);
    assert!(problem.message.contains("waited"), "{problem}");
}

#[tokio::test]
async fn a_dispatch_that_waits_is_granted_upon_a_release() {
    let (controller, worker) = fleet_of_one(1).await;
    let held = controller.granted().await;
    let (client, dispatch) = (controller.client.clone(), controller.dispatch(20_000));
    let waits = tokio::spawn(async move { client.dispatch(&dispatch).await });
    controller.until(|fleet| fleet.waiting == 1).await;
    controller.release(held.ticket, Outcome::Done).await;
    let grant = within(waits).await.expect("it does not panic").expect("there is room");
    assert_eq!(grant.worker, worker.id());
}

#[tokio::test]
async fn a_dispatch_whose_caller_goes_away_takes_no_ticket() {
    let (controller, _worker) = fleet_of_one(1).await;
    let held = controller.granted().await;
    let (client, dispatch) = (controller.client.clone(), controller.dispatch(20_000));
    let waits = tokio::spawn(async move { client.dispatch(&dispatch).await });
    controller.until(|fleet| fleet.waiting == 1).await;
    waits.abort();
    controller.until(|fleet| fleet.waiting == 0).await;
    controller.release(held.ticket, Outcome::Done).await;
    assert_eq!(controller.fleet().await.workers[0].tickets, 0);
    controller.granted().await;
}

#[tokio::test]
async fn a_refused_connection_suspends_the_worker_until_it_beats() {
    let (controller, worker) = fleet_of_one(4).await;
    let grant = controller.granted().await;
    controller.release(grant.ticket, Outcome::Unreachable).await;
    assert_eq!(controller.fleet().await.workers[0].state, WorkerState::Open);
    let (client, dispatch) = (controller.client.clone(), controller.dispatch(20_000));
    let waits = tokio::spawn(async move { client.dispatch(&dispatch).await });
    controller.until(|fleet| fleet.waiting == 1).await;
    controller.beat(&worker).await;
    let trial = within(waits).await.expect("it does not panic").expect("it is tried again");
    controller.release(trial.ticket, Outcome::Done).await;
    assert_eq!(controller.fleet().await.workers[0].state, WorkerState::Ready);
}

#[tokio::test]
async fn a_draining_worker_gets_nothing() {
    let (controller, worker) = fleet_of_one(4).await;
    let held = controller.granted().await;
    controller.client.drain(&Leave { id: worker.id(), incarnation: None }).await.expect("it is known");
    assert_eq!(refusal(controller.client.dispatch(&controller.dispatch(0)).await).kind, Kind::NoWorker);
    let fleet = controller.fleet().await;
    assert_eq!((fleet.workers[0].state, fleet.workers[0].tickets), (WorkerState::Draining, 1));
    assert_eq!((fleet.models[0].name.as_str(), fleet.models[0].workers), ("m", 0));
    controller.release(held.ticket, Outcome::Done).await;
    let nobody = Leave { id: muster_shared::id::WorkerId::new("nobody"), incarnation: None };
    assert_eq!(refusal(controller.client.drain(&nobody).await).kind, Kind::NotFound);
}

#[tokio::test]
async fn a_gateway_that_renews_is_told_the_fleet() {
    let (controller, worker) = fleet_of_one(1).await;
    let fleet = controller.client.renew(&Renew { gateway: controller.gateway }).await.expect("the controller answers");
    assert_eq!((fleet.policy.as_str(), &fleet.workers[0].id), ("shortest_queue", &worker.id()));
}

#[tokio::test]
async fn the_fleet_token_is_required_but_for_health_and_metrics() {
    let token = Some(Secret::new("of the fleet"));
    let controller = Controller::start_with(Config { token, ..Config::default() }).await;
    let posts = ["/register", "/heartbeat", "/dispatch", "/register_worker", "/list_models", "/receive_heart_beat"];
    for path in posts {
        let (status, problem) = controller.post(path, json!({})).await;
        assert_eq!((status, &problem["kind"]), (401, &json!("bad_key")), "{path}");
    }
    for path in ["/fleet", "/test_connection"] {
        assert_eq!(controller.get(path).await.0, 401, "{path}");
    }
    for path in ["/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics", "/version"] {
        assert_eq!(controller.get(path).await.0, 200, "{path}");
    }
    controller.fleet().await;
}

#[tokio::test]
async fn a_stranger_that_is_registered_is_not_shown_the_fleet_token() {
    let token = Some(Secret::new("of the fleet"));
    let controller = Controller::start_with(Config { token, ..Config::default() }).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let address = format!("http://{}", silent.local_addr().expect("it is bound"));
    let worker = Worker::start().await;
    let stranger = Registration { address, transport: Transport::OpenAi, ..worker.registration(1) };
    let client = controller.client.clone();
    let registers = tokio::spawn(async move { client.register(&stranger).await });
    let (mut asking, _) = within(silent.accept()).await.expect("the server is asked");
    let mut head = String::new();
    let mut buffer = [0; 1024];
    while !head.contains("\r\n\r\n") {
        let read = within(asking.read(&mut buffer)).await.expect("the request is whole");
        head += &String::from_utf8_lossy(&buffer[..read]);
    }
    assert!(head.starts_with("GET /v1/models "), "{head}");
    assert!(!head.contains("of the fleet"), "{head}");
    drop(asking);
    assert_eq!(refusal(within(registers).await.expect("it does not panic")).param.as_deref(), Some("address"));
}

#[tokio::test]
async fn a_heartbeat_need_not_tell_a_load() {
    let (controller, worker) = fleet_of_one(1).await;
    let beat = json!({ "id": worker.address, "incarnation": 1 });
    assert_eq!(controller.post("/heartbeat", beat).await.1["lease"], "renewed");
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let controller = Controller::start().await;
    assert_eq!(controller.post("/nothing", json!({})).await.0, 404);
    let (status, body) = controller.get("/dispatch").await;
    assert_eq!(status, 405);
    assert!(body.contains("method_not_allowed"), "{body}");
}

#[tokio::test]
async fn a_controller_that_stops_answers_those_who_wait() {
    let (controller, _worker) = fleet_of_one(1).await;
    controller.granted().await;
    let (client, dispatch) = (controller.client.clone(), controller.dispatch(20_000));
    let waits = tokio::spawn(async move { client.dispatch(&dispatch).await });
    controller.until(|fleet| fleet.waiting == 1).await;
    controller.shutdown.cancel();
    assert_eq!(refusal(within(waits).await.expect("it does not panic")).kind, Kind::NoWorker);
    within(controller.served).await.expect("it stops well");
}

#[tokio::test]
async fn a_worker_short_of_memory_is_paused_and_hands_over_what_waits() {
    let (controller, busy, calm) = (Controller::start().await, Worker::start().await, Worker::start().await);
    for worker in [&busy, &calm] {
        controller.client.register(&worker.registration(2)).await.expect("it is reachable");
    }
    let beat = |memory: f64| {
        json!({
            "id": busy.address, "incarnation": 1, "load": [], "resources": { "cpu": 0.5, "memory": memory },
            "tokens_per_second": 41.5, "ttft_ms": 80.0,
        })
    };
    let (status, reply) = controller.post("/heartbeat", beat(0.93)).await;
    assert_eq!((status, &reply["lease"], &reply["shed"]), (200, &json!("renewed"), &json!(true)), "{reply}");
    let fleet = controller.fleet().await;
    let known = fleet.workers.iter().find(|worker| worker.id == busy.id()).expect("it has registered");
    assert_eq!(known.state, WorkerState::Paused);
    assert_eq!(known.paused.as_deref(), Some("memory 93 % is above 90 %, resumes below 85 %"));
    assert_eq!(known.resources.and_then(|resources| resources.memory), Some(0.93));
    assert_eq!((known.tokens_per_second, known.ttft_ms), (Some(41.5), Some(80.0)));
    for _ in 0..2 {
        assert_eq!(controller.granted().await.worker, calm.id());
    }
    let problem = refusal(controller.client.dispatch(&controller.dispatch(0)).await);
    let words = "no worker of the model `m` has room: 1 full, 0 suspended after failures or yet to answer, 1 paused, \
                 their machines being short of processors or memory";
    assert_eq!((problem.kind, problem.message.as_str()), (Kind::Overloaded, words));

    let (_, reply) = controller.post("/heartbeat", beat(0.84)).await;
    assert_eq!(reply.get("shed"), None, "{reply}");
    assert_eq!(controller.granted().await.worker, busy.id());
}

#[tokio::test]
async fn a_heartbeat_that_tells_what_cannot_be_is_refused_and_changes_nothing() {
    let (controller, worker) = fleet_of_one(1).await;
    let before = controller.fleet().await;
    for (param, field, value) in [
        ("resources.memory", "resources", r#"{"memory": 1.5}"#),
        ("resources.cpu", "resources", r#"{"cpu": -0.1}"#),
        ("resources.kv_cache", "resources", r#"{"kv_cache": 1e308}"#),
        ("ttft_ms", "ttft_ms", "-1"),
        ("tokens_per_second", "tokens_per_second", "-0.5"),
    ] {
        let body = format!(r#"{{"id": "{}", "incarnation": 1, "load": [], "{field}": {value}}}"#, worker.address);
        let (status, problem) = controller.post_text("/heartbeat", body).await;
        assert_eq!((status, &problem["param"]), (400, &json!(param)), "{problem}");
    }
    for nonsense in ["NaN", "1e999", "\"much\"", "{\"memory\": \"much\"}"] {
        let body = format!(r#"{{"id": "{}", "incarnation": 1, "resources": {nonsense}}}"#, worker.address);
        assert_eq!(controller.post_text("/heartbeat", body).await.0, 400, "{nonsense}");
    }
    assert_eq!(controller.fleet().await, before);
}
