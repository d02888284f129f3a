//! The flags of `muster bench`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use muster_shared::secret::Secret;
use muster_worker::model::onnx::spin::Spin;

use crate::config::SecretParser;

/// Flags of `muster bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchVerb,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// Measure how fast text is generated: by a model in this process, or with --url by any OpenAI-compatible server.
    Engine(Box<EngineArgs>),
}

/// Flags of `muster bench engine`.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Folder of an ONNX language model, or `fake`; with --url, the name by which the server knows it.
    #[arg(long, value_name = "DIR", required_unless_present = "url")]
    pub(crate) model: Option<String>,
    /// Tokens of a sequence before it is continued; 64, or 128 with --url, when absent.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) prompt: Option<NonZeroUsize>,
    /// Tokens added to each sequence; 32, or 48 with --url, when absent.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) new: Option<NonZeroUsize>,
    /// Times that everything is measured, one time after the other.
    #[arg(long, default_value = "1")]
    pub(crate) rounds: NonZeroUsize,
    /// Where the made-up prompts begin; the same seed gives the same prompts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// Flags that hold for a model in this process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Without --url: a model in this process")]
pub(crate) struct LocalArgs {
    /// Threads of the model; the processors this process may use when absent.
    #[arg(long, conflicts_with = "url")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Whether idle threads of ONNX Runtime spin, as for a worker: `auto`, `off`, `brief` or `always`.
    #[arg(long, num_args = 0..=1, default_value = "auto", default_missing_value = "always", value_name = "WHEN")]
    #[arg(conflicts_with = "url")]
    pub(crate) spin: Spin,
    /// Sequences that are continued together, one measurement for each number.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16", conflicts_with = "url")]
    pub(crate) batch: Vec<NonZeroUsize>,
    /// Lengths of prompts that are read, in tokens, one measurement for each.
    #[arg(long, value_delimiter = ',', default_value = "128,512", value_name = "TOKENS", conflicts_with = "url")]
    pub(crate) prefill: Vec<NonZeroUsize>,
    /// Read each prompt once more in pieces of so many tokens.
    #[arg(long, value_name = "TOKENS", conflicts_with = "url")]
    pub(crate) chunk: Option<NonZeroUsize>,
    /// ONNX Runtime's shared library.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
}

/// Flags that hold for a server.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --url: a server")]
pub(crate) struct RemoteArgs {
    /// Base URL of an OpenAI-compatible server, with or without `/v1`.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Key for the server.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) api_key: Option<Secret>,
    /// Clients that ask at the same time, one measurement for each number; all begin together.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16", requires = "url")]
    pub(crate) clients: Vec<NonZeroUsize>,
    /// Requests of each client, each sent when the one before has its answer.
    #[arg(long, value_name = "COUNT", default_value = "1", requires = "url")]
    pub(crate) requests_per_client: NonZeroUsize,
    /// What a prompt is made of.
    #[arg(long, value_enum, default_value_t = PromptKind::Ids, requires = "url")]
    pub(crate) prompt_kind: PromptKind,
    /// Prompts of ids take ids below this; those below a tenth of it are left out, since special tokens lie there.
    #[arg(long, value_name = "TOKENS", default_value = "2000", requires = "url")]
    pub(crate) vocab: NonZeroU32,
    /// JSON object whose fields are added to each request.
    #[arg(long, value_name = "JSON", requires = "url")]
    pub(crate) extra: Option<String>,
    /// Process of the server on this machine, whose processor time and memory are told.
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,
    /// Measure what a common beginning saves: two requests whose prompts share so many tokens, one after the other.
    #[arg(long, value_name = "TOKENS", requires = "url")]
    pub(crate) shared_prefix: Option<NonZeroUsize>,
    /// Measure what a newcomer costs the others: streams run, then a prompt of so many tokens arrives.
    #[arg(long, value_name = "TOKENS", requires = "url")]
    pub(crate) beside: Option<NonZeroUsize>,
}

/// The values of `--prompt-kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PromptKind {
    /// A list of token ids.
    Ids,
    /// Words; about as many tokens as asked for.
    Text,
}
