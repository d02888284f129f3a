//! What a worker can be told.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_shared::id::WorkerId;
use muster_shared::secret::Secret;
use muster_shared::tls::Tls;
use muster_shared::transport::Transport;

use crate::engine::{EngineCapacity, EngineSettings};
use crate::error::Error;
use crate::hub::{HubConfig, HubModel};
use crate::model::fake::FakeOptions;
use crate::model::onnx::runtime::LibrarySearch;
use crate::model::onnx::spin::Spin;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// A folder with an ONNX graph, its configuration and its tokenizer.
    Folder(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub(HubModel),
    /// The chat model inside the binary.
    #[cfg(feature = "demo")]
    DemoChat,
    /// The embedding model inside the binary.
    #[cfg(feature = "demo")]
    DemoEmbedding,
    /// No model at all: a fixed sentence at a stated pace.
    Fake(FakeOptions),
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Where it comes from.
    pub source: ModelSource,
    /// The name clients ask for; at least one character.
    pub name: String,
}

/// The speed a worker states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// Relative to its peers, as FastChat's workers state it.
    Stated(f64),
    /// Tokens per second as measured, sent with every heartbeat. For fleets in which every worker measures.
    Measured,
}

/// How far the loading of a model has come.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadProgress {
    /// A step has begun.
    Step {
        /// What happens, for people.
        step: &'static str,
        /// Steps that are over.
        done: u32,
        /// Steps in all.
        of: u32,
    },
    /// The model's files come from the hub.
    Download {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all, as far as is known.
        of: u64,
    },
    /// The model can be used.
    Ready,
    /// The model cannot be used.
    Failed(String),
}

/// Takes the name of a model and what became of it.
pub type Observe = dyn Fn(&str, LoadProgress) + Send + Sync;

/// Is told of the loading of models.
#[derive(Clone)]
pub struct LoadObserver(pub Arc<Observe>);

impl fmt::Debug for LoadObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadObserver")
    }
}

/// Where the controller is, and what the worker says of itself there.
#[derive(Debug, Clone)]
pub struct RegistrationConfig {
    /// Base URL of the controller, of muster's or of FastChat's.
    pub controller: String,
    /// The worker's name; its HTTP address when absent.
    pub id: Option<WorkerId>,
    /// How muster's gateways shall speak to it. FastChat's controller is always told the HTTP address.
    pub transport: Transport,
    /// The speed it states.
    pub speed: Speed,
    /// Time between heartbeats to FastChat's controller; muster's says itself what it wants.
    pub fastchat_heartbeat: Duration,
}

/// When the models of a repository are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelControl {
    /// All of them, once, at the start.
    #[default]
    None,
    /// All of them, and again when their files change.
    Poll,
    /// Those that are named, and what clients load and unload.
    Explicit,
}

impl ModelControl {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Poll => "poll",
            Self::Explicit => "explicit",
        }
    }
}

/// A folder of tensor models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// The folder.
    pub folder: PathBuf,
    /// When they are loaded.
    pub control: ModelControl,
    /// With [`ModelControl::Explicit`], the models to load at the start; `*` means all.
    pub load: Vec<String>,
    /// With [`ModelControl::Poll`], time between two looks at the folder.
    pub poll: Duration,
}

impl RepositoryConfig {
    /// Whether it could be served.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such folder, or what is said goes not together.
    pub fn check(&self) -> Result<(), Error> {
        let folder = self.folder.display();
        if !self.folder.is_dir() {
            let message =
                format!("the model repository {folder} is no folder; give one that holds a folder for each model");
            return Err(Error::Config(message));
        }
        if !self.load.is_empty() && self.control != ModelControl::Explicit {
            let message = "load_model names models, which takes model_control_mode explicit; without it all are loaded";
            return Err(Error::Config(message.to_owned()));
        }
        if self.control == ModelControl::Poll && self.poll.is_zero() {
            return Err(Error::Config(
                "the time between two looks at the repository is 0; give one like 15s".to_owned(),
            ));
        }
        Ok(())
    }
}

/// What a worker can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Models to serve, at least one unless there is a repository; no name twice.
    pub models: Vec<ModelConfig>,
    /// Which of several graphs of a model to serve, `q4` or a file's name; the one that fits best when absent.
    pub variant: Option<String>,
    /// Where models of the hub come from and go to.
    pub hub: HubConfig,
    /// Base URL at which peers reach this worker over HTTP; made from the listener's address when absent. Over gRPC they
    /// reach it at the same host.
    pub address: Option<String>,
    /// Where to register; absent: nowhere.
    pub registration: Option<RegistrationConfig>,
    /// The fleet's token, wanted of callers and sent to the controller.
    pub token: Option<Secret>,
    /// What it shows of itself, and whom it trusts.
    pub tls: Tls,
    /// Sequences of a language model that run together, and that may wait.
    pub capacity: EngineCapacity,
    /// Memory for keys and values of one language model, in bytes; half of what is free when absent.
    pub kv_memory: Option<u64>,
    /// Whether prompts that begin alike share what was read.
    pub prefix_cache: bool,
    /// Whether tokens are proposed from the text and confirmed several at a time, where that pays.
    pub speculation: bool,
    /// The longest pause between two tokens of an answer that reading other prompts may cause.
    pub itl_budget: Duration,
    /// Requests that may be in an embedding model at once.
    pub embedding_requests: NonZeroUsize,
    /// Tokens that the texts of these requests may have together.
    pub embedding_tokens: NonZeroUsize,
    /// Requests that may wait for one version of a tensor model.
    pub tensor_requests: NonZeroUsize,
    /// A folder of tensor models in Triton's layout.
    pub repository: Option<RepositoryConfig>,
    /// Shortens the context of language models, in tokens.
    pub context_length: Option<NonZeroU32>,
    /// Threads of one model; the processors that the process may use when absent.
    pub threads: Option<NonZeroUsize>,
    /// Megabits a second of the machine's network interface, for measuring how busy it is; as the system says when
    /// absent, and where that does not know, it is not measured.
    pub network: Option<NonZeroU32>,
    /// Whether idle threads of the runtime spin.
    pub spin: Spin,
    /// The user's cache folder, `~/.cache` say, where optimised graphs are kept; `None` keeps none.
    pub graph_cache: Option<PathBuf>,
    /// Where ONNX Runtime may be.
    pub library: LibrarySearch,
    /// Longest request body, in bytes.
    pub body_limit: usize,
    /// Time that running requests get when the worker stops.
    pub drain: Duration,
    /// Is told how far loading has come.
    pub observer: Option<LoadObserver>,
}

impl Default for Config {
    fn default() -> Self {
        let engine = EngineSettings::default();
        Self {
            models: Vec::new(),
            variant: None,
            hub: HubConfig::default(),
            address: None,
            registration: None,
            token: None,
            tls: Tls::default(),
            capacity: engine.capacity,
            kv_memory: None,
            prefix_cache: engine.prefixes,
            speculation: engine.speculation,
            itl_budget: engine.itl_budget,
            embedding_requests: NonZeroUsize::new(256).expect("not zero"),
            // Some minutes of work for a small model on a processor: who waits longer should ask elsewhere.
            embedding_tokens: NonZeroUsize::new(1 << 20).expect("not zero"),
            tensor_requests: NonZeroUsize::new(256).expect("not zero"),
            repository: None,
            context_length: None,
            threads: None,
            network: None,
            spin: Spin::Auto,
            graph_cache: None,
            library: LibrarySearch::default(),
            body_limit: 8 << 20,
            drain: Duration::from_secs(30),
            observer: None,
        }
    }
}

impl Config {
    /// Whether a worker could start with this.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no model, models whose names do not tell them apart, or an address at which the
    /// worker cannot be reached by its transport.
    pub fn check(&self) -> Result<(), Error> {
        if self.models.is_empty() && self.repository.is_none() {
            return Err(Error::Config("no model is configured; a worker serves at least one".to_owned()));
        }
        if let Some(repository) = &self.repository {
            repository.check()?;
        }
        for (index, model) in self.models.iter().enumerate() {
            if model.name.is_empty() {
                return Err(Error::Config("a model has an empty name".to_owned()));
            }
            if self.models[..index].iter().any(|other| other.name == model.name) {
                let message = format!("two models are named `{}`; give each a name of its own", model.name);
                return Err(Error::Config(message));
            }
        }
        if self.is_reached_by_grpc() {
            self.grpc_address(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        }
        Ok(())
    }

    /// Whether muster's gateways are told to speak gRPC.
    pub(crate) fn is_reached_by_grpc(&self) -> bool {
        self.registration.as_ref().is_some_and(|registration| registration.transport == Transport::Grpc)
    }

    /// Where peers reach the worker over gRPC that listens there: at the configured host, where there is one.
    ///
    /// # Errors
    /// [`Error::Config`] when gRPC cannot be at the configured address.
    pub(crate) fn grpc_address(&self, listens: SocketAddr) -> Result<String, Error> {
        let scheme = self.tls.scheme();
        let Some(address) = &self.address else { return Ok(format!("{scheme}://{listens}")) };
        let url = reqwest::Url::parse(address).ok().filter(|url| url.scheme() == scheme && url.path() == "/");
        let moved = url.and_then(|mut url| {
            url.set_port(Some(listens.port())).ok()?;
            Some(url.as_str().trim_end_matches('/').to_owned())
        });
        moved.ok_or_else(|| {
            Error::Config(format!(
                "the worker's address is `{address}`; for the transport grpc it must be {scheme}://HOST:PORT, without a path"
            ))
        })
    }

    /// Threads of one model: as configured, or the processors that the process may use, cgroup quota included.
    pub fn threads_in_force(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Tells the observer, if there is one.
    pub(crate) fn report(&self, model: &str, progress: LoadProgress) {
        if let Some(LoadObserver(observer)) = &self.observer {
            observer(model, progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grpc_address_is_at_the_configured_host() {
        let at = |address: Option<&str>| {
            let config = Config { address: address.map(str::to_owned), ..Config::default() };
            config.grpc_address(SocketAddr::from(([127, 0, 0, 1], 7000)))
        };
        for (http, grpc) in [
            (None, "http://127.0.0.1:7000"),
            (Some("http://worker.example:21002"), "http://worker.example:7000"),
            (Some("http://worker.example/"), "http://worker.example:7000"),
            (Some("http://[::1]:21002"), "http://[::1]:7000"),
        ] {
            assert_eq!(at(http).expect("an address"), grpc);
        }
        for http in ["https://worker.example", "http://proxy.example/worker", "worker.example:21002"] {
            let error = at(Some(http)).expect_err("gRPC cannot be there").to_string();
            assert!(error.contains(http) && error.contains("http://HOST:PORT"), "{error}");
        }
    }
}
