//! The flags of `muster bench`.

mod dispatch;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use muster_controller::config::PolicyName;
use muster_controller::simulator::Scenario;
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use muster_worker::model::onnx::spin::Spin;

pub(crate) use self::dispatch::{DispatchArgs, FleetArgs, Over};
use crate::config::{SecretParser, Span};

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
    /// Measure how fast texts are embedded by a model in this process, against ONNX Runtime running one by one.
    Embed(EmbedArgs),
    /// Measure what a gateway costs: closed-loop load on any OpenAI-compatible server.
    Gateway(Box<LoadArgs>),
    /// Run a worker that answers at once, so that the gateway before it is what is measured.
    FakeWorker(FakeWorkerArgs),
    /// Compare dispatch policies: a simulated fleet in virtual time, with the real controller's rules.
    Policies(PoliciesArgs),
    /// Measure what a controller's decisions cost, by the size of its fleet: in this process, and over HTTP.
    Dispatch(Box<DispatchArgs>),
    /// Simulate a fleet of workers that beat over HTTP, some of which fall silent, and check what the controller does.
    Fleet(FleetArgs),
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

/// Most clients at the same time: each is a connection.
const MOST_CLIENTS: i64 = 4096;
/// Longest measurement in seconds.
const LONGEST: f64 = 86_400.0;
/// Longest prompt in bytes.
const LONGEST_PROMPT: u64 = 16 << 20;
/// Longest answer of a fake worker in tokens.
const LONGEST_ANSWER: i64 = 1_000_000;

/// Flags of `muster bench embed`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// Folder of an ONNX embedding model.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: String,
    /// Threads of the model; the processors this process may use when absent.
    #[arg(long)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Tokens of all texts of one measurement.
    #[arg(long, default_value = "40000")]
    pub(crate) tokens: NonZeroUsize,
    /// Times that everything is measured, one time after the other.
    #[arg(long, default_value = "3")]
    pub(crate) rounds: NonZeroUsize,
    /// Where the made-up texts begin; the same seed gives the same texts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// ONNX Runtime's shared library.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
}

/// Flags of `muster bench gateway`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Base URL of an OpenAI-compatible server, with or without `/v1`.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Name of the model that is asked for.
    #[arg(long)]
    pub(crate) model: String,
    /// What is asked for.
    #[arg(long, value_enum, default_value_t = LoadKind::Chat)]
    pub(crate) kind: LoadKind,
    /// Clients at the same time, one measurement for each number; each sends its next request when it has its answer.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MOST_CLIENTS))]
    pub(crate) clients: Vec<u32>,
    /// Length of each measurement, in seconds.
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = positive_seconds)]
    pub(crate) seconds: Duration,
    /// Time before each measurement in which the clients begin, one after the other, in seconds.
    #[arg(long, default_value = "0.5", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) warm_up: Duration,
    /// What the prompt begins with; `fake:n=50,d=20000;` has a fake worker send 50 tokens, 20000 microseconds apart.
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub(crate) prompt: String,
    /// Length to which the prompt is filled with words.
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=LONGEST_PROMPT))]
    pub(crate) prompt_bytes: u64,
    /// Longest answer in tokens.
    #[arg(long, default_value = "20", value_name = "TOKENS")]
    pub(crate) max_tokens: NonZeroU32,
    /// Process of the server on this machine, whose processor time and memory are told, with those of its children;
    /// may be given several times.
    #[arg(long)]
    pub(crate) pid: Vec<u32>,
    /// Key for the server.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) api_key: Option<Secret>,
    /// Threads that play the clients; one is enough until it is busy itself.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: u32,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The values of `muster bench gateway --kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadKind {
    /// Chats that are answered whole.
    Chat,
    /// Chats that are answered piece by piece.
    Stream,
    /// Embeddings.
    Embeddings,
}

impl LoadKind {
    /// Its name as a flag.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Stream => "stream",
            Self::Embeddings => "embeddings",
        }
    }
}

/// Flags of `muster bench fake-worker`.
#[derive(Debug, Args)]
pub(crate) struct FakeWorkerArgs {
    /// Port to listen on, on the loopback interface; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Protocol it speaks.
    #[arg(long, value_enum, default_value_t = FakeTransport::Openai)]
    pub(crate) transport: FakeTransport,
    /// Name of a model; may be given several times.
    #[arg(long, value_delimiter = ',', default_value = "fake")]
    pub(crate) model: Vec<String>,
    /// Tokens of an answer, where the prompt does not say.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=LONGEST_ANSWER))]
    pub(crate) tokens: u32,
    /// Time between two tokens, where the prompt does not say; the system's timer counts milliseconds.
    #[arg(long, default_value = "0ms")]
    pub(crate) token_time: Span,
    /// Base URL of the controller to register with, muster's or, for `fastchat`, FastChat's; without, it only listens.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS")]
    pub(crate) controller_address: Option<String>,
    /// The fleet's token, to show to the controller; whoever asks this worker need not show it.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Speed relative to the other workers.
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    pub(crate) speed: f64,
}

/// The values of `muster bench fake-worker --transport`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FakeTransport {
    /// OpenAI's API.
    Openai,
    /// Muster's own.
    Http,
    /// FastChat's worker API.
    Fastchat,
}

impl From<FakeTransport> for Transport {
    fn from(transport: FakeTransport) -> Self {
        match transport {
            FakeTransport::Openai => Self::OpenAi,
            FakeTransport::Http => Self::Http,
            FakeTransport::Fastchat => Self::FastChat,
        }
    }
}

/// Most requests of a simulation: each takes some hundred bytes.
const MOST_SIMULATED: u64 = 10_000_000;

/// Flags of `muster bench policies`.
#[derive(Debug, Args)]
pub(crate) struct PoliciesArgs {
    /// Fleet, and what is asked of it; all when absent.
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = scenarios())]
    pub(crate) scenario: Vec<Scenario>,
    /// Rule to look at, beside `round_robin`; all when absent.
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = policies())]
    pub(crate) policy: Vec<PolicyName>,
    /// Requests of each run.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MOST_SIMULATED))]
    pub(crate) requests: u64,
    /// Where the first round's chance begins; the next round's seed is one more.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Runs of each policy with other requests; the median of each figure is told.
    #[arg(long, default_value = "1")]
    pub(crate) rounds: NonZeroU32,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

fn scenarios() -> impl TypedValueParser<Value = Scenario> {
    let names = Scenario::all().iter().map(|scenario| scenario.name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Scenario>())
}

fn policies() -> impl TypedValueParser<Value = PolicyName> {
    let names = PolicyName::all().map(|name| name.as_str());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<PolicyName>())
}

/// Seconds, with a fraction if need be.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=LONGEST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("it must be a number of seconds from 0 to {LONGEST}, such as 0.5")),
    }
}

fn positive_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("it must be longer than 0 seconds".to_owned()),
        seconds => Ok(seconds),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("it must be a number above 0".to_owned()),
    }
}
