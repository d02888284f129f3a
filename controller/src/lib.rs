//! The controller: which workers live, what they have to do, and who takes the next request.
//!
//! ```text
//!   gateways ──dispatch, release, sync───┐   link                     ┌─ registry: workers, leases, tickets (pure)
//!   workers ──register, heartbeat, leave─┼─▶ http ─▶ service ─▶ desk ─┼─ dispatch: the policy picks (pure)
//!   FastChat's workers and gateways ─────┘   fastchat                 └─ queue: who waits for room (pure)
//! ```
//!
//! In reading order:
//!
//! * [`config`]: what it can be told.
//! * `registry`: workers, leases judged when read, circuit breakers, tickets.
//! * [`dispatch`]: the policies, by name.
//! * [`names`]: aliases, fallbacks, and the policies of single models.
//! * `queue`: the bounded waiting queue, fair between keys; `estimate`: how long it takes.
//! * `desk`: the three together; every rule ends here, and none of it does I/O.
//! * [`journal`]: why each of the last workers was chosen.
//! * `service`: the lock, the replies to those who wait, and the clock.
//! * `access`: who may call.
//! * [`peers`]: workers that are written down instead of registering, and the probes that show whether they live.
//! * `registration`: what is checked before the registry sees a worker; `outbound`: calls to workers.
//! * `front`: the calls that come by the thousand; `http`: every route, and our own handlers; `link`: a gateway's
//!   connection; `fastchat`: FastChat's routes.
//! * `topology`: the fleet as a picture; `events`: what changes about it, as a stream.
//! * `page`: the files of the status page.
//! * `metrics`: what is counted.
//! * [`offline`]: the rules alone, for simulations and measurements; [`simulator`]: a fleet around them, in virtual time.

mod access;
pub mod config;
mod desk;
pub mod dispatch;
mod estimate;
mod events;
mod fastchat;
#[cfg(test)]
mod fixtures;
mod front;
mod http;
pub mod journal;
mod link;
mod metrics;
pub mod names;
pub mod offline;
mod outbound;
mod page;
pub mod peers;
mod queue;
mod registration;
mod registry;
mod service;
#[cfg(test)]
mod simulation;
pub mod simulator;
mod topology;

use std::sync::Arc;

use muster_shared::serve::{Met, Patience, serve_requests};
use muster_shared::tls::{self, Protocols};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use access::Reach;
use front::Front;
use service::Service;

/// Serves a controller on `listener` until `shutdown`; then answers all who wait, and gives running calls
/// [`Config::drain`] to end.
///
/// A listener that fails for a time is tried again, so nothing but `shutdown` ends it.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) {
    metrics::describe();
    tls::describe();
    muster_shared::serve::describe();
    let service = Arc::new(Service::new(&config, shutdown.clone()));
    let reach = Reach::of(&config, &listener);
    let router = http::router(&config, reach, Arc::clone(&service));
    let front = Front::new(&config, reach, Arc::clone(&service), router);
    if config.admin_key.is_some() && config.token.is_none() {
        tracing::warn!(
            "there is an admin key and no fleet token: whoever reaches this controller can do what workers do"
        );
    }
    let door = Met { door: listener, acceptor: config.tls.acceptor(Protocols::Upgrades) };
    // None of the companions ever ends; dropping this future drops them too.
    tokio::select! {
        () = serve_requests(door, move |_| front.clone(), shutdown, Patience::draining(config.drain)) => {}
        never = service.keep_time() => match never {},
        never = fastchat::refresh::run(&service) => match never {},
        never = peers::keep(&service, config.peers.as_ref()) => match never {},
    }
}
