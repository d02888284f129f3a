//! Every route and every layer of the gateway, in order.

use std::time::Instant;

use axum::extract::State as Shared;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use muster_shared::problem::{Kind, Problem};
use muster_shared::serve;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::openai::error;
use crate::state::State;
use crate::{auth, chat, completion, embedding, models, observe};

/// The gateway's router.
pub(crate) fn router(state: State) -> Router {
    let api = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completion::create))
        .route("/v1/embeddings", post(embedding::create))
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_key));
    let open = Router::new()
        .route("/health", get(alive))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(serve::metrics))
        .route("/version", get(serve::version));
    api.merge(open)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(CorsLayer::permissive())
        .layer(middleware::from_fn(observe::observe))
        .with_state(state)
}

async fn alive() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "alive" }))
}

async fn ready(Shared(state): Shared<State>) -> Response {
    match state.upstream.view().ready(Instant::now()) {
        Ok(()) => Json(serde_json::json!({ "status": "ready" })).into_response(),
        Err(reason) => error::response(&Problem::new(Kind::NoWorker, reason)),
    }
}

async fn not_found(method: Method, uri: Uri) -> Response {
    let message = format!("unknown path {method} {}; the API is below /v1", uri.path());
    error::response(&Problem::new(Kind::NotFound, message))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    error::response(&Problem::new(Kind::MethodNotAllowed, message))
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
    tracing::error!(panic = words, "a handler panicked");
    error::response(&Problem::new(Kind::Bug, words))
}
