//! What both wires of the protocol ask alike.

use std::time::Instant;

use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::{IndexEntry, ModelState, ModelStatistics, ServerMetadata};

use crate::keys::check_model;
use crate::state::{Caller, State};
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

/// Every model of the fleet that the key may use, or those of them that can be asked.
///
/// # Errors
/// See [`crate::upstream::Upstream::repository_index`].
pub(crate) async fn index(state: &State, caller: &Caller, ready_only: bool) -> Result<Vec<IndexEntry>, Problem> {
    let mut index = state.upstream.repository_index().await?;
    index.retain(|entry| !ready_only || entry.state == ModelState::Ready);
    index.retain(|entry| may_use(caller, &entry.name));
    Ok(index)
}

/// What the runs of a model have cost, or of all models that the key may use.
///
/// # Errors
/// See [`crate::upstream::Upstream::statistics`].
pub(crate) async fn statistics(
    state: &State,
    caller: &Caller,
    model: Option<&str>,
    version: Option<&str>,
) -> Result<Vec<ModelStatistics>, Problem> {
    if let Some(model) = model {
        check_model(caller.key.as_deref(), model)?;
        return state.upstream.statistics(Some(model), version).await;
    }
    let mut statistics = state.upstream.statistics(None, version).await?;
    statistics.retain(|model| may_use(caller, &model.name));
    Ok(statistics)
}

fn may_use(caller: &Caller, model: &str) -> bool {
    caller.key.as_ref().is_none_or(|key| key.may_use(model))
}

/// Loads or unloads a model at every worker that has it.
///
/// # Errors
/// Where that is not allowed, or something is wanted with it that is not there; else as the workers say.
pub(crate) async fn change<'a>(
    state: &State,
    caller: &Caller,
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
    check_model(caller.key.as_deref(), model)?;
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
