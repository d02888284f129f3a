//! `GET /v1/models` and `GET /v1/models/{model}`.

use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use muster_shared::problem::{Kind, Problem};

use crate::auth::Shown;
use crate::keys::check_model;
use crate::openai::error::Refusal;
use crate::openai::models;
use crate::state::State;

/// Every model that is served and that the key may use.
pub(crate) async fn list(
    Shared(state): Shared<State>,
    Extension(Shown(key)): Extension<Shown>,
) -> Result<Response, Refusal> {
    let mut served = state.upstream.models().await?;
    served.retain(|model| key.as_ref().is_none_or(|key| key.may_use(&model.name)));
    Ok(Json(models::list(&served, state.started)).into_response())
}

/// One model. Names may hold slashes.
pub(crate) async fn one(
    Shared(state): Shared<State>,
    Extension(Shown(key)): Extension<Shown>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    check_model(key.as_deref(), &name)?;
    let served = state.upstream.models().await?;
    let model = served.iter().find(|model| model.name == name).ok_or_else(|| {
        let message = format!("the model `{name}` does not exist; GET /v1/models lists those that do");
        Problem::new(Kind::UnknownModel, message).with_param("model")
    })?;
    Ok(Json(models::one(model, state.started)).into_response())
}
