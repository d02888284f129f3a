//! The gateway's section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use muster_gateway::{CacheConfig, Config, RateLimit};
use muster_shared::secret::Secret;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::file::client_keys;
use super::{RateGiven, Span, TlsSection, base_url, one_secret, or};

/// The port of a gateway unless it is told another.
const USUAL_PORT: u16 = 8000;
/// Time for which an answer is kept, unless another is set.
const KEPT: Duration = Duration::from_secs(300);
/// Smaller caches would hold nothing.
const SMALLEST_CACHE: u64 = 64 << 10;
/// The same for gRPC, beside the usual port: both are those of Triton.
const USUAL_GRPC_PORT: u16 = 8001;

/// Where gRPC is spoken: a port, 0 for a free one, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GrpcPort {
    /// Nowhere.
    Off,
    /// At that port.
    At(u16),
}

impl GrpcPort {
    /// The port, where there is one.
    pub(crate) fn port(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::At(port) => Some(port),
        }
    }
}

impl FromStr for GrpcPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| format!("`{text}` is no port; write a number up to 65535, or `off`"))
    }
}

impl Serialize for GrpcPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::At(port) => serializer.serialize_u16(*port),
        }
    }
}

impl<'de> Deserialize<'de> for GrpcPort {
    /// A number, or a text; `off` without quotes is false to YAML.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Port(u16),
            Switch(bool),
            Text(String),
        }
        match Given::deserialize(deserializer)? {
            Given::Port(port) => Ok(Self::At(port)),
            Given::Switch(false) => Ok(Self::Off),
            Given::Switch(true) => Err(D::Error::custom("true is no port; write a number, or `off`")),
            Given::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// What a gateway can be told.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GatewaySection {
    /// Interface to listen on.
    #[arg(long, env = "MUSTER_GATEWAY_HOST")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "MUSTER_GATEWAY_PORT")]
    pub(crate) port: Option<u16>,
    /// Port for the Open Inference Protocol over gRPC, at the same host: a number, 0 for a free one, or `off`.
    ///
    /// Unless said otherwise 8001 beside the usual port 8000, and off beside any other.
    #[arg(long, env = "MUSTER_GATEWAY_GRPC_PORT", value_name = "PORT")]
    pub(crate) grpc_port: Option<GrpcPort>,
    /// Base URL of the controller.
    #[arg(long, env = "MUSTER_CONTROLLER_ADDRESS")]
    pub(crate) controller_address: Option<String>,
    /// Key that clients must show; may be given several times.
    #[arg(
        long,
        visible_alias = "api-keys",
        env = "MUSTER_API_KEY",
        hide_env_values = true,
        value_parser = super::SecretParser,
        value_delimiter = ',',
    )]
    #[serde(alias = "api_keys")]
    pub(crate) api_key: Option<Vec<Secret>>,
    /// File that holds keys: one a line, or in YAML as `keys: [{name, key, priority, models, requests_per_minute,
    /// tokens_per_minute, max_streams, rate, burst}]`. It is read again when it changes.
    #[arg(long, env = "MUSTER_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Requests in a short time of each key, or of each address where no keys are wanted: 100/s, 600/m, 5000/h, or off.
    ///
    /// Addresses of this machine are not limited.
    #[arg(long, env = "MUSTER_GATEWAY_RATE_LIMIT", value_name = "RATE")]
    pub(crate) rate_limit: Option<RateGiven>,
    /// Requests that may come at once; twice a second's worth of the rate unless said otherwise.
    #[arg(long, env = "MUSTER_GATEWAY_RATE_BURST", value_name = "REQUESTS")]
    pub(crate) rate_burst: Option<NonZeroU32>,
    /// Token that every service of the fleet shows to the others.
    #[arg(long, env = "MUSTER_FLEET_TOKEN", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) fleet_token: Option<Secret>,
    /// File that holds the fleet's token.
    #[arg(long, env = "MUSTER_FLEET_TOKEN_FILE")]
    pub(crate) fleet_token_file: Option<PathBuf>,
    /// Key shown to workers of the transport `openai`, which never see the fleet's token.
    #[arg(long, env = "MUSTER_OPENAI_KEY", hide_env_values = true, value_parser = super::SecretParser)]
    pub(crate) openai_key: Option<Secret>,
    /// File whose first line is that key.
    #[arg(long, env = "MUSTER_OPENAI_KEY_FILE")]
    pub(crate) openai_key_file: Option<PathBuf>,
    /// Files of TLS.
    #[command(flatten)]
    #[serde(skip_serializing_if = "TlsSection::is_empty")]
    pub(crate) tls: TlsSection,
    /// Origin whose pages may ask, as `https://app.example`, or `*` for any; may be given several times.
    #[arg(
        long = "cors-origin",
        visible_alias = "allowed-origins",
        env = "MUSTER_GATEWAY_CORS_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    #[serde(alias = "allowed_origins")]
    pub(crate) cors_origins: Option<Vec<String>>,
    /// Workers tried for one request.
    #[arg(long, env = "MUSTER_GATEWAY_ATTEMPTS")]
    pub(crate) attempts: Option<NonZeroU32>,
    /// Longest wait for room on a worker.
    #[arg(long, env = "MUSTER_GATEWAY_DISPATCH_WAIT")]
    pub(crate) dispatch_wait: Option<Span>,
    /// Longest wait for a connection.
    #[arg(long, env = "MUSTER_GATEWAY_CONNECT_TIMEOUT")]
    pub(crate) connect_timeout: Option<Span>,
    /// Longest wait for a worker's first token, its queue included.
    #[arg(long, env = "MUSTER_GATEWAY_FIRST_TOKEN_TIMEOUT")]
    pub(crate) first_token_timeout: Option<Span>,
    /// Longest time between two tokens of a worker.
    #[arg(long, env = "FASTCHAT_WORKER_API_TIMEOUT")]
    pub(crate) inter_token_timeout: Option<Span>,
    /// Time in which an answer that broke off must have found another worker.
    #[arg(long, env = "MUSTER_GATEWAY_RESUME_TIMEOUT")]
    pub(crate) resume_timeout: Option<Span>,
    /// Requests that may be tried again, as a part of all (0 to 1); a hundred a second always may.
    #[arg(long, env = "MUSTER_GATEWAY_RETRY_BUDGET")]
    pub(crate) retry_budget: Option<f32>,
    /// Ask a second worker when the first has not begun to answer after this time; off unless set.
    #[arg(long, env = "MUSTER_GATEWAY_HEDGE_AFTER")]
    pub(crate) hedge_after: Option<Span>,
    /// Longest time for which a client may read nothing of its answer.
    #[arg(long, env = "MUSTER_GATEWAY_CLIENT_TIMEOUT")]
    pub(crate) client_timeout: Option<Span>,
    /// Longest time between the first byte of a request's head and its last.
    #[arg(long, env = "MUSTER_GATEWAY_HEAD_TIMEOUT")]
    pub(crate) head_timeout: Option<Span>,
    /// Longest time for which a connection may stay without a request.
    #[arg(long, env = "MUSTER_GATEWAY_IDLE_TIMEOUT")]
    pub(crate) idle_timeout: Option<Span>,
    /// Longest pause of a request's body, which must come at a kibibyte a second on the whole.
    #[arg(long, env = "MUSTER_GATEWAY_BODY_TIMEOUT")]
    pub(crate) body_timeout: Option<Span>,
    /// Most connections of clients; one more takes the place of an idle one.
    #[arg(long, env = "MUSTER_GATEWAY_MAX_CONNECTIONS", value_name = "N")]
    pub(crate) max_connections: Option<NonZeroUsize>,
    /// Longest wait for the first byte of an answer.
    #[arg(long, env = "MUSTER_GATEWAY_REQUEST_TIMEOUT")]
    pub(crate) request_timeout: Option<Span>,
    /// Longest request body.
    #[arg(long, env = "MUSTER_GATEWAY_BODY_LIMIT")]
    pub(crate) body_limit: Option<ByteSize>,
    /// Room for answers that are kept and given again to a client that asks the same, as `64MiB`; none unless set.
    ///
    /// Kept are embeddings, scores, classes, and texts of a temperature of 0 or with a seed.
    #[arg(long, env = "MUSTER_GATEWAY_RESULT_CACHE", value_name = "SIZE")]
    pub(crate) result_cache: Option<ByteSize>,
    /// Time after which a kept answer is forgotten.
    #[arg(long, env = "MUSTER_GATEWAY_RESULT_CACHE_TTL")]
    pub(crate) result_cache_ttl: Option<Span>,
    /// Let clients load and unload models over the Open Inference Protocol.
    #[arg(
        long,
        env = "MUSTER_GATEWAY_ALLOW_MODEL_CONTROL",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) allow_model_control: Option<bool>,
    /// Time between two looks at the fleet.
    #[arg(long, env = "MUSTER_GATEWAY_SYNC_INTERVAL")]
    pub(crate) sync_interval: Option<Span>,
    /// Texts sent to a FastChat worker in one embeddings call.
    #[arg(long, env = "FASTCHAT_WORKER_API_EMBEDDING_BATCH_SIZE")]
    pub(crate) fastchat_embedding_batch: Option<NonZeroUsize>,
    /// Threads that serve clients; half of the processors that the process may use, unless said otherwise.
    #[arg(id = "gateway_threads", long = "threads", env = "MUSTER_GATEWAY_THREADS", value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Log a line for every request, with its key's name, model, worker, tokens, times and outcome: `on` or `off`.
    #[arg(long, env = "MUSTER_ACCESS_LOG", value_name = "on|off", value_parser = super::switch())]
    pub(crate) access_log: Option<bool>,
    /// Add the beginning of each request's body to its line: THE LOG THEN HOLDS WHAT USERS HAVE WRITTEN, up to 4 KiB of
    /// each request over HTTP.
    #[arg(
        long,
        env = "MUSTER_LOG_PROMPTS",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) log_prompts: Option<bool>,
    /// Time that running requests get when the gateway stops.
    #[arg(long, env = "MUSTER_GATEWAY_DRAIN")]
    pub(crate) drain: Option<Span>,
    /// Listen on an open interface without a key.
    #[arg(
        long,
        env = "MUSTER_INSECURE",
        value_parser = super::switch(),
        num_args = 0..=1,
        default_missing_value = "true",
    )]
    pub(crate) insecure: Option<bool>,
}

impl GatewaySection {
    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other; tls, host, port, grpc_port, controller_address, cors_origins, attempts,
            dispatch_wait, connect_timeout, first_token_timeout, inter_token_timeout, resume_timeout, retry_budget,
            hedge_after, head_timeout, idle_timeout, body_timeout, max_connections, client_timeout, request_timeout,
            body_limit, result_cache, result_cache_ttl, allow_model_control, sync_interval, fastchat_embedding_batch,
            threads, rate_limit, rate_burst, access_log, log_prompts, drain, insecure;
            (api_key, api_key_file), (fleet_token, fleet_token_file),
            (openai_key, openai_key_file))
    }

    /// Everything said.
    pub(crate) fn defaults() -> Self {
        let usual = Config::default();
        Self {
            host: Some("127.0.0.1".to_owned()),
            port: Some(USUAL_PORT),
            grpc_port: None,
            controller_address: Some(usual.controller),
            api_key: None,
            api_key_file: None,
            rate_limit: usual.rate.map(|limit| RateGiven::At(limit.rate)),
            rate_burst: None,
            fleet_token: None,
            fleet_token_file: None,
            tls: TlsSection::default(),
            openai_key: None,
            openai_key_file: None,
            cors_origins: Some(usual.cors_origins),
            attempts: Some(usual.attempts),
            dispatch_wait: Some(Span(usual.dispatch_wait)),
            connect_timeout: Some(Span(usual.connect_timeout)),
            first_token_timeout: Some(Span(usual.first_token_timeout)),
            inter_token_timeout: Some(Span(usual.inter_token_timeout)),
            resume_timeout: Some(Span(usual.resume_timeout)),
            retry_budget: Some(usual.retry_budget),
            hedge_after: usual.hedge_after.map(Span),
            client_timeout: Some(Span(usual.client_timeout)),
            head_timeout: Some(Span(usual.head_timeout)),
            idle_timeout: Some(Span(usual.idle_timeout)),
            body_timeout: Some(Span(usual.body_timeout)),
            max_connections: Some(usual.max_connections),
            request_timeout: Some(Span(usual.request_timeout)),
            body_limit: Some(ByteSize(usual.body_limit as u64)),
            result_cache: Some(ByteSize(0)),
            result_cache_ttl: Some(Span(KEPT)),
            allow_model_control: Some(usual.allow_model_control),
            sync_interval: Some(Span(usual.sync_interval)),
            fastchat_embedding_batch: Some(usual.fastchat_embedding_batch),
            threads: Some(usual.threads),
            access_log: Some(usual.access_log),
            log_prompts: Some(usual.log_prompts),
            drain: Some(Span(usual.drain)),
            insecure: Some(false),
        }
    }

    /// The same with the port for gRPC that follows from the other one, where none is said.
    pub(crate) fn with_grpc_port(mut self) -> Self {
        let usual = if self.port == Some(USUAL_PORT) { GrpcPort::At(USUAL_GRPC_PORT) } else { GrpcPort::Off };
        self.grpc_port.get_or_insert(usual);
        self
    }

    /// What is kept of answers, if anything is.
    fn cache(&self) -> anyhow::Result<Option<CacheConfig>> {
        let Some(ByteSize(bytes @ 1..)) = self.result_cache else { return Ok(None) };
        let Span(ttl) = self.result_cache_ttl.unwrap_or(Span(KEPT));
        anyhow::ensure!(
            bytes >= SMALLEST_CACHE,
            "result_cache is {}; it must be at least {}, or 0 to keep nothing",
            ByteSize(bytes),
            ByteSize(SMALLEST_CACHE)
        );
        anyhow::ensure!(!ttl.is_zero(), "result_cache_ttl is 0; it must be longer, or result_cache 0 to keep nothing");
        Ok(Some(CacheConfig { bytes, ttl }))
    }

    /// Requests in a short time, as they are said here.
    fn rate(&self, usual: Option<RateLimit>) -> anyhow::Result<Option<RateLimit>> {
        let limit = match self.rate_limit {
            Some(RateGiven::Off) => None,
            Some(RateGiven::At(rate)) => Some(RateLimit::new(rate)),
            None => usual,
        };
        match (limit, self.rate_burst) {
            (None, Some(_)) => anyhow::bail!("rate_burst is given, and rate_limit is off; leave one of them out"),
            (Some(RateLimit { rate, .. }), Some(burst)) => Ok(Some(RateLimit { rate, burst })),
            (limit, None) => Ok(limit),
        }
    }

    /// Checks everything, and makes it the gateway's configuration.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usual = Config::default();
        let span = |given: Option<Span>, usual| given.map_or(usual, |Span(duration)| duration);
        let (keys, keys_reload) =
            client_keys(self.api_key.as_deref().unwrap_or_default(), self.api_key_file.as_deref())?;
        let ports = (self.port, self.grpc_port);
        if let (Some(port @ 1..), Some(GrpcPort::At(grpc_port))) = ports {
            anyhow::ensure!(
                port != grpc_port,
                "port and grpc_port are both {port}; give each protocol a port of its own"
            );
        }
        for (name, given) in [
            ("head_timeout", self.head_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
        ] {
            anyhow::ensure!(given.is_none_or(|Span(time)| !time.is_zero()), "{name} is 0; it must be longer");
        }
        let sync_interval = span(self.sync_interval, usual.sync_interval);
        anyhow::ensure!(!sync_interval.is_zero(), "sync_interval is 0; it must be longer");
        let retry_budget = self.retry_budget.unwrap_or(usual.retry_budget);
        anyhow::ensure!(
            (0.0..=1.0).contains(&retry_budget),
            "retry_budget is {retry_budget}; it must be a part of all requests, from 0 to 1"
        );
        let (access_log, log_prompts) =
            (self.access_log.unwrap_or(usual.access_log), self.log_prompts.unwrap_or(usual.log_prompts));
        anyhow::ensure!(
            access_log || !log_prompts,
            "log_prompts adds to the lines of the access log, and access_log is off; switch that on, or this off"
        );
        Ok(Config {
            controller: match &self.controller_address {
                Some(url) => base_url("controller_address", url)?,
                None => usual.controller,
            },
            token: one_secret(self.fleet_token.clone(), self.fleet_token_file.as_deref())?,
            tls: self.tls.load()?,
            openai_key: one_secret(self.openai_key.clone(), self.openai_key_file.as_deref())?,
            keys,
            keys_reload,
            rate: self.rate(usual.rate)?,
            cors_origins: match &self.cors_origins {
                Some(origins) => origins.iter().map(|text| origin(text)).collect::<anyhow::Result<_>>()?,
                None => usual.cors_origins,
            },
            attempts: self.attempts.unwrap_or(usual.attempts),
            dispatch_wait: span(self.dispatch_wait, usual.dispatch_wait),
            connect_timeout: span(self.connect_timeout, usual.connect_timeout),
            first_token_timeout: span(self.first_token_timeout, usual.first_token_timeout),
            inter_token_timeout: span(self.inter_token_timeout, usual.inter_token_timeout),
            resume_timeout: span(self.resume_timeout, usual.resume_timeout),
            retry_budget,
            hedge_after: self.hedge_after.map(|Span(duration)| duration),
            client_timeout: span(self.client_timeout, usual.client_timeout),
            head_timeout: span(self.head_timeout, usual.head_timeout),
            idle_timeout: span(self.idle_timeout, usual.idle_timeout),
            body_timeout: span(self.body_timeout, usual.body_timeout),
            max_connections: self.max_connections.unwrap_or(usual.max_connections),
            request_timeout: span(self.request_timeout, usual.request_timeout),
            body_limit: self.body_limit.map_or(usual.body_limit, |size| size.0 as usize),
            cache: self.cache()?,
            allow_model_control: self.allow_model_control.unwrap_or(usual.allow_model_control),
            sync_interval,
            fastchat_embedding_batch: self.fastchat_embedding_batch.unwrap_or(usual.fastchat_embedding_batch),
            threads: self.threads.unwrap_or(usual.threads),
            access_log,
            log_prompts,
            drain: span(self.drain, usual.drain),
        })
    }
}

/// An origin as browsers write it. A piece of a JSON list is taken too: FastChat's `--allowed-origins` has those.
fn origin(text: &str) -> anyhow::Result<String> {
    let piece = text.trim().trim_start_matches('[').trim_start();
    let text = match piece.strip_prefix('"') {
        Some(quoted) => quoted.trim_end_matches([']', ' ']).trim_end_matches('"'),
        None => piece,
    };
    if text == "*" {
        return Ok(text.to_owned());
    }
    let wrong = || anyhow::anyhow!("cors_origins: `{text}` is no origin; write https://HOST, https://HOST:PORT or *");
    let url = reqwest::Url::parse(text).map_err(|_| wrong())?;
    let bare = url.username().is_empty() && matches!(url.path(), "" | "/");
    anyhow::ensure!(url.has_host() && bare && url.query().is_none() && url.fragment().is_none(), wrong());
    Ok(match url.scheme() {
        "http" | "https" => url.origin().ascii_serialization(),
        _ => text.trim_end_matches('/').to_owned(), // of an app or an extension
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_can_be_given_no_time_at_all() {
        let none = Some(Span::seconds(0));
        for section in [
            GatewaySection { head_timeout: none, ..GatewaySection::default() },
            GatewaySection { idle_timeout: none, ..GatewaySection::default() },
            GatewaySection { body_timeout: none, ..GatewaySection::default() },
        ] {
            let error = section.config().expect_err("no time").to_string();
            assert!(error.contains("_timeout is 0; it must be longer"), "{error}");
        }
    }

    #[test]
    fn grpc_is_spoken_beside_the_usual_port_and_where_it_is_said() {
        let port = |port, grpc_port: Option<&str>| {
            let grpc_port = grpc_port.map(|text| text.parse().expect("a port"));
            let section = GatewaySection { port, grpc_port, ..GatewaySection::default() };
            section.or(GatewaySection::defaults()).with_grpc_port().grpc_port.and_then(GrpcPort::port)
        };
        assert_eq!(port(None, None), Some(8001));
        assert_eq!(port(None, Some("off")), None);
        assert_eq!(port(Some(0), None), None, "whoever takes another port says which");
        assert_eq!(port(Some(9000), Some("9001")), Some(9001));
        assert_eq!(port(Some(0), Some("0")), Some(0));
        assert!("none".parse::<GrpcPort>().expect_err("no port").contains("`off`"));
        let twice = GatewaySection { port: Some(9), grpc_port: Some(GrpcPort::At(9)), ..GatewaySection::default() };
        assert!(twice.config().expect_err("one port for two").to_string().contains("both 9"));
    }

    #[test]
    fn a_file_says_off_with_or_without_quotes() {
        for (text, expected) in [("off", GrpcPort::Off), ("'off'", GrpcPort::Off), ("8001", GrpcPort::At(8001))] {
            let section: GatewaySection = serde_saphyr::from_str(&format!("grpc_port: {text}")).expect(text);
            assert_eq!(section.grpc_port, Some(expected), "{text}");
        }
        assert!(serde_saphyr::from_str::<GatewaySection>("grpc_port: 70000").is_err());
    }

    #[test]
    fn origins_are_written_as_browsers_do() {
        for (text, expected) in [
            ("*", "*"),
            ("https://App.Example/", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://[::1]", "http://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
            ("[\"*\"]", "*"),
            ("[\"http://a:1\"", "http://a:1"),
            (" \"http://[::1]:2\" ]", "http://[::1]:2"),
        ] {
            assert_eq!(origin(text).expect(text), expected);
        }
        for text in ["", "app.example", "https://a/b", "https://a?b", "https://me@a", "null", "mailto:a@b"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }
}
