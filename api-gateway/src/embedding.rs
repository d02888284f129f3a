//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use hyper::Response;
use muster_shared::embed::EmbedRequest;
use muster_shared::problem::{Kind, Problem};

use crate::body::parse;
use crate::openai::embedding::{EmbeddingRequest, reply};
use crate::openai::peek::Peek;
use crate::outgoing::{Outgoing, json};
use crate::state::{RequestId, State};
use crate::upstream::passthrough::Raw;
use crate::upstream::{Begun, Question};

/// Embeds texts.
///
/// # Errors
/// In words for the client.
pub(crate) async fn create(
    state: &State,
    id: &RequestId,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let mut question = Inputs { id: Arc::clone(&id.0), body: body.clone(), raw: None, read: None };
    let model = match Peek::parse(&body).filter(|peek| state.upstream.may_pass(&peek.model)) {
        Some(peek) => {
            question.raw = Some(Raw::new("/v1/embeddings", headers, body.clone(), false));
            peek.model.to_string()
        }
        None => question.read().await?.model.clone(),
    };
    let mut job = state.upstream.job(&id.0, &model);
    job.whole = true;
    let response = match state.upstream.embed(&mut question, job).await? {
        Begun::Passed(response) => return Ok(response),
        Begun::Ours(response) => response,
    };
    let Some((_, base64)) = question.read else {
        return Err(Problem::new(Kind::Bug, "an answer came to a request that was not read"));
    };
    Ok(json(StatusCode::OK, &reply(&*model, response, base64)))
}

/// Texts to embed as a client sent them, read when a worker wants them in our words.
struct Inputs {
    id: Arc<str>,
    body: Bytes,
    raw: Option<Raw>,
    /// The request, and whether vectors go out as base64.
    read: Option<(Arc<EmbedRequest>, bool)>,
}

impl Question for Inputs {
    type Ours = EmbedRequest;

    fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    async fn read(&mut self) -> Result<Arc<EmbedRequest>, Problem> {
        if let Some((request, _)) = &self.read {
            return Ok(Arc::clone(request));
        }
        let EmbeddingRequest { mut embed, base64, .. } = parse(self.body.clone(), EmbeddingRequest::parse).await?;
        embed.request_id = self.id.to_string();
        let embed = Arc::new(embed);
        self.read = Some((Arc::clone(&embed), base64));
        Ok(embed)
    }
}
