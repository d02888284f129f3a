//! One model: found, read, run once.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::ability::does;
use super::{Loaded, Served};
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
use crate::model::{
    CausalModel, EncoderBatch, EncoderModel, EncoderOutput, ModelError, Next, Positions, Row, onnx, revision,
};
use crate::tensor::layout::{self, Found};
use crate::text::TextModel;
use crate::tokenizer::Tokenizer;

/// Steps that loading a model takes, for progress bars.
const STEPS: u32 = 4;
/// Rows that keep prefixes while all slots are busy. A search looks at each; what they hold counts against the budget.
const KEPT_PREFIXES: usize = 16;

/// Loads a model whose files are known, and runs it once, so that it is warm.
pub(super) fn load(config: &Config, model: &ModelConfig, located: Located) -> Result<Loaded, LoadError> {
    let Located { files, manifest } = located;
    let loader = Loader { config, name: &model.name, files: &files };
    let graph = manifest.graph().clone();
    // It reads what ONNX Runtime reads, at the same time: from the disk once.
    let (loaded, revision) = std::thread::scope(|scope| {
        let revision = scope.spawn(|| revision::of(&files, &graph));
        let loaded = match manifest {
            Manifest::Causal(manifest) => loader.language(manifest),
            Manifest::Encoder(manifest) => loader.text(manifest),
            Manifest::Tensor(graph) => Err(ModelError::UnknownLayout {
                file: graph.name,
                reason: "it takes tensors, and neither generates nor reads texts".to_owned(),
            }
            .into()),
        };
        (loaded, revision.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut loaded = loaded?;
    match revision {
        Ok(revision) => loaded.revision = Some(revision),
        Err(error) => {
            let error = muster_shared::problem::chain(&error);
            tracing::warn!(model = model.name, error, "the model has no revision, and gateways keep no answers of it");
        }
    }
    Ok(loaded)
}

/// The graph of a model that takes tensors; `None` for every other.
pub(super) fn tensors_of(name: &str, located: &Located) -> Option<Found> {
    match (&located.manifest, &located.files) {
        (Manifest::Tensor(Graph { source: GraphSource::File(graph), .. }), ModelFiles::Folder(folder)) => {
            Some(Found { folder: folder.clone(), ..layout::single(name, graph) })
        }
        _ => None,
    }
}

/// A model that is a graph's file, or a folder in Triton's layout.
pub(super) fn tensors_at(model: &ModelConfig) -> Result<Option<Found>, LoadError> {
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

pub(super) fn load_fake(config: &Config, name: &str, options: fake::FakeOptions) -> Result<Loaded, LoadError> {
    let tokenizer = FakeModel::tokenizer()
        .map_err(|source| LoadError::Tokenizer { file: "the fake model's tokenizer".to_owned(), source })?;
    let model = Box::new(FakeModel::new(options, rows(config)));
    let revision = Some(revision::of_settings(&format!("{options:?}")));
    let template = ChatTemplate::new(fake::TEMPLATE, Default::default())
        .map_err(|source| LoadError::Template { folder: "the fake model".to_owned(), source })?;
    let parts =
        LanguageParts { model, tokenizer, template: Some(template), end_tokens: vec![fake::END], tokens: usize::MAX };
    Ok(Loaded { revision, ..start_language(config, name, parts)? })
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
    Ok(Loaded { served: Served::Language(Arc::new(model)), threads: vec![thread], revision: None })
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
        Ok(Loaded { served: Served::Text(Arc::new(model)), threads, revision: None })
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
