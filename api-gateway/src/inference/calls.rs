//! What both wires of the protocol ask alike.

use std::time::Instant;

use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::{IndexEntry, ModelState, ServerMetadata};

use crate::state::State;
use crate::upstream::tensor::Change;

/// Extensions of the protocol that are spoken here.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"];
/// Parameters of a change that change nothing: no model here runs another.
const MEANINGLESS: [&str; 1] = ["unload_dependents"];

/// What the server says of itself.
pub(crate) fn server() -> ServerMetadata {
    ServerMetadata {
        name: "muster".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// Whether requests can be dispatched.
///
/// # Errors
/// Why not.
pub(crate) fn ready(state: &State) -> Result<(), Problem> {
    state.upstream.view().ready(Instant::now()).map_err(|reason| Problem::new(Kind::NoWorker, reason))
}

/// Every model of the fleet, or those that can be asked.
///
/// # Errors
/// See [`crate::upstream::Upstream::repository_index`].
pub(crate) async fn index(state: &State, ready_only: bool) -> Result<Vec<IndexEntry>, Problem> {
    let mut index = state.upstream.repository_index().await?;
    index.retain(|entry| !ready_only || entry.state == ModelState::Ready);
    Ok(index)
}

/// Loads or unloads a model at every worker that has it.
///
/// # Errors
/// Where that is not allowed, or something is wanted with it that is not there; else as the workers say.
pub(crate) async fn change<'a>(
    state: &State,
    model: &str,
    change: Change,
    mut parameters: impl Iterator<Item = &'a str>,
) -> Result<(), Problem> {
    if !state.upstream.config().allow_model_control {
        let message = "this gateway loads and unloads no models for its clients; start it with --allow-model-control \
                       to let everybody do so who has a key";
        return Err(Problem::new(Kind::Invalid, message));
    }
    if let Some(name) = parameters.find(|name| !MEANINGLESS.contains(name)) {
        let message = format!(
            "the parameter `{name}` is not supported: workers load models as their own files describe them; leave it out"
        );
        return Err(Problem::invalid(format!("parameters.{name}"), message));
    }
    state.upstream.change(model, change).await
}

/// What a client hears of a call that is not there.
pub(crate) fn absent(what: &str) -> String {
    format!("muster has no {what}")
}

/// What a client hears of a problem. What is said of a bug was written for the log.
pub(crate) fn told(problem: &Problem) -> String {
    match problem.kind {
        Kind::Bug => {
            tracing::error!(message = problem.message, "a request failed by a fault of ours");
            "internal error; the log has the details under this request id".to_owned()
        }
        _ => problem.message.clone(),
    }
}
