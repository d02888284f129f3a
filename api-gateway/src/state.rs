//! What the handlers of a gateway share, and what a request brings along.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::account::Account;
use crate::keys::ApiKey;
use crate::keys::ring::Keys;
use crate::upstream::Upstream;

/// The state of a gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The way to the workers.
    pub(crate) upstream: Upstream,
    /// Keys of which clients must show one, and the buckets of clients where there are none.
    pub(crate) keys: Arc<Keys>,
    /// Largest body of a request, in bytes.
    pub(crate) body_limit: usize,
    /// When the gateway started, in seconds since 1970; the age of every model, as far as clients ask.
    pub(crate) started: u64,
}

/// The name of a request, from the client or made up here.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

/// A request, as far as it matters who has sent it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Its name.
    pub(crate) id: RequestId,
    /// What becomes of it.
    pub(crate) account: Account,
    /// The key that it came with, where keys are wanted.
    pub(crate) key: Option<Arc<ApiKey>>,
    /// When its client gives up, where it has said so.
    pub(crate) until: Option<Instant>,
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
