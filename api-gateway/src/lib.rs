//! The gateway: the OpenAI API in front of a fleet of workers.
//!
//! ```text
//!   client ──▶ front ─▶ chat, completion, embedding ──▶ upstream ──which worker?──▶ controller
//!                 ▲              │                          └──generate (token events)──▶ worker
//!                 └── openai ◀───┘ bodies in and out
//! ```
//!
//! The gateway knows OpenAI and no tokens. In reading order:
//!
//! * [`config`] and [`error`]: what it can be told, and why it stops.
//! * `front`: the requests that come by the thousand; `routes`: every route and layer; `observe` and `auth`: what all
//!   requests have in common.
//! * `chat`, `completion`, `embedding`, `models`: the handlers.
//! * `body` and `outgoing`: bodies as bytes, in and out.
//! * `openai`: bodies, checked once on the way in; the table from our errors to OpenAI's.
//! * `encoding`: compressed bodies, both ways.
//! * `upstream`: attempts, tickets, the last known fleet, and workers in every protocol.

mod auth;
mod body;
mod chat;
mod completion;
pub mod config;
mod embedding;
#[cfg_attr(not(test), expect(dead_code, reason = "the handlers are about to use it"))]
mod encoding;
pub mod error;
mod front;
mod metrics;
mod models;
mod observe;
mod openai;
mod outgoing;
mod routes;
mod state;
mod upstream;

use std::convert::Infallible;
use std::time::Duration;

use muster_shared::id::GatewayId;
use muster_shared::serve::{self, Patience};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
use front::Front;
use state::{State, now_seconds};
use upstream::{Upstream, controller_client};

/// Time that requests which outlive the time to drain get to say so to their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves clients until `shutdown`; then finishes what runs, gives back its tickets, and ends.
///
/// # Errors
/// When the listener fails.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    metrics::describe();
    let (gateway, cut) = (GatewayId::new(), CancellationToken::new());
    let upstream = Upstream::new(config.clone(), gateway, cut.clone());
    let link = upstream.link().clone();
    let (controller, settings) = (controller_client(&config), config.clone());
    let linked = tokio::spawn(async move { link.run(controller, settings).await });
    let state = State {
        upstream: upstream.clone(),
        keys: config.keys.clone().into(),
        body_limit: config.body_limit,
        started: now_seconds(),
    };
    let router = routes::router(state.clone(), &config.cors_origins);
    let front = Front::new(state, router, config.cors_origins.is_empty());

    let patience = Patience { drain: config.drain + LAST_WORDS, stalled: config.client_timeout };
    let served = tokio::select! {
        served = serve::serve_requests(listener, front, shutdown.clone(), patience) => served,
        never = cut_after(shutdown, config.drain, &cut) => match never {},
    };
    cut.cancel(); // where the listener failed
    upstream.link().close();
    if tokio::time::timeout(config.connect_timeout * 2, linked).await.is_err() {
        tracing::warn!("some tickets were not given back; they lapse at the controller");
    }
    served.map_err(Error::Serve)
}

/// Ends what still runs a while after the shutdown was asked for.
async fn cut_after(shutdown: CancellationToken, drain: Duration, cut: &CancellationToken) -> Infallible {
    shutdown.cancelled().await;
    tokio::time::sleep(drain).await;
    tracing::debug!(?drain, "the time to drain is over; what still runs is ended");
    cut.cancel();
    std::future::pending().await
}
