//! What a worker can be asked of its tensor models, whichever wire brings it.

use std::sync::Arc;

use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::{InferRequest, InferResponse, ServerMetadata};

use super::repository::Tensors;
use crate::calls::blocking;
use crate::state::State;

/// Extensions of the protocol that a worker speaks.
const EXTENSIONS: [&str; 7] = [
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "binary_tensor_data",
    "statistics",
];

/// What a server says of itself.
pub(crate) fn server() -> ServerMetadata {
    ServerMetadata {
        name: "muster".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// The models.
pub(crate) fn tensors(state: &State) -> Result<&Arc<Tensors>, Problem> {
    Ok(state.catalog()?.tensors())
}

/// Runs a request. Dropping the future cancels it, unless it has begun.
pub(crate) async fn infer(state: &State, request: InferRequest) -> Result<InferResponse, Problem> {
    tracing::debug!(request_id = request.request_id, model = request.model, "infer");
    tensors(state)?.infer(request).await
}

/// Loads a model, or loads it anew.
pub(crate) async fn load(state: &State, model: String, parameters: &[String]) -> Result<(), Problem> {
    if let Some(parameter) = parameters.first() {
        let message = format!(
            "parameter `{parameter}` is not supported: a model is loaded from its folder in the repository, as it is"
        );
        return Err(Problem::invalid(format!("parameters.{parameter}"), message));
    }
    let tensors = Arc::clone(tensors(state)?);
    blocking(move || tensors.load(&model)).await
}

/// Takes a model away.
pub(crate) async fn unload(state: &State, model: String) -> Result<(), Problem> {
    let tensors = Arc::clone(tensors(state)?);
    blocking(move || tensors.unload(&model)).await
}

/// A problem that a version of a model cannot be asked, as a yes or no.
pub(crate) fn is_ready(state: &State, model: &str, version: Option<&str>) -> Result<bool, Problem> {
    match tensors(state)?.version(model, version) {
        Ok(version) => Ok(version.batcher.is_alive()),
        Err(problem) if problem.kind == Kind::UnknownModel => Ok(false),
        Err(problem) => Err(problem),
    }
}
