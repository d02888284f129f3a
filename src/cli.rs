//! The command line.

mod ask;
mod bench;
mod decisions;
mod defaults;
mod status;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use muster_shared::secret::Secret;
use muster_shared::telemetry::{self, LogFormat};

pub(crate) use ask::Ask;
pub(crate) use bench::{
    BenchArgs, BenchVerb, DispatchArgs, EmbedArgs, EngineArgs, FakeTransport, FakeWorkerArgs, FleetArgs, LoadArgs,
    LoadKind, Over, PoliciesArgs, PromptKind,
};
pub(crate) use decisions::{ExplainArgs, JournalArgs, ReplayArgs};

pub(crate) use status::{DrainArgs, ModelsArgs, ResumeArgs, StatusArgs};

use crate::config::{
    AttachSection, CallerTls, ControllerSection, GatewaySection, ModelSection, PAIRS, SecretParser, TracesSection,
    WorkerSection, policy_help,
};

/// A fleet for ONNX models behind one OpenAI-compatible address.
#[derive(Debug, Parser)]
#[command(name = "muster", version, propagate_version = true)]
pub(crate) struct Cli {
    /// YAML or JSON file with the sections `controller`, `worker`, `gateway`, `attach`, `models` and `traces`.
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) logs: Logs,
    #[command(flatten)]
    pub(crate) traces: TracesSection,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    /// Reads the command line; a word that is unknown is answered with those that are legal in its place.
    pub(crate) fn read() -> Result<Self, ExitCode> {
        let words: Vec<OsString> = std::env::args_os().collect();
        parse(&words).map_err(|error| {
            // Help and version are "errors" that go to standard output.
            let _ = error.print();
            if matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand) {
                eprintln!("\nlegal here: {}", legal(&words));
            }
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        })
    }
}

/// Reads flags and variables. A flag also silences the variable of the knob that belongs to it: flags win.
fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = defaults::show(Cli::command());
    let matches = command.clone().try_get_matches_from(words)?;
    let (mut verbs, mut given) = (Vec::new(), &matches);
    while let Some((verb, inner)) = given.subcommand() {
        verbs.push(verb);
        given = inner;
    }
    let is_flag =
        |id: &str| given.ids().any(|other| other == id) && given.value_source(id) == Some(ValueSource::CommandLine);
    for (flag, partner) in PAIRS.into_iter().flat_map(|(one, two)| [(one, two), (two, one)]) {
        if is_flag(flag) && !is_flag(partner) {
            command = without_variable(command, &verbs, partner);
        }
    }
    Cli::from_arg_matches(&command.try_get_matches_from(words)?)
}

/// `command`, in the innermost of whose `verbs` the flag `id` is not read from the environment; some lack it.
fn without_variable(command: Command, verbs: &[&str], id: &str) -> Command {
    match verbs.split_first() {
        Some((verb, rest)) => command.mut_subcommand(verb, |verb| without_variable(verb, rest, id)),
        None => command.mut_args(|arg| if arg.get_id() == id { arg.env(Resettable::Reset) } else { arg }),
    }
}

/// The flags of the innermost verb among `words`, or the verbs where one is missing.
fn legal(words: &[OsString]) -> String {
    let command = Cli::command();
    let verb = words.iter().skip(1).fold(&command, |verb, word| verb.find_subcommand(word).unwrap_or(verb));
    if verb.has_subcommands() {
        return verb.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
    }
    let flags = verb.get_arguments().chain(command.get_arguments()).filter(|flag| !flag.is_hide_set());
    flags.filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect::<Vec<_>>().join(", ")
}

impl Verb {
    /// What the process is called in traces, where it serves requests of the fleet.
    pub(crate) fn service(&self) -> Option<&'static str> {
        match self {
            Self::Up(_) => Some("muster"),
            Self::Controller(_) => Some("muster-controller"),
            Self::Worker(_) => Some("muster-worker"),
            Self::Gateway(_) => Some("muster-gateway"),
            _ => None,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run controller, worker and gateway in one process.
    Up(Box<UpArgs>),
    /// Run a controller: the registry of workers.
    Controller(Box<ControllerArgs>),
    /// Run a model worker.
    Worker(Box<WorkerArgs>),
    /// Run a gateway: the OpenAI API.
    Gateway(Box<GatewayArgs>),
    /// Make servers that cannot register themselves workers of a fleet: vLLM, llama-server, another gateway, …
    Attach(Box<AttachArgs>),
    /// Show a controller's fleet.
    Status(StatusArgs),
    /// Stop requests to a worker; those that run go on.
    Drain(DrainArgs),
    /// Let a drained worker have requests again.
    Resume(ResumeArgs),
    /// List the models that can be asked for.
    Models(ModelsArgs),
    /// Look after a file of workers that do not register.
    Peers(PeersArgs),
    /// Tell why the worker of a request was chosen.
    Explain(ExplainArgs),
    /// Save a controller's journal: its last decisions, with what they were made of.
    Journal(JournalArgs),
    /// Make the decisions of a saved journal again, under their own policy or another.
    Replay(ReplayArgs),
    /// Chat in the terminal with any OpenAI-compatible gateway.
    Chat(ChatArgs),
    /// Measure how fast models are served.
    Bench(BenchArgs),
    /// Show what muster finds on this machine.
    Doctor(Box<DoctorArgs>),
}

/// Flags of `muster up`, which has a controller of its own.
#[derive(Debug, Args)]
#[command(mut_arg("controller_address", |arg| arg.env(Resettable::Reset).hide(true)))]
#[command(mut_arg("gateway_threads", |arg| arg.long("gateway-threads")))] // `--threads` are those of the models
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewaySection,
    /// Port of the controller inside; 21001, or a free one if that is taken.
    #[arg(long, env = "MUSTER_UP_CONTROLLER_PORT")]
    pub(crate) controller_port: Option<u16>,
    /// Port of the worker inside; 21002, or a free one if that is taken.
    #[arg(long, env = "MUSTER_UP_WORKER_PORT")]
    pub(crate) worker_port: Option<u16>,
    #[command(flatten)]
    pub(crate) models: ModelSection,
    /// Rule by which a worker is picked.
    #[arg(long, visible_alias = "dispatch-method", env = "MUSTER_CONTROLLER_POLICY", help = policy_help())]
    pub(crate) policy: Option<String>,
    /// Key with which operators drain and resume workers, and look at the fleet; without, the fleet's token is enough.
    #[arg(long, env = "MUSTER_ADMIN_KEY", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) admin_key: Option<Secret>,
    /// File that holds the admin key.
    #[arg(long, env = "MUSTER_ADMIN_KEY_FILE")]
    pub(crate) admin_key_file: Option<PathBuf>,
    /// File of workers that do not register: YAML with their ids and addresses.
    #[arg(long, env = "MUSTER_CONTROLLER_PEERS", value_name = "FILE")]
    pub(crate) peers: Option<PathBuf>,
}

/// Flags of `muster controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    pub(crate) section: ControllerSection,
    #[command(flatten)]
    pub(crate) print: Print,
}

/// Flags of `muster worker`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) section: WorkerSection,
    #[command(flatten)]
    pub(crate) print: Print,
}

/// Flags of `muster gateway`.
#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) section: GatewaySection,
    #[command(flatten)]
    pub(crate) print: Print,
}

/// Flags of `muster attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) section: AttachSection,
    #[command(flatten)]
    pub(crate) print: Print,
}

/// Shows the configuration instead of running.
#[derive(Debug, Args)]
pub(crate) struct Print {
    /// Print the configuration in force as YAML, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// Flags of `muster peers`.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    #[command(subcommand)]
    pub(crate) verb: PeersVerb,
}

/// What to do with a peers file.
#[derive(Debug, Subcommand)]
pub(crate) enum PeersVerb {
    /// Say what a peers file says, or everything that is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
}

/// Flags of `muster chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Base URL of the gateway, with or without `/v1`.
    #[arg(long, env = "OPENAI_BASE_URL", default_value = "http://127.0.0.1:8000/v1")]
    pub(crate) base_url: String,
    /// Key for the gateway.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_parser = SecretParser)]
    pub(crate) api_key: Option<Secret>,
    #[command(flatten)]
    pub(crate) tls: CallerTls,
    /// Model to talk with; the gateway's first that generates text when absent.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// What the model is told first.
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Randomness of the answers; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// One question; without, a conversation line by line.
    pub(crate) message: Option<String>,
}

/// Flags of `muster doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) worker: WorkerSection,
}

/// How logs are written, to standard error.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Which messages: `info`, `debug`, `muster_gateway=debug,warn` and so on.
    ///
    /// `info` when absent, or `warn` for `muster up` on a terminal, where lines would tear the progress bars.
    #[arg(long, global = true, env = "RUST_LOG", value_name = "FILTER", help_heading = "Logs")]
    log: Option<String>,
    /// For people or for machines.
    #[arg(long, global = true, env = "MUSTER_LOG_FORMAT", value_enum, default_value_t = Format::Text, help_heading = "Logs")]
    log_format: Format,
    /// Plain text without colours.
    #[arg(long, global = true, env = "NO_COLOR", hide = true, num_args = 0..=1, default_missing_value = "1")]
    no_color: Option<String>,
}

/// The values of `--log-format`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Logs {
    /// Begins to log. Where progress bars are drawn, nothing below a warning is logged.
    pub(crate) fn init(&self, verb: &Verb) -> anyhow::Result<()> {
        let format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        let filter = match &self.log {
            Some(filter) => filter,
            None if matches!(verb, Verb::Up(_)) && self.bars() => "warn",
            None => "warn,muster=info,muster_controller=info,muster_worker=info,muster_gateway=info",
        };
        // Any value of NO_COLOR but the empty one counts (no-color.org).
        let plain = self.no_color.as_deref().is_some_and(|value| !value.is_empty());
        telemetry::init_logs(filter, format, std::io::stderr().is_terminal() && !plain)
            .map_err(|error| anyhow::anyhow!("--log `{filter}` cannot be read: {error}"))
    }

    /// Whether progress bars may be drawn: on a terminal, for a user who has not asked for logs instead.
    pub(crate) fn bars(&self) -> bool {
        self.log.is_none() && std::io::stderr().is_terminal()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::num::NonZeroUsize;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_word_that_is_not_utf8_is_an_error_and_no_panic() {
        let words = [b"muster".to_vec(), b"gateway".to_vec(), b"--pr\xff".to_vec()].map(OsString::from_vec);
        assert_eq!(parse(&words).expect_err("no such flag").kind(), ErrorKind::UnknownArgument);
        assert!(legal(&words).contains("--port"));
    }

    #[test]
    fn no_flag_stands_for_two_knobs() {
        defaults::show(Cli::command()).debug_assert();
        let parsed = |words: &[&str]| parse(&words.iter().map(OsString::from).collect::<Vec<_>>()).expect("flags").verb;
        let Verb::Up(up) = parsed(&["muster", "up", "--threads", "3", "--gateway-threads", "2"]) else { panic!("up") };
        let threads = [up.models.threads, up.gateway.threads].map(|threads| threads.map(NonZeroUsize::get));
        assert_eq!(threads, [Some(3), Some(2)]);
        let Verb::Gateway(gateway) = parsed(&["muster", "gateway", "--threads", "2"]) else { panic!("gateway") };
        assert_eq!(gateway.section.threads.map(NonZeroUsize::get), Some(2));
    }

    #[test]
    fn a_secret_that_is_refused_is_not_repeated() {
        for value in ["hun\nter2", "  ", "***"] {
            let error = parse(&["muster", "status", "--fleet-token", value].map(OsString::from)).expect_err("no key");
            let text = error.to_string();
            assert!(text.contains("--fleet-token") && text.contains("key") && !text.contains("ter2"), "{text}");
        }
    }
}
