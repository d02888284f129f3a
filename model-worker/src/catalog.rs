//! The models of this process: loading them, and finding them by name.
//!
//! * `loading`: one model, from its files to its first run.
//! * [`ability`]: what each can be asked for.

pub mod ability;
mod loading;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_shared::control::{ModelCard, ModelKind, ModelLoad};
use muster_shared::problem::{Kind, Problem};

use crate::config::{Config, LoadProgress, ModelConfig, ModelSource};
use crate::engine::EngineHandle;
use crate::error::LoadError;
use crate::language::LanguageModel;
use crate::tensor::repository::Tensors;
use crate::text::TextModel;
use crate::text::tokenize::Vocabulary;
use ability::unable;
pub use ability::{Ability, does};
pub use loading::{Located, locate};
use loading::{load, load_fake, tensors_at, tensors_of};

/// A loaded model.
#[derive(Debug)]
pub enum Served {
    /// Continues prompts.
    Language(Arc<LanguageModel>),
    /// Reads whole texts.
    Text(Arc<TextModel>),
}

/// A loaded model and the threads that run it.
#[derive(Debug)]
struct Loaded {
    /// The model.
    served: Served,
    threads: Vec<JoinHandle<()>>,
    /// By what models are known to answer alike; absent where its files could not be read once more.
    revision: Option<String>,
}

/// The models of this process.
#[derive(Debug, Default)]
pub struct Catalog {
    models: BTreeMap<String, Served>,
    /// Of models by name, as far as they are known.
    revisions: BTreeMap<String, String>,
    threads: Vec<JoinHandle<()>>,
    /// Those that take tensors; they come and go.
    tensors: Arc<Tensors>,
}

impl Catalog {
    /// Loads every model; those that cannot be loaded are given back with the reason.
    pub fn load(config: &Config) -> (Self, Vec<(String, LoadError)>) {
        let mut catalog = Self { tensors: Arc::new(Tensors::new(config)), ..Self::default() };
        let mut failures = Vec::new();
        for model in &config.models {
            match catalog.add(config, model) {
                Ok(()) => {
                    tracing::info!(model = model.name, "model is ready");
                    config.report(&model.name, LoadProgress::Ready);
                }
                Err(error) => {
                    let reason = muster_shared::problem::chain(&error);
                    tracing::error!(model = model.name, reason, "model cannot be loaded");
                    config.report(&model.name, LoadProgress::Failed(reason));
                    failures.push((model.name.clone(), error));
                }
            }
        }
        catalog.tensors.start();
        (catalog, failures)
    }

    fn add(&mut self, config: &Config, model: &ModelConfig) -> Result<(), LoadError> {
        if let Some(found) = tensors_at(model)? {
            return self.tensors.add_fixed(found);
        }
        let Loaded { served, threads, revision } = match &model.source {
            ModelSource::Fake(options) => load_fake(config, &model.name, *options)?,
            _ => {
                let located = locate(config, model)?;
                if let Some(found) = tensors_of(&model.name, &located) {
                    return self.tensors.add_fixed(found);
                }
                load(config, model, located)?
            }
        };
        self.models.insert(model.name.clone(), served);
        self.revisions.extend(revision.map(|revision| (model.name.clone(), revision)));
        self.threads.extend(threads);
        Ok(())
    }

    /// The models that take tensors.
    pub fn tensors(&self) -> &Arc<Tensors> {
        &self.tensors
    }

    /// Whether there is nothing to be asked, and nothing that could come.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty() && self.tensors.is_empty()
    }

    /// A language model by name.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] when there is none, [`Kind::Invalid`] when it is of another kind.
    pub fn language(&self, name: &str) -> Result<&Arc<LanguageModel>, Problem> {
        match self.models.get(name) {
            Some(Served::Language(model)) => Ok(model),
            Some(other) => Err(unable(name, other.kind(), Ability::Generate)),
            None => Err(self.unknown(name)),
        }
    }

    /// A model by name that can do something with whole texts.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] when there is none, [`Kind::Invalid`] when it is for something else.
    pub fn text(&self, name: &str, ability: Ability) -> Result<&Arc<TextModel>, Problem> {
        match self.models.get(name) {
            Some(Served::Text(model)) if ability.is_of(model.task.kind()) => Ok(model),
            Some(other) => Err(unable(name, other.kind(), ability)),
            None => Err(self.unknown(name)),
        }
    }

    /// A model by name that has a vocabulary.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] when there is none.
    pub fn vocabulary(&self, name: &str) -> Result<Arc<dyn Vocabulary + Send + Sync>, Problem> {
        match self.models.get(name) {
            Some(Served::Language(model)) => Ok(Arc::clone(model) as _),
            Some(Served::Text(model)) => Ok(Arc::clone(model) as _),
            None => Err(self.unknown(name)),
        }
    }

    /// Every model that reads whole texts, by name.
    pub fn texts(&self) -> impl Iterator<Item = &Arc<TextModel>> {
        self.models().filter_map(|served| match served {
            Served::Text(model) => Some(model),
            Served::Language(_) => None,
        })
    }

    fn unknown(&self, name: &str) -> Problem {
        if self.tensors.has(name) {
            let message =
                format!("model `{name}` takes tensors; ask for it over the Open Inference Protocol, below /v2");
            return Problem::invalid("model", message);
        }
        let served = self.models.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Problem::new(Kind::UnknownModel, format!("this worker does not serve `{name}`; it serves {served}"))
            .with_param("model")
    }

    /// Every model, by name.
    pub fn models(&self) -> impl Iterator<Item = &Served> {
        self.models.values()
    }

    /// What the controller is told of the models.
    pub fn cards(&self) -> Vec<ModelCard> {
        let card = |(name, served): (&String, &Served)| {
            let revision = self.revisions.get(name).cloned();
            ModelCard { revision, ..served.card() }
        };
        self.models.iter().map(card).chain(self.tensors.cards()).collect()
    }

    /// What the models do at the moment; only those that do anything.
    pub fn load_report(&self) -> Vec<ModelLoad> {
        let busy = self.models().map(Served::load).filter(|load| load.running + load.waiting > 0);
        busy.chain(self.tensors.load_report()).collect()
    }

    /// Refuses the requests that wait in any model, so that other workers take them; what runs goes on.
    pub fn shed(&self) {
        self.models().for_each(|served| match served {
            Served::Language(model) => model.engine.shed(),
            Served::Text(model) => model.encoder.shed(),
        });
        self.tensors.shed();
    }

    /// The engines of the language models.
    pub fn engines(&self) -> impl Iterator<Item = &EngineHandle> {
        self.models().filter_map(|served| match served {
            Served::Language(model) => Some(&model.engine),
            Served::Text(_) => None,
        })
    }

    /// Tokens per second of the fastest model that has measured any.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.engines().filter_map(EngineHandle::tokens_per_second).reduce(f64::max)
    }

    /// Whether the thread of every model runs.
    pub fn is_alive(&self) -> bool {
        self.tensors.is_alive()
            && self.models().all(|served| match served {
                Served::Language(model) => model.engine.is_alive(),
                Served::Text(model) => model.encoder.is_alive(),
            })
    }

    /// Resolves when the thread of a model has died; gives the model's name.
    pub async fn crashed(&self) -> String {
        let deaths = self.models.iter().map(async |(name, served)| {
            match served {
                Served::Language(model) => model.engine.died().await,
                Served::Text(model) => model.encoder.died().await,
            }
            name.clone()
        });
        let mut deaths = deaths.collect::<FuturesUnordered<_>>();
        tokio::select! {
            Some(name) = deaths.next() => name,
            name = self.tensors.crashed() => name,
        }
    }

    /// Lets the models go and waits for their threads.
    pub fn close(self) {
        drop(self.models);
        self.tensors.close();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a model's thread had panicked");
            }
        }
    }
}

impl Served {
    fn card(&self) -> ModelCard {
        match self {
            Self::Language(model) => model.card(),
            Self::Text(model) => model.card(),
        }
    }

    /// As the fleet calls it.
    fn kind(&self) -> ModelKind {
        match self {
            Self::Language(_) => ModelKind::Generate,
            Self::Text(model) => model.task.kind(),
        }
    }

    fn load(&self) -> ModelLoad {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        match self {
            Self::Language(model) => {
                let (running, waiting) = model.engine.load();
                ModelLoad { model: model.name.clone(), running: count(running), waiting: count(waiting) }
            }
            Self::Text(model) => {
                let (running, waiting) = model.encoder.load();
                ModelLoad { model: model.name.clone(), running: count(running), waiting: count(waiting) }
            }
        }
    }
}

/// Loads one model, runs it once, and lets it go.
///
/// # Errors
/// See [`LoadError`].
pub fn try_load(config: &Config, model: &ModelConfig) -> Result<(), LoadError> {
    let mut catalog = Catalog { tensors: Arc::new(Tensors::new(config)), ..Catalog::default() };
    let added = catalog.add(config, model);
    catalog.close();
    added
}

/// The name a model gets when the user gives none: that of its folder, or of its file without the ending.
pub fn name_of_folder(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_graph = absolute.extension().is_some_and(|extension| extension == "onnx") && !absolute.is_dir();
    let name = if is_graph { absolute.file_stem() } else { absolute.file_name() };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "model".to_owned())
}
