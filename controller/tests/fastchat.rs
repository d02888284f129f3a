//! FastChat's controller interface, through the real router on real sockets.

mod common;

use std::sync::atomic::Ordering;

use common::{Controller, Worker, nobody, within};
use muster_shared::control::WorkerState;
use muster_shared::fastchat::error_code;
use muster_shared::transport::Transport;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

/// A controller with one worker, registered as FastChat's workers do.
async fn fleet_of_one() -> (Controller, Worker) {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    register(&controller, &worker).await;
    (controller, worker)
}

async fn register(controller: &Controller, worker: &Worker) {
    let status = json!({ "model_names": ["m"], "speed": 1, "queue_length": 0 });
    let answer = controller.post("/register_worker", worker.fastchat_registration(status)).await;
    assert_eq!(answer, (200, Value::Null));
}

/// The frames of an answer.
fn frames(answer: &(u16, Value)) -> Vec<Value> {
    assert_eq!(answer.0, 200);
    let text = answer.1.as_str().expect("a stream is not one JSON text");
    assert!(text.ends_with('\0'), "the last frame has no end: {text:?}");
    let frames = text.split_terminator('\0');
    frames.map(|frame| serde_json::from_str(frame).expect("a frame is JSON")).collect()
}

#[tokio::test]
async fn every_route_answers_as_fastchat_does() {
    let (controller, worker) = fleet_of_one().await;
    let name = &worker.address;
    let table = [
        ("/refresh_all_workers", Value::Null, Value::Null),
        ("/list_models", Value::Null, json!({ "models": ["m"] })),
        ("/list_multimodal_models", Value::Null, json!({ "models": [] })),
        ("/list_language_models", Value::Null, json!({ "models": ["m"] })),
        ("/get_worker_address", json!({ "model": "m" }), json!({ "address": name })),
        ("/get_worker_address", json!({ "model": "n" }), json!({ "address": "" })),
        ("/receive_heart_beat", json!({ "worker_name": name, "queue_length": 0 }), json!({ "exist": true })),
        ("/receive_heart_beat", json!({ "worker_name": "http://x", "queue_length": 0 }), json!({ "exist": false })),
    ];
    for (path, body, expected) in table {
        assert_eq!(controller.post(path, body).await, (200, expected), "{path}");
    }
    assert_eq!(controller.get("/test_connection").await, (200, "\"success\"".to_owned()));
    assert_eq!(controller.get("/list_models").await.0, 405);
}

#[tokio::test]
async fn routes_without_a_body_take_any() {
    let (controller, _worker) = fleet_of_one().await;
    for path in ["/refresh_all_workers", "/list_models", "/worker_get_status"] {
        assert_eq!(controller.post_text(path, "").await.0, 200, "{path}");
        assert_eq!(controller.post_text(path, "nonsense").await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn a_worker_that_tells_no_status_is_asked() {
    let (controller, worker) = (Controller::start().await, Worker::start().await);
    for (round, status) in [Value::Null, json!({})].into_iter().enumerate() {
        let answer = controller.post("/register_worker", worker.fastchat_registration(status)).await;
        assert_eq!(answer, (200, Value::Null));
        assert_eq!(worker.asked.load(Ordering::SeqCst), round + 1);
    }
    let status = controller.post_text("/worker_get_status", "").await;
    assert_eq!(status, (200, json!({ "model_names": ["m"], "speed": 1.0, "queue_length": 2 })));
}

#[tokio::test]
async fn a_bad_registration_is_refused_and_changes_nothing() {
    let (controller, slow) = (Controller::start().await, Worker::start_with(b"", 0.0).await);
    let absent = nobody().await;
    let status = |speed: Value| json!({ "model_names": ["m"], "speed": speed, "queue_length": 0 });
    let with =
        |name: &str, status: Value| json!({ "worker_name": name, "check_heart_beat": true, "worker_status": status });
    let bad = [
        json!({}),
        json!([]),
        json!({ "worker_name": 1, "check_heart_beat": true }),
        json!({ "worker_name": slow.address }),
        with(&absent, Value::Null),
        with(&slow.address, Value::Null),
        with(&slow.address, status(json!(0))),
        with(&slow.address, status(json!(-1))),
        with(&slow.address, status(json!("fast"))),
        with(&slow.address, json!({ "model_names": [], "speed": 1, "queue_length": 0 })),
        with("localhost:21002", status(json!(1))),
    ];
    for body in bad {
        let (status, problem) = controller.post("/register_worker", body.clone()).await;
        assert_eq!((status, &problem["kind"]), (400, &json!("invalid")), "{body}");
    }
    let nan = r#"{"worker_name":"http://w","check_heart_beat":true,"worker_status":{"model_names":["m"],"speed":NaN,"queue_length":0}}"#;
    assert_eq!(controller.post_text("/register_worker", nan).await.0, 400);
    assert!(controller.fleet().await.workers.is_empty());
}

#[tokio::test]
async fn a_bad_body_is_refused_with_a_reason() {
    let controller = Controller::start().await;
    for path in ["/register_worker", "/get_worker_address", "/receive_heart_beat", "/worker_generate_stream"] {
        for body in ["", "nonsense", "{}", "[]"] {
            let (status, problem) = controller.post_text(path, body).await;
            assert_eq!((status, &problem["kind"]), (400, &json!("invalid")), "{path} {body}");
        }
    }
}

#[tokio::test]
async fn listing_does_not_disturb() {
    let (controller, _worker) = fleet_of_one().await;
    controller.granted().await;
    let before = controller.fleet().await;
    for path in ["/list_models", "/list_multimodal_models", "/list_language_models", "/worker_get_status"] {
        assert_eq!(controller.post_text(path, "").await.0, 200);
    }
    assert_eq!(controller.fleet().await, before);
}

#[tokio::test]
async fn a_refresh_drops_no_worker_and_updates_those_that_answer() {
    let (controller, worker) = fleet_of_one().await;
    let status = json!({ "model_names": ["x"], "speed": 1, "queue_length": 0 });
    let absent = json!({ "worker_name": nobody().await, "check_heart_beat": true, "worker_status": status });
    assert_eq!(controller.post("/register_worker", absent).await.0, 200);
    assert_eq!(controller.post_text("/refresh_all_workers", "").await, (200, Value::Null));
    let id = worker.id();
    // The worker says two requests where its registration said none.
    let fleet = controller
        .until(|fleet| fleet.workers.iter().any(|worker| worker.id == id && !worker.reported.is_empty()))
        .await;
    assert!(fleet.workers.iter().all(|worker| worker.state == WorkerState::Ready));
    assert_eq!(controller.post_text("/list_models", "").await, (200, json!({ "models": ["m", "x"] })));
}

#[tokio::test]
async fn addresses_given_away_spread_over_the_workers() {
    let (controller, worker) = fleet_of_one().await;
    let other = Worker::start().await;
    register(&controller, &other).await;
    let mut counts = [0, 0];
    for _ in 0..8 {
        let (_, answer) = controller.post("/get_worker_address", json!({ "model": "m" })).await;
        counts[usize::from(answer["address"] == worker.address)] += 1;
    }
    assert_eq!(counts, [4, 4]);
}

#[tokio::test]
async fn a_stream_is_passed_on_frame_by_frame_and_its_ticket_ends() {
    let (controller, _worker) = fleet_of_one().await;
    let answer = controller.post("/worker_generate_stream", json!({ "model": "m", "prompt": "a" })).await;
    let texts: Vec<_> = frames(&answer).into_iter().map(|frame| frame["text"].clone()).collect();
    assert_eq!(texts, ["a", "ab"]);
    let fleet = controller.until(|fleet| fleet.workers[0].tickets == 0).await;
    assert_eq!(fleet.workers[0].state, WorkerState::Ready);
}

#[tokio::test]
async fn a_stream_whose_reader_goes_away_ends_its_ticket_without_blame() {
    let (controller, worker) = (Controller::start().await, Worker::start_endless().await);
    register(&controller, &worker).await;
    let request = reqwest::Client::new().post(format!("{}/worker_generate_stream", controller.address));
    let mut answer = request.body(r#"{"model":"m"}"#).send().await.expect("the controller answers");
    let frame = within(answer.chunk()).await.expect("it streams").expect("there is a frame");
    assert!(frame.ends_with(b"\0"));
    assert_eq!(controller.fleet().await.workers[0].tickets, 1);
    drop(answer);
    let fleet = controller.until(|fleet| fleet.workers[0].tickets == 0).await;
    assert_eq!(fleet.workers[0].state, WorkerState::Ready);
}

#[tokio::test]
async fn a_worker_that_hangs_holds_nobody_up() {
    let (controller, worker) = fleet_of_one().await;
    // Connections are made, and never answered.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let name = format!("http://{}", silent.local_addr().expect("it is bound"));
    let status = json!({ "model_names": ["x"], "speed": 1, "queue_length": 0 });
    let hangs = json!({ "worker_name": name, "check_heart_beat": true, "worker_status": status });
    assert_eq!(controller.post("/register_worker", hangs).await.0, 200);
    let before = std::time::Instant::now();
    assert_eq!(controller.post_text("/refresh_all_workers", "").await.0, 200);
    let (asking, _) = within(silent.accept()).await.expect("the silent worker is asked");
    assert_eq!(controller.post_text("/list_models", "").await.1, json!({ "models": ["m", "x"] }));
    assert_eq!(controller.post("/get_worker_address", json!({ "model": "m" })).await.1["address"], worker.address);
    // The controller waits 5 s for the silent worker, and nobody waits with it.
    assert!(before.elapsed() < std::time::Duration::from_secs(5));
    drop(asking);
}

#[tokio::test]
async fn workers_are_shown_the_fleet_token() {
    let token = Some(muster_shared::secret::Secret::new("of the fleet"));
    let config = muster_controller::Config { token, ..muster_controller::Config::default() };
    let controller = Controller::start_with(config).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let name = format!("http://{}", silent.local_addr().expect("it is bound"));
    let body = json!({ "worker_name": name, "check_heart_beat": true });
    let request = reqwest::Client::new().post(format!("{}/register_worker", controller.address));
    let registers = tokio::spawn(request.bearer_auth("of the fleet").body(body.to_string()).send());
    let (mut asking, _) = within(silent.accept()).await.expect("the worker is asked");
    let mut head = String::new();
    let mut buffer = [0; 1024];
    while !head.contains("\r\n\r\n") {
        let read = within(asking.read(&mut buffer)).await.expect("the request is whole");
        head += &String::from_utf8_lossy(&buffer[..read]);
    }
    assert!(head.starts_with("POST /worker_get_status "), "{head}");
    assert!(head.to_lowercase().contains("authorization: bearer of the fleet"), "{head}");
    drop(asking);
    let refused = within(registers).await.expect("it does not panic").expect("the controller answers");
    assert_eq!(refused.status(), 400);
}

#[tokio::test]
async fn without_a_worker_there_is_exactly_one_frame() {
    let controller = Controller::start().await;
    let answer = controller.post("/worker_generate_stream", json!({ "model": "m", "prompt": "a" })).await;
    let frames = frames(&answer);
    assert_eq!((frames.len(), &frames[0]["error_code"]), (1, &json!(50005)));
}

#[tokio::test]
async fn an_unreachable_worker_gives_exactly_one_frame_and_is_suspended() {
    let controller = Controller::start().await;
    let status = json!({ "model_names": ["m"], "speed": 1, "queue_length": 0 });
    let absent = json!({ "worker_name": nobody().await, "check_heart_beat": true, "worker_status": status });
    assert_eq!(controller.post("/register_worker", absent).await.0, 200);
    let answer = within(controller.post("/worker_generate_stream", json!({ "model": "m", "prompt": "a" }))).await;
    let frames = frames(&answer);
    assert_eq!((frames.len(), &frames[0]["error_code"]), (1, &json!(50006)));
    controller.until(|fleet| fleet.workers[0].state == WorkerState::Open).await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_one_whole_frame() {
    let controller = Controller::start().await;
    let worker = Worker::start_with(b"{\"text\":\"a\",\"error_code\":0}\0{\"text\":\"a", 1.0).await;
    register(&controller, &worker).await;
    let answer = controller.post("/worker_generate_stream", json!({ "model": "m", "prompt": "a" })).await;
    let codes: Vec<_> = frames(&answer).into_iter().map(|frame| frame["error_code"].clone()).collect();
    assert_eq!(codes, [json!(0), json!(50006)]);
}

#[tokio::test]
async fn only_workers_that_speak_fastchat_are_told_of_and_relayed_to() {
    let controller = Controller::start().await;
    let mut workers = Vec::new();
    for (transport, model) in
        [(Transport::Grpc, "m"), (Transport::OpenAi, "m"), (Transport::OpenAi, "other"), (Transport::Http, "n")]
    {
        let worker = Worker::start().await;
        let mut registration = worker.registration(1);
        registration.transport = transport;
        registration.models[0].name = model.to_owned();
        controller.client.register(&registration).await.expect("it is reachable");
        workers.push(worker);
    }
    let list = controller.post_text("/list_models", "").await;
    assert_eq!(list, (200, json!({ "models": ["n"] })));
    assert_eq!(controller.post_text("/worker_get_status", "").await.1["speed"], json!(1.0));
    for (model, address) in [("m", ""), ("other", ""), ("n", &*workers[3].address)] {
        // The second time the worker is full, and named all the same.
        for _ in 0..2 {
            let answer = controller.post("/get_worker_address", json!({ "model": model })).await;
            assert_eq!(answer, (200, json!({ "address": address })), "{model}");
        }
    }
    let answer = controller.post_text("/worker_generate_stream", r#"{"model":"m","prompt":"hi"}"#).await;
    let last = frames(&answer).pop().expect("a frame");
    assert_eq!(last["error_code"], json!(error_code::CONTROLLER_NO_WORKER));
    let speaker = Worker::start().await;
    register(&controller, &speaker).await;
    let answer = controller.post_text("/worker_generate_stream", r#"{"model":"m","prompt":"hi"}"#).await;
    assert!(frames(&answer).iter().all(|frame| frame["error_code"] != json!(error_code::CONTROLLER_NO_WORKER)));
}
