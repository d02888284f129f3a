//! Aliases and fallbacks, over HTTP.

mod common;

use axum::extract::Json;
use axum::routing::{get, post};
use axum::{Router, response::IntoResponse as _};
use common::{Controller, Worker};
use muster_controller::Config;
use muster_controller::names::Names;
use muster_shared::control::{Dispatch, ModelCard, ModelKind, Outcome, Registration};
use muster_shared::id::WorkerId;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// `chat` stands for `new` (10) and `old` (90), `big` has the fallback `old`, and `old` has a policy of its own.
fn config() -> Config {
    let weights = vec![("new".to_owned(), 10.0), ("old".to_owned(), 90.0)];
    let names = Names::default()
        .with_aliases([("chat".to_owned(), weights)])
        .and_then(|names| names.with_fallbacks([("big".to_owned(), vec!["old".to_owned()])]))
        .and_then(|names| names.with_policies([("old".to_owned(), "lottery".to_owned())]))
        .expect("they are right");
    Config { names, ..Config::default() }
}

/// A worker of that model for so many requests.
async fn serve(controller: &Controller, model: &str, context_length: u32, capacity: u32) -> Worker {
    let worker = Worker::start().await;
    let usual = worker.registration(capacity);
    let card = ModelCard {
        name: model.to_owned(),
        kind: Some(ModelKind::Generate),
        context_length: Some(context_length),
        ..usual.models[0].clone()
    };
    let registration = Registration { id: WorkerId::new(model), models: vec![card], ..usual };
    controller.client.register(&registration).await.expect("it is reachable");
    worker
}

/// The worker that a request for a model gets, and the model to ask it for.
async fn granted(controller: &Controller, dispatch: Dispatch) -> (String, Option<String>) {
    let grant = controller.client.dispatch(&dispatch).await.expect("there is room");
    controller.release(grant.ticket, Outcome::Done).await;
    (grant.worker.to_string(), grant.model)
}

#[tokio::test]
async fn the_fleet_lists_aliases_and_what_fallbacks_serve_like_models() {
    let controller = Controller::start_with(config()).await;
    let _workers = (serve(&controller, "new", 4096, 1).await, serve(&controller, "old", 2048, 1).await);
    let models = serde_json::to_value(controller.fleet().await.models).expect("JSON");
    let expected = json!([
        { "name": "big", "kind": "generate", "context_length": 2048, "workers": 0, "fallbacks": ["old"] },
        { "name": "chat", "kind": "generate", "context_length": 2048, "workers": 2, "stands_for": ["new", "old"] },
        { "name": "new", "kind": "generate", "context_length": 4096, "workers": 1 },
        { "name": "old", "kind": "generate", "context_length": 2048, "workers": 1, "policy": "lottery" },
    ]);
    assert_eq!(models, expected);
}

#[tokio::test]
async fn a_grant_names_the_model_to_ask_for_where_it_is_another() {
    let controller = Controller::start_with(config()).await;
    let _old = serve(&controller, "old", 2048, 1).await;
    let of = |model: &str| Dispatch::new(controller.gateway, model);
    let other = || ("old".to_owned(), Some("old".to_owned()));
    assert_eq!(granted(&controller, of("chat")).await, other());
    assert_eq!(granted(&controller, of("big")).await, other());
    assert_eq!(granted(&controller, of("old")).await, ("old".to_owned(), None));
    let refused = controller.client.dispatch(&Dispatch { exact: true, ..of("big") }).await;
    assert!(refused.expect_err("no worker serves it").to_string().contains("`big`"));
    let (status, problem) =
        controller.post("/dispatch", json!({ "gateway": controller.gateway, "model": "none" })).await;
    assert_eq!((status, problem["kind"].as_str()), (404, Some("unknown_model")));
}

#[tokio::test]
async fn one_who_waits_for_a_full_model_gets_the_fallback_that_comes() {
    let controller = Controller::start_with(config()).await;
    let _big = serve(&controller, "big", 4096, 1).await;
    let first = Dispatch::new(controller.gateway, "big");
    controller.client.dispatch(&first).await.expect("there is room");
    let second = Dispatch { wait_ms: 20_000, ..first };
    let (granted, _old) = tokio::join!(controller.client.dispatch(&second), async {
        controller.until(|fleet| fleet.waiting == 1).await;
        serve(&controller, "old", 2048, 1).await
    });
    assert_eq!(granted.expect("a fallback has come").model.as_deref(), Some("old"));
}

/// A worker in FastChat's words whose model `old` answers with the name that it was asked for.
async fn fastchat(controller: &Controller) -> String {
    let answer = async |Json(params): Json<Value>| {
        let frame = json!({ "text": params["model"], "error_code": 0 }).to_string() + "\0";
        frame.into_response()
    };
    let router = Router::new()
        .route("/worker_generate_stream", post(answer))
        .route("/v1/models", get(async || "[]"))
        .route("/health", get(async || "{}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let address = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let status = json!({ "model_names": ["old"], "speed": 1, "queue_length": 0 });
    let registration = json!({ "worker_name": address, "check_heart_beat": true, "worker_status": status });
    assert_eq!(controller.post("/register_worker", registration).await.0, 200);
    address
}

#[tokio::test]
async fn fastchats_clients_are_told_of_models_only_and_relayed_by_any_name() {
    let controller = Controller::start_with(config()).await;
    let address = fastchat(&controller).await;
    assert_eq!(controller.post("/list_models", json!({})).await, (200, json!({ "models": ["old"] })));
    for (model, expected) in [("chat", ""), ("big", ""), ("old", address.as_str())] {
        let found = controller.post("/get_worker_address", json!({ "model": model })).await;
        assert_eq!(found, (200, json!({ "address": expected })), "{model}: its client sends the name to the worker");
    }
    for model in ["chat", "big", "old"] {
        let (status, frames) =
            controller.post("/worker_generate_stream", json!({ "model": model, "prompt": "hi" })).await;
        let frames = frames.as_str().expect("frames");
        assert_eq!((status, frames.contains(r#""text":"old""#)), (200, true), "{model}: {frames}");
    }
}
