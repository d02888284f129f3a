//! The worker's section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use muster_shared::id::WorkerId;
use muster_shared::secret::Secret;
use muster_shared::transport::Transport;
use muster_worker::catalog::name_of_folder;
use muster_worker::config::{
    Config, ModelConfig, ModelControl, ModelSource, RegistrationConfig, RepositoryConfig, Speed,
};
use muster_worker::engine::EngineCapacity;
use muster_worker::hub::HubModel;
use muster_worker::model::fake::FakeOptions;
use muster_worker::model::onnx::runtime::LibrarySearch;
use muster_worker::model::onnx::spin::Spin;
use serde::{Deserialize, Serialize};

use super::hub::hub_config;
use super::{Span, TlsSection, base_url, cache_folder, one_secret, or};

/// Name under which `--model` means a model without files.
const FAKE: &str = "fake";
/// A wait for the next token that nobody can want to be longer.
const LONGEST_ITL: Duration = Duration::from_secs(60);
/// Tokens of the shortest context that can hold a question and an answer.
const SHORTEST_CONTEXT: u32 = 4;

/// Which models to serve, and how they use the machine.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelSection {
    /// An ONNX model, as a folder or as `ORG/NAME[@REVISION]` of the Hugging Face hub; may be given several times.
    ///
    /// `NAME=` before it names the model. What is a folder here is not looked for on the hub. Without: the demo models.
    #[arg(
        long,
        visible_alias = "model-path",
        env = "MUSTER_MODEL",
        value_name = "[NAME=]DIR_OR_ID",
        value_delimiter = ','
    )]
    #[serde(alias = "models")]
    pub(crate) model: Option<Vec<String>>,
    /// Names of the models, in their order.
    #[arg(long, visible_alias = "served-model-name", env = "MUSTER_MODEL_NAMES", value_delimiter = ',')]
    pub(crate) model_names: Option<Vec<String>>,
    /// Which of a model's graphs to serve: `q4`, `q4f16`, `int8`, `fp16`, `fp32`, …, or the name of a file.
    ///
    /// Without: the one that fits a processor best, four bits for text and full precision for embeddings.
    /// An int8 graph's answers may depend on what runs beside them: its activations share one scale.
    #[arg(long, env = "MUSTER_MODEL_VARIANT", value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Sequences of a language model that run together.
    #[arg(long, visible_alias = "limit-worker-concurrency", env = "MUSTER_WORKER_SLOTS")]
    #[serde(alias = "limit_worker_concurrency")]
    pub(crate) slots: Option<NonZeroUsize>,
    /// Sequences of a language model that may wait besides.
    #[arg(long, env = "MUSTER_WORKER_WAITING")]
    pub(crate) waiting: Option<usize>,
    /// Memory for keys and values of one language model, kept prefixes included; half of what is free when absent.
    #[arg(long, env = "MUSTER_WORKER_KV_MEMORY", value_name = "SIZE")]
    pub(crate) kv_memory: Option<ByteSize>,
    /// Let prompts that begin alike share what was read of them.
    #[arg(
        long,
        visible_alias = "enable-prefix-caching",
        env = "MUSTER_WORKER_PREFIX_CACHE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) prefix_cache: Option<bool>,
    /// Continue a lone answer several tokens at a time where the text foretells them and that pays; changes no answer.
    #[arg(
        long,
        env = "MUSTER_WORKER_SPECULATION",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) speculation: Option<bool>,
    /// Inter-token latency to keep to: prompts are read in pieces so long that running answers wait no longer than this.
    #[arg(long, env = "MUSTER_WORKER_ITL_BUDGET")]
    pub(crate) itl_budget: Option<Span>,
    /// Requests that may be in an embedding model at once.
    #[arg(long, env = "MUSTER_WORKER_EMBEDDING_REQUESTS")]
    pub(crate) embedding_requests: Option<NonZeroUsize>,
    /// Tokens that the texts of these requests may have together.
    #[arg(long, env = "MUSTER_WORKER_EMBEDDING_TOKENS")]
    pub(crate) embedding_tokens: Option<NonZeroUsize>,
    /// A folder with a folder for each tensor model, in Triton's layout: NAME/[config.pbtxt]/VERSION/model.onnx.
    ///
    /// They are served over the Open Inference Protocol, below /v2. With it, no --model is needed.
    #[arg(long, env = "MUSTER_MODEL_REPOSITORY", value_name = "DIR")]
    pub(crate) model_repository: Option<PathBuf>,
    /// When the models of the repository are loaded: `none`, `poll` or `explicit`.
    ///
    /// `none`: all of them, at the start. `poll`: the same, and again when their files change. `explicit`: those that
    /// --load-model names, and whatever clients load and unload.
    #[arg(long, env = "MUSTER_MODEL_CONTROL_MODE", value_name = "MODE", value_parser = ["none", "poll", "explicit"])]
    pub(crate) model_control_mode: Option<String>,
    /// A model of the repository to load at the start, with --model-control-mode explicit; may be given several times,
    /// and `*` means all.
    #[arg(long, env = "MUSTER_LOAD_MODEL", value_name = "NAME", value_delimiter = ',')]
    pub(crate) load_model: Option<Vec<String>>,
    /// Time between two looks at the repository, with --model-control-mode poll.
    #[arg(long, env = "MUSTER_REPOSITORY_POLL", value_name = "TIME")]
    pub(crate) repository_poll: Option<Span>,
    /// Requests that may wait for one version of a tensor model.
    #[arg(long, env = "MUSTER_WORKER_TENSOR_REQUESTS")]
    pub(crate) tensor_requests: Option<NonZeroUsize>,
    /// Shortens the context of language models, in tokens.
    #[arg(long, env = "MUSTER_WORKER_CONTEXT_LENGTH")]
    pub(crate) context_length: Option<NonZeroU32>,
    /// Threads of one model; the processors this process may use when absent.
    #[arg(long, env = "MUSTER_WORKER_THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Speed of the network interface in megabits a second, for measuring how busy it is.
    ///
    /// Without: as the system says, which it does not in most containers; there it is not measured.
    #[arg(long, env = "MUSTER_WORKER_NETWORK_MBPS", value_name = "NUMBER")]
    pub(crate) network_mbps: Option<NonZeroU32>,
    /// Whether idle threads of ONNX Runtime spin: `auto`, `off`, `brief` or `always`.
    ///
    /// `auto`: for some microseconds at a time, until other work wants the processors. `brief`: so in any case. `off`:
    /// never. `always`, which a bare --spin means, is for machines that do nothing else.
    #[arg(long, env = "MUSTER_WORKER_SPIN", num_args = 0..=1, default_missing_value = "always", value_name = "WHEN")]
    pub(crate) spin: Option<Spin>,
    /// Keep optimised graphs in the user's cache: later starts are faster, and processes share weights in memory.
    #[arg(
        long,
        env = "MUSTER_WORKER_GRAPH_CACHE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) graph_cache: Option<bool>,
    /// ONNX Runtime's shared library.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    pub(crate) onnxruntime: Option<PathBuf>,
    /// Time one token of `--model fake` takes.
    #[arg(long, env = "MUSTER_WORKER_FAKE_TOKEN_TIME", hide = true)]
    pub(crate) fake_token_time: Option<Span>,
    /// Tokens of an answer of `--model fake`.
    #[arg(long, env = "MUSTER_WORKER_FAKE_ANSWER", hide = true)]
    pub(crate) fake_answer: Option<usize>,
}

/// What a worker can be told.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkerSection {
    /// Interface to listen on.
    #[arg(long, env = "MUSTER_WORKER_HOST")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "MUSTER_WORKER_PORT")]
    pub(crate) port: Option<u16>,
    /// Port to speak gRPC on besides, at the same host; 0 takes a free one. Without: it is not spoken.
    #[arg(long, env = "MUSTER_WORKER_GRPC_PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// How muster's gateways shall speak to this worker: `http`, `grpc` (wants --grpc-port) or `fastchat`.
    #[arg(long, env = "MUSTER_WORKER_TRANSPORT", value_name = "NAME")]
    pub(crate) transport: Option<Transport>,
    /// Base URL at which peers reach this worker over HTTP; made from host and port when absent.
    ///
    /// Over gRPC they reach it at the same host and the port of --grpc-port.
    #[arg(long, env = "MUSTER_WORKER_ADDRESS")]
    pub(crate) worker_address: Option<String>,
    /// Base URL of the controller, muster's or FastChat's.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS")]
    pub(crate) controller_address: Option<String>,
    /// Serve without registering anywhere.
    #[arg(
        long,
        env = "MUSTER_WORKER_NO_REGISTER",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) no_register: Option<bool>,
    /// Name of this worker; its address when absent.
    #[arg(long, env = "MUSTER_WORKER_ID")]
    pub(crate) worker_id: Option<String>,
    /// Speed relative to the other workers, or `measured`: tokens per second, for fleets in which all measure.
    #[arg(long, env = "MUSTER_WORKER_SPEED")]
    pub(crate) speed: Option<String>,
    /// Time between heartbeats to a FastChat controller; muster's says itself what it wants.
    #[arg(long, env = "FASTCHAT_WORKER_HEART_BEAT_INTERVAL")]
    pub(crate) fastchat_heartbeat: Option<Span>,
    /// Token that every service of the fleet shows to the others.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Files of TLS.
    #[command(flatten)]
    #[serde(skip_serializing_if = "TlsSection::is_empty")]
    pub(crate) tls: TlsSection,
    /// Longest request body.
    #[arg(long, env = "MUSTER_WORKER_BODY_LIMIT")]
    pub(crate) body_limit: Option<ByteSize>,
    /// Time that running requests get when the worker stops.
    #[arg(long, env = "MUSTER_WORKER_DRAIN")]
    pub(crate) drain: Option<Span>,
    /// Listen on an open interface without a token.
    #[arg(
        long,
        env = "MUSTER_INSECURE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) insecure: Option<bool>,
    /// A section of its own in the file, since `muster up` reads it too.
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) models: ModelSection,
}

impl ModelSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; variant, slots, waiting, kv_memory, prefix_cache, speculation, itl_budget, embedding_requests,
            embedding_tokens,
            model_repository, model_control_mode, load_model, repository_poll, tensor_requests,
            context_length, threads, network_mbps, spin, graph_cache,
            onnxruntime, fake_token_time, fake_answer; (model, model_names))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let usual = Config::default();
        Self {
            slots: NonZeroUsize::new(usual.capacity.slots),
            waiting: Some(usual.capacity.waiting),
            prefix_cache: Some(usual.prefix_cache),
            speculation: Some(usual.speculation),
            itl_budget: Some(Span(usual.itl_budget)),
            embedding_requests: Some(usual.embedding_requests),
            embedding_tokens: Some(usual.embedding_tokens),
            model_control_mode: Some(ModelControl::default().name().to_owned()),
            repository_poll: Some(Span::seconds(15)),
            tensor_requests: Some(usual.tensor_requests),
            spin: Some(usual.spin),
            graph_cache: Some(true),
            ..Self::default()
        }
    }

    /// The models to serve.
    fn models(&self) -> anyhow::Result<Vec<ModelConfig>> {
        let mut models = match self.model.as_deref() {
            Some(given) if !given.is_empty() => given.iter().map(|text| self.model(text)).collect(),
            _ if self.model_repository.is_some() => Vec::new(),
            _ => demo_models()?,
        };
        if let Some(names) = &self.model_names {
            anyhow::ensure!(
                names.len() == models.len(),
                "model_names holds {} names for {} models; give one for each",
                names.len(),
                models.len()
            );
            models.iter_mut().zip(names).for_each(|(model, name)| model.name.clone_from(name));
        }
        Ok(models)
    }

    /// The repository of tensor models.
    fn repository(&self) -> anyhow::Result<Option<RepositoryConfig>> {
        let load = self.load_model.clone().unwrap_or_default();
        let Some(folder) = self.model_repository.clone() else {
            anyhow::ensure!(
                load.is_empty(),
                "load_model names models of a repository; give it with --model-repository"
            );
            return Ok(None);
        };
        let control = match self.model_control_mode.as_deref() {
            None | Some("none") => ModelControl::None,
            Some("poll") => ModelControl::Poll,
            Some("explicit") => ModelControl::Explicit,
            Some(other) => anyhow::bail!("model_control_mode is `{other}`; choose one of: none, poll, explicit"),
        };
        let poll = self.repository_poll.map_or(Span::seconds(15).0, |Span(time)| time);
        Ok(Some(RepositoryConfig { folder, control, load, poll }))
    }

    fn model(&self, text: &str) -> ModelConfig {
        let (name, place) = match text.split_once('=') {
            Some((name, place)) => (Some(name), place),
            None => (None, text),
        };
        let named = |usual: String| name.map_or(usual, str::to_owned);
        match place {
            FAKE => ModelConfig { source: ModelSource::Fake(self.fake()), name: named(FAKE.to_owned()) },
            #[cfg(feature = "demo")]
            muster_worker::demo::CHAT => ModelConfig { source: ModelSource::DemoChat, name: named(place.to_owned()) },
            #[cfg(feature = "demo")]
            muster_worker::demo::EMBEDDING => {
                ModelConfig { source: ModelSource::DemoEmbedding, name: named(place.to_owned()) }
            }
            folder => match HubModel::parse(folder).filter(|_| !Path::new(folder).exists()) {
                Some(model) => ModelConfig { name: named(model.id.clone()), source: ModelSource::Hub(model) },
                None => ModelConfig {
                    source: ModelSource::Folder(folder.into()),
                    name: named(name_of_folder(Path::new(folder))),
                },
            },
        }
    }

    fn fake(&self) -> FakeOptions {
        let usual = FakeOptions::default();
        FakeOptions {
            token_time: self.fake_token_time.map_or(usual.token_time, |Span(time)| time),
            answer: self.fake_answer.unwrap_or(usual.answer),
            context: self.context_length.map_or(usual.context, |length| length.get() as usize),
        }
    }
}

#[cfg(feature = "demo")]
fn demo_models() -> anyhow::Result<Vec<ModelConfig>> {
    use muster_worker::demo;
    Ok(vec![
        ModelConfig { source: ModelSource::DemoChat, name: demo::CHAT.to_owned() },
        ModelConfig { source: ModelSource::DemoEmbedding, name: demo::EMBEDDING.to_owned() },
    ])
}

#[cfg(not(feature = "demo"))]
fn demo_models() -> anyhow::Result<Vec<ModelConfig>> {
    anyhow::bail!("this build has no demo models; give a folder with --model DIR")
}

impl WorkerSection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; tls, host, port, grpc_port, transport, worker_address, controller_address, no_register, worker_id, speed,
            fastchat_heartbeat, body_limit, drain, insecure, models; (fleet_token, fleet_token_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let usual = Config::default();
        Self {
            host: Some("127.0.0.1".to_owned()),
            port: Some(21002),
            controller_address: Some("http://127.0.0.1:21001".to_owned()),
            transport: Some(Transport::Http),
            no_register: Some(false),
            speed: Some("1".to_owned()),
            fastchat_heartbeat: Some(Span::seconds(45)),
            body_limit: Some(ByteSize(usual.body_limit as u64)),
            drain: Some(Span(usual.drain)),
            insecure: Some(false),
            models: ModelSection::defaults(),
            ..Self::default()
        }
    }

    /// Checks everything, and makes it the worker's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usual = Config::default();
        let flags = &self.models;
        if let Some(length) = flags.context_length {
            anyhow::ensure!(
                length.get() >= SHORTEST_CONTEXT,
                "context_length is {length}; it must be at least {SHORTEST_CONTEXT}"
            );
        }
        let models = flags.models()?;
        let from_hub = models.iter().any(|model| matches!(model.source, ModelSource::Hub(_)));
        let config = Config {
            models,
            variant: flags.variant.clone(),
            hub: if from_hub { hub_config()? } else { usual.hub },
            address: self.worker_address.as_deref().map(|url| base_url("worker_address", url)).transpose()?,
            registration: self.registration()?,
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            tls: self.tls.load()?,
            capacity: EngineCapacity {
                slots: flags.slots.map_or(usual.capacity.slots, NonZeroUsize::get),
                waiting: flags.waiting.unwrap_or(usual.capacity.waiting),
            },
            kv_memory: flags.kv_memory.map(|size| size.0),
            prefix_cache: flags.prefix_cache.unwrap_or(usual.prefix_cache),
            speculation: flags.speculation.unwrap_or(usual.speculation),
            itl_budget: itl_budget(flags.itl_budget, usual.itl_budget)?,
            embedding_requests: flags.embedding_requests.unwrap_or(usual.embedding_requests),
            embedding_tokens: flags.embedding_tokens.unwrap_or(usual.embedding_tokens),
            tensor_requests: flags.tensor_requests.unwrap_or(usual.tensor_requests),
            repository: flags.repository()?,
            context_length: flags.context_length,
            threads: flags.threads,
            network: flags.network_mbps,
            spin: flags.spin.unwrap_or(usual.spin),
            graph_cache: if flags.graph_cache.unwrap_or(true) { cache_folder() } else { None },
            library: self.library(),
            body_limit: self.body_limit.map_or(usual.body_limit, |size| size.0 as usize),
            drain: self.drain.map_or(usual.drain, |Span(time)| time),
            observer: None,
        };
        config.check()?;
        anyhow::ensure!(
            self.grpc_port.is_none_or(|grpc_port| grpc_port == 0 || self.port != Some(grpc_port)),
            "port and grpc_port are both {}; give each protocol a port of its own",
            self.port.unwrap_or_default()
        );
        Ok(config)
    }

    fn registration(&self) -> anyhow::Result<Option<RegistrationConfig>> {
        let fastchat_heartbeat = self.fastchat_heartbeat.map_or(Span::seconds(45).0, |Span(time)| time);
        anyhow::ensure!(!fastchat_heartbeat.is_zero(), "fastchat_heartbeat is 0; it must be longer");
        if self.no_register == Some(true) {
            return Ok(None);
        }
        let Some(controller) = &self.controller_address else { return Ok(None) };
        Ok(Some(RegistrationConfig {
            controller: base_url("controller_address", controller)?,
            id: self.worker_id.as_deref().map(WorkerId::new),
            transport: self.transport()?,
            speed: speed(self.speed.as_deref().unwrap_or("1"))?,
            fastchat_heartbeat,
        }))
    }

    /// How gateways shall speak to the worker.
    fn transport(&self) -> anyhow::Result<Transport> {
        let transport = self.transport.unwrap_or(Transport::Http);
        match transport {
            Transport::Grpc => anyhow::ensure!(
                self.grpc_port.is_some(),
                "transport is grpc, and the worker has no port for it; give one with --grpc-port, 0 for a free one"
            ),
            Transport::OpenAi => anyhow::bail!(
                "transport is openai, which muster's workers do not speak; choose one of: http, grpc, fastchat"
            ),
            Transport::Http | Transport::FastChat => {}
        }
        Ok(transport)
    }

    /// Where ONNX Runtime may be.
    pub(crate) fn library(&self) -> LibrarySearch {
        let executable = std::env::current_exe().ok();
        LibrarySearch {
            explicit: self.models.onnxruntime.clone(),
            beside: executable.as_deref().and_then(Path::parent).map(Path::to_owned),
            cache: cache_folder(),
        }
    }
}

fn itl_budget(given: Option<Span>, usual: Duration) -> anyhow::Result<Duration> {
    let budget = given.map_or(usual, |Span(time)| time);
    anyhow::ensure!(
        !budget.is_zero() && budget <= LONGEST_ITL,
        "itl_budget is {}; it must be above 0 and at most {}, such as 400ms (a number alone means seconds)",
        humantime::format_duration(budget),
        humantime::format_duration(LONGEST_ITL)
    );
    Ok(budget)
}

fn speed(text: &str) -> anyhow::Result<Speed> {
    if text.eq_ignore_ascii_case("measured") {
        return Ok(Speed::Measured);
    }
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(Speed::Stated(speed)),
        _ => anyhow::bail!("speed is `{text}`; it must be a number above 0, or `measured`"),
    }
}
