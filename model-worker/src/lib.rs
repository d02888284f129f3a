//! The model worker: ONNX models behind one HTTP interface, known to a controller.
//!
//! ```text
//!   POST /generate ─▶ chat_template ─▶ tokenizer ─▶ engine (thread) ─▶ model ─▶ ONNX Runtime
//!                                                     │ events
//!   SSE of token events ◀─────────────────────────────┘
//!   POST /embed, /rerank, … ─▶ text ─▶ encoder (threads) ─▶ model ─▶ ONNX Runtime
//! ```
//!
//! The worker knows tokens and no OpenAI. In reading order:
//!
//! * [`config`] and [`error`]: what it can be told, and why it stops.
//! * `http`, `grpc` and `fastchat`: its calls, in our own words over two transports, and in FastChat's.
//! * `calls`: what both transports ask for.
//! * [`language`] and [`text`]: a model as requests see it.
//! * [`chat_template`] and [`tokenizer`]: messages to prompt to tokens, and tokens to text.
//! * [`engine`] and [`encoder`]: the threads that own the models.
//! * [`model`]: the models themselves; `model/onnx` is the only folder that names ONNX Runtime.
//! * [`tensor`]: graphs that are neither, over the Open Inference Protocol.
//! * [`memory`]: how much of it there is for keys and values.
//! * [`hub`]: models of the Hugging Face hub, fetched into its cache.
//! * [`catalog`]: loading models and finding them by name.
//! * `resources`: how much of the machine is in use.
//! * `registration`: being known to the controller; `report`: what it is told, and whoever asks.

mod calls;
pub mod catalog;
pub mod chat_template;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod encoder;
pub mod engine;
pub mod error;
mod fastchat;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod http;
pub mod hub;
pub mod language;
pub mod memory;
mod metrics;
pub mod model;
mod registration;
mod report;
mod resources;
mod state;
pub mod tensor;
pub mod text;
pub mod tokenizer;

use std::sync::Arc;

use muster_shared::serve::Met;
use muster_shared::tls::Protocols;
use muster_shared::{serve, telemetry, tls};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use catalog::Catalog;
pub use config::Config;
use config::Speed;
pub use error::Error;
use error::LoadError;
use registration::Registrar;
use report::Terms;
use resources::Observer;
use state::{Addresses, State};

/// Where a worker listens.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP: muster's own protocol, FastChat's, and what operators ask.
    pub http: TcpListener,
    /// For gRPC; absent: it is not spoken.
    pub grpc: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, grpc: None }
    }
}

/// Serves models until `shutdown`; then drains, deregisters and ends.
///
/// `/health` answers at once, `/ready` when the models are loaded.
///
/// # Errors
/// When not one model could be loaded, or a listener fails.
pub async fn run(config: Config, listeners: impl Into<Listeners>, shutdown: CancellationToken) -> Result<(), Error> {
    config.check()?;
    let listeners = listeners.into();
    telemetry::init_metrics();
    metrics::describe();
    tls::describe();
    serve::describe();
    let addresses = Addresses::new(&config, &listeners)?;
    let speed = match config.registration.as_ref().map(|registration| registration.speed) {
        Some(Speed::Stated(speed)) => speed,
        _ => 1.0,
    };
    let terms = Terms::new(&config, &addresses.http);
    let state = Arc::new(State::new(addresses, config.token.clone(), speed));
    // It is new: nobody has set them before.
    let _ = state.terms.set(terms);
    let life = Life { shutdown, closed: CancellationToken::new(), ended: CancellationToken::new() };
    let served = async {
        let served = serve(&config, &state, listeners, &life.closed).await;
        life.ended.cancel();
        served
    };
    let (served, worked) = tokio::join!(served, work(&config, &state, &life));
    worked?;
    served?;
    close(state).await;
    Ok(())
}

/// Serves every transport that has a listener, until the last request has ended after `closed`.
async fn serve(
    config: &Config,
    state: &Arc<State>,
    listeners: Listeners,
    closed: &CancellationToken,
) -> std::io::Result<()> {
    let router = http::router(Arc::clone(state), config.token.clone(), config.body_limit);
    let door = Met { door: listeners.http, acceptor: config.tls.acceptor(Protocols::Http) };
    let http = serve::serve(door, router, closed.clone(), config.drain);
    let grpc = async {
        let Some(listener) = listeners.grpc else { return Ok(()) };
        let service = grpc::Service {
            state: Arc::clone(state),
            token: config.token.clone(),
            tls: config.tls.clone(),
            body_limit: config.body_limit,
            drain: config.drain,
            closed: closed.clone(),
        };
        grpc::serve(listener, service).await
    };
    tokio::try_join!(http, grpc).map(drop)
}

/// The stages of a worker's end, in their order.
struct Life {
    /// The worker shall stop.
    shutdown: CancellationToken,
    /// The server takes no more requests.
    closed: CancellationToken,
    /// The last request has ended.
    ended: CancellationToken,
}

/// Loads the models and stays registered until the worker shall stop; then drains and leaves.
async fn work(config: &Config, state: &Arc<State>, life: &Life) -> Result<(), Error> {
    let closes = life.closed.clone().drop_guard();
    if !load(config, state, &life.shutdown).await? {
        return Ok(());
    }
    let registration = config.registration.clone();
    // Asks the system, which may take some milliseconds.
    if let Ok(capabilities) = tokio::task::spawn_blocking(resources::capabilities).await {
        let _ = state.capabilities.set(capabilities);
    }
    let observer = Arc::new(Observer::new(Arc::clone(state), config.network));
    let terms = state.terms.get().cloned();
    let registrar = registration
        .zip(terms)
        .map(|(it, terms)| Registrar::new(it, (config.token.clone(), &config.tls), terms, Arc::clone(&observer)));
    let stay = async {
        match &registrar {
            Some(registrar) => registrar.stay().await,
            None => observer.stay().await,
        }
    };
    let crashed = tokio::select! {
        () = life.shutdown.cancelled() => None,
        model = state.crashed() => Some(model),
        never = stay => match never {},
        never = state.tensors_stay() => match never {},
    };
    state.drain();
    if let Some(registrar) = &registrar {
        registrar.drain().await;
    }
    drop(closes);
    if let Some(registrar) = &registrar {
        registrar.leave(&life.ended).await;
    }
    crashed.map_or(Ok(()), |model| Err(Error::Crashed(model)))
}

/// Loads the models; `false` when `shutdown` came first.
async fn load(config: &Config, state: &State, shutdown: &CancellationToken) -> Result<bool, Error> {
    // A mistake of whoever started the worker, not of one of its models: it does not serve the others meanwhile.
    memory::check(config.kv_memory, memory::free()).map_err(|error| Error::Config(error.to_string()))?;
    let loading = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || Catalog::load(&config))
    };
    let (catalog, failures) = tokio::select! {
        loaded = loading => loaded.map_err(|error| Error::Config(format!("loading the models crashed: {error}")))?,
        () = shutdown.cancelled() => return Ok(false),
    };
    if catalog.is_empty() {
        let repository = catalog.tensors().failures().into_iter();
        let repository = repository.map(|(name, reason)| (name, LoadError::Repository(reason)));
        let failures: Vec<_> = failures.into_iter().chain(repository).collect();
        if let (Some(repository), true) = (&config.repository, failures.is_empty()) {
            let message = "holds no model; expected NAME/VERSION/model.onnx in it";
            return Err(Error::Config(format!("{} {message}", repository.folder.display())));
        }
        return Err(Error::NoModel(failures));
    }
    state.set_catalog(catalog);
    Ok(true)
}

/// Waits for the models' threads, so that nothing runs when the process ends.
async fn close(state: Arc<State>) {
    let Some(catalog) = Arc::into_inner(state).and_then(State::into_catalog) else { return };
    // Joining a thread blocks, however shortly.
    let _ = tokio::task::spawn_blocking(move || catalog.close()).await;
}
