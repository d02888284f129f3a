//! What this worker is, and has to do: what its controller is told, and whoever asks for it (`GET /report`).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State as Shared;
use muster_shared::control::{Heartbeat, Registration, Report};
use muster_shared::id::WorkerId;
use muster_shared::problem::{Kind, Problem};
use muster_shared::transport::Transport;

use crate::config::{Config, Speed};
use crate::resources::Seen;
use crate::state::State;

/// What of a worker does not change while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Its name.
    pub(crate) id: WorkerId,
    /// Grows whenever the worker starts anew: milliseconds since 1970 at its start.
    pub(crate) incarnation: u64,
    /// How gateways shall speak to it.
    transport: Transport,
    /// Whether its speed is the measured one.
    measures: bool,
}

impl Terms {
    /// Those of a worker that starts now. One that registers nowhere is known by its address.
    pub(crate) fn new(config: &Config, address: &str) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let registration = config.registration.as_ref();
        Self {
            id: registration.and_then(|it| it.id.clone()).unwrap_or_else(|| WorkerId::new(address)),
            incarnation: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            transport: registration.map_or(Transport::Http, |it| it.transport),
            measures: registration.is_some_and(|it| matches!(it.speed, Speed::Measured)),
        }
    }

    /// The measured speed, where it is to be told.
    pub(crate) fn measured(&self, state: &State) -> Option<f64> {
        if self.measures { state.catalog().ok()?.tokens_per_second() } else { None }
    }

    /// How the worker registers.
    ///
    /// # Errors
    /// [`Kind::NoWorker`] while its models are loading.
    pub(crate) fn registration(&self, state: &State) -> Result<Registration, Problem> {
        let catalog = state.catalog()?;
        Ok(Registration {
            id: self.id.clone(),
            address: state.addresses.registered.clone(),
            incarnation: self.incarnation,
            transport: self.transport,
            models: catalog.cards(),
            speed: self.measured(state).unwrap_or(state.stated_speed),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: state.capabilities.get().cloned(),
        })
    }

    /// What a heartbeat tells, with what was seen of the machine. `sequence`: its number, if it has one.
    pub(crate) fn heartbeat(&self, state: &State, seen: Seen, sequence: Option<u64>) -> Heartbeat {
        let Seen { resources, tokens_per_second, ttft_ms } = seen;
        Heartbeat {
            id: self.id.clone(),
            incarnation: self.incarnation,
            load: Some(state.catalog().map(|catalog| catalog.load_report()).unwrap_or_default()),
            speed: self.measured(state),
            sequence,
            resources,
            tokens_per_second,
            ttft_ms,
        }
    }
}

/// `GET /report`. The machine is told as it was last looked at: a look of its own would shorten the time over which the
/// next heartbeat's rates are measured.
pub(crate) async fn report(Shared(state): Shared<Arc<State>>) -> Result<Json<Report>, Problem> {
    state.ready()?;
    let terms = state.terms.get().ok_or_else(|| Problem::new(Kind::Bug, "this worker does not know its own name"))?;
    let (registration, heartbeat) = (terms.registration(&state)?, terms.heartbeat(&state, state.seen(), None));
    Ok(Json(Report { registration, heartbeat }))
}
