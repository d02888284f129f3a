//! `POST /v1/classify`: classes of texts, or the entities in them, as the model gives.

use axum::http::HeaderMap;
use bytes::Bytes;
use hyper::Response;
use muster_shared::control::ModelKind;
use muster_shared::problem::Problem;

use crate::once;
use crate::openai::classify::ClassifyBody;
use crate::openai::entities::EntitiesBody;
use crate::openai::peek;
use crate::outgoing::Outgoing;
use crate::state::{Caller, State};

/// Classifies texts. A model of unknown kind is asked for classes; its worker knows whether it has any.
///
/// # Errors
/// In words for the client.
pub(crate) async fn create(
    state: &State,
    caller: &Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Outgoing>, Problem> {
    let kind = match peek::model(&body) {
        Some(model) => state.upstream.kind_now(&model).await,
        None => None,
    };
    match kind {
        Some(ModelKind::Entities) => once::answer::<EntitiesBody>(state, caller, headers, body).await,
        _ => once::answer::<ClassifyBody>(state, caller, headers, body).await,
    }
}
