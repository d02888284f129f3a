//! A text model in this process: what the encoder's pool makes of the processors, against ONNX Runtime alone.
//!
//! The yardstick is as many sessions as there are threads, each with one thread that runs one text after the other,
//! with no queue between. Both get the same texts, made of random tokens, one round after the other.

mod records;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail, ensure};
use muster_worker::Config;
use muster_worker::catalog::{self, Catalog};
use muster_worker::config::ModelConfig;
use muster_worker::encoder::EncoderHandle;
use muster_worker::encoder::head::Tokens;
use muster_worker::model::manifest::{EncoderManifest, Manifest};
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::{self, runtime};
use muster_worker::model::{EncoderBatch, EncoderModel, ModelError};
use muster_worker::text::TextModel;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::{JoinSet, block_in_place};

use records::{Compared, Sample, Setting, Tokenized};

use super::process::own_time;
use super::prompts::{Prompt, Prompts};
use super::report::Report;
use crate::cli::{EmbedArgs, PromptKind};
use crate::config::{ModelSection, WorkerSection};

/// Texts and the clients that want them embedded, each sending its next text when it has the answer to the last.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    clients: usize,
    /// Tokens of the shortest and of the longest text; between them the logarithm is uniform.
    lengths: (usize, usize),
}

const LOADS: [Load; 2] =
    [Load { name: "mixed", clients: 16, lengths: (16, 256) }, Load { name: "short", clients: 64, lengths: (4, 16) }];

const NO_MODEL: &str = "no model is given; name one with --model";

/// Made-up text that is tokenized, in tokens.
const TOKENIZED: usize = 20_000;

/// Loads the model twice, as the worker does and bare, measures everything round by round, and prints.
pub(super) async fn run(args: EmbedArgs) -> anyhow::Result<()> {
    let config = config(&args)?;
    let begin = Instant::now();
    let manifest = block_in_place(|| manifest(&config))?;
    let model = block_in_place(|| pooled(&config))?;
    let load_time = begin.elapsed();
    let mut sessions = block_in_place(|| bare(&config, &manifest))?;
    let mut report = Report::new(args.json);
    report.add(&Setting::new(&config, load_time))?;
    report.add(&block_in_place(|| tokenize(&model, args.seed))?)?;

    let mut random = StdRng::seed_from_u64(args.seed);
    let loads = LOADS.map(|load| (load, load.texts(args.tokens.get(), &model, &mut random)));
    let mut samples = LOADS.map(|_| Vec::with_capacity(args.rounds.get()));
    for _ in 0..args.rounds.get() {
        for ((load, texts), samples) in loads.iter().zip(&mut samples) {
            let alone = block_in_place(|| singles(&mut sessions, texts))?;
            let pool = clients(&model.encoder, load.clients, texts).await?;
            samples.push((alone, pool));
        }
    }
    for ((load, texts), samples) in loads.iter().zip(samples) {
        report.add(&Compared::new((load.name, load.clients, load.lengths), texts.len(), &samples))?;
    }
    Ok(())
}

/// The worker's configuration of this model, so that flags mean what they mean there.
fn config(args: &EmbedArgs) -> anyhow::Result<Config> {
    let models = ModelSection {
        model: Some(vec![args.model.clone()]),
        threads: args.threads,
        onnxruntime: args.onnxruntime.clone(),
        ..ModelSection::default()
    };
    WorkerSection { models, no_register: Some(true), ..WorkerSection::default() }.config()
}

/// What the model's files hold, weights aside: a model of the wrong kind is not loaded.
fn manifest(config: &Config) -> anyhow::Result<EncoderManifest> {
    let model = config.models.first().context(NO_MODEL)?;
    match catalog::locate(config, model)?.manifest {
        Manifest::Encoder(manifest) => Ok(manifest),
        _ => Err(no_texts(model)),
    }
}

/// The model as the worker serves it.
fn pooled(config: &Config) -> anyhow::Result<Arc<TextModel>> {
    let model = config.models.first().context(NO_MODEL)?;
    let (catalog, failures) = Catalog::load(config);
    if let Some((_, error)) = failures.into_iter().next() {
        return Err(error.into());
    }
    catalog.texts().next().cloned().ok_or_else(|| no_texts(model))
}

fn no_texts(model: &ModelConfig) -> anyhow::Error {
    anyhow!("--model {} embeds no texts; give an embedding model", model.name)
}

/// The model without a queue: a session for each thread.
fn bare(config: &Config, manifest: &EncoderManifest) -> anyhow::Result<Vec<Box<dyn EncoderModel>>> {
    let options =
        SessionOptions { threads: config.threads_in_force(), spin: config.spin, optimised: config.graph_cache.clone() };
    let runtime = runtime::start(&config.library).map_err(ModelError::from)?;
    let mut sessions = onnx::load_encoders(runtime, &options, manifest)?;
    for session in &mut sessions {
        session.encode(&single(&[0, 0]))?; // the first run of a graph also lays out its memory
    }
    Ok(sessions)
}

impl Load {
    /// So many tokens in texts of this load's lengths, as far as the model takes them.
    fn texts(&self, tokens: usize, model: &TextModel, random: &mut StdRng) -> Vec<Vec<u32>> {
        let (shortest, longest) = (self.lengths.0 as f64, self.lengths.1.min(model.max_tokens) as f64);
        let (mut texts, mut left) = (Vec::new(), tokens);
        while left > 0 {
            let length = (shortest * (longest / shortest).powf(random.random_range(0.0..=1.0))).round() as usize;
            let length = length.min(model.max_tokens);
            texts.push((0..length).map(|_| random.random_range(0..model.tokenizer.vocab_size())).collect());
            left = left.saturating_sub(length);
        }
        texts
    }
}

fn single(text: &[u32]) -> EncoderBatch {
    EncoderBatch {
        rows: 1,
        columns: text.len(),
        ids: text.iter().map(|&id| i64::from(id)).collect(),
        mask: vec![1; text.len()],
        types: vec![0; text.len()],
    }
}

/// Runs the texts one by one, on every session until none is left.
fn singles(sessions: &mut [Box<dyn EncoderModel>], texts: &[Vec<u32>]) -> anyhow::Result<Sample> {
    let next = AtomicUsize::new(0);
    let (processor, begin) = (own_time(), Instant::now());
    std::thread::scope(|scope| {
        let next = &next;
        let run = |session: &mut Box<dyn EncoderModel>| {
            while let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                std::hint::black_box(session.encode(&single(text))?);
            }
            Ok::<_, ModelError>(())
        };
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(move || run(session))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(outcome) => outcome.map_err(anyhow::Error::from),
            Err(_) => bail!("a thread panicked"),
        })
    })?;
    Ok(Sample::new(texts, begin.elapsed(), own_time() - processor))
}

/// Has the texts embedded by the pool, for so many clients at once.
async fn clients(encoder: &EncoderHandle, clients: usize, texts: &[Vec<u32>]) -> anyhow::Result<Sample> {
    let (next, shared): (_, Arc<[Vec<u32>]>) = (Arc::new(AtomicUsize::new(0)), texts.into());
    let mut tasks = JoinSet::new();
    let (processor, begin) = (own_time(), Instant::now());
    for _ in 0..clients {
        let (encoder, next, texts) = (encoder.clone(), Arc::clone(&next), Arc::clone(&shared));
        tasks.spawn(async move {
            while let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                encoder.encode(vec![Tokens::one(text.clone())], None).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.context("a client panicked")??;
    }
    Ok(Sample::new(texts, begin.elapsed(), own_time() - processor))
}

/// What it costs to turn text into tokens, on one thread.
fn tokenize(model: &TextModel, seed: u64) -> anyhow::Result<Tokenized> {
    let mut prompts = Prompts::new(PromptKind::Text, 0, seed);
    let (mut tokens, mut time) = (0, std::time::Duration::ZERO);
    while tokens < TOKENIZED {
        let Prompt::Text(text) = prompts.take(64) else { bail!("a prompt of text is no text") };
        let begin = own_time();
        let ids = model.tokenizer.encode(&text, true).context("made-up words cannot be tokenized")?;
        time += own_time() - begin;
        ensure!(!ids.is_empty(), "the tokenizer makes no tokens of made-up words");
        tokens += ids.len();
    }
    Ok(Tokenized::new(tokens, time))
}
