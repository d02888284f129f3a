//! The models of this process: loading them, and finding them by name.
//!
//! * [`ability`]: what each can be asked for.

pub mod ability;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_shared::control::{ModelCard, ModelKind, ModelLoad};
use muster_shared::problem::{Kind, Problem};

use crate::chat_template::ChatTemplate;
use crate::config::{Config, LoadProgress, ModelConfig, ModelSource};
use crate::encoder::{EncoderHandle, EncoderSettings};
use crate::engine::{EngineHandle, EngineSettings};
use crate::error::LoadError;
use crate::hub;
use crate::language::LanguageModel;
use crate::memory;
use crate::model::fake::{self, FakeModel};
use crate::model::files::{GraphSource, ModelFiles};
use crate::model::manifest::{CausalManifest, EncoderManifest, Graph, Layout, Manifest, Task};
use crate::model::onnx::runtime::{self, Runtime};
use crate::model::onnx::session::SessionOptions;
use crate::model::{CausalModel, EncoderBatch, EncoderModel, EncoderOutput, ModelError, Next, Positions, Row, onnx};
use crate::tensor::layout::{self, Found};
use crate::tensor::repository::Tensors;
use crate::text::TextModel;
use crate::text::tokenize::Vocabulary;
use crate::tokenizer::Tokenizer;
use ability::unable;
pub use ability::{Ability, does};

/// Steps that loading a model takes, for progress bars.
const STEPS: u32 = 4;

/// Rows that keep prefixes while all slots are busy. A search looks at each; what they hold counts against the budget.
const KEPT_PREFIXES: usize = 16;

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
}

/// The models of this process.
#[derive(Debug, Default)]
pub struct Catalog {
    models: BTreeMap<String, Served>,
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
        let Loaded { served, threads } = match &model.source {
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
        self.models().map(Served::card).chain(self.tensors.cards()).collect()
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

/// Loads a model whose files are known, and runs it once, so that it is warm.
fn load(config: &Config, model: &ModelConfig, located: Located) -> Result<Loaded, LoadError> {
    let Located { files, manifest } = located;
    let loader = Loader { config, name: &model.name, files: &files };
    match manifest {
        Manifest::Causal(manifest) => loader.language(manifest),
        Manifest::Encoder(manifest) => loader.text(manifest),
        Manifest::Tensor(graph) => Err(ModelError::UnknownLayout {
            file: graph.name,
            reason: "it takes tensors, and neither generates nor reads texts".to_owned(),
        }
        .into()),
    }
}

/// The graph of a model that takes tensors; `None` for every other.
fn tensors_of(name: &str, located: &Located) -> Option<Found> {
    match (&located.manifest, &located.files) {
        (Manifest::Tensor(Graph { source: GraphSource::File(graph), .. }), ModelFiles::Folder(folder)) => {
            Some(Found { folder: folder.clone(), ..layout::single(name, graph) })
        }
        _ => None,
    }
}

/// A model that is a graph's file, or a folder in Triton's layout.
fn tensors_at(model: &ModelConfig) -> Result<Option<Found>, LoadError> {
    let ModelSource::Folder(path) = &model.source else { return Ok(None) };
    let malformed = |reason| ModelError::Malformed { file: path.display().to_string(), reason };
    Ok(layout::given(&model.name, path).transpose().map_err(malformed)?)
}

/// A model's files and what they hold.
#[derive(Debug)]
pub struct Located {
    /// The files.
    pub files: ModelFiles,
    /// What they hold.
    pub manifest: Manifest,
}

/// Finds a model's files, fetches them where they are on the hub, and reads all but the weights.
///
/// # Errors
/// See [`LoadError`].
pub fn locate(config: &Config, model: &ModelConfig) -> Result<Located, LoadError> {
    let mut variant = config.variant.as_deref();
    let files = match &model.source {
        ModelSource::Fake(_) => {
            let file = model.name.clone();
            let reason = "the fake model has no files".to_owned();
            return Err(ModelError::Malformed { file, reason }.into());
        }
        ModelSource::Folder(path) => ModelFiles::folder(path)?,
        ModelSource::Hub(repository) => {
            let observe = |done, of| config.report(&model.name, LoadProgress::Download { done, of });
            let fetched = hub::fetch(&config.hub, repository, variant, &observe)?;
            variant = fetched.variant;
            fetched.files
        }
        #[cfg(feature = "demo")]
        ModelSource::DemoChat => crate::demo::chat(),
        #[cfg(feature = "demo")]
        ModelSource::DemoEmbedding => crate::demo::embedding(),
    };
    config.report(&model.name, LoadProgress::Step { step: "reading the model's files", done: 0, of: STEPS });
    let manifest = Manifest::read_variant(&files, variant)?;
    Ok(Located { files, manifest })
}

fn load_fake(config: &Config, name: &str, options: fake::FakeOptions) -> Result<Loaded, LoadError> {
    let tokenizer = FakeModel::tokenizer()
        .map_err(|source| LoadError::Tokenizer { file: "the fake model's tokenizer".to_owned(), source })?;
    let model = Box::new(FakeModel::new(options, rows(config)));
    let template = ChatTemplate::new(fake::TEMPLATE, Default::default())
        .map_err(|source| LoadError::Template { folder: "the fake model".to_owned(), source })?;
    start_language(
        config,
        name,
        LanguageParts { model, tokenizer, template: Some(template), end_tokens: vec![fake::END], tokens: usize::MAX },
    )
}

/// What a language model is made of.
struct LanguageParts {
    model: Box<dyn CausalModel>,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
    /// Tokens that the model may hold.
    tokens: usize,
}

/// Rows of a model: one for each sequence, and some that only keep prefixes.
fn rows(config: &Config) -> usize {
    config.capacity.slots + if config.prefix_cache { KEPT_PREFIXES } else { 0 }
}

fn start_language(config: &Config, name: &str, parts: LanguageParts) -> Result<Loaded, LoadError> {
    let settings = EngineSettings {
        capacity: config.capacity,
        tokens: parts.tokens,
        threads: config.threads_in_force(),
        prefixes: config.prefix_cache,
        speculation: config.speculation,
        itl_budget: config.itl_budget,
    };
    let (engine, thread) =
        EngineHandle::start(name, parts.model, parts.tokenizer.clone(), settings).map_err(LoadError::Thread)?;
    let model = LanguageModel {
        name: name.to_owned(),
        tokenizer: parts.tokenizer,
        template: parts.template.map(Arc::new),
        end_tokens: parts.end_tokens.into(),
        engine,
    };
    Ok(Loaded { served: Served::Language(Arc::new(model)), threads: vec![thread] })
}

struct Loader<'a> {
    config: &'a Config,
    name: &'a str,
    files: &'a ModelFiles,
}

impl Loader<'_> {
    fn step(&self, step: &'static str, done: u32) {
        self.config.report(self.name, LoadProgress::Step { step, done, of: STEPS });
    }

    fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        self.step("reading the tokenizer", 1);
        let file = self.files.describe("tokenizer.json");
        let bytes = self.files.read("tokenizer.json")?.ok_or_else(|| ModelError::FileMissing {
            file: file.clone(),
            expected: "it turns text into the model's tokens".to_owned(),
        })?;
        Tokenizer::from_json(&bytes).map_err(|source| LoadError::Tokenizer { file, source })
    }

    fn runtime(&self) -> Result<(&'static Runtime, SessionOptions), ModelError> {
        self.step("loading the graph into ONNX Runtime", 2);
        let options = SessionOptions {
            threads: self.config.threads_in_force(),
            spin: self.config.spin,
            optimised: self.config.graph_cache.clone(),
        };
        Ok((runtime::start(&self.config.library)?, options))
    }

    fn language(&self, manifest: CausalManifest) -> Result<Loaded, LoadError> {
        let mut end_tokens = manifest.end_ids.clone();
        let end_texts = manifest.end_tokens.clone();
        // A large vocabulary takes as long to read as a graph whose weights are mapped.
        let (text, model) = std::thread::scope(|scope| {
            let text = scope.spawn(|| Ok::<_, LoadError>((self.tokenizer()?, self.template()?)));
            let model = self.causal(manifest);
            (text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), model)
        });
        let (tokenizer, template) = text?;
        let (model, tokens) = model?;
        end_tokens.extend(end_texts.iter().filter_map(|token| tokenizer.id_of(token)));
        start_language(self.config, self.name, LanguageParts { model, tokenizer, template, end_tokens, tokens })
    }

    /// Loads and warms up the model itself; tells besides how many tokens it may hold.
    fn causal(&self, manifest: CausalManifest) -> Result<(Box<dyn CausalModel>, usize), LoadError> {
        let (runtime, options) = self.runtime()?;
        let tokens = self.token_budget(&manifest)?;
        let context = self.context(&manifest).min(tokens);
        let mut model = onnx::load_causal(runtime, &options, manifest, (rows(self.config), context))?;
        self.step("warming up", 3);
        warm_up(model.as_mut())?;
        Ok((model, tokens))
    }

    /// Longest sequence, in tokens: the model's, or as the user has shortened it.
    fn context(&self, manifest: &CausalManifest) -> usize {
        let limit = self.config.context_length.map_or(usize::MAX, |limit| limit.get() as usize);
        manifest.context.min(limit)
    }

    /// Tokens that the model may hold keys and values of.
    fn token_budget(&self, manifest: &CausalManifest) -> Result<usize, ModelError> {
        let wanted = self.config.kv_memory;
        let free = memory::free().map(|free| free.saturating_sub(manifest.graph.bytes()));
        // A run by concatenation holds the keys and values before it and those after it.
        let copies = if manifest.layout == Layout::Concat { 2 } else { 1 };
        let token = manifest.token_bytes() * copies;
        let tokens = memory::token_budget(wanted, free, token, self.config.models.len())?;
        let context = self.context(manifest);
        if tokens < context {
            tracing::warn!(
                model = self.name,
                context,
                tokens,
                "memory for keys and values is less than the model's context, which is shortened; see --kv-memory"
            );
        }
        Ok(tokens)
    }

    fn template(&self) -> Result<Option<ChatTemplate>, LoadError> {
        let jinja = self.files.read_text("chat_template.jinja")?;
        let tokenizer_config = self.files.read_json("tokenizer_config.json")?;
        ChatTemplate::from_files(jinja.as_deref(), tokenizer_config.as_ref())
            .map_err(|source| LoadError::Template { folder: self.files.describe(""), source })
    }

    /// Opens the sessions of a text model; the tokenizer is read meanwhile.
    fn encoders(&self, manifest: &EncoderManifest) -> Result<(Tokenizer, Vec<Box<dyn EncoderModel>>), LoadError> {
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| self.tokenizer());
            let sessions =
                self.runtime().and_then(|(runtime, options)| onnx::load_encoders(runtime, &options, manifest));
            let tokenizer = tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((tokenizer?, sessions?))
        })
    }

    fn text(&self, manifest: EncoderManifest) -> Result<Loaded, LoadError> {
        let (tokenizer, mut sessions) = self.encoders(&manifest)?;
        self.check_pairs(&manifest, &tokenizer)?;
        self.step("warming up", 3);
        let output = warm_up_encoders(&mut sessions, &probe(&tokenizer, &manifest))?;
        let requests: NonZeroUsize = self.config.embedding_requests;
        let settings = EncoderSettings {
            head: manifest.head(self.files, &output)?,
            padding: manifest.padding,
            limits: onnx::encoder_limits(&manifest.graph),
            requests,
            tokens: self.config.embedding_tokens,
        };
        let (encoder, threads) = EncoderHandle::start(self.name, sessions, settings).map_err(LoadError::Thread)?;
        tracing::info!(
            model = self.name,
            graph = manifest.graph.name,
            tokens = manifest.max_tokens,
            "it {}",
            does(manifest.task.kind())
        );
        let model = TextModel {
            name: self.name.to_owned(),
            task: manifest.task,
            tokenizer,
            max_tokens: manifest.max_tokens,
            segments: manifest.segments,
            rules: manifest.rules,
            encoder,
        };
        Ok(Loaded { served: Served::Text(Arc::new(model)), threads })
    }

    /// Refuses a tokenizer that marks two texts in a way that cannot be told to the graph.
    fn check_pairs(&self, manifest: &EncoderManifest, tokenizer: &Tokenizer) -> Result<(), LoadError> {
        let takes_pairs = matches!(manifest.task, Task::Rerank { .. } | Task::Classify { .. });
        if !takes_pairs || !manifest.segments {
            return Ok(());
        }
        let file = || self.files.describe("tokenizer.json");
        let pair = tokenizer.encode_all("a", Some("b"));
        match pair.map_err(|source| LoadError::Tokenizer { file: file(), source })?.second() {
            Some(_) => Ok(()),
            None => {
                let reason = "it must mark the first of two texts with the type 0 and the rest with 1, as \
                              token_type_ids of the graph want it";
                Err(ModelError::Malformed { file: file(), reason: reason.to_owned() }.into())
            }
        }
    }
}

/// A short text, to find out at the start whether the graph can be run at all, and what it gives.
fn probe(tokenizer: &Tokenizer, manifest: &EncoderManifest) -> EncoderBatch {
    let mut ids: Vec<i64> = tokenizer.encode("a", true).unwrap_or_default().into_iter().map(i64::from).collect();
    ids.truncate(manifest.max_tokens);
    if ids.is_empty() {
        ids.push(0);
    }
    let columns = ids.len();
    EncoderBatch { rows: 1, columns, ids, mask: vec![1; columns], types: vec![0; columns] }
}

/// Runs every session once; gives what the last one gave.
fn warm_up_encoders(sessions: &mut [Box<dyn EncoderModel>], probe: &EncoderBatch) -> Result<EncoderOutput, ModelError> {
    let outputs = sessions.iter_mut().map(|session| session.encode(probe)).collect::<Result<Vec<_>, _>>()?;
    outputs.into_iter().next_back().ok_or_else(|| ModelError::Run("it has no session".to_owned()))
}

/// Reads two tokens and adds one: a graph that cannot do that is found out at the start.
fn warm_up(model: &mut dyn CausalModel) -> Result<(), ModelError> {
    let row = Row(0);
    model.read(row, &[0, 0], 0, Positions::None)?;
    model.decode(&[Next { token: 0, past: 2 }])?;
    model.release(row);
    Ok(())
}

/// The name a model gets when the user gives none: that of its folder, or of its file without the ending.
pub fn name_of_folder(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_graph = absolute.extension().is_some_and(|extension| extension == "onnx") && !absolute.is_dir();
    let name = if is_graph { absolute.file_stem() } else { absolute.file_name() };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "model".to_owned())
}
