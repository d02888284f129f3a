//! `POST /v1/embeddings`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State as Shared};
use axum::response::{IntoResponse as _, Response};
use muster_shared::problem::Problem;

use crate::body::{Raw, parse};
use crate::openai::embedding::{EmbeddingRequest, reply};
use crate::openai::error;
use crate::state::{RequestId, State};

/// Embeds texts.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Extension(RequestId(id)): Extension<RequestId>,
    Raw(body): Raw,
) -> Response {
    match answer(&state, &id, body).await {
        Ok(response) => response,
        Err(problem) => error::response(&problem),
    }
}

async fn answer(state: &State, id: &str, body: Bytes) -> Result<Response, Problem> {
    let mut request = parse(body, EmbeddingRequest::parse).await?;
    request.embed.request_id = id.to_owned();
    let job = state.upstream.job(id, &request.model);
    let response = state.upstream.embed(&request.embed, job).await?;
    Ok(Json(reply(&request.model, response, request.base64)).into_response())
}
