//! What the handlers of a worker share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use muster_shared::control::{Capabilities, Identity};
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;

use crate::Listeners;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::Error;
use crate::fastchat::Markers;
use crate::report::Terms;
use crate::resources::Seen;

/// When to come back while models are still loading, in milliseconds.
const LOADING_RETRY_MS: u64 = 2000;

/// Where peers reach a worker, as base URLs without a trailing slash.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    /// Over HTTP; FastChat's peers know the worker by it.
    pub(crate) http: String,
    /// By the transport of its registration.
    pub(crate) registered: String,
}

impl Addresses {
    /// As configured, or as the listeners say.
    ///
    /// # Errors
    /// [`Error::Config`] when the worker shall be known by a gRPC address that it has not.
    pub(crate) fn new(config: &Config, listeners: &Listeners) -> Result<Self, Error> {
        let http = match &config.address {
            Some(address) => address.trim_end_matches('/').to_owned(),
            None => format!("{}://{}", config.tls.scheme(), listeners.http.local_addr()?),
        };
        let registered = match &listeners.grpc {
            _ if !config.is_reached_by_grpc() => http.clone(),
            Some(listener) => config.grpc_address(listener.local_addr()?)?,
            None => {
                let message = "the worker shall be reached by grpc, and does not listen for it";
                return Err(Error::Config(message.to_owned()));
            }
        };
        Ok(Self { http, registered })
    }
}

/// The state of a worker.
#[derive(Debug, Default)]
pub(crate) struct State {
    catalog: OnceLock<Catalog>,
    draining: AtomicBool,
    /// How often the tensor models had changed when the controller was last told of them.
    told_changes: AtomicU64,
    /// Where peers reach the worker.
    pub(crate) addresses: Addresses,
    /// Who it is to its controller, where it registers with one: so that no other can register its address.
    pub(crate) identity: OnceLock<Identity>,
    /// What it tells of itself.
    pub(crate) terms: OnceLock<Terms>,
    /// What its machine has; absent before it was looked at.
    pub(crate) capabilities: OnceLock<Capabilities>,
    /// What was last seen of the machine.
    seen: Mutex<Seen>,
    /// The fleet's token.
    pub(crate) token: Option<Secret>,
    /// Relative speed as FastChat's peers are told.
    pub(crate) stated_speed: f64,
}

impl State {
    pub(crate) fn new(addresses: Addresses, token: Option<Secret>, stated_speed: f64) -> Self {
        Self { addresses, token, stated_speed, ..Self::default() }
    }

    /// What was last seen of the machine.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is seen of the machine.
    pub(crate) fn note_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// By which FastChat's gateway marks the turns of a conversation with a model.
    pub(crate) fn markers(&self, model: &str) -> Markers {
        Markers::new(self.token.as_ref(), &self.addresses.http, model)
    }

    /// Opens the worker for requests.
    pub(crate) fn set_catalog(&self, catalog: Catalog) {
        // Models are loaded once; a second catalog would be a fault, and the first one stays.
        let _ = self.catalog.set(catalog);
    }

    /// The models.
    ///
    /// # Errors
    /// [`Kind::NoWorker`] while they are loading.
    pub(crate) fn catalog(&self) -> Result<&Catalog, Problem> {
        self.catalog.get().ok_or_else(|| {
            Problem::new(Kind::NoWorker, "the models of this worker are still loading")
                .with_retry_after_ms(LOADING_RETRY_MS)
        })
    }

    pub(crate) fn into_catalog(self) -> Option<Catalog> {
        self.catalog.into_inner()
    }

    /// Resolves when the thread of a model has died; gives the model's name.
    pub(crate) async fn crashed(&self) -> String {
        match self.catalog.get() {
            Some(catalog) => catalog.crashed().await,
            None => std::future::pending().await, // nothing is loaded yet
        }
    }

    /// Looks after the tensor models that come and go; never ends.
    pub(crate) async fn tensors_stay(&self) -> std::convert::Infallible {
        match self.catalog.get() {
            Some(catalog) => catalog.tensors().stay().await,
            None => std::future::pending().await, // nothing is loaded yet
        }
    }

    /// Resolves when other models can be asked than before.
    pub(crate) async fn models_changed(&self) {
        let Some(catalog) = self.catalog.get() else { return std::future::pending().await };
        let known = self.told_changes.load(Ordering::Relaxed);
        // The sender lives in the catalog, which is not dropped while this runs.
        let _ = catalog.tensors().changes().wait_for(|changes| *changes != known).await;
    }

    /// Notes that the controller is told of the models as they are now.
    pub(crate) fn note_told(&self) {
        if let Some(catalog) = self.catalog.get() {
            self.told_changes.store(*catalog.tensors().changes().borrow(), Ordering::Relaxed);
        }
    }

    /// Closes the worker for new work, as far as load balancers look.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether requests are welcome.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn ready(&self) -> Result<(), Problem> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Problem::new(Kind::NoWorker, "this worker is draining"));
        }
        if !self.catalog()?.is_alive() {
            return Err(Problem::new(Kind::NoWorker, "the thread of a model has died; restart the worker"));
        }
        Ok(())
    }
}
