//! What the gateway can be told.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use muster_shared::secret::Secret;

/// Settings of a gateway; checked where they are read, so every value here can be used as it is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the controller.
    pub controller: String,
    /// The fleet's token, sent to the controller and to workers.
    pub token: Option<Secret>,
    /// Keys of which clients must present one; empty: everybody may ask.
    pub keys: Vec<Secret>,
    /// Workers tried for one request, at most.
    pub attempts: NonZeroU32,
    /// Longest wait for room on a worker.
    pub dispatch_wait: Duration,
    /// Longest wait for a connection to the controller or a worker.
    pub connect_timeout: Duration,
    /// Longest silence of a worker.
    pub read_timeout: Duration,
    /// From the request to the first byte of its answer; a stream may run on while it makes progress.
    pub request_timeout: Duration,
    /// Origins (`https://app.example`) whose pages may ask, as a browser sees it; `*` stands for any, empty for none.
    pub cors_origins: Vec<String>,
    /// Largest body of a request, in bytes.
    pub body_limit: usize,
    /// Time between two renewals of this gateway's tickets, each of which also refreshes its view of the fleet.
    pub sync_interval: Duration,
    /// Inputs sent to a FastChat worker in one embeddings call.
    pub fastchat_embedding_batch: NonZeroUsize,
    /// Time that running requests get after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controller: "http://127.0.0.1:21001".to_owned(),
            token: None,
            keys: Vec::new(),
            attempts: NonZeroU32::new(3).expect("3 is not 0"),
            dispatch_wait: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(100),
            request_timeout: Duration::from_secs(600),
            cors_origins: Vec::new(),
            body_limit: 8 << 20,
            sync_interval: Duration::from_secs(2),
            fastchat_embedding_batch: NonZeroUsize::new(4).expect("4 is not 0"),
            drain: Duration::from_secs(30),
        }
    }
}
