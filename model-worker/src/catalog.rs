//! The models of this process: loading them, and finding them by name.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use muster_shared::control::{ModelCard, ModelLoad};
use muster_shared::problem::{Kind, Problem};

use crate::chat_template::ChatTemplate;
use crate::config::{Config, LoadProgress, ModelConfig, ModelSource};
use crate::embedding::EmbeddingModel;
use crate::encoder::head::EmbeddingHead;
use crate::encoder::{EncoderHandle, EncoderSettings};
use crate::engine::{EngineHandle, EngineSettings};
use crate::error::LoadError;
use crate::hub;
use crate::language::LanguageModel;
use crate::memory;
use crate::model::fake::{self, FakeModel};
use crate::model::files::ModelFiles;
use crate::model::manifest::{CausalManifest, EncoderManifest, Layout, Manifest};
use crate::model::onnx::runtime::{self, Runtime};
use crate::model::onnx::session::SessionOptions;
use crate::model::{CausalModel, EncoderBatch, EncoderModel, ModelError, Next, Positions, Row, onnx};
use crate::tokenizer::Tokenizer;

/// Steps that loading a model takes, for progress bars.
const STEPS: u32 = 4;

/// Rows that keep prefixes while all slots are busy. A search looks at each; what they hold counts against the budget.
const KEPT_PREFIXES: usize = 16;

/// A loaded model.
#[derive(Debug)]
pub enum Served {
    /// Continues prompts.
    Language(Arc<LanguageModel>),
    /// Embeds texts.
    Embedding(Arc<EmbeddingModel>),
}

/// A loaded model and the threads that run it.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub served: Served,
    threads: Vec<JoinHandle<()>>,
}

/// The models of this process.
#[derive(Debug, Default)]
pub struct Catalog {
    models: BTreeMap<String, Served>,
    threads: Vec<JoinHandle<()>>,
}

impl Catalog {
    /// Loads every model; those that cannot be loaded are given back with the reason.
    pub fn load(config: &Config) -> (Self, Vec<(String, LoadError)>) {
        let (mut catalog, mut failures) = (Self::default(), Vec::new());
        for model in &config.models {
            match load(config, model) {
                Ok(Loaded { served, threads }) => {
                    tracing::info!(model = model.name, "model is ready");
                    config.report(&model.name, LoadProgress::Ready);
                    catalog.models.insert(model.name.clone(), served);
                    catalog.threads.extend(threads);
                }
                Err(error) => {
                    let reason = muster_shared::problem::chain(&error);
                    tracing::error!(model = model.name, reason, "model cannot be loaded");
                    config.report(&model.name, LoadProgress::Failed(reason));
                    failures.push((model.name.clone(), error));
                }
            }
        }
        (catalog, failures)
    }

    /// A language model by name.
    ///
    /// # Errors
    /// [`Kind::UnknownModel`] when there is none, [`Kind::Invalid`] when it is of another kind.
    pub fn language(&self, name: &str) -> Result<&Arc<LanguageModel>, Problem> {
        match self.models.get(name) {
            Some(Served::Language(model)) => Ok(model),
            Some(Served::Embedding(_)) => {
                Err(Problem::invalid("model", format!("model `{name}` embeds texts and does not generate any")))
            }
            None => Err(self.unknown(name)),
        }
    }

    /// An embedding model by name.
    ///
    /// # Errors
    /// As [`Catalog::language`].
    pub fn embedding(&self, name: &str) -> Result<&Arc<EmbeddingModel>, Problem> {
        match self.models.get(name) {
            Some(Served::Embedding(model)) => Ok(model),
            Some(Served::Language(_)) => {
                Err(Problem::invalid("model", format!("model `{name}` generates text and does not embed any")))
            }
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Problem {
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
        self.models().map(Served::card).collect()
    }

    /// What the models do at the moment; only those that do anything.
    pub fn load_report(&self) -> Vec<ModelLoad> {
        self.models().map(Served::load).filter(|load| load.running + load.waiting > 0).collect()
    }

    /// Tokens per second of the fastest model that has measured any.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let measured = self.models().filter_map(|served| match served {
            Served::Language(model) => model.engine.tokens_per_second(),
            Served::Embedding(_) => None,
        });
        measured.reduce(f64::max)
    }

    /// Whether the thread of every model runs.
    pub fn is_alive(&self) -> bool {
        self.models().all(|served| match served {
            Served::Language(model) => model.engine.is_alive(),
            Served::Embedding(model) => model.encoder.is_alive(),
        })
    }

    /// Resolves when the thread of a model has died; gives the model's name.
    pub async fn crashed(&self) -> String {
        let deaths = self.models.iter().map(async |(name, served)| {
            match served {
                Served::Language(model) => model.engine.died().await,
                Served::Embedding(model) => model.encoder.died().await,
            }
            name.clone()
        });
        match deaths.collect::<FuturesUnordered<_>>().next().await {
            Some(name) => name,
            None => std::future::pending().await, // without models nothing can crash
        }
    }

    /// Lets the models go and waits for their threads.
    pub fn close(self) {
        drop(self.models);
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
            Self::Embedding(model) => ModelCard { capacity: Some(model.encoder.capacity()), ..model.card() },
        }
    }

    fn load(&self) -> ModelLoad {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        match self {
            Self::Language(model) => {
                let (running, waiting) = model.engine.load();
                ModelLoad { model: model.name.clone(), running: count(running), waiting: count(waiting) }
            }
            Self::Embedding(model) => {
                let (running, waiting) = model.encoder.load();
                ModelLoad { model: model.name.clone(), running: count(running), waiting: count(waiting) }
            }
        }
    }
}

/// Loads one model and runs it once, so that it is warm.
///
/// # Errors
/// See [`LoadError`].
pub fn load(config: &Config, model: &ModelConfig) -> Result<Loaded, LoadError> {
    if let ModelSource::Fake(options) = &model.source {
        return load_fake(config, &model.name, *options);
    }
    let Located { files, manifest } = locate(config, model)?;
    let loader = Loader { config, name: &model.name, files: &files };
    match manifest {
        Manifest::Causal(manifest) => loader.language(manifest),
        Manifest::Encoder(manifest) => loader.embedding(manifest),
    }
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

    /// Loads and warms up the sessions of a text model.
    fn encoders(&self, manifest: &EncoderManifest) -> Result<Vec<Box<dyn EncoderModel>>, ModelError> {
        let (runtime, options) = self.runtime()?;
        let mut sessions = onnx::load_encoders(runtime, &options, manifest)?;
        self.step("warming up", 3);
        sessions.iter_mut().try_for_each(|session| warm_up_encoder(session.as_mut()))?;
        Ok(sessions)
    }

    fn embedding(&self, manifest: EncoderManifest) -> Result<Loaded, LoadError> {
        let (tokenizer, sessions) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| self.tokenizer());
            let sessions = self.encoders(&manifest);
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), sessions)
        });
        let (tokenizer, sessions) = (tokenizer?, sessions?);
        let requests: NonZeroUsize = self.config.embedding_requests;
        let settings = EncoderSettings {
            head: Arc::new(EmbeddingHead { pooling: manifest.pooling, normalise: manifest.normalise }),
            padding: manifest.padding,
            limits: onnx::encoder_limits(&manifest.graph),
            requests,
            tokens: self.config.embedding_tokens,
        };
        let (encoder, threads) = EncoderHandle::start(self.name, sessions, settings).map_err(LoadError::Thread)?;
        let model = EmbeddingModel {
            name: self.name.to_owned(),
            tokenizer,
            max_tokens: manifest.max_tokens,
            requests: requests.get(),
            encoder,
        };
        Ok(Loaded { served: Served::Embedding(Arc::new(model)), threads })
    }
}

/// Reads two tokens, as [`warm_up`].
fn warm_up_encoder(model: &mut dyn EncoderModel) -> Result<(), ModelError> {
    let batch = EncoderBatch { rows: 1, columns: 2, ids: vec![0, 0], mask: vec![1, 1], types: vec![0, 0] };
    model.encode(&batch).map(drop)
}

/// Reads two tokens and adds one: a graph that cannot do that is found out at the start.
fn warm_up(model: &mut dyn CausalModel) -> Result<(), ModelError> {
    let row = Row(0);
    model.read(row, &[0, 0], 0, Positions::None)?;
    model.decode(&[Next { token: 0, past: 2 }])?;
    model.release(row);
    Ok(())
}

/// The name a folder's model gets when the user gives none: the folder's own.
pub fn name_of_folder(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "model".to_owned())
}
