//! The worker's routes: muster's own, FastChat's, and those for operators.

use std::sync::Arc;

use axum::body::Body as ResponseBody;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use bytes::Bytes;
use futures_util::StreamExt as _;
use muster_shared::control::{Health, ModelCard};
use muster_shared::embed::{EmbedRequest, EmbedResponse};
use muster_shared::generate::GenerateRequest;
use muster_shared::problem::Problem;
use muster_shared::secret::Secret;
use muster_shared::serve::{self, Body};
use muster_shared::sse;
use muster_shared::text::{
    ClassifyRequest, ClassifyResponse, DetokenizeRequest, DetokenizeResponse, EntitiesRequest, EntitiesResponse,
    RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
};
use muster_shared::trace::Context;
use muster_shared::trace::served::Traced;

use crate::calls;
use crate::fastchat;
use crate::report;
use crate::state::State;
use crate::tensor;

/// The worker's router.
pub(crate) fn router(state: Arc<State>, token: Option<Secret>, body_limit: usize) -> Router {
    let guarded = Router::new()
        .route("/generate", post(generate))
        .route("/embed", post(embed))
        .route("/rerank", post(rerank))
        .route("/classify", post(classify))
        .route("/entities", post(entities))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/models", get(models))
        .route("/report", get(report::report))
        .merge(fastchat::routes())
        .merge(tensor::http::routes())
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(Traced)
        .layer(middleware::from_fn_with_state(token, serve::require_token));
    let open = Router::new()
        .route("/health", get(alive))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/ready", get(ready))
        .route("/readyz", get(ready))
        .route("/metrics", get(serve::metrics))
        .route("/version", get(serve::version))
        .merge(tensor::http::open_routes());
    guarded
        .merge(open)
        .fallback(serve::not_found)
        .method_not_allowed_fallback(serve::method_not_allowed)
        .with_state(state)
}

async fn alive(Shared(state): Shared<Arc<State>>) -> Json<Health> {
    Json(Health { status: "alive".to_owned(), worker: state.identity.get().cloned() })
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Result<Json<serde_json::Value>, Problem> {
    state.ready()?;
    Ok(Json(serde_json::json!({ "status": "ready" })))
}

async fn models(Shared(state): Shared<Arc<State>>) -> Result<Json<Vec<ModelCard>>, Problem> {
    Ok(Json(state.catalog()?.cards()))
}

/// Continues a prompt as server-sent events. The body owns the request: dropping it cancels.
async fn generate(
    Shared(state): Shared<Arc<State>>,
    trace: Option<Extension<Context>>,
    Body(request): Body<GenerateRequest>,
) -> Result<Response, Problem> {
    let body = calls::generate(&state, request, trace.map(|Extension(trace)| trace)).await?.map(|event| {
        // A comment is a sign of life.
        let bytes = event.map_or(Bytes::from_static(b": waiting\n\n"), |event| sse::json_event(&event));
        Ok::<_, std::convert::Infallible>(bytes)
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, ResponseBody::from_stream(body)).into_response())
}

async fn embed(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<EmbedRequest>,
) -> Result<Json<EmbedResponse>, Problem> {
    Ok(Json(calls::embed(&state, request).await?))
}

async fn rerank(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<RerankResponse>, Problem> {
    Ok(Json(calls::rerank(&state, request).await?))
}

async fn classify(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<ClassifyRequest>,
) -> Result<Json<ClassifyResponse>, Problem> {
    Ok(Json(calls::classify(&state, request).await?))
}

async fn entities(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<EntitiesRequest>,
) -> Result<Json<EntitiesResponse>, Problem> {
    Ok(Json(calls::entities(&state, request).await?))
}

async fn tokenize(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, Problem> {
    Ok(Json(calls::tokenize(&state, request).await?))
}

async fn detokenize(
    Shared(state): Shared<Arc<State>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, Problem> {
    Ok(Json(calls::detokenize(&state, request).await?))
}
