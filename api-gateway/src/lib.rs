//! The gateway: the OpenAI API in front of a fleet of workers.
//!
//! ```text
//!   client ──▶ shard ─▶ front ─▶ chat, completion, once ───────▶ upstream ──link──▶ controller
//!                         ▲              │                           └──token events, or bytes as they are──▶ worker
//!                         └── openai ◀───┘ bodies in and out
//! ```
//!
//! The gateway knows OpenAI and no tokens. In reading order:
//!
//! * [`config`] and [`error`]: what it can be told, and why it stops.
//! * `shard`: the gateway's threads, each with a link and connections of its own.
//! * `front`: the requests that come by the thousand; `routes`: every route and layer; `observe`, `auth` and `patience`:
//!   what all requests have in common; `keys`, what clients show, and `limits`, what they may use; `via`: gateways in a
//!   circle.
//! * `chat`, `completion`, `models`: the handlers; `once`: one for all that a worker answers in one message, which
//!   `classify` and `moderation` prepare; `endpoints`: which of them are for a model of which kind.
//! * `inference` and `grpc`: the same for tensors, the Open Inference Protocol.
//! * `body` and `outgoing`: bodies as bytes, in and out.
//! * `openai`: bodies, checked once on the way in; the table from our errors to OpenAI's.
//! * `encoding`: compressed bodies, both ways.
//! * `cache`: answers that are kept.
//! * `upstream`: attempts, tickets, the last known fleet, answers that go on elsewhere, and workers in every protocol.
//! * `playground`: the files of a page to try models on.
//! * `fuzzing`: readers of foreign bytes, for fuzz targets.
//! * `state`, `account`, `access`, `spans` and `metrics`: what handlers share, what becomes of each request, what the log
//!   and its trace say of it, and what is counted.

mod access;
mod account;
mod auth;
mod body;
mod cache;
mod chat;
mod classify;
mod completion;
pub mod config;
mod encoding;
mod endpoints;
pub mod error;
mod front;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod inference;
mod keys;
mod limits;
mod metrics;
mod models;
mod moderation;
mod observe;
mod once;
mod openai;
mod outgoing;
mod patience;
mod playground;
mod routes;
mod shard;
mod spans;
mod state;
mod upstream;
mod via;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use cache::CacheConfig;
pub use config::Config;
pub use error::Error;
pub use keys::reload::Reload;
pub use keys::{ApiKey, Models, ModelsError, NameError};
pub use limits::rate::{Rate, RateError, RateLimit};
pub use limits::{KeyLimits, KeyRate};

/// Where clients reach a gateway.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For the Open Inference Protocol over gRPC; absent: it is not spoken.
    pub grpc: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, grpc: None }
    }
}

/// Serves clients until `shutdown`; then finishes what runs, gives back its tickets, and ends.
///
/// # Errors
/// When the system gives no thread.
pub async fn run(config: Config, listeners: impl Into<Listeners>, shutdown: CancellationToken) -> Result<(), Error> {
    metrics::describe();
    limits::metrics::describe();
    muster_shared::tls::describe();
    muster_shared::serve::describe();
    if config.access_log {
        access::open(config.log_prompts);
    }
    let served = shard::run(config, listeners.into(), shutdown).await;
    // The last request has ended; waiting for a slow reader of the log may take a while.
    let _ = tokio::task::spawn_blocking(access::flush).await;
    served
}
