//! `GET /v1/models` and `GET /v1/models/{model}`.

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse as _, Response};
use muster_shared::problem::{Kind, Problem};

use crate::openai::{error, models};
use crate::state::State;

/// Every model that is served.
pub(crate) async fn list(Shared(state): Shared<State>) -> Response {
    match state.upstream.models().await {
        Ok(served) => Json(models::list(&served, state.started)).into_response(),
        Err(problem) => error::response(&problem),
    }
}

/// One model. Names may hold slashes.
pub(crate) async fn one(Shared(state): Shared<State>, Path(name): Path<String>) -> Response {
    let unknown = || {
        let message = format!("the model `{name}` does not exist; GET /v1/models lists those that do");
        error::response(&Problem::new(Kind::UnknownModel, message).with_param("model"))
    };
    match state.upstream.models().await {
        Ok(served) => match served.iter().find(|model| model.name == name) {
            Some(model) => Json(models::one(model, state.started)).into_response(),
            None => unknown(),
        },
        Err(problem) => error::response(&problem),
    }
}
