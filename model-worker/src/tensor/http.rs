//! The Open Inference Protocol over HTTP: routes below `/v2`. Errors are `{"error": "…"}`, as the protocol has them,
//! with the other fields of a [`Problem`] beside it.

use std::sync::Arc;

use axum::body::{Body as ResponseBody, Bytes};
use axum::extract::{FromRequest as _, Path, Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::http::{self as codec, HEADER_LENGTH};
use muster_shared::tensor::{
    IndexEntry, InferRequest, ModelMetadata, ModelStatistics, ServerMetadata, config::ModelConfig,
};
use serde::{Deserialize, Serialize};

use super::calls;
use crate::calls::blocking;
use crate::state::State;

/// Bodies beyond this are read and written off the threads that serve.
const LARGE: usize = 64 << 10;

/// Routes that want the fleet's token.
pub(crate) fn routes() -> Router<Arc<State>> {
    let of_version = |suffix: &str| format!("/v2/models/{{model}}/versions/{{version}}{suffix}");
    let of_model = |suffix: &str| format!("/v2/models/{{model}}{suffix}");
    Router::new()
        .route("/v2", get(server))
        .route("/v2/models/stats", get(all_statistics))
        .route(&of_model(""), get(metadata))
        .route(&of_version(""), get(metadata))
        .route(&of_model("/ready"), get(model_ready))
        .route(&of_version("/ready"), get(model_ready))
        .route(&of_model("/config"), get(config))
        .route(&of_version("/config"), get(config))
        .route(&of_model("/stats"), get(statistics))
        .route(&of_version("/stats"), get(statistics))
        .route(&of_model("/infer"), post(infer))
        .route(&of_version("/infer"), post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
}

/// Routes for whoever asks whether the worker lives.
pub(crate) fn open_routes() -> Router<Arc<State>> {
    Router::new().route("/v2/health/live", get(live)).route("/v2/health/ready", get(ready))
}

/// A problem in the protocol's form.
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

/// The protocol's error, and beside it what a gateway must know; other clients look at `error` alone.
#[derive(Serialize)]
struct ErrorBody {
    error: String,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        let status = StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = problem.retry_after_seconds();
        let Problem { kind, message: error, param, retry_after_ms } = problem;
        let mut response = (status, Json(ErrorBody { error, kind, param, retry_after_ms })).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A model, and perhaps a version of it.
#[derive(Deserialize)]
struct Named {
    model: String,
    version: Option<String>,
}

async fn live() -> StatusCode {
    StatusCode::OK
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Result<StatusCode, Refusal> {
    state.ready()?;
    Ok(StatusCode::OK)
}

async fn server() -> Json<ServerMetadata> {
    Json(calls::server())
}

async fn metadata(Shared(state): Shared<Arc<State>>, Path(named): Path<Named>) -> Result<Json<ModelMetadata>, Refusal> {
    Ok(Json(calls::tensors(&state)?.metadata(&named.model, named.version.as_deref())?))
}

async fn model_ready(Shared(state): Shared<Arc<State>>, Path(named): Path<Named>) -> Result<StatusCode, Refusal> {
    let version = calls::tensors(&state)?.version(&named.model, named.version.as_deref())?;
    Ok(if version.batcher.is_alive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

async fn config(Shared(state): Shared<Arc<State>>, Path(named): Path<Named>) -> Result<Json<ModelConfig>, Refusal> {
    Ok(Json(calls::tensors(&state)?.config(&named.model, named.version.as_deref())?))
}

#[derive(Serialize)]
struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

async fn statistics(Shared(state): Shared<Arc<State>>, Path(named): Path<Named>) -> Result<Json<Statistics>, Refusal> {
    let model_stats = calls::tensors(&state)?.statistics(Some(&named.model), named.version.as_deref())?;
    Ok(Json(Statistics { model_stats }))
}

async fn all_statistics(Shared(state): Shared<Arc<State>>) -> Result<Json<Statistics>, Refusal> {
    Ok(Json(Statistics { model_stats: calls::tensors(&state)?.statistics(None, None)? }))
}

async fn infer(
    Shared(state): Shared<Arc<State>>,
    Path(named): Path<Named>,
    request: Request,
) -> Result<Response, Refusal> {
    refuse_coding(request.headers())?;
    let header_length = request.headers().get(HEADER_LENGTH);
    let header_length = header_length.map(|value| codec::header_length(value.as_bytes())).transpose()?;
    let request_id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let request_id = request_id.to_owned();
    let body = whole(request).await?;
    let Named { model, version } = named;
    let takes_long = body.len() > LARGE;
    let read = move || codec::read_request(&model, version.as_deref(), body, header_length);
    let (request, wanted) = if takes_long { blocking(read).await? } else { read()? };
    let response = calls::infer(&state, InferRequest { request_id, ..request }).await?;
    let size: usize = response.outputs.iter().map(|output| output.data.len()).sum();
    let write = move || codec::write_response(&response, &wanted);
    let body = if size > LARGE { blocking(write).await? } else { write()? };
    Ok(answer(body))
}

fn answer(body: codec::Body) -> Response {
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, body.content_type())
        .header(header::CONTENT_LENGTH, body.size());
    if let Some(length) = body.header_length() {
        response = response.header(HEADER_LENGTH, length);
    }
    let pieces = futures_util::stream::iter(body.into_pieces().map(Ok::<_, std::convert::Infallible>));
    response.body(ResponseBody::from_stream(pieces)).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer's head cannot be made"); // its parts are numbers and fixed words
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

fn refuse_coding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(coding) => {
            let coding = String::from_utf8_lossy(coding);
            let message = format!(
                "the body is in the coding `{coding}`; a worker takes none, a gateway takes zstd, gzip and deflate"
            );
            Err(Problem::new(Kind::UnsupportedCoding, message))
        }
    }
}

async fn whole(request: Request) -> Result<Bytes, Problem> {
    Bytes::from_request(request, &()).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Problem::new(Kind::TooLarge, "the request is larger than this worker takes; see --body-limit")
        } else {
            Problem::new(Kind::Invalid, format!("cannot read the body: {rejection}"))
        }
    })
}

/// A small JSON body that may be missing.
async fn optional<T: Default + for<'de> Deserialize<'de>>(request: Request) -> Result<T, Problem> {
    let body = whole(request).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    let wrong = |error| Problem::new(Kind::Invalid, format!("the body is not what this path expects: {error}"));
    serde_json::from_slice(&body).map_err(wrong)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IndexRequest {
    ready: bool,
}

async fn index(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Json<Vec<IndexEntry>>, Refusal> {
    let IndexRequest { ready } = optional(request).await?;
    let tensors = Arc::clone(calls::tensors(&state)?);
    Ok(Json(blocking(move || Ok(tensors.index(ready))).await?))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ControlRequest {
    parameters: std::collections::BTreeMap<String, serde_json::Value>,
}

async fn load(
    Shared(state): Shared<Arc<State>>,
    Path(named): Path<Named>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let ControlRequest { parameters } = optional(request).await?;
    calls::load(&state, named.model, &parameters.into_keys().collect::<Vec<_>>()).await?;
    Ok(StatusCode::OK)
}

async fn unload(Shared(state): Shared<Arc<State>>, Path(named): Path<Named>) -> Result<StatusCode, Refusal> {
    calls::unload(&state, named.model).await?;
    Ok(StatusCode::OK)
}
