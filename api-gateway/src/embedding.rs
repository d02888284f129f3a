//! `POST /v1/embeddings`.

use axum::Json;
use axum::extract::{Extension, State as Shared};
use axum::response::{IntoResponse as _, Response};

use crate::body::{Raw, parse};
use crate::openai::embedding::{EmbeddingRequest, reply};
use crate::openai::error::Refusal;
use crate::state::{RequestId, State};

/// Embeds texts.
pub(crate) async fn create(
    Shared(state): Shared<State>,
    Extension(RequestId(id)): Extension<RequestId>,
    Raw(body): Raw,
) -> Result<Response, Refusal> {
    let mut request = parse(body, EmbeddingRequest::parse).await?;
    request.embed.request_id = id.to_string();
    let job = state.upstream.job(&id, &request.model);
    let response = state.upstream.embed(&request.embed, job).await?;
    Ok(Json(reply(&request.model, response, request.base64)).into_response())
}
