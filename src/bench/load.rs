//! Gets a model without the engine around it.

use anyhow::{Context as _, bail};
use muster_worker::Config;
use muster_worker::catalog;
use muster_worker::config::ModelSource;
use muster_worker::model::fake::FakeModel;
use muster_worker::model::manifest::Manifest;
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::{self, runtime};
use muster_worker::model::{CausalModel, ModelError};

/// Loads the first model of `config` with room for `rows` sequences of `context` tokens.
///
/// # Errors
/// When it cannot be loaded, or is no language model.
pub(super) fn load(config: &Config, rows: usize, context: usize) -> anyhow::Result<Box<dyn CausalModel>> {
    let model = config.models.first().context("no model is given; name one with --model")?;
    if let ModelSource::Fake(options) = &model.source {
        return Ok(Box::new(FakeModel::new(*options, rows)));
    }
    let manifest = match catalog::locate(config, model)?.manifest {
        Manifest::Causal(manifest) => manifest,
        Manifest::Encoder(manifest) => {
            let does = catalog::does(manifest.task.kind());
            bail!("--model {}: {} {does}; give a language model", model.name, manifest.graph.name)
        }
        Manifest::Tensor(graph) => bail!("--model {}: {} takes tensors; give a language model", model.name, graph.name),
    };
    let options =
        SessionOptions { threads: config.threads_in_force(), spin: config.spin, optimised: config.graph_cache.clone() };
    let runtime = runtime::start(&config.library).map_err(ModelError::from)?;
    Ok(onnx::load_causal(runtime, &options, manifest, (rows, context))?)
}
