//! What the gateway can be told.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use muster_shared::secret::Secret;
use muster_shared::tls::Tls;

use crate::cache::CacheConfig;
use crate::keys::ApiKey;
use crate::keys::reload::Reload;
use crate::limits::rate::RateLimit;

/// Settings of a gateway; checked where they are read, so every value here can be used as it is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of the controller.
    pub controller: String,
    /// The fleet's token, sent to the controller and to workers.
    pub token: Option<Secret>,
    /// What it shows to clients and to the fleet, and whom it trusts.
    pub tls: Tls,
    /// What workers of the transport `openai` are shown; they are never shown the fleet's token.
    pub openai_key: Option<Secret>,
    /// Keys of which clients must present one; empty: everybody may ask.
    pub keys: Vec<ApiKey>,
    /// The file of those keys, followed while the gateway runs; absent: they stay as they are.
    pub keys_reload: Option<Reload>,
    /// Requests in a short time of each key that has no limit of its own, or of each address where no keys are wanted;
    /// absent: any number.
    pub rate: Option<RateLimit>,
    /// Workers tried for one request, at most.
    pub attempts: NonZeroU32,
    /// Longest wait for room on a worker.
    pub dispatch_wait: Duration,
    /// Longest wait for a connection to the controller or a worker.
    pub connect_timeout: Duration,
    /// From asking a worker to its first token, the wait in its queue included; then another worker is asked.
    pub first_token_timeout: Duration,
    /// Between one token of a worker and the next; then the answer goes on at another worker.
    pub inter_token_timeout: Duration,
    /// Time in which an answer that broke off must have found another worker.
    pub resume_timeout: Duration,
    /// Requests that may be tried again because a worker failed, as a part of all; a hundred a second always may.
    pub retry_budget: f32,
    /// Time without a first token after which a second worker is asked as well, and the faster one answers.
    pub hedge_after: Option<Duration>,
    /// Longest time for which a client may read nothing of its answer; then the request is cancelled.
    pub client_timeout: Duration,
    /// Longest time between the first byte of a request's head and its last.
    pub head_timeout: Duration,
    /// Longest time for which a connection may stay without a request.
    pub idle_timeout: Duration,
    /// Longest pause of a request's body, which must come at a kibibyte a second on the whole.
    pub body_timeout: Duration,
    /// Most connections of clients; one more takes the place of an idle one.
    pub max_connections: NonZeroUsize,
    /// From the request to the first byte of its answer; a stream may run on while it makes progress.
    pub request_timeout: Duration,
    /// Origins (`https://app.example`) whose pages may ask, as a browser sees it; `*` stands for any, empty for none.
    pub cors_origins: Vec<String>,
    /// Answers that are kept for those who ask the same again; absent: none are.
    pub cache: Option<CacheConfig>,
    /// Largest body of a request, in bytes.
    pub body_limit: usize,
    /// Whether clients may load and unload models of workers.
    pub allow_model_control: bool,
    /// Time between two renewals of this gateway's tickets, each of which also refreshes its view of the fleet.
    pub sync_interval: Duration,
    /// Inputs sent to a FastChat worker in one embeddings call.
    pub fastchat_embedding_batch: NonZeroUsize,
    /// Whether the log has a line for every request.
    pub access_log: bool,
    /// Whether that line has the beginning of the request's body: prompts, as clients have sent them.
    pub log_prompts: bool,
    /// Threads that serve clients.
    pub threads: NonZeroUsize,
    /// Time that running requests get after a shutdown was asked for.
    pub drain: Duration,
}

/// Half of the processors that the process may use: one thread serves some twenty thousand requests a second, and what
/// stands on both sides of a gateway wants processors, too.
fn usual_threads() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors / 2).unwrap_or(NonZeroUsize::MIN)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controller: "http://127.0.0.1:21001".to_owned(),
            token: None,
            tls: Tls::default(),
            openai_key: None,
            keys: Vec::new(),
            keys_reload: None,
            rate: Some(RateLimit::default()),
            attempts: NonZeroU32::new(3).expect("3 is not 0"),
            dispatch_wait: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            first_token_timeout: Duration::from_secs(120),
            inter_token_timeout: Duration::from_secs(100),
            resume_timeout: Duration::from_secs(60),
            retry_budget: 0.2,
            hedge_after: None,
            client_timeout: Duration::from_secs(30),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            max_connections: NonZeroUsize::new(10_000).expect("10,000 is not 0"),
            request_timeout: Duration::from_secs(600),
            cors_origins: Vec::new(),
            cache: None,
            body_limit: 8 << 20,
            allow_model_control: false,
            sync_interval: Duration::from_secs(2),
            fastchat_embedding_batch: NonZeroUsize::new(4).expect("4 is not 0"),
            access_log: true,
            log_prompts: false,
            threads: usual_threads(),
            drain: Duration::from_secs(30),
        }
    }
}
