//! Why a worker stops.

use muster_shared::problem::chain;

use crate::hub::HubError;
use crate::model::ModelError;

/// Why a worker could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not one model could be loaded.
    #[error("no model could be loaded: {}", reasons(.0))]
    NoModel(Vec<(String, LoadError)>),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The thread of a model has panicked; whoever started the worker should start it anew.
    #[error("the thread of model `{0}` has crashed; the log has the reason")]
    Crashed(String),
    /// The listener failed.
    #[error("serving failed")]
    Serve(#[from] std::io::Error),
}

/// Each reason once, with the models it holds for.
fn reasons(failures: &[(String, LoadError)]) -> String {
    let mut models_by_reason: Vec<(String, Vec<&str>)> = Vec::new();
    for (name, error) in failures {
        let reason = chain(error);
        match models_by_reason.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, models)) => models.push(name),
            None => models_by_reason.push((reason, vec![name])),
        }
    }
    let words = models_by_reason.into_iter().map(|(reason, models)| format!("{}: {reason}", models.join(", ")));
    words.collect::<Vec<_>>().join("; ")
}

/// Why one model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files, or ONNX Runtime.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The hub, or the cache of its models.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Its tokenizer.
    #[error("{file} is not usable")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong with it.
        #[source]
        source: crate::tokenizer::TokenizerError,
    },
    /// Its chat template.
    #[error("the chat template of {folder} is not usable")]
    Template {
        /// The model's folder.
        folder: String,
        /// What is wrong with it.
        #[source]
        source: crate::chat_template::TemplateError,
    },
    /// A model of the repository, in the words of its index.
    #[error("{0}")]
    Repository(String),
    /// The system gave no thread.
    #[error("cannot start a thread for the model")]
    Thread(#[source] std::io::Error),
}
