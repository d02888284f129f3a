//! The gateway: the OpenAI API in front of a fleet of workers.
//!
//! ```text
//!   client ──▶ routes ─▶ chat, completion, embedding ─▶ upstream ──which worker?──▶ controller
//!                 ▲              │                          └──generate (token events)──▶ worker
//!                 └── openai ◀───┘ bodies in and out
//! ```
//!
//! The gateway knows OpenAI and no tokens. In reading order:
//!
//! * [`config`] and [`error`]: what it can be told, and why it stops.
//! * `routes`: every route and layer; `observe` and `auth` are the layers.
//! * `chat`, `completion`, `embedding`, `models`: the handlers.
//! * `openai`: bodies, checked once on the way in; the table from our errors to OpenAI's.
//! * `encoding`: compressed bodies, both ways.
//! * `upstream`: attempts, tickets, the last known fleet, FastChat's workers.

mod auth;
mod body;
mod chat;
mod completion;
pub mod config;
mod embedding;
#[cfg_attr(not(test), expect(dead_code, reason = "the handlers are about to use it"))]
mod encoding;
pub mod error;
mod metrics;
mod models;
mod observe;
mod openai;
mod routes;
mod state;
mod upstream;

use std::convert::Infallible;
use std::time::Duration;

use muster_shared::id::GatewayId;
use muster_shared::serve;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;
use state::{State, now_seconds};
use upstream::{Upstream, controller_client, ticket};

/// Time that requests which outlive the time to drain get to say so to their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves clients until `shutdown`; then finishes what runs, gives back its tickets, and ends.
///
/// # Errors
/// When the listener fails.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    metrics::describe();
    let (gateway, (releases, released)) = (GatewayId::new(), ticket::channel());
    let delivery = tokio::spawn(ticket::deliver(controller_client(&config), gateway, released));
    let cut = CancellationToken::new();
    let upstream = Upstream::new(config.clone(), gateway, releases, cut.clone());
    let state = State {
        upstream: upstream.clone(),
        keys: config.keys.clone().into(),
        body_limit: config.body_limit,
        started: now_seconds(),
    };
    let router = routes::router(state, &config.cors_origins);

    let served = tokio::select! {
        served = serve::serve(listener, router, shutdown.clone(), config.drain + LAST_WORDS) => served,
        never = keep_in_touch(&upstream, config.sync_interval) => match never {},
        never = cut_after(shutdown, config.drain, &cut) => match never {},
    };
    cut.cancel(); // where the listener failed
    // The last ticket's release ends the delivery, unless a client does not read what ends its request.
    drop(upstream);
    if tokio::time::timeout(config.connect_timeout * 2, delivery).await.is_err() {
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

/// Renews the gateway's tickets and its view of the fleet, for ever.
async fn keep_in_touch(upstream: &Upstream, interval: Duration) -> Infallible {
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut silent = false;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = upstream.in_doubt() => {}
        }
        match upstream.renew().await {
            Ok(()) if silent => {
                tracing::info!("the controller answers again");
                silent = false;
            }
            Ok(()) => {}
            Err(error) if !silent => {
                tracing::warn!(
                    error = muster_shared::problem::chain(&error),
                    "the controller does not answer; requests go to the workers last known"
                );
                silent = true;
            }
            Err(_) => {}
        }
    }
}
